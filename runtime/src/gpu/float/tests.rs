//! Float networks on every adapter that there is, with checks in the shaders and without, against tract: small ones of one
//! operator or a few, the same every time.

use super::{
    super::{
        golden::random::{Random, Sliding},
        tests::{cases_count, devices},
    },
    *,
};
use crate::{
    EngineChoice, Guarding, Model, Session, SessionOptions,
    engine::tract::Tract,
    fixtures,
    onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto},
};

/// How far a result may be away, of the range of the results.
fn tolerance(precision: Precision) -> f32 {
    match precision {
        Precision::Single => 1e-4,
        Precision::Half => 1e-2,
    }
}

/// A network as it grows.
struct Net {
    graph: GraphProto,
    random: Random,
}

impl Net {
    fn new(dims: &[usize], seed: u64) -> Self {
        let graph = GraphProto {
            name: "case".into(),
            input: vec![ValueInfoProto::new("x", DataType::Float, dims)],
            ..Default::default()
        };
        Self { graph, random: Random::new(seed) }
    }

    fn constant(&mut self, dims: &[usize], low: f32, high: f32) -> String {
        let name = format!("k{}", self.graph.initializer.len());
        let count = dims.iter().product::<usize>();
        let value =
            |random: &mut Random| low + (high - low) * (random.next() as u32 as f32 / u32::MAX as f32);
        let values: Vec<f32> = (0..count).map(|_| value(&mut self.random)).collect();
        self.graph.initializer.push(TensorProto::f32(&name, dims, &values));
        name
    }

    fn fixed(&mut self, tensor: TensorProto) -> String {
        let name = format!("k{}", self.graph.initializer.len());
        self.graph.initializer.push(TensorProto { name: name.clone(), ..tensor });
        name
    }

    fn node(&mut self, op: &str, inputs: &[&str], finish: impl FnOnce(NodeProto) -> NodeProto) -> String {
        let name = format!("n{}", self.graph.node.len());
        let node = NodeProto::new(op, &name, inputs.iter().copied(), [&*name]);
        self.graph.node.push(finish(node));
        name
    }

    fn plain(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node(op, inputs, |node| node)
    }

    /// Weights such that values stay about as large as they are.
    fn convolution(
        &mut self,
        from: &str,
        [channels, outputs, groups]: [usize; 3],
        kernel: [usize; 2],
        finish: impl FnOnce(NodeProto) -> NodeProto,
    ) -> String {
        let dims = [outputs, channels / groups, kernel[0], kernel[1]];
        let spread = 1.7 / (dims[1..].iter().product::<usize>() as f32).sqrt();
        let weights = self.constant(&dims, -spread, spread);
        let bias = self.constant(&[outputs], -0.5, 0.5);
        let with_bias = self.random.below(3) > 0;
        let inputs = if with_bias { vec![from, &*weights, &bias] } else { vec![from, &*weights] };
        self.node("Conv", &inputs, |node| finish(node.with_int("group", groups as i64)))
    }

    fn pointwise(&mut self, from: &str, channels: usize, outputs: usize) -> String {
        self.convolution(from, [channels, outputs, 1], [1, 1], |node| node)
    }

    fn normalised(&mut self, from: &str, channels: usize) -> String {
        let [scale, variance] = [(); 2].map(|()| self.constant(&[channels], 0.3, 1.7));
        let [shift, mean] = [(); 2].map(|()| self.constant(&[channels], -0.5, 0.5));
        self.plain("BatchNormalization", &[from, &scale, &shift, &mean, &variance])
    }

