//! Conditions: predicates, shapes and amounts.
//!
//! In: tokens behind `if`. Out: one [`Predicate`] at a time; patterns after `matches` are kept for the check as well.

use egg::Var;
use lapidary_ir::{DType, text as ir};

use super::super::RuleError;
use super::super::lexer::Kind;
use super::{MAX_NESTING, Parser, Placed};
use crate::rules::predicate::{
    Amount, Arithmetic, Binding, DTypePattern, DimPattern, FORMS, Further, Predicate, ShapePattern, Sign,
};

/// Words that begin a predicate, for suggestions.
const PREDICATES: [&str; 9] =
    ["constant", "integer", "near", "range", "same_type", "last_axis", "single_use", "weight", "let"];

impl<'a> Parser<'a> {
    pub(super) fn predicate(&mut self, further: &mut Vec<Placed<'a>>) -> Result<Predicate, RuleError> {
        let token = self.peek();
        let following = self.tokens.get(self.at + 1).map_or("", |t| t.text);
        match (token.text, following) {
            ("let", _) => {
                self.next();
                let var = self.var()?;
                self.expect("=")?;
                let how = self.next();
                self.expect("(")?;
                let value = match how.text {
                    "number" => Binding::Number(self.amount(0)?),
                    "integer" => Binding::Integer(self.amount(0)?),
                    "dims" => {
                        let token = self.peek();
                        let shape = self.shape()?;
                        let open = |d: &DimPattern| matches!(d, DimPattern::Any | DimPattern::Fixed);
                        if shape.rest.is_some() || shape.dims.iter().any(open) {
                            return Err(
                                self.error(token, "expected dims without `_`, `fixed` and `..`".into())
                            );
                        }
                        Binding::Dims(shape.dims)
                    }
                    _ => return Err(self.expected(how, "`number(..)`, `integer(..)` or `dims(..)`")),
                };
                self.expect(")")?;
                Ok(Predicate::Let { var, value })
            }
            ("constant", "(") => Ok(Predicate::Constant(self.of_one()?)),
            ("integer", "(") => Ok(Predicate::Integer(self.of_one()?)),
            ("single_use", "(") => Ok(Predicate::SingleUse(self.of_one()?)),
            ("weight", "(") => Ok(Predicate::Weight(self.of_one()?)),
            ("same_type", "(") => {
                let (a, b) = self.of_two()?;
                Ok(Predicate::SameType(a, b))
            }
            ("last_axis", "(") => {
                let (axis, of) = self.of_two()?;
                Ok(Predicate::LastAxis { axis, of })
            }
            ("near", "(") => {
                self.next();
                self.expect("(")?;
                let a = self.amount(0)?;
                self.expect(",")?;
                let b = self.amount(0)?;
                self.expect(",")?;
                let relative = self.number()?;
                self.expect(")")?;
                Ok(Predicate::Near { a, b, relative })
            }
            ("range", "(") => {
                let var = self.of_one()?;
                self.word("in")?;
                let token = self.peek();
                self.expect("[")?;
                let lo = self.number()?;
                self.expect(",")?;
                let hi = self.number()?;
                self.expect("]")?;
                if lo > hi {
                    return Err(self.error(token, format!("no value lies in [{lo}, {hi}]")));
                }
                Ok(Predicate::Range { var, lo, hi })
            }
            (text, ":") if text.starts_with('?') => {
                let var = self.var()?;
                self.expect(":")?;
                let token = self.peek();
                if token.kind == Kind::Mark && token.text == "[" {
                    return Ok(Predicate::Dims { var, shape: self.shape()? });
                }
                self.next();
                let dtype = match token.text {
                    "any" => DTypePattern::Any,
                    "float" => DTypePattern::Float,
                    name => match DType::from_name(name) {
                        Some(dtype) => DTypePattern::Is(dtype),
                        None => {
                            return Err(
                                self.expected(token, "`any`, `float`, a dtype such as `f32`, or dims")
                            );
                        }
                    },
                };
                Ok(Predicate::Type { var, dtype, shape: self.shape()? })
            }
            (text, "matches") if text.starts_with('?') => {
                let var = self.var()?;
                self.next();
                let term = self.term(0)?;
                self.check_spellings(&term)?;
                let pattern = Further::new(term.term());
                further.push(term);
                Ok(Predicate::Matches { var, further: pattern })
            }
            (text, "(") if !["length", "rank", "sqrt"].contains(&text) && token.kind == Kind::Word => {
                let near = ir::nearest(text, PREDICATES.into_iter())
                    .map_or(String::new(), |n| format!("; did you mean `{n}`?"));
                let reason = format!(
                    "unknown predicate `{}`: expected one of {}{near}",
                    ir::shown(text),
                    FORMS.join(", ")
                );
                Err(self.error(token, reason))
            }
            _ => {
                let left = self.amount(0)?;
                let sign = self.next();
                let Some((sign, _)) = Sign::ALL.into_iter().find(|(_, s)| *s == sign.text) else {
                    return Err(self.expected(sign, "`==`, `!=`, `<`, `<=`, `>` or `>=`"));
                };
                Ok(Predicate::Compare { left, sign, right: self.amount(0)? })
            }
        }
    }

