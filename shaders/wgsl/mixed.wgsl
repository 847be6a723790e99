// Four neighbours mixed, for linear resizing. Each weight's products with all bytes are a table, so that nothing but additions
// is left to do, in the CPU's order. Rows and columns: two places, and a number that with the other's says which tables.
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
    let row = params.rows + 3u * (pixel / params.out_width);
    let beside = params.columns + 3u * (pixel % params.out_width);
    let tables = params.tables + 4u * (constants[row + 2u] * params.classes + constants[beside + 2u]);
    let base = params.in_base + column;
    let top = constants[row] * params.in_width;
    let bottom = constants[row + 1u] * params.in_width;
    let left = constants[beside];
    let right = constants[beside + 1u];
    let a = bytes_of(words[base + (top + left) * params.in_stride]);
    let b = bytes_of(words[base + (top + right) * params.in_stride]);
    let c = bytes_of(words[base + (bottom + left) * params.in_stride]);
    let d = bytes_of(words[base + (bottom + right) * params.in_stride]);
    var sums = reals(constants[tables], a) + reals(constants[tables + 1u], b);
    sums += reals(constants[tables + 2u], c);
    sums += reals(constants[tables + 3u], d);
    words[params.out_base + pixel * params.out_stride + column] = word_of(all_real_climbed(params.stairs, sums));
}
