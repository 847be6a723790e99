// A picture of another size than the network's, bytes with the channels of a pixel side by side: resized, first along its rows,
// then along its columns, and then to bytes, as many as the steps of the channel's staircase that a value has climbed. The
// CPU rounds each product and each sum to f32, which no driver promises to do: here these are whole numbers with the bits of
// f32, none of which is negative. Where other kernels find constants word by word, this one finds the picture, behind a head
// of offsets and weights.
const CHANNELS = 0u;
const ROW_BYTES = 1u;
// For each place the first place that it is made of, and the first weight, up to the next one's.
const ACROSS = 2u;
const DOWN = 3u;
const BYTES = 4u;
// How much of each channel makes grey.
const LUMA = 5u;
// Where in the network's input it is to be: the first row and column, and how many.
const WINDOW = 8u;

// Without the bits of the exponent, but with the one that is not written.
fn mantissa(real: u32) -> u32 {
    return (real & 0x7fffffu) | select(0u, 0x800000u, real >= 0x800000u);
}

fn exponent_of(real: u32) -> u32 {
    return max(real >> 23u, 1u);
}

// To the nearest, ties to even, of 2^30 and more, or less if the exponent is 1: a mantissa and 7 bits behind it, of which
// the last stands for all that come after it.
fn rounded(exponent: u32, bits: u32) -> u32 {
    return (exponent << 23u) + ((bits + 63u + ((bits >> 7u) & 1u)) >> 7u) - 0x800000u;
}

fn shifted(bits: u32, places: u32) -> u32 {
    let count = min(places, 31u);
    let kept = bits >> count;
    return kept | select(0u, 1u, (kept << count) != bits);
}

fn sum(a: u32, b: u32) -> u32 {
    let high = max(a, b);
    let low = min(a, b);
    let exponent = exponent_of(high);
    let bits = (mantissa(high) << 7u) + shifted(mantissa(low) << 7u, exponent - exponent_of(low));
    let carries = bits >> 31u;
    return rounded(exponent + carries, shifted(bits, carries));
}

// Of a value and a weight, which is no less than the least normal number.
fn product(value: u32, weight: u32) -> u32 {
    if value == 0u || weight == 0u {
        return 0u;
    }
    let zeros = countLeadingZeros(mantissa(value)) - 8u;
    let a = mantissa(value) << zeros;
    let b = mantissa(weight);
    // Four products of halves make 48 bits: 24 and 24.
    let middle = (a >> 12u) * (b & 0xfffu) + (a & 0xfffu) * (b >> 12u);
    let low = (a & 0xfffu) * (b & 0xfffu) + ((middle & 0xfffu) << 12u);
    let high = (a >> 12u) * (b >> 12u) + (middle >> 12u) + (low >> 24u);
    let bits = (high << 7u) | shifted(low & 0xffffffu, 17u);
    let missing = 1u - (bits >> 30u);
    let exponent = i32(exponent_of(value) + exponent_of(weight)) - i32(126u + zeros + missing);
    return rounded(u32(max(exponent, 1)), shifted(bits << missing, u32(max(1 - exponent, 0))));
}

// Real numbers up to 255 are the same everywhere.
fn real(at: u32) -> u32 {
    return bitcast<u32>(f32((constants[at >> 2u] >> ((at & 3u) * 8u)) & 255u));
}

fn luma(at: u32) -> u32 {
    let red = product(real(at), constants[LUMA]);
    let green = product(real(at + 1u), constants[LUMA + 1u]);
    return sum(sum(red, green), product(real(at + 2u), constants[LUMA + 2u]));
}

// As `climbed`, of which the stairs are not where it looks for them.
fn level(stairs: u32, number: i32) -> u32 {
    var byte = 0u;
    for (var step = 128u; step > 0u; step /= 2u) {
        let at = stairs + byte + step;
        if bitcast<i32>(constant_quads[at >> 2u][at & 3u]) <= number {
            byte += step;
        }
    }
    return byte;
}

@compute @workgroup_size($(LANES))
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = (group.y * groups.x + group.x) * $(LANES)u + lane;
    if pixel >= params.pixels {
        return;
    }
    // What is before the first of them is beyond the last, too.
    let y = pixel / params.width - constants[WINDOW];
    let x = pixel % params.width - constants[WINDOW + 1u];
    if y >= constants[WINDOW + 2u] || x >= constants[WINDOW + 3u] {
        words[params.out_base + pixel * params.out_stride] = params.fill ^ SIGNS;
        return;
    }
    let channels = constants[CHANNELS];
    let across = constants[ACROSS] + 2u * x;
    let down = constants[DOWN] + 2u * y;
    let begin = constants[BYTES] + constants[down] * constants[ROW_BYTES] + constants[across] * channels;
    var word = 0u;
    for (var channel = 0u; channel < min(channels, params.channels); channel++) {
        var value = 0u;
        var row = begin + channel;
        for (var j = constants[down + 1u]; j < constants[down + 3u]; j++) {
            var line = 0u;
            var at = row;
            for (var i = constants[across + 1u]; i < constants[across + 3u]; i++) {
                var part = 0u;
                if channels > params.channels {
                    part = luma(at);
                } else {
                    part = real(at);
                }
                line = sum(line, product(part, constants[i]));
                at += channels;
            }
            value = sum(value, product(line, constants[j]));
            row += constants[ROW_BYTES];
        }
        // A grey picture is the same in all channels, but for what it means.
        let end = select(channel + 1u, params.channels, channels == 1u);
        for (var own = channel; own < end; own++) {
            word |= level(params.stairs + 256u * own, i32(value)) << (8u * own);
        }
    }
    words[params.out_base + pixel * params.out_stride] = word ^ SIGNS;
}
