//! [`Graph`] and [`Ranges`] to QDQ ONNX.

use std::collections::{BTreeMap, BTreeSet};

use andon_runtime::onnx::{GraphProto, ModelProto, NodeProto, TensorProto};

use super::Ranges;
use crate::graph::{Array, Graph, Node, Op, float_value, node as float_node};

#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    #[error("activation {value:?} was not calibrated")]
    NotCalibrated { value: String },
    #[error("activation {value:?} ranges from {low} to {high}; quantisation needs finite numbers")]
    Range { value: String, low: f32, high: f32 },
    #[error("weight {name:?} holds a value that is not finite")]
    NotFinite { name: String },
}

/// `real = scale * (quantised - zero_point)`, u8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameters {
    pub scale: f32,
    pub zero_point: u8,
}

impl Parameters {
    /// For a range that contains 0, which gets a number of its own (padding and clipping depend on it).
    pub fn of(low: f32, high: f32) -> Self {
        let scale = ((high - low) / 255.0).max(1e-8);
        Self { scale, zero_point: (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8 }
    }
}

/// The int8 model. Outputs: logits and embedding, both f32.
pub fn write(graph: &Graph, ranges: &Ranges) -> Result<Vec<u8>, QuantiseError> {
    let graph = without_clips(graph, ranges);
    let float_from = float_tail(&graph);
    let mut writer = Writer {
        graph: &graph,
        parameters: BTreeMap::new(),
        nodes: vec![],
        initializer: vec![],
        float: BTreeSet::new(),
    };
    writer.parameters(ranges, float_from)?;
    writer.pair(&graph.input);
    for (i, node) in graph.nodes.iter().enumerate() {
        writer.node(node, i < float_from)?;
    }
    let Writer { nodes, initializer, .. } = writer;
    let proto = GraphProto {
        name: graph.name.clone(),
        node: nodes,
        initializer,
        input: vec![float_value(&graph.input, &[1, graph.channels, graph.height, graph.width])],
        output: vec![
            float_value(graph.scores(), &[1, graph.classes()]),
            float_value(graph.embedding(), &[1, graph.embedding_len()]),
        ],
        ..Default::default()
    };
    Ok(ModelProto::new(proto, crate::graph::OPSET).to_bytes())
}

/// A clip that saturation does anyway is no node: it vanishes into the range of what is before it, if nobody else
/// reads that.
fn without_clips(graph: &Graph, ranges: &Ranges) -> Graph {
    let mut graph = graph.clone();
    let mut i = 0;
    while i < graph.nodes.len() {
        let (op, source) =
            (graph.nodes[i].op.clone(), graph.nodes[i].inputs.first().cloned().unwrap_or_default());
        let producer = graph.nodes[..i].iter().position(|n| n.output == source);
        let high = ranges.get(&graph.nodes[i].output).map_or(f32::INFINITY, |r| r.1);
        match (op, producer) {
            (Op::Clip { min: 0.0, max }, Some(p))
                if high <= max && graph.uses().get(source.as_str()) == Some(&1) =>
            {
                graph.nodes[p].output = graph.nodes.remove(i).output;
            }
            _ => i += 1,
        }
    }
    graph
}

/// First of the nodes at the end that stay in float: the head, and flatten and pooling before it.
fn float_tail(graph: &Graph) -> usize {
    let light = |n: &Node| matches!(n.op, Op::Flatten | Op::GlobalAveragePool);
    let head = graph.nodes.len() - 1;
    (0..head).rev().take_while(|i| light(&graph.nodes[*i])).last().unwrap_or(head)
}

struct Writer<'a> {
    graph: &'a Graph,
    /// Of every quantised activation.
    parameters: BTreeMap<String, Parameters>,
    nodes: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    /// Weights that were written in float already.
    float: BTreeSet<String>,
}

