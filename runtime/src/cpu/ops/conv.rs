//! Conv: rows of the input under a window, as one matrix product for each group.
//!
//! ONNX Conv 1 and 11; one or two spatial dimensions, any kernel, stride, dilation, padding and number of groups. Weights s8, or u8 that fit s8 without their zero point; per tensor or per output channel. One input
//! channel and one output channel a group is [`super::depthwise`].

use std::ops::Range;

use super::{
    super::{
        describe::{Convolution, Description, Filters, Skipped, Sources},
        kernels::{Finished, Isa, Matrix, Place, Skip, Sum, Target, Windows, product, rint},
        lower::{Lowering, Outcome, Packing, Pending, Refusal},
        plan::{Context, Operation, Quantity, Shape, View, ViewMut},
    },
    depthwise,
    table::fuse,
};
use crate::{graph::NodeId, shape};

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    let ([m, c], window) = filter(lowering, id)?;
    let weights = Weights::read(lowering, id, m, c * window.kernel[0] * window.kernel[1], 0, input.quantity)?;
    let geometry = Geometry::new(&window, input.shape, output)?;
    let groups = lowering.graph().proto(id).int("group").unwrap_or(1);
    let groups = usize::try_from(groups).unwrap_or(0);
    let fits = groups > 0 && groups.checked_mul(c) == Some(input.shape.c) && m.is_multiple_of(groups);
    if !fits || m != output.c {
        return Err(Refusal::Form("its channels do not fit its groups"));
    }
    let packing = lowering.packing();
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let sums = weights.sums(input.quantity, result, target)?;
        Ok(operation(packing, geometry, groups, &weights, &sums, input.quantity.zero, target))
    };
    Ok(Outcome::Pending(Pending::new(id, &[input], output, finish)))
}

/// The first two dimensions of a node's weights, and the window that the others are; one dimension is two, the first
/// of size 1.
pub(super) fn filter(lowering: &Lowering<'_>, id: NodeId) -> Result<([usize; 2], shape::Window), Refusal> {
    let none = Refusal::Form("its weights are no constant");
    let dims = lowering.fixed(id, 1).and_then(|f| f.tensor.shape()).ok_or(none)?;
    let [m, c, kernel @ ..] = &*dims else { return Err(Refusal::Form("its weights are no filters")) };
    let window = shape::Window::of(lowering.graph().proto(id), kernel);
    let window = window.ok_or(Refusal::Form("its window makes no sense"))?;
    match kernel.len() {
        1 => Ok(([*m, *c], window.on_a_row())),
        2 => Ok(([*m, *c], window)),
        _ => Err(Refusal::Form("it has more than two spatial dimensions")),
    }
}

/// The step for a convolution.
pub(super) fn operation(
    packing: Packing,
    geometry: Geometry,
    groups: usize,
    weights: &Weights,
    sums: &Sums,
    zero: u8,
    target: Target,
) -> Box<dyn Operation> {
    let filters = weights.kept(packing.sources, sums, geometry.kernel[0] * geometry.kernel[1]);
    if groups == geometry.input.c && groups == geometry.output.c {
        let mut depthwise = depthwise::Depthwise::new(packing.isa, geometry, weights, sums, zero, target);
        depthwise.filters = filters.map(|filters| (filters, geometry));
        return Box::new(depthwise);
    }
    let conv = Conv::new(packing.isa, geometry, groups, weights, sums, zero, target);
    Box::new(Conv { filters, ..conv })
}

/// s8 weights and i32 bias of a linear operator: `rows` results of `columns` products each.
pub(super) struct Weights {
    columns: usize,
    /// `[rows, columns]`
    values: Vec<i8>,
    scales: Vec<f32>,
    bias: Vec<i32>,
}

