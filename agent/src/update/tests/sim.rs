//! Power cuts by the thousand: the real updater on a simulated disk, against a simulated repository, with a fault
//! injected at every call in turn. Whatever happens, it must end where the scenario says, and once a release was
//! active, every start must find a verified one to run.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use andon_protocol::{
    Digest,
    tuf::{
        Header, MetaFile, RoleKeys, RoleName, Roles, Root, SigningKey, Snapshot, TargetFile, Targets,
        Timestamp, UtcTime, sign,
    },
};

use super::sim_disk::{Fault, Random, SimDisk};
use crate::update::{
    source::{Receive, SourceError},
    *,
};
use crate::{clock::ManualClock, files::Disk};

const NOW_MS: i64 = 1_795_000_000_000;
const DAY_MS: i64 = 86_400_000;
const YEAR_MS: i64 = 365 * DAY_MS;
const FOLDER: &str = "/data/updates";
/// Bytes handed over at once.
const PIECE: usize = 700;

/// A repository that behaves as it is told to.
#[derive(Clone)]
struct Repository {
    metadata: BTreeMap<String, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
    ignores_range: bool,
    /// Each request for a target breaks off after so many bytes.
    breaks_after: Option<usize>,
    /// Bytes appended to every target.
    surplus: usize,
    tampers: bool,
}

struct Signers {
    root: SigningKey,
    online: SigningKey,
    targets: SigningKey,
}

impl Signers {
    fn new(seed: u8) -> Self {
        let key = |n: u8| SigningKey::from_seed(&[seed + n; 32]);
        Self { root: key(0), online: key(1), targets: key(2) }
    }

    fn root(&self) -> Root {
        let role = |key: &SigningKey| RoleKeys::new(vec![key.id().to_owned()], 1);
        let keys = [&self.root, &self.online, &self.targets];
        Root {
            header: header(RoleName::Root, 1, NOW_MS + YEAR_MS),
            consistent_snapshot: true,
            keys: keys.iter().map(|key| (key.id().to_owned(), key.public())).collect(),
            roles: Roles {
                root: role(&self.root),
                timestamp: role(&self.online),
                snapshot: role(&self.online),
                targets: role(&self.targets),
            },
            other: BTreeMap::new(),
        }
    }
}

fn header(role: RoleName, version: u64, expires_ms: i64) -> Header {
    Header::new(role, version, UtcTime::from_unix_ms(expires_ms))
}

fn release(version: u32) -> ReleaseId {
    ReleaseId::new("cell", version).unwrap()
}

/// The files of a release; some are the same in all versions.
fn files_of(version: u32) -> BTreeMap<&'static str, Vec<u8>> {
    let model: Vec<u8> = (0..3000u32).map(|i| (i * 7 + version) as u8).collect();
    BTreeMap::from([
        ("model.onnx", model),
        ("manifest.json", format!("{{\"version\":{version}}}").into_bytes()),
        ("reference.cbor", vec![version as u8; 500]),
        ("golden/cases.json", b"[]".to_vec()),
        ("golden/one.png", vec![1; 900]),
        ("golden/empty.png", vec![]),
    ])
}

impl Repository {
    /// Metadata of this version with releases `1..=releases`.
    fn new(signers: &Signers, version: u64, releases: u32, expires_ms: i64) -> Self {
        let mut targets = BTreeMap::new();
        let mut files = BTreeMap::new();
        for number in 1..=releases {
            for (name, content) in files_of(number) {
                let digest = Digest::of(&content);
                let path = release(number).target_path(name);
                targets.insert(path.clone(), TargetFile::new(content.len() as u64, digest));
                let (folder, name) = path.rsplit_once('/').unwrap();
                files.insert(format!("{folder}/{digest}.{name}"), content);
            }
        }
        let keys = |key: &SigningKey| [key.clone()];
        let targets = Targets::new(header(RoleName::Targets, version, expires_ms), targets);
        let targets = sign(&targets, &keys(&signers.targets)).unwrap();
        let snapshot =
            Snapshot::new(header(RoleName::Snapshot, version, expires_ms), MetaFile::of(version, &targets));
        let snapshot = sign(&snapshot, &keys(&signers.online)).unwrap();
        let timestamp = Timestamp::new(
            header(RoleName::Timestamp, version, expires_ms),
            MetaFile::of(version, &snapshot),
        );
        let timestamp = sign(&timestamp, &keys(&signers.online)).unwrap();
        let metadata = BTreeMap::from([
            ("timestamp.json".to_owned(), timestamp),
            (format!("{version}.snapshot.json"), snapshot),
            (format!("{version}.targets.json"), targets),
        ]);
        Self { metadata, files, ignores_range: false, breaks_after: None, surplus: 0, tampers: false }
    }
}

