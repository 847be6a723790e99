//! Runs and differentiates a [`Graph`]. The only module that knows the autodiff library (burn, flex backend).
//!
//! Values of several images lie channel-major (`[C, N, H, W]`), because a 1x1 convolution is then one matrix product
//! over all images, forward and backward. A depthwise convolution on a small map is a batch of matrix products too,
//! with the banded matrix that its kernel makes: the library's own backward pass loops over channels.
//!
//! Everything here is single-threaded and deterministic; [`crate::team`] runs several shards side by side. Shapes are
//! checked once, when an [`Engine`] is made; after that no input can make the library panic.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{
    Device, Tensor, TensorData,
    activation::{log_softmax, sigmoid},
    module::{avg_pool2d, conv2d, max_pool2d},
    ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions},
};

use super::{Array, Graph, Layout, Node, Op, Shape, ShapeError, Window};

/// Activations of `count` images. Maps are `[C, N, H, W]`, rows `[N, C]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub layout: Layout,
    pub count: usize,
    pub data: Vec<f32>,
}

impl Batch {
    /// Puts images, each `[C, H, W]` (or `[C]`), side by side.
    pub fn gather<'a>(layout: Layout, images: impl ExactSizeIterator<Item = &'a [f32]>) -> Self {
        let count = images.len();
        let (c, area) = (layout.channels(), layout.len() / layout.channels());
        let mut data = vec![0.0; count * layout.len()];
        for (n, image) in images.enumerate() {
            debug_assert_eq!(image.len(), layout.len());
            match layout {
                Layout::Row { .. } => data[n * c..][..c].copy_from_slice(image),
                Layout::Map { .. } => {
                    for (i, plane) in image.chunks_exact(area).enumerate() {
                        data[(i * count + n) * area..][..area].copy_from_slice(plane);
                    }
                }
            }
        }
        Self { layout, count, data }
    }

    /// Image `n` as `[C, H, W]` (or `[C]`).
    pub fn image(&self, n: usize) -> Vec<f32> {
        let c = self.layout.channels();
        match self.layout {
            Layout::Row { .. } => self.data[n * c..][..c].to_vec(),
            Layout::Map { h, w, .. } => {
                let area = h * w;
                (0..c).flat_map(|i| &self.data[(i * self.count + n) * area..][..area]).copied().collect()
            }
        }
    }
}

/// What a batch should come out as.
#[derive(Debug, Clone)]
pub struct Targets {
    /// `[N, classes]`, each row a distribution.
    pub probabilities: Vec<f32>,
    /// `[N]`. The loss is the sum of weight times cross-entropy.
    pub weights: Vec<f32>,
}

pub type Gradients = BTreeMap<String, Vec<f32>>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("training diverged: the loss is not finite; try a smaller learning rate")]
    NotFinite,
    #[error("the numeric library failed: {reason}")]
    Library { reason: String },
}

enum Value {
    Map(Tensor<4>),
    Row(Tensor<2>),
}

impl Clone for Value {
    fn clone(&self) -> Self {
        match self {
            Value::Map(t) => Value::Map(t.clone()),
            Value::Row(t) => Value::Row(t.clone()),
        }
    }
}

type Weights = BTreeMap<String, Array>;

/// One expression over the tensor of a value of either rank.
macro_rules! each {
    ($value:expr, |$t:ident| $body:expr) => {
        match $value {
            Value::Map($t) => Value::Map($body),
            Value::Row($t) => Value::Row($body),
        }
    };
}

/// A checked graph, ready to run with any weights of the same shapes.
pub struct Engine {
    nodes: Vec<Node>,
    input: String,
    shape: Shape,
    /// Band matrices `[kh*kw, h*w*oh*ow]` of the depthwise nodes that use one, by node.
    bands: BTreeMap<usize, Tensor<2>>,
    device: Device,
}

/// Largest product of input and output area for which a depthwise convolution is done as matrix products.
const BAND_AREA_MAX: usize = 64 * 256;

