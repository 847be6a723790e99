//! Which engine a release runs on: [`Engines`] asks what GPU there is, has a network measured once and what the GPU makes of
//! it compared with the CPU, and remembers what was found and which drivers are not to be trusted, across restarts.
//!
//! Invariants:
//! - nothing of it runs on the frame path: a release is chosen an engine for before it is put on the line, while the
//!   one before it goes on judging;
//! - no driver is waited for without a bound, and one that ends the process three times in a row is blocked;
//! - whatever a driver does, the release runs: at worst on the CPU, and the reason is told.

mod bounded;
pub mod decide;
pub mod notes;

use std::{sync::Arc, time::Duration};

use andon_protocol::{Digest, tuf::UtcTime};
use andon_runtime::{
    AdapterKey, Busy, EngineChoice, GoldenReport, GpuAdapter, GuardPolicy, Model, Pictures, PipelineCache,
    Tuning, Workload, chosen_gpu_but, has_gpu_steps, is_float_network, tune,
};

pub(crate) use bounded::in_time;
pub use bounded::short;
use decide::{Blocked, Decision, Gpu, Kept, Known, decide};
use notes::{Checked, Notes, Trying};

use crate::{clock::Clock, incidents::Incidents};

/// To say which GPUs there are.
const ADAPTERS_WAIT: Duration = Duration::from_secs(20);
/// To try kernels, and then for all of it: building, the comparison with the CPU, a driver that compiles slowly.
const TUNING_BUDGET: Duration = Duration::from_secs(5);
const TUNING_WAIT: Duration = Duration::from_secs(60);
/// To compare what the kernels of a network compute, and then for all of it.
const CHECK_BUDGET: Duration = Duration::from_secs(20);
const CHECK_WAIT: Duration = Duration::from_secs(60);
/// Tries of a driver in a row that came to no end before it is blocked.
const TRIES_MAX: u32 = 3;
/// Of a run, the caller's included.
const THREADS: usize = 1;
const AGENT: &str = env!("CARGO_PKG_VERSION");

pub struct Engines {
    asked: EngineChoice,
    notes: Notes,
    clock: Arc<dyn Clock>,
    /// Capture to verdict.
    deadline: Duration,
    /// Set while a GPU is measured or compared: whatever runs on it meanwhile is slower.
    busy: Busy,
    incidents: Incidents,
    /// For tests: software is measured and chosen like hardware.
    software_counts: bool,
}

/// A network that an engine is chosen for.
#[derive(Debug, Clone)]
pub struct Network {
    pub model: Model,
    /// Of its file.
    pub digest: Digest,
    /// Of inputs whose size the file leaves open.
    pub input_shapes: Vec<(String, Vec<usize>)>,
    /// Height, width and channels of the camera's pictures, and what they mean to the network, as far as that is known.
    pub picture: Option<([usize; 3], Pictures)>,
}

impl Network {
    fn name(&self) -> String {
        self.digest.to_string()
    }
}

/// What a release is to run on.
#[derive(Debug, Clone)]
pub struct Choice {
    pub engine: EngineChoice,
    pub tuning: Option<Arc<Tuning>>,
    /// What a frame took when it was measured as it would be now.
    pub tuned: Option<Duration>,
    /// What the GPU's driver has compiled before.
    pub pipelines: Option<Arc<PipelineCache>>,
    pub threads: usize,
    /// The GPU, if it is one.
    pub gpu: Option<Gpu>,
    /// In a sentence.
    pub why: String,
}

impl Engines {
    pub fn new(
        asked: EngineChoice,
        notes: Notes,
        clock: Arc<dyn Clock>,
        deadline: Duration,
        incidents: Incidents,
    ) -> Self {
        Self { asked, notes, clock, deadline, busy: Busy::default(), incidents, software_counts: false }
    }

    /// Where it is told what goes wrong.
    pub fn incidents(&self) -> &Incidents {
        &self.incidents
    }

