//! Text form: printing and parsing.
//!
//! ```text
//! ; a comment
//! function layer_local(
//!     %x: f32[T,288] rows,
//!     %k_cache: bf16[2,S,64] cache window=128,
//!     %self_attn.q_proj.weight: bf16[256,288] weight,
//! ) {
//!     v0 = (mul %x %x)              ; f32[T,288]
//!     v1 = (rsqrt (add v0 1e-6))
//!     return y=v1
//! }
//! ```
//!
//! A term is an operator over terms in parentheses, a value's or an input's name, or a leaf: a number (`1.0`), an
//! integer (`1`), a dtype, dims (`[T,4]`), `none`, a mode, an epilogue. Printing puts each node on a line of its own, save
//! leaves, weights and caps, which stand inside of the node that uses them. Parsing shares equal nodes and checks no
//! types: that is [`verify`](crate::verify)'s.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};

use egg::{FromOp, Id, Language};

use crate::Error;
use crate::function::{Builder, Function, InputKind, Module};
use crate::op::Op;
use crate::types::{DType, TensorType};

/// How deep terms may be nested in text.
pub const MAX_NESTING: usize = 256;

/// Comments are aligned no further right than this.
const MAX_ALIGNMENT: usize = 72;

/// The operators that take operands, in the order of the language.
pub const OPERATORS: [&str; 47] = [
    "neg",
    "recip",
    "sqrt",
    "rsqrt",
    "exp",
    "tanh",
    "cos",
    "sin",
    "cast",
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "lt",
    "le",
    "and",
    "select",
    "sum",
    "mean",
    "max",
    "argmax",
    "matmul",
    "reshape",
    "transpose",
    "broadcast",
    "slice",
    "concat",
    "gather",
    "iota",
    "append",
    "rms_norm",
    "add_rms_norm",
    "norm_prologue",
    "linear",
    "weights",
    "output",
    "cap",
    "softcap",
    "gelu_tanh",
    "gated_gelu",
    "embedding",
    "rope",
    "scores",
    "window_mask",
    "softmax",
    "attention",
];

/// Whether this may name a function, an input, a value or an output.
pub(crate) fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

// ---- printing ----

/// One node of a function, its operands by name: `(mul v0 %x)`.
pub fn node(function: &Function, id: Id) -> String {
    Printer::new(function).node(id)
}

/// One node of a function as its line in text, without the comment: `v1 = (mul v0 %x)`; a leaf as it stands.
pub fn statement(function: &Function, id: Id) -> String {
    Printer::new(function).statement(id)
}

/// A function's text; `comment` gives what stands behind each node's line.
pub fn print(function: &Function, comment: &dyn Fn(Id) -> Option<String>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = Printer::new(function).function(&mut out, comment);
    out
}

