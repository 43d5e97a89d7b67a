//! Parsing.

use std::collections::{HashMap, HashSet};

use egg::{FromOp, Id};

use super::derived::{DERIVED, derived, over_axes};
use super::{MAX_NESTING, valid_name};
use crate::Error;
use crate::function::{Builder, Function, InputKind, Module};
use crate::op::{OPERATORS, Op, WORDS};
use crate::types::{DType, TensorType};

/// Parses a module's text.
///
/// # Errors
/// [`Error::Parse`] at the first place that does not fit.
pub fn parse_module(source: &str) -> Result<Module, Error> {
    let mut parser = Parser { tokens: tokens(source), at: 0 };
    let mut module = Module::default();
    let mut names = HashSet::new();
    while parser.peek().text != END {
        let keyword = parser.next();
        if keyword.text != "function" {
            return Err(keyword.expected("`function`"));
        }
        let name = parser.name("a function's name")?;
        if !names.insert(name.text) {
            return Err(name.error(format!("duplicate function `{}`", name.text)));
        }
        module.functions.push(parser.function(name.text)?);
    }
    Ok(module)
}

/// The text of the token behind the last.
const END: &str = "";

const PUNCTUATION: [char; 7] = ['(', ')', '{', '}', ',', ':', '='];

/// A punctuation mark or a word.
#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    line: usize,
    column: usize,
}

impl Token<'_> {
    fn error(self, reason: String) -> Error {
        Error::Parse { line: self.line, column: self.column, reason }
    }

    fn expected(self, what: &str) -> Error {
        self.error(format!("expected {what}, found {}", self.quoted()))
    }

    /// The token as messages show it.
    fn quoted(self) -> String {
        if self.text == END { "the end of the text".into() } else { format!("`{}`", shown(self.text)) }
    }
}

