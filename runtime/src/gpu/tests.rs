//! Exactness: the same bytes as on the CPU, on every adapter that there is, with checks in the shaders and without.
//!
//! Where there is no adapter these tests say so; `ANDON_TEST_GPU=1`, which the continuous integration sets, makes that a
//! failure.

use super::{device::adapters, *};
use crate::{
    Model, fixtures,
    onnx::{DataType, Limits},
    tensor::Data,
};

/// Every adapter and kind of module; the names say which went wrong.
fn devices() -> Vec<(String, wgpu::Adapter, Checks)> {
    let mut all = vec![];
    for adapter in adapters() {
        let info = adapter.get_info();
        for checks in [Checks::On, Checks::Off] {
            all.push((
                format!("{} {} {checks:?}", info.backend.to_str(), info.name),
                adapter.clone(),
                checks,
            ));
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
    let tensor = |(dims, data_type): (Vec<usize>, Option<DataType>)| {
        let range = 0..dims.iter().product::<usize>();
        let data = match data_type {
            Some(DataType::Uint8) => Data::U8(range.map(|_| next() as u8).collect()),
            _ => Data::F32(range.map(|_| next() as f32 / u32::MAX as f32 * 5.0 - 2.5).collect()),
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

/// Runs a network on all devices.
fn check(name: &str, model: &Model, compared: Compared) {
    let shapes = model.shapes(&model.closed_inputs()).unwrap();
    let mut wanted = model.wanted();
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
    let run = |isa: Isa| {
        let sketch = Sketch::new(model.graph(), &shapes, &wanted, isa).unwrap();
        sketch.build(1).unwrap().run(&inputs).unwrap()
    };
    let expected = run(Isa::chosen().unwrap());
    assert_eq!(run(Isa::all()[0]), expected, "{name}: scalar");
    for (device, adapter, checks) in devices() {
        let made = Device::new(&adapter, checks).unwrap();
        let mut gpu = Gpu::new(model.graph(), &shapes, &wanted, Isa::chosen().unwrap(), 1, made).unwrap();
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
            assert!(
                wrong.is_empty(),
                "{name}, {device}, round {round}: {:#?}",
                &wrong[wrong.len().min(2) - 1..]
            );
        }
        eprintln!("{name}, {device}: {} dispatches", gpu.dispatches());
    }
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
