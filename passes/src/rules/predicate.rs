//! Conditions as data: the closed set of predicates that a rule's condition is a list of.
//!
//! A condition holds if every predicate does, taken in order. `?x` is a variable of the pattern; other names stand for
//! lengths of axes: the first predicate that meets a name binds it, later ones compare with it. A predicate is passed
//! over in a left side that lacks one of its variables or names. `docs/rules.md` documents the set for users; the text
//! form is what `Display` prints, and [`super::text`] parses it back.

use std::fmt;

use egg::{Pattern, Var};
use lapidary_ir::{DType, Op};

use super::Term;

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

/// A constant of the match: arithmetic over numbers, constants bound by variables, and lengths.
#[derive(Clone, Debug, PartialEq)]
pub enum Amount {
    /// A number.
    Number(f64),
    /// A variable that is a number or an integer.
    Var(Var),
    /// A named length, fixed.
    Name(String),
    /// `length(?x, axis)`: the fixed length of an axis.
    Length(Var, Box<Amount>),
    /// `rank(?x)`
    Rank(Var),
    /// `sqrt(..)`
    Sqrt(Box<Amount>),
    /// Two amounts and `+`, `-`, `*` or `/`.
    Binary(Arithmetic, Box<Amount>, Box<Amount>),
}

/// An operator of [`Amount`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
}

/// A comparison's sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// `==`
    Equal,
    /// `!=`
    Unequal,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Sign {
    /// Every sign and its spelling.
    pub const ALL: [(Sign, &'static str); 6] = [
        (Sign::Equal, "=="),
        (Sign::Unequal, "!="),
        (Sign::Less, "<"),
        (Sign::LessOrEqual, "<="),
        (Sign::Greater, ">"),
        (Sign::GreaterOrEqual, ">="),
    ];

    /// Whether it holds between two amounts.
    pub fn holds(self, a: f64, b: f64) -> bool {
        match self {
            Sign::Equal => a == b,
            Sign::Unequal => a != b,
            Sign::Less => a < b,
            Sign::LessOrEqual => a <= b,
            Sign::Greater => a > b,
            Sign::GreaterOrEqual => a >= b,
        }
    }
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

impl Amount {
    fn terms(&self, t: &mut Terms) {
        match self {
            Amount::Number(_) => {}
            Amount::Var(v) | Amount::Rank(v) => t.vars.push(*v),
            Amount::Name(name) => t.names.push(name.clone()),
            Amount::Length(v, axis) => {
                t.vars.push(*v);
                axis.terms(t);
            }
            Amount::Sqrt(a) => a.terms(t),
            Amount::Binary(_, a, b) => {
                a.terms(t);
                b.terms(t);
            }
        }
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Predicate::Type { var, dtype, shape } => write!(f, "{var}: {dtype}{shape}"),
            Predicate::Dims { var, shape } => write!(f, "{var}: {shape}"),
            Predicate::Constant(v) => write!(f, "constant({v})"),
            Predicate::Integer(v) => write!(f, "integer({v})"),
            Predicate::Compare { left, sign, right } => {
                let sign = Sign::ALL.iter().find(|(s, _)| s == sign).map_or("==", |s| s.1);
                write!(f, "{left} {sign} {right}")
            }
            Predicate::Near { a, b, relative } => write!(f, "near({a}, {b}, {})", Plain(*relative)),
            Predicate::Range { var, lo, hi } => write!(f, "range({var}) in [{}, {}]", Plain(*lo), Plain(*hi)),
            Predicate::SameType(a, b) => write!(f, "same_type({a}, {b})"),
            Predicate::LastAxis { axis, of } => write!(f, "last_axis({axis}, {of})"),
            Predicate::SingleUse(v) => write!(f, "single_use({v})"),
            Predicate::Weight(v) => write!(f, "weight({v})"),
            Predicate::Matches { var, further } => write!(f, "{var} matches {}", further.term),
            Predicate::Let { var, value } => match value {
                Binding::Number(a) => write!(f, "let {var} = number({a})"),
                Binding::Integer(a) => write!(f, "let {var} = integer({a})"),
                Binding::Dims(dims) => {
                    write!(f, "let {var} = dims({})", ShapePattern { dims: dims.clone(), rest: None })
                }
            },
        }
    }
}

impl fmt::Display for DTypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DTypePattern::Any => f.write_str("any"),
            DTypePattern::Float => f.write_str("float"),
            DTypePattern::Is(dtype) => dtype.fmt(f),
        }
    }
}

impl fmt::Display for ShapePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.dims.iter().map(ToString::to_string).collect();
        if let Some(at) = self.rest {
            parts.insert(at, "..".into());
        }
        write!(f, "[{}]", parts.join(", "))
    }
}

impl fmt::Display for DimPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DimPattern::Any => f.write_str("_"),
            DimPattern::Fixed => f.write_str("fixed"),
            DimPattern::Rows => f.write_str("T"),
            DimPattern::Keys => f.write_str("S"),
            DimPattern::Is(amount) => amount.fmt(f),
        }
    }
}

/// A number as short as it parses back: `60`, `2e-7`, `inf`.
struct Plain(f64);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.fract() == 0.0 && self.0.abs() < 1e15 {
            write!(f, "{}", self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Number(n) => Plain(*n).fmt(f),
            Amount::Var(v) => v.fmt(f),
            Amount::Name(name) => f.write_str(name),
            Amount::Length(v, axis) => write!(f, "length({v}, {axis})"),
            Amount::Rank(v) => write!(f, "rank({v})"),
            Amount::Sqrt(a) => write!(f, "sqrt({a})"),
            Amount::Binary(how, a, b) => {
                let (sign, weak) = match how {
                    Arithmetic::Add => ("+", true),
                    Arithmetic::Sub => ("-", true),
                    Arithmetic::Mul => ("*", false),
                    Arithmetic::Div => ("/", false),
                };
                let loose = |x: &Amount| matches!(x, Amount::Binary(Arithmetic::Add | Arithmetic::Sub, ..));
                let left = if !weak && loose(a) { format!("({a})") } else { a.to_string() };
                let tight = matches!(**b, Amount::Binary(..)) && (!weak || loose(b));
                let right = if tight { format!("({b})") } else { b.to_string() };
                write!(f, "{left} {sign} {right}")
            }
        }
    }
}
