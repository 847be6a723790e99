//! `andon-agent infer`: classes of image files, by a release or by any ONNX classifier with one image input `[N, C, H, W]`.

use std::path::{Path, PathBuf};

use andon_agent::clock::{Clock, SystemClock};
use andon_protocol::release::{Fit, Input, MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, Preprocessing};
use andon_runtime::{Classifier, ClassifierSpec, Image, ImageLimits, Judgement, Model, SessionOptions};
use anyhow::{Context, bail, ensure};

use super::{EngineArgs, load_model, read, say};

/// Mean and deviation of ImageNet, in units of 0 to 255: what most published classifiers were trained with.
const IMAGENET_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const IMAGENET_STD: [f32; 3] = [58.395, 57.12, 57.375];

const LABELS_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct InferArgs {
    /// ONNX file, or a release's folder
    #[arg(long)]
    model: PathBuf,
    /// PNG or JPEG files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Bare model: file with one label a line, in the order of the scores
    #[arg(long)]
    labels: Option<PathBuf>,
    /// Bare model: what is subtracted from pixels of 0 to 255, one value or one a channel [default: ImageNet's]
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true)]
    mean: Vec<f32>,
    /// Bare model: what pixels are divided by afterwards, one value or one a channel [default: ImageNet's]
    #[arg(long, value_delimiter = ',')]
    std: Vec<f32>,
    /// Bare model: width and height in pixels, where the model leaves its input's size open
    #[arg(long, value_parser = parse_size, value_name = "WxH")]
    size: Option<(u32, u32)>,
    /// Bare model: keep the aspect ratio of images, with bars of this grey (0 to 255) beside them
    #[arg(long, value_name = "GREY")]
    letterbox: Option<u8>,
    /// Classes to show, best first
    #[arg(long, default_value_t = 1)]
    top: usize,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    sides.ok_or_else(|| format!("{text:?} is not WIDTHxHEIGHT, for example 224x224"))
}

