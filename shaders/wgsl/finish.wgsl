// Sums to bytes: `rint(sum * multiplier) + zero`, clamped, looked up, joined with a skip connection. One multiplication in
// f32; all before and after it are integers, so that no compiler can contract anything.
fn finished(sums: vec4<i32>, column: u32, pixel: u32) -> u32 {
    let multiplier = bitcast<vec4<f32>>(constant_quads[params.multiplier + column]);
    let real = clamp(vec4<f32>(sums) * multiplier, vec4<f32>(-65536.0), vec4<f32>(65536.0));
    let low = vec4<i32>(i32(params.low));
    let high = vec4<i32>(i32(params.high));
    var bytes = min(max(vec4<i32>(round(real)) + i32(params.zero), low), high);
    if params.table != NONE {
        bytes = looked_up(params.table, bytes);
    }
    if params.join != JOIN_NOTHING {
        let skip = bytes_of(words[params.skip_base + pixel * params.skip_stride + column]);
        if params.skip_first != 0u {
            bytes = joined(skip, bytes);
        } else {
            bytes = joined(bytes, skip);
        }
    }
    return word_of(bytes);
}
