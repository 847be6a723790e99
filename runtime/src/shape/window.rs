//! Windows that slide over spatial dimensions, as convolutions and pools have them.

use crate::onnx::NodeProto;

/// A sliding window over `n` spatial dimensions, as Conv and the pools describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) kernel: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    pub(crate) pads: Pads,
    pub(crate) ceil: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pads {
    /// All at the start, then all at the end.
    Explicit(Vec<usize>),
    /// As many as keep `ceil(input / stride)`; an odd one goes to the end or to the start.
    Same { odd_at_end: bool },
}

impl Window {
    /// `None` where an attribute is out of range or has the wrong length.
    pub(crate) fn of(proto: &NodeProto, kernel: &[usize]) -> Option<Self> {
        let n = kernel.len();
        let list = |name: &str, length: usize, absent: usize| -> Option<Vec<usize>> {
            let Some(values) = proto.ints(name) else { return Some(vec![absent; length]) };
            let values: Vec<usize> =
                values.iter().map(|v| usize::try_from(*v).ok()).collect::<Option<_>>()?;
            // Far above any real one, and low enough that no sum below overflows.
            (values.len() == length && values.iter().all(|v| *v <= 1 << 20)).then_some(values)
        };
        let pads = match proto.string("auto_pad").unwrap_or("NOTSET") {
            "SAME_UPPER" => Pads::Same { odd_at_end: true },
            "SAME_LOWER" => Pads::Same { odd_at_end: false },
            "VALID" => Pads::Explicit(vec![0; 2 * n]),
            "NOTSET" | "" => Pads::Explicit(list("pads", 2 * n, 0)?),
            _ => return None,
        };
        let (strides, dilations) = (list("strides", n, 1)?, list("dilations", n, 1)?);
        let positive = strides.iter().chain(&dilations).chain(kernel).all(|v| (1..=1 << 20).contains(v));
        let ceil = proto.int("ceil_mode") == Some(1);
        positive.then(|| Self { kernel: kernel.to_vec(), strides, dilations, pads, ceil })
    }

    /// The same on a row of pixels: a first dimension of size 1.
    pub(crate) fn on_a_row(mut self) -> Self {
        for list in [&mut self.kernel, &mut self.strides, &mut self.dilations] {
            list.insert(0, 1);
        }
        if let Pads::Explicit(pads) = &mut self.pads {
            pads.insert(0, 0);
            pads.insert(pads.len() / 2 + 1, 0);
        }
        self
    }

    /// Padding before and after dimension `d` of size `input`.
    pub(crate) fn pads(&self, d: usize, input: usize) -> (usize, usize) {
        match &self.pads {
            Pads::Explicit(pads) => (pads[d], pads[d + self.kernel.len()]),
            Pads::Same { odd_at_end } => {
                let needed =
                    (input.div_ceil(self.strides[d]).saturating_sub(1)) * self.strides[d] + self.extent(d);
                let total = needed.saturating_sub(input);
                let small = total / 2;
                if *odd_at_end { (small, total - small) } else { (total - small, small) }
            }
        }
    }

    /// Input positions that one window spans.
    pub(crate) fn extent(&self, d: usize) -> usize {
        (self.kernel[d] - 1) * self.dilations[d] + 1
    }

    pub(crate) fn output(&self, input: &[usize]) -> Option<Vec<usize>> {
        if input.len() != self.kernel.len() {
            return None;
        }
        let size = |(d, input): (usize, &usize)| {
            let (before, after) = self.pads(d, *input);
            let room = input.checked_add(before)?.checked_add(after)?.checked_sub(self.extent(d))?;
            let steps = if self.ceil { room.div_ceil(self.strides[d]) } else { room / self.strides[d] };
            // A last window that would start in the end padding does not count.
            let beyond = self.ceil && steps * self.strides[d] >= input + before;
            Some(steps + 1 - usize::from(beyond))
        };
        input.iter().enumerate().map(size).collect()
    }
}
