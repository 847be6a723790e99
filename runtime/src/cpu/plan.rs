//! What the `cpu` engine executes: [`Plan`], a list of steps over two kinds of values.
//!
//! Activations are bytes in buffers of one arena, u8, batch 1; s8 ones have their top bit flipped, which makes them u8 of
//! the same meaning. Plain values are tensors as ONNX has them. Steps go from bytes to bytes ([`Operation`]), between the
//! two kinds ([`Import`], [`Export`]), or from plain to plain: an operator of ours or an island, which is a part of the
//! network on another engine. Two buffers that are never needed at one time may share their place in the arena; a byte
//! step's output never lies in the buffer of one of its inputs. The plan is made once ([`super::lower`] and
//! [`super::schedule`]); byte steps allocate nothing while they run.

use std::{collections::HashSet, ops::Range, sync::Arc};

use super::{
    arena::arrange,
    convert::{Export, Import, Piece, put},
    describe::Description,
    kernels::{Isa, Sum, Team},
};
use crate::{
    engine::Engine,
    graph::NodeId,
    plain::{self, Pool},
    session::Pictures,
    tensor::Tensor,
};

pub(super) use super::activation::{BufferId, Order, Place, Quantity, Shape, View, ViewMut};

/// Memory that steps use while they run, kept from one to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) bytes: Vec<u8>,
    /// For steps made of others, which use the first.
    pub(super) aside: Vec<u8>,
}

impl Scratch {
    /// So many; what is in them is left over from before.
    pub(super) fn reserve(&mut self, bytes: usize) -> &mut [u8] {
        if self.bytes.len() < bytes {
            self.bytes.resize(bytes, 0);
        }
        &mut self.bytes[..bytes]
    }
}

/// What steps have in common while they run.
pub(super) struct Context<'a> {
    pub(super) isa: Isa,
    pub(super) team: &'a mut Team,
    pub(super) scratch: &'a mut Scratch,
}

/// Bytes to bytes. Implementations check their shapes when they are made: `run` gets inputs and an output of the shapes
/// that were agreed on then; only strides are news.
pub(super) trait Operation: Send + Sync {
    /// `inputs`: as many as the step has.
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>);

    /// From now on looks up each byte of its result in `table`, on top of what it did before; whether it can.
    fn fuse_table(&mut self, _table: &[u8; 256]) -> bool {
        false
    }

    /// If all it does is to add two inputs of the output's shape: how.
    fn residual(&self) -> Option<Sum> {
        None
    }

    /// From now on has one more input, of the output's shape, and adds it to what it did before; whether it can.
    /// `skip_first`: that input is the first operand.
    fn fuse_residual(&mut self, _sum: Sum, _skip_first: bool) -> bool {
        false
    }

    /// What it computes, for another executor; `None` if only it can.
    fn describe(&self) -> Option<Description<'_>> {
        None
    }
}

/// Inputs that a byte step has at most.
pub(super) const INPUTS_MAX: usize = 3;

/// A plain value as a step reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// Of the graph.
    Input(usize),
    /// Index into [`Plan::constants`].
    Constant(usize),
    /// What an earlier step gave.
    Computed(usize),
}

pub(super) struct Step {
    /// The node whose work this is; of an island the first.
    pub(super) node: NodeId,
    pub(super) work: Work,
}

pub(super) enum Work {
    Bytes {
        /// At most [`INPUTS_MAX`].
        inputs: Vec<Place>,
        output: Place,
        operation: Box<dyn Operation>,
    },
    Import {
        from: Slot,
        to: Place,
        import: Import,
    },
    Export {
        from: Place,
        to: usize,
        export: Export,
    },
    /// Pieces of an activation to plain tensors that others write into too.
    Deal {
        from: Place,
        pieces: Vec<Piece>,
    },
    /// A plain f32 tensor into another that pieces are dealt to, behind so many rows.
    Put {
        from: Slot,
        to: usize,
        dims: Vec<usize>,
        row: usize,
    },
    Plain {
        inputs: Vec<Option<Slot>>,
        outputs: Vec<Option<usize>>,
        call: plain::Call,
    },
    Island {
        nodes: Vec<NodeId>,
        inputs: Vec<Slot>,
        outputs: Vec<usize>,
        engine: Box<dyn Engine>,
    },
}

