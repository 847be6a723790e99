//! An engine that is not trusted, with one that is beside it: [`Guard`].
//!
//! Drivers lose devices, hang, and compute nonsense. Whatever the first engine does, each run has a result: its own, or
//! the second engine's for the same inputs. After a failure the first engine is made anew, later each time; after a few
//! without a good stretch between them it is blocked for good. The first run of an engine that was made, and one in so many
//! after it, is computed by both and compared. No driver is waited for longer than the policy says, not even while an engine
//! is made.
//! Everything that happens is told ([`GuardEvent`]); the clock is given, so that tests need not wait.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Engine, NEAR, agree, guarded};
use crate::tensor::{Data, Tensor};

/// Time since some fixed moment: the runtime reads no clock itself.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    pub fn new(elapsed: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(elapsed))
    }

    pub(crate) fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The same clock, not the same time.
impl PartialEq for Clock {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Clock {}

/// Says that something else keeps the engine's device busy for a while.
#[derive(Debug, Clone, Default)]
pub struct Busy(Arc<AtomicBool>);

impl Busy {
    /// Until told otherwise.
    pub fn set(&self, is_busy: bool) {
        self.0.store(is_busy, Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// The same one, whatever it says.
impl PartialEq for Busy {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Busy {}

/// Makes the engine that is not trusted.
pub(crate) type Make = Box<dyn FnMut() -> Result<Box<dyn Engine>, String> + Send>;

/// How far the trust goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardPolicy {
    /// One run in so many is compared, beginning with the first, and the first of each shape and type of inputs; and each that
    /// gives what is no number or has another shape than before. 0 compares none.
    pub compare_every: u64,
    /// A run may take so many times what is usual, which is what it took when it was measured, or up to four times that
    /// where it has come to take longer.
    pub patience: u32,
    pub tuned: Option<Duration>,
    /// But no run is given up before this,
    pub least_wait: Duration,
    /// and each after this, so that there is time left for the other engine.
    pub most_wait: Duration,
    /// To make the engine may take this long, and so may the very first run: drivers compile late. Later runs find an
    /// engine that was tried; the second, and the first of each shape and type of inputs, are waited for as long as there is
    /// time.
    pub first_wait: Duration,
    /// Wait before the engine is made anew, doubled with each failure in a row up to the most.
    pub first_retry: Duration,
    pub last_retry: Duration,
    /// Failures with fewer good runs than this between them count together,
    pub good_runs: u64,
    /// and so many of them block the engine.
    pub failures_max: u32,
    /// While it is set, runs are waited for as long as there is time.
    pub busy: Busy,
}

impl Default for GuardPolicy {
    fn default() -> Self {
        Self {
            compare_every: 1_000,
            patience: 5,
            tuned: None,
            least_wait: Duration::from_millis(50),
            most_wait: Duration::MAX,
            first_wait: Duration::from_secs(30),
            first_retry: Duration::from_secs(1),
            last_retry: Duration::from_secs(300),
            good_runs: 10_000,
            failures_max: 3,
            busy: Busy::default(),
        }
    }
}

/// What happened to an engine that is not trusted; as text it is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardEvent {
    /// It could not be made.
    Unavailable { reason: String },
    /// It ended with an error, did not end in time, or gave something else than the engine that is trusted. The run was
    /// computed by that one.
    Failed { failure: Failure, reason: String },
    /// It is there again.
    Restored,
    /// It is not used any more; the last failure's reason.
    Blocked { failures: u32, reason: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Error,
    Late,
    Mismatch,
}

impl fmt::Display for GuardEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { reason } => write!(f, "the GPU cannot be used: {reason}"),
            Self::Failed { failure: Failure::Error, reason } => write!(f, "the GPU failed: {reason}"),
            Self::Failed { failure: Failure::Late, reason } => write!(f, "the GPU is late: {reason}"),
            Self::Failed { failure: Failure::Mismatch, reason } => {
                write!(f, "the GPU computes wrong: {reason}")
            }
            Self::Restored => f.write_str("the GPU is used again"),
            Self::Blocked { failures, .. } => {
                write!(f, "the GPU is not used any more after {failures} failures in a row")
            }
        }
    }
}

/// How many times as long as when it was measured an engine may come to take.
const CREEP: u32 = 4;

/// Events that nobody has asked for yet; older ones go.
const EVENTS_MAX: usize = 64;

enum State {
    Ready(Worker),
    /// To be made anew from then on.
    Waiting(Duration),
    /// Being made and tried, in a thread of its own and until then at most: drivers take their time, and frames do not
    /// wait for it.
    Making(Receiver<Result<Worker, String>>, Duration),
    Blocked,
}

pub(crate) struct Guard {
    make: Arc<Mutex<Make>>,
    state: State,
    trusted: Box<dyn Engine>,
    policy: GuardPolicy,
    clock: Clock,
    /// In a row, as the policy counts them.
    failures: u32,
    /// Since the beginning, and good ones since the last failure.
    runs: u64,
    good: u64,
    /// Since the engine was made, the last time.
    runs_of_this: u64,
    /// What a run takes when all is well.
    usual: Option<Duration>,
    /// Inputs of which a run was compared since the engine was made, the newest [`FORMS_MAX`], and what that gave.
    compared: Vec<Form>,
    given: Form,
    /// A comparison that was due and came to nothing.
    owed: bool,
    events: Vec<GuardEvent>,
}

/// Types and shapes.
type Form = Vec<(&'static str, Vec<usize>)>;

const FORMS_MAX: usize = 8;

fn form(tensors: &[&Tensor]) -> Form {
    tensors.iter().map(|tensor| (tensor.data().type_name(), tensor.shape().to_vec())).collect()
}

fn has_form<'a>(form: &Form, tensors: impl ExactSizeIterator<Item = &'a Tensor>) -> bool {
    form.len() == tensors.len()
        && form
            .iter()
            .zip(tensors)
            .all(|((name, dims), tensor)| *name == tensor.data().type_name() && *dims == tensor.shape())
}

impl Drop for Guard {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Blocked) {
            State::Ready(worker) => worker.end(),
            State::Making(made, _) => {
                if let Ok(Ok(worker)) = made.recv_timeout(END_PATIENCE) {
                    worker.end();
                }
            }
            State::Waiting(_) | State::Blocked => {}
        }
    }
}

