//! From forms to a [`Plan`]: what the wanted outputs need, in which order, and where it lies.
//!
//! A value is needed plain, as bytes, or both. Needs go backwards: plain readers of bytes get an export, byte steps on
//! plain values an import, and whatever nothing needs is left out. Then tables join the steps before them, parts of a
//! concatenation are written in place, and plain nodes are grouped into islands by *level*: an island's level is the
//! highest among the values that it reads, and bytes imported from level `n` have level `n + 1`. All plain nodes of one
//! level form one island; since what it reads through byte steps has its own level at most, it can never wait for itself.

use std::{collections::HashMap, sync::Arc};

use super::{
    convert::{Form as Exported, reals},
    dealing::Dealing,
    emission::Emission,
    forms::{Activation, Along, Form, Made, MadeId, Make, Refusal},
    kernels::Sum,
    lower::Lowering,
    plan::{Place, Plan, Shape, Slot},
};
use crate::{
    graph::{Graph, NodeId, Source, ValueId},
    onnx::DataType,
    shape::Shapes,
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
    pub(super) graph: &'a Graph,
    pub(super) shapes: &'a Shapes,
    pub(super) outputs: &'a [ValueId],
    /// By value, whether it is one of them.
    wanted: Vec<bool>,
    pub(super) forms: Vec<Form>,
    pub(super) made: Vec<Made>,
    pub(super) refused: HashMap<NodeId, Refusal>,
    /// How many read what was made; by [`MadeId`].
    pub(super) uses: Vec<u32>,
    /// Values needed as tensors, and nodes that compute some of them.
    pub(super) plain: Vec<bool>,
    pub(super) runs: Vec<bool>,
    /// Inside which concatenation something is made, and behind what.
    pub(super) homes: Vec<Option<(MadeId, Offset)>>,
}

/// How far a part of a concatenation lies behind its first byte.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Offset {
    channels: usize,
    pixels: usize,
}

impl Offset {
    /// Behind one more part.
    pub(super) fn after(self, part: Shape, along: Along) -> Self {
        match along {
            Along::Channels => Self { channels: self.channels + part.c, ..self },
            Along::Pixels => Self { pixels: self.pixels + part.pixels(), ..self },
        }
    }