/// The world around one device.
struct World {
    disk: Arc<SimDisk>,
    clock: Arc<ManualClock>,
    repository: Arc<Mutex<Repository>>,
    seen: Arc<Mutex<Seen>>,
    habits: Habits,
    root: Vec<u8>,
}

#[derive(Default)]
struct Seen {
    /// What frames are judged with.
    running: Option<u32>,
    announced: Vec<(u32, UpdatePhase)>,
    judged: u64,
    bytes_fetched: usize,
}

/// How releases behave on this device, by version.
#[derive(Clone, Default)]
struct Habits {
    fails_self_test: Option<u32>,
    kills_the_process: Option<u32>,
    is_unhealthy: Option<u32>,
}

struct SimSource {
    disk: Arc<SimDisk>,
    repository: Arc<Mutex<Repository>>,
    seen: Arc<Mutex<Seen>>,
}

impl Source for SimSource {
    fn metadata(&mut self, file: &str, _: usize) -> Result<Option<Vec<u8>>, SourceError> {
        self.disk.tick()?;
        Ok(self.repository.lock().unwrap().metadata.get(file).cloned())
    }

    fn target(&mut self, download: &str, offset: u64, to: &mut dyn Receive) -> Result<(), SourceError> {
        let repository = self.repository.lock().unwrap().clone();
        let Some(content) = repository.files.get(download) else {
            return Err(SourceError::Status { file: download.into(), status: 404 });
        };
        let mut content = content.clone();
        if repository.tampers && !content.is_empty() {
            content[0] ^= 1;
        }
        content.extend(std::iter::repeat_n(7, repository.surplus));
        let mut start = offset as usize;
        if repository.ignores_range && start > 0 {
            to.restart()?;
            start = 0;
        }
        let mut sent = 0;
        for piece in content[start.min(content.len())..].chunks(PIECE) {
            self.disk.tick()?;
            if repository.breaks_after.is_some_and(|limit| sent >= limit) {
                return Err(SourceError::Network { file: download.into(), reason: "cut".into() });
            }
            to.bytes(piece)?;
            sent += piece.len();
            self.seen.lock().unwrap().bytes_fetched += piece.len();
        }
        Ok(())
    }
}

struct SimStation {
    disk: Arc<SimDisk>,
    seen: Arc<Mutex<Seen>>,
    habits: Habits,
}

impl SimStation {
    /// What is loaded must be what was signed, whatever happened to the disk.
    fn read(&self, folder: &Path, release: &ReleaseId) -> Result<(), String> {
        for (name, expected) in files_of(release.version()) {
            let read = self.disk.read(&folder.join(name), 1 << 20).map_err(|e| e.to_string())?;
            assert!(read == expected, "{release}: {name} is not what was signed");
        }
        Ok(())
    }
}

impl Station for SimStation {
    fn self_test(&mut self, folder: &Path, release: &ReleaseId) -> Result<(), String> {
        self.read(folder, release)?;
        self.disk.tick().map_err(|e| e.to_string())?;
        if self.habits.fails_self_test == Some(release.version()) {
            Err("scores differ".into())
        } else {
            Ok(())
        }
    }

    fn load(&mut self, folder: &Path, release: &ReleaseId) -> Result<(), String> {
        self.read(folder, release)?;
        let mut seen = self.seen.lock().unwrap();
        (seen.running, seen.judged) = (Some(release.version()), 0);
        Ok(())
    }

    fn trial_health(&mut self) -> TrialHealth {
        let mut seen = self.seen.lock().unwrap();
        seen.judged += 5;
        if self.habits.kills_the_process == seen.running {
            self.disk.kill();
        }
        let faults = if self.habits.is_unhealthy == seen.running { seen.judged } else { 0 };
        TrialHealth { alive: true, installed: true, judged: seen.judged, faults }
    }

    fn announce(&mut self, release: &ReleaseId, phase: UpdatePhase, _: Option<String>) {
        self.seen.lock().unwrap().announced.push((release.version(), phase));
    }

