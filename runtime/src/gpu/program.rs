//! What the GPU does for a plan, and when: [`Program`].
//!
//! Steps that have kernels run on the GPU, the others here. The run of a network is a row of phases, each first some steps
//! on the CPU, then uploads, one pass of jobs on the GPU and downloads; [`super::phases`] says which step belongs to which.

use std::collections::HashMap;

use andon_shaders::Variant;

use super::{
    choice::{Choices, Task},
    ends::Given,
    layout::{Layout, Spot},
    lower::{Job, Lowering},
    phases::{better_left, dependencies, phases},
};
use crate::{
    cpu::{Cpu, Place, Shape, Touched, arrange, describe::Description},
    resize::Sides,
};

/// Bytes behind the arena that kernels may read, and ignore.
pub(super) const SLACK: usize = 1 << 16;

/// An input of the network on its way to the GPU, as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raw {
    pub(crate) input: usize,
    pub(crate) values: usize,
    /// They may be the bytes of a picture of these sides instead of f32.
    pub(crate) picture: Option<Sides>,
    /// Or of one of another size.
    pub(crate) resizes: bool,
    /// Where it begins in the GPU's arena, in bytes.
    pub(crate) at: usize,
}

/// Real values that the GPU has made for a step, on their way to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values {
    pub(crate) step: usize,
    /// Number of the step's outlet.
    pub(crate) outlet: usize,
    pub(crate) bytes: usize,
    /// Where they begin in the GPU's arena, in bytes.
    pub(crate) at: usize,
}

/// An activation on its way between the two arenas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    /// In the CPU's arena.
    pub(crate) place: Place,
    /// On the GPU; all that lies between its pixels may be written.
    pub(crate) spot: Spot,
    /// Where it begins in the GPU's arena, in bytes.
    pub(crate) at: usize,
}

#[derive(Clone)]
pub(crate) struct Dispatch {
    pub(crate) variant: Variant,
    pub(crate) workgroups: [u32; 2],
    pub(crate) params: Vec<u32>,
    /// The step of the plan whose work it is.
    pub(crate) step: usize,
    /// What the variant was chosen for.
    pub(crate) task: Option<Task>,
    /// It runs only if the first input is that.
    pub(crate) given: Option<Given>,
}

#[derive(Default)]
pub(crate) struct Phase {
    pub(crate) steps: Vec<usize>,
    pub(crate) raws: Vec<Raw>,
    pub(crate) uploads: Vec<Transfer>,
    pub(crate) dispatches: Vec<Dispatch>,
    pub(crate) downloads: Vec<Transfer>,
    pub(crate) values: Vec<Values>,
}

impl Phase {
    /// Whether the GPU has anything to do in it.
    pub(crate) fn is_on_gpu(&self) -> bool {
        !self.uploads.is_empty() || !self.dispatches.is_empty() || self.has_results()
    }

    /// Whether anything is brought back.
    pub(crate) fn has_results(&self) -> bool {
        !self.downloads.is_empty() || !self.values.is_empty()
    }
}

pub(crate) struct Program {
    pub(crate) phases: Vec<Phase>,
    pub(crate) constants: Vec<u32>,
    pub(crate) arena_bytes: usize,
    /// Stretches of the arena that stay as they are from the start: where they begin, and what they hold.
    pub(crate) fills: Vec<(usize, Vec<u8>)>,
    /// For each step of the plan whether the GPU runs it.
    pub(crate) on_gpu: Vec<bool>,
}

impl Program {
    /// The program, and the order in which it runs the plan's steps: it counts them in that order.
    pub(crate) fn new(cpu: &Cpu, choices: Choices) -> Result<(Self, Vec<usize>), String> {
        let (program, order) = Self::without(cpu, choices.clone(), &[])?;
        let mut on_gpu = vec![false; order.len()];
        order.iter().zip(&program.on_gpu).for_each(|(at, is)| on_gpu[*at] = *is);
        match better_left(cpu, &on_gpu) {
            Some(left) => {
                // Weights lie in it.
                drop(program);
                Self::without(cpu, choices, &left)
            }
            None => Ok((program, order)),
        }
    }

