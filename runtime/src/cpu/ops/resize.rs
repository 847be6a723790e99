//! Resize to the nearest byte; Upsample is its older form.
//!
//! ONNX Resize 10 to 19 with constant scales or sizes; every coordinate transformation and rounding there is, but
//! `tf_crop_and_resize`.

use super::super::{
    lower::{Activation, Lowering, Outcome, Refusal},
    plan::{Context, Operation, View, ViewMut},
};
use crate::{graph::NodeId, onnx::NodeProto};

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    let proto = lowering.graph().proto(id);
    if proto.string("mode").unwrap_or("nearest") != "nearest" {
        return Err(Refusal::Form("it mixes neighbours"));
    }
    if output.c != input.shape.c {
        return Err(Refusal::Form("it resizes channels"));
    }
    // Scales as given, since they need not be the ratio of the sizes.
    let given = match proto.op_type.as_str() {
        "Upsample" => lowering.reals(id, 1).or_else(|| proto.attribute("scales").map(|a| a.floats.clone())),
        _ if lowering.graph().opset() < 11 => lowering.reals(id, 1),
        _ => lowering.reals(id, 2),
    };
    let axes = proto.ints("axes");
    let scale = |d: i64, from: usize, to: usize| {
        let at = match axes {
            Some(axes) => axes.iter().position(|a| a.rem_euclid(4) == d),
            None => Some(d as usize),
        };
        let given = given.as_ref().filter(|scales| !scales.is_empty());
        match (given, at) {
            (Some(scales), Some(at)) => scales.get(at).copied().map(f64::from),
            (Some(_), None) => Some(1.0),
            (None, _) => Some(to as f64 / from as f64),
        }
    };
    let rank = lowering.input(id, 0).and_then(|v| lowering.shapes().of(v)).map(<[usize]>::len);
    if rank != Some(4) {
        return Err(Refusal::Form("it has not two spatial dimensions"));
    }
    let indices = |d, from: usize, to: usize| -> Option<Vec<usize>> {
        let scale = scale(d, from, to).filter(|s| s.is_finite() && *s > 0.0)?;
        (0..to).map(|i| nearest(proto, lowering.graph().opset(), i, from, to, scale)).collect()
    };
    let rows = indices(2, input.shape.h, output.h);
    let columns = indices(3, input.shape.w, output.w);
    let (rows, columns) =
        rows.zip(columns).ok_or(Refusal::Form("a coordinate transformation that is not known"))?;
    let operation = Nearest { rows, columns, width: input.shape.w, channels: output.c };
    let made = lowering.step(id, &[input], output, Box::new(operation));
    Ok(Outcome::Real(Activation { made, offset: 0, shape: output, ..input }))
}

/// Where output `i` of `to` comes from among `from` inputs.
fn nearest(proto: &NodeProto, opset: i64, i: usize, from: usize, to: usize, scale: f64) -> Option<usize> {
    let old = proto.op_type == "Upsample" || opset < 11;
    let mode = if old {
        "asymmetric"
    } else {
        proto.string("coordinate_transformation_mode").unwrap_or("half_pixel")
    };
    let (i, from, length) = (i as f64, from as f64, to as f64);
    let at = match mode {
        "asymmetric" => i / scale,
        "half_pixel" => (i + 0.5) / scale - 0.5,
        "half_pixel_symmetric" => {
            let adjustment = length / (scale * from);
            let centre = from / 2.0;
            centre * (1.0 - adjustment) + (i + 0.5) / scale - 0.5
        }
        "pytorch_half_pixel" if length > 1.0 => (i + 0.5) / scale - 0.5,
        "pytorch_half_pixel" => 0.0,
        "align_corners" if length > 1.0 => i * (from - 1.0) / (length - 1.0),
        "align_corners" => 0.0,
        _ => return None,
    };
    // ONNX computes in f32.
    let at = f64::from(at as f32);
    let at = match proto.string("nearest_mode").filter(|_| !old).unwrap_or(if old {
        "floor"
    } else {
        "round_prefer_floor"
    }) {
        "round_prefer_floor" => (at - 0.5).ceil(),
        "round_prefer_ceil" => (at + 0.5).floor(),
        "floor" => at.floor(),
        "ceil" => at.ceil(),
        _ => return None,
    };
    Some(at.clamp(0.0, from - 1.0) as usize)
}

/// Pixels copied from the row and the column that each output row and column names.
struct Nearest {
    rows: Vec<usize>,
    columns: Vec<usize>,
    width: usize,
    channels: usize,
}

impl Operation for Nearest {
    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let View { bytes, stride } = inputs[0];
        let mut pixels = output.pixels(self.channels);
        for row in &self.rows {
            for (column, pixel) in self.columns.iter().zip(&mut pixels) {
                pixel.copy_from_slice(&bytes[(row * self.width + column) * stride..][..self.channels]);
            }
        }
    }
}
