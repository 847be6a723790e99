//! Engines: what computes a network. Each is a module here, made by one line in [`build`].

mod agree;
pub(crate) mod guard;
mod images;
mod qdq;
pub(crate) mod tract;

pub(crate) use agree::{NEAR, Near, agree};
pub use guard::{Busy, Clock, Failure, GuardEvent, GuardPolicy};

use crate::{
    cpu::{Isa, Sketch},
    gpu::{self, FloatGpu, Gpu},
    graph::ValueId,
    model::{LoadError, Model},
    onnx::DataType,
    session::{EngineChoice, Guarding, Request},
    shape::Shapes,
    tensor::Tensor,
};

/// One network, loaded for fixed shapes.
///
/// Inputs come in the graph's order, with the shapes and types of the request; outputs go in the order of the
/// request. Errors are texts for people: nothing branches on them. A panic must not get out of `run`.
pub(crate) trait Engine: Send {
    fn name(&self) -> &'static str;

    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String>;

    /// As `run`; `after` gets the number of each step of the plan once it has run, where the engine has a plan.
    fn run_watched(
        &mut self,
        inputs: &[&Tensor],
        _after: &mut dyn FnMut(usize),
    ) -> Result<Vec<Tensor>, String> {
        self.run(inputs)
    }

    /// Begins a run whose outputs [`Engine::finish`] gives. One more may begin before that, so that the transfers and steps
    /// of one go on beside the kernels of the other. `false`, and nothing has begun, where an engine does one at a time.
    fn begin(&mut self, _inputs: &[&Tensor]) -> Result<bool, String> {
        Ok(false)
    }

    /// The outputs of the run that began first.
    fn finish(&mut self) -> Result<Vec<Tensor>, String> {
        Err("no run has begun".into())
    }

    /// Bytes kept for intermediate values, where the engine plans them itself.
    fn arena_bytes(&self) -> Option<usize> {
        None
    }

    /// Whether the first input may be a picture instead, as the request says: u8, `[1, height, width, channels]`.
    fn takes_pictures(&self) -> bool {
        false
    }

    /// What happened since the last call, where an engine may fail and be replaced.
    fn take_events(&mut self) -> Vec<GuardEvent> {
        vec![]
    }

    /// What each part of a run takes, where the engine can tell.
    fn profile(&mut self, _inputs: &[&Tensor], _clock: &Clock) -> Result<Vec<StepTime>, String> {
        Err(format!("the engine {} measures no steps", self.name()))
    }
}

/// What a part of a run took.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTime {
    /// As [`crate::Explanation::steps`] numbers them; `None` for what belongs to no single one.
    pub step: Option<usize>,
    /// What ran, for people.
    pub kernel: String,
    pub clock: TimedBy,
    pub time: std::time::Duration,
}

/// Whose clock measured a part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimedBy {
    /// The GPU's own, around one dispatch, in a run with a pass for each.
    Gpu,
    /// The host's, around a submission of that dispatch alone, many times over: drivers without a clock.
    Repeated,
    /// The host's, in a run as all are: these parts are one after the other and make up the whole.
    Host,
}

/// The engine asked for, or the first that does well by the network.
pub(crate) fn build(choice: EngineChoice, request: &Request<'_>) -> Result<Box<dyn Engine>, LoadError> {
    if choice == EngineChoice::Auto
        && request.tuning.is_some_and(|tuning| gpu::wins(tuning, request))
        && let Ok(engine) = build(EngineChoice::Gpu, request)
    {
        return Ok(engine);
    }
    if let (EngineChoice::Gpu, Some(Guarding { policy, clock })) = (choice, request.guarding) {
        let trusted = build(EngineChoice::Auto, &Request { tuning: None, ..*request })?;
        let (model, inputs, outputs) =
            (request.model.clone(), request.inputs.to_vec(), request.outputs.to_vec());
        let (threads, pinned, half) = (request.threads, request.pinned, request.half);
        let pictures = request.pictures.cloned();
        let (tuning, pipelines) = (request.tuning.cloned(), request.pipelines.cloned());
        let adapter = request.adapter.cloned();
        let make = move || {
            let shapes = model.shapes(&inputs).map_err(|e| e.to_string())?;
            let (inputs, outputs) = (&inputs, &outputs);
            let request = Request {
                model: &model,
                inputs,
                shapes: &shapes,
                outputs,
                threads,
                pinned,
                half,
                pictures: pictures.as_ref(),
                tuning: tuning.as_ref(),
                pipelines: pipelines.as_ref(),
                adapter: adapter.as_ref(),
                guarding: None,
            };
            build(EngineChoice::Gpu, &request).map_err(|e| e.to_string())
        };
        let guard = guard::Guard::new(Box::new(make), trusted, policy.clone(), clock.clone());
        return Ok(Box::new(guard));
    }
    // tract does batches itself.
    if choice != EngineChoice::Tract
        && let Some(alone) = images::alone(request)
        && let Ok(engine) =
            whole(choice, &Request { inputs: &alone.inputs, shapes: &alone.shapes, ..*request })
        && engine.name() != "tract"
    {
        return Ok(Box::new(alone.over(engine)));
    }
    whole(choice, request)
}

