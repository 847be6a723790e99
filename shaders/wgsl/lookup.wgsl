// Each byte looked up, in one table or in one a channel.
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
    let bytes = bytes_of(words[params.in_base + pixel * params.in_stride + column]);
    // Words from the table of one channel to that of the next: 64, or none.
    let apart = params.apart;
    let table = params.table + 4u * column * apart;
    let found = vec4<i32>(
        entry(table, bytes.x), entry(table + apart, bytes.y),
        entry(table + 2u * apart, bytes.z), entry(table + 3u * apart, bytes.w),
    );
    words[params.out_base + pixel * params.out_stride + column] = word_of(found);
}
