//! ONNX operators on plain tensors, written to be right rather than fast.
//!
//! They fold constants ([`crate::shape`]), run what is too small to be worth another engine, and run what other engines
//! get wrong. Each is a function from inputs to outputs beside others of its kind and a line in [`find`]. The results
//! depend on no instruction set: sums run in a fixed order. Sizes come from untrusted files: whatever makes a tensor
//! asks [`size`] first.

mod arithmetic;
mod layout;
mod linear;
mod normalise;
mod pad;
mod pool;
mod quantise;
mod reduce;
mod spread;
mod unary;
mod vectors;

pub(crate) use layout::{parts as split_sizes, sliced, squeezed, unsqueezed};
pub(crate) use pad::padded;
pub(crate) use pool::Pool;
pub(crate) use spread::Workers;
pub(crate) use unary::function;

use std::{cell::Cell, sync::Arc};

use crate::{
    engine::guarded,
    graph::{Graph, NodeId},
    onnx::{Limits, NodeProto},
    shape::{self, Shapes},
    tensor::{Data, Tensor},
};

/// Inputs that are left out are `None`. As many outputs as the operator has, or fewer where the last are not asked for.
type Operator = fn(&Call, &[Option<&Tensor>]) -> Result<Vec<Tensor>, String>;

/// A node with its operator.
#[derive(Clone)]
pub(crate) struct Call {
    node: NodeProto,
    opset: i64,
    operator: Operator,
    /// Where the results' memory comes from.
    pool: Arc<Pool>,
    /// Of a result; more is an error.
    elements_max: usize,
}

thread_local! {
    /// Of the call that this thread is in.
    static ELEMENTS_MAX: Cell<usize> = Cell::new(Limits::default().elements_max);
}

/// Operators of ONNX's own domain.
fn find(operator: &str) -> Option<Operator> {
    Some(match operator {
        "Add" | "Div" | "Mul" | "Pow" | "Sub" | "Max" | "Min" | "Mod" => arithmetic::arithmetic,
        "And" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Or" | "Xor" => {
            arithmetic::comparison
        }
        "Where" => arithmetic::choose,
        "Abs" | "Ceil" | "Elu" | "Erf" | "Exp" | "Floor" | "Gelu" | "HardSigmoid" | "HardSwish"
        | "LeakyRelu" | "Log" | "Mish" | "Neg" | "Reciprocal" | "Relu" | "Round" | "Selu" | "Sigmoid"
        | "Sign" | "Softplus" | "Softsign" | "Sqrt" | "Tanh" => unary::unary,
        "Clip" => unary::clip,
        "PRelu" => arithmetic::prelu,
        "Cast" => unary::cast,
        "Not" => unary::not,
        "Concat" => layout::concat,
        "Constant" => layout::constant,
        "ConstantOfShape" => layout::constant_of_shape,
        "DepthToSpace" => layout::depth_to_space,
        "Expand" => layout::expand,
        "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Dropout" => layout::reshape,
        "Gather" => layout::gather,
        "Pad" => pad::pad,
        "Range" => layout::range,
        "Shape" => layout::shape,
        "Size" => layout::count,
        "Slice" => layout::slice,
        "Split" => layout::split,
        "Tile" => layout::tile,
        "Transpose" => layout::transpose,
        "Conv" | "ConvInteger" => linear::convolution,
        "Gemm" => linear::gemm,
        "MatMul" | "MatMulInteger" => linear::product,
        "QLinearMatMul" => linear::quantised_product,
        "BatchNormalization" => normalise::batch,
        "LayerNormalization" => normalise::layer,
        "LogSoftmax" | "Softmax" => normalise::softmax,
        "DequantizeLinear" => quantise::dequantise,
        "DynamicQuantizeLinear" => quantise::dynamic,
        "QuantizeLinear" => quantise::quantise,
        "ArgMax" | "ArgMin" => reduce::extreme,
        "GlobalAveragePool" | "ReduceMax" | "ReduceMean" | "ReduceMin" | "ReduceProd" | "ReduceSum" => {
            reduce::reduce
        }
        _ => return None,
    })
}