    fn status(&mut self, _: Status) {}
}

fn desired(generation: u64, version: Option<u32>) -> Desired {
    Desired {
        generation,
        release: version.map(release),
        rollout: Some(format!("r{generation}")),
        trial_s: 10,
        ..Desired::default()
    }
}

impl World {
    fn new(releases: u32) -> Self {
        let signers = Signers::new(1);
        Self {
            disk: Arc::new(SimDisk::new()),
            clock: Arc::new(ManualClock::at(NOW_MS)),
            repository: Arc::new(Mutex::new(Repository::new(&signers, 1, releases, NOW_MS + DAY_MS))),
            seen: Arc::default(),
            habits: Habits::default(),
            root: sign(&signers.root(), std::slice::from_ref(&signers.root)).unwrap(),
        }
    }

    /// A device on which release 1 is active, and `3 - 1` more can be had.
    fn with_first() -> Self {
        let world = Self::new(3);
        assert_eq!(world.run(&[desired(1, Some(1))]), Some(1));
        world.seen.lock().unwrap().announced.clear();
        world
    }

    /// The same device in another universe.
    fn fork(&self) -> Self {
        Self {
            disk: Arc::new(self.disk.fork()),
            clock: Arc::new(ManualClock::at(NOW_MS)),
            repository: Arc::new(Mutex::new(self.repository.lock().unwrap().clone())),
            seen: Arc::default(),
            habits: self.habits.clone(),
            root: self.root.clone(),
        }
    }

    fn start(&self) -> io::Result<Updater> {
        self.seen.lock().unwrap().running = None;
        let disk: Arc<SimDisk> = self.disk.clone();
        Updater::start(
            Store::open(disk.clone(), Path::new(FOLDER))?,
            self.clock.clone(),
            Box::new(SimSource {
                disk: disk.clone(),
                repository: self.repository.clone(),
                seen: self.seen.clone(),
            }),
            Box::new(SimStation { disk, seen: self.seen.clone(), habits: self.habits.clone() }),
            Settings {
                rules: Rules { tries: 2 },
                trial: TrialRules { frames_min: 10, fault_share_max: 0.1 },
                release_bytes_max: 1 << 20,
                retry_min: Duration::from_secs(1),
                retry_max: Duration::from_secs(60),
            },
            self.root.clone(),
        )
    }

    /// Boots, delivers each desired state as the broker's retained message would be, and works until nothing is left
    /// to do or the device is dead. Returns what runs.
    fn run(&self, desired: &[Desired]) -> Option<u32> {
        let Ok(mut updater) = self.start() else { return None };
        desired.iter().cloned().for_each(|d| updater.desired(d));
        self.work(&mut updater);
        self.running()
    }

    fn work(&self, updater: &mut Updater) {
        for _ in 0..500 {
            if self.disk.is_dead() {
                return;
            }
            match updater.turn(&|| false) {
                Next::Now => {}
                Next::After(wait) => self.clock.advance(wait),
                Next::WhenAsked => return,
            }
        }
        panic!("the updater does not come to rest: {:?}", updater.state());
    }

    fn running(&self) -> Option<u32> {
        self.seen.lock().unwrap().running
    }

    fn state(&self) -> State {
        // A fault that is still to come must not strike the onlooker.
        let disk = Arc::new(self.disk.fork());
        Store::open(disk, Path::new(FOLDER)).unwrap().load_state().unwrap().0
    }

    fn outcome(&self) -> (UpdatePhase, String) {
        let outcome = self.state().outcome.unwrap();
        (outcome.phase, outcome.detail.unwrap_or_default())
    }

    fn release_folder(&self, slot: &Slot) -> PathBuf {
        Path::new(FOLDER).join("releases").join(slot.content.to_string())
    }

    fn state_copy(&self, newest: bool) -> PathBuf {
        let even = self.state().generation.is_multiple_of(2);
        Path::new(FOLDER).join(if even == newest { "state.a" } else { "state.b" })
    }
}

