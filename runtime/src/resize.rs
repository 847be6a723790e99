//! A picture at another size: [`Resizer`], made once for a pair of sizes.
//!
//! Bilinear with half-pixel centres; where it shrinks, the triangle widens by the factor (antialiasing, as in Pillow's and
//! torchvision's), without rounding to bytes in between. First along the rows, then along the columns, in f32: every product
//! and every sum is rounded, from the first tap to the last, no fused multiply-add. So the result is the same to the last
//! bit on every processor, however many of its numbers are computed at a time; a GPU computes them in whole numbers
//! (`resized.wgsl`).

use std::ops::Range;

use andon_protocol::release::Fit;

/// Height, width, channels.
pub(crate) type Sides = [usize; 3];

/// How much of red, green and blue makes grey: Rec. 601.
pub(crate) const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// For each output position: where its run of input positions starts, and their weights, which sum to 1.
#[derive(Debug, Clone)]
pub(crate) struct Taps {
    runs: Vec<(usize, Range<usize>)>,
    weights: Vec<f32>,
}

impl Taps {
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let mut taps = Self { runs: Vec::with_capacity(to), weights: Vec::new() };
        let mut run = Vec::new();
        for out in 0..to {
            let centre = (out as f64 + 0.5) * scale;
            // The float-to-int cast saturates at 0. At least one input centre lies within `support` of `centre`.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            run.clear();
            run.extend((first..end).map(|i| (1.0 - ((i as f64 + 0.5 - centre) / support).abs()).max(0.0)));
            let sum: f64 = run.iter().sum();
            let start = taps.weights.len();
            taps.weights.extend(run.iter().map(|w| (w / sum) as f32));
            taps.runs.push((first, start..taps.weights.len()));
        }
        taps
    }

    fn of(&self, out: usize) -> (usize, &[f32]) {
        let (first, range) = &self.runs[out];
        (*first, &self.weights[range.clone()])
    }

    pub(crate) fn count(&self) -> usize {
        self.runs.len()
    }

    /// Of each output position the first input position and the first weight, by number; behind the last where weights end.
    pub(crate) fn starts(&self) -> impl Iterator<Item = [usize; 2]> {
        let starts = self.runs.iter().map(|(first, range)| [*first, range.start]);
        starts.chain([[0, self.weights.len()]])
    }

    pub(crate) fn weights(&self) -> &[f32] {
        &self.weights
    }
}

/// Where in an input the picture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) top: usize,
    pub(crate) left: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Window {
    /// Its sides are rounded to the nearest, its place to the top and to the left.
    fn new([h, w, _]: Sides, [height, width, _]: Sides, fit: Fit) -> Self {
        let rounded = |one: usize, other: usize, by: usize| ((one * other + by / 2) / by).max(1);
        let (own_height, own_width) = match fit {
            Fit::Stretched => (height, width),
            Fit::Letterboxed { .. } if h * width <= w * height => (rounded(h, width, w), width),
            Fit::Letterboxed { .. } => (height, rounded(w, height, h)),
        };
        let (top, left) = ((height - own_height) / 2, (width - own_width) / 2);
        Self { top, left, height: own_height, width: own_width }
    }

    /// Row of the picture that is to be in row `y` of the input.
    pub(crate) fn row(&self, y: usize) -> Option<usize> {
        y.checked_sub(self.top).filter(|y| *y < self.height)
    }
}

/// From pictures of one size to an input of another.
#[derive(Debug, Clone)]
pub(crate) struct Resizer {
    pub(crate) from: Sides,
    pub(crate) to: Sides,
    pub(crate) window: Window,
    pub(crate) across: Taps,
    pub(crate) down: Taps,
}

/// Rows of a picture that go through [`Resizer::across`] together.
pub(crate) const ROWS: usize = 4;

impl Resizer {
    /// No side is 0; both have 1 or 3 channels.
    pub(crate) fn new(from: Sides, to: Sides, fit: Fit) -> Self {
        let window = Window::new(from, to, fit);
        let (across, down) = (Taps::new(from[1], window.width), Taps::new(from[0], window.height));
        Self { from, to, window, across, down }
    }