    pub(super) fn within(self, around: Place, shape: Shape) -> Place {
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
        let mut wanted = vec![false; forms.len()];
        outputs.iter().for_each(|value| wanted[value.index()] = true);
        let mut schedule = Self {
            graph,
            shapes,
            outputs,
            wanted,
            uses: vec![0; made.len()],
            homes: vec![None; made.len()],
            plain: vec![false; forms.len()],
            runs: vec![false; graph.nodes().len()],
            refused: refused.into_iter().collect(),
            forms,
            made,
        };
        schedule.need();
        schedule.factor();
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

    pub(super) fn is_constant(&self, value: ValueId) -> bool {
        self.shapes.constant(self.graph, value).is_some()
    }

    /// How a plain value comes from bytes.
    pub(super) fn export(&self, value: ValueId) -> Option<(Activation, Exported)> {
        let (of, form) = match &self.forms[value.index()] {
            Form::Bytes(of) if of.signed => (*of, Exported::I8),
            Form::Bytes(of) => (*of, Exported::U8),
            Form::Real(of) => (*of, Exported::Real(Box::new(reals(of.quantity)))),
            Form::Curve(curve) => (curve.of, Exported::Real(Box::new(*curve.values))),
            Form::Mean(of, _) => (*of, Exported::Mean(of.quantity)),
            Form::Index(of) => (*of, Exported::Index),
            Form::Plain | Form::Taken | Form::Pending(_) | Form::Concat(_) => return None,
        };
        // What was plain a moment ago can stay it, unless the bytes themselves are asked for.
        let imported = matches!(self.made[of.made.0].make, Make::Import { .. });
        let asked = matches!(self.forms[value.index()], Form::Bytes(_)) && self.wanted[value.index()];
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
                Make::Step { inputs, operation } => {
                    if let Some(sum) = operation.residual()
                        && let Some((before, step)) = self.fuse_residual(inputs, sum)
                    {
                        self.made[at].node = self.made[before.0].node;
                        make = step;
                    }
                }
                Make::Concat(parts, along) => {
                    let mut offset = Offset::default();
                    let mut rest = &mut parts[..];
                    while let Some((of, _)) = rest.first() {
                        let made = of.made;
                        let together = self.together(rest, *along);
                        if together > 1 {
                            self.homes[made.0] = Some((MadeId(at), offset));
                        }
                        let (these, others) = rest.split_at_mut(together);
                        for (of, table) in these {
                            if together == 1 {
                                self.settle(MadeId(at), offset, of, table);
                            }
                            offset = offset.after(of.shape, *along);
                        }
                        rest = others;
                    }
                }
                _ => {}
            }
            self.made[at].make = make;
        }
    }

    /// Something that is only ever looked up, in several tables: if all of them follow from one, the others look up what
    /// that one gave, so that it can join the step before it.
    fn factor(&mut self) {
        for at in 0..self.made.len() {
            let Make::Table { of, table } = &self.made[at].make else { continue };
            let (base, first) = (of.made, table.clone());
            if self.uses[at] == 0 || self.uses[base.0] < 2 || !self.is_whole(of) {
                continue;
            }
            // All that look it up, and what they look up in what the first gave.
            let mut others: Vec<(usize, usize, [u8; 256])> = vec![];
            for (user, made) in self.made.iter().enumerate().skip(at + 1).filter(|(u, _)| self.uses[*u] > 0) {
                for (part, (of, table)) in lookups(&made.make).enumerate() {
                    if of.made == base
                        && let Some(rest) = table.and_then(|table| behind(&first, table))
                    {
                        others.push((user, part, rest));
                    }
                }
            }
            if others.len() + 1 != self.uses[base.0] as usize {
                continue;
            }
            self.uses[base.0] = 1;
            self.uses[at] += others.len() as u32;
            for (user, part, rest) in others {
                match &mut self.made[user].make {
                    Make::Table { of, table } => (of.made, **table) = (MadeId(at), rest),
                    Make::Concat(parts, _) => {
                        let (of, table) = &mut parts[part];
                        of.made = MadeId(at);
                        *table = first.iter().any(|q| rest[usize::from(*q)] != *q).then(|| Box::new(rest));
                    }
                    Make::Import { .. } | Make::Step { .. } => {}
                }
            }
        }
    }

    fn fuse_table(&mut self, id: MadeId, table: &[u8; 256]) -> bool {
        match &mut self.made[id.0].make {
            Make::Step { operation, .. } => operation.fuse_table(table),
            _ => false,
        }
    }

    /// The step that gives one of a sum's two inputs, if it can do the addition too and nobody else needs what it gave.
    fn fuse_residual(&mut self, inputs: &[Activation], sum: Sum) -> Option<(MadeId, Make)> {
        let [a, b] = inputs else { return None };
        let (before, skip) =
            [(a, b, false), (b, a, true)].into_iter().find_map(|(product, skip, first)| {
                let alone = self.uses[product.made.0] == 1 && product.made != skip.made;
                let whole = alone && self.is_whole(product);
                let Make::Step { inputs, operation } = &mut self.made[product.made.0].make else {
                    return None;
                };
                let fused = whole && inputs.len() == 1 && operation.fuse_residual(sum, first);
                fused.then_some((product.made, *skip))
            })?;
        if let Make::Step { inputs, .. } = &mut self.made[before.0].make {
            inputs.push(skip);
        }
        self.uses[before.0] = 0;
        let gone = Make::Concat(vec![], Along::Channels);
        Some((before, std::mem::replace(&mut self.made[before.0].make, gone)))
    }

    /// How many of the first parts are all channels of one thing in their order, as a Split leaves them, so that it can
    /// lie there as a whole; otherwise 1.
    fn together(&self, parts: &[(Activation, Option<Box<[u8; 256]>>)], along: Along) -> usize {
        let Some((first, _)) = parts.first() else { return 1 };
        let made = &self.made[first.made.0];
        let free = self.homes[first.made.0].is_none() && !made.dense && along == Along::Channels;
        let mut channels = 0;
        for (count, (of, table)) in (1..).zip(parts) {
            let next = of.made == first.made && of.offset == channels && table.is_none();
            if !free || !next || of.shape.pixels() != made.shape.pixels() {
                return 1;
            }
            channels += of.shape.c;
            if channels == made.shape.c {
                return count;
            }
        }
        1
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
            pool: Arc::default(),
            dealing: Dealing::default(),
        };
        emission.emit()?;
        let Emission { steps, constants, sizes, values, parts, slots, schedule, pool, .. } = emission;
        let outputs = schedule.outputs.iter().map(|id| slots.get(id).copied());
        let outputs: Option<Vec<Slot>> = outputs.collect();
        let outputs = outputs.ok_or("an output is given by no step")?;
        Ok((Plan::new(steps, constants, outputs, &sizes, values, pool), parts))
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

pub(super) struct Levels {
    pub(super) made: Vec<usize>,
    pub(super) nodes: Vec<usize>,
    pub(super) highest: usize,
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

/// A part of a concatenation, and what it is looked up in first.
type Joined = (Activation, Option<Box<[u8; 256]>>);

/// What is looked up, part by part, and in which table.
fn lookups(make: &Make) -> impl Iterator<Item = (&Activation, Option<&[u8; 256]>)> {
    let (one, parts): (_, &[Joined]) = match make {
        Make::Table { of, table } => (Some((of, Some(&**table))), &[]),
        Make::Concat(parts, _) => (None, parts),
        Make::Import { .. } | Make::Step { .. } => (None, &[]),
    };
    one.into_iter().chain(parts.iter().map(|(of, table)| (of, table.as_deref())))
}

/// The table that makes `all` of `first`, if one does.
fn behind(first: &[u8; 256], all: &[u8; 256]) -> Option<[u8; 256]> {
    let mut rest = [None; 256];
    for (q, all) in first.iter().zip(all) {
        if *rest[usize::from(*q)].get_or_insert(*all) != *all {
            return None;
        }
    }
    Some(rest.map(Option::unwrap_or_default))
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
