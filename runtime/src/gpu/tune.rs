//! Which variant of each kernel is fastest on a GPU, and whether the GPU is faster than the CPU at all: [`tune`].
//!
//! All variants give the same bytes, so that nothing but time is decided here. What was found is a [`Tuning`], which a
//! person can read and a session can use; it holds for one adapter, one driver and one network.

use std::{collections::HashMap, time::Duration};

use andon_shaders::Variant;
use serde::{Deserialize, Serialize};

use super::{
    Gpu,
    choice::{Choices, Task},
    device::{Checks, Device, chosen},
};
use crate::{
    cpu::{Cpu, Isa, Sketch, describe::Sources},
    engine::{Clock, Engine, agree, guarded},
    graph::{Graph, ValueId},
    model::Model,
    onnx::DataType,
    session::{Pictures, is_picture_for},
    shape::Shapes,
    tensor::Tensor,
};

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

/// What the next round is made of.
type Parts = (Device, Cpu);

/// What was found, and how many rounds computed wrong.
struct Kernels {
    tuned: Vec<Tuned>,
    wrong: u32,
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
}

/// A network whose engine is to be chosen.
struct Subject<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    outputs: &'a [ValueId],
    threads: usize,
    pictures: Option<&'a Pictures>,
    inputs: Vec<Tensor>,
}

/// Whether there is anything in a network that a GPU computes; why not, if there is nothing. No GPU is asked.
pub fn has_gpu_steps(model: &Model, input_shapes: &[(String, Vec<usize>)]) -> Result<(), String> {
    let resolved = model.resolve_inputs(input_shapes).map_err(|e| e.to_string())?;
    let shapes = model.shapes(&resolved).map_err(|e| e.to_string())?;
    let wanted = model.wanted();
    let sketch = Sketch::new(model.graph(), &shapes, &wanted, Isa::chosen()?)?;
    if sketch.has_byte_steps() {
        return Ok(());
    }
    Err(sketch.first_refusal().unwrap_or_else(|| "there is nothing to compute".into()))
}

/// Measures for at most `budget`, and a little more. `model_name` is written down.
pub fn tune(
    workload: &Workload<'_>,
    model_name: &str,
    clock: &Clock,
    budget: Duration,
) -> Result<Tuning, String> {
    let Workload { model, input_shapes, threads, picture, adapter } = *workload;
    guarded(|| {
        let resolved = model.resolve_inputs(input_shapes).map_err(|e| e.to_string())?;
        let shapes = model.shapes(&resolved).map_err(|e| e.to_string())?;
        let outputs = model.wanted();
        let inputs =
            resolved.iter().zip(model.inputs()).map(|((_, dims), port)| Tensor::noise(dims, port.data_type));
        let inputs = inputs.collect::<Result<_, String>>()?;
        let pictures = picture.map(|(_, meaning)| meaning);
        let subject =
            Subject { graph: model.graph(), shapes: &shapes, outputs: &outputs, threads, pictures, inputs };
        let end = clock.now() + budget;
        let device = Device::new(&chosen(adapter)?, Checks::Off)?;
        let key = AdapterKey::of(&device.info);
        let mut choices = Choices::of(device.info.device_type);
        let anew = || Device::new(&chosen(adapter)?, Checks::Off);
        let ((device, cpu), found) = subject.kernels(device, &anew, &choices, &|| clock.now() < end)?;
        let (kernels, wrong, untuned) = match found {
            Ok(Kernels { tuned, wrong }) => (tuned, wrong, None),
            Err(why) => (vec![], 0, Some(why)),
        };
        choices.known = kernels.iter().map(|tuned| (tuned.task, tuned.variant)).collect();
        let mut gpu = Gpu::of(cpu, device, choices)?;
        let mut cpu = subject.sketch(Sources::Dropped)?.build(threads)?.with_pictures(pictures);
        let sides = picture.map(|(sides, _)| sides);
        let frame = subject.frame(sides, cpu.takes_pictures() && gpu.takes_pictures())?;
        let frame: Vec<&Tensor> = frame.iter().collect();
        let same = agree(&cpu.run(&frame)?, &gpu.run(&frame)?);
        same.map_err(|why| format!("the GPU computes wrong: {why}"))?;
        let (gpu_ms, cpu_ms) = compare(&frame, [&mut gpu, &mut cpu], clock)?;
        let engine = if gpu_ms < cpu_ms { "gpu" } else { "cpu" }.into();
        let model = model_name.into();
        Ok(Tuning {
            format: FORMAT,
            adapter: key,
            model,
            engine,
            cpu_ms,
            gpu_ms,
            threads,
            picture: sides,
            untuned,
            wrong,
            kernels,
        })
    })
}

