//! Conditions as data: the closed set of predicates that a rule's condition is a list of.
//!
//! A condition holds if every predicate does, taken in order. `?x` is a variable of the pattern; other names stand for
//! lengths of axes: the first predicate that meets a name binds it, later ones compare with it. A predicate is passed
//! over in a left side that lacks one of its variables or names. `docs/rules.md` documents the set for users; the text
//! form is what `Display` prints, and [`super::text`] parses it back.

mod amount;
mod print;

use egg::{Pattern, Var};
use lapidary_ir::{DType, Op};

use super::Term;
pub(crate) use amount::Known;
pub use amount::{Amount, Arithmetic, Sign};

/// A predicate: what must hold of a match, or a binding for the right side.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// `?x: f32[.., T, k]`: a tensor of this element type and shape.
    Type {
        /// The variable.
        var: Var,
        /// Its element type.
        dtype: DTypePattern,
        /// Its shape.
        shape: ShapePattern,
    },
    /// `?shape: [t, 1]`: an attribute that is this list of dims.
    Dims {
        /// The variable.
        var: Var,
        /// The list.
        shape: ShapePattern,
    },
    /// `constant(?c)`: a number known at compile time.
    Constant(Var),
    /// `integer(?w)`: an integer known at compile time.
    Integer(Var),
    /// `?c > 0`: a comparison of constants and lengths.
    Compare {
        /// Left of the sign.
        left: Amount,
        /// The sign.
        sign: Sign,
        /// Right of it.
        right: Amount,
    },
    /// `near(a, b, 2e-7)`: a lies within this share of |b| of b.
    Near {
        /// What is judged.
        a: Amount,
        /// What it should be.
        b: Amount,
        /// The share.
        relative: f64,
    },
    /// `range(?s) in [-60, 60]`: every element that is not NaN lies in the interval, by the analysis of value ranges.
    Range {
        /// The variable.
        var: Var,
        /// The least.
        lo: f64,
        /// The greatest.
        hi: f64,
    },
    /// `same_type(?a, ?b)`: equal element types and shapes.
    SameType(Var, Var),
    /// `last_axis(?axis, ?x)`: the integer is the last axis of the tensor.
    LastAxis {
        /// The axis.
        axis: Var,
        /// The tensor.
        of: Var,
    },
    /// `single_use(?y)`: as the function was written, no more than one node or output uses the value.
    SingleUse(Var),
    /// `weight(?w)`: an input declared `weight`, as it is or cast.
    Weight(Var),
    /// `?a matches (mul ?x ?y)`: a further pattern, up to commutativity; the first match binds its variables.
    Matches {
        /// The variable.
        var: Var,
        /// The pattern.
        further: Further,
    },
    /// `let ?r = number(1 / ?c)`: binds a variable of the right side.
    Let {
        /// The variable.
        var: Var,
        /// What it becomes.
        value: Binding,
    },
}

/// A further pattern, and every spelling of it up to commutativity as what is searched for.
#[derive(Clone, Debug, PartialEq)]
pub struct Further {
    term: Term,
    spellings: Vec<Pattern<Op>>,
}

impl Further {
    /// The pattern of a term.
    pub fn new(term: Term) -> Further {
        let spellings = term.commuted().iter().map(Term::pattern).collect();
        Further { term, spellings }
    }

    /// The pattern as written.
    pub fn term(&self) -> &Term {
        &self.term
    }

    /// Its spellings, the written one first.
    pub fn spellings(&self) -> &[Pattern<Op>] {
        &self.spellings
    }
}

/// What `let` binds.
#[derive(Clone, Debug, PartialEq)]
pub enum Binding {
    /// `number(..)`: a number, rounded to f32.
    Number(Amount),
    /// `integer(..)`: an integer; refused where the amount is none.
    Integer(Amount),
    /// `dims([t, 1])`: a list of dims.
    Dims(Vec<DimPattern>),
}

/// An element type, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DTypePattern {
    /// `any`
    Any,
    /// `float`: f32, f16, bf16, q8 or q4.
    Float,
    /// This one.
    Is(DType),
}

/// A shape: dims, and where `..` stands for any number of them.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapePattern {
    /// The dims, outermost first.
    pub dims: Vec<DimPattern>,
    /// How many dims stand before `..`, if it is there.
    pub rest: Option<usize>,
}

/// One dim of a shape.
#[derive(Clone, Debug, PartialEq)]
pub enum DimPattern {
    /// `_`: any.
    Any,
    /// `fixed`: any but T and S.
    Fixed,
    /// `T`
    Rows,
    /// `S`
    Keys,
    /// A length; a name that is not bound yet is bound by it.
    Is(Amount),
}

/// What each predicate looks like, for messages and documents.
pub const FORMS: [&str; 13] = [
    "?x: DTYPE[DIMS]",
    "?a: [DIMS]",
    "constant(?c)",
    "integer(?n)",
    "AMOUNT == AMOUNT (or != < <= > >=)",
    "near(AMOUNT, AMOUNT, RELATIVE)",
    "range(?x) in [LO, HI]",
    "same_type(?a, ?b)",
    "last_axis(?axis, ?x)",
    "single_use(?x)",
    "weight(?w)",
    "?x matches (PATTERN)",
    "let ?v = number(AMOUNT), integer(AMOUNT) or dims([DIMS])",
];

/// What a predicate reads and binds.
#[derive(Default)]
pub(crate) struct Terms {
    /// Variables that must be bound.
    pub(crate) vars: Vec<Var>,
    /// Names that must be bound.
    pub(crate) names: Vec<String>,
    /// Variables that it binds.
    pub(crate) bound_vars: Vec<Var>,
    /// Names that it binds unless they are.
    pub(crate) bound_names: Vec<String>,
}

impl Predicate {
    /// What it reads and binds.
    pub(crate) fn terms(&self) -> Terms {
        let mut t = Terms::default();
        match self {
            Predicate::Type { var, shape, .. } | Predicate::Dims { var, shape } => {
                t.vars.push(*var);
                shape.dims.iter().for_each(|d| d.terms(&mut t));
            }
            Predicate::Constant(v)
            | Predicate::Integer(v)
            | Predicate::SingleUse(v)
            | Predicate::Weight(v) => {
                t.vars.push(*v);
            }
            Predicate::Compare { left, right, .. } => {
                left.terms(&mut t);
                right.terms(&mut t);
            }
            Predicate::Near { a, b, .. } => {
                a.terms(&mut t);
                b.terms(&mut t);
            }
            Predicate::Range { var, .. } => t.vars.push(*var),
            Predicate::SameType(a, b) => t.vars.extend([*a, *b]),
            Predicate::LastAxis { axis, of } => t.vars.extend([*axis, *of]),
            Predicate::Matches { var, further } => {
                t.vars.push(*var);
                t.bound_vars = further.term.vars();
            }
            Predicate::Let { var, value } => {
                match value {
                    Binding::Number(a) | Binding::Integer(a) => a.terms(&mut t),
                    Binding::Dims(dims) => {
                        dims.iter().for_each(|d| d.terms(&mut t));
                        t.names.append(&mut t.bound_names);
                    }
                }
                t.bound_vars.push(*var);
            }
        }
        t
    }
}

impl DimPattern {
    fn terms(&self, t: &mut Terms) {
        match self {
            DimPattern::Is(Amount::Name(name)) => t.bound_names.push(name.clone()),
            DimPattern::Is(amount) => amount.terms(t),
            DimPattern::Any | DimPattern::Fixed | DimPattern::Rows | DimPattern::Keys => {}
        }
    }
}
