//! Writes a [`Schedule`] down as steps: where each activation lies, and which engine each island runs on.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    convert::{Export, Form as Exported, Piece},
    dealing::{Dealing, Target},
    forms::{Activation, Along, Form, MadeId, Make},
    island, ops,
    plan::{BufferId, Operation, Place, Shape, Slot, Step, Work},
    schedule::{Levels, Offset, Part, Schedule},
};
use crate::{
    graph::{NodeId, ValueId},
    plain::{self, Pool},
    tensor::Tensor,
};

/// Steps as they are written down.
pub(super) struct Emission<'a, 'b> {
    pub(super) schedule: Schedule<'a>,
    pub(super) levels: &'b Levels,
    pub(super) places: HashMap<MadeId, Place>,
    /// Bytes of each buffer.
    pub(super) sizes: Vec<usize>,
    pub(super) steps: Vec<Step>,
    pub(super) slots: HashMap<ValueId, Slot>,
    pub(super) constants: Vec<Tensor>,
    /// Plain values that are computed.
    pub(super) values: usize,
    pub(super) parts: Vec<Part>,
    /// Plain nodes that read each value.
    pub(super) readers: Vec<Vec<NodeId>>,
    /// Values that an output or an import reads.
    pub(super) leaves: Vec<bool>,
    pub(super) pool: Arc<Pool>,
    /// Exported values that go to several places.
    pub(super) dealing: Dealing,
}

impl Emission<'_, '_> {
    pub(super) fn emit(&mut self) -> Result<(), String> {
        let graph = self.schedule.graph;
        self.parts = vec![Part::Nothing; graph.nodes().len()];
        self.readers = vec![vec![]; graph.value_count()];
        for (id, _, _) in graph.nodes().filter(|(id, _, _)| self.schedule.runs[id.index()]) {
            graph.reads(id).for_each(|value| self.readers[value.index()].push(id));
        }
        self.leaves = vec![false; graph.value_count()];
        self.schedule.outputs.iter().for_each(|value| self.leaves[value.index()] = true);
        for (made, uses) in self.schedule.made.iter().zip(&self.schedule.uses) {
            if let Make::Import { value, .. } = made.make
                && *uses > 0
            {
                self.leaves[value.index()] = true;
            }
        }
        for (at, (id, _)) in graph.inputs().enumerate() {
            self.slots.insert(id, Slot::Input(at));
        }
        for id in self.schedule.outputs {
            if self.schedule.is_constant(*id) {
                let slot = self.constant(*id)?;
                self.slots.insert(*id, slot);
            }
        }
        self.dealing = self.dealing();
        let mut exports: HashMap<MadeId, Vec<ValueId>> = HashMap::new();
        for value in graph.values().filter(|v| self.schedule.plain[v.index()]) {
            if let Some((of, _)) = self.schedule.export(value).filter(|_| !self.schedule.is_constant(value)) {
                exports.entry(of.made).or_default().push(value);
            }
        }
        for level in 0..=self.levels.highest {
            for at in 0..self.schedule.made.len() {
                if self.schedule.uses[at] > 0 && self.levels.made[at] == level {
                    self.made(MadeId(at))?;
                    for value in exports.get(&MadeId(at)).into_iter().flatten() {
                        self.export(*value)?;
                    }
                }
            }
            let runs = |id: &NodeId| self.schedule.runs[id.index()] && self.levels.nodes[id.index()] == level;
            let nodes: Vec<NodeId> = graph.nodes().map(|(id, _, _)| id).filter(runs).collect();
            if !nodes.is_empty() {
                self.island(nodes)?;
            }
        }
        self.mark();
        Ok(())
    }

    fn buffer(&mut self, shape: Shape) -> Place {
        self.sizes.push(shape.bytes());
        Place::whole(BufferId(self.sizes.len() - 1), shape)
    }

    fn place(&mut self, id: MadeId) -> Place {
        // Concatenations within concatenations, thousands deep if a file wants it: each lies in a later one, so that
        // this ends.
        let (mut outermost, mut within) = (id, vec![]);
        let mut place = loop {
            if let Some(place) = self.places.get(&outermost) {
                break *place;
            }
            let Some((concat, offset)) = self.schedule.homes[outermost.0] else {
                let place = self.buffer(self.schedule.made[outermost.0].shape);
                self.places.insert(outermost, place);
                break place;
            };
            within.push((outermost, offset));
            outermost = concat;
        };
        for (id, offset) in within.into_iter().rev() {
            place = offset.within(place, self.schedule.made[id.0].shape);
            self.places.insert(id, place);
        }
        place
    }

    fn place_of(&mut self, of: &Activation) -> Place {
        let place = self.place(of.made);
        // Of what lies in a buffer of its own an activation has all pixels, but not always all channels.
        let made = &self.schedule.made[of.made.0];
        let stride = if made.dense { made.shape.bytes() / of.shape.pixels().max(1) } else { place.stride };
        Place { offset: place.offset + of.offset, stride, shape: of.shape, ..place }
    }