impl Guard {
    /// `make` is called at once; if that fails, the guard starts with the engine that is trusted.
    pub(crate) fn new(make: Make, trusted: Box<dyn Engine>, policy: GuardPolicy, clock: Clock) -> Self {
        let mut guard = Self {
            make: Arc::new(Mutex::new(make)),
            state: State::Blocked,
            trusted,
            policy,
            clock,
            failures: 0,
            runs: 0,
            good: 0,
            runs_of_this: 0,
            usual: None,
            compared: vec![],
            given: vec![],
            owed: false,
            events: vec![],
        };
        let wait = guard.policy.first_wait;
        let made = guard.begin_making(None).and_then(|made| {
            let late = |_| format!("it was not made within {} ms", wait.as_millis());
            made.recv_timeout(wait).map_err(late)?
        });
        guard.take_up(made);
        guard
    }

    /// Makes the engine in a thread, which is left to itself if the driver does not come back.
    fn begin_making(&self, inputs: Option<Vec<Tensor>>) -> Result<Receiver<Result<Worker, String>>, String> {
        let (done, made) = mpsc::channel();
        let make = Arc::clone(&self.make);
        // Nobody waits for it any more if this fails.
        let work = move || drop(done.send(Self::made(&make, inputs)));
        let started = thread::Builder::new().name("andon-maker".into()).spawn(work);
        started.map(|_| made).map_err(|error| format!("no thread to make it: {error}"))
    }

    /// The engine anew, tried on some inputs if there are any.
    fn made(make: &Mutex<Make>, inputs: Option<Vec<Tensor>>) -> Result<Worker, String> {
        let mut make = make.lock().map_err(|_| "it could not be made before")?;
        guarded(|| {
            let mut engine = make()?;
            if let Some(inputs) = inputs {
                engine.run(&inputs.iter().collect::<Vec<_>>())?;
            }
            Worker::start(engine)
        })
    }

    fn take_up(&mut self, made: Result<Worker, String>) {
        match made {
            Ok(worker) => {
                self.state = State::Ready(worker);
                (self.runs_of_this, self.owed) = (0, false);
                self.compared.clear();
                if self.failures > 0 {
                    self.tell(GuardEvent::Restored);
                }
            }
            Err(reason) => {
                self.tell(GuardEvent::Unavailable { reason: reason.clone() });
                self.put_off(reason);
            }
        }
    }

