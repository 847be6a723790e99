//! What must hold for every decoded file: see [`super::read`].

use super::{
    AttributeProto, DataType, GraphProto, Limits, ModelProto, NodeProto, OPSET_MAX, OPSET_MIN, ReadError,
    TensorError, TensorProto,
};

pub(super) fn check(model: &ModelProto, limits: &Limits) -> Result<(), ReadError> {
    let graph = model.graph.as_ref().ok_or(ReadError::NoGraph)?;
    if !model.functions.is_empty() {
        return Err(ReadError::Unsupported { what: "model-local functions" });
    }
    let version = model.opset().ok_or(ReadError::NoOpset)?;
    if !(OPSET_MIN..=OPSET_MAX).contains(&version) {
        return Err(ReadError::Opset { version });
    }
    check_graph(graph, limits)
}

/// Recursion is bounded: the scan before decoding limits the depth of graphs.
fn check_graph(graph: &GraphProto, limits: &Limits) -> Result<(), ReadError> {
    if !graph.sparse_initializer.is_empty() {
        return Err(ReadError::Unsupported { what: "sparse initialisers" });
    }
    for value in graph.input.iter().chain(&graph.output).chain(&graph.value_info) {
        check_name(&value.name, limits)?;
    }
    for tensor in &graph.initializer {
        check_name(&tensor.name, limits)?;
        check_tensor(tensor, limits).map_err(|problem| ReadError::Tensor {
            owner: "initialiser".into(),
            name: tensor.name.clone(),
            problem,
        })?;
    }
    graph.node.iter().try_for_each(|node| check_node(node, limits))
}

fn check_node(node: &NodeProto, limits: &Limits) -> Result<(), ReadError> {
    let attribute_names = node.attribute.iter().map(|a| &a.name);
    let names = node.input.iter().chain(&node.output).chain([&node.name, &node.op_type, &node.domain]);
    names.chain(attribute_names).try_for_each(|name| check_name(name, limits))?;
    node.attribute.iter().try_for_each(|a| check_attribute(node, a, limits))
}

fn check_attribute(node: &NodeProto, attribute: &AttributeProto, limits: &Limits) -> Result<(), ReadError> {
    for tensor in attribute.t.iter().chain(&attribute.tensors) {
        check_tensor(tensor, limits).map_err(|problem| ReadError::Tensor {
            owner: format!("node {:?} ({}), attribute {:?}", node.name, node.op_type, attribute.name),
            name: tensor.name.clone(),
            problem,
        })?;
    }
    let graphs = attribute.g.iter().map(|g| &**g).chain(&attribute.graphs);
    graphs.into_iter().try_for_each(|graph| check_graph(graph, limits))
}

fn check_name(name: &str, limits: &Limits) -> Result<(), ReadError> {
    if name.len() <= limits.name_bytes_max {
        return Ok(());
    }
    let start = name.chars().take(40).collect();
    Err(ReadError::Name { start, bytes: name.len(), max: limits.name_bytes_max })
}

/// Shape within limits, and exactly as much data as the shape says, in one place.
fn check_tensor(tensor: &TensorProto, limits: &Limits) -> Result<(), TensorError> {
    if tensor.data_location != 0 || !tensor.external_data.is_empty() {
        return Err(TensorError::External);
    }
    if tensor.segment.is_some() {
        return Err(TensorError::Segment);
    }
    if tensor.dims.len() > limits.rank_max {
        return Err(TensorError::Rank { rank: tensor.dims.len(), max: limits.rank_max });
    }
    let too_many = || TensorError::Dims { dims: tensor.dims.clone(), max: limits.elements_max };
    // Beside a dimension of none the others count all the same: steps are made of them.
    let bound = tensor.dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from((*d).max(1)).ok()?));
    bound.filter(|n| *n <= limits.elements_max).ok_or_else(too_many)?;
    let elements = tensor.elements().ok_or_else(too_many)?;
    let data_type = tensor.element_type()?;
    let size = |unit, expected, actual| TensorError::Size {
        dims: tensor.dims.clone(),
        data_type,
        unit,
        expected,
        actual,
    };
    if !tensor.raw_data.is_empty() {
        let width = data_type.bytes().ok_or(TensorError::DataType { code: tensor.data_type })?;
        let expected = elements.checked_mul(width).ok_or_else(too_many)?;
        let actual = tensor.raw_data.len();
        return if actual == expected { Ok(()) } else { Err(size("bytes", expected, actual)) };
    }
    let (actual, per_element) = match data_type {
        DataType::Float => (tensor.float_data.len(), 1),
        DataType::Complex64 => (tensor.float_data.len(), 2),
        DataType::Double => (tensor.double_data.len(), 1),
        DataType::Complex128 => (tensor.double_data.len(), 2),
        DataType::Int64 => (tensor.int64_data.len(), 1),
        DataType::Uint32 | DataType::Uint64 => (tensor.uint64_data.len(), 1),
        DataType::String => (tensor.string_data.len(), 1),
        _ => (tensor.int32_data.len(), 1),
    };
    let expected = elements.checked_mul(per_element).ok_or_else(too_many)?;
    if actual == expected { Ok(()) } else { Err(size("elements", expected, actual)) }
}