impl Work {
    fn places(&self) -> Vec<Place> {
        match self {
            Self::Bytes { inputs, output, .. } => inputs.iter().copied().chain([*output]).collect(),
            Self::Import { to, .. } => vec![*to],
            Self::Export { from, .. } | Self::Deal { from, .. } => vec![*from],
            Self::Put { .. } | Self::Plain { .. } | Self::Island { .. } => vec![],
        }
    }

    pub(super) fn values_read(&self) -> Vec<usize> {
        let computed = |slot: Slot| match slot {
            Slot::Computed(value) => Some(value),
            _ => None,
        };
        self.reads().into_iter().filter_map(computed).collect()
    }

    pub(super) fn values_written(&self) -> Vec<usize> {
        match self {
            Self::Bytes { .. } | Self::Import { .. } => vec![],
            Self::Export { to, .. } | Self::Put { to, .. } => vec![*to],
            Self::Deal { pieces, .. } => pieces.iter().map(|piece| piece.to).collect(),
            Self::Plain { outputs, .. } => outputs.iter().copied().flatten().collect(),
            Self::Island { outputs, .. } => outputs.clone(),
        }
    }

    pub(super) fn reads(&self) -> Vec<Slot> {
        match self {
            Self::Bytes { .. } | Self::Export { .. } | Self::Deal { .. } => vec![],
            Self::Import { from, .. } | Self::Put { from, .. } => vec![*from],
            Self::Plain { inputs, .. } => inputs.iter().copied().flatten().collect(),
            Self::Island { inputs, .. } => inputs.clone(),
        }
    }
}

pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) constants: Vec<Tensor>,
    /// In the order of the request.
    pub(super) outputs: Vec<Slot>,
    /// For each of them whether no later one is the same.
    last: Vec<bool>,
    /// Where each buffer lies in the arena.
    buffers: Vec<Range<usize>>,
    /// For each step the computed values that nothing reads after it.
    dying: Vec<Vec<usize>>,
    values: Vec<Option<Tensor>>,
    /// Memory of values that died.
    pool: Arc<Pool>,
    pub(super) arena_bytes: usize,
}

impl Plan {
    /// `sizes`: bytes of each buffer; `values`: how many plain values are computed; `pool`: the one that plain steps share.
    pub(super) fn new(
        steps: Vec<Step>,
        constants: Vec<Tensor>,
        outputs: Vec<Slot>,
        sizes: &[usize],
        values: usize,
        pool: Arc<Pool>,
    ) -> Self {
        let (buffers, arena_bytes) = arrange(sizes, &lifetimes(&steps, sizes.len()));
        let dying = dying(&steps, &outputs, values);
        let mut seen = HashSet::new();
        let mut last: Vec<bool> = outputs.iter().rev().map(|slot| seen.insert(*slot)).collect();
        last.reverse();
        let values = std::iter::repeat_with(|| None).take(values).collect();
        Self { steps, constants, outputs, last, buffers, dying, values, pool, arena_bytes }
    }

    pub(super) fn buffers(&self) -> &[Range<usize>] {
        &self.buffers
    }

    /// The same steps in another order: number `i` is what was number `order[i]`.
    pub(super) fn reordered(self, order: &[usize]) -> Self {
        let Self { steps, constants, outputs, buffers, values, pool, .. } = self;
        let sizes: Vec<usize> = buffers.iter().map(Range::len).collect();
        let mut taken: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
        let steps = order.iter().filter_map(|step| taken[*step].take()).collect();
        Self::new(steps, constants, outputs, &sizes, values.len(), pool)
    }

    /// Lets the first input be a picture, see [`Import::take_pictures`]; whether all that reads it can.
    pub(super) fn take_pictures(&mut self, meaning: &Pictures) -> bool {
        let first = Slot::Input(0);
        let mut any = false;
        if self.outputs.contains(&first) {
            return false;
        }
        for step in self.steps.iter_mut().filter(|step| step.work.reads().contains(&first)) {
            match &mut step.work {
                Work::Import { to, import, .. } if to.stride == to.shape.c => {
                    if !import.take_pictures(meaning, to.shape.c) {
                        return false;
                    }
                    any = true;
                }
                _ => return false,
            }
        }
        any
    }

