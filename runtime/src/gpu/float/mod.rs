//! The engine `gpu` for float networks: whole ones of one image, in f32, or with f16 in memory.
//!
//! [`lower`] makes dispatches of a graph, [`kernels`] says which kernel each is, in [`terms`]; [`pack`] lays weights down. There
//! is no plan of the CPU's behind it: a network that has a node without a kernel is refused, unless that comes last and is
//! small. Results are not the CPU's bit for bit: sums run in another order.

mod join;
mod kernels;
mod layers;
mod look;
mod lower;
mod pack;
mod spatial;
mod terms;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use andon_shaders::{Limits, Variant};

use kernels::Planes;
pub(crate) use lower::Share;
use lower::{Lowering, ZEROS};
use terms::{Job, Spot};

use super::{
    CHECKS, Extras,
    choice::Choices,
    device::{Checks, Device, Scope, chosen, is_of_kernel},
    fault::Fault,
    program::{Dispatch, Phase, Program},
    run::{Memory, Moment},
    transfer::{Flight, Staging, readback},
};
use crate::{
    cpu::{Isa, Team, arrange},
    engine::{Clock, Engine, Near, StepTime, guarded},
    graph::{Graph, NodeId, ValueId},
    plain::Call,
    shape::Shapes,
    tensor::Tensor,
};

/// How numbers lie in the GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    Single,
    Half,
}

impl Precision {
    /// Bytes of four channels.
    fn quad(self) -> usize {
        match self {
            Self::Single => 16,
            Self::Half => 8,
        }
    }

    /// How far results may be from the CPU's, of their range: sums run in another order.
    pub(super) fn near(self) -> Near {
        match self {
            Self::Single => Near { part: 1e-3, by_channel: true },
            // What is far away at the end of a deep network was not far from each other in it.
            Self::Half => Near { part: 0.1, by_channel: false },
        }
    }
}

/// A value on its way to the GPU or back, as ONNX has it.
struct Transfer {
    value: ValueId,
    /// Where it lies in the arena, in bytes.
    at: usize,
    bytes: usize,
    /// To ONNX.
    dims: Vec<usize>,
}

/// An operator that runs behind the GPU.
struct Last {
    call: Call,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<Option<ValueId>>,
}

/// What there is to be done for a network.
pub(super) struct Network {
    program: Program,
    precision: Precision,
    /// With the numbers of the inputs.
    uploads: Vec<(usize, Transfer)>,
    downloads: Vec<Transfer>,
    last: Vec<Last>,
    /// What those read that never changes.
    constants: HashMap<ValueId, Tensor>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// What becomes of each node.
    shares: Vec<Share>,
}

