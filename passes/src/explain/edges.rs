//! What the rules say of a saturated graph: every admitted match as an edge from one e-node of a class to another.
//!
//! In: a saturated graph, the rules that ran. Out: edges, and for every e-node those that lead to it, the shortest
//! derivation first. Nothing is recorded while the graph grows: a saturated graph still holds every match, for
//! conditions read data that only gets sharper. An edge is an instance: its patterns and the classes of their
//! variables.

use std::collections::HashMap;

use egg::{ENodeOrVar, Id, Language, Pattern, PatternAst, Searcher, Subst, Var};
use lapidary_ir::Op;

use crate::Selection;
use crate::analysis::Graph;
use crate::rules::{Predicate, Search};
use crate::saturate::Saturated;

/// A match of a rule that may be rewritten.
pub(super) struct Edge {
    /// The rule, by its index in the rule set.
    pub(super) rule: usize,
    /// The left side as spelled.
    pub(super) lhs: Pattern<Op>,
    /// Further patterns of its condition, each with the variable that it is matched against.
    pub(super) also: Vec<(Var, Pattern<Op>)>,
    /// The right side.
    pub(super) rhs: Pattern<Op>,
    /// The variables' classes.
    pub(super) subst: Subst,
    /// How many rewrites lead through it, from the source, at the least.
    rank: u64,
}

/// Every edge of a graph.
pub(super) struct Edges {
    /// In the order of the rules.
    pub(super) all: Vec<Edge>,
    /// Those that lead to an e-node, by rising rank.
    into: HashMap<Op, Vec<usize>>,
}

/// A node of a pattern in the graph.
pub(super) struct Placed {
    /// Its class.
    pub(super) class: Id,
    /// The e-node, its children canonical; none of a variable.
    pub(super) node: Option<Op>,
}

/// An e-node with canonical children.
pub(super) fn canonical(graph: &Graph, node: &Op) -> Op {
    node.clone().map_children(|c| graph.find(c))
}

/// The nodes of a pattern under a substitution, in the pattern's order; `None` if one is not in the graph.
pub(super) fn place(graph: &Graph, pattern: &PatternAst<Op>, subst: &Subst) -> Option<Vec<Placed>> {
    let mut placed: Vec<Placed> = Vec::with_capacity(pattern.as_ref().len());
    for node in pattern.as_ref() {
        placed.push(match node {
            ENodeOrVar::Var(v) => Placed { class: graph.find(*subst.get(*v)?), node: None },
            ENodeOrVar::ENode(op) => {
                let op = op.clone().map_children(|c| placed[usize::from(c)].class);
                Placed { class: graph.lookup(op.clone())?, node: Some(op) }
            }
        });
    }
    Some(placed)
}

impl Edges {
    /// Every edge. May add attributes to the graph, nothing else.
    pub(super) fn new(saturated: &mut Saturated, selection: &Selection) -> Edges {
        let graph = &mut saturated.graph;
        let mut all = Vec::new();
        for (rule, prepared) in selection.rules().prepared().iter().enumerate() {
            if !selection.admits(&prepared.group, &prepared.rule.name) {
                continue;
            }
            let (when, Some(rhs)) = (condition(&prepared.rule.search), &prepared.rhs) else {
                if let Search::Native(native) = &prepared.rule.search {
                    for instance in (native.instances)(graph) {
                        let (lhs, rhs) = (instance.lhs.pattern(), instance.rhs.pattern());
                        all.push(Edge { rule, lhs, also: vec![], rhs, subst: instance.subst, rank: 0 });
                    }
                }
                continue;
            };
            for by in &prepared.alternatives {
                for m in by.pattern.search(graph) {
                    for subst in &m.substs {
                        let Ok(subst) = prepared.judge(graph, subst, by) else { continue };
                        let also = by.when.iter().filter_map(|&at| {
                            let Predicate::Matches { var, further } = &when[at] else { return None };
                            Some((*var, further.spellings()))
                        });
                        let also: Option<Vec<_>> = also
                            .map(|(var, spellings)| Some((var, spelling(graph, var, spellings, &subst)?)))
                            .collect();
                        if let Some(also) = also {
                            let (lhs, rhs) = (by.pattern.clone(), rhs.clone());
                            all.push(Edge { rule, lhs, also, rhs, subst, rank: 0 });
                        }
                    }
                }
            }
            if !graph.clean {
                graph.rebuild();
            }
        }
        Edges::ranked(saturated, all)
    }

    fn ranked(saturated: &Saturated, mut all: Vec<Edge>) -> Edges {
        let graph = &saturated.graph;
        let mut ranks: HashMap<Op, u64> = HashMap::new();
        for class in graph.classes() {
            ranks.extend(class.iter().filter(|n| n.is_leaf()).map(|n| (n.clone(), 0)));
        }
        for node in saturated.source.body.as_ref() {
            let node = node.clone().map_children(|c| graph.find(saturated.classes[usize::from(c)]));
            ranks.insert(node, 0);
        }
        // Each edge's e-nodes: those that it reads, those that it makes (the root last).
        let nodes = |edge: &Edge| -> Option<(Vec<Op>, Vec<Op>)> {
            let mut reads = vec![];
            for pattern in std::iter::once(&edge.lhs).chain(edge.also.iter().map(|(_, p)| p)) {
                reads.extend(place(graph, &pattern.ast, &edge.subst)?.into_iter().filter_map(|p| p.node));
            }
            let makes = place(graph, &edge.rhs.ast, &edge.subst)?;
            Some((reads, makes.into_iter().filter_map(|p| p.node).collect()))
        };
        let nodes: Vec<_> = all.iter().map(nodes).collect();
        loop {
            let mut changed = false;
            for (edge, nodes) in all.iter_mut().zip(&nodes) {
                let Some((reads, makes)) = nodes else { continue };
                let known: Option<u64> = reads.iter().map(|n| ranks.get(n)).sum();
                let Some(rank) = known.map(|r| r.saturating_add(1)) else { continue };
                edge.rank = rank;
                for node in makes {
                    let old = ranks.entry(node.clone()).or_insert(u64::MAX);
                    if rank < *old {
                        (*old, changed) = (rank, true);
                    }
                }
            }
            if !changed {
                break;
            }
        }
        let mut into: HashMap<Op, Vec<usize>> = HashMap::new();
        for (at, nodes) in nodes.iter().enumerate() {
            let Some((reads, makes)) = nodes else { continue };
            if let Some(made) = makes.last()
                && all[at].rank > 0
                && !reads.contains(made)
            {
                into.entry(made.clone()).or_default().push(at);
            }
        }
        for edges in into.values_mut() {
            edges.sort_by_key(|&at| (all[at].rank, at));
        }
        Edges { all, into }
    }

    /// The edges that lead to an e-node, by rising length of what led there.
    pub(super) fn into(&self, node: &Op) -> &[usize] {
        self.into.get(node).map_or(&[], Vec::as_slice)
    }
}

fn condition(search: &Search) -> &[Predicate] {
    match search {
        Search::Patterns { when, .. } => when,
        Search::Native(_) => &[],
    }
}

/// The one of a further pattern's spellings that the substitution stands for.
fn spelling(graph: &Graph, var: Var, spellings: &[Pattern<Op>], subst: &Subst) -> Option<Pattern<Op>> {
    let class = graph.find(*subst.get(var)?);
    let stands = |p: &&Pattern<Op>| {
        place(graph, &p.ast, subst).is_some_and(|all| all.last().is_some_and(|root| root.class == class))
    };
    spellings.iter().find(stands).cloned()
}
