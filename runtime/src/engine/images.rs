//! A batch, one image after the other: [`Images`] over an engine for one.
//!
//! The byte engine knows no batch. Where every node treats each image for itself, as far as [`alone`] can see, a
//! network of many is a network of one that runs many times.

use super::Engine;
use crate::{
    graph::{Graph, NodeId, ValueId},
    session::Request,
    shape::Shapes,
    tensor::{Data, Tensor},
};

/// The request for one image, made of one for several.
pub(super) struct Alone {
    pub(super) inputs: Vec<(ValueId, Vec<usize>)>,
    pub(super) shapes: Shapes,
    count: usize,
}

/// `None` if there is one image, or if images may have to do with each other.
pub(super) fn alone(request: &Request<'_>) -> Option<Alone> {
    let Request { model, inputs, shapes, outputs, .. } = *request;
    let graph = model.graph();
    let count = *inputs.first()?.1.first().filter(|n| **n > 1)?;
    let one = |dims: &[usize]| Some([&[1], dims.strip_prefix(&[count])?].concat());
    let inputs = inputs.iter().map(|(id, dims)| Some((*id, one(dims)?))).collect::<Option<Vec<_>>>()?;
    let single = model.shapes(&inputs).ok()?;
    // Whether a value has one entry for each image.
    let by_image = |id: ValueId| {
        let dims = shapes.of(id).and_then(one);
        dims.is_some() && dims.as_deref() == single.of(id)
    };
    let look = Look { graph, shapes: &single };
    for (id, node, _) in graph.nodes() {
        // Constants, and weights on their way to who uses them.
        if graph.reads(id).all(|value| look.is_fixed(value)) {
            continue;
        }
        let computed = graph.reads(id).filter(|value| !look.is_fixed(*value));
        let mut sides = computed.chain(node.outputs.iter().flatten().copied());
        if !sides.all(by_image) || !look.treats_images_alone(id) {
            return None;
        }
    }
    outputs.iter().all(|id| by_image(*id)).then_some(Alone { inputs, shapes: single, count })
}

/// A network at the shapes of one image.
struct Look<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
}

impl Look<'_> {
    /// A constant, or a dequantised one.
    fn is_fixed(&self, id: ValueId) -> bool {
        let is_constant = |id: ValueId| self.shapes.constant(self.graph, id).is_some();
        let dequantised =
            self.graph.producer(id).filter(|node| self.graph.proto(*node).op_type == "DequantizeLinear");
        is_constant(id) || dequantised.is_some_and(|node| self.graph.reads(node).all(is_constant))
    }

    fn input(&self, id: NodeId, index: usize) -> Option<ValueId> {
        self.graph.node(id).inputs.get(index).copied().flatten()
    }

    fn rank(&self, id: NodeId) -> i64 {
        let first = self.input(id, 0).and_then(|value| self.shapes.of(value));
        first.map_or(0, <[usize]>::len) as i64
    }

    /// Whether the constants from input `from` on are the same for all images.
    fn stretches(&self, id: NodeId, from: usize) -> bool {
        let rank = self.rank(id) as usize;
        let mut fixed =
            self.graph.node(id).inputs.iter().skip(from).flatten().filter(|id| self.is_fixed(**id));
        fixed.all(|value| {
            let dims = self.shapes.of(*value);
            dims.is_some_and(|dims| dims.len() < rank || dims.first() == Some(&1))
        })
    }

    /// Whether the node's axis is another than that of the images.
    fn runs_within(&self, id: NodeId, absent: i64) -> bool {
        let axis = self.graph.proto(id).int("axis").unwrap_or(absent);
        axis.rem_euclid(self.rank(id).max(1)) != 0
    }

    /// Whether a node whose inputs and outputs have an entry for each image lets none have a say in another.
    fn treats_images_alone(&self, id: NodeId) -> bool {
        let (node, proto) = (self.graph.node(id), self.graph.proto(id));
        if !matches!(&*proto.domain, "" | "ai.onnx") || !node.captures.is_empty() {
            return false;
        }
        let elements = |index| self.input(id, index).and_then(|value| self.shapes.elements(value));
        match &*proto.op_type {
            "AveragePool" | "Conv" | "ConvTranspose" | "GlobalAveragePool" | "GlobalMaxPool" | "MaxPool" => {
                true
            }
            "Abs" | "Cast" | "Clip" | "Elu" | "Erf" | "Exp" | "Gelu" | "HardSigmoid" | "HardSwish"
            | "Identity" | "LeakyRelu" | "Neg" | "Relu" | "Sigmoid" | "Sqrt" | "Tanh" => true,
            "DepthToSpace" | "Resize" | "SpaceToDepth" | "Upsample" => true,
            // None is split, so that all keep their order.
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => true,
            "BatchNormalization" => proto.int("training_mode").unwrap_or(0) == 0,
            "DequantizeLinear" | "QuantizeLinear" => elements(1) == Some(1) || self.runs_within(id, 1),
            "Add" | "Div" | "Mul" | "PRelu" | "Sub" => self.stretches(id, 0),
            "Gemm" => {
                let weights = self.input(id, 1).is_some_and(|value| self.is_fixed(value));
                weights && proto.int("transA").unwrap_or(0) == 0 && self.stretches(id, 2)
            }
            "Transpose" => proto.ints("perm").is_some_and(|perm| perm.first() == Some(&0)),
            "ArgMax" | "ArgMin" | "Split" => self.runs_within(id, 0),
            "Concat" | "LogSoftmax" | "Softmax" => self.runs_within(id, 1),
            _ => false,
        }
    }
}

