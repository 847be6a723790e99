//! What a network is made of and what runs it: a table for people.

use std::fmt;

use crate::{
    cpu::{Isa, Part, Sketch, StepKind, StepSummary, Summary},
    gpu::{Extras, FloatGpu, Gpu, Precision, Share, is_float},
    graph::{Graph, NodeId, ValueId},
    model::Model,
    session::{EngineChoice, SessionOptions, memory_estimate},
    shape::{self, Shapes},
};

/// One line a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub node: String,
    pub operator: String,
    pub engine: &'static str,
    /// Why that engine.
    pub why: String,
    /// Of the first output, where it is known.
    pub shape: Option<Vec<usize>>,
    /// Elements of the constants it reads.
    pub parameters: u64,
    /// Multiply-accumulates, where they follow from known shapes.
    pub macs: Option<u64>,
}

/// A step of the plan, where the engine has one, in the order in which they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanStep {
    /// The node whose work it is; of several the first.
    pub node: String,
    /// What it does: `int8`, `gpu` (the same there), `import`, `export`, `plain` or `tract`.
    pub kind: &'static str,
    /// Nodes that it does the work of, where that is more than the engine fuses.
    pub nodes: usize,
    /// Where its output begins in the arena and how many bytes it has, if it lies there.
    pub output: Option<(usize, usize)>,
    /// What it reads and writes: activations in the arena, and constants in the file's form.
    pub bytes: u64,
    /// Multiply-accumulates of its node, where they are known and it is not of several.
    pub macs: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub model: String,
    pub opset: i64,
    pub rows: Vec<Row>,
    pub steps: Vec<PlanStep>,
    pub embedding: Option<String>,
    /// What runs it, with how many steps, or why not the faster one.
    pub engine: String,
    /// Elements of all constants; one that two nodes read counts once.
    pub parameters: u64,
    pub constant_bytes: u64,
    /// `None` if a node's are unknown.
    pub macs: Option<u64>,
}

impl Explanation {
    pub(crate) fn of(model: &Model, choice: EngineChoice) -> Self {
        let graph = model.graph();
        // The shapes passed when the model was loaded.
        let shapes = model.shapes(&model.closed_inputs()).ok();
        let wanted = model.wanted();
        let mut shares = None;
        let needed = shapes.as_ref().map_or(0, |shapes| memory_estimate(model, shapes));
        let allowed = SessionOptions::default().memory_limit_bytes;
        let (engine, summary) = match (&shapes, Isa::chosen()) {
            _ if needed > allowed => {
                (format!("none: it needs about {needed} bytes of memory, {allowed} are allowed"), None)
            }
            (Some(shapes), Ok(_)) if choice == EngineChoice::Gpu && is_float(graph) => {
                match FloatGpu::chosen(graph, shapes, &wanted, (Precision::Single, 1), Extras::default()) {
                    Ok(gpu) => {
                        shares = Some(gpu.shares().to_vec());
                        (gpu.explain(), None)
                    }
                    Err(why) => (format!("none, not gpu: {why}"), None),
                }
            }
            (Some(shapes), Ok(isa)) if choice == EngineChoice::Gpu => {
                match Gpu::chosen(graph, shapes, &wanted, isa, 1, Extras::default()) {
                    Ok(gpu) => (gpu.explain(), Some(gpu.summary())),
                    Err(why) => (format!("none, not gpu: {why}"), None),
                }
            }
            (Some(shapes), Ok(isa)) => match Sketch::new(graph, shapes, &wanted, isa) {
                Ok(sketch) => engine(sketch),
                Err(why) => (format!("tract, not cpu: {why}"), None),
            },
            (_, Err(why)) => (format!("none: {why}"), None),
            (None, _) => ("tract, not cpu: the input's size is open".into(), None),
        };
        let (parts, steps) = summary.map(|s| (s.parts, s.steps)).unzip();
        let step = |step: StepSummary| {
            let (kind, nodes) = match step.kind {
                StepKind::Bytes => ("int8", 1),
                StepKind::Gpu => ("gpu", 1),
                StepKind::Import => ("import", 1),
                StepKind::Export => ("export", 1),
                StepKind::Plain => ("plain", 1),
                StepKind::Island(nodes) => ("tract", nodes),
            };
            let written = step.output.map_or(0, |(_, bytes)| bytes);
            let fixed = if matches!(kind, "int8" | "gpu") { fixed_bytes(graph, step.node) } else { 0 };
            let macs = shapes.as_ref().and_then(|shapes| shape::macs(graph, shapes, step.node));
            PlanStep {
                node: graph.node(step.node).name.clone(),
                kind,
                nodes,
                output: step.output,
                bytes: (step.input_bytes + written) as u64 + fixed,
                macs: macs.filter(|_| nodes == 1),
            }
        };
        let steps = steps.into_iter().flatten().map(step).collect();
        let mut rows: Vec<Row> =
            graph.nodes().map(|(id, _, _)| row(graph, shapes.as_ref(), parts.as_deref(), id)).collect();
        for (row, share) in rows.iter_mut().zip(shares.into_iter().flatten()) {
            let (engine, why) = match share {
                Share::Nothing => ("gpu", "nothing to compute"),
                Share::Kernel => ("gpu", "float kernel"),
                Share::Fused => ("gpu", "part of a kernel"),
                Share::Host => ("cpu", "small, and comes last"),
            };
            (row.engine, row.why) = (engine, why.into());
        }
        let elements = |t: &crate::onnx::TensorProto| t.elements().unwrap_or(0) as u64;
        Self {
            model: model.name().into(),
            opset: graph.opset(),
            embedding: model.embedding().map(str::to_owned),
            parameters: graph.values().filter_map(|id| graph.constant(id)).map(elements).sum(),
            constant_bytes: model.constant_bytes(),
            macs: rows.iter().map(|row| row.macs).sum(),
            engine,
            rows,
            steps,
        }
    }
}

