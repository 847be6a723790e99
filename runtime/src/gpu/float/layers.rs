//! Layers with weights.

use super::{
    kernels,
    lower::{Known, Lowering, ZEROS},
    pack::Filters,
    terms::{Lattice, Sliding, Spot},
};
use crate::{
    cpu::Shape,
    graph::NodeId,
    shape::{Window, interleave},
};

impl Lowering<'_> {
    /// Filters over an input, and all that is done with what they give.
    fn filtered(
        &mut self,
        id: NodeId,
        from: Spot,
        window: Sliding,
        mut filters: Filters,
        to: Shape,
    ) -> Result<(), String> {
        let output = self.look.output(id)?;
        let (ending, output) = self.behind(output, Some(&mut filters));
        let spot = self.place(output, to);
        let places = [from, spot];
        let depthwise = filters.groups == from.shape.c && filters.groups == to.c && filters.groups > 1;
        let depthwise =
            depthwise || filters.weights.len() == filters.bias.len() && from.shape.c == 1 && to.c == 1;
        let job = if depthwise {
            kernels::depthwise(&mut self.constants, self.choices, places, window, &filters, ending)?
        } else {
            let ending = (ending, self.zeros(from.shape.c));
            let places = (places, Lattice::all(to));
            kernels::convolution(&mut self.constants, self.choices, places, window, &filters, ending)?
        };
        self.push(id, job);
        self.put(output, spot);
        Ok(())
    }

    /// Of so many channels: what lies around an image.
    fn zeros(&mut self, channels: usize) -> Spot {
        let zeros = Spot::whole(ZEROS, Shape { h: 1, w: 1, c: channels });
        self.sizes[ZEROS] = self.sizes[ZEROS].max(zeros.words());
        zeros
    }

    /// Plain convolutions whose results lie between each other.
    pub(super) fn transposed(&mut self, id: NodeId) -> Result<(), String> {
        let (_, from) = self.image(id)?;
        let proto = self.look.graph.proto(id);
        let constant = |index| self.look.input(id, index).and_then(|value| self.look.constant(value));
        let given = constant(1).ok_or("its weights are no constant")?;
        let [channels, per_group, kernel_h, kernel_w] = given.shape().unwrap_or_default()[..] else {
            return Err("its window has not two dimensions".into());
        };
        let groups = usize::try_from(proto.int("group").unwrap_or(1)).unwrap_or(0);
        let output = self.look.output(id)?;
        let to = self.look.shape(output)?;
        if channels != from.shape.c || groups == 0 || channels % groups != 0 || per_group * groups != to.c {
            return Err("its channels do not fit its groups".into());
        }
        let depth = channels / groups;
        if groups > 1 && !(depth.is_multiple_of(4) && per_group.is_multiple_of(4)) {
            return Err("its groups are not of multiples of four channels".into());
        }
        if proto.attribute("output_shape").is_some() {
            return Err("its padding follows from its output's shape".into());
        }
        let window = Window::of(proto, &[kernel_h, kernel_w]).ok_or("its window has not two dimensions")?;
        let parts = interleave::parts(&window, [from.shape.h, from.shape.w], [to.h, to.w])?;
        let given = given.to_f32().map_err(|_| "its weights are no f32")?;
        let bias = match self.look.input(id, 2) {
            Some(value) => self.look.reals(value).ok_or("its bias is no constant of f32")?,
            None => vec![0.0; to.c],
        };
        let taps = kernel_h * kernel_w;
        if channels * per_group * taps != given.len() || bias.len() != to.c || taps == 0 {
            return Err("its weights are not as many as they should be".into());
        }
        // `[C, M / groups, taps]` becomes `[M, C / groups, taps]`.
        let place = |at: usize| {
            let (row, column) = (at / (depth * taps), at / taps % depth);
            (row / per_group * depth + column) * per_group * taps + row % per_group * taps + at % taps
        };
        let weights = (0..given.len()).map(|at| given[place(at)]).collect();
        let mut filters = Filters { weights, bias, groups };
        let (ending, output) = self.behind(output, Some(&mut filters));
        let spot = self.place(output, to);
        let zeros = self.zeros(from.shape.c);
        let Filters { weights, bias, groups } = filters;
        for part in parts {
            let seen = part.kernel[0] * part.kernel[1];
            let rows = weights.chunks(taps).flat_map(|row| {
                let tap = |at: usize| part.taps.get(at).map_or(0.0, |tap| row[*tap]);
                (0..seen).map(tap).collect::<Vec<f32>>()
            });
            let filters = Filters { weights: rows.collect(), bias: bias.clone(), groups };
            let lattice = Lattice {
                first: part.first[0] * to.w + part.first[1],
                down: window.strides[0] * to.w,
                right: window.strides[1],
            };
            let sliding = Sliding {
                kernel: part.kernel,
                strides: [1, 1],
                dilations: part.dilations,
                before: part.before,
            };
            let own = Spot { shape: Shape { h: part.size[0], w: part.size[1], c: to.c }, ..spot };
            let places = ([from, own], lattice);
            let ending = (ending, zeros);
            let job =
                kernels::convolution(&mut self.constants, self.choices, places, sliding, &filters, ending)?;
            self.push(id, job);
        }
        self.put(output, spot);
        Ok(())
    }

    pub(super) fn convolution(&mut self, id: NodeId) -> Result<(), String> {
        let (_, from) = self.image(id)?;
        let proto = self.look.graph.proto(id);
        let constant = |index| self.look.input(id, index).and_then(|value| self.look.constant(value));
        let weights = constant(1).ok_or("its weights are no constant")?;
        let dims = weights.shape().unwrap_or_default();
        let [outputs, inputs, kernel_h, kernel_w] = dims[..] else {
            return Err("its window has not two dimensions".into());
        };
        let groups = usize::try_from(proto.int("group").unwrap_or(1)).unwrap_or(0);
        if inputs.checked_mul(groups) != Some(from.shape.c) || groups == 0 || !outputs.is_multiple_of(groups)
        {
            return Err("its groups do not fit".into());
        }
        let is_depthwise = inputs == 1 && outputs == groups;
        let in_quads = inputs.is_multiple_of(4) && (outputs / groups).is_multiple_of(4);
        if groups > 1 && !is_depthwise && !in_quads {
            return Err("its groups are not of multiples of four channels".into());
        }
        let (window, to) = self.window(id, from.shape, [kernel_h, kernel_w], outputs)?;
        let weights = weights.to_f32().map_err(|_| "its weights are no f32")?;
        let bias = match self.look.input(id, 2) {
            Some(value) => self.look.reals(value).ok_or("its bias is no constant of f32")?,
            None => vec![0.0; outputs],
        };
        let fits = dims.iter().product::<usize>() == weights.len() && bias.len() == outputs;
        if !fits {
            return Err("its weights are not as many as they should be".into());
        }
        self.filtered(id, from, window, Filters { weights, bias, groups }, to)
    }

    /// A window that an operator describes, and what it gives.
    pub(super) fn window(
        &self,
        id: NodeId,
        from: Shape,
        kernel: [usize; 2],
        channels: usize,
    ) -> Result<(Sliding, Shape), String> {
        let window =
            Window::of(self.look.graph.proto(id), &kernel).ok_or("its window has not two dimensions")?;
        let to = self.look.shape(self.look.output(id)?)?;
        if window.output(&[from.h, from.w]) != Some(vec![to.h, to.w]) || to.c != channels {
            return Err("its output's shape does not follow from its window".into());
        }
        let before = [window.pads(0, from.h).0, window.pads(1, from.w).0];
        let pair = |list: &[usize]| [list[0], list[1]];
        let (strides, dilations) = (pair(&window.strides), pair(&window.dilations));
        Ok((Sliding { kernel, strides, dilations, before }, to))
    }

    /// A convolution whose window is all of its input.
    pub(super) fn fully_connected(&mut self, id: NodeId) -> Result<(), String> {
        let (value, Known { spot: from, .. }) = self.known(id, 0)?;
        let proto = self.look.graph.proto(id);
        let weights = self.look.input(id, 1).ok_or("an input is missing")?;
        let dims =
            self.look.constant(weights).and_then(|w| w.shape()).ok_or("its weights are no constant")?;
        let is_product = self.look.op(id) == "MatMul";
        let turned = !is_product && proto.int("transB").unwrap_or(0) != 0;
        let (inputs, outputs) = match dims[..] {
            [n, k] if turned => (k, n),
            [k, n] => (k, n),
            _ => return Err("its weights have not two dimensions".into()),
        };
        let to = self.look.shape(self.look.output(id)?)?;
        let is_row =
            self.look.shapes.of(value) == Some(&[1, inputs]) && to == Shape { h: 1, w: 1, c: outputs };
        if !is_row || from.shape.bytes() != inputs || (!is_product && proto.int("transA").unwrap_or(0) != 0) {
            return Err("its input is no row".into());
        }
        let given = self.look.reals(weights).ok_or("its weights are no f32")?;
        if inputs.checked_mul(outputs) != Some(given.len()) {
            return Err("its weights are not as many as they should be".into());
        }
        let factor = |name: &str| if is_product { 1.0 } else { proto.float(name).unwrap_or(1.0) };
        let (alpha, beta) = (factor("alpha"), factor("beta"));
        let mut all = if turned {
            given
        } else {
            (0..given.len()).map(|at| given[at % inputs * outputs + at / inputs]).collect()
        };
        all.iter_mut().for_each(|weight| *weight *= alpha);
        let mut bias = vec![0.0; outputs];
        if let Some(added) = self.look.input(id, 2).filter(|_| !is_product) {
            let dims = self.look.constant(added).and_then(|c| c.shape()).ok_or("its bias is no constant")?;
            let given = self.look.reals(added).ok_or("its bias is no f32")?;
            let along = dims.last().is_none_or(|n| *n == given.len());
            if !along || (given.len() != 1 && given.len() != outputs) {
                return Err("its bias is not one for each output".into());
            }
            bias.iter_mut().zip(given.iter().cycle()).for_each(|(bias, given)| *bias = beta * given);
        }
        let window = Sliding::over([from.shape.h, from.shape.w]);
        self.filtered(id, from, window, Filters { weights: all, bias, groups: 1 }, to)
    }

    /// Factors and summands of channels that no convolution could take: a depthwise one of a window of 1.
    pub(super) fn channelwise(&mut self, id: NodeId, index: usize) -> Result<(), String> {
        let (value, Known { spot, is_row }) = self.known(id, index)?;
        let found = self.look.channelwise(id, value);
        let (scale, shift) =
            found.ok_or("what it joins is neither computed nor one constant for each channel")?;
        if is_row || scale.len() != spot.shape.c {
            return Err("it reads an image as a row".into());
        }
        let filters = Filters { weights: scale, bias: shift, groups: spot.shape.c };
        self.filtered(id, spot, Sliding::over([1, 1]), filters, spot.shape)
    }
}
