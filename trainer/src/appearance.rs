//! How a camera's pictures look now, against how they looked: estimated from unlabelled images, and put on labelled old
//! ones, so that a network can learn today's look from yesterday's labels.
//!
//! Two parts, in this order. A **tone curve** per channel, from the quantiles of the grey levels (light, exposure, gamma);
//! levels are averaged over 4x4 blocks first, so that blur does not pass for a loss of contrast. A **radial filter**, from
//! the ratio of the mean amplitude spectra after the tone curve (focus, motion, dirt). More power among the finest details
//! is not undone blur but noise of the sensor, which is white: one level, added. Matching amplitudes and leaving phases is the idea of Fourier domain adaptation
//! (Yang & Soatto 2020); here the statistics of many images are matched, not one image's low band.
//!
//! Both populations must show the same kind of parts. A changed product looks like a changed camera to this; the gate
//! after training is what decides whether it helped.

use rand::{Rng, SeedableRng, rngs::StdRng};
use rustfft::{FftPlanner, num_complex::Complex32};

use crate::data::Pixels;

/// Fewest images that an estimate is made from.
pub const IMAGES_MIN: usize = 8;
/// Images beyond this add nothing to an estimate.
pub const IMAGES_MAX: usize = 256;
const LEVELS: usize = 64;
const RINGS: usize = 48;
/// Changes below these are noise of the estimate: grey levels, and natural logarithm of amplitude.
const TONE_DEAD: f32 = 4.0;
const FILTER_DEAD: f32 = 0.15;

/// From old to new look.
#[derive(Debug, Clone, PartialEq)]
pub struct Appearance {
    height: usize,
    width: usize,
    /// Per channel: old and new level at equal quantiles, both ascending.
    tones: Vec<Vec<(f32, f32)>>,
    /// Amplitude factor by ring, at most 1.
    filter: Vec<f32>,
    /// Deviation of added white noise, grey levels.
    noise: f32,
}

impl Appearance {
    /// From `old` to `new`, all of one size and number of planes; `None` with fewer than [`IMAGES_MIN`] of either.
    pub fn estimate(old: &[&Pixels], new: &[&Pixels]) -> Option<Self> {
        if old.len() < IMAGES_MIN || new.len() < IMAGES_MIN {
            return None;
        }
        let (old, new) = (spread(old), spread(new));
        let (height, width) = (old[0].height, old[0].width);
        let planes = old.iter().chain(&new).map(|p| p.planes.len()).min()?;
        let tones: Vec<_> = (0..planes).map(|c| tone(&old, &new, c)).collect();
        let identity = Self { height, width, tones, filter: vec![1.0; RINGS], noise: 0.0 };
        let toned: Vec<Pixels> = old.iter().map(|p| identity.toned(p, 1.0)).collect();
        let before = spectrum(&toned.iter().collect::<Vec<_>>());
        let after = spectrum(&new);
        let (filter, noise) = filter(&before, &after);
        Some(Self { filter, noise, ..identity })
    }

    /// Whether the new look differs at all.
    pub fn is_identity(&self) -> bool {
        let same_tone = self.tones.iter().flatten().all(|(a, b)| a == b);
        same_tone && self.filter.iter().all(|f| *f == 1.0) && self.noise == 0.0
    }

