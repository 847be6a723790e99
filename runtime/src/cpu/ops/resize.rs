//! Resize, to the nearest byte or mixed of four neighbours in f32; Upsample is its older form.
//!
//! ONNX Resize 10 to 19 with constant scales or sizes; every coordinate transformation and rounding there is, but
//! `tf_crop_and_resize`, antialiasing and cubic.

use super::{
    super::{
        convert::reals,
        describe::Description,
        kernels::{Target, rint},
        lower::{Activation, Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Quantity, View, ViewMut},
    },
    select::{Channels, Select},
};
use crate::{
    cpu::Shape,
    graph::{Graph, NodeId},
    onnx::NodeProto,
    shape::Shapes,
};

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    let sampling = Sampling::of(lowering.graph(), lowering.shapes(), id, [input.shape, output]);
    let operation = match sampling.map_err(Refusal::Form)? {
        Sampling::Linear { rows, columns } => {
            let (width, channels) = (input.shape.w, input.shape.c);
            let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
                let (rows, columns, values) =
                    (rows.clone(), columns.clone(), Box::new(reals(input.quantity)));
                Ok(Box::new(Linear { rows, columns, values, width, channels, scale: result.scale, target }))
            };
            return Ok(Outcome::Pending(Pending::new(id, &[input], output, finish)));
        }
        Sampling::Nearest { rows, columns } => {
            let [rows, columns] = [rows, columns].map(|all| all.into_iter().map(Some).collect());
            let channels = Channels::All(output.c);
            Select { rows, columns, channels, width: input.shape.w, fill: 0 }
        }
    };
    let made = lowering.step(id, &[input], output, Box::new(operation));
    Ok(Outcome::Real(Activation { made, offset: 0, shape: output, ..input }))
}

/// Where the pixels of a result come from, row by row and column by column.
pub(crate) enum Sampling {
    Nearest { rows: Vec<usize>, columns: Vec<usize> },
    Linear { rows: Vec<Mix>, columns: Vec<Mix> },
}

impl Sampling {
    /// Of a Resize or an Upsample, or why there is none.
    pub(crate) fn of(
        graph: &Graph,
        shapes: &Shapes,
        id: NodeId,
        [from, to]: [Shape; 2],
    ) -> Result<Self, &'static str> {
        let (proto, opset) = (graph.proto(id), graph.opset());
        let linear = match proto.string("mode").unwrap_or("nearest") {
            "nearest" => false,
            "linear" if proto.int("antialias").unwrap_or(0) == 0 => true,
            _ => return Err("it mixes more than four neighbours"),
        };
        if to.c != from.c {
            return Err("it resizes channels");
        }
        let input = |index: usize| graph.node(id).inputs.get(index).copied().flatten();
        let reals = |index| shapes.constant(graph, input(index)?)?.to_f32().ok();
        // Scales as given, since they need not be the ratio of the sizes.
        let given = match proto.op_type.as_str() {
            "Upsample" => reals(1).or_else(|| proto.attribute("scales").map(|a| a.floats.clone())),
            _ if opset < 11 => reals(1),
            _ => reals(2),
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
        if input(0).and_then(|value| shapes.of(value)).map(<[usize]>::len) != Some(4) {
            return Err("it has not two spatial dimensions");
        }
        let places = |d, from: usize, to: usize| -> Option<Vec<f32>> {
            let scale = scale(d, from, to).filter(|s| s.is_finite() && *s > 0.0)?;
            (0..to).map(|i| place(proto, opset, i, from, to, scale)).collect()
        };
        let places = places(2, from.h, to.h).zip(places(3, from.w, to.w));
        let (rows, columns) = places.ok_or("a coordinate transformation that is not known")?;
        if linear {
            let mixes = |places: Vec<f32>, size| places.into_iter().map(|at| Mix::of(at, size)).collect();
            return Ok(Self::Linear { rows: mixes(rows, from.h), columns: mixes(columns, from.w) });
        }
        let nearest = |places: Vec<f32>, size| -> Option<Vec<usize>> {
            places.into_iter().map(|at| nearest(proto, opset, at, size)).collect()
        };
        let indices = nearest(rows, from.h).zip(nearest(columns, from.w));
        let (rows, columns) = indices.ok_or("a rounding that is not known")?;
        Ok(Self::Nearest { rows, columns })
    }
}

