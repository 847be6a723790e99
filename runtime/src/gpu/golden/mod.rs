//! Whether a driver computes right: small networks, [`cases`], and a user's own network, each computed by the GPU and by the
//! CPU. All of them once for a person who asks ([`check`]); those of the kernels that a network needs before a driver is
//! trusted with it ([`check_network`]).
//!
//! The tests of this crate go through the same cases more often, on every instruction set and with checks in the shaders.

pub(in crate::gpu) mod cases;
mod expected;
mod floats;
pub(in crate::gpu) mod random;

use std::{collections::HashMap, time::Duration};

use andon_protocol::release::Fit;
use andon_shaders::Variant;
pub use expected::Expected;
use serde::{Deserialize, Serialize};

use super::{
    Choices, Fault, Gpu, Task, Tuning,
    device::{Checks, Device},
    ends::Given,
    is_float, plan,
    program::{Dispatch, Program},
    tune::{fits_memory, soon_enough},
};
use crate::{
    Model,
    cpu::{Cpu, Isa, Sketch},
    engine::{Engine, NEAR, agree, guarded},
    graph::ValueId,
    onnx::DataType,
    resize::Sides,
    session::Pictures,
    shape::Shapes,
    tensor::{Data, Tensor},
};

/// What was compared, and how it came out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GoldenReport {
    /// Runs on the GPU that were compared with the CPU's.
    pub runs: usize,
    /// Of them those that differ by a rounding here and there, as a real driver may.
    pub rounded: usize,
    pub wrong: Vec<WrongCase>,
    /// What else is wrong, and is known to be.
    #[serde(default)]
    pub expected: Vec<Expected>,
    /// Why something was expected to be wrong that is not.
    #[serde(default)]
    pub stale: Vec<String>,
    /// Variants of kernels that were compared.
    pub variants: Vec<Variant>,
    /// Those that should have been and were not, for want of time or of a case.
    pub left: Vec<Variant>,
    /// Why no kernel is to be used whose threads share memory, if that is so.
    #[serde(default)]
    pub alone: Option<String>,
}

/// A case that the GPU computes wrong or not at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WrongCase {
    pub case: String,
    /// Of which one is to blame; none where nothing ran.
    pub variants: Vec<Variant>,
    pub reason: String,
}

/// A case of the suite: what it is called, its network, and the sides of the picture that it gets, if that is what it gets:
/// height, width, channels.
type Sample = (String, Result<Model, String>, Option<Sides>);

/// Each case; `times` as many of the random ones as the tests make.
fn suite(times: usize) -> impl Iterator<Item = Sample> {
    let deep = [(272, 1), (272, 3), (8, 1)].map(|(channels, kernel)| {
        (
            format!("convolution of {channels} channels, {kernel} by {kernel}"),
            cases::deep_case(channels, kernel),
        )
    });
    let windows = [1, 2].map(|stride| (format!("large window, stride {stride}"), cases::window_case(stride)));
    let middling =
        [1, 3].map(|kernel| (format!("convolution of {kernel} by {kernel}"), cases::middling_case(kernel)));
    let parts =
        [1, 3].map(|kernel| (format!("part of a split, {kernel} by {kernel}"), cases::part_case(kernel)));
    let convolution = |n: usize| (format!("convolution {n}"), cases::convolution_case(n as u64));
    let residual = |n: usize| (format!("residual {n}"), cases::residual_case(n as u64));
    let operator = |(name, n): (&str, usize)| (format!("{name} {n}"), cases::operator_case(name, n as u64));
    let operators = cases::OPERATORS.into_iter().flat_map(move |name| (0..3).map(move |n| (name, n)));
    let picture = |(sides, input): (Sides, Sides)| {
        (format!("picture of {sides:?} for {input:?}"), cases::picture_case(input), Some(sides))
    };
    let pictures = cases::PICTURES.into_iter().map(picture);
    let others = middling
        .into_iter()
        .chain(deep)
        .chain(windows)
        .chain(parts)
        .chain(std::iter::once_with(|| ("sums that cancel out".to_owned(), cases::cancelling_case())))
        .chain((0..8).map(residual))
        .chain(operators.map(operator))
        .chain((0..24 * times).map(convolution));
    pictures.chain(others.map(|(name, model)| (name, model, None)))
}

