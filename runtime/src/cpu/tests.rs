//! Whole networks of one operator, against formulas written down a second time, as plainly as they can be.

use proptest::prelude::*;

use super::*;
use crate::{
    EngineChoice, Model, Session, SessionOptions,
    fixtures::{self, quantise},
    onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto},
};

fn frame(input: &[usize]) -> GraphProto {
    let mut graph = GraphProto {
        input: vec![ValueInfoProto::new("x", DataType::Float, input)],
        output: vec![ValueInfoProto { name: "y.q".into(), r#type: None }],
        ..Default::default()
    };
    quantise(&mut graph, "x", INPUT_SCALE, INPUT_ZERO);
    graph
}

const INPUT_SCALE: f32 = 0.043;
const INPUT_ZERO: u8 = 117;

/// Bytes that a network makes of values whose bytes are `bytes`; first what `engine` gives.
fn run(graph: GraphProto, dims: &[usize], bytes: &[u8], engine: EngineChoice) -> Result<Vec<u8>, String> {
    let model = fixtures::model(ModelProto::new(graph, 17));
    let options = SessionOptions { engine, ..Default::default() };
    let mut session = Session::new(&model, &options).map_err(|e| e.to_string())?;
    let real = bytes.iter().map(|q| (f32::from(*q) - f32::from(INPUT_ZERO)) * INPUT_SCALE).collect();
    let outputs =
        session.run(&[("x", Tensor::f32(dims.to_vec(), real).unwrap())]).map_err(|e| e.to_string())?;
    match outputs.get("y.q").unwrap().data() {
        crate::Data::U8(bytes) => Ok(bytes.clone()),
        other => Err(format!("{} output", other.type_name())),
    }
}

/// Tract computes sums in float, so that ties may go another way.
fn nearly_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= 1)
}

#[derive(Debug, Clone)]
struct Case {
    group: usize,
    /// Channels of one group.
    channels: [usize; 2],
    size: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    pads: [usize; 4],
    clip: bool,
    zero: u8,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let channels = prop_oneof![Just([1, 1]), (1usize..9, 1usize..20).prop_map(|(a, b)| [a, b])];
    let pairs = |range: std::ops::Range<usize>| (range.clone(), range).prop_map(|(a, b)| [a, b]);
    let shape = (prop_oneof![Just(1), 1usize..5, 17usize..35], channels, pairs(3..9), pairs(1..4));
    let window = (pairs(1..3), pairs(1..3), (0usize..2, 0usize..2, 0usize..3, 0usize..2));
    (shape, window, any::<bool>(), any::<u8>(), any::<u64>()).prop_map(|(shape, window, clip, zero, seed)| {
        let (group, channels, size, kernel) = shape;
        // Many groups of many channels would only be slow.
        let channels = if group > 4 { [1, 1] } else { channels };
        let (strides, dilations, (a, b, c, d)) = window;
        Case { group, channels, size, kernel, strides, dilations, pads: [a, b, c, d], clip, zero, seed }
    })
}

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 20
    }
}

const OUTPUT_SCALE: f32 = 0.31;

impl Case {
    fn inputs(&self) -> usize {
        self.group * self.channels[0]
    }

    fn outputs(&self) -> usize {
        self.group * self.channels[1]
    }

    fn output_size(&self) -> Option<[usize; 2]> {
        let one = |d: usize| {
            let room = self.size[d] + self.pads[d] + self.pads[d + 2];
            Some(room.checked_sub((self.kernel[d] - 1) * self.dilations[d] + 1)? / self.strides[d] + 1)
        };
        Some([one(0)?, one(1)?])
    }

    fn weights(&self) -> (Vec<i8>, Vec<f32>, Vec<i32>) {
        let mut next = random(self.seed);
        let count = self.outputs() * self.channels[0] * self.kernel[0] * self.kernel[1];
        let weights = (0..count).map(|_| next() as i8).collect();
        let scales = (0..self.outputs()).map(|_| (next() % 900 + 100) as f32 * 1.7e-5).collect();
        let bias = (0..self.outputs()).map(|_| (next() % 20_000) as i32 - 10_000).collect();
        (weights, scales, bias)
    }

