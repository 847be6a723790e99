//! A network ready to run: [`Session`], over one of the engines behind [`Engine`].
//!
//! A session is made once and run many times, from one thread at a time; what an engine allocates, it allocates when
//! the session is made, as far as it can. A fault inside an engine, a panic included, is an error of this run.

use std::sync::Arc;

use andon_protocol::release::Fit;

use crate::{
    engine::{self, Clock, Engine, GuardEvent, GuardPolicy},
    gpu::{AdapterKey, PipelineCache, Tuning},
    graph::ValueId,
    image::ImageLimits,
    model::{LoadError, Model},
    onnx::DataType,
    resize::Resizer,
    shape::Shapes,
    tensor::{Data, Tensor},
};

/// Which engine runs a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// The fastest that can run it.
    #[default]
    Auto,
    /// Our int8 engine: quantised networks in Q/DQ form, the same bytes on every processor.
    Cpu,
    /// The int8 engine's plan on a GPU: the same bytes.
    Gpu,
    /// tract: any ONNX model that it knows, on one thread.
    Tract,
}

impl std::str::FromStr for EngineChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            // A variable that is set to nothing asks for nothing.
            "" | "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu),
            "tract" => Ok(Self::Tract),
            other => Err(format!("no engine {other:?}, known are auto, cpu, gpu and tract")),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct SessionOptions {
    pub engine: EngineChoice,
    /// Threads of one run, the caller's included: an upper bound. Engine `tract` uses one.
    pub threads: usize,
    /// Keeps each thread but the caller's on one processor, where the system does that. For machines that run nothing else:
    /// beside other work a pinned thread waits where another would move.
    pub pin_threads: bool,
    /// Lets engine `gpu` keep the numbers of a float network as f16, where the GPU has that: less memory to read, and results
    /// that are about a thousandth of their range away. Networks of int8 are the same to the bit.
    pub half_precision: bool,
    /// Refuses a network whose constants and largest set of live values are estimated to need more.
    pub memory_limit_bytes: u64,
    /// Shapes for inputs whose size the file leaves open.
    pub input_shapes: Vec<(String, Vec<usize>)>,
    /// Values wanted beside the graph's outputs and the embedding, by name.
    pub extra_outputs: Vec<String>,
    /// Lets the first input be a picture where the engine can take one, see [`Session::takes_pictures`].
    pub pictures: Option<Pictures>,
    /// What was measured on this device: which engine is faster, and how the GPU is.
    pub tuning: Option<Arc<Tuning>>,
    /// Where engine `gpu` finds kernels that a driver has compiled before, and leaves new ones.
    pub pipelines: Option<Arc<PipelineCache>>,
    /// The GPU that engine `gpu` uses, through that driver and no other; without, the one that `ANDON_GPU` names, else the
    /// best.
    pub adapter: Option<AdapterKey>,
    /// How far engine `gpu` is trusted; without, its failures are the caller's.
    pub guarding: Option<Guarding>,
}

/// What the bytes of a picture mean to a network, channel by channel: `(v - mean) / std`.
#[derive(Debug, Clone, PartialEq)]
pub struct Pictures {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    /// How one of another size becomes one of the network's.
    pub fit: Fit,
}

impl Pictures {
    /// What is beside one, in each channel.
    pub(crate) fn fill(&self) -> u8 {
        match self.fit {
            Fit::Stretched => 0,
            Fit::Letterboxed { fill } => fill,
        }
    }
}

/// Whether a tensor of bytes, `[n, height, width, channels]`, is a picture for an input `[n, channels, height, width]`.
pub(crate) fn is_picture_for(input: &[usize], picture: &[usize]) -> bool {
    let (&[n, c, h, w], &[m, height, width, channels]) = (input, picture) else { return false };
    let (from, to) = ([height, width, channels], [h, w, c]);
    let ImageLimits { side_max, pixels_max, .. } = ImageLimits::default();
    let bounded = height.max(width) <= side_max as usize && (height * width) as u64 <= pixels_max;
    m == n && (from == to || m == 1 && bounded && Resizer::has(from, to))
}

