//! From a graph of floats to what the GPU runs for it: a walk over its nodes in which each becomes a dispatch, a part of the
//! dispatch before it, or nothing but another name for what is there.
//!
//! Functions, summands and factors of each channel, and skip connections go into the convolution before them where nobody
//! else reads its result. What comes last and is small may run on the host ([`crate::plain`]); anything else that has no
//! kernel is a refusal, and the network is not for the GPU. Operators lie by kind: [`super::layers`], [`super::spatial`],
//! [`super::join`]; the element-wise ones are here.

use std::collections::HashMap;

use andon_shaders::operation;

use super::{
    super::choice::Choices,
    Precision,
    kernels::{self, Planes},
    look::{Look, Step},
    pack::{Constants, Filters},
    terms::{Activation, Ending, Job, Spot},
};
use crate::{
    cpu::Shape,
    graph::{Graph, NodeId, ValueId},
    onnx::DataType,
    plain::is_light,
    shape::{Shapes, macs},
};

/// What becomes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nobody needs it, or it moves no number.
    Nothing,
    /// It is a dispatch, or several.
    Kernel,
    /// It is done within the dispatch before it.
    Fused,
    /// It comes last, and runs on the host.
    Host,
}

/// A value on the GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) spot: Spot,
    /// To ONNX its pixels and channels are one row, in the order of `[channels, height, width]`.
    pub(super) is_row: bool,
}

/// Where a part of a concatenation lies: in whose buffer, and from which of its quads on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) whole: ValueId,
    pub(super) first: usize,
}

pub(super) struct Lowering<'a> {
    pub(super) look: Look<'a>,
    pub(super) choices: &'a Choices,
    pub(super) known: HashMap<ValueId, Known>,
    pub(super) homes: HashMap<ValueId, Home>,
    /// Buffers of whole concatenations.
    pub(super) wholes: HashMap<ValueId, usize>,
    pub(super) shares: Vec<Share>,
    pub(super) constants: Constants,
    /// With the node whose work each is.
    pub(super) jobs: Vec<(NodeId, Job)>,
    /// Quads of each buffer. The first is all zeros, for good.
    pub(super) sizes: Vec<usize>,
    pub(super) host: Vec<NodeId>,
    /// Values that the host computes, and why.
    left: HashMap<ValueId, String>,
}

pub(super) const ZEROS: usize = 0;

impl<'a> Lowering<'a> {
    /// All of a graph; the error names a node and its operator.
    pub(super) fn of(
        graph: &'a Graph,
        shapes: &'a Shapes,
        wanted: &'a [ValueId],
        choices: &'a Choices,
        precision: Precision,
    ) -> Result<Self, String> {
        let look = Look::new(graph, shapes, wanted);
        let shares = vec![Share::Nothing; graph.nodes().len()];
        let fixed = graph.values().filter_map(|value| Some(graph.constant(value)?.bytes()));
        let mut lowering = Self {
            look,
            choices,
            known: HashMap::new(),
            homes: HashMap::new(),
            wholes: HashMap::new(),
            shares,
            constants: Constants::new(precision, fixed.sum()),
            jobs: vec![],
            sizes: vec![1],
            host: vec![],
            left: HashMap::new(),
        };
        for (value, info) in graph.inputs() {
            if let (Some(DataType::Float), Ok(shape)) = (info.data_type(), lowering.look.shape(value)) {
                let spot = lowering.buffer(shape);
                lowering.known.insert(value, Known { spot, is_row: false });
            }
        }
        lowering.find_homes();
        let ids: Vec<NodeId> = graph.nodes().map(|(id, _, _)| id).collect();
        let (mut computes, mut refused) = (false, None);
        for id in ids {
            if !lowering.look.live[id.index()] || lowering.shares[id.index()] == Share::Fused {
                continue;
            }
            let jobs = lowering.jobs.len();
            match lowering.node(id) {
                Ok(()) if lowering.jobs.len() > jobs => {
                    lowering.shares[id.index()] = Share::Kernel;
                    computes |= macs(graph, shapes, id).is_some_and(|macs| macs > 0);
                }
                Ok(()) => {}
                Err(why) => {
                    let why = lowering.leave(id, &why)?;
                    refused.get_or_insert(why);
                }
            }
        }
        if !computes {
            return Err(refused.unwrap_or_else(|| "it has no layer with weights".into()));
        }
        Ok(lowering)
    }

    /// Leaves a node to the host, if it can be left; gives or returns why.
    fn leave(&mut self, id: NodeId, why: &str) -> Result<String, String> {
        let Look { graph, shapes, .. } = self.look;
        let node = graph.node(id);
        // What it reads may have been left before it, for a reason that is its own.
        let earlier = graph.reads(id).find_map(|value| self.left.get(&value).cloned());
        let named = || format!("node {:?} ({}): {why}", node.name, graph.proto(id).op_type);
        let why = earlier.unwrap_or_else(named);
        if !node.captures.is_empty() || !is_light(graph, shapes, id) {
            return Err(why);
        }
        self.host.push(id);
        self.shares[id.index()] = Share::Host;
        self.left.extend(node.outputs.iter().flatten().map(|value| (*value, why.clone())));
        Ok(why)
    }

