// An input of the network as it comes, f32, to bytes: as many as the steps of a staircase that it has climbed. Real numbers
// are compared as whole ones in the same order, so that no driver's idea of f32 counts.
fn quantised(real: u32) -> i32 {
    if (real & 0x7fffffffu) > 0x7f800000u {
        return i32(params.nan);
    }
    let number = bitcast<i32>(select(real, 0x80000000u - real, real >= 0x80000000u));
    return climbed(params.stairs, number);
}

@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * $(LANES)u + lane;
    // Neighbours read neighbours, where a channel's values lie together.
    let pixel = index % params.pixels;
    let column = index / params.pixels;
    if column >= params.out_words {
        return;
    }
    let place = params.in_base + pixel * params.pixel_step;
    var bytes = vec4<i32>();
#for i in 0..4
    if 4u * column + $(i)u < params.channels {
        bytes[$(i)] = quantised(words[place + (4u * column + $(i)u) * params.channel_step]);
    }
#end
    words[params.out_base + pixel * params.out_stride + column] = word_of(bytes);
}
