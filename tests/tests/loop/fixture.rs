//! What the tests stand on: one trained release for all of them, and a rig of a server and devices that can be broken.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use andon_protocol::{
    api::{Device, DeviceEvent, Rollout, RolloutState, Sample, WindowPoint},
    ids::{DeviceId, Digest, ReleaseId},
};
use andon_tests::{
    api::Api,
    clock::wait_for,
    dataset::{DataSet, TRAINING_SPLITS},
    fleet::{self, Agent, AgentSetup, Mqtt, Programs, Server, succeeded},
    proxy::Proxy,
};
use anyhow::{Context, Result, ensure};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

pub(crate) const MODEL: &str = "solar-cell";
/// For each wait: far above what a slow machine needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// Fleets take turns: each keeps two cores busy.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    andon_tests::install_tls_provider();
    TURN.lock().await
}

pub(crate) fn data() -> DataSet {
    DataSet::open(&DataSet::cache().unwrap()).unwrap()
}

pub(crate) fn release(version: u32) -> ReleaseId {
    ReleaseId::new(MODEL, version).unwrap()
}

/// A small data set, as `andon-trainer fit` and `POST /datasets` take it.
pub(crate) async fn small_dataset() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let make = async || {
        let folder = fresh("small-dataset");
        let data = data();
        let parts = TRAINING_SPLITS.iter().zip([64, 32, 16]).map(|(split, size)| data.part(split, size));
        data.write(&parts.flatten().collect::<Vec<_>>(), &folder).unwrap();
        folder
    };
    FOLDER.get_or_init(make).await
}

/// Release 1, trained once for all tests: `release/` and `float.onnx`. What it is worth does not matter here.
pub(crate) async fn first_release() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let make = async || {
        let folder = fresh("first-release");
        let weights = DataSet::cache().unwrap().join("efficientnet-lite0.pth");
        let mut fit = Command::new(Programs::find().unwrap().path("andon-trainer"));
        fit.arg("fit").arg("--images").arg(small_dataset().await).arg("--weights").arg(weights);
        fit.args(["--model", MODEL, "--quick", "--epochs", "1", "--agreement-min", "0.5", "--out"])
            .arg(&folder);
        let output = fit.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    };
    FOLDER.get_or_init(make).await
}

