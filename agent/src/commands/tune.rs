//! `andon-agent tune`: measures a network on this device's GPU and CPU, and writes down what was found.

use std::{fs, path::PathBuf, time::Duration};

use andon_agent::{
    clock::{Clock, SystemClock},
    golden,
};
use andon_protocol::{
    Digest,
    release::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest},
};
use andon_runtime::{Classifier, Model, Pictures, Tuning, Workload, tune};
use anyhow::Context;

use super::{bench, load_model, read, say};

#[derive(Debug, clap::Args)]
pub(crate) struct TuneArgs {
    /// ONNX file, or a release's folder: then frames are pictures like its golden images
    #[arg(long)]
    model: PathBuf,
    /// Let the frames be RGB pictures of WIDTHxHEIGHT, which the engines resize
    #[arg(long, value_parser = bench::sides)]
    picture: Option<[usize; 2]>,
    /// Threads that the engine on the CPU may use
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Keep a float network's numbers as f16 on the GPU
    #[arg(long)]
    half: bool,
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
    let (input_shapes, picture) = frames(args, &model)?;
    let picture = picture.as_ref().map(|(sides, meaning)| (*sides, meaning));
    let (model, input_shapes, threads) = (&model, &*input_shapes, args.threads.into());
    let workload =
        Workload { model, input_shapes, threads, picture, adapter: None, half_precision: args.half };
    let tuning = tune(&workload, &Digest::of(&bytes).to_string(), &clock, budget);
    let tuning = tuning.map_err(anyhow::Error::msg)?;
    let text = serde_json::to_string_pretty(&tuning)?;
    if let Some(out) = &args.out {
        fs::write(out, format!("{text}\n")).with_context(|| format!("cannot write {}", out.display()))?;
    }
    if args.json { say(format_args!("{text}\n")) } else { show(&tuning) }
}

/// Shapes of inputs, as far as the file leaves them open, and the pictures that a camera makes.
type Frames = (Vec<(String, Vec<usize>)>, Option<([usize; 3], Pictures)>);

fn frames(args: &TuneArgs, model: &Model) -> anyhow::Result<Frames> {
    let asked = args.picture.map(|[width, height]| [height, width, 3]);
    if !args.model.is_dir() {
        let picture = asked.map(|sides| anyhow::Ok((sides, bench::meaning(model)?)));
        return Ok((vec![], picture.transpose()?));
    }
    let path = args.model.join(MANIFEST_FILE);
    let manifest = Manifest::from_json(&read(&path, MANIFEST_BYTES_MAX)?)
        .with_context(|| format!("cannot use {}", path.display()))?;
    let sides = match asked {
        Some(sides) => sides,
        None => golden::picture(&args.model).map_err(anyhow::Error::msg).context(
            "the size of the camera's pictures is what the golden images have; --picture WIDTHxHEIGHT says it, too",
        )?,
    };
    Ok((Classifier::input_shapes(&manifest), Some((sides, Classifier::pictures(&manifest)))))
}

fn show(tuning: &Tuning) -> anyhow::Result<()> {
    let Tuning { adapter, engine, cpu_ms, gpu_ms, threads, picture, .. } = tuning;
    let of = picture.map(|[height, width, _]| format!(", for pictures of {width}x{height}"));
    let of = of.unwrap_or_default();
    say(format_args!(
        "{} through {}, {} {}\n{engine} is faster: gpu {gpu_ms:.3} ms, cpu {cpu_ms:.3} ms on {threads} threads{of}\n",
        adapter.name, adapter.backend, adapter.driver, adapter.driver_info
    ))?;
    if let Some(why) = &tuning.untuned {
        say(format_args!("kernels were not tuned: {why}\n"))?;
    }
    if let Some(why) = &tuning.alone {
        say(format_args!("kernels whose threads share memory are not used: {why}\n"))?;
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
