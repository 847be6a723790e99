//! MatMul of two activations: exact i32 sums, one f32 multiplier.

use super::{
    super::{
        describe::Description,
        kernels::{Target, rint},
        lower::{Activation, Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Order, Quantity, View, ViewMut},
    },
    table::fuse,
};
use crate::graph::NodeId;

/// Both have the same dimensions before the last two.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    id: NodeId,
    left: Activation,
    right: Activation,
) -> Result<Outcome, Refusal> {
    let none = Refusal::Form("it has no input");
    let (a, b) = (lowering.input(id, 0).ok_or(none)?, lowering.input(id, 1).ok_or(none)?);
    let shape = |value| lowering.shapes().of(value).unwrap_or(&[]).to_vec();
    let (dims_a, dims_b) = (shape(a), shape(b));
    let ([outer_a @ .., m, k], [outer_b @ .., l, n]) = (&*dims_a, &*dims_b) else {
        return Err(Refusal::Form("it multiplies vectors"));
    };
    if outer_a != outer_b || k != l || *k > 1 << 15 {
        return Err(Refusal::Form("its batches are not the same"));
    }
    let (m, k, n) = (*m, *k, *n);
    let left = lowering.ordered(id, left, a, Order::RowMajor)?;
    let right = lowering.ordered(id, right, b, Order::RowMajor)?;
    let output = lowering.shape_in(lowering.output(id)?, Order::RowMajor)?;
    if output.pixels() != left.shape.pixels() || output.c != n {
        return Err(Refusal::Form("its sizes make no sense"));
    }
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let multiplier = left.quantity.scale * right.quantity.scale / result.scale;
        if !multiplier.is_finite() {
            return Err(Refusal::Form("its scales are too far apart"));
        }
        let zeros = [left.quantity.zero.into(), right.quantity.zero.into()];
        Ok(Box::new(Product { m, k, n, zeros, multiplier, target, table: None }))
    };
    Ok(Outcome::Pending(Pending::new(id, &[left, right], output, finish)))
}

struct Product {
    m: usize,
    k: usize,
    n: usize,
    zeros: [i32; 2],
    multiplier: f32,
    target: Target,
    table: Option<Box<[u8; 256]>>,
}

impl Product {
    fn byte(&self, sum: i32) -> u8 {
        let Target { zero, low, high } = self.target;
        (rint(sum as f32 * self.multiplier) + i32::from(zero)).clamp(low.into(), high.into()) as u8
    }
}

impl Operation for Product {
    fn describe(&self) -> Option<Description<'_>> {
        let Self { m, k, zeros, .. } = *self;
        let byte = Box::new(|sum| self.byte(sum));
        Some(Description::Product { m, k, zeros, byte, table: self.table.as_deref() })
    }

    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let [left, right] = [inputs[0], inputs[1]];
        let mut sums = vec![0i32; self.n];
        for (i, (row, out)) in left.pixels(self.k).zip(output.pixels(self.n)).enumerate() {
            sums.fill(0);
            let first = i / self.m * self.k;
            for (j, a) in row.iter().enumerate() {
                let a = i32::from(*a) - self.zeros[0];
                let column = &right.bytes[(first + j) * right.stride..][..self.n];
                sums.iter_mut().zip(column).for_each(|(sum, b)| *sum += a * (i32::from(*b) - self.zeros[1]));
            }
            out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = self.byte(*sum));
            if let Some(table) = &self.table {
                out.iter_mut().for_each(|q| *q = table[usize::from(*q)]);
            }
        }
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        fuse(&mut self.table, table);
        true
    }
}
