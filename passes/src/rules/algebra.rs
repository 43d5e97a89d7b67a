//! Normal forms: spellings of the same thing brought to one, so that the fusion rules need not list them.

use super::Class::{Exact, Reassociating};
use super::{Rule, Search::Patterns, always, is_reciprocal};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "square",
        class: Exact,
        algebra: "x^2 = x x",
        search: Patterns { lhs: &["(pow ?x 2.0)"], rhs: "(mul ?x ?x)", when: always },
    },
    Rule {
        name: "cube",
        class: Reassociating,
        algebra: "x^2 x = x^3, the one spelling that GELU's rule knows",
        search: Patterns {
            lhs: &["(mul (mul ?x ?x) ?x)"],
            rhs: "(pow ?x 3.0)",
            when: |m| m.tensor("?x").is_some_and(|t| t.dtype == super::F32),
        },
    },
    Rule {
        name: "mean-of-sum",
        class: Reassociating,
        algebra: "sum(x) / n = sum(x) (1/n) = mean(x), n the axis' length",
        search: Patterns {
            lhs: &["(div (sum ?x ?axis) ?n)", "(mul (sum ?x ?axis) ?r)"],
            rhs: "(mean ?x ?axis)",
            when: |m| {
                let Some(axis) = m.int("?axis").and_then(|a| usize::try_from(a).ok()) else { return false };
                let Some(length) = m.tensor("?x").and_then(|t| t.shape.get(axis).and_then(|d| d.fixed()))
                else {
                    return false;
                };
                match m.bound("?n") {
                    true => m.num("?n") == Some(length as f32),
                    false => m.num("?r").is_some_and(|r| is_reciprocal(r, length as f32)),
                }
            },
        },
    },
    Rule {
        name: "recip-of-sqrt",
        class: Reassociating,
        algebra: "1 / sqrt(x) = x^-0.5 = rsqrt(x)",
        search: Patterns {
            lhs: &["(recip (sqrt ?x))", "(div 1.0 (sqrt ?x))", "(pow ?x -0.5)"],
            rhs: "(rsqrt ?x)",
            when: always,
        },
    },
    Rule {
        name: "div-by-sqrt",
        class: Reassociating,
        algebra: "x / sqrt(y) = x rsqrt(y)",
        search: Patterns { lhs: &["(div ?x (sqrt ?y))"], rhs: "(mul ?x (rsqrt ?y))", when: always },
    },
    Rule {
        name: "softcap",
        class: Reassociating,
        algebra: "tanh(x / c) c = softcap(c, x), c > 0 (Gemma 2 report, section 2)",
        search: Patterns {
            lhs: &["(mul (tanh (div ?x ?c)) ?c)", "(mul (tanh (mul ?x ?r)) ?c)"],
            rhs: "(softcap ?c ?x)",
            when: |m| match m.num("?c") {
                Some(c) if c > 0.0 && c.is_finite() => match m.bound("?r") {
                    true => m.num("?r").is_some_and(|r| is_reciprocal(r, c)),
                    false => true,
                },
                _ => false,
            },
        },
    },
];
