//! Fusion of elementwise operators and of reductions along rows: which terms become one program.
//!
//! In: a graph that the other rules have saturated. Out: for each class that such an operator makes a node that does
//! the work of all that only it uses, `map`, or a linear with an epilogue; extraction chooses by price. A value joins
//! the program of the one class through which every way from it to an output leads, as the function was written, and
//! only where no operand of the program is made of it: nothing is computed twice by two kernels. So there are at most
//! three new nodes a class, and no subsets.

mod instances;
mod uses;

use std::collections::{HashMap, HashSet};

use egg::{Id, Language};
use lapidary_ir::{DType, Op, Program, Type};

use super::native::Instance;
use crate::analysis::Graph;
use crate::price::is_folded;
use uses::{Uses, roots};

/// What a program may be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Elementwise operators.
    Elements,
    /// The same and reductions along the last axis, one at least.
    Rows,
    /// Elementwise operators over sums of linears that read the same.
    Epilogues,
}

/// A chain, a value used twice, a choice.
pub(super) const ELEMENTS: &[&[&str]] = &[
    &["(add (mul ?x ?y) ?z)"],
    &["(mul ?x (recip (add 1.0 (exp (neg ?x)))))"],
    &["(select (lt ?x ?y) (exp ?x) ?y)"],
    &["(mul (add ?x ?y) ?z)", "(tanh ?x)"],
];

/// A mean taken off; a softmax; a reduction of a chain.
pub(super) const ROWS: &[&[&str]] = &[
    &["(sub ?x (mean ?x 1))"],
    &["(div (exp (sub ?x (max ?x 1))) (sum (exp (sub ?x (max ?x 1))) 1))"],
    &["(min (mul ?x ?y) 1)"],
];

/// A bias; an activation and a residual; a gate.
pub(super) const EPILOGUES: &[&[&str]] = &[
    &["(add (linear ?x (weights ?w) store) ?b)"],
    &["(add ?r (maximum (add (linear ?x (weights ?w) store) ?b) 0.0))"],
    &["(mul (tanh (linear ?x (weights ?a) store)) (linear ?x (weights ?b) store))"],
];

/// The classes to merge.
pub(super) fn search(graph: &mut Graph, mode: Mode) -> Vec<(Id, Id)> {
    let roots = roots(graph);
    let feeds = |id: &Id| {
        operator(graph, *id, true).is_some() || graph[*id].nodes.iter().any(|n| linear(graph, n).is_some())
    };
    let feed_each_other =
        |root: &Id| operator(graph, *root, true).is_some_and(|op| op.children().iter().any(feeds));
    if !roots.iter().any(feed_each_other) {
        return vec![];
    }
    let uses = Uses::new(graph);
    let mut found = vec![];
    let mut absorbed: HashSet<Id> = HashSet::new();
    for root in roots {
        if absorbed.contains(&root) {
            continue;
        }
        let elements = Fused::of(graph, &uses, root, Mode::Elements);
        if let Some(fused) = &elements {
            absorbed.extend(&fused.inside);
        }
        found.extend(match mode {
            Mode::Elements => elements,
            Mode::Rows | Mode::Epilogues => Fused::of(graph, &uses, root, mode),
        });
    }
    let mut merges = vec![];
    for fused in found {
        let made = fused.add(graph);
        merges.push((fused.root, made));
    }
    merges
}

/// Every program of a mode in a graph: the operators one by one, and the node that they became.
pub(super) fn instances(graph: &Graph, mode: Mode) -> Vec<Instance> {
    instances::instances(graph, mode)
}

/// A term that becomes one program.
struct Fused {
    root: Id,
    /// The operator of each class of the program, operands first; the root's is the last.
    nodes: Vec<(Id, Op)>,
    /// The sums that it begins with: x and the weights of the linears; none for a map.
    sums: Option<(Id, Vec<(Id, Id)>)>,
    /// What it takes in.
    operands: Vec<Id>,
    /// The classes of `nodes` but the root.
    inside: Vec<Id>,
}

