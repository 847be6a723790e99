//! Depthwise Conv: one filter a channel.

use super::{
    super::{
        describe::{self, Description},
        kernels::{Filters, Finished, Isa, Planes, Target, depthwise},
        plan::{Context, Operation, View, ViewMut},
    },
    conv::{Geometry, Sums, Weights},
    table::fuse,
};

pub(super) struct Depthwise {
    packed: Filters,
    zero: u8,
    target: Target,
    table: Option<Box<[u8; 256]>>,
    pub(super) filters: Option<(Box<describe::Filters>, Geometry)>,
}

impl Depthwise {
    /// `weights`: one row a channel, its taps row by row.
    pub(super) fn new(
        isa: Isa,
        geometry: Geometry,
        weights: &Weights,
        sums: &Sums,
        zero: u8,
        target: Target,
    ) -> Self {
        let Geometry { input, output, kernel, strides, dilations, before, .. } = geometry;
        let planes = Planes {
            input: [input.h, input.w],
            output: [output.h, output.w],
            channels: input.c,
            kernel,
            strides,
            dilations,
            before,
            zero,
        };
        let packed = Filters::pack(isa, planes, &sums.bias, &sums.multiplier, |channel, y, x| {
            weights.at(channel, y * kernel[1] + x, sums)
        });
        Self { packed, zero, target, table: None, filters: None }
    }
}

impl Operation for Depthwise {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let (input, ViewMut { bytes, stride }) = (inputs[0], output);
        let finished = Finished { target: self.target, table: self.table.as_deref(), skip: None };
        depthwise(context.team, input.bytes, input.stride, &self.packed, finished, bytes, stride);
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        fuse(&mut self.table, table);
        true
    }

    fn describe(&self) -> Option<Description<'_>> {
        let (filters, geometry) = self.filters.as_ref()?;
        let (groups, table) = (geometry.input.c, self.table.as_deref());
        let convolution = geometry.describe(filters, groups, self.zero, self.target, table);
        Some(Description::Convolution(convolution))
    }
}
