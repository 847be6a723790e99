//! Networks in operator form (`QLinearConv` and its like) as networks in Q/DQ form, which is all that planning knows.
//!
//! A node whose scales and zero points are constants becomes its inputs dequantised, the plain operator, and a
//! `QuantizeLinear`; the byte engine makes one step of them again. Others stay as they are. Operators are ONNX's own
//! (QLinearConv 10, QLinearMatMul 10 and 21) and those that ONNX Runtime's quantiser writes (domain `com.microsoft`, 1).

use std::collections::HashMap;

use crate::onnx::{GraphProto, NodeProto, TensorProto};

/// The inputs that belong together: a tensor, its scale, its zero point.
type Quantised = [usize; 3];

/// How the inputs of an operator are laid out.
struct Form {
    operator: &'static str,
    inputs: Vec<Quantised>,
    /// Scale and zero point of the output.
    output: [usize; 2],
    /// i32, of the scale of the first two inputs together.
    bias: Option<usize>,
}

fn form(node: &NodeProto) -> Option<Form> {
    let form = |operator, inputs: &[Quantised], output| Form {
        operator,
        inputs: inputs.to_vec(),
        output,
        bias: None,
    };
    let one = |operator| Some(form(operator, &[[0, 1, 2]], [3, 4]));
    let two = |operator| Some(form(operator, &[[0, 1, 2], [3, 4, 5]], [6, 7]));
    let standard = matches!(&*node.domain, "" | "ai.onnx");
    match node.op_type.as_str() {
        "QLinearConv" if standard => two("Conv").map(|form| Form { bias: Some(8), ..form }),
        "QLinearMatMul" if standard => two("MatMul"),
        _ if node.domain != "com.microsoft" => None,
        "QLinearAdd" => two("Add"),
        "QLinearMul" => two("Mul"),
        "QGemm" => Some(Form { bias: Some(6), ..form("Gemm", &[[0, 1, 2], [3, 4, 5]], [7, 8]) }),
        "QLinearSigmoid" => one("Sigmoid"),
        "QLinearLeakyRelu" => one("LeakyRelu"),
        "QLinearSoftmax" => one("Softmax"),
        "QLinearReduceMean" => one("ReduceMean"),
        // Of the layouts that they can have, ONNX's.
        "QLinearAveragePool" if node.int("channels_last").unwrap_or(0) == 0 => one("AveragePool"),
        "QLinearGlobalAveragePool" if node.int("channels_last").unwrap_or(0) == 0 => one("GlobalAveragePool"),
        "QLinearConcat" => {
            let inputs: Vec<Quantised> =
                (2..node.input.len().checked_sub(2)?).step_by(3).map(|i| [i, i + 1, i + 2]).collect();
            Some(form("Concat", &inputs, [0, 1]))
        }
        _ => None,
    }
}

/// Rewrites what can be rewritten; nothing else changes, and outputs keep their names.
pub(crate) fn to_qdq(graph: &mut GraphProto) {
    if !graph.node.iter().any(|node| form(node).is_some()) {
        return;
    }
    let mut constants: HashMap<String, TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect();
    for node in graph.node.iter().filter(|node| node.op_type == "Constant") {
        if let (Some(value), Some(output)) = (node.tensor("value"), node.output.first()) {
            constants.insert(output.clone(), value.clone());
        }
    }
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        match form(&node).and_then(|form| rewritten(&node, &form, &constants)) {
            Some((instead, scale)) => {
                nodes.extend(instead);
                graph.initializer.extend(scale);
            }
            None => nodes.push(node),
        }
    }
    graph.node = nodes;
}

