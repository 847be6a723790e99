//! Of the folder `node`, the cases whose element types cross our border: those with exactly one node, of an operator that
//! vision networks are made of; and those of several nodes, whatever they are (ONNX's functions written out, mostly).

use std::io::Write;

use andon_runtime::onnx::{DataType, ModelProto, NodeProto, OPSET_MAX};

use crate::{
    case::{Case, Form},
    data, entries,
    expectations::{ONE, SEVERAL},
};

const OPERATORS: [&str; 54] = [
    "Conv",
    "ConvTranspose",
    "QLinearConv",
    "ConvInteger",
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearMatMul",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Relu",
    "Clip",
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "Softmax",
    "Add",
    "Mul",
    "Sub",
    "Div",
    "Concat",
    "Slice",
    "Split",
    "Resize",
    "Pad",
    "Transpose",
    "Reshape",
    "Flatten",
    "Gemm",
    "MatMul",
    "ReduceMean",
    "ArgMax",
    "TopK",
    "NonMaxSuppression",
    "Gather",
    "Unsqueeze",
    "Squeeze",
    "DepthToSpace",
    "LeakyRelu",
    "PRelu",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Erf",
    "Gelu",
    "Exp",
    "Sqrt",
    "Where",
    "Shape",
    "Expand",
    "Tile",
];
const TYPES: [DataType; 6] =
    [DataType::Float, DataType::Uint8, DataType::Int8, DataType::Int32, DataType::Int64, DataType::Bool];
/// How many each rule selects; another number means that the data or the rule is not what it was.
const SELECTED: [usize; 2] = [359, 280];

fn cases(is_selected: impl Fn(&[NodeProto]) -> bool) -> Vec<Case> {
    let plain = |t: Option<DataType>| t.is_some_and(|t| TYPES.contains(&t));
    let fits = |model: &ModelProto| {
        let graph = model.graph.as_ref().unwrap();
        let known = model.opset().is_some_and(|version| version <= OPSET_MAX);
        let mut ports = graph.input.iter().chain(&graph.output);
        known && is_selected(&graph.node) && ports.all(|v| plain(v.data_type()))
    };
    entries(&data().join("node")).iter().filter_map(|folder| Case::read(folder, fits)).collect()
}

#[test]
fn cases_of_one_operator_pass_but_those_expected_to_fail() {
    let cases = cases(|nodes| matches!(nodes, [node] if OPERATORS.contains(&&*node.op_type)));
    assert_eq!(cases.len(), SELECTED[0]);
    check("cases of one operator", &cases, ONE);
}

#[test]
fn cases_of_several_operators_pass_but_those_expected_to_fail() {
    // No network in use ends in the loss it was trained with.
    let cases =
        cases(|nodes| nodes.len() > 1 && nodes.iter().all(|n| n.op_type != "NegativeLogLikelihoodLoss"));
    assert_eq!(cases.len(), SELECTED[1]);
    check("cases of several operators", &cases, SEVERAL);
}

/// Runs all and says how many passed. Fails where a case fails that is not expected to, and where one passes that is.
fn check(what: &str, cases: &[Case], expected: &[(&str, &str)]) {
    let results: Vec<(&Case, Result<Form, String>)> = cases.iter().map(|case| (case, case.run())).collect();
    let passed = |form| results.iter().filter(|(_, result)| *result == Ok(form)).count();
    let (written, constant) = (passed(Form::AsWritten), passed(Form::ConstantParameters));
    let mut report = format!(
        "{what}: {} of {} pass, {written} as written, {constant} with constant parameters\n",
        written + constant,
        cases.len(),
    );
    let mut wrong = String::new();
    for (Case { name, .. }, result) in &results {
        let reason = expected.iter().find(|(case, _)| case == name).map(|(_, reason)| reason);
        match (result, reason) {
            (Ok(_), None) => {}
            (Ok(_), Some(_)) => wrong += &format!("{name}: passes now, remove it from the expectations\n"),
            (Err(error), Some(reason)) => {
                report += &format!("  fails as expected: {name}: {reason} ({error})\n")
            }
            (Err(error), None) => wrong += &format!("{name}: {error}\n"),
        }
    }
    for (name, _) in expected.iter().filter(|(name, _)| !cases.iter().any(|case| case.name == *name)) {
        wrong += &format!("{name}: is expected to fail, and is no case\n");
    }
    // Past the harness, which would show it only after a failure.
    std::io::stderr().write_all(report.as_bytes()).unwrap();
    assert!(wrong.is_empty(), "\n{wrong}");
}
