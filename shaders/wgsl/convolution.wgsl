// Convolution of any window and any groups; a fully connected layer is one of a window of 1. A thread computes PIXELS pixels
// by OUT words of channels. Weights lie as [tap][word of input channels][word of output channels], each a group of four words:
// four input channels for each of four output channels. With QUADS a thread reads 16 input channels at a time.
fn product(x: u32, w: vec4<u32>) -> vec4<i32> {
    return vec4<i32>(
        dot4I8Packed(x, w.x), dot4I8Packed(x, w.y), dot4I8Packed(x, w.z), dot4I8Packed(x, w.w),
    );
}

@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * $(LANES)u + lane;
    let columns = params.columns;
    let column = index % columns * $(OUT)u;
    let first = index / columns * $(PIXELS)u;
    if first >= params.pixels {
        return;
    }
    let across = columns * $(OUT)u;
    var base = params.in_base;
#if GROUPED
    base += constants[params.starts + column];
#end
#for o in 0..OUT
    let bias_$(o) = bitcast<vec4<i32>>(constant_quads[params.bias + column + $(o)u]);
#end
#for p in 0..PIXELS
    let pixel_$(p) = min(first + $(p)u, params.pixels - 1u);
#if POINTWISE
    let from_$(p) = base + pixel_$(p) * params.in_stride;
#else
    let y_$(p) = pixel_$(p) / params.out_width * params.stride_h - params.top;
    let x_$(p) = pixel_$(p) % params.out_width * params.stride_w - params.left;
#end
#for o in 0..OUT
    var sum_$(p)_$(o) = bias_$(o);
#end
#end
    var at = params.weights + column;
#if !POINTWISE
    let pad = params.pad;
    for (var ky = 0u; ky < params.kernel_h; ky++) {
        for (var kx = 0u; kx < params.kernel_w; kx++) {
#for p in 0..PIXELS
            // Rows above the first are very large.
            let row_$(p) = y_$(p) + ky * params.dilation_h;
            let column_$(p) = x_$(p) + kx * params.dilation_w;
            let inside_$(p) = row_$(p) < params.in_height && column_$(p) < params.in_width;
            let place_$(p) = (row_$(p) * params.in_width + column_$(p)) * params.in_stride;
            let from_$(p) = base + select(0u, place_$(p), inside_$(p));
#end
#end
            for (var d = 0u; d < params.depth; d++) {
#for p in 0..PIXELS
#if QUADS
                var in_$(p) = quads[from_$(p) + d];
#if !POINTWISE
                in_$(p) = select(vec4<u32>(pad), in_$(p), inside_$(p));
#end
#else
                var in_$(p) = words[from_$(p) + d];
#if !POINTWISE
                in_$(p) = select(pad, in_$(p), inside_$(p));
#end
#end
#end
#for u in 0..1 + 3 * QUADS
#for o in 0..OUT
                let weight_$(u)_$(o) = constant_quads[at + $(o)u];
#for p in 0..PIXELS
#if QUADS
                sum_$(p)_$(o) += product(in_$(p)[$(u)], weight_$(u)_$(o));
#else
                sum_$(p)_$(o) += product(in_$(p), weight_$(u)_$(o));
#end
#end
#end
                at += across;
#end
            }
#if !POINTWISE
        }
    }
#end
#for o in 0..OUT
    if column + $(o)u < params.out_words {
#for p in 0..PIXELS
        if first + $(p)u < params.pixels {
            let word = finished(sum_$(p)_$(o), column + $(o)u, first + $(p)u);
            words[params.out_base + (first + $(p)u) * params.out_stride + column + $(o)u] = word;
        }
#end
    }
#end
}
