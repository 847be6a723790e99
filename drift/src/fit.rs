//! Fitting a reference: what the trainer does with held-out good frames.

use crate::{
    FrameFeatures,
    calibrate::{Blocks, Design, bound_short, calibrate},
    charts::{Scores, Slacks},
    entropy,
    pca::Whitening,
    predicted,
    rank::Quantiles,
    reference::{ClassRate, Moments, Projection, Reference, Scorer, signature_of},
    stats::STATS,
};

#[derive(Debug, Clone)]
pub struct FitOptions {
    /// The same frames and the same seed give the same reference.
    pub seed: u64,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FitError {
    #[error("{frames} frames, needed are {min} to {max}")]
    Frames { frames: usize, min: usize, max: usize },
    #[error("frame {frame} has a value that is not finite")]
    NotFinite { frame: usize },
    #[error("frame {frame} has an embedding of {embedding} and {scores} scores, the first one has {first:?}")]
    Lengths { frame: usize, embedding: usize, scores: usize, first: (usize, usize) },
    #[error("{embedding} values in the embedding and {scores} scores, allowed are 0 to {max} and 2 to 1024")]
    TooLong { embedding: usize, scores: usize, max: usize },
}

impl Reference {
    pub const FRAMES_MIN: usize = 40;
    pub const FRAMES_MAX: usize = 20_000;

