//! Products: Conv and ConvInteger, Gemm, MatMul and MatMulInteger, QLinearMatMul. Integers are exact.

use std::ops::Range;

use super::{Call, floats, get, one, quantise::bytes, size, tensor};
use crate::{
    shape::{self, Window},
    tensor::{Data, Tensor},
};

/// Eight running sums, added up in one fixed order: the same bits on every machine.
fn dot(x: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let ((xs, x_rest), (ws, w_rest)) = (x.as_chunks::<8>(), w.as_chunks::<8>());
    for (x, w) in xs.iter().zip(ws) {
        for (sum, (x, w)) in sums.iter_mut().zip(x.iter().zip(w)) {
            *sum += x * w;
        }
    }
    let rest = x_rest.iter().zip(w_rest).fold(0.0, |sum, (x, w)| sum + x * w);
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (b + f)) + ((c + g) + (d + h)) + rest
}

fn transposed<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect()
}

/// Gemm 7 to 13.
pub(super) fn gemm(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let (a, b) = (get(inputs, 0)?, get(inputs, 1)?);
    let ([a0, a1], [b0, b1]) = (a.shape(), b.shape()) else {
        return Err("its inputs are no matrices".into());
    };
    let flag = |name| call.node.int(name).unwrap_or(0) != 0;
    let (turn_a, turn_b) = (flag("transA"), flag("transB"));
    let (m, k) = if turn_a { (*a1, *a0) } else { (*a0, *a1) };
    let (l, n) = if turn_b { (*b1, *b0) } else { (*b0, *b1) };
    if k != l {
        return Err(format!("matrices of {:?} and {:?}", a.shape(), b.shape()));
    }
    let (left, right) = (floats(inputs, 0)?, floats(inputs, 1)?);
    let rows = if turn_a { transposed(left, k, m) } else { left.to_vec() };
    let columns = if turn_b { right.to_vec() } else { transposed(right, k, n) };
    let (alpha, beta) = (call.node.float("alpha").unwrap_or(1.0), call.node.float("beta").unwrap_or(1.0));
    size(&[m, n])?;
    let mut out: Vec<f32> =
        (0..m * n).map(|i| alpha * dot(&rows[i / n * k..][..k], &columns[i % n * k..][..k])).collect();
    if let Some(c) = inputs.get(2).copied().flatten() {
        let bias = floats(inputs, 2)?;
        let at = super::stretched(c.shape(), &[m, n])?;
        out.iter_mut().zip(at).for_each(|(out, at)| *out += beta * bias[at]);
    }
    one(vec![m, n], Data::F32(out))
}

/// The matrices of a product that broadcasts: `m`, `k`, `n`, and for each the offsets of left and right.
struct Batch {
    dims: Vec<usize>,
    m: usize,
    k: usize,
    n: usize,
    pairs: Vec<(usize, usize)>,
}

impl Batch {
    fn of(a: &[usize], b: &[usize]) -> Result<Self, String> {
        let wrong = || format!("matrices of {a:?} and {b:?}");
        // A vector is a row on the left and a column on the right, and leaves no dimension behind.
        let (left, right) = (a.len() == 1, b.len() == 1);
        let full_a = if left { vec![1, a[0]] } else { a.to_vec() };
        let full_b = if right { vec![b[0], 1] } else { b.to_vec() };
        let ([outer_a @ .., m, k], [outer_b @ .., l, n]) = (&*full_a, &*full_b) else { return Err(wrong()) };
        let outer = shape::broadcast(outer_a, outer_b).filter(|_| k == l).ok_or_else(wrong)?;
        let offsets = |own: &[usize], area: usize| -> Result<Vec<usize>, String> {
            Ok(super::stretched(own, &outer)?.into_iter().map(|i| i * area).collect())
        };
        let pairs = offsets(outer_a, m * k)?.into_iter().zip(offsets(outer_b, k * n)?).collect();
        let (m, k, n) = (*m, *k, *n);
        let mut dims = outer;
        dims.extend((!left).then_some(m).into_iter().chain((!right).then_some(n)));
        size(&dims)?;
        Ok(Self { dims, m, k, n, pairs })
    }

