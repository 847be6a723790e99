//! Add, Mul, Sub and Div of two activations, or of one and a constant.
//!
//! Add is two fused multiply-adds on the raw bytes, Mul one multiplication of integers: as ONNX Runtime's x86 kernels.
//! Off-spec: in both the zero point joins before rounding, so that exact ties go another way where it is odd; it is that of
//! s8 where the bytes are s8. Sub and Div are in f32, with one rounding, as there. An operand is stretched where it has one
//! pixel or one channel.

use std::rc::Rc;

use super::{
    super::{
        describe::Description,
        kernels::{Isa, Sum, Target, add, lookup, rint},
        lower::{Activation, Curve, Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Quantity, Shape, View, ViewMut},
    },
    layout::stretched,
    table::fuse,
};
use crate::{graph::NodeId, onnx::DataType};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Add,
    Mul,
    Sub,
    Div,
}

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let kind = match lowering.graph().proto(id).op_type.as_str() {
        "Add" => Kind::Add,
        "Mul" => Kind::Mul,
        "Sub" => Kind::Sub,
        _ => Kind::Div,
    };
    if let Some(outcome) = curves(lowering, id, kind)? {
        return Ok(outcome);
    }
    let output = lowering.output(id)?;
    let order = match (lowering.activation(id, 0), lowering.activation(id, 1)) {
        (Ok(a), _) if a.shape.pixels() > 1 => a.order,
        (_, Ok(b)) => b.order,
        (Ok(a), _) => a.order,
        (Err(why), _) => return Err(why),
    };
    let shape = lowering.shape_in(output, order)?;
    let rank = lowering.shapes().of(output).map(<[usize]>::len);
    let mut operands = [lowering.operand(id, 0, order)?, lowering.operand(id, 1, order)?];
    for (index, operand) in operands.iter_mut().enumerate() {
        let own = lowering.input(id, index).and_then(|v| lowering.shapes().of(v)).map(<[usize]>::len);
        // Fewer dimensions would mean others than the first ones.
        if own != rank && operand.shape.bytes() != 1 {
            return Err(Refusal::Form("its inputs have different numbers of dimensions"));
        }
        if operand.shape != shape && !(operand.shape.pixels() == 1 && operand.shape.c == shape.c) {
            *operand = stretched(lowering, id, *operand, shape)?;
        }
    }
    let [a, b] = operands;
    let finish = move |result: Quantity, target: Target| operation(kind, a, b, shape, result, target);
    Ok(Outcome::Pending(Pending { order, ..Pending::new(id, &[a, b], shape, finish) }))
}

/// Both operands follow from one byte, or one is one constant: then so does the result.
fn curves(lowering: &mut Lowering<'_>, id: NodeId, kind: Kind) -> Result<Option<Outcome>, Refusal> {
    let float = |a: f32, b: f32| match kind {
        Kind::Add => a + b,
        Kind::Mul => a * b,
        Kind::Sub => a - b,
        Kind::Div => a / b,
    };
    let one = |index| lowering.reals(id, index).filter(|v| v.len() == 1).map(|v| v[0]);
    let curve = |index| lowering.curve(id, index);
    if let Some(b) = one(1) {
        let Curve { of, values } = curve(0)?;
        let values = Rc::new(values.map(|a| float(a, b)));
        return keeps(lowering, id, of, values);
    }
    if let Some(a) = one(0) {
        let Curve { of, values } = curve(1)?;
        let values = Rc::new(values.map(|b| float(a, b)));
        return keeps(lowering, id, of, values);
    }
    // A constant in quantised form: the operator on bytes, with that byte on one side.
    for (index, other) in [(1, 0), (0, 1)] {
        if let (Some((byte, quantity)), Ok(of)) =
            (lowering.fixed_byte(id, index), lowering.activation(id, other))
        {
            let shape = lowering.shape_in(lowering.output(id)?, of.order)?;
            if shape != of.shape {
                return Err(Refusal::Form("a constant stretches it"));
            }
            let finish = move |result: Quantity, target: Target| {
                let fixed = Activation { quantity, ..of };
                let (a, b) = if index == 1 { (of, fixed) } else { (fixed, of) };
                let formula = Formula::new(kind, a, b, result, target)?;
                Ok(std::array::from_fn(|q| {
                    let q = q as u8;
                    if index == 1 { formula.byte(q, byte) } else { formula.byte(byte, q) }
                }))
            };
            return Ok(Some(Outcome::Pending(Pending::table(id, of, finish))));
        }
    }
    let (Ok(a), Ok(b)) = (curve(0), curve(1)) else { return Ok(None) };
    let base = |lowering: &Lowering<'_>, of: Activation| lowering.base(of);
    let ((base_a, table_a), (base_b, table_b)) = (base(lowering, a.of), base(lowering, b.of));
    if (base_a.made, base_a.offset, base_a.shape, base_a.order)
        != (base_b.made, base_b.offset, base_b.shape, base_b.order)
    {
        return Ok(None);
    }
    if let (Ok(a), Ok(b)) = (lowering.activation(id, 0), lowering.activation(id, 1)) {
        let finish = move |result: Quantity, target: Target| {
            let formula = Formula::new(kind, a, b, result, target)?;
            Ok(std::array::from_fn(|q| formula.byte(table_a[q], table_b[q])))
        };
        return Ok(Some(Outcome::Pending(Pending::table(id, base_a, finish))));
    }
    let values =
        std::array::from_fn(|q| float(a.values[usize::from(table_a[q])], b.values[usize::from(table_b[q])]));
    Ok(Some(Outcome::Curve(Curve { of: base_a, values: Rc::new(values) })))
}

