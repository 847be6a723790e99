//! Exactness: the same bytes as on the CPU, on every adapter that there is, with checks in the shaders and without.
//!
//! Where there is no adapter these tests say so; `ANDON_TEST_GPU=1`, which the continuous integration sets, makes that a
//! failure.

mod faults;
mod pictures;

use andon_shaders::Variant;

use super::{
    choice::{Choices, Task},
    device::adapters,
    golden::cases,
    *,
};
use crate::{
    Model, fixtures,
    onnx::{DataType, Limits},
    tensor::Data,
};

/// A device for every adapter and kind of module; the names say which went wrong. Used again and again, since drivers take
/// their time to compile.
pub(super) fn devices() -> Vec<(String, Option<Device>)> {
    let mut all = vec![];
    for adapter in adapters() {
        let info = adapter.get_info();
        for checks in [Checks::On, Checks::Off] {
            let device = Device::new(&adapter, checks).unwrap();
            all.push((format!("{} {} {checks:?}", info.backend.to_str(), info.name), Some(device)));
        }
    }
    if all.is_empty() {
        let text = "no GPU and nothing that plays one: install Mesa's Vulkan and EGL drivers";
        assert!(std::env::var("ANDON_TEST_GPU").is_err(), "{text}");
        eprintln!("NOT TESTED: {text}");
    }
    all
}

/// The network's inputs, the same each time.
fn inputs(model: &Model) -> Vec<Tensor> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    // What is at the ends of f32 or no number at all comes now and then.
    let strange = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e30, -1e-40];
    let tensor = |(dims, data_type): (Vec<usize>, Option<DataType>)| {
        let range = 0..dims.iter().product::<usize>();
        let mut real = |i: usize| match i % 23 {
            17 => strange[i / 23 % strange.len()],
            _ => next() as f32 / u32::MAX as f32 * 5.0 - 2.5,
        };
        let data = match data_type {
            Some(DataType::Uint8) => Data::U8(range.map(|i| real(i).to_bits() as u8).collect()),
            _ => Data::F32(range.map(real).collect()),
        };
        Tensor::new(dims, data).unwrap()
    };
    let types = model.inputs().into_iter().map(|port| port.data_type);
    model.closed_inputs().into_iter().map(|(_, dims)| dims).zip(types).map(tensor).collect()
}

/// What of a network is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Outputs,
    /// Whatever is quantised, too, which leaves less to be fused.
    EveryByte,
}

/// Runs a network on a device; returns how many dispatches that took, and how many byte steps were left to the CPU.
fn run_on(
    name: &str,
    model: &Model,
    compared: Compared,
    (device, own): &mut (String, Option<Device>),
    choices: Choices,
) -> (usize, usize) {
    let shapes = model.shapes(&model.closed_inputs()).unwrap();
    let case = name.starts_with("case ");
    // What would be the embedding of a classifier is of no interest in a case.
    let mut wanted = if case { model.graph().outputs().to_vec() } else { model.wanted() };
    if compared == Compared::EveryByte {
        let graph = model.graph();
        for (_, node, proto) in graph.nodes() {
            if proto.op_type == "QuantizeLinear" {
                wanted.extend(node.outputs.iter().flatten().filter(|v| shapes.of(**v).is_some()));
            }
        }
    }
    let inputs = inputs(model);
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let sketch = |isa, sources| Sketch::with(model.graph(), &shapes, &wanted, isa, sources).unwrap();
    let run = |isa: Isa| sketch(isa, Sources::Dropped).build(1).unwrap().run(&inputs).unwrap();
    let best = Isa::chosen().unwrap();
    let expected = run(best);
    assert_eq!(run(Isa::all()[0]), expected, "{name}: scalar");
    let cpu = sketch(best, Sources::Kept).build(1).unwrap();
    let mut gpu = Gpu::of(cpu, own.take().unwrap(), choices).unwrap();
    for round in 0..2 {
        let outputs = gpu.run(&inputs).unwrap();
        let mut wrong = vec![];
        for ((ours, expected), value) in outputs.iter().zip(&expected).zip(&wanted) {
            if ours != expected {
                let value = &model.graph().value(*value).name;
                wrong.push(format!("{value:?} {}", difference(ours, expected)));
            }
        }
        // The first of the steps in between is where it began.
        let first = wrong.len().min(2).saturating_sub(1);
        assert!(wrong.is_empty(), "{name}, {device}, round {round}: {}", wrong[first]);
    }
    let steps = gpu.cpu.summary().steps;
    let left = steps.iter().zip(&gpu.program.on_gpu).filter(|(s, on)| s.kind == StepKind::Bytes && !**on);
    // A case that tests nothing but other engines would be none.
    let elsewhere = |s: &&StepSummary| matches!(s.kind, StepKind::Plain | StepKind::Island(_));
    let strange = steps.iter().filter(elsewhere).count();
    assert!(strange == 0 || !case, "{name}: {strange} steps on no bytes:\n{}", model.explain());
    let result = (gpu.dispatches(), left.count());
    *own = Some(gpu.device);
    result
}

