//! From a graph in Q/DQ form to a [`Plan`].
//!
//! Nodes are walked in order and each value gets a [`Form`]. An operator on dequantised values computes nothing at
//! first: it is pending until the `QuantizeLinear` behind it says what its bytes are to mean; then operator, activation and
//! requantisation become one step. All or nothing: a node that fits no step refuses the whole network, and says why.

use std::{fmt, rc::Rc};

use super::{
    kernels::{Target, rint},
    ops,
    plan::{BufferId, Entry, Exit, ExitForm, Operation, Place, Plan, Quantity, Shape, Step, Tail},
};
use crate::{
    graph::{Graph, NodeId, Source, ValueId},
    onnx::{DataType, TensorProto},
    shape::Shapes,
};

/// Why a network does not run on this engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) place: String,
    pub(crate) why: Refusal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no step for the operator.
    Operator,
    /// There is one, but not for this form of it.
    Form(&'static str),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why {
            Refusal::Operator => write!(f, "{}: no int8 step for this operator", self.place),
            Refusal::Form(why) => write!(f, "{}: {why}", self.place),
        }
    }
}

/// Bytes in a buffer, and what they mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Activation {
    pub(super) buffer: BufferId,
    pub(super) shape: Shape,
    pub(super) quantity: Quantity,
}

/// Makes the operation once the meaning of its result is known.
type Finish = Rc<dyn Fn(Quantity, Target) -> Result<Box<dyn Operation>, Refusal>>;

/// An operator that waits for its `QuantizeLinear`.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) node: NodeId,
    pub(super) inputs: [Place; 2],
    pub(super) shape: Shape,
    /// Real bounds of the result: what activations leave of it. `low <= high`.
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) finish: Finish,
    /// What it is if no `QuantizeLinear` follows; `None` if that has no form here.
    pub(super) float: Option<Float>,
}

/// Real values computed from bytes, which only an output may be.
#[derive(Clone)]
pub(super) struct Float {
    pub(super) from: Activation,
    pub(super) tail: Tail,
}

impl Pending {
    pub(super) fn new(
        node: NodeId,
        inputs: [Activation; 2],
        shape: Shape,
        finish: impl Fn(Quantity, Target) -> Result<Box<dyn Operation>, Refusal> + 'static,
    ) -> Self {
        let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
        let inputs = inputs.map(|a| Place::whole(a.buffer, a.shape));
        Self { node, inputs, shape, low, high, finish: Rc::new(finish), float: None }
    }
}

/// What an operator gives.
pub(super) enum Outcome {
    Pending(Pending),
    /// The same bytes, seen otherwise.
    Real(Activation),
    Float(Float),
}

enum Form {
    /// Index of a graph input.
    Input(usize),
    Bytes(Activation),
    Real(Activation),
    Pending(Pending),
    Float(Float),
}

/// A dequantised constant. Zero points are 0.
pub(super) struct Fixed<'a> {
    pub(super) tensor: &'a TensorProto,
    /// One, or one for each index of `axis`.
    pub(super) scales: Vec<f32>,
    pub(super) axis: i64,
}

pub(super) struct Lowering<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    /// By value.
    forms: Vec<Option<Form>>,
    /// Bytes of each buffer.
    sizes: Vec<usize>,
    entries: Vec<Entry>,
    steps: Vec<Step>,
}

/// `outputs`: the values wanted; quantised ones come as u8.
pub(super) fn lower(graph: &Graph, shapes: &Shapes, outputs: &[ValueId]) -> Result<Plan, Refused> {
    let forms = std::iter::repeat_with(|| None).take(graph.value_count()).collect();
    let mut lowering = Lowering { graph, shapes, forms, sizes: vec![], entries: vec![], steps: vec![] };
    for (i, (id, _)) in graph.inputs().enumerate() {
        lowering.forms[id.index()] = Some(Form::Input(i));
    }
    for (id, node, proto) in graph.nodes() {
        let place = || format!("node {:?} ({})", node.name, proto.op_type);
        lowering.node(id).map_err(|why| Refused { place: place(), why })?;
    }
    let exit = |id: &ValueId| {
        let place = || format!("output {:?}", graph.value(*id).name);
        lowering.exit(*id).map_err(|why| Refused { place: place(), why })
    };
    let exits = outputs.iter().map(exit).collect::<Result<_, _>>()?;
    let Lowering { sizes, entries, steps, .. } = lowering;
    Ok(Plan::new(entries, steps, exits, &sizes))
}