/// The first release under another version, below `folder`.
pub(crate) async fn another_release(folder: &Path, version: u32) -> PathBuf {
    let copy = folder.join(format!("release-{version}"));
    copy_tree(first_release().await, &copy).unwrap();
    let path = copy.join("release").join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["release"] = release(version).to_string().into();
    manifest["lineage"]["parent"] = release(1).to_string().into();
    fs::write(&path, serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
    // Another file, or the device would take the one that it has: `doc_string` (field 6) of the ONNX `ModelProto`.
    let mut model =
        fs::OpenOptions::new().append(true).open(copy.join("release").join("model.onnx")).unwrap();
    model.write_all(&[6 << 3 | 2, 1, b'0' + u8::try_from(version).unwrap()]).unwrap();
    copy
}

/// A folder for each class with `count` images in all.
pub(crate) fn image_folder(folder: &Path, count: usize) -> Result<()> {
    let data = data();
    for row in data.part("train", count) {
        let class = folder.join(&row.class);
        fs::create_dir_all(&class)?;
        fs::copy(data.images().join(&row.file), class.join(&row.file))?;
    }
    Ok(())
}

fn fresh(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    folder
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A server with release 1 and one enrolled device behind two proxies. Fields are dropped in order.
pub(crate) struct Rig {
    pub(crate) agent: Agent,
    pub(crate) mqtt: Proxy,
    pub(crate) updates: Proxy,
    pub(crate) api: Api,
    /// Taken while it is being restarted.
    pub(crate) server: Option<Server>,
    pub(crate) dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::in_folder(dir, Mqtt::Embedded).await
    }

    /// With a broker that the caller set up in `dir`.
    pub(crate) async fn in_folder(dir: tempfile::TempDir, mqtt: Mqtt) -> Self {
        let programs = Programs::find().unwrap();
        let server = Server::start(&programs, &dir.path().join("server"), mqtt.clone()).await.unwrap();
        let api = server.api().await.unwrap();
        fleet::publish(&api, first_release().await).await.unwrap();

        let data = data();
        let mut stream: Vec<String> = data.part("stream-1", 40).into_iter().map(|row| row.file).collect();
        stream.sort();
        let setup = AgentSetup {
            id: "line-1".parse().unwrap(),
            images: data.images(),
            stream,
            frames_per_second: 6.0,
            degrade: None,
            upload_bytes_per_hour: 500_000_000,
        };
        let agent = Agent::enrol(&programs, &dir.path().join("line-1"), &api, setup).await.unwrap();
        let broker = match &mqtt {
            Mqtt::Embedded => server.addresses().mqtt.clone(),
            Mqtt::External(lines) => {
                lines.split("mqtts://").nth(1).unwrap().split('"').next().unwrap().to_owned()
            }
        };
        let mqtt = Proxy::start(&broker).await.unwrap();
        let devices = server.addresses().devices.trim_start_matches("https://").to_owned();
        let updates = Proxy::start(&devices).await.unwrap();
        agent.reroute(mqtt.port(), updates.port()).unwrap();
        Self { agent, mqtt, updates, api, server: Some(server), dir }
    }

    /// The device is started, and runs release 1.
    pub(crate) async fn running() -> Self {
        Self::new().await.run_first().await
    }

    pub(crate) async fn run_first(mut self) -> Self {
        self.agent.start().unwrap();
        let first = fleet::roll_out(&self.api, &release(1), 1).await.unwrap();
        self.wait_until_runs(1).await;
        let over = async || succeeded(self.rollout(&first.id).await?);
        self.wait("the first rollout to be over", over).await;
        self
    }

    pub(crate) async fn wait<T>(&self, what: &str, look: impl AsyncFnMut() -> Result<Option<T>>) -> T {
        wait_for(what, LIMIT, look).await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Both the server and the device live.
    pub(crate) fn check(&self) -> Result<()> {
        self.agent.check()?;
        self.server.as_ref().map_or(Ok(()), |server| server.process().check())
    }

    pub(crate) async fn wait_until_runs(&self, version: u32) {
        let wanted = Some(release(version));
        let runs = async || {
            self.check()?;
            Ok((self.device().await?.running.map(|r| r.release) == wanted).then_some(()))
        };
        self.wait(&format!("the device to run release {version}"), runs).await;
    }

    pub(crate) async fn device(&self) -> Result<Device> {
        self.api.get(&format!("/devices/{}", self.agent.id())).await
    }

    pub(crate) async fn rollout(&self, id: &str) -> Result<Rollout> {
        self.api.get(&format!("/rollouts/{id}")).await
    }

    /// Aborts a rollout that is not over; one that is over stays as it is.
    pub(crate) async fn end_rollout(&self, rollout: &Rollout) {
        let over = [RolloutState::Succeeded, RolloutState::Halted, RolloutState::Aborted];
        if !over.contains(&rollout.state) {
            let path = format!("/rollouts/{}", rollout.id);
            let _: Rollout = self.api.act(&path, "abort").await.unwrap();
        }
    }

    /// Samples on the server, each whole and there once.
    pub(crate) async fn samples(&self) -> Result<BTreeSet<Digest>> {
        let samples: Vec<Sample> = self.api.list("/samples").await?;
        let ids: BTreeSet<Digest> = samples.iter().map(|s| s.id).collect();
        ensure!(ids.len() == samples.len(), "a sample is listed twice");
        Ok(ids)
    }

    /// Every sample on the server can be read and is what its digest says.
    pub(crate) async fn check_samples(&self) {
        for id in self.samples().await.unwrap() {
            let image = self.api.get_bytes(&format!("/samples/{id}/image")).await.unwrap();
            let image = image.with_context(|| format!("sample {id} has no image")).unwrap();
            assert_eq!(Digest::of(&image), id);
        }
    }

    pub(crate) async fn wait_until_stored(&self, wanted: &BTreeSet<Digest>) {
        let stored = async || {
            self.check()?;
            Ok(self.samples().await?.is_superset(wanted).then_some(()))
        };
        self.wait(&format!("{} samples to be stored", wanted.len()), stored).await;
    }

    /// Until the server has more samples than `count`.
    pub(crate) async fn wait_for_more_than(&self, count: usize) -> BTreeSet<Digest> {
        let more = async || {
            self.check()?;
            Ok(Some(self.samples().await?).filter(|s| s.len() > count))
        };
        self.wait(&format!("more than {count} samples"), more).await
    }

    /// Until more than `count` samples wait in the device's spool.
    pub(crate) async fn wait_for_spooled(&self, count: usize) -> BTreeSet<Digest> {
        let spooled = async || {
            self.agent.check()?;
            Ok(Some(self.agent.spooled()?).filter(|s| s.len() > count))
        };
        self.wait(&format!("more than {count} samples in the spool"), spooled).await
    }

    /// Records of each start of the device: none twice, none missing.
    pub(crate) async fn check_records(&self) {
        let device: &DeviceId = self.agent.id();
        let windows: Vec<WindowPoint> = self.api.list(&format!("/devices/{device}/telemetry")).await.unwrap();
        let events: Vec<DeviceEvent> = self.api.list(&format!("/devices/{device}/events")).await.unwrap();
        let all =
            windows.into_iter().map(|w| (w.boot, w.seq)).chain(events.into_iter().map(|e| (e.boot, e.seq)));
        let mut boots: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        all.for_each(|(boot, seq)| boots.entry(boot).or_default().push(seq));
        assert!(!boots.is_empty());
        for (boot, mut seqs) in boots {
            seqs.sort_unstable();
            let expected: Vec<u64> = (seqs[0]..seqs[0] + seqs.len() as u64).collect();
            assert_eq!(seqs, expected, "records of boot {boot}");
            assert!(seqs[0] <= 1, "the first record of boot {boot} is {}", seqs[0]);
        }
    }

    pub(crate) fn kill_server(&self) {
        self.server.as_ref().unwrap().kill().unwrap();
    }

    pub(crate) async fn restart_server(&mut self) {
        let server = self.server.take().unwrap().restart().await.unwrap();
        self.server = Some(server);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the device's log:\n{}", self.agent.log_tail());
            if let Some(server) = &self.server {
                eprintln!("the server's log:\n{}", server.process().log_tail());
            }
        }
    }
}
