//! The tensor language: one node type for graphs, e-graphs and patterns.
//!
//! A node is an operator over the ids of its operands. Attributes (a window, an axis, a shape) are leaf nodes, so a
//! text pattern binds them like any operand. Primitive operators are what models are written in; fused operators are
//! what rewrites produce, each one a whole kernel. The table says of each what it takes and makes
//! ([`crate::signature`]); `infer` states the types, `interp` the meaning of every one.
//!
//! Conventions: elementwise operators broadcast as numpy does (axes aligned at the end, length 1 stretches); reductions
//! keep the reduced axis with length 1; operand order below is operand order in text.

use std::fmt;

use egg::Id;

use crate::program::Program;
use crate::signature::{Kinds, OpClass, Operands, Origin, Signature};
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

/// The language's table: makes the enum, its names and [`Op::signature`] of one row an operator. Three kinds of rows:
/// what takes operands, words, and leaves that hold a value. Operands are a list of kinds, or `many` of one.
macro_rules! language {
    (
        operators { $(
            $name:literal = $operator:ident($fields:ty): $origin:ident, $operands:tt -> $result:expr, $class:ident;
        )* }
        words { $($word_name:literal = $word:ident: $word_origin:ident -> $word_result:expr, $word_class:ident;)* }
        leaves { $($leaf:ident($value:ty): $leaf_origin:ident -> $leaf_result:expr;)* }
    ) => {
        egg::define_language! {
            /// A node of the tensor language. See the module's page for the conventions.
            #[allow(missing_docs)] // the macro takes no documentation on variants: it stands in the table as comments
            pub enum Op {
                $($name = $operator($fields),)*
                $($word_name = $word,)*
                $($leaf($value),)*
            }
        }

        /// The operators that take operands, in the order of the table.
        pub const OPERATORS: &[&str] = &[$($name),*];

        /// The words that are leaves, in the order of the table.
        pub const WORDS: &[&str] = &[$($word_name),*];

        impl Op {
            /// Its row of the table.
            pub fn signature(&self) -> Signature {
                match self {
                    $(Op::$operator(..) => Signature {
                        origin: Origin::$origin,
                        operands: operands!($operands),
                        result: $result,
                        class: OpClass::$class,
                    },)*
                    $(Op::$word => Signature {
                        origin: Origin::$word_origin,
                        operands: Operands::Exactly(&[]),
                        result: $word_result,
                        class: OpClass::$word_class,
                    },)*
                    $(Op::$leaf(_) => Signature {
                        origin: Origin::$leaf_origin,
                        operands: Operands::Exactly(&[]),
                        result: $leaf_result,
                        class: OpClass::Rational,
                    },)*
                }
            }
        }
    };
}

macro_rules! operands {
    ([$($kinds:expr),*]) => { Operands::Exactly(const { &[$($kinds),*] }) };
    ({ many $kinds:expr }) => { Operands::OneOrMore($kinds) };
}

const X: Kinds = Kinds::TENSOR;
const C: Kinds = Kinds::COMPUTED;
const N: Kinds = Kinds::NUMBER;
const I: Kinds = Kinds::INTEGER;
const D: Kinds = Kinds::DIMS;
const M: Kinds = Kinds::MODE;
const E: Kinds = Kinds::EPILOGUE;
const TYPE: Kinds = Kinds::DTYPE;
const P: Kinds = Kinds::PROGRAM;
const fn optional(kinds: Kinds) -> Kinds {
    kinds.or(Kinds::NONE)
}

