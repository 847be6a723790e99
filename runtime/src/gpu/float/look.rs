//! What a node of a float network is to the GPU, read from the graph: functions of one value, factors and summands of each
//! channel, and who reads what.

use andon_shaders::activation;

use super::terms::Activation;
use crate::{
    cpu::Shape,
    graph::{Graph, NodeId, ValueId},
    onnx::TensorProto,
    shape::Shapes,
};

pub(super) struct Look<'a> {
    pub(super) graph: &'a Graph,
    pub(super) shapes: &'a Shapes,
    pub(super) wanted: &'a [ValueId],
    /// For each node whether something wanted depends on it.
    pub(super) live: Vec<bool>,
    /// For each value the live nodes that read it, once for each input.
    readers: Vec<Vec<NodeId>>,
}

/// What a value becomes on its way to another, and the nodes that do it.
pub(super) struct Step<T> {
    pub(super) what: T,
    pub(super) nodes: Vec<NodeId>,
    pub(super) to: ValueId,
}

impl<'a> Look<'a> {
    pub(super) fn new(graph: &'a Graph, shapes: &'a Shapes, wanted: &'a [ValueId]) -> Self {
        let count = graph.nodes().len();
        let (mut live, mut needed) = (vec![false; count], vec![false; graph.value_count()]);
        wanted.iter().for_each(|value| needed[value.index()] = true);
        let ids: Vec<NodeId> = graph.nodes().map(|(id, _, _)| id).collect();
        for id in ids.iter().rev() {
            let outputs = &graph.node(*id).outputs;
            // What follows from constants and shapes is there already.
            let computed =
                |value: &ValueId| needed[value.index()] && shapes.constant(graph, *value).is_none();
            if outputs.iter().flatten().any(computed) {
                live[id.index()] = true;
                graph.reads(*id).for_each(|value| needed[value.index()] = true);
            }
        }
        let mut readers = vec![vec![]; graph.value_count()];
        for id in ids.iter().filter(|id| live[id.index()]) {
            graph.reads(*id).for_each(|value| readers[value.index()].push(*id));
        }
        Self { graph, shapes, wanted, live, readers }
    }