/// A network with what it computes: something to run on both sides.
struct Case {
    name: String,
    model: Model,
    shapes: Shapes,
    wanted: Vec<ValueId>,
    inputs: Vec<Tensor>,
    /// The first input may be a picture.
    pictures: Option<Pictures>,
    /// What it is.
    given: Given,
}

impl Case {
    fn new(
        name: String,
        model: Model,
        input_shapes: &[(String, Vec<usize>)],
        wanted: Vec<ValueId>,
    ) -> Result<Self, String> {
        let resolved = model.resolve_inputs(input_shapes).map_err(|e| e.to_string())?;
        let shapes = model.shapes(&resolved).map_err(|e| e.to_string())?;
        let inputs = resolved.iter().zip(model.inputs());
        let inputs = inputs.map(|((_, dims), port)| Tensor::noise(dims, port.data_type));
        let inputs: Vec<Tensor> = inputs.collect::<Result<_, _>>()?;
        // A network's pictures may mean what they like: it is the kernels that matter.
        let pictures = match inputs.first().map(|tensor| (tensor.data(), tensor.shape())) {
            Some((Data::F32(_), &[1, channels, _, _])) => Some(Pictures {
                mean: (0..channels).map(|c| 110.0 + 7.0 * c as f32).collect(),
                std: (0..channels).map(|c| 48.0 + 5.0 * c as f32).collect(),
                fit: Fit::Stretched,
            }),
            _ => None,
        };
        Ok(Self { name, model, shapes, wanted, inputs, pictures, given: Given::Real })
    }

    /// One of the suite. What would be the embedding of a classifier is of no interest in it.
    fn golden((name, model, picture): Sample) -> Result<Self, String> {
        let model = model?;
        let wanted = model.graph().outputs().to_vec();
        let mut case = Self::new(name, model, &[], wanted)?;
        let Some([h, w, c]) = picture else { return Ok(Self { pictures: None, ..case }) };
        let noise = Tensor::noise(&[1, h, w, c], Some(DataType::Uint8))?;
        let fits = case.inputs.iter().any(|own| *own.shape() == [1, c, h, w]);
        case.given = if fits { Given::Picture } else { Given::Resized };
        case.inputs = vec![noise];
        // The networks' inputs are of one shape, pictures for them of all.
        if let Some(pictures) = case.pictures.as_mut().filter(|_| h > w) {
            pictures.fit = Fit::Letterboxed { fill: 33 };
        }
        Ok(case)
    }

    fn plan(&self) -> Result<Cpu, String> {
        let cpu = plan(self.model.graph(), &self.shapes, &self.wanted, Isa::chosen()?, 1)?;
        Ok(cpu.with_pictures(self.pictures.as_ref()))
    }

    /// What would run it.
    fn program(&self, choices: Choices) -> Result<Program, String> {
        Program::new(&self.plan()?, choices).map(|(program, _)| program)
    }

    fn expected(&self) -> Result<Vec<Tensor>, String> {
        let sketch = Sketch::new(self.model.graph(), &self.shapes, &self.wanted, Isa::chosen()?)?;
        let mut cpu = sketch.build(1)?.with_pictures(self.pictures.as_ref());
        cpu.run(&self.inputs.iter().collect::<Vec<_>>())
    }

    /// Those that its inputs leave to be run.
    fn used(&self, program: &Program) -> Vec<Variant> {
        variants(program, &|dispatch| dispatch.given.is_none_or(|given| given == self.given))
    }
}

fn variants(program: &Program, counts: &dyn Fn(&Dispatch) -> bool) -> Vec<Variant> {
    let dispatches = program.phases.iter().flat_map(|phase| &phase.dispatches);
    let dispatches = dispatches.filter(|dispatch| counts(dispatch));
    let mut variants: Vec<Variant> = dispatches.map(|dispatch| dispatch.variant).collect();
    variants.sort();
    variants.dedup();
    variants
}

