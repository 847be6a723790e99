//! Which variant of each kernel is fastest: a network is made again and again, with another variant in each place, and each
//! dispatch is timed ([`tried`]). Both executors can be made so: [`Bytes`], [`Floats`].

use std::collections::HashMap;

use andon_shaders::Variant;

use super::{Subject, Tuned};
use crate::{
    cpu::{Cpu, describe::Sources},
    engine::{Clock, Engine, NEAR, Near, StepTime, TimedBy, agree, trusted},
    gpu::{
        AdapterKey, FloatGpu, Gpu,
        choice::{Choices, Task},
        device::{Checks, Device, chosen},
        float::{self, Precision},
        plan,
        program::Program,
    },
    tensor::Tensor,
};

/// What an executor lets be measured.
pub(super) trait Timed: Engine {
    fn program(&self) -> &Program;

    /// What each of its dispatches takes, in their order; the inputs are of a run that was.
    fn dispatches(&mut self, inputs: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String>;
}

impl Timed for Gpu {
    fn program(&self) -> &Program {
        &self.program
    }

    fn dispatches(&mut self, inputs: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String> {
        self.profiled(inputs, clock)
    }
}

impl Timed for FloatGpu {
    fn program(&self) -> &Program {
        self.executed().1
    }

    fn dispatches(&mut self, _: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String> {
        self.profiled(clock)
    }
}

/// Makes an executor for a network.
pub(super) trait Maker {
    type Gpu: Timed;
    /// What one leaves to the next.
    type Parts;

    /// The CPU's engine, which is right.
    fn trusted(&self) -> Result<Box<dyn Engine>, String>;

    /// How far f32 outputs may be from its, of their range.
    fn near(&self) -> Near;

    fn anew(&self) -> Result<Self::Parts, String>;

    fn device<'a>(&self, parts: &'a Self::Parts) -> &'a Device;

    fn make(&self, parts: Self::Parts, choices: Choices) -> Result<Self::Gpu, String>;

    fn parts(&self, gpu: Self::Gpu) -> Self::Parts;
}

/// For a network of int8.
pub(super) struct Bytes<'a> {
    pub(super) subject: &'a Subject<'a>,
    pub(super) adapter: Option<&'a AdapterKey>,
}

impl Maker for Bytes<'_> {
    type Gpu = Gpu;
    type Parts = (Device, Cpu);

    fn trusted(&self) -> Result<Box<dyn Engine>, String> {
        let Subject { threads, pictures, .. } = *self.subject;
        let cpu = self.subject.sketch(Sources::Dropped)?.build(threads)?;
        Ok(Box::new(cpu.with_pictures(pictures)))
    }

    fn near(&self) -> Near {
        NEAR
    }

    fn anew(&self) -> Result<Self::Parts, String> {
        let Subject { graph, shapes, outputs, threads, pictures, .. } = *self.subject;
        let device = Device::new(&chosen(self.adapter)?, Checks::Off)?;
        Ok((device, plan(graph, shapes, outputs, self.subject.isa, threads)?.with_pictures(pictures)))
    }

    fn device<'a>(&self, (device, _): &'a Self::Parts) -> &'a Device {
        device
    }

    fn make(&self, (device, cpu): Self::Parts, choices: Choices) -> Result<Gpu, String> {
        Gpu::of(cpu, device, choices)
    }

    fn parts(&self, gpu: Gpu) -> Self::Parts {
        gpu.into_parts()
    }
}

/// For one of floats.
pub(super) struct Floats<'a> {
    pub(super) subject: &'a Subject<'a>,
    pub(super) adapter: Option<&'a AdapterKey>,
    pub(super) precision: Precision,
}

impl Maker for Floats<'_> {
    type Gpu = FloatGpu;
    type Parts = Device;

    fn trusted(&self) -> Result<Box<dyn Engine>, String> {
        let Subject { model, resolved, shapes, outputs, threads, .. } = *self.subject;
        trusted(model, resolved, shapes, outputs, threads)
    }

    fn near(&self) -> Near {
        self.precision.near()
    }

    fn anew(&self) -> Result<Device, String> {
        Device::new(&chosen(self.adapter)?, Checks::Off)
    }

    fn device<'a>(&self, device: &'a Device) -> &'a Device {
        device
    }

    fn make(&self, device: Device, choices: Choices) -> Result<FloatGpu, String> {
        let Subject { graph, shapes, outputs, threads, .. } = *self.subject;
        let network = float::Network::new(graph, shapes, outputs, &choices, self.precision)?;
        FloatGpu::of(network, device, threads)
    }

    fn parts(&self, gpu: FloatGpu) -> Device {
        gpu.into_device()
    }
}