    /// `left`: for each step whether the CPU runs it although there is a kernel; empty where none is.
    pub(super) fn without(cpu: &Cpu, choices: Choices, left: &[bool]) -> Result<(Self, Vec<usize>), String> {
        let is_left = |at: usize| left.get(at).is_some_and(|left| *left);
        let touched = cpu.touched();
        let mut lowering = Lowering::new(Layout::new(&cpu.buffer_sizes(), &touched), choices);
        let weights = (0..touched.len()).filter_map(|at| match cpu.description(at)? {
            Description::Convolution(what) => Some(what.filters.weights.len()),
            _ => None,
        });
        lowering.constants.reserve(weights.sum());
        // Jobs in the plan's order; which of a step's they are is in each.
        let mut on_gpu = Vec::with_capacity(touched.len());
        // Inputs that the GPU quantises: the step, and where they go.
        let mut intakes = vec![];
        // Real values that it makes: the step, which of its outlets, and where they are.
        let mut outlets = vec![];
        // Whether the step before has done the work of this one.
        let mut spared = false;
        for (at, step) in touched.iter().enumerate() {
            if std::mem::take(&mut spared) {
                on_gpu.push(true);
                continue;
            }
            if is_left(at) {
                on_gpu.push(false);
                continue;
            }
            let takes_from = lowering.choices.takes_from;
            if let Some(intake) = cpu.intake(at).filter(|i| i.to.shape.bytes() >= takes_from)
                && let Some((raw, spot)) = lowering.intake(at, &intake)
            {
                intakes.push((at, raw, spot));
                on_gpu.push(true);
                continue;
            }
            if lowering.choices.gives
                && let Some(spots) = given_out(cpu, &touched, &on_gpu, &mut lowering)
            {
                outlets.extend(spots.into_iter().enumerate().map(|(outlet, spot)| (at, outlet, spot)));
                on_gpu.push(true);
                continue;
            }
            let beyond = put_elsewhere(cpu, &touched, at).filter(|_| !is_left(at + 1));
            let description = cpu.description(at).zip(beyond.or(step.writes));
            let has = |(description, output)| lowering.step(at, &description, &step.reads, &output);
            on_gpu.push(description.is_some_and(has));
            spared = on_gpu[at] && beyond.is_some();
        }
        let needs = dependencies(&touched);
        let phase_of = phases(&touched, &needs, &on_gpu);
        let mut order: Vec<usize> = (0..touched.len()).collect();
        order.sort_by_key(|at| (phase_of[*at], on_gpu[*at], *at));
        let count = phase_of.iter().max().map_or(0, |last| last + 1);
        let mut draft: Vec<Draft> = std::iter::repeat_with(Draft::default).take(count).collect();
        let number: HashMap<usize, usize> = order.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        // Uploads that have to be put in their places come before all other jobs of their phase.
        let jobs = std::mem::take(&mut lowering.jobs);
        for at in &order {
            let step = &touched[*at];
            if on_gpu[*at] {
                continue;
            }
            draft[phase_of[*at]].steps.push(number[at]);
            if let Some(place) = &step.writes
                && reads_on_gpu(&touched, &on_gpu, *at, place)
            {
                draft[phase_of[*at]].upload(&mut lowering, *at, place)?;
            }
            for place in &step.reads {
                // Written by the GPU, at least in part: in the phase before this step's at the latest.
                let written = |need: &&usize| {
                    touched[**need].writes.is_some_and(|w| w.buffer == place.buffer)
                        && (on_gpu[**need] || is_mixed(&touched, &on_gpu, **need))
                };
                if let Some(phase) = needs[*at].iter().filter(written).map(|need| phase_of[*need]).max() {
                    let draft = &mut draft[phase];
                    if !draft.downloads.iter().any(|(known, _)| known == place) {
                        let spot = lowering.layout.spot(place);
                        draft.downloads.push((*place, spot));
                    }
                }
            }
        }
        for (at, raw, spot) in intakes {
            draft[phase_of[at]].raws.push((raw, spot));
        }
        for (at, outlet, spot) in outlets {
            let values = Values { step: number[&at], outlet, bytes: spot.shape.c, at: 0 };
            draft[phase_of[at]].values.push((values, spot));
        }
        for job in jobs {
            draft[phase_of[job.step]].jobs.push(job);
        }
        let mut lives = lifetimes(&draft, lowering.sizes.len());
        lowering.pads.iter().for_each(|(_, buffer)| lives[*buffer] = 0..usize::MAX);
        lowering.fixtures.iter().for_each(|(spot, _)| lives[spot.buffer] = 0..usize::MAX);
        let (places, arena_bytes) = arrange(&lowering.sizes, &lives);
        let arena_bytes = (arena_bytes + SLACK).next_multiple_of(16);
        if arena_bytes > u32::MAX as usize {
            return Err("its activations are too large for a GPU".into());
        }
        let bases: Vec<usize> = places.iter().map(|place| place.start).collect();
        let transfer =
            |(place, spot): (Place, Spot)| Transfer { place, spot, at: bases[spot.buffer] + spot.offset };
        let raw = |(raw, spot): (Raw, Spot)| Raw { at: bases[spot.buffer] + spot.offset, ..raw };
        let given =
            |(values, spot): (Values, Spot)| Values { at: bases[spot.buffer] + spot.offset, ..values };
        let phase = |draft: Draft| Phase {
            steps: draft.steps,
            raws: draft.raws.into_iter().map(raw).collect(),
            uploads: draft.uploads.into_iter().map(transfer).collect(),
            dispatches: draft.jobs.into_iter().map(|job| dispatch(job, &bases, &number)).collect(),
            downloads: draft.downloads.into_iter().map(transfer).collect(),
            values: draft.values.into_iter().map(given).collect(),
        };
        let phases = draft.into_iter().map(phase).collect();
        let on_gpu = order.iter().map(|at| on_gpu[*at]).collect();
        let mut constants = lowering.constants.words;
        // No buffer may be empty, and kernels read whole groups.
        constants.resize((constants.len() + 4).next_multiple_of(4), 0);
        let fill =
            |(byte, buffer): &(u8, usize)| (bases[*buffer], vec![byte ^ 0x80; lowering.sizes[*buffer]]);
        let mut fills: Vec<(usize, Vec<u8>)> = lowering.pads.iter().map(fill).collect();
        for (spot, bytes) in &lowering.fixtures {
            // The whole buffer, since only whole words can be written; what others have there they write later.
            let at = fills.iter().position(|(at, _)| *at == bases[spot.buffer]);
            let at = at.unwrap_or_else(|| {
                fills.push((bases[spot.buffer], vec![0; lowering.sizes[spot.buffer].next_multiple_of(4)]));
                fills.len() - 1
            });
            let pixels = fills[at].1[spot.offset..].chunks_mut(spot.stride);
            for (to, from) in pixels.zip(bytes.chunks(spot.shape.c)) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ 0x80);
            }
        }
        Ok((Self { phases, constants, arena_bytes, fills, on_gpu }, order))
    }
}

