//! From forms to a [`Plan`]: what the wanted outputs need, in which order, and where it lies.
//!
//! A value is needed plain, as bytes, or both. Needs go backwards: plain readers of bytes get an export, byte steps on
//! plain values an import, and whatever nothing needs is left out. Then tables join the steps before them, parts of a
//! concatenation are written in place, and plain nodes are grouped into islands by *level*: an island's level is the
//! highest among the values that it reads, and bytes imported from level `n` have level `n + 1`. All plain nodes of one
//! level form one island; since what it reads through byte steps has its own level at most, it can never wait for itself.

use std::collections::{HashMap, HashSet};

use super::{
    convert::{Export, Form as Exported, reals},
    island,
    lower::{Activation, Along, Form, Lowering, Made, MadeId, Make, Refusal},
    ops,
    plan::{BufferId, Operation, Place, Plan, Shape, Slot, Step, Work},
};
use crate::{
    graph::{Graph, NodeId, Source, ValueId},
    onnx::DataType,
    plain,
    shape::Shapes,
    tensor::Tensor,
};

/// What becomes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Nothing to compute: a constant, or what no output needs.
    Nothing,
    /// A byte step of its own.
    Step,
    /// Part of another node's byte step.
    Fused,
    /// An operator of ours on plain tensors, since the byte engine has none for it, or not for its form.
    Plain(Option<Refusal>),
    /// On another engine.
    Island(Option<Refusal>),
}

/// A lowered network and what of it is needed.
pub(super) struct Schedule<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    outputs: &'a [ValueId],
    forms: Vec<Form>,
    made: Vec<Made>,
    refused: HashMap<NodeId, Refusal>,
    /// How many read what was made; by [`MadeId`].
    uses: Vec<u32>,
    /// Values needed as tensors, and nodes that compute some of them.
    plain: Vec<bool>,
    runs: Vec<bool>,
    /// Inside which concatenation something is made, and behind what.
    homes: Vec<Option<(MadeId, Offset)>>,
}

/// How far a part of a concatenation lies behind its first byte.
#[derive(Debug, Clone, Copy, Default)]
struct Offset {
    channels: usize,
    pixels: usize,
}

impl Offset {
    /// Behind one more part.
    fn after(self, part: Shape, along: Along) -> Self {
        match along {
            Along::Channels => Self { channels: self.channels + part.c, ..self },
            Along::Pixels => Self { pixels: self.pixels + part.pixels(), ..self },
        }
    }

    fn within(self, around: Place, shape: Shape) -> Place {
        Place { offset: around.offset + self.channels + self.pixels * around.stride, shape, ..around }
    }
}

enum Need {
    Plain(ValueId),
    Made(MadeId),
}

impl<'a> Schedule<'a> {
    pub(super) fn new(lowering: Lowering<'a>, outputs: &'a [ValueId]) -> Self {
        let (graph, shapes) = (lowering.graph(), lowering.shapes());
        let Lowering { forms, made, refused, .. } = lowering;
        let mut schedule = Self {
            graph,
            shapes,
            outputs,
            uses: vec![0; made.len()],
            homes: vec![None; made.len()],
            plain: vec![false; forms.len()],
            runs: vec![false; graph.nodes().len()],
            refused: refused.into_iter().collect(),
            forms,
            made,
        };
        schedule.need();
        schedule.fuse();
        schedule
    }

    /// Whether any byte step would run.
    pub(super) fn has_byte_steps(&self) -> bool {
        let imports = |made: &Made| matches!(made.make, Make::Import { .. });
        self.made.iter().zip(&self.uses).any(|(made, uses)| *uses > 0 && !imports(made))
    }

    /// Why the first node that is refused is.
    pub(super) fn first_refusal(&self) -> Option<String> {
        let id = self.graph.nodes().map(|(id, _, _)| id).find(|id| self.refused.contains_key(id))?;
        let (node, proto) = (self.graph.node(id), self.graph.proto(id));
        Some(format!("node {:?} ({}): {}", node.name, proto.op_type, self.refused[&id]))
    }

    fn is_constant(&self, value: ValueId) -> bool {
        self.shapes.constant(self.graph, value).is_some()
    }

