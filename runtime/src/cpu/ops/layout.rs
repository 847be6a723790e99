//! Operators that move bytes and compute nothing: Transpose, Slice, Split, Concat, Expand, DepthToSpace, SpaceToDepth,
//! and those that give the same elements another shape.
//!
//! Parts along the channels are views, and a transposition that only says where the channels lie moves nothing.

use super::{
    super::{
        describe::Description,
        lower::{Activation, Along, Concat, Form, Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Order, Shape, View, ViewMut},
    },
    strided::{DIMENSIONS_MAX, Step, Strided},
};
use crate::{
    graph::{NodeId, ValueId},
    plain::{sliced, split_sizes},
};

/// Bytes that are always the same.
struct Constant {
    bytes: Vec<u8>,
    channels: usize,
}

pub(crate) fn constant(bytes: Vec<u8>, shape: Shape) -> Box<dyn Operation> {
    Box::new(Constant { bytes, channels: shape.c })
}

impl Operation for Constant {
    fn describe(&self) -> Option<Description<'_>> {
        Some(Description::Constant { bytes: &self.bytes })
    }

    fn run(&self, _: &mut Context<'_>, _: &[View<'_>], mut output: ViewMut<'_>) {
        let pixels = output.pixels(self.channels);
        pixels.zip(self.bytes.chunks_exact(self.channels)).for_each(|(to, from)| to.copy_from_slice(from));
    }
}

/// An input whose dimensions are known one by one.
struct Source {
    activation: Activation,
    dims: Vec<usize>,
    /// From one index of each ONNX dimension to the next.
    steps: Vec<Step>,
}

impl Source {
    fn of(lowering: &Lowering<'_>, id: NodeId) -> Result<Self, Refusal> {
        let activation = lowering.activation(id, 0)?;
        let value = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
        let dims = lowering.shapes().of(value).ok_or(Refusal::Form("a shape that is not known"))?.to_vec();
        if dims.len() >= DIMENSIONS_MAX {
            return Err(Refusal::Form("it has too many dimensions"));
        }
        let mut steps = vec![Step::default(); dims.len()];
        let memory = memory(dims.len(), activation.order);
        let mut pixels = 1;
        for (i, d) in memory.iter().rev().enumerate() {
            if i == 0 {
                steps[*d] = Step::channels(1);
            } else {
                steps[*d] = Step::pixels(pixels);
                pixels *= dims[*d];
            }
        }
        Ok(Self { activation, dims, steps })
    }

    /// A moved copy: each ONNX dimension of the output with its size and step.
    fn moved(
        &self,
        lowering: &mut Lowering<'_>,
        id: NodeId,
        output: ValueId,
        dims: &[(usize, Step)],
        start: Step,
    ) -> Result<Activation, Refusal> {
        let order = self.activation.order;
        let shape = lowering.shape_in(output, order)?;
        let dims: Vec<(usize, Step)> = memory(dims.len(), order).into_iter().map(|d| dims[d]).collect();
        let dims = if dims.is_empty() { vec![(1, Step::default())] } else { dims };
        let bytes = dims.iter().try_fold(1usize, |bytes, (size, _)| bytes.checked_mul(*size));
        if bytes != Some(shape.bytes()) || dims.last().map(|(size, _)| *size) != Some(shape.c) {
            return Err(Refusal::Form("its sizes make no sense"));
        }
        let made = lowering.step(id, &[self.activation], shape, Box::new(Strided::new(&dims, start)));
        Ok(Activation { made, offset: 0, shape, ..self.activation })
    }

    /// Some indices of one dimension.
    fn part(
        &self,
        lowering: &mut Lowering<'_>,
        id: NodeId,
        output: ValueId,
        along: &[(usize, isize, usize)],
    ) -> Result<Activation, Refusal> {
        let channels = memory(self.dims.len(), self.activation.order).pop();
        let whole =
            |(d, part): (usize, &(usize, isize, usize))| Some(d) == channels || *part == (0, 1, self.dims[d]);
        if let Some((first, 1, size)) = channels.map(|d| along[d])
            && along.iter().enumerate().all(whole)
        {
            let Activation { offset, shape, .. } = self.activation;
            return Ok(Activation {
                offset: offset + first,
                shape: Shape { c: size, ..shape },
                ..self.activation
            });
        }
        let (mut start, mut dims) = (Step::default(), vec![]);
        for (step, (first, by, size)) in self.steps.iter().zip(along) {
            start.pixels += step.pixels * *first as isize;
            start.channels += step.channels * *first as isize;
            dims.push((*size, Step { pixels: step.pixels * by, channels: step.channels * by }));
        }
        self.moved(lowering, id, output, &dims, start)
    }
}

