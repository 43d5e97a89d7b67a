//! Who uses what: which values are worth a program, and which have no user outside of one.

use std::collections::{HashMap, HashSet};

use egg::{Id, Language};
use lapidary_ir::Op;

use crate::analysis::Graph;

/// How the values of a graph use each other.
pub(super) struct Uses {
    /// Classes by dense index.
    dense: HashMap<Id, usize>,
    /// Of each class that the function as written has, those through which every way from it to an output leads.
    through: Vec<Option<Bits>>,
    /// What each class is made of, itself not included.
    below: Vec<Bits>,
}

/// The classes of the function as it was written that are worth a kernel, users before their operands: all that an
/// output needs where fused operators are taken wherever there are any.
pub(super) fn roots(graph: &Graph) -> Vec<Id> {
    let uses = &graph.analysis.uses;
    let mut open: Vec<Id> = uses.iter().filter(|(_, user)| user.is_none()).map(|u| graph.find(u.0)).collect();
    let mut live: HashSet<Id> = HashSet::new();
    let is_kernel = |op: &&Op| {
        let has_program = |epilogue: &Id| matches!(graph[*epilogue].data.leaf, Some(Op::Then(_)));
        let own =
            matches!(op, Op::Map(_)) || matches!(op, Op::Linear([.., epilogue]) if has_program(epilogue));
        op.is_fused() && !op.is_attribute() && !own
    };
    while let Some(class) = open.pop() {
        if !live.insert(class) {
            continue;
        }
        let nodes = &graph[class].nodes;
        let any = nodes.iter().any(|n| is_kernel(&n));
        let taken = nodes.iter().filter(|n| !any || is_kernel(n));
        open.extend(taken.flat_map(|n| n.children()).map(|&c| graph.find(c)));
    }
    let mut roots = vec![];
    let mut seen: HashSet<Id> = HashSet::new();
    for user in uses.iter().rev().filter_map(|u| u.1).map(|u| graph.find(u)) {
        if live.contains(&user) && seen.insert(user) {
            roots.push(user);
        }
    }
    roots
}

impl Uses {
    pub(super) fn new(graph: &Graph) -> Uses {
        let mut ids: Vec<Id> = graph.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let dense: HashMap<Id, usize> = ids.iter().enumerate().map(|(at, &id)| (id, at)).collect();
        let n = ids.len();
        let mut users: Vec<Option<Vec<Option<usize>>>> = vec![None; n];
        for &(operand, user) in &graph.analysis.uses {
            let user = user.map(|u| dense[&graph.find(u)]);
            users[dense[&graph.find(operand)]].get_or_insert_default().push(user);
        }
        let mut through: Vec<Option<Bits>> = users.iter().map(|u| u.as_ref().map(|_| Bits::all(n))).collect();
        settle(|| {
            let mut changed = false;
            for at in (0..n).rev() {
                let Some(users) = &users[at] else { continue };
                let mut all = Bits::all(n);
                for user in users.iter().filter(|u| **u != Some(at)) {
                    match user.map(|u| &through[u]) {
                        Some(Some(of)) => all.intersect(of),
                        // A user that nothing uses, or an output.
                        Some(None) => all = Bits::none(n),
                        None => all = Bits::none(n),
                    }
                }
                all.set(at);
                changed |= through[at].as_ref() != Some(&all);
                through[at] = Some(all);
            }
            changed
        });
        let mut below = vec![Bits::none(n); n];
        settle(|| {
            let mut changed = false;
            for (at, &id) in ids.iter().enumerate() {
                let mut all = below[at].clone();
                for child in graph[id].nodes.iter().flat_map(|node| node.children()) {
                    let child = dense[&graph.find(*child)];
                    if child != at {
                        all.unite(&below[child]);
                        all.set(child);
                    }
                }
                changed |= below[at] != all;
                below[at] = all;
            }
            changed
        });
        Uses { dense, through, below }
    }

    /// Whether every way from a value to an output leads through another; rewriting's own values have no other users.
    pub(super) fn leads_through(&self, value: Id, root: Id) -> bool {
        self.through[self.dense[&value]].as_ref().is_none_or(|t| t.get(self.dense[&root]))
    }

    /// Whether a value is made of another.
    pub(super) fn is_made_of(&self, value: Id, of: Id) -> bool {
        self.below[self.dense[&value]].get(self.dense[&of])
    }
}

/// Repeats until nothing changes.
fn settle(mut step: impl FnMut() -> bool) {
    while step() {}
}

/// A set of small numbers.
#[derive(Clone, Debug, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn none(n: usize) -> Bits {
        Bits(vec![0; n.div_ceil(64)])
    }

    fn all(n: usize) -> Bits {
        Bits(vec![u64::MAX; n.div_ceil(64)])
    }

    fn get(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn intersect(&mut self, other: &Bits) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
    }

    fn unite(&mut self, other: &Bits) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
}
