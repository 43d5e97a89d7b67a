//! Attention: masks to iteration ranges, softmax, grouped-query index maps, the whole kernel; RoPE.
//!
//! Order matters: scale, softcap, mask, softmax. No rule moves a softcap past a mask: it would turn -inf into -cap and
//! let masked keys through.

use lapidary_ir::{DType, Dim, Dims, Op, TensorType};

use super::Class::{Exact, Reassociating};
use super::{Match, Rule, Search::Patterns, always};

/// A sum of `exp(60)` over 2^24 keys is below 2e33: far from f32's 3.4e38, and `exp(-60)` is far from its denormals.
const BOUNDED_LOGITS: f64 = 60.0;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "rope",
        class: Reassociating,
        algebra: "x cos(a) + rotate_half(x) sin(a), a = pos f for both halves, = rope(x, pos, f) (Su et al. 2021)",
        search: Patterns {
            lhs: &["(add (mul ?x (cos (concat ?a ?a 1)))
                         (mul (concat (neg (slice ?x 2 ?half ?half)) (slice ?x 2 0 ?half) 2) (sin (concat ?a ?a 1))))"],
            rhs: "(rope ?x ?pos ?f)",
            when: |m| {
                if !m.also("?a", "(mul (reshape (cast ?pos f32) ?shape) ?f)") {
                    return false;
                }
                match (m.tensor("?x"), m.tensor("?pos"), m.tensor("?f")) {
                    (Some(x), Some(pos), Some(f)) => {
                        x.rank() == 3
                            && pos == TensorType::new(DType::I32, vec![x.shape[1]])
                            && m.leaf("?shape") == Some(Op::Dims(Dims(vec![x.shape[1], Dim::Fixed(1)])))
                            && f.rank() == 1
                            && matches!((x.shape[2], f.shape[0]), (Dim::Fixed(d), Dim::Fixed(h)) if d == 2 * h)
                            && m.int("?half").is_some_and(|h| f.shape[0] == Dim::Fixed(h as usize))
                    }
                    _ => false,
                }
            },
        },
    },
    Rule {
        name: "append-narrow",
        class: Exact,
        algebra: "append(cache, cast(rows)) = append(cache, rows): the append rounds to the cache's dtype itself",
        search: Patterns {
            lhs: &["(append ?cache (cast ?rows ?dtype))"],
            rhs: "(append ?cache ?rows)",
            when: |m| m.tensor("?rows").is_some_and(|t| t.dtype == super::F32),
        },
    },
    Rule {
        name: "causal-mask",
        class: Exact,
        algebra: "select(j <= pos, s, -inf) = s over the keys j in (-inf, pos]",
        search: Patterns {
            lhs: &["(select (le (reshape (iota [S] i32) [1,S]) (reshape ?pos [T,1])) ?s -inf)"],
            rhs: "(window_mask ?s ?pos none)",
            when: |m| is_scores(m, "?s") && is_positions(m, "?pos"),
        },
    },
    Rule {
        name: "window-mask",
        class: Exact,
        algebra: "select(j <= pos and pos - w < j, s, -inf) = s over the keys j in (pos - w, pos]: w keys, self included",
        search: Patterns {
            lhs: &[
                "(select (and (le (reshape (iota [S] i32) [1,S]) (reshape ?pos [T,1]))
                              (lt (sub (reshape ?pos [T,1]) ?w) (reshape (iota [S] i32) [1,S]))) ?s -inf)",
                "(select (and (le (reshape (iota [S] i32) [1,S]) (reshape ?pos [T,1]))
                              (lt (sub (reshape ?pos [T,1]) (reshape (iota [S] i32) [1,S])) ?w)) ?s -inf)",
                "(select (and (le (reshape (iota [S] i32) [1,S]) (reshape ?pos [T,1]))
                              (lt (reshape ?pos [T,1]) (add (reshape (iota [S] i32) [1,S]) ?w))) ?s -inf)",
            ],
            rhs: "(window_mask ?s ?pos ?w)",
            when: |m| is_scores(m, "?s") && is_positions(m, "?pos") && m.int("?w").is_some_and(|w| w > 0),
        },
    },
    Rule {
        name: "softmax",
        class: Reassociating,
        algebra: "exp(x - max(x)) / sum(exp(x - max(x))) = softmax(x), along the last axis",
        search: Patterns {
            lhs: &[
                "(div (exp (sub ?x (max ?x ?axis))) (sum (exp (sub ?x (max ?x ?axis))) ?axis))",
                "(mul (exp (sub ?x (max ?x ?axis))) (recip (sum (exp (sub ?x (max ?x ?axis))) ?axis)))",
            ],
            rhs: "(softmax ?x none none online)",
            when: |m| m.is_last_axis("?x", "?axis"),
        },
    },
    Rule {
        name: "softmax-range",
        class: Exact,
        algebra: "softmax(s over a range of keys) runs over the range alone: exp(-inf) = 0 is never computed",
        search: Patterns {
            lhs: &["(softmax (window_mask ?s ?pos ?w) none none ?mode)"],
            rhs: "(softmax ?s ?pos ?w ?mode)",
            when: always,
        },
    },
    Rule {
        name: "softmax-bounded",
        class: Reassociating,
        algebra: "|s| <= 60 by its range (a softcap's, say): exp(s) / sum(exp(s)) needs no maximum in f32",
        search: Patterns {
            lhs: &["(softmax ?s ?pos ?w online)"],
            rhs: "(softmax ?s ?pos ?w bounded)",
            when: |m| m.range("?s").is_within(BOUNDED_LOGITS),
        },
    },
    Rule {
        name: "scores",
        class: Reassociating,
        algebra: "q transpose(k) = scores(q, k, 1, none)",
        search: Patterns {
            lhs: &["(matmul ?q (transpose ?k [0,2,1]))"],
            rhs: "(scores ?q ?k 1.0 none)",
            when: |m| is_heads(m, "?q") && is_heads(m, "?k"),
        },
    },
    Rule {
        name: "scores-scale",
        class: Reassociating,
        algebra: "scores(q, k, 1) c = scores(q c, k, 1) = scores(q, k, c)",
        search: Patterns {
            lhs: &["(mul (scores ?q ?k 1.0 none) ?scale)", "(scores (mul ?q ?scale) ?k 1.0 none)"],
            rhs: "(scores ?q ?k ?scale none)",
            when: |m| m.num("?scale").is_some() && is_heads(m, "?q"),
        },
    },
    Rule {
        name: "scores-softcap",
        class: Exact,
        algebra: "softcap(c, scores(q, k, s)) = scores(q, k, s, c): capped in registers, before any mask",
        search: Patterns {
            lhs: &["(softcap ?cap (scores ?q ?k ?scale none))"],
            rhs: "(scores ?q ?k ?scale ?cap)",
            when: always,
        },
    },
    Rule {
        name: "attention",
        class: Reassociating,
        algebra: "softmax(scores(q, k) over a range) v = attention(q, k, v): scores never reach memory (Dao et al. 2022)",
        search: Patterns {
            lhs: &["(matmul (softmax (scores ?q ?k ?scale ?cap) ?pos ?w ?mode) ?v)"],
            rhs: "(attention ?q ?k ?v ?pos ?scale ?cap ?w ?mode)",
            when: |m| m.tensor("?pos").is_some() && m.same_type("?k", "?v"),
        },
    },
    Rule {
        name: "gqa",
        class: Exact,
        algebra: "attention over K and V repeated g times a head: query head h reads KV head h / g, nothing is repeated",
        search: Patterns {
            lhs: &["(attention ?q (reshape (broadcast (reshape ?k ?split) ?wide) ?heads)
                               (reshape (broadcast (reshape ?v ?split) ?wide) ?heads)
                               ?pos ?scale ?cap ?w ?mode)"],
            rhs: "(attention ?q ?k ?v ?pos ?scale ?cap ?w ?mode)",
            when: |m| m.same_type("?k", "?v") && repeats_heads(m),
        },
    },
    Rule {
        name: "gqa-scores",
        class: Exact,
        algebra: "scores over K repeated g times a head: query head h reads KV head h / g",
        search: Patterns {
            lhs: &["(scores ?q (reshape (broadcast (reshape ?k ?split) ?wide) ?heads) ?scale ?cap)"],
            rhs: "(scores ?q ?k ?scale ?cap)",
            when: repeats_heads,
        },
    },
];

