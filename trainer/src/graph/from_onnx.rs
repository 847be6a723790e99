//! ONNX to [`Graph`]. Constants are resolved, operators that do nothing at inference are dropped, and different
//! spellings of one thing become one operator (`Relu` a clip, `MatMul` + `Add` a Gemm, arithmetic with per-channel
//! constants a batch norm, `Reshape` to a row a flatten). What follows the last Gemm is dropped if it is a softmax.

use std::collections::{BTreeMap, BTreeSet};

use andon_runtime::onnx::{self, DataType, GraphProto, NodeProto, TensorProto};

use super::{Array, Graph, Layout, Node, Op, ShapeError, Window, shape, simplify};

#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    #[error(transparent)]
    Read(#[from] onnx::ReadError),
    #[error("cannot train this network: {}; its other operators are fine", list(.missing))]
    Unsupported {
        /// `operator (what about it)`, with how often it occurs.
        missing: BTreeMap<String, usize>,
    },
    #[error("node {node:?} ({op}): {reason}")]
    Node { node: String, op: String, reason: String },
    #[error("the network must have one image input [N, C, H, W] of f32 with fixed C, H and W: {reason}")]
    Input { reason: String },
    #[error("no output of the network comes from a Gemm or MatMul: there is no classifier head to train")]
    NoHead,
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

fn list(missing: &BTreeMap<String, usize>) -> String {
    let items: Vec<String> = missing.iter().map(|(what, n)| format!("{what} x{n}")).collect();
    format!("unsupported {}", items.join(", "))
}

/// Reads a float classifier. `size` sets height and width where the file leaves them open.
pub fn read(bytes: &[u8], size: Option<(usize, usize)>) -> Result<Graph, GraphError> {
    let model = onnx::read(bytes, &onnx::Limits::default())?;
    let proto = model.graph.as_ref().ok_or(onnx::ReadError::NoGraph)?;
    let mut reader = Reader::new(proto, size)?;
    for node in &proto.node {
        reader.node(node)?;
    }
    reader.finish(proto)
}

/// Why one node cannot be taken over: known operator in a form that is not, or a broken node.
enum Problem {
    Unsupported(String),
    Broken(String),
}

impl From<String> for Problem {
    fn from(reason: String) -> Self {
        Problem::Broken(reason)
    }
}

impl From<&str> for Problem {
    fn from(reason: &str) -> Self {
        Problem::Broken(reason.into())
    }
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Unsupported(what.into()))
}

struct Reader<'a> {
    graph: Graph,
    constants: BTreeMap<&'a str, &'a TensorProto>,
    /// Shapes of activations so far; what an unsupported node makes is unknown, and so is all that follows it.
    layouts: BTreeMap<String, Layout>,
    /// Values that are another value under a second name.
    alias: BTreeMap<String, String>,
    /// Aliases that stand for a softmax: fine as outputs only.
    softmax: BTreeSet<String>,
    unknown: BTreeSet<String>,
    missing: BTreeMap<String, usize>,
}

impl<'a> Reader<'a> {
    fn new(proto: &'a GraphProto, size: Option<(usize, usize)>) -> Result<Self, GraphError> {
        let constants: BTreeMap<&str, &TensorProto> =
            proto.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        let inputs: Vec<_> =
            proto.input.iter().filter(|v| !constants.contains_key(v.name.as_str())).collect();
        let fail = |reason: String| GraphError::Input { reason };
        let [input] = inputs[..] else { return Err(fail(format!("it has {} inputs", inputs.len()))) };
        if input.data_type() != Some(DataType::Float) {
            return Err(fail(format!("{:?} is not f32", input.name)));
        }
        let dims = input.dims().ok_or_else(|| fail("its shape is not given".into()))?;
        let [_, Some(channels), height, width] = dims[..] else {
            return Err(fail(format!("{:?} has shape {dims:?}", input.name)));
        };
        let open = || fail("height and width are open: give --size".into());
        let (height, width) =
            (height.or(size.map(|s| s.0)).ok_or_else(open)?, width.or(size.map(|s| s.1)).ok_or_else(open)?);
        let graph = Graph {
            name: proto.name.clone(),
            input: input.name.clone(),
            channels,
            height,
            width,
            nodes: Vec::new(),
            weights: BTreeMap::new(),
        };
        let layouts =
            BTreeMap::from([(input.name.clone(), Layout::Map { c: channels, h: height, w: width })]);
        Ok(Self {
            graph,
            constants,
            layouts,
            alias: BTreeMap::new(),
            softmax: BTreeSet::new(),
            unknown: BTreeSet::new(),
            missing: BTreeMap::new(),
        })
    }

