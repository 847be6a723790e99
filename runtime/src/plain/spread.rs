//! The few operators that large results go through, on all threads of whoever runs a plan. Each writes its result in pieces,
//! the same values as on one thread.

use super::{Call, floats, get, layout, normalise, one, size, strides, vectors};
use crate::tensor::{Data, Tensor};

/// Threads that share work.
pub(crate) trait Workers {
    /// Cuts `out` in pieces of `size`, of which the last may be shorter, and calls `work` with the number of each.
    fn pieces(&mut self, out: &mut [f32], size: usize, work: &(dyn Fn(usize, &mut [f32]) + Sync));

    /// Calls `work` once with each of `0..parts`.
    fn parts(&mut self, parts: usize, work: &(dyn Fn(usize) + Sync));

    fn threads(&self) -> usize;
}

/// Smaller results are not worth the way to another thread.
const LENGTH_MIN: usize = 1 << 15;

impl Call {
    /// As [`Call::run`], on all threads where the operator is one of those that can and the result is large.
    pub(crate) fn run_on(
        &self,
        workers: &mut dyn Workers,
        inputs: &[Option<&Tensor>],
    ) -> Result<Vec<Tensor>, String> {
        if workers.threads() > 1
            && let Some(result) = self.spread(workers, inputs)
        {
            return self.named(result.and_then(|(dims, out)| one(dims, Data::F32(out))));
        }
        self.run(inputs)
    }

