//! Shapes of all values of a [`Graph`] for one image, with a bound on what they may hold. Whatever passes here the
//! engine can run without looking again.

use std::collections::BTreeMap;

use super::{Graph, Node, Op, Window};

/// Elements that one value of one image may have. 64 Mi f32 are 256 MB: beyond any sensible classifier.
const ELEMENTS_MAX: usize = 64 << 20;

/// A value without its batch axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[N, c, h, w]`
    Map { c: usize, h: usize, w: usize },
    /// `[N, c]`
    Row { c: usize },
}

impl Layout {
    pub fn len(self) -> usize {
        match self {
            Layout::Map { c, h, w } => c * h * w,
            Layout::Row { c } => c,
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    pub fn channels(self) -> usize {
        match self {
            Layout::Map { c, .. } | Layout::Row { c } => c,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("node {node:?} ({op}): {reason}")]
    Node { node: String, op: &'static str, reason: String },
    #[error("the network's input is {channels}x{height}x{width}; every side must be between 1 and 8192")]
    Input { channels: usize, height: usize, width: usize },
}

/// Shape of every activation, and multiply-adds of every node.
#[derive(Debug, Clone)]
pub struct Shape {
    pub values: BTreeMap<String, Layout>,
    /// One entry per node.
    pub macs: Vec<usize>,
}

impl Shape {
    pub fn infer(graph: &Graph) -> Result<Self, ShapeError> {
        let (channels, height, width) = (graph.channels, graph.height, graph.width);
        if [channels, height, width].iter().any(|n| !(1..=8192).contains(n)) {
            return Err(ShapeError::Input { channels, height, width });
        }
        let input = Layout::Map { c: channels, h: height, w: width };
        let mut values = BTreeMap::from([(graph.input.clone(), input)]);
        let mut macs = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            let fail = |reason: String| ShapeError::Node {
                node: node.name.clone(),
                op: node.op.onnx_name(),
                reason,
            };
            let (layout, cost) = infer_node(graph, &values, node).map_err(fail)?;
            if layout.is_empty() || layout.len() > ELEMENTS_MAX {
                return Err(fail(format!(
                    "output of {} elements, allowed are 1 to {ELEMENTS_MAX}",
                    layout.len()
                )));
            }
            values.insert(node.output.clone(), layout);
            macs.push(cost);
        }
        Ok(Self { values, macs })
    }
}

/// Shape of what `node` makes.
pub(super) fn output(
    graph: &Graph,
    values: &BTreeMap<String, Layout>,
    node: &Node,
) -> Result<Layout, String> {
    let (layout, _) = infer_node(graph, values, node)?;
    if layout.is_empty() || layout.len() > ELEMENTS_MAX {
        return Err(format!("output of {} elements, allowed are 1 to {ELEMENTS_MAX}", layout.len()));
    }
    Ok(layout)
}

fn infer_node(
    graph: &Graph,
    values: &BTreeMap<String, Layout>,
    node: &Node,
) -> Result<(Layout, usize), String> {
    let activation = |i: usize| -> Result<Layout, String> {
        let name = node.inputs.get(i).ok_or_else(|| format!("input {i} is missing"))?;
        values
            .get(name)
            .copied()
            .ok_or_else(|| format!("input {i} ({name:?}) is not a value computed before it"))
    };
    let weight = |i: usize, expected: &[usize]| -> Result<(), String> {
        let name = node.inputs.get(i).ok_or_else(|| format!("input {i} is missing"))?;
        let array = graph.weights.get(name).ok_or_else(|| format!("input {i} ({name:?}) is no constant"))?;
        if array.shape == expected {
            Ok(())
        } else {
            Err(format!("{name:?} is {:?}, expected {expected:?}", array.shape))
        }
    };
    let map = |layout: Layout| match layout {
        Layout::Map { c, h, w } => Ok((c, h, w)),
        Layout::Row { .. } => Err("needs an input [N, C, H, W]".to_owned()),
    };
    match &node.op {
        Op::Conv { window, groups } => {
            let (c, h, w) = map(activation(0)?)?;
            let name = node.inputs.get(1).ok_or("input 1 is missing")?;
            let out = graph
                .weights
                .get(name)
                .and_then(|a| a.shape.first())
                .copied()
                .ok_or("the weight is no constant")?;
            if *groups == 0 || c % groups != 0 || out % groups != 0 {
                return Err(format!("{c} channels in and {out} out do not divide into {groups} groups"));
            }
            weight(1, &[out, c / groups, window.kernel[0], window.kernel[1]])?;
            if node.inputs.len() > 2 {
                weight(2, &[out])?;
            }
            let (oh, ow) = slide(window, h, w)?;
            let layout = Layout::Map { c: out, h: oh, w: ow };
            Ok((layout, layout.len().saturating_mul(c / groups * window.kernel[0] * window.kernel[1])))
        }
        Op::MaxPool { window } | Op::AveragePool { window, .. } => {
            let (c, h, w) = map(activation(0)?)?;
            let (oh, ow) = slide(window, h, w)?;
            Ok((Layout::Map { c, h: oh, w: ow }, 0))
        }
        Op::GlobalAveragePool => map(activation(0)?).map(|(c, ..)| (Layout::Map { c, h: 1, w: 1 }, 0)),
        Op::Flatten => Ok((Layout::Row { c: activation(0)?.len() }, 0)),
        Op::Clip { .. } | Op::LeakyRelu { .. } | Op::Sigmoid | Op::HardSigmoid { .. } | Op::HardSwish => {
            Ok((activation(0)?, 0))
        }
        Op::BatchNormalization { .. } => {
            let layout = activation(0)?;
            for i in 1..5 {
                weight(i, &[layout.channels()])?;
            }
            Ok((layout, 0))
        }
        Op::Gemm => {
            let Layout::Row { c } = activation(0)? else { return Err("needs an input [N, C]".into()) };
            let name = node.inputs.get(1).ok_or("input 1 is missing")?;
            let out = graph
                .weights
                .get(name)
                .and_then(|a| a.shape.first())
                .copied()
                .ok_or("the weight is no constant")?;
            weight(1, &[out, c])?;
            weight(2, &[out])?;
            Ok((Layout::Row { c: out }, c.saturating_mul(out)))
        }
        Op::Add | Op::Mul => broadcast(activation(0)?, activation(1)?).map(|l| (l, 0)),
        Op::Concat => {
            let mut all = (0..node.inputs.len()).map(activation);
            let first = all.next().ok_or("no inputs")??;
            let joined = all.try_fold(first, |sum, next| match (sum, next?) {
                (Layout::Map { c, h, w }, Layout::Map { c: more, h: h2, w: w2 }) if (h, w) == (h2, w2) => {
                    Ok(Layout::Map { c: c + more, h, w })
                }
                (Layout::Row { c }, Layout::Row { c: more }) => Ok(Layout::Row { c: c + more }),
                (a, b) => Err(format!("cannot join {a:?} and {b:?}")),
            })?;
            Ok((joined, 0))
        }
    }
}

/// Two activations of one shape, or one of them `[N, C, 1, 1]`.
fn broadcast(a: Layout, b: Layout) -> Result<Layout, String> {
    match (a, b) {
        _ if a == b => Ok(a),
        (Layout::Map { c, .. }, Layout::Map { c: c2, h: 1, w: 1 }) if c == c2 => Ok(a),
        (Layout::Map { c, h: 1, w: 1 }, Layout::Map { c: c2, .. }) if c == c2 => Ok(b),
        _ => Err(format!("{a:?} and {b:?} do not fit each other")),
    }
}

fn slide(window: &Window, h: usize, w: usize) -> Result<(usize, usize), String> {
    let Window { kernel, strides, pads, dilations } = window;
    let side = |n: usize, axis: usize| {
        let (k, s, d) = (kernel[axis], strides[axis], dilations[axis]);
        let (before, after) = (pads[axis], pads[axis + 2]);
        if !(1..=1024).contains(&k)
            || s == 0
            || d == 0
            || s > 1024
            || d > 1024
            || before > 1024
            || after > 1024
        {
            return Err(format!(
                "kernel {k}, stride {s}, dilation {d}, pads {before} and {after} are out of range"
            ));
        }
        let span = d * (k - 1) + 1;
        let padded = n + before + after;
        if padded < span {
            Err(format!("a window of {span} on a side of {padded}"))
        } else {
            Ok((padded - span) / s + 1)
        }
    };
    Ok((side(h, 0)?, side(w, 1)?))
}