    fn node(&mut self, node: &'a NodeProto) -> Result<(), GraphError> {
        let broken =
            |reason: String| GraphError::Node { node: node.name.clone(), op: node.op_type.clone(), reason };
        let output =
            node.output.first().filter(|o| !o.is_empty()).ok_or_else(|| broken("no output".into()))?;
        let result = if !node.domain.is_empty() && node.domain != "ai.onnx" {
            unsupported(format!("{}.{}", node.domain, node.op_type))
        } else if node.input.iter().any(|i| self.unknown.contains(self.resolve(i))) {
            // Its own inputs are unknown: only say whether the operator itself is.
            match known(&node.op_type) {
                true => {
                    self.unknown.insert(output.clone());
                    return Ok(());
                }
                false => unsupported(&node.op_type),
            }
        } else {
            self.convert(node, output)
        };
        match result {
            Ok(()) => Ok(()),
            Err(Problem::Broken(reason)) => Err(broken(reason)),
            Err(Problem::Unsupported(what)) => {
                *self.missing.entry(what).or_insert(0) += 1;
                self.unknown.insert(output.clone());
                Ok(())
            }
        }
    }

    fn resolve<'n>(&'n self, name: &'n str) -> &'n str {
        self.alias.get(name).map_or(name, String::as_str)
    }

    /// Input `i`, which must be an activation.
    fn activation(&self, node: &NodeProto, i: usize) -> Result<(String, Layout), Problem> {
        let name = node.input_name(i).ok_or_else(|| format!("input {i} is missing"))?;
        if self.softmax.contains(name) {
            return unsupported("Softmax inside the network");
        }
        let name = self.resolve(name);
        match self.layouts.get(name) {
            Some(layout) => Ok((name.to_owned(), *layout)),
            None if self.constants.contains_key(name) => {
                unsupported(format!("{} of a constant", node.op_type))
            }
            None => Err(format!("input {i} ({name:?}) is not a value computed before it").into()),
        }
    }

    fn is_constant(&self, node: &NodeProto, i: usize) -> bool {
        node.input_name(i).is_some_and(|n| self.constants.contains_key(self.resolve(n)))
    }

    /// Input `i` as a constant of f32; `None` if it is left out.
    fn floats(&self, node: &NodeProto, i: usize) -> Result<Option<Array>, Problem> {
        let Some(name) = node.input_name(i) else { return Ok(None) };
        let Some(tensor) = self.constants.get(self.resolve(name)) else {
            return unsupported(format!("{} with computed input {i}", node.op_type));
        };
        let shape = tensor.shape().ok_or("negative dimension")?;
        let data = tensor.to_f32().map_err(|e| format!("{name:?}: {e}"))?;
        if data.iter().any(|v| v.is_nan()) {
            return Err(format!("{name:?} holds NaN").into());
        }
        Ok(Some(Array::new(shape, data)))
    }

    fn ints(&self, node: &NodeProto, i: usize) -> Result<Option<Vec<i64>>, Problem> {
        let Some(name) = node.input_name(i) else { return Ok(None) };
        match self.constants.get(self.resolve(name)) {
            Some(tensor) => Ok(Some(tensor.to_i64().map_err(|e| format!("{name:?}: {e}"))?)),
            None => unsupported(format!("{} with computed input {i}", node.op_type)),
        }
    }

    /// Adds a weight under a name of its own, so that no two nodes share one and each can be trained.
    fn weight(&mut self, wanted: &str, array: Array) -> String {
        let mut name = wanted.to_owned();
        while self.graph.weights.contains_key(&name) || self.layouts.contains_key(&name) {
            name.push('_');
        }
        self.graph.weights.insert(name.clone(), array);
        name
    }

    fn push(&mut self, name: &str, op: Op, inputs: Vec<String>, output: &str) -> Result<(), Problem> {
        let name = if name.is_empty() {
            format!("{}_{}", op.onnx_name(), self.graph.nodes.len())
        } else {
            name.into()
        };
        let node = Node { name, op, inputs, output: output.to_owned() };
        if self.layouts.contains_key(output) || self.graph.weights.contains_key(output) {
            return Err(format!("{output:?} is computed twice").into());
        }
        let layout = shape::output(&self.graph, &self.layouts, &node)?;
        self.layouts.insert(output.to_owned(), layout);
        self.graph.nodes.push(node);
        Ok(())
    }

    fn unary(&mut self, node: &NodeProto, op: Op, output: &str) -> Result<(), Problem> {
        let (x, _) = self.activation(node, 0)?;
        self.push(&node.name, op, vec![x], output)
    }