/// ONNX's dimensions as they lie in memory, outermost first; the last is the channels.
fn memory(rank: usize, order: Order) -> Vec<usize> {
    let mut dims: Vec<usize> = (0..rank).collect();
    if order == Order::ChannelsLast && rank > 2 {
        let channels = dims.remove(1);
        dims.push(channels);
    }
    dims
}

fn output(lowering: &Lowering<'_>, id: NodeId, index: usize) -> Result<ValueId, Refusal> {
    let output = lowering.graph().node(id).outputs.get(index).copied().flatten();
    output.ok_or(Refusal::Form("one of its outputs is missing"))
}

/// The dimension that an axis of so many is; none outside of them.
pub(super) fn dimension(axis: i64, rank: usize) -> Result<usize, Refusal> {
    let axis = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    let axis = usize::try_from(axis).ok().filter(|axis| *axis < rank);
    axis.ok_or(Refusal::Form("its axis makes no sense"))
}

pub(super) fn ints(
    lowering: &Lowering<'_>,
    id: NodeId,
    index: usize,
    name: &str,
) -> Result<Option<Vec<i64>>, Refusal> {
    if lowering.input(id, index).is_none() {
        return Ok(lowering.graph().proto(id).ints(name).map(<[i64]>::to_vec));
    }
    let tensor = lowering.constant(id, index).ok_or(Refusal::Form("one of its parameters is no constant"))?;
    let narrow = || tensor.to_i32().map(|v| v.into_iter().map(i64::from).collect());
    tensor.to_i64().or_else(|_| narrow()).map(Some).map_err(|_| Refusal::Form("a parameter is no integer"))
}

pub(super) fn lower_transpose(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let source = Source::of(lowering, id)?;
    let rank = source.dims.len();
    let default: Vec<i64> = (0..rank as i64).rev().collect();
    let perm = lowering.graph().proto(id).ints("perm").unwrap_or(&default);
    let perm: Option<Vec<usize>> =
        perm.iter().map(|p| usize::try_from(*p).ok().filter(|p| *p < rank)).collect();
    let perm = perm.filter(|p| p.len() == rank).ok_or(Refusal::Form("its order makes no sense"))?;
    let to = output(lowering, id, 0)?;
    // The order in which the output's dimensions would lie in the input's memory, single ones left out.
    let real = |d: &usize| source.dims[*d] > 1;
    let lies: Vec<usize> = memory(rank, source.activation.order).into_iter().filter(real).collect();
    for order in [Order::ChannelsLast, Order::RowMajor] {
        let wanted: Vec<usize> = memory(rank, order).into_iter().map(|d| perm[d]).filter(real).collect();
        if let Ok(shape) = lowering.shape_in(to, order)
            && wanted == lies
        {
            return Ok(Outcome::Real(lowering.reshaped(id, source.activation, shape, order)?));
        }
    }
    let dims: Vec<(usize, Step)> = perm.iter().map(|d| (source.dims[*d], source.steps[*d])).collect();
    Ok(Outcome::Real(source.moved(lowering, id, to, &dims, Step::default())?))
}

pub(super) fn lower_slice(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let source = Source::of(lowering, id)?;
    let none = Refusal::Form("its bounds are no constants");
    let (starts, ends) =
        (ints(lowering, id, 1, "starts")?.ok_or(none)?, ints(lowering, id, 2, "ends")?.ok_or(none)?);
    let (axes, steps) = (ints(lowering, id, 3, "axes")?, ints(lowering, id, 4, "")?);
    let along = sliced(&source.dims, &starts, &ends, axes.as_deref(), steps.as_deref());
    let along = along.map_err(|_| Refusal::Form("its bounds make no sense"))?;
    let run = |indices: &Vec<usize>| match indices[..] {
        [] => None,
        [one] => Some((one, 1, 1)),
        [first, second, ..] => Some((first, second as isize - first as isize, indices.len())),
    };
    let along: Option<Vec<_>> = along.iter().map(run).collect();
    let along = along.ok_or(Refusal::Form("it is empty"))?;
    let to = output(lowering, id, 0)?;
    Ok(Outcome::Real(source.part(lowering, id, to, &along)?))
}

