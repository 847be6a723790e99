//! Which variant of a kernel runs a step: [`Choices`]. All variants of a [`Task`] give the same bytes; what is chosen here
//! without measuring depends on how many threads it takes to fill the GPU.

use std::collections::HashMap;

use andon_shaders::Variant;
use serde::{Deserialize, Serialize};

use super::tune::Tuning;

/// What a step asks of a kernel that has variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// `words` of output channels; `depth`: what a tap reads of a pixel, in words or groups of four of them.
    Convolution {
        pixels: usize,
        words: usize,
        taps: usize,
        depth: usize,
        quads: bool,
        pointwise: bool,
    },
    Depthwise {
        rows: usize,
        columns: usize,
        words: usize,
        window: Option<[u32; 3]>,
    },
    Mean {
        pixels: usize,
        words: usize,
    },
    /// `words` of channels that belong together.
    Softmax {
        pixels: usize,
        words: usize,
    },
    Position {
        pixels: usize,
        words: usize,
    },
}

impl Task {
    /// All that can run it.
    pub(crate) fn variants(&self) -> Vec<Variant> {
        match *self {
            Self::Convolution { pixels, words, depth, quads, pointwise, .. } => {
                let fits = |variant: &Variant| match variant {
                    Variant::Convolution { pixels: p, out, split, .. } => {
                        *p as usize <= pixels.next_power_of_two()
                            && *out as usize <= words.next_power_of_two()
                            && (*split == 1 || *split as usize <= depth)
                    }
                    Variant::Tiled { pixels: p, out, .. } => {
                        2 * pixels >= 8 * *p as usize && 2 * words >= 8 * *out as usize
                    }
                    _ => false,
                };
                Variant::convolutions(quads, pointwise).into_iter().filter(fits).collect()
            }
            Self::Depthwise { window: Some(window), .. } => Variant::depthwise(window),
            Self::Depthwise { .. } => vec![Variant::Depthwise { pixels: 1, window: None, real: false }],
            Self::Mean { .. } => [8, 1].map(|parts| Variant::Mean { parts }).to_vec(),
            Self::Softmax { .. } => [16, 1].map(|parts| Variant::Softmax { parts }).to_vec(),
            Self::Position { .. } => [16, 1].map(|parts| Variant::Position { parts }).to_vec(),
        }
    }
}

/// How variants are chosen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choices {
    /// What was measured.
    pub(crate) known: HashMap<Task, Variant>,
    /// Threads that keep the GPU busy; what has fewer is shared by more.
    pub(crate) threads: usize,
    /// Number of one of those that are [`Choices::tried`], for who goes through all.
    pub(crate) forced: Option<usize>,
    /// The largest variants are tried too: what plays a GPU takes minutes to compile them.
    pub(crate) largest: bool,
    /// Those that multiply in f32 are not: a GPU of its own has fast products of whole numbers, and what plays one has all
    /// as fast.
    pub(crate) whole: bool,
    /// Inputs of so many values and more are quantised on the GPU.
    pub(crate) takes_from: usize,
    /// Real values leave as such: four times as much to be brought back, and less to be done with it.
    pub(crate) gives: bool,
}

impl Choices {
    /// What is known of a GPU by its kind alone.
    pub(crate) fn of(kind: wgpu::DeviceType) -> Self {
        let threads = match kind {
            wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => 1 << 15,
            wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Other => 1 << 12,
            wgpu::DeviceType::Cpu => 1,
        };
        let small = matches!(kind, wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Other);
        let hard = kind != wgpu::DeviceType::Cpu;
        let takes_from = if hard { 10_000 } else { usize::MAX };
        let gives = kind == wgpu::DeviceType::IntegratedGpu;
        Self { threads, largest: hard, whole: !small, takes_from, gives, ..Default::default() }
    }

    /// What is known of an adapter by its kind, and by a tuning that is of it.
    pub(crate) fn known(info: &wgpu::AdapterInfo, tuning: Option<&Tuning>) -> Self {
        let known = tuning.filter(|tuning| tuning.fits(info)).map(Tuning::known);
        Self { known: known.unwrap_or_default(), ..Self::of(info.device_type) }
    }

