// Two bytes to one, in integers; which form is exact was found out for all pairs when the network was loaded.
const JOIN_NOTHING = 0u;
const JOIN_LINEAR = 1u;
const JOIN_SUMS = 2u;
const JOIN_PAIRS = 3u;

fn sum_entries(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    let left = vec4<u32>(a) + params.join_a;
    let right = vec4<u32>(b) + params.join_b;
    return vec4<i32>(
        bitcast<i32>(constants[left.x]) + bitcast<i32>(constants[right.x]),
        bitcast<i32>(constants[left.y]) + bitcast<i32>(constants[right.y]),
        bitcast<i32>(constants[left.z]) + bitcast<i32>(constants[right.z]),
        bitcast<i32>(constants[left.w]) + bitcast<i32>(constants[right.w]),
    );
}

fn joined(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    if params.join == JOIN_PAIRS {
        return vec4<i32>(
            entry(params.join_a + u32(a.x) * 64u, b.x), entry(params.join_a + u32(a.y) * 64u, b.y),
            entry(params.join_a + u32(a.z) * 64u, b.z), entry(params.join_a + u32(a.w) * 64u, b.w),
        );
    }
    var sums: vec4<i32>;
    if params.join == JOIN_LINEAR {
        sums = a * i32(params.join_a) + b * i32(params.join_b) + i32(params.join_c);
    } else {
        sums = sum_entries(a, b);
    }
    let shift = vec4<u32>(params.join_shift);
    let bytes = clamp(sums >> shift, vec4<i32>(i32(params.join_low)), vec4<i32>(i32(params.join_high)));
    if params.join_table != NONE {
        return looked_up(params.join_table, bytes);
    }
    return bytes;
}
