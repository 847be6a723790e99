//! The GPUs of a machine, and what each can do at most.

use std::time::Duration;

use andon_shaders::{Limits, PARAMS_BYTES, Probe, Variant};

use super::{
    device::{Checks, Device, Scope, adapters, best, chosen},
    fault::Fault,
    golden::{self, GoldenReport},
    transfer::{Flight, WAIT_MAX},
    tune::{AdapterKey, Tuning},
};
use crate::{Model, engine::guarded};

/// A GPU through one of its drivers.
#[derive(Debug, Clone)]
pub struct GpuAdapter {
    adapter: wgpu::Adapter,
    pub name: String,
    /// `vulkan` or `gl`.
    pub backend: &'static str,
    /// `DiscreteGpu`, `IntegratedGpu`, `Cpu` (software that plays one)…
    pub kind: String,
    pub driver: String,
    pub driver_info: String,
    /// Numbers of the maker and of the model, 0 where the driver does not say.
    pub vendor: u32,
    pub device: u32,
    /// Of those that matter here.
    pub features: Vec<&'static str>,
    pub buffer_bytes_max: u64,
    pub workgroup_bytes: u32,
    pub invocations_max: u32,
}

/// What a GPU can do at most, as measured.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuPeaks {
    /// 10^9 operations a second in dot products of four 8-bit pairs; a multiply-accumulate is two.
    pub dot4_gops: f64,
    /// 10^9 operations a second in fused multiply-adds.
    pub f32_gflops: f64,
    /// `None` without f16.
    pub f16_gflops: Option<f64>,
    /// 10^9 bytes a second, those read and those written.
    pub copy_gbs: f64,
    /// Of an empty dispatch among many.
    pub dispatch_us: f64,
    /// Of the CPU to encode one and submit it.
    pub encode_us: f64,
}

/// All that can compute, the most promising first.
pub fn gpus() -> Vec<GpuAdapter> {
    let adapters = guarded(|| Ok(adapters())).unwrap_or_default();
    adapters.into_iter().map(GpuAdapter::new).collect()
}

/// The one that the engine `gpu` would take.
pub fn chosen_gpu() -> Result<GpuAdapter, String> {
    chosen_gpu_but(&[])
}

/// The one that it would take if there were none of these.
pub fn chosen_gpu_but(without: &[AdapterKey]) -> Result<GpuAdapter, String> {
    guarded(|| best(without).map(GpuAdapter::new))
}

impl GpuAdapter {
    /// The one that is meant, with the same driver.
    pub fn find(key: &AdapterKey) -> Result<Self, String> {
        guarded(|| chosen(Some(key)).map(Self::new))
    }

    fn new(adapter: wgpu::Adapter) -> Self {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let known = [
            (wgpu::Features::SHADER_F16, "f16"),
            (wgpu::Features::SUBGROUP, "subgroups"),
            (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
            (wgpu::Features::MAPPABLE_PRIMARY_BUFFERS, "mappable primary buffers"),
            (wgpu::Features::PIPELINE_CACHE, "pipeline cache"),
        ];
        Self {
            name: info.name,
            backend: info.backend.to_str(),
            kind: format!("{:?}", info.device_type),
            driver: info.driver,
            driver_info: info.driver_info,
            vendor: info.vendor,
            device: info.device,
            features: known.iter().filter(|(f, _)| features.contains(*f)).map(|(_, name)| *name).collect(),
            buffer_bytes_max: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            invocations_max: limits.max_compute_invocations_per_workgroup,
            adapter,
        }
    }

    /// What it is recognised by, driver and all.
    pub fn key(&self) -> AdapterKey {
        AdapterKey::of(&self.adapter.get_info())
    }

    /// Software that plays a GPU: good for tests, never faster than the CPU that it runs on.
    pub fn is_software(&self) -> bool {
        self.adapter.get_info().device_type == wgpu::DeviceType::Cpu
    }

    /// Compares what it computes with what the CPU does, case by case, for about `budget` at most; `clock` tells the time
    /// since some fixed moment. Errors say that there was nothing to compare.
    pub fn check(&self, clock: &dyn Fn() -> Duration, budget: Duration) -> Result<GoldenReport, String> {
        let end = clock() + budget;
        guarded(|| golden::check(&self.adapter, Fault::asked()?, &|| clock() < end))
    }

    /// The same of a network, and of the kernels that it uses here; those that are `known` to be right are not compared
    /// again. `input_shapes` are those of inputs whose size the file leaves open.
    pub fn check_network(
        &self,
        model: &Model,
        input_shapes: &[(String, Vec<usize>)],
        tuning: Option<&Tuning>,
        known: &[Variant],
        clock: &dyn Fn() -> Duration,
        budget: Duration,
    ) -> Result<GoldenReport, String> {
        guarded(|| {
            let fault = Fault::asked()?;
            let time = (clock, budget);
            golden::check_network(&self.adapter, model, input_shapes, tuning, known, fault, time)
        })
    }

    /// Measures for about a second; `clock` tells the time since some fixed moment.
    pub fn measure(&self, clock: &dyn Fn() -> Duration) -> Result<GpuPeaks, String> {
        guarded(|| {
            let device = Device::new(&self.adapter, Checks::Off)?;
            let bench = Bench::new(&device, self.buffer_bytes_max, clock)?;
            let f16 = device.device.features().contains(wgpu::Features::SHADER_F16);
            let (dispatch_us, encode_us) = bench.dispatches()?;
            Ok(GpuPeaks {
                dot4_gops: bench.rate(Probe::Dot)? * 2.0,
                f32_gflops: bench.rate(Probe::F32)? * 2.0,
                f16_gflops: if f16 { Some(bench.rate(Probe::F16)? * 2.0) } else { None },
                copy_gbs: bench.copy()?,
                dispatch_us,
                encode_us,
            })
        })
    }
}

struct Bench<'a> {
    device: &'a Device,
    clock: &'a dyn Fn() -> Duration,
    arena: wgpu::Buffer,
    params: wgpu::Buffer,
    readback: wgpu::Buffer,
    bindings: wgpu::BindGroup,
    /// Groups of four words in half of the arena.
    half: u32,
}

