// What kernels of float networks share. Activations lie four channels a quad, and a pixel's channels in whole quads, of
// which the last is filled up with numbers that mean nothing, but are finite. A Quad is vec4<f32> or vec4<f16>: that is how
// numbers lie in memory; sums and functions are always of f32.
@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@group(0) @binding(1) var<storage, read_write> quads: array<Quad>;
@group(0) @binding(2) var<storage, read> constants: array<u32>;
@group(0) @binding(3) var<storage, read> constant_quads: array<Quad>;
@group(0) @binding(4) var<uniform> params: Params;

// No skip connection; no pixel.
const NONE = 0xffffffffu;

const CLIP = 1u;
const LEAKY = 2u;
const SIGMOID = 3u;
const HARD_SIGMOID = 4u;
const HARD_GATE = 5u;
const GATE = 6u;
const TANH = 7u;

fn seen(at: u32) -> vec4<f32> {
    return vec4<f32>(quads[at]);
}

fn fixed(at: u32) -> vec4<f32> {
    return vec4<f32>(constant_quads[at]);
}

fn put(at: u32, values: vec4<f32>) {
    quads[at] = Quad(values);
}

fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    // Beyond that it is 0 or 1, and what is above the largest number need not be known of a driver.
    let bounded = clamp(x, vec4<f32>(-80.0), vec4<f32>(80.0));
    return 1.0 / (1.0 + exp(-bounded));
}

fn activated(kind: u32, a: u32, b: u32, x: vec4<f32>) -> vec4<f32> {
    let low = vec4<f32>(bitcast<f32>(a));
    let high = vec4<f32>(bitcast<f32>(b));
    switch kind {
        case CLIP: {
            return min(max(x, low), high);
        }
        case LEAKY: {
            return select(x, x * low, x < vec4<f32>());
        }
        case SIGMOID: {
            return sigmoid(x);
        }
        case HARD_SIGMOID: {
            return clamp(x * low + high, vec4<f32>(), vec4<f32>(1.0));
        }
        case HARD_GATE: {
            return x * clamp(x * low + high, vec4<f32>(), vec4<f32>(1.0));
        }
        case GATE: {
            return x * sigmoid(x);
        }
        case TANH: {
            return 2.0 * sigmoid(2.0 * x) - 1.0;
        }
        default: {
            return x;
        }
    }
}
