//! The grammar of the rule language, by recursive descent.
//!
//! A pattern is read into a [`Placed`] term, which knows where it stands, checked, and kept as a [`Term`].

use std::collections::HashSet;

use egg::{FromOp, Id, Var};
use lapidary_ir::{DType, Kinds, OPERATORS, Op, text as ir};

use super::super::native::NATIVE;
use super::super::predicate::{
    Amount, Arithmetic, Binding, DTypePattern, DimPattern, FORMS, Further, Predicate, ShapePattern, Sign,
};
use super::super::term::MOST_SPELLINGS;
use super::super::{Class, Rule, Search, Term, applicable};
use super::RuleError;
use super::lexer::{self, Kind, Token};

/// How deep terms and amounts may be nested.
const MAX_NESTING: usize = 64;

/// Words that begin a predicate, for suggestions.
const PREDICATES: [&str; 9] =
    ["constant", "integer", "near", "range", "same_type", "last_axis", "single_use", "weight", "let"];

/// Rules, each with the line of its name.
pub(super) fn parse(source: &str) -> Result<Vec<(Rule, usize)>, RuleError> {
    let mut parser = Parser { source, tokens: lexer::tokens(source)?, at: 0 };
    let mut rules = Vec::new();
    let mut names = HashSet::new();
    while parser.peek().kind != Kind::End {
        parser.word("rule")?;
        let name = parser.name("a rule's name, of lower-case letters, digits and hyphens")?;
        if !names.insert(name.text) {
            return Err(parser.error(name, format!("duplicate rule `{}`", name.text)));
        }
        rules.push((parser.rule(name)?, name.line));
    }
    Ok(rules)
}

/// One term and nothing behind it.
pub(super) fn parse_term(source: &str) -> Result<Term, RuleError> {
    let mut parser = Parser { source, tokens: lexer::tokens(source)?, at: 0 };
    let placed = parser.term(0)?;
    let behind = parser.peek();
    if behind.kind == Kind::End {
        Ok(placed.term())
    } else {
        Err(parser.expected(behind, "the end of the term"))
    }
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
}

/// A term of a pattern and where it begins.
struct Placed<'a> {
    token: Token<'a>,
    node: Node<'a>,
}

enum Node<'a> {
    Var(Var),
    /// An operator or a leaf, with its operands.
    Op(Op, Vec<Placed<'a>>),
}

