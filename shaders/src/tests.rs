//! Every variant that is ever used is valid, keeps to the limits, and can be had on Vulkan and on OpenGL ES.

use naga::{
    AddressSpace,
    back::{glsl, spv},
    proc::BoundsCheckPolicies,
    valid::{Capabilities, ValidationFlags, Validator},
};

use super::*;

fn parsed(variant: Variant) -> (naga::Module, naga::valid::ModuleInfo) {
    let source = variant.source().unwrap();
    let module = naga::front::wgsl::parse_str(&source);
    let module = module.unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&source)));
    let capabilities = if is_half(variant) { Capabilities::SHADER_FLOAT16 } else { Capabilities::empty() };
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
    let info = info.unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&source)));
    (module, info)
}

fn is_half(variant: Variant) -> bool {
    matches!(variant, Variant::Float { half: true, .. })
}

#[test]
fn every_variant_keeps_to_the_limits() {
    for variant in Variant::all() {
        let (module, _) = parsed(variant);
        let [entry] = &*module.entry_points else { panic!("{variant:?}: not one entry point") };
        assert_eq!(entry.name, ENTRY_POINT);
        let invocations: u32 = entry.workgroup_size.iter().product();
        assert!(invocations == variant.lanes() && invocations <= Limits::INVOCATIONS, "{variant:?}");
        let (mut storage, mut shared) = (0, 0);
        for (_, variable) in module.global_variables.iter() {
            let size = module.types[variable.ty].inner.size(module.to_ctx());
            match variable.space {
                AddressSpace::Storage { .. } => storage += 1,
                AddressSpace::WorkGroup => shared += size,
                AddressSpace::Uniform => assert!(u64::from(size) <= PARAMS_BYTES, "{variant:?}: {size}"),
                _ => {}
            }
        }
        assert!(storage <= Limits::STORAGE_BUFFERS && shared <= Limits::WORKGROUP_BYTES, "{variant:?}");
    }
}

#[test]
fn vulkan_gets_the_dot_product_instruction_where_there_is_one() {
    for variant in Variant::all() {
        let (module, info) = parsed(variant);
        let capabilities = [
            spv::Capability::Shader,
            spv::Capability::DotProduct,
            spv::Capability::DotProductInput4x8BitPacked,
            spv::Capability::Float16,
            spv::Capability::StorageBuffer16BitAccess,
            spv::Capability::UniformAndStorageBuffer16BitAccess,
        ];
        let options = spv::Options {
            lang_version: (1, 6),
            capabilities: Some(capabilities.into_iter().collect()),
            ..Default::default()
        };
        let words = spv::write_vec(&module, &info, &options, None);
        let words = words.unwrap_or_else(|e| panic!("{variant:?}: {e}"));
        // OpSDot is operation 4450.
        let dots = words.iter().filter(|word| **word & 0xffff == 4450).count();
        assert_eq!(
            dots > 0,
            matches!(variant, Variant::Convolution { real: false, .. } | Variant::Tiled { .. }),
            "{variant:?}: {dots}"
        );
    }
}

#[test]
fn probes_are_valid() {
    for probe in [Probe::Dot, Probe::F32, Probe::F16, Probe::Copy, Probe::Nothing] {
        let module = naga::front::wgsl::parse_str(&probe.source());
        let module = module.unwrap_or_else(|e| panic!("{probe:?}: {}", e.emit_to_string(&probe.source())));
        let capabilities =
            if probe == Probe::F16 { Capabilities::SHADER_FLOAT16 } else { Capabilities::empty() };
        let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
        assert!(info.is_ok(), "{probe:?}: {info:?}");
    }
}

#[test]
fn opengl_es_3_1_can_have_them() {
    for variant in Variant::all().into_iter().filter(|variant| !is_half(*variant)) {
        let (module, info) = parsed(variant);
        let options = glsl::Options { version: glsl::Version::new_gles(310), ..Default::default() };
        let pipeline = glsl::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: ENTRY_POINT.into(),
            multiview: None,
        };
        let mut text = String::new();
        let policies = BoundsCheckPolicies::default();
        let writer = glsl::Writer::new(&mut text, &module, &info, &options, &pipeline, policies);
        writer.and_then(|mut writer| writer.write()).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
    }
}