/// Faults 1-3, 6-12, 16, 18, 19, 22, 25: whatever happens at whatever call, the device never starts without a
/// verified release, and the next undisturbed run ends on release 2 with release 1 kept.
#[test]
fn a_fault_at_any_call_of_an_update_never_costs_the_release_that_runs() {
    let base = World::with_first();
    let rehearsal = base.fork();
    assert_eq!(rehearsal.run(&[desired(2, Some(2))]), Some(2));
    let calls = rehearsal.disk.calls();
    assert!(calls > 100, "{calls} calls");
    let faults = [
        Fault::Kill,
        Fault::Cut,
        Fault::Error(io::ErrorKind::StorageFull),
        Fault::Error(io::ErrorKind::ReadOnlyFilesystem),
    ];
    for call in 1..=calls {
        for fault in faults {
            let seeds = if fault == Fault::Cut { 4 } else { 1 };
            for seed in 0..seeds {
                let world = base.fork();
                world.disk.inject(call, fault);
                check_convergence(
                    &world,
                    seed + call * 31,
                    &format!("{fault:?} at call {call}, seed {seed}"),
                );
            }
        }
    }
}

/// Two faults, anywhere, of any kind.
#[test]
fn two_faults_are_no_worse_than_one() {
    let base = World::with_first();
    for seed in 0..600 {
        let mut random = Random(seed);
        let world = base.fork();
        for _ in 0..2 {
            let kinds = [Fault::Kill, Fault::Cut, Fault::Error(io::ErrorKind::StorageFull)];
            let kind = kinds[random.below(3) as usize];
            world.disk.inject(1 + random.below(300), kind);
        }
        check_convergence(&world, seed, &format!("seed {seed}"));
    }
}

fn check_convergence(world: &World, seed: u64, what: &str) {
    let mut generation = 2;
    for boot in 0..10 {
        let running = world.run(&[desired(generation, Some(2))]);
        if !world.disk.is_dead() {
            match running {
                // The folder could not be read; the service manager starts the agent again.
                None => continue,
                // A trial whose tries the faults used up is a roll-back, and legal; a new rollout gets through.
                Some(1) => {
                    generation += 1;
                    continue;
                }
                _ => {}
            }
            let state = world.state();
            let version = |slot: Option<&Slot>| slot.map(|s| s.release.version());
            let slots = (version(state.active.as_ref()), version(state.previous.as_ref()));
            assert_eq!((running, slots), (Some(2), (Some(2), Some(1))), "{what}: {state:?}");
            assert!(state.job.is_none(), "{what}");
            assert_tidy(world, &state, what);
            return;
        }
        world.disk.reboot(seed + boot);
        // After an error of reading the folder the service manager starts the agent again.
        let booted = world.start().or_else(|_| world.start());
        let dead = world.disk.is_dead();
        assert!(dead || booted.is_ok(), "{what}: {:?}", booted.err());
        assert!(dead || matches!(world.running(), Some(1 | 2)), "{what}: nothing runs after boot {boot}");
        if dead {
            world.disk.reboot(seed + boot + 100);
        }
    }
    panic!("{what}: ten boots did not do");
}

fn assert_tidy(world: &World, state: &State, what: &str) {
    let disk = world.disk.fork();
    let list = |name: &str| disk.list(&Path::new(FOLDER).join(name)).unwrap();
    let mut kept: Vec<_> = state.kept().iter().map(|slot| slot.content.to_string()).collect();
    let mut releases = list("releases");
    kept.sort();
    releases.sort();
    assert_eq!(releases, kept, "{what}");
    assert_eq!(list("staging"), Vec::<String>::new(), "{what}");
}

/// Faults 28, 29: a new root takes the online keys away from a thief who had raised all versions, and a fault
/// strikes anywhere in the recovery.
#[test]
fn a_change_of_keys_survives_a_fault_at_any_call() {
    let (old, new) = (Signers::new(1), Signers { online: Signers::new(100).online, ..Signers::new(1) });
    let base = World::new(3);
    *base.repository.lock().unwrap() = Repository::new(&old, 1000, 3, NOW_MS + DAY_MS);
    assert_eq!(base.run(&[desired(1, Some(1))]), Some(1));
    let mut root = new.root();
    root.header.version = 2;
    let mut honest = Repository::new(&new, 7, 3, NOW_MS + DAY_MS);
    honest.metadata.insert("2.root.json".into(), sign(&root, std::slice::from_ref(&old.root)).unwrap());
    *base.repository.lock().unwrap() = honest;
    let rehearsal = base.fork();
    assert_eq!(rehearsal.run(&[desired(2, Some(2))]), Some(2));
    // The metadata is refreshed first; what comes after it is the same as without a change of keys.
    for call in 1..=rehearsal.disk.calls().min(120) {
        for (seed, fault) in [(1, Fault::Kill), (2, Fault::Cut), (3, Fault::Cut), (4, Fault::Cut)] {
            let world = base.fork();
            world.disk.inject(call, fault);
            check_convergence(&world, seed + call, &format!("{fault:?} at call {call}, seed {seed}"));
        }
    }
}