    fn tell(&mut self, event: GuardEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.remove(0);
        }
        self.events.push(event);
    }

    /// Begins to make the engine anew if it is time, and takes it up once it is there.
    fn revive(&mut self, inputs: &[&Tensor]) {
        if let State::Waiting(from) = self.state
            && self.clock.now() >= from
        {
            let inputs = inputs.iter().map(|tensor| (*tensor).clone()).collect();
            match self.begin_making(Some(inputs)) {
                Ok(made) => {
                    self.state = State::Making(made, self.clock.now() + self.policy.first_wait);
                }
                Err(error) => self.take_up(Err(error)),
            }
        }
        let State::Making(made, until) = &self.state else { return };
        match made.try_recv() {
            Ok(made) => self.take_up(made),
            Err(TryRecvError::Empty) if self.clock.now() <= *until => {}
            Err(TryRecvError::Empty) => self.take_up(Err("it is not made in time".into())),
            Err(TryRecvError::Disconnected) => self.take_up(Err("its thread has ended".into())),
        }
    }

    /// Counts a failure: blocks, or waits longer than after the last one.
    fn put_off(&mut self, reason: String) {
        (self.failures, self.good) = (self.failures + 1, 0);
        if self.failures >= self.policy.failures_max {
            self.state = State::Blocked;
            return self.tell(GuardEvent::Blocked { failures: self.failures, reason });
        }
        let doubled = self.policy.first_retry.saturating_mul(1 << (self.failures - 1).min(20));
        self.state = State::Waiting(self.clock.now() + doubled.min(self.policy.last_retry));
    }

    fn fail(&mut self, failure: Failure, reason: String) {
        let event = GuardEvent::Failed { failure, reason };
        let reason = event.to_string();
        self.tell(event);
        self.put_off(reason);
    }

    /// Whether a run that gave something is computed by both.
    fn compares(&self, inputs: &[&Tensor], outputs: &[Tensor]) -> bool {
        let every = self.policy.compare_every;
        let is_due = || (self.runs_of_this - 1).is_multiple_of(every);
        let is_new = || !self.compared.iter().any(|form| has_form(form, inputs.iter().copied()));
        let is_strange = || {
            let no_number = |output: &Tensor| match output.data() {
                Data::F32(values) => values.iter().any(|v| !v.is_finite()),
                _ => false,
            };
            !has_form(&self.given, outputs.iter()) || outputs.iter().any(no_number)
        };
        every > 0 && (self.owed || is_due() || is_new() || is_strange())
    }

    /// What the untrusted engine gives, if it gives something in time.
    fn attempt(&mut self, inputs: &[&Tensor]) -> Option<Vec<Tensor>> {
        let State::Ready(worker) = &mut self.state else { return None };
        let GuardPolicy { patience, tuned, least_wait, most_wait, first_wait, busy, .. } = &self.policy;
        let is_known = |inputs: &[&Tensor]| {
            self.policy.compare_every == 0
                || self.compared.iter().any(|form| has_form(form, inputs.iter().copied()))
        };
        let usual = match (*tuned, self.usual) {
            // A GPU whose clocks are down is slow, one that gets slower and slower is not waited for for ever.
            (Some(tuned), Some(usual)) => Some(usual.clamp(tuned, tuned * CREEP)),
            (tuned, usual) => tuned.or(usual),
        };
        let wait = match usual {
            // One that failed was tried when it was made anew.
            _ if self.runs == 0 && self.failures == 0 => *first_wait,
            Some(usual) if !busy.is_set() && self.runs > 1 && is_known(inputs) => {
                usual.saturating_mul(*patience).max(*least_wait).min(*most_wait)
            }
            _ => *most_wait.min(first_wait),
        };
        let start = self.clock.now();
        match worker.run(inputs, wait) {
            Ok(outputs) => {
                // The first run compiles; a slow one moves the usual by an eighth at most.
                let taken = self.clock.now().saturating_sub(start);
                if self.runs > 0 {
                    let usual = self.usual.unwrap_or(taken);
                    self.usual = Some((usual * 7 + taken.min(usual * 2)) / 8);
                }
                self.runs += 1;
                self.runs_of_this += 1;
                Some(outputs)
            }
            Err((failure, reason)) => {
                self.fail(failure, reason);
                None
            }
        }
    }
}

