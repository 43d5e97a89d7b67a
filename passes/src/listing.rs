//! An e-graph as people and tools read it.
//!
//! In: a saturated function, a cost model. Out: its classes in order, with type, range, nodes and prices; as text, or
//! as Graphviz `dot`.

use std::fmt::Write;

use egg::{Id, Language};
use lapidary_ir::Op;

use crate::range::Range;
use crate::{CostModel, Saturated};

/// A node of a class.
#[derive(Clone, Debug)]
pub struct ListedNode {
    /// The operator.
    pub op: String,
    /// The operands' classes.
    pub operands: Vec<usize>,
    /// Its price in nanoseconds, operands not included.
    pub nanoseconds: f64,
}

/// A class.
#[derive(Clone, Debug)]
pub struct ListedClass {
    /// Its id.
    pub id: usize,
    /// Its type.
    pub ty: String,
    /// An interval that holds every element that is not NaN.
    pub range: Range,
    /// Its nodes.
    pub nodes: Vec<ListedNode>,
}

/// Every class, by rising id.
pub fn classes(saturated: &Saturated, model: &CostModel) -> Vec<ListedClass> {
    let graph = &saturated.graph;
    let mut ids: Vec<Id> = graph.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    let class = |&id: &Id| {
        let mut nodes: Vec<_> = graph[id].nodes.iter().collect();
        nodes.sort_unstable();
        let data = &graph[id].data;
        let named = |op: &Op| {
            let Op::Input(input) = op else { return None };
            saturated.source.inputs.get(input.0 as usize).map(|i| format!("%{}", i.name))
        };
        let node = |op: &&Op| ListedNode {
            op: named(op).unwrap_or_else(|| op.to_string()),
            operands: op.children().iter().map(|&c| usize::from(graph.find(c))).collect(),
            nanoseconds: model.price(graph, id, op),
        };
        ListedClass {
            id: usize::from(id),
            ty: data.ty.to_string(),
            range: data.range,
            nodes: nodes.iter().map(node).collect(),
        }
    };
    ids.iter().map(class).collect()
}

/// The outputs' names and classes.
pub fn outputs(saturated: &Saturated) -> Vec<(String, usize)> {
    let of = |(name, id): &(String, Id)| (name.clone(), usize::from(saturated.graph.find(*id)));
    saturated.outputs.iter().map(of).collect()
}

/// One class a paragraph, one node a line.
pub fn text(saturated: &Saturated, model: &CostModel) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    for (name, class) in outputs(saturated) {
        let _ = writeln!(out, "output {name} = e{class}");
    }
    for class in classes(saturated, model) {
        let Range { lo, hi } = class.range;
        let range = if class.range == Range::ALL { String::new() } else { format!(" in [{lo}, {hi}]") };
        let _ = writeln!(out, "e{}: {}{range}", class.id, class.ty);
        for node in class.nodes {
            let operands: String = node.operands.iter().map(|o| format!(" e{o}")).collect();
            let term = if operands.is_empty() { node.op } else { format!("({}{operands})", node.op) };
            let _ = writeln!(out, "    {term}  ; {:.0} ns", node.nanoseconds);
        }
    }
    out
}

/// Graphviz: a box a class.
pub fn dot(saturated: &Saturated, model: &CostModel) -> String {
    let quoted = |s: &str| s.replace('\\', "\\\\").replace('"', "\\\"");
    let mut out =
        format!("digraph \"{}\" {{\n  compound=true\n  node [shape=box]\n", quoted(&saturated.source.name));
    let all = classes(saturated, model);
    for class in &all {
        let _ = writeln!(
            out,
            "  subgraph cluster_{} {{\n    label=\"e{}: {}\"\n    style=dotted",
            class.id,
            class.id,
            quoted(&class.ty)
        );
        for (at, node) in class.nodes.iter().enumerate() {
            let _ = writeln!(out, "    n{}_{at} [label=\"{}\"]", class.id, quoted(&node.op));
        }
        out.push_str("  }\n");
    }
    for class in &all {
        for (at, node) in class.nodes.iter().enumerate() {
            for operand in &node.operands {
                let inside = if *operand == class.id { "" } else { &format!(" [lhead=cluster_{operand}]") };
                let _ = writeln!(out, "  n{}_{at} -> n{operand}_0{inside}", class.id);
            }
        }
    }
    out.push_str("}\n");
    out
}