impl Fused {
    /// The largest program of a class in a mode.
    fn of(graph: &Graph, uses: &Uses, root: Id, mode: Mode) -> Option<Fused> {
        let node = operator(graph, root, mode == Mode::Rows && reads_operators(graph, uses, root))?;
        let has_epilogue = |op: &Op| {
            let Op::Linear([.., epilogue]) = op else { return false };
            matches!(graph[*epilogue].data.leaf, Some(Op::Cap(_) | Op::Gate))
        };
        let done = mode == Mode::Epilogues && graph[root].nodes.iter().any(has_epilogue);
        if done || mode != Mode::Rows && Program::reduces(&node) {
            return None;
        }
        let mut outside: HashSet<Id> = HashSet::new();
        loop {
            let found = Fused::empty(root);
            let mut walk = Walk { graph, uses, root, mode, outside: &outside, open: vec![], met: 0, found };
            walk.operator(root, &node)?;
            let fused = walk.found;
            // What an operand is made of has another user: the kernel that makes the operand.
            let linears =
                fused.sums.iter().flat_map(|(x, sums)| sums.iter().map(|&(linear, _)| linear).chain([*x]));
            let inputs: Vec<Id> = fused.operands.iter().copied().chain(linears).collect();
            let inner = fused
                .inside
                .iter()
                .copied()
                .chain(fused.sums.iter().flat_map(|(_, sums)| sums.iter().map(|&(linear, _)| linear)));
            let shared: Vec<Id> = inner
                .filter(|&value| inputs.iter().any(|&i| i != value && uses.is_made_of(i, value)))
                .collect();
            if shared.is_empty() {
                return fused.is_worth(mode).then_some(fused);
            }
            outside.extend(shared);
        }
    }

    fn empty(root: Id) -> Fused {
        Fused { root, nodes: vec![], sums: None, operands: vec![], inside: vec![] }
    }

    fn is_worth(&self, mode: Mode) -> bool {
        let operators = self.nodes.iter().filter(|(_, op)| !op.is_leaf()).count();
        let reduces = self.nodes.iter().any(|(_, op)| Program::reduces(op));
        match mode {
            Mode::Elements => operators > 1,
            Mode::Rows => operators > 1 && reduces,
            Mode::Epilogues => self.sums.is_some(),
        }
    }

    /// Adds its node to the graph.
    fn add(&self, graph: &mut Graph) -> Id {
        let sums: Vec<Id> = self.sums.iter().flat_map(|(_, sums)| sums.iter().map(|s| s.0)).collect();
        let mut nodes: Vec<Op> = vec![];
        let mut places: HashMap<Id, Id> = HashMap::new();
        for &input in sums.iter().chain(&self.operands) {
            places.insert(input, Id::from(nodes.len()));
            nodes.push(Op::Input(lapidary_ir::InputId(nodes.len() as u32)));
        }
        for (class, op) in &self.nodes {
            let op = op.clone().map_children(|c| places[&graph.find(c)]);
            let at = nodes.iter().position(|node| *node == op).unwrap_or_else(|| {
                nodes.push(op);
                nodes.len() - 1
            });
            places.insert(*class, Id::from(at));
        }
        let Some(program) = Program::new(nodes) else { return self.root };
        let mut operands = vec![graph.add(Op::Program(program))];
        operands.extend(&self.operands);
        match &self.sums {
            None => graph.add(Op::Map(operands.into())),
            Some((x, sums)) => {
                let then = graph.add(Op::Then(operands.into()));
                let weights = graph.add(Op::Weights(sums.iter().map(|s| s.1).collect()));
                graph.add(Op::Linear([*x, weights, then]))
            }
        }
    }
}

/// A walk from a root to what its program takes in.
struct Walk<'a> {
    graph: &'a Graph,
    uses: &'a Uses,
    root: Id,
    mode: Mode,
    /// Classes that other kernels use as well.
    outside: &'a HashSet<Id>,
    /// The classes that the walk is in.
    open: Vec<Id>,
    /// Operators met so far.
    met: usize,
    found: Fused,
}

/// The most operators of a program: what there is more of is another kernel's.
const MOST: usize = 48;
/// How deep a program may be.
const MOST_NESTING: usize = 24;

impl Walk<'_> {
    /// Takes in an operator of a class; `None` if the graph goes round.
    fn operator(&mut self, class: Id, op: &Op) -> Option<()> {
        self.open.push(class);
        self.met += 1;
        for &child in op.children() {
            self.value(self.graph.find(child))?;
        }
        self.open.pop();
        self.found.nodes.push((class, op.clone()));
        Some(())
    }

    fn value(&mut self, class: Id) -> Option<()> {
        let known = self.found.nodes.iter().any(|(c, _)| *c == class)
            || self.found.operands.contains(&class)
            || self.found.sums.iter().any(|(_, sums)| sums.iter().any(|s| s.0 == class));
        if known {
            return Some(());
        }
        if self.open.contains(&class) {
            return None;
        }
        let data = &self.graph[class].data;
        if let Some(leaf @ (Op::Num(_) | Op::Int(_) | Op::DType(_))) = &data.leaf {
            self.found.nodes.push((class, leaf.clone()));
            return Some(());
        }
        let own = !self.outside.contains(&class) && self.uses.leads_through(class, self.root);
        if own && self.mode == Mode::Epilogues && self.sum(class) {
            return Some(());
        }
        let own = own && self.met < MOST && self.open.len() < MOST_NESTING;
        match operator(self.graph, class, self.mode == Mode::Rows).filter(|_| own) {
            Some(op) if self.mode == Mode::Rows || !Program::reduces(&op) => {
                self.operator(class, &op)?;
                self.found.inside.push(class);
            }
            _ if fits(&data.ty) => self.found.operands.push(class),
            _ => return None,
        }
        Some(())
    }

    /// Whether a class is a linear's sum that the program can begin with.
    fn sum(&mut self, class: Id) -> bool {
        let graph = self.graph;
        if graph[class].data.ty != graph[self.root].data.ty {
            return false;
        }
        let Some((x, weight)) = graph[class].nodes.iter().find_map(|node| linear(graph, node)) else {
            return false;
        };
        match &mut self.found.sums {
            None => self.found.sums = Some((x, vec![(class, weight)])),
            Some((of, sums)) if *of == x && sums.len() < MOST_SUMS => sums.push((class, weight)),
            Some(_) => return false,
        }
        true
    }
}

