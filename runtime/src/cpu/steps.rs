//! A plan as another executor sees it: what its steps touch and what they compute, and single steps to be run here.

use std::ops::Range;

use super::{
    Cpu,
    convert::{Form, Intaken, Piece},
    describe::Description,
    plan::{Context, Order, Place, Slot, View, ViewMut, Work},
};
use crate::{engine::guarded, tensor::Tensor};

/// What a step touches.
pub(crate) struct Touched {
    pub(crate) reads: Vec<Place>,
    pub(crate) writes: Option<Place>,
    /// Plain values, by number.
    pub(crate) values_read: Vec<usize>,
    pub(crate) values_written: Vec<usize>,
}

/// An activation that is an input of the network, quantised.
pub(crate) struct Intake<'a> {
    pub(crate) input: usize,
    pub(crate) to: Place,
    /// The input has channel after channel; otherwise pixel after pixel.
    pub(crate) planes: bool,
    pub(crate) byte: Box<dyn Fn(f32) -> u8 + 'a>,
    /// What becomes of pictures, if the input may be one.
    pub(crate) pictures: Option<&'a Intaken>,
}

/// Real values of some channels of an activation, which a step makes plain.
pub(crate) struct Outlet<'a> {
    pub(crate) from: Place,
    pub(crate) channels: Range<usize>,
    /// Channel after channel; otherwise pixel after pixel.
    pub(crate) planes: bool,
    /// Of each byte.
    pub(crate) values: &'a [f32; 256],
}

impl Outlet<'_> {
    /// Whether another's channels come right behind its own, in the same order of values.
    pub(crate) fn borders(&self, next: &Outlet<'_>) -> bool {
        self.planes && next.planes && self.from == next.from && self.channels.end == next.channels.start
    }
}

impl Cpu {
    pub(crate) fn touched(&self) -> Vec<Touched> {
        let touched = |step: &super::plan::Step| {
            let (reads, writes) = match &step.work {
                Work::Bytes { inputs, output, .. } => (inputs.clone(), Some(*output)),
                Work::Import { to, .. } => (vec![], Some(*to)),
                Work::Export { from, .. } | Work::Deal { from, .. } => (vec![*from], None),
                Work::Put { .. } | Work::Plain { .. } | Work::Island { .. } => (vec![], None),
            };
            let (values_read, values_written) = (step.work.values_read(), step.work.values_written());
            Touched { reads, writes, values_read, values_written }
        };
        self.plan.steps.iter().map(touched).collect()
    }

    /// What a byte step computes, if it can say that.
    pub(crate) fn description(&self, step: usize) -> Option<Description<'_>> {
        match &self.plan.steps[step].work {
            Work::Bytes { operation, .. } => operation.describe(),
            _ => None,
        }
    }

    /// Whether a step reads an input of the network.
    pub(crate) fn reads_inputs(&self, step: usize) -> bool {
        self.plan.steps[step].work.reads().iter().any(|slot| matches!(slot, Slot::Input(_)))
    }

    /// Whether an input of the network is an output, too.
    pub(crate) fn gives_inputs(&self) -> bool {
        self.plan.outputs.iter().any(|slot| matches!(slot, Slot::Input(_)))
    }

    /// What a step does, if it only quantises an input of the network.
    pub(crate) fn intake(&self, step: usize) -> Option<Intake<'_>> {
        match &self.plan.steps[step].work {
            Work::Import { from: Slot::Input(input), to, import } if import.real => Some(Intake {
                input: *input,
                to: *to,
                planes: import.order == Order::ChannelsLast,
                byte: Box::new(|real| import.byte(real)),
                pictures: import.pictures.as_deref(),
            }),
            _ => None,
        }
    }

    /// What a step does, if it only makes plain what an activation's bytes mean.
    pub(crate) fn outlets<'a>(&'a self, step: usize) -> Vec<Outlet<'a>> {
        match &self.plan.steps[step].work {
            Work::Export { from, export, .. } => {
                let Form::Real(values) = &export.form else { return vec![] };
                let planes = export.order == Order::ChannelsLast;
                vec![Outlet { from: *from, channels: 0..from.shape.c, planes, values }]
            }
            Work::Deal { from, pieces } => {
                let outlet = |piece: &'a Piece| Outlet {
                    from: *from,
                    channels: piece.channels.clone(),
                    planes: true,
                    values: &piece.values,
                };
                pieces.iter().map(outlet).collect()
            }
            _ => vec![],
        }
    }

    /// Real values that were made for a step, of its outlet number `outlet`, as bytes, the lowest first.
    pub(crate) fn receive(&mut self, step: usize, outlet: usize, bytes: &[u8]) -> Result<(), String> {
        self.plan.receive(step, outlet, bytes)
    }

    /// Bytes of each buffer; places name them by number.
    pub(crate) fn buffer_sizes(&self) -> Vec<usize> {
        self.plan.buffers().iter().map(std::ops::Range::len).collect()
    }

    /// The same steps in another order, in which each still comes after those whose results it reads: `order[i]` is what
    /// was step number `order[i]`.
    pub(crate) fn reordered(self, order: &[usize]) -> Self {
        let Self { pictures, plan, parts, arena: _, scratch, team } = self;
        let plan = plan.reordered(order);
        let arena = super::Bytes::zeroed(plan.arena_bytes);
        Self { pictures, plan, parts, arena, scratch, team }
    }

    /// Runs one step on what is in the arena.
    pub(crate) fn run_step(&mut self, step: usize, inputs: &[&Tensor]) -> Result<(), String> {
        let Self { plan, arena, scratch, team, .. } = self;
        guarded(|| {
            let mut context = Context { isa: team.isa(), team, scratch };
            plan.step(step, &mut context, inputs, arena)
        })
    }

    /// What the steps that ran have left as outputs.
    pub(crate) fn outputs(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        self.plan.outputs(inputs)
    }

    /// Bytes of a place in the arena: pixel after pixel, `stride` apart.
    pub(crate) fn bytes(&self, place: &Place) -> View<'_> {
        let at = self.plan.arena_offset(place);
        View { bytes: &self.arena[at..at + place.length()], stride: place.stride }
    }

    /// Calls `work` with the number of each of so many parts and with the bytes of a place, on all threads.
    pub(crate) fn share(&mut self, place: &Place, parts: usize, work: &(dyn Fn(usize, View<'_>) + Sync)) {
        let at = self.plan.arena_offset(place);
        let bytes = &self.arena[at..at + place.length()];
        self.team.parts(parts, &|part| work(part, View { bytes, stride: place.stride }));
    }

    /// Calls `work` with each of `0..parts`, on all threads.
    pub(crate) fn parts(&mut self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        self.team.parts(parts, work);
    }

    pub(crate) fn bytes_mut(&mut self, place: &Place) -> ViewMut<'_> {
        let at = self.plan.arena_offset(place);
        ViewMut { bytes: &mut self.arena[at..at + place.length()], stride: place.stride }
    }
}
