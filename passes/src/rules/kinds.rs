//! What may stand where in a term: a set of kinds for each operand of each operator.
//!
//! The check of patterns when they are read: a dims list where an axis belongs never matches, and would only be noticed
//! by its silence. Types proper (shapes, element types) are checked where a rule fires.

use lapidary_ir::{DType, Op};

/// A set of kinds of term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u16);

impl Kinds {
    /// A computed tensor.
    pub const COMPUTED: Kinds = Kinds(1);
    /// A number.
    pub const NUMBER: Kinds = Kinds(1 << 1);
    /// An integer.
    pub const INTEGER: Kinds = Kinds(1 << 2);
    /// `none`.
    pub const NONE: Kinds = Kinds(1 << 3);
    /// A list of dims.
    pub const DIMS: Kinds = Kinds(1 << 4);
    /// An element type.
    pub const DTYPE: Kinds = Kinds(1 << 5);
    /// `online` or `bounded`.
    pub const MODE: Kinds = Kinds(1 << 6);
    /// The weights of a linear.
    pub const WEIGHTS: Kinds = Kinds(1 << 7);
    /// An epilogue of a linear.
    pub const EPILOGUE: Kinds = Kinds(1 << 8);
    /// A norm as a linear's prologue.
    pub const PROLOGUE: Kinds = Kinds(1 << 9);
    /// Several tensors.
    pub const TUPLE: Kinds = Kinds(1 << 10);
    /// A cache.
    pub const CACHE: Kinds = Kinds(1 << 11);
    /// Anything: a variable that nothing is known of.
    pub const ALL: Kinds = Kinds((1 << 12) - 1);
    /// What has elements.
    pub const TENSOR: Kinds = Kinds(1 | 1 << 1 | 1 << 2);

    /// Kinds in both.
    #[must_use]
    pub const fn and(self, other: Kinds) -> Kinds {
        Kinds(self.0 & other.0)
    }

    /// Kinds in either.
    #[must_use]
    pub const fn or(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// In words.
    pub fn describe(self) -> String {
        const NAMES: [&str; 12] = [
            "a tensor",
            "a number",
            "an integer",
            "none",
            "dims",
            "a dtype",
            "a mode",
            "weights",
            "an epilogue",
            "a prologue",
            "a tuple",
            "a cache",
        ];
        let all: Vec<&str> = (0..12).filter(|i| self.0 & (1 << i) != 0).map(|i| NAMES[i]).collect();
        all.join(" or ")
    }
}

/// What an operator makes.
pub fn result(op: &Op) -> Kinds {
    match op {
        Op::Num(_) => Kinds::NUMBER,
        Op::Int(_) => Kinds::INTEGER,
        Op::None => Kinds::NONE,
        Op::Dims(_) => Kinds::DIMS,
        Op::DType(_) => Kinds::DTYPE,
        Op::Online | Op::Bounded => Kinds::MODE,
        Op::Weights(_) => Kinds::WEIGHTS,
        Op::Store | Op::Gate | Op::Cap(_) => Kinds::EPILOGUE,
        Op::NormPrologue(_) => Kinds::PROLOGUE,
        Op::Linear(_) => Kinds::COMPUTED.or(Kinds::TUPLE),
        Op::Neg(_)
        | Op::Recip(_)
        | Op::Sqrt(_)
        | Op::Rsqrt(_)
        | Op::Exp(_)
        | Op::Tanh(_)
        | Op::Cos(_)
        | Op::Sin(_)
        | Op::Cast(_)
        | Op::Add(_)
        | Op::Sub(_)
        | Op::Mul(_)
        | Op::Div(_)
        | Op::Pow(_)
        | Op::Lt(_)
        | Op::Le(_)
        | Op::And(_)
        | Op::Select(_)
        | Op::Sum(_)
        | Op::Mean(_)
        | Op::Max(_)
        | Op::Argmax(_)
        | Op::Matmul(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Gather(_)
        | Op::Iota(_)
        | Op::Append(_)
        | Op::RmsNorm(_)
        | Op::AddRmsNorm(_)
        | Op::Output(_)
        | Op::Softcap(_)
        | Op::GeluTanh(_)
        | Op::GatedGelu(_)
        | Op::Embedding(_)
        | Op::Rope(_)
        | Op::Scores(_)
        | Op::WindowMask(_)
        | Op::Softmax(_)
        | Op::Attention(_)
        | Op::Input(_) => Kinds::COMPUTED,
    }
}

/// What each operand of an operator may be, in order.
pub fn operands(op: &Op) -> Vec<Kinds> {
    const X: Kinds = Kinds::TENSOR;
    const C: Kinds = Kinds::COMPUTED;
    const N: Kinds = Kinds::NUMBER;
    const I: Kinds = Kinds::INTEGER;
    const D: Kinds = Kinds::DIMS;
    const M: Kinds = Kinds::MODE;
    let optional = |k: Kinds| k.or(Kinds::NONE);
    match op {
        Op::Num(_) | Op::Int(_) | Op::None | Op::Dims(_) | Op::DType(_) | Op::Input(_) => vec![],
        Op::Online | Op::Bounded | Op::Store | Op::Gate => vec![],
        Op::Neg(_)
        | Op::Recip(_)
        | Op::Sqrt(_)
        | Op::Rsqrt(_)
        | Op::Exp(_)
        | Op::Tanh(_)
        | Op::Cos(_)
        | Op::Sin(_)
        | Op::GeluTanh(_) => vec![X],
        Op::Cast(_) => vec![X, Kinds::DTYPE],
        Op::Add(_)
        | Op::Sub(_)
        | Op::Mul(_)
        | Op::Div(_)
        | Op::Pow(_)
        | Op::Lt(_)
        | Op::Le(_)
        | Op::And(_)
        | Op::Matmul(_)
        | Op::Gather(_)
        | Op::GatedGelu(_) => vec![X, X],
        Op::Select(_) => vec![X, X, X],
        Op::Sum(_) | Op::Mean(_) | Op::Max(_) | Op::Argmax(_) => vec![X, I],
        Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) => vec![X, D],
        Op::Slice(_) => vec![X, I, I, I],
        Op::Concat(_) => vec![X, X, I],
        Op::Iota(_) => vec![D, Kinds::DTYPE],
        Op::Append(_) => vec![Kinds::CACHE.or(C), X],
        Op::RmsNorm(_) | Op::NormPrologue(_) => vec![X, C, N],
        Op::AddRmsNorm(_) => vec![X, X, C, N],
        Op::Linear(_) => vec![C.or(Kinds::PROLOGUE), Kinds::WEIGHTS, Kinds::EPILOGUE],
        Op::Weights(ws) => vec![C; ws.len()],
        Op::Output(_) => vec![I, Kinds::TUPLE],
        Op::Cap(_) => vec![N],
        Op::Softcap(_) => vec![N, X],
        Op::Embedding(_) => vec![X, X, N],
        Op::Rope(_) => vec![X, X, X],
        Op::Scores(_) => vec![X, X, N, optional(N)],
        Op::WindowMask(_) => vec![X, X, optional(I)],
        Op::Softmax(_) => vec![X, optional(C), optional(I), M],
        Op::Attention(_) => vec![X, X, X, X, N, optional(N), optional(I), M],
    }
}

/// Every word that is a leaf of the language, for suggestions.
pub(crate) fn words() -> Vec<&'static str> {
    let mut words = vec!["none", "online", "bounded", "store", "gate", "inf", "NaN"];
    words.extend(DType::ALL.map(DType::name));
    words
}