impl Engine {
    pub fn new(graph: &Graph) -> Result<Self, ShapeError> {
        let shape = Shape::infer(graph)?;
        let device = Device::flex();
        let mut bands = BTreeMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let Op::Conv { window, groups } = &node.op else { continue };
            let (from, to) = (shape.values[&node.inputs[0]], shape.values[&node.output]);
            if let (Layout::Map { c, h, w }, Layout::Map { c: o, h: oh, w: ow }) = (from, to)
                && *groups == c
                && o == c
                && c > 1
                && h * w * oh * ow <= BAND_AREA_MAX
            {
                bands.insert(i, band(window, [h, w], [oh, ow], &device));
            }
        }
        Ok(Self { nodes: graph.nodes.clone(), input: graph.input.clone(), shape, bands, device })
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Layout of the one value that is alive before node `cut`.
    pub fn layout_at(&self, graph: &Graph, cut: usize) -> Layout {
        self.shape.values[graph.value_at(cut)]
    }

    /// Runs nodes `range` on what is alive at the cut where it starts, and gives the output of the last one.
    pub fn run(
        &self,
        weights: &Weights,
        range: std::ops::Range<usize>,
        batch: &Batch,
    ) -> Result<Batch, EngineError> {
        self.walk(weights, range, batch, &mut |_, _| Ok(()))
    }

    /// Runs everything, and shows each node's output to `see` (maps channel-major).
    pub fn watch(
        &self,
        weights: &Weights,
        batch: &Batch,
        see: &mut dyn FnMut(&str, &[f32]),
    ) -> Result<(), EngineError> {
        let mut read_and_see = |name: &str, value: &Value| {
            see(name, &read(value.clone())?);
            Ok(())
        };
        self.walk(weights, 0..self.nodes.len(), batch, &mut read_and_see).map(drop)
    }

    fn walk(
        &self,
        weights: &Weights,
        range: std::ops::Range<usize>,
        batch: &Batch,
        see: &mut dyn FnMut(&str, &Value) -> Result<(), EngineError>,
    ) -> Result<Batch, EngineError> {
        if range.is_empty() {
            return Ok(batch.clone());
        }
        let leaves = self.constants(weights, range.clone());
        let mut values = BTreeMap::from([(self.name_at(range.start, weights), self.load(batch))]);
        let last = self.nodes[range.end - 1].output.clone();
        for i in range.clone() {
            let out = self.step(i, &values, &leaves);
            see(&self.nodes[i].output, &out)?;
            values.insert(self.nodes[i].output.clone(), out);
            self.forget(i, range.end, &mut values);
        }
        let layout = self.shape.values[&last];
        let out = values.remove(&last).ok_or_else(|| EngineError::Library { reason: "no output".into() })?;
        Ok(Batch { layout, count: batch.count, data: read(out)? })
    }

    /// Loss of the nodes from the cut `from` to the logits, and its gradient by weight for each of `trainable`.
    pub fn gradients(
        &self,
        weights: &Weights,
        from: usize,
        batch: &Batch,
        targets: &Targets,
        trainable: &BTreeSet<String>,
    ) -> Result<(f64, Gradients), EngineError> {
        let all = from..self.nodes.len();
        let mut leaves = self.constants(weights, all.clone());
        for (name, leaf) in &mut leaves {
            if trainable.contains(name) {
                *leaf = match leaf {
                    Leaf::D1(t) => Leaf::D1(t.clone().autodiff().require_grad()),
                    Leaf::D2(t) => Leaf::D2(t.clone().autodiff().require_grad()),
                    Leaf::D4(t) => Leaf::D4(t.clone().autodiff().require_grad()),
                };
            }
        }
        let mut values = BTreeMap::from([(self.name_at(from, weights), self.load(batch))]);
        for i in all.clone() {
            let out = self.step(i, &values, &leaves);
            values.insert(self.nodes[i].output.clone(), out);
            self.forget(i, all.end, &mut values);
        }
        let Some(Value::Row(logits)) = values.remove(&self.nodes[all.end - 1].output) else {
            return Err(EngineError::Library { reason: "the head made no row".into() });
        };
        let classes = logits.dims()[1];
        let weighted: Vec<f32> = targets
            .probabilities
            .chunks_exact(classes)
            .zip(&targets.weights)
            .flat_map(|(row, w)| row.iter().map(move |p| -p * w))
            .collect();
        let weighted =
            Tensor::<2>::from_data(TensorData::new(weighted, [batch.count, classes]), &self.device);
        let loss = (log_softmax(logits, 1) * weighted).sum();
        let mut grads = loss.backward();
        let value = to_vec(loss.without_autodiff().try_into_data())?[0] as f64;
        if !value.is_finite() {
            return Err(EngineError::NotFinite);
        }
        let mut gradients = Gradients::new();
        for (name, leaf) in leaves.iter().filter(|(n, _)| trainable.contains(*n)) {
            let gradient = match leaf {
                Leaf::D1(t) => t.grad_remove(&mut grads).map(|g| to_vec(g.try_into_data())),
                Leaf::D2(t) => t.grad_remove(&mut grads).map(|g| to_vec(g.try_into_data())),
                Leaf::D4(t) => t.grad_remove(&mut grads).map(|g| to_vec(g.try_into_data())),
            };
            if let Some(gradient) = gradient {
                gradients.insert(name.clone(), gradient?);
            }
        }
        Ok((value, gradients))
    }