/// Lets another engine finish what the GPU does not, see [`GuardPolicy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarding {
    pub policy: GuardPolicy,
    pub clock: Clock,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            engine: EngineChoice::Auto,
            threads: 1,
            pin_threads: false,
            half_precision: false,
            memory_limit_bytes: 2 << 30,
            input_shapes: vec![],
            extra_outputs: vec![],
            pictures: None,
            tuning: None,
            pipelines: None,
            adapter: None,
            guarding: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("model {model:?} has no input {input:?}, it has {known:?}")]
    UnknownInput { model: String, input: String, known: Vec<String> },
    #[error("model {model:?}: input {input:?} is missing")]
    MissingInput { model: String, input: String },
    #[error("model {model:?}: input {input:?}: expected {expected}, found {actual}")]
    InputMismatch { model: String, input: String, expected: String, actual: String },
    #[error("model {model:?}: engine {engine} failed: {reason}")]
    Engine { model: String, engine: &'static str, reason: String },
    #[error("model {model:?}: output {output:?}: expected {expected}, found {actual}")]
    OutputMismatch { model: String, output: String, expected: String, actual: String },
    #[error(transparent)]
    Preprocess(#[from] crate::preprocess::PreprocessError),
}

/// What a session gave, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs(Vec<(String, Tensor)>);

impl Outputs {
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor)
    }

    pub fn take(&mut self, name: &str) -> Option<Tensor> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// In the order of the graph's outputs; the embedding, where it is no output itself, comes last.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

/// What an engine is asked to run: a network, the shape of each of its inputs in their order, and the values wanted.
pub(crate) struct Request<'a> {
    pub(crate) model: &'a Model,
    pub(crate) inputs: &'a [(ValueId, Vec<usize>)],
    pub(crate) shapes: &'a Shapes,
    pub(crate) outputs: &'a [ValueId],
    pub(crate) threads: usize,
    pub(crate) pinned: bool,
    pub(crate) half: bool,
    pub(crate) pictures: Option<&'a Pictures>,
    pub(crate) tuning: Option<&'a Arc<Tuning>>,
    pub(crate) pipelines: Option<&'a Arc<PipelineCache>>,
    pub(crate) adapter: Option<&'a AdapterKey>,
    pub(crate) guarding: Option<&'a Guarding>,
}

struct Input {
    name: String,
    data_type: DataType,
    shape: Vec<usize>,
}

pub struct Session {
    engine: Box<dyn Engine>,
    model: String,
    inputs: Vec<Input>,
    outputs: Vec<String>,
    ahead: Ahead,
}

/// The frame of a stream whose outputs were not given yet.
#[derive(Default)]
enum Ahead {
    #[default]
    Nothing,
    Begun,
    Done(Vec<Tensor>),
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("model", &self.model).field("engine", &self.engine.name()).finish()
    }
}

impl Session {
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self, LoadError> {
        let graph = model.graph();
        let resolved = model.resolve_inputs(&options.input_shapes)?;
        let shapes = model.shapes(&resolved)?;
        let needed = memory_estimate(model, &shapes);
        if needed > options.memory_limit_bytes {
            let allowed = options.memory_limit_bytes;
            return Err(LoadError::Memory { model: model.name().into(), needed, allowed });
        }
        let mut outputs = model.wanted();
        for name in &options.extra_outputs {
            let id = graph.find(name).ok_or_else(|| LoadError::UnknownOutput {
                model: model.name().into(),
                output: name.clone(),
                known: model.outputs(),
            })?;
            if !outputs.contains(&id) {
                outputs.push(id);
            }
        }
        let request = Request {
            model,
            inputs: &resolved,
            shapes: &shapes,
            outputs: &outputs,
            threads: options.threads,
            pinned: options.pin_threads,
            half: options.half_precision,
            pictures: options.pictures.as_ref(),
            tuning: options.tuning.as_ref(),
            pipelines: options.pipelines.as_ref(),
            adapter: options.adapter.as_ref(),
            guarding: options.guarding.as_ref(),
        };
        let engine = engine::build(options.engine, &request)?;
        let mut inputs = Vec::with_capacity(resolved.len());
        for ((id, shape), (_, info)) in resolved.into_iter().zip(graph.inputs()) {
            let name = graph.value(id).name.clone();
            inputs.push(Input { name, data_type: info.data_type().unwrap_or(DataType::Float), shape });
        }
        let outputs = outputs.iter().map(|id| graph.value(*id).name.clone()).collect();
        Ok(Self { engine, model: model.name().into(), inputs, outputs, ahead: Ahead::Nothing })
    }

