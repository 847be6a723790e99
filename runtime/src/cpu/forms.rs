//! What nodes and their values become on bytes: the types that [`super::lower`] and the operators speak in.

use std::{fmt, rc::Rc};

use super::{
    convert::Import,
    kernels::Target,
    plan::{Operation, Order, Quantity, Shape},
};
use crate::{
    graph::{NodeId, ValueId},
    onnx::{DataType, TensorProto},
};

/// Why a node has no byte step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no step for the operator.
    Operator,
    /// There is one, but not for this form of it.
    Form(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "no int8 step for this operator",
            Self::Form(why) => why,
        })
    }
}

/// Index into the list of [`Made`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct MadeId(pub(super) usize);

/// Bytes and what they mean: something made, or some of its channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Activation {
    pub(super) made: MadeId,
    /// Channels of what was made that come before the first.
    pub(super) offset: usize,
    pub(super) shape: Shape,
    pub(super) order: Order,
    pub(super) quantity: Quantity,
    /// To ONNX the bytes are s8.
    pub(super) signed: bool,
}

/// What the parts of a concatenation add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Along {
    Channels,
    Pixels,
}

/// Bytes that a step can give.
pub(super) struct Made {
    /// The node whose work it is.
    pub(super) node: NodeId,
    /// The node at which it turned out to be possible: that one or a later one.
    pub(super) at: NodeId,
    pub(super) shape: Shape,
    /// Somebody reads it as pixels of another size: it has to lie in a buffer of its own.
    pub(super) dense: bool,
    pub(super) make: Make,
}

pub(super) enum Make {
    Import {
        value: ValueId,
        import: Import,
    },
    Step {
        inputs: Vec<Activation>,
        operation: Box<dyn Operation>,
    },
    /// Each byte looked up.
    Table {
        of: Activation,
        table: Box<[u8; 256]>,
    },
    /// Channels side by side, or pixels behind each other; each part looked up in its table first.
    Concat(Vec<(Activation, Option<Box<[u8; 256]>>)>, Along),
}

/// What an operator is once the meaning of its result is known.
pub(super) enum Finished {
    Operation(Box<dyn Operation>),
    /// Each byte of its one input looked up.
    Table(Box<[u8; 256]>),
}

type Finish = Rc<dyn Fn(Quantity, Target) -> Result<Finished, Refusal>>;

/// An operator that waits for its `QuantizeLinear`.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) node: NodeId,
    pub(super) inputs: Vec<Activation>,
    pub(super) shape: Shape,
    pub(super) order: Order,
    /// Real bounds of the result: what activations leave of it. `low <= high`.
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) finish: Finish,
}

impl Pending {
    /// In the order of the first input.
    pub(super) fn new(
        node: NodeId,
        inputs: &[Activation],
        shape: Shape,
        finish: impl Fn(Quantity, Target) -> Result<Box<dyn Operation>, Refusal> + 'static,
    ) -> Self {
        let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
        let order = inputs.first().map_or(Order::RowMajor, |a| a.order);
        let finish = move |result, target| finish(result, target).map(Finished::Operation);
        Self { node, inputs: inputs.to_vec(), shape, order, low, high, finish: Rc::new(finish) }
    }

    pub(super) fn table(
        node: NodeId,
        of: Activation,
        finish: impl Fn(Quantity, Target) -> Result<[u8; 256], Refusal> + 'static,
    ) -> Self {
        let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
        let finish = move |result, target| finish(result, target).map(|t| Finished::Table(Box::new(t)));
        Self { node, inputs: vec![of], shape: of.shape, order: of.order, low, high, finish: Rc::new(finish) }
    }
}

/// Real values, each a function of one byte.
#[derive(Clone)]
pub(super) struct Curve {
    pub(super) of: Activation,
    pub(super) values: Rc<[f32; 256]>,
}

/// What an operator gives.
pub(super) enum Outcome {
    Pending(Pending),
    /// Bytes seen as real values.
    Real(Activation),
    Curve(Curve),
    /// For each output.
    Parts(Vec<Activation>),
    /// The mean of each channel of an activation, which may stay f32 too.
    Mean(Activation, Pending),
    /// Numbers, lowest byte first.
    Index(Activation),
    Concat(Concat),
}

/// A concatenation that waits for its `QuantizeLinear`.
#[derive(Clone)]
pub(super) struct Concat {
    pub(super) node: NodeId,
    pub(super) parts: Vec<Activation>,
    pub(super) along: Along,
    pub(super) shape: Shape,
    pub(super) order: Order,
}

#[derive(Clone)]
pub(super) enum Form {
    /// As ONNX has it.
    Plain,
    /// An operator whose only reader has made a step of it.
    Taken,
    Bytes(Activation),
    Real(Activation),
    Curve(Curve),
    Pending(Pending),
    Mean(Activation, Pending),
    Index(Activation),
    Concat(Concat),
}

/// A dequantised constant.
pub(super) struct Fixed<'a> {
    pub(super) tensor: &'a TensorProto,
    /// One of each, or one for each index of `axis`.
    pub(super) scales: Vec<f32>,
    pub(super) zeros: Vec<i32>,
    pub(super) axis: i64,
}

impl Fixed<'_> {
    /// What is left of bytes without their zero points, if that fits s8.
    pub(super) fn centred(&self) -> Option<Vec<i8>> {
        if self.zeros.iter().all(|zero| *zero == 0)
            && let Ok(values) = self.tensor.to_i8()
        {
            return Some(values);
        }
        let values = integers(self.tensor)?;
        let dims = self.tensor.shape()?;
        let axis = usize::try_from(self.axis.rem_euclid(dims.len().max(1) as i64)).ok()?;
        let inner = dims.get(axis + 1..).unwrap_or(&[]).iter().product::<usize>().max(1);
        let zero =
            |i: usize| self.zeros[if self.zeros.len() == 1 { 0 } else { i / inner % self.zeros.len() }];
        values.iter().enumerate().map(|(i, v)| i8::try_from(v.checked_sub(zero(i))?).ok()).collect()
    }
}

pub(super) fn integers(tensor: &TensorProto) -> Option<Vec<i32>> {
    match tensor.element_type().ok()? {
        DataType::Int8 => Some(tensor.to_i8().ok()?.into_iter().map(i32::from).collect()),
        DataType::Uint8 => Some(tensor.to_u8().ok()?.into_iter().map(i32::from).collect()),
        DataType::Int32 => tensor.to_i32().ok(),
        _ => None,
    }
}