impl Network {
    pub(super) fn new(
        graph: &Graph,
        shapes: &Shapes,
        wanted: &[ValueId],
        choices: &Choices,
        precision: Precision,
    ) -> Result<Self, String> {
        let mut lowering = Lowering::of(graph, shapes, wanted, choices, precision)?;
        let quad = precision.quad();
        let inputs: Vec<ValueId> = graph.inputs().map(|(value, _)| value).collect();
        let last = lowering.host.iter().map(|id| {
            let node = graph.node(*id);
            let call =
                Call::of(graph, *id).ok_or_else(|| format!("node {:?}: it has no operator", node.name))?;
            Ok(Last { call, inputs: node.inputs.clone(), outputs: node.outputs.clone() })
        });
        let last = last.collect::<Result<Vec<_>, String>>()?;
        let mut constants = HashMap::new();
        let mut taken: Vec<ValueId> = vec![];
        // What is there without being taken from the GPU, and what has been looked at.
        let made = last.iter().flat_map(|last| last.outputs.iter().flatten());
        let mut seen: HashSet<ValueId> = inputs.iter().chain(made).copied().collect();
        for value in wanted.iter().chain(last.iter().flat_map(|last| last.inputs.iter().flatten())) {
            if !seen.insert(*value) {
                continue;
            }
            match shapes.constant(graph, *value) {
                Some(constant) => drop(constants.insert(*value, Tensor::from_proto(constant)?)),
                None => taken.push(*value),
            }
        }
        let spot = |value: &ValueId| {
            let name = &graph.value(*value).name;
            let known = lowering.known.get(value).zip(shapes.of(*value));
            let (known, dims) = known.ok_or_else(|| format!("nothing computes {name:?}"))?;
            Ok((*value, known.spot, dims.to_vec()))
        };
        let taken: Vec<_> = taken.iter().map(spot).collect::<Result<_, String>>()?;
        let given = inputs.iter().enumerate().filter(|(_, value)| lowering.known.contains_key(value));
        let given: Vec<_> = given.map(|(i, value)| Ok((i, spot(value)?))).collect::<Result<_, String>>()?;
        // Both go through planes of f32.
        let taken: Vec<_> = taken.into_iter().map(|one| (lowering.give(one.1), one)).collect();
        let given = given.into_iter().filter_map(|(i, one)| Some((i, (lowering.take(one.1)?, one))));
        let given: Vec<_> = given.collect();
        let read = taken.iter().map(|(planes, _)| planes.buffer);
        let lives = lifetimes(&lowering.jobs, lowering.sizes.len(), read);
        let sizes = lowering.sizes.iter().zip(&lives);
        let sizes: Vec<usize> =
            sizes.map(|(quads, life)| if life.is_empty() { 0 } else { quads * quad }).collect();
        let (places, arena_bytes) = arrange(&sizes, &lives);
        let arena_bytes = arena_bytes.next_multiple_of(quad);
        if arena_bytes > u32::MAX as usize {
            return Err("its activations are too large for a GPU".into());
        }
        let transfer = |(planes, (value, spot, dims)): (Planes, (ValueId, Spot, Vec<usize>))| Transfer {
            value,
            at: places[planes.buffer].start,
            bytes: 4 * spot.shape.bytes(),
            dims,
        };
        let uploads = given.into_iter().map(|(i, one)| (i, transfer(one))).collect();
        let downloads = taken.into_iter().map(transfer).collect();
        let bases: Vec<usize> = places.iter().map(|place| place.start / quad).collect();
        let dispatches = lowering.jobs.iter().map(|(id, job)| dispatch(*id, job, &bases, precision));
        let phase = Phase { dispatches: dispatches.collect::<Result<_, String>>()?, ..Phase::default() };
        let fills = vec![(places[ZEROS].start, vec![0; sizes[ZEROS]])];
        let mut words = std::mem::take(&mut lowering.constants.words);
        // No buffer may be empty.
        words.resize((words.len() + 4).next_multiple_of(4), 0);
        let program = Program { phases: vec![phase], constants: words, arena_bytes, fills, on_gpu: vec![] };
        let (outputs, shares) = (wanted.to_vec(), lowering.shares);
        Ok(Self { program, precision, uploads, downloads, last, constants, inputs, outputs, shares })
    }
}

/// When each buffer is in use: uploads, jobs one by one, downloads.
fn lifetimes(jobs: &[(NodeId, Job)], count: usize, read: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; count];
    let mut written = vec![false; count];
    for (at, (_, job)) in jobs.iter().enumerate() {
        for buffer in &job.touches {
            // What is read before it is written comes from the host.
            let begin = if job.writes == *buffer || written[*buffer] { at + 1 } else { 0 };
            let life = lives[*buffer].get_or_insert(begin..begin + 1);
            *life = life.start.min(begin)..life.end.max(at + 2);
        }
        written[job.writes] = true;
    }
    for buffer in read {
        if let Some(life) = &mut lives[buffer] {
            life.end = jobs.len() + 2;
        }
    }
    lives[ZEROS] = Some(0..usize::MAX);
    lives.into_iter().map(Option::unwrap_or_default).collect()
}

fn dispatch(id: NodeId, job: &Job, bases: &[usize], precision: Precision) -> Result<Dispatch, String> {
    let variant = Variant::Float { kernel: job.kernel, half: precision == Precision::Half };
    let at_once = (variant.lanes() / variant.sharers()) as usize;
    let groups =
        u32::try_from(job.tiles.div_ceil(at_once).max(1)).map_err(|_| "a layer is too large for a GPU")?;
    let rows = groups.div_ceil(Limits::WORKGROUPS);
    let workgroups = [groups.div_ceil(rows), rows];
    Ok(Dispatch {
        variant,
        workgroups,
        params: (job.params)(bases),
        step: id.index(),
        task: job.task,
        given: None,
    })
}

pub(crate) struct FloatGpu {
    device: Device,
    network: Network,
    memory: Memory,
    staging: Option<Staging>,
    /// Where downloads go.
    readback: wgpu::Buffer,
    /// For what comes last.
    team: Team,
    /// That was asked for.
    fault: Option<Fault>,
    runs: u64,
}

