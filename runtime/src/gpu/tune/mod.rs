//! Which variant of each kernel is fastest on a GPU, and whether the GPU is faster than the CPU at all: [`tune`].
//!
//! All variants of an int8 kernel give the same bytes, and those of a float kernel the same but for the order of their sums,
//! so that nothing but time is decided here. What was found is a [`Tuning`], which a person can read and a session can use;
//! it holds for one adapter, one driver and one network.

mod rounds;

use std::{collections::HashMap, time::Duration};

use andon_shaders::Variant;
use rounds::{Bytes, Floats, Kernels, Maker, tried};
use serde::{Deserialize, Serialize};

use super::{
    choice::{Choices, Task},
    device::is_of_kernel,
    float::{self, Precision, is_float},
};
use crate::{
    cpu::{Isa, Sketch, describe::Sources},
    engine::{Clock, Engine, agree, guarded},
    graph::{Graph, ValueId},
    model::Model,
    onnx::DataType,
    session::{Pictures, SessionOptions, is_picture_for, memory_estimate},
    shape::Shapes,
    tensor::Tensor,
};

/// How an error begins that says that a network came out otherwise than on the CPU.
const WRONG: &str = "the GPU computes wrong";

/// Of the form of [`Tuning`]: another one is not read.
const FORMAT: u32 = 1;

/// What was measured for one network on one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    pub format: u32,
    pub adapter: AdapterKey,
    /// The network's, as the caller names it: a digest of its file.
    pub model: String,
    /// `gpu` or `cpu`: what computes a frame sooner, with transfers and all.
    pub engine: String,
    pub cpu_ms: f64,
    pub gpu_ms: f64,
    /// Threads of the CPU in both.
    pub threads: usize,
    /// Height, width and channels of the pictures that the frames were, if they were any: resizing them is in the times, where
    /// engines do it.
    #[serde(default)]
    pub picture: Option<[usize; 3]>,
    /// A float network lay in the GPU's memory as f16.
    #[serde(default)]
    pub half_precision: bool,
    /// Why no kernel is used whose threads share memory, if that is so: they did not compile, or computed wrong.
    #[serde(default)]
    pub alone: Option<String>,
    /// Why kernels were not tuned, if they were not.
    pub untuned: Option<String>,
    /// Rounds of kernels that were left out, since their network gave something else than the CPU's.
    #[serde(default)]
    pub wrong: u32,
    pub kernels: Vec<Tuned>,
}

/// What an adapter is recognised by: another driver may have other kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterKey {
    pub name: String,
    pub backend: String,
    pub driver: String,
    pub driver_info: String,
    pub vendor: u32,
    pub device: u32,
}

/// The fastest variant for what a network asks of a kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    pub task: Task,
    pub variant: Variant,
    pub us: f64,
    /// What would be taken without measuring, and its time.
    pub instead_of: Option<(Variant, f64)>,
    /// How many were tried.
    pub tried: usize,
}

impl AdapterKey {
    pub(crate) fn of(info: &wgpu::AdapterInfo) -> Self {
        Self {
            name: info.name.clone(),
            backend: info.backend.to_str().into(),
            driver: info.driver.clone(),
            driver_info: info.driver_info.clone(),
            vendor: info.vendor,
            device: info.device,
        }
    }
}

impl Tuning {
    /// Nothing measured, only that threads must not share memory, for that reason.
    pub fn without_sharing(adapter: &AdapterKey, model: &str, threads: usize, why: &str) -> Self {
        Self {
            format: FORMAT,
            adapter: adapter.clone(),
            model: model.into(),
            engine: "gpu".into(),
            cpu_ms: 0.0,
            gpu_ms: 0.0,
            threads,
            picture: None,
            half_precision: false,
            alone: Some(why.into()),
            untuned: None,
            wrong: 0,
            kernels: vec![],
        }
    }

    /// Whether it says something about this network on this adapter.
    pub fn is_of(&self, adapter: &AdapterKey, model: &str) -> bool {
        self.format == FORMAT && self.adapter == *adapter && self.model == model
    }

