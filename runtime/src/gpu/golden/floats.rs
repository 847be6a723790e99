//! Whether a driver computes a float network right: the network itself, against the CPU. All that comes out is compared, and
//! nearer than a frame is later on.

use std::time::Duration;

use super::{GoldenReport, WrongCase, variants};
use crate::{
    Model,
    engine::{Engine, agree, guarded, trusted},
    gpu::{
        Choices, Fault, Tuning,
        device::{Checks, Device},
        float::{FloatGpu, Network, Precision},
        tune::{fits_memory, soon_enough},
    },
    tensor::{Data, Tensor},
};

/// Errors say that it does not run at all, and nothing of the driver.
pub(super) fn check(
    adapter: &wgpu::Adapter,
    (model, input_shapes): (&Model, &[(String, Vec<usize>)]),
    tuning: Option<&Tuning>,
    fault: Option<Fault>,
    (now, budget): (&dyn Fn() -> Duration, Duration),
) -> Result<GoldenReport, String> {
    let resolved = model.resolve_inputs(input_shapes).map_err(|e| e.to_string())?;
    let shapes = model.shapes(&resolved).map_err(|e| e.to_string())?;
    fits_memory(model, &shapes)?;
    let wanted = model.wanted();
    let half = tuning.is_some_and(|tuning| tuning.half_precision);
    let precision = if half { Precision::Half } else { Precision::Single };
    let choices = Choices::known(&adapter.get_info(), tuning);
    let mut cpu = trusted(model, &resolved, &shapes, &wanted, 1)?;
    let noise = resolved.iter().zip(model.inputs());
    let noise = noise.map(|((_, dims), port)| Tensor::noise(dims, port.data_type));
    let noise = noise.collect::<Result<Vec<Tensor>, _>>()?;
    // Of the other sign: what a ReLU lets through of one, it does not of the other.
    let turned = noise.iter().map(|tensor| match tensor.data() {
        Data::F32(values) => Tensor::f32(tensor.shape().to_vec(), values.iter().map(|v| 0.5 - v).collect()),
        _ => Ok(tensor.clone()),
    });
    let turned = turned.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    guarded(|| {
        let begin = now();
        let noise: Vec<&Tensor> = noise.iter().collect();
        let turned: Vec<&Tensor> = turned.iter().collect();
        let first = cpu.run(&noise)?;
        soon_enough(now().saturating_sub(begin))?;
        let expected = [first, cpu.run(&turned)?];
        let in_time = || now().saturating_sub(begin) < budget;
        let named = [("the network", &noise), ("the network, other inputs", &turned)];
        let compare = |choices: &Choices| {
            let network = Network::new(model.graph(), &shapes, &wanted, choices, precision)?;
            let gpu = FloatGpu::of(network, Device::new(adapter, Checks::Off)?, 1)?;
            let mut gpu = gpu.with_fault(fault.filter(|fault| fault.is_everywhere()));
            let used = variants(gpu.executed().1, &|_| true);
            let mut report = GoldenReport { variants: used.clone(), ..GoldenReport::default() };
            for ((name, inputs), expected) in named.iter().zip(&expected) {
                let given = gpu.run(inputs)?;
                report.runs += 1;
                report.rounded += usize::from(given != *expected);
                if let Err(reason) = agree(expected, &given, precision.near()) {
                    report.wrong.push(WrongCase { case: (*name).into(), variants: used.clone(), reason });
                }
            }
            Ok::<_, String>(report)
        };
        let first = compare(&choices);
        let why = match &first {
            Ok(report) => report.wrong.first().map(|wrong| wrong.reason.clone()),
            Err(why) => Some(why.clone()),
        };
        let Some(why) = why.filter(|_| in_time()) else { return first };
        // Once more, since it may be refused for long; and without what threads share, which drivers get wrong first.
        let is_right =
            |report: &Result<GoldenReport, String>| report.as_ref().is_ok_and(|r| r.wrong.is_empty());
        let again = compare(&choices);
        if is_right(&again) {
            return again;
        }
        match choices.to_alone().filter(|_| in_time()).map(|alone| compare(&alone)).filter(is_right) {
            Some(report) => Ok(GoldenReport { alone: Some(why), ..report? }),
            None => first,
        }
    })
}