/// Whether a network is one of floats: the other has its own executor.
pub(crate) fn is_float(graph: &Graph) -> bool {
    graph.nodes().all(|(_, _, proto)| !matches!(&*proto.op_type, "QuantizeLinear" | "DequantizeLinear"))
}

impl FloatGpu {
    /// A tuning counts if it is of the adapter that is used; pictures are for networks of int8.
    pub(crate) fn chosen(
        graph: &Graph,
        shapes: &Shapes,
        outputs: &[ValueId],
        (precision, threads): (Precision, usize),
        extras: Extras<'_>,
    ) -> Result<Self, String> {
        let Extras { tuning, pipelines, adapter: asked, .. } = extras;
        guarded(|| {
            let checks = if std::env::var_os(CHECKS).is_some() { Checks::On } else { Checks::Off };
            let fault = Fault::asked()?;
            fault.map_or(Ok(()), Fault::adapter)?;
            let adapter = chosen(asked)?;
            let choices = Choices::known(&adapter.get_info(), tuning);
            // What is refused needs no device.
            let network = |choices: &Choices| Network::new(graph, shapes, outputs, choices, precision);
            let first = network(&choices)?;
            let device = Device::new(&adapter, checks)?.keeping(pipelines)?;
            fault.map_or(Ok(()), |fault| fault.memory(&device))?;
            let made = match (Self::of(first, device, threads), choices.to_alone()) {
                (Err(why), Some(alone)) if is_of_kernel(&why) => {
                    let device = Device::new(&adapter, checks)?.keeping(pipelines)?;
                    Self::of(network(&alone)?, device, threads).map_err(|_| why)
                }
                (made, _) => made,
            };
            Ok(made?.with_fault(fault))
        })
    }

    pub(super) fn of(mut network: Network, mut device: Device, threads: usize) -> Result<Self, String> {
        let precision = network.precision;
        if precision == Precision::Half && !device.device.features().contains(wgpu::Features::SHADER_F16) {
            return Err(format!("{} through {} has no f16", device.info.name, device.info.backend.to_str()));
        }
        let dispatches = &network.program.phases[0].dispatches;
        let compiled = device.compiled(dispatches.iter().map(|dispatch| dispatch.variant))?;
        device.adopt(compiled);
        let memory = Memory::new(&device, &network.program)?;
        // The GPU has them now.
        network.program.constants = vec![];
        let scope = Scope::new(&device.device);
        let uploaded: usize = network.uploads.iter().map(|(_, transfer)| transfer.bytes).sum();
        let staging = (uploaded > 0).then(|| Staging::new(&device, uploaded as u64));
        let downloaded: usize = network.downloads.iter().map(|transfer| transfer.bytes).sum();
        let readback = readback(&device, downloaded.max(precision.quad()) as u64);
        scope.end()?;
        let team = Team::new(Isa::chosen()?, threads);
        Ok(Self { device, network, memory, staging, readback, team, fault: None, runs: 0 })
    }

    /// What another can be made of, with other kernels.
    pub(super) fn into_device(self) -> Device {
        self.device
    }

    pub(super) fn with_fault(self, fault: Option<Fault>) -> Self {
        Self { fault, ..self }
    }

    /// What is dispatched, and where.
    pub(super) fn executed(&self) -> (&Device, &Program, &Memory) {
        (&self.device, &self.network.program, &self.memory)
    }

    /// For each node.
    pub(crate) fn shares(&self) -> &[Share] {
        &self.network.shares
    }

    /// In words.
    pub(crate) fn explain(&self) -> String {
        let Self { device, network, .. } = self;
        let (name, backend) = (&device.info.name, device.info.backend.to_str());
        let Program { phases, arena_bytes, .. } = &network.program;
        let (dispatches, last) = (phases[0].dispatches.len(), network.last.len());
        let bits = 8 * network.precision.quad() / 4;
        format!(
            "gpu ({name}, {backend}), float{bits}, {dispatches} dispatches, {last} nodes left to the CPU, arena {arena_bytes} bytes"
        )
    }

