//! Pictures of another size than the network's on their way to the GPU: they go up as they are, behind a head that says how
//! `resized.wgsl` is to resize them, into a buffer of their own. Head and buffer stay for the next one; a picture of another
//! size has another head, and a buffer of its own if it is larger. One that is too large is resized here.
//!
//! Where the GPU's memory is the processor's, that buffer stays mapped while the GPU does not read it, and the kernel reads
//! what the host wrote; elsewhere it is copied to memory of the GPU's.

use super::{
    device::{Device, Scope},
    transfer::{Staging, copied},
};
use crate::{
    cpu::Cpu,
    resize::{LUMA, Resizer, Sides, Taps, Window},
    tensor::{Data, Tensor},
};

/// Bytes of the largest picture that goes up as it is: 22 megapixels of RGB. Beyond that a GPU's memory is better used
/// otherwise; every GPU has buffers of twice the size.
pub(super) const BYTES_MAX: usize = 64 << 20;

/// Words before the offsets and weights, see the kernel.
const FIXED: usize = 12;

/// What the last pictures have left.
#[derive(Default)]
pub(super) struct Album {
    /// Of the last one: its sides, those of the network's, and its head.
    head: Option<(Sides, Sides, Vec<u8>)>,
    /// For each lane.
    staging: Vec<Option<Staging>>,
    /// The staging memory of each lane, where the GPU reads that itself; else one copy for all.
    seen: Vec<Option<Seen>>,
    /// Which of them has the last one.
    last: usize,
}

/// Where the GPU sees a picture.
struct Seen {
    buffer: wgpu::Buffer,
    bindings: wgpu::BindGroup,
}

impl Album {
    /// Puts a picture and its head where the GPU finds them, and encodes the copy if it takes one; returns how many bytes it is. `bind`: all
    /// buffers of a dispatch, with the picture's.
    pub(super) fn upload(
        &mut self,
        device: &Device,
        encoder: &mut wgpu::CommandEncoder,
        lane: usize,
        cpu: &mut Cpu,
        (tensor, to): (&Tensor, Sides),
        bind: &dyn Fn(&wgpu::Buffer) -> wgpu::BindGroup,
    ) -> Result<u64, String> {
        let (&[1, h, w, c], Data::U8(pixels)) = (tensor.shape(), tensor.data()) else {
            return Err("no picture where one belongs".into());
        };
        let from = [h, w, c];
        if self.head.as_ref().is_none_or(|(one, other, _)| (*one, *other) != (from, to)) {
            let fit = cpu.pictures().ok_or("it takes no pictures")?.fit;
            let head =
                head(&Resizer::new(from, to, fit)).iter().flat_map(|word| word.to_le_bytes()).collect();
            self.head = Some((from, to, head));
        }
        let head = self.head.as_ref().map(|(_, _, head)| &**head).unwrap_or_default();
        let size = (head.len() + pixels.len()).next_multiple_of(4);
        let bytes = size as u64;
        let scope = Scope::new(&device.device);
        if self.staging.len() <= lane {
            self.staging.resize_with(lane + 1, || None);
            self.seen.resize_with(lane + 1, || None);
        }
        let own = &mut self.staging[lane];
        if own.as_ref().is_none_or(|own| own.buffer().size() < bytes) {
            // The one before goes first, and with it what the GPU reads where that is the same.
            if device.shares_memory() {
                self.seen[lane] = None;
            }
            *own = None;
            let make = if device.shares_memory() { Staging::shared } else { Staging::new };
            *own = Some(make(device, bytes));
        }
        scope.end()?;
        let Some(own) = own else { return Ok(0) };
        own.fill(device, encoder, |view| {
            view.slice(..head.len()).copy_from_slice(head);
            copied(cpu, pixels, view.slice(head.len()..size));
            Ok(())
        })?;
        let scope = Scope::new(&device.device);
        self.last = if device.shares_memory() { lane } else { 0 };
        let seen = &mut self.seen[self.last];
        if device.shares_memory() {
            // The memory is another one after a larger picture, and after a run that failed.
            if seen.as_ref().is_none_or(|seen| seen.buffer != *own.buffer()) {
                let buffer = own.buffer().clone();
                *seen = Some(Seen { bindings: bind(&buffer), buffer });
            }
        } else {
            if seen.as_ref().is_none_or(|seen| seen.buffer.size() < bytes) {
                // The one before goes first.
                *seen = None;
                let buffer = device.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: bytes,
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                *seen = Some(Seen { bindings: bind(&buffer), buffer });
            }
            if let Some(seen) = seen {
                encoder.copy_buffer_to_buffer(own.buffer(), 0, &seen.buffer, 0, bytes);
            }
        }
        scope.end()?;
        Ok(bytes)
    }

    /// What a dispatch over the last picture is bound to.
    pub(super) fn bindings(&self) -> Option<&wgpu::BindGroup> {
        self.seen.get(self.last)?.as_ref().map(|seen| &seen.bindings)
    }

    /// Where the GPU reads the last picture.
    #[cfg(test)]
    pub(super) fn memory(&self) -> Option<wgpu::BufferUsages> {
        Some(self.seen.get(self.last)?.as_ref()?.buffer.usage())
    }
}

fn head(resizer: &Resizer) -> Vec<u32> {
    let [_, width, channels] = resizer.from;
    let mut words = vec![0; FIXED];
    let offsets = [&resizer.across, &resizer.down].map(|taps| offsets(taps, &mut words));
    let bytes = 4 * words.len();
    words[..5]
        .copy_from_slice(&[channels, width * channels, offsets[0], offsets[1], bytes].map(|n| n as u32));
    words[5..8].copy_from_slice(&LUMA.map(f32::to_bits));
    let Window { top, left, height, width } = resizer.window;
    words[8..FIXED].copy_from_slice(&[top, left, height, width].map(|n| n as u32));
    words
}

/// Writes where each place's taps begin, and the weights; returns where that is.
fn offsets(taps: &Taps, words: &mut Vec<u32>) -> usize {
    let at = words.len();
    let weights = at + 2 * (taps.count() + 1);
    words.extend(taps.starts().flat_map(|[first, weight]| [first as u32, (weights + weight) as u32]));
    words.extend(taps.weights().iter().map(|weight| weight.to_bits()));
    at
}