impl Weights {
    /// Inputs 1 and 2 of a node. `axis`: where a scale for each result runs.
    pub(super) fn read(
        lowering: &Lowering<'_>,
        id: NodeId,
        rows: usize,
        columns: usize,
        axis: i64,
        input: Quantity,
    ) -> Result<Self, Refusal> {
        let fixed = lowering.fixed(id, 1).ok_or(Refusal::Form("its weights are no constant"))?;
        let values =
            fixed.centred().ok_or(Refusal::Form("its weights do not fit s8 without their zero point"))?;
        lowering.graph().let_go(fixed.tensor);
        let rank = fixed.tensor.dims.len() as i64;
        let scales = match fixed.scales.len() {
            1 => vec![fixed.scales[0]; rows],
            n if n == rows && fixed.axis.rem_euclid(rank.max(1)) == axis => fixed.scales,
            _ => return Err(Refusal::Form("its weights have scales along another axis")),
        };
        let empty = rows == 0 || columns == 0;
        if empty
            || rows.checked_mul(columns) != Some(values.len())
            || !scales.iter().all(|s| s.is_normal() && *s > 0.0)
        {
            return Err(Refusal::Form("its weights have a scale or a size that makes no sense"));
        }
        let bias = bias(lowering, id, &scales, input)?;
        Ok(Self { columns, values, scales, bias })
    }

    /// Of weights that were read as `[columns, rows]`.
    pub(super) fn transposed(mut self) -> Self {
        let (rows, columns) = (self.bias.len(), self.columns);
        let mut values = vec![0; rows * columns];
        for (column, from) in self.values.chunks_exact(rows.max(1)).enumerate() {
            let to = values.iter_mut().skip(column).step_by(columns);
            to.zip(from).for_each(|(to, from)| *to = *from);
        }
        self.values = values;
        self
    }

    /// The same results of others of the products: `from(row, column)` is where each weight is among these, or it is 0.
    pub(super) fn picked(&self, columns: usize, from: impl Fn(usize, usize) -> Option<usize>) -> Self {
        let at = |i: usize| from(i / columns, i % columns).map_or(0, |at| self.values[at]);
        let values = (0..self.bias.len() * columns).map(at).collect();
        Self { columns, values, scales: self.scales.clone(), bias: self.bias.clone() }
    }

    /// What becomes of the sums, for each result. Refuses sums that could leave i32 where that would matter.
    pub(super) fn sums(&self, input: Quantity, output: Quantity, target: Target) -> Result<Sums, Refusal> {
        let mut sums = Sums { bias: vec![], multiplier: vec![], constant: vec![] };
        for ((row, bias), scale) in
            self.values.chunks_exact(self.columns.max(1)).zip(&self.bias).zip(&self.scales)
        {
            let multiplier = (input.scale * scale) / output.scale;
            if !multiplier.is_finite() {
                return Err(Refusal::Form("its scales are too far apart"));
            }
            let (negative, positive) = added_up(row);
            let folded = i64::from(*bias) - i64::from(input.zero) * (negative + positive);
            // Every partial sum lies between these two.
            let (least, most) = (folded + 255 * negative, folded + 255 * positive);
            let inside = |sum: i64| i32::try_from(sum).is_ok();
            let bias = folded.clamp(i32::MIN.into(), i32::MAX.into());
            // A dead channel has a tiny scale and a bias at the end of i32. All its sums mean one byte, mostly; then
            // they need not be computed.
            let constant = !(inside(least) && inside(most));
            let byte = |sum: i64| (rint(sum as f32 * multiplier) + i32::from(target.zero)).clamp(0, 255);
            if constant && [least, most].iter().any(|sum| byte(*sum) != byte(bias)) {
                return Err(Refusal::Form("its sums could leave 32 bits"));
            }
            sums.bias.push(bias as i32);
            sums.multiplier.push(multiplier);
            sums.constant.push(constant);
        }
        Ok(sums)
    }