    fn made(&mut self, id: MadeId) -> Result<(), String> {
        let output = self.place(id);
        let node = self.schedule.made[id.0].node;
        // Each is visited once.
        match std::mem::replace(&mut self.schedule.made[id.0].make, Make::Concat(vec![], Along::Channels)) {
            Make::Import { value, import } => {
                let from = self.slot(value)?;
                self.steps.push(Step { node, work: Work::Import { from, to: output, import } });
            }
            Make::Step { inputs, operation } => {
                let inputs = inputs.iter().map(|of| self.place_of(of)).collect();
                self.bytes(node, inputs, output, operation);
            }
            Make::Table { of, table } => {
                let input = self.place_of(&of);
                self.bytes(node, vec![input], output, ops::table(*table, of.shape));
            }
            Make::Concat(parts, along) => {
                let mut offset = Offset::default();
                for (of, table) in parts {
                    let input = self.place_of(&of);
                    let to = offset.within(output, of.shape);
                    offset = offset.after(of.shape, along);
                    if input != to {
                        let operation = match table {
                            Some(table) => ops::table(*table, of.shape),
                            None => ops::copy(of.shape),
                        };
                        self.bytes(node, vec![input], to, operation);
                    }
                }
            }
        }
        Ok(())
    }

    /// A byte step; by way of another buffer if an input lies in the output's.
    fn bytes(&mut self, node: NodeId, inputs: Vec<Place>, output: Place, operation: Box<dyn Operation>) {
        if !inputs.iter().any(|input| input.buffer == output.buffer) {
            return self.steps.push(Step { node, work: Work::Bytes { inputs, output, operation } });
        }
        let other = self.buffer(output.shape);
        self.steps.push(Step { node, work: Work::Bytes { inputs, output: other, operation } });
        let operation = ops::copy(output.shape);
        self.steps.push(Step { node, work: Work::Bytes { inputs: vec![other], output, operation } });
    }

    fn export(&mut self, value: ValueId) -> Result<(), String> {
        let (of, form) = self.schedule.export(value).ok_or("what is exported is no activation")?;
        let from = self.place_of(&of);
        let node = self.schedule.graph.producer(value).ok_or("what is exported is an input")?;
        if let (Some(targets), Exported::Real(values)) = (self.dealing.targets.get(&value).cloned(), &form) {
            let piece = |target: Target| {
                let values = target.values(self.schedule.graph, values.clone())?;
                let (to, dims) = (self.begun(target.whole), self.dims(target.whole)?);
                let Target { channels, row, column, .. } = target;
                Ok(Piece { channels, values, to, dims, row, column })
            };
            let pieces = targets.into_iter().map(piece).collect::<Result<_, String>>()?;
            self.steps.push(Step { node, work: Work::Deal { from, pieces } });
            return Ok(());
        }
        let (dims, to) = (self.dims(value)?, self.computed(value));
        let export = Export { order: of.order, dims, form };
        self.steps.push(Step { node, work: Work::Export { from, to, export } });
        Ok(())
    }

    fn dims(&self, value: ValueId) -> Result<Vec<usize>, String> {
        Ok(self.schedule.shapes.of(value).ok_or("what is exported has no shape")?.to_vec())
    }

    /// Where a value goes that is computed piece by piece.
    fn begun(&mut self, value: ValueId) -> usize {
        match self.slots.get(&value) {
            Some(Slot::Computed(to)) => *to,
            _ => self.computed(value),
        }
    }

    /// Where a computed value goes.
    fn computed(&mut self, value: ValueId) -> usize {
        self.values += 1;
        self.slots.insert(value, Slot::Computed(self.values - 1));
        self.values - 1
    }

    fn constant(&mut self, value: ValueId) -> Result<Slot, String> {
        let proto = self.schedule.shapes.constant(self.schedule.graph, value).ok_or("it is no constant")?;
        self.constants.push(Tensor::from_proto(proto)?);
        Ok(Slot::Constant(self.constants.len() - 1))
    }

    fn slot(&mut self, value: ValueId) -> Result<Slot, String> {
        if let Some(slot) = self.slots.get(&value) {
            return Ok(*slot);
        }
        if !self.schedule.is_constant(value) {
            return Err(format!("value {:?} is computed by no step", self.schedule.graph.value(value).name));
        }
        let slot = self.constant(value)?;
        self.slots.insert(value, slot);
        Ok(slot)
    }

