//! Pools, and what moves pixels.

use super::{
    kernels::{self, Pooled},
    lower::Lowering,
    terms::Sliding,
};
use crate::{
    cpu::{Sampling, Shape},
    graph::NodeId,
    plain::padded,
    shape::{Pads, Window},
};

impl Lowering<'_> {
    pub(super) fn pool(&mut self, id: NodeId) -> Result<(), String> {
        let (_, from) = self.image(id)?;
        let proto = self.look.graph.proto(id);
        let kernel: Vec<usize> = match proto.ints("kernel_shape") {
            Some(sizes) => sizes.iter().filter_map(|size| usize::try_from(*size).ok()).collect(),
            None => vec![],
        };
        let [h, w] = kernel[..] else { return Err("its window has not two dimensions".into()) };
        let (window, to) = self.window(id, from.shape, [h, w], from.shape.c)?;
        let own = Window::of(proto, &[h, w]).ok_or("its window has not two dimensions")?;
        let pads = [0, 1].map(|d| own.pads(d, [from.shape.h, from.shape.w][d]));
        if (0..2).any(|d| pads[d].0.max(pads[d].1) >= own.extent(d)) {
            return Err("a window may lie outside of its input".into());
        }
        let padded = pads != [(0, 0); 2];
        let counts = proto.int("count_include_pad").unwrap_or(0) != 0 && padded;
        if counts && (own.ceil || matches!(own.pads, Pads::Same { .. })) {
            return Err("it counts padding that hangs over".into());
        }
        let pooled = match self.look.op(id) {
            "MaxPool" => Pooled::Maximum,
            _ => Pooled::Mean(counts.then(|| window.taps())),
        };
        let output = self.look.output(id)?;
        let spot = self.place(output, to);
        let all = [h, w] == [from.shape.h, from.shape.w] && (to.h, to.w) == (1, 1) && !padded;
        let job = match pooled {
            Pooled::Mean(_) if all => kernels::mean(self.choices, from, spot, self.constants.is_half())?,
            _ => kernels::pool(from, spot, window, pooled),
        };
        self.push(id, job);
        self.put(output, spot);
        Ok(())
    }

    /// One of all pixels.
    pub(super) fn global(&mut self, id: NodeId) -> Result<(), String> {
        let (_, from) = self.image(id)?;
        let output = self.look.output(id)?;
        let to = Shape { h: 1, w: 1, c: from.shape.c };
        if self.look.op(id) == "ReduceMean" {
            let axes = self.look.input(id, 1).and_then(|value| self.look.constant(value)?.to_i64().ok());
            let axes = axes.or_else(|| self.look.graph.proto(id).ints("axes").map(<[i64]>::to_vec));
            let mut axes: Vec<i64> = axes.unwrap_or_default().iter().map(|axis| axis.rem_euclid(4)).collect();
            axes.sort_unstable();
            let rank =
                self.look.input(id, 0).and_then(|value| self.look.shapes.of(value)).map(<[usize]>::len);
            if rank != Some(4) || axes != [2, 3] {
                return Err("it is of other dimensions than height and width".into());
            }
        }
        if self.look.shape(output)? != to {
            return Err("its output has another shape".into());
        }
        let spot = self.place(output, to);
        let job = if self.look.op(id) == "GlobalMaxPool" {
            let window = Sliding::over([from.shape.h, from.shape.w]);
            kernels::pool(from, spot, window, Pooled::Maximum)
        } else {
            kernels::mean(self.choices, from, spot, self.constants.is_half())?
        };
        self.push(id, job);
        self.put(output, spot);
        Ok(())
    }

    pub(super) fn resize(&mut self, id: NodeId) -> Result<(), String> {
        let (_, from) = self.image(id)?;
        let output = self.look.output(id)?;
        let to = self.look.shape(output)?;
        let sampling = Sampling::of(self.look.graph, self.look.shapes, id, [from.shape, to])?;
        let spot = self.place(output, to);
        let job = match &sampling {
            Sampling::Nearest { rows, columns } => {
                let [rows, columns] =
                    [rows, columns].map(|all| all.iter().copied().map(Some).collect::<Vec<_>>());
                kernels::select(&mut self.constants, [from, spot], [&rows, &columns], 0.0)
            }
            Sampling::Linear { rows, columns } => {
                kernels::mix(&mut self.constants, [from, spot], [rows, columns])
            }
        };
        self.push(id, job);
        self.put(output, spot);
        Ok(())
    }

    pub(super) fn pad(&mut self, id: NodeId) -> Result<(), String> {
        let (value, from) = self.image(id)?;
        let (proto, output) = (self.look.graph.proto(id), self.look.output(id)?);
        let to = self.look.shape(output)?;
        let list = |index, name: &str| match self.look.input(id, index) {
            Some(value) => self.look.constant(value)?.to_i64().ok(),
            None => proto.ints(name).map(<[i64]>::to_vec),
        };
        let pads = list(1, "pads").ok_or("its pads are no constants")?;
        let axes = list(3, "");
        if axes.is_none() && self.look.input(id, 3).is_some() {
            return Err("its axes are no constants".into());
        }
        let fill = self.look.bound(id, 2, proto.float("value").unwrap_or(0.0));
        let fill = fill.ok_or("what it pads with is no constant of f32")?;
        let dims = self.look.shapes.of(value).ok_or("a shape is not known")?;
        let along = padded(dims, &pads, axes.as_deref(), proto.string("mode").unwrap_or("constant"))?;
        let [batch, channels, rows, columns] = &along[..] else {
            return Err("it has not two spatial dimensions".into());
        };
        let is_all = |kept: &[Option<usize>]| kept.iter().enumerate().all(|(i, at)| Some(i) == *at);
        if !is_all(batch) || !is_all(channels) || channels.len() != from.shape.c {
            return Err("it pads something else than rows and columns".into());
        }
        let spot = self.place(output, to);
        let job = kernels::select(&mut self.constants, [from, spot], [rows, columns], fill);
        self.push(id, job);
        self.put(output, spot);
        Ok(())
    }
}
