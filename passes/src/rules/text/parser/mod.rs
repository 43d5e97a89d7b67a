//! The grammar of the rule language, by recursive descent: rules and terms here, conditions in `condition`, what must
//! hold of the whole in `check`.
//!
//! A pattern is read into a [`Placed`] term, which knows where it stands, checked, and kept as a [`Term`].

mod check;
mod condition;

use std::collections::HashSet;

use egg::{FromOp, Id, Var};
use lapidary_ir::{OPERATORS, Op, text as ir};

use super::RuleError;
use super::lexer::{self, Kind, Token};
use crate::rules::native::NATIVE;
use crate::rules::{Class, Rule, Search, Term};

/// How deep terms and amounts may be nested.
const MAX_NESTING: usize = 64;

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
                        let what = "a term: `(OPERATOR ..)`, `?variable`, a number such as `1.0`, dims or a \
                                    word of the language";
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
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}