/// Faults 20, 21: the release takes the process with it, at every start.
#[test]
fn a_crash_loop_rolls_back_at_start_up_and_is_not_tried_again() {
    let mut world = World::with_first();
    world.habits.kills_the_process = Some(2);
    let mut deaths = 0;
    while world.run(&[desired(2, Some(2))]) != Some(1) || world.disk.is_dead() {
        deaths += 1;
        assert!(deaths <= 2, "as many starts as there are tries");
        world.disk.reboot(deaths);
    }
    assert_eq!(deaths, 2);
    let (phase, detail) = world.outcome();
    assert!(phase == UpdatePhase::RolledBack && detail.contains("tries"), "{detail}");
    let fetched = world.seen.lock().unwrap().bytes_fetched;
    assert_eq!(world.run(&[desired(2, Some(2))]), Some(1));
    assert_eq!(world.seen.lock().unwrap().bytes_fetched, fetched, "the same rollout is not tried again");
}

/// Faults 23, 24: a cut at any call of a roll-back, and a release before that is damaged when it is needed.
#[test]
fn rolling_back_survives_what_an_update_survives() {
    let mut base = World::with_first();
    base.habits.is_unhealthy = Some(2);
    let rehearsal = base.fork();
    assert_eq!(rehearsal.run(&[desired(2, Some(2))]), Some(1));
    assert_eq!(rehearsal.outcome().0, UpdatePhase::RolledBack);
    for call in 1..=rehearsal.disk.calls() {
        for (seed, fault) in [(1, Fault::Kill), (2, Fault::Cut), (3, Fault::Cut)] {
            let world = base.fork();
            world.disk.inject(call, fault);
            let mut running = world.run(&[desired(2, Some(2))]);
            if world.disk.is_dead() {
                world.disk.reboot(seed + call);
                running = world.run(&[desired(2, Some(2))]);
            }
            assert_eq!(running, Some(1), "{fault:?} at call {call}");
            assert_eq!(world.state().active.unwrap().release.version(), 1);
        }
    }
    // The release to go back to is damaged meanwhile: it is fetched again, and proves itself again.
    let world = base.fork();
    let mut updater = world.start().unwrap();
    updater.desired(desired(2, Some(2)));
    while world.running() != Some(2) {
        if let Next::After(wait) = updater.turn(&|| false) {
            world.clock.advance(wait);
        }
    }
    world.disk.flip_bit(&world.release_folder(&updater.state().active.clone().unwrap()).join("model.onnx"));
    world.work(&mut updater);
    assert_eq!(world.running(), Some(1));
    assert_eq!(world.state().active.unwrap().release.version(), 1);
}

/// Fault 13: bits flip after a release was verified.
#[test]
fn a_release_that_rots_is_never_loaded() {
    let world = World::with_first();
    let mut updater = world.start().unwrap();
    updater.desired(desired(2, Some(2)));
    while !matches!(&updater.state().job, Some(Job { stage: Stage::SelfTest { .. }, .. })) {
        updater.turn(&|| false);
    }
    let Some(Job { stage: Stage::SelfTest { slot }, .. }) = updater.state().job.clone() else {
        unreachable!()
    };
    world.disk.flip_bit(&world.release_folder(&slot).join("golden/one.png"));
    world.work(&mut updater);
    assert_eq!((world.running(), world.outcome().0), (Some(1), UpdatePhase::Failed));
    // The active one rots, with one before it to fall back to.
    let world = World::with_first();
    assert_eq!(world.run(&[desired(2, Some(2))]), Some(2));
    let active = world.state().active.unwrap();
    world.disk.flip_bit(&world.release_folder(&active).join("model.onnx"));
    assert_eq!(world.run(&[]), Some(1));
    // And the server's wish brings it back.
    assert_eq!(world.run(&[desired(3, Some(2))]), Some(2));
}

