//! Thresholds that hold on frames the reference never saw.
//!
//! A reference fitted and calibrated on the same 900 frames for 2,000 frames between false alarms gives 545 to 920 in
//! truth: its own error is a shift that lasts. So the frames are split in halves by whole blocks, one half plays
//! reference, streams are drawn from the other, block by block, so that they depend on each other as the line's do.
//!
//! Half a reference errs twice as much as is due: between halves of `n` frames a mean errs by `2 / √n`, between a
//! whole reference and as many new frames by `√2 / √n`. The streams' offsets are shrunk by that ratio.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    FrameFeatures,
    charts::{Bank, Chart, Scores, Slacks},
    fit::fit_scorer,
    reference::{Ladder, LadderStep},
    stats::STATS,
};

/// Splits in halves; each gives two fits.
const SPLITS: usize = 4;
/// Streams for each fit, and frames of each stream.
const RUNS: usize = 75;
const RUN_FRAMES: usize = 5000;
/// `√2 / 2`.
const OFFSET_KEPT: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// No offset is more than this: where the halves of a short stretch of a line differ by more, that is the shortness,
/// and thresholds above such a drift would see nothing at all.
const OFFSET_MAX: f32 = 0.5;
/// Thresholds are raised by this where the reference is too short a stretch for its tail to be known.
const MARGIN_OF_SHORT: f32 = 1.25;
/// … but CUSUM thresholds never above this, which a change of two standard deviations takes a minute of frames to
/// reach: better a watch that promises less than one that sees nothing.
const THRESHOLD_MAX_OF_SHORT: f32 = 60.0;
/// The ladder's steps: from this many frames on, each twice the one before.
const STEP_FIRST: f64 = 1000.0;
const STEPS: usize = 14;
/// Alarms that a step needs to be read off the simulation; beyond, it is extrapolated.
const ALARMS_MIN: usize = 16;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Design {
    pub(crate) blocks: Blocks,
    pub(crate) components: usize,
    pub(crate) slacks: Slacks,
    pub(crate) seed: u64,
}

/// How long the blocks of each kind of score are. Too short and the streams forget that frames depend on each other;
/// too long and they repeat the few stretches that the reference holds, and miss what a longer line brings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) stats: usize,
    pub(crate) embedding: usize,
    pub(crate) prediction: usize,
}

impl Blocks {
    pub(crate) fn longest(self) -> usize {
        self.stats.max(self.embedding).max(self.prediction)
    }
}

/// A walk through the pool that jumps at the end of each block.
struct Walk {
    block: usize,
    at: usize,
}

impl Walk {
    fn step(&mut self, frame: usize, pool: usize, rng: &mut StdRng) -> usize {
        let jumps = frame.is_multiple_of(self.block);
        self.at = if jumps { rng.random_range(0..pool) } else { (self.at + 1) % pool };
        self.at
    }
}

pub(crate) fn calibrate(frames: &[&FrameFeatures], design: &Design) -> Vec<Ladder> {
    let mut rng = StdRng::seed_from_u64(design.seed ^ 0x5eed_ca1b);
    let mut fits = Vec::new();
    for _ in 0..SPLITS {
        let (a, b) = halves(frames, design.blocks.longest(), &mut rng);
        for (fitted, held_out) in [(&a, &b), (&b, &a)] {
            let scorer = fit_scorer(fitted, design.components, rng.random());
            let mut pool: Vec<Scores> = vec![Scores::default(); held_out.len()];
            pool.iter_mut().zip(held_out).for_each(|(scores, frame)| scorer.score(frame, scores));
            shrink_offsets(&mut pool);
            fits.push(simulate(&pool, design, &mut rng));
        }
    }
    let charts = Chart::ALL.map(|chart| {
        let watched = chart != Chart::Embedding || design.components > 0;
        let passages: Vec<&[Passages]> = fits.iter().map(|f| f[chart as usize].as_slice()).collect();
        Ladder { steps: if watched { steps(&passages) } else { Vec::new() } }
    });
    charts.into()
}

/// What is made of thresholds where the reference is too short a stretch of a line to read them off.
pub(crate) fn bound_short(ladders: &mut [Ladder]) {
    for (ladder, chart) in ladders.iter_mut().zip(Chart::ALL) {
        let max = if chart == Chart::Embedding { f32::INFINITY } else { THRESHOLD_MAX_OF_SHORT };
        ladder.steps.iter_mut().for_each(|step| step.threshold = (step.threshold * MARGIN_OF_SHORT).min(max));
    }
}

