//! The derivation of a chosen term from a source term: rewrites in an order that replays.
//!
//! In: a start term, edges, the e-node that each cell should hold. Out: rewrites, each with the cell it applies to and
//! the term after it. Goal-directed: to hold an e-node, a cell must first match the left side of an edge that leads to
//! it, and so must the cells under it; so no rewrite is there that a later one, or the goal, does not need. Where an
//! edge leads nowhere the next is tried, from the term as it was.

use std::collections::{BTreeSet, HashMap};

use egg::{ENodeOrVar, Id, Language, PatternAst, Var};
use lapidary_ir::Op;

use super::edges::{Edge, Edges, Placed, place};
use super::term::Term;
use crate::analysis::Graph;

/// Attempts after which a derivation gives up; those of a whole layer take a few hundred.
const MAX_ATTEMPTS: usize = 50_000;

/// One rewrite.
#[derive(Clone)]
pub(super) struct Rewrite {
    /// The edge, by index.
    pub(super) edge: usize,
    /// The cell it applies to.
    pub(super) cell: usize,
    /// The cells of its variables.
    pub(super) bound: HashMap<Var, usize>,
    /// The term after it.
    pub(super) after: Term,
}

/// A derivation on its way.
pub(super) struct Derivation<'a> {
    /// The saturated graph.
    pub(super) graph: &'a Graph,
    /// Its edges.
    pub(super) edges: &'a Edges,
    /// The term so far.
    pub(super) term: Term,
    /// The rewrites so far.
    pub(super) rewrites: Vec<Rewrite>,
    /// Classes whose cells are inputs here, but which some rule looked into.
    pub(super) wanted: BTreeSet<Id>,
    path: Vec<(usize, Op)>,
    attempts: usize,
}