impl<'a> Lowering<'a> {
    pub(super) fn graph(&self) -> &'a Graph {
        self.graph
    }

    fn node(&mut self, id: NodeId) -> Result<(), Refusal> {
        let node = self.graph.node(id);
        let [Some(output), others @ ..] = &*node.outputs else {
            return Err(Refusal::Form("it has no first output"));
        };
        if others.iter().flatten().any(|other| self.graph.value(*other).readers > 0) {
            return Err(Refusal::Form("its second output is used"));
        }
        let form = match self.graph.proto(id).op_type.as_str() {
            // Constants are looked up by whoever reads them.
            "Constant" => None,
            "DequantizeLinear" if self.input(id, 0).is_some_and(|v| self.graph.constant(v).is_some()) => None,
            "QuantizeLinear" => Some(Form::Bytes(self.quantize(id)?)),
            "DequantizeLinear" => Some(Form::Real(self.dequantize(id)?)),
            _ => Some(match ops::lower(self, id)? {
                Outcome::Pending(pending) => Form::Pending(pending),
                Outcome::Real(activation) => Form::Real(activation),
                Outcome::Float(float) => Form::Float(float),
            }),
        };
        self.forms[output.index()] = form;
        Ok(())
    }

    /// The node's input `index`, if it is there.
    pub(super) fn input(&self, id: NodeId, index: usize) -> Option<ValueId> {
        self.graph.node(id).inputs.get(index).copied().flatten()
    }

    fn form(&self, id: NodeId, index: usize) -> Option<&Form> {
        self.forms[self.input(id, index)?.index()].as_ref()
    }

    /// Input `index` as bytes with a meaning.
    pub(super) fn activation(&self, id: NodeId, index: usize) -> Result<Activation, Refusal> {
        match self.form(id, index) {
            Some(Form::Real(activation)) => Ok(*activation),
            _ => Err(Refusal::Form("its input is not quantised")),
        }
    }

    /// Input `index` as real values of `[1, c]`, one for each channel.
    pub(super) fn vector(&self, id: NodeId, index: usize) -> Option<Float> {
        let float = match self.form(id, index)? {
            Form::Real(from) => Float { from: *from, tail: Tail::default() },
            Form::Pending(pending) => pending.float.clone()?,
            _ => return None,
        };
        let shape = float.from.shape;
        (float.tail.dense.is_none() && (float.tail.mean || shape.h * shape.w == 1)).then_some(float)
    }

    /// Input 0 as an operator that waits.
    pub(super) fn pending(&self, id: NodeId) -> Option<&Pending> {
        match self.form(id, 0) {
            Some(Form::Pending(pending)) => Some(pending),
            _ => None,
        }
    }

    pub(super) fn constant(&self, id: NodeId, index: usize) -> Option<&'a TensorProto> {
        self.graph.constant(self.input(id, index)?)
    }

    /// Input `index` as a dequantised constant.
    pub(super) fn fixed(&self, id: NodeId, index: usize) -> Option<Fixed<'a>> {
        let value = self.input(id, index)?;
        let Source::Node(producer) = self.graph.value(value).source else { return None };
        let proto = self.graph.proto(producer);
        let tensor = self.constant(producer, 0).filter(|_| proto.op_type == "DequantizeLinear")?;
        if proto.int("block_size").unwrap_or(0) != 0 {
            return None;
        }
        let scales = self.constant(producer, 1)?.to_f32().ok()?;
        if self.input(producer, 2).is_some() {
            let zeros = self.constant(producer, 2)?;
            let all_zero = match zeros.element_type().ok()? {
                DataType::Int8 => zeros.to_i8().ok()?.iter().all(|z| *z == 0),
                DataType::Int32 => zeros.to_i32().ok()?.iter().all(|z| *z == 0),
                _ => false,
            };
            if !all_zero {
                return None;
            }
        }
        Some(Fixed { tensor, scales, axis: proto.int("axis").unwrap_or(1) })
    }

    /// Height, width and channels of a value: `[1, c, h, w]` or `[1, c]`.
    pub(super) fn shape(&self, value: ValueId) -> Result<Shape, Refusal> {
        match self.shapes.of(value) {
            Some([1, c, h, w]) => Ok(Shape { h: *h, w: *w, c: *c }),
            Some([1, c]) => Ok(Shape { h: 1, w: 1, c: *c }),
            Some(_) => Err(Refusal::Form("a shape other than [1, C, H, W] or [1, C]")),
            None => Err(Refusal::Form("a shape that is not known")),
        }
    }

    pub(super) fn output_shape(&self, id: NodeId) -> Result<Shape, Refusal> {
        let output = self.graph.node(id).outputs.first().copied().flatten();
        self.shape(output.ok_or(Refusal::Form("it has no first output"))?)
    }

    fn buffer(&mut self, shape: Shape) -> BufferId {
        self.sizes.push(shape.bytes());
        BufferId(self.sizes.len() - 1)
    }

    /// Scale and zero point of a Q or DQ node: one of each, u8.
    fn quantity(&self, id: NodeId) -> Result<Quantity, Refusal> {
        let one = || {
            let [scale] = self.constant(id, 1)?.to_f32().ok()?[..] else { return None };
            let zero = match self.input(id, 2) {
                None => 0,
                Some(_) => {
                    let [zero] = self.constant(id, 2)?.to_u8().ok()?[..] else { return None };
                    zero
                }
            };
            (scale.is_normal() && scale > 0.0).then_some(Quantity { scale, zero })
        };
        one().ok_or(Refusal::Form("its scale and zero point are not one constant f32 and one constant u8"))
    }

    fn quantize(&mut self, id: NodeId) -> Result<Activation, Refusal> {
        let quantity = self.quantity(id)?;
        let value = self.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
        match &self.forms[value.index()] {
            Some(Form::Input(input)) => {
                if self.graph.data_type_of_input(value) != Some(DataType::Float) {
                    return Err(Refusal::Form("the graph's input is not f32"));
                }
                let (input, shape) = (*input, self.shape(value)?);
                let buffer = self.buffer(shape);
                self.entries.push(Entry { input, shape, quantity, buffer });
                Ok(Activation { buffer, shape, quantity })
            }
            Some(Form::Pending(pending)) => {
                let pending = pending.clone();
                let bound =
                    |real: f32| (rint(real / quantity.scale) + i32::from(quantity.zero)).clamp(0, 255) as u8;
                let target =
                    Target { zero: quantity.zero, low: bound(pending.low), high: bound(pending.high) };
                let operation = (pending.finish)(quantity, target)?;
                Ok(self.step(pending.node, pending.inputs, pending.shape, quantity, operation))
            }
            Some(Form::Real(from)) if from.quantity == quantity => Ok(*from),
            Some(Form::Real(from)) => {
                let from = *from;
                let operation = ops::requantise(from.quantity, quantity, from.shape);
                Ok(self.step(id, [Place::whole(from.buffer, from.shape); 2], from.shape, quantity, operation))
            }
            _ => Err(Refusal::Form("what it quantises is computed in float")),
        }
    }

    fn step(
        &mut self,
        node: NodeId,
        inputs: [Place; 2],
        shape: Shape,
        quantity: Quantity,
        operation: Box<dyn Operation>,
    ) -> Activation {
        let buffer = self.buffer(shape);
        self.steps.push(Step { node, inputs, output: Place::whole(buffer, shape), operation });
        Activation { buffer, shape, quantity }
    }

    fn dequantize(&self, id: NodeId) -> Result<Activation, Refusal> {
        match self.form(id, 0) {
            Some(Form::Bytes(bytes)) => Ok(Activation { quantity: self.quantity(id)?, ..*bytes }),
            _ => Err(Refusal::Form("what it dequantises is no result of a QuantizeLinear")),
        }
    }

    /// A node that gives its input another shape, as long as no byte moves.
    pub(super) fn reshape(&self, id: NodeId) -> Result<Outcome, Refusal> {
        let to = self.output_shape(id)?;
        let stays = |from: Shape| from == to || (from.h * from.w == 1 && to.h * to.w == 1 && from.c == to.c);
        if let Some(pending) = self.pending(id).filter(|pending| stays(pending.shape)) {
            return Ok(Outcome::Pending(Pending { shape: to, ..pending.clone() }));
        }
        let from = self.activation(id, 0)?;
        if !stays(from.shape) {
            return Err(Refusal::Form("it would move channels"));
        }
        Ok(Outcome::Real(Activation { shape: to, ..from }))
    }

    fn exit(&self, value: ValueId) -> Result<Exit, Refusal> {
        let dims = self.shapes.of(value).ok_or(Refusal::Form("its shape is not known"))?.to_vec();
        let (from, form) = match &self.forms[value.index()] {
            Some(Form::Bytes(bytes)) => (bytes, ExitForm::Bytes),
            Some(Form::Real(real)) => (real, ExitForm::Real(Tail::default())),
            Some(Form::Float(float) | Form::Pending(Pending { float: Some(float), .. })) => {
                (&float.from, ExitForm::Real(float.tail.clone()))
            }
            _ => return Err(Refusal::Form("it is computed in float")),
        };
        Ok(Exit { buffer: from.buffer, shape: from.shape, dims, quantity: from.quantity, form })
    }
}