    /// Where a place begins in the arena.
    pub(super) fn arena_offset(&self, place: &Place) -> usize {
        self.buffers[place.buffer.0].start + place.offset
    }

    /// `inputs` have the types and shapes of the request; `arena` has `arena_bytes`; `after` gets the number of each step
    /// once it has run.
    pub(super) fn run(
        &mut self,
        team: &mut Team,
        inputs: &[&Tensor],
        arena: &mut [u8],
        scratch: &mut Scratch,
        after: &mut dyn FnMut(usize),
    ) -> Result<Vec<Tensor>, String> {
        let mut context = Context { isa: team.isa(), team, scratch };
        for number in 0..self.steps.len() {
            self.step(number, &mut context, inputs, arena)?;
            after(number);
        }
        self.outputs(inputs)
    }

    /// One step, after all whose results it reads.
    pub(super) fn step(
        &mut self,
        number: usize,
        context: &mut Context<'_>,
        inputs: &[&Tensor],
        arena: &mut [u8],
    ) -> Result<(), String> {
        let Self { steps, constants, buffers, dying, values, pool, .. } = self;
        let dying = &mut dying[number];
        let memory = Memory { inputs, constants, values, buffers, arena, dying, pool };
        run(&mut steps[number].work, context, memory)?;
        dying.iter().filter_map(|value| values[*value].take()).for_each(|tensor| pool.give(tensor));
        Ok(())
    }

    /// What another executor has made for a step: real values of one of its [`super::Cpu::outlets`].
    pub(super) fn receive(&mut self, number: usize, outlet: usize, bytes: &[u8]) -> Result<(), String> {
        let Self { steps, values, pool, .. } = self;
        match &steps[number].work {
            Work::Export { to, export, .. } => values[*to] = Some(export.receive(pool, bytes)?),
            Work::Deal { from, pieces } => {
                let piece = pieces.get(outlet).ok_or(MISSING)?;
                let whole = values[piece.to].take();
                values[piece.to] = Some(piece.receive(pool, from.shape, bytes, whole)?);
            }
            _ => return Err(MISSING.into()),
        }
        Ok(())
    }

    /// What the steps have left.
    pub(super) fn outputs(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        let Self { constants, outputs, last, values, pool, .. } = self;
        let mut results = Vec::with_capacity(outputs.len());
        for (slot, last) in outputs.iter().zip(&*last) {
            results.push(match slot {
                Slot::Computed(value) if *last => values[*value].take().ok_or(MISSING)?,
                slot => read(*slot, inputs, constants, values)?.clone(),
            });
        }
        values.iter_mut().filter_map(Option::take).for_each(|tensor| pool.give(tensor));
        Ok(results)
    }
}

const MISSING: &str = "a value was not computed";

struct Memory<'a> {
    inputs: &'a [&'a Tensor],
    constants: &'a [Tensor],
    values: &'a mut [Option<Tensor>],
    buffers: &'a [Range<usize>],
    arena: &'a mut [u8],
    /// Computed values that nothing reads after this step.
    dying: &'a [usize],
    pool: &'a Pool,
}

fn read<'a>(
    slot: Slot,
    inputs: &[&'a Tensor],
    constants: &'a [Tensor],
    values: &'a [Option<Tensor>],
) -> Result<&'a Tensor, String> {
    let found = match slot {
        Slot::Input(at) => inputs.get(at).copied(),
        Slot::Constant(at) => constants.get(at),
        Slot::Computed(at) => values.get(at).and_then(Option::as_ref),
    };
    found.ok_or_else(|| MISSING.into())
}

