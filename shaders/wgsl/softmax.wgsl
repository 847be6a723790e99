// Softmax over the channels of each pixel. What a byte below the greatest is worth is a whole number from a table, so that
// the order of adding up is of no account; the less all are worth together, the higher the byte has climbed, on a staircase
// for each distance from the greatest. PARTS threads share the words of a pixel.
#if PARTS > 1
var<workgroup> shared_most: array<i32, $(LANES)>;
var<workgroup> shared_sums: array<u32, $(LANES)>;
#end

// Channels that fill up the last word count as the least byte, which never wins, and are worth nothing.
fn is_own(column: u32) -> vec4<bool> {
    return vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.channels - 4u * column);
}

fn own_bytes(place: u32, column: u32) -> vec4<i32> {
    return select(vec4<i32>(), bytes_of(words[place + column]), is_own(column));
}

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
    var most = 0;
    for (var column = part; column < params.out_words; column += $(PARTS)u) {
        let bytes = own_bytes(place, column);
        most = max(most, max(max(bytes.x, bytes.y), max(bytes.z, bytes.w)));
    }
#if PARTS > 1
    shared_most[lane] = most;
    workgroupBarrier();
    let first = lane - part;
    for (var i = 0u; i < $(PARTS)u; i++) {
        most = max(most, shared_most[first + i]);
    }
#end
    var sum = 0u;
    for (var column = part; column < params.out_words; column += $(PARTS)u) {
        let below = vec4<u32>(vec4<i32>(most) - own_bytes(place, column)) + params.worth;
        let worth = vec4<u32>(
            constants[below.x], constants[below.y], constants[below.z], constants[below.w],
        );
        let own = select(vec4<u32>(), worth, is_own(column));
        sum += own.x + own.y + own.z + own.w;
    }
#if PARTS > 1
    shared_sums[lane] = sum;
    workgroupBarrier();
    sum = 0u;
    for (var i = 0u; i < $(PARTS)u; i++) {
        sum += shared_sums[first + i];
    }
#end
    if pixel >= params.pixels {
        return;
    }
    // Signed, and rising as the sum falls.
    let height = bitcast<i32>(sum ^ 0x7fffffffu);
    for (var column = part; column < params.out_words; column += $(PARTS)u) {
        let below = vec4<u32>(vec4<i32>(most) - own_bytes(place, column)) + params.stairs;
        let bytes = vec4<i32>(
            climbed(constants[below.x], height), climbed(constants[below.y], height),
            climbed(constants[below.z], height), climbed(constants[below.w], height),
        );
        words[params.out_base + pixel * params.out_stride + column] = word_of(bytes);
    }
}