    /// How far a GPU is trusted: a run that is late leaves the CPU half of the deadline. `tuned`: what one took when it was
    /// measured.
    pub fn policy(&self, gpu: Option<&Gpu>, tuned: Option<Duration>) -> GuardPolicy {
        let (most_wait, busy) = (self.deadline / 2, self.busy.clone());
        if gpu.is_some_and(|gpu| gpu.is_software) {
            // It shares its processors with everything else: what is late there is no sign of a bad driver.
            let least_wait = most_wait;
            return GuardPolicy { least_wait, most_wait, good_runs: 20, busy, ..Default::default() };
        }
        GuardPolicy { most_wait, tuned, busy, ..Default::default() }
    }

    /// Takes up to [`TUNING_WAIT`] and more, where a GPU was not measured yet: seconds in most cases. Where it is the GPU, the
    /// caller says [`tried`](Self::tried) once that has computed something.
    pub fn choose(&self, network: &Network) -> Choice {
        let looks = matches!(self.asked, EngineChoice::Auto | EngineChoice::Gpu);
        let is_float = is_float_network(&network.model);
        let has_steps = || has_gpu_steps(&network.model, &network.input_shapes);
        let mut computes = if looks && !is_float { has_steps() } else { Ok(()) };
        let model_name = network.name();
        let (gpu, blocked, mut tuning) = match &computes {
            Ok(()) if looks => {
                let blocked = self.blocked();
                let gpu = self.look(&blocked);
                let tuning = gpu.as_ref().ok().and_then(|gpu| self.notes.tuning(&model_name, &gpu.key));
                (gpu, blocked, tuning)
            }
            _ => (Err("no GPU that was looked for".into()), vec![], None),
        };
        // It takes all weights of a float network to know, so that there should be something to know it for.
        if let Ok(gpu) = &gpu {
            let refused = self.refused(gpu, &model_name).map_or(Ok(()), Err);
            let is_used = self.asked == EngineChoice::Gpu || !gpu.is_software;
            computes = computes.and(refused);
            if is_float && is_used && computes.is_ok() {
                computes = has_steps();
            }
        }
        let known = Known {
            asked: self.asked,
            network: computes.as_ref().copied().map_err(|why| why.as_str()),
            gpu: gpu.as_ref().map_err(|why| why.as_str()),
            blocked: &blocked,
            tuning: None,
            agent: AGENT,
            model: &model_name,
            threads: THREADS,
            picture: network.picture.as_ref().map(|(sides, _)| *sides),
        };
        let decided = |tuning: Option<&Kept>| decide(&Known { tuning, ..known });
        let mut decision = decided(tuning.as_ref());
        if let (Decision::Measure, Ok(gpu)) = (&decision, &gpu) {
            decision = match self.measure(gpu, network) {
                Ok(kept) => decided(Some(tuning.insert(kept))),
                Err((why, came_back)) => {
                    let why = format!("{} could not be measured: {why}", decide::name(&gpu.key));
                    self.incidents.tell(short(&why));
                    // Since it computes wrong, perhaps; then it is not measured a second time.
                    let checked = self.check(gpu, network, None, true);
                    if came_back && checked.is_ok() {
                        self.tried();
                    }
                    let blocked = checked.err();
                    Decision::Run(EngineChoice::Auto, blocked.unwrap_or(why))
                }
            };
        }
        let (engine, why) = match decision {
            Decision::Run(engine, why) => (engine, why),
            Decision::Measure => (EngineChoice::Auto, "the GPU changes while it is measured".into()),
        };
        let fits = |kept: &&Kept| gpu.as_ref().is_ok_and(|gpu| known.is_of(kept, gpu));
        let tuned = tuning.as_ref().filter(fits).map(|kept| kept.tuning.gpu_ms.clamp(0.0, 1e6));
        let mut tuned = tuned.map(|ms| Duration::from_secs_f64(ms / 1e3));
        let mut tuning = tuning.map(|kept| kept.tuning);
        let (engine, why) = match &gpu {
            Ok(gpu) if engine == EngineChoice::Gpu => {
                match self.check(gpu, network, tuning.as_ref(), false) {
                    Ok(None) => (engine, why),
                    Ok(Some(alone)) => {
                        if tuning.as_ref().is_none_or(|tuning| tuning.alone.is_none()) {
                            // Other kernels than were measured, if any were.
                            tuning = Some(Tuning::without_sharing(&gpu.key, &model_name, THREADS, &alone));
                            tuned = None;
                        }
                        (engine, why)
                    }
                    Err(why) => (EngineChoice::Auto, why),
                }
            }
            _ => (engine, why),
        };
        let gpu = gpu.ok().filter(|_| engine == EngineChoice::Gpu);
        let tries = gpu.as_ref().map_or(0, |gpu| self.try_out(&gpu.key, None));
        let tuning = tuning.filter(|_| gpu.is_some()).map(Arc::new);
        // What it has compiled before may be what it does not get along with.
        let kept = || if tries > 1 { PipelineCache::default() } else { self.notes.pipelines() };
        let pipelines = gpu.as_ref().map(|_| Arc::new(kept()));
        Choice { engine, tuning, tuned, pipelines, threads: THREADS, gpu, why: short(&why) }
    }