    pub(super) fn op(&self, id: NodeId) -> &'a str {
        let proto = self.graph.proto(id);
        if matches!(&*proto.domain, "" | "ai.onnx") { &proto.op_type } else { "" }
    }

    pub(super) fn input(&self, id: NodeId, index: usize) -> Option<ValueId> {
        self.graph.node(id).inputs.get(index).copied().flatten()
    }

    pub(super) fn output(&self, id: NodeId) -> Result<ValueId, String> {
        let outputs = &self.graph.node(id).outputs;
        let others = outputs.iter().skip(1).flatten();
        if others.into_iter().any(|value| self.is_read(*value)) {
            return Err("more than its first output is read".into());
        }
        outputs.first().copied().flatten().ok_or_else(|| "it has no output".into())
    }

    fn is_read(&self, value: ValueId) -> bool {
        !self.readers[value.index()].is_empty() || self.wanted.contains(&value)
    }

    /// Nodes that read a value, if nobody else does.
    fn readers(&self, value: ValueId) -> &[NodeId] {
        if self.wanted.contains(&value) { &[] } else { &self.readers[value.index()] }
    }

    /// The one node that reads a value.
    pub(super) fn reader(&self, value: ValueId) -> Option<NodeId> {
        match self.readers(value) {
            [reader] => Some(*reader),
            _ => None,
        }
    }

    pub(super) fn constant(&self, value: ValueId) -> Option<&'a TensorProto> {
        self.shapes.constant(self.graph, value)
    }

    /// A constant of f32.
    pub(super) fn reals(&self, value: ValueId) -> Option<Vec<f32>> {
        self.constant(value)?.to_f32().ok()
    }

    /// An input that is left out, or a constant of one f32.
    pub(super) fn bound(&self, id: NodeId, index: usize, absent: f32) -> Option<f32> {
        match self.input(id, index) {
            None => Some(absent),
            Some(value) => match self.reals(value)?[..] {
                [bound] => Some(bound),
                _ => None,
            },
        }
    }

    pub(super) fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        self.shapes.of(a).is_some() && self.shapes.of(a) == self.shapes.of(b)
    }

    /// `[1, channels, height, width]`, or a row of channels.
    pub(super) fn shape(&self, value: ValueId) -> Result<Shape, String> {
        let dims = self.shapes.of(value).ok_or("a shape is not known")?;
        match *dims {
            [1, c, h, w] if c * h * w > 0 => Ok(Shape { h, w, c }),
            [1, c] if c > 0 => Ok(Shape { h: 1, w: 1, c }),
            _ => Err(format!("the shape {dims:?} is not that of one image")),
        }
    }

    /// What a node does to its first input, element by element.
    pub(super) fn function(&self, id: NodeId) -> Option<Activation> {
        let proto = self.graph.proto(id);
        let float = |name: &str, absent: f32| proto.float(name).unwrap_or(absent);
        let of = |kind, a, b| Some(Activation { kind, a, b });
        match self.op(id) {
            "Relu" => of(activation::CLIP, 0.0, f32::MAX),
            "Clip" if self.graph.opset() < 11 => {
                of(activation::CLIP, float("min", f32::MIN), float("max", f32::MAX))
            }
            "Clip" => of(activation::CLIP, self.bound(id, 1, f32::MIN)?, self.bound(id, 2, f32::MAX)?),
            "LeakyRelu" => of(activation::LEAKY, float("alpha", 0.01), 0.0),
            "PRelu" => of(activation::LEAKY, self.bound(id, 1, 0.0)?, 0.0),
            "Sigmoid" => of(activation::SIGMOID, 0.0, 0.0),
            "HardSigmoid" => of(activation::HARD_SIGMOID, float("alpha", 0.2), float("beta", 0.5)),
            "HardSwish" => of(activation::HARD_GATE, 1.0 / 6.0, 0.5),
            "Tanh" => of(activation::TANH, 0.0, 0.0),
            _ => None,
        }
    }

    /// A function of `value` that `id` computes, alone or with the product behind it: `x * sigmoid(x)` is one.
    pub(super) fn function_of(&self, value: ValueId, id: NodeId) -> Option<Step<Activation>> {
        if self.input(id, 0) != Some(value) {
            return None;
        }
        let what = self.function(id)?;
        let to = self.output(id).ok()?;
        let gate = match what.kind {
            activation::SIGMOID => Some(activation::GATE),
            activation::HARD_SIGMOID => Some(activation::HARD_GATE),
            _ => None,
        };
        if let (Some(kind), Some(product)) = (gate, self.reader(to))
            && self.op(product) == "Mul"
            && let (Some(a), Some(b)) = (self.input(product, 0), self.input(product, 1))
            && ((a, b) == (value, to) || (a, b) == (to, value))
            && let Ok(to) = self.output(product)
        {
            return Some(Step { what: Activation { kind, ..what }, nodes: vec![id, product], to });
        }
        Some(Step { what, nodes: vec![id], to })
    }

    /// The function of `value` that is all that is made of it.
    pub(super) fn function_behind(&self, value: ValueId) -> Option<Step<Activation>> {
        let readers = self.readers(value);
        let step = readers.iter().take(2).find_map(|id| self.function_of(value, *id))?;
        readers.iter().all(|id| step.nodes.contains(id)).then_some(step)
    }

    /// What a node multiplies each channel of `value` by, and what it adds then.
    pub(super) fn channelwise(&self, id: NodeId, value: ValueId) -> Option<(Vec<f32>, Vec<f32>)> {
        let Shape { c, .. } = self.shape(value).ok()?;
        if !self.same_shape(value, self.output(id).ok()?) {
            return None;
        }
        if self.op(id) == "BatchNormalization" {
            return self.normalisation(id, value).filter(|(scale, _)| scale.len() == c);
        }
        let inputs = [self.input(id, 0)?, self.input(id, 1)?];
        let first = inputs[0] == value;
        let values = self.per_channel(if first { inputs[1] } else { inputs[0] }, value, c)?;
        if !inputs.contains(&value) {
            return None;
        }
        let (ones, zeros) = (|| vec![1.0; c], || vec![0.0; c]);
        Some(match (self.op(id), first) {
            ("Add", _) => (ones(), values),
            ("Mul", _) => (values, zeros()),
            ("Sub", true) => (ones(), values.iter().map(|v| -v).collect()),
            ("Sub", false) => (vec![-1.0; c], values),
            ("Div", true) => (values.iter().map(|v| 1.0 / v).collect(), zeros()),
            _ => return None,
        })
    }

    /// A constant that has one element for each channel of `value`, or one for all.
    fn per_channel(&self, constant: ValueId, value: ValueId, channels: usize) -> Option<Vec<f32>> {
        let (dims, all) = (self.constant(constant)?.shape()?, self.shapes.of(value)?);
        let values = self.reals(constant)?;
        if let ([one], true) = (&values[..], dims.len() <= all.len()) {
            return Some(vec![*one; channels]);
        }
        // Dimensions are counted from the last.
        let behind = all.len() - 2;
        let (rest, ends) = dims.split_at(dims.len().checked_sub(behind + 1)?);
        let along = ends.first() == Some(&channels) && ends[1..].iter().all(|d| *d == 1);
        let fits = along && rest.len() <= 1 && rest.iter().all(|d| *d == 1);
        (fits && values.len() == channels).then_some(values)
    }

    fn normalisation(&self, id: NodeId, value: ValueId) -> Option<(Vec<f32>, Vec<f32>)> {
        let proto = self.graph.proto(id);
        if self.input(id, 0) != Some(value) || proto.int("training_mode").unwrap_or(0) != 0 {
            return None;
        }
        let list = |index| self.reals(self.input(id, index)?);
        let (scale, shift, mean, variance) = (list(1)?, list(2)?, list(3)?, list(4)?);
        if [&shift, &mean, &variance].iter().any(|list| list.len() != scale.len()) {
            return None;
        }
        let epsilon = f64::from(proto.float("epsilon").unwrap_or(1e-5));
        let factor = |(s, v): (&f32, &f32)| f64::from(*s) / (f64::from(*v) + epsilon).sqrt();
        let factors: Vec<f64> = scale.iter().zip(&variance).map(factor).collect();
        let rest = factors.iter().zip(shift.iter().zip(&mean));
        let shifts = rest.map(|(f, (shift, mean))| (f64::from(*shift) - f64::from(*mean) * f) as f32);
        Some((factors.iter().map(|f| *f as f32).collect(), shifts.collect()))
    }
}