    /// `cpu`, `gpu` or `tract`.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// Bytes that the engine keeps for intermediate values, where it plans them itself.
    pub fn arena_bytes(&self) -> Option<usize> {
        self.engine.arena_bytes()
    }

    /// Shape of each input, by name.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().map(|input| (input.name.as_str(), &*input.shape))
    }

    /// Computes all outputs and the embedding.
    pub fn run(&mut self, inputs: &[(&str, Tensor)]) -> Result<Outputs, RunError> {
        self.run_watched(inputs, &mut |_| ())
    }

    /// For streams: takes a frame, and gives the outputs of the one before it; `None` for the first. Without a frame, those
    /// of the last. Engines that can compute two frames at a time do: more frames a second, each as late as one more.
    /// After an error the frame before is lost with this one.
    pub fn run_next(&mut self, inputs: Option<&[(&str, Tensor)]>) -> Result<Option<Outputs>, RunError> {
        let engine = self.engine.name();
        let failed = |reason| RunError::Engine { model: self.model.clone(), engine, reason };
        // Inputs that do not fit cost no frame.
        let ordered = inputs.map(|inputs| self.checked(inputs)).transpose()?;
        let before = std::mem::take(&mut self.ahead);
        if let Some(ordered) = ordered {
            let next = match self.engine.begin(&ordered) {
                Ok(true) => Ok(Ahead::Begun),
                Ok(false) => self.engine.run(&ordered).map(Ahead::Done),
                Err(reason) => Err(reason),
            };
            match next {
                Ok(next) => self.ahead = next,
                Err(reason) => {
                    // What has begun is not to be taken for the outputs of a later frame.
                    if matches!(before, Ahead::Begun) {
                        drop(self.engine.finish());
                    }
                    return Err(failed(reason));
                }
            }
        }
        let tensors = match before {
            Ahead::Nothing => return Ok(None),
            Ahead::Begun => self.engine.finish().map_err(failed)?,
            Ahead::Done(tensors) => tensors,
        };
        Ok(Some(Outputs(self.outputs.iter().cloned().zip(tensors).collect())))
    }

    /// Whether the first input may be a picture instead: u8, `[1, height, width, channels]` where the network takes f32,
    /// `[1, channels, height, width]`. It is normalised and quantised in one go, to the same bytes. Of a network for grey
    /// pictures or RGB it may have another size, and be grey or RGB: it is resized as [`crate::preprocess()`] does.
    pub fn takes_pictures(&self) -> bool {
        self.engine.takes_pictures()
    }

    /// Whether that is a picture which the first input may be.
    pub(crate) fn takes_picture(&self, tensor: &Tensor) -> bool {
        let first = self.inputs.first();
        self.takes_pictures()
            && matches!(tensor.data(), Data::U8(_))
            && first.is_some_and(|input| is_picture_for(&input.shape, tensor.shape()))
    }

    /// What happened to an engine that is guarded, since the last call.
    pub fn take_events(&mut self) -> Vec<GuardEvent> {
        self.engine.take_events()
    }

    /// What each part of a run takes, where the engine can tell: two runs, see [`crate::TimedBy`].
    pub fn profile(
        &mut self,
        inputs: &[(&str, Tensor)],
        clock: &Clock,
    ) -> Result<Vec<crate::StepTime>, RunError> {
        let tensors = self.checked(inputs)?;
        let (model, engine) = (self.model.clone(), self.engine.name());
        self.engine.profile(&tensors, clock).map_err(|reason| RunError::Engine { model, engine, reason })
    }

    /// As [`Session::run`]; `after` is told the number of each step once it has run, as [`crate::Explanation::steps`]
    /// numbers them: who has a clock learns what each costs. Engines without steps tell nothing.
    pub fn run_watched(
        &mut self,
        inputs: &[(&str, Tensor)],
        after: &mut dyn FnMut(usize),
    ) -> Result<Outputs, RunError> {
        let ordered = self.checked(inputs)?;
        let engine = self.engine.name();
        let failed = |reason| RunError::Engine { model: self.model.clone(), engine, reason };
        let tensors = self.engine.run_watched(&ordered, after).map_err(failed);
        // A run of a stream that has begun is lost: an engine lands it before it begins another.
        if matches!(self.ahead, Ahead::Begun) {
            self.ahead = Ahead::Nothing;
        }
        let tensors = tensors?;
        Ok(Outputs(self.outputs.iter().cloned().zip(tensors).collect()))
    }

    /// The inputs in the graph's order, if they are all there and as they should be.
    fn checked<'a>(&self, inputs: &'a [(&str, Tensor)]) -> Result<Vec<&'a Tensor>, RunError> {
        let model = || self.model.clone();
        if let Some((unknown, _)) =
            inputs.iter().find(|(name, _)| !self.inputs.iter().any(|i| i.name == *name))
        {
            let known = self.inputs.iter().map(|i| i.name.clone()).collect();
            return Err(RunError::UnknownInput { model: model(), input: (*unknown).into(), known });
        }
        let mut ordered = Vec::with_capacity(self.inputs.len());
        for (number, input) in self.inputs.iter().enumerate() {
            let given = inputs.iter().find(|(name, _)| *name == input.name).map(|(_, tensor)| tensor);
            let missing = || RunError::MissingInput { model: model(), input: input.name.clone() };
            let tensor = given.ok_or_else(missing)?;
            let fits = tensor.shape() == input.shape && is_of(tensor.data(), input.data_type);
            let is_picture = number == 0 && self.takes_picture(tensor);
            if !fits && !is_picture {
                return Err(RunError::InputMismatch {
                    model: model(),
                    input: input.name.clone(),
                    expected: format!("{:?} {:?}", input.data_type, input.shape),
                    actual: format!("{} {:?}", tensor.data().type_name(), tensor.shape()),
                });
            }
            ordered.push(tensor);
        }
        Ok(ordered)
    }
}

