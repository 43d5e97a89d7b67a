//! The head: only the last row's logits are wanted, so everything after the layers runs on one row; and the most likely
//! token needs no softcap.

use super::Class::{Exact, Reassociating};
use super::{Match, Rule, Search::Patterns};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "last-row-matmul",
        class: Exact,
        algebra: "last(a b) = last(a) b",
        search: Patterns {
            lhs: &["(slice (matmul ?a ?b) 0 -1 1)"],
            rhs: "(matmul (slice ?a 0 -1 1) ?b)",
            when: |m| m.tensor("?a").is_some_and(|t| t.rank() == 2),
        },
    },
    Rule {
        name: "last-row-linear",
        class: Exact,
        algebra: "last(linear(x, w)) = linear(last(x), w): one row of the head's product, not all",
        search: Patterns {
            lhs: &["(slice (linear ?x (weights ?w) ?epilogue) 0 -1 1)"],
            rhs: "(linear (slice ?x 0 -1 1) (weights ?w) ?epilogue)",
            when: |m| m.tensor("?x").is_some(),
        },
    },
    Rule {
        name: "last-row-norm",
        class: Exact,
        algebra: "last(rms_norm(x)) = rms_norm(last(x))",
        search: Patterns {
            lhs: &["(slice (rms_norm ?x ?w ?eps) 0 -1 1)"],
            rhs: "(rms_norm (slice ?x 0 -1 1) ?w ?eps)",
            when: has_row_axis,
        },
    },
    Rule {
        name: "last-row-softcap",
        class: Exact,
        algebra: "last(softcap(c, x)) = softcap(c, last(x))",
        search: Patterns {
            lhs: &["(slice (softcap ?c ?x) 0 -1 1)"],
            rhs: "(softcap ?c (slice ?x 0 -1 1))",
            when: |m| m.tensor("?x").is_some_and(|t| t.rank() >= 1),
        },
    },
    Rule {
        name: "last-row-mul",
        class: Exact,
        algebra: "last(x c) = last(x) c, c a number",
        search: Patterns {
            lhs: &["(slice (mul ?x ?c) 0 -1 1)"],
            rhs: "(mul (slice ?x 0 -1 1) ?c)",
            when: by_number,
        },
    },
    Rule {
        name: "last-row-div",
        class: Exact,
        algebra: "last(x / c) = last(x) / c, c a number",
        search: Patterns {
            lhs: &["(slice (div ?x ?c) 0 -1 1)"],
            rhs: "(div (slice ?x 0 -1 1) ?c)",
            when: by_number,
        },
    },
    Rule {
        name: "last-row-tanh",
        class: Exact,
        algebra: "last(tanh(x)) = tanh(last(x))",
        search: Patterns {
            lhs: &["(slice (tanh ?x) 0 -1 1)"],
            rhs: "(tanh (slice ?x 0 -1 1))",
            when: |m| m.tensor("?x").is_some_and(|t| t.rank() >= 1),
        },
    },
    Rule {
        name: "argmax-softcap",
        class: Reassociating,
        algebra: "argmax(softcap(c, x)) = argmax(x): tanh is increasing (logits that round to the same capped one may tie)",
        search: Patterns {
            lhs: &["(argmax (softcap ?c ?x) ?axis)"],
            rhs: "(argmax ?x ?axis)",
            when: |m| m.num("?c").is_some_and(|c| c > 0.0),
        },
    },
];

/// The rows are not the normed axis.
fn has_row_axis(m: &mut Match<'_>) -> bool {
    m.tensor("?x").is_some_and(|t| t.rank() >= 2)
}

fn by_number(m: &mut Match<'_>) -> bool {
    m.num("?c").is_some() && m.tensor("?x").is_some_and(|t| t.rank() >= 1)
}
