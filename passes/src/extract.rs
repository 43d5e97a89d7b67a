//! DAG-aware extraction: the cheapest term of a saturated graph, a value used twice paid once.
//!
//! In: a graph, the outputs' classes, a cost model. Out: a function, and its predicted time. Three steps:
//! 1. a choice of node for every class, found bottom-up by tree reach (any acyclic choice will do);
//! 2. greedy over sets of unique classes: a class takes another node when the set of everything under it gets cheaper;
//! 3. descent on the whole: single choices, all projections of a tuple together, and pairs of these where one uses
//!    the other are changed when the sum over the classes that the outputs reach falls. This sees what step 2 cannot:
//!    that siblings share.
//!
//! Step 3 is gone from a second start, too, the form that is the cheapest where launches cost nothing; the cheaper is
//! taken.
//!
//! Deterministic: classes and nodes are tried in the order of their ids, ties keep what is there. An exhaustive search
//! over small graphs is the oracle in the tests. Costs are positive, so no choice is ever cyclic.

use std::collections::HashMap;

use egg::{Id, Language};
use lapidary_ir::{Expr, Function, Op};

use crate::price::{CostModel, Machine};
use crate::saturate::Saturated;

/// An extracted function.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// The cheapest form found.
    pub function: Function,
    /// Its predicted time in nanoseconds.
    pub nanoseconds: f64,
    /// The class of each node of the function.
    pub classes: Vec<Id>,
}

/// Extracts the cheapest form of a saturated function.
pub fn extract(saturated: &Saturated, model: &CostModel) -> Extracted {
    let mut choices = Choices::new(saturated, model);
    choices.reach();
    choices.shrink();
    choices.descend();
    // From a second start, where sharing work counts for more than sparing launches, descent may get further.
    let cost = choices.total();
    let first = std::mem::replace(&mut choices.chosen, start_of_free_launches(saturated, model));
    choices.descend();
    if choices.total() >= cost {
        choices.chosen = first;
    }
    choices.build(saturated)
}

/// All steps at prices where launches cost nothing.
fn start_of_free_launches(saturated: &Saturated, model: &CostModel) -> Vec<Option<usize>> {
    let machine = Machine { launch: 0.0, call: 0.0, cold: 0.0, ..model.machine };
    let mut choices = Choices::new(saturated, &CostModel { machine, ..*model });
    choices.reach();
    choices.shrink();
    choices.descend();
    choices.chosen
}

/// As [`extract`], but of this class no other node may be taken; `None` if the class is not needed then, or the outputs
/// cannot be reached.
pub fn extract_with(saturated: &Saturated, model: &CostModel, class: Id, node: &Op) -> Option<Extracted> {
    let mut choices = Choices::new(saturated, model);
    let at = choices.ids.iter().position(|&id| id == class)?;
    choices.classes[at].retain(|c| c.node == *node);
    choices.reach();
    if choices.roots.iter().any(|&root| choices.chosen[root].is_none()) {
        return None;
    }
    choices.shrink();
    choices.descend();
    let extracted = choices.build(saturated);
    extracted.classes.contains(&class).then_some(extracted)
}

struct Candidate {
    node: Op,
    cost: f64,
    /// Dense indices of the operands' classes.
    operands: Vec<usize>,
}

struct Choices {
    /// Classes by dense index.
    ids: Vec<Id>,
    /// Candidates by dense class index.
    classes: Vec<Vec<Candidate>>,
    /// The chosen candidate of each class, once it has one.
    chosen: Vec<Option<usize>>,
    roots: Vec<usize>,
    /// Scratch of [`Choices::cost_under`]: the visit that last saw a class, and whether it is still open.
    seen: Vec<(u32, bool)>,
    visit: u32,
}

/// Passes over all classes after which greedy steps end; a handful is the rule.
const MAX_PASSES: usize = 64;

