//! What e-graphs are held against: the value of every node, and the cost of every choice.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result, bail, ensure};
use egg::{AstDepth, CostFunction, Extractor, Id, Language};
use lapidary_ir::interp::{Precision, Tensor, Value, evaluate_all};
use lapidary_ir::{Extent, Function, Op, text};
use lapidary_passes::analysis::Graph;
use lapidary_passes::{CostModel, Saturated};

use crate::values;

/// Whether two numbers agree: relative to them, or to 1 if they are smaller.
pub(crate) fn near(a: f64, b: f64, tolerance: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
}

/// Says where two tensors differ.
pub(crate) fn compare(found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<()> {
    ensure!(
        found.dtype == expected.dtype && found.shape == expected.shape,
        "{} {:?} is not {} {:?}",
        found.dtype,
        found.shape,
        expected.dtype,
        expected.shape
    );
    for (at, (&a, &b)) in found.data.iter().zip(&expected.data).enumerate() {
        ensure!(
            near(a, b, tolerance),
            "element {at} of {:?} is {a:e}, expected {b:e} within {tolerance:e}",
            found.shape
        );
    }
    Ok(())
}

/// A graph as one function: a term for each class, then every other node over these terms.
pub(crate) struct Flat {
    pub(crate) function: Function,
    /// Each other node, and the term of its class.
    pub(crate) pairs: Vec<(Id, Id)>,
}

pub(crate) fn flatten(saturated: &Saturated) -> Flat {
    let graph = &saturated.graph;
    // By depth: a choice without cycles, whose number does not grow with sharing.
    let extractor = Extractor::new(graph, AstDepth);
    let mut classes: Vec<Id> = graph.classes().map(|c| c.id).collect();
    classes.sort_unstable();
    let mut function = Function { body: Default::default(), outputs: vec![], ..saturated.source.clone() };
    let mut terms: HashMap<Id, Id> = HashMap::new();
    fn place(
        class: Id,
        graph: &Graph,
        pick: &dyn Fn(Id) -> Op,
        f: &mut Function,
        terms: &mut HashMap<Id, Id>,
    ) -> Id {
        if let Some(&term) = terms.get(&class) {
            return term;
        }
        let node = pick(class).map_children(|c| place(graph.find(c), graph, pick, f, terms));
        let term = f.body.add(node);
        terms.insert(class, term);
        term
    }
    let pick = |class: Id| extractor.find_best_node(class).clone();
    for &class in &classes {
        place(class, graph, &pick, &mut function, &mut terms);
    }
    let mut pairs = vec![];
    for class in classes {
        for node in &graph[class].nodes {
            let node = node.clone().map_children(|c| terms[&graph.find(c)]);
            if node != function.body[terms[&class]] {
                pairs.push((function.body.add(node), terms[&class]));
            }
        }
    }
    Flat { function, pairs }
}

/// Every node of the graph gives the value of its class.
pub(crate) fn check_graph(
    flat: &Flat,
    extents: &[Extent],
    precision: Precision,
    tolerance: f64,
) -> Result<()> {
    for (seed, &extent) in (1..).zip(extents) {
        let inputs = values::inputs(&flat.function, extent, seed);
        let all = evaluate_all(&flat.function, &inputs, extent, precision)?;
        for &(node, term) in &flat.pairs {
            let same = match (&all[usize::from(node)], &all[usize::from(term)]) {
                (Value::None, Value::None) => Ok(()),
                (Value::Tensor(found), Value::Tensor(expected)) => compare(found, expected, tolerance),
                (Value::Tuple(found), Value::Tuple(expected)) => {
                    found.iter().zip(expected).try_for_each(|(f, e)| compare(f, e, tolerance))
                }
                (found, expected) => bail!("{found:?} is not {expected:?}"),
            };
            let line = |id| text::statement(&flat.function, id);
            same.with_context(|| {
                format!(
                    "`{}` is not `{}` in a call of {extent:?} of\n{}",
                    line(node),
                    line(term),
                    flat.function
                )
            })?;
        }
    }
    Ok(())
}

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