impl fmt::Display for Function {
    /// The function's text, with types as comments where it has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types = self.types().unwrap_or_default();
        Printer::new(self).function(f, &|id| types.get(usize::from(id)).map(|t| t.to_string()))
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, function) in self.functions.iter().enumerate() {
            write!(f, "{}{function}", if i > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

struct Printer<'a> {
    function: &'a Function,
    /// The number of each node that has a line.
    numbers: Vec<Option<usize>>,
}

impl<'a> Printer<'a> {
    fn new(function: &'a Function) -> Printer<'a> {
        let nodes = function.body.as_ref();
        let nests = |op: &Op| matches!(op, Op::Weights(_) | Op::Cap(_));
        let mut count = 0;
        let numbers = nodes
            .iter()
            .map(|op| {
                // Weights of weights are ill-typed, but must not print as a term of exponential size.
                let flat = |c: &Id| nodes.get(usize::from(*c)).is_some_and(|c| !nests(c));
                let inline = op.is_leaf() || nests(op) && op.children().iter().all(flat);
                (!inline).then(|| {
                    count += 1;
                    count - 1
                })
            })
            .collect();
        Printer { function, numbers }
    }

    fn operand(&self, id: Id) -> String {
        match self.numbers.get(usize::from(id)) {
            Some(Some(n)) => format!("v{n}"),
            Some(None) => self.node(id),
            None => format!("<node {id}>"),
        }
    }

    fn node(&self, id: Id) -> String {
        let Some(op) = self.function.body.as_ref().get(usize::from(id)) else {
            return format!("<node {id}>");
        };
        match op {
            Op::Input(input) => match self.function.inputs.get(input.0 as usize) {
                Some(declared) => format!("%{}", declared.name),
                None => input.to_string(),
            },
            _ if op.is_leaf() && !matches!(op, Op::Weights(_)) => op.to_string(),
            _ => {
                let mut text = format!("({op}");
                for &child in op.children() {
                    text.push(' ');
                    text.push_str(&self.operand(child));
                }
                text.push(')');
                text
            }
        }
    }

    fn statement(&self, id: Id) -> String {
        match self.numbers.get(usize::from(id)) {
            Some(Some(n)) => format!("v{n} = {}", self.node(id)),
            _ => self.node(id),
        }
    }

    fn function(&self, f: &mut dyn Write, comment: &dyn Fn(Id) -> Option<String>) -> fmt::Result {
        let Function { name, inputs, outputs, .. } = self.function;
        write!(f, "function {name}(")?;
        for (i, input) in inputs.iter().enumerate() {
            write!(f, "{}    %{}: {} ", if i == 0 { "\n" } else { "" }, input.name, input.ty)?;
            match input.kind {
                InputKind::Rows => f.write_str("rows")?,
                InputKind::Weight => f.write_str("weight")?,
                InputKind::Cache { window: None } => f.write_str("cache")?,
                InputKind::Cache { window: Some(w) } => write!(f, "cache window={w}")?,
            }
            f.write_str(",\n")?;
        }
        f.write_str(") {\n")?;

        let lines: Vec<(String, Option<String>)> = (0..self.numbers.len())
            .filter(|&at| self.numbers[at].is_some())
            .map(|at| (self.statement(Id::from(at)), comment(Id::from(at))))
            .collect();
        let width =
            lines.iter().map(|l| l.0.chars().count()).filter(|&w| w <= MAX_ALIGNMENT).max().unwrap_or(0);
        for (line, comment) in &lines {
            match comment {
                Some(comment) => {
                    // A line break would end the comment.
                    let comment = comment.replace(['\n', '\r'], " ");
                    writeln!(f, "    {line:width$}  ; {comment}")?;
                }
                None => writeln!(f, "    {line}")?,
            }
        }

        f.write_str("    return")?;
        for (i, (name, id)) in outputs.iter().enumerate() {
            write!(f, "{} {name}={}", if i > 0 { "," } else { "" }, self.operand(*id))?;
        }
        f.write_str("\n}\n")
    }
}

// ---- parsing ----

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
fn shown(text: &str) -> String {
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
            let mut bracket = c == '[';
            while !PUNCTUATION.contains(&c)
                && let Some((at, c)) = chars.next_if(|&(_, c)| {
                    !c.is_whitespace() && c != ';' && (!PUNCTUATION.contains(&c) || bracket && c == ',')
                })
            {
                bracket = c == '[' || bracket && c != ']';
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
        if !OPERATORS.contains(&name.text) {
            return Err(unknown_operator(name));
        }
        let mut operands = Vec::new();
        while !self.accept(")") {
            if matches!(self.peek().text, END | "{" | "}" | "," | ":" | "=") {
                return Err(self.peek().expected("an operand or `)`"));
            }
            operands.push(self.term(scope, depth + 1)?);
        }
        let found = operands.len();
        match Op::from_op(name.text, operands) {
            Ok(op) if found > 0 => Ok(scope.builder.add(op)),
            _ => {
                let takes = arity(name.text).map_or("1 operand or more".into(), |n| {
                    format!("{n} operand{}", if n == 1 { "" } else { "s" })
                });
                Err(name.error(format!("`{}` takes {takes}, found {found}", name.text)))
            }
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
                let words = ["none", "online", "bounded", "store", "gate", "inf", "NaN"].into_iter();
                let words = words.chain(DType::ALL.map(DType::name)).chain(self.values.keys().copied());
                let near = nearest(text, words).map(String::from);
                Err(token.error(format!("undefined name `{}`{}", shown(text), suggestion(near))))
            }
        }
    }
}

fn unknown_operator(name: Token<'_>) -> Error {
    if !valid_name(name.text) {
        return name.expected("an operator");
    }
    let near = nearest(name.text, OPERATORS.into_iter()).map(String::from);
    name.error(format!("unknown operator `{}`{}", shown(name.text), suggestion(near)))
}

/// How many operands an operator takes, when that is fixed.
pub fn arity(name: &str) -> Option<usize> {
    let mut fitting = (0..=8).filter(|&n| Op::from_op(name, vec![Id::from(0); n]).is_ok());
    match (fitting.next(), fitting.next()) {
        (Some(n), None) => Some(n),
        _ => None,
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Dim, Dims, Type};
    use crate::verify::verify;
    use crate::{InputId, Num};

    #[track_caller]
    fn fails(source: &str, line: usize, column: usize, reason: &str) {
        match parse_module(source) {
            Err(Error::Parse { line: l, column: c, reason: r }) => {
                assert!((l, c) == (line, column) && r.contains(reason), "{l}:{c}: {r}");
            }
            other => panic!("expected an error, found {other:?}"),
        }
    }

    /// The error of a body of one line, by its column there.
    #[track_caller]
    fn fails_in_body(body: &str, column: usize, reason: &str) {
        fails(&format!("function f(%x: f32[T,4] rows) {{\n{body}\nreturn }}"), 2, column, reason);
    }

    #[test]
    fn operators_are_those_of_the_language() {
        let quoted = |line: &str| {
            let (name, variant) = line.trim().strip_prefix('"')?.split_once("\" = ")?;
            variant.contains('(').then(|| name.to_string())
        };
        let declared: Vec<String> = include_str!("op.rs").lines().filter_map(quoted).collect();
        assert_eq!(declared, OPERATORS);
        assert_eq!((arity("add"), arity("attention"), arity("weights")), (Some(2), Some(8), None));
    }

    #[test]
    fn prints_as_documented() {
        let source = "\
function layer_local(
    %x: f32[T,4] rows,
    %c: bf16[2,S,4] cache window=128,
    %k: f32[2,T,4] rows,
    %self_attn.q_proj.weight: bf16[8,4] weight,
) {
    v0 = (mul %x %x)                                                ; f32[T,4]
    v1 = (add v0 1e-6)                                              ; f32[T,4]
    v2 = (rsqrt v1)                                                 ; f32[T,4]
    v3 = (linear v2 (weights %self_attn.q_proj.weight) (cap 30.0))  ; f32[T,8]
    v4 = (slice v3 0 -1 1)                                          ; f32[1,8]
    v5 = (append %c %k)                                             ; bf16[2,S,4]
    return y=v4, c=v5
}
";
        let module = parse_module(source).unwrap();
        assert_eq!(module.to_string(), source);
        let f = &module.functions[0];
        verify(f).unwrap();
        assert_eq!(node(f, f.outputs[0].1), "(slice v3 0 -1 1)");
        assert_eq!(statement(f, f.outputs[0].1), "v4 = (slice v3 0 -1 1)");
        let commented = print(f, &|id| (id == f.outputs[1].1).then(|| "two\nlines".into()));
        assert!(commented.contains("v5 = (append %c %k)  "), "{commented}");
        assert!(
            commented.contains("; two lines\n") && commented.contains("v0 = (mul %x %x)\n"),
            "{commented}"
        );
        assert_eq!(parse_module(&commented).unwrap().to_string(), source);
        let empty = "function f() {\n    return\n}\n";
        assert_eq!(
            parse_module(&format!("{empty}; rest\n{}", empty.replace(" f", " g"))).unwrap().functions.len(),
            2
        );
        assert_eq!(parse_module(empty).unwrap().to_string(), empty);
    }

    #[test]
    fn equal_nodes_are_shared() {
        let f =
            parse_module("function f(%x: f32[T] rows) { a = (neg %x) return y=(add (neg %x) a) }").unwrap();
        let f = &f.functions[0];
        assert_eq!(f.body.as_ref().len(), 3);
        assert!(parse_module("").unwrap().functions.is_empty());
    }

    #[test]
    fn errors_say_where_and_what() {
        fails("fonction", 1, 1, "expected `function`, found `fonction`");
        fails("function f", 1, 11, "expected `(`, found the end of the text");
        fails("function f() { return }\nfunction f() { return }", 2, 10, "duplicate function `f`");
        fails("function f(x: f32[T] rows) { return }", 1, 12, "expected an input");
        fails("function f(%x: f33[T] rows) { return }", 1, 16, "expected a type");
        fails("function f(%x: f32[T] row) { return }", 1, 23, "expected `rows`, `weight` or `cache`");
        fails("function f(%x: f32[T] rows %y", 1, 28, "expected `,` or `)`");
        fails("function f(%x: f32[2,S,4] cache window=-1) {", 1, 40, "number of keys");
        fails("function f(%x: f32[T] rows, %x: f32[T] rows) { return }", 1, 29, "duplicate input `%x`");
        fails("function f(%x: f32[T] rows) { return y=%x, y=%x }", 1, 44, "duplicate output `y`");
        fails("function f(%x: f32[T] rows) { return y=%x", 1, 42, "expected `,` or `}`");
        fails("function f() { é = 1 return }", 1, 16, "expected a value's name or `return`, found `é`");
        fails_in_body("a = (negg %x)", 6, "unknown operator `negg`; did you mean `neg`?");
        fails_in_body("a = (é %x)", 6, "expected an operator, found `é`");
        fails_in_body("a = (add %x)", 6, "`add` takes 2 operands, found 1");
        fails_in_body("a = (neg %x %x)", 6, "`neg` takes 1 operand, found 2");
        fails_in_body("a = (weights)", 6, "`weights` takes 1 operand or more, found 0");
        fails_in_body("a = (neg }", 10, "expected an operand or `)`, found `}`");
        fails_in_body("a = neg", 5, "`neg` is an operator");
        fails_in_body("a = (add %x b)", 13, "undefined name `b`");
        fails_in_body("value = 1 b = (neg valu)", 20, "did you mean `value`?");
        fails_in_body("a = (neg %y)", 10, "undefined input `%y`; did you mean `%x`?");
        fails_in_body("a = 1 a = 2", 7, "duplicate value `a`");
        fails_in_body("f32 = 1", 1, "a word of the language");
        fails_in_body("a = (reshape %x [T,)", 17, "expected dims");
        fails_in_body("a = 99999999999999999999", 5, "expected a number");
        fails_in_body("a = +5", 5, "expected a number");
        let deep =
            |n: usize| format!("function f() {{ a = {}1.0{} return }}", "(neg ".repeat(n), ")".repeat(n));
        parse_module(&deep(MAX_NESTING)).unwrap();
        fails(&deep(MAX_NESTING + 1), 1, 20 + 5 * MAX_NESTING, "nested deeper");
        fails(&deep(1_000_000), 1, 20 + 5 * MAX_NESTING, "nested deeper");
    }

    #[test]
    fn broken_functions_print() {
        let mut f = Function { name: "f".into(), ..Function::default() };
        let mut id = f.body.add(Op::Input(InputId(3)));
        for _ in 0..100 {
            id = f.body.add(Op::Weights(vec![id, id].into()));
        }
        f.outputs.push(("y".into(), Id::from(500)));
        assert!(f.to_string().len() < 10_000);
        assert_eq!(node(&f, Id::from(700)), "<node 700>");
        f.body = vec![Op::Neg(Id::from(1)), Op::Num(Num::new(1.0))].into();
        assert!(f.to_string().contains("v0 = (neg 1.0)"));
    }

    /// A well-typed function made of choices: each picks an operator and operands among the tensors so far.
    fn function(choices: &[(u8, usize, usize, usize)]) -> Function {
        let mut b = Builder::new("random");
        let mut tensors = vec![
            b.input("x", InputKind::Rows, DType::F32, &[Dim::Rows, Dim::Fixed(4)]),
            b.input("w.0", InputKind::Weight, DType::BF16, &[Dim::Fixed(6), Dim::Fixed(4)]),
            b.input("ids", InputKind::Rows, DType::I32, &[Dim::Rows]),
            b.input("v_1", InputKind::Weight, DType::F32, &[Dim::Fixed(4)]),
        ];
        for &(kind, i, j, n) in choices {
            let (x, y) = (tensors[i % tensors.len()], tensors[j % tensors.len()]);
            let Type::Tensor(t) = b.function().types().unwrap()[usize::from(x)].clone() else { continue };
            let rank = t.rank();
            let axis = b.int((n % rank.max(1)) as i64);
            let number = b.num(n as f32 / 7.0 - 3.0);
            let op = match kind % 15 {
                0 => Op::Neg(x),
                1 => Op::Tanh(x),
                2 => Op::Add([x, y]),
                3 => Op::Mul([x, number]),
                4 => Op::Sum([x, axis]),
                5 => Op::Argmax([x, axis]),
                6 => {
                    let mut axes: Vec<usize> = (0..rank).collect();
                    axes.rotate_left(n % rank.max(1));
                    Op::Transpose([x, b.add(Op::Dims(Dims::fixed(&axes)))])
                }
                7 => Op::Matmul([x, y]),
                8 => {
                    let mut shape = t.shape.0;
                    shape.insert(n % (rank + 1), Dim::Fixed(1));
                    Op::Reshape([x, b.dims(&shape)])
                }
                9 => {
                    let stretch = |d: Dim| if d == Dim::Fixed(1) { Dim::Fixed(n % 5 + 1) } else { d };
                    let shape: Vec<Dim> = t.shape.iter().map(|&d| stretch(d)).collect();
                    Op::Broadcast([x, b.dims(&shape)])
                }
                10 => Op::Slice([x, axis, b.int(-1), b.int(1)]),
                11 => Op::Concat([x, y, axis]),
                12 => Op::Cast([x, b.dtype(DType::ALL[n % DType::ALL.len()])]),
                13 => {
                    let (weights, cap) =
                        (b.add(Op::Weights(vec![tensors[1]].into())), b.add(Op::Cap(number)));
                    Op::Linear([x, weights, cap])
                }
                _ if matches!(t.dtype, DType::F32 | DType::I32) => Op::Select([b.add(Op::Le([x, x])), x, y]),
                _ => continue,
            };
            // Kept only where it is well-typed.
            let mut with = b.function().clone();
            with.body.add(op.clone());
            if with.types().is_ok() {
                tensors.push(b.add(op));
            }
        }
        for (i, &t) in tensors.iter().enumerate().skip(4).step_by(3) {
            b.output(&format!("y{i}"), t);
        }
        b.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn printed_functions_parse_to_themselves(choices in prop::collection::vec(any::<(u8, usize, usize, usize)>(), 0..40)) {
            let f = function(&choices);
            let printed = f.to_string();
            let parsed = parse_module(&printed).unwrap();
            prop_assert_eq!(parsed.to_string(), printed);
            let parsed = &parsed.functions[0];
            prop_assert_eq!(&parsed.inputs, &f.inputs);
            verify(parsed).unwrap();
        }

        #[test]
        fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_module(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn tokens_never_panic(words in prop::collection::vec(prop::sample::select(vec![
            "function", "f", "(", ")", "{", "}", ",", ":", "=", "%x", "f32[T,4]", "rows", "cache", "window", "weight", "add",
            "neg", "v0", "1", "1.0", "[T", "]", "[2,S]", "none", "return", ";", "\n", "é", "weights", "cap", "linear", "gate",
        ]), 0..60)) {
            for start in ["", "function f(%x: f32[T] rows) { v0 = (neg %x) ", "function f(%x: f32[T] rows) { return y=(add "] {
                if let Ok(module) = parse_module(&format!("{start}{}", words.join(" "))) {
                    let printed = module.to_string();
                    prop_assert_eq!(parse_module(&printed).unwrap().to_string(), printed);
                    let _ = crate::verify::verify_module(&module);
                }
            }
        }

        #[test]
        fn broken_text_never_panics(choices in prop::collection::vec(any::<(u8, usize, usize, usize)>(), 0..12),
                                    at in any::<prop::sample::Index>(), c in any::<char>()) {
            let mut chars: Vec<char> = function(&choices).to_string().chars().collect();
            let at = at.index(chars.len());
            chars[at] = c;
            if let Ok(module) = parse_module(&chars.into_iter().collect::<String>()) {
                let _ = crate::verify::verify_module(&module);
            }
        }

        #[test]
        fn numbers_print_as_themselves(bits in any::<u32>(), n in any::<i64>()) {
            let mut b = Builder::new("f");
            let (x, i) = (b.num(f32::from_bits(bits)), b.int(n));
            b.output("x", x);
            b.output("i", i);
            let f = b.finish();
            let parsed = parse_module(&f.to_string()).unwrap();
            prop_assert_eq!(parsed.functions[0].body.as_ref(), f.body.as_ref());
        }
    }
}