pub(super) struct Images {
    engine: Box<dyn Engine>,
    count: usize,
}

impl Alone {
    pub(super) fn over(self, engine: Box<dyn Engine>) -> Images {
        Images { engine, count: self.count }
    }
}

impl Engine for Images {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        let mut results: Vec<(Vec<usize>, Data)> = vec![];
        for image in 0..self.count {
            let own: Vec<Tensor> =
                inputs.iter().map(|tensor| part(tensor, image, self.count)).collect::<Result<_, _>>()?;
            let outputs = self.engine.run(&own.iter().collect::<Vec<_>>())?;
            if image == 0 {
                results = outputs.into_iter().map(|one| begun(one, self.count)).collect();
            } else {
                let mut pairs = results.iter_mut().zip(outputs);
                pairs.try_for_each(|((_, all), one)| joined(all, one.into_data()))?;
            }
        }
        let whole = |(dims, data)| Tensor::new(dims, data).map_err(|e| e.to_string());
        results.into_iter().map(whole).collect()
    }

    fn arena_bytes(&self) -> Option<usize> {
        self.engine.arena_bytes()
    }
}

/// Applies to the list of elements, whatever their type.
macro_rules! each {
    ($data:expr, $list:ident => $result:expr) => {
        match $data {
            Data::F32($list) => Data::F32($result),
            Data::U8($list) => Data::U8($result),
            Data::I8($list) => Data::I8($result),
            Data::I32($list) => Data::I32($result),
            Data::I64($list) => Data::I64($result),
            Data::Bool($list) => Data::Bool($result),
        }
    };
}

fn part(tensor: &Tensor, image: usize, count: usize) -> Result<Tensor, String> {
    let length = tensor.data().len() / count.max(1);
    let data = each!(tensor.data(), list => list[image * length..][..length].to_vec());
    let mut dims = tensor.shape().to_vec();
    if let Some(first) = dims.first_mut() {
        *first = 1;
    }
    Tensor::new(dims, data).map_err(|e| e.to_string())
}

/// The first image's, with room for all of them: what grew with each would be moved with each.
fn begun(one: Tensor, count: usize) -> (Vec<usize>, Data) {
    let mut dims = one.shape().to_vec();
    if let Some(first) = dims.first_mut() {
        *first = count;
    }
    let more = one.data().len().saturating_mul(count.saturating_sub(1));
    let data = each!(one.into_data(), list => {
        let mut list = list;
        list.reserve_exact(more);
        list
    });
    (dims, data)
}