/// Whole blocks to one side or the other, each side in its old order.
fn halves<'a>(
    frames: &[&'a FrameFeatures],
    block: usize,
    rng: &mut StdRng,
) -> (Vec<&'a FrameFeatures>, Vec<&'a FrameFeatures>) {
    let blocks = frames.len().div_ceil(block);
    let mut sides: Vec<bool> = (0..blocks).map(|i| i % 2 == 0).collect();
    sides.shuffle(rng);
    let indexed = frames.iter().enumerate();
    let (a, b): (Vec<_>, Vec<_>) = indexed.partition(|(i, _)| sides[i / block]);
    let frames = |side: Vec<(usize, &&'a FrameFeatures)>| side.into_iter().map(|(_, f)| *f).collect();
    (frames(a), frames(b))
}

fn shrink_offsets(pool: &mut [Scores]) {
    let n = pool.len() as f32;
    // Typed, since closures would not promise that what they give lives as long as what they take.
    let parts: [fn(&mut Scores) -> &mut Vec<f32>; 3] =
        [|s| &mut s.stats, |s| &mut s.embedding, |s| &mut s.prediction];
    for part in parts {
        let width = part(&mut pool[0]).len();
        let mut means = vec![0.0f32; width];
        for scores in pool.iter_mut() {
            means.iter_mut().zip(part(scores)).for_each(|(m, v)| *m += *v / n);
        }
        for scores in pool.iter_mut() {
            part(scores)
                .iter_mut()
                .zip(&means)
                .for_each(|(v, m)| *v -= m - (OFFSET_KEPT * m).clamp(-OFFSET_MAX, OFFSET_MAX));
        }
    }
}

/// When a stream's chart first reached its records: `(frame, value)`, both growing.
type Passages = Vec<(u32, f32)>;

/// For each chart the records of each stream.
fn simulate(pool: &[Scores], design: &Design, rng: &mut StdRng) -> [Vec<Passages>; Chart::COUNT] {
    let mut all: [Vec<Passages>; Chart::COUNT] = Default::default();
    let caps = [f32::INFINITY; Chart::COUNT];
    let widths = (pool[0].embedding.len(), pool[0].prediction.len());
    for _ in 0..RUNS {
        let mut bank = Bank::new(design.slacks, STATS, widths.0, widths.1);
        let mut records: [Passages; Chart::COUNT] = Default::default();
        let Blocks { stats, embedding, prediction } = design.blocks;
        let mut walks = [stats, embedding, prediction].map(|block| Walk { block, at: 0 });
        for frame in 0..RUN_FRAMES {
            let [stats, embedding, prediction] =
                walks.each_mut().map(|walk| &pool[walk.step(frame, pool.len(), rng)]);
            let values = bank.push(&stats.stats, &embedding.embedding, &prediction.prediction, &caps);
            for (records, value) in records.iter_mut().zip(values) {
                if records.last().is_none_or(|(_, highest)| value > *highest) {
                    records.push((frame as u32 + 1, value));
                }
            }
        }
        all.iter_mut().zip(records).for_each(|(all, records)| all.push(records));
    }
    all
}

/// Alarms, mean frames between them and the relative standard error, at a threshold.
struct RunLength {
    alarms: usize,
    frames: f64,
    standard_error: f64,
}

/// Each fit stands for a device; what counts is the mean rate over devices.
fn run_length(fits: &[&[Passages]], threshold: f32) -> RunLength {
    let mut alarms = 0;
    let mut rates = Vec::with_capacity(fits.len());
    for runs in fits {
        let (mut exposure, mut here) = (0u64, 0usize);
        for records in *runs {
            let first = records.partition_point(|(_, value)| *value < threshold);
            match records.get(first) {
                Some((frame, _)) => {
                    exposure += u64::from(*frame);
                    here += 1;
                }
                None => exposure += RUN_FRAMES as u64,
            }
        }
        rates.push(here as f64 / exposure.max(1) as f64);
        alarms += here;
    }
    let n = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / n;
    let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let between = if mean > 0.0 { (variance / n).sqrt() / mean } else { 1.0 };
    let within = 1.0 / (alarms.max(1) as f64).sqrt();
    RunLength {
        alarms,
        frames: if mean > 0.0 { 1.0 / mean } else { f64::INFINITY },
        standard_error: between.max(within),
    }
}

fn steps(fits: &[&[Passages]]) -> Vec<LadderStep> {
    let highest =
        fits.iter().flat_map(|f| f.iter()).filter_map(|r| r.last()).fold(0.0f32, |max, (_, v)| max.max(*v));
    let mut steps: Vec<LadderStep> = Vec::with_capacity(STEPS);
    for i in 0..STEPS {
        let target = STEP_FIRST * 2f64.powi(i as i32);
        // The lowest threshold with the target's run length, by bisection.
        let (mut low, mut high) = (0.0f32, highest * 1.001 + 1e-3);
        for _ in 0..40 {
            let middle = (low + high) / 2.0;
            if run_length(fits, middle).frames < target { low = middle } else { high = middle }
        }
        let found = run_length(fits, low);
        if found.alarms < ALARMS_MIN {
            break;
        }
        let threshold = steps.last().map_or(high, |s| high.max(s.threshold)).max(1e-3);
        let standard_error = found.standard_error as f32;
        steps.push(LadderStep { frames: target as f32, threshold, standard_error });
    }
    extrapolate(&mut steps, highest);
    steps
}

/// The thresholds of a chart with a memory that fades grow with the logarithm of the run length. The slope is that
/// of the last two doublings read off, and never less than that of the whole ladder.
fn extrapolate(steps: &mut Vec<LadderStep>, highest: f32) {
    if steps.is_empty() {
        // Charts so quiet that nothing could be read off: the highest value ever seen stands for the first step.
        steps.push(LadderStep {
            frames: STEP_FIRST as f32,
            threshold: highest.max(1.0),
            standard_error: 1.0,
        });
    }
    let last = steps[steps.len() - 1];
    let first = steps[0];
    let whole = (last.threshold - first.threshold) / (steps.len() as f32 - 1.0).max(1.0);
    let recent = steps.len().checked_sub(3).map_or(whole, |i| (last.threshold - steps[i].threshold) / 2.0);
    let slope = whole.max(recent).max(last.threshold * 0.05);
    for i in 1..=STEPS - steps.len() {
        let step = LadderStep {
            frames: last.frames * 2f32.powi(i as i32),
            threshold: last.threshold + slope * i as f32,
            // Each doubling beyond the simulation is a little more of a guess.
            standard_error: last.standard_error + 0.1 * i as f32,
        };
        steps.push(step);
    }
}
