//! Activations on their way between the two memories, and what carries them there and back: a [`Lane`]; and what is under
//! way on the GPU: a [`Flight`].

use std::{
    iter,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
        mpsc::{self, Receiver},
    },
    time::Duration,
};

use super::{
    device::Device,
    ends::Given,
    program::{Phase, Program, Raw, Transfer},
    resized::BYTES_MAX,
};
use crate::{
    cpu::{Cpu, View},
    preprocess::planes,
    resize::Resizer,
    tensor::{Data, Tensor},
};

/// How long a submission may take: software that plays a GPU needs seconds for large networks.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);

/// The top bit of every byte: signed bytes and unsigned ones of the same meaning differ in it.
const SIGN: u8 = 0x80;

/// What the uploads and downloads of one run go through; runs that overlap have one each.
pub(super) struct Lane {
    /// For each phase what its uploads go through.
    staging: Vec<Option<Staging>>,
    /// Where downloads go; `None` if there are none.
    readback: Option<wgpu::Buffer>,
}

impl Lane {
    pub(super) fn new(device: &Device, program: &Program) -> Self {
        let sizes = program.phases.iter().map(uploaded);
        let staging = sizes.map(|size| (size > 0).then(|| Staging::new(device, size))).collect();
        let longest = program.phases.iter().map(downloaded).max().unwrap_or(0);
        let readback = (longest > 0).then(|| readback(device, longest));
        Self { staging, readback }
    }

    /// Puts the uploads of phase `number` where the GPU finds them, and encodes the copies to their places. Returns how many
    /// bytes they are, and what the first input is, if it is among them.
    pub(super) fn upload(
        &mut self,
        device: &Device,
        encoder: &mut wgpu::CommandEncoder,
        arena: &wgpu::Buffer,
        (number, phase): (usize, &Phase),
        cpu: &mut Cpu,
        inputs: &[&Tensor],
    ) -> Result<(u64, Option<Given>), String> {
        let Some(staging) = self.staging.get_mut(number).and_then(Option::as_mut) else {
            return Ok((0, None));
        };
        let (end, first, copies) = staging.fill(device, encoder, |view| {
            let (mut at, mut first, mut copies) = (0, None, vec![]);
            for transfer in &phase.uploads {
                let bytes = length(transfer);
                pack(cpu, transfer, view.slice(at..at + bytes));
                copies.push((at as u64, transfer.at as u64, bytes as u64));
                at += bytes;
            }
            for raw in &phase.raws {
                let tensor = inputs.get(raw.input).ok_or("an input is missing")?;
                let (bytes, given) = hand_over(cpu, tensor, raw, view.slice(at..at + 4 * raw.values))?;
                first = first.or((raw.input == 0).then_some(given));
                copies.push((at as u64, raw.at as u64, bytes as u64));
                at += bytes;
            }
            Ok((at as u64, first, copies))
        })?;
        for (from, to, bytes) in copies {
            encoder.copy_buffer_to_buffer(&staging.buffer, from, arena, to, bytes);
        }
        Ok((end, first))
    }

    /// Encodes the copies of a phase's downloads, and submits all that is encoded.
    pub(super) fn submit(
        &self,
        device: &Device,
        mut encoder: wgpu::CommandEncoder,
        arena: &wgpu::Buffer,
        phase: &Phase,
    ) -> Option<Flight> {
        let (Some(readback), false) = (&self.readback, !phase.has_results()) else {
            device.queue.submit([encoder.finish()]);
            return None;
        };
        let mut end = 0;
        for transfer in &phase.downloads {
            let bytes = length(transfer) as u64;
            encoder.copy_buffer_to_buffer(arena, transfer.at as u64, readback, end, bytes);
            end += bytes;
        }
        for values in &phase.values {
            let bytes = values.bytes as u64;
            encoder.copy_buffer_to_buffer(arena, values.at as u64, readback, end, bytes);
            end += bytes;
        }
        Some(Flight::start(device, encoder, readback, end))
    }

    /// Waits for what [`Lane::submit`] gave, says so, and takes a phase's downloads over.
    pub(super) fn land(
        &self,
        device: &Device,
        flight: Option<Flight>,
        phase: &Phase,
        cpu: &mut Cpu,
        landed: impl FnOnce(),
    ) -> Result<(), String> {
        let (Some(readback), Some(flight)) = (&self.readback, flight) else {
            return device.fault().map_or(Ok(()), Err);
        };
        flight.land(device, readback, |bytes| {
            landed();
            let mut at = 0;
            for transfer in &phase.downloads {
                unpack(cpu, transfer, &bytes[at..at + length(transfer)]);
                at += length(transfer);
            }
            for values in &phase.values {
                cpu.receive(values.step, values.outlet, &bytes[at..at + values.bytes])?;
                at += values.bytes;
            }
            Ok(())
        })?
    }
}