fn is_of(data: &Data, expected: DataType) -> bool {
    match data {
        Data::F32(_) => expected == DataType::Float,
        Data::U8(_) => expected == DataType::Uint8,
        Data::I8(_) => expected == DataType::Int8,
        Data::I32(_) => expected == DataType::Int32,
        Data::I64(_) => expected == DataType::Int64,
        Data::Bool(_) => expected == DataType::Bool,
    }
}

/// Constants once as loaded and once packed, and the largest sum of values alive at one time, taken as four bytes an
/// element. Values of unknown shape are not counted: a bound for honest models, not a proof against hostile ones.
pub(crate) fn memory_estimate(model: &Model, shapes: &Shapes) -> u64 {
    let graph = model.graph();
    let bytes = |id: ValueId| shapes.elements(id).unwrap_or(0) as u64 * 4;
    let mut left: Vec<u32> = graph.values().map(|id| graph.value(id).readers).collect();
    let (mut live, mut peak) = (graph.inputs().map(|(id, _)| bytes(id)).sum::<u64>(), 0);
    for (_, node, proto) in graph.nodes() {
        if proto.op_type == "Constant" {
            continue;
        }
        live += node.outputs.iter().flatten().map(|id| bytes(*id)).sum::<u64>();
        peak = peak.max(live);
        for id in node.inputs.iter().flatten().filter(|id| graph.constant(**id).is_none()) {
            let left = &mut left[id.index()];
            *left = left.saturating_sub(1);
            if *left == 0 {
                live = live.saturating_sub(bytes(*id));
            }
        }
    }
    peak + 2 * model.constant_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        fixtures::{self, EMBEDDING, SCORES, float_proto, image, model, qdq_proto},
        onnx::{Dimension, GraphProto, Limits, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    };

    fn session(proto: ModelProto) -> Session {
        with_engine(proto, EngineChoice::Auto)
    }

    fn with_engine(proto: ModelProto, engine: EngineChoice) -> Session {
        Session::new(&model(proto), &SessionOptions { engine, ..Default::default() }).unwrap()
    }

    fn close(actual: &Tensor, expected: &[f32]) {
        let actual = actual.as_f32().unwrap();
        assert_eq!(actual.len(), expected.len());
        let far = actual.iter().zip(expected).find(|(a, e)| (*a - *e).abs() > 1e-5);
        assert_eq!(far, None, "{actual:?} against {expected:?}");
    }

    #[test]
    fn engines_have_names() {
        for (name, engine) in
            [("", EngineChoice::Auto), ("gpu", EngineChoice::Gpu), ("tract", EngineChoice::Tract)]
        {
            assert_eq!(name.parse(), Ok(engine));
        }
        assert!("gpus".parse::<EngineChoice>().unwrap_err().contains("known are auto, cpu, gpu and tract"));
    }

    #[test]
    fn results_are_those_computed_by_hand() {
        let cases = [
            (float_proto(), EngineChoice::Auto, "tract"),
            (qdq_proto(), EngineChoice::Tract, "tract"),
            (qdq_proto(), EngineChoice::Auto, "cpu"),
        ];
        for (proto, choice, engine) in cases {
            let mut session = with_engine(proto, choice);
            assert_eq!(session.engine(), engine);
            for _ in 0..2 {
                let outputs = session.run(&[("image", image())]).unwrap();
                close(outputs.get("scores").unwrap(), &SCORES);
                close(outputs.get("embedding").unwrap(), &EMBEDDING);
                assert_eq!(outputs.iter().count(), 2);
            }
        }
    }

    #[test]
    fn values_outside_the_quantised_range_saturate() {
        // u8 with scale 0.5 and zero point 10 holds -5 to 122.5.
        for engine in [EngineChoice::Cpu, EngineChoice::Tract] {
            let run = |value: f32| {
                let image = Tensor::f32(vec![1, 2, 2, 2], [[value; 4], [0.0; 4]].concat()).unwrap();
                with_engine(qdq_proto(), engine).run(&[("image", image)]).unwrap()
            };
            assert_eq!(run(1e30), run(122.5));
            assert_eq!(run(-1e30), run(-5.0));
        }
    }

    #[test]
    fn inputs_are_checked() {
        let mut session = session(float_proto());
        let small = Tensor::f32(vec![1, 2, 2, 1], vec![0.0; 4]).unwrap();
        let bytes = Tensor::new(vec![1, 2, 2, 2], Data::U8(vec![0; 8])).unwrap();
        let cases = [
            (vec![], r#"model "tiny float": input "image" is missing"#),
            (vec![("other", image())], r#"model "tiny float" has no input "other", it has ["image"]"#),
            (
                vec![("image", small)],
                r#"model "tiny float": input "image": expected Float [1, 2, 2, 2], found f32 [1, 2, 2, 1]"#,
            ),
            (
                vec![("image", bytes)],
                r#"model "tiny float": input "image": expected Float [1, 2, 2, 2], found u8 [1, 2, 2, 2]"#,
            ),
        ];
        for (inputs, expected) in cases {
            assert_eq!(session.run(&inputs).unwrap_err().to_string(), expected);
        }
    }

    /// An input whose batch, height and width are open.
    fn open_proto() -> ModelProto {
        let mut proto = float_proto();
        let tensor =
            proto.graph.as_mut().unwrap().input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        for i in [0, 2, 3] {
            tensor.shape.as_mut().unwrap().dim[i].value = Some(Dimension::Param(format!("d{i}")));
        }
        proto
    }

    #[test]
    fn open_dimensions_are_given_by_the_session() {
        let model = model(open_proto());
        let open = |shapes: &[(&str, &[usize])]| {
            let input_shapes = shapes.iter().map(|(name, dims)| (name.to_string(), dims.to_vec())).collect();
            Session::new(&model, &SessionOptions { input_shapes, ..Default::default() })
                .map_err(|e| e.to_string())
        };
        let mut session = open(&[("image", &[1, 2, 2, 2])]).unwrap();
        close(session.run(&[("image", image())]).unwrap().get("scores").unwrap(), &SCORES);
        assert_eq!(
            open(&[]).unwrap_err(),
            r#"model "tiny float": input "image" has shape [?, 2, ?, ?], its size must be given when the session is made"#
        );
        assert!(
            open(&[("image", &[1, 3, 2, 2])]).unwrap_err().contains("takes [?, 2, ?, ?], not [1, 3, 2, 2]")
        );
        assert!(open(&[("image", &[1, 2, usize::MAX, 8])]).is_err());
        assert!(open(&[("nope", &[1])]).unwrap_err().contains(r#"has no input "nope""#));
    }

    #[test]
    fn memory_is_estimated_before_it_is_used() {
        let error = Session::new(
            &model(float_proto()),
            &SessionOptions { memory_limit_bytes: 100, ..Default::default() },
        );
        assert!(matches!(error, Err(LoadError::Memory { needed, allowed: 100, .. }) if needed > 100));
    }

    #[test]
    fn an_unknown_operator_is_named() {
        let mut proto = float_proto();
        proto.graph.as_mut().unwrap().node[1].op_type = "Frobnicate".into();
        let error = Session::new(&model(proto), &SessionOptions::default()).unwrap_err().to_string();
        assert!(error.contains("Frobnicate") && error.contains("tiny float"), "{error}");
    }

    /// Attributes and constants that pass the reader but make no sense to an operator.
    #[test]
    fn senseless_networks_are_errors() {
        let broken = |change: &dyn Fn(&mut GraphProto)| {
            let mut proto = float_proto();
            change(proto.graph.as_mut().unwrap());
            let model = Model::from_graph(crate::Graph::new(proto).unwrap(), &Limits::default());
            model.and_then(|model| Session::new(&model, &SessionOptions::default())).map(drop)
        };
        assert!(broken(&|g| g.node[0] = g.node[0].clone().with_ints("strides", &[0, 0])).is_err());
        assert!(broken(&|g| g.node[0] = g.node[0].clone().with_ints("kernel_shape", &[5, 5])).is_err());
        assert!(broken(&|g| g.node[0] = g.node[0].clone().with_int("group", 7)).is_err());
        assert!(
            broken(&|g| g.initializer[0] = TensorProto::f32("conv.w", &[2, 3, 1, 1], &[0.0; 6])).is_err()
        );
        assert!(broken(&|g| g.initializer[1] = TensorProto::f32("conv.b", &[3], &[0.0; 3])).is_err());
        assert!(broken(&|g| drop(g.node[0].input.drain(..))).is_err());
    }

    #[test]
    fn constants_that_ask_for_terabytes_are_refused() {
        let shape = TensorProto::i64("shape", &[4], &[1 << 20, 1 << 20, 1, 1]);
        for operator in ["ConstantOfShape", "Expand", "Tile"] {
            let one = TensorProto::f32("one", &[1, 1, 1, 1], &[1.0]);
            let inputs = if operator == "ConstantOfShape" { vec!["shape"] } else { vec!["one", "shape"] };
            let graph = GraphProto {
                node: vec![NodeProto::new(operator, "huge", inputs, ["y"])],
                initializer: vec![shape.clone(), one],
                output: vec![ValueInfoProto { name: "y".into(), r#type: None }],
                ..Default::default()
            };
            let graph = crate::Graph::new(ModelProto::new(graph, 17)).unwrap();
            let error = Model::from_graph(graph, &Limits::default()).unwrap_err().to_string();
            assert!(error.contains(r#"node "huge""#) && error.contains("elements"), "{error}");
        }
    }

    #[test]
    fn a_picture_gives_what_its_real_values_give() {
        let (mean, std) = (vec![100.0, 120.0], vec![58.4, 3.3]);
        let pictures = Some(Pictures { mean: mean.clone(), std: std.clone(), fit: Fit::Stretched });
        let options = SessionOptions { pictures, engine: EngineChoice::Cpu, ..Default::default() };
        let mut session = Session::new(&model(qdq_proto()), &options).unwrap();
        assert!(session.takes_pictures());
        for seed in 0u8..40 {
            let pixels: Vec<u8> =
                (0..8u8).map(|i| seed.wrapping_mul(37).wrapping_add(i.wrapping_mul(61))).collect();
            // Channels side by side there, plane after plane here.
            let real = |c: usize, p: usize| (f32::from(pixels[2 * p + c]) - mean[c]) / std[c];
            let planes = (0..8).map(|i| real(i / 4, i % 4)).collect();
            let planes = Tensor::f32(vec![1, 2, 2, 2], planes).unwrap();
            let picture = Tensor::new(vec![1, 2, 2, 2], Data::U8(pixels)).unwrap();
            let expected = session.run(&[("image", planes)]).unwrap();
            assert_eq!(session.run(&[("image", picture)]).unwrap(), expected);
        }
        // A network for two channels has no pictures of other sizes.
        let wrong =
            |dims: &[usize]| Tensor::new(dims.to_vec(), Data::U8(vec![0; dims.iter().product()])).unwrap();
        for dims in [&[1, 3, 2, 2][..], &[1, 2, 2, 1], &[2, 2, 2, 2], &[8]] {
            let error = session.run(&[("image", wrong(dims))]);
            assert!(matches!(error, Err(RunError::InputMismatch { .. })), "{dims:?}");
        }
        // Nor has any network pictures without pixels, or beyond all measure.
        let options = SessionOptions {
            pictures: Some(Pictures { mean: vec![0.0], std: vec![1.0], fit: Fit::Stretched }),
            ..options
        };
        let mut other = Session::new(&model(picture_proto([3, 3, 1])), &options).unwrap();
        assert!(other.run(&[("image", wrong(&[1, 5, 4, 3]))]).is_ok());
        for dims in [[1, 0, 4, 1], [1, 4, 0, 3], [1, 4, 4, 2], [2, 4, 4, 1], [1, 16_385, 1, 1]] {
            let error = other.run(&[("image", wrong(&dims))]);
            assert!(matches!(error, Err(RunError::InputMismatch { .. })), "{dims:?}");
        }
        // Bytes mean nothing to a session that was not told.
        let mut session = with_engine(qdq_proto(), EngineChoice::Cpu);
        let picture = Tensor::new(vec![1, 2, 2, 2], Data::U8(vec![0; 8])).unwrap();
        assert!(!session.takes_pictures());
        assert!(matches!(session.run(&[("image", picture)]), Err(RunError::InputMismatch { .. })));
    }

    /// Gives the bytes of pictures.
    fn picture_proto([h, w, c]: [usize; 3]) -> ModelProto {
        let mut graph = GraphProto {
            input: vec![ValueInfoProto::new("image", DataType::Float, &[1, c, h, w])],
            output: ["y.q", "image.q"]
                .map(|name| ValueInfoProto { name: name.into(), r#type: None })
                .to_vec(),
            ..Default::default()
        };
        fixtures::quantise(&mut graph, "image", 0.017, 120);
        let window = NodeProto::new("MaxPool", "n", ["image.f"], ["y"]).with_ints("kernel_shape", &[1, 1]);
        graph.node.push(window);
        fixtures::quantise(&mut graph, "y", 0.02, 100);
        ModelProto::new(graph, 17)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_picture_of_any_size_gives_what_its_real_values_give(
            to in (1usize..20, 1usize..20, prop::sample::select(vec![1usize, 3])),
            sizes in prop::collection::vec((1usize..50, 1usize..50, prop::sample::select(vec![1usize, 3])), 1..4),
            threads in 1usize..3, seed in any::<u8>(), fill in any::<Option<u8>>(),
        ) {
            let fit = fill.map_or(Fit::Stretched, |fill| Fit::Letterboxed { fill });
            let (mean, std) = (vec![100.0, 120.0, 90.0], vec![58.4, 3.3, 71.0]);
            let [mean, std] = [mean, std].map(|all: Vec<f32>| all[..to.2].to_vec());
            let pictures = Some(Pictures { mean: mean.clone(), std: std.clone(), fit });
            let options = SessionOptions { pictures, threads, engine: EngineChoice::Cpu, ..Default::default() };
            let mut session = Session::new(&model(picture_proto([to.0, to.1, to.2])), &options).unwrap();
            let input = andon_protocol::release::Input {
                name: "image".into(),
                width: to.1 as u32,
                height: to.0 as u32,
                channels: to.2 as u32,
                fit,
            };
            let constants = andon_protocol::release::Preprocessing { mean, std };
            for (h, w, c) in sizes {
                let pixels: Vec<u8> = (0..h * w * c).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
                let image = crate::Image::new(w, h, c, pixels.clone()).unwrap();
                let real = crate::preprocess::preprocess(&image, &input, &constants).unwrap();
                let expected = session.run(&[("image", real)]).unwrap();
                let picture = Tensor::new(vec![1, h, w, c], Data::U8(pixels)).unwrap();
                prop_assert_eq!(session.run(&[("image", picture)]).unwrap(), expected);
            }
        }

        /// Flips that leave a readable file reach shape inference and the engine.
        #[test]
        fn flipped_files_are_no_panic(
            int8 in any::<bool>(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = if int8 { qdq_proto() } else { float_proto() }.to_bytes();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let limits = Limits { elements_max: 1 << 16, ..Default::default() };
            if let Ok(model) = Model::load(&bytes, &limits) {
                drop(model.explain().to_string());
                if let Ok(mut session) = Session::new(&model, &SessionOptions::default()) {
                    drop(session.run(&[("image", fixtures::image())]));
                }
            }
        }
    }
}
