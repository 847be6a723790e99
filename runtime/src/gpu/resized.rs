//! Pictures of another size than the network's on their way to the GPU: they go up as they are, behind a head that says how
//! `resized.wgsl` is to resize them, into a buffer of their own. Head and buffer stay for the next one; a picture of another
//! size has another head, and a buffer of its own if it is larger. One that is too large is resized here.

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
    seen: Option<Seen>,
    /// For each lane.
    staging: Vec<Option<Staging>>,
}

/// Where the GPU sees a picture.
struct Seen {
    buffer: wgpu::Buffer,
    bindings: wgpu::BindGroup,
}

impl Album {
    /// Puts a picture and its head where the GPU finds them, and encodes the copy; returns how many bytes it is. `bind`: all
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
        if self.seen.as_ref().is_none_or(|seen| seen.buffer.size() < bytes) {
            // The one before goes first.
            self.seen = None;
            let buffer = device.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let bindings = bind(&buffer);
            self.seen = Some(Seen { buffer, bindings });
        }
        if self.staging.len() <= lane {
            self.staging.resize_with(lane + 1, || None);
        }
        let own = &mut self.staging[lane];
        if own.as_ref().is_none_or(|own| own.buffer().size() < bytes) {
            *own = None;
            *own = Some(Staging::new(device, bytes));
        }
        scope.end()?;
        let (Some(seen), Some(own)) = (&self.seen, own) else { return Ok(0) };
        own.fill(device, encoder, |view| {
            view.slice(..head.len()).copy_from_slice(head);
            copied(cpu, pixels, view.slice(head.len()..size));
            Ok(())
        })?;
        encoder.copy_buffer_to_buffer(own.buffer(), 0, &seen.buffer, 0, bytes);
        Ok(bytes)
    }

    /// What a dispatch over the last picture is bound to.
    pub(super) fn bindings(&self) -> Option<&wgpu::BindGroup> {
        self.seen.as_ref().map(|seen| &seen.bindings)
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
