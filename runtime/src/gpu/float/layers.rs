//! Layers with weights.

use super::{
    kernels::{self, Sliding, Spot},
    lower::{Known, Lowering, ZEROS},
    pack::Filters,
};
use crate::{cpu::Shape, graph::NodeId, shape::Window};

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
            let zeros = Spot::whole(ZEROS, Shape { h: 1, w: 1, c: from.shape.c });
            self.sizes[ZEROS] = self.sizes[ZEROS].max(zeros.words());
            let ending = (ending, zeros);
            kernels::convolution(&mut self.constants, self.choices, places, window, &filters, ending)?
        };
        self.push(id, job);
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
