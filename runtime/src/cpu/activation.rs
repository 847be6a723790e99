//! Activations: what their bytes mean, how they lie in memory, and how steps see them.

/// Real value of a byte: `(q - zero) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quantity {
    pub(super) scale: f32,
    pub(super) zero: u8,
}

/// How an activation lies in memory: so many pixels, each with its channels side by side. What pixels and channels are
/// is said by its [`Order`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) c: usize,
}

impl Shape {
    pub(crate) fn bytes(self) -> usize {
        self.h * self.w * self.c
    }

    pub(crate) fn pixels(self) -> usize {
        self.h * self.w
    }
}

/// What the pixels and channels of an activation are to ONNX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// `[1, C, H, W]` lies as H, W, C; `[1, C, L]` has height 1; `[1, C]` is one pixel.
    ChannelsLast,
    /// Elements lie in ONNX's order: the last dimension is the channels, all before it together are the width.
    RowMajor,
}

/// Index into [`Plan::buffers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BufferId(pub(crate) usize);

/// Where an activation lies: a buffer, or some of the channels of each of its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) buffer: BufferId,
    /// Bytes before the first channel of the first pixel.
    pub(crate) offset: usize,
    /// Bytes from one pixel to the next: at least the channels.
    pub(crate) stride: usize,
    pub(crate) shape: Shape,
}

impl Place {
    pub(super) fn whole(buffer: BufferId, shape: Shape) -> Self {
        Self { buffer, offset: 0, stride: shape.c, shape }
    }

    /// From the first byte of the first pixel to the last of the last.
    pub(super) fn length(&self) -> usize {
        self.shape.pixels().checked_sub(1).map_or(0, |before| before * self.stride + self.shape.c)
    }
}

/// An input of a step: pixel `i` has its channels from `i * stride` on; nothing comes after the last.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
}

/// The output of a step. What lies between the channels of two pixels is not the step's to change.
pub(crate) struct ViewMut<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) stride: usize,
}

impl<'a> View<'a> {
    /// The channels of each pixel, `channels` of them.
    pub(super) fn pixels(self, channels: usize) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.stride.max(1)).map(move |pixel| &pixel[..channels])
    }

    /// Without its first pixels.
    pub(crate) fn after(self, pixels: usize) -> Self {
        Self { bytes: self.bytes.get(pixels * self.stride..).unwrap_or(&[]), ..self }
    }
}

impl ViewMut<'_> {
    pub(super) fn pixels(&mut self, channels: usize) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_mut(self.stride.max(1)).map(move |pixel| &mut pixel[..channels])
    }
}