/// A submission whose results will be read.
pub(super) struct Flight {
    index: wgpu::SubmissionIndex,
    mapped: Receiver<Result<(), wgpu::BufferAsyncError>>,
    end: u64,
}

impl Flight {
    /// Submits what was encoded; the first `end` bytes of a buffer that can be mapped are to be read.
    pub(super) fn start(
        device: &Device,
        encoder: wgpu::CommandEncoder,
        readback: &wgpu::Buffer,
        end: u64,
    ) -> Self {
        let (done, mapped) = mpsc::channel();
        encoder.map_buffer_on_submit(readback, wgpu::MapMode::Read, 0..end, move |result| {
            // Whoever waited has given up if this fails.
            done.send(result).ok();
        });
        let index = device.queue.submit([encoder.finish()]);
        Self { index, mapped, end }
    }

    /// Waits for it, and shows the bytes.
    pub(super) fn land<T>(
        self,
        device: &Device,
        readback: &wgpu::Buffer,
        show: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, String> {
        let wait = wgpu::PollType::Wait { submission_index: Some(self.index), timeout: Some(WAIT_MAX) };
        // What went wrong before says more than that there is nothing to wait for.
        device.device.poll(wait).map_err(|e| device.fault().unwrap_or_else(|| e.to_string()))?;
        if let Some(fault) = device.fault() {
            return Err(fault);
        }
        let mapped = self.mapped.try_recv().map_err(|_| "the GPU did not give its results back")?;
        mapped.map_err(|e| e.to_string())?;
        let bytes = readback.slice(0..self.end).get_mapped_range().map_err(|e| e.to_string())?;
        let shown = show(&bytes);
        drop(bytes);
        readback.unmap();
        Ok(shown)
    }
}

/// Memory that the host writes and the GPU copies from. It stays mapped except from a submission until that is done.
pub(super) struct Staging {
    buffer: wgpu::Buffer,
    mapped: Arc<AtomicBool>,
}

/// Memory that the GPU copies to and the host reads.
pub(super) fn readback(device: &Device, size: u64) -> wgpu::Buffer {
    device.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

impl Staging {
    pub(super) fn new(device: &Device, size: u64) -> Self {
        Self::of(device, size, wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC)
    }

    /// Which kernels read themselves, on a GPU that [`Device::shares_memory`].
    pub(super) fn shared(device: &Device, size: u64) -> Self {
        Self::of(device, size, wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::STORAGE)
    }

    fn of(device: &Device, size: u64, usage: wgpu::BufferUsages) -> Self {
        let buffer = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: true,
        });
        Self { buffer, mapped: Arc::new(AtomicBool::new(true)) }
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Lets the host write, and gives the buffer to what is being encoded.
    pub(super) fn fill<T>(
        &mut self,
        device: &Device,
        encoder: &mut wgpu::CommandEncoder,
        write: impl FnOnce(&mut wgpu::BufferViewMut) -> Result<T, String>,
    ) -> Result<T, String> {
        if !self.mapped.load(Acquire) {
            // A run before this one has failed, and what became of its submission nobody knows.
            *self = Self::of(device, self.buffer.size(), self.buffer.usage());
        }
        let mut view = self.buffer.slice(..).get_mapped_range_mut().map_err(|e| e.to_string())?;
        let written = write(&mut view)?;
        drop(view);
        self.mapped.store(false, Release);
        self.buffer.unmap();
        self.map_after(encoder);
        Ok(written)
    }

    /// Maps it again once what is being encoded is done.
    fn map_after(&self, encoder: &wgpu::CommandEncoder) {
        let mapped = Arc::clone(&self.mapped);
        encoder.map_buffer_on_submit(&self.buffer, wgpu::MapMode::Write, .., move |result| {
            mapped.store(result.is_ok(), Release);
        });
    }
}

/// Bytes at most.
fn uploaded(phase: &Phase) -> u64 {
    let raws = phase.raws.iter().map(|raw| 4 * raw.values);
    phase.uploads.iter().map(length).chain(raws).sum::<usize>() as u64
}

pub(super) fn downloaded(phase: &Phase) -> u64 {
    let values = phase.values.iter().map(|values| values.bytes);
    phase.downloads.iter().map(length).chain(values).sum::<usize>() as u64
}

/// Bytes from the first pixel's to the last's, what lies between them and what fills up words included.
fn length(transfer: &Transfer) -> usize {
    let spot = &transfer.spot;
    ((spot.shape.pixels() - 1) * spot.stride + spot.shape.c).next_multiple_of(4)
}

/// What is packed by one thread at a time.
const BLOCK: usize = 1 << 16;

/// Memory in blocks, each of which is written by whoever takes it.
struct Blocks<'a>(Vec<Mutex<Option<wgpu::WriteOnly<'a, [u8; BLOCK]>>>>);

