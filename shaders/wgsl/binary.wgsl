// Two activations to one, byte by byte. A stretched operand has a stride of 0: one pixel that goes with all.
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
    let a = bytes_of(words[params.a_base + pixel * params.a_stride + column]);
    let b = bytes_of(words[params.b_base + pixel * params.b_stride + column]);
    words[params.out_base + pixel * params.out_stride + column] = word_of(joined(a, b));
}