impl Explanation {
    /// Steps as a table: where a result lies in the arena, and what a step costs.
    fn step_lines(&self) -> Vec<[String; 7]> {
        let header = ["step", "does", "node", "arena from", "to", "bytes moved", "MACs"].map(str::to_owned);
        let dash = |n: Option<u64>| n.map_or("-".into(), grouped);
        let line = |(number, step): (usize, &PlanStep)| {
            let place = step.output.map(|(start, bytes)| (start as u64, (start + bytes) as u64));
            let what = if step.nodes > 1 {
                format!("{} ({} nodes)", step.kind, step.nodes)
            } else {
                step.kind.into()
            };
            [
                number.to_string(),
                what,
                shorten(&step.node),
                dash(place.map(|p| p.0)),
                dash(place.map(|p| p.1)),
                grouped(step.bytes),
                dash(step.macs),
            ]
        };
        std::iter::once(header).chain(self.steps.iter().enumerate().map(line)).collect()
    }
}

/// What runs the network, and what becomes of each node where that is known.
fn engine(sketch: Sketch<'_>) -> (String, Option<Summary>) {
    if !sketch.has_byte_steps() {
        let why = sketch.first_refusal().unwrap_or_else(|| "there is nothing to compute".into());
        return (format!("tract, not cpu: {why}"), None);
    }
    match sketch.build(1) {
        Ok(cpu) => {
            let summary = cpu.summary();
            let Summary { isa, steps, arena_bytes, .. } = &summary;
            let islands = steps.iter().filter(|s| matches!(s.kind, StepKind::Island(_))).count();
            let islands = if islands > 0 { format!(", {islands} of them on tract") } else { String::new() };
            let arena = grouped(*arena_bytes as u64);
            (format!("cpu ({isa}), {} steps{islands}, arena {arena} bytes", steps.len()), Some(summary))
        }
        Err(why) => (format!("tract, not cpu: {why}"), None),
    }
}

fn row(graph: &Graph, shapes: Option<&Shapes>, parts: Option<&[Part]>, id: NodeId) -> Row {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let constants = node.inputs.iter().flatten().filter_map(|v| graph.constant(*v));
    let output = node.outputs.first().copied().flatten();
    Row {
        node: node.name.clone(),
        operator: proto.op_type.clone(),
        engine: match parts.map(|parts| parts[id.index()]) {
            Some(Part::Island(_)) | None => "tract",
            Some(_) => "cpu",
        },
        why: match parts.map(|parts| parts[id.index()]) {
            Some(Part::Step) => "int8 step".into(),
            Some(Part::Fused) => "part of a step".into(),
            Some(Part::Nothing) => "nothing to compute".into(),
            Some(Part::Plain(Some(why)) | Part::Island(Some(why))) => why.to_string(),
            Some(Part::Plain(None) | Part::Island(None)) => "what it reads is no int8".into(),
            None => "whole model".into(),
        },
        shape: output.and_then(|v| shapes?.of(v)).map(<[usize]>::to_vec),
        parameters: constants.map(|t| t.elements().unwrap_or(0) as u64).sum(),
        macs: shapes.and_then(|shapes| shape::macs(graph, shapes, id)),
    }
}