    fn name_at(&self, cut: usize, weights: &Weights) -> String {
        let activation = self.nodes[cut].inputs.iter().find(|n| !weights.contains_key(*n));
        activation.unwrap_or(&self.input).clone()
    }

    fn load(&self, batch: &Batch) -> Value {
        let data = batch.data.clone();
        match batch.layout {
            Layout::Map { c, h, w } => {
                Value::Map(Tensor::from_data(TensorData::new(data, [c, batch.count, h, w]), &self.device))
            }
            Layout::Row { c } => {
                Value::Row(Tensor::from_data(TensorData::new(data, [batch.count, c]), &self.device))
            }
        }
    }

    /// Weights of some nodes as tensors.
    fn constants(&self, weights: &Weights, range: std::ops::Range<usize>) -> BTreeMap<String, Leaf> {
        let names = self.nodes[range].iter().flat_map(|n| &n.inputs);
        let arrays = names.filter_map(|n| weights.get_key_value(n));
        arrays.map(|(name, array)| (name.clone(), Leaf::new(array, &self.device))).collect()
    }

    /// Drops what no later node reads.
    fn forget(&self, done: usize, end: usize, values: &mut BTreeMap<String, Value>) {
        let keep: BTreeSet<&String> = self.nodes[done + 1..end].iter().flat_map(|n| &n.inputs).collect();
        let last = &self.nodes[end - 1].output;
        let stale: Vec<&String> =
            self.nodes[done].inputs.iter().filter(|n| !keep.contains(n) && *n != last).collect();
        for name in stale {
            values.remove(name);
        }
    }

