// The mean of each channel over all pixels. A thread takes one quad of channels and every PARTS-th pixel.
#if PARTS > 1
var<workgroup> shared_sums: array<vec4<f32>, $(LANES)>;
#end

@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = (group.y * groups.x + group.x) * $(LANES / PARTS)u;
    let column = block + lane % $(LANES / PARTS)u;
    let part = lane / $(LANES / PARTS)u;
    var sums = vec4<f32>();
    if column < params.out_words {
        for (var pixel = part; pixel < params.pixels; pixel += $(PARTS)u) {
            sums += seen(params.in_base + pixel * params.in_stride + column);
        }
    }
#if PARTS > 1
    shared_sums[lane] = sums;
    workgroupBarrier();
    if part != 0u {
        return;
    }
#for i in 0..PARTS - 1
    sums += shared_sums[lane + $((i + 1) * (LANES / PARTS))u];
#end
#end
    if column < params.out_words {
        put(params.out_base + column, sums / f32(params.pixels));
    }
}