fn run(work: &mut Work, context: &mut Context<'_>, memory: Memory<'_>) -> Result<(), String> {
    let Memory { inputs: given, constants, values, buffers, arena, dying, pool } = memory;
    match work {
        Work::Bytes { inputs, output, operation } => {
            let place = &buffers[output.buffer.0];
            let (before, rest) = arena.split_at_mut(place.start);
            let (own, after) = rest.split_at_mut(place.len());
            let mut views = [View { bytes: &[], stride: 0 }; INPUTS_MAX];
            for (view, from) in views.iter_mut().zip(&*inputs) {
                // What comes before the output's buffer, and what comes after it: an input never lies in it.
                let Range { start, end } = buffers[from.buffer.0];
                let buffer = if end <= place.start {
                    &before[start..end]
                } else {
                    &after[start - place.end..end - place.end]
                };
                *view = View { bytes: &buffer[from.offset..][..from.length()], stride: from.stride };
            }
            let bytes = &mut own[output.offset..][..output.length()];
            operation.run(context, &views[..inputs.len()], ViewMut { bytes, stride: output.stride });
        }
        Work::Import { from, to, import } => {
            let tensor = read(*from, given, constants, values)?;
            let bytes = &mut arena[buffers[to.buffer.0].clone()][to.offset..][..to.length()];
            import.run(context.team, tensor, to.shape, ViewMut { bytes, stride: to.stride })?;
        }
        Work::Export { from, to, export } => {
            let bytes = &arena[buffers[from.buffer.0].clone()][from.offset..][..from.length()];
            let view = View { bytes, stride: from.stride };
            values[*to] = Some(export.run(context.team, pool, from.shape, view)?);
        }
        Work::Deal { from, pieces } => {
            let bytes = &arena[buffers[from.buffer.0].clone()][from.offset..][..from.length()];
            let view = View { bytes, stride: from.stride };
            for piece in pieces {
                let whole = values[piece.to].take();
                values[piece.to] = Some(piece.run(context.team, pool, from.shape, view, whole)?);
            }
        }
        Work::Put { from, to, dims, row } => {
            let whole = values[*to].take();
            let piece = read(*from, given, constants, values)?;
            values[*to] = Some(put(pool, dims, *row, piece, whole)?);
        }
        Work::Plain { inputs, outputs, call } => {
            // The same elements in another shape: nobody else needs them any more.
            if let ([Some(Slot::Computed(from)), others @ ..], [Some(to)]) = (&inputs[..], &outputs[..])
                && call.keeps_elements()
                && dying.contains(from)
                && !others.contains(&Some(Slot::Computed(*from)))
            {
                let first = values[*from].take().ok_or(MISSING)?;
                let slot = |slot: &Option<Slot>| slot.map(|s| read(s, given, constants, values)).transpose();
                let others = others.iter().map(slot);
                let others = std::iter::once(Ok(None)).chain(others).collect::<Result<Vec<_>, _>>()?;
                values[*to] = Some(call.reshape(first, &others)?);
                return Ok(());
            }
            let slot = |slot: &Option<Slot>| slot.map(|s| read(s, given, constants, values)).transpose();
            let tensors = inputs.iter().map(slot).collect::<Result<Vec<_>, _>>()?;
            let results = call.run_on(context.team, &tensors)?;
            for (to, tensor) in outputs.iter().zip(results) {
                if let Some(to) = to {
                    values[*to] = Some(tensor);
                }
            }
        }
        Work::Island { inputs, outputs, engine, .. } => {
            let tensors =
                inputs.iter().map(|s| read(*s, given, constants, values)).collect::<Result<Vec<_>, _>>()?;
            let results = engine.run(&tensors)?;
            outputs.iter().zip(results).for_each(|(to, tensor)| values[*to] = Some(tensor));
        }
    }
    Ok(())
}

/// From the first step that uses a buffer to behind the last.
fn lifetimes(steps: &[Step], count: usize) -> Vec<Range<usize>> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; count];
    for (at, step) in steps.iter().enumerate() {
        for place in step.work.places() {
            let life = lives[place.buffer.0].get_or_insert(at..at + 1);
            *life = life.start.min(at)..life.end.max(at + 1);
        }
    }
    lives.into_iter().map(Option::unwrap_or_default).collect()
}

fn dying(steps: &[Step], outputs: &[Slot], values: usize) -> Vec<Vec<usize>> {
    let mut last = vec![None; values];
    for (at, step) in steps.iter().enumerate() {
        for slot in step.work.reads() {
            if let Slot::Computed(value) = slot {
                last[value] = Some(at);
            }
        }
    }
    for slot in outputs {
        if let Slot::Computed(value) = slot {
            last[*value] = None;
        }
    }
    let mut dying = vec![vec![]; steps.len()];
    for (value, at) in last.into_iter().enumerate() {
        if let Some(at) = at {
            dying[at].push(value);
        }
    }
    dying
}