/// As long as this a measurement takes at least, so that what surrounds it does not count.
const LONG_ENOUGH: Duration = Duration::from_millis(20);

impl<'a> Bench<'a> {
    fn new(device: &'a Device, most: u64, clock: &'a dyn Fn() -> Duration) -> Result<Self, String> {
        use wgpu::BufferUsages as Usage;
        /// Larger than the caches of most.
        const ARENA_BYTES: u64 = 256 << 20;
        let size = ARENA_BYTES.min(most) / 32 * 32;
        let scope = Scope::new(&device.device);
        let buffer = |size: u64, usage| {
            let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
            device.device.create_buffer(&descriptor)
        };
        let arena = buffer(size, Usage::STORAGE | Usage::COPY_SRC);
        let constants = buffer(PARAMS_BYTES, Usage::STORAGE);
        let params = buffer(PARAMS_BYTES, Usage::UNIFORM | Usage::COPY_DST);
        let readback = buffer(4, Usage::MAP_READ | Usage::COPY_DST);
        let bindings = device.bind(&arena, &constants, &params);
        scope.end()?;
        let half = u32::try_from(size / 32).map_err(|_| "its buffers are too large to measure")?;
        Ok(Self { device, clock, arena, params, readback, bindings, half })
    }

    /// Runs `count` dispatches of `workgroups`; time to encode and submit them, and until all are done.
    fn run(
        &self,
        pipeline: &wgpu::ComputePipeline,
        rounds: u32,
        workgroups: [u32; 2],
        count: u32,
    ) -> Result<(Duration, Duration), String> {
        let words = [rounds, self.half].map(u32::to_le_bytes).concat();
        self.device.queue.write_buffer(&self.params, 0, &words);
        // What was uploaded is not a part of it.
        let wait = wgpu::PollType::Wait { submission_index: None, timeout: Some(WAIT_MAX) };
        self.device.queue.submit([]);
        self.device.device.poll(wait).map_err(|e| e.to_string())?;
        let start = (self.clock)();
        let descriptor = wgpu::CommandEncoderDescriptor::default();
        let mut encoder = self.device.device.create_command_encoder(&descriptor);
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(pipeline);
            for _ in 0..count {
                pass.set_bind_group(0, &self.bindings, &[0]);
                pass.dispatch_workgroups(workgroups[0], workgroups[1], 1);
            }
        }
        encoder.copy_buffer_to_buffer(&self.arena, 0, &self.readback, 0, 4);
        let flight = Flight::start(self.device, encoder, &self.readback, 4);
        let encoded = (self.clock)();
        flight.land(self.device, &self.readback, |_| ())?;
        Ok((encoded.saturating_sub(start), (self.clock)().saturating_sub(start)))
    }

    /// 10^9 multiply-accumulates a second.
    fn rate(&self, probe: Probe) -> Result<f64, String> {
        /// Enough for large GPUs.
        const WORKGROUPS: u32 = 8_192;
        let pipeline = self.device.compile(probe.source())?;
        let (mut rounds, mut workgroups, mut best) = (64, 64, 0.0f64);
        // Drivers compile late.
        self.run(&pipeline, 1, [1, 1], 1)?;
        for _ in 0..24 {
            let (_, taken) = self.run(&pipeline, rounds, [workgroups, 1], 1)?;
            let work = u64::from(rounds) * u64::from(workgroups * Probe::LANES) * probe.work();
            best = best.max(work as f64 / taken.as_secs_f64().max(1e-9) / 1e9);
            if taken >= LONG_ENOUGH {
                break;
            }
            if workgroups < WORKGROUPS { workgroups *= 2 } else { rounds *= 2 }
        }
        Ok(best)
    }

    fn copy(&self) -> Result<f64, String> {
        let pipeline = self.device.compile(Probe::Copy.source())?;
        let groups = self.half.div_ceil(Probe::LANES);
        let rows = groups.div_ceil(Limits::WORKGROUPS);
        let mut best = 0.0f64;
        let mut count = 1;
        self.run(&pipeline, 0, [1, 1], 1)?;
        for _ in 0..8 {
            let (_, taken) = self.run(&pipeline, 0, [groups.div_ceil(rows), rows], count)?;
            let bytes = u64::from(count) * u64::from(self.half) * Probe::Copy.work();
            best = best.max(bytes as f64 / taken.as_secs_f64().max(1e-9) / 1e9);
            if taken >= LONG_ENOUGH {
                break;
            }
            count *= 4;
        }
        Ok(best)
    }

    /// Microseconds of one dispatch, and of the CPU for it.
    fn dispatches(&self) -> Result<(f64, f64), String> {
        const COUNT: u32 = 1_000;
        let pipeline = self.device.compile(Probe::Nothing.source())?;
        let mut best = (f64::MAX, f64::MAX);
        for _ in 0..5 {
            let (encoded, taken) = self.run(&pipeline, 0, [1, 1], COUNT)?;
            let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(COUNT);
            best = (best.0.min(each(taken)), best.1.min(each(encoded)));
        }
        Ok(best)
    }
}