    /// A buffer for all of an activation as ONNX has it.
    fn planes(&mut self, spot: Spot) -> Planes {
        let words_per_quad = self.constants.words_per_quad();
        self.sizes.push(spot.shape.bytes().div_ceil(words_per_quad));
        Planes { buffer: self.sizes.len() - 1, words_per_quad }
    }

    /// Lets something be taken from the GPU: where it is to be found.
    pub(super) fn give(&mut self, from: Spot) -> Planes {
        let planes = self.planes(from);
        let maker = self.jobs.iter().rev().find(|(_, job)| job.writes == from.buffer).or(self.jobs.last());
        if let Some((id, _)) = maker {
            self.jobs.push((*id, planes.give(from)));
        }
        planes
    }

    /// Lets something be given to the GPU, where that is needed: where to put it.
    pub(super) fn take(&mut self, to: Spot) -> Option<Planes> {
        let (reader, _) = self.jobs.iter().find(|(_, job)| job.touches.contains(&to.buffer))?;
        let reader = *reader;
        let planes = self.planes(to);
        self.jobs.insert(0, (reader, planes.take(to)));
        Some(planes)
    }

    fn buffer(&mut self, shape: Shape) -> Spot {
        let spot = Spot::whole(self.sizes.len(), shape);
        self.sizes.push(spot.span());
        spot
    }

    /// Where a result goes.
    pub(super) fn place(&mut self, value: ValueId, shape: Shape) -> Spot {
        let Some(home) = self.homes.get(&value).copied() else { return self.buffer(shape) };
        let Ok(whole) = self.look.shape(home.whole) else { return self.buffer(shape) };
        let known = self.wholes.get(&home.whole).copied();
        let buffer = known.unwrap_or_else(|| self.buffer(whole).buffer);
        self.wholes.insert(home.whole, buffer);
        Spot { first: home.first, shape, ..Spot::whole(buffer, whole) }
    }

    pub(super) fn put(&mut self, value: ValueId, spot: Spot) {
        self.known.insert(value, Known { spot, is_row: false });
    }

    pub(super) fn push(&mut self, id: NodeId, job: Job) {
        self.jobs.push((id, job));
    }

    /// An input on the GPU.
    pub(super) fn known(&self, id: NodeId, index: usize) -> Result<(ValueId, Known), String> {
        let value = self.look.input(id, index).ok_or("an input is missing")?;
        if let Some(known) = self.known.get(&value) {
            return Ok((value, *known));
        }
        let name = &self.look.graph.value(value).name;
        Err(format!("its input {name:?} does not lie on the GPU"))
    }

    /// An input with pixels and channels of its own.
    pub(super) fn image(&self, id: NodeId) -> Result<(ValueId, Spot), String> {
        match self.known(id, 0)? {
            (value, Known { spot, is_row: false }) => Ok((value, spot)),
            _ => Err("it reads an image as a row".into()),
        }
    }

    fn node(&mut self, id: NodeId) -> Result<(), String> {
        match self.look.op(id) {
            "Conv" => self.convolution(id),
            "ConvTranspose" => self.transposed(id),
            "Gemm" | "MatMul" => self.fully_connected(id),
            "BatchNormalization" => self.channelwise(id, 0),
            "Add" | "Sub" | "Mul" | "Div" => self.binary(id),
            "MaxPool" | "AveragePool" => self.pool(id),
            "GlobalAveragePool" | "GlobalMaxPool" | "ReduceMean" => self.global(id),
            "Concat" => self.concat(id),
            "Resize" | "Upsample" => self.resize(id),
            "Pad" => self.pad(id),
            "Split" | "Slice" => self.cut(id),
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" | "Identity" | "Dropout" => self.rename(id),
            _ => self.function(id),
        }
    }

    /// What is done with a result before anybody else sees it, and as which value it comes out. `filters`: where factors and
    /// summands of channels can go.
    pub(super) fn behind(&mut self, value: ValueId, mut filters: Option<&mut Filters>) -> (Ending, ValueId) {
        let (mut ending, mut to) = (Ending::NOTHING, value);
        loop {
            let slot = if ending.skip.is_none() { &mut ending.first } else { &mut ending.then };
            if let Some(step) = self.look.function_behind(to)
                && *slot == Activation::NOTHING
                && self.look.same_shape(to, step.to)
            {
                *slot = step.what;
                self.fuse(&step.nodes);
                to = step.to;
                continue;
            }
            let Some(reader) = self.look.reader(to) else { break };
            let Ok(next) = self.look.output(reader) else { break };
            if ending == Ending::NOTHING
                && let Some(filters) = &mut filters
                && let Some((scale, shift)) = self.look.channelwise(reader, to)
                && scale.len() == filters.bias.len()
            {
                filters.scale(&scale, &shift);
            } else if let Some(skip) = self.skip(reader, to).filter(|_| ending.skip.is_none()) {
                ending.skip = Some(skip);
            } else {
                break;
            }
            self.fuse(&[reader]);
            to = next;
        }
        (ending, to)
    }

