//! `andon-trainer`: first releases (`fit`), retrain jobs (`work`), figures (`evaluate`).

use std::{
    io::IsTerminal,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use andon_trainer::{
    clock,
    evaluate::evaluate,
    fit::{Base, FitOptions, fit, prepare},
    worker::{Once, work},
};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Parser)]
#[command(version, about = "Trains, quantises and proves the models of Andon")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the first release of a model from labelled images.
    Fit(Fit),
    /// Do the retrain jobs that appear in a queue folder.
    Work {
        /// The folder with the jobs.
        #[arg(long)]
        queue: PathBuf,
        /// Stop when no job is waiting.
        #[arg(long)]
        once: bool,
        /// Give the job back and stop when standard input ends: a parent that holds the other end of it and dies takes
        /// its workers along.
        #[arg(long)]
        until_stdin_ends: bool,
    },
    /// Measure a release on labelled images, with the engine that devices run.
    Evaluate {
        /// Folder with model.onnx and manifest.json.
        #[arg(long)]
        release: PathBuf,
        #[arg(long)]
        images: PathBuf,
        #[arg(long, default_value = "validation")]
        split: String,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Args)]
struct Fit {
    /// Folder with labels.csv (file,class,split), or with one folder per class.
    #[arg(long)]
    images: PathBuf,
    /// Published EfficientNet-Lite0 weights (.pth).
    #[arg(long, required_unless_present = "base", conflicts_with = "base")]
    weights: Option<PathBuf>,
    /// A float classifier of your own, as ONNX.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Name of the model, a-z, 0-9, '-', '_', '.'.
    #[arg(long)]
    model: String,
    /// Where release/, float.onnx and report.json go.
    #[arg(long)]
    out: PathBuf,
    /// Side of the network's input in pixels.
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Fewer images and epochs: a sane model in a fraction of the time.
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long)]
    epochs: Option<usize>,
    #[arg(long)]
    train_images_max: Option<usize>,
    #[arg(long, default_value_t = 0.004)]
    learning_rate: f32,
    /// The class that rejects a part; common names are recognised.
    #[arg(long)]
    reject: Option<String>,
    /// Mean of each input channel, in units of 0 to 255, comma separated.
    #[arg(long, value_delimiter = ',')]
    mean: Option<Vec<f32>>,
    /// Standard deviation of each input channel.
    #[arg(long, value_delimiter = ',')]
    std: Option<Vec<f32>>,
    /// Keep the aspect ratio of images, with bars of this grey (0 to 255) beside them; otherwise they are stretched.
    #[arg(long, value_name = "GREY")]
    letterbox: Option<u8>,
    /// Least share of validation images on which int8 and float must agree.
    #[arg(long, default_value_t = 0.98)]
    agreement_min: f64,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "andon_trainer=info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Fit(arguments) => run_fit(arguments),
        Command::Work { queue, once, until_stdin_ends } => {
            let once = if once { Once::Yes } else { Once::No };
            let ended = Arc::new(AtomicBool::new(false));
            if until_stdin_ends {
                let ended = Arc::clone(&ended);
                std::thread::spawn(move || {
                    // Whatever comes is not for us; an error is an end too.
                    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
                    ended.store(true, Ordering::Relaxed);
                });
            }
            let stop = || {
                if ended.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            work(&queue, once, &stop)
        }
        Command::Evaluate { release, images, split, seed } => {
            let metrics = evaluate(&release, &images, &split, seed)?;
            println!("{}", serde_json::to_string_pretty(&metrics)?);
            Ok(())
        }
    }
}

fn run_fit(a: Fit) -> anyhow::Result<()> {
    let base = match (a.weights, a.base) {
        (Some(weights), _) => Base::EfficientNetLite0(weights),
        (None, Some(onnx)) => Base::Onnx(onnx),
        (None, None) => anyhow::bail!("give --weights or --base"),
    };
    let options = FitOptions {
        images: a.images,
        base,
        model: a.model,
        out: a.out,
        size: a.size,
        seed: a.seed,
        epochs: a.epochs.unwrap_or(if a.quick { 3 } else { 5 }),
        train_images_max: a.train_images_max.unwrap_or(if a.quick { 300 } else { usize::MAX }),
        learning_rate: a.learning_rate,
        reject: a.reject,
        mean: a.mean,
        std: a.std,
        letterbox: a.letterbox,
        agreement_min: a.agreement_min,
        created_ms: clock::now_ms(),
    };
    prepare(&options.out)?;
    let meter = Meter::new();
    let report = fit(&options, &|done, stage| meter.show(done, stage))?;
    meter.bar.finish_and_clear();
    for (name, reason) in &report.broken {
        eprintln!("skipped {name}: {reason}");
    }
    for (name, value) in &report.numbers {
        println!("{name:40} {value:.4}");
    }
    println!("wrote {}", options.out.join("release").display());
    Ok(())
}

/// A bar on a terminal, a line per stage elsewhere.
struct Meter {
    bar: ProgressBar,
    stage: Mutex<String>,
}

impl Meter {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed} {msg}");
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new(1000) } else { ProgressBar::hidden() };
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self { bar, stage: Mutex::new(String::new()) }
    }

    fn show(&self, done: f32, stage: &str) -> ControlFlow<()> {
        self.bar.set_position((done * 1000.0) as u64);
        let mut shown = self.stage.lock().unwrap_or_else(|e| e.into_inner());
        if *shown != stage {
            stage.clone_into(&mut shown);
            self.bar.set_message(stage.to_owned());
            if self.bar.is_hidden() {
                eprintln!("{:3.0} % {stage}", done * 100.0);
            }
        }
        ControlFlow::Continue(())
    }
}
