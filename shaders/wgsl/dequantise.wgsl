// What the bytes of some channels mean, in f32, from a table for each channel: in the order in which a tensor has them, channel
// after channel or pixel after pixel, with nothing in between.
@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * $(LANES)u + lane;
    // Neighbours write to neighbours, where a channel's values lie together.
    let pixel = index % params.pixels;
    let column = params.first / 4u + index / params.pixels;
    if 4u * column >= params.first + params.channels {
        return;
    }
    let bytes = vec4<u32>(bytes_of(words[params.in_base + pixel * params.in_stride + column]));
    let place = params.out_base + pixel * params.pixel_step;
#for i in 0..4
    {
        // Before the first one, very large.
        let channel = 4u * column + $(i)u - params.first;
        if channel < params.channels {
            let values = constants[params.tables + channel];
            words[place + channel * params.channel_step] = constants[values + bytes[$(i)]];
        }
    }
#end
}