    /// Whether it says something about this adapter.
    pub(crate) fn fits(&self, info: &wgpu::AdapterInfo) -> bool {
        self.format == FORMAT && self.adapter == AdapterKey::of(info)
    }

    pub(crate) fn known(&self) -> HashMap<Task, Variant> {
        self.kernels.iter().map(|tuned| (tuned.task, tuned.variant)).collect()
    }
}

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    pub model: &'a Model,
    /// Of inputs whose size the file leaves open.
    pub input_shapes: &'a [(String, Vec<usize>)],
    /// Of the CPU.
    pub threads: usize,
    /// Height, width and channels of a camera's pictures, and what they mean to the network. Without, a frame is what the
    /// network's inputs are.
    pub picture: Option<([usize; 3], &'a Pictures)>,
    /// The GPU; without, the one that `ANDON_GPU` names, else the best.
    pub adapter: Option<&'a AdapterKey>,
    /// Float networks are measured with f16 in the GPU's memory, see [`crate::SessionOptions::half_precision`].
    pub half_precision: bool,
}

/// A network whose engine is to be chosen.
struct Subject<'a> {
    model: &'a Model,
    graph: &'a Graph,
    resolved: &'a [(ValueId, Vec<usize>)],
    shapes: &'a Shapes,
    outputs: &'a [ValueId],
    isa: Isa,
    threads: usize,
    pictures: Option<&'a Pictures>,
    inputs: Vec<Tensor>,
}

/// Whether there is anything in a network that a GPU computes; why not, if there is nothing. No GPU is asked.
pub fn has_gpu_steps(model: &Model, input_shapes: &[(String, Vec<usize>)]) -> Result<(), String> {
    let resolved = model.resolve_inputs(input_shapes).map_err(|e| e.to_string())?;
    let shapes = model.shapes(&resolved).map_err(|e| e.to_string())?;
    let (graph, wanted) = (model.graph(), model.wanted());
    if is_float(graph) {
        fits_memory(model, &shapes)?;
        let choices = Choices::default();
        let made = || float::Network::new(graph, &shapes, &wanted, &choices, Precision::Single).map(drop);
        return guarded(made);
    }
    let sketch = Sketch::new(graph, &shapes, &wanted, Isa::chosen()?)?;
    if sketch.has_byte_steps() {
        return Ok(());
    }
    Err(sketch.first_refusal().unwrap_or_else(|| "there is nothing to compute".into()))
}

/// Whether a network consists of floats: on a GPU it is all or nothing then, and whether it is the one takes its weights to
/// tell.
pub fn is_float_network(model: &Model) -> bool {
    is_float(model.graph())
}

/// As a session does it.
pub(super) fn fits_memory(model: &Model, shapes: &Shapes) -> Result<(), String> {
    let (needed, allowed) = (memory_estimate(model, shapes), SessionOptions::default().memory_limit_bytes);
    if needed > allowed {
        return Err(format!("it needs about {needed} bytes of memory, {allowed} are allowed"));
    }
    Ok(())
}

/// An error where the CPU takes so long for a run that to compare with it would take longer than a driver is waited for.
pub(super) fn soon_enough(taken: Duration) -> Result<(), String> {
    const MOST: Duration = Duration::from_secs(5);
    if taken > MOST {
        return Err(format!("the CPU takes {} s for a run: too long to compare with", taken.as_secs()));
    }
    Ok(())
}

/// Measures for at most `budget`, and a little more. `model_name` is written down.
pub fn tune(
    workload: &Workload<'_>,
    model_name: &str,
    clock: &Clock,
    budget: Duration,
) -> Result<Tuning, String> {
    let Workload { model, input_shapes, threads, picture, adapter, half_precision } = *workload;
    guarded(|| {
        let resolved = model.resolve_inputs(input_shapes).map_err(|e| e.to_string())?;
        let shapes = model.shapes(&resolved).map_err(|e| e.to_string())?;
        fits_memory(model, &shapes)?;
        let outputs = model.wanted();
        let inputs =
            resolved.iter().zip(model.inputs()).map(|((_, dims), port)| Tensor::noise(dims, port.data_type));
        let inputs = inputs.collect::<Result<_, _>>()?;
        let subject = Subject {
            model,
            graph: model.graph(),
            resolved: &resolved,
            shapes: &shapes,
            outputs: &outputs,
            isa: Isa::chosen()?,
            threads,
            pictures: picture.map(|(_, meaning)| meaning),
            inputs,
        };
        let subject = &subject;
        let race = Race { subject, sides: picture.map(|(sides, _)| sides), clock, budget };
        let tuning = if is_float(subject.graph) {
            let precision = if half_precision { Precision::Half } else { Precision::Single };
            race.of(&Floats { subject, adapter, precision })?
        } else {
            race.of(&Bytes { subject, adapter })?
        };
        let half_precision = half_precision && is_float(subject.graph);
        Ok(Tuning { model: model_name.into(), half_precision, ..tuning })
    })
}