    fn convert(&mut self, node: &'a NodeProto, output: &str) -> Result<(), Problem> {
        match node.op_type.as_str() {
            "Constant" => {
                let value =
                    node.tensor("value").map_or_else(|| unsupported("Constant without a tensor"), Ok)?;
                self.constants.insert(&node.output[0], value);
                Ok(())
            }
            "Identity" | "Dropout" => {
                let source = self.resolve(node.input_name(0).ok_or("input 0 is missing")?).to_owned();
                self.alias.insert(output.to_owned(), source);
                Ok(())
            }
            "Conv" => self.conv(node, output),
            "Relu" => self.unary(node, Op::Clip { min: 0.0, max: f32::INFINITY }, output),
            "Clip" => self.clip(node, output),
            "LeakyRelu" => {
                self.unary(node, Op::LeakyRelu { alpha: node.float("alpha").unwrap_or(0.01) }, output)
            }
            "Sigmoid" => self.unary(node, Op::Sigmoid, output),
            "HardSigmoid" => {
                let (alpha, beta) = (node.float("alpha").unwrap_or(0.2), node.float("beta").unwrap_or(0.5));
                self.unary(node, Op::HardSigmoid { alpha, beta }, output)
            }
            "HardSwish" => self.unary(node, Op::HardSwish, output),
            "Add" | "Mul" | "Sub" | "Div" => self.arithmetic(node, output),
            "GlobalAveragePool" => self.unary(node, Op::GlobalAveragePool, output),
            "ReduceMean" => self.reduce_mean(node, output),
            "MaxPool" | "AveragePool" => self.pool(node, output),
            "Flatten" if node.int("axis").unwrap_or(1) == 1 => self.unary(node, Op::Flatten, output),
            "Flatten" => unsupported("Flatten with axis other than 1"),
            "Reshape" => self.reshape(node, output),
            "Squeeze" => match self.activation(node, 0)?.1 {
                Layout::Map { h: 1, w: 1, .. } => self.unary(node, Op::Flatten, output),
                _ => unsupported("Squeeze of more than the pooled height and width"),
            },
            "Gemm" => self.gemm(node, output),
            "MatMul" => self.matmul(node, output),
            "BatchNormalization" => self.batch_norm(node, output),
            "Concat" => self.concat(node, output),
            "Softmax" | "LogSoftmax" => {
                // Only fit at the end, where `finish` looks through it.
                let (x, _) = self.activation(node, 0)?;
                self.alias.insert(output.to_owned(), x);
                self.softmax.insert(output.to_owned());
                Ok(())
            }
            other => unsupported(other),
        }
    }

    fn conv(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
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

    fn clip(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
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
    fn arithmetic(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
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
    fn is_gemm_without_bias(&self, x: &str) -> bool {
        let last = self.graph.nodes.last();
        last.is_some_and(|n| {
            n.op == Op::Gemm
                && n.output == x
                && self.graph.weights[&n.inputs[2]].data.iter().all(|v| *v == 0.0)
        })
    }

    fn add_bias(&mut self, values: Vec<f32>, output: &str) -> Result<(), Problem> {
        let Some(node) = self.graph.nodes.last() else { return Err("no node".into()) };
        let (bias, old) = (node.inputs[2].clone(), node.output.clone());
        self.graph.weights.insert(bias, Array::new(vec![values.len()], values));
        self.alias.insert(output.to_owned(), old);
        Ok(())
    }

    fn affine(
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

    fn batch_norm(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
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

    fn reduce_mean(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
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

    fn pool(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
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

    fn reshape(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
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

    fn gemm(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
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

    fn matmul(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let weight = transposed(self.floats(node, 1)?.ok_or("no weight")?)?;
        let bias = vec![0.0; weight.shape[0]];
        self.push_gemm(node, weight, bias, output)
    }

    fn push_gemm(
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

    fn concat(&mut self, node: &NodeProto, output: &str) -> Result<(), Problem> {
        let (_, layout) = self.activation(node, 0)?;
        let rank = if matches!(layout, Layout::Map { .. }) { 4 } else { 2 };
        if !matches!(node.int("axis"), Some(a) if a == 1 || a == 1 - rank) {
            return unsupported("Concat along another axis than the channels");
        }
        let inputs = (0..node.input.len()).map(|i| self.activation(node, i).map(|(x, _)| x));
        let inputs = inputs.collect::<Result<_, _>>()?;
        self.push(&node.name, Op::Concat, inputs, output)
    }

    /// Keeps what the head needs, and folds.
    fn finish(mut self, proto: &GraphProto) -> Result<Graph, GraphError> {
        if !self.missing.is_empty() {
            return Err(GraphError::Unsupported { missing: self.missing });
        }
        let outputs: Vec<&str> = proto.output.iter().map(|o| self.resolve(&o.name)).collect();
        let is_head = |n: &Node| n.op == Op::Gemm && outputs.contains(&n.output.as_str());
        let head = self.graph.nodes.iter().rposition(is_head).ok_or(GraphError::NoHead)?;
        self.graph.nodes.truncate(head + 1);
        simplify::remove_dead(&mut self.graph);
        simplify::fold_batch_norms(&mut self.graph);
        super::Shape::infer(&self.graph)?;
        Ok(self.graph)
    }
}

fn known(op: &str) -> bool {
    const KNOWN: &[&str] = &[
        "Constant",
        "Identity",
        "Dropout",
        "Conv",
        "Relu",
        "Clip",
        "LeakyRelu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Add",
        "Mul",
        "Sub",
        "Div",
        "GlobalAveragePool",
        "ReduceMean",
        "MaxPool",
        "AveragePool",
        "Flatten",
        "Reshape",
        "Squeeze",
        "Gemm",
        "MatMul",
        "BatchNormalization",
        "Concat",
        "Softmax",
        "LogSoftmax",
    ];
    KNOWN.contains(&op)
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
