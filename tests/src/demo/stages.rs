//! The seven stages of the demo.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use andon_protocol::{
    api::{
        Alarm, DataSet as ServerDataSet, Device, Overview, Policy, Release, Rollout, RunState, TrainingRun,
        Wave,
    },
    ids::{DeviceId, ReleaseId},
};
use anyhow::{Context, Result, bail, ensure};

use super::{DeviceReport, Options, Plan, Report, interrupted, show::Show};
use crate::{
    api::Api,
    clock::{Stopwatch, wait_for},
    dataset::{self, DataSet, TRAINING_SPLITS},
    fleet::{self, ADMIN, Agent, AgentSetup, Mqtt, Programs, Server},
    inspector::Inspector,
    scoreboard::{Phase, Scoreboard},
};

/// For each wait. Far above what a slow machine needs: it ends a demo that hangs.
const LIMIT: Duration = Duration::from_secs(900);

pub(super) struct Stages {
    plan: Plan,
    show: Show,
    programs: Programs,
    data: DataSet,
    cache: PathBuf,
    dir: PathBuf,
    truth: HashMap<String, String>,
    server: Option<Server>,
    line: Line,
    /// What the devices last said that they run on.
    engines: BTreeMap<String, Vec<DeviceId>>,
    seconds: BTreeMap<String, f64>,
}

/// The devices, and what they said so far.
#[derive(Default)]
struct Line {
    agents: Vec<Agent>,
    boards: Vec<Scoreboard>,
}

impl Line {
    /// Reads new verdicts. An error if a device's process ended.
    fn observe(&mut self) -> Result<()> {
        for (agent, board) in self.agents.iter_mut().zip(&mut self.boards) {
            agent.check()?;
            board.add(agent.new_verdicts()?);
        }
        Ok(())
    }

    /// Frames of a phase seen by the device that is the furthest behind.
    fn seen(&self, phase: Phase, second: &ReleaseId) -> u64 {
        self.boards.iter().map(|b| b.seen(phase, second)).min().unwrap_or(0)
    }

    fn drifted(&self) -> impl Iterator<Item = (&Agent, &Scoreboard)> {
        self.agents.iter().zip(&self.boards).filter(|(a, _)| a.setup().degrade.is_some())
    }
}

impl Stages {
    pub(super) fn new(
        plan: Plan,
        show: Show,
        programs: Programs,
        data: DataSet,
        cache: PathBuf,
        dir: PathBuf,
    ) -> Self {
        let truth = data.truth();
        let (server, line, engines, seconds) = (None, Line::default(), BTreeMap::new(), BTreeMap::new());
        Self { plan, show, programs, data, cache, dir, truth, server, line, engines, seconds }
    }

    /// Ends all processes, the devices first.
    pub(super) fn stop(&mut self) {
        for agent in &mut self.line.agents {
            agent.stop();
        }
        self.server.take().map(Server::stop);
    }

    /// All stages. Returns after the proof, or at Ctrl-C after it.
    pub(super) async fn tell(&mut self, options: &Options) -> Result<Report> {
        let first = ReleaseId::new(self.plan.model, 1)?;
        let second = ReleaseId::new(self.plan.model, 2)?;

        let watch = Stopwatch::start();
        self.select_data()?;
        self.took("data", watch);

        let watch = Stopwatch::start();
        self.train_first().await?;
        self.took("first_release", watch);

        let watch = Stopwatch::start();
        let api = self.start_fleet(&first).await?;
        self.took("fleet", watch);

        let watch = Stopwatch::start();
        self.drift(&api, &second).await?;
        self.took("drift", watch);

        let watch = Stopwatch::start();
        let labels = self.inspect(&api).await?;
        self.took("labels", watch);

        let watch = Stopwatch::start();
        self.retrain(&api, &second).await?;
        self.took("retrain", watch);

        let watch = Stopwatch::start();
        let mut report = self.prove(&api, &second, labels).await?;
        self.took("proof", watch);
        report.seconds = self.seconds.clone();

        self.print(&report, options)?;
        self.afterwards(options).await?;
        Ok(report)
    }

