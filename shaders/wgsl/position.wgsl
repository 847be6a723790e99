// The number of the channel with each pixel's greatest or least byte, as one word. PARTS threads share the channels.
#if PARTS > 1
var<workgroup> shared_keys: array<u32, $(LANES)>;
#end

@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = (group.y * groups.x + group.x) * $(LANES / PARTS)u + lane / $(PARTS)u;
    let part = lane % $(PARTS)u;
    // All threads of a workgroup wait for each other, those behind the last pixel too.
    let place = params.in_base + min(pixel, params.pixels - 1u) * params.in_stride;
    // The greatest key wins: the byte, or what is left to 255, then the number, or what is left to the largest.
    var best = 0u;
    for (var channel = part; channel < params.channels; channel += $(PARTS)u) {
        let word = words[place + (channel >> 2u)] ^ SIGNS ^ params.flip;
        let byte = (word >> ((channel & 3u) * 8u)) & 255u;
        best = max(best, (byte << 24u) | (channel ^ params.order));
    }
#if PARTS > 1
    shared_keys[lane] = best;
    workgroupBarrier();
    if part != 0u {
        return;
    }
#for i in 0..PARTS - 1
    best = max(best, shared_keys[lane + $(i + 1)u]);
#end
#end
    if pixel < params.pixels {
        let number = (best & 0xffffffu) ^ params.order;
        words[params.out_base + pixel * params.out_stride] = number ^ SIGNS;
    }
}
