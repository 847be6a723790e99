// Pixels of the input, or the number that there is around it: nearest Resize, Pad, Slice. Each row of the output, and each
// column, names one of the input, or NONE.
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
    let row = constants[params.rows + pixel / params.out_width];
    let beside = constants[params.columns + pixel % params.out_width];
    let inside = row != NONE && beside != NONE;
    let place = select(0u, (row * params.in_width + beside) * params.in_stride, inside);
    let found = seen(params.in_base + place + column);
    let values = select(vec4<f32>(bitcast<f32>(params.fill)), found, inside);
    put(params.out_base + pixel * params.out_stride + column, values);
}
