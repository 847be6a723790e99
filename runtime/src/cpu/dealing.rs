//! Plain tensors that get their elements straight from bytes, piece by piece: [`Dealing`].
//!
//! Detectors end in a plain concatenation, along pixels, of what several scales gave, which is then cut by channels, put
//! through a function and concatenated once more. All of that only moves real values of bytes, or looks them up, so that
//! each scale's channels can be dealt to where they end, through a table each.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::{convert::Form as Exported, emission::Emission, plan::Order};
use crate::{
    graph::{NodeId, ValueId},
    plain,
    shape::slice_along,
    tensor::{Data, Tensor},
};

#[derive(Default)]
pub(super) struct Dealing {
    /// Of each value that is dealt where its pieces go.
    pub(super) targets: HashMap<ValueId, Vec<Target>>,
    /// Nodes whose work is done by that.
    pub(super) done: HashSet<NodeId>,
    /// Concatenations of which some inputs, by number, are dealt.
    pub(super) gathers: HashMap<NodeId, HashSet<usize>>,
}

/// Some channels of what is dealt, and a place in a tensor `[1, rows, columns]`.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) whole: ValueId,
    pub(super) channels: Range<usize>,
    /// The first channel's.
    pub(super) row: usize,
    pub(super) column: usize,
    /// What each value goes through.
    pub(super) function: Option<NodeId>,
}

impl Target {
    /// The real value of each byte, after the function.
    pub(super) fn values(
        &self,
        graph: &crate::graph::Graph,
        values: Box<[f32; 256]>,
    ) -> Result<Box<[f32; 256]>, String> {
        let Some(function) = self.function else { return Ok(values) };
        let call = plain::Call::of(graph, function).ok_or("a function that is not known")?;
        let values = Tensor::f32(vec![256], values.to_vec()).map_err(|e| e.to_string())?;
        match call.run(&[Some(&values)])?.pop().map(Tensor::into_data) {
            Some(Data::F32(values)) => {
                values.try_into().map_err(|_| "a function of more than one value".into())
            }
            _ => Err("a function that gives no f32".into()),
        }
    }
}

impl Emission<'_, '_> {
    /// Finds concatenations of f32 whose parts can be dealt: along the last dimension, of parts that nobody else reads, in
    /// a level whose nodes are all operators of ours.
    pub(super) fn dealing(&self) -> Dealing {
        let graph = self.schedule.graph;
        let mut dealing = Dealing::default();
        for (id, _, proto) in graph.nodes() {
            if self.schedule.runs[id.index()] && proto.op_type == "Concat" && self.is_own(id) {
                self.deal(id, &mut dealing);
            }
        }
        dealing
    }

    /// `None` if the concatenation's parts cannot be dealt.
    fn deal(&self, id: NodeId, dealing: &mut Dealing) -> Option<()> {
        let (node, proto) = (self.schedule.graph.node(id), self.schedule.graph.proto(id));
        let [Some(whole)] = node.outputs[..] else { return None };
        let [1, channels, columns] = *self.schedule.shapes.of(whole)? else { return None };
        if !matches!(proto.int("axis"), Some(2 | -1)) || columns == 0 {
            return None;
        }
        let mut column = 0;
        let part = |value: &Option<ValueId>| {
            let value = (*value)?;
            let (of, form) = self.schedule.export(value).filter(|_| !self.schedule.is_constant(value))?;
            let real = matches!(form, Exported::Real(_)) && of.order == Order::ChannelsLast;
            let pixels = of.shape.pixels();
            let fits = self.schedule.shapes.of(value)? == [1, channels, pixels] && of.shape.c == channels;
            let start = column;
            column += pixels;
            (real && fits && pixels > 1 && self.only_reader(value)? == id).then_some((value, start))
        };
        let parts: Vec<(ValueId, usize)> = node.inputs.iter().map(part).collect::<Option<_>>()?;
        let distinct = parts.iter().map(|(value, _)| value).collect::<HashSet<_>>().len() == parts.len();
        if parts.len() < 2 || !distinct || column != columns {
            return None;
        }
        dealing.done.insert(id);
        let slices = self.slices(whole, channels, columns);
        let cut = slices.unwrap_or_else(|| vec![(None, whole, 0..channels)]);
        let mut targets = vec![];
        for (slice, value, channels) in cut {
            dealing.done.extend(slice);
            let mut target = Target { whole: value, channels, row: 0, column: 0, function: None };
            if let Some((function, result)) = self.function_of(value) {
                dealing.done.insert(function);
                (target.whole, target.function) = (result, Some(function));
            }
            if let Some((concat, number, row, result)) = self.gathered(target.whole, columns) {
                dealing.gathers.entry(concat).or_default().insert(number);
                (target.whole, target.row) = (result, row);
            }
            targets.push(target);
        }
        for (value, column) in parts {
            let here = targets.iter().map(|target| Target { column, ..target.clone() });
            dealing.targets.insert(value, here.collect());
        }
        Some(())
    }