    fn took(&mut self, stage: &str, watch: Stopwatch) {
        let tenths = (watch.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        self.seconds.insert(stage.to_owned(), tenths);
        self.show.say(&format!("({tenths:.1} s)"));
    }

    fn model_dir(&self) -> PathBuf {
        self.dir.join("first-release")
    }

    fn dataset_dir(&self) -> PathBuf {
        self.dir.join("dataset")
    }

    fn select_data(&self) -> Result<()> {
        self.show.stage(
            1,
            "Data",
            "Real solar cells (ELPV data set, CC BY-NC-SA 4.0), split once and for all: what the model learns from, \
             and a stream for each device that it never sees.",
        );
        if self.plan.frames_per_second <= Plan::PLAYED_FRAMES_PER_SECOND {
            let rate = self.plan.frames_per_second;
            self.show.say(&format!("software plays the devices' GPUs: {rate} frames a second each"));
        }
        let sizes = [self.plan.train, self.plan.validation, self.plan.golden];
        let parts = TRAINING_SPLITS.iter().zip(sizes).map(|(split, size)| self.data.part(split, size));
        let rows: Vec<_> = parts.flatten().collect();
        self.data.write(&rows, &self.dataset_dir())?;
        let [train, validation, golden] = sizes;
        self.show.say(&format!(
            "{train} images to train, {validation} to validate, {golden} golden, 3 streams of {}",
            self.plan.stream
        ));
        Ok(())
    }

    async fn train_first(&self) -> Result<()> {
        self.show.stage(
            2,
            "First release",
            "EfficientNet-Lite0 learns to tell sound cells from defective ones, is quantised to 8 bits and compared \
             with its float self.",
        );
        let mut fit = tokio::process::Command::new(self.programs.path("andon-trainer"));
        fit.arg("fit").arg("--images").arg(self.dataset_dir());
        fit.arg("--weights").arg(self.cache.join("efficientnet-lite0.pth"));
        fit.args(["--model", self.plan.model, "--out"]).arg(self.model_dir()).args(self.plan.fit);
        // In our own process group: Ctrl-C ends it, too.
        let status = fit.kill_on_drop(true).status().await.context("cannot start andon-trainer")?;
        ensure!(status.success(), "andon-trainer fit ended with {status}");
        Ok(())
    }

    async fn start_fleet(&mut self, first: &ReleaseId) -> Result<Api> {
        self.show.stage(
            3,
            "Fleet",
            "A fleet server with its own certificate authority, and three devices that enrol with one-time tokens, \
             fetch the signed release and start to judge what their cameras see.",
        );
        let server = Server::start(&self.programs, &self.dir.join("server"), Mqtt::Embedded).await?;
        let api = server.api().await?;
        self.show.say(&format!(
            "dashboard {}  user {ADMIN}  password {}",
            server.addresses().people,
            server.password()
        ));
        self.server = Some(server);

        let release: Release = fleet::publish(&api, &self.model_dir()).await?;
        ensure!(release.id == *first, "the server published {}, expected {first}", release.id);
        let tar = dataset::tar_of_folder(&self.dataset_dir())?;
        let _: ServerDataSet = api.post_tar(&format!("/datasets?model={}", self.plan.model), tar).await?;
        let (labels, trial_s, soak_s) = (self.plan.labels as u32, self.plan.trial_s, self.plan.soak_s);
        let plan = &self.plan;
        let policy = |policy: &mut Policy| {
            policy.agreement_min = plan.agreement_min;
            policy.clean_loss_max = plan.clean_loss_max;
            policy.drift_gain_min = plan.drift_gain_min;
            policy.retrain_labels_min = labels;
            policy.auto_rollout = true;
            policy.waves = vec![Wave { percent: 34, soak_s }, Wave { percent: 100, soak_s: 0 }];
            policy.trial_s = trial_s;
        };
        api.change(&format!("/models/{}/policy", self.plan.model), policy).await?;

        for (index, degrade) in self.plan.degrade.into_iter().enumerate() {
            let setup = self.device(index, degrade)?;
            let folder = self.dir.join(setup.id.as_str());
            let mut agent = Agent::enrol(&self.programs, &folder, &api, setup).await?;
            agent.start()?;
            self.line.agents.push(agent);
            self.line.boards.push(Scoreboard::new(self.plan.stream));
        }
        let line = &mut self.line;
        let online = async || {
            line.observe()?;
            let devices: Vec<Device> = api.list("/devices").await?;
            Ok((devices.iter().filter(|d| d.online).count() == line.agents.len()).then_some(()))
        };
        wait_for("the devices to be online", LIMIT, online).await?;
        self.show.say("three devices are online over MQTT with mutual TLS");
        let rollout = fleet::roll_out(&api, first, self.plan.trial_s).await?;
        self.follow(&api, &rollout.id).await?;
        self.say_engines(&api).await?;
        Ok(api)
    }

    /// Which engine each device chose and why, where that is news.
    async fn say_engines(&mut self, api: &Api) -> Result<()> {
        let engines = fleet::engines(api).await?;
        if engines != self.engines {
            for (engine, devices) in &engines {
                let devices: Vec<&str> = devices.iter().map(DeviceId::as_str).collect();
                self.show.say(&format!("{} run on {engine}", devices.join(", ")));
            }
        }
        self.engines = engines;
        Ok(())
    }

    fn device(&self, index: usize, degrade: Option<fleet::Degrade>) -> Result<AgentSetup> {
        let split = format!("stream-{}", index + 1);
        let stream: Vec<String> =
            self.data.part(&split, self.plan.stream).into_iter().map(|row| row.file).collect();
        Ok(AgentSetup {
            id: format!("line-{}", index + 1).parse()?,
            images: self.data.images(),
            degrade: degrade.map(|d| (d, stream.len() as u64)),
            stream,
            frames_per_second: self.plan.frames_per_second,
            upload_bytes_per_hour: self.plan.upload_bytes_per_hour,
        })
    }

    /// Shows a rollout until it is over, which must be well.
    async fn follow(&mut self, api: &Api, id: &str) -> Result<()> {
        let line = &mut self.line;
        let mut bar = self.show.bar("devices updated", line.agents.len() as u64);
        let over = async || {
            line.observe()?;
            let rollout: Rollout = api.get(&format!("/rollouts/{id}")).await?;
            let committed = |d: &&andon_protocol::api::RolloutDevice| {
                d.state == andon_protocol::api::RolloutDeviceState::Committed
            };
            let done = rollout.devices.iter().filter(committed).count();
            let states: Vec<String> =
                rollout.devices.iter().map(|d| format!("{} {}", d.device, word(&d.state))).collect();
            bar.set(done as u64, &states.join(", "));
            fleet::succeeded(rollout)
        };
        let rollout = wait_for("the rollout to be over", LIMIT, over).await?;
        bar.finish(&format!("all run {}", rollout.release));
        Ok(())
    }

    async fn drift(&mut self, api: &Api, second: &ReleaseId) -> Result<()> {
        self.show.stage(
            4,
            "Drift",
            "A clean pass over the streams; then line-2's lamp ages and line-3's lens goes out of focus. Nobody tells \
             the devices.",
        );
        let (line, stream) = (&mut self.line, self.plan.stream as u64);
        let mut bar = self.show.bar("frames, clean", stream);
        let clean = async || {
            line.observe()?;
            let seen = line.seen(Phase::Before, second);
            bar.set(seen, "");
            Ok((seen >= stream).then_some(()))
        };
        wait_for("a clean pass over the streams", LIMIT, clean).await?;
        bar.finish("");

        let mut bar = self.show.bar("drifts noticed", line.drifted().count() as u64);
        let noticed = async || {
            line.observe()?;
            let alarms: Vec<Alarm> = api.list("/alarms").await?;
            let reported = |id: &DeviceId| alarms.iter().find(|a| a.device == *id);
            let mut told = Vec::new();
            for (agent, board) in line.drifted() {
                if let (Some(alarm), Some(frames)) = (reported(agent.id()), board.frames_to_detection()) {
                    told.push(format!("{} after {frames} frames: {}", agent.id(), word(&alarm.cause)));
                }
            }
            bar.set(told.len() as u64, &told.join(", "));
            Ok((told.len() == line.drifted().count()).then_some(told))
        };
        let told = wait_for("the devices to notice the drift and to report it", LIMIT, noticed).await?;
        bar.finish("");
        told.iter().for_each(|text| self.show.say(text));
        for (agent, board) in line.agents.iter().zip(&line.boards) {
            if board.false_alarms() > 0 {
                self.show.say(&format!("{} raised an alarm before anything had changed", agent.id()));
            }
        }
        Ok(())
    }

    async fn inspect(&mut self, api: &Api) -> Result<usize> {
        self.show.stage(
            5,
            "Labels",
            "The devices choose and upload samples within their byte budget; an inspector says over the API what they \
             show.",
        );
        let line = &mut self.line;
        let mut inspector = Inspector::new(api.clone(), self.truth.clone(), self.plan.labels);
        let mut bar = self.show.bar("images labelled", self.plan.labels as u64);
        let labelled = async || {
            line.observe()?;
            inspector.look().await?;
            bar.set(inspector.labelled() as u64, "");
            Ok(inspector.is_done().then_some(()))
        };
        wait_for("enough samples to label", LIMIT, labelled).await?;
        bar.finish("");
        Ok(inspector.labelled())
    }

    async fn retrain(&mut self, api: &Api, second: &ReleaseId) -> Result<()> {
        self.show.stage(
            6,
            "Retrain, prove, roll out",
            "The server trains on old and new images, compares old and new model on golden, validation and held-back \
             drifted images, and only if the new one is better signs it and sends it to a canary, then to all.",
        );
        let line = &mut self.line;
        let mut bar = self.show.bar("training, percent", 100);
        let runs = format!("/runs?model={}", self.plan.model);
        let trained = async || {
            line.observe()?;
            let runs: Vec<TrainingRun> = api.list(&runs).await?;
            // Newest first.
            let Some(run) = runs.into_iter().next() else { return Ok(None) };
            bar.set((run.progress * 100.0) as u64, &run.stage);
            match run.state {
                RunState::Queued | RunState::Running => Ok(None),
                RunState::Succeeded => Ok(Some(run)),
                RunState::Refused | RunState::Failed | RunState::Cancelled => {
                    bail!(
                        "training run {} is {}: {}",
                        run.id,
                        word(&run.state),
                        run.verdict.unwrap_or_default()
                    )
                }
            }
        };
        let run = wait_for("the training run", LIMIT, trained).await?;
        bar.finish("");
        self.show.say(&run.verdict.unwrap_or_default());
        ensure!(run.release.as_ref() == Some(second), "the run made {:?}, expected {second}", run.release);

        let started = async || {
            line.observe()?;
            let rollouts: Vec<Rollout> = api.list("/rollouts").await?;
            Ok(rollouts.into_iter().find(|r| r.release == *second))
        };
        let rollout = wait_for("the rollout of the new release", LIMIT, started).await?;
        self.follow(api, &rollout.id).await
    }

    async fn prove(&mut self, api: &Api, second: &ReleaseId, labels: usize) -> Result<Report> {
        self.show.stage(
            7,
            "Proof",
            "Another pass over the streams with the new release, against the true labels.",
        );
        let (line, stream) = (&mut self.line, self.plan.stream as u64);
        let mut bar = self.show.bar("frames, after", stream);
        let passed = async || {
            line.observe()?;
            let seen = line.seen(Phase::After, second);
            bar.set(seen, "");
            Ok((seen >= stream).then_some(()))
        };
        wait_for("a pass over the streams with the new release", LIMIT, passed).await?;
        bar.finish("");

        self.say_engines(api).await?;
        let line = &self.line;
        let running = fleet::running(api).await?;
        let mut devices = Vec::new();
        for (agent, board) in line.agents.iter().zip(&line.boards) {
            let accuracy = |phase| {
                let score = board.score(phase, second, &self.truth);
                score.with_context(|| format!("{} saw only one class in the phase {phase:?}", agent.id()))
            };
            let (before, drift, after) =
                (accuracy(Phase::Before)?, accuracy(Phase::Drift)?, accuracy(Phase::After)?);
            for (phase, score) in [("before", before), ("drifted", drift), ("after", after)] {
                if score.images < self.plan.stream {
                    let id = agent.id();
                    self.show
                        .say(&format!("{id}, {phase}: judged {} of {stream} different images", score.images));
                }
            }
            devices.push(DeviceReport {
                id: agent.id().clone(),
                drift: agent.setup().degrade.map(|(d, _)| d.name().to_owned()),
                accuracy_before: before.accuracy,
                accuracy_drift: drift.accuracy,
                accuracy_after: after.accuracy,
                frames_to_detection: board.frames_to_detection(),
                release: running.get(agent.id()).cloned().flatten(),
            });
        }
        let overview: Overview = api.get("/overview").await?;
        Ok(Report { devices, bytes_uploaded: overview.bytes_received, labels, seconds: BTreeMap::new() })
    }

    fn print(&self, report: &Report, options: &Options) -> Result<()> {
        println!("\n{}", report.table());
        if let Some(path) = &options.report {
            write_json(report, path)?;
        }
        Ok(())
    }

    /// What comes after the proof: a program that was asked for, and, but for `--exit`, the fleet until Ctrl-C.
    async fn afterwards(&mut self, options: &Options) -> Result<()> {
        let Some(server) = &self.server else { return Ok(()) };
        let url = server.addresses().people.clone();
        let password = server.password().to_owned();
        if let [program, arguments @ ..] = &options.then[..] {
            let mut then = tokio::process::Command::new(program);
            then.args(arguments)
                .env("ANDON_URL", &url)
                .env("ANDON_USER", ADMIN)
                .env("ANDON_PASSWORD", &password);
            let status =
                then.kill_on_drop(true).status().await.with_context(|| format!("cannot start {program}"))?;
            ensure!(status.success(), "{program} ended with {status}");
        }
        if options.exit {
            return Ok(());
        }
        println!("dashboard: {url}  user {ADMIN}  password {password}\nThe fleet runs on; Ctrl-C ends it.");
        let line = &mut self.line;
        tokio::select! {
            () = interrupted() => Ok(()),
            died = async {
                loop {
                    if let Err(error) = line.observe() {
                        return error;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            } => Err(died),
        }
    }
}

fn write_json(report: &Report, path: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// An API word as the API spells it: `product_or_process`.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
