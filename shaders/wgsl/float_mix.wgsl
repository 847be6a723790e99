// Linear Resize: each row of the output, and each column, names two of the input, and how much of each there is.
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
    let row = params.rows + 4u * (pixel / params.out_width);
    let beside = params.columns + 4u * (pixel % params.out_width);
    var sum = vec4<f32>();
#for y in 0..2
    {
        let line = params.in_base + constants[row + $(y)u] * params.in_width * params.in_stride + column;
        let share = bitcast<f32>(constants[row + $(y + 2)u]);
#for x in 0..2
        let from_$(x) = seen(line + constants[beside + $(x)u] * params.in_stride);
        sum += share * bitcast<f32>(constants[beside + $(x + 2)u]) * from_$(x);
#end
    }
#end
    put(params.out_base + pixel * params.out_stride + column, sum);
}