    /// From good frames that the network was not trained on, *in the order of the line* (or of the data set): how
    /// they depend on each other decides the thresholds.
    ///
    /// Takes some CPU-seconds for 300 frames; the frame count times the embedding's length is what counts.
    pub fn fit(frames: &[FrameFeatures], options: &FitOptions) -> Result<Self, FitError> {
        check(frames)?;
        let everything: Vec<&FrameFeatures> = frames.iter().collect();
        let of_stats = correlation_time(&series(&everything, 0, options.seed, |s| &s.stats));
        let of_predictions = correlation_time(&series(&everything, 0, options.seed, |s| &s.prediction));
        let components = components(&everything, frames.len() as f32 / of_stats);
        let of_embedding = correlation_time(&series(&everything, components, options.seed, |s| &s.embedding));
        let block = |tau: f32| ((5.0 * (tau - 1.0)).ceil() as usize).clamp(1, (frames.len() / 16).max(1));
        let blocks = Blocks {
            stats: block(of_stats),
            embedding: block(of_embedding),
            prediction: block(of_predictions),
        };
        let units = frames.len() as f32 / of_stats.max(of_embedding).max(of_predictions);
        // The reference's own error is a shift that lasts; a slack below it would climb for ever.
        let slack = 0.25 + 1.5 / units.sqrt();
        let slacks = Slacks { slow: slack.min(1.0), fast: 1.0, prediction: slack.min(1.0) };

        let scorer = fit_scorer(&everything, components, options.seed);
        let components = scorer.whitening.as_ref().map_or(0, Whitening::k);
        let design = Design { blocks, components, slacks, seed: options.seed };
        let mut ladders = calibrate(&everything, &design);
        if units < Self::UNITS_ASSURED {
            bound_short(&mut ladders);
        }
        Ok(Self {
            schema: Self::schema(),
            frames: frames.len() as u32,
            units,
            block: blocks.longest() as u32,
            labels: frames[0].scores.len() as u32,
            stats: scorer.stats,
            moments: moments(&everything),
            projection: scorer.whitening.as_ref().map(Projection::pack),
            classes: scorer.classes,
            entropy: scorer.entropy,
            slacks,
            ladders,
        })
    }
}

fn check(frames: &[FrameFeatures]) -> Result<(), FitError> {
    let (min, max) = (Reference::FRAMES_MIN, Reference::FRAMES_MAX);
    let Some(first) = frames.first().filter(|_| (min..=max).contains(&frames.len())) else {
        return Err(FitError::Frames { frames: frames.len(), min, max });
    };
    let lengths = |f: &FrameFeatures| (f.embedding.len(), f.scores.len());
    let (embedding, scores) = lengths(first);
    let max = Reference::EMBEDDING_MAX;
    if embedding > max || !(2..=1024).contains(&scores) {
        return Err(FitError::TooLong { embedding, scores, max });
    }
    for (i, frame) in frames.iter().enumerate() {
        if lengths(frame) != lengths(first) {
            let (embedding, scores) = lengths(frame);
            return Err(FitError::Lengths { frame: i, embedding, scores, first: lengths(first) });
        }
        if !frame.is_finite() {
            return Err(FitError::NotFinite { frame: i });
        }
    }
    Ok(())
}

/// How many components of the embedding so many independent frames can whiten; 0: too few to watch it at all.
fn components(frames: &[&FrameFeatures], units: f32) -> usize {
    const FRAMES_MIN: usize = 100;
    const COMPONENTS_MIN: usize = 4;
    let d = frames[0].embedding.len();
    if frames.len() < FRAMES_MIN || d < COMPONENTS_MIN {
        return 0;
    }
    let by_size = (Reference::WEIGHTS_MAX / d).saturating_sub(1);
    let by_units = ((units / 20.0) as usize).max(COMPONENTS_MIN);
    by_units.min(by_size).min(Reference::COMPONENTS_MAX).min(d)
}

pub(crate) fn fit_scorer(frames: &[&FrameFeatures], components: usize, seed: u64) -> Scorer {
    // `check` and the halves of calibration leave no empty or infinite sample.
    let quantiles = |value: &dyn Fn(&FrameFeatures) -> f32| {
        Quantiles::fit(frames.iter().map(|f| value(f))).expect("finite values of at least one frame")
    };
    let embeddings: Vec<&[f32]> = frames.iter().map(|f| f.embedding.as_slice()).collect();
    let whitening = (components > 0).then(|| Whitening::fit(&embeddings, components, seed)).flatten();
    let labels = frames[0].scores.len();
    let mut counts = vec![0u32; labels];
    frames.iter().for_each(|f| counts[predicted(&f.scores)] += 1);
    let n = frames.len() as f32;
    let rate = |count: u32| (count as f32 + 0.5) / (n + 1.0);
    let mut classes: Vec<ClassRate> =
        counts.iter().enumerate().map(|(i, c)| ClassRate { class: i as u32, rate: rate(*c) }).collect();
    classes.sort_by(|a, b| b.rate.total_cmp(&a.rate));
    classes.truncate(Reference::CLASSES_MAX);
    // With two classes the second says what the first has said.
    classes.truncate(if labels == 2 { 1 } else { Reference::CLASSES_MAX });
    Scorer {
        stats: (0..STATS).map(|i| quantiles(&|f| f.stats[i])).collect(),
        whitening,
        classes,
        entropy: quantiles(&|f| entropy(&f.scores)),
        frames: frames.len() as u32,
    }
}

/// The frames' scores of one kind, one series for each score.
fn series(
    frames: &[&FrameFeatures],
    components: usize,
    seed: u64,
    kind: impl Fn(&Scores) -> &Vec<f32>,
) -> Vec<Vec<f32>> {
    let scorer = fit_scorer(frames, components, seed);
    let mut series = Vec::new();
    let mut scores = Scores::default();
    for frame in frames {
        scorer.score(frame, &mut scores);
        series.resize(kind(&scores).len(), Vec::new());
        series.iter_mut().zip(kind(&scores)).for_each(|(s, z)| s.push(*z));
    }
    series
}

/// Integrated autocorrelation time in frames, at least 1; of several series the longest. Sums while the
/// correlation is above its own noise.
fn correlation_time(series: &[Vec<f32>]) -> f32 {
    let of_one = |values: &Vec<f32>| {
        let n = values.len();
        let mean = values.iter().sum::<f32>() / n as f32;
        let centred: Vec<f32> = values.iter().map(|v| v - mean).collect();
        let at = |lag: usize| centred.iter().zip(&centred[lag..]).map(|(a, b)| a * b).sum::<f32>();
        let variance = at(0);
        // A class that is never seen has one score throughout; what is left of it after the mean is rounding.
        if variance <= 1e-6 * n as f32 {
            return 1.0;
        }
        let noise = 2.0 / (n as f32).sqrt();
        let correlated = (1..n / 4).map(|lag| at(lag) / variance).take_while(|r| *r > noise);
        1.0 + 2.0 * correlated.sum::<f32>()
    };
    series.iter().map(of_one).fold(1.0, f32::max)
}

fn moments(frames: &[&FrameFeatures]) -> Vec<Moments> {
    let n = frames.len() as f64;
    let mut sums = [(0.0f64, 0.0f64); STATS + 2];
    for frame in frames {
        for ((sum, squares), value) in sums.iter_mut().zip(signature_of(&frame.stats)) {
            *sum += f64::from(value);
            *squares += f64::from(value) * f64::from(value);
        }
    }
    let moments = |(sum, squares): (f64, f64)| {
        let mean = sum / n;
        let sd = (squares / n - mean * mean).max(0.0).sqrt();
        Moments { mean: mean as f32, sd: (sd as f32).max(1e-3) }
    };
    sums.into_iter().map(moments).collect()
}

#[cfg(test)]
mod tests {
    use andon_protocol::{codec::Wire, decode, encode};
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::detector::tests::Line;

