//! Shaders without checks of their own.
#![allow(unsafe_code, reason = "a named module for one call: the block says why it is safe")]

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