    /// `row(left row, right matrix turned, its column)` for each element.
    fn each<L: Copy, R: Copy, T>(
        &self,
        left: &[L],
        right: &[R],
        element: impl Fn(&[L], &[R]) -> T,
    ) -> Vec<T> {
        let (m, k, n) = (self.m, self.k, self.n);
        let mut out = Vec::with_capacity(self.pairs.len() * m * n);
        for (a, b) in &self.pairs {
            let columns = transposed(&right[*b..][..k * n], k, n);
            for row in 0..m {
                let row = &left[a + row * k..][..k];
                out.extend((0..n).map(|column| element(row, &columns[column * k..][..k])));
            }
        }
        out
    }
}

/// Bytes without their zero points: one for all, or one for each index of a dimension.
fn centred(inputs: &[Option<&Tensor>], index: usize, zero: usize, d: usize) -> Result<Vec<i16>, String> {
    let x = get(inputs, index)?;
    let values = bytes(x)?;
    let zeros = match inputs.get(zero).copied().flatten() {
        Some(zero) => bytes(zero)?,
        None => vec![0],
    };
    // What neither input nor zero point can be, if both are bytes.
    let less = |v: &i32, zero: i32| v.checked_sub(zero).and_then(|v| i16::try_from(v).ok());
    let wide = || "a value that is no byte".to_owned();
    if zeros.len() == 1 {
        return values.iter().map(|v| less(v, zeros[0])).collect::<Option<_>>().ok_or_else(wide);
    }
    let length =
        x.shape().get(d).copied().filter(|n| *n == zeros.len()).ok_or("zero points of another size")?;
    let inner: usize = x.shape()[d + 1..].iter().product();
    let zero = |i: usize| zeros[i / inner.max(1) % length];
    values.iter().enumerate().map(|(i, v)| less(v, zero(i))).collect::<Option<_>>().ok_or_else(wide)
}

/// In a form that processors have one instruction for.
fn sum(row: &[i16], column: &[i16]) -> i32 {
    let product = |(a, b): (&i16, &i16)| i32::from(*a) * i32::from(*b);
    row.iter().zip(column).map(product).fold(0, i32::wrapping_add)
}

fn wide_sum(row: &[i32], column: &[i32]) -> i32 {
    row.iter().zip(column).fold(0, |sum, (a, b)| sum.wrapping_add(a.wrapping_mul(*b)))
}

/// MatMul and MatMulInteger.
pub(super) fn product(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let (a, b) = (get(inputs, 0)?.shape(), get(inputs, 1)?.shape());
    if a.is_empty() || b.is_empty() {
        return Err("one of its inputs is a scalar".into());
    }
    let batch = Batch::of(a, b)?;
    if call.node.op_type == "MatMul" {
        if let (Data::I32(a), Data::I32(b)) = (get(inputs, 0)?.data(), get(inputs, 1)?.data()) {
            return one(batch.dims.clone(), Data::I32(batch.each(a, b, wide_sum)));
        }
        let values = batch.each(floats(inputs, 0)?, floats(inputs, 1)?, dot);
        return one(batch.dims, Data::F32(values));
    }
    let left = centred(inputs, 0, 2, a.len().saturating_sub(2))?;
    let right = centred(inputs, 1, 3, b.len() - 1)?;
    one(batch.dims.clone(), Data::I32(batch.each(&left, &right, sum)))
}

