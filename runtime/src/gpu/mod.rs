//! The engine `gpu`: the plan of [`crate::cpu`] on a GPU, bit for bit the same.
//!
//! Steps say what they compute ([`crate::cpu::describe`]), [`lower`] finds kernels for them, [`program`] arranges what runs
//! where; steps without a kernel run on the CPU, between two submissions. All activations lie in one buffer, all that never
//! changes in another; a phase is one pass and one submission. Whatever a driver does is an error of that run.
//!
//! Networks of floats have an executor of their own on the same device: [`float`].

mod cache;
mod choice;
mod constants;
mod convolution;
pub(crate) mod device;
mod ends;
mod exact;
mod fault;
pub(crate) mod float;
mod golden;
mod layout;
mod lower;
mod others;
mod phases;
mod probe;
mod profile;
mod program;
mod resized;
mod run;
#[cfg(test)]
mod tests;
mod transfer;
mod trusted;
mod tune;

pub use andon_shaders::Variant;
pub use cache::PipelineCache;
use choice::Choices;
pub use choice::Task;
use device::{Checks, Device, chosen, is_of_kernel};
pub(crate) use fault::Fault;
pub(crate) use float::{FloatGpu, Precision, Share, is_float};
pub use golden::{Expected, GoldenReport, WrongCase};
pub use probe::{GpuAdapter, GpuPeaks, chosen_gpu, chosen_gpu_but, gpus};
pub use tune::{AdapterKey, Tuned, Tuning, Workload, has_gpu_steps, is_float_network, tune};

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    thread,
};

use program::Program;
use run::Memory;
use transfer::Flight;

use crate::{
    cpu::{Cpu, Isa, Sketch, StepKind, StepSummary, Summary, describe::Sources},
    engine::{Clock, Engine, StepTime, guarded},
    graph::{Graph, ValueId},
    session::{Pictures, Request},
    shape::Shapes,
    tensor::Tensor,
};

/// Set to anything, shaders check their own bounds: for a driver that is suspected.
const CHECKS: &str = "ANDON_GPU_CHECKS";

/// Runs that may be under way together.
const LANES: usize = 2;

pub(crate) struct Gpu {
    device: Device,
    program: Program,
    memory: Memory,
    cpu: Cpu,
    /// Submissions of runs that have begun and not finished, with their lanes.
    flights: VecDeque<(usize, Option<Flight>)>,
    /// Runs may overlap.
    overlaps: bool,
    /// That was asked for.
    fault: Option<Fault>,
    runs: u64,
}

/// What a session knows of how a network is to be run.
#[derive(Clone, Copy, Default)]
pub(crate) struct Extras<'a> {
    pub(crate) tuning: Option<&'a Tuning>,
    /// The first input may be a picture, if all that reads it can take one.
    pub(crate) pictures: Option<&'a Pictures>,
    pub(crate) pipelines: Option<&'a Arc<PipelineCache>>,
    /// The GPU; else the one that the environment names, else the best.
    pub(crate) adapter: Option<&'a AdapterKey>,
}

