//! Nine well-known float networks with constant weights, whole: they load, shapes are inferred, and the result is ONNX's.

use std::io::Write;

use andon_runtime::{Limits, Model, Session, SessionOptions, Tensor};

use crate::{case, data, entries};

const NETWORKS: usize = 9;

#[test]
fn light_networks_give_what_onnx_gives() {
    let files = entries(&data().join("light"));
    let networks: Vec<_> = files.iter().filter(|f| f.extension().is_some_and(|e| e == "onnx")).collect();
    assert_eq!(networks.len(), NETWORKS);
    for path in networks {
        let name = path.file_stem().unwrap().to_string_lossy();
        let model = Model::load(&std::fs::read(path).unwrap(), &Limits::default()).unwrap();
        let macs = model.explain().macs;
        let mut session =
            Session::new(&model, &SessionOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (input, dims) = session.inputs().map(|(n, d)| (n.to_owned(), d.to_vec())).next().unwrap();
        // As ONNX's own runner makes it: a ramp from 0 to 1.
        let count: usize = dims.iter().product();
        let ramp = (0..count).map(|i| (i as f64 / count as f64) as f32).collect();
        let outputs = session.run(&[(input.as_str(), Tensor::f32(dims, ramp).unwrap())]);
        let outputs = outputs.unwrap_or_else(|e| panic!("{name}: {e}"));
        let [output] = &*model.outputs() else { panic!("{name} has several outputs") };
        let expected = case::tensor(&path.with_file_name(format!("{name}_output_0.pb")), output.clone());
        let result = case::compare(outputs.get(output).unwrap(), &case::value(&expected).unwrap());
        let (engine, macs) = (session.engine(), macs.map_or("unknown".into(), |m| m.to_string()));
        writeln!(std::io::stderr(), "{name}: engine {engine}, MACs {macs}, {result:?}").unwrap();
        result.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
