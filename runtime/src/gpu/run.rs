//! Runs the phases of a program: what lies in the GPU's memory, and the way there and back.

use std::{
    cell::RefCell,
    fmt, iter,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
        mpsc,
    },
    time::Duration,
};

use andon_shaders::PARAMS_BYTES;

use super::{
    device::{Device, Scope},
    program::{Phase, Program, Transfer},
};
use crate::cpu::{Cpu, View};

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
    /// For each phase what its uploads go through.
    staging: Vec<Option<Staging>>,
}

/// Memory that the host writes and the GPU copies from. It stays mapped except from a submission until that is done.
struct Staging {
    buffer: wgpu::Buffer,
    mapped: Arc<AtomicBool>,
}

impl Staging {
    fn new(device: &Device, size: u64) -> Self {
        let buffer = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        Self { buffer, mapped: Arc::new(AtomicBool::new(true)) }
    }

    /// Maps it again once what is being encoded is done.
    fn map_after(&self, encoder: &wgpu::CommandEncoder) {
        let mapped = Arc::clone(&self.mapped);
        encoder.map_buffer_on_submit(&self.buffer, wgpu::MapMode::Write, .., move |result| {
            mapped.store(result.is_ok(), Release);
        });
    }
}

/// What of a phase is done: who has a clock learns what each took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Uploaded { bytes: usize },
    Encoded { dispatches: usize },
    Submitted,
    Done,
    Downloaded { bytes: usize },
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
        let uploaded = |phase: &Phase| phase.uploads.iter().map(length).sum::<usize>() as u64;
        let sizes = program.phases.iter().map(uploaded);
        let staging = sizes.map(|size| (size > 0).then(|| Staging::new(device, size))).collect();
        scope.end()?;
        Ok(Self { arena, readback, bindings, params: offsets, staging })
    }

    /// Uploads, dispatches and downloads of phase number `number`.
    pub(crate) fn run(
        &mut self,
        device: &Device,
        number: usize,
        phase: &Phase,
        cpu: &mut Cpu,
        after: &mut dyn FnMut(Moment),
    ) -> Result<(), String> {
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        if !phase.uploads.is_empty() {
            self.upload(device, &mut encoder, number, phase, cpu)?;
            after(Moment::Uploaded { bytes: phase.uploads.iter().map(length).sum() });
        }
        if phase.uploads.is_empty() && phase.dispatches.is_empty() && phase.downloads.is_empty() {
            return Ok(());
        }
        if !phase.dispatches.is_empty() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.dispatch(&mut pass, device, number, phase, 0..phase.dispatches.len())?;
        }
        after(Moment::Encoded { dispatches: phase.dispatches.len() });
        self.download(device, encoder, phase, cpu, after)
    }

    /// Puts a phase's uploads where the GPU finds them, and encodes the copies to their places.
    pub(super) fn upload(
        &mut self,
        device: &Device,
        encoder: &mut wgpu::CommandEncoder,
        number: usize,
        phase: &Phase,
        cpu: &mut Cpu,
    ) -> Result<(), String> {
        let Some(staging) = self.staging.get_mut(number).and_then(Option::as_mut) else { return Ok(()) };
        if !staging.mapped.load(Acquire) {
            // A run before this one has failed, and what became of its submission nobody knows.
            *staging = Staging::new(device, staging.buffer.size());
        }
        let mut view = staging.buffer.slice(..).get_mapped_range_mut().map_err(|e| e.to_string())?;
        let mut at = 0;
        for transfer in &phase.uploads {
            let bytes = length(transfer);
            pack(cpu, transfer, view.slice(at..at + bytes));
            let (from, to) = (&staging.buffer, transfer.at as u64);
            encoder.copy_buffer_to_buffer(from, at as u64, &self.arena, to, bytes as u64);
            at += bytes;
        }
        drop(view);
        staging.mapped.store(false, Release);
        staging.buffer.unmap();
        staging.map_after(encoder);
        Ok(())
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
        after: &mut dyn FnMut(Moment),
    ) -> Result<(), String> {
        let (Some(readback), false) = (&self.readback, phase.downloads.is_empty()) else {
            device.queue.submit([encoder.finish()]);
            after(Moment::Submitted);
            return device.fault().map_or(Ok(()), Err);
        };
        let mut end = 0;
        for transfer in &phase.downloads {
            let bytes = length(transfer) as u64;
            encoder.copy_buffer_to_buffer(&self.arena, transfer.at as u64, readback, end, bytes);
            end += bytes;
        }
        let after = RefCell::new(after);
        read(
            device,
            encoder,
            readback,
            end,
            || (after.borrow_mut())(Moment::Submitted),
            |bytes| {
                (after.borrow_mut())(Moment::Done);
                let mut at = 0;
                for transfer in &phase.downloads {
                    unpack(cpu, transfer, &bytes[at..at + length(transfer)]);
                    at += length(transfer);
                }
            },
        )?;
        (after.borrow_mut())(Moment::Downloaded { bytes: end as usize });
        Ok(())
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

/// What is packed by one thread at a time.
const BLOCK: usize = 1 << 16;

fn pack(cpu: &mut Cpu, transfer: &Transfer, to: wgpu::WriteOnly<'_, [u8]>) {
    let Transfer { place, spot, .. } = transfer;
    let channels = place.shape.c;
    let pixels_done = |bytes: usize| bytes / spot.stride;
    if to.len() < 2 * BLOCK || !BLOCK.is_multiple_of(spot.stride) {
        let view = cpu.bytes(place);
        return pack_part(channels, view, to, spot.stride);
    }
    // Each block is written by whoever gets it.
    let (blocks, rest) = to.into_chunks::<BLOCK>();
    let blocks: Vec<_> = blocks.into_iter().map(|block| Mutex::new(Some(block))).collect();
    cpu.share(place, blocks.len(), &|number, view| {
        let block = blocks[number].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(block) = block {
            let view = view.after(pixels_done(number * BLOCK));
            pack_part(channels, view, block.into(), spot.stride);
        }
    });
    if !rest.is_empty() {
        let view = cpu.bytes(place).after(pixels_done(blocks.len() * BLOCK));
        pack_part(channels, view, rest, spot.stride);
    }
}

/// Fills `to`, in which from one pixel to the next are `to_stride` bytes, with what a view begins with.
fn pack_part(channels: usize, view: View<'_>, mut to: wgpu::WriteOnly<'_, [u8]>, to_stride: usize) {
    let View { bytes: from, stride: from_stride } = view;
    if to_stride == from_stride {
        let (bytes, count) = (from.iter().map(|byte| byte ^ SIGN), to.len());
        return to.write_iter(bytes.chain(iter::repeat(0)).take(count));
    }
    if (channels, from_stride, to_stride) == (3, 3, 4) {
        let pixels = from.as_chunks::<3>().0.iter();
        let pixels = pixels.map(|[a, b, c]| [a ^ SIGN, b ^ SIGN, c ^ SIGN, 0]);
        let (groups, _) = to.into_chunks::<4>();
        let count = groups.len();
        return groups.write_iter(pixels.take(count));
    }
    for from in from.chunks(from_stride).take(to.len().div_ceil(to_stride)) {
        let count = to_stride.min(to.len());
        let (own, others) = to.split_at(count);
        let bytes = from[..channels].iter().map(|byte| byte ^ SIGN);
        own.write_iter(bytes.chain(iter::repeat(0)).take(count));
        to = others;
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
