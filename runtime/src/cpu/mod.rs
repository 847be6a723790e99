//! The engine `cpu`: quantised networks in Q/DQ form, int8 from end to end.
//!
//! [`lower`] turns a graph into a [`plan`], whose steps ([`ops`]) work on bytes with the [`kernels`] of the best
//! instruction set there is. The arithmetic is ONNX Runtime's fused x86 arithmetic, bit for bit; the same bytes come out
//! on every processor. A network that is not covered as a whole is refused, and runs on tract.

mod kernels;
mod lower;
mod ops;
mod plan;
#[cfg(test)]
mod tests;

use kernels::Isa;
use plan::{Plan, Scratch};

pub(crate) use lower::Refused;

use crate::{
    engine::Engine,
    graph::{Graph, NodeId, ValueId},
    shape::Shapes,
    tensor::Tensor,
};

pub(crate) struct Cpu {
    plan: Plan,
    isa: Isa,
    arena: Vec<u8>,
    scratch: Scratch,
}

impl Cpu {
    pub(crate) fn new(graph: &Graph, shapes: &Shapes, outputs: &[ValueId]) -> Result<Self, Refused> {
        let plan = lower::lower(graph, shapes, outputs)?;
        let arena = vec![0; plan.arena_bytes];
        Ok(Self { plan, isa: Isa::best(), arena, scratch: Scratch::default() })
    }
}

/// What a plan is made of, for people.
pub(crate) struct Summary {
    /// Instruction set.
    pub(crate) isa: &'static str,
    /// The node that each step is for.
    pub(crate) steps: Vec<NodeId>,
    pub(crate) arena_bytes: usize,
}

impl Cpu {
    pub(crate) fn summary(&self) -> Summary {
        let steps = self.plan.steps.iter().map(|step| step.node).collect();
        Summary { isa: self.isa.name(), steps, arena_bytes: self.plan.arena_bytes }
    }
}

impl Engine for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        self.plan.run(self.isa, inputs, &mut self.arena, &mut self.scratch)
    }

    fn arena_bytes(&self) -> Option<usize> {
        Some(self.plan.arena_bytes)
    }
}