    /// Keeps what a driver has compiled since, for the next start.
    pub fn keep(&self, pipelines: &PipelineCache) {
        let Some(grown) = pipelines.take_grown() else { return };
        if let Err(error) = self.notes.keep_pipelines(&grown) {
            tracing::warn!(%error, "compiled kernels cannot be kept; they are compiled again at the next start");
        }
    }

    /// The driver is about to make its device anew, and may end the process over it.
    pub fn try_again(&self, adapter: &AdapterKey) {
        self.try_out(adapter, None);
    }

    /// The GPU that a choice is of has computed enough and the process lives: what it computes is another's concern.
    pub fn tried(&self) {
        if let Err(error) = self.notes.tried() {
            tracing::warn!(%error, "that the GPU was tried cannot be written down");
        }
    }

    /// Remembers that a driver is not to be used. Durable when this returns, which may take a while.
    pub fn block(&self, blocked: Blocked) {
        self.incidents.tell(blocked.text());
        if let Err(error) = self.notes.block(blocked) {
            tracing::error!(%error, "the blocked driver cannot be written down; it is tried again at the next start");
        }
    }

    /// A driver that failed, to be blocked.
    pub fn bad(&self, adapter: &AdapterKey, reason: &str) -> Blocked {
        let since = UtcTime::from_unix_ms(self.clock.now_ms());
        Blocked { adapter: adapter.clone(), since, reason: short(reason) }
    }

    /// The best GPU whose driver is not blocked; a blocked one where there is nothing else but software.
    fn look(&self, blocked: &[Blocked]) -> Result<Gpu, String> {
        let blocked: Vec<AdapterKey> = blocked.iter().map(|blocked| blocked.adapter.clone()).collect();
        let times = self.notes.looking();
        if times >= TRIES_MAX {
            return Err(format!(
                "no GPU that is safe to look for: the agent ended over it {times} times in a row; `andon-agent gpu \
                 --data-dir DIR --unblock` lets it look again"
            ));
        }
        if let Err(error) = self.notes.look(times + 1) {
            tracing::warn!(%error, "that a GPU is looked for cannot be written down");
        }
        let software_counts = self.software_counts;
        let found = in_time("gpu-look", ADAPTERS_WAIT, move || {
            let but = |without: &[AdapterKey]| {
                let gpu = chosen_gpu_but(without)?;
                Ok::<_, String>(Gpu { key: gpu.key(), is_software: gpu.is_software() && !software_counts })
            };
            let best = but(&[])?;
            if !blocked.contains(&best.key) {
                return Ok(best);
            }
            Ok(but(&blocked).ok().filter(|other| !other.is_software).unwrap_or(best))
        });
        if let Err(error) = self.notes.looked() {
            tracing::warn!(%error, "that a GPU was looked for cannot be written down");
        }
        found.map_err(|why| if why.starts_with("no GPU") { why } else { format!("no GPU: {why}") })
    }

