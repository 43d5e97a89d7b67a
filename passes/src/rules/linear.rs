//! Linear kernels: weights, several outputs, epilogues; embeddings.

use egg::Id;
use lapidary_ir::{Op, Type};

use super::Class::{Exact, Reassociating};
use super::{Rule, Search::Group, Search::Patterns, is_weight};
use crate::analysis::Graph;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "linear",
        class: Reassociating,
        algebra: "x transpose(w) = linear(x, w), w (N, K) of fixed shape",
        search: Patterns {
            lhs: &["(matmul ?x (transpose ?w [1,0]))"],
            rhs: "(linear ?x (weights ?w) store)",
            when: |m| m.tensor("?w").is_some_and(|w| is_weight(&w)),
        },
    },
    Rule {
        name: "linear-merge",
        class: Exact,
        algebra: "linear(x, a), linear(x, b), .. = the outputs of linear(x, a b ..): Q/K/V read x once, in one launch",
        search: Group(merge),
    },
    Rule {
        name: "gated-linear",
        class: Exact,
        algebra: "gated_gelu(linear(x, g), linear(x, u)) = linear(x, g u) with the gate as its epilogue",
        search: Patterns {
            lhs: &["(gated_gelu (linear ?x (weights ?g) store) (linear ?x (weights ?u) store))"],
            rhs: "(linear ?x (weights ?g ?u) gate)",
            when: |m| m.same_type("?g", "?u"),
        },
    },
    Rule {
        name: "linear-softcap",
        class: Exact,
        algebra: "softcap(c, linear(x, w)) = linear(x, w) with the softcap as its epilogue",
        search: Patterns {
            lhs: &["(softcap ?c (linear ?x (weights ?w) store))"],
            rhs: "(linear ?x (weights ?w) (cap ?c))",
            when: super::always,
        },
    },
    Rule {
        name: "embedding",
        class: Exact,
        algebra: "f32(gather(table, ids)) s = embedding(table, ids, s)",
        search: Patterns {
            lhs: &["(mul (cast (gather ?table ?ids) f32) ?s)", "(mul (gather ?table ?ids) ?s)"],
            rhs: "(embedding ?table ?ids ?s)",
            when: |m| {
                m.num("?s").is_some()
                    && m.tensor("?table").is_some_and(|t| t.dtype.is_float() && t.rank() >= 2)
            },
        },
    },
];

/// All linears of one weight, without epilogue, on the same x: one linear with all the weights.
///
/// x alone decides the group, so there is one candidate an x and no subset of it: bounded by the number of classes.
/// Prologues are left to `norm-prologue`, which sees the merged linear too.
fn merge(graph: &mut Graph) -> Vec<(Id, Id)> {
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