#[cfg(test)]
impl Guard {
    /// Waits for an engine that is being made.
    pub(crate) fn settle(&mut self, inputs: &[&Tensor]) {
        self.revive(inputs);
        while let State::Making(..) = self.state {
            thread::yield_now();
            self.revive(inputs);
        }
    }
}

impl Engine for Guard {
    /// The one that would run now.
    fn name(&self) -> &'static str {
        match &self.state {
            State::Ready(worker) => worker.name,
            _ => self.trusted.name(),
        }
    }

    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        self.revive(inputs);
        let Some(outputs) = self.attempt(inputs) else { return self.trusted.run(inputs) };
        if self.compares(inputs, &outputs) {
            self.owed = true;
            let expected = self.trusted.run(inputs)?;
            if let Err(reason) = agree(&expected, &outputs, NEAR) {
                self.fail(Failure::Mismatch, reason);
                return Ok(expected);
            }
            self.owed = false;
            if !self.compared.iter().any(|form| has_form(form, inputs.iter().copied())) {
                let surplus = (self.compared.len() + 1).saturating_sub(FORMS_MAX);
                self.compared.drain(..surplus);
                self.compared.push(form(inputs));
            }
            self.given = form(&expected.iter().collect::<Vec<_>>());
        }
        self.good += 1;
        if self.good >= self.policy.good_runs {
            self.failures = 0;
        }
        Ok(outputs)
    }

    fn arena_bytes(&self) -> Option<usize> {
        self.trusted.arena_bytes()
    }

    fn takes_pictures(&self) -> bool {
        // Both run the same plan.
        self.trusted.takes_pictures()
    }

    fn take_events(&mut self) -> Vec<GuardEvent> {
        std::mem::take(&mut self.events)
    }
}

/// The engine in a thread of its own: some drivers do not come back from a submission, and a run that hangs must not take
/// the caller with it. A thread that hangs is left to itself.
struct Worker {
    name: &'static str,
    jobs: Sender<Vec<Tensor>>,
    results: Receiver<Result<Vec<Tensor>, String>>,
    /// Where inputs come back from, and the ones that did: the next ones are copied over them.
    used: Receiver<Vec<Tensor>>,
    spare: Vec<Tensor>,
    thread: JoinHandle<()>,
}

/// For a driver to take down what it has set up.
const END_PATIENCE: Duration = Duration::from_secs(2);

impl Worker {
    fn start(mut engine: Box<dyn Engine>) -> Result<Self, String> {
        let name = engine.name();
        let (jobs, inbox) = mpsc::channel::<Vec<Tensor>>();
        let (outbox, results) = mpsc::channel();
        let (back, used) = mpsc::channel();
        let work = move || {
            while let Ok(inputs) = inbox.recv() {
                let result = guarded(|| engine.run(&inputs.iter().collect::<Vec<_>>()));
                let failed = result.is_err();
                // Before the result, so that they are there when the next run asks for them.
                if back.send(inputs).is_err() || outbox.send(result).is_err() || failed {
                    break;
                }
            }
            // Before the end of `outbox`, which tells that it is gone.
            drop(engine);
        };
        let started = thread::Builder::new().name(format!("andon-{name}")).spawn(work);
        started
            .map(|thread| Self { name, jobs, results, used, spare: vec![], thread })
            .map_err(|e| format!("no thread for it: {e}"))
    }

    /// Waits until the engine is gone, but not for one that hangs. A program that ends while a driver is at work in one of
    /// its threads crashes.
    fn end(self) {
        let Self { jobs, results, thread, .. } = self;
        drop(jobs);
        if results.recv_timeout(END_PATIENCE) == Err(RecvTimeoutError::Disconnected) {
            // A panic has nobody to be told any more.
            drop(thread.join());
        }
    }

