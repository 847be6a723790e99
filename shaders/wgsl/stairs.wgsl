// A function that never falls: how many steps a sum has climbed. The least sum that gives a byte lies at the byte's place.
fn climbed(stairs: u32, sum: i32) -> i32 {
    var byte = 0u;
    for (var step = 128u; step > 0u; step /= 2u) {
        if bitcast<i32>(constants[stairs + byte + step]) <= sum {
            byte += step;
        }
    }
    return i32(byte);
}

fn all_climbed(stairs: u32, sums: vec4<i32>) -> vec4<i32> {
    return vec4<i32>(
        climbed(stairs, sums.x), climbed(stairs, sums.y), climbed(stairs, sums.z), climbed(stairs, sums.w),
    );
}

// The same of real sums.
fn real_climbed(stairs: u32, sum: f32) -> i32 {
    var byte = 0u;
    for (var step = 128u; step > 0u; step /= 2u) {
        if bitcast<f32>(constants[stairs + byte + step]) <= sum {
            byte += step;
        }
    }
    return i32(byte);
}

fn all_real_climbed(stairs: u32, sums: vec4<f32>) -> vec4<i32> {
    return vec4<i32>(
        real_climbed(stairs, sums.x), real_climbed(stairs, sums.y),
        real_climbed(stairs, sums.z), real_climbed(stairs, sums.w),
    );
}

// A real number for each byte, from a table.
fn reals(table: u32, bytes: vec4<i32>) -> vec4<f32> {
    let at = vec4<u32>(bytes) + table;
    return bitcast<vec4<f32>>(vec4<u32>(constants[at.x], constants[at.y], constants[at.z], constants[at.w]));
}
