//! A part of a network as a network of its own, for another engine.

use super::schedule::crosses;
use crate::{
    engine::{Engine, tract::Tract},
    graph::{Graph, NodeId, ValueId},
    onnx::{GraphProto, ModelProto, TensorProto, ValueInfoProto},
    shape::Shapes,
};

/// The values that cross an island's border.
pub(super) struct Border {
    pub(super) inputs: Vec<ValueId>,
    pub(super) constants: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
}

impl Border {
    /// `nodes` are in an order in which they can run.
    pub(super) fn of(
        graph: &Graph,
        nodes: &[NodeId],
        is_constant: impl Fn(ValueId) -> bool,
        is_needed: impl Fn(ValueId) -> bool,
    ) -> Self {
        let mut border = Self { inputs: vec![], constants: vec![], outputs: vec![] };
        let mut known = std::collections::HashSet::new();
        for id in nodes {
            for value in graph.reads(*id) {
                if known.insert(value) {
                    if is_constant(value) { &mut border.constants } else { &mut border.inputs }.push(value);
                }
            }
            for output in graph.node(*id).outputs.iter().flatten() {
                known.insert(*output);
                if is_needed(*output) {
                    border.outputs.push(*output);
                }
            }
        }
        border
    }
}

/// The nodes on tract.
pub(super) fn build(
    graph: &Graph,
    shapes: &Shapes,
    nodes: &[NodeId],
    border: &Border,
) -> Result<Box<dyn Engine>, String> {
    let name = |value: ValueId| graph.value(value).name.clone();
    let constant = |value: &ValueId| {
        shapes.constant(graph, *value).map(|tensor| TensorProto { name: name(*value), ..tensor.clone() })
    };
    let input = |value: &ValueId| {
        let dims =
            shapes.of(*value).ok_or_else(|| format!("the shape of {:?} is not known", name(*value)))?;
        let data_type = shapes.data_type(*value).filter(|t| crosses(*t));
        let data_type = data_type.ok_or_else(|| format!("the type of {:?} is not known", name(*value)))?;
        Ok::<_, String>((ValueInfoProto::new(&name(*value), data_type, dims), dims.to_vec()))
    };
    let (input, dims): (Vec<_>, Vec<_>) =
        border.inputs.iter().map(input).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let proto = GraphProto {
        name: "island".into(),
        node: nodes.iter().map(|id| graph.proto(*id).clone()).collect(),
        initializer: border.constants.iter().filter_map(constant).collect(),
        input,
        output: border.outputs.iter().map(|v| ValueInfoProto { name: name(*v), r#type: None }).collect(),
        ..Default::default()
    };
    let opset_import = graph.model_proto().opset_import.clone();
    let part = Graph::new(ModelProto { opset_import, ..ModelProto::new(proto, graph.opset()) });
    let part = part.map_err(|e| e.to_string())?;
    let outputs = part.outputs().to_vec();
    Ok(Box::new(Tract::new(&part, &dims, &outputs)?))
}
