//! What each dispatch takes, by the GPU's own clock.

use std::sync::mpsc;

use andon_shaders::PARAMS_BYTES;

use super::{
    Gpu,
    device::{Device, Scope},
    program::Phase,
    run::{Memory, WAIT_MAX},
};
use crate::tensor::Tensor;

/// One dispatch.
#[derive(Debug, Clone)]
pub(crate) struct Timed {
    pub(crate) step: usize,
    pub(crate) variant: andon_shaders::Variant,
    /// Median.
    pub(crate) nanoseconds: f64,
}

impl Gpu {
    /// Runs the network so often, each dispatch as a pass of its own between two timestamps. Errors where the GPU has none.
    pub(crate) fn profile(&mut self, inputs: &[&Tensor], rounds: usize) -> Result<Vec<Timed>, String> {
        let Self { device, program, memory, cpu } = self;
        if !device.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err("the GPU has no timestamps".into());
        }
        let mut all: Vec<Timed> = vec![];
        for (number, phase) in program.phases.iter().enumerate() {
            for step in &phase.steps {
                cpu.run_step(*step, inputs)?;
            }
            let mut times = vec![vec![]; phase.dispatches.len()];
            for _ in 0..rounds {
                let once = memory.time(device, number, phase)?;
                times.iter_mut().zip(once).for_each(|(times, time)| times.push(time));
            }
            for (dispatch, mut times) in phase.dispatches.iter().zip(times) {
                times.sort_unstable_by(f64::total_cmp);
                let nanoseconds = times.get(times.len() / 2).copied().unwrap_or(0.0);
                all.push(Timed { step: dispatch.step, variant: dispatch.variant, nanoseconds });
            }
            memory.run(device, number, phase, cpu)?;
        }
        cpu.outputs(inputs)?;
        Ok(all)
    }
}

impl Memory {
    /// Nanoseconds that each dispatch of a phase takes, alone in a pass.
    pub(super) fn time(&self, device: &Device, number: usize, phase: &Phase) -> Result<Vec<f64>, String> {
        let count = phase.dispatches.len() as u32;
        if count == 0 {
            return Ok(vec![]);
        }
        let scope = Scope::new(&device.device);
        let queries = device.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2 * count,
        });
        let bytes = u64::from(16 * count);
        let buffer = |usage| {
            let descriptor =
                wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
            device.device.create_buffer(&descriptor)
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let readback = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (i, dispatch) in (0u32..).zip(&phase.dispatches) {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(2 * i),
                    end_of_pass_write_index: Some(2 * i + 1),
                }),
            });
            pass.set_pipeline(device.pipeline(dispatch.variant).ok_or("a kernel was not prepared")?);
            pass.set_bind_group(0, &self.bindings, &[self.params[number] + i * PARAMS_BYTES as u32]);
            let [x, y] = dispatch.workgroups;
            pass.dispatch_workgroups(x, y, 1);
        }
        encoder.resolve_query_set(&queries, 0..2 * count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &readback, 0, bytes);
        let (done, mapped) = mpsc::channel();
        encoder.map_buffer_on_submit(&readback, wgpu::MapMode::Read, .., move |result| {
            done.send(result).ok();
        });
        let index = device.queue.submit([encoder.finish()]);
        scope.end()?;
        let wait = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(WAIT_MAX) };
        device.device.poll(wait).map_err(|e| e.to_string())?;
        let mapped = mapped.try_recv().map_err(|_| "the GPU did not give its timestamps back")?;
        mapped.map_err(|e| e.to_string())?;
        let bytes = readback.slice(..).get_mapped_range().map_err(|e| e.to_string())?;
        let ticks: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|t| u64::from_le_bytes(*t)).collect();
        let period = f64::from(device.queue.get_timestamp_period());
        Ok(ticks.as_chunks::<2>().0.iter().map(|[a, b]| b.wrapping_sub(*a) as f64 * period).collect())
    }
}
