// Window averages. The sums are real and only added up, in the CPU's order; what becomes of them is a staircase for each
// number of positions that a window may count.
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
    let out_y = pixel / params.out_width;
    let out_x = pixel % params.out_width;
    let y = out_y * params.stride_h - params.top;
    let x = out_x * params.stride_w - params.left;
    var sums = vec4<f32>();
    for (var ky = 0u; ky < params.kernel_h; ky++) {
        let row = y + ky * params.dilation_h;
        if row >= params.in_height {
            continue;
        }
        for (var kx = 0u; kx < params.kernel_w; kx++) {
            let origin = x + kx * params.dilation_w;
            if origin < params.in_width {
                let place = (row * params.in_width + origin) * params.in_stride;
                sums += reals(params.values, bytes_of(words[params.in_base + place + column]));
            }
        }
    }
    let count = constants[params.row_counts + out_y] * constants[params.column_counts + out_x];
    let stairs = constants[params.stairs + count];
    words[params.out_base + pixel * params.out_stride + column] = word_of(all_real_climbed(stairs, sums));
}