    fn fuse(&mut self, nodes: &[NodeId]) {
        nodes.iter().for_each(|id| self.shares[id.index()] = Share::Fused);
    }

    /// What a sum adds to `value`, if that is there and as large.
    fn skip(&self, id: NodeId, value: ValueId) -> Option<Spot> {
        let (a, b) = (self.look.input(id, 0)?, self.look.input(id, 1)?);
        let other = if a == value { b } else { a };
        let same =
            self.look.same_shape(value, other) && self.look.same_shape(value, self.look.output(id).ok()?);
        let known = self.known.get(&other).filter(|known| !known.is_row)?;
        (self.look.op(id) == "Add" && same).then_some(known.spot)
    }

    fn binary(&mut self, id: NodeId) -> Result<(), String> {
        for (own, other) in [(0, 1), (1, 0)] {
            if self.look.input(id, other).is_some_and(|value| self.look.constant(value).is_some()) {
                return self.channelwise(id, own);
            }
        }
        let ((first, a), (second, b)) = (self.known(id, 0)?, self.known(id, 1)?);
        let output = self.look.output(id)?;
        let rank = |value| self.look.shapes.of(value).map(<[usize]>::len);
        if rank(first) != rank(output) || rank(second) != rank(output) {
            return Err("its inputs have not the same number of dimensions".into());
        }
        let (to, is_row) =
            if a.is_row || b.is_row { (a.spot.shape, true) } else { (self.look.shape(output)?, false) };
        if is_row && (a.is_row != b.is_row || a.spot.shape != b.spot.shape) {
            return Err("it joins rows that are images of different sizes".into());
        }
        let goes =
            |Shape { h, w, c }: Shape| (c == to.c || c == 1) && ((h, w) == (to.h, to.w) || (h, w) == (1, 1));
        if !goes(a.spot.shape) || !goes(b.spot.shape) {
            return Err("its inputs are stretched along one dimension of the image".into());
        }
        let kind = match self.look.op(id) {
            "Add" => operation::ADD,
            "Sub" => operation::SUBTRACT,
            "Mul" => operation::MULTIPLY,
            _ => operation::DIVIDE,
        };
        self.elementwise(id, [a.spot, b.spot], (kind, Activation::NOTHING), output, (to, is_row))
    }

    /// A function of one input.
    fn function(&mut self, id: NodeId) -> Result<(), String> {
        let value = self.look.input(id, 0).ok_or("it has no kernel")?;
        let found = self.look.function_of(value, id);
        let Step { what, nodes, to } = found.ok_or("it has no kernel")?;
        let (_, Known { spot, is_row }) = self.known(id, 0)?;
        if !self.look.same_shape(value, to) {
            return Err("it stretches its input".into());
        }
        self.fuse(&nodes);
        self.elementwise(id, [spot, spot], (operation::FIRST, what), to, (spot.shape, is_row))
    }

    fn elementwise(
        &mut self,
        id: NodeId,
        operands: [Spot; 2],
        (operation, mut function): (u32, Activation),
        mut output: ValueId,
        (to, is_row): (Shape, bool),
    ) -> Result<(), String> {
        if function == Activation::NOTHING
            && let Some(step) = self.look.function_behind(output)
            && self.look.same_shape(output, step.to)
        {
            (function, output) = (step.what, step.to);
            self.fuse(&step.nodes);
        }
        let spot = if is_row { self.buffer(to) } else { self.place(output, to) };
        self.push(id, kernels::binary(operands, spot, operation, function));
        self.known.insert(output, Known { spot, is_row });
        Ok(())
    }

    /// Another name for the same numbers.
    fn rename(&mut self, id: NodeId) -> Result<(), String> {
        let (_, Known { spot, .. }) = self.known(id, 0)?;
        let output = self.look.output(id)?;
        if self.look.op(id) == "Dropout" && self.look.input(id, 2).is_some() {
            return Err("it may be in training".into());
        }
        let dims = self.look.shapes.of(output).ok_or("its output's shape is not known")?;
        let Shape { h, w, c } = spot.shape;
        let is_row = match *dims {
            [1, a, b, d] if [a, b, d] == [c, h, w] => false,
            [1, n] | [1, n, 1, 1] if n == c * h * w => h * w > 1,
            _ => return Err(format!("the shape {dims:?} is another than that of an image or a row")),
        };
        self.known.insert(output, Known { spot, is_row });
        Ok(())
    }
}
