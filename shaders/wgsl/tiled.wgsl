// The same convolution through workgroup memory: 64 threads compute a tile of 8 PIXELS pixels by 8 OUT words of channels,
// each of them PIXELS by OUT of it, from 64 input channels at a time that they fetch together. Reads 16 channels at once.
fn product(x: u32, w: vec4<u32>) -> vec4<i32> {
    return vec4<i32>(
        dot4I8Packed(x, w.x), dot4I8Packed(x, w.y), dot4I8Packed(x, w.z), dot4I8Packed(x, w.w),
    );
}

// Rows of the output may lie further apart than its pixels say.
fn out_place(pixel: u32) -> u32 {
    let row = pixel / params.out_width;
    return params.out_base + row * params.out_row + (pixel - row * params.out_width) * params.out_stride;
}

// [16 channels, four of them][pixel]
var<workgroup> pixels_seen: array<vec4<u32>, $(32 * PIXELS)>;
// [4 channels, sixteen of them][word]
var<workgroup> weights_seen: array<vec4<u32>, $(128 * OUT)>;

@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group.y * groups.x + group.x;
    let columns = params.columns;
    let across = columns * $(8 * OUT)u;
    let column = index % columns * $(8 * OUT)u;
    let first = index / columns * $(8 * PIXELS)u;
    // What this thread fetches.
    let fetched = min(first + lane % $(8 * PIXELS)u, params.pixels - 1u);
    let quarter = lane / $(8 * PIXELS)u;
#if !POINTWISE
    let y = fetched / params.out_width * params.stride_h - params.top;
    let x = fetched % params.out_width * params.stride_w - params.left;
#end
    // What it computes.
    let right = lane % 8u;
    let down = lane / 8u;
#for p in 0..PIXELS
#for o in 0..OUT
    var sum_$(p)_$(o) = vec4<i32>();
#end
#end
    var tap = params.weights + column;
    let last = 4u * params.depth - 1u;
#if !POINTWISE
    for (var ky = 0u; ky < params.kernel_h; ky++) {
        for (var kx = 0u; kx < params.kernel_w; kx++) {
            let row = y + ky * params.dilation_h;
            let beside = x + kx * params.dilation_w;
            let inside = row < params.in_height && beside < params.in_width;
            let place = params.in_base + (row * params.in_width + beside) * params.in_stride;
            let origin = select(params.pad_base, place, inside);
#else
            let origin = params.in_base + fetched * params.in_stride;
#end
            for (var d = 0u; d < params.depth; d += 4u) {
                // Nobody reads the last ones any more.
                workgroupBarrier();
#for j in 0..PIXELS / 2
                {
                    let at = d + quarter + $(j * (8 / PIXELS))u;
                    // Behind the last channels there is nothing, whatever the weights there.
                    let seen = quads[origin + min(at, params.depth - 1u)];
                    pixels_seen[lane + $(64 * j)u] = select(vec4<u32>(), seen, at < params.depth);
                }
#end
#for j in 0..2 * OUT
                {
                    let word = (lane + $(64 * j)u) % $(8 * OUT)u;
                    let channels = min(4u * d + (lane + $(64 * j)u) / $(8 * OUT)u, last);
                    weights_seen[lane + $(64 * j)u] = constant_quads[tap + channels * across + word];
                }
#end
                workgroupBarrier();
#for q in 0..4
#for p in 0..PIXELS
                let in_$(q)_$(p) = pixels_seen[$(q * 8 * PIXELS + 8 * p)u + down];
#end
#for u in 0..4
#for o in 0..OUT
                let weight_$(q)_$(u)_$(o) = weights_seen[$((q * 4 + u) * 8 * OUT + 8 * o)u + right];
#for p in 0..PIXELS
                sum_$(p)_$(o) += product(in_$(q)_$(p)[$(u)], weight_$(q)_$(u)_$(o));
#end
#end
#end
#end
            }
#if !POINTWISE
            tap += 4u * params.depth * across;
        }
    }
#end
#for o in 0..OUT
    {
        let own = column + $(8 * o)u + right;
        let bias = bitcast<vec4<i32>>(constant_quads[params.bias + min(own, across - 1u)]);
#for p in 0..PIXELS
        {
            let pixel = first + $(8 * p)u + down;
            if own < params.out_words && pixel < params.pixels {
                words[out_place(pixel) + own] = finished(sum_$(p)_$(o) + bias, own, pixel);
            }
        }
#end
    }
#end
}
