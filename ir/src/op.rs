//! The tensor language: one node type for graphs, e-graphs and patterns.
//!
//! A node is an operator over the ids of its operands. Attributes (a window, an axis, a shape) are leaf nodes, so a
//! text pattern binds them like any operand. Primitive operators are what models are written in; fused operators are
//! what rewrites produce, each one a whole kernel. `infer` states the types, `interp` the meaning of every one.
//!
//! Conventions: elementwise operators broadcast as numpy does (axes aligned at the end, length 1 stretches); reductions
//! keep the reduced axis with length 1; operand order below is operand order in text.

use std::fmt;

use egg::Id;

use crate::types::{DType, Dims};

/// A number: an f32 compared by its bits. In text it always has a point, an exponent, or is `inf`, `-inf`, `NaN`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Num(u32);

impl Num {
    /// The node for this value; every NaN is the same one.
    pub fn new(value: f32) -> Num {
        Num(if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() })
    }

    /// The value.
    pub fn value(self) -> f32 {
        f32::from_bits(self.0)
    }
}

impl fmt::Debug for Num {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.value(), f)
    }
}

impl fmt::Display for Num {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.value(), f)
    }
}

impl std::str::FromStr for Num {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let named = matches!(s, "inf" | "-inf" | "NaN");
        let digits = s.strip_prefix('-').unwrap_or(s);
        let number = digits.starts_with(|c: char| c.is_ascii_digit()) && digits.contains(['.', 'e']);
        if named || number { s.parse().map(Num::new).map_err(|_| ()) } else { Err(()) }
    }
}

/// Reference to a function's input by its index. A bare term prints it `%3`; a function's text prints its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputId(pub u32);

impl fmt::Display for InputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl std::str::FromStr for InputId {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        s.strip_prefix('%').ok_or(())?.parse().map(InputId).map_err(|_| ())
    }
}