    /// How a plain value comes from bytes.
    fn export(&self, value: ValueId) -> Option<(Activation, Exported)> {
        let (of, form) = match &self.forms[value.index()] {
            Form::Bytes(of) if of.signed => (*of, Exported::I8),
            Form::Bytes(of) => (*of, Exported::U8),
            Form::Real(of) => (*of, Exported::Real(Box::new(reals(of.quantity)))),
            Form::Curve(curve) => (curve.of, Exported::Real(Box::new(*curve.values))),
            Form::Mean(of, _) => (*of, Exported::Mean(of.quantity)),
            Form::Plain | Form::Taken | Form::Pending(_) | Form::Concat(_) => return None,
        };
        // What was plain a moment ago can stay it, unless the bytes themselves are asked for.
        let imported = matches!(self.made[of.made.0].make, Make::Import { .. });
        let asked = matches!(self.forms[value.index()], Form::Bytes(_)) && self.outputs.contains(&value);
        (!imported || asked).then_some((of, form))
    }

    fn need(&mut self) {
        let mut needs: Vec<Need> = self.outputs.iter().map(|id| Need::Plain(*id)).collect();
        while let Some(need) = needs.pop() {
            match need {
                Need::Plain(value) => {
                    if std::mem::replace(&mut self.plain[value.index()], true) || self.is_constant(value) {
                        continue;
                    }
                    if let Some((of, _)) = self.export(value) {
                        needs.push(Need::Made(of.made));
                    } else if let Source::Node(node) = self.graph.value(value).source
                        && !std::mem::replace(&mut self.runs[node.index()], true)
                    {
                        needs.extend(self.graph.reads(node).map(Need::Plain));
                    }
                }
                Need::Made(id) => {
                    self.uses[id.0] += 1;
                    if self.uses[id.0] > 1 {
                        continue;
                    }
                    match &self.made[id.0].make {
                        Make::Import { value, .. } => needs.push(Need::Plain(*value)),
                        make => needs.extend(inputs(make).map(|input| Need::Made(input.made))),
                    }
                }
            }
        }
    }

    /// Whether an activation is all of what was made.
    fn is_whole(&self, of: &Activation) -> bool {
        let made = &self.made[of.made.0];
        let same = of.shape.c == made.shape.c && of.shape.pixels() == made.shape.pixels();
        of.offset == 0 && same && !made.dense
    }

    /// Tables join the step before them; parts of concatenations find their place.
    fn fuse(&mut self) {
        for at in 0..self.made.len() {
            if self.uses[at] == 0 {
                continue;
            }
            // Taken out, so that others can be changed beside it.
            let mut make = std::mem::replace(&mut self.made[at].make, Make::Concat(vec![], Along::Channels));
            match &mut make {
                Make::Table { of, table } if self.uses[of.made.0] == 1 && self.is_whole(of) => {
                    let before = of.made;
                    if self.fuse_table(before, table) {
                        self.uses[before.0] = 0;
                        let step = std::mem::replace(
                            &mut self.made[before.0].make,
                            Make::Concat(vec![], Along::Channels),
                        );
                        self.made[at].node = self.made[before.0].node;
                        make = step;
                    }
                }
                Make::Concat(parts, along) => {
                    let mut offset = Offset::default();
                    for (of, table) in parts {
                        self.settle(MadeId(at), offset, of, table);
                        offset = offset.after(of.shape, *along);
                    }
                }
                _ => {}
            }
            self.made[at].make = make;
        }
    }

    fn fuse_table(&mut self, id: MadeId, table: &[u8; 256]) -> bool {
        match &mut self.made[id.0].make {
            Make::Step { operation, .. } => operation.fuse_table(table),
            _ => false,
        }
    }

    /// Writes a part where the concatenation wants it, if that can be.
    fn settle(
        &mut self,
        concat: MadeId,
        offset: Offset,
        of: &Activation,
        table: &mut Option<Box<[u8; 256]>>,
    ) {
        let part = of.made;
        if !self.is_whole(of) || self.homes[part.0].is_some() || self.made[concat.0].dense {
            return;
        }
        if let Some(needed) = table {
            if self.uses[part.0] != 1 || !self.fuse_table(part, needed) {
                return;
            }
            *table = None;
        }
        self.homes[part.0] = Some((concat, offset));
    }

    /// The plan, and what becomes of each node.
    pub(super) fn plan(self) -> Result<(Plan, Vec<Part>), String> {
        let levels = self.levels();
        let mut emission = Emission {
            levels: &levels,
            schedule: self,
            places: HashMap::new(),
            sizes: vec![],
            steps: vec![],
            slots: HashMap::new(),
            constants: vec![],
            values: 0,
            parts: vec![],
            readers: vec![],
            leaves: vec![],
        };
        emission.emit()?;
        let Emission { steps, constants, sizes, values, parts, slots, schedule, .. } = emission;
        let outputs = schedule.outputs.iter().map(|id| slots.get(id).copied());
        let outputs: Option<Vec<Slot>> = outputs.collect();
        let outputs = outputs.ok_or("an output is given by no step")?;
        Ok((Plan::new(steps, constants, outputs, &sizes, values), parts))
    }

