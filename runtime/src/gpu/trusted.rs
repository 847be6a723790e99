//! Shaders without checks of their own, and what drivers made of them.
#![allow(unsafe_code, reason = "a named module for two calls: the blocks say why they are safe")]

/// A module of this repository's kernels.
pub(super) fn module(
    device: &wgpu::Device,
    descriptor: wgpu::ShaderModuleDescriptor<'_>,
) -> wgpu::ShaderModule {
    // Safety: the text is one of ours, made from `andon_shaders`. Every index that a kernel computes lies inside the arena
    // and the constants, since places and sizes come from the plan, and its loops end; the same kernels run with checks on
    // in the tests, to the same bytes.
    unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
}

/// A cache that begins with `data`, which [`super::PipelineCache`] has found whole.
pub(super) fn cache(device: &wgpu::Device, data: &[u8]) -> wgpu::PipelineCache {
    let data = (!data.is_empty()).then_some(data);
    let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
    // Safety: `data` was given by `get_data` in this process or an earlier one: it carries the digest that was written with
    // it, and its file is one that only this program writes. wgpu compares adapter and driver before it is used.
    unsafe { device.create_pipeline_cache(&descriptor) }
}
