//! From a graph to what its nodes become on bytes: a [`Form`] for each value and a list of activations to be [`Made`].
//!
//! Nodes are walked in order. An operator on dequantised values computes nothing at first: it is pending until the
//! `QuantizeLinear` behind it says what its bytes are to mean; then operator, activation and requantisation become one
//! step. A node that has no byte step leaves its outputs plain, and says why. Nothing is decided here about what is
//! really computed: [`super::schedule`] takes what the outputs need.

mod quantised;

use std::rc::Rc;

pub(crate) use super::forms::Refusal;
pub(super) use super::forms::{
    Activation, Along, Concat, Curve, Finished, Fixed, Form, Made, MadeId, Make, Outcome, Pending,
};

use super::{
    convert::{Import, reals},
    describe::Sources,
    forms::integers,
    kernels::Isa,
    ops,
    plan::{Operation, Order, Quantity, Shape},
};
use crate::{
    graph::{Graph, NodeId, Source, ValueId},
    onnx::{DataType, TensorProto},
    shape::Shapes,
};

/// How steps keep their weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing {
    /// What they are packed for.
    pub(super) isa: Isa,
    pub(super) sources: Sources,
}

pub(super) struct Lowering<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    packing: Packing,
    /// By value.
    pub(super) forms: Vec<Form>,
    pub(super) made: Vec<Made>,
    current: NodeId,
    /// Nodes that gave no bytes.
    pub(super) refused: Vec<(NodeId, Refusal)>,
    /// How often each node's operator was made a step of.
    finished: Vec<usize>,
}

pub(super) fn lower<'a>(graph: &'a Graph, shapes: &'a Shapes, packing: Packing) -> Lowering<'a> {
    let forms = vec![Form::Plain; graph.value_count()];
    let mut lowering = Lowering {
        graph,
        shapes,
        packing,
        forms,
        made: vec![],
        current: NodeId::default(),
        refused: vec![],
        finished: vec![0; graph.nodes().len()],
    };
    for (id, _, _) in graph.nodes() {
        lowering.current = id;
        if let Err(why) = lowering.node(id) {
            lowering.refused.push((id, why));
        }
    }
    lowering
}

/// An operator may be quantised in so many ways; each has weights and tables of its own.
const FINISHED_MAX: usize = 8;

const NOT_QUANTISED: Refusal = Refusal::Form("its input is not quantised");
const OTHER_SHAPE: Refusal = Refusal::Form("its result has another shape than it would get");

impl<'a> Lowering<'a> {
    pub(super) fn packing(&self) -> Packing {
        self.packing
    }