    #[test]
    fn a_reference_is_small_and_comes_back_from_its_bytes() {
        let line = Line::new(1280, 3);
        let frames = line.frames(700, &mut StdRng::seed_from_u64(1));
        let reference = Reference::fit(&frames, &FitOptions { seed: 5 }).unwrap();
        assert_eq!(reference, Reference::fit(&frames, &FitOptions { seed: 5 }).unwrap());
        let bytes = encode(&reference);
        assert!(bytes.len() <= Reference::BYTES_MAX, "{}", bytes.len());
        assert_eq!(decode::<Reference>(&bytes).unwrap(), reference);
        assert_eq!(reference.embedding_len(), Some(1280));
        let assurance = reference.assurance(2000.0);
        assert!(assurance.assured && (1000.0..4000.0).contains(&assurance.frames), "{assurance:?}");
        assert!(!reference.assurance(1e12).assured);
    }

    #[test]
    fn frames_that_depend_on_each_other_are_worth_less() {
        let mut rng = StdRng::seed_from_u64(2);
        let line = Line::new(8, 2);
        let single = line.frames(150, &mut rng);
        let repeated: Vec<FrameFeatures> = single.iter().flat_map(|f| vec![f.clone(); 8]).collect();
        let reference = Reference::fit(&repeated, &FitOptions { seed: 1 }).unwrap();
        assert!((75.0..300.0).contains(&reference.units), "{}", reference.units);
        assert!(reference.block > 8);
        let independent = Reference::fit(&single, &FitOptions { seed: 1 }).unwrap();
        assert!(independent.units > 75.0 && independent.block < 8);
    }

    #[test]
    fn bad_frames_are_refused_by_number() {
        let line = Line::new(8, 2);
        let mut frames = line.frames(50, &mut StdRng::seed_from_u64(2));
        let fit = |frames: &[FrameFeatures]| Reference::fit(frames, &FitOptions { seed: 1 }).unwrap_err();
        assert!(matches!(fit(&frames[..39]), FitError::Frames { frames: 39, .. }));
        assert!(matches!(fit(&[]), FitError::Frames { frames: 0, .. }));
        frames[7].scores[1] = f32::NAN;
        assert_eq!(fit(&frames), FitError::NotFinite { frame: 7 });
        frames[7].scores.pop();
        assert!(matches!(fit(&frames), FitError::Lengths { frame: 7, .. }));
    }

    #[test]
    fn constant_frames_give_a_sound_reference() {
        let frame = FrameFeatures { stats: [1.0; STATS], embedding: vec![0.5; 16], scores: vec![1.0, 0.0] };
        let reference = Reference::fit(&vec![frame; 120], &FitOptions { seed: 1 }).unwrap();
        assert_eq!(decode::<Reference>(&encode(&reference)).unwrap(), reference);
        assert_eq!(reference.embedding_len(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is done to a reference's bytes, reading it is an answer and never a panic, and what is read
        /// never puts a NaN into a chart.
        #[test]
        fn a_damaged_reference_is_refused_or_harmless(hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let line = Line::new(8, 2);
            let bytes = BYTES.get_or_init(|| {
                let frames = line.frames(120, &mut StdRng::seed_from_u64(3));
                encode(&Reference::fit(&frames, &FitOptions { seed: 1 }).unwrap())
            });
            let mut damaged = bytes.clone();
            for (index, value) in hits {
                *index.get_mut(&mut damaged) = value;
            }
            if let Ok(reference) = decode::<Reference>(&damaged) {
                crate::detector::tests::feed_and_check(&reference, &line);
            }
        }
    }
}