    fn done(mut self, outputs: &[&str]) -> Model {
        let output = |name: &&str| ValueInfoProto { name: (*name).into(), r#type: None };
        self.graph.output = outputs.iter().map(output).collect();
        fixtures::model(ModelProto::new(self.graph, 14))
    }
}

fn network(model: &Model, forced: Option<usize>, precision: Precision) -> Result<Network, String> {
    let shapes = model.shapes(&model.closed_inputs()).unwrap();
    let choices = Choices { forced, ..Default::default() };
    Network::new(model.graph(), &shapes, model.graph().outputs(), &choices, precision)
}

/// Runs a network on all devices, with another variant of each kernel every time; returns how many dispatches it took.
fn check(all: &mut [(String, Option<Device>)], name: &str, number: usize, model: &Model) -> usize {
    let dims: Vec<Vec<usize>> = model.closed_inputs().into_iter().map(|(_, dims)| dims).collect();
    let given = dims.iter().map(|dims| Tensor::noise(dims, Some(DataType::Float)).unwrap());
    let given: Vec<Tensor> = given.collect();
    let given: Vec<&Tensor> = given.iter().collect();
    let expected = Tract::new(model.graph(), &dims, model.graph().outputs()).unwrap().run(&given).unwrap();
    let mut dispatches = 0;
    for (i, (device, own)) in all.iter_mut().enumerate() {
        for precision in [Precision::Single, Precision::Half] {
            let has_f16 = |device: &Device| device.device.features().contains(wgpu::Features::SHADER_F16);
            if precision == Precision::Half && !own.as_ref().is_some_and(has_f16) {
                continue;
            }
            let network = network(model, Some(number.wrapping_mul(31) + 7 * i), precision);
            let network = network.unwrap_or_else(|why| panic!("{name}: {why}"));
            dispatches = network.program.phases[0].dispatches.len();
            let mut gpu = FloatGpu::of(network, own.take().unwrap(), 2).unwrap();
            for round in 0..2 {
                let outputs = gpu.run(&given).unwrap();
                assert_eq!(outputs.len(), expected.len());
                for (ours, expected) in outputs.iter().zip(&expected) {
                    if let Err(why) = near(ours, expected, tolerance(precision)) {
                        panic!("{name}, {precision:?}, {device}, round {round}: {why}");
                    }
                }
            }
            *own = Some(gpu.device);
        }
    }
    dispatches
}

fn near(ours: &Tensor, expected: &Tensor, tolerance: f32) -> Result<(), String> {
    if ours.shape() != expected.shape() {
        return Err(format!("{:?}, expected {:?}", ours.shape(), expected.shape()));
    }
    let (ours, expected) = (ours.as_f32().unwrap(), expected.as_f32().unwrap());
    let range = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    let wrong = ours
        .iter()
        .zip(expected)
        .enumerate()
        .filter(|(_, (a, b))| (*a - *b).abs() > tolerance * range || a.is_nan());
    let wrong: Vec<String> = wrong.map(|(i, (a, b))| format!("{i}: {a} for {b}")).collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("{} wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(8)]))
    }
}

/// One convolution of any kind, and what may go into it.
fn convolution_case(seed: u64) -> Model {
    let mut random = Random::new(seed);
    let random = &mut random;
    let groups = random.pick(&[1, 1, 1, 2, 3]);
    let (own, per_group) = if groups == 1 {
        (random.pick(&[1, 2, 3, 4, 5, 8, 17, 33, 48]), random.pick(&[1, 2, 3, 4, 6, 8, 19, 64]))
    } else {
        (random.pick(&[4, 8, 12]), random.pick(&[4, 8, 20]))
    };
    let depthwise = random.below(3) == 0;
    let (channels, outputs, groups) = if depthwise {
        let channels = random.pick(&[1, 2, 3, 4, 7, 16, 30, 64]);
        (channels, channels, channels)
    } else {
        (own * groups, per_group * groups, groups)
    };
    let sliding = Sliding::any(random);
    let (size, kernel) = (sliding.size, sliding.kernel);
    let normalises = random.below(3) == 0;
    let function = random.pick(&["", "Relu", "Sigmoid", "LeakyRelu", "Tanh"]);
    let mut net = Net::new(&[1, channels, size[0], size[1]], seed);
    let mut y = net.convolution("x", [channels, outputs, groups], kernel, |node| sliding.describe(node));
    if normalises {
        y = net.normalised(&y, outputs);
    }
    if !function.is_empty() {
        y = net.plain(function, &[&y]);
    }
    net.done(&[&y])
}

#[test]
fn convolutions_are_tracts() {
    let devices = &mut devices();
    for number in 0..cases_count(40) {
        let model = convolution_case(number as u64);
        let dispatches = check(devices, &format!("convolution {number}"), number, &model);
        assert!(devices.is_empty() || dispatches == 3, "convolution {number}: {dispatches} dispatches");
    }
}

const OPERATORS: [&str; 46] = [
    "ConvTranspose",
    "ConvTranspose of groups",
    "ConvTranspose and more",
    "MaxPool",
    "MaxPool with ceil",
    "AveragePool",
    "AveragePool that counts",
    "AveragePool of all",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "Resize",
    "Resize of centres",
    "Resize by parts",
    "Linear Resize",
    "Linear Resize of corners",
    "Linear Resize to less",
    "Pad",
    "Pad that mirrors",
    "Slice of channels",
    "Slice of pixels",
    "Split",
    "Split and joined",
    "Concat",
    "Concat of convolutions",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Gate",
    "Mask",
    "Factors",
    "Difference from constants",
    "BatchNormalization",
    "Relu",
    "Clip",
    "LeakyRelu",
    "HardSwish",
    "HardSigmoid",
    "Tanh",
    "SiLU",
    "Hard gate",
    "Identity",
    "Flatten",
    "MatMul",
    "Softmax",
];

/// An operator on `x` of `c` channels and `h` by `w` pixels; its result and that one's channels.
fn operator(net: &mut Net, name: &str, x: &str, [c, h, w]: [usize; 3]) -> (String, usize) {
    let window = |node: NodeProto, sizes: [i64; 2], strides: [i64; 2], pads: [i64; 4]| {
        node.with_ints("kernel_shape", &sizes).with_ints("strides", &strides).with_ints("pads", &pads)
    };
    let y = match name {
        "ConvTranspose" | "ConvTranspose of groups" | "ConvTranspose and more" => {
            let (x, c, groups) = match name {
                "ConvTranspose of groups" => (net.pointwise(x, c, 12), 12, 3),
                _ => (x.to_owned(), c, 1),
            };
            let outputs = if groups > 1 { 24 } else { 10 };
            let (size, stride) = (net.random.pick(&[[2, 2], [3, 3], [1, 4]]), net.random.pick(&[1, 2, 3]));
            let dims = [c, outputs / groups, size[0] as usize, size[1] as usize];
            let spread = 1.7 / (dims[0] as f32).sqrt();
            let weights = net.constant(&dims, -spread, spread);
            let bias = net.constant(&[outputs], -0.5, 0.5);
            let y = net.node("ConvTranspose", &[&*x, &*weights, &bias], |n| {
                let n = n.with_ints("kernel_shape", &size).with_ints("strides", &[stride, 2]);
                let n = n.with_ints("pads", &[0, i64::from(size[1] > 2), 0, 0]);
                n.with_int("group", groups as i64)
            });
            if name != "ConvTranspose and more" {
                return (y, outputs);
            }
            // A normalisation, a function and a skip connection go into it.
            let other = net.node("ConvTranspose", &[&*x, &*weights], |n| {
                let n = n.with_ints("kernel_shape", &size).with_ints("strides", &[stride, 2]);
                n.with_ints("pads", &[0, i64::from(size[1] > 2), 0, 0])
            });
            let y = net.normalised(&y, outputs);
            let y = net.plain("Relu", &[&y]);
            return (net.plain("Add", &[&y, &other]), outputs);
        }
        "MaxPool" => net.node("MaxPool", &[x], |n| window(n, [3, 2], [2, 1], [1, 1, 1, 0])),
        "MaxPool with ceil" => {
            net.node("MaxPool", &[x], |n| window(n, [3, 2], [2, 2], [1, 0, 1, 1]).with_int("ceil_mode", 1))
        }
        "AveragePool" => net.node("AveragePool", &[x], |n| window(n, [2, 2], [1, 2], [1, 0, 0, 1])),
        "AveragePool that counts" => net.node("AveragePool", &[x], |n| {
            window(n, [2, 2], [1, 2], [1, 0, 0, 1]).with_int("count_include_pad", 1)
        }),
        "AveragePool of all" => {
            net.node("AveragePool", &[x], |n| window(n, [h as i64, w as i64], [1, 1], [0; 4]))
        }
        "ReduceMean" => net.node("ReduceMean", &[x], |n| n.with_ints("axes", &[-1, 2])),
        "Resize" | "Resize of centres" => {
            let scales = net.fixed(TensorProto::f32("", &[4], &[1.0, 1.0, 2.0, 3.0]));
            let (mode, nearest) =
                if name == "Resize" { ("asymmetric", "floor") } else { ("half_pixel", "round_prefer_floor") };
            net.node("Resize", &[x, "", &scales], |n| {
                n.with_string("mode", "nearest")
                    .with_string("coordinate_transformation_mode", mode)
                    .with_string("nearest_mode", nearest)
            })
        }
        "Resize by parts" | "Linear Resize" | "Linear Resize of corners" | "Linear Resize to less" => {
            let factors = if name.ends_with("less") { [0.5, 0.5] } else { [1.5, 2.5] };
            let to =
                [1, c as i64, (h as f32 * factors[0]).ceil() as i64, (w as f32 * factors[1]).ceil() as i64];
            let sizes = net.fixed(TensorProto::i64("", &[4], &to));
            let mode = if name.ends_with("corners") { "align_corners" } else { "half_pixel" };
            let kind = if name.starts_with("Linear") { "linear" } else { "nearest" };
            net.node("Resize", &[x, "", "", &sizes], |n| {
                n.with_string("mode", kind).with_string("coordinate_transformation_mode", mode)
            })
        }
        "Pad" | "Pad that mirrors" => {
            let mirrors = name.ends_with("mirrors") && h > 1;
            let pads = if mirrors { [0, 0, 1, 0, 0, 0, 1, 1] } else { [0, 0, 2, 1, 0, 0, 0, 3] };
            let pads = net.fixed(TensorProto::i64("", &[8], &pads));
            let fill = net.constant(&[], 0.5, 0.5);
            let mode = if mirrors { "reflect" } else { "constant" };
            // With a number to pad with, tract does not mirror.
            let inputs = [x, &*pads, &*fill];
            let inputs = if mirrors { &inputs[..2] } else { &inputs[..] };
            net.node("Pad", inputs, |n| n.with_string("mode", mode))
        }
        "Slice of channels" | "Slice of pixels" => {
            let first = if name.ends_with("channels") { c.saturating_sub(1) / 4 * 4 } else { 0 };
            let (from, to, axes, steps) = match name {
                "Slice of channels" => (vec![first as i64], vec![i64::MAX], vec![1], vec![1]),
                _ => (vec![-1, w as i64 - 1], vec![i64::MIN, 0], vec![2, -1], vec![-1, -2]),
            };
            let mut list = |values: &[i64]| net.fixed(TensorProto::i64("", &[values.len()], values));
            let inputs = [list(&from), list(&to), list(&axes), list(&steps)];
            let inputs: Vec<&str> = [x].into_iter().chain(inputs.iter().map(String::as_str)).collect();
            return (net.plain("Slice", &inputs), c - first);
        }
        "Split" | "Split and joined" => {
            let (wide, c) = (net.pointwise(x, c, 24), 24);
            let sizes = net.fixed(TensorProto::i64("", &[3], &[8, 12, 4]));
            let outputs = ["a", "b", "d"].map(|part| format!("{wide}{part}"));
            let node =
                NodeProto::new("Split", "split", [&*wide, &*sizes], outputs.iter().map(String::as_str));
            net.graph.node.push(node.with_int("axis", 1));
            let [a, b, d] = outputs;
            if name == "Split" {
                let sum = net.pointwise(&b, 12, 4);
                let sum = net.plain("Add", &[&sum, &d]);
                return (net.node("Concat", &[&sum, &a], |n| n.with_int("axis", 1)), 12);
            }
            let more = net.pointwise(&d, 4, 5);
            let y = net.node("Concat", &[&a, &b, &d, &more], |n| n.with_int("axis", 1));
            return (y, c + 5);
        }
        "Concat" => {
            let y = net.node("Concat", &[x, x, x], |n| n.with_int("axis", 1));
            return (y, 3 * c);
        }
        "Concat of convolutions" => {
            // Parts that begin where a quad does and parts that do not, and one that is a concatenation itself.
            let outputs = [8, net.random.pick(&[1, 3, 4]), net.random.pick(&[2, 5, 16]), 4];
            let parts: Vec<String> = outputs.iter().map(|outputs| net.pointwise(x, c, *outputs)).collect();
            let inner = net.node("Concat", &[&parts[0], &parts[1]], |n| n.with_int("axis", -3));
            let moved = net.plain("Relu", &[&parts[3]]);
            let y = net.node("Concat", &[&inner, x, &parts[2], &moved], |n| n.with_int("axis", 1));
            return (y, outputs.iter().sum::<usize>() + c);
        }
        "Add" | "Sub" | "Mul" | "Div" => {
            let half = net.plain("Sigmoid", &[x]);
            let one = net.constant(&[], 0.5, 0.5);
            let other = net.plain("Add", &[&half, &one]);
            net.plain(name, &[x, &other])
        }
        "Gate" => {
            let all = net.plain("GlobalAveragePool", &[x]);
            let narrow = net.pointwise(&all, c, 3);
            let wide = net.plain("Relu", &[&narrow]);
            let wide = net.pointwise(&wide, 3, c);
            let gate = net.plain("Sigmoid", &[&wide]);
            net.plain("Mul", &[&gate, x])
        }
        "Mask" => {
            let mask = net.pointwise(x, c, 1);
            net.plain("Mul", &[x, &mask])
        }
        "Factors" => {
            let factors = net.constant(&[c, 1, 1], -1.0, 1.0);
            let scaled = net.plain("Mul", &[&factors, x]);
            let summands = net.constant(&[1, c, 1, 1], -1.0, 1.0);
            let moved = net.plain("Sub", &[&scaled, &summands]);
            let divisor = net.constant(&[1], 2.0, 3.0);
            net.plain("Div", &[&moved, &divisor])
        }
        "Difference from constants" => {
            let constant = net.constant(&[1, c, 1, 1], -1.0, 1.0);
            net.plain("Sub", &[&constant, x])
        }
        "BatchNormalization" => net.normalised(x, c),
        "Clip" => {
            let low = net.constant(&[], -0.5, -0.5);
            let high = net.constant(&[], 0.75, 0.75);
            net.plain("Clip", &[x, &low, &high])
        }
        "LeakyRelu" => net.node("LeakyRelu", &[x], |n| n.with_float("alpha", 0.3)),
        "HardSigmoid" => net.node("HardSigmoid", &[x], |n| n.with_float("alpha", 0.3)),
        "SiLU" => {
            let gate = net.plain("Sigmoid", &[x]);
            net.plain("Mul", &[&gate, x])
        }
        "Hard gate" => {
            let gate = net.node("HardSigmoid", &[x], |n| n.with_float("alpha", 1.0 / 6.0));
            net.plain("Mul", &[x, &gate])
        }
        "Flatten" | "MatMul" => {
            let flat = net.plain("Flatten", &[x]);
            let flat = net.plain("Relu", &[&flat]);
            let outputs = net.random.pick(&[1, 5, 12]);
            let spread = 1.0 / ((c * h * w) as f32).sqrt();
            if name == "MatMul" {
                let weights = net.constant(&[c * h * w, outputs], -spread, spread);
                let bias = net.constant(&[outputs], -1.0, 1.0);
                let product = net.plain("MatMul", &[&flat, &weights]);
                return (net.plain("Add", &[&product, &bias]), outputs);
            }
            let weights = net.constant(&[outputs, c * h * w], -spread, spread);
            let bias = net.constant(&[1, outputs], -1.0, 1.0);
            let y = net.node("Gemm", &[&flat, &weights, &bias], |n| {
                n.with_int("transB", 1).with_float("alpha", 0.5).with_float("beta", 2.0)
            });
            return (y, outputs);
        }
        "Softmax" => net.node("Softmax", &[x], |n| n.with_int("axis", 1)),
        other => net.plain(other, &[x]),
    };
    (y, c)
}

#[test]
fn other_operators_are_tracts() {
    let devices = &mut devices();
    for name in OPERATORS {
        for number in 0..cases_count(3) {
            let mut net = Net::new(&[1, 1, 1, 1], 0);
            net.random = Random::new(number as u64);
            let c = net.random.pick(&[1, 3, 4, 6, 16, 21, 32]);
            let (h, w) = (net.random.pick(&[1, 4, 7]), net.random.pick(&[2, 5, 8]));
            net.graph.input = vec![ValueInfoProto::new("x", DataType::Float, &[1, c, h, w])];
            // Alone in every second case, else behind a convolution that may take it up.
            let alone = number % 2 == 1 && name != "Softmax";
            let from = if alone { "x".to_owned() } else { net.pointwise("x", c, c) };
            let (mut y, channels) = operator(&mut net, name, &from, [c, h, w]);
            if alone && !matches!(name, "Flatten" | "MatMul") {
                y = net.pointwise(&y, channels, 5);
            }
            check(devices, &format!("{name} {number}"), number, &net.done(&[&y]));
        }
    }
}

/// Residual blocks, a gate, a pyramid and a classifier, with an embedding and an image as outputs: and how many dispatches
/// that takes.
fn whole() -> Model {
    let mut net = Net::new(&[1, 3, 17, 12], 7);
    let down = |node: NodeProto| node.with_ints("strides", &[2, 2]).with_ints("pads", &[1, 1, 1, 1]);
    let same = |node: NodeProto| node.with_ints("pads", &[1, 1, 1, 1]);
    let a = net.convolution("x", [3, 16, 1], [3, 3], down);
    let a = net.normalised(&a, 16);
    let a = net.plain("Relu", &[&a]);
    // A residual block: two dispatches.
    let b = net.convolution(&a, [16, 16, 1], [3, 3], same);
    let b = net.plain("Relu", &[&b]);
    let b = net.convolution(&b, [16, 16, 1], [3, 3], same);
    let b = net.normalised(&b, 16);
    let b = net.plain("Add", &[&b, &a]);
    let b = net.plain("Relu", &[&b]);
    // One that goes down on both sides: the sum goes into the later convolution.
    let c = net.convolution(&b, [16, 16, 16], [3, 3], down);
    let c = net.pointwise(&c, 16, 24);
    let d = net.convolution(&b, [16, 24, 1], [1, 1], |node| node.with_ints("strides", &[2, 2]));
    let c = net.plain("Add", &[&c, &d]);
    // A gate: mean, two layers, product.
    let gate = net.plain("GlobalAveragePool", &[&c]);
    let gate = net.pointwise(&gate, 24, 6);
    let s = net.plain("Sigmoid", &[&gate]);
    let gate = net.plain("Mul", &[&gate, &s]);
    let gate = net.pointwise(&gate, 6, 24);
    let gate = net.plain("Sigmoid", &[&gate]);
    let c = net.plain("Mul", &[&c, &gate]);
    // A pyramid: enlarged, cut by a convolution, joined without a copy.
    let scales = net.fixed(TensorProto::f32("", &[4], &[1.0, 1.0, 2.0, 2.0]));
    let up = net.node("Resize", &[&c, "", &scales], |n| {
        n.with_string("coordinate_transformation_mode", "asymmetric").with_string("nearest_mode", "floor")
    });
    let up = net.convolution(&up, [24, 8, 1], [2, 1], |node| node);
    let low = net.pointwise(&b, 16, 12);
    let joined = net.node("Concat", &[&up, &low], |n| n.with_int("axis", 1));
    let image = net.pointwise(&joined, 20, 2);
    // A classifier.
    let mean = net.node("ReduceMean", &[&joined], |n| n.with_ints("axes", &[2, 3]).with_int("keepdims", 0));
    let weights = net.constant(&[7, 20], -0.3, 0.3);
    let scores = net.node("Gemm", &[&mean, &weights], |n| n.with_int("transB", 1));
    let scores = net.node("Softmax", &[&scores], |n| n.with_int("axis", -1));
    net.done(&[&scores, &mean, &image])
}

#[test]
fn a_network_takes_as_many_dispatches_as_it_has_layers() {
    let devices = &mut devices();
    for number in 0..3 {
        let dispatches = check(devices, "whole", number, &whole());
        // Three and three of the blocks, four of the gate, three of the pyramid, an image, a mean and a layer; an input and
        // three results.
        assert!(devices.is_empty() || dispatches == 20, "{dispatches}");
    }
}

#[test]
fn refusals_name_the_node_and_the_operator() {
    type Case = (&'static str, fn(&mut Net) -> String, &'static str);
    let cases: [Case; 6] = [
        (
            "an operator without a kernel",
            |net| net.plain("Erf", &["x"]),
            "node \"n0\" (Erf): it has no kernel",
        ),
        ("odd groups", |net| net.convolution("x", [6, 6, 2], [1, 1], |n| n), "(Conv): its groups are not of"),
        (
            "computed weights",
            |net| {
                let weights = net.constant(&[6, 6, 1, 1], 0.0, 1.0);
                net.graph.input.push(ValueInfoProto::new("z", DataType::Float, &[6, 6, 1, 1]));
                let weights = net.plain("Mul", &[&weights, "z"]);
                net.plain("Conv", &["x", &weights])
            },
            "(Mul): its input \"z\" does not lie on the GPU",
        ),
        (
            "transposed",
            |net| net.node("Transpose", &["x"], |n| n.with_ints("perm", &[0, 1, 3, 2])),
            "(Transpose)",
        ),
        (
            "a constant image",
            |net| {
                let image = net.constant(&[1, 6, 4, 4], 0.0, 1.0);
                net.plain("Mul", &["x", &image])
            },
            "(Mul): what it joins is neither computed nor one constant for each channel",
        ),
        (
            "one dimension",
            |net| net.node("ReduceMean", &["x"], |n| n.with_ints("axes", &[3])),
            "(ReduceMean)",
        ),
    ];
    for (name, build, expected) in cases {
        let mut net = Net::new(&[1, 6, 4, 4], 1);
        let y = build(&mut net);
        // It could come last, so that something comes behind it.
        let y = if name == "one dimension" { y } else { net.pointwise(&y, 6, 4) };
        let why = network(&net.done(&[&y]), None, Precision::Single)
            .err()
            .unwrap_or_else(|| panic!("{name}: is none"));
        assert!(why.contains(expected), "{name}: {why}");
    }
}

/// By the session: the engine that was asked for, which is compared with tract's and replaced where it computes wrong.
#[test]
fn a_session_runs_it_and_watches_it() {
    if super::super::device::adapters().is_empty() {
        assert!(std::env::var("ANDON_TEST_GPU").is_err(), "no GPU and nothing that plays one");
        return eprintln!("NOT TESTED: no GPU and nothing that plays one");
    }
    let model = fixtures::model(fixtures::float_proto());
    let guarding = Guarding { policy: Default::default(), clock: crate::Clock::new(Default::default) };
    for guarding in [None, Some(guarding)] {
        let options = SessionOptions { engine: EngineChoice::Gpu, guarding, ..Default::default() };
        let mut session = Session::new(&model, &options).unwrap();
        assert_eq!(session.engine(), "gpu");
        let outputs = session.run(&[("image", fixtures::image())]).unwrap();
        for (name, expected) in [("scores", fixtures::SCORES), ("embedding", fixtures::EMBEDDING)] {
            let expected = Tensor::f32(vec![1, 2], expected.to_vec()).unwrap();
            near(outputs.get(name).unwrap(), &expected, tolerance(Precision::Single)).unwrap();
        }
    }
    // What was not asked for is not taken.
    assert_eq!(Session::new(&model, &SessionOptions::default()).unwrap().engine(), "tract");
    let explanation = model.explain_for(EngineChoice::Gpu);
    assert!(explanation.engine.contains("float32, 6 dispatches, 0 nodes left"), "{}", explanation.engine);
    let row = |node: &str| explanation.rows.iter().find(|row| row.node == node).unwrap();
    let told = ["conv", "relu", "flatten"].map(|node| (row(node).engine, &*row(node).why));
    let expected = [("gpu", "float kernel"), ("gpu", "part of a kernel"), ("gpu", "nothing to compute")];
    assert_eq!(told, expected);
}
