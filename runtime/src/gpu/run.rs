//! Runs the phases of a program: what lies in the GPU's memory, and the way there and back.

use std::{ops::Range, sync::mpsc, time::Duration};

use andon_shaders::PARAMS_BYTES;

use super::{
    device::{Device, Scope},
    program::{Phase, Program, Transfer},
};
use crate::cpu::Cpu;

/// How long a submission may take: software that plays a GPU needs seconds for large networks.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);

/// The top bit of every byte: signed bytes and unsigned ones of the same meaning differ in it.
const SIGN: u8 = 0x80;

pub(crate) struct Memory {
    arena: wgpu::Buffer,
    /// Where downloads go; `None` if there are none.
    readback: Option<wgpu::Buffer>,
    pub(super) bindings: wgpu::BindGroup,
    /// For each phase the offset of its first dispatch's parameters.
    pub(super) params: Vec<u32>,
    /// Bytes on their way to the GPU.
    staging: Vec<u8>,
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
        let bytes: Vec<u8> = program.constants.iter().flat_map(|word| word.to_le_bytes()).collect();
        let constants = buffer(bytes.len() as u64, Usage::STORAGE | Usage::COPY_DST);
        device.queue.write_buffer(&constants, 0, &bytes);
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
        let longest = |phase: &Phase| phase.downloads.iter().map(length).sum::<usize>();
        let longest = program.phases.iter().map(longest).max().unwrap_or(0);
        let readback = (longest > 0).then(|| buffer(longest as u64, Usage::MAP_READ | Usage::COPY_DST));
        let bindings = device.bind(&arena, &constants, &params);
        scope.end()?;
        Ok(Self { arena, readback, bindings, params: offsets, staging: vec![] })
    }

    /// Uploads, dispatches and downloads of phase number `number`.
    pub(crate) fn run(
        &mut self,
        device: &Device,
        number: usize,
        phase: &Phase,
        cpu: &mut Cpu,
    ) -> Result<(), String> {
        self.upload(device, phase, cpu);
        if phase.dispatches.is_empty() && phase.downloads.is_empty() {
            return Ok(());
        }
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        if !phase.dispatches.is_empty() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.dispatch(&mut pass, device, number, phase, 0..phase.dispatches.len())?;
        }
        self.download(device, encoder, phase, cpu)
    }

    pub(super) fn upload(&mut self, device: &Device, phase: &Phase, cpu: &Cpu) {
        for transfer in &phase.uploads {
            self.staging.resize(length(transfer), 0);
            pack(cpu, transfer, &mut self.staging);
            device.queue.write_buffer(&self.arena, transfer.at as u64, &self.staging);
        }
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
            if current != Some(dispatch.variant) {
                pass.set_pipeline(device.pipeline(dispatch.variant).ok_or("a kernel was not prepared")?);
                current = Some(dispatch.variant);
            }
            let offset = self.params[number] + i as u32 * PARAMS_BYTES as u32;
            pass.set_bind_group(0, &self.bindings, &[offset]);
            let [x, y] = dispatch.workgroups;
            pass.dispatch_workgroups(x, y, 1);
        }
        Ok(())
    }

    /// Submits what was encoded, and brings a phase's results back.
    pub(super) fn download(
        &self,
        device: &Device,
        mut encoder: wgpu::CommandEncoder,
        phase: &Phase,
        cpu: &mut Cpu,
    ) -> Result<(), String> {
        let (Some(readback), false) = (&self.readback, phase.downloads.is_empty()) else {
            device.queue.submit([encoder.finish()]);
            return device.fault().map_or(Ok(()), Err);
        };
        let mut end = 0;
        for transfer in &phase.downloads {
            let bytes = length(transfer) as u64;
            encoder.copy_buffer_to_buffer(&self.arena, transfer.at as u64, readback, end, bytes);
            end += bytes;
        }
        read(
            device,
            encoder,
            readback,
            end,
            || (),
            |bytes| {
                let mut at = 0;
                for transfer in &phase.downloads {
                    unpack(cpu, transfer, &bytes[at..at + length(transfer)]);
                    at += length(transfer);
                }
            },
        )
    }
}

/// Submits what was encoded, says so, waits for it, and shows the first `end` bytes of a buffer that can be mapped.
pub(super) fn read<T>(
    device: &Device,
    encoder: wgpu::CommandEncoder,
    readback: &wgpu::Buffer,
    end: u64,
    submitted: impl FnOnce(),
    show: impl FnOnce(&[u8]) -> T,
) -> Result<T, String> {
    let (done, mapped) = mpsc::channel();
    encoder.map_buffer_on_submit(readback, wgpu::MapMode::Read, 0..end, move |result| {
        // Whoever waited has given up if this fails.
        done.send(result).ok();
    });
    let index = device.queue.submit([encoder.finish()]);
    submitted();
    let wait = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(WAIT_MAX) };
    device.device.poll(wait).map_err(|e| e.to_string())?;
    if let Some(fault) = device.fault() {
        return Err(fault);
    }
    let mapped = mapped.try_recv().map_err(|_| "the GPU did not give its results back")?;
    mapped.map_err(|e| e.to_string())?;
    let bytes = readback.slice(0..end).get_mapped_range().map_err(|e| e.to_string())?;
    let shown = show(&bytes);
    drop(bytes);
    readback.unmap();
    Ok(shown)
}

/// Bytes from the first pixel's to the last's, what lies between them and what fills up words included.
fn length(transfer: &Transfer) -> usize {
    let spot = &transfer.spot;
    ((spot.shape.pixels() - 1) * spot.stride + spot.shape.c).next_multiple_of(4)
}

fn pack(cpu: &Cpu, transfer: &Transfer, to: &mut [u8]) {
    let Transfer { place, spot, .. } = transfer;
    let (view, channels) = (cpu.bytes(place), place.shape.c);
    if spot.stride == view.stride {
        return to.iter_mut().zip(view.bytes).for_each(|(to, from)| *to = from ^ SIGN);
    }
    if (channels, view.stride, spot.stride) == (3, 3, 4) {
        for (to, from) in to.as_chunks_mut::<4>().0.iter_mut().zip(view.bytes.as_chunks::<3>().0) {
            *to = [from[0] ^ SIGN, from[1] ^ SIGN, from[2] ^ SIGN, 0];
        }
        return;
    }
    for (to, from) in to.chunks_mut(spot.stride).zip(view.bytes.chunks(view.stride)) {
        to.iter_mut().zip(&from[..channels]).for_each(|(to, from)| *to = from ^ SIGN);
    }
}

fn unpack(cpu: &mut Cpu, transfer: &Transfer, from: &[u8]) {
    let Transfer { place, spot, .. } = transfer;
    let channels = place.shape.c;
    let stride = place.stride;
    let view = cpu.bytes_mut(place);
    for (to, from) in view.bytes.chunks_mut(stride).zip(from.chunks(spot.stride)) {
        to.iter_mut().zip(&from[..channels]).for_each(|(to, from)| *to = from ^ SIGN);
    }
}
