//! Where bytes begin and end on the GPU: inputs of the network as they come, and real values as they leave.

use andon_shaders::{DequantiseParams, PictureParams, QuantiseParams, ResizedParams, Variant};

use super::{
    exact,
    layout::Spot,
    lower::{Lowering, at},
    program::Raw,
};
use crate::cpu::{Intake, Outlet, Shape};

/// What an input is in a run, where it may be one or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    Real,
    Picture,
    /// One of another size.
    Resized,
}

impl Lowering {
    /// Where an input goes so that the GPU can quantise it; then the jobs are there.
    pub(crate) fn intake(&mut self, step: usize, intake: &Intake<'_>) -> Option<(Raw, Spot)> {
        let stairs = exact::numbered_stairs(&intake.byte)?;
        let (values, to) = (intake.to.shape.bytes(), self.layout.spot(&intake.to));
        if intake.pictures.is_some_and(|pictures| pictures.tables.len() != to.shape.c) {
            return None;
        }
        self.begin(step);
        let raw = self.buffer(Shape { h: 1, w: 1, c: 4 * values });
        let out = if to.writable() { to } else { self.buffer(to.shape) };
        let (stairs, nan) = (self.constants.integers(&stairs), (intake.byte)(f32::NAN));
        let (words, pixels, channels) = (out.words(), out.shape.pixels(), out.shape.c);
        let steps = if intake.planes { [1, pixels] } else { [channels, 1] };
        self.given(intake.pictures.map(|_| Given::Real));
        self.push(Variant::Quantise, words * pixels, &[raw, out], move |bases| {
            let params = QuantiseParams {
                in_base: at(raw, bases),
                pixel_step: steps[0] as u32,
                channel_step: steps[1] as u32,
                channels: channels as u32,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_words: words as u32,
                pixels: pixels as u32,
                stairs,
                nan: nan.into(),
            };
            params.words()
        });
        if let Some(pictures) = intake.pictures {
            let tables = self.constants.bytes(pictures.tables.as_flattened());
            self.given(Some(Given::Picture));
            self.push(Variant::Picture, words * pixels, &[raw, out], move |bases| {
                let params = PictureParams {
                    in_base: at(raw, bases),
                    channels: channels as u32,
                    out_base: at(out, bases),
                    out_stride: out.stride as u32 / 4,
                    out_words: words as u32,
                    pixels: pixels as u32,
                    tables,
                };
                params.words()
            });
        }
        let resized = resized_stairs(intake).filter(|_| matches!(channels, 1 | 3));
        if let Some(stairs) = &resized {
            let stairs = self.constants.integers(stairs);
            let width = out.shape.w;
            let fill = fill(intake);
            self.given(Some(Given::Resized));
            self.push(Variant::Resized, pixels, &[out], move |bases| {
                let params = ResizedParams {
                    channels: channels as u32,
                    width: width as u32,
                    pixels: pixels as u32,
                    out_base: at(out, bases),
                    out_stride: out.stride as u32 / 4,
                    stairs,
                    fill,
                };
                params.words()
            });
        }
        if out != to {
            self.moved(step, out, to)?;
        }
        let Shape { h, w, c } = out.shape;
        let picture = intake.pictures.map(|_| [h, w, c]);
        let (input, resizes) = (intake.input, resized.is_some());
        Some((Raw { input, values, picture, resizes, at: 0 }, raw))
    }

    /// Where the values of a step's outlets are in the end, channel after channel or pixel after pixel; then the jobs are there.
    pub(crate) fn outlets(&mut self, step: usize, outlets: &[Outlet<'_>]) -> Option<Vec<Spot>> {
        let mut order: Vec<usize> = (0..outlets.len()).collect();
        order.sort_by_key(|i| outlets[*i].channels.start);
        let mut spots = vec![None; outlets.len()];
        // Channels that lie side by side become so together.
        for run in order.chunk_by(|a, b| outlets[*a].borders(&outlets[*b])) {
            let together: Vec<&Outlet<'_>> = run.iter().map(|i| &outlets[*i]).collect();
            let whole = self.outlet(step, &together)?;
            let mut offset = 0;
            for (i, outlet) in run.iter().zip(together) {
                let bytes = 4 * outlet.channels.len() * outlet.from.shape.pixels();
                let shape = Shape { c: bytes, ..whole.shape };
                spots[*i] = Some(Spot { offset, shape, ..whole });
                offset += bytes;
            }
        }
        spots.into_iter().collect()
    }

    /// Of outlets whose channels lie side by side.
    fn outlet(&mut self, step: usize, together: &[&Outlet<'_>]) -> Option<Spot> {
        let (start, end) = (together.first()?.channels.start, together.last()?.channels.end);
        let Outlet { from, planes, .. } = together.first()?;
        self.begin(step);
        let from = self.readable(self.layout.spot(from))?;
        let (pixels, channels) = (from.shape.pixels(), end - start);
        let to = self.buffer(Shape { h: 1, w: 1, c: 4 * channels * pixels });
        let mut tables = vec![];
        for outlet in together {
            let table = self.constants.list(outlet.values.map(f32::to_bits).to_vec());
            tables.extend(outlet.channels.clone().map(|_| table));
        }
        let tables = self.constants.list(tables);
        let steps = if *planes { [1, pixels] } else { [channels, 1] };
        let words = end.div_ceil(4) - start / 4;
        self.push(Variant::Dequantise, words * pixels, &[from, to], move |bases| {
            let params = DequantiseParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                first: start as u32,
                channels: channels as u32,
                out_base: at(to, bases),
                pixel_step: steps[0] as u32,
                channel_step: steps[1] as u32,
                pixels: pixels as u32,
                tables,
            };
            params.words()
        });
        Some(to)
    }
}

/// What a value of a resized picture becomes, channel after channel.
fn resized_stairs(intake: &Intake<'_>) -> Option<Vec<i32>> {
    let pictures = intake.pictures?;
    let of_channel = |channel| exact::numbered_stairs(|value| (intake.byte)(pictures.real(channel, value)));
    let stairs: Vec<[i32; 256]> = (0..pictures.tables.len()).map(of_channel).collect::<Option<_>>()?;
    Some(stairs.as_flattened().to_vec())
}

/// The bytes of a pixel beside a picture.
fn fill(intake: &Intake<'_>) -> u32 {
    let Some(pictures) = intake.pictures else { return 0 };
    let byte = |channel| (intake.byte)(pictures.real(channel, pictures.meaning.fill().into()));
    (0..pictures.tables.len()).rev().fold(0, |word, channel| word << 8 | u32::from(byte(channel)))
}