    /// With the one that did not come to an end too often, if there is one.
    fn blocked(&self) -> Vec<Blocked> {
        if let Some(Trying { adapter, times, reason }) = self.notes.trying().filter(|t| t.times >= TRIES_MAX)
        {
            let how = reason.as_deref().unwrap_or("the agent ended");
            self.block(self.bad(&adapter, &format!("tried {times} times in vain, the last: {how}")));
            self.tried();
        }
        self.notes.blocked()
    }

    /// An error says whether the driver has come back with it.
    fn measure(&self, gpu: &Gpu, network: &Network) -> Result<Kept, (String, bool)> {
        let name = network.name();
        tracing::info!(gpu = decide::name(&gpu.key), model = name, "the GPU is measured");
        self.try_out(&gpu.key, None);
        let clock = Arc::clone(&self.clock);
        let clock = andon_runtime::Clock::new(move || clock.elapsed());
        let (network, adapter) = (network.clone(), gpu.key.clone());
        let tuned = in_time("gpu-tune", TUNING_WAIT, move || {
            let Network { model, input_shapes, picture, .. } = &network;
            let picture = picture.as_ref().map(|(sides, meaning)| (*sides, meaning));
            let workload = Workload {
                model,
                input_shapes,
                threads: THREADS,
                picture,
                adapter: Some(&adapter),
                half_precision: false,
            };
            Ok(tune(&workload, &name, &clock, TUNING_BUDGET))
        });
        match tuned {
            // A driver that comes back with an error is no danger; a network that is too large gives one, too. The
            // comparison that comes next says whether it is one.
            Ok(Err(why)) => Err((why, true)),
            Ok(Ok(tuning)) => {
                let at = UtcTime::from_unix_ms(self.clock.now_ms());
                let kept = Kept { agent: AGENT.into(), at, tuning };
                if let Err(error) = self.notes.keep(&kept) {
                    tracing::warn!(%error, "what was measured cannot be written down; it is measured again");
                }
                self.tried();
                Ok(kept)
            }
            Err(why) => {
                self.failed(&gpu.key, &why);
                Err((why, false))
            }
        }
    }