    fn graph(&self) -> GraphProto {
        let mut graph = frame(&[1, self.inputs(), self.size[0], self.size[1]]);
        let (weights, scales, bias) = self.weights();
        let m = self.outputs();
        let dims = [m, self.channels[0], self.kernel[0], self.kernel[1]];
        let bias_scales: Vec<f32> = scales.iter().map(|s| INPUT_SCALE * s).collect();
        graph.initializer.extend([
            TensorProto::i8("w", &dims, &weights),
            TensorProto::f32("ws", &[m], &scales),
            TensorProto::i8("wz", &[m], &vec![0; m]),
            TensorProto::i32("b", &[m], &bias),
            TensorProto::f32("bs", &[m], &bias_scales),
            TensorProto::f32("low", &[], &[-1.0]),
            TensorProto::f32("high", &[], &[6.0]),
        ]);
        graph
            .node
            .push(NodeProto::new("DequantizeLinear", "", ["w", "ws", "wz"], ["wf"]).with_int("axis", 0));
        graph.node.push(NodeProto::new("DequantizeLinear", "", ["b", "bs"], ["bf"]).with_int("axis", 0));
        let ints = |v: &[usize]| v.iter().map(|v| *v as i64).collect::<Vec<i64>>();
        let conv = NodeProto::new("Conv", "conv", ["x.f", "wf", "bf"], [if self.clip { "c" } else { "y" }])
            .with_int("group", self.group as i64)
            .with_ints("strides", &ints(&self.strides))
            .with_ints("dilations", &ints(&self.dilations))
            .with_ints("pads", &ints(&self.pads));
        graph.node.push(conv);
        if self.clip {
            graph.node.push(NodeProto::new("Clip", "clip", ["c", "low", "high"], ["y"]));
        }
        quantise(&mut graph, "y", OUTPUT_SCALE, self.zero);
        graph
    }

