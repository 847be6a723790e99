//! Between plain tensors and activations: quantising, dequantising, and moving channels to where they belong.

use std::{ops::Range, sync::Arc};

use super::{
    kernels::{Team, quantise, rint},
    plan::{Order, Quantity, Shape, View, ViewMut},
};
use crate::{
    plain::Pool,
    preprocess::normalised,
    resize::{ROWS, Resizer, Sides},
    session::Pictures,
    tensor::{Data, Tensor},
};

/// What a byte means when it is signed: the top bit is flipped.
const SIGN: u8 = 0x80;

/// A plain tensor to an activation.
#[derive(Debug, Clone)]
pub(super) struct Import {
    pub(super) order: Order,
    /// How f32 becomes bytes: `rint(x / scale) + zero`, clamped. u8 and i8 are taken as they are.
    pub(super) quantity: Quantity,
    /// f32 comes, or a picture; otherwise bytes.
    pub(super) real: bool,
    /// What becomes of pictures. A value of u8 is one then, with the channels of a pixel side by side.
    pub(super) pictures: Option<Box<Intaken>>,
}

/// Pictures for an activation, and what is kept from one to the next.
#[derive(Debug, Clone)]
pub(crate) struct Intaken {
    pub(crate) meaning: Pictures,
    /// What becomes of the bytes of one that has the right size, for each channel: the normalisation and the quantisation as
    /// one.
    pub(crate) tables: Arc<[[u8; 256]]>,
    /// For those of another size, of the last one's.
    resizer: Option<Resizer>,
    /// The last one's rows at their new width.
    rows: Vec<f32>,
}

impl Intaken {
    /// What a value of a picture means in a channel.
    pub(crate) fn real(&self, channel: usize, value: f32) -> f32 {
        normalised(value, self.meaning.mean[channel], self.meaning.std[channel])
    }
}

impl Import {
    /// From now on takes pictures, whose bytes `v` mean `(v - mean) / std`; whether it can.
    pub(super) fn take_pictures(&mut self, meaning: &Pictures, channels: usize) -> bool {
        let Pictures { mean, std, .. } = meaning;
        if self.order != Order::ChannelsLast || !self.real || mean.len() != channels || std.len() != channels
        {
            return false;
        }
        // The same operations in the same order as for a plain tensor.
        let byte = |v: usize, mean: f32, std: f32| self.byte(normalised(v as f32, mean, std));
        let tables = mean.iter().zip(std).map(|(m, s)| std::array::from_fn(|v| byte(v, *m, *s)));
        let (meaning, tables) = (meaning.clone(), tables.collect());
        self.pictures = Some(Box::new(Intaken { meaning, tables, resizer: None, rows: vec![] }));
        true
    }

    /// What an f32 becomes.
    pub(super) fn byte(&self, real: f32) -> u8 {
        byte(self.quantity, real)
    }