impl Subject<'_> {
    fn sketch(&self, sources: Sources) -> Result<Sketch<'_>, String> {
        Sketch::with(self.graph, self.shapes, self.outputs, Isa::chosen()?, sources)
    }

    fn plan(&self) -> Result<Cpu, String> {
        let plan = super::plan(self.graph, self.shapes, self.outputs, Isa::chosen()?, self.threads)?;
        Ok(plan.with_pictures(self.pictures))
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

    /// The fastest variant for each task; the device comes back with what was compiled. `anew`: another one like it.
    fn kernels(
        &self,
        mut device: Device,
        anew: &dyn Fn() -> Result<Device, String>,
        choices: &Choices,
        in_time: &dyn Fn() -> bool,
    ) -> Result<(Parts, Result<Kernels, String>), String> {
        /// Runs of each variant, of which the fastest counts.
        const RUNS: usize = 3;
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let mut cpu = self.plan()?;
        let expected = cpu.run(&inputs)?;
        let mut times: HashMap<Task, Vec<(Variant, f64)>> = HashMap::new();
        let mut usual: HashMap<Task, (Variant, f64)> = HashMap::new();
        let mut wrong = 0;
        // What would be taken comes first, so that it is there when time runs out.
        for forced in std::iter::once(None).chain((0..).map(Some)) {
            let more = |number: usize| times.keys().any(|task| choices.tried(*task).len() > number);
            if forced.is_some_and(|number| !more(number)) || !in_time() {
                break;
            }
            let made = Gpu::of(cpu, device, Choices { forced, ..choices.clone() });
            let ran = made.and_then(|mut gpu| Ok((gpu.run(&inputs)?, gpu)));
            let (given, mut gpu) = match ran {
                Ok(ran) => ran,
                // One of them does not compile, perhaps. What would be taken must.
                Err(_) if forced.is_some() => {
                    wrong += 1;
                    (device, cpu) = (anew()?, self.plan()?);
                    continue;
                }
                Err(why) => return Err(why),
            };
            // Kernels among which one computes wrong are not for use, however fast.
            let right = agree(&expected, &given).is_ok();
            for _ in 0..if right { RUNS } else { 0 } {
                let timed = match gpu.profiled(&inputs) {
                    Ok(timed) => timed,
                    Err(why) => return Ok((gpu.into_parts(), Err(why))),
                };
                let dispatches = gpu.program.phases.iter().flat_map(|phase| &phase.dispatches);
                for (dispatch, one) in dispatches.zip(timed) {
                    let Some(task) = dispatch.task else { continue };
                    let us = one.time.as_secs_f64() * 1e6;
                    let known = times.entry(task).or_default();
                    match known.iter_mut().find(|(variant, _)| *variant == dispatch.variant) {
                        Some((_, best)) => *best = best.min(us),
                        None => known.push((dispatch.variant, us)),
                    }
                    if forced.is_none() {
                        let usual = usual.entry(task).or_insert((dispatch.variant, us));
                        usual.1 = usual.1.min(us);
                    }
                }
            }
            wrong += u32::from(!right);
            (device, cpu) = gpu.into_parts();
        }
        let mut tuned: Vec<Tuned> = vec![];
        for (task, variants) in &times {
            let fastest = variants.iter().min_by(|a, b| a.1.total_cmp(&b.1));
            if let Some((variant, us)) = fastest.copied() {
                let instead_of = usual.get(task).copied().filter(|(usual, _)| *usual != variant);
                tuned.push(Tuned { task: *task, variant, us, instead_of, tried: variants.len() });
            }
        }
        tuned.sort_by_key(|tuned| tuned.task);
        Ok(((device, cpu), Ok(Kernels { tuned, wrong })))
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
    use crate::{EngineChoice, Session, SessionOptions, fixtures};

    /// A clock that goes on with each look at it.
    fn clock() -> Clock {
        let now = Arc::new(AtomicU64::new(0));
        Clock::new(move || Duration::from_millis(now.fetch_add(1, SeqCst)))
    }

    #[test]
    fn frames_are_pictures_where_engines_take_them() {
        let model = cases::picture_case([11, 14, 3]).unwrap();
        let (graph, resolved) = (model.graph(), model.resolve_inputs(&[]).unwrap());
        let shapes = model.shapes(&resolved).unwrap();
        let meaning = Pictures { mean: vec![100.0; 3], std: vec![50.0; 3], fit: Fit::Stretched };
        let inputs = vec![Tensor::noise(&[1, 3, 11, 14], Some(DataType::Float)).unwrap()];
        let subject = Subject {
            graph,
            shapes: &shapes,
            outputs: &model.wanted(),
            threads: 1,
            pictures: Some(&meaning),
            inputs,
        };
        assert!(subject.plan().unwrap().takes_pictures());
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
        let workload = Workload { model: &model, input_shapes: &[], threads: 1, picture, adapter: None };
        let tuning = tune(&workload, "digest", &clock(), Duration::from_secs(60)).unwrap();
        assert_eq!(tuning.picture, Some([30, 40, 3]));
    }

    #[test]
    fn what_was_tuned_can_be_written_down_and_used() {
        if super::super::device::adapters().is_empty() {
            assert!(std::env::var("ANDON_TEST_GPU").is_err(), "no GPU and nothing that plays one");
            return eprintln!("NOT TESTED: no GPU and nothing that plays one");
        }
        let model = fixtures::model(fixtures::qdq_proto());
        let workload =
            Workload { model: &model, input_shapes: &[], threads: 1, picture: None, adapter: None };
        let tuning = tune(&workload, "digest", &clock(), Duration::from_secs(60)).unwrap();
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
        let mut session = Session::new(&model, &options).unwrap();
        let expected = Session::new(&model, &SessionOptions::default()).unwrap();
        let mut expected = expected;
        let run = |session: &mut Session| session.run(&[("image", fixtures::image())]).unwrap();
        assert_eq!(run(&mut session), run(&mut expected));
        // The engine that was faster is taken, as long as the GPU is the one that was measured.
        for engine in ["gpu", "cpu"] {
            let tuning = Tuning { engine: engine.into(), ..tuning.clone() };
            let options = SessionOptions { tuning: Some(Arc::new(tuning.clone())), ..Default::default() };
            assert_eq!(Session::new(&model, &options).unwrap().engine(), engine);
            let mut other = tuning;
            other.adapter.driver_info.push_str(" another");
            let options = SessionOptions { tuning: Some(Arc::new(other)), ..Default::default() };
            assert_eq!(Session::new(&model, &options).unwrap().engine(), "cpu");
        }
    }
}
