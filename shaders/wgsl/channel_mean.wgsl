// The mean of each pixel's channels, one byte a pixel.
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
    var sum = 0;
    for (var j = 0u; j < params.channels; j++) {
        let word = words[params.in_base + pixel * params.in_stride + (j >> 2u)] ^ SIGNS;
        sum += i32((word >> ((j & 3u) * 8u)) & 255u);
    }
    let byte = climbed(params.stairs, sum);
    words[params.out_base + pixel * params.out_stride + column] = word_of(vec4<i32>(byte, 0, 0, 0));
}