pub(super) fn lower_split(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let source = Source::of(lowering, id)?;
    let proto = lowering.graph().proto(id);
    let axis = proto.int("axis").unwrap_or(0);
    let axis = dimension(axis, source.dims.len())?;
    let sizes = ints(lowering, id, 1, "split")?;
    let outputs = lowering.graph().node(id).outputs.len();
    let sizes = split_sizes(source.dims[axis], sizes.as_deref(), outputs);
    let sizes = sizes.filter(|s| s.len() == outputs && !s.contains(&0));
    let (mut first, mut parts) = (0, vec![]);
    for (index, size) in sizes.ok_or(Refusal::Form("its sizes make no sense"))?.into_iter().enumerate() {
        let mut along: Vec<_> = source.dims.iter().map(|d| (0, 1, *d)).collect();
        along[axis] = (first, 1, size);
        first += size;
        let to = output(lowering, id, index)?;
        parts.push(source.part(lowering, id, to, &along)?);
    }
    Ok(Outcome::Parts(parts))
}

pub(super) fn lower_concat(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let to = output(lowering, id, 0)?;
    let rank = lowering.shapes().of(to).map_or(0, <[usize]>::len) as i64;
    let axis = lowering.graph().proto(id).int("axis").unwrap_or(1);
    let axis = usize::try_from(if axis < 0 { axis.saturating_add(rank) } else { axis }).ok();
    let count = lowering.graph().node(id).inputs.len();
    let dims = lowering.shapes().of(to).unwrap_or(&[]).to_vec();
    // In one order or the other they join the channels, or whole runs of pixels: nothing but single dimensions is
    // outside of the one that they join.
    let joins = |order: Order| {
        let memory = memory(rank as usize, order);
        let outermost = memory.iter().find(|d| dims[**d] != 1 || Some(**d) == axis).copied();
        if lowering.shape_in(to, order).is_err() {
            None
        } else if memory.last().copied() == axis {
            Some(Along::Channels)
        } else {
            (outermost == axis).then_some(Along::Pixels)
        }
    };
    let own = (0..count).find_map(|i| lowering.activation(id, i).ok()).map(|a| a.order);
    let orders = own.into_iter().chain([Order::ChannelsLast, Order::RowMajor]);
    let found = orders.filter_map(|order| Some((order, joins(order)?))).next();
    let (order, along) = found.ok_or(Refusal::Form("it joins neither channels nor runs of pixels"))?;
    let shape = lowering.shape_in(to, order)?;
    let parts = (0..count).map(|i| lowering.operand(id, i, order)).collect::<Result<Vec<_>, _>>()?;
    let same = |p: &Activation| match along {
        Along::Channels => p.shape.pixels() == shape.pixels(),
        Along::Pixels => p.shape.c == shape.c,
    };
    let fits =
        parts.iter().all(same) && parts.iter().map(|p| p.shape.bytes()).sum::<usize>() == shape.bytes();
    if !fits {
        return Err(Refusal::Form("its parts do not add up"));
    }
    Ok(Outcome::Concat(Concat { node: id, parts, along, shape, order }))
}

pub(super) fn lower_expand(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let source = Source::of(lowering, id)?;
    let to = output(lowering, id, 0)?;
    let dims = lowering.shapes().of(to).ok_or(Refusal::Form("a shape that is not known"))?.to_vec();
    if dims.len() != source.dims.len() {
        return Err(Refusal::Form("it adds dimensions"));
    }
    let dim = |(d, size): (usize, &usize)| match source.dims[d] {
        own if own == *size => Ok((*size, source.steps[d])),
        1 => Ok((*size, Step::default())),
        _ => Err(Refusal::Form("its sizes make no sense")),
    };
    let dims = dims.iter().enumerate().map(dim).collect::<Result<Vec<_>, _>>()?;
    Ok(Outcome::Real(source.moved(lowering, id, to, &dims, Step::default())?))
}

/// An activation whose pixels or channels repeat until it has the shape; of the order that it has.
pub(super) fn stretched(
    lowering: &mut Lowering<'_>,
    id: NodeId,
    from: Activation,
    shape: Shape,
) -> Result<Activation, Refusal> {
    let step = |own: usize, full: usize, step: Step| match own {
        own if own == full => Ok((full, step)),
        1 => Ok((full, Step::default())),
        _ => Err(Refusal::Form("its inputs have shapes that do not broadcast as they lie")),
    };
    let dims = [
        step(from.shape.h, shape.h, Step::pixels(from.shape.w))?,
        step(from.shape.w, shape.w, Step::pixels(1))?,
        step(from.shape.c, shape.c, Step::channels(1))?,
    ];
    let made = lowering.step(id, &[from], shape, Box::new(Strided::new(&dims, Step::default())));
    Ok(Activation { made, offset: 0, shape, ..from })
}

