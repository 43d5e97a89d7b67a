//! Which ops each kernel stands for, before fusion and after.
//!
//! In: a saturated e-graph, its source function, an extracted one and its kernels. Out: for every node of both
//! functions the *groups* that compute it. A group is the launches of one fused node: a linear kernel and the pack
//! before it are one.
//!
//! Both functions are terms of the same e-graph, so a node of either has a class. A group starts at its node's class
//! and takes every node below, down to classes that other groups compute, and to inputs. What is computed twice belongs
//! to two groups.

use lapidary_codegen::compile::Lowered;
use lapidary_ir::{Function, Id, Op};
use lapidary_passes::analysis::Graph;

/// The groups of a lowered function, and which nodes they compute.
pub(crate) struct Cover {
    /// The fused node of each group, in the order of the launches.
    pub(crate) groups: Vec<Id>,
    /// The group of each kernel.
    pub(crate) of_kernel: Vec<usize>,
    /// Groups of each node of the source.
    pub(crate) source: Vec<Vec<usize>>,
    /// Groups of each node of the extracted function.
    pub(crate) fused: Vec<Vec<usize>>,
    /// The class of each node of the extracted function.
    pub(crate) classes: Vec<Option<Id>>,
}

impl Cover {
    /// Of one row regime.
    pub(crate) fn new(graph: &Graph, source: &Function, lowered: &Lowered) -> Cover {
        let fused = &lowered.function;
        let groups = groups(lowered);
        let kernels = lowered.schedule.kernels.iter();
        let of_kernel = kernels.filter_map(|k| groups.iter().position(|&g| g == k.node)).collect();
        let classes = classes(graph, fused);
        let of_source = self::classes(graph, source);
        // What a group computes: its node's class, and the projections of it.
        let computed: Vec<Vec<Id>> = groups
            .iter()
            .map(|&group| {
                let projects = |op: &Op| matches!(op, Op::Output([_, tuple]) if *tuple == group);
                let nodes = fused.body.as_ref().iter().enumerate();
                let results = nodes.filter(|(at, op)| Id::from(*at) == group || projects(op));
                results.filter_map(|(at, _)| classes[at]).collect()
            })
            .collect();
        let mut cover = Cover {
            source: vec![vec![]; of_source.len()],
            fused: vec![vec![]; classes.len()],
            groups,
            of_kernel,
            classes: vec![],
        };
        for (group, roots) in computed.iter().enumerate() {
            let stops: Vec<Id> = computed.iter().flatten().filter(|c| !roots.contains(c)).copied().collect();
            walk(source, &of_source, roots, &stops, &mut |at| cover.source[at].push(group));
            walk(fused, &classes, roots, &stops, &mut |at| cover.fused[at].push(group));
        }
        // Views behind the last kernel belong to it.
        for (function, of) in [(source, &mut cover.source), (fused, &mut cover.fused)] {
            for at in 0..of.len() {
                if of[at].is_empty() && is_computed(&function.body[Id::from(at)]) {
                    let first =
                        function.body[Id::from(at)].operands().find_map(|o| of[usize::from(o)].first());
                    of[at] = first.copied().into_iter().collect();
                }
            }
        }
        cover.classes = classes;
        cover
    }
}

/// The fused nodes that kernels compute, each once, in the order of the launches.
pub(crate) fn groups(lowered: &Lowered) -> Vec<Id> {
    let mut groups: Vec<Id> = vec![];
    for kernel in &lowered.schedule.kernels {
        if !groups.contains(&kernel.node) {
            groups.push(kernel.node);
        }
    }
    groups
}

/// The operands of a node, as an iterator.
trait Operands {
    fn operands(&self) -> impl Iterator<Item = Id>;
}

impl Operands for Op {
    fn operands(&self) -> impl Iterator<Item = Id> {
        egg::Language::children(self).iter().copied()
    }
}

/// The class of every node of a function that the graph holds.
pub(crate) fn classes(graph: &Graph, function: &Function) -> Vec<Option<Id>> {
    let mut classes: Vec<Option<Id>> = Vec::with_capacity(function.body.as_ref().len());
    for op in function.body.as_ref() {
        let known = op.operands().all(|o| classes[usize::from(o)].is_some());
        let class = known
            .then(|| egg::Language::map_children(op.clone(), |o| classes[usize::from(o)].unwrap_or(o)))
            .and_then(|node| graph.lookup(node));
        classes.push(class);
    }
    classes
}

/// Whether a node stands for a computed tensor, or for a part of a kernel.
pub(crate) fn is_computed(op: &Op) -> bool {
    matches!(op, Op::Weights(_)) || !(op.is_attribute() || matches!(op, Op::Input(_) | Op::Num(_)))
}

/// Visits the nodes at and below `roots`, not those at `stops`, each once.
fn walk(f: &Function, classes: &[Option<Id>], roots: &[Id], stops: &[Id], visit: &mut dyn FnMut(usize)) {
    let mut seen = vec![false; classes.len()];
    let is = |at: usize, among: &[Id]| classes[at].is_some_and(|c| among.contains(&c));
    let mut open: Vec<usize> = (0..classes.len()).filter(|&at| is(at, roots)).collect();
    while let Some(at) = open.pop() {
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        let op = &f.body[Id::from(at)];
        if is_computed(op) {
            visit(at);
        }
        open.extend(op.operands().map(usize::from).filter(|&o| !is(o, stops)));
    }
}