    /// Compares what the GPU computes with what the CPU does, once for a network, a driver and an agent; gives why no kernel
    /// is to be used whose threads share memory, if that is so. `Err`: why the GPU is not to be used, which is told; where it
    /// computes wrong its driver is blocked. `is_counted`: this is a part of a try that was counted.
    fn check(
        &self,
        gpu: &Gpu,
        network: &Network,
        tuning: Option<&Tuning>,
        is_counted: bool,
    ) -> Result<Option<String>, String> {
        let told = |why: String| {
            self.incidents.tell(short(&why));
            why
        };
        let model_name = network.name();
        let mut earlier = self.notes.checked();
        earlier.retain(|checked| checked.adapter == gpu.key && checked.agent == AGENT);
        // With the kernels that are used now.
        let chosen =
            || tuning.into_iter().flat_map(|tuning| tuning.kernels.iter().map(|tuned| tuned.variant));
        let covers = |report: &GoldenReport| {
            // Those that are not used for what was found have nothing to be compared for.
            let mut used = chosen().filter(|variant| report.alone.is_none() || variant.sharers() == 1);
            report.left.is_empty() && used.all(|variant| report.variants.contains(&variant))
        };
        if let Some(known) = earlier.iter().find(|known| known.model == model_name && covers(&known.report)) {
            return Ok(known.report.alone.clone());
        }
        if !is_counted {
            self.try_out(&gpu.key, None);
        }
        let shown = |checked: Checked| {
            let GoldenReport { variants, left, .. } = checked.report;
            variants.into_iter().filter(move |variant| !left.contains(variant))
        };
        let known: Vec<_> = earlier.into_iter().flat_map(shown).collect();
        let (clock, tuning) = (Arc::clone(&self.clock), tuning.cloned());
        let (model, shapes) = (network.model.clone(), network.input_shapes.clone());
        let adapter = gpu.key.clone();
        let checked = in_time("gpu-check", CHECK_WAIT, move || {
            let now = || clock.elapsed();
            let compare = |gpu: GpuAdapter| {
                gpu.check_network(&model, &shapes, tuning.as_ref(), &known, &now, CHECK_BUDGET)
            };
            Ok(GpuAdapter::find(&adapter).and_then(compare))
        });
        let report = match checked {
            Ok(Ok(report)) => report,
            Ok(Err(why)) => {
                self.tried();
                return Err(told(format!("{} cannot run it: {why}", decide::name(&gpu.key))));
            }
            Err(why) => {
                self.failed(&gpu.key, &why);
                let name = decide::name(&gpu.key);
                return Err(told(format!("{name} could not be compared with the CPU: {why}")));
            }
        };
        self.tried();
        let (runs, rounded, kernels, left) =
            (report.runs, report.rounded, report.variants.len(), report.left.len());
        tracing::info!(
            gpu = decide::name(&gpu.key),
            runs,
            rounded,
            kernels,
            left,
            "the GPU was compared with the CPU"
        );
        let wrong = report.wrong.first().map(|first| {
            let count = report.wrong.len();
            format!("{count} of {runs} cases computed wrong, the first: {}: {}", first.case, first.reason)
        });
        // Floats are never the same to the bit, and how far from each other they may end is the network's, not the driver's:
        // it is this network that the GPU is not used for.
        let refused = wrong.clone().filter(|_| is_float_network(&network.model));
        if let (Some(reason), None) = (&wrong, &refused) {
            let blocked = self.bad(&gpu.key, reason);
            let why = blocked.text();
            self.block(blocked);
            return Err(why);
        }
        let (adapter, agent, model) = (gpu.key.clone(), AGENT.into(), model_name);
        let at = UtcTime::from_unix_ms(self.clock.now_ms());
        let alone = report.alone.clone();
        let checked = Checked { adapter, agent, model, at, report, refused: refused.clone() };
        if let Err(error) = self.notes.keep_check(checked) {
            tracing::warn!(%error, "what was compared cannot be written down; it is compared again");
        }
        let name = decide::name(&gpu.key);
        refused.map_or(Ok(alone), |why| Err(told(format!("{name} is not used for it: {why}"))))
    }

    /// Remembers that a network is not for a GPU, though nothing is wrong with its driver.
    pub fn refuse(&self, adapter: &AdapterKey, network: &Digest, why: &str) {
        let (model, at) = (network.to_string(), UtcTime::from_unix_ms(self.clock.now_ms()));
        let (adapter, agent, report) = (adapter.clone(), AGENT.into(), GoldenReport::default());
        let refused = Some(short(why));
        if let Err(error) = self.notes.keep_check(Checked { adapter, agent, model, at, report, refused }) {
            tracing::warn!(%error, "that a network is not for the GPU cannot be written down");
        }
    }

    /// Says that the GPU is busy, as long as what it gives is there: whatever runs on it meanwhile is slower.
    pub fn working(&self) -> impl Drop + use<> {
        Working::on(self.busy.clone())
    }

    /// Why a network was found not to be for a GPU.
    fn refused(&self, gpu: &Gpu, model: &str) -> Option<String> {
        let is_of = |checked: &Checked| {
            checked.adapter == gpu.key && checked.agent == AGENT && checked.model == model
        };
        self.notes.checked().into_iter().find(is_of)?.refused
    }

    /// Counts a try before it begins; how many those are, in a row.
    fn try_out(&self, adapter: &AdapterKey, reason: Option<String>) -> u32 {
        let before = self.notes.trying().filter(|trying| trying.adapter == *adapter);
        let times = before.map_or(0, |trying| trying.times) + 1;
        let trying = Trying { adapter: adapter.clone(), times, reason };
        if let Err(error) = self.notes.try_out(&trying) {
            tracing::warn!(%error, "that the GPU is tried cannot be written down");
        }
        times
    }

