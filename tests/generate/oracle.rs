//! What extraction is held against: the cost of every choice.

use std::collections::{BTreeSet, HashMap};

use egg::{CostFunction, Id, Language};
use lapidary_ir::{Function, Op};
use lapidary_passes::analysis::Graph;
use lapidary_passes::{CostModel, Saturated};

/// Each class' nodes: price, and the classes of the operands.
pub(crate) struct Prices {
    classes: HashMap<Id, Vec<(f64, Vec<Id>)>>,
    roots: Vec<Id>,
}

impl Prices {
    pub(crate) fn new(saturated: &Saturated, model: &CostModel) -> Prices {
        let graph = &saturated.graph;
        let node = |id, op: &Op| {
            let operands: BTreeSet<Id> = op.children().iter().map(|&c| graph.find(c)).collect();
            (model.price(graph, id, op), operands.into_iter().collect())
        };
        let classes =
            graph.classes().map(|c| (c.id, c.nodes.iter().map(|n| node(c.id, n)).collect())).collect();
        let roots: BTreeSet<Id> = saturated.outputs.iter().map(|(_, id)| graph.find(*id)).collect();
        Prices { classes, roots: roots.into_iter().collect() }
    }

    /// Looks for a choice of one node a class, without cycles, that costs less than `bound`: its cost. Gives up, with
    /// `None`, after so many steps.
    pub(crate) fn cheaper_than(&self, bound: f64, steps: &mut usize) -> Option<f64> {
        let mut best = bound;
        self.search(&mut vec![], &self.roots, 0.0, &mut best, steps)?;
        Some(best)
    }

    fn search(
        &self,
        chosen: &mut Vec<(Id, usize)>,
        open: &[Id],
        cost: f64,
        best: &mut f64,
        steps: &mut usize,
    ) -> Option<()> {
        *steps = steps.checked_sub(1)?;
        let least = |c: &Id| self.classes[c].iter().map(|n| n.0).fold(f64::INFINITY, f64::min);
        if cost + open.iter().map(least).sum::<f64>() >= *best {
            return Some(());
        }
        let Some((&class, rest)) = open.split_first() else {
            if self.is_acyclic(chosen) {
                *best = cost;
            }
            return Some(());
        };
        for (at, (price, operands)) in self.classes[&class].iter().enumerate() {
            chosen.push((class, at));
            let mut open = rest.to_vec();
            for o in operands {
                if !open.contains(o) && !chosen.iter().any(|(c, _)| c == o) {
                    open.push(*o);
                }
            }
            self.search(chosen, &open, cost + price, best, steps)?;
            chosen.pop();
        }
        Some(())
    }

    fn is_acyclic(&self, chosen: &[(Id, usize)]) -> bool {
        let mut placed: BTreeSet<Id> = BTreeSet::new();
        loop {
            let before = placed.len();
            for (class, at) in chosen {
                if self.classes[class][*at].1.iter().all(|o| placed.contains(o)) {
                    placed.insert(*class);
                }
            }
            if placed.len() == before {
                return placed.len() == chosen.len();
            }
        }
    }
}

/// Prices nodes for egg's own extractor, which pays a shared term at every use.
pub(crate) struct Tree<'a>(pub(crate) &'a Graph, pub(crate) &'a CostModel);

impl CostFunction<Op> for Tree<'_> {
    type Cost = f64;

    fn cost<C: FnMut(Id) -> f64>(&mut self, node: &Op, mut costs: C) -> f64 {
        let class = self.0.lookup(node.clone()).unwrap();
        node.fold(self.1.price(self.0, class, node), |sum, c| sum + costs(c))
    }
}

/// What a term costs with sharing: its nodes' prices.
pub(crate) fn shared_cost(function: &Function, graph: &Graph, model: &CostModel) -> f64 {
    let mut classes: Vec<Id> = vec![];
    let mut paid: HashMap<Id, f64> = HashMap::new();
    for node in function.body.as_ref() {
        let node = node.clone().map_children(|c| classes[usize::from(c)]);
        let class = graph.lookup(node.clone()).unwrap();
        paid.insert(class, model.price(graph, class, &node));
        classes.push(class);
    }
    paid.values().sum()
}