/// A curve, unless the constant stretches what it is joined with.
fn keeps(
    lowering: &Lowering<'_>,
    id: NodeId,
    of: Activation,
    values: Rc<[f32; 256]>,
) -> Result<Option<Outcome>, Refusal> {
    let shape = lowering.shape_in(lowering.output(id)?, of.order)?;
    if shape == of.shape {
        Ok(Some(Outcome::Curve(Curve { of, values })))
    } else {
        Err(Refusal::Form("a constant stretches it"))
    }
}

fn operation(
    kind: Kind,
    a: Activation,
    b: Activation,
    shape: Shape,
    result: Quantity,
    target: Target,
) -> Result<Box<dyn Operation>, Refusal> {
    let formula = Formula::new(kind, a, b, result, target)?;
    let stretched = [a.shape != shape, b.shape != shape];
    Ok(Box::new(Binary { formula, channels: shape.c, stretched, table: None }))
}

/// What is done to two bytes.
#[derive(Debug, Clone, Copy)]
enum Formula {
    Add(Sum),
    Mul(Product),
    Real { divides: bool, a: Quantity, b: Quantity, scale: f32, target: Target },
}

#[derive(Debug, Clone, Copy)]
struct Product {
    zero_a: i32,
    zero_b: i32,
    ratio: f32,
    /// Of the result: joins before rounding, as it is in s8 where the bytes are.
    zero: f32,
    /// Joins behind it: 128 where the bytes are s8 whose top bit is flipped.
    base: u8,
    low: u8,
    high: u8,
}

impl Product {
    fn of(&self, x: u8, y: u8) -> u8 {
        let product = (i32::from(x) - self.zero_a) * (i32::from(y) - self.zero_b);
        let value = rint(product as f32 * self.ratio + self.zero) + i32::from(self.base);
        value.clamp(self.low.into(), self.high.into()) as u8
    }
}

impl Formula {
    fn new(
        kind: Kind,
        a: Activation,
        b: Activation,
        result: Quantity,
        target: Target,
    ) -> Result<Self, Refusal> {
        let Target { low, high, .. } = target;
        // What bytes that stand for s8 have more than those.
        let base = if a.signed && b.signed { 0x80 } else { 0 };
        let zero = |of: Quantity| f32::from(of.zero) - f32::from(base);
        let (a, b) = (a.quantity, b.quantity);
        let far = || Refusal::Form("its scales are too far apart");
        match kind {
            Kind::Add => {
                let (ratio_a, ratio_b) = (a.scale / result.scale, b.scale / result.scale);
                let fixed = zero(result) - ratio_a.mul_add(zero(a), ratio_b * zero(b));
                let sane = [ratio_a, ratio_b, fixed].iter().all(|v| v.abs() < 1e9);
                sane.then_some(Self::Add(Sum { base, ratio_a, ratio_b, fixed, low, high })).ok_or_else(far)
            }
            Kind::Mul => {
                let ratio = a.scale * b.scale / result.scale;
                let (zero_a, zero_b, zero) = (a.zero.into(), b.zero.into(), zero(result));
                let product = Product { zero_a, zero_b, ratio, zero, base, low, high };
                (ratio.abs() < 1e9).then_some(Self::Mul(product)).ok_or_else(far)
            }
            Kind::Sub | Kind::Div => {
                Ok(Self::Real { divides: kind == Kind::Div, a, b, scale: result.scale, target })
            }
        }
    }

