//! Arithmetic on dimensions: what operators that join, stretch or rearrange tensors make of them.

use super::{
    Shape, Shapes,
    window::{Pads, Window},
};
use crate::{
    graph::{Graph, NodeId, ValueId},
    onnx::NodeProto,
    plain::sliced,
};

pub(super) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(axis).ok().filter(|a| *a < rank)
}

/// Two dimensions: those before the axis together, and the rest. The axis may stand behind the last dimension, but a
/// negative one counts from the last.
pub(crate) fn flatten(dims: &[usize], node: &NodeProto) -> Option<Vec<usize>> {
    let at = node.int("axis").unwrap_or(1);
    let at = if at < 0 { axis(at, dims.len())? } else { usize::try_from(at).ok()? };
    let (before, after) = dims.split_at_checked(at)?;
    Some(vec![before.iter().product(), after.iter().product()])
}

pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
    let fit = |i| match (at(a, i), at(b, i)) {
        (x, y) if x == y => Some(x),
        (1, y) => Some(y),
        (x, 1) => Some(x),
        _ => None,
    };
    (0..rank).map(fit).collect()
}

pub(super) fn matmul(a: &[usize], b: &[usize]) -> Shape {
    let ([a_batch @ .., m, k], [b_batch @ .., l, n]) = (a, b) else { return None };
    let mut dims = broadcast(a_batch, b_batch).filter(|_| k == l)?;
    dims.extend([*m, *n]);
    Some(dims)
}

pub(super) fn constant_ints(
    graph: &Graph,
    shapes: &Shapes,
    id: Option<&Option<ValueId>>,
) -> Option<Vec<i64>> {
    let tensor = shapes.constant(graph, id.copied().flatten()?)?;
    let narrow = || tensor.to_i32().map(|v| v.into_iter().map(i64::from).collect());
    tensor.to_i64().or_else(|_| narrow()).ok()
}

/// For each dimension the indices that a Slice takes, if all that says so is constant.
pub(crate) fn slice_along(graph: &Graph, shapes: &Shapes, id: NodeId) -> Option<Vec<Vec<usize>>> {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let is_there = |i: usize| node.inputs.get(i).is_some_and(Option::is_some);
    // A list that newer versions have as an input and older ones as an attribute; `None` where it is not constant.
    let list = |i: usize, name: &str| match is_there(i) {
        true => constant_ints(graph, shapes, node.inputs.get(i)).map(Some),
        false => Some(proto.ints(name).map(<[i64]>::to_vec)),
    };
    let (starts, ends) = (list(1, "starts")??, list(2, "ends")??);
    let (axes, steps) = (list(3, "axes")?, list(4, "")?);
    let first = shapes.of(node.inputs.first().copied().flatten()?)?;
    sliced(first, &starts, &ends, axes.as_deref(), steps.as_deref()).ok()
}

/// A size that no network may have: what asks for less than nothing, or for more than there can be, is refused by name,
/// since other engines would try.
const BEYOND: usize = usize::MAX;

/// Dimensions that follow from numbers in the file and not from those of tensors: other engines set such results up before
/// anybody has counted, and what cannot be set up ends the process.
pub(super) fn made(graph: &Graph, shapes: &Shapes, id: NodeId) -> Shape {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    let number = |i: usize| -> Option<f64> {
        let tensor = shapes.constant(graph, input(i)?)?;
        let real = || tensor.to_f32().map(|all| all.into_iter().map(f64::from).collect());
        let whole = || constant_ints(graph, shapes, node.inputs.get(i));
        let whole = || whole().map(|all| all.into_iter().map(|v| v as f64).collect());
        let all: Vec<f64> = tensor.to_f64().or_else(|_| real()).ok().or_else(whole)?;
        all.first().copied()
    };
    // What is below none is none, and what is too large for a size is so for everybody.
    let size = |i: usize| number(i).map(|number| number as usize);
    let first = || shapes.of(input(0)?);
    match proto.op_type.as_str() {
        "Range" => Some(vec![((number(1)? - number(0)?) / number(2)?).ceil() as usize]),
        "ConstantOfShape" => sizes(&constant_ints(graph, shapes, node.inputs.first())?),
        "RandomNormal" | "RandomUniform" => sizes(proto.ints("shape")?),
        "BlackmanWindow" | "HammingWindow" | "HannWindow" => Some(vec![size(0)?]),
        "MelWeightMatrix" => Some(vec![size(1)? / 2 + 1, size(0)?]),
        "Multinomial" => {
            let count = usize::try_from(proto.int("sample_size").unwrap_or(1)).ok()?;
            Some(vec![*first()?.first()?, count])
        }
        "OneHot" => {
            let mut dims = first()?.to_vec();
            let at = axis(proto.int("axis").unwrap_or(-1), dims.len() + 1)?;
            dims.insert(at, size(1)?);
            Some(dims)
        }
        "Einsum" => {
            let text: String = proto.string("equation")?.split_whitespace().collect();
            let (from, to) = text.split_once("->")?;
            let mut sizes = std::collections::HashMap::new();
            for (i, letters) in from.split(',').enumerate() {
                let dims = shapes.of(input(i)?)?;
                if letters.chars().count() != dims.len() {
                    return None;
                }
                sizes.extend(letters.chars().zip(dims.iter().copied()));
            }
            to.chars().map(|letter| sizes.get(&letter).copied()).collect()
        }
        _ => None,
    }
}

