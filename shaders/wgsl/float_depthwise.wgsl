// Depthwise convolution: one filter a channel; with a window of 1 it is what a batch normalisation does. A thread computes
// PIXELS neighbours of a row by one quad of channels. With KERNEL_W the window's size and step are known, and what neighbours
// share is read once; otherwise any window is. Weights lie as [tap][quad of channels].
@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * $(LANES)u + lane;
    let column = index % params.out_words;
    let tile = index / params.out_words;
    let tiles = (params.out_width + $(PIXELS - 1)u) / $(PIXELS)u;
    let y = tile / tiles;
    let x = tile % tiles * $(PIXELS)u;
    if y >= params.out_height {
        return;
    }
    let bias = fixed(params.bias + column);
#for p in 0..PIXELS
    var sum_$(p) = bias;
#end
    let top = y * params.stride_h - params.top;
    let base = params.in_base + column;
#if KERNEL_W
    let left = x * $(STRIDE_W)u - params.left;
#for ky in 0..KERNEL_H
    {
        let row = top + $(ky)u;
        let inside = row < params.in_height;
        let line = base + select(0u, row, inside) * params.in_width * params.in_stride;
        let weights = params.weights + $(ky * KERNEL_W)u * params.out_words + column;
#for k in 0..KERNEL_W
        let weight_$(k) = fixed(weights + $(k)u * params.out_words);
#end
#for j in 0..(PIXELS - 1) * STRIDE_W + KERNEL_W
        let at_$(j) = left + $(j)u;
        let inside_$(j) = inside && at_$(j) < params.in_width;
        let quad_$(j) = seen(line + select(0u, at_$(j), inside_$(j)) * params.in_stride);
        let in_$(j) = select(vec4<f32>(), quad_$(j), inside_$(j));
#for p in 0..PIXELS
#if j >= p * STRIDE_W && j < p * STRIDE_W + KERNEL_W
        sum_$(p) += in_$(j) * weight_$(j - p * STRIDE_W);
#end
#end
#end
    }
#end
#else
    var at = params.weights + column;
    for (var ky = 0u; ky < params.kernel_h; ky++) {
        let row = top + ky * params.dilation_h;
        for (var kx = 0u; kx < params.kernel_w; kx++) {
            let weight = fixed(at);
            at += params.out_words;
#for p in 0..PIXELS
            {
                let origin = (x + $(p)u) * params.stride_w - params.left + kx * params.dilation_w;
                let inside = row < params.in_height && origin < params.in_width;
                let place = select(0u, (row * params.in_width + origin) * params.in_stride, inside);
                sum_$(p) += select(vec4<f32>(), seen(base + place), inside) * weight;
            }
#end
        }
    }
#end
    let to = y * params.out_width + x;
#for p in 0..PIXELS
    if x + $(p)u < params.out_width {
        let place = params.out_base + (to + $(p)u) * params.out_stride + column;
        put(place, finished(sum_$(p), column, to + $(p)u));
    }
#end
}