impl Choices {
    fn new(saturated: &Saturated, model: &CostModel) -> Choices {
        let graph = &saturated.graph;
        let mut ids: Vec<Id> = graph.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let dense: HashMap<Id, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let classes = ids
            .iter()
            .map(|&id| {
                let mut nodes: Vec<&Op> = graph[id].nodes.iter().collect();
                nodes.sort_unstable();
                nodes
                    .into_iter()
                    .map(|node| Candidate {
                        node: node.clone(),
                        cost: model.price(graph, id, node),
                        operands: node.children().iter().map(|c| dense[&graph.find(*c)]).collect(),
                    })
                    .collect()
            })
            .collect();
        let roots = saturated.outputs.iter().map(|(_, id)| dense[&graph.find(*id)]).collect();
        let seen = vec![(0, false); ids.len()];
        Choices { classes, chosen: vec![None; ids.len()], ids, roots, seen, visit: 0 }
    }

    /// Step 1: chooses, for every class that has any, a node whose operands were chosen before it.
    fn reach(&mut self) {
        loop {
            let mut grown = false;
            for class in 0..self.classes.len() {
                if self.chosen[class].is_none() {
                    let ready = |c: &Candidate| c.operands.iter().all(|&o| self.chosen[o].is_some());
                    self.chosen[class] = self.classes[class].iter().position(ready);
                    grown |= self.chosen[class].is_some();
                }
            }
            if !grown {
                return;
            }
        }
    }

    /// Step 2.
    fn shrink(&mut self) {
        for _ in 0..MAX_PASSES {
            let mut changed = false;
            for class in 0..self.classes.len() {
                if self.classes[class].len() < 2 {
                    continue;
                }
                let Some(mut best) = self.chosen[class] else { continue };
                let mut cost = self.cost_under(&[class]).unwrap_or(f64::INFINITY);
                for candidate in 0..self.classes[class].len() {
                    if candidate == best || !self.is_ready(class, candidate) {
                        continue;
                    }
                    self.chosen[class] = Some(candidate);
                    match self.cost_under(&[class]) {
                        Some(other) if other < cost => (best, cost, changed) = (candidate, other, true),
                        _ => {}
                    }
                    self.chosen[class] = Some(best);
                }
            }
            if !changed {
                return;
            }
        }
    }

    /// Step 3.
    fn descend(&mut self) {
        let roots = self.roots.clone();
        let moves = self.moves();
        let mut cost = self.cost_under(&roots).unwrap_or(f64::INFINITY);
        for _ in 0..MAX_PASSES {
            let mut changed = false;
            for steps in &moves {
                let before: Vec<_> = steps.iter().map(|&(class, _)| self.chosen[class]).collect();
                if steps.iter().any(|&(class, candidate)| !self.is_ready(class, candidate)) {
                    continue;
                }
                for &(class, candidate) in steps {
                    self.chosen[class] = Some(candidate);
                }
                match self.cost_under(&roots) {
                    // Below by more than rounding, so that the descent ends.
                    Some(other) if other < cost * (1.0 - 1e-12) => (cost, changed) = (other, true),
                    _ => {
                        for (&(class, _), &choice) in steps.iter().zip(&before) {
                            self.chosen[class] = choice;
                        }
                    }
                }
            }
            if !changed {
                return;
            }
        }
    }

