//! Explanations: for each kernel of the result the rewrites that made it, and what deciding for it was worth.
//!
//! In: a saturated function, the rules that ran, an extraction. Out, for a kernel: the source's term (other kernels'
//! values are its inputs), the rewrites in an order that replays, each with the function after it, and the costs of the
//! chosen term and of those rejected. Everything is data; `lapidary explain` and `lapidary report` print it.
//!
//! The proof is read off the saturated graph, which holds every admitted match (`edges`); nothing is recorded on the
//! way, so compilation pays nothing. It is a sequence of rewrites of whole DAGs, every occurrence of a term at once:
//! egg's own explanations are of trees, repeat a shared term's rewrites at each use, and lead through whatever term
//! represents a class.

mod alternatives;
mod derive;
mod edges;
mod region;
mod replay;
mod term;

use std::collections::{BTreeSet, HashSet};

use egg::{Id, Language, Var};
use lapidary_ir::{Function, InputKind, Op, text};

use crate::Selection;
use crate::extract::Extracted;
use crate::price::{CostModel, Work};
use crate::rules::{Class, Term};
use crate::saturate::Saturated;
pub use alternatives::{Alternative, Priced};
use derive::Derivation;
use edges::Edges;
use region::{Region, enode, is_kernel, origin};
pub use replay::replay;

/// One rewrite of an explanation.
#[derive(Clone, Debug)]
pub struct Step {
    /// The rule.
    pub rule: String,
    /// Its group.
    pub group: String,
    /// How much it may change a result.
    pub class: Class,
    /// Its algebra, one line.
    pub algebra: String,
    /// The left side as it matched.
    pub lhs: Term,
    /// Further patterns of the condition, each with the variable that matched it.
    pub also: Vec<(Var, Term)>,
    /// The right side.
    pub rhs: Term,
    /// What each variable was, as text of the function before.
    pub bindings: Vec<(String, String)>,
    /// The node that was rewritten, of the function before.
    pub at: Id,
    /// That node as text.
    pub from: String,
    /// What it became, a node of `function`.
    pub to: Id,
    /// That node as text.
    pub into: String,
    /// The function after.
    pub function: Function,
}

/// An operator of the source that a kernel does the work of.
#[derive(Clone, Debug)]
pub struct SourceOp {
    /// The node, of the source function.
    pub node: Id,
    /// As text.
    pub text: String,
    /// The weight or cache nearest above it, `self_attn.q_proj`.
    pub origin: Option<String>,
}

/// How a kernel came about.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The kernel, a node of the extracted function.
    pub node: Id,
    /// As text.
    pub text: String,
    /// The weights it reads, by the checkpoint's names.
    pub weights: Vec<String>,
    /// The source's operators that it stands for.
    pub source: Vec<SourceOp>,
    /// The source's term; other kernels' values are its inputs.
    pub start: Function,
    /// The rewrites, in order.
    pub steps: Vec<Step>,
    /// The result: the kernel and views around it.
    pub end: Function,
    /// What the kernel does.
    pub work: Work,
    /// Its predicted time in nanoseconds.
    pub nanoseconds: f64,
    /// The other forms of what it computes, cheapest first.
    pub alternatives: Vec<Alternative>,
    /// Why `steps` do not lead to `end`, if they do not.
    pub gap: Option<String>,
}

/// Explains the kernels of one function.
pub struct Explainer<'a> {
    saturated: &'a Saturated,
    selection: &'a Selection,
    model: CostModel,
    edges: Edges,
}

