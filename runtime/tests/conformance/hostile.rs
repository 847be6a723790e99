//! Numbers that nobody means: ONNX's own cases with one number of each at a time so large, so far below none or so out of place
//! that whoever believes it takes all memory, counts without end or reads what is not there. An error is fine, and so is a
//! result.

use std::{collections::HashSet, fs, path::Path};

use andon_runtime::onnx::{AttributeType, DataType, GraphProto, ModelProto, TensorProto, ValueInfoProto};
use prost::Message;

use crate::{attempt::attempt, case, data, entries, findings::watched};

const NUMBERS: [i64; 12] = [0, 1, 2, 3, 7, -1, -5, 1 << 20, (1 << 31) - 1, 1 << 40, i64::MAX, i64::MIN];
/// The larger ones are networks, of operators that the smaller ones have, too.
const FILE_BYTES_MAX: u64 = 3_000;
/// Inputs that are numbers for an operator rather than what it computes with.
const ELEMENTS_MAX: usize = 8;

#[test]
fn numbers_that_nobody_means_do_no_harm() {
    let (mut count, mut seen) = (0, HashSet::new());
    for folder in entries(&data().join("node")) {
        let file = folder.join("model.onnx");
        if fs::metadata(&file).unwrap().len() > FILE_BYTES_MAX {
            continue;
        }
        let model = ModelProto::decode(&*fs::read(&file).unwrap()).unwrap();
        let mut number = 0;
        changed(&model, &inputs(&folder, &model), &mut |graph| {
            let bytes = ModelProto { graph: Some(graph), ..model.clone() }.to_bytes();
            if !seen.insert(bytes.clone()) {
                return;
            }
            let panics = watched(|| attempt(&bytes));
            assert!(panics.is_empty(), "{} changed for the {number}th time: {panics:?}", folder.display());
            number += 1;
        });
        count += number;
    }
    eprintln!("{count} networks");
    assert!(count > 10_000, "{count}");
}

/// What the case gives to the network, where there is something that a tensor can hold.
fn inputs(folder: &Path, model: &ModelProto) -> Vec<TensorProto> {
    let graph = model.graph.as_ref().unwrap();
    let set = folder.join("test_data_set_0");
    let is_tensor = |name: &String| graph.input.iter().any(|v| v.name == *name && v.data_type().is_some());
    let names = graph.input.iter().map(|v| v.name.clone()).enumerate();
    let names = names.filter(|(_, name)| is_tensor(name));
    names.map(|(k, name)| case::tensor(&set.join(format!("input_{k}.pb")), name)).collect()
}

/// The graph, with one thing changed each time.
fn changed(model: &ModelProto, inputs: &[TensorProto], attempt: &mut dyn FnMut(GraphProto)) {
    let graph = model.graph.as_ref().unwrap();
    for (n, node) in graph.node.iter().enumerate() {
        for (a, attribute) in node.attribute.iter().enumerate() {
            let mut with = |change: &dyn Fn(&mut i64, &mut Vec<i64>)| {
                let mut graph = graph.clone();
                let attribute = &mut graph.node[n].attribute[a];
                change(&mut attribute.i, &mut attribute.ints);
                attempt(graph);
            };
            for number in NUMBERS {
                match AttributeType::try_from(attribute.r#type) {
                    Ok(AttributeType::Int) => with(&|i, _| *i = number),
                    Ok(AttributeType::Ints) => {
                        with(&|_, ints| ints.fill(number));
                        (0..attribute.ints.len().min(4)).for_each(|k| with(&|_, ints| ints[k] = number));
                    }
                    _ => {}
                }
            }
            if !attribute.ints.is_empty() {
                with(&|_, ints| ints.truncate(ints.len() - 1));
                with(&|_, ints| ints.push(1));
            }
            let mut without = graph.clone();
            without.node[n].attribute.remove(a);
            attempt(without);
        }
    }
    // Inputs of shapes that an operator does not expect, with the attributes of the case and with none.
    let shapes = [&[][..], &[1], &[7], &[2, 0], &[3, 4], &[1, 3, 4, 5], &[1, 1, 2, 2, 2]];
    for (i, dims) in (0..graph.input.len()).flat_map(|i| shapes.map(|dims| (i, dims))) {
        for keeps in [true, false] {
            let mut graph = graph.clone();
            // That one alone, or all.
            for (j, input) in graph.input.iter_mut().enumerate() {
                if let Some(data_type) = input.data_type().filter(|_| i == j || !keeps) {
                    *input = ValueInfoProto::new(&input.name, data_type, dims);
                }
            }
            if !keeps {
                graph.node.iter_mut().for_each(|node| node.attribute.clear());
            }
            attempt(graph);
        }
    }
    for input in inputs.iter().filter(|input| input.elements().is_some_and(|n| n <= ELEMENTS_MAX)) {
        // Alone, and with all others as the case has them: then it is folded.
        for is_alone in [true, false] {
            let mut with = |tensor: TensorProto| {
                let mut graph = graph.clone();
                graph.input.retain(|v| is_alone && v.name != tensor.name);
                let others = inputs.iter().filter(|other| other.name != tensor.name);
                graph.initializer.extend(others.filter(|_| !is_alone).cloned());
                graph.initializer.push(tensor);
                attempt(graph);
            };
            let numbers = NUMBERS.iter().filter_map(|number| filled(input, &input.dims, *number));
            numbers.for_each(&mut with);
            let shapes = [&[0][..], &[], &[2], &[1, 1], &[2, 0, 2]];
            shapes.iter().filter_map(|dims| filled(input, dims, 1)).for_each(&mut with);
        }
    }
}

/// A tensor of one number again and again, of the name and type of another; `None` for types that are no numbers.
fn filled(like: &TensorProto, dims: &[i64], number: i64) -> Option<TensorProto> {
    let bytes = match like.element_type().ok()? {
        DataType::Int64 => number.to_le_bytes().to_vec(),
        DataType::Int32 => (number.clamp(i32::MIN.into(), i32::MAX.into()) as i32).to_le_bytes().to_vec(),
        DataType::Uint8 | DataType::Int8 | DataType::Bool => vec![number as u8],
        DataType::Float => (number as f32).to_le_bytes().to_vec(),
        DataType::Double => (number as f64).to_le_bytes().to_vec(),
        _ => return None,
    };
    let elements: i64 = dims.iter().product();
    Some(TensorProto {
        name: like.name.clone(),
        data_type: like.data_type,
        dims: dims.to_vec(),
        raw_data: bytes.repeat(elements as usize).into(),
        ..Default::default()
    })
}
