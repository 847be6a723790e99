//! Each ONNX operator as ours.

use andon_runtime::onnx::NodeProto;

use super::{Problem, Reader, unsupported};
use crate::graph::{Array, Layout, Op, Window};

impl Reader<'_> {
    pub(super) fn conv(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let (x, layout) = self.activation(node, 0)?;
        let weight = self.floats(node, 1)?.ok_or("no weight")?;
        let [o, _, kh, kw] = weight.shape[..] else { return unsupported("Conv that is not 2-D") };
        let bias = self.floats(node, 2)?.unwrap_or_else(|| Array::new(vec![o], vec![0.0; o]));
        let window = window(node, [kh, kw], layout)?;
        let groups = usize::try_from(node.int("group").unwrap_or(1)).map_err(|_| "group is negative")?;
        let name = node.input_name(1).unwrap_or(output);
        let w = self.weight(name, weight);
        let b = self.weight(node.input_name(2).unwrap_or(&format!("{name}.bias")), bias);
        self.push(&node.name, Op::Conv { window, groups }, vec![x, w, b], output)
    }

    pub(super) fn clip(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let bound = |i: usize, name: &str, open: f32| -> Result<f32, Problem> {
            match self.floats(node, i)? {
                Some(a) => Ok(*a.data.first().ok_or_else(|| format!("input {i} is empty"))?),
                None => Ok(node.float(name).unwrap_or(open)),
            }
        };
        let (min, max) = (bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?);
        if min > max {
            return Err(format!("min {min} is above max {max}").into());
        }
        self.unary(node, Op::Clip { min, max }, output)
    }

    /// Of two activations, or of one and a constant per channel, which is a batch norm with fixed numbers.
    pub(super) fn arithmetic(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let kind = node.op_type.as_str();
        let constant = match (self.is_constant(node, 0), self.is_constant(node, 1)) {
            (false, false) => {
                let (a, _) = self.activation(node, 0)?;
                let (b, _) = self.activation(node, 1)?;
                return match kind {
                    "Add" => self.push(&node.name, Op::Add, vec![a, b], output),
                    "Mul" => self.push(&node.name, Op::Mul, vec![a, b], output),
                    _ => unsupported(format!("{kind} of two activations")),
                };
            }
            (false, true) => 1,
            (true, false) if matches!(kind, "Add" | "Mul") => 0,
            _ => return unsupported(format!("{kind} with a constant on the left")),
        };
        let (x, layout) = self.activation(node, 1 - constant)?;
        let array = self.floats(node, constant)?.ok_or("no constant")?;
        let channels = layout.channels();
        let per_channel = match layout {
            Layout::Map { .. } => {
                let mut padded = vec![1; 4usize.saturating_sub(array.shape.len())];
                padded.extend(&array.shape);
                padded == [1, channels, 1, 1]
            }
            Layout::Row { .. } => array.data.len() == channels,
        };
        let values = match array.data[..] {
            [one] => vec![one; channels],
            _ if per_channel => array.data,
            _ => return unsupported(format!("{kind} with a constant of shape {:?}", array.shape)),
        };
        if kind == "Add" && self.is_gemm_without_bias(&x) {
            return self.add_bias(values, output);
        }
        let (scale, bias) = match kind {
            "Add" => (vec![1.0; channels], values),
            "Sub" => (vec![1.0; channels], values.iter().map(|v| -v).collect()),
            "Mul" => (values, vec![0.0; channels]),
            _ if values.contains(&0.0) => return Err("division by zero".into()),
            _ => (values.iter().map(|v| 1.0 / v).collect(), vec![0.0; channels]),
        };
        self.affine(&node.name, x, 0.0, [scale, bias, vec![0.0; channels], vec![1.0; channels]], output)
    }

    /// Whether the last node is a MatMul that waits for its bias.
    pub(super) fn is_gemm_without_bias(&self, x: &str) -> bool {
        let last = self.graph.nodes.last();
        last.is_some_and(|n| {
            n.op == Op::Gemm
                && n.output == x
                && self.graph.weights[&n.inputs[2]].data.iter().all(|v| *v == 0.0)
        })
    }

    pub(super) fn add_bias(&mut self, values: Vec<f32>, output: &str) -> Result<(), Problem> {
        let Some(node) = self.graph.nodes.last() else { return Err("no node".into()) };
        let (bias, old) = (node.inputs[2].clone(), node.output.clone());
        self.graph.weights.insert(bias, Array::new(vec![values.len()], values));
        self.alias.insert(output.to_owned(), old);
        Ok(())
    }

    pub(super) fn affine(
        &mut self,
        name: &str,
        x: String,
        epsilon: f32,
        parts: [Vec<f32>; 4],
        output: &str,
    ) -> Result<(), Problem> {
        let mut inputs = vec![x];
        for (part, label) in parts.into_iter().zip(["scale", "bias", "mean", "var"]) {
            let array = Array::new(vec![part.len()], part);
            inputs.push(self.weight(&format!("{output}.{label}"), array));
        }
        self.push(name, Op::BatchNormalization { epsilon }, inputs, output)
    }

    pub(super) fn batch_norm(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        if node.int("training_mode").unwrap_or(0) != 0
            || node.output.iter().filter(|o| !o.is_empty()).count() > 1
        {
            return unsupported("BatchNormalization in training form");
        }
        let (x, _) = self.activation(node, 0)?;
        let mut parts = [const { Vec::new() }; 4];
        for (i, part) in parts.iter_mut().enumerate() {
            *part = self.floats(node, i + 1)?.ok_or("an input is missing")?.data;
        }
        if parts[3].iter().any(|v| *v < 0.0) {
            return Err("negative variance".into());
        }
        self.affine(&node.name, x, node.float("epsilon").unwrap_or(1e-5), parts, output)
    }

    pub(super) fn reduce_mean(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let mut axes = match node.ints("axes") {
            Some(axes) => axes.to_vec(),
            None => self.ints(node, 1)?.unwrap_or_default(),
        };
        axes.iter_mut().for_each(|a| *a = if *a < 0 { *a + 4 } else { *a });
        axes.sort_unstable();
        let (x, Layout::Map { .. }) = self.activation(node, 0)? else {
            return unsupported("ReduceMean of a row");
        };
        if axes != [2, 3] {
            return unsupported("ReduceMean over other axes than height and width");
        }
        if node.int("keepdims").unwrap_or(1) != 0 {
            return self.push(&node.name, Op::GlobalAveragePool, vec![x], output);
        }
        let pooled = format!("{output}.pooled");
        self.push(&format!("{}.pool", node.name), Op::GlobalAveragePool, vec![x], &pooled)?;
        self.push(&node.name, Op::Flatten, vec![pooled], output)
    }

    pub(super) fn pool(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let (x, layout) = self.activation(node, 0)?;
        if node.int("ceil_mode").unwrap_or(0) != 0 {
            return unsupported(format!("{} with ceil_mode", node.op_type));
        }
        if node.output.iter().filter(|o| !o.is_empty()).count() > 1 {
            return unsupported("MaxPool with indices");
        }
        let Some([kh, kw]) = node.ints("kernel_shape").and_then(|k| <[i64; 2]>::try_from(k).ok()) else {
            return unsupported(format!("{} that is not 2-D", node.op_type));
        };
        let side = |v: i64| usize::try_from(v).map_err(|_| "negative kernel_shape");
        let window = window(node, [side(kh)?, side(kw)?], layout)?;
        let count_pads = node.int("count_include_pad").unwrap_or(0) != 0;
        let op = match node.op_type.as_str() {
            "MaxPool" => Op::MaxPool { window },
            _ if window.dilations != [1, 1] => return unsupported("AveragePool with dilations"),
            _ => Op::AveragePool { window, count_pads },
        };
        self.push(&node.name, op, vec![x], output)
    }

    pub(super) fn reshape(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let (_, layout) = self.activation(node, 0)?;
        let shape = self.ints(node, 1)?.ok_or("no shape")?;
        let flat = matches!(shape[..], [_, -1])
            || matches!(shape[..], [_, n] if usize::try_from(n) == Ok(layout.len()));
        if flat {
            self.unary(node, Op::Flatten, output)
        } else {
            unsupported(format!("Reshape to {shape:?}"))
        }
    }

    pub(super) fn gemm(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        if node.int("transA").unwrap_or(0) != 0 {
            return unsupported("Gemm with transA");
        }
        let weight = self.floats(node, 1)?.ok_or("no weight")?;
        let mut weight = if node.int("transB").unwrap_or(0) == 0 { transposed(weight)? } else { weight };
        let [o, _] = weight.shape[..] else { return Err("the weight is no matrix".into()) };
        let (alpha, beta) = (node.float("alpha").unwrap_or(1.0), node.float("beta").unwrap_or(1.0));
        weight.data.iter_mut().for_each(|v| *v *= alpha);
        let bias = match self.floats(node, 2)?.map(|a| a.data) {
            None => vec![0.0; o],
            Some(b) if b.len() == o => b.iter().map(|v| v * beta).collect(),
            Some(b) if b.len() == 1 => vec![b[0] * beta; o],
            Some(b) => return Err(format!("bias of {} values for {o} outputs", b.len()).into()),
        };
        self.push_gemm(node, weight, bias, output)
    }

    pub(super) fn matmul(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let weight = transposed(self.floats(node, 1)?.ok_or("no weight")?)?;
        let bias = vec![0.0; weight.shape[0]];
        self.push_gemm(node, weight, bias, output)
    }

    pub(super) fn push_gemm(
        &mut self,
        node: &NodeProto,
        weight: Array,
        bias: Vec<f32>,
        output: &str,
    ) -> Result<(), Problem> {
        let (x, layout) = self.activation(node, 0)?;
        if !matches!(layout, Layout::Row { .. }) {
            return unsupported(format!("{} of something that is not [N, C]", node.op_type));
        }
        let name = node.input_name(1).unwrap_or(output);
        let w = self.weight(name, weight);
        let b = Array::new(vec![bias.len()], bias);
        let b = self.weight(node.input_name(2).unwrap_or(&format!("{name}.bias")), b);
        self.push(&node.name, Op::Gemm, vec![x, w, b], output)
    }

    pub(super) fn concat(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let (_, layout) = self.activation(node, 0)?;
        let rank = if matches!(layout, Layout::Map { .. }) { 4 } else { 2 };
        if !matches!(node.int("axis"), Some(a) if a == 1 || a == 1 - rank) {
            return unsupported("Concat along another axis than the channels");
        }
        let inputs = (0..node.input.len()).map(|i| self.activation(node, i).map(|(x, _)| x));
        let inputs = inputs.collect::<Result<_, _>>()?;
        self.push(&node.name, Op::Concat, inputs, output)
    }
}