    /// The variants that are worth a measurement, never none, the most promising first.
    pub(crate) fn tried(&self, task: Task) -> Vec<Variant> {
        let variants = task.variants();
        let fits = |variant: &&Variant| match variant {
            Variant::Convolution { pixels, out, split, real, .. } => {
                (self.largest || pixels * out <= 4)
                    && !(self.whole && *real)
                    && self.may_fill(task, [*pixels, *out], *split)
            }
            Variant::Depthwise { real, .. } => !(self.whole && *real),
            Variant::Tiled { .. } => self.largest,
            _ => true,
        };
        let mut tried: Vec<Variant> = variants.iter().filter(fits).copied().collect();
        if self.threads > 1 {
            tried.sort_by_key(|variant| self.distance(task, *variant));
        }
        if tried.is_empty() { variants } else { tried }
    }

    /// How far a variant is from as many threads as fill the GPU, in eighths of a doubling; of equal ones the larger tiles
    /// come first.
    fn distance(&self, task: Task, variant: Variant) -> (u32, u32) {
        let Task::Convolution { pixels, words, .. } = task else { return (0, 0) };
        let (p, o, split) = match variant {
            Variant::Convolution { pixels, out, split, .. } => (pixels, out, split),
            Variant::Tiled { pixels, out, .. } => (pixels, out, 1),
            _ => return (0, 0),
        };
        let threads = pixels.div_ceil(p as usize) * words.div_ceil(o as usize) * split as usize;
        let doublings = (threads as f64 / self.threads as f64).log2();
        ((8.0 * doublings.abs()) as u32, u32::MAX - p * o)
    }

    /// Whether to share each tile by `split` threads may gain: nothing where half as many fill the GPU already, nor where
    /// twice as many are still far too few.
    fn may_fill(&self, task: Task, [p, o]: [u32; 2], split: u32) -> bool {
        let Task::Convolution { pixels, words, depth, .. } = task else { return true };
        if self.threads <= 1 {
            return true;
        }
        let threads = pixels.div_ceil(p as usize) * words.div_ceil(o as usize) * split as usize;
        let last = split == 16 || 2 * split as usize > depth;
        (split == 1 || threads < 4 * self.threads) && (last || threads >= self.threads / 16)
    }

    pub(crate) fn choose(&self, task: Task) -> Variant {
        let variants = task.variants();
        if let Some(number) = self.forced {
            let tried = self.tried(task);
            return tried[number % tried.len()];
        }
        if let Some(known) = self.known.get(&task).filter(|known| variants.contains(known)) {
            return *known;
        }
        match task {
            Task::Convolution { pixels, words, depth, quads, pointwise, .. } => {
                let tiles = |p: usize, o: usize| pixels.div_ceil(p) * words.div_ceil(o);
                // As much as a thread can keep in registers, as long as there are enough of them.
                let sizes = [(4, 2), (4, 1), (2, 1), (1, 1)];
                let fits = |(p, o): &(usize, usize)| {
                    *p <= pixels.next_power_of_two() && *o <= words.next_power_of_two()
                };
                let enough = |(p, o): &(usize, usize)| tiles(*p, *o) * depth.min(16) >= self.threads / 2;
                let fitting: Vec<(usize, usize)> = sizes.into_iter().filter(fits).collect();
                let size =
                    fitting.iter().find(|size| enough(size)).or(fitting.iter().rfind(|s| s.0 * s.1 >= 4));
                let (p, o) = size.or(fitting.first()).copied().unwrap_or((1, 1));
                let mut split = 1;
                while split < 16 && 2 * split <= depth && tiles(p, o) * split < self.threads {
                    split *= 2;
                }
                let (pixels, out) = (p as u32, o as u32);
                let split = split as u32;
                Variant::Convolution { pixels, out, quads, pointwise, grouped: false, split, real: false }
            }
            Task::Depthwise { rows, columns, words, .. } => {
                let enough = |variant: &&Variant| match variant {
                    Variant::Depthwise { real: true, .. } => false,
                    Variant::Depthwise { pixels, .. } => {
                        rows * columns.div_ceil(*pixels as usize) * words >= self.threads
                    }
                    _ => false,
                };
                variants.iter().find(enough).or(variants.last()).copied().unwrap_or(variants[0])
            }
            Task::Mean { .. } => variants[usize::from(self.threads <= 1)],
            // One thread a pixel where that keeps the GPU busy, or where there is nothing to share.
            Task::Softmax { pixels, words } | Task::Position { pixels, words } => {
                variants[usize::from(words < 8 || pixels >= self.threads)]
            }
        }
    }
}