fn tasks(program: &Program) -> Vec<Task> {
    program.phases.iter().flat_map(|phase| &phase.dispatches).filter_map(|dispatch| dispatch.task).collect()
}

/// As on a GPU of that kind, but that small inputs are quantised there, too, and outputs dequantised.
fn case_choices(kind: wgpu::DeviceType) -> Choices {
    Choices { takes_from: 0, gives: true, ..Choices::of(kind) }
}

struct Checker<'a> {
    adapter: &'a wgpu::Adapter,
    /// Kept from case to case, since drivers take their time to compile; made anew after an error.
    device: Option<Device>,
    fault: Option<Fault>,
    report: GoldenReport,
    /// Runs of each variant.
    seen: HashMap<Variant, usize>,
}

impl<'a> Checker<'a> {
    fn new(adapter: &'a wgpu::Adapter, fault: Option<Fault>) -> Self {
        let fault = fault.filter(|fault| fault.is_everywhere());
        Self { adapter, device: None, fault, report: GoldenReport::default(), seen: HashMap::new() }
    }

    fn choices(&self) -> Choices {
        case_choices(self.adapter.get_info().device_type)
    }

    fn seen(&self, variant: Variant) -> usize {
        self.seen.get(&variant).copied().unwrap_or(0)
    }

    fn run(&mut self, case: &Case, choices: Choices) -> Result<Vec<Tensor>, String> {
        guarded(|| {
            let device = match self.device.take() {
                Some(device) => device,
                None => Device::new(self.adapter, Checks::Off)?,
            };
            let mut gpu = Gpu { fault: self.fault, ..Gpu::of(case.plan()?, device, choices)? };
            let outputs = gpu.run(&case.inputs.iter().collect::<Vec<_>>())?;
            self.device = Some(gpu.into_parts().0);
            Ok(outputs)
        })
    }

    /// Takes note of what a case came to, of which those were used.
    fn note(
        &mut self,
        case: &Case,
        used: &[Variant],
        expected: &[Tensor],
        outputs: Result<Vec<Tensor>, String>,
    ) {
        self.report.runs += 1;
        used.iter().for_each(|variant| *self.seen.entry(*variant).or_default() += 1);
        match outputs.and_then(|outputs| agree(expected, &outputs, NEAR).map(|()| outputs)) {
            Ok(outputs) => self.report.rounded += usize::from(outputs != expected),
            Err(reason) => {
                let wrong = WrongCase { case: case.name.clone(), variants: used.to_vec(), reason };
                self.report.wrong.push(wrong);
            }
        }
    }

    fn compare(&mut self, case: &Case, choices: Choices) -> Result<Vec<Variant>, String> {
        let used = case.used(&case.program(choices.clone())?);
        let outputs = self.run(case, choices);
        self.note(case, &used, &case.expected()?, outputs);
        Ok(used)
    }

    fn report(mut self, left: Vec<Variant>) -> GoldenReport {
        self.report.variants = self.seen.into_keys().collect();
        self.report.variants.sort();
        self.report.left = left;
        self.report
    }
}

/// All cases on an adapter, and with each variant of a kernel a few of them, as long as there is time.
pub(super) fn check(
    adapter: &wgpu::Adapter,
    fault: Option<Fault>,
    in_time: &dyn Fn() -> bool,
) -> Result<GoldenReport, String> {
    /// Runs of a variant that are enough, beside those of the cases as they are.
    const ENOUGH: usize = 3;
    let mut checker = Checker::new(adapter, fault);
    let mut left: Vec<Variant> = vec![];
    // The cases as they are first.
    for forces in [false, true] {
        for case in suite(1) {
            let case = Case::golden(case)?;
            let choices = checker.choices();
            let program = case.program(choices.clone())?;
            if !forces {
                if in_time() {
                    checker.compare(&case, choices)?;
                } else {
                    left.extend(case.used(&program));
                }
                continue;
            }
            for task in tasks(&program) {
                for variant in choices.tried(task) {
                    if checker.seen(variant) >= ENOUGH {
                        continue;
                    }
                    if in_time() {
                        let known = [(task, variant)].into();
                        checker.compare(&case, Choices { known, ..choices.clone() })?;
                    } else {
                        left.push(variant);
                    }
                }
            }
        }
    }
    left.retain(|variant| checker.seen(*variant) == 0);
    left.sort();
    left.dedup();
    let mut report = checker.report(left);
    report.settle(&adapter.get_info());
    Ok(report)
}