/// Text as messages show it: no control characters, not without end.
pub fn shown(text: &str) -> String {
    let mut chars = text.chars().flat_map(char::escape_debug);
    let mut start: String = chars.by_ref().take(60).collect();
    if chars.next().is_some() {
        start.push_str("..");
    }
    start
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut chars = source.char_indices().peekable();
    let (mut line, mut column) = (1, 1);
    while let Some((start, c)) = chars.next() {
        let here = (line, column);
        column += 1;
        if c == '\n' {
            (line, column) = (line + 1, 1);
        } else if c == ';' {
            while chars.next_if(|&(_, c)| c != '\n').is_some() {
                column += 1;
            }
        } else if !c.is_whitespace() {
            let mut end = start + c.len_utf8();
            // Inside of brackets commas are part of the word.
            let mut brackets = i32::from(c == '[');
            while !PUNCTUATION.contains(&c)
                && let Some((at, c)) = chars.next_if(|&(_, c)| {
                    !c.is_whitespace() && c != ';' && (!PUNCTUATION.contains(&c) || brackets > 0 && c == ',')
                })
            {
                brackets += i32::from(c == '[') - i32::from(c == ']');
                end = at + c.len_utf8();
                column += 1;
            }
            tokens.push(Token { text: &source[start..end], line: here.0, column: here.1 });
        }
    }
    tokens.push(Token { text: END, line, column });
    tokens
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

/// A function's names while it is parsed.
struct Scope<'a> {
    builder: Builder,
    inputs: HashMap<&'a str, Id>,
    values: HashMap<&'a str, Id>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        // The last token is the end, and `next` never passes it.
        self.tokens[self.at]
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        if token.text != END {
            self.at += 1;
        }
        token
    }

    fn accept(&mut self, text: &str) -> bool {
        let found = self.peek().text == text;
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, text: &str) -> Result<(), Error> {
        if self.accept(text) { Ok(()) } else { Err(self.peek().expected(&format!("`{text}`"))) }
    }

    fn name(&mut self, what: &str) -> Result<Token<'a>, Error> {
        let token = self.next();
        if valid_name(token.text) { Ok(token) } else { Err(token.expected(what)) }
    }

    fn function(&mut self, name: &str) -> Result<Function, Error> {
        let mut scope = Scope { builder: Builder::new(name), inputs: HashMap::new(), values: HashMap::new() };
        self.expect("(")?;
        while !self.accept(")") {
            self.input(&mut scope)?;
            if !self.accept(",") {
                self.expect(")").map_err(|_| self.peek().expected("`,` or `)`"))?;
                break;
            }
        }
        self.expect("{")?;
        while !self.accept("return") {
            let name = self.name("a value's name or `return`")?;
            if Op::from_op(name.text, vec![]).is_ok() || OPERATORS.contains(&name.text) {
                return Err(name
                    .error(format!("`{}` names no value: it is a word of the language", shown(name.text))));
            }
            self.expect("=")?;
            let id = self.term(&mut scope, 0)?;
            if scope.values.insert(name.text, id).is_some() {
                return Err(name.error(format!("duplicate value `{}`", shown(name.text))));
            }
        }
        let mut outputs = HashSet::new();
        while !self.accept("}") {
            let name =
                self.name(if outputs.is_empty() { "an output's name or `}`" } else { "an output's name" })?;
            if !outputs.insert(name.text) {
                return Err(name.error(format!("duplicate output `{}`", shown(name.text))));
            }
            self.expect("=")?;
            let id = self.term(&mut scope, 0)?;
            scope.builder.output(name.text, id);
            if !self.accept(",") {
                self.expect("}").map_err(|_| self.peek().expected("`,` or `}`"))?;
                break;
            }
        }
        Ok(scope.builder.finish())
    }

    fn input(&mut self, scope: &mut Scope<'a>) -> Result<(), Error> {
        let token = self.next();
        let name = token.text.strip_prefix('%').filter(|n| valid_name(n));
        let name = name.ok_or_else(|| token.expected("an input, `%name`, or `)`"))?;
        if scope.inputs.contains_key(name) {
            return Err(token.error(format!("duplicate input `%{}`", shown(name))));
        }
        self.expect(":")?;
        let ty = self.next();
        let ty: TensorType = ty.text.parse().map_err(|()| ty.expected("a type, such as `f32[T,64]`"))?;
        let kind = self.next();
        let kind = match kind.text {
            "rows" => InputKind::Rows,
            "weight" => InputKind::Weight,
            "cache" if self.accept("window") => {
                self.expect("=")?;
                let window = self.next();
                let keys =
                    window.text.parse().ok().filter(|_| window.text.bytes().all(|b| b.is_ascii_digit()));
                InputKind::Cache { window: Some(keys.ok_or_else(|| window.expected("a number of keys"))?) }
            }
            "cache" => InputKind::Cache { window: None },
            _ => return Err(kind.expected("`rows`, `weight` or `cache`")),
        };
        let id = scope.builder.input(name, kind, ty.dtype, &ty.shape);
        scope.inputs.insert(name, id);
        Ok(())
    }

    fn term(&mut self, scope: &mut Scope<'a>, depth: usize) -> Result<Id, Error> {
        let token = self.next();
        if token.text != "(" {
            return scope.leaf(token);
        }
        if depth >= MAX_NESTING {
            return Err(token.error(format!("terms nested deeper than {MAX_NESTING}")));
        }
        let name = self.next();
        if derived(name.text).is_none() && !OPERATORS.contains(&name.text) {
            return Err(unknown_operator(name));
        }
        let mut operands = Vec::new();
        while !self.accept(")") {
            if matches!(self.peek().text, END | "{" | "}" | "," | ":" | "=") {
                return Err(self.peek().expected("an operand or `)`"));
            }
            operands.push(self.term(scope, depth + 1)?);
        }
        apply(&mut scope.builder, name.text, &operands).map_err(|reason| name.error(reason))
    }
}