impl Writer<'_> {
    fn parameters(&mut self, ranges: &Ranges, float_from: usize) -> Result<(), QuantiseError> {
        let set = |value: &str, parameters: &mut BTreeMap<String, Parameters>| {
            let (low, high) =
                ranges.get(value).ok_or_else(|| QuantiseError::NotCalibrated { value: value.to_owned() })?;
            if !low.is_finite() || !high.is_finite() {
                return Err(QuantiseError::Range { value: value.to_owned(), low, high });
            }
            parameters.insert(value.to_owned(), Parameters::of(low, high));
            Ok(())
        };
        set(&self.graph.input, &mut self.parameters)?;
        for node in &self.graph.nodes[..float_from] {
            match node.op {
                // These move bytes: equal parameters on both sides let them run on bytes.
                Op::MaxPool { .. } | Op::Flatten => {
                    let same = self.parameters[&node.inputs[0]];
                    self.parameters.insert(node.output.clone(), same);
                }
                _ => set(&node.output, &mut self.parameters)?,
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &Node, quantised: bool) -> Result<(), QuantiseError> {
        let mut node = node.clone();
        if quantised && matches!(node.op, Op::Conv { .. } | Op::Gemm) {
            let x = self.parameters[&node.inputs[0]];
            let (w, b) = (node.inputs[1].clone(), node.inputs[2].clone());
            let scales = self.weight(&w, &b, x.scale)?;
            self.bias(&b, x.scale, &scales)?;
            node.inputs[1] = dequantised(&w);
            node.inputs[2] = dequantised(&b);
        }
        for input in &mut node.inputs {
            if self.parameters.contains_key(input) {
                *input = dequantised(input);
            } else if let Some(array) = self.graph.weights.get(input)
                && self.float.insert(input.clone())
            {
                self.initializer.push(TensorProto::f32(input, &array.shape, &array.data));
            }
        }
        let written = float_node(&node, &mut self.initializer);
        self.nodes.push(written);
        if quantised {
            self.pair(&node.output);
        }
        Ok(())
    }

    /// QuantizeLinear and DequantizeLinear after an activation.
    fn pair(&mut self, value: &str) {
        let Parameters { scale, zero_point } = self.parameters[value];
        let (s, z, q) = (format!("{value}__scale"), format!("{value}__zero_point"), format!("{value}__q"));
        self.initializer.push(TensorProto::f32(&s, &[], &[scale]));
        self.initializer.push(TensorProto::u8(&z, &[], &[zero_point]));
        let quantize = NodeProto::new("QuantizeLinear", &format!("{value}__quantize"), [value, &s, &z], [&q]);
        let dequantize = NodeProto::new(
            "DequantizeLinear",
            &format!("{value}__dequantize"),
            [&q, &s, &z],
            [&dequantised(value)],
        );
        self.nodes.extend([quantize, dequantize]);
    }

    /// s8, symmetric, one scale per output channel. A channel whose bias would not fit i32 gets a larger scale.
    fn weight(&mut self, name: &str, bias: &str, x_scale: f32) -> Result<Vec<f32>, QuantiseError> {
        let array = &self.graph.weights[name];
        let biases = &self.graph.weights[bias].data;
        finite(name, array)?;
        let per_channel = array.data.len() / biases.len();
        const BIAS_MAX: f32 = (1u32 << 30) as f32;
        let scales: Vec<f32> = array
            .data
            .chunks(per_channel)
            .zip(biases)
            .map(|(channel, b)| {
                let top = channel.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                (top / 127.0).max(b.abs() / (x_scale * BIAS_MAX)).max(1e-12)
            })
            .collect();
        let round = |v: &f32, s: &f32| (v / s).round_ties_even().clamp(-127.0, 127.0) as i8;
        let data: Vec<i8> = array
            .data
            .chunks(per_channel)
            .zip(&scales)
            .flat_map(|(c, s)| c.iter().map(move |v| round(v, s)))
            .collect();
        self.constant(name, TensorProto::i8(&format!("{name}__q"), &array.shape, &data), &scales, |z, n| {
            TensorProto::i8(z, &[n], &vec![0; n])
        });
        Ok(scales)
    }

    fn bias(&mut self, name: &str, x_scale: f32, scales: &[f32]) -> Result<(), QuantiseError> {
        let array = &self.graph.weights[name];
        finite(name, array)?;
        let scales: Vec<f32> = scales.iter().map(|s| s * x_scale).collect();
        let data: Vec<i32> = array
            .data
            .iter()
            .zip(&scales)
            .map(|(b, s)| (*b as f64 / *s as f64).round_ties_even() as i32)
            .collect();
        self.constant(name, TensorProto::i32(&format!("{name}__q"), &array.shape, &data), &scales, |z, n| {
            TensorProto::i32(z, &[n], &vec![0; n])
        });
        Ok(())
    }

    fn constant(
        &mut self,
        name: &str,
        q: TensorProto,
        scales: &[f32],
        zeros: impl Fn(&str, usize) -> TensorProto,
    ) {
        let (s, z) = (format!("{name}__scale"), format!("{name}__zero_point"));
        let node = NodeProto::new(
            "DequantizeLinear",
            &format!("{name}__dequantize"),
            [&q.name, &s, &z],
            [&dequantised(name)],
        );
        self.initializer.push(q);
        self.initializer.push(TensorProto::f32(&s, &[scales.len()], scales));
        self.initializer.push(zeros(&z, scales.len()));
        self.nodes.push(node.with_int("axis", 0));
    }
}

fn dequantised(value: &str) -> String {
    format!("{value}__dq")
}

fn finite(name: &str, array: &Array) -> Result<(), QuantiseError> {
    if array.data.iter().all(|v| v.is_finite()) {
        Ok(())
    } else {
        Err(QuantiseError::NotFinite { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use andon_runtime::{Limits, Model, Session, SessionOptions, Tensor, onnx};

    use super::*;
    use crate::{
        graph::{Engine, INPUT, testing},
        quantise::calibrate,
        team::Team,
    };

    #[test]
    fn parameters_by_hand() {
        for (low, high, scale, zero_point) in [
            (0.0, 6.0, 6.0 / 255.0, 0),
            // 1 / f32(2 / 255) is a little below 127.5.
            (-1.0, 1.0, 2.0 / 255.0, 127),
            (-3.0, 0.0, 3.0 / 255.0, 255),
            (-0.5, 2.05, 0.01, 50),
            (0.0, 0.0, 1e-8, 0),
        ] {
            let p = Parameters::of(low, high);
            assert!((p.scale - scale).abs() < 1e-9 && p.zero_point == zero_point, "{low} {high}: {p:?}");
            // 0 is a number of its own.
            assert_eq!((0.0 / p.scale).round_ties_even() + f32::from(p.zero_point), f32::from(zero_point));
        }
    }

    /// A 1x1 convolution over one pixel, with numbers that can be followed by hand.
    #[test]
    fn one_convolution_by_hand() {
        let mut b = testing::Builder::new(2, 1);
        let x = b.conv(INPUT, [2, 2, 1, 1], 1, [0; 4], 1);
        let x = b.op(Op::Clip { min: 0.0, max: 6.0 }, &[&x]);
        let x = b.op(Op::Flatten, &[&x]);
        let mut graph = b.head(&x, 2, 2);
        graph.weights.get_mut("w0").unwrap().data = vec![1.27, -0.5, 0.02, 0.0];
        graph.weights.get_mut("w1").unwrap().data = vec![0.1, -3.0];
        let mut ranges = Ranges::default();
        for (value, low, high) in
            [(INPUT, -1.28, 1.27), ("v0", -2.0, 2.0), ("v1", 0.0, 2.55), ("v2", 0.0, 2.55)]
        {
            ranges.widen(value, &[low, high]);
        }
        let model = onnx::read(&write(&graph, &ranges).unwrap(), &onnx::Limits::default()).unwrap();
        let proto = model.graph.unwrap();
        let tensor = |name: &str| proto.initializer.iter().find(|t| t.name == name).unwrap();
        assert_eq!(tensor("w0__q").to_i8().unwrap(), [127, -50, 127, 0]);
        let scales = tensor("w0__scale").to_f32().unwrap();
        assert!((scales[0] - 0.01).abs() < 1e-7 && (scales[1] - 0.02 / 127.0).abs() < 1e-9);
        assert_eq!(tensor("image__zero_point").to_u8().unwrap(), [128]);
        // 0.1 / (0.01 * 0.01) and -3 / (0.01 * 0.02 / 127).
        assert_eq!(tensor("w1__q").to_i32().unwrap(), [1000, -1_905_000]);
        let kinds: Vec<&str> = proto.node.iter().map(|n| n.op_type.as_str()).collect();
        assert!(!kinds.contains(&"Clip"), "saturation clips: {kinds:?}");
        assert_eq!(kinds.iter().filter(|k| **k == "Gemm").count(), 1);
    }

    #[test]
    fn a_bias_too_large_for_its_scale_gets_a_larger_one() {
        let mut b = testing::Builder::new(1, 1);
        let x = b.conv(INPUT, [2, 1, 1, 1], 1, [0; 4], 1);
        let x = b.op(Op::Flatten, &[&x]);
        let mut graph = b.head(&x, 2, 2);
        graph.weights.get_mut("w0").unwrap().data = vec![0.0, 1e-9];
        graph.weights.get_mut("w1").unwrap().data = vec![5.0, -5.0];
        let mut ranges = Ranges::default();
        for value in [INPUT, "v0"] {
            ranges.widen(value, &[-6.0, 6.0]);
        }
        let model = onnx::read(&write(&graph, &ranges).unwrap(), &onnx::Limits::default()).unwrap();
        let proto = model.graph.unwrap();
        let tensor = |name: &str| proto.initializer.iter().find(|t| t.name == name).unwrap();
        let (bias, scale) = (tensor("w1__q").to_i32().unwrap(), tensor("w1__scale").to_f32().unwrap());
        for (b, (s, wanted)) in bias.iter().zip(scale.iter().zip([5.0, -5.0])) {
            assert!((*b as f32 * s - wanted).abs() < 1e-5, "{b} {s}");
        }
    }

    #[test]
    fn every_operator_stays_close_to_float_in_the_runtime() {
        let graph = testing::every_operator();
        let (team, engine) = (Team::new().unwrap(), Engine::new(&graph).unwrap());
        let wave = |s: usize| (0..3 * 81).map(|i| ((i * (s + 3)) as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let images: Vec<Vec<f32>> = (0..20).map(wave).collect();
        let ranges = calibrate(&team, &engine, &graph, &images).unwrap().ranges;
        let run = |bytes: &[u8], image: &[f32]| {
            let model = Model::load(bytes, &Limits::default()).unwrap();
            let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
            let tensor = Tensor::f32(vec![1, 3, 9, 9], image.to_vec()).unwrap();
            let outputs = session.run(&[(INPUT, tensor)]).unwrap();
            outputs.get(graph.scores()).unwrap().as_f32().unwrap().to_vec()
        };
        let (float, int8) = (crate::graph::write(&graph), write(&graph, &ranges).unwrap());
        for image in &images[..4] {
            for (a, b) in run(&float, image).iter().zip(run(&int8, image)) {
                assert!((a - b).abs() < 0.05 * (1.0 + a.abs()), "{a} against {b}");
            }
        }
    }

    #[test]
    fn an_uncalibrated_or_infinite_network_is_refused() {
        let graph = testing::every_operator();
        assert!(matches!(write(&graph, &Ranges::default()), Err(QuantiseError::NotCalibrated { .. })));
    }
}