fn transposed(array: Array) -> Result<Array, Problem> {
    let [rows, columns] = array.shape[..] else {
        return unsupported("MatMul or Gemm with a weight that is no matrix");
    };
    let data =
        (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| array.data[r * columns + c]);
    Ok(Array::new(vec![columns, rows], data.collect()))
}

/// Strides, pads and dilations of a node that slides a kernel.
fn window(node: &NodeProto, kernel: [usize; 2], layout: Layout) -> Result<Window, Problem> {
    let Layout::Map { h, w, .. } = layout else { return Err("needs an input [N, C, H, W]".into()) };
    let list = |name: &str, default: &[i64]| -> Result<Vec<usize>, Problem> {
        let values = node.ints(name).unwrap_or(default);
        if values.len() != default.len() {
            return unsupported(format!("{} that is not 2-D", node.op_type));
        }
        let positive = values.iter().map(|v| usize::try_from(*v).ok().filter(|v| *v <= 1024));
        positive.collect::<Option<_>>().ok_or_else(|| format!("{name} {values:?} is out of range").into())
    };
    let pair = |v: Vec<usize>| [v[0], v[1]];
    let strides = pair(list("strides", &[1, 1])?);
    let dilations = pair(list("dilations", &[1, 1])?);
    if strides.contains(&0)
        || dilations.contains(&0)
        || kernel.contains(&0)
        || kernel.iter().any(|k| *k > 1024)
    {
        return Err(format!(
            "kernel {kernel:?}, strides {strides:?} or dilations {dilations:?} out of range"
        )
        .into());
    }
    let same = |upper: bool| {
        let total = |n: usize, a: usize| {
            ((n.div_ceil(strides[a]) - 1) * strides[a] + dilations[a] * (kernel[a] - 1) + 1).saturating_sub(n)
        };
        let (th, tw) = (total(h, 0), total(w, 1));
        let (sh, sw) = (th / 2, tw / 2);
        if upper { [sh, sw, th - sh, tw - sw] } else { [th - sh, tw - sw, sh, sw] }
    };
    let pads = match node.string("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => {
            let p = list("pads", &[0; 4])?;
            [p[0], p[1], p[2], p[3]]
        }
        "VALID" => [0; 4],
        "SAME_UPPER" => same(true),
        "SAME_LOWER" => same(false),
        other => return Err(format!("auto_pad {other:?}").into()),
    };
    Ok(Window { kernel, strides, pads, dilations })
}
