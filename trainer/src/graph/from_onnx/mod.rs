//! ONNX to [`Graph`]. Constants are resolved, operators that do nothing at inference are dropped, and different
//! spellings of one thing become one operator (`Relu` a clip, `MatMul` + `Add` a Gemm, arithmetic with per-channel
//! constants a batch norm, `Reshape` to a row a flatten). What follows the last Gemm is dropped if it is a softmax.

mod operators;

use std::collections::{BTreeMap, BTreeSet};

use andon_runtime::onnx::{self, DataType, GraphProto, NodeProto, TensorProto};

use super::{Array, Graph, Layout, Node, Op, ShapeError, shape, simplify};

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