    /// A picture of any size.
    fn resized(
        &mut self,
        team: &mut Team,
        (from, pixels): (Sides, &[u8]),
        shape: Shape,
        out: &mut [u8],
    ) -> Result<(), String> {
        /// A group of channels: what is computed together. Whole pixels of one channel and of three.
        const TOGETHER: usize = 12;
        let to = [shape.h, shape.w, shape.c];
        let quantity = self.quantity;
        let pictures = self.pictures.as_mut().ok_or("it takes no pictures")?;
        let Intaken { meaning, resizer, rows, .. } = &mut **pictures;
        if !Resizer::has(from, to) {
            return Err(format!("a picture of sides {from:?} cannot become one of {to:?}"));
        }
        if resizer.as_ref().is_none_or(|known| known.from != from) {
            let new = resizer.insert(Resizer::new(from, to, meaning.fit));
            *rows = vec![0.0; from[0] * new.row()];
        }
        let Some(resizer) = &*resizer else { return Ok(()) };
        let (row, lanes) = (resizer.row(), resizer.lanes());
        let size = team.piece(rows.len(), ROWS * row, 4 << 10);
        team.pieces(rows, size, |part, out| resizer.across(pixels, part * (size / row), out));
        let [mean, std] = [&meaning.mean, &meaning.std]
            .map(|values| std::array::from_fn::<f32, TOGETHER, _>(|i| values[i % shape.c]));
        let (stride, window) = (shape.w * shape.c, resizer.window);
        let bar: [u8; TOGETHER] =
            std::array::from_fn(|i| byte(quantity, normalised(meaning.fill().into(), mean[i], std[i])));
        let has_bars = [window.height, window.width] != [shape.h, shape.w];
        let size = team.piece(out.len(), stride, 16 << 10);
        team.pieces(out, size, |part, out| {
            let repeated = if lanes == shape.c { 0 } else { window.width * shape.c };
            let (mut line, mut wide) = (vec![0.0; row], vec![0.0; repeated]);
            for (i, out) in out.chunks_exact_mut(stride).enumerate() {
                if has_bars {
                    out.iter_mut().zip(bar.iter().cycle()).for_each(|(out, bar)| *out = *bar);
                }
                let Some(y) = window.row(part * (size / stride) + i) else { continue };
                let out = &mut out[window.left * shape.c..][..window.width * shape.c];
                resizer.down(rows, y, &mut line);
                for (pixel, value) in wide.chunks_exact_mut(shape.c).zip(&line) {
                    pixel.fill(*value);
                }
                let values = if lanes == shape.c { &line } else { &wide };
                let byte = |i: usize, value: f32| byte(quantity, normalised(value, mean[i], std[i]));
                let (groups, last) = values.as_chunks::<TOGETHER>();
                let (bytes, last_bytes) = out.as_chunks_mut::<TOGETHER>();
                for (bytes, values) in bytes.iter_mut().zip(groups) {
                    *bytes = std::array::from_fn(|i| byte(i, values[i]));
                }
                for (i, (out, value)) in last_bytes.iter_mut().zip(last).enumerate() {
                    *out = byte(i, *value);
                }
            }
        });
        Ok(())
    }

    fn picture(&self, team: &mut Team, tables: &[[u8; 256]], values: &[u8], out: &mut [u8]) {
        let c = tables.len();
        let size = team.piece(out.len(), c, 16 << 10);
        team.pieces(out, size, |part, out| {
            let values = &values[part * size..][..out.len()];
            if let ([a, b, c], (out, []), (values, [])) =
                (tables, out.as_chunks_mut::<3>(), values.as_chunks::<3>())
            {
                for (out, v) in out.iter_mut().zip(values) {
                    *out = [a[usize::from(v[0])], b[usize::from(v[1])], c[usize::from(v[2])]];
                }
                return;
            }
            for (out, values) in out.chunks_exact_mut(c).zip(values.chunks_exact(c)) {
                for ((out, v), table) in out.iter_mut().zip(values).zip(tables) {
                    *out = table[usize::from(*v)];
                }
            }
        });
    }

    pub(super) fn run(
        &mut self,
        team: &mut Team,
        tensor: &Tensor,
        shape: Shape,
        out: ViewMut<'_>,
    ) -> Result<(), String> {
        if let (Data::U8(pixels), true, &[1, h, w, c]) =
            (tensor.data(), self.pictures.is_some() && out.stride == shape.c, tensor.shape())
            && [h, w, c] != [shape.h, shape.w, shape.c]
        {
            return self.resized(team, ([h, w, c], pixels), shape, out.bytes);
        }
        if tensor.data().len() != shape.bytes() {
            return Err(format!(
                "a value of shape {:?} where {} elements belong",
                tensor.shape(),
                shape.bytes()
            ));
        }
        let Quantity { scale, zero } = self.quantity;
        match tensor.data() {
            Data::U8(values) if self.pictures.is_some() && out.stride == shape.c => {
                let tables = self.pictures.as_ref().map(|pictures| &*pictures.tables);
                self.picture(team, tables.unwrap_or_default(), values, out.bytes);
            }
            Data::F32(values)
                if self.order == Order::ChannelsLast && out.stride == shape.c && shape.c > 0 =>
            {
                quantise(team, values, shape.c, scale, zero, out.bytes);
            }
            Data::F32(values) => self.spread(values, shape, out, |v| self.byte(*v)),
            Data::U8(values) => self.spread(values, shape, out, |v| *v),
            Data::I8(values) => self.spread(values, shape, out, |v| *v as u8 ^ SIGN),
            other => return Err(format!("a value of {} where f32 or bytes belong", other.type_name())),
        }
        Ok(())
    }