    /// Plain nodes of one level: our own operators where there is little to compute, another engine where there is more,
    /// node by node where that fails.
    fn island(&mut self, nodes: Vec<NodeId>) -> Result<(), String> {
        let graph = self.schedule.graph;
        let light = |id: &NodeId| plain::is_light(graph, self.schedule.shapes, *id);
        if nodes.iter().all(light) && self.own(&nodes).is_ok() {
            return Ok(());
        }
        let dealt = |id: &NodeId| self.dealing.done.contains(id) || self.dealing.gathers.contains_key(id);
        if nodes.iter().any(dealt) {
            return Err("what was written in place lies beside what no operator of ours is".into());
        }
        let Err(why) = self.other(&nodes) else { return Ok(()) };
        for id in nodes {
            if self.own(&[id]).is_err() && self.other(&[id]).is_err() {
                let (node, proto) = (graph.node(id), graph.proto(id));
                return Err(format!("node {:?} ({}): {why}", node.name, proto.op_type));
            }
        }
        Ok(())
    }

    /// All of the nodes as operators of ours, or none.
    fn own(&mut self, nodes: &[NodeId]) -> Result<(), String> {
        let graph = self.schedule.graph;
        let calls: Option<Vec<plain::Call>> = nodes.iter().map(|id| plain::Call::of(graph, *id)).collect();
        let calls = calls.ok_or("it has no operator of ours")?;
        // Constants of types that we have no tensors of are found now, before anything is written down.
        for value in nodes.iter().flat_map(|id| graph.reads(*id)) {
            if self.schedule.is_constant(value) {
                self.slot(value)?;
            }
        }
        for (id, call) in nodes.iter().zip(calls) {
            let node = graph.node(*id);
            if self.dealing.done.contains(id) {
                self.parts[id.index()] = Part::Fused;
                continue;
            }
            if let Some(dealt) = self.dealing.gathers.get(id).cloned() {
                self.gather(*id, &dealt)?;
                continue;
            }
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for value in &node.inputs {
                inputs.push(value.map(|value| self.slot(value)).transpose()?);
            }
            let outputs = node.outputs.iter().map(|value| value.map(|value| self.computed(value))).collect();
            let call = call.sharing(Arc::clone(&self.pool));
            self.steps.push(Step { node: *id, work: Work::Plain { inputs, outputs, call } });
            self.parts[id.index()] = Part::Plain(self.schedule.refused.get(id).copied());
        }
        Ok(())
    }

    /// What of a concatenation along channels is not dealt.
    fn gather(&mut self, id: NodeId, dealt: &HashSet<usize>) -> Result<(), String> {
        let node = self.schedule.graph.node(id);
        let whole = node.outputs.first().copied().flatten().ok_or("a concatenation gives nothing")?;
        let (to, dims) = (self.begun(whole), self.dims(whole)?);
        let mut row = 0;
        for (number, value) in node.inputs.iter().enumerate() {
            let value = value.ok_or("a concatenation lacks an input")?;
            if !dealt.contains(&number) {
                let (from, dims) = (self.slot(value)?, dims.clone());
                self.steps.push(Step { node: id, work: Work::Put { from, to, dims, row } });
            }
            row += self.dims(value)?.get(1).ok_or("a part without channels")?;
        }
        self.parts[id.index()] = Part::Plain(self.schedule.refused.get(&id).copied());
        Ok(())
    }

    fn other(&mut self, nodes: &[NodeId]) -> Result<(), String> {
        let schedule = &self.schedule;
        let own: HashSet<NodeId> = nodes.iter().copied().collect();
        let border = island::Border::of(
            schedule.graph,
            nodes,
            |value| schedule.is_constant(value),
            |value| {
                let outside = |id: &NodeId| !own.contains(id);
                self.leaves[value.index()] || self.readers[value.index()].iter().any(outside)
            },
        );
        let engine = island::build(schedule.graph, schedule.shapes, nodes, &border)?;
        let inputs = border.inputs.iter().map(|value| self.slot(*value)).collect::<Result<_, _>>()?;
        let outputs = border.outputs.iter().map(|value| self.computed(*value)).collect();
        for id in nodes {
            self.parts[id.index()] = Part::Island(self.schedule.refused.get(id).copied());
        }
        let work = Work::Island { nodes: nodes.to_vec(), inputs, outputs, engine };
        self.steps.push(Step { node: nodes[0], work });
        Ok(())
    }

    /// Nodes of byte steps, and those that went into them.
    fn mark(&mut self) {
        for step in &self.steps {
            if let Work::Bytes { .. } | Work::Import { .. } | Work::Export { .. } | Work::Deal { .. } =
                step.work
            {
                let part = &mut self.parts[step.node.index()];
                if *part == Part::Nothing {
                    *part = Part::Step;
                }
            }
        }
        for (id, node, _) in self.schedule.graph.nodes() {
            let bytes = |value: &ValueId| !matches!(self.schedule.forms[value.index()], Form::Plain);
            if self.parts[id.index()] == Part::Nothing && node.outputs.iter().flatten().any(bytes) {
                self.parts[id.index()] = Part::Fused;
            }
        }
    }
}