    /// What comes back from the GPU, value by value.
    fn computed(
        &mut self,
        inputs: &[&Tensor],
        after: &mut dyn FnMut(Moment),
    ) -> Result<HashMap<ValueId, Tensor>, String> {
        let Self { device, network, memory, staging, readback, .. } = self;
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        if let Some(staging) = staging {
            let mut at = 0;
            let mut copies = vec![];
            staging.fill(device, &mut encoder, |view| {
                for (number, transfer) in &network.uploads {
                    let values = inputs.get(*number).and_then(|tensor| tensor.as_f32());
                    let values = values.ok_or("an input is no f32")?;
                    let bytes = transfer.bytes;
                    if bytes != 4 * values.len() {
                        return Err(format!("an input has {} numbers, expected {}", values.len(), bytes / 4));
                    }
                    let (words, _) = view.slice(at..at + bytes).into_chunks::<4>();
                    words.write_iter(values.iter().map(|value| value.to_le_bytes()));
                    copies.push((at as u64, transfer.at as u64, bytes as u64));
                    at += bytes;
                }
                Ok(())
            })?;
            after(Moment::Uploaded { bytes: at as u64 });
            for (from, to, bytes) in copies {
                encoder.copy_buffer_to_buffer(staging.buffer(), from, &memory.arena, to, bytes);
            }
        }
        let phase = &network.program.phases[0];
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            memory.dispatch(&mut pass, device, 0, phase, 0..phase.dispatches.len())?;
        }
        let mut end = 0;
        for transfer in &network.downloads {
            let bytes = transfer.bytes as u64;
            encoder.copy_buffer_to_buffer(&memory.arena, transfer.at as u64, readback, end, bytes);
            end += bytes;
        }
        after(Moment::Encoded { dispatches: phase.dispatches.len() });
        let flight = Flight::start(device, encoder, readback, end);
        after(Moment::Submitted);
        let taken = flight.land(device, readback, |bytes| {
            after(Moment::Done);
            let mut at = 0;
            let mut all = HashMap::new();
            for transfer in &network.downloads {
                let (words, _) = bytes[at..at + transfer.bytes].as_chunks::<4>();
                let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
                let tensor = Tensor::f32(transfer.dims.clone(), values).map_err(|e| e.to_string())?;
                all.insert(transfer.value, tensor);
                at += transfer.bytes;
            }
            Ok(all)
        })?;
        after(Moment::Downloaded { bytes: end });
        taken
    }

    /// A run; `after` learns what of it is done.
    pub(super) fn run_parts(
        &mut self,
        inputs: &[&Tensor],
        after: &mut dyn FnMut(Moment),
    ) -> Result<Vec<Tensor>, String> {
        let mut values = self.computed(inputs, after)?;
        let Network { last, constants, inputs: names, outputs, .. } = &self.network;
        let given: HashMap<ValueId, &Tensor> = names.iter().copied().zip(inputs.iter().copied()).collect();
        for Last { call, inputs, outputs } in last {
            let find = |value: &ValueId| {
                values.get(value).or_else(|| constants.get(value)).or_else(|| given.get(value).copied())
            };
            let inputs = inputs.iter().map(|value| match value {
                Some(value) => find(value).map(Some).ok_or("an input is missing"),
                None => Ok(None),
            });
            let results = call.run_on(&mut self.team, &inputs.collect::<Result<Vec<_>, _>>()?)?;
            let outputs = outputs.iter().copied().zip(results);
            values.extend(outputs.filter_map(|(value, result)| Some((value?, result))));
        }
        let find = |value: &ValueId| {
            let constant = || constants.get(value).or_else(|| given.get(value).copied());
            values.get(value).or_else(constant).cloned().ok_or_else(|| "an output is missing".to_owned())
        };
        outputs.iter().map(find).collect()
    }
}

impl Engine for FloatGpu {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        self.runs += 1;
        guarded(|| {
            self.fault.iter().for_each(|fault| fault.before(self.runs, &self.device));
            let mut outputs = self.run_parts(inputs, &mut |_| ())?;
            self.fault.iter().for_each(|fault| fault.after(self.runs, &mut outputs));
            Ok(outputs)
        })
    }

    fn arena_bytes(&self) -> Option<usize> {
        Some(self.network.program.arena_bytes)
    }

    fn profile(&mut self, inputs: &[&Tensor], clock: &Clock) -> Result<Vec<StepTime>, String> {
        guarded(|| Ok([self.parts(inputs, clock)?, self.profiled(clock)?].concat()))
    }
}