/// Sizes after a Resize 10 to 19, or an Upsample 7 or 9, of which scales or sizes are constants.
pub(super) fn resize(graph: &Graph, shapes: &Shapes, id: NodeId, first: &[usize]) -> Shape {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    let axes: Vec<usize> = match proto.ints("axes") {
        Some(axes) => axes.iter().map(|a| axis(*a, first.len())).collect::<Option<_>>()?,
        None => (0..first.len()).collect(),
    };
    let mut dims = first.to_vec();
    if let Some(to) = input(3).and_then(|_| constant_ints(graph, shapes, node.inputs.get(3))) {
        let wanted = axes.iter().zip(&to).map(|(d, to)| (*d, usize::try_from(*to).unwrap_or(BEYOND)));
        let scales = wanted.clone().map(|(d, to)| to as f64 / first[d] as f64);
        // All dimensions by the same factor, or each to its own size.
        let factor = match proto.string("keep_aspect_ratio_policy").unwrap_or("stretch") {
            "not_larger" => scales.reduce(f64::min),
            "not_smaller" => scales.reduce(f64::max),
            _ => None,
        };
        for (d, to) in wanted {
            let scaled = factor.map(|factor| (first[d] as f64 * factor + 0.5).floor() as usize);
            *dims.get_mut(d)? = scaled.unwrap_or(to);
        }
        return (axes.len() == to.len()).then_some(dims);
    }
    let scales = match (input(2), proto.attribute("scales"), input(1)) {
        (Some(scales), _, _) => shapes.constant(graph, scales)?.to_f32().ok()?,
        (None, Some(scales), _) => scales.floats.clone(),
        (None, None, Some(scales)) => shapes.constant(graph, scales)?.to_f32().ok()?,
        _ => return None,
    };
    for (d, scale) in axes.iter().zip(&scales) {
        let size = (*dims.get(*d)? as f64 * f64::from(*scale)).floor();
        *dims.get_mut(*d)? = if (0.0..1e9).contains(&size) { size as usize } else { BEYOND };
    }
    (axes.len() == scales.len()).then_some(dims)
}

/// Sizes after a ConvTranspose 1 or 11.
pub(super) fn transposed(proto: &NodeProto, first: &[usize], weight: &[usize]) -> Shape {
    let ([n, c, spatial @ ..], [m, per_group, kernel @ ..]) = (first, weight) else { return None };
    let groups = usize::try_from(proto.int("group").unwrap_or(1)).ok()?;
    let window = Window::of(proto, kernel).filter(|_| c == m && spatial.len() == kernel.len())?;
    let list =
        |name: &str| proto.ints(name).map(|v| v.iter().map(|v| usize::try_from(*v).ok()).collect::<Shape>());
    if let Some(sizes) = list("output_shape") {
        let sizes = sizes?;
        let spatial = sizes.get(sizes.len().checked_sub(kernel.len())?..)?;
        return Some([&[*n, per_group.checked_mul(groups)?], spatial].concat());
    }
    let extra = list("output_padding").unwrap_or_else(|| Some(vec![0; kernel.len()]))?;
    let size = |d: usize| {
        let full =
            (spatial[d].checked_sub(1)?).checked_mul(window.strides[d])?.checked_add(window.extent(d))?;
        let full = full.checked_add(*extra.get(d)?)?;
        match &window.pads {
            Pads::Explicit(pads) => full.checked_sub(pads[d] + pads[d + kernel.len()]),
            Pads::Same { .. } => spatial[d].checked_mul(window.strides[d]),
        }
    };
    let mut dims = vec![*n, per_group.checked_mul(groups)?];
    dims.extend((0..kernel.len()).map(size).collect::<Option<Vec<_>>>()?);
    Some(dims)
}

pub(super) fn sizes(dims: &[i64]) -> Shape {
    dims.iter().map(|d| usize::try_from(*d).ok()).collect()
}

pub(crate) fn reshape(from: &[usize], to: &[i64], proto: &NodeProto) -> Shape {
    let copies = proto.int("allowzero") != Some(1);
    let total = from.iter().product::<usize>();
    let size = |(i, d): (usize, &i64)| match *d {
        0 if copies => from.get(i).copied(),
        -1 => Some(1),
        d => usize::try_from(d).ok(),
    };
    let mut dims: Vec<usize> = to.iter().enumerate().map(size).collect::<Option<_>>()?;
    let rest = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    match to.iter().filter(|d| **d == -1).count() {
        0 => (rest == total).then_some(dims),
        1 if rest > 0 && total % rest == 0 => {
            let at = to.iter().position(|d| *d == -1)?;
            dims[at] = total / rest;
            Some(dims)
        }
        _ => None,
    }
}

pub(super) fn concat(parts: &[&[usize]], along: i64) -> Shape {
    let mut dims = parts.first()?.to_vec();
    let along = axis(along, dims.len())?;
    for part in &parts[1..] {
        let same = part.len() == dims.len() && (0..dims.len()).all(|i| i == along || part[i] == dims[i]);
        dims[along] = same.then(|| dims[along].checked_add(part[along])).flatten()?;
    }
    Some(dims)
}
