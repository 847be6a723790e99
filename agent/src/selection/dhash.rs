//! A 64-bit difference hash (Krawetz 2013): pictures that look alike have hashes that differ in few bits.

use std::collections::VecDeque;

/// Brightness of neighbours in a grid of 9 x 8 cell means. `pixels` is a grey plane, row by row; a plane smaller than
/// the grid hashes to 0.
pub(super) fn dhash(width: usize, height: usize, pixels: &[f32]) -> u64 {
    const COLUMNS: usize = 9;
    const ROWS: usize = 8;
    if width < COLUMNS || height < ROWS || pixels.len() != width * height {
        return 0;
    }
    let mut hash = 0;
    for row in 0..ROWS {
        let (top, bottom) = (row * height / ROWS, (row + 1) * height / ROWS);
        let mean = |column: usize| {
            let (left, right) = (column * width / COLUMNS, (column + 1) * width / COLUMNS);
            let sum: f32 = (top..bottom).flat_map(|y| &pixels[y * width + left..y * width + right]).sum();
            sum / ((right - left) * (bottom - top)) as f32
        };
        let means: [f32; COLUMNS] = std::array::from_fn(mean);
        for pair in means.windows(2) {
            hash = hash << 1 | u64::from(pair[0] > pair[1]);
        }
    }
    hash
}

/// The hashes of what was chosen last.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<u64>);

impl Recent {
    const COUNT: usize = 256;
    /// Bits in which two pictures of the same thing may differ.
    const BITS: u32 = 4;

    pub(super) fn has_alike(&self, hash: u64) -> bool {
        self.0.iter().any(|old| (old ^ hash).count_ones() <= Self::BITS)
    }

    pub(super) fn push(&mut self, hash: u64) {
        if self.0.len() >= Self::COUNT {
            self.0.pop_front();
        }
        self.0.push_back(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(pixel: impl Fn(usize, usize) -> f32) -> u64 {
        dhash(64, 64, &(0..64 * 64).map(|i| pixel(i % 64, i / 64)).collect::<Vec<_>>())
    }

    #[test]
    fn light_does_not_change_a_hash_and_another_picture_does() {
        let wave = |x: usize, y: usize| 100.0 + 50.0 * (x as f32 / 6.0).sin() * (y as f32 / 11.0).cos();
        let base = plane(wave);
        assert!((base ^ plane(|x, y| 0.5 * wave(x, y) + 3.0)).count_ones() <= 2);
        assert!((base ^ plane(|x, y| wave(y + 9, x + 4))).count_ones() > 10);
        assert_eq!(dhash(4, 4, &[0.0; 16]), 0);
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let mut recent = Recent::default();
        recent.push(u64::MAX);
        assert!(recent.has_alike(u64::MAX ^ 0b1111) && !recent.has_alike(u64::MAX ^ 0b1_1111));
        (0..Recent::COUNT).for_each(|_| recent.push(0));
        assert!(!recent.has_alike(u64::MAX));
    }
}
