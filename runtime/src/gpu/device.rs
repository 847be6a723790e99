//! A GPU and what every network needs of it: adapters, one device, the layout that all kernels share, and pipelines by
//! variant. Whatever a driver does comes out as an error, never as a panic.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    thread,
};

use andon_shaders::{ENTRY_POINT, PARAMS_BYTES, Variant, binding};

use super::{cache::PipelineCache, transfer::WAIT_MAX, trusted, tune::AdapterKey};
use crate::engine::guarded;

/// Whether shaders check bounds on their own: ours are tested with checks, and run without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checks {
    On,
    Off,
}

/// Names an adapter, or a part of its name, its backend (`vulkan`, `gl`) or both: `vulkan:nvidia`.
const VARIABLE: &str = "ANDON_GPU";

/// All adapters that there are, the most promising first.
pub(crate) fn adapters() -> Vec<wgpu::Adapter> {
    adapters_of(wgpu::Backends::VULKAN | wgpu::Backends::GL)
}

fn adapters_of(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = ready(instance.enumerate_adapters(wgpu::Backends::all())).unwrap_or_default();
    let usable = |adapter: &wgpu::Adapter| {
        let flags = adapter.get_downlevel_capabilities().flags;
        flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    };
    adapters.retain(usable);
    let rank = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        (kind, info.backend != wgpu::Backend::Vulkan)
    };
    adapters.sort_by_key(rank);
    adapters
}

/// The one adapter and driver that is asked for, else the first that the environment names, else the first.
pub(crate) fn chosen(asked: Option<&AdapterKey>) -> Result<wgpu::Adapter, String> {
    if let Some(key) = asked {
        let gone = || format!("no {} through {} any more, with that driver", key.name, key.backend);
        return first(|adapter| AdapterKey::of(&adapter.get_info()) == *key).ok_or_else(gone);
    }
    best(&[])
}

/// The first that the environment names and that is none of these.
pub(crate) fn best(without: &[AdapterKey]) -> Result<wgpu::Adapter, String> {
    let wanted = std::env::var(VARIABLE).unwrap_or_default().to_lowercase();
    let found = first(|adapter| {
        let info = adapter.get_info();
        let text = format!("{}:{}", info.backend.to_str(), info.name).to_lowercase();
        wanted.split(':').all(|part| text.contains(part)) && !without.contains(&AdapterKey::of(&info))
    });
    let other = if without.is_empty() { "" } else { "other " };
    found.ok_or_else(|| match &*wanted {
        "" => format!("no {other}GPU that computes"),
        wanted => format!("no {other}GPU that {VARIABLE}={wanted:?} fits"),
    })
}

fn first(fits: impl Fn(&wgpu::Adapter) -> bool) -> Option<wgpu::Adapter> {
    // Where Vulkan has what is wanted in hardware, OpenGL's drivers need not be woken: they take long.
    let hard = |adapter: &wgpu::Adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu;
    let found = adapters_of(wgpu::Backends::VULKAN).into_iter().find(|a| hard(a) && fits(a));
    found.or_else(|| adapters().into_iter().find(fits))
}

/// The result of a future that needs no waking; wgpu's are ready at once where there is no browser.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Features that are used where they are there: times of single kernels, arithmetic in f16, compiled kernels to be kept.
const WELCOME: wgpu::Features =
    wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::SHADER_F16).union(wgpu::Features::PIPELINE_CACHE);

/// And on a GPU whose memory is the processor's: buffers that both use.
const SHARED: wgpu::Features = wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;

fn welcome(kind: wgpu::DeviceType) -> wgpu::Features {
    match kind {
        wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu => WELCOME.union(SHARED),
        _ => WELCOME,
    }
}

/// Pipelines that are not yet a device's.
pub(crate) type Compiled = Vec<(Variant, wgpu::ComputePipeline)>;

pub(crate) struct Device {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    bindings: wgpu::BindGroupLayout,
    layout: wgpu::PipelineLayout,
    pipelines: HashMap<Variant, wgpu::ComputePipeline>,
    checks: Checks,
    /// It tells the time of a single dispatch.
    has_clock: bool,
    /// It compiles nothing that threads share.
    #[cfg(test)]
    refuses_sharing: bool,
    kept: Option<(Arc<PipelineCache>, wgpu::PipelineCache)>,
    /// The first thing that went wrong outside of any scope.
    fault: Arc<Mutex<Option<String>>>,
}

