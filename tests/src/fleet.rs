//! The real fleet server and real agents as child processes, on ports that the system gives, in one folder.
//!
//! A server keeps its ports when it is started again, as a machine keeps its address: the devices were told once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use andon_protocol::{
    api::{Device, Enrolment, NewEnrolment, NewRollout, Release, Rollout, RolloutState, Wave},
    ids::{DeviceId, Digest, ReleaseId},
};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    api::Api,
    clock::wait_for,
    dataset,
    process::Process,
    scoreboard::{Tail, Verdict},
};

pub const ADMIN: &str = "admin";
/// A start includes making keys and certificates, or reading a database.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Where the programs are: beside the one that runs.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    pub fn find() -> Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        // Test binaries lie in `deps`, one below the others.
        let folders = own.ancestors().skip(1).take(2);
        let found = folders.map(Path::to_owned).map(Self).find(|p| p.path("andon-agent").is_file());
        let programs =
            found.context("no andon-agent beside this program; `cargo build --workspace` makes it")?;
        for name in ["andon-fleet-server", "andon-trainer"] {
            ensure!(
                programs.path(name).is_file(),
                "no {name} beside andon-agent; `cargo build --workspace` makes it"
            );
        }
        Ok(programs)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// How the server gets its broker.
#[derive(Debug, Clone, Default)]
pub enum Mqtt {
    #[default]
    Embedded,
    /// Lines for the `[mqtt]` table.
    External(String),
}

/// `DATA_DIR/addresses.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Addresses {
    pub people: String,
    pub devices: String,
    pub mqtt: String,
}

pub struct Server {
    programs: Programs,
    folder: PathBuf,
    password: String,
    mqtt: Mqtt,
    addresses: Addresses,
    process: Process,
}

impl Server {
    /// Starts a new server in `folder` and waits until it answers.
    pub async fn start(programs: &Programs, folder: &Path, mqtt: Mqtt) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let password = hex::encode(rand::random::<[u8; 12]>());
        let anywhere = |scheme: &str| format!("{scheme}127.0.0.1:0");
        let free =
            Addresses { people: anywhere("http://"), devices: anywhere("https://"), mqtt: anywhere("") };
        let (process, addresses) = launch(programs, folder, &password, &mqtt, &free).await?;
        Ok(Self { programs: programs.clone(), folder: folder.to_owned(), password, mqtt, addresses, process })
    }

    /// Starts it again where it was, after [`kill`](Self::kill) or while it runs (then it is asked to end first).
    pub async fn restart(self) -> Result<Self> {
        let Self { programs, folder, password, mqtt, addresses, process } = self;
        process.stop(STOP_PATIENCE);
        let (process, addresses) = launch(&programs, &folder, &password, &mqtt, &addresses).await?;
        Ok(Self { programs, folder, password, mqtt, addresses, process })
    }

    /// `kill -9`.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    pub async fn api(&self) -> Result<Api> {
        Api::sign_in(&self.addresses.people, ADMIN, &self.password).await
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn stop(self) -> bool {
        self.process.stop(STOP_PATIENCE)
    }
}

async fn launch(
    programs: &Programs,
    folder: &Path,
    password: &str,
    mqtt: &Mqtt,
    addresses: &Addresses,
) -> Result<(Process, Addresses)> {
    let data = folder.join("data");
    let written = data.join("addresses.json");
    fs::remove_file(&written).ok();
    let bare = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
    let mqtt = match mqtt {
        Mqtt::Embedded => format!("broker = \"embedded\"\nlisten = \"{}\"\n", bare(&addresses.mqtt)),
        Mqtt::External(lines) => lines.clone(),
    };
    let config = format!(
        "data_dir = {data:?}\npublic_host = \"127.0.0.1\"\n\n[people]\nlisten = \"{}\"\n\n[devices]\nlisten = \"{}\"\n\n\
         [mqtt]\n{mqtt}\n[database]\nurl = \"sqlite\"\n\n[training]\nworkers = 1\ntrainer = {:?}\n",
        bare(&addresses.people),
        bare(&addresses.devices),
        programs.path("andon-trainer"),
    );
    let path = folder.join("server.toml");
    fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;

    let mut command = Command::new(programs.path("andon-fleet-server"));
    command.arg("run").arg("--config").arg(&path).env("ANDON_ADMIN_PASSWORD", password);
    let process = Process::start("the fleet server", &mut command, &folder.join("server.log"))?;
    let ready = async || {
        process.check()?;
        // Renamed into place, so it is whole when it is there.
        Ok(fs::read(&written).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    };
    let addresses = wait_for("the fleet server to be ready", START_LIMIT, ready).await?;
    Ok((process, addresses))
}

/// What an ageing line does to a camera's image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Degrade {
    Gamma(f32),
    Defocus(f32),
}