/// What was found, and how many rounds computed wrong.
pub(super) struct Kernels {
    pub(super) tuned: Vec<Tuned>,
    pub(super) wrong: u32,
}

/// The fastest variant for each task, as long as there is time; the parts come back with what was compiled. The inner
/// error says why nothing could be timed.
pub(super) fn tried<M: Maker>(
    maker: &M,
    mut parts: M::Parts,
    choices: &Choices,
    (inputs, expected): (&[&Tensor], &[Tensor]),
    clock: &Clock,
    in_time: &dyn Fn() -> bool,
) -> Result<(M::Parts, Result<Kernels, String>), String> {
    /// Runs of each variant, of which the fastest counts.
    const RUNS: usize = 3;
    const CLEARLY: f64 = 0.9;
    let mut times: HashMap<Task, Vec<(Variant, f64)>> = HashMap::new();
    let mut usual: HashMap<Task, (Variant, f64)> = HashMap::new();
    let mut wrong = 0;
    // By the GPU's own clock.
    let mut exact = true;
    // What would be taken comes first, so that it is there when time runs out.
    for forced in std::iter::once(None).chain((0..).map(Some)) {
        let more = |number: usize| times.keys().any(|task| choices.tried(*task).len() > number);
        if forced.is_some_and(|number| !more(number) || !in_time()) {
            break;
        }
        let made = maker.make(parts, Choices { forced, ..choices.clone() });
        let ran = made.and_then(|mut gpu| Ok((gpu.run(inputs)?, gpu)));
        let (given, mut gpu) = match ran {
            Ok(ran) => ran,
            // One of them does not compile, perhaps. What would be taken must.
            Err(_) if forced.is_some() => {
                wrong += 1;
                parts = maker.anew()?;
                continue;
            }
            Err(why) => return Err(why),
        };
        // Kernels among which one computes wrong are not for use, however fast.
        let right = agree(expected, &given, maker.near()).is_ok();
        for _ in 0..if right { RUNS } else { 0 } {
            let timed = match gpu.dispatches(inputs, clock) {
                Ok(timed) => timed,
                Err(why) => return Ok((maker.parts(gpu), Err(why))),
            };
            let dispatches = gpu.program().phases.iter().flat_map(|phase| &phase.dispatches);
            for (dispatch, one) in dispatches.zip(timed) {
                let Some(task) = dispatch.task else { continue };
                exact &= one.clock == TimedBy::Gpu;
                let us = one.time.as_secs_f64() * 1e6;
                let known = times.entry(task).or_default();
                match known.iter_mut().find(|(variant, _)| *variant == dispatch.variant) {
                    Some((_, best)) => *best = best.min(us),
                    None => known.push((dispatch.variant, us)),
                }
                if forced.is_none() {
                    let usual = usual.entry(task).or_insert((dispatch.variant, us));
                    usual.1 = usual.1.min(us);
                }
            }
        }
        wrong += u32::from(!right);
        parts = maker.parts(gpu);
    }
    // Where it was timed from outside, what would be taken anyway goes before one that is hardly faster.
    let margin = if exact { 1.0 } else { CLEARLY };
    let mut tuned: Vec<Tuned> = vec![];
    for (task, variants) in &times {
        let fastest = variants.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let usual = usual.get(task).copied();
        if let Some(fastest) = fastest.copied() {
            let (variant, us) = usual.filter(|(_, us)| margin * us <= fastest.1).unwrap_or(fastest);
            let instead_of = usual.filter(|(usual, _)| *usual != variant);
            tuned.push(Tuned { task: *task, variant, us, instead_of, tried: variants.len() });
        }
    }
    tuned.sort_by_key(|tuned| tuned.task);
    Ok((parts, Ok(Kernels { tuned, wrong })))
}
