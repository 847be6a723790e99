// Whole rows, columns and channels taken from anywhere: lists say from where, NONE is filled.
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
    let origin = constants[params.columns + pixel % params.out_width];
    var word = params.fill;
    if row != NONE && origin != NONE {
        let place = params.in_base + (row * params.in_width + origin) * params.in_stride;
        if params.channels == NONE {
            word = words[place + column];
        } else {
            var bytes = 0u;
            for (var i = 0u; i < 4u; i++) {
                let channel = constants[params.channels + 4u * column + i];
                var byte = params.fill & 255u;
                if channel != NONE {
                    byte = (words[place + (channel >> 2u)] >> ((channel & 3u) * 8u)) & 255u;
                }
                bytes |= byte << (i * 8u);
            }
            word = bytes;
        }
    }
    words[params.out_base + pixel * params.out_stride + column] = word;
}