impl Gpu {
    /// A tuning counts if it is of the adapter that is used.
    pub(crate) fn chosen(
        graph: &Graph,
        shapes: &Shapes,
        outputs: &[ValueId],
        isa: Isa,
        threads: usize,
        extras: Extras<'_>,
    ) -> Result<Self, String> {
        let Extras { tuning, pictures, pipelines, adapter: asked } = extras;
        // Drivers are not ours.
        guarded(|| {
            let checks = if std::env::var_os(CHECKS).is_some() { Checks::On } else { Checks::Off };
            let fault = Fault::asked()?;
            fault.map_or(Ok(()), Fault::adapter)?;
            // Either takes its time, on another part of the machine; kernels are chosen once the adapter is known.
            let (found, adapter) = mpsc::channel();
            let (device, draft) = thread::scope(|scope| {
                let device = scope.spawn(|| {
                    guarded(|| {
                        let adapter = chosen(asked)?;
                        // Whoever waits has given up if this fails.
                        found.send(adapter.get_info()).ok();
                        drop(found);
                        Device::new(&adapter, checks)?.keeping(pipelines)
                    })
                });
                let draft = plan(graph, shapes, outputs, isa, threads).and_then(|cpu| {
                    let cpu = cpu.with_pictures(pictures);
                    let Ok(info) = adapter.recv() else { return Ok(None) };
                    Program::new(&cpu, Choices::known(&info, tuning)).map(|program| Some((cpu, program)))
                });
                (device.join(), draft)
            });
            let device = device.map_err(|_| "the thread that makes a device has ended")??;
            let (cpu, program) = draft?.ok_or("the adapter was lost from sight")?;
            fault.map_or(Ok(()), |fault| fault.memory(&device))?;
            let choices = Choices::known(&device.info, tuning);
            let gpu = match (Self::assembled(cpu, program, device), choices.to_alone()) {
                (Ok(gpu), _) => gpu,
                // What threads share is what drivers refuse first.
                (Err(why), Some(alone)) if is_of_kernel(&why) => {
                    let device = Device::new(&chosen(asked)?, checks)?.keeping(pipelines)?;
                    let cpu = plan(graph, shapes, outputs, isa, threads)?.with_pictures(pictures);
                    Self::of(cpu, device, alone).map_err(|_| why)?
                }
                (Err(why), _) => return Err(why),
            };
            Ok(Self { fault, ..gpu })
        })
    }

    /// `cpu`: a plan whose steps have kept what they were made from.
    pub(crate) fn of(cpu: Cpu, device: Device, choices: Choices) -> Result<Self, String> {
        let program = Program::new(&cpu, choices)?;
        Self::assembled(cpu, program, device)
    }

    /// `program`: with the order in which it runs the plan's steps.
    fn assembled(
        cpu: Cpu,
        (program, order): (Program, Vec<usize>),
        mut device: Device,
    ) -> Result<Self, String> {
        let cpu = cpu.reordered(&order);
        let dispatches = program.phases.iter().flat_map(|phase| &phase.dispatches);
        // Weights go up while kernels are compiled.
        let (memory, compiled) = thread::scope(|scope| {
            let memory = scope.spawn(|| guarded(|| Memory::new(&device, &program)));
            let compiled = device.compiled(dispatches.map(|dispatch| dispatch.variant));
            (memory.join(), compiled)
        });
        device.adopt(compiled?);
        let memory = memory.map_err(|_| "the thread that fills the GPU's memory has ended")??;
        let overlaps = program.overlaps(&cpu);
        let flights = VecDeque::new();
        Ok(Self { device, program, memory, cpu, flights, overlaps, fault: None, runs: 0 })
    }

    /// What another can be made of, with other kernels.
    pub(super) fn into_parts(self) -> (Device, Cpu) {
        (self.device, self.cpu)
    }

    /// Waits for runs that have begun and that nobody will finish.
    fn land(&mut self) -> Result<(), String> {
        while !self.flights.is_empty() {
            self.finish()?;
        }
        Ok(())
    }

    /// Keeps each of the threads of the CPU's steps on one processor.
    pub(crate) fn pinned(self, pinned: bool) -> Self {
        Self { cpu: self.cpu.pinned(pinned), ..self }
    }

    pub(crate) fn dispatches(&self) -> usize {
        let all = self.program.phases.iter().flat_map(|phase| &phase.dispatches);
        // What an input may be instead is not counted.
        all.filter(|dispatch| dispatch.given.is_none_or(|given| given == ends::Given::Real)).count()
    }

    /// The plan in the order in which it runs, with the steps that the GPU takes.
    pub(crate) fn summary(&self) -> Summary {
        let mut summary = self.cpu.summary();
        for (step, on_gpu) in summary.steps.iter_mut().zip(&self.program.on_gpu) {
            if *on_gpu {
                step.kind = StepKind::Gpu;
            }
        }
        summary
    }

    /// In words.
    pub(crate) fn explain(&self) -> String {
        let (info, program) = (&self.device.info, &self.program);
        let (dispatches, phases) = (self.dispatches(), program.phases.len());
        let bytes = |(step, on_gpu): (&StepSummary, &bool)| step.kind == StepKind::Bytes && !*on_gpu;
        let summary = self.cpu.summary();
        let left = summary.steps.iter().zip(&program.on_gpu).filter(|step| bytes(*step)).count();
        let (name, backend) = (&info.name, info.backend.to_str());
        let arena = program.arena_bytes;
        format!(
            "gpu ({name}, {backend}), {dispatches} dispatches in {phases} phases, {left} int8 steps left to the CPU, arena {arena} bytes"
        )
    }
}

