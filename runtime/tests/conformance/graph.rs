//! Random small int8 networks in Q/DQ form, made of a list of bytes: for the randomised test here and for the fuzzers in
//! `fuzz/`, which include this file.
//!
//! All scales are powers of two, zero points are even and sums stay below 2^24, so that float arithmetic loses nothing: two
//! engines that are right give the very same bytes, ties included.

use andon_runtime::onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

/// The bytes that decide; zeros when they are used up.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// From `low` to `high`, both included.
    fn between(&mut self, low: usize, high: usize) -> usize {
        low + usize::from(self.byte()) % (high - low + 1)
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::from(self.byte()) % list.len()]
    }

    fn zero(&mut self) -> u8 {
        self.byte() & 0xfe
    }
}

/// A value of real numbers that stands for bytes.
#[derive(Clone)]
struct Value {
    name: String,
    channels: usize,
    height: usize,
    width: usize,
    /// Power of two of its scale.
    scale: i32,
}

struct Maker<'a> {
    choices: Choices<'a>,
    graph: GraphProto,
    values: Vec<Value>,
}

/// Inputs of the network: one image.
pub(crate) struct Network {
    pub(crate) model: ModelProto,
    pub(crate) image: Vec<f32>,
    pub(crate) dims: [usize; 4],
}

pub(crate) const INPUT: &str = "image";

