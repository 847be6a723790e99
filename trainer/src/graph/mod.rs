//! A float network as the trainer sees it: [`Graph`] (nodes, weights by name), made from ONNX and written back to it;
//! [`shape`] infers every value's shape; [`Engine`] runs and differentiates it.
//!
//! Only what an image classifier in inference form is made of is known. Reading an ONNX file that has more gives one
//! error that lists every operator that is missing, so that a person sees at once whether a network can be brought in.

mod engine;
mod from_onnx;
mod shape;
mod simplify;
mod to_onnx;

use std::collections::BTreeMap;

pub use engine::{Batch, Engine, EngineError, Gradients, Targets};
pub use from_onnx::{GraphError, read};
pub use shape::{Layout, Shape, ShapeError};
pub use to_onnx::{OPSET, float_value, node, write};

/// A dense f32 array, row major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Array {
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { shape, data }
    }
}

/// `f(inputs) -> output`. Weights are inputs, named like every other value.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique in its graph.
    pub name: String,
    pub op: Op,
    pub inputs: Vec<String>,
    pub output: String,
}

/// A window that slides over height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    /// Top, left, bottom, right, as in ONNX.
    pub pads: [usize; 4],
    pub dilations: [usize; 2],
}

/// The operators, in ONNX's names and semantics (inference form).
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Inputs x, weight `[O, C/groups, kh, kw]`, bias `[O]` (always there once a graph is simplified).
    Conv {
        window: Window,
        groups: usize,
    },
    /// Clamps to `[min, max]`. Relu is `[0, ∞]`.
    Clip {
        min: f32,
        max: f32,
    },
    LeakyRelu {
        alpha: f32,
    },
    Sigmoid,
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
    HardSwish,
    Add,
    Mul,
    GlobalAveragePool,
    MaxPool {
        window: Window,
    },
    AveragePool {
        window: Window,
        count_pads: bool,
    },
    /// `[N, C, H, W]` to `[N, C*H*W]`; nothing on `[N, C]`. Also what is left of `Reshape`.
    Flatten,
    /// Inputs x `[N, I]`, weight `[O, I]`, bias `[O]`.
    Gemm,
    /// Inputs x, scale, bias, mean, variance.
    BatchNormalization {
        epsilon: f32,
    },
    /// Along the channels.
    Concat,
}

impl Op {
    pub fn onnx_name(&self) -> &'static str {
        match self {
            Op::Conv { .. } => "Conv",
            Op::Clip { .. } => "Clip",
            Op::LeakyRelu { .. } => "LeakyRelu",
            Op::Sigmoid => "Sigmoid",
            Op::HardSigmoid { .. } => "HardSigmoid",
            Op::HardSwish => "HardSwish",
            Op::Add => "Add",
            Op::Mul => "Mul",
            Op::GlobalAveragePool => "GlobalAveragePool",
            Op::MaxPool { .. } => "MaxPool",
            Op::AveragePool { .. } => "AveragePool",
            Op::Flatten => "Flatten",
            Op::Gemm => "Gemm",
            Op::BatchNormalization { .. } => "BatchNormalization",
            Op::Concat => "Concat",
        }
    }
}

/// Nodes in an order in which they can run. The last one is the head: a [`Op::Gemm`] that makes the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    pub name: String,
    /// The image, `[1, channels, height, width]`.
    pub input: String,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub nodes: Vec<Node>,
    /// Weights by name. Sorted, so that everything made from a graph has one order.
    pub weights: BTreeMap<String, Array>,
}

/// Names in every graph that the trainer writes.
pub const INPUT: &str = "image";
pub const SCORES: &str = "scores";
pub const EMBEDDING: &str = "embedding";

impl Graph {
    /// The node that makes the logits.
    pub fn head(&self) -> &Node {
        // Both constructors (`from_onnx::read`, `zoo`) end a graph with a Gemm.
        &self.nodes[self.nodes.len() - 1]
    }

    /// The logits.
    pub fn scores(&self) -> &str {
        &self.head().output
    }

    /// What the head sees.
    pub fn embedding(&self) -> &str {
        &self.head().inputs[0]
    }

    pub fn embedding_len(&self) -> usize {
        self.weights[&self.head().inputs[1]].shape[1]
    }

    pub fn classes(&self) -> usize {
        self.weights[&self.head().inputs[1]].shape[0]
    }

    /// Puts a head in place: weight `[classes, embedding]`, bias `[classes]`.
    pub fn set_head(&mut self, weight: Vec<f32>, bias: Vec<f32>) {
        let embedding = self.embedding_len();
        let [_, w, b] = [0, 1, 2].map(|i| self.head().inputs[i].clone());
        self.weights.insert(w, Array::new(vec![bias.len(), embedding], weight));
        self.weights.insert(b, Array::new(vec![bias.len()], bias));
    }

    /// How often each value is read.
    pub fn uses(&self) -> BTreeMap<&str, usize> {
        let mut uses = BTreeMap::new();
        for input in self.nodes.iter().flat_map(|n| &n.inputs) {
            *uses.entry(input.as_str()).or_insert(0) += 1;
        }
        uses
    }