    fn expected(&self, input: &[u8]) -> Vec<u8> {
        let ([oh, ow], (weights, scales, bias)) = (self.output_size().unwrap(), self.weights());
        let ([ci, co], [h, w], [kh, kw]) = (self.channels, self.size, self.kernel);
        let byte = |real: f32| (real / OUTPUT_SCALE).round_ties_even() as i64 + i64::from(self.zero);
        let (low, high) = if self.clip { (byte(-1.0).max(0), byte(6.0).min(255)) } else { (0, 255) };
        let mut out = Vec::new();
        for m in 0..self.outputs() {
            let multiplier = (INPUT_SCALE * scales[m]) / OUTPUT_SCALE;
            for oy in 0..oh {
                for ox in 0..ow {
                    let mut sum = i64::from(bias[m]);
                    for c in 0..ci {
                        for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                            let y =
                                (oy * self.strides[0] + ky * self.dilations[0]).wrapping_sub(self.pads[0]);
                            let x =
                                (ox * self.strides[1] + kx * self.dilations[1]).wrapping_sub(self.pads[1]);
                            if y < h && x < w {
                                let q = input[((m / co * ci + c) * h + y) * w + x];
                                let weight = weights[((m * ci + c) * kh + ky) * kw + kx];
                                sum += (i64::from(q) - i64::from(INPUT_ZERO)) * i64::from(weight);
                            }
                        }
                    }
                    let real = (sum as f32 * multiplier).round_ties_even() as i64 + i64::from(self.zero);
                    out.push(real.clamp(low, high.max(low)) as u8);
                }
            }
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn convolutions_are_exact(case in case()) {
        prop_assume!(case.output_size().is_some());
        let dims = [1, case.inputs(), case.size[0], case.size[1]];
        let mut next = random(case.seed ^ 0x5bd1_e995);
        let bytes: Vec<u8> = (0..dims.iter().product()).map(|_| next() as u8).collect();
        let ours = run(case.graph(), &dims, &bytes, EngineChoice::Cpu);
        prop_assert_eq!(ours, Ok(case.expected(&bytes)));
    }

    #[test]
    fn other_operators_agree_with_float(
        operator in 0..OPERATORS.len(), (c, h, w) in (2usize..40, 2usize..9, 2usize..9),
        zero in any::<u8>(), scale in 0.02f32..0.2, seed in any::<u64>(),
    ) {
        let mut graph = frame(&[1, c, h, w]);
        let constants = [("two.five", 2.5), ("minus.half", -0.5), ("zero", 0.0)];
        graph.initializer.extend(constants.map(|(name, value)| TensorProto::f32(name, &[], &[value])));
        let slopes: Vec<f32> = (0..c).map(|i| i as f32 * 0.01 - 0.05).collect();
        graph.initializer.extend([
            TensorProto::f32("slopes", &[c, 1, 1], &slopes),
            TensorProto::f32("scales", &[4], &[1.0, 1.0, 2.0, 2.0]),
            TensorProto::i64("shape", &[2], &[1, -1]),
            TensorProto::i64("cut", &[1], &[1]),
            TensorProto::i64("end", &[1], &[i64::MAX]),
            TensorProto::i64("channels", &[1], &[1]),
            TensorProto::i64("columns", &[1], &[3]),
            TensorProto::i64("pads", &[8], &[0, 0, 1, 0, 0, 0, 2, 1]),
            TensorProto::i64("sizes", &[2], &[1, c as i64 - 1]),
        ]);
        let (name, nodes) = OPERATORS[operator];
        graph.node.extend(nodes());
        quantise(&mut graph, "y", scale, zero);
        let dims = [1, c, h, w];
        let mut next = random(seed);
        let bytes: Vec<u8> = (0..dims.iter().product()).map(|_| next() as u8).collect();
        let refused: Vec<String> = fixtures::model(ModelProto::new(graph.clone(), 17)).explain().rows.into_iter()
            .filter(|row| row.engine != "cpu").map(|row| format!("{} {}", row.operator, row.why)).collect();
        prop_assert!(refused.is_empty(), "{name}: {refused:?}");
        let ours = run(graph.clone(), &dims, &bytes, EngineChoice::Cpu);
        let float = run(graph, &dims, &bytes, EngineChoice::Tract);
        match (&ours, &float) {
            (Ok(ours), Ok(float)) => prop_assert!(nearly_equal(ours, float), "{name}: {ours:?} {float:?}"),
            other => prop_assert!(false, "{name}: {other:?}"),
        }
    }
}

/// Nodes from `x.f` to `y`; more than one where an operator needs another beside it.
type Nodes = fn() -> Vec<NodeProto>;

fn op(operator: &str, inputs: &[&str]) -> NodeProto {
    NodeProto::new(operator, "n", inputs.iter().copied(), ["y"])
}

const OPERATORS: [(&str, Nodes); 24] = [
    ("Add", || vec![op("Add", &["x.f", "x.f"])]),
    ("Mul", || vec![op("Mul", &["x.f", "x.f"])]),
    ("Sub a constant", || vec![op("Sub", &["two.five", "x.f"])]),
    ("Mul by channels", || vec![op("Mul", &["x.f", "slopes"])]),
    ("PRelu", || vec![op("PRelu", &["x.f", "slopes"])]),
    ("GlobalAveragePool", || vec![op("GlobalAveragePool", &["x.f"])]),
    ("MaxPool", || {
        let window = op("MaxPool", &["x.f"]).with_ints("kernel_shape", &[2, 2]);
        vec![window.with_ints("strides", &[2, 1]).with_ints("pads", &[1, 0, 1, 1])]
    }),
    ("AveragePool", || {
        let window = op("AveragePool", &["x.f"]).with_ints("kernel_shape", &[2, 2]);
        vec![window.with_ints("strides", &[1, 2]).with_ints("pads", &[1, 0, 0, 1])]
    }),
    ("ReduceMean of pixels", || vec![op("ReduceMean", &["x.f"]).with_ints("axes", &[2, 3])]),
    ("ReduceMean of channels", || {
        vec![op("ReduceMean", &["x.f"]).with_ints("axes", &[1]).with_int("keepdims", 0)]
    }),
    ("Clip", || vec![op("Clip", &["x.f", "minus.half", "two.five"])]),
    ("Sigmoid", || vec![op("Sigmoid", &["x.f"])]),
    ("HardSigmoid", || vec![op("HardSigmoid", &["x.f"])]),
    ("SiLU", || vec![NodeProto::new("Sigmoid", "s", ["x.f"], ["s"]), op("Mul", &["x.f", "s"])]),
    ("Identity", || vec![op("Identity", &["x.f"])]),
    ("Resize", || {
        let node = op("Resize", &["x.f", "", "scales"]).with_string("mode", "nearest");
        let node = node.with_string("coordinate_transformation_mode", "asymmetric");
        vec![node.with_string("nearest_mode", "floor")]
    }),
    ("Transpose", || vec![op("Transpose", &["x.f"]).with_ints("perm", &[0, 3, 1, 2])]),
    ("Flatten", || vec![op("Flatten", &["x.f"])]),
    ("Reshape", || vec![op("Reshape", &["x.f", "shape"])]),
    ("Slice", || vec![op("Slice", &["x.f", "cut", "end", "columns"])]),
    ("Pad", || vec![op("Pad", &["x.f", "pads", "zero"])]),
    ("Softmax", || vec![op("Softmax", &["x.f"]).with_int("axis", 1)]),
    ("Split and Concat", || {
        let split = NodeProto::new("Split", "s", ["x.f", "sizes"], ["a", "b"]).with_int("axis", 1);
        vec![split, op("Concat", &["b", "x.f", "a"]).with_int("axis", 1)]
    }),
    ("Slice of channels, squared", || {
        vec![
            NodeProto::new("Slice", "s", ["x.f", "cut", "end", "channels"], ["part"]),
            op("Mul", &["part", "part"]),
        ]
    }),
];

/// Why a node of the small network has no byte step, once it was changed; or why the whole network has none.
fn refusal(node: &str, change: impl Fn(&mut GraphProto)) -> String {
    let mut proto = fixtures::qdq_proto();
    change(proto.graph.as_mut().unwrap());
    let explanation = fixtures::model(proto).explain();
    let row = explanation.rows.iter().find(|row| row.node == node).unwrap();
    match &*row.why {
        "whole model" => explanation.engine,
        why => why.into(),
    }
}

fn constant<'a>(graph: &'a mut GraphProto, name: &str) -> &'a mut TensorProto {
    graph.initializer.iter_mut().find(|t| t.name == name).unwrap()
}

