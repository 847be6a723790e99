//! A network that was read and checked, before an engine is chosen: [`Model`].

use std::{fmt, sync::Arc};

use crate::{
    explain::Explanation,
    graph::{Graph, GraphError, ValueId},
    onnx::{self, DataType, Limits},
    session::EngineChoice,
    shape::{self, ShapeMismatch, Shapes},
};

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("model {model:?}: {problem}")]
    Graph { model: String, problem: Box<GraphError> },
    #[error("model {model:?}: {problem}")]
    Shape { model: String, problem: Box<ShapeMismatch> },
    #[error(
        "model {model:?}: input {input:?} has shape {shape}, its size must be given when the session is made"
    )]
    OpenInput { model: String, input: String, shape: String },
    #[error("model {model:?} has no input {input:?}, it has {known:?}")]
    UnknownInput { model: String, input: String, known: Vec<String> },
    #[error("model {model:?}: input {input:?} takes {expected}, not {actual:?}")]
    InputShape { model: String, input: String, expected: String, actual: Vec<usize> },
    #[error("model {model:?} has no output {output:?}, its outputs are {known:?}")]
    UnknownOutput { model: String, output: String, known: Vec<String> },
    #[error("model {model:?}: output {output:?} has {actual} values, expected {expected}")]
    OutputSize { model: String, output: String, expected: usize, actual: usize },
    #[error("model {model:?} needs about {needed} bytes to run, allowed are {allowed}")]
    Memory { model: String, needed: u64, allowed: u64 },
    /// The engine cannot run it: an operator it lacks, or a panic inside it.
    #[error("model {model:?}: engine {engine} cannot run it: {reason}")]
    Engine { model: String, engine: &'static str, reason: String },
    #[error("model {model:?} is no image classifier that this program can run: {reason}")]
    NoClassifier { model: String, reason: String },
}

/// An input of a network. Unknown dimensions are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub data_type: Option<DataType>,
    /// `None` if the file does not even say how many there are.
    pub dims: Option<Vec<Option<usize>>>,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shape_text(self.dims.as_deref()))
    }
}