    /// All weights of some of the results as a window has them: channels innermost, which ONNX has outermost, `taps` of each.
    /// Those that do not matter are 0.
    pub(super) fn arranged(&self, sums: &Sums, rows: Range<usize>, taps: usize) -> Vec<i8> {
        let channels = self.columns / taps.max(1);
        let mut arranged = vec![0; rows.len() * self.columns];
        for (to, row) in arranged.chunks_exact_mut(self.columns.max(1)).zip(rows) {
            if sums.constant[row] {
                continue;
            }
            let from = &self.values[row * self.columns..][..self.columns];
            if taps == 1 {
                to.copy_from_slice(from);
                continue;
            }
            for (tap, to) in to.chunks_exact_mut(channels.max(1)).enumerate() {
                to.iter_mut().zip(from[tap..].iter().step_by(taps)).for_each(|(to, weight)| *to = *weight);
            }
        }
        arranged
    }

    /// What a step needs to say what it does, if it is to keep that.
    pub(super) fn kept(&self, sources: Sources, sums: &Sums, taps: usize) -> Option<Box<Filters>> {
        let filters = || Filters {
            weights: self.arranged(sums, 0..sums.bias.len(), taps),
            bias: sums.bias.clone(),
            multiplier: sums.multiplier.clone(),
        };
        (sources == Sources::Kept).then(|| Box::new(filters()))
    }

    /// The weight of result `row` for input `column`, as far as it matters.
    pub(super) fn at(&self, row: usize, column: usize, sums: &Sums) -> i8 {
        if sums.constant[row] { 0 } else { self.values[row * self.columns + column] }
    }
}

/// Of the weights below zero and of those above, in parts short enough for i16, of which processors add many at once.
fn added_up(row: &[i8]) -> (i64, i64) {
    let mut sums = (0, 0);
    for part in row.chunks(256) {
        let (negative, positive) = part.iter().fold((0i16, 0i16), |(negative, positive), w| {
            (negative + i16::from((*w).min(0)), positive + i16::from((*w).max(0)))
        });
        sums = (sums.0 + i64::from(negative), sums.1 + i64::from(positive));
    }
    sums
}

/// One of each for each result.
pub(super) struct Sums {
    /// With the input's zero point folded in.
    pub(super) bias: Vec<i32>,
    pub(super) multiplier: Vec<f32>,
    /// Whatever the input, the bias alone gives the same byte.
    constant: Vec<bool>,
}

/// i32 of scale `input * weights`; a float one is brought to that scale.
fn bias(lowering: &Lowering<'_>, id: NodeId, scales: &[f32], input: Quantity) -> Result<Vec<i32>, Refusal> {
    let units = scales.iter().map(|scale| input.scale * scale);
    if lowering.input(id, 2).is_none() {
        return Ok(vec![0; scales.len()]);
    }
    if let Some(Ok(floats)) = lowering.constant(id, 2).map(|t| t.to_f32()) {
        let quantised = floats.iter().zip(units).map(|(b, unit)| (b / unit).round_ties_even());
        let quantised: Vec<f32> = quantised.collect();
        let fits = quantised.len() == scales.len() && quantised.iter().all(|b| b.abs() < 1e9);
        return if fits {
            Ok(quantised.iter().map(|b| *b as i32).collect())
        } else {
            Err(Refusal::Form("its bias is too large"))
        };
    }
    let fixed = lowering.fixed(id, 2).filter(|f| f.zeros.iter().all(|z| *z == 0));
    let fixed = fixed.ok_or(Refusal::Form("its bias is no constant"))?;
    let values = fixed.tensor.to_i32().map_err(|_| Refusal::Form("its bias is not i32"))?;
    // Writers compute the product in other orders: the last bit may differ.
    let scale =
        |i: usize| fixed.scales.get(if fixed.scales.len() == 1 { 0 } else { i }).copied().unwrap_or(f32::NAN);
    let same = |(i, unit): (usize, f32)| (scale(i) / unit - 1.0).abs() < 1e-5;
    if values.len() != scales.len() || !units.enumerate().all(same) {
        return Err(Refusal::Form("its bias has another scale than input times weights"));
    }
    Ok(values)
}