impl Program {
    /// Whether a run can begin before the one before it has ended: all that it does on the GPU is in its first phase, before
    /// which the CPU does nothing but to take inputs in, and behind which it asks for none.
    pub(crate) fn overlaps(&self, cpu: &Cpu) -> bool {
        let [first, others @ ..] = &self.phases[..] else { return false };
        let touched = cpu.touched();
        let takes_in =
            |step: &usize| touched[*step].values_read.is_empty() && touched[*step].values_written.is_empty();
        let on_cpu =
            |phase: &Phase| !phase.is_on_gpu() && phase.steps.iter().all(|step| !cpu.reads_inputs(*step));
        first.has_results()
            && first.steps.iter().all(takes_in)
            && others.iter().all(on_cpu)
            && !cpu.gives_inputs()
    }
}

/// Where the result of a step goes in the end, if the next step does nothing but to copy it there: the CPU writes into no
/// buffer that it reads from, the GPU can.
fn put_elsewhere(cpu: &Cpu, touched: &[Touched], at: usize) -> Option<Place> {
    let (step, next) = (touched.get(at)?, touched.get(at + 1)?);
    let (result, Description::Strided { dims, start }) = (step.writes?, cpu.description(at + 1)?) else {
        return None;
    };
    let Shape { c, .. } = result.shape;
    let copies = start == [0, 0] && dims == [(result.shape.pixels(), [1, 0]), (c, [0, 1])];
    let touches =
        |other: &&Touched| other.reads.iter().chain(&other.writes).any(|place| place.buffer == result.buffer);
    let alone = touched.iter().filter(touches).count() == 2;
    next.writes.filter(|_| copies && alone && next.reads == [result])
}