/// Runs a network on all devices.
fn check(name: &str, model: &Model, compared: Compared) {
    for device in &mut devices() {
        // Every byte as a large GPU computes it, whatever this one is.
        let kind = match compared {
            Compared::Outputs => device.1.as_ref().unwrap().info.device_type,
            Compared::EveryByte => wgpu::DeviceType::DiscreteGpu,
        };
        let mut choices = Choices::of(kind);
        // As on a GPU that shares its memory: detections leave as real values, in several pieces.
        if name == "yolov8n" {
            (choices.takes_from, choices.gives) = (0, true);
        }
        let (dispatches, left) = run_on(name, model, compared, device, choices);
        eprintln!("{name}, {}: {dispatches} dispatches, {left} steps left to the CPU", device.0);
        // As few as they are worth it. Where real values are given out there is one for each of them.
        let most = match name {
            "mobilenetv2" => 56,
            "resnet50" => 58,
            "yolov8n" => 90 + 5,
            _ => usize::MAX,
        };
        assert!(compared == Compared::EveryByte || dispatches <= most, "{name}: {dispatches} dispatches");
    }
}

/// A case on all devices, with another variant of each kernel every time, and its input quantised by one or the other.
fn check_case(devices: &mut [(String, Option<Device>)], name: &str, number: usize, model: &Model) -> usize {
    let mut left = 0;
    for (i, device) in devices.iter_mut().enumerate() {
        let forced = Some(number.wrapping_mul(31) + 7 * i);
        let takes_from = if (number + i / 2).is_multiple_of(2) { 0 } else { usize::MAX };
        let choices = Choices { forced, takes_from, gives: number.is_multiple_of(2), ..Default::default() };
        left = run_on(name, model, Compared::Outputs, device, choices).1;
    }
    left
}

/// Frame by frame the same results, one behind the other or one beside the other.
#[test]
fn runs_that_overlap_give_what_each_gives_alone() {
    for (name, device) in devices() {
        let model = cases::middling_case(1).unwrap();
        let shapes = model.shapes(&model.closed_inputs()).unwrap();
        let wanted = model.graph().outputs().to_vec();
        let cpu = plan(model.graph(), &shapes, &wanted, Isa::chosen().unwrap(), 2).unwrap();
        let mut gpu = Gpu::of(cpu, device.unwrap(), Choices::default()).unwrap();
        let first = inputs(&model);
        let frame = |shift: usize| -> Vec<Tensor> {
            let shifted = |tensor: &Tensor| {
                let mut values = tensor.as_f32().unwrap().to_vec();
                values.rotate_left(shift);
                Tensor::f32(tensor.shape().to_vec(), values).unwrap()
            };
            first.iter().map(shifted).collect()
        };
        let frames: Vec<Vec<Tensor>> = (0..6).map(|i| frame(7 * i)).collect();
        let frames: Vec<Vec<&Tensor>> = frames.iter().map(|frame| frame.iter().collect()).collect();
        let alone: Vec<Vec<Tensor>> = frames.iter().map(|frame| gpu.run(frame).unwrap()).collect();
        assert!(alone.windows(2).all(|pair| pair[0] != pair[1]), "frames that cannot be told apart");
        for round in 0..2 {
            assert!(gpu.begin(&frames[0]).unwrap(), "{name}: nothing overlaps");
            for i in 1..frames.len() {
                assert!(gpu.begin(&frames[i]).unwrap());
                assert!(gpu.begin(&frames[0]).is_err(), "three at a time");
                assert_eq!(gpu.finish().unwrap(), alone[i - 1], "{name}, round {round}, frame {}", i - 1);
            }
            // The last is nobody's; what comes next is not mixed up with it.
            assert_eq!(gpu.run(&frames[3]).unwrap(), alone[3], "{name}, round {round}");
            assert!(gpu.finish().is_err());
        }
    }
}

