// What all kernels share. The arena holds activations: signed bytes, four channels a word, the first in the lowest bits;
// a pixel's channels lie in whole words, and what fills up the last of them means nothing. It is bound twice, once in words
// and once in groups of four; so is what never changes: weights, biases, multipliers, tables.
@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@group(0) @binding(1) var<storage, read_write> quads: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> constants: array<u32>;
@group(0) @binding(3) var<storage, read> constant_quads: array<vec4<u32>>;
@group(0) @binding(4) var<uniform> params: Params;

// No table, no list.
const NONE = 0xffffffffu;
// Signed bytes and unsigned ones of the same meaning differ in their top bit.
const SIGNS = 0x80808080u;

fn bytes_of(word: u32) -> vec4<i32> {
    let unsigned = word ^ SIGNS;
    return vec4<i32>(unpack4xU8(unsigned));
}

fn word_of(bytes: vec4<i32>) -> u32 {
    // Two statements: naga's GLSL of one has no parentheses around what packing becomes, a row of `|`.
    let unsigned = pack4xU8(vec4<u32>(bytes));
    return unsigned ^ SIGNS;
}

fn entry(table: u32, byte: i32) -> i32 {
    let at = u32(byte);
    return i32((constants[table + (at >> 2u)] >> ((at & 3u) * 8u)) & 255u);
}

// Each byte looked up in a table of 256 bytes that begins at that word.
fn looked_up(table: u32, bytes: vec4<i32>) -> vec4<i32> {
    return vec4<i32>(
        entry(table, bytes.x), entry(table, bytes.y), entry(table, bytes.z), entry(table, bytes.w),
    );
}
