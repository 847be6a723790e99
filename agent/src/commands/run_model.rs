//! `andon-agent run --model`: a network over arrays in files, so that anyone can compare it with another runtime.
//!
//! Inputs are `.npy` files, the result is one `.npz` with every output under its ONNX name; with `--all-tensors` also with
//! every tensor of the network that is made of bytes. Those become outputs of the graph before an engine sees it, so
//! that each engine gives them as what they are; an engine that would have fused one away computes it.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use andon_runtime::{
    Graph, Limits, Model, NodeId, Session, SessionOptions, Tensor, ValueId,
    onnx::{DataType, NodeProto, ValueInfoProto},
};
use anyhow::{Context, Result, bail, ensure};

use super::{EngineArgs, load_model, npy, read, say};

#[derive(Debug, clap::Args)]
pub(crate) struct RunModelArgs {
    /// Run this network once instead: ONNX file, or a release's folder
    #[arg(long, requires = "output")]
    pub(crate) model: Option<PathBuf>,
    /// An input as .npy; NAME=FILE where the network has several
    #[arg(long, value_name = "[NAME=]FILE", requires = "model")]
    input: Vec<String>,
    /// Where the results go, as .npz
    #[arg(long, requires = "model")]
    output: Option<PathBuf>,
    /// Write every quantised tensor of the network, too, as u8 or i8 under its ONNX name
    #[arg(long, requires = "model")]
    all_tensors: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

pub(crate) fn run(model: &Path, args: &RunModelArgs) -> Result<()> {
    let output = args.output.as_deref().context("--output is missing")?;
    let mut model = load_model(model)?;
    let inputs = inputs(&model, &args.input)?;
    if args.all_tensors {
        model = with_byte_outputs(&model)?;
    }
    let options = SessionOptions {
        input_shapes: inputs.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect(),
        ..args.engine.options()?
    };
    let mut session = Session::new(&model, &options)?;
    args.engine.keep(&options)?;
    let inputs: Vec<(&str, Tensor)> =
        inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let outputs = session.run(&inputs)?;

    let cannot = || format!("cannot write {}", output.display());
    let mut archive = npy::NpzWriter::new(BufWriter::new(File::create(output).with_context(cannot)?));
    // The embedding of a classifier comes along unasked.
    let wanted = model.outputs();
    for (name, tensor) in outputs.iter().filter(|(name, _)| wanted.iter().any(|w| w == name)) {
        archive.add(name, tensor).with_context(cannot)?;
        say(format_args!("{name}  {} {:?}\n", tensor.data().type_name(), tensor.shape()))?;
    }
    archive.finish().with_context(cannot)?;
    let count = wanted.len();
    say(format_args!("engine {}: {count} tensors written to {}\n", session.engine(), output.display()))
}

/// The arrays given, by the names of the network's inputs.
fn inputs(model: &Model, given: &[String]) -> Result<Vec<(String, Tensor)>> {
    let names: Vec<String> = model.inputs().into_iter().map(|port| port.name).collect();
    let mut inputs = Vec::with_capacity(given.len());
    for text in given {
        // A name of the network before the first `=`; else all of it is a file.
        let named = text.split_once('=').filter(|(name, _)| names.iter().any(|n| n == name));
        let (name, path) = match (named, &*names) {
            (Some((name, path)), _) => (name.to_owned(), path),
            (None, [only]) => (only.clone(), text.as_str()),
            (None, _) => bail!("{text:?} names none of the inputs {names:?}, give NAME=FILE"),
        };
        ensure!(!inputs.iter().any(|(known, _)| *known == name), "input {name:?} is given twice");
        let path = Path::new(path);
        let tensor = npy::read(&read(path, Limits::default().file_bytes_max)?);
        inputs.push((name, tensor.with_context(|| format!("cannot use {}", path.display()))?));
    }
    Ok(inputs)
}

/// The network with every value of bytes as one of its outputs.
fn with_byte_outputs(model: &Model) -> Result<Model> {
    let graph = model.graph();
    let mut proto = graph.model_proto().clone();
    let outputs = &mut proto.graph.as_mut().context("the model has no graph")?.output;
    for id in byte_values(graph).into_iter().filter(|id| !graph.outputs().contains(id)) {
        outputs.push(ValueInfoProto { name: graph.value(id).name.clone(), r#type: None });
    }
    Ok(Model::from_graph(Graph::new(proto)?, model.limits())?)
}

/// Computed values whose elements are u8 or i8, in the order in which they are computed.
fn byte_values(graph: &Graph) -> Vec<ValueId> {
    let is_byte = |t: Option<DataType>| matches!(t, Some(DataType::Uint8 | DataType::Int8));
    let mut bytes: Vec<bool> = graph.values().map(|id| is_byte(graph.data_type_of_input(id))).collect();
    let mut found = Vec::new();
    for (id, node, proto) in graph.nodes() {
        let first = node.inputs.first().copied().flatten();
        let outputs = match proto.op_type.as_str() {
            "QuantizeLinear" => usize::from(is_byte(quantised_type(graph, id, proto))),
            "DynamicQuantizeLinear" => 1,
            op if op.starts_with("QLinear") => 1,
            op if moves_elements(op) && first.is_some_and(|v| bytes[v.index()]) => node.outputs.len(),
            _ => 0,
        };
        for output in node.outputs.iter().take(outputs).flatten() {
            bytes[output.index()] = true;
            found.push(*output);
        }
    }
    found
}

/// What a `QuantizeLinear` gives: the type of its zero point, u8 if it has none.
fn quantised_type(graph: &Graph, id: NodeId, proto: &NodeProto) -> Option<DataType> {
    match graph.node(id).inputs.get(2).copied().flatten() {
        Some(zero) => graph.constant(zero)?.element_type().ok(),
        None => match proto.int("output_dtype").unwrap_or(0) {
            0 => Some(DataType::Uint8),
            code => DataType::try_from(i32::try_from(code).ok()?).ok(),
        },
    }
}

/// Operators whose outputs are elements of their first input.
fn moves_elements(operator: &str) -> bool {
    const MOVERS: [&str; 17] = [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ];
    MOVERS.contains(&operator)
}

#[cfg(test)]
mod tests {
    use andon_runtime::{
        Data,
        onnx::{GraphProto, ModelProto, TensorProto},
    };
    use clap::Parser;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: RunModelArgs,
    }

    /// `image` → bytes → their maximum a channel → real numbers `y`.
    fn write_model(path: &Path) {
        let graph = GraphProto {
            name: "pool".into(),
            node: vec![
                NodeProto::new("QuantizeLinear", "", ["image", "scale", "zero"], ["image.q"]),
                NodeProto::new("MaxPool", "", ["image.q"], ["pool.q"]).with_ints("kernel_shape", &[1, 2]),
                NodeProto::new("DequantizeLinear", "", ["pool.q", "scale", "zero"], ["y"]),
            ],
            initializer: vec![TensorProto::f32("scale", &[], &[0.5]), TensorProto::u8("zero", &[], &[10])],
            input: vec![ValueInfoProto::new("image", DataType::Float, &[1, 1, 2, 2])],
            output: vec![ValueInfoProto::new("y", DataType::Float, &[1, 1, 2, 1])],
            ..Default::default()
        };
        std::fs::write(path, ModelProto::new(graph, 17).to_bytes()).unwrap();
    }

    fn run_with(folder: &Path, options: &[&str]) -> Result<Vec<u8>, String> {
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        write_model(&folder.join("model.onnx"));
        let image = Tensor::f32(vec![1, 1, 2, 2], vec![1.0, 2.0, -1.0, -2.0]).unwrap();
        std::fs::write(folder.join("image.npy"), npy::write(&image)).unwrap();
        let fixed = ["run", "--model", &at("model.onnx"), "--output", &at("out.npz")];
        let args = Line::try_parse_from(fixed.iter().chain(options)).map_err(|e| e.to_string())?.args;
        run(&folder.join("model.onnx"), &args).map_err(|e| format!("{e:#}"))?;
        Ok(std::fs::read(folder.join("out.npz")).unwrap())
    }

    #[test]
    fn outputs_and_tensors_of_bytes_are_written_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let input = format!("image={}", folder.path().join("image.npy").display());
        let y = npy::write(&Tensor::f32(vec![1, 1, 2, 1], vec![2.0, -1.0]).unwrap());
        let pool = npy::write(&Tensor::new(vec![1, 1, 2, 1], Data::U8(vec![14, 8])).unwrap());
        let holds = |file: &[u8], part: &[u8]| file.windows(part.len()).any(|w| w == part);
        for engine in ["cpu", "tract"] {
            let some = run_with(folder.path(), &["--input", &input, "--engine", engine]).unwrap();
            assert!(holds(&some, &y) && !holds(&some, &pool), "{engine}");
            let all =
                run_with(folder.path(), &["--input", &input, "--engine", engine, "--all-tensors"]).unwrap();
            assert!(holds(&all, &y) && holds(&all, &pool) && holds(&all, b"image.q.npy"), "{engine}");
        }
    }

    #[test]
    fn what_was_tuned_is_read_here_too() {
        let folder = tempfile::tempdir().unwrap();
        let [input, tuning] =
            ["image.npy", "tuning.json"].map(|name| folder.path().join(name).display().to_string());
        std::fs::write(&tuning, b"{}").unwrap();
        let why = run_with(folder.path(), &["--input", &input, "--tuning", &tuning]).unwrap_err();
        assert!(why.contains("is no tuning"), "{why}");
    }

    #[test]
    fn inputs_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |options: &[&str]| run_with(folder.path(), options).unwrap_err();
        assert!(error(&[]).contains("input \"image\" is missing"), "{}", error(&[]));
        let image = folder.path().join("image.npy");
        let image = image.to_str().unwrap();
        assert!(error(&["--input", image, "--input", image]).contains("given twice"));
        let model = folder.path().join("model.onnx");
        assert!(error(&["--input", model.to_str().unwrap()]).contains("no NumPy array"));
    }
}
