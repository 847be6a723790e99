//! EfficientNet-Lite0 (Tan & Le 2019; the Lite variant without squeeze-and-excitation and with ReLU6) from its published
//! ImageNet weights in a `.pth` file: the layers as a graph, batch norms folded, TensorFlow's "same" padding worked out
//! for the input size (an odd total pads one more at the bottom and right). The 1000-class head is replaced by an
//! untrained one; its logits are all 0.

use std::{collections::BTreeMap, path::Path};

use pytorch_reader::{DType, PytorchReader};

use crate::graph::{Array, EMBEDDING, Graph, INPUT, Node, Op, SCORES, Window};

/// Repeats, kernel, stride, expansion, channels out.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
const STEM: usize = 32;
const FEATURES: usize = 1280;
const NORM_EPSILON: f64 = 1e-3;
/// Mean and standard deviation of the inputs it was trained on, in units of 0 to 255.
pub const MEAN: f32 = 127.0;
pub const STD: f32 = 128.0;

#[derive(Debug, thiserror::Error)]
pub enum ZooError {
    #[error("cannot read the weights {path}: {reason}")]
    Read { path: String, reason: String },
    #[error("weights {path}: tensor {name:?} is missing; is this a file of EfficientNet-Lite0?")]
    Missing { path: String, name: String },
    #[error("weights {path}: tensor {name:?} is {actual:?}, expected {expected:?} of f32")]
    Tensor { path: String, name: String, actual: Vec<usize>, expected: Vec<usize> },
    #[error("input size {size} is not between 32 and 1024")]
    Size { size: usize },
    #[error("{classes} classes; at least 2 and at most 1024 are possible")]
    Classes { classes: usize },
}

/// The network for square RGB images of `size`.
pub fn efficientnet_lite0(weights: &Path, size: usize, classes: usize) -> Result<Graph, ZooError> {
    if !(32..=1024).contains(&size) {
        return Err(ZooError::Size { size });
    }
    if !(2..=1024).contains(&classes) {
        return Err(ZooError::Classes { classes });
    }
    let path = weights.display().to_string();
    let file = PytorchReader::new(weights)
        .map_err(|e| ZooError::Read { path: path.clone(), reason: e.to_string() })?;
    let mut net = Builder { file, path, size, graph: empty(size) };
    let mut x = net.conv(INPUT, [STEM, 3, 3], 2, 1, "_conv_stem", "_bn0", true)?;
    let (mut channels, mut index) = (STEM, 0);
    for (repeats, kernel, stride, expansion, out) in STAGES {
        for repeat in 0..repeats {
            let stride = if repeat == 0 { stride } else { 1 };
            x = net.block(&x, index, channels, out, kernel, stride, expansion)?;
            (channels, index) = (out, index + 1);
        }
    }
    let x = net.conv(&x, [FEATURES, channels, 1], 1, 1, "_conv_head", "_bn1", true)?;
    let pooled = net.push("pool", Op::GlobalAveragePool, vec![x]);
    let embedding = net.push(EMBEDDING, Op::Flatten, vec![pooled]);
    let mut graph = net.graph;
    graph
        .weights
        .insert("head.weight".into(), Array::new(vec![classes, FEATURES], vec![0.0; classes * FEATURES]));
    graph.weights.insert("head.bias".into(), Array::new(vec![classes], vec![0.0; classes]));
    let inputs = vec![embedding, "head.weight".into(), "head.bias".into()];
    graph.nodes.push(Node { name: "head".into(), op: Op::Gemm, inputs, output: SCORES.into() });
    Ok(graph)
}

fn empty(size: usize) -> Graph {
    Graph {
        name: "efficientnet-lite0".into(),
        input: INPUT.into(),
        channels: 3,
        height: size,
        width: size,
        nodes: Vec::new(),
        weights: BTreeMap::new(),
    }
}

struct Builder {
    file: PytorchReader,
    path: String,
    /// Side of the current map.
    size: usize,
    graph: Graph,
}

