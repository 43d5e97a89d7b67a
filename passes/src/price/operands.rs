//! What operands are, as far as prices ask: views of weights or of caches, repeated axes, lists of weights.

use egg::Id;
use lapidary_ir::{Dim, InputKind, Op, Type};

use crate::analysis::{Data, Graph};

/// Whether a value is a view of a weight or of a cache.
pub(crate) fn from_memory(graph: &Graph, id: Id, depth: usize) -> bool {
    depth > 0
        && graph[id].nodes.iter().any(|n| {
            kind(graph, n).is_some_and(|kind| kind != InputKind::Rows)
                || matches!(n, Op::Append(_))
                || viewed(n).is_some_and(|x| from_memory(graph, x, depth - 1))
        })
}

/// Whether a value is a view of a weight.
pub(crate) fn from_weights(graph: &Graph, id: Id, depth: usize) -> bool {
    depth > 0
        && graph[id].nodes.iter().any(|n| {
            kind(graph, n) == Some(InputKind::Weight)
                || viewed(n).is_some_and(|x| from_weights(graph, x, depth - 1))
        })
}

/// The kind of an input.
fn kind(graph: &Graph, node: &Op) -> Option<InputKind> {
    let Op::Input(i) = node else { return None };
    graph.analysis.inputs.get(i.0 as usize).map(|i| i.kind)
}

/// What a node is a view of, if it is one.
fn viewed(node: &Op) -> Option<Id> {
    let (Op::Cast([x, _]) | Op::Reshape([x, _]) | Op::Transpose([x, _]) | Op::Broadcast([x, _])) = node
    else {
        return None;
    };
    Some(*x)
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
    data.ty.tensor_or_prologue().and_then(|t| t.shape.last()?.fixed()).unwrap_or(1)
}

/// The weights of a linear's list.
pub(crate) fn weights_of(graph: &Graph, list: Id) -> &[Id] {
    graph[list]
        .nodes
        .iter()
        .find_map(|n| if let Op::Weights(ws) = n { Some(&ws[..]) } else { None })
        .unwrap_or(&[])
}
