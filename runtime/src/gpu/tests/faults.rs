//! What happens when a GPU fails.

use super::*;

/// A right result for each frame, whatever the GPU does; and what was told of it.
#[test]
fn each_frame_has_its_result_under_each_fault() {
    let model = fixtures::model(fixtures::qdq_proto());
    let shapes = model.shapes(&model.closed_inputs()).unwrap();
    let wanted = model.wanted();
    let inputs = inputs(&model);
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let isa = Isa::chosen().unwrap();
    let cpu = || Sketch::new(model.graph(), &shapes, &wanted, isa).unwrap().build(1).unwrap();
    let expected = cpu().run(&inputs).unwrap();
    for adapter in adapters() {
        for (text, told) in [
            ("lost@3", "the GPU failed"),
            ("hang@3", "the GPU is late"),
            ("wrong@3", "the GPU computes wrong"),
            ("memory", "the GPU cannot be used"),
            ("none", "the GPU cannot be used"),
        ] {
            let fault: Fault = text.parse().unwrap();
            let (adapter, model, wanted) = (adapter.clone(), model.clone(), wanted.clone());
            let make = move || {
                fault.adapter()?;
                let shapes = model.shapes(&model.closed_inputs()).map_err(|e| e.to_string())?;
                let device = Device::new(&adapter, Checks::Off)?;
                let cpu = plan(model.graph(), &shapes, &wanted, isa, 1)?;
                fault.memory(&device)?;
                let choices = Choices::of(device.info.device_type);
                let gpu = Gpu { fault: Some(fault), ..Gpu::of(cpu, device, choices)? };
                Ok(Box::new(gpu) as Box<dyn Engine>)
            };
            // Each frame a minute after the last, so that what failed is made anew at once.
            let now = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            let time = std::sync::Arc::clone(&now);
            let clock = crate::Clock::new(move || {
                std::time::Duration::from_secs(time.load(std::sync::atomic::Ordering::SeqCst))
            });
            let policy = crate::GuardPolicy {
                compare_every: 1,
                least_wait: std::time::Duration::from_secs(2),
                ..Default::default()
            };
            let mut guard = crate::engine::guard::Guard::new(Box::new(make), Box::new(cpu()), policy, clock);
            let mut events = vec![];
            for frame in 0..12 {
                now.fetch_add(60, std::sync::atomic::Ordering::SeqCst);
                guard.settle(&inputs);
                assert_eq!(guard.run(&inputs).unwrap(), expected, "{text}, frame {frame}");
                events.extend(guard.take_events().iter().map(ToString::to_string));
            }
            assert!(events.iter().any(|event| event.starts_with(told)), "{text}: {events:#?}");
            let blocked = "the GPU is not used any more after 3 failures in a row";
            assert_eq!(events.last().map(String::as_str), Some(blocked), "{text}: {events:#?}");
            assert_eq!(guard.name(), "cpu");
        }
    }
}