/// `rint(f32(sum) * (sa * sb / sy)) + zero`.
pub(super) fn quantised_product(_: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let (a, b) = (get(inputs, 0)?, get(inputs, 3)?);
    if a.shape().is_empty() || b.shape().is_empty() {
        return Err("one of its inputs is a scalar".into());
    }
    let batch = Batch::of(a.shape(), b.shape())?;
    let (scales_a, scales_b, scales_y) = (floats(inputs, 1)?, floats(inputs, 4)?, floats(inputs, 6)?);
    let ([scale_a], [scale_y]) = (scales_a, scales_y) else {
        return Err("its scales are not one each".into());
    };
    let zero_y = get(inputs, 7)?;
    let [zero] = bytes(zero_y)?[..] else { return Err("its zero points are not one each".into()) };
    let left = centred(inputs, 0, 2, a.shape().len().saturating_sub(2))?;
    let right = centred(inputs, 3, 5, b.shape().len() - 1)?;
    let sums = batch.each(&left, &right, sum);
    let scale = |i: usize| scales_b[if scales_b.len() == 1 { 0 } else { i % batch.n.max(1) }];
    if scales_b.len() != 1 && scales_b.len() != batch.n {
        return Err("its scales have another size".into());
    }
    let value =
        |(i, sum): (usize, i32)| (sum as f32 * ((scale_a * scale(i)) / scale_y)).round_ties_even() as i32;
    let values: Vec<i32> = sums.into_iter().enumerate().map(value).map(|v| v.saturating_add(zero)).collect();
    let data = super::quantise::to_bytes(zero_y.data(), &values)?;
    one(batch.dims, data)
}

/// Conv and ConvInteger of any number of spatial dimensions.
pub(super) fn convolution(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let (x, w) = (get(inputs, 0)?, get(inputs, 1)?);
    if call.node.op_type == "ConvInteger" {
        let (x_values, w_values) = (centred(inputs, 0, 2, 1)?, centred(inputs, 1, 3, 0)?);
        let (dims, out) =
            convolved(call, x.shape(), w.shape(), &x_values, &w_values, |total: i32, a: i16, b| {
                total.wrapping_add(i32::from(a) * i32::from(b))
            })?;
        return Ok(vec![tensor(dims, Data::I32(out))?]);
    }
    let (dims, mut out) =
        convolved(call, x.shape(), w.shape(), floats(inputs, 0)?, floats(inputs, 1)?, |total: f32, a, b| {
            total + a * b
        })?;
    if inputs.get(2).copied().flatten().is_some() {
        let bias = floats(inputs, 2)?;
        if bias.len() != dims[1] {
            return Err(format!("a bias of {} for {} channels", bias.len(), dims[1]));
        }
        let area: usize = dims[2..].iter().product();
        out.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i / area.max(1) % dims[1]]);
    }
    one(dims, Data::F32(out))
}

/// A convolution of single pixels: planes added up, in the order of the channels.
fn pointwise<V: Copy, T: Copy + Default>(
    images: usize,
    [outputs, inputs]: [usize; 2],
    area: usize,
    values: &[V],
    weights: &[V],
    add: impl Fn(T, V, V) -> T,
) -> Vec<T> {
    let mut out = vec![T::default(); images * outputs * area];
    for (i, out) in out.chunks_exact_mut(area.max(1)).enumerate() {
        let (image, output) = (i / outputs, i % outputs);
        for c in 0..inputs {
            let (plane, weight) =
                (&values[(image * inputs + c) * area..][..area], weights[output * inputs + c]);
            out.iter_mut().zip(plane).for_each(|(total, x)| *total = add(*total, *x, weight));
        }
    }
    out
}

