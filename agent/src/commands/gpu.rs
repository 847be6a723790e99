//! `andon-agent gpu`: the GPUs of this machine, their drivers, what they can do at most, whether they compute right, and
//! which an agent does not use any more.

use std::{path::PathBuf, sync::Arc, time::Duration};

use andon_agent::{
    clock::{Clock, SystemClock},
    engines::{decide::Blocked, notes::Notes},
    files::SystemDisk,
};
use andon_runtime::{Expected, GoldenReport, GpuAdapter, GpuPeaks, WrongCase, gpus};
use anyhow::ensure;

use super::say;

#[derive(Debug, clap::Args)]
pub(crate) struct GpuArgs {
    /// Do not measure, only list
    #[arg(long)]
    list: bool,
    /// Do not measure, but compare what each computes with what the CPU does, kernel by kernel
    #[arg(long, conflicts_with = "list")]
    check: bool,
    /// Seconds for that, of each GPU
    #[arg(long, default_value_t = 60, requires = "check", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The folder of an agent: show which drivers it does not use any more, and why
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Let that agent use all drivers again, from its next start or release on
    #[arg(long, requires = "data_dir")]
    unblock: bool,
}

pub(crate) fn run(args: &GpuArgs) -> anyhow::Result<()> {
    let notes = args.data_dir.as_ref().map(|folder| Notes::new(Arc::new(SystemDisk), folder));
    if let (Some(notes), true) = (&notes, args.unblock) {
        return say(format_args!("{} drivers unblocked\n", notes.unblock()?));
    }
    let refused = notes.as_ref().map_or(vec![], Notes::refused);
    let blocked = notes.map_or(vec![], |notes| notes.blocked());
    let clock = SystemClock::new();
    let adapters = gpus();
    if args.check {
        return check(args, &adapters);
    }
    let measure = |adapter: &GpuAdapter| (!args.list).then(|| adapter.measure(&|| clock.elapsed()));
    let measured: Vec<_> = adapters.iter().map(measure).collect();
    if args.json {
        let each = adapters.iter().zip(&measured).map(|(adapter, peaks)| json(adapter, peaks.as_ref()));
        let all = serde_json::json!({ "adapters": each.collect::<Vec<_>>(), "blocked": blocked });
        return say(format_args!("{all}\n"));
    }
    if adapters.is_empty() {
        say("no GPU that computes, through Vulkan or OpenGL ES 3.1\n")?;
    }
    for (adapter, peaks) in adapters.iter().zip(&measured) {
        say(format_args!("{} through {} ({})\n", adapter.name, adapter.backend, adapter.kind))?;
        say(format_args!("  driver      {} {}\n", adapter.driver, adapter.driver_info))?;
        say(format_args!("  number      {:04x}:{:04x}\n", adapter.vendor, adapter.device))?;
        say(format_args!("  features    {}\n", adapter.features.join(", ")))?;
        say(format_args!(
            "  limits      buffer {} MiB, workgroup {} bytes and {} threads\n",
            adapter.buffer_bytes_max >> 20,
            adapter.workgroup_bytes,
            adapter.invocations_max
        ))?;
        match peaks {
            None => {}
            Some(Err(why)) => say(format_args!("  not usable  {why}\n"))?,
            Some(Ok(peaks)) => show(peaks)?,
        }
        for Blocked { since, reason, .. } in blocked.iter().filter(|blocked| blocked.adapter == adapter.key())
        {
            say(format_args!("  blocked     since {since}: {reason}\n"))?;
        }
        for (_, model, reason) in refused.iter().filter(|(key, ..)| *key == adapter.key()) {
            say(format_args!("  not for     network {model}: {reason}\n"))?;
        }
    }
    // Another driver, or a GPU that is gone.
    let gone = |blocked: &&Blocked| !adapters.iter().any(|adapter| adapter.key() == blocked.adapter);
    for blocked in blocked.iter().filter(gone) {
        let (driver, info) = (&blocked.adapter.driver, &blocked.adapter.driver_info);
        say(format_args!("not there now ({driver} {info}): {}\n", blocked.text()))?;
    }
    Ok(())
}