    fn spread<T>(&self, values: &[T], shape: Shape, mut out: ViewMut<'_>, byte: impl Fn(&T) -> u8) {
        let (c, area) = (shape.c, shape.pixels());
        if self.order == Order::RowMajor || area == 1 {
            for (pixel, values) in out.pixels(c).zip(values.chunks_exact(c.max(1))) {
                pixel.iter_mut().zip(values).for_each(|(out, value)| *out = byte(value));
            }
            return;
        }
        for (channel, plane) in values.chunks_exact(area.max(1)).enumerate() {
            for (pixel, value) in out.pixels(c).zip(plane) {
                pixel[channel] = byte(value);
            }
        }
    }
}

/// What an f32 becomes.
fn byte(Quantity { scale, zero }: Quantity, real: f32) -> u8 {
    (rint(real / scale) + i32::from(zero)).clamp(0, 255) as u8
}

/// An activation to a plain tensor.
pub(super) struct Export {
    pub(super) order: Order,
    /// Of the ONNX value.
    pub(super) dims: Vec<usize>,
    pub(super) form: Form,
}

/// Some channels of an activation with channels last, to a place in a plain f32 tensor: channel by channel a piece of a row.
pub(super) struct Piece {
    pub(super) channels: Range<usize>,
    /// The real value of each byte.
    pub(super) values: Box<[f32; 256]>,
    /// The tensor, by number, and what is known of it.
    pub(super) to: usize,
    pub(super) dims: Vec<usize>,
    /// The first channel's row, and where in each row its pixels begin.
    pub(super) row: usize,
    pub(super) column: usize,
}

pub(super) enum Form {
    U8,
    I8,
    /// The real value of each byte.
    Real(Box<[f32; 256]>),
    /// The mean of each channel.
    Mean(Quantity),
    /// Of each pixel a number, whose lowest byte is the first channel.
    Index,
}

/// `(q - zero) * scale` for each byte.
pub(super) fn reals(quantity: Quantity) -> [f32; 256] {
    std::array::from_fn(|q| (q as f32 - f32::from(quantity.zero)) * quantity.scale)
}

impl Export {
    pub(super) fn run(
        &self,
        team: &mut Team,
        pool: &Pool,
        shape: Shape,
        from: View<'_>,
    ) -> Result<Tensor, String> {
        let count = shape.bytes();
        let data = match &self.form {
            Form::U8 => Data::U8(self.gather(team, vec![0; count], shape, from, |q| q)),
            Form::I8 => Data::I8(self.gather(team, vec![0; count], shape, from, |q| (q ^ SIGN) as i8)),
            Form::Real(values) => {
                let value = |q| values[usize::from(q)];
                Data::F32(self.gather(team, pool.list(count), shape, from, value))
            }
            Form::Mean(quantity) => Data::F32(means(shape, from, *quantity)),
            Form::Index => Data::I64(from.pixels(shape.c).map(number).collect()),
        };
        Tensor::new(self.dims.clone(), data).map_err(|e| e.to_string())
    }

    /// The tensor of real values that another executor has made, in its order, as bytes.
    pub(super) fn receive(&self, pool: &Pool, bytes: &[u8]) -> Result<Tensor, String> {
        let mut out = pool.list(self.dims.iter().product());
        taken_over(&mut out, bytes);
        Tensor::f32(self.dims.clone(), out).map_err(|e| e.to_string())
    }

    /// Into all of `out`.
    fn gather<T: Send>(
        &self,
        team: &mut Team,
        mut out: Vec<T>,
        shape: Shape,
        from: View<'_>,
        value: impl Fn(u8) -> T + Sync,
    ) -> Vec<T> {
        let (c, area) = (shape.c, shape.pixels());
        if self.order == Order::RowMajor || area == 1 {
            for (out, pixel) in out.chunks_exact_mut(c.max(1)).zip(from.pixels(c)) {
                out.iter_mut().zip(pixel).for_each(|(out, q)| *out = value(*q));
            }
            return out;
        }
        planes(team, &mut out, (area, 0), area, from, value);
        out
    }
}

