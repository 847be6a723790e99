//! Worsens pictures on purpose, on the camera's own image: what an ageing lamp or a lens out of focus does. For
//! commissioning (does the watch notice?) and for tests.

use andon_runtime::Image;
use serde::Deserialize;

/// `[camera.degrade]` of the agent's configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub kind: Kind,
    /// Exponent of the gamma curve (over 1 is darker), or standard deviation of the blur in pixels.
    pub value: f32,
    /// Number of good frames before the first bad one.
    #[serde(default)]
    pub from_frame: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `255 (p / 255)^value`: a lamp that ages.
    Gamma,
    /// A Gaussian blur: a lens out of focus.
    Defocus,
}

/// A checked [`Config`], with what can be computed beforehand.
#[derive(Debug)]
pub struct Degrade {
    from_frame: u64,
    effect: Effect,
}

#[derive(Debug)]
enum Effect {
    Curve(Box<[u8; 256]>),
    /// Half of a symmetric kernel of sum 1; `[0]` is its centre.
    Blur(Vec<f32>),
}

impl Degrade {
    const GAMMA: std::ops::RangeInclusive<f32> = 0.05..=20.0;
    const SIGMA: std::ops::RangeInclusive<f32> = 0.05..=50.0;

    /// Errors: a value outside of what makes sense for its kind.
    pub fn new(config: &Config) -> Result<Self, String> {
        let range = if config.kind == Kind::Gamma { Self::GAMMA } else { Self::SIGMA };
        if !range.contains(&config.value) {
            let (low, high) = (range.start(), range.end());
            return Err(format!(
                "degrade.value {} of {:?} is not in {low} to {high}",
                config.value, config.kind
            ));
        }
        let effect = match config.kind {
            Kind::Gamma => Effect::Curve(Box::new(std::array::from_fn(|p| {
                (255.0 * (p as f32 / 255.0).powf(config.value)).round() as u8
            }))),
            Kind::Defocus => Effect::Blur(half_kernel(config.value)),
        };
        Ok(Self { from_frame: config.from_frame, effect })
    }

    /// Worsens frame `index` (from 0), or leaves it. Says whether it did.
    pub fn apply(&self, index: u64, image: Image) -> (Image, bool) {
        if index < self.from_frame {
            return (image, false);
        }
        let (width, height, channels) = (image.width(), image.height(), image.channels());
        let mut pixels = image.clone().into_pixels();
        match &self.effect {
            Effect::Curve(table) => pixels.iter_mut().for_each(|p| *p = table[usize::from(*p)]),
            Effect::Blur(half) => blur(&mut pixels, width, height, channels, half),
        }
        // The same size as before, so that this cannot fail; if it did, the good picture is the better answer.
        match Image::new(width, height, channels, pixels) {
            Ok(worse) => (worse, true),
            Err(_) => (image, false),
        }
    }
}

fn half_kernel(sigma: f32) -> Vec<f32> {
    let radius = (3.0 * sigma).ceil() as usize;
    let mut half: Vec<f32> =
        (0..=radius).map(|i| (-((i * i) as f32) / (2.0 * sigma * sigma)).exp()).collect();
    let sum = half[0] + 2.0 * half[1..].iter().sum::<f32>();
    half.iter_mut().for_each(|w| *w /= sum);
    half
}

/// Separable; at the border the outermost pixel repeats.
fn blur(pixels: &mut [u8], width: usize, height: usize, channels: usize, half: &[f32]) {
    let stride = width * channels;
    if stride == 0 || height == 0 {
        return;
    }
    let radius = half.len() - 1;
    // Rows into floats.
    let mut rows = vec![0.0f32; pixels.len()];
    let mut padded = vec![0.0f32; (width + 2 * radius) * channels];
    for (source, target) in pixels.chunks_exact(stride).zip(rows.chunks_exact_mut(stride)) {
        for (i, value) in padded.iter_mut().enumerate() {
            let x = (i / channels).saturating_sub(radius).min(width - 1);
            *value = f32::from(source[x * channels + i % channels]);
        }
        let centre = radius * channels;
        for (x, value) in target.iter_mut().enumerate() {
            *value = half[0] * padded[centre + x];
        }
        for (distance, weight) in half.iter().enumerate().skip(1) {
            let left = &padded[centre - distance * channels..][..stride];
            let right = &padded[centre + distance * channels..][..stride];
            for ((value, l), r) in target.iter_mut().zip(left).zip(right) {
                *value += weight * (l + r);
            }
        }
    }
    // Columns back into bytes, a whole row at a time.
    let row = |y: usize| &rows[y * stride..][..stride];
    let mut sum = vec![0.0f32; stride];
    for (y, target) in pixels.chunks_exact_mut(stride).enumerate() {
        sum.iter_mut().zip(row(y)).for_each(|(s, v)| *s = half[0] * v);
        for (distance, weight) in half.iter().enumerate().skip(1) {
            let above = row(y.saturating_sub(distance));
            let below = row((y + distance).min(height - 1));
            for ((s, a), b) in sum.iter_mut().zip(above).zip(below) {
                *s += weight * (a + b);
            }
        }
        target.iter_mut().zip(&sum).for_each(|(t, s)| *t = s.round() as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: usize, height: usize, channels: usize, pixel: impl Fn(usize) -> u8) -> Image {
        Image::new(width, height, channels, (0..width * height * channels).map(pixel).collect()).unwrap()
    }

    fn degraded(kind: Kind, value: f32, image: Image) -> Vec<u8> {
        let degrade = Degrade::new(&Config { kind, value, from_frame: 3 }).unwrap();
        let (untouched, worse) = degrade.apply(2, image.clone());
        assert!(!worse && untouched.pixels() == image.pixels());
        let (image, worse) = degrade.apply(3, image);
        assert!(worse);
        image.into_pixels()
    }

    #[test]
    fn gamma_keeps_black_and_white_and_darkens_between() {
        let dark = degraded(Kind::Gamma, 2.2, image(256, 1, 1, |i| i as u8));
        assert_eq!((dark[0], dark[128], dark[255]), (0, 56, 255));
    }

    #[test]
    fn blur_keeps_flat_pictures_and_spreads_a_dot_evenly() {
        for channels in [1, 3] {
            let flat = degraded(Kind::Defocus, 3.0, image(17, 9, channels, |i| (i % channels) as u8 * 90));
            assert!(flat.iter().enumerate().all(|(i, p)| usize::from(*p) == (i % channels) * 90));
        }
        let dot = degraded(Kind::Defocus, 1.0, image(21, 21, 1, |i| if i == 10 * 21 + 10 { 255 } else { 0 }));
        let at = |x: usize, y: usize| dot[y * 21 + x];
        // 255 / (2 pi) in the centre of a Gaussian of one pixel.
        assert!((39..=42).contains(&at(10, 10)), "{}", at(10, 10));
        for (x, y) in [(9, 10), (11, 10), (10, 9), (10, 11)] {
            assert_eq!(at(x, y), at(9, 10));
        }
        assert_eq!(at(10, 0), 0);
    }

    #[test]
    fn tiny_pictures_and_bad_values() {
        for (width, height) in [(1, 1), (1, 5), (4, 1)] {
            degraded(Kind::Defocus, 50.0, image(width, height, 3, |i| i as u8));
        }
        for (kind, value) in
            [(Kind::Gamma, 0.0), (Kind::Gamma, f32::NAN), (Kind::Defocus, -1.0), (Kind::Defocus, 1e9)]
        {
            assert!(Degrade::new(&Config { kind, value, from_frame: 0 }).is_err(), "{kind:?} {value}");
        }
    }
}
