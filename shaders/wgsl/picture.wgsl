// A picture as it comes, bytes with the channels of a pixel side by side and nothing in between, each channel looked up in a
// table of its own.
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
    var bytes = vec4<i32>();
#for i in 0..4
    {
        let channel = 4u * column + $(i)u;
        if channel < params.channels {
            let at = pixel * params.channels + channel;
            let byte = (words[params.in_base + (at >> 2u)] >> ((at & 3u) * 8u)) & 255u;
            bytes[$(i)] = entry(params.tables + 64u * channel, i32(byte));
        }
    }
#end
    words[params.out_base + pixel * params.out_stride + column] = word_of(bytes);
}
