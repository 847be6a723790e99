// An activation's channels to where they begin at lane SHIFT of a quad, which others have the lanes before of. What is behind
// the last channel becomes 0.
@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * $(LANES)u + lane;
    let column = index % params.out_words;
    let pixel = index / params.out_words;
    if pixel >= params.pixels {
        return;
    }
    let to = params.out_base + pixel * params.out_stride + column;
    let source = params.in_base + pixel * params.in_stride;
    let last = (params.channels - 1u) / 4u;
    let high = seen(source + min(column, last));
#if SHIFT
    let old = seen(to);
    let low = seen(source + min(max(column, 1u) - 1u, last));
#end
#for l in 0..4
    let there_$(l) = 4u * column + $(l)u - $(SHIFT)u < params.channels;
#if l < SHIFT
    let lane_$(l) = select(select(0.0, low[$(l + 4 - SHIFT)], there_$(l)), old[$(l)], column == 0u);
#else
    let lane_$(l) = select(0.0, high[$(l - SHIFT)], there_$(l));
#end
#end
    put(to, vec4<f32>(lane_0, lane_1, lane_2, lane_3));
}
