// Bytes from anywhere to anywhere: the output's pixels are counted in up to six dimensions, each with a distance in bytes
// between neighbours of the input. A thread assembles one word of the output and leaves the bytes that are not its pixels'
// as they are, so that a copy may end in the middle of a word that another step wrote.
@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * $(LANES)u + lane;
    if index >= params.count {
        return;
    }
    // All in bytes.
    let at = (params.out_base / 4u + index) * 4u;
    var word = words[at / 4u];
    for (var i = 0u; i < 4u; i++) {
        let place = at + i - params.out_base;
        var pixel = place / params.out_stride;
        let channel = place % params.out_stride;
        // Before the first byte, the distance is very large.
        if pixel >= params.pixels || channel >= params.channels {
            continue;
        }
        var origin = params.in_base + channel * params.channel_step;
#for d in 0..6
        origin += pixel % params.size_$(d) * params.step_$(d);
        pixel /= params.size_$(d);
#end
        let byte = (words[origin / 4u] >> ((origin & 3u) * 8u)) & 255u;
        word = (word & ~(255u << (i * 8u))) | (byte << (i * 8u));
    }
    words[at / 4u] = word;
}