/// A row for each channel, its pixels from `start` on.
fn planes<T: Send>(
    team: &mut Team,
    out: &mut [T],
    (row, start): (usize, usize),
    area: usize,
    from: View<'_>,
    value: impl Fn(u8) -> T + Sync,
) {
    /// Pixels whose channels stay in the first-level cache.
    const BLOCK: usize = 64;
    let size = team.piece(out.len(), row, 16 << 10);
    team.pieces(out, size, |part, planes| {
        let channels = part * (size / row)..;
        for first in (0..area).step_by(BLOCK) {
            let block = &from.bytes[first * from.stride..];
            for (channel, plane) in channels.clone().zip(planes.chunks_exact_mut(row)) {
                let plane = &mut plane[start + first..][..BLOCK.min(area - first)];
                let bytes = block[channel..].iter().step_by(from.stride.max(1));
                plane.iter_mut().zip(bytes).for_each(|(out, q)| *out = value(*q));
            }
        }
    });
}

impl Piece {
    /// The tensor with the piece in it; `whole`: what others have put there.
    pub(super) fn run(
        &self,
        team: &mut Team,
        pool: &Pool,
        shape: Shape,
        from: View<'_>,
        whole: Option<Tensor>,
    ) -> Result<Tensor, String> {
        let mut out = begun(pool, &self.dims, whole)?;
        let row = self.dims.last().copied().unwrap_or(0);
        let area = shape.pixels();
        let fits = self.channels.end <= shape.c && self.column + area <= row;
        let rows = self.row * row..(self.row + self.channels.len()) * row;
        let rows = out.get_mut(rows).filter(|_| fits).ok_or("a piece that is larger than the whole")?;
        let from = View { bytes: from.bytes.get(self.channels.start..).unwrap_or(&[]), ..from };
        planes(team, rows, (row, self.column), area, from, |q| self.values[usize::from(q)]);
        Tensor::f32(self.dims.clone(), out).map_err(|e| e.to_string())
    }

    /// As [`Self::run`], of real values that another executor has made, channel by channel, as bytes.
    pub(super) fn receive(
        &self,
        pool: &Pool,
        shape: Shape,
        bytes: &[u8],
        whole: Option<Tensor>,
    ) -> Result<Tensor, String> {
        let mut out = begun(pool, &self.dims, whole)?;
        let row = self.dims.last().copied().unwrap_or(0);
        let area = shape.pixels();
        let rows = self.row * row..(self.row + self.channels.len()) * row;
        let rows = out.get_mut(rows).filter(|_| self.column + area <= row);
        let rows = rows.ok_or("a piece that is larger than the whole")?;
        for (row, bytes) in rows.chunks_exact_mut(row).zip(bytes.chunks_exact(4 * area)) {
            taken_over(&mut row[self.column..][..area], bytes);
        }
        Tensor::f32(self.dims.clone(), out).map_err(|e| e.to_string())
    }
}

fn taken_over(out: &mut [f32], bytes: &[u8]) {
    out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
}

/// A tensor that gets its elements piece by piece; `whole`: what it has so far.
fn begun(pool: &Pool, dims: &[usize], whole: Option<Tensor>) -> Result<Vec<f32>, String> {
    let count = dims.iter().product();
    match whole.map(Tensor::into_data) {
        Some(Data::F32(out)) if out.len() == count => Ok(out),
        None => Ok(pool.list(count)),
        Some(_) => Err("a piece of something else".into()),
    }
}

/// Puts a whole tensor behind the first `row` rows of another.
pub(super) fn put(
    pool: &Pool,
    dims: &[usize],
    row: usize,
    piece: &Tensor,
    whole: Option<Tensor>,
) -> Result<Tensor, String> {
    let mut out = begun(pool, dims, whole)?;
    let Data::F32(values) = piece.data() else { return Err("a piece that is no f32".into()) };
    let start = row * dims.last().copied().unwrap_or(0);
    let to = out.get_mut(start..start + values.len()).ok_or("a piece that is larger than the whole")?;
    to.copy_from_slice(values);
    Tensor::f32(dims.to_vec(), out).map_err(|e| e.to_string())
}

fn number(bytes: &[u8]) -> i64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | i64::from(*byte))
}

fn means(shape: Shape, from: View<'_>, quantity: Quantity) -> Vec<f32> {
    let mut sums = vec![0i64; shape.c];
    for pixel in from.pixels(shape.c) {
        sums.iter_mut().zip(pixel).for_each(|(sum, q)| *sum += i64::from(*q) - i64::from(quantity.zero));
    }
    // Exact up to the one division.
    sums.into_iter().map(|sum| sum as f32 * quantity.scale / shape.pixels() as f32).collect()
}
