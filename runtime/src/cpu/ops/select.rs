//! Operators that take whole rows, columns and channels from anywhere: Resize to the nearest, Pad, Gather and Tile.

use super::{
    super::{
        describe::Description,
        kernels::rint,
        lower::{Activation, Lowering, Outcome, Refusal},
        plan::{Context, Operation, View, ViewMut},
    },
    layout::{dimension, ints},
};
use crate::{graph::NodeId, plain::padded};

/// For each output row, column and channel the input's; `None` is filled up.
pub(super) struct Select {
    pub(super) rows: Vec<Option<usize>>,
    pub(super) columns: Vec<Option<usize>>,
    pub(super) channels: Channels,
    /// Pixels of an input row.
    pub(super) width: usize,
    pub(super) fill: u8,
}

pub(super) enum Channels {
    /// All of them, so many, as they are.
    All(usize),
    Some(Vec<Option<usize>>),
}

impl Operation for Select {
    fn describe(&self) -> Option<Description<'_>> {
        let channels = match &self.channels {
            Channels::All(_) => None,
            Channels::Some(channels) => Some(&**channels),
        };
        let Self { rows, columns, width, fill, .. } = self;
        Some(Description::Select { rows, columns, channels, width: *width, fill: *fill })
    }

    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let View { bytes, stride } = inputs[0];
        let count = match &self.channels {
            Channels::All(count) => *count,
            Channels::Some(channels) => channels.len(),
        };
        let mut pixels = output.pixels(count);
        for row in &self.rows {
            for (column, pixel) in self.columns.iter().zip(&mut pixels) {
                let Some((row, column)) = row.zip(*column) else {
                    pixel.fill(self.fill);
                    continue;
                };
                let from = &bytes[(row * self.width + column) * stride..];
                match &self.channels {
                    Channels::All(count) => pixel.copy_from_slice(&from[..*count]),
                    Channels::Some(channels) => {
                        for (to, at) in pixel.iter_mut().zip(channels) {
                            *to = at.map_or(self.fill, |at| from[at]);
                        }
                    }
                }
            }
        }
    }
}

/// An activation of the input's order and meaning, with what is selected along each ONNX dimension after the first.
fn selected(
    lowering: &mut Lowering<'_>,
    id: NodeId,
    input: Activation,
    along: Vec<Vec<Option<usize>>>,
    fill: u8,
) -> Result<Outcome, Refusal> {
    let output = lowering.output_shape(id)?;
    let mut along = along.into_iter();
    let channels = along.next().ok_or(Refusal::Form("it has no channels"))?;
    let count = channels.len();
    let stays = channels.len() == input.shape.c && channels.iter().enumerate().all(|(i, at)| *at == Some(i));
    let channels = if stays { Channels::All(input.shape.c) } else { Channels::Some(channels) };
    let columns = along.next_back().unwrap_or_else(|| vec![Some(0)]);
    let rows = along.next_back().unwrap_or_else(|| vec![Some(0)]);
    if [rows.len(), columns.len(), count] != [output.h, output.w, output.c] {
        return Err(Refusal::Form("its sizes make no sense"));
    }
    let operation = Select { rows, columns, channels, width: input.shape.w, fill };
    let made = lowering.step(id, &[input], output, Box::new(operation));
    Ok(Outcome::Real(Activation { made, offset: 0, shape: output, ..input }))
}

fn dims(lowering: &Lowering<'_>, id: NodeId) -> Result<Vec<usize>, Refusal> {
    let dims = lowering.input(id, 0).and_then(|v| lowering.shapes().of(v));
    dims.map(<[usize]>::to_vec).ok_or(Refusal::Form("a shape that is not known"))
}

/// Pad 2 with attributes, 11 to 25 with inputs; constant, edge, reflect, wrap.
pub(super) fn lower_pad(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let proto = lowering.graph().proto(id);
    let pads = ints(lowering, id, 1, "pads")?.ok_or(Refusal::Form("its pads are no constants"))?;
    let axes = ints(lowering, id, 3, "")?;
    let mode = proto.string("mode").unwrap_or("constant");
    let value = match lowering.input(id, 2) {
        None => proto.float("value").unwrap_or(0.0),
        Some(_) => {
            let quantised =
                lowering.fixed_byte(id, 2).map(|(q, of)| (f32::from(q) - f32::from(of.zero)) * of.scale);
            let real = lowering.reals(id, 2).filter(|v| v.len() == 1).map(|v| v[0]);
            quantised.or(real).ok_or(Refusal::Form("what it pads with is no constant"))?
        }
    };
    let along = padded(&dims(lowering, id)?, &pads, axes.as_deref(), mode);
    let mut along = along.map_err(|_| Refusal::Form("its pads make no sense"))?;
    if along.remove(0) != [Some(0)] {
        return Err(Refusal::Form("it pads the batch"));
    }
    let byte = rint(value / input.quantity.scale) + i32::from(input.quantity.zero);
    // A constant that the bytes cannot say would change what is quantised next.
    let exact = (f32::from(byte as u8) - f32::from(input.quantity.zero)) * input.quantity.scale == value;
    if mode == "constant" && !(exact && (0..=255).contains(&byte)) {
        return Err(Refusal::Form("its bytes cannot say what it pads with"));
    }
    selected(lowering, id, input, along, byte.clamp(0, 255) as u8)
}

/// Gather with constant indices.
pub(super) fn lower_gather(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let dims = dims(lowering, id)?;
    let none = Refusal::Form("its indices are no constants");
    let indices = ints(lowering, id, 1, "")?.ok_or(none)?;
    let rank = lowering.input(id, 1).and_then(|v| lowering.shapes().of(v)).map(<[usize]>::len);
    if rank != Some(1) {
        return Err(Refusal::Form("its indices are no list"));
    }
    let axis = dimension(lowering.graph().proto(id).int("axis").unwrap_or(0), dims.len())?;
    let mut along: Vec<Vec<Option<usize>>> = dims.iter().map(|d| (0..*d).map(Some).collect()).collect();
    let length = dims[axis] as i64;
    let inside = |i: &i64| (-length..length).contains(i).then(|| Some(i.rem_euclid(length) as usize));
    along[axis] =
        indices.iter().map(inside).collect::<Option<_>>().ok_or(Refusal::Form("an index is outside"))?;
    if axis == 0 {
        return Err(Refusal::Form("it gathers along the batch"));
    }
    along.remove(0);
    selected(lowering, id, input, along, 0)
}

pub(super) fn lower_tile(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output =
        lowering.shapes().of(lowering.output(id)?).ok_or(Refusal::Form("a shape that is not known"))?;
    let dims = dims(lowering, id)?;
    let along =
        output.iter().zip(&dims).skip(1).map(|(n, d)| (0..*n).map(|i| Some(i % d)).collect()).collect();
    selected(lowering, id, input, along, 0)
}