    /// Places where the graph falls in two: before node `i` only one activation is alive. Ascending; 0 (the image) is
    /// always one. A frozen prefix ends at a cut.
    pub fn cuts(&self) -> Vec<usize> {
        let mut last_use = BTreeMap::from([(self.input.as_str(), 0)]);
        for (i, node) in self.nodes.iter().enumerate() {
            for input in node.inputs.iter().filter(|n| !self.weights.contains_key(*n)) {
                last_use.insert(input, i);
            }
        }
        let born: Vec<(usize, &str)> = std::iter::once((0, self.input.as_str()))
            .chain(self.nodes.iter().enumerate().map(|(i, n)| (i + 1, n.output.as_str())))
            .collect();
        let alive = |at: usize| {
            born.iter().filter(|(b, n)| *b <= at && last_use.get(n).is_some_and(|u| *u >= at)).count()
        };
        (0..self.nodes.len()).filter(|i| alive(*i) == 1).collect()
    }

    /// The value that is alive at a cut.
    pub fn value_at(&self, cut: usize) -> &str {
        let is_weight = |n: &&String| !self.weights.contains_key(*n);
        self.nodes[cut].inputs.iter().find(is_weight).map_or(self.input.as_str(), String::as_str)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A small network with every operator, for parity and gradient tests.
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    pub(crate) struct Builder {
        pub(crate) graph: Graph,
        rng: StdRng,
    }

    impl Builder {
        pub(crate) fn new(channels: usize, size: usize) -> Self {
            let graph = Graph {
                name: "tiny".into(),
                input: INPUT.into(),
                channels,
                height: size,
                width: size,
                nodes: vec![],
                weights: BTreeMap::new(),
            };
            Self { graph, rng: StdRng::seed_from_u64(7) }
        }

        pub(crate) fn weight(&mut self, shape: &[usize], scale: f32) -> String {
            let name = format!("w{}", self.graph.weights.len());
            let data = (0..shape.iter().product()).map(|_| self.rng.random_range(-scale..scale)).collect();
            self.graph.weights.insert(name.clone(), Array::new(shape.to_vec(), data));
            name
        }

        pub(crate) fn op(&mut self, op: Op, inputs: &[&str]) -> String {
            let output = format!("v{}", self.graph.nodes.len());
            let inputs = inputs.iter().map(|s| (*s).to_owned()).collect();
            self.graph.nodes.push(Node { name: format!("n_{output}"), op, inputs, output: output.clone() });
            output
        }

        pub(crate) fn conv(
            &mut self,
            x: &str,
            shape: [usize; 4],
            strides: usize,
            pads: [usize; 4],
            groups: usize,
        ) -> String {
            let fan_in = (shape[1] * shape[2] * shape[3]) as f32;
            let (w, b) = (self.weight(&shape, (3.0 / fan_in).sqrt()), self.weight(&shape[..1], 0.1));
            let window =
                Window { kernel: [shape[2], shape[3]], strides: [strides; 2], pads, dilations: [1, 1] };
            self.op(Op::Conv { window, groups }, &[x, &w, &b])
        }

        pub(crate) fn head(mut self, x: &str, features: usize, classes: usize) -> Graph {
            let (w, b) = (self.weight(&[classes, features], 0.5), self.weight(&[classes], 0.1));
            self.op(Op::Gemm, &[x, &w, &b]);
            self.graph
        }
    }

    /// Every operator once, at 8x8.
    pub(crate) fn every_operator() -> Graph {
        let mut b = Builder::new(3, 9);
        let x = b.conv(INPUT, [8, 3, 3, 3], 1, [0, 0, 1, 1], 1);
        let bn: Vec<String> = (0..4).map(|_| b.weight(&[8], 0.5)).collect();
        for v in &mut b.graph.weights.get_mut(&bn[3]).unwrap().data {
            *v = v.abs() + 0.5;
        }
        let x = b.op(Op::BatchNormalization { epsilon: 1e-3 }, &[&x, &bn[0], &bn[1], &bn[2], &bn[3]]);
        let x = b.op(Op::Clip { min: -0.7, max: 0.9 }, &[&x]);
        let y = b.conv(&x, [8, 1, 3, 3], 1, [1; 4], 8);
        let y = b.op(Op::HardSwish, &[&y]);
        let z = b.conv(&y, [8, 2, 3, 3], 1, [1; 4], 4);
        let z = b.op(Op::LeakyRelu { alpha: 0.1 }, &[&z]);
        let x = b.op(Op::Add, &[&x, &z]);
        let gate = b.op(Op::GlobalAveragePool, &[&x]);
        let gate = b.conv(&gate, [8, 8, 1, 1], 1, [0; 4], 1);
        let gate = b.op(Op::HardSigmoid { alpha: 0.2, beta: 0.5 }, &[&gate]);
        let x = b.op(Op::Mul, &[&x, &gate]);
        let pool = Window { kernel: [2, 2], strides: [2, 2], pads: [0; 4], dilations: [1, 1] };
        let p = b.op(Op::MaxPool { window: pool }, &[&x]);
        let q = b.op(Op::AveragePool { window: pool, count_pads: false }, &[&x]);
        let x = b.op(Op::Concat, &[&p, &q]);
        let x = b.conv(&x, [6, 16, 3, 3], 2, [0, 0, 1, 1], 1);
        let x = b.op(Op::Sigmoid, &[&x]);
        let x = b.op(Op::Flatten, &[&x]);
        b.head(&x, 24, 3)
    }
}

#[cfg(test)]
mod tests;