/// Up to eight operators over an image of at most 3,000 elements. Outputs: the bytes of every value that nothing reads.
pub(crate) fn network(bytes: &[u8]) -> Network {
    let mut choices = Choices(bytes);
    let dims = [1, choices.between(1, 20), choices.between(1, 12), choices.between(1, 12)];
    let steps = choices.between(1, 8);
    let graph = GraphProto {
        name: "random".into(),
        input: vec![ValueInfoProto::new(INPUT, DataType::Float, &dims)],
        ..Default::default()
    };
    let mut maker = Maker { choices, graph, values: vec![] };
    let scale = maker.scale();
    let [_, channels, height, width] = dims;
    maker.quantise(Value { name: INPUT.into(), channels, height, width, scale });
    for _ in 0..steps {
        maker.step();
    }
    let read: Vec<String> = maker.graph.node.iter().flat_map(|n| n.input.clone()).collect();
    let unread = maker.values.iter().filter(|v| !read.contains(&v.name));
    let bytes =
        unread.map(|v| ValueInfoProto { name: format!("{}.q", v.name.trim_end_matches(".f")), r#type: None });
    maker.graph.output = bytes.collect();
    // Multiples of a step, beyond the range too, and halves of one: ties.
    let step = 2f32.powi(scale - 1);
    let count = dims.iter().product();
    let image = (0..count).map(|_| (f32::from(maker.choices.byte()) * 3.0 - 300.0) * step).collect();
    Network { model: ModelProto::new(maker.graph, 17), image, dims }
}

/// The file of a network a few bytes of which are others: nearly right is where a file of noise never gets.
pub(crate) fn damaged(bytes: &[u8]) -> Vec<u8> {
    /// Bytes that stand for one change: where, as two bytes, and to what.
    const CHANGE: usize = 3;
    const CHANGES_MAX: usize = 8;
    let (count, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let changes = CHANGE * (usize::from(*count) % (CHANGES_MAX + 1));
    let (changes, bytes) = bytes.split_at(changes.min(bytes.len()));
    let mut file = network(bytes).model.to_bytes();
    for [high, low, value] in changes.as_chunks::<CHANGE>().0 {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % file.len();
        file[at] = *value;
    }
    file
}

impl Maker<'_> {
    fn scale(&mut self) -> i32 {
        self.choices.between(0, 3) as i32 - 5
    }

    fn fresh(&self) -> String {
        format!("v{}", self.graph.node.len())
    }

    fn any(&mut self) -> Value {
        let at = self.choices.between(0, self.values.len() - 1);
        self.values[at].clone()
    }

    /// Behind `value`, whose name is that of real numbers, a Q/DQ pair with the scale it is to have.
    fn quantise(&mut self, value: Value) {
        let [q, f, s, z] = ["q", "f", "s", "z"].map(|suffix| format!("{}.{suffix}", value.name));
        let zero = self.choices.zero();
        self.graph.initializer.push(TensorProto::f32(&s, &[], &[2f32.powi(value.scale)]));
        self.graph.initializer.push(TensorProto::u8(&z, &[], &[zero]));
        self.graph.node.push(NodeProto::new("QuantizeLinear", "", [&*value.name, &s, &z], [&*q]));
        self.graph.node.push(NodeProto::new("DequantizeLinear", "", [&*q, &s, &z], [&*f]));
        self.values.push(Value { name: f, ..value });
    }

    fn step(&mut self) {
        let x = self.any();
        match self.choices.between(0, 10) {
            0..=3 => self.conv(&x),
            10 => self.transposed_conv(&x),
            4 => self.binary(&x),
            5 => self.max_pool(&x),
            6 => self.concat(&x),
            7 => self.clip(&x),
            8 => self.upsample(&x),
            _ => self.slice(&x),
        }
    }

    fn unary(&mut self, node: NodeProto, value: Value) {
        self.graph.node.push(node);
        self.quantise(value);
    }

    fn conv(&mut self, x: &Value) {
        let kernel = [self.choices.between(1, 3), self.choices.between(1, 3)];
        let strides = [self.choices.between(1, 2), self.choices.between(1, 2)];
        let dilations = [self.choices.between(1, 2), self.choices.between(1, 2)];
        let pads: [usize; 4] = std::array::from_fn(|_| self.choices.between(0, 2));
        let size = |d: usize, side: usize| {
            let room = side + pads[d] + pads[d + 2];
            Some(room.checked_sub((kernel[d] - 1) * dilations[d] + 1)? / strides[d] + 1)
        };
        let (Some(height), Some(width)) = (size(0, x.height), size(1, x.width)) else { return };
        let (groups, outputs) = self.groups(x);
        let dims = [outputs, x.channels / groups, kernel[0], kernel[1]];
        let [name, wf, bf] = self.weights(x, &dims, outputs, 0);
        let ints = |v: &[usize]| v.iter().map(|v| *v as i64).collect::<Vec<i64>>();
        let node = NodeProto::new("Conv", &name, [&x.name, &wf, &bf], [&name])
            .with_int("group", groups as i64)
            .with_ints("kernel_shape", &ints(&kernel))
            .with_ints("strides", &ints(&strides))
            .with_ints("dilations", &ints(&dilations))
            .with_ints("pads", &ints(&pads));
        let scale = self.scale();
        self.unary(node, Value { name, channels: outputs, height, width, scale });
    }

    /// Depthwise, or one group: groups and output channels.
    fn groups(&mut self, x: &Value) -> (usize, usize) {
        let depthwise = self.choices.between(0, 2) == 0;
        if depthwise { (x.channels, x.channels) } else { (1, self.choices.between(1, 40)) }
    }

    fn transposed_conv(&mut self, x: &Value) {
        let kernel = [self.choices.between(1, 4), self.choices.between(1, 4)];
        let strides = [self.choices.between(1, 3), self.choices.between(1, 3)];
        let dilations = [self.choices.between(1, 2), self.choices.between(1, 2)];
        let pads: [usize; 4] = std::array::from_fn(|i| self.choices.between(0, kernel[i % 2].min(3) - 1));
        let more: [usize; 2] = std::array::from_fn(|d| self.choices.between(0, strides[d] - 1));
        let size = |d: usize, side: usize| {
            let all = (side - 1) * strides[d] + (kernel[d] - 1) * dilations[d] + 1 + more[d];
            all.checked_sub(pads[d] + pads[d + 2]).filter(|size| (1..=30).contains(size))
        };
        let (Some(height), Some(width)) = (size(0, x.height), size(1, x.width)) else { return };
        let (groups, outputs) = self.groups(x);
        let dims = [x.channels, outputs / groups, kernel[0], kernel[1]];
        let [name, wf, bf] = self.weights(x, &dims, outputs, 1);
        let ints = |v: &[usize]| v.iter().map(|v| *v as i64).collect::<Vec<i64>>();
        let node = NodeProto::new("ConvTranspose", &name, [&x.name, &wf, &bf], [&name])
            .with_int("group", groups as i64)
            .with_ints("kernel_shape", &ints(&kernel))
            .with_ints("strides", &ints(&strides))
            .with_ints("dilations", &ints(&dilations))
            .with_ints("output_padding", &ints(&more))
            .with_ints("pads", &ints(&pads));
        let scale = self.scale();
        self.unary(node, Value { name, channels: outputs, height, width, scale });
    }

    /// A fresh name, and those of dequantised weights and bias. `axis`: the outputs' among the dimensions.
    fn weights(&mut self, x: &Value, dims: &[usize], outputs: usize, axis: i64) -> [String; 3] {
        let name = self.fresh();
        let [w, ws, wf, b, bs, bf] = ["w", "ws", "wf", "b", "bs", "bf"].map(|s| format!("{name}.{s}"));
        let weights: Vec<i8> =
            (0..dims.iter().product()).map(|_| (self.choices.byte() as i8).max(-127)).collect();
        // Of a depthwise one turned round, one for all: its outputs have no dimension of their own.
        let count = if dims[axis as usize] == outputs { outputs } else { 1 };
        let scales: Vec<i32> = (0..count).map(|_| -(self.choices.between(4, 10) as i32)).collect();
        let bias: Vec<i32> = (0..outputs).map(|_| (i32::from(self.choices.byte()) - 128) * 16).collect();
        let real = |extra: i32| -> Vec<f32> { scales.iter().map(|s| 2f32.powi(s + extra)).collect() };
        let shape: &[usize] = if count == 1 { &[] } else { &[count] };
        self.graph.initializer.extend([
            TensorProto::i8(&w, dims, &weights),
            TensorProto::f32(&ws, shape, &real(0)),
            TensorProto::i32(&b, &[outputs], &bias),
            TensorProto::f32(&bs, shape, &real(x.scale)),
        ]);
        for (q, s, f, axis) in [(&w, &ws, &wf, axis), (&b, &bs, &bf, 0)] {
            self.graph.node.push(NodeProto::new("DequantizeLinear", "", [q, s], [f]).with_int("axis", axis));
        }
        [name, wf, bf]
    }

    fn same_size(&mut self, x: &Value, channels: bool) -> Value {
        let fits = |v: &&Value| {
            (v.height, v.width) == (x.height, x.width) && (!channels || v.channels == x.channels)
        };
        let fitting: Vec<Value> = self.values.iter().filter(fits).cloned().collect();
        fitting[self.choices.between(0, fitting.len() - 1)].clone()
    }

    fn binary(&mut self, x: &Value) {
        let (y, name, scale) = (self.same_size(x, true), self.fresh(), self.scale());
        let operator = self.choices.one_of(&["Add", "Add", "Mul"]);
        let node = NodeProto::new(operator, &name, [&x.name, &y.name], [&name]);
        self.unary(node, Value { name, scale, ..x.clone() });
    }

    fn max_pool(&mut self, x: &Value) {
        let kernel = [self.choices.between(1, 3).min(x.height), self.choices.between(1, 3).min(x.width)];
        let strides = [self.choices.between(1, 2), self.choices.between(1, 2)];
        let name = self.fresh();
        let ints = |v: &[usize]| v.iter().map(|v| *v as i64).collect::<Vec<i64>>();
        let node = NodeProto::new("MaxPool", &name, [&x.name], [&name])
            .with_ints("kernel_shape", &ints(&kernel))
            .with_ints("strides", &ints(&strides));
        let [height, width] = [0, 1].map(|d| ([x.height, x.width][d] - kernel[d]) / strides[d] + 1);
        self.unary(node, Value { name, height, width, ..x.clone() });
    }

    fn concat(&mut self, x: &Value) {
        let (y, name, scale) = (self.same_size(x, false), self.fresh(), self.scale());
        let channels = x.channels + y.channels;
        if channels > 64 {
            return;
        }
        let node = NodeProto::new("Concat", &name, [&x.name, &y.name], [&name]).with_int("axis", 1);
        self.unary(node, Value { name, channels, scale, ..x.clone() });
    }

    fn clip(&mut self, x: &Value) {
        let (name, scale) = (self.fresh(), self.scale());
        let node = if self.choices.between(0, 1) == 0 {
            NodeProto::new("Relu", &name, [&x.name], [&name])
        } else {
            let [low, high] = ["low", "high"].map(|s| format!("{name}.{s}"));
            let bound = f32::from(self.choices.byte()) / 32.0;
            self.graph.initializer.push(TensorProto::f32(&low, &[], &[-bound / 2.0]));
            self.graph.initializer.push(TensorProto::f32(&high, &[], &[bound]));
            NodeProto::new("Clip", &name, [&x.name, &low, &high], [&name])
        };
        self.unary(node, Value { name, scale, ..x.clone() });
    }

    fn upsample(&mut self, x: &Value) {
        if x.height * x.width > 200 {
            return;
        }
        let name = self.fresh();
        let scales = format!("{name}.scales");
        self.graph.initializer.push(TensorProto::f32(&scales, &[4], &[1.0, 1.0, 2.0, 2.0]));
        let node = NodeProto::new("Resize", &name, [&*x.name, "", &scales], [&*name])
            .with_string("mode", "nearest")
            .with_string("nearest_mode", "floor")
            .with_string("coordinate_transformation_mode", "asymmetric");
        self.unary(node, Value { name, height: x.height * 2, width: x.width * 2, ..x.clone() });
    }

    /// Some of the channels.
    fn slice(&mut self, x: &Value) {
        let start = self.choices.between(0, x.channels - 1);
        let end = self.choices.between(start + 1, x.channels);
        let name = self.fresh();
        let parameters = ["starts", "ends", "axes"].map(|s| format!("{name}.{s}"));
        for (parameter, value) in parameters.iter().zip([start as i64, end as i64, 1]) {
            self.graph.initializer.push(TensorProto::i64(parameter, &[1], &[value]));
        }
        let [starts, ends, axes] = &parameters;
        let node = NodeProto::new("Slice", &name, [&x.name, starts, ends, axes], [&name]);
        self.unary(node, Value { name, channels: end - start, ..x.clone() });
    }
}