    /// Whether there is one from a size to another.
    pub(crate) fn has(from: Sides, to: Sides) -> bool {
        let known = |[h, w, c]: Sides| h > 0 && w > 0 && matches!(c, 1 | 3);
        known(from) && known(to)
    }

    /// Distinct values of a pixel: an RGB network gets one from a grey picture, a grey network one from an RGB picture.
    pub(crate) fn lanes(&self) -> usize {
        if self.from[2] == 3 && self.to[2] == 3 { 3 } else { 1 }
    }

    /// Values of a row that has its width.
    pub(crate) fn row(&self) -> usize {
        self.window.width * self.lanes()
    }

    /// Rows of a picture, from number `first` on, at their new width; `out`: whole rows of [`Resizer::row`] values, as many as
    /// are wanted.
    pub(crate) fn across(&self, pixels: &[u8], first: usize, out: &mut [f32]) {
        match self.lanes() {
            3 => self.across_of::<3, 4>(pixels, first, out),
            _ => self.across_of::<1, 1>(pixels, first, out),
        }
    }

    /// `WIDE`: values that are computed together, of which the last may be of no use.
    fn across_of<const LANES: usize, const WIDE: usize>(&self, pixels: &[u8], first: usize, out: &mut [f32]) {
        let [_, width, channels] = self.from;
        // What is computed for nothing is read, too.
        let length = width * LANES + WIDE - LANES;
        let mut rows = vec![0.0; ROWS * length];
        for (band, out) in out.chunks_mut(ROWS * self.row()).enumerate() {
            let lines = pixels.chunks_exact(width * channels).skip(first + band * ROWS);
            for (row, bytes) in rows.chunks_exact_mut(length).zip(lines) {
                read_row(bytes, (channels, LANES), row);
            }
            // There are always as many, whether they are wanted or left from before.
            let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &rows[r * length..][..length]);
            for x in 0..self.window.width {
                let (from, weights) = self.across.of(x);
                let runs = rows.map(|row| &row[from * LANES..][..(weights.len() - 1) * LANES + WIDE]);
                let mut sums = [[0.0; WIDE]; ROWS];
                for (i, weight) in weights.iter().enumerate() {
                    for (sums, run) in sums.iter_mut().zip(runs) {
                        let values = &run[i * LANES..][..WIDE];
                        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
                    }
                }
                for (out, sums) in out.chunks_exact_mut(self.row()).zip(sums) {
                    out[x * LANES..][..LANES].copy_from_slice(&sums[..LANES]);
                }
            }
        }
    }

    /// Row `y` of the window; `rows`: what [`Resizer::across`] makes of all rows of the picture; `out`: one row.
    pub(crate) fn down(&self, rows: &[f32], y: usize, out: &mut [f32]) {
        let (first, weights) = self.down.of(y);
        out.fill(0.0);
        for (weight, row) in weights.iter().zip(rows.chunks_exact(self.row()).skip(first)) {
            out.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
        }
    }
}