/// Inputs that an operator cannot do without; more than these it may lack only when it runs.
fn inputs_min(operator: &str) -> usize {
    match operator {
        "Constant" => 0,
        "Add" | "Div" | "Mul" | "Pow" | "Sub" | "Mod" | "And" | "Equal" | "Greater" | "GreaterOrEqual"
        | "Less" | "LessOrEqual" | "Or" | "Xor" | "PRelu" | "Expand" | "Gather" | "Tile" | "Conv"
        | "ConvInteger" | "Gemm" | "MatMul" | "MatMulInteger" | "LayerNormalization" | "DequantizeLinear"
        | "QuantizeLinear" => 2,
        "Where" | "Range" => 3,
        "BatchNormalization" => 5,
        "QLinearMatMul" => 8,
        _ => 1,
    }
}

impl Call {
    /// `None` if there is no operator for the node.
    pub(crate) fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node = graph.proto(id);
        let operator = find(&node.op_type).filter(|_| matches!(&*node.domain, "" | "ai.onnx"))?;
        let there = |index| node.input_name(index).is_some();
        if !(0..inputs_min(&node.op_type)).all(there) {
            return None;
        }
        let (opset, elements_max) = (graph.opset(), graph.elements_max());
        Some(Self { node: node.clone(), opset, operator, pool: Arc::default(), elements_max })
    }

    /// With results of so many elements at most, if they may not have fewer already.
    pub(crate) fn limited(self, elements: usize) -> Self {
        Self { elements_max: self.elements_max.min(elements), ..self }
    }

    /// Makes results in the memory of a pool that others give to.
    pub(crate) fn sharing(self, pool: Arc<Pool>) -> Self {
        Self { pool, ..self }
    }

    /// Whether the one result is the first input with another shape: [`Self::reshape`] does it without a copy.
    pub(crate) fn keeps_elements(&self) -> bool {
        matches!(&*self.node.op_type, "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze")
    }

    /// `others`: all inputs, of which the first does not matter.
    pub(crate) fn reshape(&self, first: Tensor, others: &[Option<&Tensor>]) -> Result<Tensor, String> {
        let dims = self.named(guarded(|| layout::reshaped(self, first.shape(), others)))?;
        self.named(tensor(dims, first.into_data()))
    }

    fn named<T>(&self, result: Result<T, String>) -> Result<T, String> {
        result.map_err(|e| format!("node {:?} ({}): {e}", self.node.name, self.node.op_type))
    }

    /// One tensor for each output that is there.
    pub(crate) fn run(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
        let before = ELEMENTS_MAX.replace(self.elements_max);
        let result = guarded(|| (self.operator)(self, inputs));
        ELEMENTS_MAX.set(before);
        self.named(result)
    }

    fn axis(&self, name: &str, absent: i64, rank: usize) -> Result<usize, String> {
        axis(self.node.int(name).unwrap_or(absent), rank)
    }

    /// A list that newer versions have as an input and older ones as an attribute.
    fn list(&self, inputs: &[Option<&Tensor>], index: usize, name: &str) -> Result<Option<Vec<i64>>, String> {
        match inputs.get(index).copied().flatten() {
            Some(tensor) => integers(tensor).map(Some),
            None => Ok(self.node.ints(name).map(<[i64]>::to_vec)),
        }
    }
}

/// Whether a node has an operator here that takes no longer than handing it to another engine.
pub(crate) fn is_light(graph: &Graph, shapes: &Shapes, id: NodeId) -> bool {
    /// Where all that is done is to copy, or to go over elements in vectors.
    const STREAMED_MAX: usize = 4 << 20;
    const ELEMENTS_MAX: usize = 1 << 16;
    const MACS_MAX: u64 = 4 << 20;
    let (node, proto) = (graph.node(id), graph.proto(id));
    let pointwise = || {
        let weights = node.inputs.get(1).copied().flatten().and_then(|value| shapes.of(value));
        weights.is_some_and(|dims| dims[2.min(dims.len())..].iter().all(|d| *d == 1))
    };
    let streamed = match proto.op_type.as_str() {
        "Concat" | "Slice" | "Transpose" | "Softmax" | "Sigmoid" => true,
        "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" => true,
        "Conv" => pointwise(),
        _ => false,
    };
    let most = if streamed { STREAMED_MAX } else { ELEMENTS_MAX };
    let small = |value| shapes.elements(value).is_some_and(|n| n <= most);
    let computed = graph.reads(id).filter(|value| shapes.constant(graph, *value).is_none());
    Call::of(graph, id).is_some()
        && node.outputs.iter().flatten().copied().chain(computed).all(small)
        && shape::macs(graph, shapes, id).is_some_and(|macs| macs <= MACS_MAX)
}