    #[expect(clippy::type_complexity, reason = "a tensor's parts, an error, or neither")]
    fn spread(
        &self,
        workers: &mut dyn Workers,
        inputs: &[Option<&Tensor>],
    ) -> Option<Result<(Vec<usize>, Vec<f32>), String>> {
        let x = get(inputs, 0).ok()?;
        let values = floats(inputs, 0).ok()?;
        let share = |length: usize, unit: usize| {
            length.div_ceil(2 * workers.threads()).next_multiple_of(unit.max(1)).max(1)
        };
        match self.node.op_type.as_str() {
            "Sigmoid" if values.len() >= LENGTH_MIN => {
                let piece = share(values.len(), 64);
                let mut out = self.pool.list(values.len());
                workers.pieces(&mut out, piece, &|part, out| {
                    vectors::sigmoid(&values[part * piece..][..out.len()], out);
                });
                Some(Ok((x.shape().to_vec(), out)))
            }
            "Softmax" if values.len() >= LENGTH_MIN => {
                let [length, inner] = normalise::middle(self, x.shape()).ok()?;
                if length == 0 || inner < 2 {
                    return None;
                }
                let mut out = self.pool.list(values.len());
                vectors::softmax(values, [length, inner], &mut out, |blocks, work| {
                    workers.parts(blocks, work);
                });
                Some(Ok((x.shape().to_vec(), out)))
            }
            "Concat" => {
                let parts: Vec<&Tensor> =
                    (0..inputs.len()).map(|i| get(inputs, i).ok()).collect::<Option<_>>()?;
                let lists: Vec<&[f32]> =
                    (0..inputs.len()).map(|i| floats(inputs, i).ok()).collect::<Option<_>>()?;
                let (dims, outer) = layout::concatenated(self, &parts).ok()?;
                let length = size(&dims).ok()?;
                if length < LENGTH_MIN || outer == 0 {
                    return None;
                }
                let row = length / outer;
                let piece = share(length, 16);
                let mut out = self.pool.list(length);
                workers.pieces(&mut out, piece, &|part, mut out| {
                    let (mut at, mut done) = (part * piece, 0);
                    while !out.is_empty() {
                        // Which part of the row it is in, and how far.
                        let (number, within) = (at / row, at % row);
                        let mut before = 0;
                        for list in &lists {
                            let own = list.len() / outer;
                            if within < before + own {
                                let from = &list[number * own + within - before..(number + 1) * own];
                                let count = from.len().min(out.len());
                                let (now, rest) = std::mem::take(&mut out).split_at_mut(count);
                                now.copy_from_slice(&from[..count]);
                                (out, at, done) = (rest, at + count, done + count);
                                break;
                            }
                            before += own;
                        }
                        debug_assert!(done > 0);
                    }
                });
                Some(Ok((dims, out)))
            }
            "Slice" | "Transpose" => {
                let (dims, steps, base) = layout::view(self, inputs)?;
                let length = size(&dims).ok()?;
                let rank = dims.len();
                // Rows along the last dimension.
                let row = *dims.last()?;
                if length < LENGTH_MIN || row < 64 || rank < 2 {
                    return None;
                }
                // Every element lies inside: checked at the corners, since places only grow along a dimension.
                let last = dims.iter().zip(&steps).map(|(d, s)| (d - 1) * s).sum::<usize>() + base;
                if last >= values.len() {
                    return None;
                }
                let own = strides(&dims);
                let piece = share(length, row);
                let mut out = self.pool.list(length);
                workers.pieces(&mut out, piece, &|part, out| {
                    for (i, out) in out.chunks_exact_mut(row).enumerate() {
                        let at = part * piece + i * row;
                        let place = |d: usize| at / own[d] % dims[d] * steps[d];
                        let start = base + (0..rank - 1).map(place).sum::<usize>();
                        if steps[rank - 1] == 1 {
                            out.copy_from_slice(&values[start..start + row]);
                        } else {
                            let from = values[start..].iter().step_by(steps[rank - 1].max(1));
                            out.iter_mut().zip(from).for_each(|(out, v)| *out = *v);
                        }
                    }
                });
                Some(Ok((dims, out)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Graph,
        onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    };

    /// Pieces one after the other.
    struct Alone;

    impl Workers for Alone {
        fn pieces(&mut self, out: &mut [f32], size: usize, work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
            out.chunks_mut(size).enumerate().for_each(|(part, out)| work(part, out));
        }

        fn parts(&mut self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
            (0..parts).for_each(work);
        }

        fn threads(&self) -> usize {
            3
        }
    }

    fn call(node: NodeProto, constants: Vec<TensorProto>) -> Call {
        let mut graph = GraphProto { name: "one".into(), ..Default::default() };
        for input in node.input.iter().filter(|name| !constants.iter().any(|c| c.name == **name)) {
            graph.input.push(ValueInfoProto::new(input, DataType::Float, &[1]));
        }
        graph.initializer = constants;
        graph.output.push(ValueInfoProto::new("y", DataType::Float, &[1]));
        graph.node.push(node);
        let graph = Graph::new(ModelProto::new(graph, 13)).unwrap();
        let id = graph.nodes().next().unwrap().0;
        Call::of(&graph, id).unwrap()
    }

    fn tensor(dims: &[usize], first: usize) -> Tensor {
        let count = dims.iter().product::<usize>();
        Tensor::f32(
            dims.to_vec(),
            (first..first + count).map(|i| (i * 7919 % 10_007) as f32 / 500.0 - 10.0).collect(),
        )
        .unwrap()
    }

    fn ints(values: &[i64]) -> Tensor {
        Tensor::new(vec![values.len()], Data::I64(values.to_vec())).unwrap()
    }

    #[test]
    fn pieces_are_what_the_whole_is() {
        let node = |op: &str, inputs: &[&str]| NodeProto::new(op, "", inputs.iter().copied(), ["y"]);
        let (a, b) = (tensor(&[3, 41, 331], 0), tensor(&[3, 17, 331], 5));
        let bounds = [ints(&[5, 100]), ints(&[37, 300]), ints(&[1, 2]), ints(&[1, 2])];
        let cases: Vec<(Call, Vec<&Tensor>)> = vec![
            (call(node("Sigmoid", &["a"]), vec![]), vec![&a]),
            (call(node("Softmax", &["a"]).with_int("axis", 1), vec![]), vec![&a]),
            (call(node("Concat", &["a", "b", "c"]).with_int("axis", 1), vec![]), vec![&a, &b, &a]),
            (call(node("Transpose", &["a"]).with_ints("perm", &[1, 0, 2]), vec![]), vec![&a]),
            (call(node("Transpose", &["a"]).with_ints("perm", &[2, 0, 1]), vec![]), vec![&a]),
            (
                call(node("Slice", &["a", "s", "e", "x", "t"]), vec![]),
                std::iter::once(&a).chain(&bounds).collect(),
            ),
        ];
        let mut spread = 0;
        for (call, inputs) in cases {
            let inputs: Vec<Option<&Tensor>> = inputs.into_iter().map(Some).collect();
            let whole = call.run(&inputs).unwrap();
            spread += usize::from(call.spread(&mut Alone, &inputs).is_some());
            assert_eq!(call.run_on(&mut Alone, &inputs).unwrap(), whole, "{}", call.node.op_type);
        }
        // The last transposition has rows of 41, which are too short; the slice is too small.
        assert_eq!(spread, 4);
    }
}
