// Convolution of any window; a fully connected layer is one whose window is all of the image. A thread computes PIXELS pixels
// by OUT quads of channels. Weights lie as [tap][input channel][quad of output channels]. SPLIT threads share the input channels
// of a tile, and add up in workgroup memory; with a SPLIT of 1 none is used. Results of a window that is not POINTWISE may lie
// apart, with others between them, so that a transposed convolution is several of these.
#if SPLIT > 1
var<workgroup> partial_sums: array<vec4<f32>, $(LANES * PIXELS * OUT)>;
#end

@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let part = lane / $(LANES / SPLIT)u;
    let index = (group.y * groups.x + group.x) * $(LANES / SPLIT)u + lane % $(LANES / SPLIT)u;
    let columns = params.columns;
    let column = index % columns * $(OUT)u;
    let first = index / columns * $(PIXELS)u;
#if SPLIT == 1
    if first >= params.pixels {
        return;
    }
#end
    let across = columns * $(OUT)u;
    // Each group of output channels reads input channels of its own.
    let base = params.in_base + column / params.group_words * params.depth;
#for p in 0..PIXELS
    let pixel_$(p) = min(first + $(p)u, params.pixels - 1u);
#if POINTWISE
    let from_$(p) = base + pixel_$(p) * params.in_stride;
    let to_$(p) = pixel_$(p);
#else
    let row_of_$(p) = pixel_$(p) / params.out_width;
    let column_of_$(p) = pixel_$(p) % params.out_width;
    let y_$(p) = row_of_$(p) * params.stride_h - params.top;
    let x_$(p) = column_of_$(p) * params.stride_w - params.left;
    let to_$(p) = params.out_first + row_of_$(p) * params.out_down + column_of_$(p) * params.out_right;
#end
#for o in 0..OUT
#if SPLIT > 1
    var sum_$(p)_$(o) = vec4<f32>();
#else
    var sum_$(p)_$(o) = fixed(params.bias + column + $(o)u);
#end
#end
#end
    var tap = params.weights + column;
#if !POINTWISE
    for (var ky = 0u; ky < params.kernel_h; ky++) {
        for (var kx = 0u; kx < params.kernel_w; kx++) {
#for p in 0..PIXELS
            // Rows above the first are very large. Around the input there are zeros, which lie somewhere else.
            let row_$(p) = y_$(p) + ky * params.dilation_h;
            let column_$(p) = x_$(p) + kx * params.dilation_w;
            let inside_$(p) = row_$(p) < params.in_height && column_$(p) < params.in_width;
            let place_$(p) = base + (row_$(p) * params.in_width + column_$(p)) * params.in_stride;
            let from_$(p) = select(params.zeros, place_$(p), inside_$(p));
#end
#end
            var at = tap + part * (4u * across);
            for (var d = part; d < params.depth; d += $(SPLIT)u) {
#for p in 0..PIXELS
                let in_$(p) = seen(from_$(p) + d);
#end
#for u in 0..4
#for o in 0..OUT
                let weight_$(u)_$(o) = fixed(at + $(u)u * across + $(o)u);
#end
#end
#for u in 0..4
#for o in 0..OUT
#for p in 0..PIXELS
                sum_$(p)_$(o) += in_$(p)[$(u)] * weight_$(u)_$(o);
#end
#end
#end
                at += across * $(4 * SPLIT)u;
            }
#if !POINTWISE
            tap += params.depth * (4u * across);
        }
    }
#end
#if SPLIT > 1
    // Sum i of part s of a tile lies at [i][s][tile].
#for p in 0..PIXELS
#for o in 0..OUT
    partial_sums[$((p * OUT + o) * LANES)u + lane] = sum_$(p)_$(o);
#end
#end
    workgroupBarrier();
    let tile = lane % $(LANES / SPLIT)u;
    for (var i = part; i < $(PIXELS * OUT)u; i += $(SPLIT)u) {
        let own = column + i % $(OUT)u;
        let pixel = first + i / $(OUT)u;
        if own < params.out_words && pixel < params.pixels {
#if POINTWISE
            let to = pixel;
#else
            let to = params.out_first + pixel / params.out_width * params.out_down
                + pixel % params.out_width * params.out_right;
#end
            var sum = fixed(params.bias + own);
#for s in 0..SPLIT
            sum += partial_sums[i * $(LANES)u + $(s * (LANES / SPLIT))u + tile];
#end
            put(params.out_base + to * params.out_stride + own, finished(sum, own, to));
        }
    }
#else
#for o in 0..OUT
    if column + $(o)u < params.out_words {
#for p in 0..PIXELS
        if first + $(p)u < params.pixels {
            let place = params.out_base + to_$(p) * params.out_stride + column + $(o)u;
            put(place, finished(sum_$(p)_$(o), column + $(o)u, to_$(p)));
        }
#end
    }
#end
#end
}