/// A network's plan on `threads` threads, whose steps have kept what they were made from.
pub(crate) fn plan(
    graph: &Graph,
    shapes: &Shapes,
    outputs: &[ValueId],
    isa: Isa,
    threads: usize,
) -> Result<Cpu, String> {
    let sketch = Sketch::with(graph, shapes, outputs, isa, Sources::Kept)?;
    if !sketch.has_byte_steps() {
        let why = sketch.first_refusal().unwrap_or_else(|| "there is nothing to compute".into());
        return Err(format!("it has no int8 steps: {why}"));
    }
    sketch.build(threads)
}

impl Engine for Gpu {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        self.run_watched(inputs, &mut |_| ())
    }

    /// A phase's steps on the GPU are done together.
    fn run_watched(
        &mut self,
        inputs: &[&Tensor],
        after: &mut dyn FnMut(usize),
    ) -> Result<Vec<Tensor>, String> {
        // Whatever has begun is nobody's any more; if it has failed, so would this.
        self.land()?;
        self.runs += 1;
        let Self { device, program, memory, cpu, fault, runs, .. } = self;
        guarded(|| {
            fault.iter().for_each(|fault| fault.before(*runs, device));
            for (number, phase) in program.phases.iter().enumerate() {
                for step in &phase.steps {
                    cpu.run_step(*step, inputs)?;
                    after(*step);
                }
                memory.run(device, number, phase, cpu, inputs, &mut |_| ())?;
                let mut last = None;
                for dispatch in phase.dispatches.iter().filter(|d| last.replace(d.step) != Some(d.step)) {
                    after(dispatch.step);
                }
            }
            let mut outputs = cpu.outputs(inputs)?;
            fault.iter().for_each(|fault| fault.after(*runs, &mut outputs));
            Ok(outputs)
        })
    }

    fn begin(&mut self, inputs: &[&Tensor]) -> Result<bool, String> {
        if !self.overlaps || self.fault.is_some() {
            return Ok(false);
        }
        let Self { device, program, memory, cpu, flights, .. } = self;
        if flights.len() == LANES {
            return Err("two runs have begun already".into());
        }
        guarded(|| {
            memory.second_lane(device, program)?;
            let lane = flights.back().map_or(0, |(lane, _)| (lane + 1) % LANES);
            let phase = &program.phases[0];
            for step in &phase.steps {
                cpu.run_step(*step, inputs)?;
            }
            let flight = memory.start(device, lane, (0, phase), cpu, inputs, &mut |_| ())?;
            flights.push_back((lane, flight));
            Ok(true)
        })
    }

    fn finish(&mut self) -> Result<Vec<Tensor>, String> {
        let Self { device, program, memory, cpu, flights, .. } = self;
        let (lane, flight) = flights.pop_front().ok_or("no run has begun")?;
        guarded(|| {
            memory.land(device, lane, flight, &program.phases[0], cpu, &mut |_| ())?;
            for step in program.phases[1..].iter().flat_map(|phase| &phase.steps) {
                cpu.run_step(*step, &[])?;
            }
            cpu.outputs(&[])
        })
    }

    fn arena_bytes(&self) -> Option<usize> {
        Some(self.program.arena_bytes)
    }

    fn takes_pictures(&self) -> bool {
        self.cpu.takes_pictures()
    }

    fn profile(&mut self, inputs: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String> {
        guarded(|| Ok([self.parts(inputs, clock)?, self.profiled(inputs, clock)?].concat()))
    }
}

/// Whether a tuning is of the GPU that would be used and of that precision, and found it faster.
pub(crate) fn wins(tuning: &Tuning, request: &Request<'_>) -> bool {
    let Request { model, adapter, half, .. } = *request;
    tuning.engine == "gpu"
        && (tuning.half_precision == half || !is_float(model.graph()))
        && guarded(|| Ok(tuning.fits(&chosen(adapter)?.get_info()))).unwrap_or(false)
}