    /// `image` in the new look. `strength` 0 leaves it, 1 is the estimate, a little more goes beyond; `seed` draws the
    /// noise.
    pub fn apply(&self, image: &Pixels, strength: f32, seed: u64) -> Pixels {
        let mut out = self.toned(image, strength);
        if self.filter.iter().all(|f| *f == 1.0) && self.noise == 0.0 {
            return out;
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let mut fourier = Fourier::new(self.height, self.width);
        let factors: Vec<f32> = self.filter.iter().map(|f| f.powf(strength)).collect();
        for plane in &mut out.planes {
            let mut f = fourier.forward(plane);
            f.iter_mut().enumerate().for_each(|(i, value)| *value *= factors[fourier.ring(i)]);
            let values = fourier.inverse(f);
            for (pixel, value) in plane.iter_mut().zip(values) {
                let noise = if self.noise > 0.0 { self.noise * strength * normal(&mut rng) } else { 0.0 };
                *pixel = (value + noise).clamp(0.0, 255.0);
            }
        }
        out
    }

    /// In words, for the report of a training run.
    pub fn describe(&self) -> String {
        if self.is_identity() {
            return "looks as before".into();
        }
        let middle = interpolate(&self.tones[0], 128.0);
        let fine = self.filter[RINGS / 2..].iter().sum::<f32>() / (RINGS - RINGS / 2) as f32;
        format!(
            "level 128 now {middle:.0}, fine detail {:.0} % of before, added noise {:.1} levels",
            fine * 100.0,
            self.noise
        )
    }

    fn toned(&self, image: &Pixels, strength: f32) -> Pixels {
        let curve = |c: usize| &self.tones[c.min(self.tones.len() - 1)];
        let map = |c: usize, v: f32| (v + strength * (interpolate(curve(c), v) - v)).clamp(0.0, 255.0);
        let planes = image.planes.iter().enumerate().map(|(c, p)| p.iter().map(|v| map(c, *v)).collect());
        Pixels { height: image.height, width: image.width, planes: planes.collect() }
    }
}

/// At most [`IMAGES_MAX`], evenly spread.
fn spread<'a>(images: &[&'a Pixels]) -> Vec<&'a Pixels> {
    let count = images.len().min(IMAGES_MAX);
    (0..count).map(|i| images[i * images.len() / count]).collect()
}

/// Old and new level at equal quantiles.
fn tone(old: &[&Pixels], new: &[&Pixels], channel: usize) -> Vec<(f32, f32)> {
    let (old, new) = (quantiles(old, channel), quantiles(new, channel));
    let mut curve: Vec<(f32, f32)> = old.into_iter().zip(new).collect();
    if curve.iter().all(|(a, b)| (a - b).abs() < TONE_DEAD) {
        return vec![(0.0, 0.0), (255.0, 255.0)];
    }
    curve.dedup_by(|b, a| b.0 - a.0 < 0.5);
    // Beyond what was seen the curve runs on to black and white, so that it stays a curve of a camera.
    if curve[0].0 > 1.0 {
        let (x, y) = curve[0];
        curve.insert(0, (0.0, (y - x).max(0.0)));
    }
    let (x, y) = curve[curve.len() - 1];
    if x < 254.0 {
        curve.push((255.0, (y + 255.0 - x).min(255.0)));
    }
    curve
}

