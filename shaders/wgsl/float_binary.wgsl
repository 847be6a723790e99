// A function of one or two activations, element by element. An operand of one pixel has a stride of 0, one of a single channel
// a step of 0: it goes with all.
const ADD = 1u;
const SUBTRACT = 2u;
const MULTIPLY = 3u;
const DIVIDE = 4u;

fn operand(base: u32, stride: u32, across: u32, pixel: u32, column: u32) -> vec4<f32> {
    let quad = seen(base + pixel * stride + column * across);
    return select(quad, vec4<f32>(quad.x), across == 0u);
}

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
    let a = operand(params.a_base, params.a_stride, params.a_step, pixel, column);
    let b = operand(params.b_base, params.b_stride, params.b_step, pixel, column);
    var result = a;
    switch params.operation {
        case ADD: {
            result = a + b;
        }
        case SUBTRACT: {
            result = a - b;
        }
        case MULTIPLY: {
            result = a * b;
        }
        case DIVIDE: {
            result = a / b;
        }
        default: {
        }
    }
    let values = activated(params.first, params.first_a, params.first_b, result);
    // Nothing divided by nothing is not finite.
    let channel = vec4<u32>(4u * column) + vec4<u32>(0u, 1u, 2u, 3u);
    let own = select(vec4<f32>(), values, channel < vec4<u32>(params.channels));
    put(params.out_base + pixel * params.out_stride + column, own);
}