/// Where a window reads, once the input has its padding around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) input: Shape,
    pub(super) padded: Shape,
    pub(super) output: Shape,
    pub(super) kernel: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) dilations: [usize; 2],
    /// Rows above, columns to the left.
    pub(super) before: [usize; 2],
}

impl Geometry {
    pub(super) fn new(window: &shape::Window, input: Shape, output: Shape) -> Result<Self, Refusal> {
        /// A padded copy may be that much larger than the input, for networks with very small inputs.
        const PADDED_BYTES_MAX: usize = 16 << 20;
        let ((top, bottom), (left, right)) = (window.pads(0, input.h), window.pads(1, input.w));
        let padded = Shape { h: input.h + top + bottom, w: input.w + left + right, c: input.c };
        let bytes = padded.h.checked_mul(padded.w).and_then(|n| n.checked_mul(padded.c));
        if bytes.is_none_or(|n| n > PADDED_BYTES_MAX.max(input.bytes().saturating_mul(4))) {
            return Err(Refusal::Form("its padding is far larger than its input"));
        }
        let [kernel, strides, dilations] =
            [&window.kernel, &window.strides, &window.dilations].map(|v| [v[0], v[1]]);
        let last = |d: usize, size: usize| (size - 1) * strides[d] + window.extent(d);
        let inside =
            output.h > 0 && output.w > 0 && last(0, output.h) <= padded.h && last(1, output.w) <= padded.w;
        if !inside {
            return Err(Refusal::Form("its window leaves the input"));
        }
        Ok(Self { input, padded, output, kernel, strides, dilations, before: [top, left] })
    }

    /// A convolution of that form.
    pub(super) fn describe<'a>(
        &self,
        filters: &'a Filters,
        groups: usize,
        zero: u8,
        target: Target,
        table: Option<&'a [u8; 256]>,
    ) -> Convolution<'a> {
        let Self { input, output, kernel, strides, dilations, before, .. } = *self;
        Convolution {
            filters,
            input,
            output,
            kernel,
            strides,
            dilations,
            before,
            groups,
            zero,
            target,
            table,
            skip: None,
        }
    }

    fn has_padding(&self) -> bool {
        self.padded != self.input
    }

    /// The input with `zero` around it, pixel after pixel, in `to` (at least `padded.bytes()`).
    pub(super) fn pad(&self, input: View<'_>, zero: u8, to: &mut [u8]) {
        let (width, channels) = (self.input.w, self.input.c);
        let to = &mut to[..self.padded.bytes()];
        if self.has_padding() {
            to.fill(zero);
        }
        let rows = to.chunks_exact_mut(self.padded.w * channels).skip(self.before[0]);
        let stride = input.stride;
        for (row, input) in rows.zip(input.bytes.chunks(width * stride)) {
            let row = &mut row[self.before[1] * channels..][..width * channels];
            if input.len() == row.len() {
                row.copy_from_slice(input);
                continue;
            }
            for (to, from) in row.chunks_exact_mut(channels).zip(input.chunks(stride)) {
                to.copy_from_slice(&from[..channels]);
            }
        }
    }
}

/// The addition behind a convolution.
struct Residual {
    sum: Sum,
    /// The other input is its first operand.
    skip_first: bool,
    table: Option<Box<[u8; 256]>>,
}

struct Conv {
    geometry: Geometry,
    /// One a group.
    matrices: Vec<Matrix>,
    /// What a window sees, in stretches that lie together in memory: from its first byte to each of them.
    runs: Vec<usize>,
    /// Bytes of each.
    run: usize,
    zero: u8,
    target: Target,
    table: Option<Box<[u8; 256]>>,
    /// The second input is added to the result.
    residual: Option<Residual>,
    filters: Option<Box<Filters>>,
}