    /// The projections of each tuple as one, single choices, choices together with one of an operand's, and tuples with
    /// one node that uses a projection.
    fn moves(&self) -> Vec<Vec<(usize, usize)>> {
        let mut tuples: Vec<(usize, Vec<(usize, usize)>)> = vec![];
        let mut moves = vec![];
        let mut pairs = vec![];
        for (class, candidates) in self.classes.iter().enumerate() {
            for (at, candidate) in candidates.iter().enumerate() {
                if let Op::Output(_) = candidate.node {
                    let tuple = candidate.operands[1];
                    match tuples.iter_mut().find(|(t, _)| *t == tuple) {
                        Some((_, steps)) => steps.push((class, at)),
                        None => tuples.push((tuple, vec![(class, at)])),
                    }
                }
                if candidates.len() > 1 {
                    moves.push(vec![(class, at)]);
                    let operands =
                        candidate.operands.iter().filter(|&&o| o != class && self.classes[o].len() > 1);
                    pairs.extend(operands.flat_map(|&o| {
                        (0..self.classes[o].len()).map(move |other| vec![(class, at), (o, other)])
                    }));
                }
            }
        }
        let mut tuples: Vec<_> = tuples.into_iter().map(|(_, steps)| steps).collect();
        for steps in &tuples {
            let made = |class: usize| steps.iter().any(|&(c, _)| c == class);
            for (class, candidates) in
                self.classes.iter().enumerate().filter(|(c, all)| all.len() > 1 && !made(*c))
            {
                let users =
                    candidates.iter().enumerate().filter(|(_, c)| c.operands.iter().any(|&o| made(o)));
                pairs.extend(users.map(|(at, _)| [&steps[..], &[(class, at)]].concat()));
            }
        }
        tuples.extend(moves);
        tuples.extend(pairs);
        tuples
    }

    fn is_ready(&self, class: usize, candidate: usize) -> bool {
        self.classes[class][candidate].operands.iter().all(|&o| self.chosen[o].is_some())
    }

    /// Sum over the classes that the outputs reach.
    fn total(&mut self) -> f64 {
        let roots = self.roots.clone();
        self.cost_under(&roots).unwrap_or(f64::INFINITY)
    }

    /// Sum over the unique classes under these; `None` if a choice is cyclic or missing.
    fn cost_under(&mut self, from: &[usize]) -> Option<f64> {
        self.visit += 1;
        let mut total = 0.0;
        for &class in from {
            self.add_cost(class, &mut total)?;
        }
        Some(total)
    }

    fn add_cost(&mut self, class: usize, total: &mut f64) -> Option<()> {
        if self.seen[class].0 == self.visit {
            return (!self.seen[class].1).then_some(());
        }
        self.seen[class] = (self.visit, true);
        let choice = self.chosen[class]?;
        for at in 0..self.classes[class][choice].operands.len() {
            let operand = self.classes[class][choice].operands[at];
            self.add_cost(operand, total)?;
        }
        *total += self.classes[class][choice].cost;
        self.seen[class].1 = false;
        Some(())
    }

    fn build(&mut self, saturated: &Saturated) -> Extracted {
        let mut body = Expr::default();
        let mut classes = vec![];
        let mut placed: Vec<Option<Id>> = vec![None; self.classes.len()];
        let roots = self.roots.clone();
        let outputs = saturated
            .outputs
            .iter()
            .zip(&roots)
            .map(|((name, _), &root)| (name.clone(), self.place(root, &mut body, &mut classes, &mut placed)))
            .collect();
        let nanoseconds = self.cost_under(&roots).unwrap_or(f64::INFINITY);
        let function = Function {
            name: saturated.source.name.clone(),
            inputs: saturated.source.inputs.clone(),
            body,
            outputs,
        };
        Extracted { function, nanoseconds, classes }
    }

    fn place(&self, class: usize, body: &mut Expr, classes: &mut Vec<Id>, placed: &mut [Option<Id>]) -> Id {
        if let Some(id) = placed[class] {
            return id;
        }
        let Some(choice) = self.chosen[class] else {
            unreachable!("the source function chooses every class")
        };
        let candidate = &self.classes[class][choice];
        let operands: Vec<Id> =
            candidate.operands.iter().map(|&o| self.place(o, body, classes, placed)).collect();
        let mut at = operands.into_iter();
        let node = candidate.node.clone().map_children(|c| at.next().unwrap_or(c));
        let id = body.add(node);
        classes.push(self.ids[class]);
        placed[class] = Some(id);
        id
    }
}