    /// The try that was counted last has ended like this.
    fn failed(&self, adapter: &AdapterKey, why: &str) {
        let Some(trying) = self.notes.trying().filter(|trying| trying.adapter == *adapter) else { return };
        if let Err(error) = self.notes.try_out(&Trying { reason: Some(short(why)), ..trying }) {
            tracing::warn!(%error, "why the GPU failed cannot be written down");
        }
    }
}

/// Says for as long as it is there that the GPU is busy.
struct Working(Busy);

impl Working {
    fn on(busy: Busy) -> Self {
        busy.set(true);
        Self(busy)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use andon_protocol::release::Fit;
    use andon_runtime::{
        Limits, chosen_gpu, gpus,
        onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    };

    use super::*;
    use crate::{
        clock::ManualClock,
        files::{Disk, SystemDisk},
    };

    /// The largest of each window, in bytes.
    fn model() -> Model {
        let mut graph = GraphProto {
            name: "largest".into(),
            input: vec![ValueInfoProto::new("x", DataType::Float, &[1, 8, 6, 6])],
            output: vec![ValueInfoProto::new("y.f", DataType::Float, &[1, 8, 5, 5])],
            ..Default::default()
        };
        for name in ["x", "y"] {
            let [q, f, s, z] = ["q", "f", "s", "z"].map(|end| format!("{name}.{end}"));
            graph.initializer.push(TensorProto::f32(&s, &[], &[0.25]));
            graph.initializer.push(TensorProto::u8(&z, &[], &[7]));
            graph.node.push(NodeProto::new("QuantizeLinear", "", [name, &s, &z], [&*q]));
            graph.node.push(NodeProto::new("DequantizeLinear", "", [&*q, &s, &z], [&*f]));
            if name == "x" {
                let node = NodeProto::new("MaxPool", "", ["x.f"], ["y"]).with_ints("kernel_shape", &[2, 2]);
                graph.node.push(node);
            }
        }
        Model::load(&ModelProto::new(graph, 17).to_bytes(), &Limits::default()).unwrap()
    }

    fn network() -> Network {
        Network { model: model(), digest: Digest::of(b"largest"), input_shapes: vec![], picture: None }
    }

    fn engines(data_dir: &std::path::Path, asked: EngineChoice, software_counts: bool) -> Engines {
        let clock = ManualClock::at(1_795_734_245_000);
        let notes = Notes::new(Arc::new(SystemDisk), data_dir);
        let (clock, incidents) = (Arc::new(clock), Incidents::default());
        Engines { software_counts, ..Engines::new(asked, notes, clock, Duration::from_secs(2), incidents) }
    }

    fn choose(data_dir: &std::path::Path, asked: EngineChoice, software_counts: bool) -> Choice {
        engines(data_dir, asked, software_counts).choose(&network())
    }

    /// Whether something plays a GPU here.
    fn can_test() -> bool {
        let gpu = chosen_gpu();
        assert!(gpu.is_ok() || std::env::var("ANDON_TEST_GPU").is_err(), "no GPU and nothing that plays one");
        if gpu.is_err() {
            eprintln!("NOT TESTED: no GPU and nothing that plays one");
        }
        gpu.is_ok()
    }

    #[test]
    fn a_network_is_measured_once_and_what_cannot_be_used_is_measured_anew() {
        if !can_test() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let first = choose(dir.path(), EngineChoice::Auto, true);
        let folder = dir.path().join("tuning");
        let model = Digest::of(b"largest").to_string();
        let name =
            SystemDisk.list(&folder).unwrap().into_iter().find(|name| name.starts_with(&model)).unwrap();
        let path = folder.join(name);
        assert!(first.why.contains(" ms (tuned 2026-11-26)"), "{first:?}");
        assert_eq!(first.gpu.is_some(), first.engine == EngineChoice::Gpu, "{first:?}");
        // The same file says the same.
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(choose(dir.path(), EngineChoice::Auto, true).why, first.why);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        // Pictures of another size are another matter, whoever resizes them.
        let meaning = Pictures { mean: vec![0.0; 8], std: vec![1.0; 8], fit: Fit::Stretched };
        let pictures = Network { picture: Some(([480, 640, 3], meaning)), ..network() };
        let choice = engines(dir.path(), EngineChoice::Auto, true).choose(&pictures);
        assert!(choice.why.contains(" ms for pictures of 640x480 (tuned 2026-11-26)"), "{choice:?}");
        assert!(fs::read_to_string(&path).unwrap().contains("\"picture\": ["));
        let measures = |path: &std::path::Path| {
            choose(dir.path(), EngineChoice::Auto, true);
            let now = fs::read_to_string(path).unwrap();
            assert!(now.contains(&format!("\"agent\": \"{AGENT}\"")), "{now}");
            serde_json::from_str::<Kept>(&now).unwrap();
        };
        for other in [
            text[..text.len() - 9].to_owned(),
            text.replace(&format!("\"{AGENT}\""), "\"0.0.0\""),
            text.replace("\"driver\": \"", "\"driver\": \"another "),
        ] {
            assert_ne!(other, text);
            fs::write(&path, &other).unwrap();
            measures(&path);
            assert_ne!(fs::read_to_string(&path).unwrap(), other);
        }
    }

    #[test]
    fn a_float_network_is_measured_and_compared_as_well() {
        if !can_test() {
            return;
        }
        let graph = GraphProto {
            name: "mixes channels".into(),
            input: vec![ValueInfoProto::new("x", DataType::Float, &[1, 8, 6, 6])],
            output: vec![ValueInfoProto::new("y", DataType::Float, &[1, 4, 6, 6])],
            initializer: vec![TensorProto::f32("w", &[4, 8, 1, 1], &[0.5; 32])],
            node: vec![NodeProto::new("Conv", "", ["x", "w"], ["y"])],
            ..Default::default()
        };
        let model = Model::load(&ModelProto::new(graph, 17).to_bytes(), &Limits::default()).unwrap();
        let network = Network { model, digest: Digest::of(b"mixes"), ..network() };
        let dir = tempfile::tempdir().unwrap();
        let choice = |asked| engines(dir.path(), asked, true).choose(&network);
        let auto = choice(EngineChoice::Auto);
        assert!(auto.why.contains(" ms (tuned 2026-11-26)"), "{auto:?}");
        assert_eq!(choice(EngineChoice::Gpu).engine, EngineChoice::Gpu);
        let notes = Notes::new(Arc::new(SystemDisk), dir.path());
        let checked = notes.checked().into_iter().find(|checked| checked.model == network.name()).unwrap();
        assert_eq!((&*checked.report.wrong, &*checked.report.left), (&[][..], &[][..]));
        // Where it gave other results than the CPU it is this network that stays there.
        let refused = Some("1 of 2 cases computed wrong".into());
        notes.keep_check(Checked { refused, ..checked }).unwrap();
        let refused = choice(EngineChoice::Gpu);
        assert_eq!(refused.engine, EngineChoice::Auto);
        assert!(
            refused.why.ends_with("no GPU computes this network: 1 of 2 cases computed wrong"),
            "{refused:?}"
        );
        assert_eq!(notes.blocked(), []);
    }

    #[test]
    fn software_is_neither_measured_nor_chosen_but_obeyed() {
        if !can_test() || !chosen_gpu().unwrap().is_software() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let choice = choose(dir.path(), EngineChoice::Auto, false);
        assert!(choice.why.starts_with("the only GPU is software ("), "{choice:?}");
        assert_eq!((choice.engine, choice.gpu), (EngineChoice::Auto, None));
        assert_eq!(SystemDisk.list(&dir.path().join("tuning")).unwrap(), [""; 0]);
        assert_eq!(choose(dir.path(), EngineChoice::Gpu, false).engine, EngineChoice::Gpu);
    }

    #[test]
    fn a_driver_that_ends_the_agent_again_and_again_is_blocked() {
        if !can_test() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // Nobody says that the GPU came through: the process ends each time.
        for _ in 0..TRIES_MAX {
            assert_eq!(choose(dir.path(), EngineChoice::Gpu, false).engine, EngineChoice::Gpu);
        }
        let choice = choose(dir.path(), EngineChoice::Gpu, false);
        assert_eq!(choice.engine, EngineChoice::Auto);
        assert!(choice.why.contains("tried 3 times in vain, the last: the agent ended"), "{choice:?}");
        assert!(choose(dir.path(), EngineChoice::Gpu, false).why.contains("is blocked since 2026-11-26"));
        let notes = Notes::new(Arc::new(SystemDisk), dir.path());
        assert_eq!(notes.unblock().unwrap(), 1);
        for _ in 0..2 * TRIES_MAX {
            let engines = engines(dir.path(), EngineChoice::Gpu, false);
            let choice = engines.choose(&network());
            assert_eq!(choice.engine, EngineChoice::Gpu);
            engines.tried();
        }
        assert_eq!(SystemDisk.list(&dir.path().join("tuning")).unwrap(), ["checked.json"]);
    }

    #[test]
    fn a_driver_that_ends_the_agent_at_first_sight_is_not_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(Arc::new(SystemDisk), dir.path());
        let looks = || engines(dir.path(), EngineChoice::Gpu, false).look(&[]);
        notes.look(TRIES_MAX - 1).unwrap();
        let seen = looks();
        assert!(seen.as_ref().err().is_none_or(|why| !why.contains("safe to look for")), "{seen:?}");
        assert_eq!(notes.looking(), 0);
        notes.look(TRIES_MAX).unwrap();
        let why = looks().unwrap_err();
        assert!(why.starts_with("no GPU that is safe to look for: the agent ended over it 3 times"), "{why}");
        notes.unblock().unwrap();
        assert_eq!(looks(), seen);
    }