/// `[1, 3, ?, ?]`
fn shape_text(dims: Option<&[Option<usize>]>) -> String {
    let Some(dims) = dims else { return "of any rank".into() };
    let dims: Vec<String> = dims.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

/// A checked network, cheap to clone. Nothing is computed yet; see [`crate::Session`].
#[derive(Debug, Clone)]
pub struct Model {
    graph: Arc<Graph>,
    limits: Limits,
    name: String,
}

impl Model {
    /// Reads an ONNX file; every bound is checked.
    pub fn load(bytes: &[u8], limits: &Limits) -> Result<Self, LoadError> {
        Self::from_read(Graph::read(bytes, limits), limits)
    }

    /// As [`Model::load`]; constants stay in the file, so that they need no memory of the process's own.
    pub fn open(file: &onnx::File, limits: &Limits) -> Result<Self, LoadError> {
        Self::from_read(Graph::read_file(file, limits), limits)
    }

    fn from_read(graph: Result<Graph, GraphError>, limits: &Limits) -> Result<Self, LoadError> {
        let unnamed = |e| LoadError::Graph { model: "unnamed".into(), problem: Box::new(e) };
        Self::from_graph(graph.map_err(unnamed)?, limits)
    }

    pub fn from_graph(graph: Graph, limits: &Limits) -> Result<Self, LoadError> {
        let name = graph.model_proto().graph.as_ref().map_or("", |g| &g.name);
        let name = if name.is_empty() { "unnamed" } else { name }.to_owned();
        let model = Self { graph: Arc::new(graph), limits: limits.clone(), name };
        // What is wrong whatever the input's size is told now rather than when a session is made.
        model.shapes(&model.closed_inputs())?;
        Ok(model)
    }

    /// The graph's name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn inputs(&self) -> Vec<Port> {
        let port = |(id, info): (ValueId, &crate::onnx::ValueInfoProto)| Port {
            name: self.graph.value(id).name.clone(),
            data_type: info.data_type(),
            dims: info.dims(),
        };
        self.graph.inputs().map(port).collect()
    }

    pub fn outputs(&self) -> Vec<String> {
        self.graph.outputs().iter().map(|id| self.graph.value(*id).name.clone()).collect()
    }

    /// Name of the value that the last fully connected layer reads (see [`Graph::embedding`]).
    pub fn embedding(&self) -> Option<&str> {
        self.graph.embedding().map(|id| self.graph.value(id).name.as_str())
    }

    /// Bytes of all constants.
    pub fn constant_bytes(&self) -> u64 {
        self.graph
            .values()
            .filter_map(|id| self.graph.constant(id))
            .map(crate::onnx::TensorProto::bytes)
            .sum()
    }

    /// What runs where, and what it costs, at the input shapes that the file declares.
    pub fn explain(&self) -> Explanation {
        self.explain_for(EngineChoice::Auto)
    }

    /// As [`Model::explain`], for an engine: `Gpu` makes one, to see what it takes.
    pub fn explain_for(&self, engine: EngineChoice) -> Explanation {
        Explanation::of(self, engine)
    }

    /// The graph's outputs, and the embedding after them where it is none itself.
    pub(crate) fn wanted(&self) -> Vec<ValueId> {
        let mut wanted = self.graph.outputs().to_vec();
        wanted.extend(self.graph.embedding().filter(|id| !self.graph.outputs().contains(id)));
        wanted
    }

    /// Inputs whose size is known; an open first dimension is the batch, which is 1.
    pub(crate) fn closed_inputs(&self) -> Vec<(ValueId, Vec<usize>)> {
        let close = |(i, d): (usize, Option<usize>)| d.or((i == 0).then_some(1));
        let dims = |info: &crate::onnx::ValueInfoProto| -> Option<Vec<usize>> {
            info.dims()?.into_iter().enumerate().map(close).collect()
        };
        self.graph.inputs().filter_map(|(id, info)| Some((id, dims(info)?))).collect()
    }

    /// Input shapes for a session: `given` where named, else what the file declares. All inputs end up with one.
    pub(crate) fn resolve_inputs(
        &self,
        given: &[(String, Vec<usize>)],
    ) -> Result<Vec<(ValueId, Vec<usize>)>, LoadError> {
        let model = || self.name.clone();
        let ports = self.inputs();
        if let Some((unknown, _)) = given.iter().find(|(name, _)| !ports.iter().any(|p| p.name == *name)) {
            let known = ports.into_iter().map(|p| p.name).collect();
            return Err(LoadError::UnknownInput { model: model(), input: unknown.clone(), known });
        }
        let closed = self.closed_inputs();
        let mut resolved = Vec::with_capacity(ports.len());
        for ((id, _), port) in self.graph.inputs().zip(ports) {
            let wanted = given.iter().find(|(name, _)| *name == port.name).map(|(_, dims)| dims.clone());
            let declared = closed.iter().find(|(closed, _)| *closed == id).map(|(_, dims)| dims.clone());
            let Some(dims) = wanted.or(declared) else {
                return Err(LoadError::OpenInput {
                    model: model(),
                    shape: port.to_string(),
                    input: port.name,
                });
            };
            let agrees = |known: &Vec<Option<usize>>| {
                known.len() == dims.len() && known.iter().zip(&dims).all(|(k, d)| k.is_none_or(|k| k == *d))
            };
            let size = dims.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
            if !port.dims.as_ref().is_none_or(agrees) || size.is_none_or(|n| n > self.limits.elements_max) {
                let expected = port.to_string();
                return Err(LoadError::InputShape {
                    model: model(),
                    input: port.name,
                    expected,
                    actual: dims,
                });
            }
            resolved.push((id, dims));
        }
        Ok(resolved)
    }

    pub(crate) fn shapes(&self, inputs: &[(ValueId, Vec<usize>)]) -> Result<Shapes, LoadError> {
        shape::infer(&self.graph, inputs, &self.limits)
            .map_err(|e| LoadError::Shape { model: self.name.clone(), problem: Box::new(e) })
    }
}