/// DepthToSpace and SpaceToDepth.
pub(super) fn lower_blocks(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    let proto = lowering.graph().proto(id);
    let block = proto.int("blocksize").and_then(|b| usize::try_from(b).ok()).filter(|b| *b > 0);
    let b = block.ok_or(Refusal::Form("its blocks make no sense"))?;
    let Shape { w, c, .. } = input.shape;
    let (small, large) =
        if proto.op_type == "DepthToSpace" { (input.shape, output) } else { (output, input.shape) };
    let times = |side: usize| side.checked_mul(b);
    if times(small.h) != Some(large.h)
        || times(small.w) != Some(large.w)
        || times(large.c).and_then(times) != Some(small.c)
    {
        return Err(Refusal::Form("its blocks do not fill its input"));
    }
    // For each pixel of the larger side within a block: which channels of the smaller side are its.
    let dims = if proto.op_type == "DepthToSpace" {
        let depth = output.c;
        let (row, column, channel) = if proto.string("mode") == Some("CRD") {
            (Step::channels(b), Step::channels(1), Step::channels(b * b))
        } else {
            (Step::channels(b * depth), Step::channels(depth), Step::channels(1))
        };
        vec![(input.shape.h, Step::pixels(w)), (b, row), (w, Step::pixels(1)), (b, column), (depth, channel)]
    } else {
        // Channels of the output: row in the block, column in the block, channel. The last one alone is contiguous.
        vec![
            (output.h, Step::pixels(w * b)),
            (output.w, Step::pixels(b)),
            (b, Step::pixels(w)),
            (b, Step::pixels(1)),
            (c, Step::channels(1)),
        ]
    };
    let area = output.bytes();
    // Written as pixels of `c` channels, read as pixels of `output.c`.
    let written = Shape { h: 1, w: area / dims[4].0, c: dims[4].0 };
    let made = lowering.step(id, &[input], written, Box::new(Strided::new(&dims, Step::default())));
    let moved = Activation { made, offset: 0, shape: written, ..input };
    Ok(Outcome::Real(lowering.reshaped(id, moved, output, Order::ChannelsLast)?))
}

/// A node that gives its input another shape.
pub(super) fn lower_reshape(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let to = output(lowering, id, 0)?;
    let from = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
    let form = lowering.forms[from.index()].clone();
    // One pixel is one pixel, and the same shape the same.
    let stays = |lowering: &Lowering<'_>, shape: Shape, order: Order| {
        let new = lowering.shape_in(to, order).ok()?;
        let same = new == shape || (shape.pixels() == 1 && new.pixels() == 1 && new.c == shape.c);
        same.then_some(new)
    };
    match form {
        Form::Pending(pending) => {
            let shape = stays(lowering, pending.shape, pending.order);
            let shape = shape.ok_or(Refusal::Form("it would move channels before they are quantised"))?;
            Ok(Outcome::Pending(Pending { shape, ..pending }))
        }
        Form::Mean(of, pending) => {
            let shape = stays(lowering, pending.shape, pending.order);
            let shape = shape.ok_or(Refusal::Form("it would move channels before they are quantised"))?;
            Ok(Outcome::Mean(of, Pending { shape, ..pending }))
        }
        Form::Real(activation) => {
            // As long as the channels stay, so does all that lies in memory.
            let channels = lowering.shape_in(to, Order::ChannelsLast).ok();
            if let Some(shape) =
                channels.filter(|s| activation.order == Order::ChannelsLast && s.c == activation.shape.c)
            {
                return Ok(Outcome::Real(lowering.reshaped(id, activation, shape, Order::ChannelsLast)?));
            }
            let shape = lowering.shape_in(to, Order::RowMajor)?;
            let activation = lowering.ordered(id, activation, from, Order::RowMajor)?;
            Ok(Outcome::Real(lowering.reshaped(id, activation, shape, Order::RowMajor)?))
        }
        _ => Err(Refusal::Form("its input is not quantised")),
    }
}