    #[test]
    fn where_a_driver_is_blocked_another_one_takes_its_place() {
        if !can_test() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let block = |gpu: &GpuAdapter| {
            let engines = engines(dir.path(), EngineChoice::Auto, true);
            engines.block(engines.bad(&gpu.key(), "lost"));
        };
        let [first, rest @ ..] = &*gpus() else { panic!("there was one") };
        block(first);
        let Some(second) = rest.first() else {
            return eprintln!("NOT TESTED: another driver than {}", decide::name(&first.key()));
        };
        let name = decide::name(&second.key());
        let choice = choose(dir.path(), EngineChoice::Auto, true);
        assert!(choice.why.starts_with(&format!("{name} took ")), "{choice:?}");
        let choice = choose(dir.path(), EngineChoice::Gpu, true);
        assert_eq!(choice.gpu.map(|gpu| gpu.key), Some(second.key()), "{}", choice.why);
        // A session is on it, too, and software is no substitute for hardware.
        let options = andon_runtime::SessionOptions {
            engine: EngineChoice::Gpu,
            adapter: Some(second.key()),
            ..Default::default()
        };
        assert_eq!(andon_runtime::Session::new(&model(), &options).unwrap().engine(), "gpu");
        let gone = AdapterKey { driver_info: "another".into(), ..second.key() };
        let gone = andon_runtime::SessionOptions { adapter: Some(gone), ..options };
        assert!(andon_runtime::Session::new(&model(), &gone).is_err());
        if second.is_software() {
            let why = choose(dir.path(), EngineChoice::Gpu, false).why;
            assert!(
                why.contains(&format!("the driver of {} is blocked", decide::name(&first.key()))),
                "{why}"
            );
        }
        rest.iter().for_each(block);
        let why = choose(dir.path(), EngineChoice::Auto, true).why;
        assert!(why.contains(&format!("the driver of {} is blocked", decide::name(&first.key()))), "{why}");
    }
}
