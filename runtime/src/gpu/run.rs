//! Runs the phases of a program: what lies in the GPU's memory, and what is dispatched over it.

use std::{fmt, ops::Range};

use andon_shaders::PARAMS_BYTES;

use super::{
    device::{Device, Scope},
    ends::Given,
    program::{Phase, Program},
    resized::Album,
    transfer::{Flight, Lane, downloaded},
};
use crate::{cpu::Cpu, tensor::Tensor};

pub(crate) struct Memory {
    pub(super) arena: wgpu::Buffer,
    pub(super) bindings: wgpu::BindGroup,
    /// For each phase the offset of its first dispatch's parameters.
    pub(super) params: Vec<u32>,
    /// A second one from the first stream on.
    lanes: Vec<Lane>,
    pub(super) album: Album,
    /// For pictures of another size, which are bound beside them.
    constants: wgpu::Buffer,
    blocks: wgpu::Buffer,
    /// What the first input was that went up last.
    given: Given,
}

/// What of a phase is done: who has a clock learns what each took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Uploaded { bytes: u64 },
    Encoded { dispatches: usize },
    Submitted,
    Done,
    Downloaded { bytes: u64 },
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uploaded { bytes } => write!(f, "{bytes} bytes handed over"),
            Self::Encoded { dispatches } => write!(f, "{dispatches} dispatches encoded"),
            Self::Submitted => f.write_str("submitted"),
            Self::Done => f.write_str("waited for"),
            Self::Downloaded { bytes } => write!(f, "{bytes} bytes taken over"),
        }
    }
}

