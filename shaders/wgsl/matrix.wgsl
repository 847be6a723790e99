// Matrices times matrices, both activations: a thread computes one row by one word of columns.
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
    let first = pixel / params.height * params.depth;
    let row = params.a_base + pixel * params.a_stride;
    var sums = vec4<i32>();
    for (var j = 0u; j < params.depth; j++) {
        let word = words[row + (j >> 2u)] ^ SIGNS;
        let a = i32((word >> ((j & 3u) * 8u)) & 255u) - i32(params.a_zero);
        let b = bytes_of(words[params.b_base + (first + j) * params.b_stride + column]);
        sums += a * (b - i32(params.b_zero));
    }
    var bytes = all_climbed(params.stairs, sums);
    if params.table != NONE {
        bytes = looked_up(params.table, bytes);
    }
    words[params.out_base + pixel * params.out_stride + column] = word_of(bytes);
}