#[test]
fn convolutions_are_exact() {
    let devices = &mut devices();
    for number in 0..cases_count(24) {
        let left = check_case(
            devices,
            &format!("case convolution {number}"),
            number,
            &cases::convolution_case(number as u64).unwrap(),
        );
        assert_eq!(left, 0, "convolution {number}: left to the CPU");
    }
}

/// Each kernel of large tiles, with checks in the shaders and without: what plays a GPU would not choose them, hardware does.
#[test]
fn tiles_are_exact() {
    let devices = &mut devices();
    for kernel in [1, 3] {
        let (taps, pointwise) = (kernel * kernel, kernel == 1);
        let task = Task::Convolution { pixels: 99, words: 18, taps, depth: 5, quads: true, pointwise };
        let wanted = |variant: &Variant| match variant {
            Variant::Tiled { .. } => true,
            Variant::Convolution { pixels, out, real, .. } => !*real && pixels * out > 4,
            _ => false,
        };
        let variants: Vec<Variant> = task.variants().into_iter().filter(wanted).collect();
        assert_eq!(variants.len(), 15);
        for variant in variants {
            // Mesa takes seconds for each kernel of the largest: one device of OpenGL is enough for those.
            let large = matches!(variant, Variant::Convolution { split: 1, .. });
            let twice = |name: &str| large && name.starts_with("gl") && name.ends_with("Off");
            for device in devices.iter_mut().filter(|device| !twice(&device.0)) {
                let choices = Choices { known: [(task, variant)].into(), ..Default::default() };
                let name = format!("case {variant:?}");
                run_on(&name, &cases::middling_case(kernel).unwrap(), Compared::Outputs, device, choices);
            }
        }
    }
}

/// What is small and lies between two islands on the CPU stays there; what is large does not.
#[test]
fn a_small_step_between_islands_is_no_phase() {
    let model = cases::islands_case().unwrap();
    let shapes = model.shapes(&model.closed_inputs()).unwrap();
    let wanted = model.graph().outputs().to_vec();
    let cpu = plan(model.graph(), &shapes, &wanted, Isa::chosen().unwrap(), 1).unwrap();
    let (program, order) = Program::new(&cpu, Choices::default()).unwrap();
    let on_gpu = program.phases.iter().filter(|phase| phase.is_on_gpu()).count();
    let steps = cpu.summary().steps;
    let name = |step: usize| &model.graph().node(steps[step].node).name;
    let there = order.iter().zip(&program.on_gpu).filter(|(_, on_gpu)| **on_gpu);
    let there: Vec<&str> = there.map(|(step, _)| name(*step).as_str()).collect();
    assert_eq!((on_gpu, there), (2, vec!["QuantizeLinear#0", "a", "y"]));
    // Otherwise it would have been one more.
    let (all, _) = Program::without(&cpu, Choices::default(), &[]).unwrap();
    assert_eq!(all.phases.iter().filter(|phase| phase.is_on_gpu()).count(), 3);
    for device in &mut devices() {
        run_on("islands", &model, Compared::Outputs, device, Choices::default());
    }
}

