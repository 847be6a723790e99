//! A network as a graph: nodes in an order in which they can run, and the values that flow between them.
//!
//! Quantised networks in operator form are put in Q/DQ form first ([`qlinear`]).
//!
//! Built from a checked [`ModelProto`]; what it guarantees on top: every value has one source (graph input, constant or
//! one node), every input of a node and every output of the graph exists, and a node comes after all nodes it reads
//! from. Nodes keep their ONNX form (attributes, constants); operators are not judged here.

use std::collections::HashMap;

use crate::{
    onnx::{self, DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    qlinear,
};

/// A value of a graph: an index into [`Graph::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(u32);

impl ValueId {
    /// From 0 to below [`Graph::value_count`]; for tables with one entry a value.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A node of a graph: an index into [`Graph::nodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct NodeId(u32);

impl NodeId {
    /// From 0 to below the number of nodes; for tables with one entry a node.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Index into [`Graph::inputs`].
    Input(usize),
    /// Index into the initialisers of the file.
    Constant(usize),
    Node(NodeId),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    pub name: String,
    pub source: Source,
    /// How many node inputs and graph outputs read it.
    pub readers: u32,
}

/// A node's place in the graph; its operator and attributes are in [`Graph::proto`].
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The file's name for it, or `OPERATOR#INDEX` where the file gives none.
    pub name: String,
    /// `None` where an optional input is left out.
    pub inputs: Vec<Option<ValueId>>,
    pub outputs: Vec<Option<ValueId>>,
    /// What only its bodies read (`If`, `Loop`, `Scan`).
    pub captures: Vec<ValueId>,
}

#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    #[error(transparent)]
    Read(#[from] onnx::ReadError),
    #[error("node {node:?} ({operator}) reads {value:?}, which nothing in the graph gives")]
    MissingInput { node: String, operator: String, value: String },
    #[error("graph output {value:?} is given by no node")]
    MissingOutput { value: String },
    #[error("graph output {value:?} is listed twice")]
    DuplicateOutput { value: String },
    #[error("value {value:?} is given twice, the second time by {by}")]
    Duplicate { value: String, by: String },
    #[error("node {node:?} ({operator}) depends on itself, through {value:?}")]
    Cycle { node: String, operator: String, value: String },
    #[error("graph has no {what}")]
    Empty { what: &'static str },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// The file, its nodes in the order of [`Graph::nodes`].
    proto: ModelProto,
    nodes: Vec<Node>,
    values: Vec<Value>,
    names: HashMap<String, ValueId>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// Where constants lie, if they lie in a file.
    file: Option<onnx::File>,
    /// Of a tensor, by the limits that it was read with.
    elements_max: usize,
}

impl Graph {
    /// Reads and checks a file.
    pub fn read(bytes: &[u8], limits: &onnx::Limits) -> Result<Self, GraphError> {
        let graph = Self::new(onnx::read(bytes, limits)?)?;
        Ok(Self { elements_max: limits.elements_max, ..graph })
    }

    /// As [`Graph::read`], with constants that stay in the file.
    pub fn read_file(file: &onnx::File, limits: &onnx::Limits) -> Result<Self, GraphError> {
        let graph = Self::new(onnx::read_file(file, limits)?)?;
        Ok(Self { file: Some(file.clone()), elements_max: limits.elements_max, ..graph })
    }

    /// Expects what [`onnx::read`] returned, or a model that was built to its rules.
    pub fn new(mut proto: ModelProto) -> Result<Self, GraphError> {
        let graph = proto.graph.as_mut().ok_or(onnx::ReadError::NoGraph)?;
        if graph.node.is_empty() {
            return Err(GraphError::Empty { what: "nodes" });
        }
        if graph.output.is_empty() {
            return Err(GraphError::Empty { what: "outputs" });
        }
        qlinear::to_qdq(graph);
        sort(graph)?;
        let mut builder = Builder::default();
        builder.constants(graph)?;
        let inputs = builder.inputs(graph)?;
        let nodes = builder.nodes(graph)?;
        let outputs = builder.outputs(graph)?;
        let Builder { values, names } = builder;
        Ok(Self {
            nodes,
            values,
            names,
            inputs,
            outputs,
            proto,
            file: None,
            elements_max: onnx::Limits::default().elements_max,
        })
    }

    fn graph(&self) -> &GraphProto {
        self.proto.graph.as_ref().expect("checked by the constructor")
    }

    pub fn model_proto(&self) -> &ModelProto {
        &self.proto
    }

    pub fn opset(&self) -> i64 {
        self.proto.opset().unwrap_or(onnx::OPSET_MIN)
    }

    /// In an order in which they can run.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (NodeId, &Node, &NodeProto)> {
        let pairs = self.nodes.iter().zip(&self.graph().node);
        pairs.enumerate().map(|(i, (node, proto))| (NodeId(i as u32), node, proto))
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn proto(&self, id: NodeId) -> &NodeProto {
        &self.graph().node[id.0 as usize]
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    pub fn values(&self) -> impl ExactSizeIterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// What a caller must give: graph inputs that no initialiser fills.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = (ValueId, &ValueInfoProto)> {
        self.inputs.iter().map(|id| match self.value(*id).source {
            Source::Input(at) => (*id, &self.graph().input[at]),
            _ => unreachable!("the constructor makes inputs of graph inputs only"),
        })
    }

    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The constant behind a value, if it is an initialiser or the output of a `Constant` node with a tensor.
    pub fn constant(&self, id: ValueId) -> Option<&TensorProto> {
        match self.value(id).source {
            Source::Constant(at) => Some(&self.graph().initializer[at]),
            Source::Node(node) if self.proto(node).op_type == "Constant" => self.proto(node).tensor("value"),
            _ => None,
        }
    }

    /// The data of a constant is not needed for now: see [`onnx::File::let_go`].
    pub(crate) fn let_go(&self, constant: &TensorProto) {
        if let Some(file) = &self.file {
            file.let_go(&constant.raw_data);
        }
    }

    pub fn producer(&self, id: ValueId) -> Option<NodeId> {
        match self.value(id).source {
            Source::Node(node) => Some(node),
            _ => None,
        }
    }

    /// All that a node reads: inputs that are there, and what its bodies capture.
    pub fn reads(&self, id: NodeId) -> impl Iterator<Item = ValueId> {
        let node = self.node(id);
        node.inputs.iter().flatten().chain(&node.captures).copied()
    }

    /// What no tensor of a run may have more of.
    pub(crate) fn elements_max(&self) -> usize {
        self.elements_max
    }

    /// What the file says about intermediate values.
    pub fn declared(&self) -> impl Iterator<Item = &ValueInfoProto> {
        self.graph().value_info.iter().chain(&self.graph().output)
    }

    pub fn data_type_of_input(&self, id: ValueId) -> Option<DataType> {
        self.inputs().find(|(input, _)| *input == id).and_then(|(_, info)| info.data_type())
    }

    /// Input of the last fully connected layer before the first output: `Gemm`, or `MatMul` with a constant. What
    /// may stand between that layer and the output is named in [`passes_through`]. `None` if there is no such layer,
    /// or if what it reads is an input of the graph.
    pub fn embedding(&self) -> Option<ValueId> {
        let mut at = *self.outputs.first()?;
        // Each step goes to an earlier node, so that the walk ends.
        loop {
            let id = self.producer(at)?;
            let (node, proto) = (self.node(id), self.proto(id));
            match proto.op_type.as_str() {
                "Gemm" | "MatMul" => {
                    // What a caller gives is no feature of it.
                    let computed = |v: &ValueId| !matches!(self.value(*v).source, Source::Input(_));
                    return node.inputs.first().copied().flatten().filter(computed);
                }
                op if passes_through(op) => {
                    let mut computed = node.inputs.iter().flatten().filter(|v| !self.is_fixed(**v));
                    at = *computed.next()?;
                }
                _ => return None,
            }
        }
    }

    /// A constant, or a dequantised one.
    fn is_fixed(&self, id: ValueId) -> bool {
        if self.constant(id).is_some() {
            return true;
        }
        let Some(producer) = self.producer(id) else { return false };
        let dequantised = self.proto(producer).op_type == "DequantizeLinear";
        dequantised
            && self
                .node(producer)
                .inputs
                .first()
                .copied()
                .flatten()
                .is_some_and(|v| self.constant(v).is_some())
    }
}

/// Operators that may follow a classifier's last layer.
fn passes_through(operator: &str) -> bool {
    matches!(
        operator,
        "Add"
            | "Softmax"
            | "LogSoftmax"
            | "Sigmoid"
            | "Identity"
            | "QuantizeLinear"
            | "DequantizeLinear"
            | "Flatten"
            | "Reshape"
            | "Squeeze"
            | "Cast"
    )
}

#[derive(Default)]
struct Builder {
    values: Vec<Value>,
    names: HashMap<String, ValueId>,
}

impl Builder {
    fn add(&mut self, name: &str, source: Source, by: impl Fn() -> String) -> Result<ValueId, GraphError> {
        let id = ValueId(self.values.len() as u32);
        if self.names.insert(name.to_owned(), id).is_some() {
            return Err(GraphError::Duplicate { value: name.to_owned(), by: by() });
        }
        self.values.push(Value { name: name.to_owned(), source, readers: 0 });
        Ok(id)
    }

    fn constants(&mut self, graph: &GraphProto) -> Result<(), GraphError> {
        for (i, tensor) in graph.initializer.iter().enumerate() {
            self.add(&tensor.name, Source::Constant(i), || "an initialiser".into())?;
        }
        Ok(())
    }

    /// Before IR version 4 every initialiser is listed as an input too.
    fn inputs(&mut self, graph: &GraphProto) -> Result<Vec<ValueId>, GraphError> {
        let mut inputs = Vec::new();
        for (i, input) in graph.input.iter().enumerate() {
            let constant = self.names.get(&input.name).map(|id| self.values[id.0 as usize].source);
            if !matches!(constant, Some(Source::Constant(_))) {
                inputs.push(self.add(&input.name, Source::Input(i), || "a graph input".into())?);
            }
        }
        Ok(inputs)
    }

    fn nodes(&mut self, graph: &GraphProto) -> Result<Vec<Node>, GraphError> {
        let mut nodes = Vec::with_capacity(graph.node.len());
        for (i, proto) in graph.node.iter().enumerate() {
            let name = node_name(proto, i);
            let inputs =
                proto.input.iter().map(|input| self.read(input, proto, &name)).collect::<Result<_, _>>()?;
            // Values that only a body reads: counted, so that nothing takes them for unused.
            let captured = captures(proto).into_iter().map(|captured| self.read(captured, proto, &name));
            let captures = captured.filter_map(Result::transpose).collect::<Result<_, _>>()?;
            let mut outputs = Vec::with_capacity(proto.output.len());
            for output in &proto.output {
                let by = || format!("node {name:?} ({})", proto.op_type);
                let id = (!output.is_empty()).then(|| self.add(output, Source::Node(NodeId(i as u32)), by));
                outputs.push(id.transpose()?);
            }
            nodes.push(Node { name, inputs, outputs, captures });
        }
        Ok(nodes)
    }

    fn read(&mut self, value: &str, node: &NodeProto, name: &str) -> Result<Option<ValueId>, GraphError> {
        if value.is_empty() {
            return Ok(None);
        }
        let Some(id) = self.names.get(value) else {
            let operator = node.op_type.clone();
            return Err(GraphError::MissingInput {
                node: name.to_owned(),
                operator,
                value: value.to_owned(),
            });
        };
        self.values[id.0 as usize].readers += 1;
        Ok(Some(*id))
    }

    fn outputs(&mut self, graph: &GraphProto) -> Result<Vec<ValueId>, GraphError> {
        let mut seen = std::collections::HashSet::new();
        let find = |output: &ValueInfoProto| {
            let missing = || GraphError::MissingOutput { value: output.name.clone() };
            let id = *self.names.get(&output.name).ok_or_else(missing)?;
            // Outputs are told apart by their names, and each is a tensor of its own.
            if !seen.insert(id) {
                return Err(GraphError::DuplicateOutput { value: output.name.clone() });
            }
            self.values[id.0 as usize].readers += 1;
            Ok(id)
        };
        graph.output.iter().map(find).collect()
    }
}

fn node_name(node: &NodeProto, index: usize) -> String {
    if node.name.is_empty() { format!("{}#{index}", node.op_type) } else { node.name.clone() }
}

/// Names of the outer graph that bodies of a node (`If`, `Loop`, `Scan`) read.
fn captures(node: &NodeProto) -> Vec<&str> {
    let mut found = Vec::new();
    for attribute in &node.attribute {
        for graph in attribute.g.iter().map(|g| &**g).chain(&attribute.graphs) {
            free_names(graph, &mut found);
        }
    }
    found
}

/// Depth is bounded by the reader.
fn free_names<'a>(graph: &'a GraphProto, found: &mut Vec<&'a str>) {
    let own = graph.input.iter().map(|v| &v.name).chain(graph.initializer.iter().map(|t| &t.name));
    let own: std::collections::HashSet<&str> =
        own.chain(graph.node.iter().flat_map(|n| &n.output)).map(String::as_str).collect();
    let mut inner = Vec::new();
    for node in &graph.node {
        inner.extend(node.input.iter().map(String::as_str));
        inner.extend(captures(node));
    }
    inner.extend(graph.output.iter().map(|v| v.name.as_str()));
    found.extend(inner.into_iter().filter(|name| !name.is_empty() && !own.contains(name)));
}

/// Puts nodes after the nodes they read from. ONNX demands that order of the file; writers get it wrong often enough
/// that it is restored rather than refused. Keeps the file's order where that is already right (Kahn, smallest index
/// first).
fn sort(graph: &mut GraphProto) -> Result<(), GraphError> {
    let mut producer = HashMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            // The first wins here; that there is a second is reported where values are made.
            producer.entry(output.as_str()).or_insert(i);
        }
    }
    let mut waits = vec![0usize; graph.node.len()];
    let mut readers = vec![Vec::new(); graph.node.len()];
    for (i, node) in graph.node.iter().enumerate() {
        for input in node.input.iter().map(String::as_str).chain(captures(node)) {
            if let Some(from) = producer.get(input) {
                waits[i] += 1;
                readers[*from].push(i);
            }
        }
    }
    let mut ready: std::collections::BTreeSet<usize> = (0..waits.len()).filter(|i| waits[*i] == 0).collect();
    let mut order = Vec::with_capacity(waits.len());
    while let Some(next) = ready.pop_first() {
        order.push(next);
        for reader in &readers[next] {
            waits[*reader] -= 1;
            if waits[*reader] == 0 {
                ready.insert(*reader);
            }
        }
    }
    if order.len() < waits.len() {
        return Err(cycle(graph, &waits, &producer));
    }
    let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
    graph.node = order.into_iter().filter_map(|i| nodes[i].take()).collect();
    Ok(())
}

