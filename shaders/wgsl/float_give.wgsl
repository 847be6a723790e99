// Quads of channels to an output as ONNX has it, f32 by [channel][pixel].
@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * $(LANES)u + lane;
    let pixel = index % params.pixels;
    let column = index / params.pixels;
    if column >= params.columns {
        return;
    }
    let values = seen(params.base + pixel * params.stride + column);
#for l in 0..4
    if 4u * column + $(l)u < params.channels {
        words[params.planes + (4u * column + $(l)u) * params.pixels + pixel] = bitcast<u32>(values[$(l)]);
    }
#end
}