/// Adds an operator of this name, or what a derived one is spelled as, over operands that are there.
///
/// # Errors
/// How many operands it takes, or that there is no such operator, in words.
pub fn apply(builder: &mut Builder, name: &str, operands: &[Id]) -> Result<Id, String> {
    let found = operands.len();
    let takes = |n: usize| format!("{n} operand{}", if n == 1 { "" } else { "s" });
    if let Some((n, spell)) = derived(name) {
        if n == found {
            return Ok(spell(builder, operands));
        }
        return Err(format!("`{name}` takes {}, found {found}", takes(n)));
    }
    if let Some(reduced) = over_axes(builder, name, operands) {
        return Ok(reduced);
    }
    match Op::from_op(name, operands.to_vec()) {
        Ok(op) if found > 0 => Ok(builder.add(op)),
        _ if !OPERATORS.contains(&name) => Err(unknown(name)),
        _ => {
            let takes = arity(name).map_or("1 operand or more".into(), takes);
            Err(format!("`{name}` takes {takes}, found {found}"))
        }
    }
}

impl Scope<'_> {
    fn leaf(&mut self, token: Token<'_>) -> Result<Id, Error> {
        let text = token.text;
        if text == END || text.starts_with(PUNCTUATION) {
            return Err(token.expected("a term"));
        }
        if let Some(name) = text.strip_prefix('%') {
            return self.inputs.get(name).copied().ok_or_else(|| {
                let near = nearest(name, self.inputs.keys().copied()).map(|n| format!("%{n}"));
                token.error(format!("undefined input `{}`{}", shown(text), suggestion(near)))
            });
        }
        if let Some(&id) = self.values.get(text) {
            return Ok(id);
        }
        if OPERATORS.contains(&text) {
            return Err(token.error(format!("`{text}` is an operator: expected `({text} ..)`")));
        }
        match Op::from_op(text, vec![]) {
            Ok(leaf) if !text.starts_with('+') => Ok(self.builder.add(leaf)),
            _ if text.starts_with('[') => Err(token.expected("dims, such as `[T,4,64]`")),
            _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+') => {
                Err(token.expected("a number, such as `1.0`, or an integer of 64 bits"))
            }
            _ => {
                let near = nearest(text, words().chain(self.values.keys().copied())).map(String::from);
                Err(token.error(format!("undefined name `{}`{}", shown(text), suggestion(near))))
            }
        }
    }
}

fn unknown_operator(name: Token<'_>) -> Error {
    if !valid_name(name.text) {
        return name.expected("an operator");
    }
    name.error(unknown(name.text))
}

fn unknown(name: &str) -> String {
    let known = OPERATORS.iter().copied().chain(DERIVED.iter().map(|d| d.0));
    let near = nearest(name, known).map(String::from);
    format!("unknown operator `{}`{}", shown(name), suggestion(near))
}

/// How many operands an operator takes, when that is fixed.
pub fn arity(name: &str) -> Option<usize> {
    let counts = (1..=8).find(|&n| Op::from_op(name, vec![Id::from(0); n]).is_ok());
    let op = Op::from_op(name, vec![Id::from(0); counts?]).ok()?;
    op.signature().operands.count()
}

/// Every word that is a leaf of the language, for suggestions.
pub fn words<'a>() -> impl Iterator<Item = &'a str> {
    WORDS.iter().copied().chain(["inf", "NaN"]).chain(DType::ALL.map(DType::name))
}

fn suggestion(near: Option<String>) -> String {
    near.map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

/// The candidate that takes the fewest edits to reach, if they are few; the first in order of the alphabet of equals.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 64;
    let few = (word.len() / 3).max(1);
    candidates
        .filter(|c| !c.is_empty() && word.len() <= LONGEST && c.len() <= LONGEST)
        .map(|c| (edits(word.as_bytes(), c.as_bytes()), c))
        .filter(|(n, _)| *n <= few)
        .min()
        .map(|(_, c)| c)
}

/// Insertions, deletions and replacements from one word to another.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
