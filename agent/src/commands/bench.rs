//! `andon-agent bench`: how long one run of a network takes here. One JSON line, for people and for scripts that
//! compare runtimes: `{"median_ms":…,"min_ms":…,"p99_ms":…,"load_ms":…,"arena_bytes":…,"peak_resident_bytes":…,
//! "resident_before_bytes":…,"input_bytes":…,"engine":…}`. Loading is from the file to a session that can run; memory is the
//! process's, as the kernel counts it, at its peak and before loading; the images that it is given are made in between.
//! `--per-step` shows before that line what each step takes. With `--picture` a run begins with a camera's bytes, and
//! `"through_f32_median_ms"` and `"through_f32_min_ms"` are what it takes if they are resized and normalised first.

use std::{path::PathBuf, time::Duration};

use andon_agent::clock::{Clock, SystemClock};
use andon_protocol::release::{Fit, Input, Preprocessing};
use andon_runtime::{Data, Image, Model, Pictures, Session, Tensor, onnx::DataType, preprocess};
use anyhow::Context;

use super::{EngineArgs, bench_steps, load_model, say};

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// ONNX file, or a release's folder
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    /// Timed runs
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: u32,
    /// Runs before the first timed one
    #[arg(long, default_value_t = 10)]
    warmup: u32,
    /// Show first what each step takes, and its share of what this machine can do
    #[arg(long)]
    per_step: bool,
    /// Time a stream as well, in which a frame begins before the one before it has ended where the engine can do that
    #[arg(long)]
    stream: bool,
    /// Give the network an RGB picture of WIDTHxHEIGHT, which it resizes
    #[arg(long, value_parser = sides)]
    picture: Option<[usize; 2]>,
}

/// Width and height, of `WIDTHxHEIGHT`.
pub(super) fn sides(text: &str) -> Result<[usize; 2], String> {
    let (width, height) = text.split_once('x').ok_or("expected is WIDTHxHEIGHT")?;
    let side = |text: &str| {
        let side = text.parse().ok().filter(|side| (1..=8192).contains(side));
        side.ok_or_else(|| format!("{text:?} is not 1 to 8192"))
    };
    Ok([side(width)?, side(height)?])
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let before = resident_bytes("VmRSS:");
    let clock = SystemClock::new();
    let start = clock.elapsed();
    let model = load_model(&args.model)?;
    let threads = usize::from(args.engine.threads);
    let mut options = args.engine.options()?;
    if args.picture.is_some() {
        options.pictures = Some(meaning(&model)?);
    }
    let mut session = Session::new(&model, &options)?;
    let load = clock.elapsed().saturating_sub(start);
    args.engine.keep(&options)?;
    let types = model.inputs().into_iter().map(|port| port.data_type);
    let inputs = session.inputs().zip(types).map(|((name, shape), t)| {
        Ok((name.to_owned(), Tensor::noise(shape, t).map_err(anyhow::Error::msg)?))
    });
    let inputs: Vec<(String, Tensor)> = inputs.collect::<anyhow::Result<_>>()?;
    let (names, inputs): (Vec<String>, Vec<Tensor>) = inputs.into_iter().unzip();
    let mut inputs: Vec<(&str, Tensor)> = names.iter().map(String::as_str).zip(inputs).collect();
    let picture = args.picture.map(|sides| Picture::new(&model, &session, sides)).transpose()?;
    if let Some(picture) = &picture {
        inputs = vec![(&*picture.input.name, picture.bytes()?)];
    }
    let input_bytes: usize = inputs.iter().map(|(_, tensor)| bytes(tensor)).sum();
    // As on a device: once a session stands, the network's file is done with.
    let model = args.per_step.then_some(model);
    let (mut times, mut through_f32) = (vec![], vec![]);
    for i in 0..args.warmup + args.runs {
        // One way and the other in turns, so that both see the same machine.
        if let Some(picture) = &picture {
            let start = clock.elapsed();
            let real = preprocess(&picture.image, &picture.input, &picture.constants)?;
            session.run(&[(&picture.input.name, real)])?;
            through_f32.push(clock.elapsed().saturating_sub(start));
        }
        let start = clock.elapsed();
        session.run(&inputs)?;
        times.push(clock.elapsed().saturating_sub(start));
        if i < args.warmup {
            times.clear();
            through_f32.clear();
        }
    }
    times.sort_unstable();
    through_f32.sort_unstable();
    let stream = args.stream.then(|| stream(&mut session, &inputs, args.runs, &clock)).transpose()?;
    let mut result = serde_json::json!({
        "median_ms": ms(quantile(&times, 50)),
        "min_ms": ms(quantile(&times, 0)),
        "p99_ms": ms(quantile(&times, 99)),
        "load_ms": ms(load),
        "peak_resident_bytes": resident_bytes("VmHWM:"),
        "resident_before_bytes": before,
        "input_bytes": input_bytes,
        "arena_bytes": session.arena_bytes(),
        "engine": session.engine(),
    });
    if picture.is_some() {
        result["through_f32_median_ms"] = ms(quantile(&through_f32, 50)).into();
        result["through_f32_min_ms"] = ms(quantile(&through_f32, 0)).into();
    }
    if let Some(frame) = stream {
        result["stream_ms"] = ms(frame).into();
    }
    if let Some(model) = &model {
        bench_steps::show(model, &mut session, &inputs, args.runs, threads)?;
    }
    say(format_args!("{result}\n"))
}