fn get<'a>(inputs: &[Option<&'a Tensor>], index: usize) -> Result<&'a Tensor, String> {
    inputs.get(index).copied().flatten().ok_or_else(|| format!("input {index} is missing"))
}

fn floats<'a>(inputs: &[Option<&'a Tensor>], index: usize) -> Result<&'a [f32], String> {
    let tensor = get(inputs, index)?;
    tensor.as_f32().ok_or_else(|| format!("input {index} is {}, expected f32", tensor.data().type_name()))
}

fn integers(tensor: &Tensor) -> Result<Vec<i64>, String> {
    match tensor.data() {
        Data::I64(values) => Ok(values.clone()),
        Data::I32(values) => Ok(values.iter().map(|v| i64::from(*v)).collect()),
        other => Err(format!("expected integers, found {}", other.type_name())),
    }
}

fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let from_start = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    let inside = usize::try_from(from_start).ok().filter(|a| *a < rank.max(1));
    inside.ok_or_else(|| format!("axis {axis} of a tensor of rank {rank}"))
}

/// Elements of a tensor of that shape; refuses what no honest network asks for, be it beside a dimension of none.
fn size(dims: &[usize]) -> Result<usize, String> {
    let bound = dims.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
    let fits = bound.filter(|n| *n <= ELEMENTS_MAX.get());
    fits.map(|_| dims.iter().product()).ok_or_else(|| format!("shape {dims:?} has too many elements"))
}

fn tensor(dims: Vec<usize>, data: Data) -> Result<Tensor, String> {
    size(&dims)?;
    Tensor::new(dims, data).map_err(|e| e.to_string())
}

fn one(dims: Vec<usize>, data: Data) -> Result<Vec<Tensor>, String> {
    Ok(vec![tensor(dims, data)?])
}

/// Elements from one index of each dimension to the next.
fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for d in (1..dims.len()).rev() {
        strides[d - 1] = strides[d] * dims[d];
    }
    strides
}

/// For each element of a tensor of shape `dims`, row-major, `base + sum(index[d] * steps[d])`.
fn offsets(dims: &[usize], steps: &[isize], base: isize) -> Result<Vec<usize>, String> {
    let count = size(dims)?;
    let mut out = Vec::with_capacity(count);
    let (mut index, mut at) = (vec![0; dims.len()], base);
    for _ in 0..count {
        out.push(usize::try_from(at).map_err(|_| "an index before the first element".to_owned())?);
        for d in (0..dims.len()).rev() {
            index[d] += 1;
            at += steps[d];
            if index[d] < dims[d] {
                break;
            }
            at -= steps[d] * dims[d] as isize;
            index[d] = 0;
        }
    }
    Ok(out)
}

/// As [`offsets`], for a tensor of shape `from` stretched to `dims`.
fn stretched(from: &[usize], dims: &[usize]) -> Result<Vec<usize>, String> {
    let ahead = dims.len().checked_sub(from.len()).ok_or("shapes that do not broadcast")?;
    let own = strides(from);
    let step = |d: usize| match d.checked_sub(ahead) {
        Some(d) if from[d] != 1 => own[d] as isize,
        _ => 0,
    };
    let fits = (0..from.len()).all(|d| from[d] == 1 || from[d] == dims[d + ahead]);
    if !fits {
        return Err(format!("shapes {from:?} and {dims:?} do not broadcast"));
    }
    offsets(dims, &(0..dims.len()).map(step).collect::<Vec<_>>(), 0)
}