impl<'a> Blocks<'a> {
    /// With what is left behind the last.
    fn of(to: wgpu::WriteOnly<'a, [u8]>) -> (Self, wgpu::WriteOnly<'a, [u8]>) {
        let (blocks, rest) = to.into_chunks::<BLOCK>();
        (Self(blocks.into_iter().map(|block| Mutex::new(Some(block))).collect()), rest)
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    fn take(&self, number: usize) -> Option<wgpu::WriteOnly<'a, [u8]>> {
        self.0.get(number)?.lock().unwrap_or_else(PoisonError::into_inner).take().map(Into::into)
    }
}

fn pack(cpu: &mut Cpu, transfer: &Transfer, to: wgpu::WriteOnly<'_, [u8]>) {
    let Transfer { place, spot, .. } = transfer;
    let channels = place.shape.c;
    let pixels_done = |bytes: usize| bytes / spot.stride;
    if to.len() < 2 * BLOCK || !BLOCK.is_multiple_of(spot.stride) {
        let view = cpu.bytes(place);
        return pack_part(channels, view, to, spot.stride);
    }
    let (blocks, rest) = Blocks::of(to);
    cpu.share(place, blocks.count(), &|number, view| {
        if let Some(block) = blocks.take(number) {
            pack_part(channels, view.after(pixels_done(number * BLOCK)), block, spot.stride);
        }
    });
    if !rest.is_empty() {
        let view = cpu.bytes(place).after(pixels_done(blocks.count() * BLOCK));
        pack_part(channels, view, rest, spot.stride);
    }
}

/// Writes an input as it is; how many bytes that are, in whole words, and what it is. A picture that goes another way,
/// through the [`super::resized::Album`], is none.
fn hand_over(
    cpu: &mut Cpu,
    tensor: &Tensor,
    raw: &Raw,
    to: wgpu::WriteOnly<'_, [u8]>,
) -> Result<(usize, Given), String> {
    let values = raw.values;
    if let (Data::U8(pixels), Some(sides), &[1, h, w, c]) = (tensor.data(), raw.picture, tensor.shape())
        && [h, w, c] != sides
        && Resizer::has([h, w, c], sides)
    {
        if raw.resizes && pixels.len() <= BYTES_MAX {
            return Ok((0, Given::Resized));
        }
        let meaning = cpu.pictures().ok_or("it takes no pictures")?;
        let planes = planes(&Resizer::new([h, w, c], sides, meaning.fit), pixels, meaning);
        let planes = Tensor::f32(vec![planes.len()], planes).map_err(|e| e.to_string())?;
        return hand_over(cpu, &planes, raw, to);
    }
    if tensor.data().len() != values {
        return Err(format!("a value of shape {:?} where {values} elements belong", tensor.shape()));
    }
    match tensor.data() {
        Data::F32(reals) => {
            let (blocks, rest) = Blocks::of(to);
            let words = |to: wgpu::WriteOnly<'_, [u8]>, from: &[f32]| {
                let (words, _) = to.into_chunks::<4>();
                words.write_iter(from.iter().map(|real| real.to_le_bytes()));
            };
            cpu.parts(blocks.count(), &|number| {
                if let Some(block) = blocks.take(number) {
                    words(block, &reals[number * (BLOCK / 4)..][..BLOCK / 4]);
                }
            });
            words(rest, &reals[blocks.count() * (BLOCK / 4)..]);
            Ok((4 * values, Given::Real))
        }
        Data::U8(bytes) if raw.picture.is_some() => {
            let count = values.next_multiple_of(4);
            let (to, _) = to.split_at(count);
            copied(cpu, bytes, to);
            Ok((count, Given::Picture))
        }
        other => Err(format!("a value of {} where f32 belongs", other.type_name())),
    }
}

/// Bytes as they are, with zeros up to the end of `to`.
pub(super) fn copied(cpu: &mut Cpu, bytes: &[u8], to: wgpu::WriteOnly<'_, [u8]>) {
    let (blocks, rest) = Blocks::of(to);
    let write = |to: wgpu::WriteOnly<'_, [u8]>, number: usize| {
        let own = bytes.get(number * BLOCK..).unwrap_or_default();
        let count = own.len().min(to.len());
        let (mut to, mut tail) = to.split_at(count);
        to.copy_from_slice(&own[..count]);
        tail.fill(0);
    };
    cpu.parts(blocks.count(), &|number| {
        if let Some(block) = blocks.take(number) {
            write(block, number);
        }
    });
    write(rest, blocks.count());
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
