//! Where a run's time goes: its parts by the host's clock, and each dispatch by the GPU's own, in a pass of its own with a
//! time before and one behind it. Where a driver has no such clock, a dispatch is submitted alone, once and many times over,
//! and the host's says what more of it takes.

use std::time::Duration;

use super::{
    Device, FloatGpu, Gpu,
    device::Scope,
    program::{Dispatch, Phase},
    run::Memory,
    transfer::Flight,
};
use crate::{
    engine::{Clock, StepTime, TimedBy},
    tensor::Tensor,
};

/// Parts of a run that follow each other.
struct Parts<'a> {
    clock: &'a Clock,
    last: Duration,
    times: Vec<StepTime>,
}

impl<'a> Parts<'a> {
    fn begin(clock: &'a Clock) -> Self {
        Self { clock, last: clock.now(), times: vec![] }
    }

    fn end(&mut self, step: Option<usize>, kernel: String) {
        let now = self.clock.now();
        let time = now.saturating_sub(self.last);
        self.times.push(StepTime { step, kernel, clock: TimedBy::Host, time });
        self.last = now;
    }
}

impl Gpu {
    /// The parts of one run, one after the other.
    pub(super) fn parts(&mut self, inputs: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String> {
        let Self { device, program, memory, cpu, .. } = self;
        let mut parts = Parts::begin(clock);
        for (number, phase) in program.phases.iter().enumerate() {
            for step in &phase.steps {
                cpu.run_step(*step, inputs)?;
                parts.end(Some(*step), "on the CPU".into());
            }
            memory
                .run(device, number, phase, cpu, inputs, &mut |moment| parts.end(None, moment.to_string()))?;
        }
        let outputs = cpu.outputs(inputs)?;
        parts.end(None, format!("{} outputs taken", outputs.len()));
        Ok(parts.times)
    }

    /// What each dispatch takes, in one run. A pass a dispatch costs more than one for all, so that the sum is above what a
    /// run takes.
    pub(super) fn profiled(&mut self, inputs: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String> {
        let Self { device, program, memory, cpu, .. } = self;
        let (mut times, mut empty) = (vec![], None);
        for (number, phase) in program.phases.iter().enumerate() {
            for step in &phase.steps {
                cpu.run_step(*step, inputs)?;
            }
            memory.upload(device, (number, phase), cpu, inputs)?;
            times.extend(memory.timed(device, (number, phase), clock)?);
            memory.download(device, phase, cpu)?;
            if number == 0 {
                empty = Some(memory.least(device, (number, phase), clock)?);
            }
        }
        cpu.outputs(inputs)?;
        times.extend(empty);
        Ok(times)
    }
}

impl FloatGpu {
    /// As of a network of int8.
    pub(super) fn parts(&mut self, inputs: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String> {
        let mut parts = Parts::begin(clock);
        let outputs = self.run_parts(inputs, &mut |moment| parts.end(None, moment.to_string()))?;
        parts.end(None, format!("{} outputs taken", outputs.len()));
        Ok(parts.times)
    }

    /// What each dispatch takes, over whatever lies in the GPU's memory: a run's values, if there was one.
    pub(super) fn profiled(&mut self, clock: &Clock) -> Result<Vec<StepTime>, String> {
        let (device, program, memory) = self.executed();
        let mut times = memory.timed(device, (0, &program.phases[0]), clock)?;
        times.push(memory.least(device, (0, &program.phases[0]), clock)?);
        Ok(times)
    }
}

/// What every time of a dispatch has in it: a pass in which next to nothing is done.
const ONE_WORKGROUP: &str = "a pass of one workgroup";

const PASSES_MAX: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;

impl Memory {
    /// What each dispatch of a phase takes: by the GPU's clock, else by the host's.
    fn timed(
        &self,
        device: &Device,
        numbered: (usize, &Phase),
        clock: &Clock,
    ) -> Result<Vec<StepTime>, String> {
        let (number, phase) = numbered;
        let timed = |(by, times): (TimedBy, Vec<Duration>)| {
            let each = phase.dispatches.iter().zip(times);
            let each = each.map(|(dispatch, time)| StepTime {
                step: Some(dispatch.step),
                kernel: format!("{:?}", dispatch.variant),
                clock: by,
                time,
            });
            each.collect()
        };
        if !device.has_clock() {
            let each =
                (0..phase.dispatches.len()).map(|at| self.repeated(device, (number, phase), at, clock));
            return Ok(timed((TimedBy::Repeated, each.collect::<Result<_, _>>()?)));
        }
        let mut times = vec![];
        // A query set has so many places at most.
        for first in (0..phase.dispatches.len()).step_by(PASSES_MAX) {
            let range = first..(first + PASSES_MAX).min(phase.dispatches.len());
            times.extend(self.stamped(device, number, phase, range)?);
        }
        Ok(timed((TimedBy::Gpu, times)))
    }

    /// A pass has a price, whatever is in it.
    fn least(
        &self,
        device: &Device,
        (number, phase): (usize, &Phase),
        clock: &Clock,
    ) -> Result<StepTime, String> {
        /// Passes of one workgroup, of which the fastest counts.
        const ENOUGH: usize = 16;
        let one = |dispatch: &Dispatch| Dispatch { workgroups: [1, 1], ..dispatch.clone() };
        let dispatches: Vec<Dispatch> = phase.dispatches.iter().take(ENOUGH).map(one).collect();
        let small = Phase { dispatches, ..Phase::default() };
        let times = self.timed(device, (number, &small), clock)?;
        let (kernel, none) = (ONE_WORKGROUP.to_owned(), (TimedBy::Gpu, Duration::ZERO));
        let least = times.iter().map(|one| (one.clock, one.time)).min_by_key(|(_, time)| *time);
        let (clock, time) = least.unwrap_or(none);
        Ok(StepTime { step: None, kernel, clock, time })
    }

    /// By the host's clock: a dispatch so often in one submission that this takes a while, without what a submission takes.
    fn repeated(
        &self,
        device: &Device,
        numbered: (usize, &Phase),
        at: usize,
        clock: &Clock,
    ) -> Result<Duration, String> {
        const ENOUGH: Duration = Duration::from_millis(1);
        const TIMES_MAX: u32 = 32;
        // The least of a few: what else the machine does only makes it longer.
        let least = |times: u32| {
            let tries = (0..3).map(|_| self.submitted(device, numbered, at, times, clock));
            tries.collect::<Result<Vec<_>, _>>().map(|tries| tries.into_iter().min().unwrap_or_default())
        };
        let once = least(1)?;
        let rest = (ENOUGH.as_nanos() / once.as_nanos().max(1)) as u32;
        let rest = rest.clamp(1, TIMES_MAX - 1);
        let often = least(1 + rest)?;
        // Where that says nothing, all of it, so that no noise passes for speed.
        Ok(often
            .checked_sub(once)
            .filter(|more| !more.is_zero())
            .map_or(often / (1 + rest), |more| more / rest))
    }

    fn submitted(
        &self,
        device: &Device,
        (number, phase): (usize, &Phase),
        at: usize,
        times: u32,
        clock: &Clock,
    ) -> Result<Duration, String> {
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for _ in 0..times {
                self.dispatch(&mut pass, device, number, phase, at..at + 1)?;
            }
        }
        let commands = encoder.finish();
        let begin = clock.now();
        device.queue.submit([commands]);
        device.wait()?;
        Ok(clock.now().saturating_sub(begin))
    }

    /// By the GPU's clock: some dispatches of a phase, each in a pass of its own.
    fn stamped(
        &self,
        device: &Device,
        number: usize,
        phase: &Phase,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<Duration>, String> {
        let count = 2 * range.len() as u32;
        if count == 0 {
            return Ok(vec![]);
        }
        let scope = Scope::new(&device.device);
        let queries = device.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let buffer = |usage| {
            device.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: u64::from(count) * 8,
                usage,
                mapped_at_creation: false,
            })
        };
        use wgpu::BufferUsages as Usage;
        let resolved = buffer(Usage::QUERY_RESOLVE | Usage::COPY_SRC);
        let readback = buffer(Usage::MAP_READ | Usage::COPY_DST);
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (i, at) in range.enumerate() {
            let writes = wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(2 * i as u32),
                end_of_pass_write_index: Some(2 * i as u32 + 1),
            };
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(writes),
            });
            self.dispatch(&mut pass, device, number, phase, at..at + 1)?;
        }
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &readback, 0, u64::from(count) * 8);
        scope.end()?;
        let flight = Flight::start(device, encoder, &readback, u64::from(count) * 8);
        flight.land(device, &readback, |bytes| {
            let (stamps, _) = bytes.as_chunks::<8>();
            let (pairs, _) = stamps.as_chunks::<2>();
            let taken = |[start, end]: [u64; 2]| {
                let nanoseconds =
                    end.saturating_sub(start) as f64 * f64::from(device.queue.get_timestamp_period());
                Duration::from_nanos(nanoseconds as u64)
            };
            pairs.iter().map(|pair| taken(pair.map(u64::from_le_bytes))).collect()
        })
    }
}