    fn of_one(&mut self) -> Result<Var, RuleError> {
        self.next();
        self.expect("(")?;
        let var = self.var()?;
        self.expect(")")?;
        Ok(var)
    }

    fn of_two(&mut self) -> Result<(Var, Var), RuleError> {
        self.next();
        self.expect("(")?;
        let a = self.var()?;
        self.expect(",")?;
        let b = self.var()?;
        self.expect(")")?;
        Ok((a, b))
    }

    fn shape(&mut self) -> Result<ShapePattern, RuleError> {
        self.expect("[")?;
        let mut shape = ShapePattern { dims: vec![], rest: None };
        while !self.accept("]") {
            let token = self.peek();
            match token.text {
                ".." if shape.rest.is_some() => return Err(self.error(token, "a second `..`".into())),
                ".." => {
                    self.next();
                    shape.rest = Some(shape.dims.len());
                }
                _ => shape.dims.push(self.dim()?),
            }
            if !self.accept(",") {
                self.expect("]").map_err(|_| self.expected(self.peek(), "`,` or `]`"))?;
                break;
            }
        }
        Ok(shape)
    }

    fn dim(&mut self) -> Result<DimPattern, RuleError> {
        let simple = match self.peek().text {
            "_" => DimPattern::Any,
            "fixed" => DimPattern::Fixed,
            "T" => DimPattern::Rows,
            "S" => DimPattern::Keys,
            _ => return Ok(DimPattern::Is(self.amount(0)?)),
        };
        self.next();
        Ok(simple)
    }

    pub(super) fn number(&mut self) -> Result<f64, RuleError> {
        let token = self.next();
        let digits = token.text.strip_prefix('-').unwrap_or(token.text);
        let fits = digits.starts_with(|c: char| c.is_ascii_digit()) || digits == "inf";
        match token.text.parse::<f64>() {
            Ok(n) if fits && token.kind == Kind::Word => Ok(n),
            _ => Err(self.expected(token, "a number")),
        }
    }

    /// Sums of products of atoms.
    fn amount(&mut self, depth: usize) -> Result<Amount, RuleError> {
        let mut left = self.product(depth)?;
        loop {
            let how = match self.peek().text {
                "+" => Arithmetic::Add,
                "-" => Arithmetic::Sub,
                _ => return Ok(left),
            };
            self.next();
            left = Amount::Binary(how, Box::new(left), Box::new(self.product(depth)?));
        }
    }

    fn product(&mut self, depth: usize) -> Result<Amount, RuleError> {
        let mut left = self.atom(depth)?;
        loop {
            let how = match self.peek().text {
                "*" => Arithmetic::Mul,
                "/" => Arithmetic::Div,
                _ => return Ok(left),
            };
            self.next();
            left = Amount::Binary(how, Box::new(left), Box::new(self.atom(depth)?));
        }
    }

    fn atom(&mut self, depth: usize) -> Result<Amount, RuleError> {
        let token = self.peek();
        if depth >= MAX_NESTING {
            return Err(self.error(token, format!("amounts nested deeper than {MAX_NESTING}")));
        }
        let following = self.tokens.get(self.at + 1).map_or("", |t| t.text);
        match (token.text, following) {
            ("(", _) if token.kind == Kind::Mark => {
                self.next();
                let amount = self.amount(depth + 1)?;
                self.expect(")")?;
                Ok(amount)
            }
            ("rank", "(") => Ok(Amount::Rank(self.of_one()?)),
            ("sqrt", "(") => {
                self.next();
                self.next();
                let amount = self.amount(depth + 1)?;
                self.expect(")")?;
                Ok(Amount::Sqrt(Box::new(amount)))
            }
            ("length", "(") => {
                self.next();
                self.next();
                let var = self.var()?;
                self.expect(",")?;
                let axis = self.amount(depth + 1)?;
                self.expect(")")?;
                Ok(Amount::Length(var, Box::new(axis)))
            }
            (text, _) if text.starts_with('?') => Ok(Amount::Var(self.var()?)),
            (text, _)
                if token.kind == Kind::Word
                    && text != "inf"
                    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                    && text.starts_with(|c: char| c.is_ascii_lowercase()) =>
            {
                if ["if", "let", "fixed", "matches", "in"].contains(&text) {
                    return Err(self.expected(token, "a number, a variable or a length's name"));
                }
                self.next();
                Ok(Amount::Name(text.into()))
            }
            _ => match self.number() {
                Ok(n) => Ok(Amount::Number(n)),
                Err(_) => Err(self.expected(
                    token,
                    "a predicate or an amount: a number, `?variable`, a length's name, `length(..)`, \
                     `rank(..)` or `sqrt(..)`",
                )),
            },
        }
    }
}