impl Placed<'_> {
    fn term(&self) -> Term {
        match &self.node {
            Node::Var(var) => Term::var(*var),
            Node::Op(op, operands) => {
                let operands: Vec<Term> = operands.iter().map(Placed::term).collect();
                Term::new(op, &operands)
            }
        }
    }
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        // The last token is the end, and `next` never passes it.
        self.tokens[self.at]
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        if token.kind != Kind::End {
            self.at += 1;
        }
        token
    }

    fn accept(&mut self, mark: &str) -> bool {
        let token = self.peek();
        let found = token.kind == Kind::Mark && token.text == mark;
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: &str) -> Result<(), RuleError> {
        if self.accept(mark) { Ok(()) } else { Err(self.expected(self.peek(), &format!("`{mark}`"))) }
    }

    fn word(&mut self, word: &str) -> Result<(), RuleError> {
        let token = self.next();
        let found = token.kind == Kind::Word && token.text == word;
        if found { Ok(()) } else { Err(self.expected(token, &format!("`{word}`"))) }
    }

    fn name(&mut self, what: &str) -> Result<Token<'a>, RuleError> {
        let token = self.next();
        let fits = token.kind == Kind::Word
            && token.text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && token.text.starts_with(|c: char| c.is_ascii_lowercase());
        if fits { Ok(token) } else { Err(self.expected(token, what)) }
    }

    fn error(&self, token: Token<'_>, reason: String) -> RuleError {
        lexer::error(self.source, token.line, token.column, reason)
    }

    fn expected(&self, token: Token<'_>, what: &str) -> RuleError {
        let found = match token.kind {
            Kind::End => "the end of the text".into(),
            Kind::Quoted => format!("\"{}\"", ir::shown(token.text)),
            Kind::Word | Kind::Mark => format!("`{}`", ir::shown(token.text)),
        };
        self.error(token, format!("expected {what}, found {found}"))
    }

    fn rule(&mut self, name: Token<'a>) -> Result<Rule, RuleError> {
        let class = self.class()?;
        let algebra = self.next();
        if algebra.kind != Kind::Quoted {
            return Err(self.expected(algebra, "the rule's algebra in quotes"));
        }
        let algebra = unescape(algebra.text);
        self.expect("{")?;
        let token = self.peek();
        let search = if token.kind == Kind::Word && token.text == "native" {
            self.next();
            let token = self.next();
            let Some(native) = NATIVE.iter().find(|n| n.name == token.text) else {
                let known: Vec<&str> = NATIVE.iter().map(|n| n.name).collect();
                return Err(self.expected(token, &format!("a native search ({})", known.join(", "))));
            };
            Search::Native(*native)
        } else {
            self.patterns()?
        };
        self.expect("}")?;
        Ok(Rule { name: name.text.into(), class, algebra, search })
    }

    fn class(&mut self) -> Result<Class, RuleError> {
        let token = self.next();
        match token.text {
            "exact" => Ok(Class::Exact),
            "reassociating" => Ok(Class::Reassociating),
            "approximate" => {
                self.expect("(")?;
                let token = self.peek();
                let bound = self.number()?;
                if !(bound > 0.0 && bound < 1.0) {
                    return Err(
                        self.error(token, format!("the bound is {bound}: expected one between 0 and 1"))
                    );
                }
                self.expect(")")?;
                Ok(Class::Approximate(bound as f32))
            }
            _ => Err(self.expected(token, "a class: `exact`, `reassociating` or `approximate(BOUND)`")),
        }
    }

    fn patterns(&mut self) -> Result<Search, RuleError> {
        let mut left = Vec::new();
        while !self.accept("=>") {
            let token = self.peek();
            if token.kind == Kind::Mark && token.text == "(" {
                left.push(self.term(0)?);
            } else if left.is_empty() {
                return Err(self.expected(token, "a left side, `(OPERATOR ..)`, or `native`"));
            } else {
                return Err(self.expected(token, "a further left side, `(OPERATOR ..)`, or `=>`"));
            }
        }
        if left.is_empty() {
            return Err(self.expected(self.peek(), "a left side before `=>`"));
        }
        let right = self.term(0)?;
        let mut when = Vec::new();
        let mut further = Vec::new();
        if self.peek().kind == Kind::Word && self.peek().text == "if" {
            self.next();
            loop {
                let token = self.peek();
                when.push((self.predicate(&mut further)?, token));
                if !self.accept(",") {
                    break;
                }
            }
            let token = self.peek();
            if !(token.kind == Kind::Mark && token.text == "}") {
                return Err(self.expected(token, "`,` and a further predicate, or `}`"));
            }
        }
        self.check(&left, &right, &further, &when)?;
        Ok(Search::Patterns {
            lhs: left.iter().map(Placed::term).collect(),
            rhs: right.term(),
            when: when.into_iter().map(|(p, _)| p).collect(),
        })
    }

    // ---- terms ----

    fn term(&mut self, depth: usize) -> Result<Placed<'a>, RuleError> {
        let token = self.next();
        match (token.kind, token.text) {
            (Kind::Mark, "(") => self.node(depth),
            (Kind::Mark, "[") => {
                let mut text = String::from("[");
                while !self.accept("]") {
                    let part = self.next();
                    if part.kind != Kind::Word && part.text != "," {
                        return Err(self.expected(part, "a dim, `T`, `S` or a number, or `]`"));
                    }
                    text.push_str(part.text);
                }
                text.push(']');
                match Op::from_op(&text, vec![]) {
                    Ok(op) => Ok(Placed { token, node: Node::Op(op, vec![]) }),
                    Err(_) => Err(self.error(
                        token,
                        format!("expected dims, such as `[T,4,64]`, found `{}`", ir::shown(&text)),
                    )),
                }
            }
            (Kind::Word, text) => {
                if text.starts_with('?') {
                    return Ok(Placed { token, node: Node::Var(self.var_of(token)?) });
                }
                if OPERATORS.contains(&text) {
                    return Err(self.error(token, format!("`{text}` is an operator: expected `({text} ..)`")));
                }
                match Op::from_op(text, vec![]) {
                    Ok(Op::Input(_)) | Err(_) => {
                        let near = ir::nearest(text, ir::words());
                        let what = "a term: `(OPERATOR ..)`, `?variable`, a number such as `1.0`, dims or a word of the language";
                        let mut error = self.expected(token, what);
                        if let Some(near) = near {
                            error.reason.push_str(&format!("; did you mean `{near}`?"));
                        }
                        Err(error)
                    }
                    Ok(op) => Ok(Placed { token, node: Node::Op(op, vec![]) }),
                }
            }
            _ => Err(self.expected(token, "a term")),
        }
    }

    fn node(&mut self, depth: usize) -> Result<Placed<'a>, RuleError> {
        let token = self.next();
        if depth >= MAX_NESTING {
            return Err(self.error(token, format!("terms nested deeper than {MAX_NESTING}")));
        }
        if token.kind != Kind::Word || !OPERATORS.contains(&token.text) {
            if token.kind != Kind::Word {
                return Err(self.expected(token, "an operator"));
            }
            let near = ir::nearest(token.text, OPERATORS.iter().copied())
                .map_or(String::new(), |n| format!("; did you mean `{n}`?"));
            return Err(self.error(token, format!("unknown operator `{}`{near}", ir::shown(token.text))));
        }
        let mut operands = Vec::new();
        while !self.accept(")") {
            if self.peek().kind == Kind::End {
                return Err(self.expected(self.peek(), "an operand or `)`"));
            }
            operands.push(self.term(depth + 1)?);
        }
        let found = operands.len();
        match Op::from_op(token.text, vec![Id::from(0); found]) {
            Ok(op) if found > 0 => Ok(Placed { token, node: Node::Op(op, operands) }),
            _ => {
                let takes = ir::arity(token.text).map_or("1 operand or more".into(), |n| {
                    format!("{n} operand{}", if n == 1 { "" } else { "s" })
                });
                Err(self.error(token, format!("`{}` takes {takes}, found {found}", token.text)))
            }
        }
    }

    fn var_of(&self, token: Token<'a>) -> Result<Var, RuleError> {
        let name = token.text.strip_prefix('?').unwrap_or_default();
        let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && name.starts_with(|c: char| c.is_ascii_alphabetic());
        match token.text.parse() {
            Ok(var) if token.kind == Kind::Word && fits => Ok(var),
            _ => Err(self.expected(token, "a variable, `?name`")),
        }
    }

    fn var(&mut self) -> Result<Var, RuleError> {
        let token = self.next();
        self.var_of(token)
    }

    // ---- predicates ----

    fn predicate(&mut self, further: &mut Vec<Placed<'a>>) -> Result<Predicate, RuleError> {
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

    // ---- amounts ----

    fn number(&mut self) -> Result<f64, RuleError> {
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
                Err(_) => Err(self.expected(token, "a predicate or an amount: a number, `?variable`, a length's name, `length(..)`, `rank(..)` or `sqrt(..)`")),
            },
        }
    }

    // ---- what must hold of the whole ----

    fn check(
        &self,
        left: &[Placed<'a>],
        right: &Placed<'a>,
        further: &[Placed<'a>],
        when: &[(Predicate, Token<'a>)],
    ) -> Result<(), RuleError> {
        let predicates: Vec<Predicate> = when.iter().map(|(p, _)| p.clone()).collect();
        let mut reached = vec![false; when.len()];
        for side in left {
            self.check_spellings(side)?;
        }
        for side in left {
            let mut vars = vec![];
            collect_vars(side, &mut vars);
            let known: Vec<Var> = vars.iter().map(|(v, _)| *v).collect();
            let bound = applicable(&known, &predicates);
            bound.when.iter().for_each(|&at| reached[at] = true);
            let mut wanted = vec![];
            collect_vars(right, &mut wanted);
            if let Some((var, token)) = wanted.iter().find(|(v, _)| !bound.vars.contains(v)) {
                return Err(self.error(
                    *token,
                    format!("`{var}` is bound by no predicate, nor by the left side `{}`", side.term()),
                ));
            }
        }
        if let Some(at) = reached.iter().position(|r| !r) {
            let terms = predicates[at].terms();
            let all: Vec<String> = terms.vars.iter().map(ToString::to_string).chain(terms.names).collect();
            let reason = format!(
                "`{}` applies to no left side: none of them and no predicate before it binds all of {}",
                predicates[at],
                all.join(", ")
            );
            return Err(self.error(when[at].1, reason));
        }
        // Kinds: what a variable is by each of its places.
        let mut of_vars: Vec<(Var, Kinds)> = vec![];
        for term in left.iter().chain(further).chain([right]) {
            self.kinds(term, &mut of_vars)?;
        }
        for (predicate, token) in when {
            let (var, kinds) = match predicate {
                Predicate::Type { var, .. } => (*var, Kinds::TENSOR.or(Kinds::CACHE)),
                Predicate::Constant(var) => (*var, Kinds::NUMBER),
                Predicate::Integer(var) | Predicate::LastAxis { axis: var, .. } => (*var, Kinds::INTEGER),
                Predicate::Dims { var, .. } => (*var, Kinds::DIMS),
                Predicate::Let { var, value } => match value {
                    Binding::Number(_) => (*var, Kinds::NUMBER),
                    Binding::Integer(_) => (*var, Kinds::INTEGER),
                    Binding::Dims(_) => (*var, Kinds::DIMS),
                },
                Predicate::Compare { .. }
                | Predicate::Near { .. }
                | Predicate::Range { .. }
                | Predicate::SameType(..)
                | Predicate::SingleUse(_)
                | Predicate::Weight(_)
                | Predicate::Matches { .. } => continue,
            };
            self.narrow(var, kinds, *token, &mut of_vars)?;
        }
        Ok(())
    }

    fn check_spellings(&self, side: &Placed<'a>) -> Result<(), RuleError> {
        let n = side.term().most_spellings();
        if n <= MOST_SPELLINGS {
            return Ok(());
        }
        let reason = format!("{n} spellings up to commutativity: expected at most {MOST_SPELLINGS}");
        Err(self.error(side.token, reason))
    }

    fn narrow(
        &self,
        var: Var,
        kinds: Kinds,
        token: Token<'a>,
        of_vars: &mut Vec<(Var, Kinds)>,
    ) -> Result<(), RuleError> {
        match of_vars.iter_mut().find(|(v, _)| *v == var) {
            Some((_, known)) => {
                let both = known.and(kinds);
                if both.is_empty() {
                    let reason =
                        format!("`{var}` is {} here, {} elsewhere", kinds.describe(), known.describe());
                    return Err(self.error(token, reason));
                }
                *known = both;
            }
            None => of_vars.push((var, kinds)),
        }
        Ok(())
    }

    fn kinds(&self, term: &Placed<'a>, of_vars: &mut Vec<(Var, Kinds)>) -> Result<(), RuleError> {
        let Node::Op(op, operands) = &term.node else { return Ok(()) };
        let places = op.signature().operands;
        for (index, operand) in operands.iter().enumerate() {
            let place = places.kinds(index).unwrap_or(Kinds::ALL);
            match &operand.node {
                Node::Var(var) => self.narrow(*var, place, operand.token, of_vars)?,
                Node::Op(inner, _) => {
                    let found = inner.signature().result;
                    // A computed tensor may fold to a number, and a number is a tensor.
                    if found.and(place).is_empty() {
                        let reason =
                            format!("`{op}` takes {} here, found {}", place.describe(), found.describe());
                        return Err(self.error(operand.token, reason));
                    }
                    self.kinds(operand, of_vars)?;
                }
            }
        }
        Ok(())
    }
}

fn collect_vars<'a>(term: &Placed<'a>, vars: &mut Vec<(Var, Token<'a>)>) {
    match &term.node {
        Node::Var(var) => {
            if vars.iter().all(|(v, _)| v != var) {
                vars.push((*var, term.token));
            }
        }
        Node::Op(_, operands) => operands.iter().for_each(|o| collect_vars(o, vars)),
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}
