// What becomes of a convolution's sums: a function, what another layer gave, another function.
fn finished(sum: vec4<f32>, column: u32, pixel: u32) -> vec4<f32> {
    let own = activated(params.first, params.first_a, params.first_b, sum);
    if params.skip_base == NONE {
        return own;
    }
    let skipped = seen(params.skip_base + pixel * params.skip_stride + column);
    return activated(params.then, params.then_a, params.then_b, own + skipped);
}
