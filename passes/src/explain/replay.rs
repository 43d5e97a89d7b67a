//! Replay: a rewrite's patterns applied to a function, nothing taken on trust.
//!
//! In: a function, the node that a step applies to, the step's patterns. Out: the function in which every occurrence
//! of that node's term is replaced by the right side. Knows no e-graph.

use std::collections::HashMap;

use egg::{ENodeOrVar, Language, Var};
use lapidary_ir::{Builder, Function, Id, text};

use super::Step;
use crate::rules::Term;

/// Applies a step to the function before it.
///
/// # Errors
/// What about the step does not fit, in words.
pub fn replay(before: &Function, step: &Step) -> Result<Function, String> {
    let mut bound: HashMap<Var, Id> = HashMap::new();
    if !matches(before, step.at, &step.lhs, step.lhs.nodes().len() - 1, &mut bound) {
        return Err(format!("`{}`: {} does not match at node {}", step.rule, step.lhs, step.at));
    }
    for (var, pattern) in &step.also {
        let from = bound.get(var).copied();
        let fits =
            from.is_some_and(|from| matches(before, from, pattern, pattern.nodes().len() - 1, &mut bound));
        if !fits {
            return Err(format!("`{}`: {var} does not match {pattern}", step.rule));
        }
    }
    let mut builder = Builder::new(&before.name);
    let mut nodes: HashMap<Id, Id> = HashMap::new();
    for input in &before.inputs {
        let id = builder.input(&input.name, input.kind, input.ty.dtype, &input.ty.shape);
        let at = before.body.as_ref().iter().position(|op| *op == builder.function().body[id]);
        nodes.extend(at.map(|at| (Id::from(at), id)));
    }
    let replaced = Replaced { before, bound: &bound, step };
    for (name, id) in &before.outputs {
        let id = replaced.node(*id, &mut builder, &mut nodes)?;
        builder.output(name, id);
    }
    let built = builder.finish();
    // Numbered as its text is.
    let parsed = text::parse_module(&built.to_string()).map_err(|e| e.to_string())?;
    parsed.functions.into_iter().next().ok_or_else(|| "no function".into())
}

/// Whether a node matches a pattern's node; binds variables to nodes.
fn matches(function: &Function, id: Id, pattern: &Term, at: usize, bound: &mut HashMap<Var, Id>) -> bool {
    match &pattern.nodes()[at] {
        // Functions share equal nodes, so equal terms are one node.
        ENodeOrVar::Var(var) => *bound.entry(*var).or_insert(id) == id,
        ENodeOrVar::ENode(node) => {
            let found = &function.body[id];
            node.matches(found)
                && node
                    .children()
                    .iter()
                    .zip(found.children())
                    .all(|(&p, &c)| matches(function, c, pattern, usize::from(p), bound))
        }
    }
}

struct Replaced<'a> {
    before: &'a Function,
    bound: &'a HashMap<Var, Id>,
    step: &'a Step,
}

impl Replaced<'_> {
    fn node(&self, id: Id, builder: &mut Builder, nodes: &mut HashMap<Id, Id>) -> Result<Id, String> {
        if let Some(&done) = nodes.get(&id) {
            return Ok(done);
        }
        let new = if id == self.step.at {
            self.right(self.step.rhs.nodes().len() - 1, builder, nodes)?
        } else {
            let op = self.before.body[id].clone();
            let mut operands = vec![];
            for &child in op.children() {
                operands.push(self.node(child, builder, nodes)?);
            }
            let mut operands = operands.into_iter();
            builder.add(op.map_children(|c| operands.next().unwrap_or(c)))
        };
        nodes.insert(id, new);
        Ok(new)
    }

    fn right(&self, at: usize, builder: &mut Builder, nodes: &mut HashMap<Id, Id>) -> Result<Id, String> {
        match &self.step.rhs.nodes()[at] {
            ENodeOrVar::Var(var) => match self.bound.get(var) {
                Some(&id) => self.node(id, builder, nodes),
                // Another part of the function, which a native search found, or an attribute that a condition computed.
                None => {
                    let name = var.to_string();
                    let found = self.step.bindings.iter().find(|(v, _)| *v == name).map(|b| b.1.as_str());
                    let text = found.ok_or_else(|| format!("`{}`: {var} is not bound", self.step.rule))?;
                    let mut all = (0..self.before.body.as_ref().len()).map(Id::from);
                    if let Some(id) = all.find(|&id| text::node(self.before, id) == text) {
                        return self.node(id, builder, nodes);
                    }
                    let op = egg::FromOp::from_op(text, vec![]);
                    op.map(|op| builder.add(op)).map_err(|_| format!("`{}`: no {text}", self.step.rule))
                }
            },
            ENodeOrVar::ENode(op) => {
                let mut operands = vec![];
                for &child in op.children() {
                    operands.push(self.right(usize::from(child), builder, nodes)?);
                }
                let mut operands = operands.into_iter();
                Ok(builder.add(op.clone().map_children(|c| operands.next().unwrap_or(c))))
            }
        }
    }
}
