//! What no pattern can say: searches over the whole graph, by name.
//!
//! A rule file refers to one with `native NAME`. In: the graph. Out: pairs of classes to merge.

use egg::{Id, Subst, Var};
use lapidary_ir::{Op, Type};

use super::Term;
use super::fuse::{self, Mode};
use crate::analysis::Graph;

/// A search written in Rust.
#[derive(Clone, Copy, Debug)]
pub struct Native {
    /// Name, unique.
    pub name: &'static str,
    /// The classes to merge, pairwise.
    pub search: fn(&mut Graph) -> Vec<(Id, Id)>,
    /// Functions to check it on, each by the terms of its outputs.
    pub examples: &'static [&'static [&'static str]],
    /// Whether it waits until no other rule has anything to add.
    pub late: bool,
    /// What it did to a graph, as pattern rules: what `explain` shows and replays.
    pub instances: fn(&Graph) -> Vec<Instance>,
}

/// One merge of a native search, said as a pattern rule and its match.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The left side.
    pub lhs: Term,
    /// The right side.
    pub rhs: Term,
    /// The classes of their variables.
    pub subst: Subst,
}

impl PartialEq for Native {
    fn eq(&self, other: &Native) -> bool {
        self.name == other.name
    }
}

/// Every search.
pub const NATIVE: &[Native] = &[
    Native {
        name: "merge-linears",
        search: merge_linears,
        examples: LINEARS,
        late: false,
        instances: merged_linears,
    },
    Native {
        name: "fuse-elements",
        search: |graph| fuse::search(graph, Mode::Elements),
        examples: fuse::ELEMENTS,
        late: true,
        instances: |graph| fuse::instances(graph, Mode::Elements),
    },
    Native {
        name: "fuse-rows",
        search: |graph| fuse::search(graph, Mode::Rows),
        examples: fuse::ROWS,
        late: true,
        instances: |graph| fuse::instances(graph, Mode::Rows),
    },
    Native {
        name: "fuse-epilogues",
        search: |graph| fuse::search(graph, Mode::Epilogues),
        examples: fuse::EPILOGUES,
        late: true,
        instances: |graph| fuse::instances(graph, Mode::Epilogues),
    },
];

/// Two linears of one x; three; two beside one of another x and one that ends in a cap.
const LINEARS: &[&[&str]] = &[
    &["(linear ?x (weights ?a) store)", "(linear ?x (weights ?b) store)"],
    &["(linear ?x (weights ?a) store)", "(linear ?x (weights ?b) store)", "(linear ?x (weights ?c) store)"],
    &[
        "(linear ?x (weights ?a) store)",
        "(linear ?z (weights ?b) store)",
        "(linear ?x (weights ?c) (cap 2.0))",
        "(linear ?x (weights ?d) store)",
    ],
];

/// All linears of one weight, without epilogue, on the same x: one linear with all the weights.
///
/// x alone decides the group, so there is one candidate an x and no subset of it: bounded by the number of classes.
/// Prologues are left to `norm-prologue`, which sees the merged linear too.
fn merge_linears(graph: &mut Graph) -> Vec<(Id, Id)> {
    let mut groups: Vec<(Id, Vec<(Id, Id)>)> = vec![]; // x, [(linear's class, weight)]
    let mut classes: Vec<Id> = graph.classes().map(|c| c.id).collect();
    classes.sort_unstable();
    for class in classes {
        for node in graph[class].iter() {
            let Op::Linear([x, weights, epilogue]) = node else { continue };
            let is_tensor = matches!(graph[*x].data.ty, Type::Tensor(_));
            if !is_tensor || graph[*epilogue].data.leaf != Some(Op::Store) {
                continue;
            }
            for inner in graph[*weights].iter() {
                let Op::Weights(ws) = inner else { continue };
                if let [w] = ws[..] {
                    let x = graph.find(*x);
                    match groups.iter_mut().find(|(g, _)| *g == x) {
                        Some((_, members)) => members.push((class, graph.find(w))),
                        None => groups.push((x, vec![(class, graph.find(w))])),
                    }
                }
            }
        }
    }
    let mut merges = vec![];
    for (x, mut members) in groups {
        members.sort_unstable_by_key(|&(_, w)| w);
        members.dedup();
        if members.len() < 2 {
            continue;
        }
        let weights = graph.add(Op::Weights(members.iter().map(|&(_, w)| w).collect()));
        let store = graph.add(Op::Store);
        let tuple = graph.add(Op::Linear([x, weights, store]));
        for (i, &(class, _)) in members.iter().enumerate() {
            let index = graph.add(Op::Int(i as i64));
            merges.push((class, graph.add(Op::Output([index, tuple]))));
        }
    }
    merges
}

/// Each output of a merged linear: linear(x, w1) = output(1, linear(x, w0 w1 ..)).
fn merged_linears(graph: &Graph) -> Vec<Instance> {
    let var = |name: &str| -> Var { name.parse().unwrap_or_else(|_| unreachable!("{name} is a variable")) };
    let x_var = var("?x");
    let linear_of = |ws: &[Var]| {
        let none = Id::from(0);
        let list: Vec<Term> = ws.iter().copied().map(Term::var).collect();
        let weights = Term::new(&Op::Weights(vec![none; list.len()].into()), &list);
        Term::new(&Op::Linear([none; 3]), &[Term::var(x_var), weights, Term::new(&Op::Store, &[])])
    };
    let mut instances = vec![];
    let mut classes: Vec<Id> = graph.classes().map(|c| c.id).collect();
    classes.sort_unstable();
    for class in classes {
        for node in graph[class].iter() {
            let Op::Output([index, tuple]) = node else { continue };
            let Some(Op::Int(index)) = graph[*index].data.leaf else { continue };
            for linear in graph[*tuple].iter() {
                let Op::Linear([x, weights, epilogue]) = linear else { continue };
                let is_tensor = matches!(graph[*x].data.ty, Type::Tensor(_));
                if !is_tensor || graph[*epilogue].data.leaf != Some(Op::Store) {
                    continue;
                }
                for list in graph[*weights].iter() {
                    let Op::Weights(ws) = list else { continue };
                    let vars: Vec<Var> = (0..ws.len()).map(|i| var(&format!("?w{i}"))).collect();
                    let Some(&own) = vars.get(index as usize) else { continue };
                    let mut subst = Subst::default();
                    for (&var, &class) in vars.iter().zip(ws.iter()).chain([(&x_var, x)]) {
                        subst.insert(var, class);
                    }
                    let operands = [Term::new(&Op::Int(index), &[]), linear_of(&vars)];
                    let rhs = Term::new(&Op::Output([Id::from(0); 2]), &operands);
                    instances.push(Instance { lhs: linear_of(&[own]), rhs, subst });
                }
            }
        }
    }
    instances
}