fn joined(all: &mut Data, one: Data) -> Result<(), String> {
    match (all, one) {
        (Data::F32(a), Data::F32(b)) => a.extend(b),
        (Data::U8(a), Data::U8(b)) => a.extend(b),
        (Data::I8(a), Data::I8(b)) => a.extend(b),
        (Data::I32(a), Data::I32(b)) => a.extend(b),
        (Data::I64(a), Data::I64(b)) => a.extend(b),
        (Data::Bool(a), Data::Bool(b)) => a.extend(b),
        _ => return Err("an output changed its type".into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EngineChoice, Model, Session, SessionOptions,
        fixtures::{self, quantise},
        onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    };

    /// Bytes of three images, halved by `last`.
    fn network(last: NodeProto) -> Model {
        let mut graph = GraphProto {
            input: vec![ValueInfoProto::new("x", DataType::Float, &[3, 2, 4, 4])],
            output: vec![ValueInfoProto { name: "y.q".into(), r#type: None }],
            initializer: vec![
                TensorProto::i8(
                    "w",
                    &[3, 2, 2, 2],
                    &(0..24i32).map(|i| (i * 9 - 100) as i8).collect::<Vec<i8>>(),
                ),
                TensorProto::f32("ws", &[], &[0.25]),
                TensorProto::f32("each", &[3, 1, 1, 1], &[1.0, 2.0, 4.0]),
                TensorProto::f32("all", &[1, 3, 1, 1], &[1.0, 2.0, 4.0]),
            ],
            ..Default::default()
        };
        quantise(&mut graph, "x", 0.5, 100);
        graph.node.push(NodeProto::new("DequantizeLinear", "", ["w", "ws"], ["w.f"]));
        graph.node.push(NodeProto::new("Conv", "conv", ["x.f", "w.f"], ["conv"]));
        quantise(&mut graph, "conv", 2.0, 128);
        graph.node.push(last);
        quantise(&mut graph, "y", 2.0, 128);
        fixtures::model(ModelProto::new(graph, 17))
    }

    #[test]
    fn images_run_one_by_one_where_they_are_alone() {
        let op = |operator: &str, inputs: &[&str]| NodeProto::new(operator, "last", inputs.to_vec(), ["y"]);
        let cases = [
            (op("MaxPool", &["conv.f"]).with_ints("kernel_shape", &[2, 2]), true),
            (op("Mul", &["conv.f", "all"]), true),
            (op("Mul", &["conv.f", "each"]), false),
            (op("Softmax", &["conv.f"]).with_int("axis", 1), true),
            (op("Softmax", &["conv.f"]).with_int("axis", 0), false),
            (op("Transpose", &["conv.f"]).with_ints("perm", &[0, 2, 1, 3]), true),
            (op("Transpose", &["conv.f"]).with_ints("perm", &[1, 0, 2, 3]), false),
        ];
        for (node, expected) in cases {
            let name = format!("{} {:?}", node.op_type, node.input);
            let model = network(node);
            let x: Vec<f32> = (0..96).map(|i| (i * 37 % 256 - 100) as f32 * 0.5).collect();
            let run = |engine, images: &[f32]| {
                let options = SessionOptions { engine, ..Default::default() };
                let image = Tensor::f32(vec![images.len() / 32, 2, 4, 4], images.to_vec()).unwrap();
                let mut session = Session::new(&model, &options).unwrap();
                session.run(&[("x", image)]).unwrap().take("y.q").unwrap()
            };
            let request = |f: &dyn Fn(&Request<'_>)| {
                let inputs = model.resolve_inputs(&[]).unwrap();
                let (shapes, outputs) = (model.shapes(&inputs).unwrap(), model.wanted());
                f(&Request {
                    pipelines: None,
                    adapter: None,
                    model: &model,
                    inputs: &inputs,
                    shapes: &shapes,
                    outputs: &outputs,
                    threads: 1,
                    pinned: false,
                    half: false,
                    pictures: None,
                    tuning: None,
                    guarding: None,
                });
            };
            request(&|request| assert_eq!(alone(request).is_some(), expected, "{name}"));
            assert_eq!(run(EngineChoice::Cpu, &x), run(EngineChoice::Tract, &x), "{name}");
        }
    }
}