/// Names one node of a cycle: from any node that never became ready, go to inputs that never did, until one repeats.
fn cycle(graph: &GraphProto, waits: &[usize], producer: &HashMap<&str, usize>) -> GraphError {
    let mut seen = vec![false; waits.len()];
    let mut at = waits.iter().position(|w| *w > 0).unwrap_or(0);
    let mut value = String::new();
    while !std::mem::replace(&mut seen[at], true) {
        let node = &graph.node[at];
        let inputs = node.input.iter().map(String::as_str).chain(captures(node));
        let stuck = |name: &str| producer.get(name).copied().filter(|from| waits[*from] > 0);
        let Some((name, from)) = inputs.into_iter().find_map(|name| Some((name, stuck(name)?))) else {
            break;
        };
        (value, at) = (name.to_owned(), from);
    }
    let node = &graph.node[at];
    GraphError::Cycle { node: node_name(node, at), operator: node.op_type.clone(), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(nodes: Vec<NodeProto>, outputs: &[&str]) -> ModelProto {
        let graph = GraphProto {
            node: nodes,
            initializer: vec![TensorProto::f32("w", &[1], &[1.0])],
            input: vec![ValueInfoProto::new("x", DataType::Float, &[1])],
            output: outputs.iter().map(|o| ValueInfoProto::new(o, DataType::Float, &[1])).collect(),
            ..Default::default()
        };
        ModelProto::new(graph, 17)
    }

    fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto::new(op, "", inputs.iter().copied(), [output])
    }

    fn order(graph: &Graph) -> Vec<&str> {
        graph.nodes().map(|(_, _, proto)| proto.op_type.as_str()).collect()
    }

    #[test]
    fn nodes_are_put_in_order() {
        let nodes = vec![node("Exp", &["b"], "c"), node("Add", &["x", "w"], "a"), node("Neg", &["a"], "b")];
        let graph = Graph::new(model(nodes, &["c"])).unwrap();
        assert_eq!(order(&graph), ["Add", "Neg", "Exp"]);
        assert_eq!(graph.inputs().count(), 1);
        assert_eq!(graph.value(graph.find("a").unwrap()).readers, 1);
        assert_eq!(graph.constant(graph.find("w").unwrap()).unwrap().dims, [1]);
    }

    #[test]
    fn bad_graphs_say_where() {
        let cases: [(Vec<NodeProto>, &[&str], &str); 7] = [
            (vec![], &["x"], "graph has no nodes"),
            (vec![node("Neg", &["x"], "a")], &[], "graph has no outputs"),
            (
                vec![node("Neg", &["y"], "a")],
                &["a"],
                r#"node "Neg#0" (Neg) reads "y", which nothing in the graph gives"#,
            ),
            (vec![node("Neg", &["x"], "a")], &["b"], r#"graph output "b" is given by no node"#),
            (vec![node("Neg", &["x"], "a")], &["a", "a"], r#"graph output "a" is listed twice"#),
            (
                vec![node("Neg", &["x"], "a"), node("Exp", &["x"], "a")],
                &["a"],
                r#"value "a" is given twice, the second time by node "Exp#1" (Exp)"#,
            ),
            (
                vec![node("Add", &["x", "b"], "a"), node("Neg", &["a"], "b"), node("Exp", &["b"], "c")],
                &["c"],
                r#"node "Add#0" (Add) depends on itself, through "a""#,
            ),
        ];
        for (nodes, outputs, expected) in cases {
            assert_eq!(Graph::new(model(nodes, outputs)).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn bodies_count_as_readers() {
        let body = GraphProto {
            node: vec![node("Neg", &["a"], "inner")],
            output: vec![ValueInfoProto::new("inner", DataType::Float, &[1])],
            ..Default::default()
        };
        let attribute = onnx::AttributeProto {
            name: "then_branch".into(),
            g: Some(Box::new(body)),
            r#type: onnx::AttributeType::Graph as i32,
            ..Default::default()
        };
        let choice = node("If", &["x"], "c").with(attribute);
        let graph = Graph::new(model(vec![choice, node("Exp", &["x"], "a")], &["c"])).unwrap();
        assert_eq!(order(&graph), ["Exp", "If"]);
        assert_eq!(graph.value(graph.find("a").unwrap()).readers, 1);
    }

    #[test]
    fn the_embedding_is_the_input_of_the_last_layer() {
        let embedding = |nodes| {
            let graph = Graph::new(model(nodes, &["y"])).unwrap();
            graph.embedding().map(|id| graph.value(id).name.clone())
        };
        assert_eq!(
            embedding(vec![node("Neg", &["x"], "e"), node("Gemm", &["e", "w"], "y")]).as_deref(),
            Some("e")
        );
        let matmul = vec![
            node("Neg", &["x"], "e"),
            node("MatMul", &["e", "w"], "m"),
            node("Add", &["w", "m"], "s"),
            node("Softmax", &["s"], "y"),
        ];
        assert_eq!(embedding(matmul).as_deref(), Some("e"));
        let quantised = vec![
            node("DequantizeLinear", &["x", "w"], "e"),
            node("DequantizeLinear", &["w", "w"], "wf"),
            node("Gemm", &["e", "wf"], "g"),
            node("QuantizeLinear", &["g", "w"], "q"),
            node("DequantizeLinear", &["q", "w"], "y"),
        ];
        assert_eq!(embedding(quantised).as_deref(), Some("e"));
        assert_eq!(embedding(vec![node("Conv", &["x", "w"], "y")]), None);
    }
}