/// A camera's bytes, made real and scaled inside the network: one table.
#[test]
fn images_of_bytes_are_taken_in() {
    let mut graph = frame(&[1, 3, 2, 2]);
    graph.input = vec![ValueInfoProto::new("image", DataType::Uint8, &[1, 3, 2, 2])];
    graph.initializer.push(TensorProto::f32("unit", &[], &[1.0 / 255.0]));
    let cast = NodeProto::new("Cast", "cast", ["image"], ["real"]).with_int("to", DataType::Float as i64);
    graph.node.splice(0..0, [cast, NodeProto::new("Mul", "unit", ["real", "unit"], ["x"])]);
    graph.node.push(NodeProto::new("MaxPool", "pool", ["x.f"], ["y"]).with_ints("kernel_shape", &[1, 1]));
    quantise(&mut graph, "y", INPUT_SCALE, INPUT_ZERO);
    let model = fixtures::model(ModelProto::new(graph, 17));
    let engines: Vec<&str> = model.explain().rows.iter().map(|row| row.engine).collect();
    assert_eq!(engines, ["cpu"; 7]);
    let bytes: Vec<u8> = (0..12).map(|i| i * 23).collect();
    let expected = bytes.iter().map(|b| {
        let real = f32::from(*b) * (1.0 / 255.0);
        (real / INPUT_SCALE).round_ties_even() as u8 + INPUT_ZERO
    });
    let expected: Vec<u8> = expected.collect();
    let options = SessionOptions { engine: EngineChoice::Cpu, ..Default::default() };
    let image = Tensor::new(vec![1, 3, 2, 2], crate::Data::U8(bytes)).unwrap();
    let outputs = Session::new(&model, &options).unwrap().run(&[("image", image)]).unwrap();
    assert_eq!(outputs.get("y.q").map(Tensor::data), Some(&crate::Data::U8(expected)));
}

