//! Rewrites that keep what a graph computes: dead nodes go, batch norms fold into the convolution before them.

use std::collections::BTreeSet;

use super::{Graph, Op};

/// Keeps the nodes that the head needs, and their weights.
pub(super) fn remove_dead(graph: &mut Graph) {
    let mut needed = BTreeSet::from([graph.scores().to_owned()]);
    let mut keep = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes).into_iter().rev() {
        if needed.contains(&node.output) {
            needed.extend(node.inputs.iter().cloned());
            keep.push(node);
        }
    }
    keep.reverse();
    graph.nodes = keep;
    graph.weights.retain(|name, _| needed.contains(name));
}

/// `scale * (conv(x) - mean) / sqrt(var + epsilon) + bias` is a convolution. Needs an output that nobody else reads.
pub(super) fn fold_batch_norms(graph: &mut Graph) {
    let mut i = 0;
    while i < graph.nodes.len() {
        if let Some(conv) = foldable(graph, i) {
            let norm = graph.nodes.remove(i);
            fold(graph, conv, &norm.inputs, &norm.op);
            graph.nodes[conv].output = norm.output;
        } else {
            i += 1;
        }
    }
    remove_dead(graph);
}

/// The convolution that batch norm `i` can fold into.
fn foldable(graph: &Graph, i: usize) -> Option<usize> {
    let node = &graph.nodes[i];
    if !matches!(node.op, Op::BatchNormalization { .. }) {
        return None;
    }
    let source = &node.inputs[0];
    let conv =
        graph.nodes[..i].iter().position(|n| n.output == *source && matches!(n.op, Op::Conv { .. }))?;
    (graph.uses().get(source.as_str()) == Some(&1)).then_some(conv)
}

fn fold(graph: &mut Graph, conv: usize, norm: &[String], op: &Op) {
    let Op::BatchNormalization { epsilon } = *op else { return };
    let [scale, shift, mean, var] = [1, 2, 3, 4].map(|i| graph.weights[&norm[i]].data.clone());
    // In f64: folded nets are compared with unfolded ones to 1e-5.
    let factor: Vec<f64> =
        scale.iter().zip(&var).map(|(s, v)| *s as f64 / (*v as f64 + epsilon as f64).sqrt()).collect();
    let [_, w, b] = [0, 1, 2].map(|i| graph.nodes[conv].inputs[i].clone());
    if let Some(weight) = graph.weights.get_mut(&w) {
        let per_output = weight.data.len() / factor.len();
        for (chunk, f) in weight.data.chunks_mut(per_output).zip(&factor) {
            chunk.iter_mut().for_each(|v| *v = (*v as f64 * f) as f32);
        }
    }
    if let Some(bias) = graph.weights.get_mut(&b) {
        for (c, v) in bias.data.iter_mut().enumerate() {
            *v = ((*v as f64 - mean[c] as f64) * factor[c] + shift[c] as f64) as f32;
        }
    }
}
