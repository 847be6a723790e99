//! Six statistics of a picture, on what the network sees of it: the grey plane at the network's input size, in units
//! of 0 to 255 (the runtime's preprocessing with one channel, mean 0, deviation 1). Trainer and device must compute
//! it the same way, since one is compared with the other.

/// Number of image statistics.
pub const STATS: usize = 6;

/// Their places in the vector.
pub(crate) const MEAN: usize = 0;
pub(crate) const LOG_SD: usize = 1;
pub(crate) const LOG_SHARPNESS: usize = 2;
pub(crate) const LOG_NOISE: usize = 3;
pub(crate) const LOG_EDGE: usize = 4;

/// A grey plane, row by row.
#[derive(Debug, Clone, Copy)]
pub struct Gray<'a> {
    width: usize,
    height: usize,
    pixels: &'a [f32],
}

impl<'a> Gray<'a> {
    /// `None` unless there are `width * height` pixels, at least 8 each way.
    pub fn new(width: usize, height: usize, pixels: &'a [f32]) -> Option<Self> {
        let fits = width >= 8 && height >= 8 && width.checked_mul(height) == Some(pixels.len());
        fits.then_some(Self { width, height, pixels })
    }
}

/// | index | what | moved by |
/// |---|---|---|
/// | 0 | mean | light |
/// | 1 | log standard deviation | contrast |
/// | 2 | log variance of the Laplacian | focus |
/// | 3 | log median of Immerkaer's residual (Immerkaer 1996) | gain, noise |
/// | 4 | log ratio of the brightness of edge and centre | vignette, dirt, a camera that moved |
/// | 5 | share of clipped pixels | exposure |
pub fn image_stats(gray: &Gray<'_>) -> [f32; STATS] {
    let Gray { width, height, pixels } = *gray;
    let (mut sum, mut squares) = (0.0f64, 0.0f64);
    let (mut laplace_sum, mut laplace_squares) = (0.0f64, 0.0f64);
    let (mut clipped, mut edge, mut centre) = (0usize, Share::default(), Share::default());
    let mut residuals = Residuals::new();
    // Squared distance from the centre: 0 there, 1 in the corners.
    let place = |i: usize, n: usize| ((i as f32 + 0.5) / n as f32 - 0.5).powi(2) * 2.0;
    for (y, row) in pixels.chunks_exact(width).enumerate() {
        let down = place(y, height);
        for (x, &value) in row.iter().enumerate() {
            sum += f64::from(value);
            squares += f64::from(value) * f64::from(value);
            clipped += usize::from(value <= 1.0 || value >= 254.0);
            let radius = down + place(x, width);
            if radius > 0.6 {
                edge.push(value);
            } else if radius < 0.25 {
                centre.push(value);
            }
        }
        if y == 0 || y + 1 == height {
            continue;
        }
        let above = &pixels[(y - 1) * width..][..width];
        let below = &pixels[(y + 1) * width..][..width];
        for ((a, r), b) in above.windows(3).zip(row.windows(3)).zip(below.windows(3)) {
            let cross = a[1] + b[1] + r[0] + r[2];
            let corners = a[0] + a[2] + b[0] + b[2];
            let laplace = f64::from(4.0 * r[1] - cross);
            laplace_sum += laplace;
            laplace_squares += laplace * laplace;
            residuals.push((4.0 * r[1] - 2.0 * cross + corners).abs());
        }
    }
    let variance = |sum: f64, squares: f64, n: f64| (squares / n - (sum / n).powi(2)).max(0.0);
    let n = pixels.len() as f64;
    let inner = ((width - 2) * (height - 2)) as f64;
    // The small constants keep the logarithm of a flat picture finite, far below that of any real one.
    [
        (sum / n) as f32,
        (variance(sum, squares, n).sqrt() + 0.1).ln() as f32,
        (variance(laplace_sum, laplace_squares, inner) + 0.01).ln() as f32,
        (residuals.median() + 0.05).ln(),
        ((edge.mean() + 1.0) / (centre.mean() + 1.0)).max(1e-6).ln(),
        (clipped as f64 / n) as f32,
    ]
}

