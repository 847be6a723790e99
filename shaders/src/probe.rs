//! Kernels that measure a GPU: what it can do at most, for the numbers that are reported beside ours.

/// What is measured. The bindings are those of all kernels; see [`Probe::WGSL_PARAMS`] for the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Dot products of four 8-bit pairs.
    Dot,
    /// Fused multiply-adds of f32.
    F32,
    /// The same of f16, where there is that.
    F16,
    /// From one half of the arena to the other.
    Copy,
    /// Nothing: what a dispatch costs.
    Nothing,
}

impl Probe {
    /// Threads of a workgroup.
    pub const LANES: u32 = 64;

    /// `rounds` of the loop; `count`: threads that copy, and groups of four words from one half to the other.
    pub const WGSL_PARAMS: &str = "struct Params { rounds: u32, count: u32, }\n";

    /// Multiply-accumulates of one thread in one round; of `Copy` bytes read and written by a thread.
    pub fn work(self) -> u64 {
        match self {
            Self::Dot => 16 * 4,
            Self::F32 | Self::F16 => 16 * 4,
            Self::Copy => 32,
            Self::Nothing => 0,
        }
    }

    pub fn source(self) -> String {
        let head = match self {
            Self::F16 => "enable f16;\n",
            _ => "",
        };
        let begin = "
@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@group(0) @binding(1) var<storage, read_write> quads: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> constants: array<u32>;
@group(0) @binding(3) var<storage, read> constant_quads: array<vec4<u32>>;
@group(0) @binding(4) var<uniform> params: Params;
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + lane;
";
        let body = match self {
            Self::Dot => dots(),
            Self::F32 => multiply_adds("f32"),
            Self::F16 => multiply_adds("f16"),
            Self::Copy => {
                "    if index < params.count { quads[params.count + index] = quads[index]; }\n".into()
            }
            Self::Nothing => "    if params.rounds == 0xffffffffu { words[0] = index; }\n".into(),
        };
        [head, Self::WGSL_PARAMS, begin, &body, "}\n"].concat()
    }
}

/// 16 sums a thread; one operand changes each round, so that nothing can be computed once for all.
fn dots() -> String {
    let each = |text: &dyn Fn(usize) -> String| (0..16).map(text).collect::<String>();
    let declare =
        each(&|i| format!("    var sum_{i} = 0;\n    let x_{i} = index * {}u + {i}u;\n", 2 * i + 3));
    let dot = each(&|i| format!("        sum_{i} += dot4I8Packed(x_{i}, y);\n"));
    let all = (0..16).map(|i| format!("sum_{i}")).collect::<Vec<_>>().join(" ^ ");
    format!(
        "{declare}    var y = index;
    for (var round = 0u; round < params.rounds; round++) {{
        y += 0x01030507u;
{dot}    }}
    // Stored only by who has a very unlikely sum, so that the stores cost nothing.
    let all = {all};
    if all == 0x7123456 {{ words[0] = u32(all); }}
"
    )
}

fn multiply_adds(real: &str) -> String {
    let each = |text: &dyn Fn(usize) -> String| (0..16).map(text).collect::<String>();
    let declare = each(&|i| format!("    var sum_{i} = vec4<{real}>({real}(lane + {i}u) * {real}(0.01));\n"));
    let step = each(&|i| format!("        sum_{i} = fma(sum_{i}, factor, sum_{i}.yzwx);\n"));
    let all = (0..16).map(|i| format!("sum_{i}")).collect::<Vec<_>>().join(" + ");
    format!(
        "{declare}    let factor = vec4<{real}>({real}(params.count) * {real}(0.000001));
    for (var round = 0u; round < params.rounds; round++) {{
{step}    }}
    let all = {all};
    if all.x == {real}(-3.25) {{ words[0] = u32(all.y); }}
"
    )
}