egg::define_language! {
    /// A node of the tensor language. See the module's page for the conventions.
    #[allow(missing_docs)] // the macro takes no documentation on variants: it stands beside each as a comment
    pub enum Op {
        // ---- primitive: elementwise, (x) ----
        "neg" = Neg(Id),
        "recip" = Recip(Id),
        "sqrt" = Sqrt(Id),
        "rsqrt" = Rsqrt(Id),
        "exp" = Exp(Id),
        "tanh" = Tanh(Id),
        "cos" = Cos(Id),
        "sin" = Sin(Id),
        // (x, dtype attribute)
        "cast" = Cast([Id; 2]),

        // ---- primitive: elementwise, (a, b) ----
        "add" = Add([Id; 2]),
        "sub" = Sub([Id; 2]),
        "mul" = Mul([Id; 2]),
        "div" = Div([Id; 2]),
        // a to the power of b, a >= 0 unless b is a small whole number
        "pow" = Pow([Id; 2]),
        // comparisons give bool
        "lt" = Lt([Id; 2]),
        "le" = Le([Id; 2]),
        "and" = And([Id; 2]),
        // (condition, then, else)
        "select" = Select([Id; 3]),

        // ---- primitive: reductions over one axis, (x, axis) ----
        "sum" = Sum([Id; 2]),
        "mean" = Mean([Id; 2]),
        "max" = Max([Id; 2]),
        // index (i32) of the largest element, the first of equals
        "argmax" = Argmax([Id; 2]),

        // ---- primitive: contraction, (.., M, K) x (.., K, N) -> (.., M, N), equal leading axes ----
        "matmul" = Matmul([Id; 2]),

        // ---- primitive: movement ----
        // (x, shape)
        "reshape" = Reshape([Id; 2]),
        // (x, permutation): axis i of the result is axis p[i] of x
        "transpose" = Transpose([Id; 2]),
        // (x, shape): axes of length 1 stretched; equal rank
        "broadcast" = Broadcast([Id; 2]),
        // (x, axis, start, length); a negative start counts from the end
        "slice" = Slice([Id; 4]),
        // (a, b, axis)
        "concat" = Concat([Id; 3]),
        // (table (V, ..), ids i32 (T)) -> (T, ..)
        "gather" = Gather([Id; 2]),
        // (shape of one axis, dtype): 0, 1, 2, ...
        "iota" = Iota([Id; 2]),
        // (cache (G, S, D), rows (G, T, D)) -> (G, S, D): the last T of S rows replaced; rows are rounded to the
        // cache's dtype
        "append" = Append([Id; 2]),

        // ---- fused: norms, along the last axis; weight w (K), as Gemma stores it: y = x / rms(x) * (1 + w) ----
        // (x, w, eps)
        "rms_norm" = RmsNorm([Id; 3]),
        // (residual, x, w, eps) -> residual + rms_norm(x)
        "add_rms_norm" = AddRmsNorm([Id; 4]),
        // (x, w, eps): rms_norm as the prologue of a linear kernel
        "norm_prologue" = NormPrologue([Id; 3]),

        // ---- fused: linear, y = x wᵀ, (x (T, K) or prologue, weights, epilogue) ----
        // one weight: tensor (T, N); several: tuple, or what the epilogue makes of them
        "linear" = Linear([Id; 3]),
        // (w (N, K), ..)
        "weights" = Weights(Box<[Id]>),
        // (index, tuple)
        "output" = Output([Id; 2]),
        // epilogues: as is; softcap (cap); gelu_tanh(first) * second
        "store" = Store,
        "cap" = Cap(Id),
        "gate" = Gate,

        // ---- fused: elementwise ----
        // (cap, x) -> cap tanh(x / cap)
        "softcap" = Softcap([Id; 2]),
        // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
        "gelu_tanh" = GeluTanh(Id),
        // (gate, up) -> gelu_tanh(gate) * up
        "gated_gelu" = GatedGelu([Id; 2]),
        // (table (V, K), ids (T), scale) -> (T, K)
        "embedding" = Embedding([Id; 3]),

        // ---- fused: attention ----
        // (x (H, T, D), pos i32 (T), inverse frequencies (D/2)): halves rotated by the angle pos * frequency
        "rope" = Rope([Id; 3]),
        // (q (H, T, D), k (H, S, D), scale, cap or none) -> softcap(scale q kᵀ) (H, T, S)
        "scores" = Scores([Id; 4]),
        // (scores (.., T, S), pos i32 (T), window or none): -inf outside keys (pos - window, pos]
        "window_mask" = WindowMask([Id; 3]),
        // (x (.., T, S), pos or none, window or none, online or bounded): softmax of the last axis, over keys
        // (pos - window, pos] only; 0 outside and in rows without a key
        "softmax" = Softmax([Id; 4]),
        // (q (H, T, D), k (G, S, D), v (G, S, D), pos, scale, cap or none, window or none, online or bounded)
        // -> (H, T, D); query head h reads KV head h / (H / G)
        "attention" = Attention([Id; 8]),
        // softmax subtracts a running maximum; or the range analysis has bounded the logits and it need not
        "online" = Online,
        "bounded" = Bounded,

        // ---- attributes and leaves ----
        "none" = None,
        Int(i64),
        Num(Num),
        DType(DType),
        Dims(Dims),
        Input(InputId),
    }
}

/// A term: nodes in an order in which operands come first.
pub type Expr = egg::RecExpr<Op>;

impl Op {
    /// The operator's name in text, without operands.
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// Whether this is an attribute or another node that stands for no computed tensor.
    pub fn is_attribute(&self) -> bool {
        matches!(
            self,
            Op::None
                | Op::Int(_)
                | Op::DType(_)
                | Op::Dims(_)
                | Op::Online
                | Op::Bounded
                | Op::Store
                | Op::Gate
                | Op::Cap(_)
                | Op::Weights(_)
        )
    }

    /// Whether only rewrites produce it (each one a kernel or a part of one), never a model's builder.
    pub fn is_fused(&self) -> bool {
        matches!(
            self,
            Op::RmsNorm(_)
                | Op::AddRmsNorm(_)
                | Op::NormPrologue(_)
                | Op::Linear(_)
                | Op::Weights(_)
                | Op::Output(_)
                | Op::Store
                | Op::Cap(_)
                | Op::Gate
                | Op::Softcap(_)
                | Op::GeluTanh(_)
                | Op::GatedGelu(_)
                | Op::Embedding(_)
                | Op::Rope(_)
                | Op::Scores(_)
                | Op::WindowMask(_)
                | Op::Softmax(_)
                | Op::Attention(_)
                | Op::Online
                | Op::Bounded
        )
    }
}