    fn step(&self, i: usize, values: &BTreeMap<String, Value>, leaves: &BTreeMap<String, Leaf>) -> Value {
        let node = &self.nodes[i];
        let x = || values[&node.inputs[0]].clone();
        let map = |k: usize| match &values[&node.inputs[k]] {
            Value::Map(t) => t.clone(),
            Value::Row(_) => unreachable!("shape inference refuses a row here"),
        };
        let row = || match x() {
            Value::Row(t) => t,
            Value::Map(_) => unreachable!("shape inference refuses a map here"),
        };
        let leaf = |k: usize| &leaves[&node.inputs[k]];
        match &node.op {
            Op::Conv { window, groups } => Value::Map(match self.bands.get(&i) {
                Some(band) => {
                    banded(map(0), leaf(1).d4(), leaf(2).d1(), band.clone(), self.shape.values[&node.output])
                }
                None => conv(map(0), leaf(1).d4(), leaf(2).d1(), window, *groups),
            }),
            Op::Clip { min, max } => each!(x(), |t| clip(t, *min, *max)),
            Op::LeakyRelu { alpha } => {
                // max(x, 0) + alpha * min(x, 0)
                each!(x(), |t| t.clone().clamp_min(0.0) + t.clamp_max(0.0) * *alpha)
            }
            Op::Sigmoid => each!(x(), |t| sigmoid(t)),
            Op::HardSigmoid { alpha, beta } => each!(x(), |t| clip(t * *alpha + *beta, 0.0, 1.0)),
            Op::HardSwish => each!(x(), |t| t.clone() * clip(t / 6.0 + 0.5, 0.0, 1.0)),
            Op::Add => match x() {
                Value::Map(a) => Value::Map(a + map(1)),
                Value::Row(a) => match &values[&node.inputs[1]] {
                    Value::Row(b) => Value::Row(a + b.clone()),
                    Value::Map(_) => unreachable!("shape inference refuses this"),
                },
            },
            Op::Mul => match x() {
                Value::Map(a) => Value::Map(a * map(1)),
                Value::Row(a) => match &values[&node.inputs[1]] {
                    Value::Row(b) => Value::Row(a * b.clone()),
                    Value::Map(_) => unreachable!("shape inference refuses this"),
                },
            },
            Op::GlobalAveragePool => {
                let [c, n, h, w] = map(0).dims();
                Value::Map(map(0).reshape([c, n, h * w]).mean_dim(2).reshape([c, n, 1, 1]))
            }
            Op::MaxPool { window } => {
                let mut options = MaxPoolOptions::new(window.kernel);
                (options.stride, options.padding, options.dilation) =
                    (window.strides, padding(window), window.dilations);
                Value::Map(max_pool2d(map(0), options))
            }
            Op::AveragePool { window, count_pads } => {
                let mut options = AvgPoolOptions::new(window.kernel);
                (options.stride, options.padding) = (window.strides, padding(window));
                options.count_include_pad = *count_pads;
                Value::Map(avg_pool2d(map(0), options))
            }
            Op::Flatten => match x() {
                Value::Map(t) => {
                    let [c, n, h, w] = t.dims();
                    Value::Row(t.swap_dims(0, 1).reshape([n, c * h * w]))
                }
                rows => rows,
            },
            Op::Gemm => {
                let bias = leaf(2).d1();
                let outputs = bias.dims()[0];
                Value::Row(row().matmul(leaf(1).d2().transpose()) + bias.reshape([1, outputs]))
            }
            Op::BatchNormalization { epsilon } => {
                let factor = leaf(1).d1() / (leaf(4).d1() + *epsilon).sqrt();
                let shift = leaf(2).d1() - leaf(3).d1() * factor.clone();
                let c = factor.dims()[0];
                match x() {
                    Value::Map(t) => {
                        Value::Map(t * factor.reshape([c, 1, 1, 1]) + shift.reshape([c, 1, 1, 1]))
                    }
                    Value::Row(t) => Value::Row(t * factor.reshape([1, c]) + shift.reshape([1, c])),
                }
            }
            Op::Concat => match x() {
                Value::Map(_) => Value::Map(Tensor::cat((0..node.inputs.len()).map(map).collect(), 0)),
                Value::Row(_) => {
                    let rows = node.inputs.iter().filter_map(|n| match &values[n] {
                        Value::Row(t) => Some(t.clone()),
                        Value::Map(_) => None,
                    });
                    Value::Row(Tensor::cat(rows.collect(), 1))
                }
            },
        }
    }
}

/// A weight as a tensor of its rank.
enum Leaf {
    D1(Tensor<1>),
    D2(Tensor<2>),
    D4(Tensor<4>),
}

impl Leaf {
    fn new(array: &Array, device: &Device) -> Self {
        let data = array.data.clone();
        match array.shape[..] {
            [o, i] => Leaf::D2(Tensor::from_data(TensorData::new(data, [o, i]), device)),
            [o, i, h, w] => Leaf::D4(Tensor::from_data(TensorData::new(data, [o, i, h, w]), device)),
            _ => {
                let n = data.len();
                Leaf::D1(Tensor::from_data(TensorData::new(data, [n]), device))
            }
        }
    }

