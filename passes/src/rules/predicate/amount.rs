//! Amounts: arithmetic over what a match binds, and the signs that compare it.
//!
//! In: an amount, what is known of its variables and names. Out: a number, or none.

use egg::Var;
use lapidary_ir::Dim;

use super::Terms;

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

impl Amount {
    pub(super) fn terms(&self, t: &mut Terms) {
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

    /// Its value; none where a part is unknown.
    pub(crate) fn value(&self, known: &impl Known) -> Option<f64> {
        match self {
            Amount::Number(n) => Some(*n),
            Amount::Var(var) => known.number(*var),
            Amount::Name(name) => known.named(name)?.fixed().map(|n| n as f64),
            Amount::Length(var, axis) => {
                let axis = axis.value(known)?;
                let at = (axis >= 0.0 && axis.fract() == 0.0).then_some(axis as usize)?;
                known.shape(*var)?.get(at)?.fixed().map(|n| n as f64)
            }
            Amount::Rank(var) => Some(known.shape(*var)?.len() as f64),
            Amount::Sqrt(a) => a.value(known).map(f64::sqrt),
            Amount::Binary(how, a, b) => {
                let (a, b) = (a.value(known)?, b.value(known)?);
                Some(match how {
                    Arithmetic::Add => a + b,
                    Arithmetic::Sub => a - b,
                    Arithmetic::Mul => a * b,
                    Arithmetic::Div => a / b,
                })
            }
        }
    }

    /// Whether its value is made of a variable's own, not of its type.
    pub(crate) fn mentions(&self, var: Var) -> bool {
        match self {
            Amount::Var(v) => *v == var,
            Amount::Binary(_, a, b) => a.mentions(var) || b.mentions(var),
            Amount::Sqrt(a) => a.mentions(var),
            Amount::Number(_) | Amount::Name(_) | Amount::Length(..) | Amount::Rank(_) => false,
        }
    }
}

/// What amounts are evaluated over: a match, or a function that is being made for one.
pub(crate) trait Known {
    /// The value of a variable that is a number or an integer.
    fn number(&self, var: Var) -> Option<f64>;
    /// The length that a name stands for.
    fn named(&self, name: &str) -> Option<Dim>;
    /// The shape of a variable that is a tensor.
    fn shape(&self, var: Var) -> Option<&[Dim]>;
}