fn convolved<V: Copy, T: Copy + Default>(
    call: &Call,
    x: &[usize],
    w: &[usize],
    values: &[V],
    weights: &[V],
    add: impl Fn(T, V, V) -> T,
) -> Result<(Vec<usize>, Vec<T>), String> {
    let wrong = || format!("input {x:?} and weights {w:?}");
    let groups = call.node.int("group").and_then(|g| usize::try_from(g).ok()).unwrap_or(1);
    let (true, [n, c, spatial @ ..], [m, depth, kernel @ ..]) = (groups > 0 && x.len() >= 3, x, w) else {
        return Err(wrong());
    };
    if depth.checked_mul(groups) != Some(*c) || m % groups != 0 {
        return Err(wrong());
    }
    let window = Window::of(&call.node, kernel).ok_or_else(wrong)?;
    let output = window.output(spatial).ok_or_else(wrong)?;
    let dims = [&[*n, *m], &*output].concat();
    size(&dims)?;
    size(&[output.iter().product(), kernel.iter().product()])?;
    if groups == 1
        && kernel.iter().all(|k| *k == 1)
        && output == spatial
        && window.strides.iter().all(|s| *s == 1)
    {
        return Ok((dims, pointwise(*n, [*m, *depth], output.iter().product(), values, weights, add)));
    }
    let rows = Rows::of(&window, spatial, &output);
    let (area, taps): (usize, usize) = (spatial.iter().product(), kernel.iter().product());
    let mut out = vec![T::default(); dims.iter().product()];
    for (i, plane) in out.chunks_exact_mut(output.iter().product::<usize>().max(1)).enumerate() {
        let (image, channel) = (i / m, i % m);
        let first = channel / (m / groups) * depth;
        for c in 0..*depth {
            let from = &values[(image * x[1] + first + c) * area..][..area];
            let weights = &weights[(channel * depth + c) * taps..][..taps];
            // Taps one after the other, so that each sum keeps the order in which ONNX lists them.
            weights.iter().enumerate().for_each(|(tap, weight)| rows.add(tap, from, *weight, plane, &add));
        }
    }
    Ok((dims, out))
}

/// How the rows of a convolution's output lie over those of its input.
struct Rows {
    /// For each tap of all dimensions but the last: where the input row lies that each output row sees through it.
    seen: Vec<Vec<Option<usize>>>,
    /// For each tap of the last dimension: the output pixels that it lies within the input for, and where it is for the
    /// first of them.
    spans: Vec<(Range<usize>, usize)>,
    stride: usize,
    /// Pixels of an input row and of an output row.
    width: usize,
    out_width: usize,
}

impl Rows {
    /// There is one dimension at least.
    fn of(window: &Window, input: &[usize], output: &[usize]) -> Self {
        let last = input.len() - 1;
        let (own, around, taps) = (
            super::strides(&output[..last]),
            super::strides(&input[..last]),
            super::strides(&window.kernel[..last]),
        );
        let place = |d: usize, out: usize, tap: usize| {
            let at =
                (out * window.strides[d] + tap * window.dilations[d]).checked_sub(window.pads(d, input[d]).0);
            at.filter(|at| *at < input[d])
        };
        let row = |tap: usize, out: usize| {
            (0..last).try_fold(0, |row, d| {
                let at = place(d, out / own[d] % output[d], tap / taps[d] % window.kernel[d])?;
                Some(row + at * around[d])
            })
        };
        let (rows, outer) = (output[..last].iter().product(), window.kernel[..last].iter().product());
        let seen = (0..outer).map(|tap| (0..rows).map(|out| row(tap, out)).collect()).collect();
        let span = |tap: usize| {
            let inside = |out: &usize| place(last, *out, tap).is_some();
            let first = (0..output[last]).find(inside).unwrap_or(output[last]);
            let end = (first..output[last]).find(|out| !inside(out)).unwrap_or(output[last]);
            (first..end, place(last, first, tap).unwrap_or(0))
        };
        let spans = (0..window.kernel[last]).map(span).collect();
        Self { seen, spans, stride: window.strides[last], width: input[last], out_width: output[last] }
    }

    /// Adds what one tap of the window brings to each output pixel.
    fn add<V: Copy, T: Copy>(
        &self,
        tap: usize,
        from: &[V],
        weight: V,
        out: &mut [T],
        add: impl Fn(T, V, V) -> T,
    ) {
        let (span, start) = &self.spans[tap % self.spans.len()];
        let rows = out.chunks_exact_mut(self.out_width.max(1));
        for (out, row) in rows.zip(&self.seen[tap / self.spans.len()]) {
            let (Some(row), false) = (row, span.is_empty()) else { continue };
            let (out, from) = (&mut out[span.clone()], &from[row * self.width + start..]);
            if self.stride == 1 {
                out.iter_mut().zip(from).for_each(|(total, x)| *total = add(*total, *x, weight));
            } else {
                let from = from.iter().step_by(self.stride);
                out.iter_mut().zip(from).for_each(|(total, x)| *total = add(*total, *x, weight));
            }
        }
    }
}
