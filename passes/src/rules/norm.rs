//! Norms and activations.

use super::Class::{Exact, Reassociating};
use super::{Rule, Search::Patterns, about, always};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "rms-norm",
        class: Reassociating,
        algebra: "x rsqrt(mean(x x) + eps) (1 + w) = rms_norm(x, w, eps) in any association (Zhang and Sennrich 2019)",
        search: Patterns {
            lhs: &[
                "(mul (mul ?x (rsqrt (add (mean (mul ?x ?x) ?axis) ?eps))) (add 1.0 ?w))",
                "(mul ?x (mul (rsqrt (add (mean (mul ?x ?x) ?axis) ?eps)) (add 1.0 ?w)))",
                "(mul (rsqrt (add (mean (mul ?x ?x) ?axis) ?eps)) (mul ?x (add 1.0 ?w)))",
                "(add (mul ?x (rsqrt (add (mean (mul ?x ?x) ?axis) ?eps)))
                      (mul (mul ?x (rsqrt (add (mean (mul ?x ?x) ?axis) ?eps))) ?w))",
            ],
            rhs: "(rms_norm ?x ?w ?eps)",
            when: |m| {
                let fits = match (m.tensor("?x"), m.tensor("?w")) {
                    (Some(x), Some(w)) => w.rank() == 1 && x.shape.last() == w.shape.last() && x.rank() >= 1,
                    _ => false,
                };
                fits && m.is_last_axis("?x", "?axis") && m.num("?eps").is_some()
            },
        },
    },
    Rule {
        name: "residual-norm",
        class: Exact,
        algebra: "r + rms_norm(x, w, eps) = add_rms_norm(r, x, w, eps): the residual is the norm's epilogue",
        search: Patterns {
            lhs: &["(add ?r (rms_norm ?x ?w ?eps))"],
            rhs: "(add_rms_norm ?r ?x ?w ?eps)",
            when: |m| m.same_type("?r", "?x"),
        },
    },
    Rule {
        name: "norm-prologue",
        class: Exact,
        algebra: "rms_norm(x) wᵀ: the linear kernel norms its rows as it reads them",
        search: Patterns {
            lhs: &["(linear (rms_norm ?x ?w ?eps) ?weights ?epilogue)"],
            rhs: "(linear (norm_prologue ?x ?w ?eps) ?weights ?epilogue)",
            when: always,
        },
    },
    Rule {
        name: "gelu-tanh",
        class: Reassociating,
        algebra: "0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = gelu_tanh(x) (Hendrycks and Gimpel 2016)",
        search: Patterns {
            lhs: &[
                "(mul (mul 0.5 ?x) (add 1.0 (tanh (mul ?c (add ?x (mul ?a (pow ?x 3.0)))))))",
                "(mul ?x (mul 0.5 (add 1.0 (tanh (mul ?c (add ?x (mul ?a (pow ?x 3.0))))))))",
                "(mul 0.5 (mul ?x (add 1.0 (tanh (mul ?c (add ?x (mul ?a (pow ?x 3.0))))))))",
            ],
            rhs: "(gelu_tanh ?x)",
            when: |m| {
                let sqrt_two_over_pi = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
                m.num("?c").is_some_and(|c| about(c, sqrt_two_over_pi))
                    && m.num("?a").is_some_and(|a| about(a, 0.044715))
            },
        },
    },
    Rule {
        name: "gated-gelu",
        class: Exact,
        algebra: "gelu_tanh(g) u = gated_gelu(g, u) (Shazeer 2020, GEGLU)",
        search: Patterns {
            lhs: &["(mul (gelu_tanh ?g) ?u)"],
            rhs: "(gated_gelu ?g ?u)",
            when: |m| m.same_type("?g", "?u"),
        },
    },
];