impl<'a> Explainer<'a> {
    /// Reads the edges off the graph. The graph may gain attributes, nothing else.
    pub fn new(saturated: &'a mut Saturated, selection: &'a Selection, model: CostModel) -> Explainer<'a> {
        let edges = Edges::new(saturated, selection);
        Explainer { saturated, selection, model, edges }
    }

    /// The kernels of an extraction, operands first.
    pub fn kernels(&self, extracted: &Extracted) -> Vec<Id> {
        let nodes = 0..extracted.function.body.as_ref().len();
        nodes.map(Id::from).filter(|&id| is_kernel(self.saturated, extracted, &self.model, id)).collect()
    }

    /// Explains a kernel; its `most` cheapest alternatives.
    pub fn kernel(&self, extracted: &Extracted, node: Id, most: usize) -> Explanation {
        let mut open = BTreeSet::new();
        loop {
            let (explanation, wanted) = self.attempt(extracted, node, &open);
            let before = open.len();
            open.extend(wanted);
            if explanation.gap.is_none() || open.len() == before {
                let alternatives = self.alternatives(extracted, node, most);
                return Explanation { alternatives, ..explanation };
            }
        }
    }

    /// Explains a kernel with these classes not cut; what its rules looked into beyond the cuts.
    fn attempt(&self, extracted: &Extracted, node: Id, open: &BTreeSet<Id>) -> (Explanation, BTreeSet<Id>) {
        let saturated = self.saturated;
        let region = Region::new(saturated, extracted, &self.model, node, open);
        let (term, inputs) = region.start(saturated);
        let used = term.inputs();
        let name = &saturated.source.name;
        let (start, mut placement) = term.function(name, &inputs, &used);
        let mut derivation = Derivation::new(&saturated.graph, &self.edges, term);
        let gap = self.derive(extracted, &region, &mut derivation);

        let mut steps: Vec<Step> = vec![];
        for rewrite in &derivation.rewrites {
            let before = steps.last().map_or(&start, |s| &s.function);
            let (function, after) = rewrite.after.function(name, &inputs, &used);
            let (Some(&at), Some(&to)) = (placement.cells.get(&rewrite.cell), after.cells.get(&rewrite.cell))
            else {
                // The cell left the term before it was needed.
                continue;
            };
            let edge = &self.edges.all[rewrite.edge];
            let prepared = &self.selection.rules().prepared()[edge.rule];
            let mut bindings: Vec<(String, String)> = rewrite
                .bound
                .iter()
                .map(|(var, cell)| {
                    let text = match placement.cells.get(cell) {
                        Some(&id) => text::node(before, id),
                        None => rewrite.after.cells[*cell].node.to_string(),
                    };
                    (var.to_string(), text)
                })
                .collect();
            bindings.sort();
            steps.push(Step {
                rule: prepared.rule.name.clone(),
                group: prepared.group.clone(),
                class: prepared.rule.class,
                algebra: prepared.rule.algebra.clone(),
                lhs: Term::from(&edge.lhs),
                also: edge.also.iter().map(|(v, p)| (*v, Term::from(p))).collect(),
                rhs: Term::from(&edge.rhs),
                bindings,
                at,
                from: text::node(before, at),
                to,
                into: text::node(&function, to),
                function,
            });
            placement = after;
        }
        let end = steps.last().map_or(&start, |s| &s.function).clone();
        let op = enode(saturated, extracted, node);
        let class = extracted.classes[usize::from(node)];
        let work = self.model.work(&saturated.graph, class, &op).unwrap_or_default();
        let explanation = Explanation {
            node,
            text: text::node(&extracted.function, node),
            weights: weights(&start),
            source: self.source(&region),
            start,
            steps,
            end,
            work,
            nanoseconds: self.model.price(&saturated.graph, class, &op),
            alternatives: vec![],
            gap,
        };
        (explanation, derivation.wanted)
    }

    /// Rewrites the roots to what was extracted; what stopped it, if something did.
    fn derive(
        &self,
        extracted: &Extracted,
        region: &Region,
        derivation: &mut Derivation<'_>,
    ) -> Option<String> {
        let roots: Vec<usize> = derivation.term.roots.iter().map(|r| r.1).collect();
        for (&cell, (id, ..)) in roots.iter().zip(&region.roots) {
            let want = enode(self.saturated, extracted, *id);
            if !derivation.reach(cell, &want) {
                return Some(self.missing(extracted, *id));
            }
        }
        let mut done = HashSet::new();
        let mut open: Vec<(usize, Id)> =
            roots.iter().copied().zip(region.roots.iter().map(|r| r.0)).rev().collect();
        while let Some((cell, id)) = open.pop() {
            if !region.interior.contains(&id) || !done.insert((cell, id)) {
                continue;
            }
            if !derivation.reach(cell, &enode(self.saturated, extracted, id)) {
                return Some(self.missing(extracted, id));
            }
            let children = extracted.function.body[id].children();
            let operands = &derivation.term.cells[cell].operands;
            open.extend(operands.iter().copied().zip(children.iter().copied()).rev());
        }
        // A later step may have moved a shared cell.
        let settled = |&(cell, id): &(usize, Id)| {
            derivation.term.cells[cell].node == enode(self.saturated, extracted, id)
        };
        let moved = done.iter().find(|pair| !settled(pair));
        moved.map(|(_, id)| self.missing(extracted, *id))
    }

    fn missing(&self, extracted: &Extracted, id: Id) -> String {
        format!("no order of rewrites found that ends in `{}`", text::node(&extracted.function, id))
    }

    /// The source's operators under the roots, down to the cuts.
    fn source(&self, region: &Region) -> Vec<SourceOp> {
        let source = &self.saturated.source;
        let tops: Vec<usize> = region.roots.iter().map(|r| r.1).collect();
        let mut open = tops.clone();
        let mut found = BTreeSet::new();
        while let Some(at) = open.pop() {
            let cut = region.cuts.contains(&self.saturated.classes[at]) && !tops.contains(&at);
            let op = &source.body[Id::from(at)];
            let leaf = op.is_attribute() || matches!(op, Op::Input(_) | Op::Num(_));
            if !cut && !leaf && found.insert(at) {
                open.extend(op.children().iter().map(|&c| usize::from(c)));
            }
        }
        let op = |at: usize| SourceOp {
            node: Id::from(at),
            text: text::statement(source, Id::from(at)),
            origin: origin(self.saturated, at),
        };
        found.into_iter().map(op).collect()
    }
}

fn weights(start: &Function) -> Vec<String> {
    let weights = start.inputs.iter().filter(|i| i.kind == InputKind::Weight);
    weights.map(|i| i.name.clone()).collect()
}