impl Degrade {
    pub fn name(self) -> &'static str {
        match self {
            Degrade::Gamma(_) => "gamma",
            Degrade::Defocus(_) => "defocus",
        }
    }

    fn value(self) -> f32 {
        match self {
            Degrade::Gamma(value) | Degrade::Defocus(value) => value,
        }
    }
}

/// A device as it is set up.
#[derive(Debug, Clone)]
pub struct AgentSetup {
    pub id: DeviceId,
    pub images: PathBuf,
    /// Names of the images that its camera shows, over and over.
    pub stream: Vec<String>,
    pub frames_per_second: f32,
    /// From that frame on.
    pub degrade: Option<(Degrade, u64)>,
    pub upload_bytes_per_hour: u64,
}

pub struct Agent {
    programs: Programs,
    setup: AgentSetup,
    folder: PathBuf,
    tail: Tail,
    process: Option<Process>,
    /// Of its environment.
    variables: BTreeMap<String, String>,
}

impl Agent {
    /// Gets a one-time token from the server, enrols with it, and does not start yet.
    pub async fn enrol(programs: &Programs, folder: &Path, api: &Api, setup: AgentSetup) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let wanted =
            NewEnrolment { device: setup.id.clone(), site: "demo".into(), line: setup.id.to_string() };
        let enrolment: Enrolment = api.post("/enrolments", &wanted).await?;
        let mut command = Command::new(programs.path("andon-agent"));
        command.args(["enrol", "--url", &enrolment.url, "--token", &enrolment.token, "--data-dir"]);
        let output = command.arg(folder.join("data")).output().context("cannot start andon-agent")?;
        if !output.status.success() {
            bail!("{} cannot enrol: {}", setup.id, String::from_utf8_lossy(&output.stderr).trim());
        }
        let tail = Tail::new(&folder.join("verdicts.jsonl"));
        let (programs, folder) = (programs.clone(), folder.to_owned());
        let agent = Self { programs, setup, folder, tail, process: None, variables: BTreeMap::new() };
        agent.write_config()?;
        Ok(agent)
    }

    fn write_config(&self) -> Result<()> {
        let stream = self.folder.join("stream.txt");
        fs::write(&stream, self.setup.stream.join("\n") + "\n")?;
        let mut config = format!(
            "data_dir = {:?}\n\n[camera]\nkind = \"replay\"\nfolder = {:?}\nonly = {stream:?}\nframes_per_second = {:?}\n",
            self.data_dir(),
            self.setup.images,
            self.setup.frames_per_second,
        );
        if let Some((degrade, from_frame)) = self.setup.degrade {
            config += &format!(
                "\n[camera.degrade]\nkind = \"{}\"\nvalue = {:?}\nfrom_frame = {from_frame}\n",
                degrade.name(),
                degrade.value()
            );
        }
        config += &format!(
            "\n[drift]\nfalse_alarm_frames = 20000\n\n[upload]\nbytes_per_hour = {}\nbytes_per_day = {}\n\n\
             [spool]\nbytes_max = {}\n\n[output]\nverdicts = {:?}\n\n[local]\nlisten = \"127.0.0.1:0\"\n\n\
             [telemetry]\nwindow_s = 5\n\n[uplink]\nresend_s = 10.0\nbackoff_max_s = 3.0\n\n\
             [update]\nretry_max_s = 3.0\n",
            self.setup.upload_bytes_per_hour,
            self.setup.upload_bytes_per_hour * 24,
            256 * 1024 * 1024,
            self.folder.join("verdicts.jsonl"),
        );
        let path = self.folder.join("agent.toml");
        fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Puts something between the device and the fleet: its MQTT and its updates go to these local ports from the next
    /// start on.
    pub fn reroute(&self, mqtt_port: u16, updates_port: u16) -> Result<()> {
        let path = self.data_dir().join("identity.json");
        let mut identity: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        let enrolment = identity.get_mut("enrolment").context("identity.json has no enrolment")?;
        let url = enrolment["updates_url"].as_str().context("identity.json has no updates_url")?;
        let (start, rest) = url.rsplit_once(':').context("updates_url has no port")?;
        let path_of_url = rest.find('/').map_or("", |i| &rest[i..]);
        enrolment["updates_url"] = format!("{start}:{updates_port}{path_of_url}").into();
        enrolment["mqtt_port"] = mqtt_port.into();
        fs::write(&path, serde_json::to_vec_pretty(&identity)?)?;
        Ok(())
    }

    /// Digests of the samples that lie in its spool.
    pub fn spooled(&self) -> Result<BTreeSet<Digest>> {
        let folder = self.data_dir().join("spool").join("samples");
        let Ok(list) = fs::read_dir(&folder) else { return Ok(BTreeSet::new()) };
        let mut digests = BTreeSet::new();
        for entry in list {
            let name = entry?.file_name();
            let digest = name.to_str().and_then(|n| n.strip_suffix(".smp"));
            digests.extend(digest.and_then(|d| d.parse::<Digest>().ok()));
        }
        Ok(digests)
    }

    /// Of the agent's environment, from the next start on; all else is inherited.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    pub fn start(&mut self) -> Result<()> {
        let mut command = Command::new(self.programs.path("andon-agent"));
        command.arg("run").arg("--config").arg(self.folder.join("agent.toml")).envs(&self.variables);
        let log = self.folder.join("agent.log");
        self.process = Some(Process::start(&format!("agent {}", self.setup.id), &mut command, &log)?);
        Ok(())
    }

    /// `kill -9`, and away with what is left of it.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |process| process.kill())
    }

    pub fn log_tail(&self) -> String {
        self.process.as_ref().map_or_else(String::new, Process::log_tail)
    }

    /// An error if it ended by itself.
    pub fn check(&self) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), Process::check)
    }

    pub fn stop(&mut self) -> bool {
        self.process.take().is_none_or(|process| process.stop(STOP_PATIENCE))
    }

    pub fn id(&self) -> &DeviceId {
        &self.setup.id
    }

    pub fn setup(&self) -> &AgentSetup {
        &self.setup
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Verdicts written since the last call.
    pub fn new_verdicts(&mut self) -> Result<Vec<Verdict>> {
        self.tail.read().with_context(|| format!("verdicts of {}", self.setup.id))
    }
}