impl<'a> Derivation<'a> {
    /// At its start.
    pub(super) fn new(graph: &'a Graph, edges: &'a Edges, term: Term) -> Derivation<'a> {
        Derivation {
            graph,
            edges,
            term,
            rewrites: vec![],
            wanted: BTreeSet::new(),
            path: vec![],
            attempts: 0,
        }
    }

    /// Rewrites until a cell holds an e-node of its class; whether that went.
    pub(super) fn reach(&mut self, cell: usize, want: &Op) -> bool {
        let found = &self.term.cells[cell];
        if found.node == *want {
            return true;
        }
        if let (Op::Input(_), class) = (&found.node, found.class) {
            self.wanted.insert(class);
            return false;
        }
        self.attempts += 1;
        if self.attempts > MAX_ATTEMPTS || self.path.iter().any(|(c, op)| *c == cell && op == want) {
            return false;
        }
        self.path.push((cell, want.clone()));
        let edges = self.edges;
        let done = edges.into(want).iter().any(|&edge| {
            let (term, rewrites) = (self.term.clone(), self.rewrites.len());
            let path = self.path.len();
            let went = self.apply(cell, edge);
            if !went {
                self.term = term;
                self.rewrites.truncate(rewrites);
                self.path.truncate(path);
            }
            went
        });
        self.path.pop();
        done
    }

    fn apply(&mut self, cell: usize, at: usize) -> bool {
        let edges = self.edges;
        let edge = &edges.all[at];
        let mut bound = HashMap::new();
        let Some(lhs) = place(self.graph, &edge.lhs.ast, &edge.subst) else { return false };
        if !self.fit_and_bind(cell, &edge.lhs.ast, &lhs, &mut bound) {
            return false;
        }
        for (var, pattern) in &edge.also {
            let (Some(&from), Some(placed)) = (bound.get(var), place(self.graph, &pattern.ast, &edge.subst))
            else {
                return false;
            };
            if !self.fit_and_bind(from, &pattern.ast, &placed, &mut bound) {
                return false;
            }
        }
        self.rewrite(cell, at, edge, bound)
    }

    /// Makes the term under a cell match a pattern, then takes its variables.
    fn fit_and_bind(
        &mut self,
        cell: usize,
        pattern: &PatternAst<Op>,
        placed: &[Placed],
        bound: &mut HashMap<Var, usize>,
    ) -> bool {
        let root = pattern.as_ref().len() - 1;
        if !self.fit(cell, pattern, placed, root) {
            return false;
        }
        // Two occurrences of a variable may hold two forms of one class: the later is brought to the earlier.
        for _ in 0..=pattern.as_ref().len() {
            let mut trial = bound.clone();
            match self.bind(cell, pattern, placed, root, &mut trial) {
                Ok(()) => {
                    *bound = trial;
                    return true;
                }
                Err(Some((model, other))) if self.mirror(model, other) => {}
                Err(_) => return false,
            }
        }
        false
    }

    fn fit(&mut self, cell: usize, pattern: &PatternAst<Op>, placed: &[Placed], at: usize) -> bool {
        let Some(want) = &placed[at].node else { return true };
        if !self.reach(cell, want) {
            return false;
        }
        let ENodeOrVar::ENode(node) = &pattern.as_ref()[at] else { return true };
        node.children().iter().enumerate().all(|(i, &child)| {
            self.term.cells[cell]
                .operands
                .get(i)
                .copied()
                .is_some_and(|operand| self.fit(operand, pattern, placed, usize::from(child)))
        })
    }

    /// The variables of a pattern that a cell's term matches; two cells of one variable that differ, or nothing where
    /// the term does not match.
    fn bind(
        &self,
        cell: usize,
        pattern: &PatternAst<Op>,
        placed: &[Placed],
        at: usize,
        bound: &mut HashMap<Var, usize>,
    ) -> Result<(), Option<(usize, usize)>> {
        let node = match &pattern.as_ref()[at] {
            ENodeOrVar::Var(var) => {
                let first = *bound.entry(*var).or_insert(cell);
                return if self.term.same(first, cell) { Ok(()) } else { Err(Some((first, cell))) };
            }
            ENodeOrVar::ENode(node) => node,
        };
        if placed[at].node.as_ref() != Some(&self.term.cells[cell].node) {
            return Err(None);
        }
        for (&child, &operand) in node.children().iter().zip(&self.term.cells[cell].operands) {
            self.bind(operand, pattern, placed, usize::from(child), bound)?;
        }
        Ok(())
    }

    /// Brings one cell to another's term.
    fn mirror(&mut self, model: usize, other: usize) -> bool {
        let node = self.term.cells[model].node.clone();
        if !self.reach(other, &node) {
            return false;
        }
        let pairs: Vec<(usize, usize)> =
            std::iter::zip(self.term.cells[model].operands.clone(), self.term.cells[other].operands.clone())
                .collect();
        pairs.into_iter().all(|(a, b)| self.term.same(a, b) || self.mirror(a, b))
    }

    fn rewrite(&mut self, cell: usize, at: usize, edge: &Edge, mut bound: HashMap<Var, usize>) -> bool {
        // What fitted first may have moved since.
        let Some(lhs) = place(self.graph, &edge.lhs.ast, &edge.subst) else { return false };
        let mut now = HashMap::new();
        if self.bind(cell, &edge.lhs.ast, &lhs, lhs.len() - 1, &mut now).is_err() {
            return false;
        }
        let Some(placed) = place(self.graph, &edge.rhs.ast, &edge.subst) else { return false };
        let mut cells: Vec<usize> = Vec::with_capacity(placed.len());
        let last = placed.len() - 1;
        for (i, (node, placed)) in edge.rhs.ast.as_ref().iter().zip(placed).enumerate() {
            match (node, placed.node) {
                (ENodeOrVar::ENode(pattern), Some(op)) => {
                    let operands: Vec<usize> =
                        pattern.children().iter().map(|&c| cells[usize::from(c)]).collect();
                    if i == last {
                        self.term.overwrite(cell, op, operands);
                        cells.push(cell);
                    } else {
                        cells.push(self.term.add(placed.class, op, operands));
                    }
                }
                (ENodeOrVar::Var(var), _) => {
                    // A condition may have bound it to an attribute of its own; a native search to another part of the
                    // term.
                    let from = bound.get(var).copied().or_else(|| {
                        if let Some(leaf) = self.graph[placed.class].data.leaf.clone().filter(Op::is_leaf) {
                            return Some(self.term.add(placed.class, leaf, vec![]));
                        }
                        self.term.find(placed.class)
                    });
                    let Some(from) = from else { return false };
                    bound.insert(*var, from);
                    if i == last {
                        let same = self.term.cells[from].clone();
                        self.term.overwrite(cell, same.node, same.operands);
                    }
                    cells.push(from);
                }
                (ENodeOrVar::ENode(_), None) => return false,
            }
        }
        self.rewrites.push(Rewrite { edge: at, cell, bound, after: self.term.clone() });
        true
    }
}