impl Builder {
    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, ZooError> {
        let missing = || ZooError::Missing { path: self.path.clone(), name: name.into() };
        let tensor = self.file.get(name).ok_or_else(missing)?;
        if tensor.shape() != expected || tensor.dtype() != DType::F32 {
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(ZooError::Tensor {
                path,
                name,
                actual: tensor.shape().to_vec(),
                expected: expected.to_vec(),
            });
        }
        let bytes =
            tensor.read().map_err(|e| ZooError::Read { path: self.path.clone(), reason: e.to_string() })?;
        Ok(bytes.as_chunks().0.iter().map(|c| f32::from_ne_bytes(*c)).collect())
    }

    fn push(&mut self, name: &str, op: Op, inputs: Vec<String>) -> String {
        self.graph.nodes.push(Node { name: name.into(), op, inputs, output: name.into() });
        name.into()
    }

    /// Convolution with its batch norm folded in; `shape` is channels out, channels in per group, kernel.
    #[allow(clippy::too_many_arguments, reason = "the columns of a layer table")]
    fn conv(
        &mut self,
        x: &str,
        [out, per_group, kernel]: [usize; 3],
        stride: usize,
        groups: usize,
        conv: &str,
        norm: &str,
        activate: bool,
    ) -> Result<String, ZooError> {
        let mut weight = self.tensor(&format!("{conv}.weight"), &[out, per_group, kernel, kernel])?;
        let part = |name: &str| self.tensor(&format!("{norm}.{name}"), &[out]);
        let (gamma, beta, mean, var) =
            (part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?);
        let mut bias = vec![0.0; out];
        for (c, kernel) in weight.chunks_mut(per_group * kernel * kernel).enumerate() {
            let factor = gamma[c] as f64 / (var[c] as f64 + NORM_EPSILON).sqrt();
            kernel.iter_mut().for_each(|v| *v = (*v as f64 * factor) as f32);
            bias[c] = (beta[c] as f64 - mean[c] as f64 * factor) as f32;
        }
        let name = conv.trim_start_matches('_').replace("._", ".");
        let (w, b) = (format!("{name}.weight"), format!("{name}.bias"));
        self.graph.weights.insert(w.clone(), Array::new(vec![out, per_group, kernel, kernel], weight));
        self.graph.weights.insert(b.clone(), Array::new(vec![out], bias));
        let window = Window {
            kernel: [kernel; 2],
            strides: [stride; 2],
            pads: self.same(kernel, stride),
            dilations: [1; 2],
        };
        let y = self.push(&name, Op::Conv { window, groups }, vec![x.into(), w, b]);
        Ok(if activate {
            self.push(&format!("{name}.relu6"), Op::Clip { min: 0.0, max: 6.0 }, vec![y])
        } else {
            y
        })
    }

    /// Inverted residual (Sandler et al. 2018): 1x1 expand, depthwise, 1x1 project, shortcut where the shape is kept.
    #[allow(clippy::too_many_arguments, reason = "the columns of a layer table")]
    fn block(
        &mut self,
        x: &str,
        index: usize,
        channels: usize,
        out: usize,
        kernel: usize,
        stride: usize,
        expansion: usize,
    ) -> Result<String, ZooError> {
        let at = |part: &str| format!("_blocks.{index}.{part}");
        let hidden = channels * expansion;
        let mut y = x.to_owned();
        if expansion > 1 {
            y = self.conv(&y, [hidden, channels, 1], 1, 1, &at("_expand_conv"), &at("_bn0"), true)?;
        }
        y = self.conv(&y, [hidden, 1, kernel], stride, hidden, &at("_depthwise_conv"), &at("_bn1"), true)?;
        y = self.conv(&y, [out, hidden, 1], 1, 1, &at("_project_conv"), &at("_bn2"), false)?;
        let keeps = stride == 1 && channels == out;
        Ok(if keeps { self.push(&format!("blocks.{index}.add"), Op::Add, vec![x.into(), y]) } else { y })
    }

    fn same(&mut self, kernel: usize, stride: usize) -> [usize; 4] {
        let out = self.size.div_ceil(stride);
        let total = ((out - 1) * stride + kernel).saturating_sub(self.size);
        self.size = out;
        [total / 2, total / 2, total - total / 2, total - total / 2]
    }
}