/// Bytes of the constants that a node reads, directly or dequantised.
fn fixed_bytes(graph: &Graph, id: NodeId) -> u64 {
    let behind = |value: ValueId| {
        let dequantised = graph.producer(value).filter(|p| graph.proto(*p).op_type == "DequantizeLinear");
        dequantised.and_then(|p| graph.node(p).inputs.first().copied().flatten()).unwrap_or(value)
    };
    let constants = graph.node(id).inputs.iter().flatten().filter_map(|v| graph.constant(behind(*v)));
    constants.map(crate::onnx::TensorProto::bytes).sum()
}

/// Columns as wide as their widest cell, those from `numbers` on aligned right.
fn table<const N: usize>(f: &mut fmt::Formatter<'_>, lines: &[[String; N]], numbers: usize) -> fmt::Result {
    let width: [usize; N] =
        std::array::from_fn(|c| lines.iter().map(|line| line[c].chars().count()).max().unwrap_or(0));
    for line in lines {
        for (c, cell) in line.iter().enumerate() {
            let gap = if c == 0 { "" } else { "  " };
            if c >= numbers {
                write!(f, "{gap}{cell:>w$}", w = width[c])?;
            } else {
                write!(f, "{gap}{cell:<w$}", w = width[c])?;
            }
        }
        writeln!(f)?;
    }
    Ok(())
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["node", "operator", "engine", "why", "output", "parameters", "MACs"].map(str::to_owned);
        let count = |n: Option<u64>| n.map_or("?".into(), grouped);
        let cells = self.rows.iter().map(|row| {
            [
                shorten(&row.node),
                row.operator.clone(),
                row.engine.into(),
                row.why.clone(),
                row.shape.as_ref().map_or("?".into(), |dims| format!("{dims:?}")),
                grouped(row.parameters),
                count(row.macs),
            ]
        });
        let lines: Vec<[String; 7]> = std::iter::once(header).chain(cells).collect();
        table(f, &lines, 5)?;
        if !self.steps.is_empty() {
            writeln!(f)?;
            table(f, &self.step_lines(), 3)?;
        }
        let Self { model, opset, rows, embedding, engine, parameters, constant_bytes, macs, .. } = self;
        let embedding = embedding.as_deref().unwrap_or("none");
        writeln!(
            f,
            "\n{model}: opset {opset}, {} nodes, {} parameters in {} bytes, {} MACs, embedding {embedding}\nengine {engine}",
            rows.len(),
            grouped(*parameters),
            grouped(*constant_bytes),
            count(*macs),
        )
    }
}

/// Names in files go up to a kilobyte.
fn shorten(name: &str) -> String {
    const CHARS_MAX: usize = 48;
    if name.chars().count() <= CHARS_MAX {
        return name.into();
    }
    let end: Vec<char> = name.chars().rev().take(CHARS_MAX - 1).collect();
    std::iter::once('…').chain(end.into_iter().rev()).collect()
}

/// `1 234 567`
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{float_proto, model, qdq_proto};

    #[test]
    fn the_table_counts_what_the_network_does() {
        let explanation = model(float_proto()).explain();
        assert_eq!(explanation.macs, Some(16 + 4));
        assert_eq!(explanation.parameters, 4 + 2 + 4 + 2);
        assert_eq!(explanation.rows[0].shape.as_deref(), Some(&[1, 2, 2, 2][..]));
        assert_eq!(explanation.embedding.as_deref(), Some("embedding"));
        let text = explanation.to_string();
        assert!(text.starts_with("node     operator           engine  why "), "{text}");
        let totals =
            "tiny float: opset 13, 5 nodes, 12 parameters in 48 bytes, 20 MACs, embedding embedding\n";
        let engine = "engine tract, not cpu: node \"conv\" (Conv): its input is not quantised\n";
        assert!(text.ends_with(&format!("{totals}{engine}")), "{text}");
        let quantised = model(qdq_proto()).explain();
        assert_eq!(quantised.macs, Some(20));
        assert!(quantised.engine.starts_with("cpu (") && quantised.engine.contains(" steps"), "{quantised}");
    }

    #[test]
    fn long_names_and_numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!(shorten(&"n".repeat(100)).chars().count(), 48);
    }
}
