// Convolution of any window and any groups; a fully connected layer is one of a window of 1. A thread computes PIXELS pixels
// by OUT words of channels. Weights lie as [tap][word of input channels][word of output channels], each a group of four words:
// four input channels for each of four output channels. With QUADS a thread reads 16 input channels at a time. SPLIT threads
// share the input channels of a tile, and add up in workgroup memory; with a SPLIT of 1 none is used. With REAL products are
// of f32, for hardware that multiplies whole numbers slowly: no product of two signed bytes is beyond 2^14, so that whatever
// 1024 of them add up to, in any order and with contractions or without, f32 holds exactly.
#if REAL
const TURNS_MAX = $(1024 / (4 + 12 * QUADS))u;

fn product(x: vec4<f32>, w: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(
        dot(x, vec4<f32>(unpack4xI8(w.x))), dot(x, vec4<f32>(unpack4xI8(w.y))),
        dot(x, vec4<f32>(unpack4xI8(w.z))), dot(x, vec4<f32>(unpack4xI8(w.w))),
    );
}
#else
fn product(x: u32, w: vec4<u32>) -> vec4<i32> {
    return vec4<i32>(
        dot4I8Packed(x, w.x), dot4I8Packed(x, w.y), dot4I8Packed(x, w.z), dot4I8Packed(x, w.w),
    );
}
#end

// Rows of the output may lie further apart than its pixels say.
fn out_place(pixel: u32) -> u32 {
    let row = pixel / params.out_width;
    return params.out_base + row * params.out_row + (pixel - row * params.out_width) * params.out_stride;
}

#if SPLIT > 1
var<workgroup> partial_sums: array<vec4<i32>, $(LANES * PIXELS * OUT)>;
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
#if SPLIT > 1
    var sum_$(p)_$(o) = vec4<i32>();
#else
    var sum_$(p)_$(o) = bias_$(o);
#end
#if REAL
    var real_$(p)_$(o) = vec4<f32>();
#end
#end
#end
#if REAL
    var turns = 0u;
#end
    var tap = params.weights + column;
#if !POINTWISE
    for (var ky = 0u; ky < params.kernel_h; ky++) {
        for (var kx = 0u; kx < params.kernel_w; kx++) {
#for p in 0..PIXELS
            // Rows above the first are very large. What lies around the input is a pixel somewhere else.
            let row_$(p) = y_$(p) + ky * params.dilation_h;
            let column_$(p) = x_$(p) + kx * params.dilation_w;
            let inside_$(p) = row_$(p) < params.in_height && column_$(p) < params.in_width;
            let place_$(p) = base + (row_$(p) * params.in_width + column_$(p)) * params.in_stride;
            let from_$(p) = select(params.pad_base, place_$(p), inside_$(p));
#end
#end
            var at = tap + part * (across * $(1 + 3 * QUADS)u);
#if REAL
            for (var begin = part; begin < params.depth; begin += TURNS_MAX * $(SPLIT)u) {
            let end = min(begin + TURNS_MAX * $(SPLIT)u, params.depth);
            turns += (end - begin + $(SPLIT - 1)u) / $(SPLIT)u;
            if turns > TURNS_MAX {
                turns = (end - begin + $(SPLIT - 1)u) / $(SPLIT)u;
#for p in 0..PIXELS
#for o in 0..OUT
                sum_$(p)_$(o) += vec4<i32>(real_$(p)_$(o));
                real_$(p)_$(o) = vec4<f32>();
#end
#end
            }
#else
            let begin = part;
            let end = params.depth;
#end
            for (var d = begin; d < end; d += $(SPLIT)u) {
#for p in 0..PIXELS
#if QUADS
                let in_$(p) = quads[from_$(p) + d];
#else
                let in_$(p) = words[from_$(p) + d];
#end
#end
#for u in 0..1 + 3 * QUADS
#for o in 0..OUT
                let weight_$(u)_$(o) = constant_quads[at + $(u)u * across + $(o)u];
#end
#end
                // All is on its way before the first of it is needed.
#for u in 0..1 + 3 * QUADS
#if REAL
#for p in 0..PIXELS
#if QUADS
                let lanes_$(p)_$(u) = vec4<f32>(unpack4xI8(in_$(p)[$(u)]));
#else
                let lanes_$(p)_$(u) = vec4<f32>(unpack4xI8(in_$(p)));
#end
#end
#end
#for o in 0..OUT
#for p in 0..PIXELS
#if REAL
                real_$(p)_$(o) += product(lanes_$(p)_$(u), weight_$(u)_$(o));
#else
#if QUADS
                sum_$(p)_$(o) += product(in_$(p)[$(u)], weight_$(u)_$(o));
#else
                sum_$(p)_$(o) += product(in_$(p), weight_$(u)_$(o));
#end
#end
#end
#end
#end
                at += across * $(SPLIT * (1 + 3 * QUADS))u;
            }
#if REAL
            }
#end
#if !POINTWISE
            tap += params.depth * (across * $(1 + 3 * QUADS)u);
        }
    }
#end
#if REAL
#for p in 0..PIXELS
#for o in 0..OUT
    sum_$(p)_$(o) += vec4<i32>(real_$(p)_$(o));
#end
#end
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
            var sum = bitcast<vec4<i32>>(constant_quads[params.bias + own]);
#for s in 0..SPLIT
            sum += partial_sums[i * $(LANES)u + $(s * (LANES / SPLIT))u + tile];
#end
            words[out_place(pixel) + own] = finished(sum, own, pixel);
        }
    }
#else
#for o in 0..OUT
    if column + $(o)u < params.out_words {
#for p in 0..PIXELS
        if first + $(p)u < params.pixels {
            let word = finished(sum_$(p)_$(o), column + $(o)u, first + $(p)u);
            words[out_place(first + $(p)u) + column + $(o)u] = word;
        }
#end
    }
#end
#end
}
