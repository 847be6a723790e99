//! Small networks of one operator or a few, the same every time: odd channels, images of one pixel, extreme zero points,
//! sums that saturate, windows that hang over.

use super::random::{Random, Sliding};
use crate::{
    Model,
    graph::Graph,
    onnx::{DataType, GraphProto, Limits, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    resize::Sides,
};

fn frame(dims: &[usize], zero: u8) -> GraphProto {
    let mut graph = GraphProto {
        name: "case".into(),
        input: vec![ValueInfoProto::new("x", DataType::Float, dims)],
        output: vec![ValueInfoProto { name: "y.q".into(), r#type: None }],
        ..Default::default()
    };
    quantise(&mut graph, "x", 0.02, zero);
    graph
}

/// An error is a mistake in this file; the tests make them all.
fn done(graph: GraphProto) -> Result<Model, String> {
    let graph = Graph::new(ModelProto::new(graph, 17)).map_err(|e| e.to_string())?;
    Model::from_graph(graph, &Limits::default()).map_err(|e| e.to_string())
}

fn quantise(graph: &mut GraphProto, name: &str, scale: f32, zero: u8) {
    graph.quantise(name, scale, zero);
}

/// A convolution from `from.f` to `to`, of weights that reach both ends of s8.
fn convolution(
    graph: &mut GraphProto,
    random: &mut Random,
    [from, to]: [&str; 2],
    [channels, outputs, groups]: [usize; 3],
    kernel: [usize; 2],
) -> NodeProto {
    let depth = channels / groups * kernel[0] * kernel[1];
    let weights: Vec<i8> = (0..outputs * depth)
        .map(|_| {
            let any = random.next() as i8;
            random.pick(&[any, any, -128, 127])
        })
        .collect();
    let spread = 0.4 / (depth as f32).sqrt();
    let scales: Vec<f32> = (0..outputs).map(|_| spread * (1 + random.below(40)) as f32 * 0.0013).collect();
    let bias: Vec<i32> = (0..outputs).map(|_| random.next() as i32 >> 16).collect();
    let dims = [outputs, channels / groups, kernel[0], kernel[1]];
    let name = |part: &str| format!("{to}.{part}");
    let input_scale = graph.initializer.iter().find(|t| t.name == format!("{from}.scale"));
    let input_scale = input_scale.and_then(|t| t.to_f32().ok()?.first().copied()).unwrap_or(1.0);
    let bias_scales: Vec<f32> = scales.iter().map(|s| s * input_scale).collect();
    let n = [outputs];
    graph.initializer.extend([
        TensorProto::i8(&name("w"), &dims, &weights),
        TensorProto::f32(&name("w.scale"), &n, &scales),
        TensorProto::i8(&name("w.zero"), &n, &vec![0; outputs]),
        TensorProto::i32(&name("b"), &n, &bias),
        TensorProto::f32(&name("b.scale"), &n, &bias_scales),
        TensorProto::i32(&name("b.zero"), &n, &vec![0; outputs]),
    ]);
    for part in ["w", "b"] {
        let [q, scale, zero, f] = ["", ".scale", ".zero", ".f"].map(|end| name(&format!("{part}{end}")));
        let node = NodeProto::new("DequantizeLinear", "", [&*q, &scale, &zero], [&*f]).with_int("axis", 0);
        graph.node.push(node);
    }
    let inputs = [format!("{from}.f"), name("w.f"), name("b.f")];
    let inputs = inputs.each_ref().map(String::as_str);
    NodeProto::new("Conv", to, inputs, [to]).with_int("group", groups as i64)
}

pub(in crate::gpu) fn ints(values: &[usize]) -> Vec<i64> {
    values.iter().map(|v| *v as i64).collect()
}

/// One convolution of any kind, with an activation or without.
pub(in crate::gpu) fn convolution_case(seed: u64) -> Result<Model, String> {
    let random = &mut Random::new(seed);
    let groups = random.pick(&[1, 1, 1, 1, 2, 3, 7]);
    let (own, per_group) =
        (random.pick(&[1, 2, 3, 4, 5, 8, 16, 17, 33, 48]), random.pick(&[1, 2, 3, 4, 6, 8, 19, 64]));
    let depthwise = random.below(4) == 0;
    let (channels, outputs, groups) = if depthwise {
        let channels = random.pick(&[1, 2, 3, 4, 7, 16, 30, 64]);
        (channels, channels, channels)
    } else {
        (own * groups, per_group * groups, groups)
    };
    let sliding = Sliding::any(random);
    let (size, kernel) = (sliding.size, sliding.kernel);
    let mut graph = frame(&[1, channels, size[0], size[1]], random.zero());
    let clips = random.below(3) == 0;
    let to = if clips { "c" } else { "y" };
    let node = convolution(&mut graph, random, ["x", to], [channels, outputs, groups], kernel);
    graph.node.push(sliding.describe(node));
    if clips {
        graph.node.push(NodeProto::new("Relu", "relu", ["c"], ["y"]));
    }
    let scale = random.pick(&[0.01, 0.05, 0.0004]);
    quantise(&mut graph, "y", scale, random.zero());
    done(graph)
}

/// From 80 channels to 72, 9 by 11 pixels.
pub(in crate::gpu) fn middling_case(kernel: usize) -> Result<Model, String> {
    let random = &mut Random::new(kernel as u64);
    let mut graph = frame(&[1, 80, 9, 11], random.zero());
    let node = convolution(&mut graph, random, ["x", "y"], [80, 72, 1], [kernel, kernel]);
    graph.node.push(node.with_ints("pads", &[(kernel / 2) as i64; 4]));
    quantise(&mut graph, "y", 0.05, random.zero());
    done(graph)
}

/// Sums of 4096 products that are far beyond what f32 holds exactly half way, and small in the end: a network's input twice,
/// with weights that cancel out but for a few.
pub(in crate::gpu) fn cancelling_case() -> Result<Model, String> {
    const CHANNELS: usize = 2048;
    const OUTPUTS: usize = 8;
    let random = &mut Random::new(0);
    // Most bytes are far from the middle, on the same side.
    let mut graph = frame(&[1, CHANNELS, 2, 3], 0);
    graph.node.push(NodeProto::new("Concat", "twice", ["x.f", "x.f"], ["t"]).with_int("axis", 1));
    quantise(&mut graph, "t", 0.02, 0);
    let node = convolution(&mut graph, random, ["t", "y"], [2 * CHANNELS, OUTPUTS, 1], [1, 1]);
    graph.node.push(node);
    let weight = |row: usize, channel: usize| {
        let k = channel % CHANNELS;
        let weight = 126 - ((7 * k + 3 * row) % 4) as i8;
        match channel < CHANNELS {
            true => -weight,
            false if k % 64 == row => weight - 1 + (k / 64 % 2) as i8 * 2,
            false => weight,
        }
    };
    let rows = (0..OUTPUTS).flat_map(|row| (0..2 * CHANNELS).map(move |channel| (row, channel)));
    let weights: Vec<i8> = rows.map(|(row, channel)| weight(row, channel)).collect();
    for tensor in &mut graph.initializer {
        match &*tensor.name {
            "y.w" => *tensor = TensorProto::i8("y.w", &[OUTPUTS, 2 * CHANNELS, 1, 1], &weights),
            "y.b" => *tensor = TensorProto::i32("y.b", &[OUTPUTS], &[0; OUTPUTS]),
            _ => {}
        }
    }
    quantise(&mut graph, "y", 7e-6, 128);
    done(graph)
}

/// To 20 channels, of 3 by 4 pixels: from 272 channels so many that up to 16 threads share them.
pub(in crate::gpu) fn deep_case(channels: usize, kernel: usize) -> Result<Model, String> {
    let random = &mut Random::new((channels + kernel) as u64);
    let mut graph = frame(&[1, channels, 3, 4], random.zero());
    let node = convolution(&mut graph, random, ["x", "y"], [channels, 20, 1], [kernel, kernel]);
    graph.node.push(node.with_ints("pads", &[(kernel / 2) as i64; 4]));
    quantise(&mut graph, "y", 0.05, random.zero());
    done(graph)
}

/// Of what a split gives its second part alone, which begins in the middle of four words: 64 channels of 68, of 5 by 6 pixels.
pub(in crate::gpu) fn part_case(kernel: usize) -> Result<Model, String> {
    let random = &mut Random::new(kernel as u64);
    let zero = random.zero();
    let mut graph = frame(&[1, 68, 5, 6], zero);
    graph.initializer.push(TensorProto::i64("sizes", &[2], &[4, 64]));
    graph.node.push(NodeProto::new("Split", "split", ["x.f", "sizes"], ["a", "b"]).with_int("axis", 1));
    quantise(&mut graph, "b", 0.02, zero);
    let node = convolution(&mut graph, random, ["b", "y"], [64, 24, 1], [kernel, kernel]);
    graph.node.push(node.with_ints("pads", &[(kernel / 2) as i64; 4]));
    quantise(&mut graph, "y", 0.05, random.zero());
    done(graph)
}

/// Two convolutions, and between them two operators that no engine of ours has a byte step for with a small one in between.
#[cfg(test)]
pub(in crate::gpu) fn islands_case() -> Result<Model, String> {
    let random = &mut Random::new(3);
    let mut graph = frame(&[1, 64, 24, 24], 100);
    graph.initializer.push(TensorProto::i64("axis", &[], &[3]));
    let node = convolution(&mut graph, random, ["x", "a"], [64, 64, 1], [3, 3]);
    graph.node.push(node.with_ints("pads", &[1; 4]));
    quantise(&mut graph, "a", 0.05, 120);
    let island = |from: &str, to: &str| NodeProto::new("CumSum", to, [from, "axis"], [to]);
    graph.node.push(island("a.f", "b"));
    quantise(&mut graph, "b", 0.3, 128);
    graph.node.push(NodeProto::new("MaxPool", "c", ["b.f"], ["c"]).with_ints("kernel_shape", &[2, 2]));
    quantise(&mut graph, "c", 0.3, 128);
    graph.node.push(island("c.f", "d"));
    quantise(&mut graph, "d", 2.0, 128);
    let node = convolution(&mut graph, random, ["d", "y"], [64, 64, 1], [3, 3]);
    graph.node.push(node);
    quantise(&mut graph, "y", 5.0, random.zero());
    done(graph)
}

/// Each channel by itself, by a large window.
pub(in crate::gpu) fn window_case(stride: usize) -> Result<Model, String> {
    let random = &mut Random::new(stride as u64);
    let mut graph = frame(&[1, 24, 9, 11], random.zero());
    let node = convolution(&mut graph, random, ["x", "y"], [24, 24, 24], [5, 5]);
    graph.node.push(node.with_ints("pads", &[2; 4]).with_ints("strides", &[stride as i64; 2]));
    quantise(&mut graph, "y", 0.05, random.zero());
    done(graph)
}

/// Two convolutions with a skip connection around the second, and what comes behind it.
pub(in crate::gpu) fn residual_case(seed: u64) -> Result<Model, String> {
    let random = &mut Random::new(seed);
    let channels = random.pick(&[1, 3, 4, 16, 24, 40]);
    let kernel = random.pick(&[[1, 1], [3, 3]]);
    let pads = vec![(kernel[0] / 2) as i64; 4];
    let mut graph = frame(&[1, channels, 5, 6], random.zero());
    let node = convolution(&mut graph, random, ["x", "a"], [channels, channels, 1], kernel);
    graph.node.push(node.with_ints("pads", &pads));
    quantise(&mut graph, "a", 0.03, random.zero());
    let node = convolution(&mut graph, random, ["a", "b"], [channels, channels, 1], kernel);
    graph.node.push(node.with_ints("pads", &pads));
    quantise(&mut graph, "b", random.pick(&[0.041, 0.0173]), random.zero());
    let inputs = random.pick(&[["a.f", "b.f"], ["b.f", "a.f"]]);
    graph.node.push(NodeProto::new("Add", "sum", inputs, ["s"]));
    let after = random.pick(&["Relu", "Sigmoid", "Identity"]);
    // What is no function of one byte has to be one first.
    let sum = if after == "Sigmoid" { "s.f" } else { "s" };
    if after == "Sigmoid" {
        quantise(&mut graph, "s", 0.06, random.zero());
    }
    graph.node.push(NodeProto::new(after, "after", [sum], ["y"]));
    quantise(&mut graph, "y", random.pick(&[0.049, 0.0211]), random.zero());
    done(graph)
}

/// What pictures there are, height, width and channels, and the networks' inputs that they are for.
pub(in crate::gpu) const PICTURES: [(Sides, Sides); 8] = [
    ([5, 6, 3], [5, 6, 3]),
    ([3, 9, 1], [3, 9, 1]),
    ([47, 61, 3], [5, 6, 3]),
    ([2, 5, 3], [5, 6, 3]),
    ([40, 3, 1], [5, 6, 3]),
    ([9, 31, 3], [3, 9, 1]),
    ([5, 100, 1], [3, 9, 1]),
    ([1, 1, 3], [5, 6, 3]),
];

/// A network that takes pictures, of that height, width and so many channels, and gives their bytes as they are, too.
pub(in crate::gpu) fn picture_case([h, w, c]: Sides) -> Result<Model, String> {
    let random = &mut Random::new((c * h * w) as u64);
    let mut graph = frame(&[1, c, h, w], 117);
    let window = NodeProto::new("MaxPool", "n", ["x.f"], ["y"]).with_ints("kernel_shape", &[1, 2]);
    graph.node.push(window.with_ints("pads", &[0, 0, 0, 1]));
    quantise(&mut graph, "y", 0.021, random.zero());
    graph.output.push(ValueInfoProto { name: "x.q".into(), r#type: None });
    done(graph)
}

/// What else there is: from `x.f`, of that many channels, to `y`.
pub(in crate::gpu) const OPERATORS: [&str; 35] = [
    "MaxPool",
    "GlobalMaxPool",
    "GlobalAveragePool",
    "ReduceMean",
    "Resize",
    "Concat",
    "Concat of convolutions",
    "Split",
    "Slice",
    "Transpose",
    "Pad",
    "DepthToSpace",
    "SpaceToDepth",
    "Mul",
    "Sub",
    "Gate",
    "Sigmoid",
    "PRelu",
    "Gemm",
    "AveragePool",
    "Softmax",
    "Linear resize",
    "Flatten",
    "ConvTranspose",
    "MatMul",
    "Mean of channels",
    "Concat with a constant",
    "Softmax of rows",
    "Wide Softmax",
    "ArgMax",
    "ArgMin",
    "Wide ArgMax",
    "Real",
    "Real rows",
    "Dealt",
];

pub(in crate::gpu) fn operator_case(name: &str, seed: u64) -> Result<Model, String> {
    let random = &mut Random::new(seed);
    let mut c: usize = random.pick(&[1, 3, 4, 6, 16, 21, 32]);
    let (h, w) = (random.pick(&[1, 4, 7]), random.pick(&[2, 5, 8]));
    if matches!(name, "Split" | "DepthToSpace" | "Slice") {
        c = c.next_multiple_of(4) + 4;
    }
    // Where channels are looked at together, all kinds of ends.
    match name {
        "Wide Softmax" | "Wide ArgMax" => c = [256, 257, 1000, 255][seed as usize % 4],
        "Dealt" => c = [21, 5, 8][seed as usize % 3],
        "Softmax" | "ArgMax" | "ArgMin" => c = [16, 21, 3, 1][seed as usize % 4],
        _ => {}
    }
    let (h, w) = match name {
        "SpaceToDepth" => (2 * h, 2 * w),
        "Dealt" => (h, w + 1),
        _ => (h, w),
    };
    let mut graph = frame(&[1, c, h, w], random.zero());
    let op = |operator: &str, inputs: &[&str]| NodeProto::new(operator, "n", inputs.iter().copied(), ["y"]);
    let mut fixed = |tensor: TensorProto| graph.initializer.push(tensor);
    let slopes: Vec<f32> = (0..c).map(|i| i as f32 * 0.04 - 0.3).collect();
    fixed(TensorProto::f32("slopes", &[c, 1, 1], &slopes));
    fixed(TensorProto::f32("scales", &[4], &[1.0, 1.0, 2.0, 2.0]));
    fixed(TensorProto::i64("pads", &[8], &[0, 0, 1, 0, 0, 0, 2, 1]));
    fixed(TensorProto::i64("sizes", &[2], &[1, c as i64 - 1]));
    fixed(TensorProto::i64("cut", &[2], &[1, 1]));
    fixed(TensorProto::i64("end", &[2], &[c as i64 - 1, i64::MAX]));
    fixed(TensorProto::i64("axes", &[2], &[1, 3]));
    let nodes = match name {
        "MaxPool" => {
            let window = op("MaxPool", &["x.f"]).with_ints("kernel_shape", &[3, 2]);
            vec![window.with_ints("strides", &[2, 1]).with_ints("pads", &[1, 1, 1, 0])]
        }
        "AveragePool" => {
            let window = op("AveragePool", &["x.f"]).with_ints("kernel_shape", &[2, 2]);
            vec![window.with_ints("strides", &[1, 2]).with_ints("pads", &[1, 0, 0, 1])]
        }
        "GlobalMaxPool" | "GlobalAveragePool" | "Sigmoid" | "Flatten" => vec![op(name, &["x.f"])],
        "Mean of channels" => vec![op("ReduceMean", &["x.f"]).with_ints("axes", &[1])],
        "ReduceMean" => vec![op(name, &["x.f"]).with_ints("axes", &[2, 3])],
        "Softmax" | "Wide Softmax" => vec![op("Softmax", &["x.f"]).with_int("axis", 1)],
        "Softmax of rows" => vec![op("Softmax", &["x.f"]).with_int("axis", 3)],
        "ArgMax" | "ArgMin" | "Wide ArgMax" => {
            let node = op(if name == "ArgMin" { name } else { "ArgMax" }, &["x.f"]).with_int("axis", 1);
            vec![node.with_int("select_last_index", random.pick(&[0, 1]))]
        }
        "Resize" | "Linear resize" => {
            let node = op("Resize", &["x.f", "", "scales"]);
            let node = node.with_string("mode", if name == "Resize" { "nearest" } else { "linear" });
            let mode = if name == "Resize" { "asymmetric" } else { "half_pixel" };
            let node = node.with_string("coordinate_transformation_mode", mode);
            vec![if name == "Resize" { node.with_string("nearest_mode", "floor") } else { node }]
        }
        "Concat" => vec![op("Concat", &["x.f", "x.f"]).with_int("axis", 1)],
        "Split" => vec![
            NodeProto::new("Split", "s", ["x.f", "sizes"], ["a", "b"]).with_int("axis", 1),
            op("Concat", &["b", "x.f", "a"]).with_int("axis", 1),
        ],
        "Slice" => vec![op("Slice", &["x.f", "cut", "end", "axes"])],
        "Real" | "Real rows" => vec![op("MaxPool", &["x.f"]).with_ints("kernel_shape", &[1, 2])],
        "Transpose" => vec![op("Transpose", &["x.f"]).with_ints("perm", &[0, 3, 1, 2])],
        "Pad" => {
            fixed(TensorProto::f32("nothing", &[], &[0.0]));
            vec![op("Pad", &["x.f", "pads", "nothing"])]
        }
        "DepthToSpace" | "SpaceToDepth" => vec![op(name, &["x.f"]).with_int("blocksize", 2)],
        "Sub" | "Mul" => vec![
            NodeProto::new("MaxPool", "m", ["x.f"], ["m"])
                .with_ints("kernel_shape", &[3, 3])
                .with_ints("pads", &[1, 1, 1, 1]),
            op(name, &["x.f", "m"]),
        ],
        "Gate" => vec![NodeProto::new("GlobalMaxPool", "g", ["x.f"], ["g"]), op("Mul", &["x.f", "g"])],
        "PRelu" => vec![op(name, &["x.f", "slopes"])],
        _ => vec![],
    };
    graph.node.extend(nodes);
    match name {
        "ConvTranspose" => {
            let node = convolution(&mut graph, random, ["x", "y"], [c, c, 1], [3, 2]);
            // Scales run along the outputs, which these weights have second.
            for node in graph.node.iter_mut().filter(|n| n.output[0] == "y.w.f") {
                let inputs = ["y.w", "y.w.scale", "y.w.zero"];
                *node = NodeProto::new("DequantizeLinear", "", inputs, ["y.w.f"]).with_int("axis", 1);
            }
            let node = NodeProto { op_type: "ConvTranspose".into(), ..node };
            graph.node.push(node.with_ints("strides", &[2, 2]).with_ints("pads", &[1, 0, 0, 0]));
        }
        "MatMul" => {
            let turned = NodeProto::new("Transpose", "t", ["x.f"], ["t"]).with_ints("perm", &[0, 1, 3, 2]);
            graph.node.extend([turned, op("MatMul", &["x.f", "t"])]);
        }
        "Concat with a constant" => {
            let bytes: Vec<u8> = (0..3 * h * w).map(|_| random.next() as u8).collect();
            graph.initializer.push(TensorProto::u8("k", &[1, 3, h, w], &bytes));
            let inputs = ["k", "x.scale", "x.zero"];
            graph.node.push(NodeProto::new("DequantizeLinear", "", inputs, ["k.f"]));
            graph.node.push(op("Concat", &["k.f", "x.f", "k.f"]).with_int("axis", 1));
        }
        "Concat of convolutions" => {
            let outputs = [random.pick(&[1, 3, 4]), random.pick(&[2, 5, 16]), random.pick(&[1, 7, 8])];
            let (scale, zero) = (0.03, random.zero());
            for (i, outputs) in outputs.into_iter().enumerate() {
                let to = format!("part{i}");
                let node = convolution(&mut graph, random, ["x", &to], [c, outputs, 1], [1, 1]);
                graph.node.push(node);
                quantise(&mut graph, &to, scale, zero);
            }
            graph.node.push(op("Concat", &["part0.f", "part1.f", "part2.f"]).with_int("axis", 1));
            quantise(&mut graph, "y", scale, zero);
            return done(graph);
        }
        "Real" | "Real rows" => {
            quantise(&mut graph, "y", 0.031, random.zero());
            graph.output[0].name = "y.f".into();
            if name == "Real rows" {
                graph.node.push(NodeProto::new("Flatten", "flat", ["y.f"], ["flat"]));
                graph.output[0].name = "flat".into();
            }
            return done(graph);
        }
        // What detectors end with: results of several sizes side by side, cut in channels, some of them functions.
        "Dealt" => {
            graph.initializer.extend([
                TensorProto::i64("pixels", &[3], &[1, c as i64, -1]),
                TensorProto::i64("nothing", &[1], &[0]),
                TensorProto::i64("some", &[1], &[c as i64 / 2]),
                // With channels in between that nobody wants, and without.
                TensorProto::i64("later", &[1], &[c as i64 / 2 + i64::from(seed.is_multiple_of(3))]),
                TensorProto::i64("all", &[1], &[c as i64]),
                TensorProto::i64("channels", &[1], &[1]),
            ]);
            for (part, kernel, scale) in [("a", 1, 0.02), ("b", 2, 0.05)] {
                let pool =
                    NodeProto::new("MaxPool", part, ["x.f"], [part]).with_ints("kernel_shape", &[1, kernel]);
                graph.node.push(pool);
                quantise(&mut graph, part, scale, random.zero());
                let (from, to) = (format!("{part}.f"), format!("{part}.row"));
                graph.node.push(NodeProto::new("Reshape", &to, [&*from, "pixels"], [&*to]));
            }
            let slice = |from: &str, to: &str, name: &str| {
                NodeProto::new("Slice", name, ["whole", from, to, "channels"], [name])
            };
            graph.node.extend([
                NodeProto::new("Concat", "whole", ["a.row", "b.row"], ["whole"]).with_int("axis", 2),
                slice("nothing", "some", "first"),
                slice("later", "all", "second"),
                NodeProto::new("Sigmoid", "function", ["second"], ["function"]),
            ]);
            graph.output =
                ["first", "function"].map(|name| ValueInfoProto { name: name.into(), r#type: None }).to_vec();
            return done(graph);
        }
        "Gemm" => {
            let flat = NodeProto::new("GlobalMaxPool", "g", ["x.f"], ["g"]);
            graph.node.push(flat);
            quantise(&mut graph, "g", 0.02, 7);
            let node = convolution(&mut graph, random, ["g", "y"], [c, 19, 1], [1, 1]);
            graph.node.push(node);
        }
        _ => {}
    }
    if matches!(name, "ArgMax" | "ArgMin" | "Wide ArgMax") {
        graph.output[0].name = "y".into();
        return done(graph);
    }
    let scale = if name.contains("Softmax") {
        let count = if name == "Softmax of rows" { w } else { c };
        // From none of the bytes at its end to many.
        random.pick(&[1.0 / 256.0, 0.06 / count as f32, 0.01 / count as f32])
    } else {
        random.pick(&[0.02, 0.031, 0.11])
    };
    quantise(&mut graph, "y", scale, random.zero());
    done(graph)
}
