//! What operands are, as far as prices ask: views of weights or of caches, repeated axes, lists of weights.

use egg::Id;
use lapidary_ir::{Dim, InputKind, Op, Type};

use crate::analysis::{Data, Graph};

/// Whether a value is a view of a weight or of a cache.
pub(crate) fn from_memory(graph: &Graph, id: Id, depth: usize) -> bool {
    depth > 0
        && graph[id].nodes.iter().any(|n| match n {
            Op::Input(i) => {
                graph.analysis.inputs.get(i.0 as usize).is_some_and(|i| i.kind != InputKind::Rows)
            }
            Op::Append(_) => true,
            Op::Cast([x, _]) | Op::Reshape([x, _]) | Op::Transpose([x, _]) | Op::Broadcast([x, _]) => {
                from_memory(graph, *x, depth - 1)
            }
            _ => false,
        })
}

/// Whether a value is a view of a weight.
pub(crate) fn from_weights(graph: &Graph, id: Id, depth: usize) -> bool {
    depth > 0
        && graph[id].nodes.iter().any(|n| match n {
            Op::Input(i) => {
                graph.analysis.inputs.get(i.0 as usize).is_some_and(|i| i.kind == InputKind::Weight)
            }
            Op::Cast([x, _]) | Op::Reshape([x, _]) | Op::Transpose([x, _]) | Op::Broadcast([x, _]) => {
                from_weights(graph, *x, depth - 1)
            }
            _ => false,
        })
}

/// Whether positions are all one that is beyond every key.
pub(crate) fn sees_all(graph: &Graph, pos: Id) -> bool {
    repeats(graph, pos)
}

/// Whether a class is an axis repeated.
pub(crate) fn repeats(graph: &Graph, class: Id) -> bool {
    graph[class].nodes.iter().any(|node| matches!(node, Op::Broadcast(_)))
}

pub(crate) fn has_keys(data: &Data) -> bool {
    matches!(&data.ty, Type::Tensor(t) if t.shape.contains(&Dim::Keys))
}

/// Length of the last axis.
pub(crate) fn head_dim(data: &Data) -> usize {
    match &data.ty {
        Type::Tensor(t) | Type::Prologue(t) => t.shape.last().and_then(|d| d.fixed()).unwrap_or(1),
        _ => 1,
    }
}

/// The weights of a linear's list.
pub(crate) fn weights_of(graph: &Graph, list: Id) -> &[Id] {
    graph[list]
        .nodes
        .iter()
        .find_map(|n| match n {
            Op::Weights(ws) => Some(&ws[..]),
            _ => None,
        })
        .unwrap_or(&[])
}