/// Where the real values of the next step's outlets are, if it has any, and if all that they are made of is on the GPU.
fn given_out(cpu: &Cpu, touched: &[Touched], on_gpu: &[bool], lowering: &mut Lowering) -> Option<Vec<Spot>> {
    let at = on_gpu.len();
    let from = touched[at].reads.first()?.buffer;
    let writes = |step: &Touched| step.writes.is_some_and(|place| place.buffer == from);
    let (before, after) = touched.split_at(at);
    let made = before.iter().zip(on_gpu).filter(|(step, _)| writes(step)).map(|(_, on_gpu)| *on_gpu);
    let outlets = cpu.outlets(at);
    if outlets.is_empty() || after.iter().any(writes) || !made.clone().all(|on| on) || made.count() == 0 {
        return None;
    }
    let jobs = lowering.jobs.len();
    let spots = lowering.outlets(at, &outlets);
    if spots.is_none() {
        lowering.jobs.truncate(jobs);
    }
    spots
}

/// Whether the buffer that a step writes into is written by both sides.
fn is_mixed(touched: &[Touched], on_gpu: &[bool], step: usize) -> bool {
    let Some(place) = &touched[step].writes else { return false };
    touched
        .iter()
        .zip(on_gpu)
        .any(|(other, on_gpu)| *on_gpu && other.writes.is_some_and(|write| write.buffer == place.buffer))
}

/// Whether the GPU has to know what a step on the CPU wrote.
fn reads_on_gpu(touched: &[Touched], on_gpu: &[bool], step: usize, place: &Place) -> bool {
    let reads = |other: &Touched| other.reads.iter().any(|read| read.buffer == place.buffer);
    is_mixed(touched, on_gpu, step)
        || touched.iter().zip(on_gpu).any(|(other, on_gpu)| *on_gpu && reads(other))
}

#[derive(Default)]
struct Draft {
    steps: Vec<usize>,
    raws: Vec<(Raw, Spot)>,
    uploads: Vec<(Place, Spot)>,
    jobs: Vec<Job>,
    downloads: Vec<(Place, Spot)>,
    values: Vec<(Values, Spot)>,
}

impl Draft {
    /// Straight to where it belongs if nothing else lies between its pixels.
    fn upload(&mut self, lowering: &mut Lowering, step: usize, place: &Place) -> Result<(), String> {
        let spot = lowering.layout.spot(place);
        let alone = place.offset == 0 && place.shape.c == place.stride && spot.writable();
        if alone {
            self.uploads.push((*place, spot));
            return Ok(());
        }
        let own = lowering.buffer(place.shape);
        self.uploads.push((*place, own));
        lowering.moved(step, own, spot).ok_or("an activation cannot be put in its place")?;
        self.jobs.append(&mut lowering.jobs);
        Ok(())
    }
}

/// When each buffer is in use: uploads, jobs one by one, downloads, phase after phase.
fn lifetimes(drafts: &[Draft], count: usize) -> Vec<std::ops::Range<usize>> {
    let mut lives: Vec<Option<std::ops::Range<usize>>> = vec![None; count];
    let mut now = 0;
    let mut touch = |buffer: usize, now: usize| {
        let life = lives[buffer].get_or_insert(now..now + 1);
        *life = life.start.min(now)..life.end.max(now + 1);
    };
    for draft in drafts {
        draft.raws.iter().for_each(|(_, spot)| touch(spot.buffer, now));
        draft.uploads.iter().for_each(|(_, spot)| touch(spot.buffer, now));
        now += 1;
        for job in &draft.jobs {
            job.touches.iter().for_each(|buffer| touch(*buffer, now));
            now += 1;
        }
        draft.downloads.iter().for_each(|(_, spot)| touch(spot.buffer, now));
        draft.values.iter().for_each(|(_, spot)| touch(spot.buffer, now));
        now += 1;
    }
    lives.into_iter().map(Option::unwrap_or_default).collect()
}

fn dispatch(job: Job, bases: &[usize], number: &HashMap<usize, usize>) -> Dispatch {
    let at_once = job.variant.lanes() / job.variant.sharers();
    let groups = (job.tiles as u32).div_ceil(at_once).max(1);
    // As even as can be, so that few run for nothing.
    let rows = groups.div_ceil(andon_shaders::Limits::WORKGROUPS);
    let workgroups = [groups.div_ceil(rows), rows];
    let params = (job.params)(bases);
    let Job { variant, task, given, .. } = job;
    Dispatch { variant, workgroups, params, step: number[&job.step], task, given }
}
