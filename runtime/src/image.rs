//! Pictures as cameras and files give them: 8 bits, grey or RGB, interleaved.
//!
//! A file is untrusted: its size and its dimensions are checked before a pixel is decoded, and memory is bounded by
//! [`ImageLimits`]. Alpha is dropped, 16-bit samples are reduced to 8, a turned camera's EXIF mark is ignored.

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{DynamicImage, ImageFormat, ImageReader, Limits};

/// `pixels[(y * width + x) * channels + c]`. Fields are private so that the length always fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLimits {
    pub file_bytes_max: usize,
    /// Of width and of height.
    pub side_max: u32,
    pub pixels_max: u64,
}

impl Default for ImageLimits {
    /// A 50-megapixel camera fits.
    fn default() -> Self {
        Self { file_bytes_max: 64 << 20, side_max: 16_384, pixels_max: 64 << 20 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("image file has {bytes} bytes, allowed are {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("image is {width}x{height}, allowed are {side_max} a side and {pixels_max} pixels")]
    TooManyPixels { width: u32, height: u32, side_max: u32, pixels_max: u64 },
    #[error("not a PNG or JPEG file")]
    UnknownFormat,
    #[error("{format} file cannot be decoded: {reason}")]
    Malformed { format: &'static str, reason: String },
    #[error(
        "{bytes} bytes are no {width}x{height} image of {channels} channels, expected are 1 or 3 channels"
    )]
    Shape { width: usize, height: usize, channels: usize, bytes: usize },
}

impl Image {
    /// `channels` is 1 (grey) or 3 (RGB); neither side may be 0.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Result<Self, ImageError> {
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
        if width == 0 || height == 0 || !matches!(channels, 1 | 3) || bytes != Some(pixels.len()) {
            return Err(ImageError::Shape { width, height, channels, bytes: pixels.len() });
        }
        Ok(Self { width, height, channels, pixels })
    }

    /// Decodes a PNG or JPEG file; which of the two is told by its first bytes.
    pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Self, ImageError> {
        if bytes.len() > limits.file_bytes_max {
            return Err(ImageError::TooLarge { bytes: bytes.len(), max: limits.file_bytes_max });
        }
        let format = match image::guess_format(bytes) {
            Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
            _ => return Err(ImageError::UnknownFormat),
        };
        let name = if format == ImageFormat::Png { "PNG" } else { "JPEG" };
        let malformed = |reason: String| ImageError::Malformed { format: name, reason };
        // The decoders are safe code but large; what they might panic on must not take a frame thread down.
        let decoded = catch_unwind(AssertUnwindSafe(|| decode(bytes, format, limits, &malformed)));
        let decoded = decoded.unwrap_or_else(|_| Err(malformed("the decoder failed".into())))?;
        let (width, height) = (decoded.width() as usize, decoded.height() as usize);
        match decoded.color().channel_count() {
            1 | 2 => Self::new(width, height, 1, decoded.into_luma8().into_raw()),
            _ => Self::new(width, height, 3, decoded.into_rgb8().into_raw()),
        }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 (grey) or 3 (RGB).
    pub fn channels(&self) -> usize {
        self.channels
    }

    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}

fn decode(
    bytes: &[u8],
    format: ImageFormat,
    limits: &ImageLimits,
    malformed: &dyn Fn(String) -> ImageError,
) -> Result<DynamicImage, ImageError> {
    let reader = || ImageReader::with_format(Cursor::new(bytes), format);
    let (width, height) = reader().into_dimensions().map_err(|e| malformed(e.to_string()))?;
    let ImageLimits { side_max, pixels_max, .. } = *limits;
    if width.max(height) > side_max || u64::from(width) * u64::from(height) > pixels_max {
        return Err(ImageError::TooManyPixels { width, height, side_max, pixels_max });
    }
    let mut allowed = Limits::default();
    (allowed.max_image_width, allowed.max_image_height) = (Some(side_max), Some(side_max));
    // Four 16-bit channels is the widest pixel there is; as much again for the decoder itself.
    allowed.max_alloc = Some(pixels_max.saturating_mul(16));
    let mut reader = reader();
    reader.limits(allowed);
    reader.decode().map_err(|e| malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(format: ImageFormat, image: &DynamicImage) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    fn picture() -> DynamicImage {
        image::RgbImage::from_fn(13, 7, |x, y| image::Rgb([x as u8 * 19, y as u8 * 36, 128])).into()
    }

    #[test]
    fn png_is_exact_and_keeps_its_channels() {
        let picture = picture();
        let rgb = Image::decode(&file(ImageFormat::Png, &picture), &ImageLimits::default()).unwrap();
        assert_eq!((rgb.width(), rgb.height(), rgb.channels()), (13, 7, 3));
        assert_eq!(rgb.pixels(), picture.as_bytes());
        let grey = DynamicImage::from(picture.to_luma8());
        let grey = Image::decode(&file(ImageFormat::Png, &grey), &ImageLimits::default()).unwrap();
        assert_eq!(grey.channels(), 1);
    }

    #[test]
    fn jpeg_is_close() {
        let flat = DynamicImage::from(image::GrayImage::from_pixel(40, 30, image::Luma([90])));
        let image = Image::decode(&file(ImageFormat::Jpeg, &flat), &ImageLimits::default()).unwrap();
        assert_eq!((image.width(), image.height(), image.channels()), (40, 30, 1));
        assert!(image.pixels().iter().all(|p| p.abs_diff(90) <= 1));
    }

    #[test]
    fn bounds_come_before_decoding() {
        let png = file(ImageFormat::Png, &picture());
        let decode = |limits| Image::decode(&png, &limits).unwrap_err();
        let limits = ImageLimits::default();
        assert!(matches!(
            decode(ImageLimits { file_bytes_max: 20, ..limits.clone() }),
            ImageError::TooLarge { .. }
        ));
        assert!(matches!(
            decode(ImageLimits { side_max: 12, ..limits.clone() }),
            ImageError::TooManyPixels { .. }
        ));
        assert!(matches!(decode(ImageLimits { pixels_max: 90, ..limits }), ImageError::TooManyPixels { .. }));
        // A PNG that claims 4 billion columns: the header's checksum is right, nothing else is there.
        let mut bomb = png[..33].to_vec();
        bomb[16..20].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
        assert!(Image::decode(&bomb, &ImageLimits::default()).is_err());
    }

    #[test]
    fn other_files_are_named() {
        let unknown = |bytes: &[u8]| Image::decode(bytes, &ImageLimits::default());
        assert!(matches!(unknown(b""), Err(ImageError::UnknownFormat)));
        assert!(matches!(unknown(b"GIF89a\x01\x00\x01\x00"), Err(ImageError::UnknownFormat)));
        assert!(Image::new(2, 2, 2, vec![0; 8]).is_err());
        assert!(Image::new(0, 2, 1, vec![]).is_err());
        assert!(Image::new(2, 2, 3, vec![0; 11]).is_err());
    }

    #[test]
    fn a_file_cut_anywhere_is_no_panic() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let bytes = file(format, &picture());
            for end in 0..bytes.len() {
                drop(Image::decode(&bytes[..end], &ImageLimits::default()));
            }
        }
    }

    proptest! {
        #[test]
        fn flipped_bytes_are_no_panic(
            png in any::<bool>(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = file(if png { ImageFormat::Png } else { ImageFormat::Jpeg }, &picture());
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            drop(Image::decode(&bytes, &ImageLimits::default()));
        }
    }
}