impl Conv {
    fn new(
        isa: Isa,
        geometry: Geometry,
        groups: usize,
        weights: &Weights,
        sums: &Sums,
        zero: u8,
        target: Target,
    ) -> Self {
        let Geometry { padded, output, kernel: [kh, kw], dilations, .. } = geometry;
        let (channels, per_group) = (padded.c / groups.max(1), output.c / groups.max(1));
        // Neighbouring columns are neighbours in memory, unless channels or columns are left out between them.
        let whole = groups == 1 && dilations[1] == 1;
        let (columns, run) = if whole { (1, kw * channels) } else { (kw, channels) };
        let at = |ky: usize, kx: usize| (ky * dilations[0] * padded.w + kx * dilations[1]) * padded.c;
        let runs = (0..kh).flat_map(|ky| (0..columns).map(move |kx| at(ky, kx))).collect::<Vec<usize>>();
        let matrix = |group: usize| {
            let range = group * per_group..(group + 1) * per_group;
            let (bias, multiplier) = (&sums.bias[range.clone()], &sums.multiplier[range.clone()]);
            Matrix::pack(isa, runs.len(), run, bias, multiplier, &weights.arranged(sums, range, kh * kw))
        };
        let matrices = (0..groups).map(matrix).collect();
        Self { geometry, matrices, runs, run, zero, target, table: None, residual: None, filters: None }
    }
}

/// Kernels read stretches rounded up to four bytes.
pub(super) const SLACK: usize = 3;

impl Operation for Conv {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let (geometry, input) = (&self.geometry, inputs[0]);
        let Geometry { padded, output: shape, kernel, strides, .. } = *geometry;
        let apart = input.stride != padded.c && kernel != [1, 1];
        let (bytes, stride) = if geometry.has_padding() || apart || !self.run.is_multiple_of(4) {
            let copy = context.scratch.reserve(padded.bytes() + SLACK);
            geometry.pad(input, self.zero, copy);
            (&*copy, padded.c)
        } else {
            (input.bytes, input.stride)
        };
        for (group, matrix) in self.matrices.iter().enumerate() {
            let windows = Windows {
                rows: shape.h * shape.w,
                start: group * (padded.c / self.matrices.len()),
                width: shape.w,
                right: strides[1] * stride,
                down: strides[0] * padded.w * stride,
                runs: &self.runs,
            };
            let place = Place { offset: group * matrix.columns(), stride: output.stride };
            let column = group * matrix.columns();
            let skip = self.residual.as_ref().map(|residual| Skip {
                sum: residual.sum,
                bytes: &inputs[1].bytes[column..],
                stride: inputs[1].stride,
                first: residual.skip_first,
                table: residual.table.as_deref(),
            });
            let finished = Finished { target: self.target, table: self.table.as_deref(), skip };
            product(context.team, bytes, windows, matrix, finished, output.bytes, place);
        }
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        match &mut self.residual {
            Some(residual) => fuse(&mut residual.table, table),
            None => fuse(&mut self.table, table),
        }
        true
    }

    fn fuse_residual(&mut self, sum: Sum, skip_first: bool) -> bool {
        let free = self.residual.is_none();
        self.residual.get_or_insert(Residual { sum, skip_first, table: None });
        free
    }

    fn describe(&self) -> Option<Description<'_>> {
        let (groups, table) = (self.matrices.len(), self.table.as_deref());
        let filters = self.filters.as_deref()?;
        let skip = self.residual.as_ref().map(|residual| Skipped {
            byte: Box::new(|a, b| residual.sum.of(a, b)),
            slopes: residual.sum.slopes(),
            first: residual.skip_first,
            table: residual.table.as_deref(),
        });
        let convolution = self.geometry.describe(filters, groups, self.zero, self.target, table);
        Some(Description::Convolution(Convolution { skip, ..convolution }))
    }
}
