//! `andon-agent tune`: measures a network on this device's GPU and CPU, and writes down what was found.

use std::{fs, path::PathBuf, time::Duration};

use andon_agent::clock::{Clock, SystemClock};
use andon_protocol::Digest;
use andon_runtime::{Tuning, tune};
use anyhow::Context;

use super::{load_model, say};

#[derive(Debug, clap::Args)]
pub(crate) struct TuneArgs {
    /// ONNX file, or a release's folder
    #[arg(long)]
    model: PathBuf,
    /// Threads that the engine on the CPU may use
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Seconds for trying kernels, at most
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Where to write what was found
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &TuneArgs) -> anyhow::Result<()> {
    let model = load_model(&args.model)?;
    let path = if args.model.is_dir() {
        args.model.join(andon_protocol::release::MODEL_FILE)
    } else {
        args.model.clone()
    };
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let clock = SystemClock::new();
    let clock = andon_runtime::Clock::new(move || clock.elapsed());
    let budget = Duration::from_secs(args.seconds);
    let tuning = tune(&model, &[], &Digest::of(&bytes).to_string(), args.threads.into(), &clock, budget);
    let tuning = tuning.map_err(anyhow::Error::msg)?;
    let text = serde_json::to_string_pretty(&tuning)?;
    if let Some(out) = &args.out {
        fs::write(out, format!("{text}\n")).with_context(|| format!("cannot write {}", out.display()))?;
    }
    if args.json { say(format_args!("{text}\n")) } else { show(&tuning) }
}

fn show(tuning: &Tuning) -> anyhow::Result<()> {
    let Tuning { adapter, engine, cpu_ms, gpu_ms, threads, .. } = tuning;
    say(format_args!(
        "{} through {}, {} {}\n{engine} is faster: gpu {gpu_ms:.3} ms, cpu {cpu_ms:.3} ms on {threads} threads\n",
        adapter.name, adapter.backend, adapter.driver, adapter.driver_info
    ))?;
    if let Some(why) = &tuning.untuned {
        say(format_args!("kernels were not tuned: {why}\n"))?;
    }
    if tuning.wrong > 0 {
        say(format_args!(
            "{} rounds of kernels computed wrong on this driver and were left out\n",
            tuning.wrong
        ))?;
    }
    for tuned in &tuning.kernels {
        let usual = tuned.instead_of.map(|(variant, us)| format!(", instead of {us:.1} us by {variant:?}"));
        say(format_args!(
            "{:?}\n    {:.1} us by {:?}, the fastest of {}{}\n",
            tuned.task,
            tuned.us,
            tuned.variant,
            tuned.tried,
            usual.unwrap_or_default()
        ))?;
    }
    Ok(())
}