fn is_scores(m: &mut Match<'_>, var: &str) -> bool {
    m.tensor(var).is_some_and(|t| t.rank() >= 2 && t.shape[t.rank() - 2..] == [Dim::Rows, Dim::Keys])
}

/// i32 (T).
fn is_positions(m: &mut Match<'_>, var: &str) -> bool {
    m.tensor(var).is_some_and(|t| t == TensorType::new(DType::I32, vec![Dim::Rows]))
}

/// (heads, rows or keys, head_dim), f32.
fn is_heads(m: &mut Match<'_>, var: &str) -> bool {
    let heads = |t: &TensorType| {
        t.rank() == 3 && t.dtype == super::F32 && t.shape[0].fixed().is_some() && t.shape[2].fixed().is_some()
    };
    m.tensor(var).is_some_and(|t| heads(&t))
}

/// ?k (G, S, D) -> ?split (G, 1, S, D) -> ?wide (G, g, S, D) -> ?heads (G g, S, D).
fn repeats_heads(m: &mut Match<'_>) -> bool {
    let dims = |m: &Match<'_>, var: &str| match m.leaf(var) {
        Some(Op::Dims(d)) => Some(d.0),
        _ => None,
    };
    let (Some(k), Some(split), Some(wide), Some(heads)) =
        (m.tensor("?k"), dims(m, "?split"), dims(m, "?wide"), dims(m, "?heads"))
    else {
        return false;
    };
    let k = &k.shape;
    let (Some(&Dim::Fixed(groups)), Some(&Dim::Fixed(repeat))) = (k.first(), wide.get(1)) else {
        return false;
    };
    k.len() == 3
        && split == [k[0], Dim::Fixed(1), k[1], k[2]]
        && wide == [k[0], Dim::Fixed(repeat), k[1], k[2]]
        && heads == [Dim::Fixed(groups * repeat), k[1], k[2]]
}