/// For measuring, where nothing depends on what they are.
fn constants(model: &Model) -> anyhow::Result<Preprocessing> {
    let port = model.inputs().into_iter().next().context("the network has no input")?;
    let channels = match port.dims.as_deref() {
        Some([_, Some(channels @ (1 | 3)), _, _]) => *channels,
        _ => anyhow::bail!("input {:?} of {port} is for no pictures", port.name),
    };
    Ok(Preprocessing { mean: vec![114.0; channels], std: vec![57.0; channels] })
}

/// What RGB or grey pictures may mean to a network, stretched where they are of another size.
pub(super) fn meaning(model: &Model) -> anyhow::Result<Pictures> {
    let Preprocessing { mean, std } = constants(model)?;
    Ok(Pictures { mean, std, fit: Fit::Stretched })
}

/// A camera's picture, and what it is to be for a network.
struct Picture {
    image: Image,
    input: Input,
    constants: Preprocessing,
}

impl Picture {
    fn new(model: &Model, session: &Session, [width, height]: [usize; 2]) -> anyhow::Result<Self> {
        let engine = session.engine();
        anyhow::ensure!(session.takes_pictures(), "engine {engine} takes no pictures with this network");
        let noise = Tensor::noise(&[height, width, 3], Some(DataType::Uint8)).map_err(anyhow::Error::msg)?;
        let Data::U8(pixels) = noise.into_data() else { anyhow::bail!("no bytes were made up") };
        let image = Image::new(width, height, 3, pixels)?;
        let (name, shape) = session.inputs().next().context("the network has no input")?;
        let [1, channels, height, width] = *shape else { anyhow::bail!("{shape:?} is no picture's") };
        let [width, height, channels] = [width, height, channels].map(|side| side as u32);
        let input = Input { name: name.to_owned(), width, height, channels, fit: Fit::Stretched };
        Ok(Self { image, input, constants: constants(model)? })
    }

    fn bytes(&self) -> anyhow::Result<Tensor> {
        let dims = vec![1, self.image.height(), self.image.width(), 3];
        Ok(Tensor::new(dims, Data::U8(self.image.pixels().to_vec()))?)
    }
}

/// What a frame of a stream takes, on average.
fn stream(
    session: &mut Session,
    inputs: &[(&str, Tensor)],
    frames: u32,
    clock: &SystemClock,
) -> anyhow::Result<Duration> {
    session.run_next(Some(inputs))?;
    let start = clock.elapsed();
    for _ in 1..frames {
        session.run_next(Some(inputs))?;
    }
    session.run_next(None)?;
    Ok(clock.elapsed().saturating_sub(start) / frames)
}

/// Nearest rank, of sorted times; `times` is not empty.
pub(super) fn quantile(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent).div_ceil(100).clamp(1, times.len()) - 1]
}

fn bytes(tensor: &Tensor) -> usize {
    match tensor.data() {
        Data::U8(_) | Data::I8(_) | Data::Bool(_) => tensor.data().len(),
        Data::F32(_) | Data::I32(_) => tensor.data().len() * 4,
        Data::I64(_) => tensor.data().len() * 8,
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A field of what the kernel says about this process, where it does: `VmRSS:`, the memory it has now, or `VmHWM:`, the most
/// that it has had.
fn resident_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let of = |percent| quantile(&times, percent).as_millis();
        assert_eq!((of(0), of(50), of(99), of(100)), (1, 50, 99, 100));
        assert_eq!(quantile(&times[..1], 99).as_millis(), 1);
    }

    #[test]
    fn sides_are_two_numbers() {
        assert_eq!(sides("640x480"), Ok([640, 480]));
        for text in ["640", "640x", "0x480", "640x480x3", "8193x1", "-1x1"] {
            assert!(sides(text).is_err(), "{text}");
        }
    }
}
