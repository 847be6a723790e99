//! The engine `cpu`: quantised networks in Q/DQ form, int8 from end to end where that is possible.
//!
//! [`lower`] says what each node could be on bytes, [`schedule`] makes a [`plan`] of what is needed, whose byte steps
//! ([`ops`]) run on the [`kernels`] of the best instruction set there is. The arithmetic is ONNX Runtime's fused x86
//! arithmetic, bit for bit; the same bytes come out on every processor. What has no byte step runs on plain tensors
//! ([`crate::plain`]) or as an [`island`] on tract.

mod activation;
mod arena;
mod convert;
mod dealing;
pub(crate) mod describe;
mod emission;
mod forms;
mod island;
mod kernels;
mod lower;
mod ops;
mod plan;
mod schedule;
mod steps;
#[cfg(test)]
mod tests;

use describe::Sources;
use kernels::Bytes;
use plan::{Plan, Scratch, Work};
use schedule::Schedule;

pub(crate) use activation::{Place, Shape, View};
pub(crate) use arena::arrange;
pub(crate) use kernels::Target;
pub(crate) use kernels::{Isa, Team, multiply_accumulate};
pub(crate) use ops::{Mix, Sampling};
pub(crate) use schedule::Part;
pub(crate) use steps::{Intake, Outlet, Touched};

use crate::{
    engine::{Engine, guarded},
    graph::{Graph, NodeId, ValueId},
    session::Pictures,
    shape::Shapes,
    tensor::Tensor,
};

/// A network that was looked at, before anything is built.
pub(crate) struct Sketch<'a> {
    schedule: Schedule<'a>,
    isa: Isa,
}

impl<'a> Sketch<'a> {
    /// `outputs`: the values wanted; quantised ones come as u8 or i8.
    pub(crate) fn new(
        graph: &'a Graph,
        shapes: &'a Shapes,
        outputs: &'a [ValueId],
        isa: Isa,
    ) -> Result<Self, String> {
        Self::with(graph, shapes, outputs, isa, Sources::Dropped)
    }

    /// `Sources::Kept` for plans that another executor is to read.
    pub(crate) fn with(
        graph: &'a Graph,
        shapes: &'a Shapes,
        outputs: &'a [ValueId],
        isa: Isa,
        sources: Sources,
    ) -> Result<Self, String> {
        guarded(|| {
            let lowering = lower::lower(graph, shapes, lower::Packing { isa, sources });
            Ok(Self { schedule: Schedule::new(lowering, outputs), isa })
        })
    }

    /// Whether there is anything that this engine does better than another.
    pub(crate) fn has_byte_steps(&self) -> bool {
        self.schedule.has_byte_steps()
    }

    /// Why there may be nothing.
    pub(crate) fn first_refusal(&self) -> Option<String> {
        self.schedule.first_refusal()
    }

    /// `threads` includes the one that calls `run`.
    pub(crate) fn build(self, threads: usize) -> Result<Cpu, String> {
        let (plan, parts) = guarded(|| self.schedule.plan())?;
        let (arena, team) = (Bytes::zeroed(plan.arena_bytes), Team::new(self.isa, threads));
        Ok(Cpu { pictures: None, plan, parts, arena, scratch: Scratch::default(), team })
    }
}

pub(crate) struct Cpu {
    /// What the first input may be.
    pictures: Option<Pictures>,
    plan: Plan,
    /// What became of each node.
    parts: Vec<Part>,
    arena: Bytes,
    scratch: Scratch,
    team: Team,
}

/// What a plan is made of, for people.
pub(crate) struct Summary {
    /// Instruction set.
    pub(crate) isa: &'static str,
    /// What became of each node, in the order of the graph's.
    pub(crate) parts: Vec<Part>,
    pub(crate) steps: Vec<StepSummary>,
    pub(crate) arena_bytes: usize,
}

/// One step of a plan.
pub(crate) struct StepSummary {
    pub(crate) node: NodeId,
    pub(crate) kind: StepKind,
    /// Where its output begins in the arena, if it lies there, and how many bytes it has.
    pub(crate) output: Option<(usize, usize)>,
    /// Of the activations that it reads from the arena.
    pub(crate) input_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    Bytes,
    /// Bytes to bytes, on a GPU.
    Gpu,
    Import,
    Export,
    Plain,
    /// Of so many nodes.
    Island(usize),
}

impl Cpu {
    /// Lets the first input be a picture, if all that reads it can take one.
    pub(crate) fn with_pictures(mut self, pictures: Option<&Pictures>) -> Self {
        let taken = pictures.filter(|pictures| self.plan.take_pictures(pictures));
        self.pictures = taken.cloned();
        self
    }

    /// What the first input means if it is a picture, if it may be one.
    pub(crate) fn pictures(&self) -> Option<&Pictures> {
        self.pictures.as_ref()
    }

    /// Keeps each of the threads that it made on one processor.
    pub(crate) fn pinned(self, pinned: bool) -> Self {
        if pinned {
            self.team.pin();
        }
        self
    }

    pub(crate) fn summary(&self) -> Summary {
        let step = |step: &plan::Step| {
            let (kind, read, place): (_, &[Place], _) = match &step.work {
                Work::Bytes { inputs, output, .. } => (StepKind::Bytes, inputs, Some(output)),
                Work::Import { to, .. } => (StepKind::Import, &[], Some(to)),
                Work::Export { from, .. } | Work::Deal { from, .. } => {
                    (StepKind::Export, std::slice::from_ref(from), None)
                }
                Work::Put { .. } | Work::Plain { .. } => (StepKind::Plain, &[], None),
                Work::Island { nodes, .. } => (StepKind::Island(nodes.len()), &[], None),
            };
            let input_bytes = read.iter().map(|place| place.shape.bytes()).sum();
            let output = place.map(|place| (self.plan.arena_offset(place), place.shape.bytes()));
            StepSummary { node: step.node, kind, output, input_bytes }
        };
        Summary {
            isa: self.team.isa().name(),
            parts: self.parts.clone(),
            steps: self.plan.steps.iter().map(step).collect(),
            arena_bytes: self.plan.arena_bytes,
        }
    }
}

impl Engine for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        self.run_watched(inputs, &mut |_| ())
    }

    fn run_watched(
        &mut self,
        inputs: &[&Tensor],
        after: &mut dyn FnMut(usize),
    ) -> Result<Vec<Tensor>, String> {
        guarded(|| self.plan.run(&mut self.team, inputs, &mut self.arena, &mut self.scratch, after))
    }

    fn arena_bytes(&self) -> Option<usize> {
        Some(self.plan.arena_bytes)
    }

    fn takes_pictures(&self) -> bool {
        self.pictures.is_some()
    }
}
