//! QuantizeLinear and DequantizeLinear: where what is pending becomes a step, and where bytes get their meaning.

use super::{
    super::{
        kernels::{Target, rint},
        ops,
        plan::Quantity,
    },
    Activation, Concat, FINISHED_MAX, Finished, Form, Lowering, Make, NOT_QUANTISED, Pending, Refusal,
};
use crate::{graph::NodeId, onnx::DataType};

impl Lowering<'_> {
    /// Scale and zero point of a Q or DQ node, one of each; whether its bytes are s8, where the zero point says so.
    pub(super) fn quantity(&self, id: NodeId) -> Result<(Quantity, Option<bool>), Refusal> {
        let one = || {
            let [scale] = self.constant(id, 1)?.to_f32().ok()?[..] else { return None };
            let (zero, signed) = match self.constant(id, 2) {
                None if self.input(id, 2).is_some() => return None,
                None => (0, None),
                Some(tensor) if tensor.element_type() == Ok(DataType::Int8) => {
                    let [zero] = tensor.to_i8().ok()?[..] else { return None };
                    (zero as u8 ^ 0x80, Some(true))
                }
                Some(tensor) => {
                    let [zero] = tensor.to_u8().ok()?[..] else { return None };
                    (zero, Some(false))
                }
            };
            (scale.is_normal() && scale > 0.0).then_some((Quantity { scale, zero }, signed))
        };
        one().ok_or(Refusal::Form(
            "its scale and zero point are not one constant f32 and one constant u8 or s8",
        ))
    }

    pub(super) fn quantize(&mut self, id: NodeId) -> Result<Activation, Refusal> {
        let (quantity, signed) = self.quantity(id)?;
        let data_type = self.graph.proto(id).int("output_dtype").unwrap_or(0);
        let signed = match (signed, data_type) {
            (Some(signed), _) => signed,
            (None, 0 | 2) => false,
            (None, _) => return Err(Refusal::Form("its bytes are of another type than u8")),
        };
        let value = self.input(id, 0).ok_or(NOT_QUANTISED)?;
        if let Form::Pending(Pending { node, .. })
        | Form::Mean(_, Pending { node, .. })
        | Form::Concat(Concat { node, .. }) = &self.forms[value.index()]
        {
            let finished = &mut self.finished[node.index()];
            *finished += 1;
            if *finished > FINISHED_MAX {
                return Err(Refusal::Form("what it quantises is quantised in too many ways"));
            }
        }
        // Weights that wait for nobody else are let go of.
        let form = match &mut self.forms[value.index()] {
            form @ (Form::Pending(_) | Form::Mean(..)) if self.graph.value(value).readers == 1 => {
                std::mem::replace(form, Form::Taken)
            }
            form => form.clone(),
        };
        match form {
            Form::Plain => self.import(id, value, DataType::Float, quantity, signed),
            Form::Pending(pending) | Form::Mean(_, pending) => {
                let bound =
                    |real: f32| (rint(real / quantity.scale) + i32::from(quantity.zero)).clamp(0, 255) as u8;
                let target =
                    Target { zero: quantity.zero, low: bound(pending.low), high: bound(pending.high) };
                let finished = (pending.finish)(quantity, target);
                let finished = finished.inspect_err(|why| self.refused.push((pending.node, *why)))?;
                let Pending { node, inputs, shape, order, .. } = pending;
                let made = match finished {
                    Finished::Operation(operation) => self.step(node, &inputs, shape, operation),
                    Finished::Table(table) => self.table(node, inputs[0], *table).made,
                };
                Ok(Activation { made, offset: 0, shape, order, quantity, signed })
            }
            Form::Concat(Concat { node, parts, along, shape, order }) => {
                let parts = parts.iter().map(|part| self.meaning(part, quantity)).collect();
                let made = self.make(node, shape, Make::Concat(parts, along));
                Ok(Activation { made, offset: 0, shape, order, quantity, signed })
            }
            Form::Real(from) if from.quantity == quantity => Ok(Activation { signed, ..from }),
            Form::Real(of) => {
                let table = ops::requantise_table(of.quantity, quantity);
                Ok(Activation { quantity, signed, ..self.table(id, of, table) })
            }
            Form::Curve(curve) => {
                let byte = |v: f32| (rint(v / quantity.scale) + i32::from(quantity.zero)).clamp(0, 255) as u8;
                let table = curve.values.map(byte);
                Ok(Activation { quantity, signed, ..self.table(id, curve.of, table) })
            }
            Form::Bytes(_) | Form::Taken | Form::Index(..) => {
                Err(Refusal::Form("what it quantises is no f32"))
            }
        }
    }

    pub(super) fn dequantize(&mut self, id: NodeId) -> Result<Activation, Refusal> {
        let (quantity, signed) = self.quantity(id)?;
        let value = self.input(id, 0).ok_or(NOT_QUANTISED)?;
        match self.forms[value.index()] {
            // Without a zero point, s8 has it at 0 as well.
            Form::Bytes(bytes) if signed.is_none() && bytes.signed => {
                Ok(Activation { quantity: Quantity { zero: 0x80, ..quantity }, ..bytes })
            }
            Form::Bytes(bytes) if signed.unwrap_or(false) == bytes.signed => {
                Ok(Activation { quantity, ..bytes })
            }
            Form::Plain => match self.shapes.data_type(value) {
                Some(kind @ DataType::Uint8) if signed != Some(true) => {
                    self.import(id, value, kind, quantity, false)
                }
                Some(kind @ DataType::Int8) if signed != Some(false) => {
                    let zero = if signed.is_some() { quantity.zero } else { 0x80 };
                    self.import(id, value, kind, Quantity { zero, ..quantity }, true)
                }
                _ => Err(Refusal::Form("what it dequantises is neither u8 nor s8")),
            },
            _ => Err(Refusal::Form("what it dequantises is of another type than its zero point")),
        }
    }
}