    fn d1(&self) -> Tensor<1> {
        match self {
            Leaf::D1(t) => t.clone(),
            _ => unreachable!("shape inference checks the rank of weights"),
        }
    }

    fn d2(&self) -> Tensor<2> {
        match self {
            Leaf::D2(t) => t.clone(),
            _ => unreachable!("shape inference checks the rank of weights"),
        }
    }

    fn d4(&self) -> Tensor<4> {
        match self {
            Leaf::D4(t) => t.clone(),
            _ => unreachable!("shape inference checks the rank of weights"),
        }
    }
}

fn clip<const D: usize>(t: Tensor<D>, min: f32, max: f32) -> Tensor<D> {
    match (min.is_finite(), max.is_finite()) {
        (true, true) => t.clamp(min, max),
        (true, false) => t.clamp_min(min),
        (false, true) => t.clamp_max(max),
        (false, false) => t,
    }
}

fn padding(window: &Window) -> [(usize, usize); 2] {
    let [top, left, bottom, right] = window.pads;
    [(top, bottom), (left, right)]
}

fn conv(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, window: &Window, groups: usize) -> Tensor<4> {
    let [c, n, h, w] = x.dims();
    let o = weight.dims()[0];
    let pointwise =
        window.kernel == [1, 1] && window.strides == [1, 1] && window.pads == [0; 4] && groups == 1;
    if pointwise {
        let y = weight.reshape([o, c]).matmul(x.reshape([c, n * h * w])) + bias.reshape([o, 1]);
        return y.reshape([o, n, h, w]);
    }
    let options = ConvOptions::new_with_padding(window.strides, padding(window), window.dilations, groups);
    conv2d(x.swap_dims(0, 1), weight, Some(bias), options).swap_dims(0, 1)
}

/// Depthwise: per channel, `[N, h*w] x [h*w, oh*ow]`.
fn banded(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, band: Tensor<2>, out: Layout) -> Tensor<4> {
    let [c, n, h, w] = x.dims();
    let Layout::Map { h: oh, w: ow, .. } = out else { unreachable!("a convolution makes a map") };
    let taps = band.dims()[0];
    let matrix = weight.reshape([c, taps]).matmul(band).reshape([c, h * w, oh * ow]);
    let y = x.reshape([c, n, h * w]).matmul(matrix) + bias.reshape([c, 1, 1]);
    y.reshape([c, n, oh, ow])
}

/// Entry `[tap, (input place, output place)]` is 1 where that tap of the kernel links the two.
fn band(window: &Window, [h, w]: [usize; 2], [oh, ow]: [usize; 2], device: &Device) -> Tensor<2> {
    let taps = window.kernel[0] * window.kernel[1];
    let columns = h * w * oh * ow;
    let mut data = vec![0.0f32; taps * columns];
    let source = |o: usize, k: usize, axis: usize, n: usize| {
        let at = o * window.strides[axis] + k * window.dilations[axis];
        at.checked_sub(window.pads[axis]).filter(|i| *i < n)
    };
    for (ky, kx) in (0..window.kernel[0]).flat_map(|y| (0..window.kernel[1]).map(move |x| (y, x))) {
        for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            if let (Some(iy), Some(ix)) = (source(y, ky, 0, h), source(x, kx, 1, w)) {
                data[(ky * window.kernel[1] + kx) * columns + (iy * w + ix) * oh * ow + y * ow + x] = 1.0;
            }
        }
    }
    Tensor::from_data(TensorData::new(data, [taps, columns]), device)
}

fn read(value: Value) -> Result<Vec<f32>, EngineError> {
    match value {
        Value::Map(t) => to_vec(t.try_into_data()),
        Value::Row(t) => to_vec(t.try_into_data()),
    }
}

fn to_vec<E: std::fmt::Display>(data: Result<TensorData, E>) -> Result<Vec<f32>, EngineError> {
    let library = |reason: String| EngineError::Library { reason };
    let data = data.map_err(|e| library(e.to_string()))?;
    data.try_into_vec::<f32>().map_err(|e| library(format!("{e:?}")))
}