/// Faults 14, 15: copies of the state that are torn, empty, or old.
#[test]
fn a_torn_copy_of_the_state_costs_one_step_at_most() {
    for length in [0, 1, 20, 100] {
        let world = World::with_first();
        assert_eq!(world.run(&[desired(2, Some(2))]), Some(2));
        world.disk.truncate(&world.state_copy(true), length);
        // The step that is lost is the commit: the trial is repeated, with what is on disk.
        assert_eq!(world.run(&[desired(2, Some(2))]), Some(2), "{length}");
        assert_eq!(world.state().active.unwrap().release.version(), 2);
        // The older copy is no loss at all, and never wins.
        world.disk.truncate(&world.state_copy(false), length);
        assert_eq!(world.run(&[]), Some(2), "{length}");
        // Both gone: nothing is trusted; what the server wants is proven again.
        world.disk.truncate(&world.state_copy(true), length);
        world.disk.truncate(&world.state_copy(false), length);
        assert_eq!(world.run(&[desired(2, Some(2))]), Some(2), "{length}");
    }
}

/// Fault 26.
#[test]
fn power_cycles_with_no_trial_write_nothing() {
    let world = World::with_first();
    let generation = world.state().generation;
    for _ in 0..50 {
        assert_eq!(world.run(&[desired(1, Some(1))]), Some(1));
    }
    assert_eq!(world.state().generation, generation);
}

/// Fault 27: a clock that was never set is no reason to refuse; one that is years ahead is, and forgets nothing.
#[test]
fn a_wrong_clock_never_costs_the_release_that_runs() {
    let world = World::with_first();
    world.clock.set_utc_ms(0);
    assert_eq!(world.run(&[desired(2, Some(2))]), Some(2));
    world.clock.set_utc_ms(NOW_MS + 10 * YEAR_MS);
    assert_eq!(world.run(&[desired(3, Some(3))]), Some(2));
    assert!(world.outcome().1.contains("expired"), "{:?}", world.outcome());
    world.clock.set_utc_ms(NOW_MS);
    assert_eq!(world.run(&[desired(4, Some(3))]), Some(3));
}

/// Faults 4, 5, 31 and a link that breaks: what the server does to a download.
#[test]
fn downloads_resume_and_are_bounded() {
    let total: usize = files_of(2).values().map(Vec::len).sum();
    let shared: usize =
        ["golden/cases.json", "golden/one.png"].iter().map(|name| files_of(2)[name].len()).sum();
    for ignores_range in [false, true] {
        let world = World::with_first();
        world.seen.lock().unwrap().bytes_fetched = 0;
        {
            let mut repository = world.repository.lock().unwrap();
            (repository.ignores_range, repository.breaks_after) = (ignores_range, Some(2 * PIECE));
        }
        if ignores_range {
            // It can't ever get the model so; once the link holds, it does.
            let mut updater = world.start().unwrap();
            updater.desired(desired(2, Some(2)));
            for _ in 0..20 {
                if let Next::After(wait) = updater.turn(&|| false) {
                    world.clock.advance(wait);
                }
            }
            assert_eq!(world.running(), Some(1));
            world.repository.lock().unwrap().breaks_after = None;
            world.work(&mut updater);
            assert_eq!(world.running(), Some(2));
        } else {
            assert_eq!(world.run(&[desired(2, Some(2))]), Some(2));
            let fetched = world.seen.lock().unwrap().bytes_fetched;
            assert_eq!(fetched, total - shared, "no byte twice, and none that is on disk already");
        }
    }
    for (what, change) in [
        ("longer than signed", (|r: &mut Repository| r.surplus = 5000) as fn(&mut Repository)),
        ("tampered with", |r| r.tampers = true),
        ("not there", |r| r.files.clear()),
    ] {
        let world = World::with_first();
        change(&mut world.repository.lock().unwrap());
        assert_eq!(world.run(&[desired(2, Some(2))]), Some(1), "{what}");
        assert_eq!(world.outcome().0, UpdatePhase::Failed, "{what}");
        assert_tidy(&world, &world.state(), what);
    }
}

