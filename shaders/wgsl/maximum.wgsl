// The largest byte under a window; padding never wins.
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
    var most = vec4<i32>(-128);
    for (var ky = 0u; ky < params.kernel_h; ky++) {
        let row = y + ky * params.dilation_h;
        if row >= params.in_height {
            continue;
        }
        for (var kx = 0u; kx < params.kernel_w; kx++) {
            let origin = x + kx * params.dilation_w;
            if origin < params.in_width {
                let place = (row * params.in_width + origin) * params.in_stride;
                most = max(most, unpack4xI8(words[params.in_base + place + column]));
            }
        }
    }
    words[params.out_base + pixel * params.out_stride + column] = pack4xI8(most);
}
