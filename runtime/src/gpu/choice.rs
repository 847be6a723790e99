//! Which variant of a kernel runs a step: [`Choices`]. All variants of a [`Task`] give the same bytes; what is chosen here
//! without measuring depends on how many threads it takes to fill the GPU.

use std::collections::HashMap;

use andon_shaders::{Float, Variant};
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
    /// Of a float network, as are those below, `half` with f16 in memory. `words` and `depth` count quads of channels, `group`
    /// those of a group's outputs where there are several groups.
    FloatConvolution {
        pixels: usize,
        words: usize,
        taps: usize,
        depth: usize,
        group: Option<usize>,
        pointwise: bool,
        half: bool,
    },
    FloatDepthwise {
        rows: usize,
        columns: usize,
        words: usize,
        window: Option<[u32; 3]>,
        half: bool,
    },
    FloatMean {
        pixels: usize,
        words: usize,
        half: bool,
    },
}

/// Pixels and words of output channels of a tile, and how many threads share it.
fn tile(variant: Variant) -> Option<[usize; 3]> {
    let [pixels, out, split] = match variant {
        Variant::Convolution { pixels, out, split, .. }
        | Variant::Float { kernel: Float::Convolution { pixels, out, split, .. }, .. } => {
            [pixels, out, split]
        }
        Variant::Tiled { pixels, out, .. } => [pixels, out, 1],
        _ => return None,
    };
    Some([pixels as usize, out as usize, split as usize])
}

/// Threads that a convolution takes.
fn threads([pixels, words, _]: [usize; 3], [p, o, split]: [usize; 3]) -> usize {
    pixels.div_ceil(p) * words.div_ceil(o) * split
}

impl Task {
    /// Pixels and words that a convolution makes, and the depth of what it reads.
    fn sizes(&self) -> Option<[usize; 3]> {
        match *self {
            Self::Convolution { pixels, words, depth, .. }
            | Self::FloatConvolution { pixels, words, depth, .. } => Some([pixels, words, depth]),
            _ => None,
        }
    }

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
            Self::FloatConvolution { pixels, words, depth, group, pointwise, half, .. } => {
                let fits = |variant: &Variant| {
                    tile(*variant).is_some_and(|[p, out, split]| {
                        p <= pixels.next_power_of_two()
                            && out <= words.next_power_of_two()
                            && group.is_none_or(|own| own.is_multiple_of(out))
                            && (split == 1 || split <= depth)
                    })
                };
                let all = Float::convolutions(pointwise).into_iter();
                all.map(|kernel| Variant::Float { kernel, half }).filter(fits).collect()
            }
            Self::FloatDepthwise { window, half, .. } => {
                let all = Float::depthwise(window).into_iter();
                all.map(|kernel| Variant::Float { kernel, half }).collect()
            }
            Self::FloatMean { half, .. } => {
                [8, 1].map(|parts| Variant::Float { kernel: Float::Mean { parts }, half }).to_vec()
            }
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
    /// The largest variants are tried too: what plays a GPU takes seconds to compile each, and gains nothing.
    pub(crate) largest: bool,
    /// Those that multiply in f32 are not: a GPU of its own has fast products of whole numbers, and what plays one has all
    /// as fast.
    pub(crate) whole: bool,
    /// Threads share nothing: what goes through workgroup memory is what drivers refuse, or get wrong, first.
    pub(crate) alone: bool,
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
        let tuning = tuning.filter(|tuning| tuning.fits(info));
        let alone = tuning.is_some_and(|tuning| tuning.alone.is_some());
        Self { known: tuning.map(Tuning::known).unwrap_or_default(), alone, ..Self::of(info.device_type) }
    }

    /// The same without what threads share; `None` where it is so already.
    pub(crate) fn to_alone(&self) -> Option<Self> {
        (!self.alone).then(|| Self { alone: true, ..self.clone() })
    }

    /// All that can run a task here: never none.
    fn able(&self, task: Task) -> Vec<Variant> {
        let mut variants = task.variants();
        variants.retain(|variant| !self.alone || variant.sharers() == 1);
        variants
    }

    /// The variants that are worth a measurement, never none, the most promising first.
    pub(crate) fn tried(&self, task: Task) -> Vec<Variant> {
        let variants = self.able(task);
        let fits = |variant: &&Variant| match variant {
            Variant::Convolution { pixels, out, real, .. } => {
                (self.largest || pixels * out <= 4)
                    && !(self.whole && *real)
                    && self.may_fill(task, **variant)
            }
            Variant::Float { .. } => self.may_fill(task, **variant),
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
    fn distance(&self, task: Task, variant: Variant) -> (u32, usize) {
        let (Some(sizes), Some(tile)) = (task.sizes(), tile(variant)) else { return (0, 0) };
        let doublings = (threads(sizes, tile) as f64 / self.threads as f64).log2();
        ((8.0 * doublings.abs()) as u32, usize::MAX - tile[0] * tile[1])
    }

    /// Whether to share each tile by several threads may gain: nothing where half as many fill the GPU already, nor where
    /// twice as many are still far too few.
    fn may_fill(&self, task: Task, variant: Variant) -> bool {
        let (Some(sizes), Some(tile)) = (task.sizes(), tile(variant)) else { return true };
        if self.threads <= 1 {
            return true;
        }
        let ([_, _, depth], [_, _, split]) = (sizes, tile);
        let threads = threads(sizes, tile);
        let last = split == 16 || 2 * split > depth;
        (split == 1 || threads < 4 * self.threads) && (last || threads >= self.threads / 16)
    }

    pub(crate) fn choose(&self, task: Task) -> Variant {
        let variants = self.able(task);
        // The first shares the work of each result, the last leaves it to one thread.
        let of_two = |alone: bool| variants[if alone { variants.len() - 1 } else { 0 }];
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
                while !self.alone && split < 16 && 2 * split <= depth && tiles(p, o) * split < self.threads {
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
            Task::Mean { .. } => of_two(self.threads <= 1),
            // One thread a pixel where that keeps the GPU busy, or where there is nothing to share.
            Task::Softmax { pixels, words } | Task::Position { pixels, words } => {
                of_two(words < 8 || pixels >= self.threads)
            }
            Task::FloatConvolution { .. } => {
                let sizes = task.sizes().unwrap_or_default();
                let all = || variants.iter().filter_map(|variant| Some((*variant, tile(*variant)?)));
                let enough = |one: &(Variant, [usize; 3])| threads(sizes, one.1) >= self.threads;
                // As large a tile as leaves enough threads to fill the GPU; what has too few is shared by several. Tiles of 4
                // read a fourth of what single pixels do, so that they are shared rather than cut up.
                let alone = all().filter(|(_, [_, _, split])| *split == 1).find(enough);
                let shared = || all().filter(|(_, [p, o, _])| (*p, *o) == (4, 1)).find(enough);
                let most = || all().max_by_key(|(_, tile)| threads(sizes, *tile));
                let found = alone.or_else(shared).or_else(|| all().find(enough)).or_else(most);
                found.map_or(variants[0], |(variant, _)| variant)
            }
            Task::FloatDepthwise { rows, columns, words, .. } => {
                let enough = |variant: &&Variant| match variant {
                    Variant::Float { kernel: Float::Depthwise { pixels, .. }, .. } => {
                        rows * columns.div_ceil(*pixels as usize) * words >= self.threads
                    }
                    _ => false,
                };
                variants.iter().find(enough).or(variants.last()).copied().unwrap_or(variants[0])
            }
            Task::FloatMean { .. } => of_two(self.threads <= 1),
        }
    }
}