impl Memory {
    pub(crate) fn new(device: &Device, program: &Program) -> Result<Self, String> {
        let limits = device.device.limits();
        let binding_max = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let needed = program.arena_bytes.max(4 * program.constants.len()) as u64;
        if needed > binding_max {
            return Err(format!("it needs {needed} bytes in one buffer, the GPU has {binding_max}"));
        }
        let scope = Scope::new(&device.device);
        let buffer = |size: u64, usage: wgpu::BufferUsages| {
            let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
            device.device.create_buffer(&descriptor)
        };
        use wgpu::BufferUsages as Usage;
        let arena = buffer(program.arena_bytes as u64, Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC);
        for (at, bytes) in &program.fills {
            device.queue.write_buffer(&arena, *at as u64, bytes);
        }
        let constants = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * program.constants.len() as u64,
            usage: Usage::STORAGE,
            mapped_at_creation: true,
        });
        // Weights are written where they go from, without a copy of their own.
        let mut view = constants.slice(..).get_mapped_range_mut().map_err(|e| e.to_string())?;
        let (words, _) = view.slice(..).into_chunks::<4>();
        words.write_iter(program.constants.iter().map(|word| word.to_le_bytes()));
        drop(view);
        constants.unmap();
        let (mut offsets, mut bytes) = (vec![], vec![]);
        for phase in &program.phases {
            offsets.push(bytes.len() as u32);
            for dispatch in &phase.dispatches {
                let end = bytes.len() + PARAMS_BYTES as usize;
                bytes.extend(dispatch.params.iter().flat_map(|word| word.to_le_bytes()));
                bytes.resize(end, 0);
            }
        }
        bytes.resize(bytes.len().max(PARAMS_BYTES as usize), 0);
        let params = buffer(bytes.len() as u64, Usage::UNIFORM | Usage::COPY_DST);
        device.queue.write_buffer(&params, 0, &bytes);
        let bindings = device.bind(&arena, &constants, &params);
        let lanes = vec![Lane::new(device, program)];
        scope.end()?;
        let (album, given) = (Album::default(), Given::Real);
        Ok(Self { arena, bindings, params: offsets, lanes, album, constants, blocks: params, given })
    }

    /// Makes what a run needs that overlaps another, if it is not there yet.
    pub(super) fn second_lane(&mut self, device: &Device, program: &Program) -> Result<(), String> {
        if self.lanes.len() < super::LANES {
            let scope = Scope::new(&device.device);
            let lane = Lane::new(device, program);
            scope.end()?;
            self.lanes.push(lane);
        }
        Ok(())
    }

    /// Uploads, dispatches and downloads of phase number `number`.
    pub(crate) fn run(
        &mut self,
        device: &Device,
        number: usize,
        phase: &Phase,
        cpu: &mut Cpu,
        inputs: &[&Tensor],
        after: &mut dyn FnMut(Moment),
    ) -> Result<(), String> {
        if !phase.is_on_gpu() {
            return Ok(());
        }
        let flight = self.start(device, 0, (number, phase), cpu, inputs, after)?;
        self.land(device, 0, flight, phase, cpu, after)
    }

    /// Uploads and dispatches of a phase, without waiting for them.
    pub(super) fn start(
        &mut self,
        device: &Device,
        lane: usize,
        (number, phase): (usize, &Phase),
        cpu: &mut Cpu,
        inputs: &[&Tensor],
        after: &mut dyn FnMut(Moment),
    ) -> Result<Option<Flight>, String> {
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let bytes = self.hand_over(device, &mut encoder, lane, (number, phase), cpu, inputs)?;
        if bytes > 0 {
            after(Moment::Uploaded { bytes });
        }
        if !phase.dispatches.is_empty() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.dispatch(&mut pass, device, number, phase, 0..phase.dispatches.len())?;
        }
        after(Moment::Encoded { dispatches: phase.dispatches.len() });
        let flight = self.lanes[lane].submit(device, encoder, &self.arena, phase);
        after(Moment::Submitted);
        Ok(flight)
    }

    /// Encodes the uploads of a phase; returns how many bytes they are.
    fn hand_over(
        &mut self,
        device: &Device,
        encoder: &mut wgpu::CommandEncoder,
        lane: usize,
        (number, phase): (usize, &Phase),
        cpu: &mut Cpu,
        inputs: &[&Tensor],
    ) -> Result<u64, String> {
        let Self { arena, lanes, album, constants, blocks, .. } = self;
        let (mut bytes, given) = lanes[lane].upload(device, encoder, arena, (number, phase), cpu, inputs)?;
        if given == Some(Given::Resized) {
            let to = phase.raws.iter().find_map(|raw| raw.picture);
            let picture = inputs.first().copied().zip(to).ok_or("an input is missing")?;
            let bind = |buffer: &wgpu::Buffer| device.bind_apart(arena, [buffer, constants], blocks);
            bytes += album.upload(device, encoder, lane, cpu, picture, &bind)?;
        }
        self.given = given.unwrap_or(self.given);
        Ok(bytes)
    }

    /// Waits for what [`Memory::start`] gave, and brings the phase's results back.
    pub(super) fn land(
        &self,
        device: &Device,
        lane: usize,
        flight: Option<Flight>,
        phase: &Phase,
        cpu: &mut Cpu,
        after: &mut dyn FnMut(Moment),
    ) -> Result<(), String> {
        self.lanes[lane].land(device, flight, phase, cpu, || after(Moment::Done))?;
        if phase.has_results() {
            after(Moment::Downloaded { bytes: downloaded(phase) });
        }
        Ok(())
    }

    /// A phase's uploads alone.
    pub(super) fn upload(
        &mut self,
        device: &Device,
        (number, phase): (usize, &Phase),
        cpu: &mut Cpu,
        inputs: &[&Tensor],
    ) -> Result<(), String> {
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.hand_over(device, &mut encoder, 0, (number, phase), cpu, inputs)?;
        device.queue.submit([encoder.finish()]);
        Ok(())
    }

    /// A phase's downloads alone.
    pub(super) fn download(&self, device: &Device, phase: &Phase, cpu: &mut Cpu) -> Result<(), String> {
        let encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let flight = self.lanes[0].submit(device, encoder, &self.arena, phase);
        self.lanes[0].land(device, flight, phase, cpu, || ())
    }

    /// Some of a phase's dispatches.
    pub(super) fn dispatch(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        device: &Device,
        number: usize,
        phase: &Phase,
        range: Range<usize>,
    ) -> Result<(), String> {
        let mut current = None;
        for i in range {
            let dispatch = &phase.dispatches[i];
            if dispatch.given.is_some_and(|given| given != self.given) {
                continue;
            }
            if current != Some(dispatch.variant) {
                pass.set_pipeline(device.pipeline(dispatch.variant).ok_or("a kernel was not prepared")?);
                current = Some(dispatch.variant);
            }
            let offset = self.params[number] + i as u32 * PARAMS_BYTES as u32;
            let bindings = match dispatch.given {
                Some(Given::Resized) => self.album.bindings().ok_or("there is no picture")?,
                _ => &self.bindings,
            };
            pass.set_bind_group(0, bindings, &[offset]);
            let [x, y] = dispatch.workgroups;
            pass.dispatch_workgroups(x, y, 1);
        }
        Ok(())
    }
}