/// What takes a node's place, and the scales of its bias.
fn rewritten(
    node: &NodeProto,
    form: &Form,
    constants: &HashMap<String, TensorProto>,
) -> Option<(Vec<NodeProto>, Option<TensorProto>)> {
    let constant = |index: usize| constants.get(node.input_name(index)?);
    let output = node.output.first().filter(|name| !name.is_empty())?;
    let [scale, zero] = form.output;
    let parameters = form.inputs.iter().flat_map(|[_, scale, zero]| [*scale, *zero]).chain([scale, zero]);
    for index in parameters {
        // A zero point may be left out.
        if node.input_name(index).is_some() {
            constant(index)?;
        }
    }
    constant(scale)?;
    let mut nodes = vec![];
    let mut real = |index: usize, inputs: Vec<String>, axis: Option<i64>| {
        let name = format!("{output}/andon/{index}");
        let node = NodeProto::new("DequantizeLinear", "", inputs, [&*name]);
        nodes.push(match axis {
            Some(axis) => node.with_int("axis", axis),
            None => node,
        });
        name
    };
    let named = |indices: &[usize]| -> Vec<String> {
        indices.iter().filter_map(|i| node.input_name(*i)).map(str::to_owned).collect()
    };
    let many = |index: usize| constant(index).and_then(TensorProto::elements).is_some_and(|n| n > 1);
    let mut inputs = vec![];
    for [tensor, scale, zero] in &form.inputs {
        constant(*scale)?;
        // Scales of weights run along what their results run along.
        let rows = form.operator == "Conv" || node.int("transB").unwrap_or(0) != 0;
        let axis = if rows { 0 } else { 1 };
        inputs.push(real(*tensor, named(&[*tensor, *scale, *zero]), many(*scale).then_some(axis)));
    }
    let mut bias_scale = None;
    if let Some(bias) = form.bias.filter(|bias| node.input_name(*bias).is_some()) {
        let factor = |index| constant(index).and_then(|t| t.to_f32().ok());
        let ([left], right) = (&factor(1)?[..], factor(4)?) else { return None };
        let scales: Vec<f32> = right.iter().map(|right| left * right).collect();
        let name = format!("{output}/andon/bias_scale");
        let dims: &[usize] = if scales.len() == 1 { &[] } else { &[scales.len()] };
        bias_scale = Some(TensorProto::f32(&name, dims, &scales));
        let axis = (scales.len() > 1).then_some(0);
        inputs.push(real(bias, vec![named(&[bias]).pop()?, name], axis));
    }
    let plain = format!("{output}/andon/real");
    let mut operator = NodeProto::new(form.operator, &node.name, inputs, [&*plain]);
    operator.attribute =
        node.attribute.iter().filter(|a| a.name != "channels_last" && a.name != "opset").cloned().collect();
    nodes.push(operator);
    let quantise = [vec![plain], named(&[scale, zero])].concat();
    nodes.push(NodeProto::new("QuantizeLinear", "", quantise, [&**output]));
    Some((nodes, bias_scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_become_their_plain_forms() {
        let constant = |name: &str, values: &[f32]| TensorProto::f32(name, &[values.len()], values);
        let mut graph = GraphProto {
            node: vec![NodeProto::new(
                "QLinearConv",
                "conv",
                ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"],
                ["y"],
            )],
            initializer: vec![
                TensorProto::f32("xs", &[], &[0.5]),
                TensorProto::u8("xz", &[], &[1]),
                constant("ws", &[0.25, 2.0]),
                TensorProto::i8("wz", &[2], &[0, 0]),
                TensorProto::f32("ys", &[], &[1.0]),
                TensorProto::u8("yz", &[], &[0]),
            ],
            ..Default::default()
        };
        let before = graph.clone();
        to_qdq(&mut graph);
        let operators: Vec<&str> = graph.node.iter().map(|n| &*n.op_type).collect();
        let dequantise = "DequantizeLinear";
        assert_eq!(operators, [dequantise, dequantise, dequantise, "Conv", "QuantizeLinear"]);
        assert_eq!(graph.node[1].int("axis"), Some(0));
        assert_eq!(graph.initializer.last().map(|t| t.to_f32()), Some(Ok(vec![0.125, 1.0])));
        assert_eq!((&*graph.node[3].name, &*graph.node[4].output[0]), ("conv", "y"));
        // A scale that is no constant: nothing changes.
        let mut open = before.clone();
        open.initializer.remove(0);
        let expected = open.clone();
        to_qdq(&mut open);
        assert_eq!(open, expected);
    }
}
