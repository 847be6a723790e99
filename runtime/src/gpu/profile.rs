//! Where a run's time goes: its parts by the host's clock, and each dispatch by the GPU's own, in a pass of its own with a
//! time before and one behind it.

use std::time::Duration;

use super::{
    Gpu,
    device::Scope,
    program::{Dispatch, Phase},
    run::Memory,
    transfer::Flight,
};
use crate::{
    engine::{Clock, StepTime, TimedBy},
    tensor::Tensor,
};

impl Gpu {
    /// The parts of one run, one after the other.
    pub(super) fn parts(&mut self, inputs: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String> {
        let Self { device, program, memory, cpu, .. } = self;
        let (mut times, mut last) = (vec![], clock.now());
        let mut part = |step: Option<usize>, kernel: String| {
            let now = clock.now();
            times.push(StepTime { step, kernel, clock: TimedBy::Host, time: now.saturating_sub(last) });
            last = now;
        };
        for (number, phase) in program.phases.iter().enumerate() {
            for step in &phase.steps {
                cpu.run_step(*step, inputs)?;
                part(Some(*step), "on the CPU".into());
            }
            memory.run(device, number, phase, cpu, inputs, &mut |moment| part(None, moment.to_string()))?;
        }
        let outputs = cpu.outputs(inputs)?;
        part(None, format!("{} outputs taken", outputs.len()));
        Ok(times)
    }

    /// What each dispatch takes, in one run. A pass a dispatch costs more than one for all, so that the sum is above what a
    /// run takes.
    pub(super) fn profiled(&mut self, inputs: &[&Tensor]) -> Result<Vec<StepTime>, String> {
        let Self { device, program, memory, cpu, .. } = self;
        if !device.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err("the driver has no clock for single kernels".into());
        }
        /// Passes of one workgroup, of which the fastest counts.
        const ENOUGH: usize = 16;
        let (mut times, mut empty) = (vec![], 0.0);
        for (number, phase) in program.phases.iter().enumerate() {
            for step in &phase.steps {
                cpu.run_step(*step, inputs)?;
            }
            memory.upload(device, (number, phase), cpu, inputs)?;
            // A query set has so many places at most.
            for first in (0..phase.dispatches.len()).step_by(PASSES_MAX) {
                let range = first..(first + PASSES_MAX).min(phase.dispatches.len());
                let stamps = memory.stamped(device, number, phase, range.clone())?;
                for (dispatch, [start, end]) in phase.dispatches[range].iter().zip(stamps) {
                    let ticks = end.saturating_sub(start) as f64;
                    let nanoseconds = ticks * f64::from(device.queue.get_timestamp_period());
                    let (step, kernel) = (Some(dispatch.step), format!("{:?}", dispatch.variant));
                    let time = Duration::from_nanos(nanoseconds as u64);
                    times.push(StepTime { step, kernel, clock: TimedBy::Gpu, time });
                }
            }
            memory.download(device, phase, cpu)?;
            // A pass has a price, whatever is in it.
            if number == 0 {
                let one = |dispatch: &Dispatch| Dispatch { workgroups: [1, 1], ..dispatch.clone() };
                let dispatches: Vec<Dispatch> = phase.dispatches.iter().take(ENOUGH).map(one).collect();
                let count = dispatches.len();
                let small = Phase { dispatches, ..Phase::default() };
                let stamps = memory.stamped(device, number, &small, 0..count)?;
                let ticks = stamps.iter().map(|[start, end]| end.saturating_sub(*start)).min().unwrap_or(0);
                empty = ticks as f64 * f64::from(device.queue.get_timestamp_period());
            }
        }
        cpu.outputs(inputs)?;
        let (kernel, time) = (ONE_WORKGROUP.into(), Duration::from_nanos(empty as u64));
        times.push(StepTime { step: None, kernel, clock: TimedBy::Gpu, time });
        Ok(times)
    }
}

/// What every time of a dispatch has in it: a pass in which next to nothing is done.
const ONE_WORKGROUP: &str = "a pass of one workgroup";

const PASSES_MAX: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;

impl Memory {
    /// Runs some dispatches of a phase; for each the times before and behind it, in ticks.
    fn stamped(
        &self,
        device: &super::Device,
        number: usize,
        phase: &Phase,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<[u64; 2]>, String> {
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
            pairs.iter().map(|pair| pair.map(u64::from_le_bytes)).collect()
        })
    }
}