/// The most weights of a linear with a program for its epilogue.
const MOST_SUMS: usize = 2;

/// x and the weight of a linear of one, as it is.
fn linear(graph: &Graph, node: &Op) -> Option<(Id, Id)> {
    let Op::Linear([x, weights, epilogue]) = node else { return None };
    let plain = graph[*epilogue].data.leaf == Some(Op::Store) && matches!(graph[*x].data.ty, Type::Tensor(_));
    let one = graph[*weights].nodes.iter().find_map(|n| {
        let Op::Weights(ws) = n else { return None };
        (ws.len() == 1).then(|| ws[0])
    });
    one.filter(|_| plain).map(|w| (graph.find(*x), graph.find(w)))
}

fn fits(ty: &Type) -> bool {
    ty.tensor().is_some_and(|t| matches!(t.dtype, DType::F32 | DType::I32 | DType::Bool))
}

/// Whether a kernel does to rows what a program could do.
fn is_of_rows(graph: &Graph, op: &Op) -> bool {
    let whole = |pos: &Id| graph[*pos].data.leaf == Some(Op::None);
    matches!(op, Op::RmsNorm(_)) || matches!(op, Op::Softmax([_, pos, ..]) if whole(pos))
}

/// Whether a class is a norm or a softmax of what operators make, which its own kernel would have to read.
fn reads_operators(graph: &Graph, uses: &Uses, class: Id) -> bool {
    graph[class].nodes.iter().any(|op| {
        let (Op::RmsNorm([x, ..]) | Op::Softmax([x, ..])) = op else { return false };
        let x = graph.find(*x);
        is_of_rows(graph, op) && operator(graph, x, false).is_some() && uses.leads_through(x, class)
    })
}

/// The operator of a class that programs are made of, if it has one and no kernel of its own does better; that of a
/// norm or of a softmax may be left aside.
fn operator(graph: &Graph, class: Id, norms: bool) -> Option<Op> {
    let nodes = &graph[class].nodes;
    let special = |op: &Op| {
        let plain = matches!(op, Op::Map(_) | Op::Linear(_) | Op::Output(_));
        let aside = plain || Program::admits(op) || norms && is_of_rows(graph, op);
        op.is_fused() && !aside
    };
    let folded = |op: &Op| is_folded(graph, class, op);
    if !fits(&graph[class].data.ty) || nodes.iter().any(special) || nodes.iter().any(folded) {
        return None;
    }
    let has_place = |op: &&Op| {
        let tensors = op.children().iter().filter(|c| graph[**c].data.ty != Type::Attribute);
        let fit = !op.is_leaf() && Program::admits(op) && tensors.clone().all(|c| fits(&graph[*c].data.ty));
        let computes = tensors.clone().any(|c| graph[*c].data.leaf.is_none());
        let ordinary = if let Op::Cast(_) = op {
            tensors.clone().all(|c| is(graph, *c, DType::I32)) && is(graph, class, DType::F32)
        } else if Program::reduces(op) {
            match (&graph[op.children()[1]].data.leaf, &graph[class].data.ty) {
                (Some(Op::Int(axis)), Type::Tensor(t)) => axis + 1 == t.rank() as i64,
                _ => false,
            }
        } else {
            true
        };
        fit && computes && ordinary
    };
    // Of several forms the one that says the most in one operator.
    nodes.iter().filter(has_place).min_by_key(|op| (!op.is_fused(), (*op).clone())).cloned()
}

fn is(graph: &Graph, class: Id, dtype: DType) -> bool {
    matches!(&graph[class].data.ty, Type::Tensor(t) if t.dtype == dtype)
}
