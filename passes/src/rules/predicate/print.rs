//! Predicates as text: what [`super::super::text`] parses back.

use std::fmt;

use super::{Amount, Arithmetic, Binding, DTypePattern, DimPattern, Predicate, ShapePattern, Sign};

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