#[test]
fn extremes_are_found_among_bytes() {
    let mut next = random(7);
    let small = [1, 5, 3, 4];
    // The second one's numbers take two bytes.
    let cases = [
        ("ArgMax", 1, 0, small),
        ("ArgMax", 1, 1, [1, 700, 1, 2]),
        ("ArgMin", 1, 1, small),
        ("ArgMax", -1, 1, small),
        ("ArgMin", 3, 0, small),
        // One pixel lies the same in both orders, and is no list of channels along its last dimension.
        ("ArgMax", 3, 0, [1, 5, 1, 1]),
        ("ArgMax", 1, 0, [1, 5, 1, 1]),
    ];
    for (operator, axis, last, dims) in cases {
        // Few values, so that there are equal ones.
        let bytes: Vec<u8> = (0..dims.iter().product()).map(|_| next() as u8 % 3 + 100).collect();
        let mut graph = frame(&dims);
        let node = NodeProto::new(operator, "arg", ["x.f"], ["at"]).with_int("axis", axis);
        graph.node.push(node.with_int("select_last_index", last).with_int("keepdims", 0));
        graph.output = vec![ValueInfoProto { name: "at".into(), r#type: None }];
        let model = fixtures::model(ModelProto::new(graph, 17));
        let reals: Vec<f32> =
            bytes.iter().map(|b| (f32::from(*b) - f32::from(INPUT_ZERO)) * INPUT_SCALE).collect();
        let image = Tensor::f32(dims.to_vec(), reals).unwrap();
        let options = SessionOptions { engine: EngineChoice::Cpu, ..Default::default() };
        let outputs = Session::new(&model, &options).unwrap().run(&[("x", image)]).unwrap();
        let [_, c, h, w] = dims;
        let (outer, length, inner) = if axis == 1 { (1, c, h * w) } else { (c * h, w, 1) };
        let expected = (0..outer * inner).map(|i| {
            let at = |k: usize| bytes[(i / inner * length + k) * inner + i % inner];
            let key = |k: &usize| if operator == "ArgMax" { 255 - at(*k) } else { at(*k) };
            let best = (0..length).min_by_key(key).map(at);
            let is_best = |k: &usize| Some(at(*k)) == best;
            let mut all = (0..length).filter(is_best);
            (if last == 1 { all.next_back() } else { all.next() }).unwrap() as i64
        });
        let expected = crate::Data::I64(expected.collect());
        assert_eq!(outputs.get("at").map(Tensor::data), Some(&expected), "{operator} {axis} {last}");
    }
}

/// What lies in memory as something else would, or is added as something else would be.
#[test]
fn shapes_that_are_easily_mistaken_give_what_onnx_says() {
    type Make = fn(&mut GraphProto);
    let cases: [(&str, &[usize], Make); 8] = [
        ("Softmax along a dimension of 1", &[1, 5, 1, 1], |graph| {
            graph.node.push(op("Softmax", &["x.f"]).with_int("axis", -1));
        }),
        ("MatMul of a pooled column and a row", &[1, 6, 4], |graph| {
            graph.node.push(NodeProto::new("GlobalAveragePool", "", ["x.f"], ["p"]));
            quantise(graph, "p", 0.03, 120);
            sliced(graph, "x.f", [0, 1, 1], "row");
            graph.node.push(op("MatMul", &["p.f", "row"]));
        }),
        ("mean along a dimension of 1", &[1, 5, 3, 3], |graph| {
            graph.node.push(NodeProto::new("GlobalAveragePool", "", ["x.f"], ["p"]));
            quantise(graph, "p", 0.03, 120);
            let mean = NodeProto::new("ReduceMean", "", ["p.f"], ["m"]).with_ints("axes", &[3]);
            graph.node.push(mean.with_int("keepdims", 1));
            quantise(graph, "m", 0.03, 120);
            graph.node.push(op("Flatten", &["m.f"]));
        }),
        ("a bias for each row", &[4, 6], |graph| product(graph, &[4, 1])),
        ("a bias for each column", &[4, 6], |graph| product(graph, &[1, 4])),
        ("channels of what was reshaped", &[4, 8], |graph| {
            graph.initializer.push(TensorProto::i64("wide", &[2], &[2, 16]));
            graph.node.push(NodeProto::new("Reshape", "", ["x.f", "wide"], ["r"]));
            sliced(graph, "r", [3, 8, 1], "y");
        }),
        ("channels of what is reshaped later", &[4, 8], |graph| {
            graph.initializer.push(TensorProto::i64("wide", &[2], &[2, 16]));
            graph.initializer.push(TensorProto::i64("square", &[2], &[4, 4]));
            sliced(graph, "x.f", [0, 4, 1], "part");
            graph.node.push(NodeProto::new("Reshape", "", ["x.f", "wide"], ["r"]));
            graph.node.push(NodeProto::new("Reshape", "", ["part", "square"], ["again"]));
            graph.node.push(NodeProto::new("Split", "", ["r"], ["left", "right"]).with_int("axis", 1));
            graph.node.push(NodeProto::new("Mul", "", ["left", "right"], ["m"]));
            quantise(graph, "m", 0.05, 10);
            graph.node.push(NodeProto::new("Reshape", "", ["m.f", "square"], ["moved"]));
            graph.node.push(op("Mul", &["moved", "again"]));
        }),
        ("scales whose product is none", &[4, 4], |graph| {
            graph.initializer.push(TensorProto::f32("huge", &[], &[1e30]));
            graph.node.push(NodeProto::new("DequantizeLinear", "", ["x.q", "huge", "x.zero"], ["h"]));
            graph.node.push(op("MatMul", &["h", "h"]));
        }),
    ];
    for (name, dims, make) in cases {
        let mut graph = frame(dims);
        make(&mut graph);
        quantise(&mut graph, "y", 0.05, 100);
        let mut next = random(11);
        let mut bytes: Vec<u8> = (0..dims.iter().product()).map(|_| next() as u8).collect();
        if name.starts_with("scales") {
            bytes.fill(INPUT_ZERO);
        }
        let ours = run(graph.clone(), dims, &bytes, EngineChoice::Auto);
        let float = run(graph, dims, &bytes, EngineChoice::Tract);
        match (&ours, &float) {
            (Ok(ours), Ok(float)) => assert!(nearly_equal(ours, float), "{name}: {ours:?} {float:?}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn sliced(graph: &mut GraphProto, of: &str, [first, end, axis]: [i64; 3], to: &str) {
    for (name, value) in [("first", first), ("end", end), ("axis", axis)] {
        graph.initializer.push(TensorProto::i64(name, &[1], &[value]));
    }
    graph.node.push(NodeProto::new("Slice", "slice", [of, "first", "end", "axis"], [to]));
}

fn product(graph: &mut GraphProto, bias: &[usize]) {
    let weights: Vec<i8> = (0..24).map(|i| i * 5 - 60).collect();
    graph.initializer.extend([
        TensorProto::i8("w", &[6, 4], &weights),
        TensorProto::f32("ws", &[], &[0.01]),
        TensorProto::f32("b", bias, &[-2.0, 0.0, 2.0, 4.0]),
    ]);
    graph.node.push(NodeProto::new("DequantizeLinear", "", ["w", "ws"], ["w.f"]));
    graph.node.push(op("Gemm", &["x.f", "w.f", "b"]));
}

/// Each table takes 256 bytes a channel, each quantised result tables or weights of its own: a small file must not ask
/// for more than it is worth.
#[test]
fn what_would_take_much_memory_is_refused() {
    let whys = |graph: GraphProto| -> Vec<String> {
        fixtures::model(ModelProto::new(graph, 17)).explain().rows.into_iter().map(|row| row.why).collect()
    };
    let count = |whys: &[String], what: &str| whys.iter().filter(|why| why.contains(what)).count();
    let mut graph = frame(&[1, 5000, 1, 1]);
    graph.initializer.push(TensorProto::f32("slopes", &[5000, 1, 1], &[0.5; 5000]));
    graph.node.push(NodeProto::new("MaxPool", "", ["x.f"], ["pool"]).with_ints("kernel_shape", &[1, 1]));
    graph.node.push(op("PRelu", &["pool", "slopes"]));
    quantise(&mut graph, "y", 0.05, 100);
    assert_eq!(count(&whys(graph), "it has too many channels"), 1);
    let mut graph = frame(&[1, 3, 2, 2]);
    graph.initializer.push(TensorProto::f32("slopes", &[3, 1, 1], &[0.5; 3]));
    graph.node.push(op("PRelu", &["x.f", "slopes"]));
    graph.output.clear();
    for i in 0..10 {
        let (scale, q) = (format!("scale.{i}"), format!("q.{i}"));
        graph.initializer.push(TensorProto::f32(&scale, &[], &[0.05 + i as f32]));
        graph.node.push(NodeProto::new("QuantizeLinear", "", ["y", &scale], [&q]));
        graph.output.push(ValueInfoProto { name: q, r#type: None });
    }
    assert_eq!(count(&whys(graph), "in too many ways"), 2);
}

#[test]
fn what_has_no_step_is_named() {
    type Change = dyn Fn(&mut GraphProto);
    let cases: [(&str, &Change, &str); 4] = [
        (
            "pool",
            &|g| {
                let pool = g.node.iter_mut().find(|n| n.name == "pool").unwrap();
                pool.op_type = "GlobalLpPool".into();
            },
            "no int8 step for this operator",
        ),
        (
            "conv",
            &|g| *constant(g, "conv.w.zero") = TensorProto::i8("conv.w.zero", &[2], &[0, -128]),
            "its weights do not fit s8 without their zero point",
        ),
        (
            "conv",
            &|g| *constant(g, "conv.b.scale") = TensorProto::f32("conv.b.scale", &[2], &[0.25, 1.0]),
            "its bias has another scale than input times weights",
        ),
        (
            "QuantizeLinear#5",
            &|g| *constant(g, "conv.scale") = TensorProto::f32("conv.scale", &[], &[0.0]),
            "tract, not cpu: node \"QuantizeLinear#5\" (QuantizeLinear): its scale and zero point are not one constant \
             f32 and one constant u8 or s8",
        ),
    ];
    for (node, change, expected) in cases {
        assert_eq!(refusal(node, change), expected, "{node}");
    }
}

/// One operator without a byte step in the middle: it runs elsewhere, and all around it stays as it was.
#[test]
fn islands_lie_between_byte_steps() {
    let mut proto = fixtures::qdq_proto();
    let graph = proto.graph.as_mut().unwrap();
    // What the network computes from here on is the same as before, twice negated.
    let conv = graph.node.iter().position(|n| n.name == "conv").unwrap();
    graph.node[conv].output = vec!["conv.inner".into()];
    quantise(graph, "conv.inner", 0.5, 0);
    // No function of one value, so that no table can be made of it.
    graph
        .node
        .push(NodeProto::new("CumSum", "island", ["conv.inner.f", "axis"], ["sums"]).with_int("reverse", 0));
    graph.node.push(NodeProto::new("Sub", "difference", ["sums", "sums"], ["nothing"]));
    graph.node.push(NodeProto::new("Add", "sum", ["nothing", "conv.inner.f"], ["conv"]));
    graph.initializer.push(TensorProto::i64("axis", &[], &[0]));
    let model = fixtures::model(proto);
    let rows = model.explain().rows;
    let engine = |node: &str| rows.iter().find(|row| row.node == node).unwrap().engine;
    assert_eq!(["conv", "island", "pool"].map(engine), ["cpu", "tract", "cpu"]);
    let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
    for _ in 0..2 {
        let outputs = session.run(&[("image", fixtures::image())]).unwrap();
        assert_eq!(outputs.get("embedding").and_then(|t| t.as_f32()), Some(&fixtures::EMBEDDING[..]));
    }
}

#[test]
fn sums_beyond_32_bits_are_refused_unless_they_all_mean_one_byte() {
    // Scale 2^-60: the bias is worth nothing, and every sum gives the zero point.
    let dead = |graph: &mut GraphProto, zero: u8| {
        let tiny = 2f32.powi(-60);
        *constant(graph, "conv.w.scale") = TensorProto::f32("conv.w.scale", &[2], &[0.5, tiny]);
        *constant(graph, "conv.b.scale") = TensorProto::f32("conv.b.scale", &[2], &[0.25, tiny / 2.0]);
        *constant(graph, "conv.b") = TensorProto::i32("conv.b", &[2], &[2, i32::MIN + 5]);
        *constant(graph, "conv.zero") = TensorProto::u8("conv.zero", &[], &[zero]);
    };
    let mut proto = fixtures::qdq_proto();
    dead(proto.graph.as_mut().unwrap(), 0);
    let model = fixtures::model(proto);
    let run = |engine| {
        let mut session = Session::new(&model, &SessionOptions { engine, ..Default::default() }).unwrap();
        session.run(&[("image", fixtures::image())]).unwrap()
    };
    let (ours, float) = (run(EngineChoice::Cpu), run(EngineChoice::Tract));
    assert_eq!(ours.get("embedding"), float.get("embedding"));
    // The bias alone is worth 10.5 bytes, so that each sum may fall to either side.
    let live = refusal("conv", |graph| {
        let scale = 10.5 * 2f32.powi(-31);
        *constant(graph, "conv.w.scale") = TensorProto::f32("conv.w.scale", &[2], &[0.5, scale]);
        *constant(graph, "conv.b.scale") = TensorProto::f32("conv.b.scale", &[2], &[0.25, scale / 2.0]);
        *constant(graph, "conv.b") = TensorProto::i32("conv.b", &[2], &[2, i32::MAX]);
    });
    assert!(live.contains("could leave 32 bits"), "{live}");
}

#[test]
fn a_float_tail_stays_float() {
    let mut proto = fixtures::qdq_proto();
    let graph = proto.graph.as_mut().unwrap();
    // As the trainer leaves it: no Q/DQ between pool and head.
    graph.node.retain(|n| !n.output.iter().any(|o| o.starts_with("pool.")));
    graph.node.iter_mut().filter(|n| n.name == "flatten").for_each(|n| n.input = vec!["pool".into()]);
    let model: Model = fixtures::model(proto);
    let mut session =
        Session::new(&model, &SessionOptions { engine: EngineChoice::Cpu, ..Default::default() }).unwrap();
    let outputs = session.run(&[("image", fixtures::image())]).unwrap();
    assert_eq!(outputs.get("embedding").and_then(|t| t.as_f32()), Some(&fixtures::EMBEDDING[..]));
}

/// Two scales, concatenated along pixels, cut by channels, of which some go through a function, and concatenated again.
fn detector() -> GraphProto {
    let mut graph = frame(&[1, 6, 8, 8]);
    let pool = |name: &str, stride: i64| {
        NodeProto::new("AveragePool", name, ["x.f"], [name])
            .with_ints("kernel_shape", &[3, 3])
            .with_ints("pads", &[1, 1, 1, 1])
            .with_ints("strides", &[stride, stride])
    };
    for (name, stride, scale, zero) in [("a", 1, 0.05, 110), ("b", 2, 0.04, 130)] {
        graph.node.push(pool(name, stride));
        quantise(&mut graph, name, scale, zero);
        let inputs = [&format!("{name}.f"), "flat"];
        graph.node.push(NodeProto::new("Reshape", "", inputs, [&format!("{name}.rows")]));
    }
    let integers = [("flat", &[1i64, 6, -1][..]), ("0", &[0]), ("2", &[2]), ("6", &[6]), ("1", &[1])];
    graph.initializer.extend(integers.map(|(name, values)| TensorProto::i64(name, &[values.len()], values)));
    graph.node.extend([
        NodeProto::new("Concat", "whole", ["a.rows", "b.rows"], ["whole"]).with_int("axis", 2),
        NodeProto::new("Slice", "cut.0", ["whole", "0", "2", "1"], ["box"]),
        NodeProto::new("Slice", "cut.1", ["whole", "2", "6", "1"], ["class"]),
        NodeProto::new("Sigmoid", "sigmoid", ["class"], ["score"]),
        NodeProto::new("Mul", "square", ["box", "box"], ["squared"]),
        NodeProto::new("Concat", "all", ["squared", "score"], ["y"]).with_int("axis", 1),
    ]);
    graph.output =
        ["y", "a.q", "b.q"].map(|name| ValueInfoProto { name: name.into(), r#type: None }).to_vec();
    graph
}

#[test]
fn detections_are_dealt_to_their_places() {
    type Change = fn(&mut GraphProto);
    let changes: [(&str, Change, &[&str]); 4] = [
        ("as it is", |_| (), &["square", "all"]),
        // Whatever else is needed stays what it is.
        (
            "classes wanted",
            |graph| {
                graph.output.push(ValueInfoProto { name: "class".into(), r#type: None });
            },
            &["square", "sigmoid", "all"],
        ),
        (
            "whole wanted",
            |graph| {
                graph.output.push(ValueInfoProto { name: "whole".into(), r#type: None });
            },
            &["cut.0", "cut.1", "square", "sigmoid", "all"],
        ),
        (
            "cut across",
            |graph| {
                *constant(graph, "1") = TensorProto::i64("1", &[1], &[2]);
                graph.node.iter_mut().filter(|n| n.name == "all").for_each(|n| n.attribute.clear());
                let all = graph.node.last_mut().unwrap();
                *all = all.clone().with_int("axis", 2);
            },
            &["cut.0", "cut.1", "square", "sigmoid", "all"],
        ),
    ];
    let bytes: Vec<u8> = (0..384).map(|i| (i * 7919 % 251) as u8).collect();
    for (what, change, steps) in changes {
        let mut graph = detector();
        change(&mut graph);
        let model = fixtures::model(ModelProto::new(graph, 17));
        let explained: Vec<String> = model.explain().steps.into_iter().map(|s| s.node).collect();
        let named = |name: &&str| explained.iter().any(|node| node == name);
        let there: Vec<&str> =
            ["whole", "cut.0", "cut.1", "square", "sigmoid", "all"].into_iter().filter(named).collect();
        assert_eq!(there, steps, "{what}: {explained:?}");
        for threads in [1, 3] {
            let options = SessionOptions { engine: EngineChoice::Cpu, threads, ..Default::default() };
            let mut session = Session::new(&model, &options).unwrap();
            let real = bytes.iter().map(|q| (f32::from(*q) - f32::from(INPUT_ZERO)) * INPUT_SCALE).collect();
            let x = [("x", Tensor::f32(vec![1, 6, 8, 8], real).unwrap())];
            for _ in 0..2 {
                let outputs = session.run(&x).unwrap();
                let list = |name: &str| match outputs.get(name).unwrap().data() {
                    crate::Data::U8(bytes) => bytes.clone(),
                    other => panic!("{}", other.type_name()),
                };
                let real = |q: u8, scale: f32, zero: f32| (f32::from(q) - zero) * scale;
                let (a, b) = (list("a.q"), list("b.q"));
                let row = |channel: usize| -> Vec<f32> {
                    let a = a[channel * 64..][..64].iter().map(|q| real(*q, 0.05, 110.0));
                    a.chain(b[channel * 16..][..16].iter().map(|q| real(*q, 0.04, 130.0))).collect()
                };
                let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
                let y = outputs.get("y").unwrap();
                let expected: Vec<f32> = if what == "cut across" {
                    let cut = |row: &Vec<f32>| {
                        let (first, rest) = (row[..2].to_vec(), &row[2..6]);
                        first
                            .into_iter()
                            .map(|x| x * x)
                            .chain(rest.iter().map(|x| sigmoid(*x)))
                            .collect::<Vec<_>>()
                    };
                    (0..6).flat_map(|channel| cut(&row(channel))).collect()
                } else {
                    let boxes = (0..2).flat_map(row).map(|x| x * x);
                    boxes.chain((2..6).flat_map(row).map(sigmoid)).collect()
                };
                let far = y.as_f32().unwrap().iter().zip(&expected).position(|(a, b)| (a - b).abs() > 1e-6);
                assert_eq!((y.as_f32().unwrap().len(), far), (expected.len(), None), "{what}");
            }
        }
    }
}