pub(crate) fn run(args: &InferArgs) -> anyhow::Result<()> {
    let options = args.engine.options()?;
    let (mut classifier, labels) = classifier(args, options.clone())?;
    args.engine.keep(&options)?;
    let clock = SystemClock::new();
    let mut failed = 0usize;
    for path in &args.images {
        let start = clock.elapsed();
        match classify(&mut classifier, path) {
            Ok(judgement) => {
                let latency_ms = clock.elapsed().saturating_sub(start).as_secs_f64() * 1e3;
                show(args, path, &judgement, &labels, latency_ms)?;
            }
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error:#}", path.display());
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} images could not be judged", args.images.len());
    Ok(())
}

fn classify(classifier: &mut Classifier, path: &Path) -> anyhow::Result<Judgement> {
    let limits = ImageLimits::default();
    let image = Image::decode(&read(path, limits.file_bytes_max)?, &limits)?;
    Ok(classifier.classify(&image)?)
}

fn show(
    args: &InferArgs,
    path: &Path,
    judgement: &Judgement,
    labels: &[String],
    latency_ms: f64,
) -> anyhow::Result<()> {
    let label = |class: usize| labels.get(class).cloned().unwrap_or_else(|| class.to_string());
    let mut order: Vec<usize> = (0..judgement.scores.len()).collect();
    order.sort_by(|a, b| judgement.scores[*b].total_cmp(&judgement.scores[*a]));
    order.truncate(args.top.max(1));
    if args.json {
        let scores: Vec<_> =
            order.iter().map(|c| serde_json::json!([label(*c), judgement.scores[*c]])).collect();
        let path = path.to_string_lossy();
        let (class, index) = (label(judgement.class), judgement.class);
        let line = serde_json::json!({"image": path, "class": class, "index": index, "scores": scores, "latency_ms": latency_ms});
        say(format_args!("{line}\n"))
    } else {
        let scores: Vec<String> =
            order.iter().map(|c| format!("{} {:.4}", label(*c), judgement.scores[*c])).collect();
        say(format_args!("{}  {}  ({latency_ms:.1} ms)\n", path.display(), scores.join(", ")))
    }
}

/// The classifier and its labels (none: classes are numbered).
fn classifier(args: &InferArgs, options: SessionOptions) -> anyhow::Result<(Classifier, Vec<String>)> {
    let model = load_model(&args.model)?;
    if args.model.is_dir() {
        let bare = args.labels.is_some()
            || !args.mean.is_empty()
            || !args.std.is_empty()
            || args.size.is_some()
            || args.letterbox.is_some();
        ensure!(
            !bare,
            "--labels, --mean, --std, --size and --letterbox are for a bare model, a release brings its own"
        );
        let path = args.model.join(MANIFEST_FILE);
        let manifest = Manifest::from_json(&read(&path, MANIFEST_BYTES_MAX)?);
        let manifest = manifest.with_context(|| format!("cannot use {}", path.display()))?;
        let classifier = Classifier::new(&model, &manifest, options)?;
        return Ok((classifier, manifest.labels));
    }
    let labels = args.labels.as_deref().map(read_labels).transpose()?.unwrap_or_default();
    let classes = args.labels.is_some().then_some(labels.len());
    let spec = bare_spec(&model, args, classes)?;
    Ok((Classifier::with_spec(&model, spec, options)?, labels))
}

fn read_labels(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = String::from_utf8(read(path, LABELS_BYTES_MAX)?);
    let text = text.with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

/// What the graph itself tells, and for the rest the options.
fn bare_spec(model: &Model, args: &InferArgs, classes: Option<usize>) -> anyhow::Result<ClassifierSpec> {
    let inputs = model.inputs();
    let [port] = &*inputs else { bail!("the model has {} inputs, expected one image", inputs.len()) };
    let dims = port.dims.as_deref().unwrap_or(&[None, None, None, None]);
    let &[_, channels, height, width] = dims else {
        bail!("input {:?} has shape {port}, expected [N, C, H, W]", port.name);
    };
    let (width, height) = match (args.size, width, height) {
        (Some(size), ..) => size,
        (None, Some(w), Some(h)) => (u32::try_from(w)?, u32::try_from(h)?),
        _ => bail!("input {:?} has shape {port}: give its size, for example --size 224x224", port.name),
    };
    let channels = u32::try_from(channels.unwrap_or(3))?;
    ensure!(matches!(channels, 1 | 3), "input {:?} has shape {port}, expected 1 or 3 channels", port.name);
    let spread = |given: &[f32], default: [f32; 3]| match given {
        [] => default[..channels as usize].to_vec(),
        [one] => vec![*one; channels as usize],
        many => many.to_vec(),
    };
    let std = spread(&args.std, IMAGENET_STD);
    ensure!(std.iter().all(|s| s.is_finite() && *s > 0.0), "--std must be positive");
    let preprocessing = Preprocessing { mean: spread(&args.mean, IMAGENET_MEAN), std };
    let scores = model.outputs().into_iter().next().context("the model has no output")?;
    let fit = args.letterbox.map_or(Fit::Stretched, |fill| Fit::Letterboxed { fill });
    let input = Input { name: port.name.clone(), width, height, channels, fit };
    Ok(ClassifierSpec { input, preprocessing, scores, embedding: None, classes })
}

#[cfg(test)]
mod tests {
    use andon_runtime::onnx::{DataType, Dimension, GraphProto, ModelProto, NodeProto, ValueInfoProto};
    use clap::Parser;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: InferArgs,
    }

    /// The mean of each channel as a score: a classifier that says which colour a picture is.
    fn write_model(path: &Path, size: Option<usize>) {
        let mut input = ValueInfoProto::new("pixels", DataType::Float, &[1, 3, 8, 8]);
        let tensor = input.r#type.as_mut().and_then(|t| t.tensor_type.as_mut()).unwrap();
        for dim in &mut tensor.shape.as_mut().unwrap().dim[2..] {
            dim.value = size.map(|s| Dimension::Value(s as i64));
        }
        let graph = GraphProto {
            name: "colours".into(),
            node: vec![
                NodeProto::new("GlobalAveragePool", "pool", ["pixels"], ["means"]),
                NodeProto::new("Flatten", "flatten", ["means"], ["scores"]),
            ],
            input: vec![input],
            output: vec![ValueInfoProto::new("scores", DataType::Float, &[1, 3])],
            ..Default::default()
        };
        std::fs::write(path, ModelProto::new(graph, 17).to_bytes()).unwrap();
    }

    /// Class of a green picture, or the error.
    fn judge(folder: &Path, options: &[&str]) -> Result<String, String> {
        let image = folder.join("green.png");
        image::RgbImage::from_pixel(16, 12, image::Rgb([10, 200, 30])).save(&image).unwrap();
        let model = folder.join("model.onnx");
        let fixed = ["infer", "--model", model.to_str().unwrap(), image.to_str().unwrap()];
        let args = Line::try_parse_from(fixed.iter().chain(options)).map_err(|e| e.to_string())?.args;
        let judged = classifier(&args, SessionOptions::default()).and_then(|(mut classifier, labels)| {
            let judgement = classify(&mut classifier, &image)?;
            Ok(labels.get(judgement.class).cloned().unwrap_or_else(|| judgement.class.to_string()))
        });
        judged.map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn any_classifier_with_an_image_input_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let labels = folder.path().join("labels.txt");
        std::fs::write(&labels, "red\ngreen\nblue\n").unwrap();
        let labels = labels.to_str().unwrap();
        write_model(&folder.path().join("model.onnx"), Some(8));
        assert_eq!(judge(folder.path(), &[]), Ok("1".into()));
        assert_eq!(
            judge(folder.path(), &["--labels", labels, "--mean", "0", "--std", "255"]),
            Ok("green".into())
        );
        assert_eq!(judge(folder.path(), &["--mean=0,250,0", "--std", "1"]), Ok("2".into()));
        let error = judge(folder.path(), &["--mean", "1,2"]).unwrap_err();
        assert!(error.contains("mean and std need 3 values each"), "{error}");
        let error = judge(folder.path(), &["--size", "9x9"]).unwrap_err();
        assert!(error.contains("takes [1, 3, 8, 8], not [1, 3, 9, 9]"), "{error}");
        std::fs::write(labels, "red\ngreen\n").unwrap();
        let error = judge(folder.path(), &["--labels", labels]).unwrap_err();
        assert!(error.contains("has 3 values, expected 2"), "{error}");
    }

    #[test]
    fn a_size_that_the_model_leaves_open_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        write_model(&folder.path().join("model.onnx"), None);
        assert!(judge(folder.path(), &[]).unwrap_err().contains("give its size, for example --size 224x224"));
        assert_eq!(judge(folder.path(), &["--size", "6x4"]), Ok("1".into()));
    }

    #[test]
    fn sizes_are_width_by_height() {
        assert_eq!(parse_size("224x128"), Ok((224, 128)));
        for bad in ["224", "x", "224x", "-1x4", "4x4x4"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