/// Sums in f32 are exact only as long as they are brought home in time.
#[test]
fn products_of_reals_are_exact() {
    let devices = &mut devices();
    let task = Task::Convolution { pixels: 6, words: 2, taps: 1, depth: 256, quads: true, pointwise: true };
    let wanted =
        |variant: &Variant| matches!(variant, Variant::Convolution { real: true, pixels: 1 | 2, .. });
    let variants: Vec<Variant> = task.variants().into_iter().filter(wanted).collect();
    assert_eq!(variants.len(), 6);
    let model = cases::cancelling_case().unwrap();
    for variant in variants {
        for device in devices.iter_mut() {
            let choices = Choices { known: [(task, variant)].into(), ..Default::default() };
            run_on(&format!("case {variant:?}"), &model, Compared::Outputs, device, choices);
        }
    }
}

/// Kernels in which several threads share the channels, and those of a large window.
#[test]
fn shared_sums_are_exact() {
    let devices = &mut devices();
    for number in 0..6 {
        for (channels, kernel) in [(272, 1), (272, 3), (8, 1)] {
            let name = format!("case deep {channels} {kernel} {number}");
            let model = cases::deep_case(channels, kernel).unwrap();
            check_case(devices, &name, 3 * number + kernel, &model);
        }
        for stride in [1, 2] {
            let name = format!("case window {stride} {number}");
            check_case(devices, &name, number, &cases::window_case(stride).unwrap());
        }
    }
}

#[test]
fn residual_additions_are_exact() {
    let devices = &mut devices();
    for number in 0..cases_count(8) {
        let left = check_case(
            devices,
            &format!("case residual {number}"),
            number,
            &cases::residual_case(number as u64).unwrap(),
        );
        assert_eq!(left, 0, "residual {number}: left to the CPU");
    }
}

#[test]
fn other_operators_are_exact() {
    let devices = &mut devices();
    for name in cases::OPERATORS {
        for number in 0..cases_count(3) {
            let model = cases::operator_case(name, number as u64).unwrap();
            let left = check_case(devices, &format!("case {name} {number}"), number, &model);
            assert_eq!(left, 0, "{name} {number}: {left} steps left to the CPU");
        }
    }
}

/// So many cases, or as many times more as `ANDON_TEST_TIMES` says.
pub(super) fn cases_count(count: usize) -> usize {
    let times = std::env::var("ANDON_TEST_TIMES").ok().and_then(|t| t.parse().ok()).unwrap_or(1);
    count * times
}

fn difference(a: &Tensor, b: &Tensor) -> String {
    let text = |t: &Tensor| format!("{:?}", t.data());
    let (a, b) = (text(a), text(b));
    let wrong = a.split(',').zip(b.split(',')).enumerate().filter(|(_, (a, b))| a != b);
    let wrong: Vec<String> = wrong.map(|(i, (a, b))| format!("{i}: {a} for {b}")).collect();
    format!("{} wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(8)])
}

#[test]
fn a_small_network_is_exact() {
    for compared in [Compared::Outputs, Compared::EveryByte] {
        check("tiny", &fixtures::model(fixtures::qdq_proto()), compared);
    }
}

/// The networks that `cargo xtask parity` makes, where `ANDON_TEST_NETWORKS` says in which folder they lie.
#[test]
fn whole_networks_are_exact() {
    let Ok(folder) = std::env::var("ANDON_TEST_NETWORKS") else { return };
    let only = std::env::var("ANDON_TEST_ONLY").unwrap_or_default();
    for name in ["mobilenetv2", "efficientnet_lite0", "resnet18", "resnet50", "yolov8n"] {
        if !name.contains(&only) {
            continue;
        }
        let bytes = std::fs::read(format!("{folder}/{name}.onnx")).unwrap();
        let model = Model::load(&bytes, &Limits::default()).unwrap();
        check(name, &model, Compared::Outputs);
        if name == "mobilenetv2" {
            check(name, &model, Compared::EveryByte);
        }
    }
}