impl Subject<'_> {
    fn sketch(&self, sources: Sources) -> Result<Sketch<'_>, String> {
        Sketch::with(self.graph, self.shapes, self.outputs, self.isa, sources)
    }

    /// What comes for each frame: pictures of these sides where engines take such, else what the network's inputs are.
    fn frame(&self, sides: Option<[usize; 3]>, takes_pictures: bool) -> Result<Vec<Tensor>, String> {
        let mut frame = self.inputs.clone();
        if let (Some([h, w, c]), true, Some(first)) = (sides, takes_pictures, frame.first_mut())
            && is_picture_for(first.shape(), &[1, h, w, c])
        {
            *first = Tensor::noise(&[1, h, w, c], Some(DataType::Uint8))?;
        }
        Ok(frame)
    }
}

/// A GPU against the CPU, for a network.
struct Race<'a> {
    subject: &'a Subject<'a>,
    /// Height, width and channels of pictures.
    sides: Option<[usize; 3]>,
    clock: &'a Clock,
    budget: Duration,
}

impl Race<'_> {
    /// What it came to, of a network without a name.
    fn of<M: Maker>(&self, maker: &M) -> Result<Tuning, String> {
        let mut trusted = maker.trusted()?;
        let inputs: Vec<&Tensor> = self.subject.inputs.iter().collect();
        let begin = self.clock.now();
        let expected = trusted.run(&inputs)?;
        soon_enough(self.clock.now().saturating_sub(begin))?;
        let mut with = |alone: bool| {
            let parts = maker.anew()?;
            let choices = Choices { alone, ..Choices::of(maker.device(&parts).info.device_type) };
            self.with(maker, parts, choices, (&inputs, &expected), &mut *trusted)
        };
        let tuned = match with(false) {
            // What says nothing of kernels may be over by now.
            Err(why) if !is_of_kernel(&why) && !why.starts_with(WRONG) => with(false),
            tuned => tuned,
        };
        // What threads share is what drivers refuse, or get wrong, first.
        tuned.or_else(|why| {
            let tuning = with(true).map_err(|_| why.clone())?;
            Ok(Tuning { alone: Some(why), ..tuning })
        })
    }

    fn with<M: Maker>(
        &self,
        maker: &M,
        parts: M::Parts,
        mut choices: Choices,
        (inputs, expected): (&[&Tensor], &[Tensor]),
        trusted: &mut dyn Engine,
    ) -> Result<Tuning, String> {
        let Self { subject, sides, clock, budget } = *self;
        let key = AdapterKey::of(&maker.device(&parts).info);
        let end = clock.now() + budget;
        let in_time = || clock.now() < end;
        let (parts, found) = tried(maker, parts, &choices, (inputs, expected), clock, &in_time)?;
        let (kernels, wrong, untuned) = match found {
            Ok(Kernels { tuned, wrong }) => (tuned, wrong, None),
            Err(why) => (vec![], 0, Some(why)),
        };
        choices.known = kernels.iter().map(|tuned| (tuned.task, tuned.variant)).collect();
        let mut gpu = maker.make(parts, choices)?;
        let frame = subject.frame(sides, trusted.takes_pictures() && gpu.takes_pictures())?;
        let frame: Vec<&Tensor> = frame.iter().collect();
        let same = agree(&trusted.run(&frame)?, &gpu.run(&frame)?, maker.near());
        same.map_err(|why| format!("{WRONG}: {why}"))?;
        let (gpu_ms, cpu_ms) = compare(&frame, [&mut gpu, trusted], clock)?;
        Ok(Tuning {
            format: FORMAT,
            adapter: key,
            model: String::new(),
            engine: if gpu_ms < cpu_ms { "gpu" } else { "cpu" }.into(),
            cpu_ms,
            gpu_ms,
            threads: subject.threads,
            picture: sides,
            half_precision: false,
            alone: None,
            untuned,
            wrong,
            kernels,
        })
    }
}