impl Device {
    pub(crate) fn new(adapter: &wgpu::Adapter, checks: Checks) -> Result<Self, String> {
        let own = adapter.limits();
        let least = wgpu::Limits::downlevel_defaults();
        // Large networks on large devices; no kernel needs more than the least.
        let required_limits = wgpu::Limits {
            max_buffer_size: own.max_buffer_size.max(least.max_buffer_size),
            max_storage_buffer_binding_size: own
                .max_storage_buffer_binding_size
                .max(least.max_storage_buffer_binding_size),
            ..least
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("andon"),
            required_features: adapter.features() & welcome(adapter.get_info().device_type),
            required_limits,
            ..Default::default()
        };
        let made = ready(adapter.request_device(&descriptor)).ok_or("the device is not ready")?;
        let (device, queue) = made.map_err(|e| e.to_string())?;
        let fault = Arc::new(Mutex::new(None));
        let first = |fault: &Arc<Mutex<Option<String>>>, text: String| {
            fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        };
        let seen = Arc::clone(&fault);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| first(&seen, error.to_string())));
        let seen = Arc::clone(&fault);
        device.set_device_lost_callback(move |reason, text| {
            first(&seen, format!("the device is lost ({reason:?}) {text}"));
        });
        let scope = Scope::new(&device);
        let storage = |binding, read_only| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let params = wgpu::BindGroupLayoutEntry {
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: std::num::NonZeroU64::new(PARAMS_BYTES),
            },
            ..storage(binding::PARAMS, true)
        };
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &[
                storage(binding::WORDS, false),
                storage(binding::QUADS, false),
                storage(binding::CONSTANTS, true),
                storage(binding::CONSTANT_QUADS, true),
                params,
            ],
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        scope.end()?;
        let info = adapter.get_info();
        let pipelines = HashMap::new();
        let has_clock = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        Ok(Self {
            device,
            queue,
            info,
            bindings,
            layout,
            pipelines,
            checks,
            has_clock,
            #[cfg(test)]
            refuses_sharing: false,
            kept: None,
            fault,
        })
    }

    pub(crate) fn has_clock(&self) -> bool {
        self.has_clock
    }

    /// As if the driver had none.
    #[cfg(test)]
    pub(crate) fn without_clock(self) -> Self {
        Self { has_clock: false, ..self }
    }

    /// As if it were a large GPU whose driver compiles nothing that threads share.
    #[cfg(test)]
    pub(crate) fn without_sharing(mut self) -> Self {
        self.info.device_type = wgpu::DeviceType::DiscreteGpu;
        Self { refuses_sharing: true, ..self }
    }

    /// Waits until all that was submitted is done.
    pub(crate) fn wait(&self) -> Result<(), String> {
        let wait = wgpu::PollType::Wait { submission_index: None, timeout: Some(WAIT_MAX) };
        let waited = self.device.poll(wait);
        // What went wrong before says more than that there is nothing to wait for.
        self.fault().map_or(Ok(()), Err)?;
        waited.map(drop).map_err(|e| e.to_string())
    }

    /// Whether kernels can read what the host writes where it writes it, at no loss.
    pub(crate) fn shares_memory(&self) -> bool {
        self.device.features().contains(SHARED)
    }

    /// Takes kernels from what an earlier process compiled, and adds new ones to it, where the driver can.
    pub(crate) fn keeping(self, cache: Option<&Arc<PipelineCache>>) -> Result<Self, String> {
        let there = self.device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let Some(cache) = cache.filter(|_| there) else { return Ok(self) };
        let scope = Scope::new(&self.device);
        let own = trusted::cache(&self.device, &cache.data());
        scope.end()?;
        Ok(Self { kept: Some((Arc::clone(cache), own)), ..self })
    }

    /// The pipelines of variants that are not there yet; drivers compile several at a time.
    pub(crate) fn compiled(&self, variants: impl Iterator<Item = Variant>) -> Result<Compiled, String> {
        let missing: HashSet<Variant> = variants.filter(|v| !self.pipelines.contains_key(v)).collect();
        let missing: Vec<Variant> = missing.into_iter().collect();
        #[cfg(test)]
        if self.refuses_sharing && missing.iter().any(|variant| variant.sharers() > 1) {
            return Err("kernel: workgroup memory is refused".into());
        }
        let workers = thread::available_parallelism().map_or(1, usize::from).min(missing.len());
        let next = AtomicUsize::new(0);
        let (device, missing) = (self, &missing);
        let work = || {
            let mut made = vec![];
            while let Some(variant) = missing.get(next.fetch_add(1, Relaxed)) {
                let pipeline = variant.source().and_then(|source| device.compile(source));
                made.push((*variant, pipeline.map_err(|why| format!("kernel {variant:?}: {why}"))?));
            }
            Ok(made)
        };
        let made = thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(|| guarded(work))).collect();
            let mine = std::iter::once(work());
            let ended = || Err("a compiling thread has ended".into());
            mine.chain(others.into_iter().map(|other| other.join().unwrap_or_else(|_| ended())))
                .collect::<Result<Vec<_>, String>>()
        });
        Ok(made?.into_iter().flatten().collect())
    }

    /// Takes what [`Device::compiled`] gave.
    pub(crate) fn adopt(&mut self, compiled: Compiled) {
        if let (Some((cache, own)), false) = (&self.kept, compiled.is_empty())
            && let Some(data) = own.get_data()
        {
            cache.put(data);
        }
        self.pipelines.extend(compiled);
    }

    /// The pipeline of a text of ours.
    pub(crate) fn compile(&self, source: String) -> Result<wgpu::ComputePipeline, String> {
        let scope = Scope::new(&self.device);
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(source.into()) };
        let module = match self.checks {
            Checks::On => self.device.create_shader_module(descriptor),
            Checks::Off => trusted::module(&self.device, descriptor),
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&self.layout),
            module: &module,
            entry_point: Some(ENTRY_POINT),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.kept.as_ref().map(|(_, own)| own),
        });
        scope.end()?;
        Ok(pipeline)
    }

    pub(crate) fn pipeline(&self, variant: Variant) -> Option<&wgpu::ComputePipeline> {
        self.pipelines.get(&variant)
    }

    /// The buffers that all kernels share, see [`binding`].
    pub(crate) fn bind(
        &self,
        arena: &wgpu::Buffer,
        constants: &wgpu::Buffer,
        params: &wgpu::Buffer,
    ) -> wgpu::BindGroup {
        self.bind_apart(arena, [constants, constants], params)
    }

    /// With one buffer of constants in words and another in groups of four.
    pub(crate) fn bind_apart(
        &self,
        arena: &wgpu::Buffer,
        [words, quads]: [&wgpu::Buffer; 2],
        params: &wgpu::Buffer,
    ) -> wgpu::BindGroup {
        let entry = |binding, buffer, size| {
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size });
            wgpu::BindGroupEntry { binding, resource }
        };
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.bindings,
            entries: &[
                entry(binding::WORDS, arena, None),
                entry(binding::QUADS, arena, None),
                entry(binding::CONSTANTS, words, None),
                entry(binding::CONSTANT_QUADS, quads, None),
                entry(binding::PARAMS, params, std::num::NonZeroU64::new(PARAMS_BYTES)),
            ],
        })
    }

    /// What went wrong since the device was made, if anything.
    pub(crate) fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether an error says that a kernel did not compile, as [`Device::compiled`] says it.
pub(crate) fn is_of_kernel(why: &str) -> bool {
    why.starts_with("kernel")
}

/// Errors of what is made inside it.
pub(crate) struct Scope([wgpu::ErrorScopeGuard; 2]);

impl Scope {
    pub(crate) fn new(device: &wgpu::Device) -> Self {
        Self([
            device.push_error_scope(wgpu::ErrorFilter::OutOfMemory),
            device.push_error_scope(wgpu::ErrorFilter::Validation),
        ])
    }

    pub(crate) fn end(self) -> Result<(), String> {
        let [memory, validation] = self.0;
        let mut found = None;
        for scope in [validation, memory] {
            match ready(scope.pop()) {
                Some(None) => {}
                Some(Some(error)) => found = Some(error.to_string()),
                None => found = Some("an error scope is not ready".into()),
            }
        }
        found.map_or(Ok(()), Err)
    }
}
