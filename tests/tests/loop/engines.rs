//! The GPU on a device: the same verdicts as on the CPU, and a driver that computes nonsense is done without, for good.
//! Software plays the GPU where there is none.

use std::{fs, process::Command};

use andon_protocol::{
    api::{Device, DeviceEvent},
    telemetry::Event,
};
use andon_tests::fleet::{self, Agent, AgentSetup, Programs, succeeded};
use serde_json::Value;

use crate::fixture::{Rig, release, turn};

/// What `andon-agent gpu` says.
fn gpu(arguments: &[&str], agent: &Agent) -> String {
    let mut command = Command::new(Programs::find().unwrap().path("andon-agent"));
    let output = command.arg("gpu").args(arguments).arg("--data-dir").arg(agent.data_dir()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether there is a GPU, or something that plays one.
fn can_test(agent: &Agent) -> bool {
    let found: Value = serde_json::from_str(&gpu(&["--list", "--json"], agent)).unwrap();
    let can = found["adapters"].as_array().is_some_and(|adapters| !adapters.is_empty());
    let text = "no GPU and nothing that plays one: install Mesa's Vulkan and EGL drivers";
    assert!(can || std::env::var("ANDON_TEST_GPU").is_err(), "{text}");
    if !can {
        eprintln!("NOT TESTED: {text}");
    }
    can
}

/// The first lines that an agent wrote, without what differs from run to run: times, and the drift that a line tells, since
/// frames are watched beside the line, whenever there is time.
fn verdicts(agent: &Agent, count: usize) -> Vec<Value> {
    let path = agent.data_dir().with_file_name("verdicts.jsonl");
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last line may be under way.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().filter(|line| !line.is_empty()).take(count);
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for varies in ["at_ms", "latency_us", "drift"] {
            line.as_object_mut().unwrap().remove(varies).unwrap();
        }
        line
    };
    lines.map(line).collect()
}

async fn engine(rig: &Rig, agent: &Agent) -> Option<String> {
    let device: Device = rig.api.get(&format!("/devices/{}", agent.id())).await.unwrap();
    device.running.map(|running| running.engine)
}

async fn faults(rig: &Rig, agent: &Agent) -> Vec<String> {
    let events: Vec<DeviceEvent> = rig.api.list(&format!("/devices/{}/events", agent.id())).await.unwrap();
    let fault = |event: DeviceEvent| match event.event {
        Event::Fault { what } => Some(what),
        _ => None,
    };
    events.into_iter().filter_map(fault).collect()
}

#[tokio::test]
async fn a_gpu_gives_the_same_verdicts_frame_by_frame() {
    /// More than one pass over the stream.
    const FRAMES: usize = 50;
    let _turn = turn().await;
    let mut rig = Rig::new().await;
    if !can_test(&rig.agent) {
        return;
    }
    let setup = AgentSetup { id: "line-2".parse().unwrap(), ..rig.agent.setup().clone() };
    let folder = rig.dir.path().join("line-2");
    let mut other = Agent::enrol(&Programs::find().unwrap(), &folder, &rig.api, setup).await.unwrap();
    rig.agent.set_variable("ANDON_ENGINE", "cpu");
    other.set_variable("ANDON_ENGINE", "gpu");
    other.start().unwrap();
    rig.agent.start().unwrap();
    let rollout = fleet::roll_out(&rig.api, &release(1), 1).await.unwrap();
    let over = async || succeeded(rig.rollout(&rollout.id).await?);
    rig.wait("both devices to run the release", over).await;
    let judged = async || {
        rig.check()?;
        other.check()?;
        let all = [&rig.agent, &other].map(|agent| verdicts(agent, FRAMES));
        Ok(all.iter().all(|lines| lines.len() == FRAMES).then_some(all))
    };
    let [here, there] = rig.wait("verdicts", judged).await;
    for (cpu, gpu) in here.iter().zip(&there) {
        assert_eq!(cpu, gpu);
        assert_eq!(cpu["reason"], Value::Null, "{cpu}");
    }
    // And not since the CPU computed them for it.
    let [on_cpu, on_gpu] = [engine(&rig, &rig.agent).await.unwrap(), engine(&rig, &other).await.unwrap()];
    assert!(on_cpu.starts_with("cpu: asked for by "), "{on_cpu}");
    assert!(on_gpu.starts_with("gpu: asked for by "), "{on_gpu}");
    assert_eq!(faults(&rig, &other).await, Vec::<String>::new());
    // What the driver compiled is there for the next start, where it is a driver that gives it away.
    let list: Value = serde_json::from_str(&gpu(&["--list", "--json"], &other)).unwrap();
    let first = &list["adapters"][0];
    let keeps = first["features"].as_array().unwrap().iter().any(|feature| feature == "pipeline cache");
    assert_eq!(other.data_dir().join("tuning").join("pipelines.bin").is_file(), keeps, "{first}");
    each_fault_costs_no_verdict(&rig, &mut other, &here).await;
}

/// Whatever is wrong with the GPU, each frame gets the verdict that the CPU gives it; one whose GPU hangs gets it late.
async fn each_fault_costs_no_verdict(rig: &Rig, agent: &mut Agent, expected: &[Value]) {
    const FRAMES: usize = 20;
    for (fault, what) in [
        ("lost", "the GPU failed: "),
        ("hang", "the GPU is late: no result after "),
        ("wrong@1", "the GPU computes wrong: output 0"),
        ("memory", "the GPU cannot be used: "),
        ("none", "no GPU that computes (ANDON_GPU_FAULT)"),
    ] {
        assert!(agent.stop());
        gpu(&["--unblock"], agent);
        fs::remove_file(agent.data_dir().with_file_name("verdicts.jsonl")).unwrap();
        agent.set_variable("ANDON_GPU_FAULT", fault);
        agent.start().unwrap();
        let judged = async || {
            agent.check()?;
            Ok(Some(verdicts(agent, FRAMES)).filter(|lines| lines.len() == FRAMES))
        };
        let lines = rig.wait(&format!("verdicts under {fault}"), judged).await;
        // While a GPU hangs newer frames take the places of those that wait, and a line reads these as rejects.
        let dropped = |line: &&Value| fault == "hang" && line["reason"] == "dropped";
        for line in lines.iter().filter(|line| !dropped(line)) {
            let same = expected.iter().find(|other| other["frame"] == line["frame"]).unwrap();
            assert_eq!(line, same, "{fault}");
        }
        let numbers: std::collections::BTreeSet<u64> =
            lines.iter().filter_map(|line| line["frame"].as_u64()).collect();
        assert_eq!(numbers.len(), FRAMES, "{fault}: {lines:#?}");
        assert!(lines.iter().filter(dropped).count() < FRAMES / 2, "{fault}: {lines:#?}");
        let told = async || {
            let faults = faults(rig, agent).await;
            Ok(faults.iter().any(|fault| fault.contains(what)).then_some(()))
        };
        rig.wait(&format!("telemetry of {fault}"), told).await;
    }
    assert!(agent.stop());
    agent.set_variable("ANDON_GPU_FAULT", "");
}

#[tokio::test]
async fn a_driver_that_computes_wrong_is_not_used_again() {
    let _turn = turn().await;
    let mut rig = Rig::new().await;
    if !can_test(&rig.agent) {
        return;
    }
    rig.agent.set_variable("ANDON_ENGINE", "gpu");
    rig.agent.set_variable("ANDON_GPU_FAULT", "wrong@1");
    let mut rig = rig.run_first().await;
    let blocked = rig.agent.data_dir().join("tuning").join("blocked.json");
    let written = async || {
        rig.check()?;
        Ok(blocked.exists().then_some(()))
    };
    rig.wait("the driver to be blocked", written).await;
    let told =
        async || Ok(engine(&rig, &rig.agent).await.filter(|engine| engine.starts_with("cpu: the driver ")));
    let told = rig.wait("the device to say what it runs on", told).await;
    assert!(told.contains("3 failures in a row, the last: the GPU computes wrong: output 0"), "{told}");
    let last = "the GPU is not used any more after 3 failures in a row".to_owned();
    let events = async || Ok(faults(&rig, &rig.agent).await.contains(&last).then_some(()));
    rig.wait("the last failure to be told", events).await;

    // At the next start, too, although nothing is wrong any more.
    rig.agent.set_variable("ANDON_GPU_FAULT", "");
    for (unblocked, start) in
        [(false, "cpu: the GPU was asked for, but the driver of "), (true, "gpu: asked for by ")]
    {
        assert!(rig.agent.stop());
        let listed = gpu(&["--list"], &rig.agent);
        assert!(listed.contains("  blocked     since 20"), "{listed}");
        if unblocked {
            assert_eq!(gpu(&["--unblock"], &rig.agent), "1 drivers unblocked\n");
            assert!(!gpu(&["--list"], &rig.agent).contains("blocked"));
        }
        rig.agent.start().unwrap();
        let says = async || Ok(engine(&rig, &rig.agent).await.filter(|engine| engine.starts_with(start)));
        rig.wait(&format!("the device to say {start:?}"), says).await;
    }

    // A driver that computes wrong from the beginning is not even used once.
    assert!(rig.agent.data_dir().join("tuning").join("checked.json").exists());
    assert!(rig.agent.stop());
    assert_eq!(gpu(&["--unblock"], &rig.agent), "0 drivers unblocked\n");
    rig.agent.set_variable("ANDON_GPU_FAULT", "wrong@0");
    rig.agent.start().unwrap();
    let found = "cases computed wrong, the first: the network: output 0";
    let says = async || Ok(engine(&rig, &rig.agent).await.filter(|engine| engine.contains(found)));
    let told = rig.wait("the device to say that the driver computes wrong", says).await;
    assert!(told.starts_with("cpu: the driver of "), "{told}");
    assert!(gpu(&["--list"], &rig.agent).contains(found));
    let lines = verdicts(&rig.agent, 20);
    assert!(lines.iter().all(|line| line["reason"] == Value::Null), "{lines:#?}");
}