/// Milliseconds that each takes for a frame, in turns; the median.
fn compare(
    frame: &[&Tensor],
    mut engines: [&mut dyn Engine; 2],
    clock: &Clock,
) -> Result<(f64, f64), String> {
    /// A GPU takes a while until its clocks are up, and whoever runs frame after frame has them up.
    const WARM: Duration = Duration::from_millis(150);
    const WARM_RUNS_MAX: usize = 200;
    const RUNS: usize = 10;
    const ROUNDS: usize = 3;
    const ENOUGH: Duration = Duration::from_secs(3);
    let end = clock.now() + ENOUGH;
    let mut times = [vec![], vec![]];
    for _ in 0..ROUNDS {
        for (engine, times) in engines.iter_mut().zip(&mut times) {
            let begin = clock.now();
            let mut counted = 0;
            for run in 0..WARM_RUNS_MAX + RUNS {
                let start = clock.now();
                engine.run(frame)?;
                let now = clock.now();
                // The last of a slow engine counts, too.
                if start.saturating_sub(begin) >= WARM || run >= WARM_RUNS_MAX || now > end {
                    times.push(now.saturating_sub(start));
                    counted += 1;
                }
                if now > end || counted == RUNS {
                    break;
                }
            }
        }
        if clock.now() > end {
            break;
        }
    }
    let [a, b] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e3
    });
    Ok((a, b))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    };

    use andon_protocol::release::Fit;

    use super::{super::golden::cases, *};
    use crate::{
        EngineChoice, Session, TimedBy,
        engine::Near,
        fixtures,
        gpu::{Checks, Device, chosen},
        onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto},
    };

    /// A clock that goes on with each look at it.
    fn clock() -> Clock {
        let now = Arc::new(AtomicU64::new(0));
        Clock::new(move || Duration::from_millis(now.fetch_add(1, SeqCst)))
    }

    fn workload(model: &Model) -> Workload<'_> {
        Workload { model, input_shapes: &[], threads: 1, picture: None, adapter: None, half_precision: false }
    }

    #[test]
    fn frames_are_pictures_where_engines_take_them() {
        let model = cases::picture_case([11, 14, 3]).unwrap();
        let (graph, resolved) = (model.graph(), model.resolve_inputs(&[]).unwrap());
        let shapes = model.shapes(&resolved).unwrap();
        let meaning = Pictures { mean: vec![100.0; 3], std: vec![50.0; 3], fit: Fit::Stretched };
        let inputs = vec![Tensor::noise(&[1, 3, 11, 14], Some(DataType::Float)).unwrap()];
        let subject = Subject {
            model: &model,
            graph,
            resolved: &resolved,
            shapes: &shapes,
            outputs: &model.wanted(),
            isa: Isa::chosen().unwrap(),
            threads: 1,
            pictures: Some(&meaning),
            inputs,
        };
        let bytes = Bytes { subject: &subject, adapter: None };
        assert!(bytes.trusted().unwrap().takes_pictures());
        for (sides, takes_pictures, expected) in [
            (Some([30, 40, 3]), true, &[1, 30, 40, 3][..]),
            (Some([30, 40, 1]), true, &[1, 30, 40, 1]),
            (Some([30, 40, 3]), false, &[1, 3, 11, 14]),
            // That nobody resizes.
            (Some([30, 40, 4]), true, &[1, 3, 11, 14]),
            (Some([30, 40_000, 3]), true, &[1, 3, 11, 14]),
            (None, true, &[1, 3, 11, 14]),
        ] {
            let frame = subject.frame(sides, takes_pictures).unwrap();
            assert_eq!(frame[0].shape(), expected, "{sides:?}");
        }
        if super::super::device::adapters().is_empty() {
            return eprintln!("NOT TESTED: no GPU and nothing that plays one");
        }
        let picture = Some(([30, 40, 3], &meaning));
        let workload = Workload { picture, ..workload(&model) };
        let tuning = tune(&workload, "digest", &clock(), Duration::from_secs(60)).unwrap();
        assert_eq!(tuning.picture, Some([30, 40, 3]));
    }

    #[test]
    fn what_was_tuned_can_be_written_down_and_used() {
        if super::super::device::adapters().is_empty() {
            assert!(std::env::var("ANDON_TEST_GPU").is_err(), "no GPU and nothing that plays one");
            return eprintln!("NOT TESTED: no GPU and nothing that plays one");
        }
        for (proto, cpu) in [(fixtures::qdq_proto(), "cpu"), (fixtures::float_proto(), "tract")] {
            let model = fixtures::model(proto);
            let tuning = tune(&workload(&model), "digest", &clock(), Duration::from_secs(60)).unwrap();
            is_used(&model, &tuning, cpu);
        }
    }

    /// `cpu`: the engine where there is no GPU.
    fn is_used(model: &Model, tuning: &Tuning, cpu: &str) {
        assert!(tuning.untuned.is_some() || !tuning.kernels.is_empty(), "{tuning:?}");
        for tuned in &tuning.kernels {
            let all = Choices::of(chosen(None).unwrap().get_info().device_type).tried(tuned.task);
            // Without measuring, one that is not worth it may be what is there already.
            assert!((all.len()..=all.len() + 1).contains(&tuned.tried), "{tuned:?}");
            assert!(tuned.task.variants().contains(&tuned.variant));
        }
        let options = SessionOptions {
            engine: EngineChoice::Gpu,
            tuning: Some(Arc::new(tuning.clone())),
            ..Default::default()
        };
        let run = |options: &SessionOptions| {
            let mut session = Session::new(model, options).unwrap();
            let outputs = session.run(&[("image", fixtures::image())]).unwrap();
            let outputs: Vec<Tensor> = outputs.iter().map(|(_, tensor)| tensor.clone()).collect();
            (session.engine(), outputs)
        };
        let ((ours, given), (theirs, expected)) = (run(&options), run(&SessionOptions::default()));
        assert_eq!((ours, theirs), ("gpu", cpu));
        let exact = Near { part: 0.0, by_channel: false };
        agree(&expected, &given, if cpu == "cpu" { exact } else { Precision::Single.near() }).unwrap();
        // The engine that was faster is taken, as long as the GPU is the one that was measured.
        for (engine, expected) in [("gpu", "gpu"), ("cpu", cpu)] {
            let tuning = Tuning { engine: engine.into(), ..tuning.clone() };
            let with = |tuning: Tuning, half_precision: bool| {
                let tuning = Some(Arc::new(tuning));
                run(&SessionOptions { tuning, half_precision, ..Default::default() }).0
            };
            assert_eq!(with(tuning.clone(), false), expected);
            // To networks of int8 the precision of floats is nothing.
            assert_eq!(with(tuning.clone(), true), if cpu == "cpu" { expected } else { cpu });
            let mut other = tuning;
            other.adapter.driver_info.push_str(" another");
            assert_eq!(with(other, false), cpu);
        }
    }

    #[test]
    fn what_no_gpu_computes_is_said() {
        let has = |proto| has_gpu_steps(&fixtures::model(proto), &[]);
        assert_eq!((has(fixtures::qdq_proto()), has(fixtures::float_proto())), (Ok(()), Ok(())));
        let graph = GraphProto {
            name: "relu".into(),
            input: vec![ValueInfoProto::new("x", DataType::Float, &[1, 4, 8, 8])],
            output: vec![ValueInfoProto::new("y", DataType::Float, &[1, 4, 8, 8])],
            node: vec![NodeProto::new("Relu", "", ["x"], ["y"])],
            ..Default::default()
        };
        assert_eq!(has(ModelProto::new(graph, 17)).unwrap_err(), "it has no layer with weights");
    }

    /// Makes devices that take themselves for large ones, and compile nothing that threads share.
    struct Refusing<'a>(Bytes<'a>);

    impl Maker for Refusing<'_> {
        type Gpu = super::super::Gpu;
        type Parts = (super::super::Device, crate::cpu::Cpu);

        fn trusted(&self) -> Result<Box<dyn Engine>, String> {
            self.0.trusted()
        }

        fn near(&self) -> Near {
            self.0.near()
        }

        fn anew(&self) -> Result<Self::Parts, String> {
            let (device, cpu) = self.0.anew()?;
            Ok((device.without_sharing(), cpu))
        }

        fn device<'a>(&self, parts: &'a Self::Parts) -> &'a super::super::Device {
            self.0.device(parts)
        }

        fn make(&self, parts: Self::Parts, choices: Choices) -> Result<Self::Gpu, String> {
            self.0.make(parts, choices)
        }

        fn parts(&self, gpu: Self::Gpu) -> Self::Parts {
            self.0.parts(gpu)
        }
    }

    #[test]
    fn where_what_threads_share_does_not_compile_each_works_alone() {
        if super::super::device::adapters().is_empty() {
            return eprintln!("NOT TESTED: no GPU and nothing that plays one");
        }
        let model = cases::deep_case(80, 1).unwrap();
        let resolved = model.resolve_inputs(&[]).unwrap();
        let shapes = model.shapes(&resolved).unwrap();
        let subject = Subject {
            model: &model,
            graph: model.graph(),
            resolved: &resolved,
            shapes: &shapes,
            outputs: model.graph().outputs(),
            isa: Isa::chosen().unwrap(),
            threads: 1,
            pictures: None,
            inputs: vec![Tensor::noise(&[1, 80, 3, 4], Some(DataType::Float)).unwrap()],
        };
        let clock = clock();
        let race = Race { subject: &subject, sides: None, clock: &clock, budget: Duration::ZERO };
        let bytes = || Bytes { subject: &subject, adapter: None };
        let tuning = race.of(&Refusing(bytes())).unwrap();
        assert!(
            tuning.alone.is_some() && tuning.kernels.iter().all(|tuned| tuned.variant.sharers() == 1),
            "{tuning:?}"
        );
        assert_eq!(race.of(&bytes()).unwrap().alone, None);
        // A session takes it up.
        let device = Device::new(&chosen(None).unwrap(), Checks::Off).unwrap();
        let choices = Choices { threads: 1 << 15, ..Choices::known(&device.info, Some(&tuning)) };
        let (device, cpu) = (device.without_sharing(), bytes().anew().unwrap().1);
        assert!(bytes().make((device, cpu), choices).is_ok());
    }

    #[test]
    fn a_driver_without_a_clock_is_timed_from_outside() {
        let Some(adapter) = super::super::device::adapters().into_iter().next() else {
            return eprintln!("NOT TESTED: no GPU and nothing that plays one");
        };
        let model = fixtures::model(fixtures::qdq_proto());
        let resolved = model.resolve_inputs(&[]).unwrap();
        let subject = Subject {
            model: &model,
            graph: model.graph(),
            resolved: &resolved,
            shapes: &model.shapes(&resolved).unwrap(),
            outputs: &model.wanted(),
            isa: Isa::chosen().unwrap(),
            threads: 1,
            pictures: None,
            inputs: vec![fixtures::image()],
        };
        let maker = Bytes { subject: &subject, adapter: None };
        let (device, cpu) = maker.anew().unwrap();
        let choices = Choices::of(adapter.get_info().device_type);
        let mut gpu = maker.make((device.without_clock(), cpu), choices).unwrap();
        let inputs: Vec<&Tensor> = subject.inputs.iter().collect();
        let expected = gpu.run(&inputs).unwrap();
        let times = gpu.profiled(&inputs, &clock()).unwrap();
        assert_eq!(times.len(), gpu.dispatches() + 1);
        assert!(times.iter().all(|one| one.clock == TimedBy::Repeated), "{times:?}");
        // Dispatches that were repeated leave nothing behind.
        assert_eq!(gpu.run(&inputs).unwrap(), expected);
    }
}