fn broadcast(a: &Tensor, b: &Tensor) -> Result<Vec<usize>, String> {
    let (a, b) = (a.shape(), b.shape());
    shape::broadcast(a, b).ok_or_else(|| format!("shapes {a:?} and {b:?} do not broadcast"))
}

/// A tensor of shape `dims` whose neighbours along dimension `d` lie `steps[d]` elements apart, from `base` on.
fn strided(pool: &Pool, data: &Data, dims: &[usize], steps: &[isize], base: isize) -> Result<Data, String> {
    fn list<T: Copy>(
        mut out: Vec<T>,
        values: &[T],
        starts: &[usize],
        run: usize,
        step: isize,
    ) -> Result<Vec<T>, String> {
        let behind = || "an index behind the last element".to_owned();
        out.reserve(starts.len() * run);
        for start in starts {
            if step == 1 {
                out.extend_from_slice(values.get(*start..start + run).ok_or_else(behind)?);
            } else {
                let at =
                    (0..run as isize).map(|i| values.get((*start as isize + i * step) as usize).copied());
                for value in at {
                    out.push(value.ok_or_else(behind)?);
                }
            }
        }
        Ok(out)
    }
    size(dims)?;
    // Last dimensions that follow each other without a gap are one run.
    let mut outer = dims.len();
    let (mut run, mut step) = (1usize, 1);
    while let Some(d) = outer.checked_sub(1) {
        if run == 1 {
            step = steps[d];
        } else if step != 1 || steps[d] != run as isize {
            break;
        }
        run *= dims[d];
        outer = d;
        if dims[d] == 1 && run == 1 {
            step = 1;
        }
    }
    if run == 0 {
        outer = 0;
    }
    let starts = if run == 0 { vec![] } else { offsets(&dims[..outer], &steps[..outer], base)? };
    Ok(match data {
        Data::F32(v) => Data::F32(list(pool.empty(starts.len() * run), v, &starts, run, step)?),
        Data::U8(v) => Data::U8(list(vec![], v, &starts, run, step)?),
        Data::I8(v) => Data::I8(list(vec![], v, &starts, run, step)?),
        Data::I32(v) => Data::I32(list(vec![], v, &starts, run, step)?),
        Data::I64(v) => Data::I64(list(vec![], v, &starts, run, step)?),
        Data::Bool(v) => Data::Bool(list(vec![], v, &starts, run, step)?),
    })
}

/// The elements at some indices, whatever their type.
fn pick(data: &Data, at: &[usize]) -> Result<Data, String> {
    fn list<T: Copy>(values: &[T], at: &[usize]) -> Result<Vec<T>, String> {
        at.iter()
            .map(|i| values.get(*i).copied().ok_or_else(|| "an index behind the last element".into()))
            .collect()
    }
    Ok(match data {
        Data::F32(v) => Data::F32(list(v, at)?),
        Data::U8(v) => Data::U8(list(v, at)?),
        Data::I8(v) => Data::I8(list(v, at)?),
        Data::I32(v) => Data::I32(list(v, at)?),
        Data::I64(v) => Data::I64(list(v, at)?),
        Data::Bool(v) => Data::Bool(list(v, at)?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_what_single_elements_are(
            dims in prop::collection::vec(0usize..5, 0..5), order in any::<u64>(), base in 0isize..3,
        ) {
            let mut order: Vec<usize> = (0..dims.len()).map(|d| (order >> (8 * d)) as usize % (d + 1)).collect();
            // Fisher and Yates.
            let mut axes: Vec<usize> = (0..dims.len()).collect();
            for d in (0..dims.len()).rev() {
                axes.swap(d, order.pop().unwrap());
            }
            let own = strides(&dims);
            let steps: Vec<isize> = axes.iter().map(|d| own[*d] as isize).collect();
            let dims: Vec<usize> = axes.iter().map(|d| dims[*d]).collect();
            let count = dims.iter().product::<usize>() + 3;
            let data = Data::I32((0..count as i32).collect());
            let expected = pick(&data, &offsets(&dims, &steps, base).unwrap()).unwrap();
            prop_assert_eq!(strided(&Pool::default(), &data, &dims, &steps, base), Ok(expected));
        }
    }
}