/// Times of the random cases that have one for each variant; most are found among the first.
const TIMES: usize = 4;

/// Why outputs are not what they should be.
fn why_not(expected: &[Tensor], outputs: &Result<Vec<Tensor>, String>) -> Option<String> {
    match outputs {
        Ok(outputs) => agree(expected, outputs, NEAR).err(),
        Err(why) => Some(why.clone()),
    }
}

/// A network on an adapter, and two cases for each variant of a kernel that it uses there, but for those that are `known`
/// to be right, as long as there is time. The network itself is compared in any case; one of floats is all that its kernels
/// are compared by.
pub(super) fn check_network(
    adapter: &wgpu::Adapter,
    model: &Model,
    input_shapes: &[(String, Vec<usize>)],
    tuning: Option<&Tuning>,
    known: &[Variant],
    fault: Option<Fault>,
    (now, budget): (&dyn Fn() -> Duration, Duration),
) -> Result<GoldenReport, String> {
    const ENOUGH: usize = 2;
    let end = now() + budget;
    let in_time = || now() < end;
    if is_float(model.graph()) {
        return floats::check(adapter, (model, input_shapes), tuning, fault, (now, budget));
    }
    let mut checker = Checker::new(adapter, fault);
    let mut choices = Choices::known(&adapter.get_info(), tuning);
    let resolved = model.resolve_inputs(input_shapes).map_err(|e| e.to_string())?;
    fits_memory(model, &model.shapes(&resolved).map_err(|e| e.to_string())?)?;
    let case = Case::new("the network".into(), model.clone(), input_shapes, model.wanted())?;
    let begin = now();
    let expected = case.expected()?;
    soon_enough(now().saturating_sub(begin))?;
    let mut program = case.program(choices.clone())?;
    let shares = case.used(&program).iter().any(|variant| variant.sharers() > 1);
    let mut outputs = checker.run(&case, choices.clone());
    // What threads share is what drivers refuse, or get wrong, first.
    // Once more with it, since that is remembered.
    if shares && why_not(&expected, &outputs).is_some() {
        let again = checker.run(&case, choices.clone());
        if why_not(&expected, &again).is_none() {
            outputs = again;
        }
    }
    if let (Some(why), Some(alone), true) = (why_not(&expected, &outputs), choices.to_alone(), shares) {
        let again = checker.run(&case, alone.clone());
        if why_not(&expected, &again).is_none() {
            (program, outputs) = (case.program(alone.clone())?, again);
            (choices, checker.report.alone) = (alone, Some(why));
        }
    }
    let alone = choices.alone;
    // One that does not run at all, since it is too large perhaps, says nothing of the driver.
    let outputs = outputs?;
    let used = case.used(&program);
    checker.note(&case, &used, &expected, Ok(outputs));
    // Its inputs may come in another form.
    let others = variants(&program, &|dispatch| dispatch.given.is_some());
    let mut wanted = [used, others].concat();
    wanted.sort();
    wanted.dedup();
    wanted.retain(|variant| !known.contains(variant));
    // What a case has shown of a kernel, not the network.
    let mut shown: HashMap<Variant, usize> = HashMap::new();
    for case in suite(TIMES) {
        let missing = |shown: &HashMap<Variant, usize>| -> Vec<Variant> {
            let is_missing = |v: &&Variant| shown.get(*v).is_none_or(|n| *n < ENOUGH);
            wanted.iter().filter(is_missing).copied().collect()
        };
        let missing_now = missing(&shown);
        if missing_now.is_empty() || !in_time() {
            break;
        }
        let case = Case::golden(case)?;
        let choices = Choices { alone, ..checker.choices() };
        let program = case.program(choices.clone())?;
        let (tasks, usual) = (tasks(&program), case.used(&program));
        for variant in missing_now {
            if !missing(&shown).contains(&variant) || !in_time() {
                continue;
            }
            let known = match tasks.iter().find(|task| task.variants().contains(&variant)) {
                Some(task) => [(*task, variant)].into(),
                None if usual.contains(&variant) => HashMap::new(),
                None => continue,
            };
            let used = checker.compare(&case, Choices { known, ..choices.clone() })?;
            used.into_iter().for_each(|variant| *shown.entry(variant).or_default() += 1);
        }
    }
    let left = wanted.into_iter().filter(|variant| !shown.contains_key(variant)).collect();
    Ok(checker.report(left))
}