    fn run(&mut self, inputs: &[&Tensor], wait: Duration) -> Result<Vec<Tensor>, (Failure, String)> {
        let ended = || (Failure::Error, "its thread has ended".to_owned());
        let mut own = std::mem::take(&mut self.spare);
        own.truncate(inputs.len());
        own.iter_mut().zip(inputs).for_each(|(own, input)| own.assign(input));
        own.extend(inputs[own.len()..].iter().map(|input| (*input).clone()));
        self.jobs.send(own).map_err(|_| ended())?;
        match self.results.recv_timeout(wait) {
            Ok(result) => {
                self.spare = self.used.try_recv().unwrap_or_default();
                result.map_err(|reason| (Failure::Error, reason))
            }
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
            Err(RecvTimeoutError::Timeout) => {
                Err((Failure::Late, format!("no result after {} ms", wait.as_millis())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;

    /// Doubles its input; `script` says what each run does instead: `e`rror, `h`ang, `w`rong, `p`anic, another `s`hape, `i`nfinity.
    struct Fake {
        script: Arc<Mutex<Vec<char>>>,
    }

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            "gpu"
        }

        fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
            let what = self.script.lock().unwrap().pop().unwrap_or('.');
            match what {
                'e' => Err("the device is lost".into()),
                'p' => panic!("driver"),
                'h' => {
                    thread::sleep(Duration::from_secs(3600));
                    Err("late".into())
                }
                'w' => Doubler.run(&[&tensor(&vec![77.0; inputs[0].data().len()])]),
                's' => Doubler.run(&[&tensor(&[77.0, 1.0, 1.0])]),
                'i' => Doubler.run(&[&tensor(&[f32::INFINITY, 1.0])]),
                _ => Doubler.run(inputs),
            }
        }
    }

    /// Takes its time to go, and tells when it is gone.
    struct Slow(Arc<AtomicU64>);

    impl Engine for Slow {
        fn name(&self) -> &'static str {
            "gpu"
        }

        fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
            Doubler.run(inputs)
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(100));
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn the_engine_is_gone_before_its_guard_is() {
        let gone = Arc::new(AtomicU64::new(0));
        let make = {
            let gone = Arc::clone(&gone);
            move || Ok(Box::new(Slow(Arc::clone(&gone))) as Box<dyn Engine>)
        };
        let clock = Clock::new(Default::default);
        let mut guard = Guard::new(Box::new(make), Box::new(Doubler), GuardPolicy::default(), clock);
        guard.run(&[&tensor(&[1.0])]).unwrap();
        drop(guard);
        assert_eq!(gone.load(SeqCst), 1);
    }

    struct Doubler;

    impl Engine for Doubler {
        fn name(&self) -> &'static str {
            "cpu"
        }

        fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
            Ok(vec![tensor(&inputs[0].as_f32().unwrap().iter().map(|v| v * 2.0).collect::<Vec<_>>())])
        }
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::f32(vec![values.len()], values.to_vec()).unwrap()
    }

    struct Bench {
        guard: Guard,
        script: Arc<Mutex<Vec<char>>>,
        now: Arc<AtomicU64>,
        made: Arc<AtomicU64>,
    }

    fn bench(policy: GuardPolicy) -> Bench {
        let script = Arc::new(Mutex::new(vec![]));
        let (now, made) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (fake, count) = (Arc::clone(&script), Arc::clone(&made));
        let make = move || {
            count.fetch_add(1, SeqCst);
            let mut script = fake.lock().unwrap();
            if script.last() == Some(&'n') {
                script.pop();
                return Err("no adapter".into());
            }
            Ok(Box::new(Fake { script: Arc::clone(&fake) }) as Box<dyn Engine>)
        };
        let time = Arc::clone(&now);
        let clock = Clock::new(move || Duration::from_millis(time.load(SeqCst)));
        let guard = Guard::new(Box::new(make), Box::new(Doubler), policy, clock);
        Bench { guard, script, now, made }
    }

    impl Bench {
        /// A right result, whatever happens.
        fn frame(&mut self) {
            self.guard.settle(&[&tensor(&[1.0, -3.5])]);
            let outputs = self.guard.run(&[&tensor(&[1.0, -3.5])]).unwrap();
            assert_eq!(outputs, [tensor(&[2.0, -7.0])]);
        }

        fn script(&self, script: &str) {
            *self.script.lock().unwrap() = script.chars().rev().collect();
        }
    }

    fn quick() -> GuardPolicy {
        GuardPolicy {
            compare_every: 1,
            // Long enough for a panic to be told on a busy machine; what hangs takes as long as this.
            least_wait: Duration::from_secs(3),
            first_wait: Duration::from_secs(3),
            ..Default::default()
        }
    }

    #[test]
    fn each_failure_costs_no_result() {
        for (what, failure) in
            [('e', Failure::Error), ('p', Failure::Error), ('h', Failure::Late), ('w', Failure::Mismatch)]
        {
            let mut bench = bench(quick());
            bench.script(&format!("..{what}.."));
            (0..3).for_each(|_| bench.frame());
            let events = bench.guard.take_events();
            assert!(
                matches!(&*events, [GuardEvent::Failed { failure: found, .. }] if *found == failure),
                "{what}: {events:?}"
            );
            assert_eq!(bench.guard.name(), "cpu");
            // Not yet, and then again.
            bench.now.store(999, SeqCst);
            bench.frame();
            assert_eq!((bench.guard.name(), bench.made.load(SeqCst)), ("cpu", 1));
            bench.now.store(1_000, SeqCst);
            bench.frame();
            assert_eq!((bench.guard.name(), bench.made.load(SeqCst)), ("gpu", 2));
            assert_eq!(bench.guard.take_events(), [GuardEvent::Restored]);
        }
    }

    /// However slow it usually is.
    #[test]
    fn a_late_engine_leaves_time_for_the_other() {
        let mut bench = bench(GuardPolicy { most_wait: Duration::from_secs(1), ..quick() });
        bench.script("..h");
        (0..3).for_each(|_| bench.frame());
        let reason = "no result after 1000 ms".to_owned();
        assert_eq!(bench.guard.take_events(), [GuardEvent::Failed { failure: Failure::Late, reason }]);
    }

    /// Whatever it has come to take since, but for a few times as long.
    #[test]
    fn an_engine_is_waited_for_as_it_was_measured() {
        let tuned = Some(Duration::from_millis(60));
        let mut bench = bench(GuardPolicy { tuned, least_wait: Duration::ZERO, ..quick() });
        bench.guard.usual = Some(Duration::from_secs(2));
        bench.script("..h.h");
        (0..3).for_each(|_| bench.frame());
        // Five times the four times as long that it may have become.
        let reason = "no result after 1200 ms".to_owned();
        assert_eq!(bench.guard.take_events(), [GuardEvent::Failed { failure: Failure::Late, reason }]);
    }

    /// The first run compiles, and is waited for; one that was made anew has been tried.
    #[test]
    fn only_the_very_first_run_may_take_long() {
        let mut bench = bench(GuardPolicy { most_wait: Duration::from_millis(200), ..quick() });
        bench.script("e.h");
        bench.frame();
        bench.now.store(1_000, SeqCst);
        bench.frame();
        let events = bench.guard.take_events();
        let reason = "no result after 200 ms".to_owned();
        assert_eq!(events.last(), Some(&GuardEvent::Failed { failure: Failure::Late, reason }), "{events:?}");
    }

    #[test]
    fn each_run_has_its_own_inputs() {
        let mut bench = bench(GuardPolicy { compare_every: 0, ..quick() });
        for values in [&[1.0, 2.0][..], &[3.0, 4.0], &[5.0], &[6.0, 7.0, 8.0], &[]] {
            let doubled: Vec<f32> = values.iter().map(|v| v * 2.0).collect();
            assert_eq!(bench.guard.run(&[&tensor(values)]).unwrap(), [tensor(&doubled)]);
        }
        assert_eq!(bench.guard.name(), "gpu");
    }

    #[test]
    fn failures_in_a_row_wait_longer_and_then_block() {
        let mut bench = bench(GuardPolicy { failures_max: 4, ..quick() });
        // Each time it is tried first, but for the first.
        bench.script("e.e.e.e");
        for (wait, made) in [(0, 1), (1_000, 2), (2_000, 3), (4_000, 4)] {
            bench.now.fetch_add(wait, SeqCst);
            bench.frame();
            assert_eq!(bench.made.load(SeqCst), made);
        }
        let reason = "the GPU failed: the device is lost".to_owned();
        assert_eq!(bench.guard.take_events().last(), Some(&GuardEvent::Blocked { failures: 4, reason }));
        bench.now.fetch_add(1 << 40, SeqCst);
        bench.frame();
        assert_eq!((bench.guard.name(), bench.made.load(SeqCst)), ("cpu", 4));
    }

    #[test]
    fn a_good_stretch_forgives() {
        let mut bench = bench(GuardPolicy { failures_max: 2, good_runs: 3, ..quick() });
        for _ in 0..5 {
            bench.script("e");
            bench.frame();
            bench.now.fetch_add(1_000, SeqCst);
            (0..3).for_each(|_| bench.frame());
        }
        let blocked = |event: &GuardEvent| matches!(event, GuardEvent::Blocked { .. });
        assert!(!bench.guard.take_events().iter().any(blocked));
        assert_eq!(bench.guard.name(), "gpu");
    }

    #[test]
    fn an_engine_that_cannot_be_made_is_done_without() {
        let mut bench = bench(quick());
        bench.script("enn");
        bench.frame();
        for _ in 0..2 {
            bench.now.fetch_add(1 << 20, SeqCst);
            bench.frame();
        }
        let events = bench.guard.take_events();
        let unavailable = |event: &&GuardEvent| matches!(event, GuardEvent::Unavailable { .. });
        assert_eq!(events.iter().filter(unavailable).count(), 2, "{events:?}");
        let reason = "no adapter".to_owned();
        assert_eq!(events.last(), Some(&GuardEvent::Blocked { failures: 3, reason }));
    }

    /// A driver that does not even come back from making a device.
    #[test]
    fn an_engine_that_is_never_made_is_not_waited_for() {
        let policy = GuardPolicy { first_wait: Duration::from_millis(50), ..quick() };
        let now = Arc::new(AtomicU64::new(0));
        let time = Arc::clone(&now);
        let clock = Clock::new(move || Duration::from_millis(time.load(SeqCst)));
        let hang = || -> Result<Box<dyn Engine>, String> {
            thread::sleep(Duration::from_secs(3600));
            Err("late".into())
        };
        let mut guard = Guard::new(Box::new(hang), Box::new(Doubler), policy, clock);
        for _ in 0..6 {
            now.fetch_add(1 << 20, SeqCst);
            assert_eq!(guard.run(&[&tensor(&[1.0])]).unwrap(), [tensor(&[2.0])]);
        }
        let reason = "it is not made in time".to_owned();
        assert_eq!(guard.take_events().last(), Some(&GuardEvent::Blocked { failures: 3, reason }));
    }

    #[test]
    fn not_each_run_is_compared() {
        let mut bench = bench(GuardPolicy { compare_every: 3, ..quick() });
        bench.script(".w.w");
        let mut wrong = 0;
        for _ in 0..3 {
            let outputs = bench.guard.run(&[&tensor(&[1.0, -3.5])]).unwrap();
            wrong += usize::from(outputs != [tensor(&[2.0, -7.0])]);
        }
        assert_eq!(wrong, 1);
        bench.frame();
        assert_eq!(bench.guard.take_events().len(), 1);
        // What was made anew must show itself at once.
        bench.now.store(1_000, SeqCst);
        // Tried when it is made, and then run.
        bench.script(".w");
        bench.frame();
        assert!(
            matches!(&*bench.guard.take_events(), [GuardEvent::Restored, GuardEvent::Failed { .. }]),
            "an engine made anew is compared"
        );
    }

    #[test]
    fn what_is_new_or_strange_is_compared() {
        let mut bench = bench(GuardPolicy { compare_every: 1_000, ..quick() });
        let mut run = |script: &str, values: &[f32]| {
            bench.script(script);
            let doubled: Vec<f32> = values.iter().map(|v| v * 2.0).collect();
            let right = bench.guard.run(&[&tensor(values)]).unwrap() == [tensor(&doubled)];
            (right, bench.guard.take_events().len())
        };
        assert_eq!(run("", &[1.0, 2.0]), (true, 0));
        // A wrong result passes where nothing calls for a look at it,
        assert_eq!(run("w", &[1.0, 2.0]), (false, 0));
        assert_eq!(run("w", &[1.0, 2.0]), (false, 0));
        // but not the first one of other inputs, of another shape, or what is no number.
        assert_eq!(run("w", &[1.0]), (true, 1));
        for strange in ["s", "i"] {
            let mut bench = super::tests::bench(GuardPolicy { compare_every: 1_000, ..quick() });
            bench.frame();
            bench.script(strange);
            bench.frame();
            assert_eq!(bench.guard.take_events().len(), 1, "{strange}");
        }
    }

    /// While something else is measured on it, say.
    #[test]
    fn a_busy_engine_is_waited_for_as_long_as_there_is_time() {
        let most_wait = Duration::from_millis(400);
        let least_wait = Duration::from_millis(1);
        let mut bench = bench(GuardPolicy { most_wait, least_wait, ..quick() });
        bench.script("..h");
        (0..2).for_each(|_| bench.frame());
        bench.guard.policy.busy.set(true);
        bench.frame();
        let reason = "no result after 400 ms".to_owned();
        assert_eq!(bench.guard.take_events(), [GuardEvent::Failed { failure: Failure::Late, reason }]);
    }
}