fn quantiles(images: &[&Pixels], channel: usize) -> Vec<f32> {
    const BLOCK: usize = 4;
    let mut values = Vec::new();
    for image in images {
        let plane = &image.planes[channel.min(image.planes.len() - 1)];
        for y in (0..image.height / BLOCK).map(|y| y * BLOCK) {
            for x in (0..image.width / BLOCK).map(|x| x * BLOCK) {
                let sum: f32 = (0..BLOCK).flat_map(|dy| &plane[(y + dy) * image.width + x..][..BLOCK]).sum();
                values.push(sum / (BLOCK * BLOCK) as f32);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    let at =
        |q: f32| values.get((q * values.len().saturating_sub(1) as f32) as usize).copied().unwrap_or(0.0);
    (0..=LEVELS).map(|i| at(0.002 + 0.996 * i as f32 / LEVELS as f32)).collect()
}

/// Piecewise linear through ascending points; flat outside.
fn interpolate(curve: &[(f32, f32)], x: f32) -> f32 {
    let i = curve.partition_point(|p| p.0 <= x);
    match (i.checked_sub(1).map(|i| curve[i]), curve.get(i)) {
        (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (x - x0) / (x1 - x0).max(1e-6),
        (Some((_, y)), None) => y,
        (None, Some((_, y))) => *y,
        (None, None) => x,
    }
}

/// Mean power by ring, of white noise of deviation 1: 1.
///
/// Under a Hann window: the transform takes an image for a tile that repeats, and the step from its right edge to its left
/// one would be fine detail that no lens ever blurs.
fn spectrum(images: &[&Pixels]) -> Vec<f64> {
    let (h, w) = (images[0].height, images[0].width);
    let hann = |i: usize, n: usize| 0.5 - 0.5 * (std::f32::consts::TAU * (i as f32 + 0.5) / n as f32).cos();
    let window: Vec<f32> = (0..h * w).map(|i| hann(i / w, h) * hann(i % w, w)).collect();
    let (sum, energy) = window.iter().fold((0.0f32, 0.0f64), |(s, e), w| (s + w, e + f64::from(w * w)));
    let mut fourier = Fourier::new(h, w);
    let (mut power, mut count) = (vec![0.0f64; RINGS], vec![0u32; RINGS]);
    for image in images {
        for plane in &image.planes {
            let mean =
                plane.iter().zip(&window).map(|(v, w)| v * w).sum::<f32>() / f32::max(sum, f32::MIN_POSITIVE);
            let seen: Vec<f32> = plane.iter().zip(&window).map(|(v, w)| (v - mean) * w).collect();
            let f = fourier.forward(&seen);
            for (i, value) in f.iter().enumerate().skip(1) {
                let ring = fourier.ring(i);
                power[ring] += f64::from(value.norm_sqr()) / energy;
                count[ring] += 1;
            }
        }
    }
    power.iter().zip(&count).map(|(p, n)| p / f64::from(*n).max(1.0)).collect()
}

/// Amplitude factors, and the deviation of white noise, that turn one spectrum into the other.
fn filter(before: &[f64], after: &[f64]) -> (Vec<f32>, f32) {
    let log_ratio = |i: usize| (0.5 * (after[i].max(1e-9) / before[i].max(1e-9)).ln()) as f32;
    let smooth = |i: usize| {
        let window = i.saturating_sub(1)..(i + 2).min(RINGS);
        window.clone().map(log_ratio).sum::<f32>() / window.len() as f32
    };
    let log: Vec<f32> = (0..RINGS).map(smooth).collect();
    // The coarsest rings show what is on the parts, not the optics; the tone curve has set their contrast.
    let base = log[1..4].iter().sum::<f32>() / 3.0;
    let log: Vec<f32> = log.iter().enumerate().map(|(i, l)| if i < 2 { 0.0 } else { l - base }).collect();
    // The finest details decide: many coefficients, and both optics and sensor show there first.
    let fine = log[RINGS / 2..].iter().sum::<f32>() / (RINGS - RINGS / 2) as f32;
    if fine > FILTER_DEAD {
        let mut grown: Vec<f64> = (RINGS / 2..RINGS).map(|i| after[i] - before[i]).collect();
        grown.sort_by(f64::total_cmp);
        return (vec![1.0; RINGS], grown[grown.len() / 2].max(0.0).sqrt() as f32);
    }
    if fine > -FILTER_DEAD {
        return (vec![1.0; RINGS], 0.0);
    }
    (log.iter().map(|l| l.min(0.0).exp()).collect(), 0.0)
}

/// Two-dimensional Fourier transform of one size.
struct Fourier {
    height: usize,
    width: usize,
    planner: FftPlanner<f32>,
    rings: Vec<usize>,
}

impl Fourier {
    fn new(height: usize, width: usize) -> Self {
        // Cycles per pixel, -0.5 to 0.5.
        let frequency =
            |i: usize, n: usize| if i <= n / 2 { i as f32 } else { i as f32 - n as f32 } / n as f32;
        let ring = |y: usize, x: usize| {
            let radius = frequency(y, height).hypot(frequency(x, width)) / 0.5;
            ((radius * RINGS as f32) as usize).min(RINGS - 1)
        };
        let rings =
            (0..height).flat_map(|y| (0..width).map(move |x| (y, x))).map(|(y, x)| ring(y, x)).collect();
        Self { height, width, planner: FftPlanner::new(), rings }
    }

    fn ring(&self, i: usize) -> usize {
        self.rings[i]
    }

    fn forward(&mut self, plane: &[f32]) -> Vec<Complex32> {
        let mut f: Vec<Complex32> = plane.iter().map(|v| Complex32::new(*v, 0.0)).collect();
        self.planner.plan_fft_forward(self.width).process(&mut f);
        let mut f = transposed(&f, self.height, self.width);
        self.planner.plan_fft_forward(self.height).process(&mut f);
        transposed(&f, self.width, self.height)
    }

    fn inverse(&mut self, mut f: Vec<Complex32>) -> Vec<f32> {
        self.planner.plan_fft_inverse(self.width).process(&mut f);
        let mut f = transposed(&f, self.height, self.width);
        self.planner.plan_fft_inverse(self.height).process(&mut f);
        let scale = 1.0 / (self.height * self.width) as f32;
        transposed(&f, self.width, self.height).iter().map(|c| c.re * scale).collect()
    }
}

fn transposed(f: &[Complex32], rows: usize, columns: usize) -> Vec<Complex32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| f[r * columns + c])).collect()
}

/// Standard normal, by Box and Muller.
fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f32, f32) = (rng.random_range(f32::MIN_POSITIVE..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 64;

    /// Blobs and fine grain, different for every seed.
    fn picture(seed: u64) -> Pixels {
        let mut rng = StdRng::seed_from_u64(seed);
        let waves: Vec<[f32; 3]> = (0..40)
            .map(|_| {
                // Whole cycles: nothing leaks from coarse into fine.
                let mut cycles = || rng.random_range(-28..=28) as f32 / SIDE as f32;
                let (fy, fx) = (cycles(), cycles());
                [fy, fx, rng.random_range(0.0..6.3)]
            })
            .collect();
        let at = |y: usize, x: usize| {
            let sum: f32 = waves
                .iter()
                .map(|[fy, fx, phase]| {
                    let amplitude = 0.1 / (0.05 + fy.hypot(*fx)).powf(1.5);
                    amplitude * (std::f32::consts::TAU * (fy * y as f32 + fx * x as f32) + phase).cos()
                })
                .sum();
            (130.0 + 4.0 * sum).clamp(0.0, 255.0)
        };
        let plane = (0..SIDE * SIDE).map(|i| at(i / SIDE, i % SIDE)).collect();
        Pixels { height: SIDE, width: SIDE, planes: vec![plane] }
    }

    fn estimate(change: impl Fn(Pixels, u64) -> Pixels) -> (Appearance, Vec<Pixels>, Vec<Pixels>) {
        let old: Vec<Pixels> = (0..120).map(picture).collect();
        let new: Vec<Pixels> = (1000..1120).map(|s| change(picture(s), s)).collect();
        let look =
            Appearance::estimate(&old.iter().collect::<Vec<_>>(), &new.iter().collect::<Vec<_>>()).unwrap();
        (look, old, new)
    }

    fn mean_difference(a: &Pixels, b: &Pixels) -> f32 {
        let differences = a.planes[0].iter().zip(&b.planes[0]).map(|(a, b)| (a - b).abs());
        differences.sum::<f32>() / (SIDE * SIDE) as f32
    }

    fn gamma(p: Pixels) -> Pixels {
        let planes = p.planes.iter().map(|c| c.iter().map(|v| 255.0 * (v / 255.0).powf(2.2)).collect());
        Pixels { planes: planes.collect(), ..p }
    }

    fn blurred(p: &Pixels) -> Pixels {
        let sigma = 1.5f32;
        let mut fourier = Fourier::new(SIDE, SIDE);
        let mut f = fourier.forward(&p.planes[0]);
        for (i, v) in f.iter_mut().enumerate() {
            let frequency =
                |i: usize| (if i <= SIDE / 2 { i as f32 } else { i as f32 - SIDE as f32 }) / SIDE as f32;
            let r2 = frequency(i / SIDE).powi(2) + frequency(i % SIDE).powi(2);
            *v *= (-2.0 * std::f32::consts::PI.powi(2) * sigma * sigma * r2).exp();
        }
        Pixels { planes: vec![fourier.inverse(f)], ..*p }
    }

    #[test]
    fn equal_populations_give_the_identity() {
        let (look, old, _) = estimate(|p, _| p);
        // Of the tones only the rarest may differ by chance; no blur and no noise is made up.
        assert!(look.filter.iter().all(|f| *f == 1.0) && look.noise == 0.0, "{}", look.describe());
        assert!(mean_difference(&look.apply(&old[0], 1.0, 0), &old[0]) < 1.0, "{}", look.describe());
        let same =
            Appearance::estimate(&old.iter().collect::<Vec<_>>(), &old.iter().collect::<Vec<_>>()).unwrap();
        assert!(same.is_identity());
    }

    #[test]
    fn a_darker_lamp_is_found_and_copied() {
        let (look, old, _) = estimate(|p, _| gamma(p));
        for image in &old[..5] {
            let wanted = gamma(image.clone());
            let before = mean_difference(image, &wanted);
            let after = mean_difference(&look.apply(image, 1.0, 0), &wanted);
            assert!(after < before / 6.0, "{before} {after}, {}", look.describe());
        }
    }

    #[test]
    fn a_lens_out_of_focus_is_found_and_copied() {
        let (look, old, _) = estimate(|p, _| blurred(&p));
        for image in &old[..5] {
            let wanted = blurred(image);
            let before = mean_difference(image, &wanted);
            let after = mean_difference(&look.apply(image, 1.0, 0), &wanted);
            assert!(after < before / 2.0, "{before} {after}, {}", look.describe());
        }
    }

    /// A picture brighter on one side, so that its edges do not meet, and the same through a lens out of focus.
    fn slanted(seed: u64, sigma: f32) -> Pixels {
        let mut p = picture(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let (dx, dy) = (rng.random_range(0.5..1.0), rng.random_range(-1.0..1.0f32));
        p.planes[0].iter_mut().enumerate().for_each(|(i, v)| {
            *v = 0.5 * *v + dx * (i % SIDE) as f32 + dy * (i / SIDE) as f32;
        });
        let reach = (3.0 * sigma).ceil() as isize;
        let at = |plane: &[f32], y: isize, x: isize| {
            let inside = |v: isize| v.clamp(0, SIDE as isize - 1) as usize;
            plane[inside(y) * SIDE + inside(x)]
        };
        for (dy, dx) in [(0, 1), (1, 0)] {
            let from = p.planes[0].clone();
            p.planes[0].iter_mut().enumerate().for_each(|(i, v)| {
                let (y, x) = ((i / SIDE) as isize, (i % SIDE) as isize);
                let (mut sum, mut weight) = (0.0, 0.0);
                for k in -reach..=reach {
                    let w = if k == 0 { 1.0 } else { (-((k * k) as f32) / (2.0 * sigma * sigma)).exp() };
                    sum += w * at(&from, y + k * dy, x + k * dx);
                    weight += w;
                }
                *v = sum / weight;
            });
        }
        p
    }

    #[test]
    fn edges_that_do_not_meet_hide_no_blur() {
        let pictures =
            |from: u64, sigma| (from..from + 60).map(move |s| slanted(s, sigma)).collect::<Vec<_>>();
        let (old, new) = (pictures(0, 0.0), pictures(1000, 2.0));
        let look =
            Appearance::estimate(&old.iter().collect::<Vec<_>>(), &new.iter().collect::<Vec<_>>()).unwrap();
        // At a quarter of a cycle a pixel this lens leaves less than a hundredth.
        let factor = look.filter[RINGS / 2];
        assert!(factor < 0.08, "{factor} in {:?}", look.filter);
    }

    #[test]
    fn noise_is_added_not_sharpened() {
        let noisy = |mut p: Pixels, seed: u64| {
            let mut rng = StdRng::seed_from_u64(seed);
            p.planes[0].iter_mut().for_each(|v| *v = (*v + 8.0 * normal(&mut rng)).clamp(0.0, 255.0));
            p
        };
        let (look, old, _) = estimate(noisy);
        let change = look.apply(&old[0], 1.0, 3);
        let deviation = mean_difference(&change, &old[0]) / 0.798;
        assert!((5.0..11.0).contains(&deviation), "{deviation}, {}", look.describe());
        assert_eq!(change, look.apply(&old[0], 1.0, 3));
        assert!(mean_difference(&look.apply(&old[0], 0.0, 3), &old[0]) < 0.01);
    }

    #[test]
    fn too_few_images_give_no_estimate() {
        let few: Vec<Pixels> = (0..7).map(picture).collect();
        assert_eq!(
            Appearance::estimate(&few.iter().collect::<Vec<_>>(), &few.iter().collect::<Vec<_>>()),
            None
        );
    }
}