#[cfg(test)]
mod tests {
    use super::{super::device::adapters, *};
    use crate::fixtures;

    #[test]
    fn each_variant_has_a_case() {
        let mut left = Variant::all();
        // Kernels of float networks are compared by the network.
        left.retain(|variant| !matches!(variant, Variant::Float { .. }));
        let choices = case_choices(wgpu::DeviceType::DiscreteGpu);
        for case in suite(TIMES) {
            if left.is_empty() {
                break;
            }
            let case = Case::golden(case).unwrap();
            let program = case.program(choices.clone()).unwrap();
            let usual = case.used(&program);
            let able: Vec<Variant> = tasks(&program).iter().flat_map(Task::variants).collect();
            left.retain(|variant| !usual.contains(variant) && !able.contains(variant));
        }
        assert_eq!(left, []);
    }

    #[test]
    fn a_float_network_is_compared_before_it_is_trusted() {
        let model = fixtures::model(fixtures::float_proto());
        for adapter in adapters() {
            let check = |fault: Option<&str>| {
                let fault = fault.map(|text| text.parse().unwrap());
                let hour = Duration::from_secs(3600);
                check_network(&adapter, &model, &[], None, &[], fault, (&Duration::default, hour))
            };
            let report = check(None).unwrap();
            assert_eq!((&*report.wrong, &*report.left, report.runs), (&[][..], &[][..], 2));
            assert!(report.variants.len() > 1, "{report:?}");
            assert_eq!(check(Some("wrong@1")).unwrap().wrong, []);
            assert_eq!(check(Some("wrong@0")).unwrap().wrong.len(), 2);
            assert!(check(Some("lost@0")).is_err());
        }
    }

    #[test]
    fn a_network_and_its_kernels_are_compared_before_they_are_trusted() {
        let model = fixtures::model(fixtures::qdq_proto());
        let Some(adapter) = adapters().into_iter().next() else {
            assert!(std::env::var("ANDON_TEST_GPU").is_err(), "no GPU and nothing that plays one");
            return eprintln!("NOT TESTED: no GPU and nothing that plays one");
        };
        let now = Duration::default;
        let check = |known: &[Variant], fault: Option<&str>, in_time: bool| {
            let fault = fault.map(|text| text.parse().unwrap());
            let budget = Duration::from_secs(if in_time { 3600 } else { 0 });
            check_network(&adapter, &model, &[], None, known, fault, (&now, budget)).unwrap()
        };
        let report = check(&[], None, true);
        assert_eq!((&*report.wrong, &*report.left, report.rounded), (&[][..], &[][..], 0));
        assert!(report.variants.len() > 1 && report.runs > 1, "{report:?}");
        // What is known needs no case again; without time there are none.
        let again = check(&report.variants, None, true);
        assert_eq!((again.runs, again.left.len()), (1, 0));
        let hurried = check(&[], None, false);
        assert_eq!((hurried.runs, hurried.left), (1, hurried.variants));
        // What computes wrong later is another's to find.
        assert_eq!(check(&[], Some("wrong@1"), true).wrong, []);
        let report = check(&[], Some("wrong@0"), true);
        assert_eq!(report.wrong.len(), report.runs, "{report:?}");
        assert_eq!(report.wrong[0].case, "the network");
        let lost = Some("lost@0".parse().unwrap());
        let hour = Duration::from_secs(3600);
        assert!(check_network(&adapter, &model, &[], None, &[], lost, (&now, hour)).is_err());
    }
}