    /// Whether a node and all others of its level are operators of ours.
    fn is_own(&self, id: NodeId) -> bool {
        let (schedule, level) = (&self.schedule, self.levels.nodes[id.index()]);
        schedule.graph.nodes().all(|(id, _, _)| {
            let counts = schedule.runs[id.index()] && self.levels.nodes[id.index()] == level;
            !counts || plain::is_light(schedule.graph, schedule.shapes, id)
        })
    }

    /// The one node that reads a value, once, if nothing else needs it.
    fn only_reader(&self, value: ValueId) -> Option<NodeId> {
        let [reader] = self.readers[value.index()][..] else { return None };
        (!self.leaves[value.index()]).then_some(reader)
    }

    /// All that reads a value, if each takes some of its channels: the node, what it gives, and which.
    #[expect(clippy::type_complexity, reason = "what the sentence says")]
    fn slices(
        &self,
        value: ValueId,
        channels: usize,
        columns: usize,
    ) -> Option<Vec<(Option<NodeId>, ValueId, Range<usize>)>> {
        let readers = &self.readers[value.index()];
        if self.leaves[value.index()] || readers.is_empty() {
            return None;
        }
        let (graph, shapes) = (self.schedule.graph, self.schedule.shapes);
        let slice = |id: &NodeId| {
            let (node, proto) = (graph.node(*id), graph.proto(*id));
            let ([Some(result)], "Slice", true) = (&node.outputs[..], &*proto.op_type, self.is_own(*id))
            else {
                return None;
            };
            let along = slice_along(graph, shapes, *id)?;
            let [batch, own, rest] = &along[..] else { return None };
            let range = *own.first()?..own.last()? + 1;
            let whole = batch == &[0] && rest.iter().copied().eq(0..columns);
            let fits = whole && range.end <= channels && own.iter().copied().eq(range.clone());
            fits.then_some((Some(*id), *result, range))
        };
        readers.iter().map(slice).collect()
    }

    /// What reads a value and gives a function of each element of it.
    fn function_of(&self, value: ValueId) -> Option<(NodeId, ValueId)> {
        let id = self.only_reader(value).filter(|id| self.is_own(*id))?;
        let (node, proto) = (self.schedule.graph.node(id), self.schedule.graph.proto(id));
        let ([Some(_)], [Some(result)]) = (&node.inputs[..], &node.outputs[..]) else { return None };
        plain::function(proto).map(|_| (id, *result))
    }

    /// The concatenation along channels that reads a value: it, the value's number, the row that it begins at, the result.
    fn gathered(&self, value: ValueId, columns: usize) -> Option<(NodeId, usize, usize, ValueId)> {
        let id = self.only_reader(value).filter(|id| self.is_own(*id))?;
        let (node, proto) = (self.schedule.graph.node(id), self.schedule.graph.proto(id));
        let ([Some(result)], "Concat", Some(1 | -2)) =
            (&node.outputs[..], &*proto.op_type, proto.int("axis"))
        else {
            return None;
        };
        let rows = |value: &Option<ValueId>| match self.schedule.shapes.of((*value)?)? {
            [1, rows, length] if *length == columns => Some(*rows),
            _ => None,
        };
        let rows: Vec<usize> = node.inputs.iter().map(rows).collect::<Option<_>>()?;
        let number = node.inputs.iter().position(|input| *input == Some(value))?;
        Some((id, number, rows[..number].iter().sum(), *result))
    }
}
