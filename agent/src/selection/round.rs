//! What is kept of a round's frames until it ends: a uniform sample, or the best.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// A uniform sample of all that was offered (Vitter 1985, algorithm R).
#[derive(Debug)]
pub(super) struct Reservoir<T> {
    rng: StdRng,
    kept: Vec<T>,
    offered: u64,
}

/// A uniform sample and the chance that each of its round had to be in it.
#[derive(Debug)]
pub(super) struct Round<T> {
    pub(super) chosen: Vec<T>,
    pub(super) probability: f32,
}

impl<T: Clone> Reservoir<T> {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), kept: Vec::new(), offered: 0 }
    }

    pub(super) fn offer(&mut self, item: &T, room: usize) {
        self.offered += 1;
        if self.kept.len() < room {
            self.kept.push(item.clone());
            return;
        }
        let place = self.rng.random_range(0..self.offered) as usize;
        if let Some(old) = self.kept.get_mut(place) {
            *old = item.clone();
        }
    }

    /// Ends the round with at most `wanted` of what was kept.
    pub(super) fn finish(&mut self, wanted: usize) -> Round<T> {
        let mut chosen = std::mem::take(&mut self.kept);
        chosen.shuffle(&mut self.rng);
        chosen.truncate(wanted);
        let probability = if self.offered == 0 { 1.0 } else { chosen.len() as f32 / self.offered as f32 };
        self.offered = 0;
        Round { chosen, probability: probability.clamp(f32::MIN_POSITIVE, 1.0) }
    }

    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.offered = 0;
    }
}

/// The items with the highest marks.
#[derive(Debug)]
pub(super) struct Ranked<T>(Vec<(f32, T)>);

impl<T> Default for Ranked<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Ranked<T> {
    /// A mark that is not a number is none.
    pub(super) fn offer(&mut self, item: &T, mark: f32, room: usize) {
        let place = self.0.partition_point(|(m, _)| *m >= mark);
        if place < room && !mark.is_nan() {
            self.0.insert(place, (mark, item.clone()));
            self.0.truncate(room);
        }
    }

    /// The best first; nothing is left.
    pub(super) fn finish(&mut self) -> Vec<T> {
        std::mem::take(&mut self.0).into_iter().map(|(_, item)| item).collect()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_of_a_round_has_the_same_chance() {
        let mut reservoir = Reservoir::new(3);
        let mut counts = [0u32; 40];
        for _ in 0..5000 {
            (0..40).for_each(|i| reservoir.offer(&i, 8));
            let round = reservoir.finish(4);
            assert_eq!((round.chosen.len(), round.probability), (4, 0.1));
            round.chosen.iter().for_each(|i| counts[*i] += 1);
        }
        // 500 expected, standard deviation 21.
        assert!(counts.iter().all(|n| (380..620).contains(n)), "{counts:?}");
    }

    #[test]
    fn the_best_are_kept_in_order() {
        let mut ranked = Ranked::default();
        [3.0, f32::NAN, 9.0, 1.0, 5.0].iter().for_each(|m| ranked.offer(m, *m, 3));
        assert_eq!(ranked.finish(), [9.0, 5.0, 3.0]);
        assert!(ranked.finish().is_empty());
    }
}