    fn byte(&self, x: u8, y: u8) -> u8 {
        match *self {
            Self::Add(sum) => sum.of(x, y),
            Self::Mul(product) => product.of(x, y),
            Self::Real { divides, a, b, scale, target } => {
                let real = |q: u8, of: Quantity| (f32::from(q) - f32::from(of.zero)) * of.scale;
                let (x, y) = (real(x, a), real(y, b));
                let value = rint((if divides { x / y } else { x - y }) / scale) + i32::from(target.zero);
                value.clamp(target.low.into(), target.high.into()) as u8
            }
        }
    }
}

struct Binary {
    formula: Formula,
    channels: usize,
    /// An operand that has one pixel, which goes with every pixel of the other.
    stretched: [bool; 2],
    table: Option<Box<[u8; 256]>>,
}

impl Binary {
    fn row(&self, isa: Isa, a: &[u8], b: &[u8], output: &mut [u8]) {
        match self.formula {
            Formula::Add(sum) => add(isa, a, b, sum, output),
            Formula::Mul(product) => {
                a.iter().zip(b).zip(&mut *output).for_each(|((x, y), out)| *out = product.of(*x, *y));
            }
            formula => {
                a.iter().zip(b).zip(&mut *output).for_each(|((x, y), out)| *out = formula.byte(*x, *y));
            }
        }
        if let Some(table) = &self.table {
            lookup(isa, table, output);
        }
    }
}

impl Operation for Binary {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let (a, b) = (inputs[0], inputs[1]);
        if [a.stride, b.stride, output.stride] == [self.channels; 3] && self.stretched == [false; 2] {
            let (isa, size) = (context.isa, context.team.piece(output.bytes.len(), 64, 16 << 10));
            return context.team.pieces(output.bytes, size, |i, output| {
                let [a, b] = [a, b].map(|view| &view.bytes[i * size..][..output.len()]);
                self.row(isa, a, b, output);
            });
        }
        let step = |view: View<'_>, stretched: bool| if stretched { 0 } else { view.stride };
        let (step_a, step_b) = (step(a, self.stretched[0]), step(b, self.stretched[1]));
        let (isa, line) = (context.isa, output.stride.max(1));
        let size = context.team.piece(output.bytes.len(), line, 16 << 10);
        context.team.pieces(output.bytes, size, |part, output| {
            for (i, output) in output.chunks_mut(line).enumerate() {
                let i = part * (size / line) + i;
                let (a, b) = (&a.bytes[i * step_a..], &b.bytes[i * step_b..]);
                self.row(isa, &a[..self.channels], &b[..self.channels], &mut output[..self.channels]);
            }
        });
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        fuse(&mut self.table, table);
        true
    }

    fn residual(&self) -> Option<Sum> {
        match self.formula {
            Formula::Add(sum) if self.stretched == [false; 2] && self.table.is_none() => Some(sum),
            _ => None,
        }
    }

    fn describe(&self) -> Option<Description<'_>> {
        let slopes = match self.formula {
            Formula::Add(sum) => Some(sum.slopes()),
            Formula::Real { divides: false, a, b, scale, target } => {
                let (ratio_a, ratio_b) = (a.scale / scale, b.scale / scale);
                let zeros = f32::from(a.zero) * ratio_a - f32::from(b.zero) * ratio_b;
                Some([ratio_a, -ratio_b, f32::from(target.zero) - zeros])
            }
            Formula::Real { divides: true, .. } | Formula::Mul(_) => None,
        };
        let byte = Box::new(|x, y| self.formula.byte(x, y));
        Some(Description::Binary { byte, slopes, stretched: self.stretched, table: self.table.as_deref() })
    }
}

impl Lowering<'_> {
    /// A dequantised constant of one element.
    pub(super) fn fixed_byte(&self, id: NodeId, index: usize) -> Option<(u8, Quantity)> {
        let producer = self.graph().producer(self.input(id, index)?)?;
        if self.graph().proto(producer).op_type != "DequantizeLinear" {
            return None;
        }
        let tensor = self.constant(producer, 0)?;
        let [scale] = self.reals(producer, 1)?[..] else { return None };
        let one = |tensor: &crate::onnx::TensorProto| match tensor.element_type().ok()? {
            DataType::Uint8 => tensor.to_u8().ok()?.first().copied(),
            DataType::Int8 => tensor.to_i8().ok()?.first().map(|q| *q as u8 ^ 0x80),
            _ => None,
        };
        let absent = || Some(if tensor.element_type() == Ok(DataType::Int8) { 0x80 } else { 0 });
        let zero = match self.input(producer, 2) {
            Some(_) => one(self.constant(producer, 2)?),
            None => absent(),
        };
        let byte = one(tensor).filter(|_| tensor.elements() == Some(1) && scale.is_normal() && scale > 0.0);
        byte.zip(zero).map(|(byte, zero)| (byte, Quantity { scale, zero }))
    }
}