    fn levels(&self) -> Levels {
        let mut levels =
            Levels { made: vec![0; self.made.len()], nodes: vec![0; self.runs.len()], highest: 0 };
        let mut next = 0;
        for (id, _, _) in self.graph.nodes() {
            while let Some(made) = self.made.get(next).filter(|made| made.at <= id) {
                levels.made[next] = match &made.make {
                    Make::Import { value, .. } => match self.graph.value(*value).source {
                        Source::Node(_) if !self.is_constant(*value) => self.plain_level(*value, &levels) + 1,
                        _ => 0,
                    },
                    make => inputs(make).map(|input| levels.made[input.made.0]).max().unwrap_or(0),
                };
                if self.uses[next] > 0 {
                    levels.highest = levels.highest.max(levels.made[next]);
                }
                next += 1;
            }
            if self.runs[id.index()] {
                let reads = self.graph.reads(id).map(|value| self.plain_level(value, &levels));
                levels.nodes[id.index()] = reads.max().unwrap_or(0);
                levels.highest = levels.highest.max(levels.nodes[id.index()]);
            }
        }
        levels
    }

    fn plain_level(&self, value: ValueId, levels: &Levels) -> usize {
        match (self.export(value), self.graph.value(value).source) {
            _ if self.is_constant(value) => 0,
            (Some((of, _)), _) => levels.made[of.made.0],
            (None, Source::Node(node)) => levels.nodes[node.index()],
            (None, _) => 0,
        }
    }
}

struct Levels {
    made: Vec<usize>,
    nodes: Vec<usize>,
    highest: usize,
}

fn inputs(make: &Make) -> impl Iterator<Item = &Activation> {
    let (some, one, parts): (&[Activation], _, &[(Activation, _)]) = match make {
        Make::Import { .. } => (&[], None, &[]),
        Make::Step { inputs, .. } => (inputs, None, &[]),
        Make::Table { of, .. } => (&[], Some(of), &[]),
        Make::Concat(parts, _) => (&[], None, parts),
    };
    some.iter().chain(one).chain(parts.iter().map(|(of, _)| of))
}

/// Steps as they are written down.
struct Emission<'a, 'b> {
    schedule: Schedule<'a>,
    levels: &'b Levels,
    places: HashMap<MadeId, Place>,
    /// Bytes of each buffer.
    sizes: Vec<usize>,
    steps: Vec<Step>,
    slots: HashMap<ValueId, Slot>,
    constants: Vec<Tensor>,
    /// Plain values that are computed.
    values: usize,
    parts: Vec<Part>,
    /// Plain nodes that read each value.
    readers: Vec<Vec<NodeId>>,
    /// Values that an output or an import reads.
    leaves: Vec<bool>,
}

impl Emission<'_, '_> {
    fn emit(&mut self) -> Result<(), String> {
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
        if let Some(place) = self.places.get(&id) {
            return *place;
        }
        let shape = self.schedule.made[id.0].shape;
        let place = match self.schedule.homes[id.0] {
            // Concatenations within concatenations: each lies in a later one, so that this ends.
            Some((concat, offset)) => offset.within(self.place(concat), shape),
            None => self.buffer(shape),
        };
        self.places.insert(id, place);
        place
    }

    fn place_of(&mut self, of: &Activation) -> Place {
        let place = self.place(of.made);
        let dense = self.schedule.made[of.made.0].dense;
        let stride = if dense { of.shape.c } else { place.stride };
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
        let dims = self.schedule.shapes.of(value).ok_or("what is exported has no shape")?.to_vec();
        let (from, to) = (self.place_of(&of), self.computed(value));
        let node = self.schedule.graph.producer(value).ok_or("what is exported is an input")?;
        let export = Export { order: of.order, dims, form };
        self.steps.push(Step { node, work: Work::Export { from, to, export } });
        Ok(())
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
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for value in &node.inputs {
                inputs.push(value.map(|value| self.slot(value)).transpose()?);
            }
            let outputs = node.outputs.iter().map(|value| value.map(|value| self.computed(value))).collect();
            self.steps.push(Step { node: *id, work: Work::Plain { inputs, outputs, call } });
            self.parts[id.index()] = Part::Plain(self.schedule.refused.get(id).copied());
        }
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
            if let Work::Bytes { .. } | Work::Import { .. } | Work::Export { .. } = step.work {
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

/// Types that an island's border can have.
pub(super) fn crosses(data_type: DataType) -> bool {
    matches!(
        data_type,
        DataType::Float
            | DataType::Uint8
            | DataType::Int8
            | DataType::Int32
            | DataType::Int64
            | DataType::Bool
    )
}