/// Publishes what `andon-trainer fit` or a training run left in `folder`: `release/…` and `float.onnx`.
pub async fn publish(api: &Api, folder: &Path) -> Result<Release> {
    let tar = dataset::tar(&[folder.join("release"), folder.join("float.onnx")])?;
    api.post_tar("/releases", tar).await
}

/// Starts a rollout to everybody at once.
pub async fn roll_out(api: &Api, release: &ReleaseId, trial_s: u32) -> Result<Rollout> {
    let waves = Some(vec![Wave { percent: 100, soak_s: 0 }]);
    api.post("/rollouts", &NewRollout { release: release.clone(), waves, trial_s: Some(trial_s) }).await
}

/// The rollout, if it is over and went well; an error with its last decision if it went otherwise.
pub fn succeeded(rollout: Rollout) -> Result<Option<Rollout>> {
    match rollout.state {
        RolloutState::Succeeded => Ok(Some(rollout)),
        RolloutState::Running => Ok(None),
        RolloutState::Paused | RolloutState::Halted | RolloutState::Aborted => {
            let last = rollout.decisions.last().map(|d| format!("{}: {}", d.what, d.why)).unwrap_or_default();
            bail!("the rollout of {} is {:?} ({last})", rollout.release, rollout.state)
        }
    }
}

/// By device, the release that it says it runs.
pub async fn running(api: &Api) -> Result<BTreeMap<DeviceId, Option<ReleaseId>>> {
    let devices: Vec<Device> = api.list("/devices").await?;
    Ok(devices.into_iter().map(|d| (d.id, d.running.map(|r| r.release))).collect())
}

/// By what the devices say that they run on, and why: the devices.
pub async fn engines(api: &Api) -> Result<BTreeMap<String, Vec<DeviceId>>> {
    let devices: Vec<Device> = api.list("/devices").await?;
    let mut engines: BTreeMap<String, Vec<DeviceId>> = BTreeMap::new();
    for (id, running) in devices.into_iter().filter_map(|d| Some((d.id, d.running?))) {
        engines.entry(running.engine).or_default().push(id);
    }
    Ok(engines)
}
