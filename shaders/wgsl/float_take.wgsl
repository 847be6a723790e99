// An input as ONNX has it, f32 by [channel][pixel], to quads of channels.
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
#for l in 0..4
    let channel_$(l) = 4u * column + $(l)u;
    let there_$(l) = channel_$(l) < params.channels;
    let word_$(l) = words[params.planes + select(0u, channel_$(l), there_$(l)) * params.pixels + pixel];
    let lane_$(l) = select(0.0, bitcast<f32>(word_$(l)), there_$(l));
#end
    put(params.base + pixel * params.stride + column, vec4<f32>(lane_0, lane_1, lane_2, lane_3));
}