/// Where output `i` of `to` lies among `from` inputs. ONNX computes in f32.
fn place(proto: &NodeProto, opset: i64, i: usize, from: usize, to: usize, scale: f64) -> Option<f32> {
    let old = proto.op_type == "Upsample" || opset < 11;
    let mode = proto.string("coordinate_transformation_mode").unwrap_or("half_pixel");
    let (i, from, length, scale) = (i as f32, from as f32, to as f32, scale as f32);
    Some(match if old { "asymmetric" } else { mode } {
        "asymmetric" => i / scale,
        "half_pixel" => (i + 0.5) / scale - 0.5,
        "half_pixel_symmetric" => {
            let adjustment = length / (scale * from);
            from / 2.0 * (1.0 - adjustment) + (i + 0.5) / scale - 0.5
        }
        "pytorch_half_pixel" if length > 1.0 => (i + 0.5) / scale - 0.5,
        "pytorch_half_pixel" => 0.0,
        "align_corners" if length > 1.0 => i * (from - 1.0) / (length - 1.0),
        "align_corners" => 0.0,
        _ => return None,
    })
}

fn nearest(proto: &NodeProto, opset: i64, at: f32, from: usize) -> Option<usize> {
    let old = proto.op_type == "Upsample" || opset < 11;
    let at = match proto.string("nearest_mode").filter(|_| !old).unwrap_or(if old { "floor" } else { "" }) {
        "round_prefer_floor" | "" => (at - 0.5).ceil(),
        "round_prefer_ceil" => (at + 0.5).floor(),
        "floor" => at.floor(),
        "ceil" => at.ceil(),
        _ => return None,
    };
    // As integers: f32 has no place for the last of more than 2^24.
    Some((at.max(0.0) as usize).min(from.saturating_sub(1)))
}

/// Two neighbours and what of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix {
    pub(crate) at: [usize; 2],
    pub(crate) weights: [f32; 2],
}

impl Mix {
    fn of(place: f32, size: usize) -> Self {
        let place = place.clamp(0.0, size as f32 - 1.0);
        let last = size.saturating_sub(1);
        let first = (place as usize).min(last);
        let second = (first + 1).min(last);
        if first == second {
            return Self { at: [first, second], weights: [0.5, 0.5] };
        }
        Self { at: [first, second], weights: [second as f32 - place, place - first as f32] }
    }
}

/// The sum of the four neighbours in ONNX Runtime's order, then one rounding.
struct Linear {
    rows: Vec<Mix>,
    columns: Vec<Mix>,
    values: Box<[f32; 256]>,
    width: usize,
    channels: usize,
    scale: f32,
    target: Target,
}

impl Linear {
    fn byte(&self, sum: f32) -> u8 {
        let Target { zero, low, high } = self.target;
        (rint(sum / self.scale) + i32::from(zero)).clamp(low.into(), high.into()) as u8
    }
}

impl Operation for Linear {
    fn describe(&self) -> Option<Description<'_>> {
        let all = |mixes: &[Mix]| mixes.iter().map(|mix| (mix.at, mix.weights)).collect();
        Some(Description::Mixed {
            rows: all(&self.rows),
            columns: all(&self.columns),
            values: &self.values,
            width: self.width,
            byte: Box::new(|sum| self.byte(sum)),
        })
    }

    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let View { bytes, stride } = inputs[0];
        let mut pixels = output.pixels(self.channels);
        for row in &self.rows {
            for (column, pixel) in self.columns.iter().zip(&mut pixels) {
                let from = |y: usize, x: usize| {
                    &bytes[(row.at[y] * self.width + column.at[x]) * stride..][..self.channels]
                };
                let (a, b, c, d) = (from(0, 0), from(0, 1), from(1, 0), from(1, 1));
                let weight = |y: usize, x: usize| column.weights[x] * row.weights[y];
                let weights = [weight(0, 0), weight(0, 1), weight(1, 0), weight(1, 1)];
                let real = |q: &u8| self.values[usize::from(*q)];
                for (i, out) in pixel.iter_mut().enumerate() {
                    let sum = weights[0] * real(&a[i]) + weights[1] * real(&b[i]);
                    let sum = sum + weights[2] * real(&c[i]) + weights[3] * real(&d[i]);
                    *out = self.byte(sum);
                }
            }
        }
    }
}