/// Fault 6: a disk without room is not filled further, and the update goes on when there is room.
#[test]
fn a_full_disk_is_waited_for() {
    let world = World::with_first();
    world.disk.set_free_bytes(1000);
    let mut updater = world.start().unwrap();
    updater.desired(desired(2, Some(2)));
    world.seen.lock().unwrap().bytes_fetched = 0;
    for _ in 0..20 {
        if let Next::After(wait) = updater.turn(&|| false) {
            world.clock.advance(wait);
        }
    }
    assert_eq!((world.running(), world.seen.lock().unwrap().bytes_fetched), (Some(1), 0));
    world.disk.set_free_bytes(1 << 30);
    world.work(&mut updater);
    assert_eq!(world.running(), Some(2));
}

/// Faults 33, 38: an abort, or another release, after every turn.
#[test]
fn an_abort_or_another_rollout_is_obeyed_at_every_turn() {
    for (wanted, expected) in [(None, 1), (Some(1), 1), (Some(3), 3)] {
        for turns in 0..40 {
            let world = World::with_first();
            let mut updater = world.start().unwrap();
            updater.desired(desired(2, Some(2)));
            for _ in 0..turns {
                if let Next::After(wait) = updater.turn(&|| false) {
                    world.clock.advance(wait);
                }
            }
            let committed = updater.state().active.as_ref().unwrap().release.version() == 2;
            updater.desired(desired(3, wanted));
            world.work(&mut updater);
            let expected = if committed && wanted.is_none() { 2 } else { expected };
            assert_eq!(world.running(), Some(expected), "{wanted:?} after {turns} turns");
            assert_eq!(world.state().active.unwrap().release.version(), expected);
            assert!(world.state().bad.is_empty());
        }
    }
}

/// A fetch that is interrupted gives way at the next piece.
#[test]
fn a_download_gives_way_to_what_comes_in() {
    let world = World::with_first();
    let mut updater = world.start().unwrap();
    updater.desired(desired(2, Some(2)));
    world.seen.lock().unwrap().bytes_fetched = 0;
    assert_eq!(updater.turn(&|| true), Next::Now);
    assert_eq!(world.seen.lock().unwrap().bytes_fetched, 0);
    updater.desired(desired(3, Some(3)));
    world.work(&mut updater);
    assert_eq!(world.running(), Some(3));
}

/// Fault 32: what is announced is durable already, and a report sent twice is the same report.
#[test]
fn announcements_follow_the_durable_state() {
    let world = World::with_first();
    world.run(&[desired(2, Some(2))]);
    let announced = world.seen.lock().unwrap().announced.clone();
    let phases =
        [UpdatePhase::Downloading, UpdatePhase::SelfTest, UpdatePhase::Trial, UpdatePhase::Committed];
    assert_eq!(announced, phases.map(|phase| (2, phase)));
    world.run(&[desired(2, Some(2))]);
    assert_eq!(world.seen.lock().unwrap().announced.len(), 4, "nothing new, nothing said");
}

/// Releases that metadata does not vouch for.
#[test]
fn what_is_not_signed_fresh_and_newer_is_refused() {
    let ours = Signers::new(1);
    let stranger = Signers { targets: Signers::new(100).targets, ..Signers::new(1) };
    let thief = Signers { online: Signers::new(100).online, ..Signers::new(1) };
    let later = NOW_MS + DAY_MS;
    for (what, repository, expected) in [
        ("targets signed by a wrong key", Repository::new(&stranger, 6, 3, later), "targets"),
        ("timestamp signed by a wrong key", Repository::new(&thief, 6, 3, later), "timestamp"),
        ("expired metadata", Repository::new(&ours, 6, 3, NOW_MS - 1), "expired"),
        ("metadata rolled back", Repository::new(&ours, 1, 3, later), "older"),
        ("a release that is not listed", Repository::new(&ours, 6, 1, later), "cell/2"),
    ] {
        let world = World::with_first();
        // Version 5 was seen.
        *world.repository.lock().unwrap() = Repository::new(&ours, 5, 3, later);
        assert_eq!(world.run(&[desired(2, Some(3))]), Some(3));
        *world.repository.lock().unwrap() = repository;
        assert_eq!(world.run(&[desired(3, Some(2))]), Some(3), "{what}");
        let (phase, detail) = world.outcome();
        assert!(phase == UpdatePhase::Failed && detail.contains(expected), "{what}: {detail}");
        // Nothing of it was believed: the honest repository still works.
        *world.repository.lock().unwrap() = Repository::new(&ours, 7, 3, later);
        assert_eq!(world.run(&[desired(4, Some(2))]), Some(2), "{what}");
    }
}