/// The engine of a network that needs no GPU.
pub(crate) fn trusted(
    model: &Model,
    inputs: &[(ValueId, Vec<usize>)],
    shapes: &Shapes,
    outputs: &[ValueId],
    threads: usize,
) -> Result<Box<dyn Engine>, String> {
    let request = Request {
        model,
        inputs,
        shapes,
        outputs,
        threads,
        pinned: false,
        half: false,
        pictures: None,
        tuning: None,
        pipelines: None,
        adapter: None,
        guarding: None,
    };
    build(EngineChoice::Auto, &request).map_err(|error| error.to_string())
}

fn whole(choice: EngineChoice, request: &Request<'_>) -> Result<Box<dyn Engine>, LoadError> {
    let Request { model, inputs, shapes, outputs, threads, .. } = *request;
    let graph = model.graph();
    let failed = |engine: &'static str, reason: String| {
        let model = model.name().to_owned();
        LoadError::Engine { model, engine, reason }
    };
    let isa = Isa::chosen().map_err(|reason| failed("cpu", reason))?;
    // A network that takes bytes itself takes them as they are.
    let is_real = graph.inputs().next().is_some_and(|(_, info)| info.data_type() == Some(DataType::Float));
    let pictures = request.pictures.filter(|_| is_real);
    let sketch = || Sketch::new(graph, shapes, outputs, isa).map_err(|reason| failed("cpu", reason));
    let cpu = |sketch: Sketch<'_>| {
        let cpu = sketch.build(threads).map(|cpu| cpu.with_pictures(pictures).pinned(request.pinned));
        cpu.map(|cpu| Box::new(cpu) as Box<dyn Engine>).map_err(|reason| failed("cpu", reason))
    };
    let tract = || {
        let dims: Vec<Vec<usize>> = inputs.iter().map(|(_, dims)| dims.clone()).collect();
        let tract = tract::Tract::new(graph, &dims, outputs);
        tract.map(|tract| Box::new(tract) as Box<dyn Engine>).map_err(|reason| failed("tract", reason))
    };
    let extras = || gpu::Extras {
        tuning: request.tuning.map(|t| &**t),
        pictures,
        pipelines: request.pipelines,
        adapter: request.adapter,
    };
    match choice {
        EngineChoice::Cpu => cpu(sketch()?),
        EngineChoice::Gpu if gpu::is_float(graph) => {
            let precision = if request.half { gpu::Precision::Half } else { gpu::Precision::Single };
            let gpu = FloatGpu::chosen(graph, shapes, outputs, (precision, threads), extras());
            gpu.map(|gpu| Box::new(gpu) as Box<dyn Engine>).map_err(|reason| failed("gpu", reason))
        }
        EngineChoice::Gpu => {
            let gpu = Gpu::chosen(graph, shapes, outputs, isa, threads, extras());
            let gpu = gpu.map(|gpu| gpu.pinned(request.pinned));
            gpu.map(|gpu| Box::new(gpu) as Box<dyn Engine>).map_err(|reason| failed("gpu", reason))
        }
        EngineChoice::Tract => tract(),
        EngineChoice::Auto => {
            let Ok(sketch) = sketch() else { return tract() };
            if sketch.has_byte_steps() {
                return cpu(sketch).or_else(|_| tract());
            }
            // Operators of ours may be what tract lacks; of the two reasons, tract's says more.
            tract().or_else(|why| cpu(sketch).map_err(|_| why))
        }
    }
}

/// Runs code that is not ours and may panic; the panic's message becomes the error's.
pub(crate) fn guarded<T>(code: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Whoever calls drops the state that `code` may have left half changed.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(code));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("panic: {text}"))
    })
}