#[derive(Debug, Default)]
struct Share {
    sum: f64,
    count: usize,
}

impl Share {
    fn push(&mut self, value: f32) {
        self.sum += f64::from(value);
        self.count += 1;
    }

    fn mean(&self) -> f32 {
        (self.sum / self.count.max(1) as f64) as f32
    }
}

/// The median by a histogram of 1/16 grey level, so that one pass and 8 KB do. Immerkaer's residual has 36 times the
/// variance of the noise, thus the range is enough for a standard deviation of 31.
struct Residuals {
    bins: [u32; Self::BINS],
    count: u32,
}

impl Residuals {
    const BINS: usize = 2048;
    const PER_LEVEL: f32 = 16.0;

    fn new() -> Self {
        Self { bins: [0; Self::BINS], count: 0 }
    }

    fn push(&mut self, value: f32) {
        self.bins[((value * Self::PER_LEVEL) as usize).min(Self::BINS - 1)] += 1;
        self.count += 1;
    }

    fn median(&self) -> f32 {
        let half = self.count as f32 / 2.0;
        let mut below = 0.0;
        for (i, n) in self.bins.iter().enumerate() {
            let n = *n as f32;
            if n > 0.0 && below + n >= half {
                return (i as f32 + (half - below) / n) / Self::PER_LEVEL;
            }
            below += n;
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(pixel: impl Fn(usize, usize) -> f32) -> [f32; STATS] {
        let pixels: Vec<f32> = (0..64 * 48).map(|i| pixel(i % 64, i / 64)).collect();
        image_stats(&Gray::new(64, 48, &pixels).unwrap())
    }

    /// A texture with detail at every scale.
    fn texture(x: usize, y: usize) -> f32 {
        let hash = (x * 7919 + y * 104_729) % 1009;
        120.0 + 30.0 * (x as f32 / 9.0).sin() + hash as f32 / 1009.0 * 12.0
    }

    #[test]
    fn every_statistic_answers_to_its_own_change() {
        let base = stats(texture);
        assert!(base.iter().all(|s| s.is_finite()));
        let darker = stats(|x, y| texture(x, y) * 0.7);
        assert!((darker[MEAN] / base[MEAN] - 0.7).abs() < 1e-3);
        assert!((darker[LOG_SD] - base[LOG_SD] - 0.7f32.ln()).abs() < 0.01);
        let smooth = stats(|x, y| (0..9).map(|i| texture(x + i % 3, y + i / 3)).sum::<f32>() / 9.0);
        assert!(smooth[LOG_SHARPNESS] < base[LOG_SHARPNESS] - 1.0);
        let noisy = stats(|x, y| texture(x, y) + ((x * 31 + y * 17) % 7) as f32 * 8.0);
        assert!(noisy[LOG_NOISE] > base[LOG_NOISE] + 1.0);
        let vignette = stats(|x, y| {
            let far = ((x as f32 - 31.5) / 32.0).powi(2) / 2.0 + ((y as f32 - 23.5) / 24.0).powi(2) / 2.0;
            texture(x, y) * (1.0 - 0.5 * far)
        });
        assert!(vignette[LOG_EDGE] < base[LOG_EDGE] - 0.2);
        let clipped = stats(|x, y| (texture(x, y) * 2.0).min(255.0));
        assert!(clipped[5] > 0.2 && base[5] == 0.0);
    }

    #[test]
    fn flat_black_and_white_pictures_have_finite_statistics() {
        for level in [0.0, 128.0, 255.0] {
            assert!(stats(|_, _| level).iter().all(|s| s.is_finite()), "{level}");
        }
    }

    #[test]
    fn planes_of_another_size_are_refused() {
        for (width, height, n) in [(8, 8, 63), (7, 8, 56), (0, 0, 0), (usize::MAX, 2, 4)] {
            assert!(Gray::new(width, height, &vec![0.0; n]).is_none(), "{width}x{height}");
        }
    }
}