#[rustfmt::skip]
language! {
    operators {
        // ---- elementwise, (x) ----
        "neg"           = Neg(Id):                  Primitive, [X] -> C,                Floats;
        "recip"         = Recip(Id):                Primitive, [X] -> C,                Floats;
        "sqrt"          = Sqrt(Id):                 Primitive, [X] -> C,                IrrationalFloats;
        "rsqrt"         = Rsqrt(Id):                Primitive, [X] -> C,                IrrationalFloats;
        "exp"           = Exp(Id):                  Primitive, [X] -> C,                IrrationalFloats;
        "tanh"          = Tanh(Id):                 Primitive, [X] -> C,                IrrationalFloats;
        "cos"           = Cos(Id):                  Primitive, [X] -> C,                IrrationalFloats;
        "sin"           = Sin(Id):                  Primitive, [X] -> C,                IrrationalFloats;
        "abs"           = Abs(Id):                  Primitive, [X] -> C,                Floats;
        "floor"         = Floor(Id):                Primitive, [X] -> C,                Floats;
        // natural
        "log"           = Log(Id):                  Primitive, [X] -> C,                IrrationalFloats;
        // (x, dtype attribute)
        "cast"          = Cast([Id; 2]):            Primitive, [X, TYPE] -> C,          Rational;

        // ---- elementwise, (a, b) ----
        "add"           = Add([Id; 2]):             Primitive, [X, X] -> C,             Numbers;
        "sub"           = Sub([Id; 2]):             Primitive, [X, X] -> C,             Numbers;
        "mul"           = Mul([Id; 2]):             Primitive, [X, X] -> C,             Numbers;
        "div"           = Div([Id; 2]):             Primitive, [X, X] -> C,             Floats;
        // a to the power of b, a >= 0 unless b is a small whole number
        "pow"           = Pow([Id; 2]):             Primitive, [X, X] -> C,             Floats;
        // NaN where either is
        "maximum"       = Maximum([Id; 2]):         Primitive, [X, X] -> C,             Numbers;
        "minimum"       = Minimum([Id; 2]):         Primitive, [X, X] -> C,             Numbers;
        // comparisons give bool
        "lt"            = Lt([Id; 2]):              Primitive, [X, X] -> C,             Comparison;
        "le"            = Le([Id; 2]):              Primitive, [X, X] -> C,             Comparison;
        "eq"            = Eq([Id; 2]):              Primitive, [X, X] -> C,             Comparison;
        "and"           = And([Id; 2]):             Primitive, [X, X] -> C,             Truths;
        "or"            = Or([Id; 2]):              Primitive, [X, X] -> C,             Truths;
        "not"           = Not(Id):                  Primitive, [X] -> C,                Truths;
        // (condition, then, else)
        "select"        = Select([Id; 3]):          Primitive, [X, X, X] -> C,          Rational;

        // ---- reductions over one axis, (x, axis) ----
        "sum"           = Sum([Id; 2]):             Primitive, [X, I] -> C,             Rational;
        "mean"          = Mean([Id; 2]):            Primitive, [X, I] -> C,             Rational;
        "max"           = Max([Id; 2]):             Primitive, [X, I] -> C,             Rational;
        "min"           = Min([Id; 2]):             Primitive, [X, I] -> C,             Rational;
        "prod"          = Prod([Id; 2]):            Primitive, [X, I] -> C,             Rational;
        // index (i32) of the largest element, the first of equals
        "argmax"        = Argmax([Id; 2]):          Primitive, [X, I] -> C,             Rational;

        // ---- contraction, (.., M, K) x (.., K, N) -> (.., M, N), leading axes broadcast ----
        "matmul"        = Matmul([Id; 2]):          Primitive, [X, X] -> C,             Rational;

        // ---- movement ----
        // (x, shape)
        "reshape"       = Reshape([Id; 2]):         Primitive, [X, D] -> C,             Rational;
        // (x, permutation): axis i of the result is axis p[i] of x
        "transpose"     = Transpose([Id; 2]):       Primitive, [X, D] -> C,             Rational;
        // (x, shape): axes of length 1 stretched; equal rank
        "broadcast"     = Broadcast([Id; 2]):       Primitive, [X, D] -> C,             Rational;
        // (x, axis, start, length); a negative start counts from the end
        "slice"         = Slice([Id; 4]):           Primitive, [X, I, I, I] -> C,       Rational;
        // (a, b, axis)
        "concat"        = Concat([Id; 3]):          Primitive, [X, X, I] -> C,          Rational;
        // (x, axis, before, after, number): so many elements of that value on either side
        "pad"           = Pad([Id; 5]):             Primitive, [X, I, I, I, N.or(I)] -> C, Rational;
        // (table (V, ..), ids i32 (T)) -> (T, ..)
        "gather"        = Gather([Id; 2]):          Primitive, [X, X] -> C,             Rational;
        // (x, ids i32 (T), axis): x with that axis' elements of these numbers
        "take"          = Take([Id; 3]):            Primitive, [X, X, I] -> C,          Rational;
        // (shape of one axis, dtype): 0, 1, 2, ...
        "iota"          = Iota([Id; 2]):            Primitive, [D, TYPE] -> C,          Rational;
        // (cache (G, S, D), rows (G, T, D)) -> (G, S, D): the last T of S rows replaced; rows are rounded to the
        // cache's dtype
        "append"        = Append([Id; 2]):          Primitive, [Kinds::CACHE.or(C), X] -> C, Rational;

        // ---- norms, along the last axis; weight w (K), as Gemma stores it: y = x / rms(x) * (1 + w) ----
        // (x, w, eps)
        "rms_norm"      = RmsNorm([Id; 3]):         Fused, [X, C, N] -> C,              Irrational;
        // (residual, x, w, eps) -> residual + rms_norm(x)
        "add_rms_norm"  = AddRmsNorm([Id; 4]):      Fused, [X, X, C, N] -> C,           Irrational;
        // (x, w, eps): rms_norm as the prologue of a linear kernel
        "norm_prologue" = NormPrologue([Id; 3]):    Fused, [X, C, N] -> Kinds::PROLOGUE, Irrational;

        // ---- linear, y = x w^T, (x (T, K) or prologue, weights, epilogue) ----
        // one weight: tensor (T, N); several: tuple, or what the epilogue makes of them
        "linear"        = Linear([Id; 3]):          Fused, [C.or(Kinds::PROLOGUE), Kinds::WEIGHTS, E]
                                                        -> C.or(Kinds::TUPLE),  Rational;
        // (w (N, K), ..)
        "weights"       = Weights(Box<[Id]>):       Fused, { many C } -> Kinds::WEIGHTS, Rational;
        // (index, tuple)
        "output"        = Output([Id; 2]):          Fused, [I, Kinds::TUPLE] -> C,      Rational;
        // epilogues: as is (store); softcap (cap); gelu_tanh(first) * second (gate)
        "cap"           = Cap(Id):                  Fused, [N] -> E,                    Irrational;
        // (program, a, ..): the program over the sums of each weight, then over a, ..
        "then"          = Then(Box<[Id]>):          Fused, { many X.or(P) } -> E,       Irrational;

        // ---- elementwise ----
        // (program, a, ..): the program over a, .., which broadcast
        "map"           = Map(Box<[Id]>):           Fused, { many X.or(P) } -> C,       Irrational;
        // (cap, x) -> cap tanh(x / cap)
        "softcap"       = Softcap([Id; 2]):         Fused, [N, X] -> C,                 Irrational;
        // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
        "gelu_tanh"     = GeluTanh(Id):             Fused, [X] -> C,                    IrrationalFloats;
        // (gate, up) -> gelu_tanh(gate) * up
        "gated_gelu"    = GatedGelu([Id; 2]):       Fused, [X, X] -> C,                 Irrational;
        // (table (V, K), ids (T), scale) -> (T, K)
        "embedding"     = Embedding([Id; 3]):       Fused, [X, X, N] -> C,              Rational;

        // ---- attention ----
        // (x (H, T, D), pos i32 (T), inverse frequencies (D/2)): halves rotated by the angle pos * frequency
        "rope"          = Rope([Id; 3]):            Fused, [X, X, X] -> C,              Irrational;
        // (q (H, T, D), k (H, S, D), scale, cap or none) -> softcap(scale q k^T) (H, T, S)
        "scores"        = Scores([Id; 4]):          Fused, [X, X, N, optional(N)] -> C, Rational;
        // (scores (.., T, S), pos i32 (T), window or none): -inf outside keys (pos - window, pos]
        "window_mask"   = WindowMask([Id; 3]):      Fused, [X, X, optional(I)] -> C,    Rational;
        // (x (.., T, S), pos or none, window or none, online or bounded): softmax of the last axis, over keys
        // (pos - window, pos] only; 0 outside and in rows without a key
        "softmax"       = Softmax([Id; 4]):         Fused, [X, optional(C), optional(I), M] -> C, Irrational;
        // (q (H, T, D), k (G, S, D), v (G, S, D), pos, scale, cap or none, window or none, online or bounded)
        // -> (H, T, D); query head h reads KV head h / (H / G)
        "attention"     = Attention([Id; 8]):       Fused, [X, X, X, X, N, optional(N), optional(I), M]
                                                        -> C,                   Irrational;
    }
    words {
        "store"         = Store:                    Fused -> E,                         Rational;
        "gate"          = Gate:                     Fused -> E,                         Irrational;
        // softmax subtracts a running maximum; or the range analysis has bounded the logits and it need not
        "online"        = Online:                   Fused -> M,                         Rational;
        "bounded"       = Bounded:                  Fused -> M,                         Rational;
        "none"          = None:                     Primitive -> Kinds::NONE,           Rational;
    }
    leaves {
        Int(i64):                                   Primitive -> I;
        Num(Num):                                   Primitive -> N;
        DType(DType):                               Primitive -> TYPE;
        Dims(Dims):                                 Primitive -> D;
        Input(InputId):                             Primitive -> C;
        Program(Program):                           Fused -> P;
    }
}

/// A term: nodes in an order in which operands come first.
pub type Expr = egg::RecExpr<Op>;

impl Op {
    /// The operator's name in text, without operands.
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// The value, of a number of elements.
    pub fn number(&self) -> Option<f32> {
        if let Op::Num(n) = self { Some(n.value()) } else { None }
    }

    /// The value, of an integer.
    pub fn integer(&self) -> Option<i64> {
        if let Op::Int(n) = self { Some(*n) } else { None }
    }

    /// The value, of a number or an integer.
    pub fn value(&self) -> Option<f64> {
        self.number().map(f64::from).or(self.integer().map(|n| n as f64))
    }

    /// Whether this is an attribute or another node that stands for no computed tensor, nor for a number.
    pub fn is_attribute(&self) -> bool {
        let tensor = Kinds::COMPUTED.or(Kinds::NUMBER).or(Kinds::PROLOGUE);
        self.signature().result.and(tensor).is_empty()
    }

    /// Whether only rewrites produce it (each one a kernel or a part of one), never a model's builder.
    pub fn is_fused(&self) -> bool {
        self.signature().origin == Origin::Fused
    }
}
