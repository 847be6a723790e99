// The largest of a window, with MAXIMUM, or its mean; what hangs over does not count, unless there is a fixed divisor.
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
    let y = pixel / params.out_width * params.stride_h - params.top;
    let x = pixel % params.out_width * params.stride_w - params.left;
#if MAXIMUM
    var found = vec4<f32>(-3.0e38);
#else
    var found = vec4<f32>();
#end
    var count = 0u;
    for (var ky = 0u; ky < params.kernel_h; ky++) {
        let row = y + ky * params.dilation_h;
        if row >= params.in_height {
            continue;
        }
        for (var kx = 0u; kx < params.kernel_w; kx++) {
            let beside = x + kx * params.dilation_w;
            if beside < params.in_width {
                let place = (row * params.in_width + beside) * params.in_stride;
                let value = seen(params.in_base + place + column);
#if MAXIMUM
                found = max(found, value);
#else
                found += value;
#end
                count += 1u;
            }
        }
    }
#if !MAXIMUM
    let divisor = select(max(count, 1u), params.divisor, params.divisor != 0u);
    found = found / f32(divisor);
#end
    put(params.out_base + pixel * params.out_stride + column, found);
}