/// An error if one computes something wrong.
fn check(args: &GpuArgs, adapters: &[GpuAdapter]) -> anyhow::Result<()> {
    let clock = SystemClock::new();
    let mut wrong = 0;
    let mut all = vec![];
    for adapter in adapters {
        let report = adapter.check(&|| clock.elapsed(), Duration::from_secs(args.seconds));
        wrong += report.as_ref().map_or(1, |report| report.wrong.len() + report.stale.len());
        if args.json {
            let mut one = json(adapter, None);
            match report {
                Ok(report) => one["check"] = serde_json::to_value(report)?,
                Err(why) => one["error"] = why.into(),
            }
            all.push(one);
            continue;
        }
        say(format_args!("{} through {} ({})\n", adapter.name, adapter.backend, adapter.kind))?;
        say(format_args!("  driver      {} {}\n", adapter.driver, adapter.driver_info))?;
        match report {
            Err(why) => say(format_args!("  not usable  {why}\n"))?,
            Ok(report) => show_report(&report)?,
        }
    }
    if args.json {
        say(format_args!("{}\n", serde_json::json!({ "adapters": all })))?;
    }
    ensure!(wrong == 0, "{wrong} comparisons with the CPU failed");
    Ok(())
}

fn show_report(report: &GoldenReport) -> anyhow::Result<()> {
    let GoldenReport { runs, rounded, wrong, expected, stale, variants, left, alone: _ } = report;
    let known: usize = expected.iter().map(|expected| expected.cases).sum();
    say(format_args!(
        "  checked     {runs} runs of {} kernels: {} as the CPU computes it, {rounded} but for a rounding, {} wrong\n",
        variants.len(),
        runs - rounded - wrong.len() - known,
        wrong.len() + known
    ))?;
    for Expected { cases, reason } in expected {
        say(format_args!("  expected    {cases} wrong: {reason}\n"))?;
    }
    for reason in stale {
        say(format_args!(
            "  not wrong   although it was expected, so that the expectation must go: {reason}\n"
        ))?;
    }
    for WrongCase { case, variants, reason } in wrong {
        say(format_args!("  wrong       {case}: {reason}\n              by {variants:?}\n"))?;
    }
    if !left.is_empty() {
        say(format_args!("  no time for {} kernels: {left:?}\n", left.len()))?;
    }
    Ok(())
}

fn show(peaks: &GpuPeaks) -> anyhow::Result<()> {
    let f16 = peaks.f16_gflops.map_or("-".into(), |rate| format!("{rate:.0}"));
    say(format_args!(
        "  measured    dot4 {:.0} GOPS, f32 {:.0} GFLOPS, f16 {f16} GFLOPS, copy {:.1} GB/s\n",
        peaks.dot4_gops, peaks.f32_gflops, peaks.copy_gbs
    ))?;
    say(format_args!(
        "  dispatch    {:.2} us each, of which the CPU {:.2} us to encode and submit\n",
        peaks.dispatch_us, peaks.encode_us
    ))
}

fn json(adapter: &GpuAdapter, peaks: Option<&Result<GpuPeaks, String>>) -> serde_json::Value {
    let mut all = serde_json::json!({
        "name": adapter.name,
        "backend": adapter.backend,
        "kind": adapter.kind,
        "driver": adapter.driver,
        "driver_info": adapter.driver_info,
        "vendor": adapter.vendor,
        "device": adapter.device,
        "features": adapter.features,
        "buffer_bytes_max": adapter.buffer_bytes_max,
        "workgroup_bytes": adapter.workgroup_bytes,
        "invocations_max": adapter.invocations_max,
    });
    match peaks {
        None => {}
        Some(Err(why)) => all["error"] = why.as_str().into(),
        Some(Ok(peaks)) => {
            all["peaks"] = serde_json::json!({
                "dot4_gops": peaks.dot4_gops,
                "f32_gflops": peaks.f32_gflops,
                "f16_gflops": peaks.f16_gflops,
                "copy_gbs": peaks.copy_gbs,
                "dispatch_us": peaks.dispatch_us,
                "encode_us": peaks.encode_us,
            });
        }
    }
    all
}
