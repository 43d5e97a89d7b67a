//! Printing.

use std::fmt::{self, Write};

use egg::{Id, Language};

use crate::function::{Function, InputKind, Module};
use crate::op::Op;

/// Comments are aligned no further right than this.
const MAX_ALIGNMENT: usize = 72;

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
        let nests = |op: &Op| matches!(op, Op::Weights(_) | Op::Cap(_) | Op::Then(_));
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
        if let Op::Input(input) = op {
            return match self.function.inputs.get(input.0 as usize) {
                Some(declared) => format!("%{}", declared.name),
                None => input.to_string(),
            };
        }
        if op.is_leaf() && !matches!(op, Op::Weights(_) | Op::Then(_) | Op::Map(_)) {
            return op.to_string();
        }
        let mut text = format!("({op}");
        for &child in op.children() {
            text.push(' ');
            text.push_str(&self.operand(child));
        }
        text.push(')');
        text
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