/// A row of bytes as real numbers. The number of channels that it has, and that are wanted.
fn read_row(bytes: &[u8], channels: (usize, usize), row: &mut [f32]) {
    if let (3, 1) = channels {
        let (pixels, _) = bytes.as_chunks::<3>();
        row.iter_mut().zip(pixels).for_each(|(out, [r, g, b])| {
            *out = LUMA[0] * f32::from(*r) + LUMA[1] * f32::from(*g) + LUMA[2] * f32::from(*b);
        });
        return;
    }
    row.iter_mut().zip(bytes).for_each(|(out, byte)| *out = f32::from(*byte));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Value by value, as it is written down above.
    fn plainly(resizer: &Resizer, pixels: &[u8], [y, x, lane]: [usize; 3]) -> f32 {
        let [_, width, channels] = resizer.from;
        let ((top, rows), (left, columns)) = (resizer.down.of(y), resizer.across.of(x));
        let value = |y: usize, x: usize| {
            let pixel = &pixels[(y * width + x) * channels..][..channels];
            match (channels, resizer.to[2]) {
                (3, 1) => {
                    let [r, g, b] = [0, 1, 2].map(|c| LUMA[c] * f32::from(pixel[c]));
                    r + g + b
                }
                _ => f32::from(pixel[lane]),
            }
        };
        let mut sum = 0.0;
        for (j, down) in rows.iter().enumerate() {
            let mut line = 0.0;
            for (i, across) in columns.iter().enumerate() {
                line += across * value(top + j, left + i);
            }
            sum += down * line;
        }
        sum
    }

    fn channels() -> impl Strategy<Value = usize> {
        prop::sample::select(vec![1, 3])
    }

    proptest! {
        #[test]
        fn many_at_a_time_are_each_alone(
            (h, w, c) in (1usize..40, 1usize..40, channels()),
            (height, width, wanted) in (1usize..30, 1usize..30, channels()),
            (first, count) in (0usize..5, 1usize..9), seed in any::<u8>(),
        ) {
            let resizer = Resizer::new([h, w, c], [height, width, wanted], Fit::Stretched);
            let pixels: Vec<u8> = (0..h * w * c).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
            let mut rows = vec![0.0; h * resizer.row()];
            resizer.across(&pixels, 0, &mut rows);
            // Rows in other company are the same.
            let first = first.min(h - 1);
            let mut some = vec![0.0; count.min(h - first) * resizer.row()];
            resizer.across(&pixels, first, &mut some);
            prop_assert_eq!(&rows[first * resizer.row()..][..some.len()], &*some);
            let mut out = vec![0.0; resizer.row()];
            for y in 0..height {
                resizer.down(&rows, y, &mut out);
                for (i, value) in out.iter().enumerate() {
                    let (x, lane) = (i / resizer.lanes(), i % resizer.lanes());
                    prop_assert_eq!(value.to_bits(), plainly(&resizer, &pixels, [y, x, lane]).to_bits());
                }
            }
        }
    }

    #[test]
    fn windows_keep_the_aspect_ratio() {
        let fit = Fit::Letterboxed { fill: 7 };
        let of = |from: [usize; 2], to: [usize; 2]| {
            let Window { top, left, height, width } =
                Window::new([from[0], from[1], 1], [to[0], to[1], 1], fit);
            [top, left, height, width]
        };
        for (from, to, expected) in [
            ([480, 640], [224, 224], [28, 0, 168, 224]),
            ([640, 480], [224, 224], [0, 28, 224, 168]),
            ([10, 20], [5, 10], [0, 0, 5, 10]),
            ([2, 3], [5, 5], [1, 0, 3, 5]),
            ([2, 3], [4, 4], [0, 0, 3, 4]),
            ([3, 2], [7, 6], [0, 0, 7, 5]),
            ([1, 1000], [9, 8], [4, 0, 1, 8]),
            ([1000, 1], [9, 8], [0, 3, 9, 1]),
            ([1, 1], [4, 9], [0, 2, 4, 4]),
        ] {
            assert_eq!(of(from, to), expected, "{from:?} in {to:?}");
        }
    }

    /// What earlier releases were trained and calibrated with.
    #[test]
    fn results_stay_what_they_were() {
        let pixels: Vec<u8> =
            (0..61 * 47 * 3).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut sums = vec![];
        for (to, from) in [
            ([24, 31, 3], [47, 61, 3]),
            ([90, 80, 3], [47, 61, 3]),
            ([9, 100, 1], [47, 61, 3]),
            ([20, 20, 1], [141, 61, 1]),
        ] {
            let resizer = Resizer::new(from, to, Fit::Stretched);
            let mut rows = vec![0.0; from[0] * resizer.row()];
            resizer.across(&pixels, 0, &mut rows);
            let mut out = vec![0.0; resizer.row()];
            let mut sum = 0u64;
            for y in 0..to[0] {
                resizer.down(&rows, y, &mut out);
                out.iter().for_each(|v| sum = sum.wrapping_mul(31).wrapping_add(v.to_bits().into()));
            }
            sums.push(sum);
        }
        assert_eq!(
            sums,
            [0xef6f_afdb_7533_a5f3, 0xc23c_0ccf_af9f_9f5f, 0xce01_2767_edde_624f, 0xe525_dbac_ed34_d2af]
        );
    }
}
