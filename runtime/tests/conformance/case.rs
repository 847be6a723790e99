//! One case: a network, inputs, and the outputs that ONNX's reference gives for them.

use std::{fs, path::Path};

use andon_runtime::{
    Data, Graph, Limits, Model, Session, SessionOptions, Tensor,
    onnx::{DataType, ModelProto, TensorProto},
};
use prost::Message;

/// The official tolerance for floats; everything else must be equal.
const RELATIVE: f32 = 1e-3;
const ABSOLUTE: f32 = 1e-7;

pub(crate) struct Case {
    pub(crate) name: String,
    model: ModelProto,
    inputs: Vec<TensorProto>,
    outputs: Vec<TensorProto>,
}

/// In which form a case passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    AsWritten,
    /// All inputs but the first made constants: shapes, scales and axes, which networks in use have as constants.
    ConstantParameters,
}

impl Case {
    /// `model.onnx` and `test_data_set_0/{input,output}_K.pb`, if the model is selected.
    pub(crate) fn read(folder: &Path, is_selected: impl Fn(&ModelProto) -> bool) -> Option<Self> {
        let model = ModelProto::decode(&*fs::read(folder.join("model.onnx")).unwrap()).unwrap();
        let graph = is_selected(&model).then_some(model.graph.as_ref()?)?;
        let set = folder.join("test_data_set_0");
        let list = |kind: &str, names: Vec<String>| {
            let one = |(k, name)| tensor(&set.join(format!("{kind}_{k}.pb")), name);
            names.into_iter().enumerate().map(one).collect()
        };
        let inputs = list("input", graph.input.iter().map(|v| v.name.clone()).collect());
        let outputs = list("output", graph.output.iter().map(|v| v.name.clone()).collect());
        Some(Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            model,
            inputs,
            outputs,
        })
    }

    /// The form in which it passes, or why it does not.
    pub(crate) fn run(&self) -> Result<Form, String> {
        let as_written = match self.attempt(&self.model, &self.inputs) {
            Ok(()) => return Ok(Form::AsWritten),
            Err(reason) => reason,
        };
        let Some((first, parameters)) = self.inputs.split_first().filter(|(_, rest)| !rest.is_empty()) else {
            return Err(as_written);
        };
        let mut model = self.model.clone();
        let graph = model.graph.as_mut().unwrap();
        graph.input.retain(|v| !parameters.iter().any(|p| p.name == v.name));
        graph.initializer.extend_from_slice(parameters);
        self.attempt(&model, std::slice::from_ref(first)).map(|()| Form::ConstantParameters)
    }

    fn attempt(&self, model: &ModelProto, inputs: &[TensorProto]) -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let limits = Limits::default();
        let graph = Graph::read(&model.to_bytes(), &limits).map_err(|e| text(&e))?;
        let model = Model::from_graph(graph, &limits).map_err(|e| text(&e))?;
        let inputs: Vec<(&str, Tensor)> = inputs
            .iter()
            .map(|proto| Ok((proto.name.as_str(), value(proto)?)))
            .collect::<Result<_, String>>()?;
        let input_shapes = inputs.iter().map(|(name, t)| ((*name).to_owned(), t.shape().to_vec())).collect();
        let options = SessionOptions { input_shapes, ..Default::default() };
        let mut session = Session::new(&model, &options).map_err(|e| text(&e))?;
        let outputs = session.run(&inputs).map_err(|e| text(&e))?;
        for expected in &self.outputs {
            let actual =
                outputs.get(&expected.name).ok_or_else(|| format!("no output {:?}", expected.name))?;
            compare(actual, &value(expected)?).map_err(|e| format!("output {:?}: {e}", expected.name))?;
        }
        Ok(())
    }
}

/// A file that is one bare `TensorProto`, under the name that the graph has for it.
pub(crate) fn tensor(path: &Path, name: String) -> TensorProto {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    TensorProto { name, ..TensorProto::decode(&*bytes).unwrap() }
}

pub(crate) fn value(proto: &TensorProto) -> Result<Tensor, String> {
    let wrong = |e: andon_runtime::onnx::TensorError| e.to_string();
    let data = match proto.element_type().map_err(wrong)? {
        DataType::Float => Data::F32(proto.to_f32().map_err(wrong)?),
        DataType::Uint8 => Data::U8(proto.to_u8().map_err(wrong)?),
        DataType::Int8 => Data::I8(proto.to_i8().map_err(wrong)?),
        DataType::Int32 => Data::I32(proto.to_i32().map_err(wrong)?),
        DataType::Int64 => Data::I64(proto.to_i64().map_err(wrong)?),
        // All of them have their elements as raw bytes.
        DataType::Bool => Data::Bool(proto.raw_data.iter().map(|b| *b != 0).collect()),
        other => return Err(format!("elements of type {other:?}")),
    };
    Tensor::new(proto.shape().ok_or("a negative dimension")?, data).map_err(|e| e.to_string())
}

/// Type and shape equal, floats within the tolerance, everything else equal.
pub(crate) fn compare(actual: &Tensor, expected: &Tensor) -> Result<(), String> {
    let form = |t: &Tensor| format!("{} {:?}", t.data().type_name(), t.shape());
    if actual.shape() != expected.shape() || actual.data().type_name() != expected.data().type_name() {
        return Err(format!("expected {}, found {}", form(expected), form(actual)));
    }
    let (Data::F32(ours), Data::F32(theirs)) = (actual.data(), expected.data()) else {
        let equal = actual == expected;
        return if equal { Ok(()) } else { Err(format!("{} differs, tolerance 0", form(actual))) };
    };
    let near = |(a, e): (&f32, &f32)| {
        a == e || (a.is_nan() && e.is_nan()) || (a - e).abs() <= ABSOLUTE + RELATIVE * e.abs()
    };
    let pairs = || ours.iter().zip(theirs);
    match pairs().position(|pair| !near(pair)) {
        None => Ok(()),
        Some(at) => {
            let count = pairs().filter(|pair| !near(*pair)).count();
            Err(format!(
                "{count} of {} differ, first expected {}, found {}",
                ours.len(),
                theirs[at],
                ours[at]
            ))
        }
    }
}