    pub(super) fn graph(&self) -> &'a Graph {
        self.graph
    }

    pub(super) fn shapes(&self) -> &'a Shapes {
        self.shapes
    }

    fn node(&mut self, id: NodeId) -> Result<(), Refusal> {
        let node = self.graph.node(id);
        let proto = self.graph.proto(id);
        if !matches!(&*proto.domain, "" | "ai.onnx") {
            return Err(Refusal::Operator);
        }
        let [Some(output), others @ ..] = &*node.outputs else {
            return Err(Refusal::Form("it has no first output"));
        };
        let form = match proto.op_type.as_str() {
            // Constants are looked up by whoever reads them.
            "Constant" => Form::Plain,
            "DequantizeLinear" if self.constant(id, 0).is_some() => Form::Plain,
            "QuantizeLinear" => Form::Bytes(self.quantize(id)?),
            "DequantizeLinear" => Form::Real(self.dequantize(id)?),
            _ => match ops::lower(self, id)? {
                Outcome::Parts(parts) => {
                    let outputs = || node.outputs.iter().zip(&parts);
                    for (output, part) in outputs() {
                        output.map_or(Ok(()), |output| self.lies_as(output, part.shape, part.order))?;
                    }
                    for (output, part) in node.outputs.iter().zip(parts) {
                        if let Some(output) = output {
                            self.forms[output.index()] = Form::Real(part);
                        }
                    }
                    return Ok(());
                }
                _ if others.iter().flatten().any(|other| self.graph.value(*other).readers > 0) => {
                    return Err(Refusal::Form("its second output is used"));
                }
                Outcome::Pending(pending) => Form::Pending(pending),
                Outcome::Real(activation) => Form::Real(activation),
                Outcome::Curve(curve) => Form::Curve(curve),
                Outcome::Mean(of, pending) => Form::Mean(of, pending),
                Outcome::Index(of) => Form::Index(of),
                Outcome::Concat(concat) => Form::Concat(concat),
            },
        };
        self.agrees(*output, &form)?;
        self.forms[output.index()] = form;
        Ok(())
    }

    /// Whether a value's bytes lie as its shape says; where they do not, somebody would read others than are there.
    fn agrees(&self, value: ValueId, form: &Form) -> Result<(), Refusal> {
        let fits = match form {
            Form::Plain | Form::Taken => true,
            Form::Bytes(of) | Form::Real(of) | Form::Curve(Curve { of, .. }) => {
                return self.lies_as(value, of.shape, of.order);
            }
            Form::Pending(Pending { shape, order, .. }) | Form::Concat(Concat { shape, order, .. }) => {
                return self.lies_as(value, *shape, *order);
            }
            Form::Mean(of, pending) => {
                self.lies_as(value, pending.shape, pending.order)?;
                pending.shape.bytes() == of.shape.c
            }
            // One number a pixel, without the dimension that it is an index of.
            Form::Index(of) => self.shapes.elements(value) == Some(of.shape.pixels()),
        };
        if fits { Ok(()) } else { Err(OTHER_SHAPE) }
    }

    fn lies_as(&self, value: ValueId, shape: Shape, order: Order) -> Result<(), Refusal> {
        if self.shape_in(value, order)? == shape { Ok(()) } else { Err(OTHER_SHAPE) }
    }

    /// The node's input `index`, if it is there.
    pub(super) fn input(&self, id: NodeId, index: usize) -> Option<ValueId> {
        self.graph.node(id).inputs.get(index).copied().flatten()
    }

    fn form(&self, id: NodeId, index: usize) -> &Form {
        self.input(id, index).map_or(&Form::Plain, |value| &self.forms[value.index()])
    }

    /// Input `index` as bytes with a meaning.
    pub(super) fn activation(&self, id: NodeId, index: usize) -> Result<Activation, Refusal> {
        match self.form(id, index) {
            Form::Real(activation) => Ok(*activation),
            _ => Err(NOT_QUANTISED),
        }
    }

    /// Input `index` with its channels last.
    pub(super) fn channels_last(&mut self, id: NodeId, index: usize) -> Result<Activation, Refusal> {
        let activation = self.activation(id, index)?;
        match self.input(id, index) {
            Some(value) => self.ordered(id, activation, value, Order::ChannelsLast),
            None => Err(NOT_QUANTISED),
        }
    }

    /// An activation that is `value` to ONNX, in the order asked for: moved there by `id` if it has to be.
    pub(super) fn ordered(
        &mut self,
        id: NodeId,
        activation: Activation,
        value: ValueId,
        order: Order,
    ) -> Result<Activation, Refusal> {
        if activation.order == order {
            return Ok(activation);
        }
        // A single byte is one pixel of one channel, whatever its dimensions.
        if activation.shape.bytes() == 1 {
            return Ok(Activation { order, ..activation });
        }
        let shape = self.shape_in(value, order)?;
        // One pixel lies the same either way, but what were its channels may be pixels.
        if activation.shape.pixels() == 1 {
            return self.reshaped(id, activation, shape, order);
        }
        let operation = ops::reorder(activation.shape, activation.order, shape);
        let quantity = activation.quantity;
        let made = self.step(id, &[activation], shape, operation);
        Ok(Activation { made, offset: 0, shape, order, quantity, ..activation })
    }

    /// Input `index` in an order, a quantised constant too.
    pub(super) fn operand(&mut self, id: NodeId, index: usize, order: Order) -> Result<Activation, Refusal> {
        let value = self.input(id, index).ok_or(NOT_QUANTISED)?;
        if let Ok(activation) = self.activation(id, index) {
            return self.ordered(id, activation, value, order);
        }
        let producer = self.graph.producer(value).ok_or(NOT_QUANTISED)?;
        let tensor = self.constant(producer, 0).ok_or(NOT_QUANTISED)?;
        if self.graph.proto(producer).op_type != "DequantizeLinear" {
            return Err(NOT_QUANTISED);
        }
        let (quantity, signed) = self.quantity(producer)?;
        let (bytes, quantity, signed) = match (tensor.to_u8(), tensor.to_i8()) {
            (Ok(bytes), _) if signed != Some(true) => (bytes, quantity, false),
            (_, Ok(bytes)) if signed != Some(false) => {
                let zero = if signed.is_some() { quantity.zero } else { 0x80 };
                (bytes.into_iter().map(|q| q as u8 ^ 0x80).collect(), Quantity { zero, ..quantity }, true)
            }
            _ => return Err(NOT_QUANTISED),
        };
        let shape = self.shape_in(value, Order::RowMajor)?;
        let made = self.step(id, &[], shape, ops::constant(bytes, shape));
        let activation = Activation { made, offset: 0, shape, order: Order::RowMajor, quantity, signed };
        self.ordered(id, activation, value, order)
    }

    /// What an activation is looked up in, and how: itself and the table that changes nothing, if it is no table's.
    pub(super) fn base(&self, of: Activation) -> (Activation, Rc<[u8; 256]>) {
        let (base, table) = self.composed(of, std::array::from_fn(|q| q as u8));
        (base, Rc::from(table))
    }

    /// Real values that follow from one byte each: a curve, or the bytes of an activation.
    pub(super) fn curve(&self, id: NodeId, index: usize) -> Result<Curve, Refusal> {
        match self.form(id, index) {
            Form::Curve(curve) => Ok(curve.clone()),
            Form::Real(of) => Ok(Curve { of: *of, values: Rc::new(reals(of.quantity)) }),
            _ => Err(NOT_QUANTISED),
        }
    }

    /// Input 0 as an operator that waits.
    pub(super) fn pending(&self, id: NodeId) -> Option<&Pending> {
        match self.form(id, 0) {
            Form::Pending(pending) => Some(pending),
            _ => None,
        }
    }

    pub(super) fn constant(&self, id: NodeId, index: usize) -> Option<&'a TensorProto> {
        self.shapes.constant(self.graph, self.input(id, index)?)
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
        let zeros = match self.input(producer, 2) {
            Some(_) => integers(self.constant(producer, 2)?)?,
            None => vec![0],
        };
        let fits = !scales.is_empty() && (zeros.len() == 1 || zeros.len() == scales.len());
        fits.then(|| Fixed { tensor, scales, zeros, axis: proto.int("axis").unwrap_or(1) })
    }

    /// The constants that a node has as input `index`, as f32: plain, or dequantised.
    pub(super) fn reals(&self, id: NodeId, index: usize) -> Option<Vec<f32>> {
        self.constant(id, index)?.to_f32().ok()
    }

    /// How a value lies in memory in that order.
    pub(super) fn shape_in(&self, value: ValueId, order: Order) -> Result<Shape, Refusal> {
        let dims = self.shapes.of(value).ok_or(Refusal::Form("a shape that is not known"))?;
        match (order, dims) {
            (_, dims) if dims.contains(&0) => Err(Refusal::Form("it is empty")),
            (Order::ChannelsLast, [1, c, h, w]) => Ok(Shape { h: *h, w: *w, c: *c }),
            (Order::ChannelsLast, [1, c, l]) => Ok(Shape { h: 1, w: *l, c: *c }),
            (Order::ChannelsLast, [1, c]) => Ok(Shape { h: 1, w: 1, c: *c }),
            (Order::ChannelsLast, _) => {
                Err(Refusal::Form("a shape other than [1, C, H, W], [1, C, L] or [1, C]"))
            }
            (Order::RowMajor, [rows @ .., c]) => Ok(Shape { h: 1, w: rows.iter().product(), c: *c }),
            (Order::RowMajor, []) => Ok(Shape { h: 1, w: 1, c: 1 }),
        }
    }

    /// The first output's, with channels last.
    pub(super) fn output_shape(&self, id: NodeId) -> Result<Shape, Refusal> {
        self.shape_in(self.output(id)?, Order::ChannelsLast)
    }

    pub(super) fn output(&self, id: NodeId) -> Result<ValueId, Refusal> {
        let output = self.graph.node(id).outputs.first().copied().flatten();
        output.ok_or(Refusal::Form("it has no first output"))
    }

    /// Input 0 as bytes that mean what they are, if it is plain u8.
    pub(super) fn image(&mut self, id: NodeId) -> Result<Activation, Refusal> {
        let value = self.input(id, 0).ok_or(NOT_QUANTISED)?;
        match self.forms[value.index()] {
            Form::Plain => self.import(id, value, DataType::Uint8, Quantity { scale: 1.0, zero: 0 }, false),
            _ => Err(NOT_QUANTISED),
        }
    }

    fn import(
        &mut self,
        node: NodeId,
        value: ValueId,
        expected: DataType,
        quantity: Quantity,
        signed: bool,
    ) -> Result<Activation, Refusal> {
        if self.shapes.data_type(value) != Some(expected) {
            return Err(Refusal::Form("what it quantises is no f32"));
        }
        let rank = self.shapes.of(value).map_or(0, <[usize]>::len);
        let last = if rank == 4 { self.shape_in(value, Order::ChannelsLast).ok() } else { None };
        let (shape, order) = match last {
            Some(shape) => (shape, Order::ChannelsLast),
            None => (self.shape_in(value, Order::RowMajor)?, Order::RowMajor),
        };
        let made = self.make(
            node,
            shape,
            Make::Import {
                value,
                import: Import { order, quantity, real: expected == DataType::Float, pictures: None },
            },
        );
        Ok(Activation { made, offset: 0, shape, order, quantity, signed })
    }

    fn make(&mut self, node: NodeId, shape: Shape, make: Make) -> MadeId {
        self.made.push(Made { node, at: self.current, shape, dense: false, make });
        MadeId(self.made.len() - 1)
    }

    pub(super) fn step(
        &mut self,
        node: NodeId,
        inputs: &[Activation],
        shape: Shape,
        operation: Box<dyn Operation>,
    ) -> MadeId {
        self.make(node, shape, Make::Step { inputs: inputs.to_vec(), operation })
    }

    /// A table of a table is one table.
    fn table(&mut self, node: NodeId, of: Activation, table: [u8; 256]) -> Activation {
        let (of, table) = self.composed(of, table);
        let made = self.make(node, of.shape, Make::Table { of, table });
        Activation { made, offset: 0, ..of }
    }

    fn composed(&self, of: Activation, table: [u8; 256]) -> (Activation, Box<[u8; 256]>) {
        let made = &self.made[of.made.0];
        match &made.make {
            Make::Table { of: base, table: first } if !made.dense => {
                let offset = base.offset + of.offset;
                let base = Activation { offset, shape: of.shape, order: of.order, ..*base };
                (base, Box::new(first.map(|q| table[usize::from(q)])))
            }
            _ => (of, Box::new(table)),
        }
    }

    /// An activation, and how its bytes come to another meaning.
    fn meaning(&self, part: &Activation, quantity: Quantity) -> (Activation, Option<Box<[u8; 256]>>) {
        if part.quantity == quantity {
            return (*part, None);
        }
        let (of, table) = self.composed(*part, ops::requantise_table(part.quantity, quantity));
        (of, Some(table))
    }

    /// The bytes of an activation as pixels of another size.
    pub(super) fn reshaped(
        &mut self,
        node: NodeId,
        from: Activation,
        shape: Shape,
        order: Order,
    ) -> Result<Activation, Refusal> {
        if shape == from.shape {
            return Ok(Activation { order, ..from });
        }
        if shape.bytes() != from.shape.bytes() {
            return Err(OTHER_SHAPE);
        }
        let made = &mut self.made[from.made.0];
        if from.shape.bytes() == made.shape.bytes() {
            made.dense |= shape.c != from.shape.c;
            return Ok(Activation { shape, order, ..from });
        }
        let operation = ops::copy(from.shape);
        let id = self.step(node, &[from], from.shape, operation);
        self.made[id.0].dense = true;
        Ok(Activation { made: id, offset: 0, shape, order, ..from })
    }
}
