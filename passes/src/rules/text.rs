//! The rule language: parsing and printing.
//!
//! ```text
//! ; a comment
//! rule mean-of-sum reassociating "sum(x) / n = mean(x), n the axis' length" {
//!     (div (sum ?x ?axis) ?n)
//!     => (mean ?x ?axis)
//!     if constant(?n), ?n == length(?x, ?axis)
//! }
//! ```
//!
//! In: text. Out: rules that hold: operators have their operands, every variable of the condition and of the right side
//! is bound, and no term stands where its kind cannot. Errors say where, and show the line. `Rule`'s `Display` prints
//! what parses back to an equal rule.

mod lexer;
mod parser;

use std::fmt;

use super::{Rule, Search, Term};

/// What is wrong with a rule's text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct RuleError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was expected and found.
    pub reason: String,
    /// The line's text.
    pub source_line: String,
}

impl RuleError {
    /// The line, of a long one what is around the place, and a caret under it.
    pub fn excerpt(&self) -> String {
        /// Characters before and after the place.
        const AROUND: usize = 60;
        let at = self.column.saturating_sub(1);
        let from = at.saturating_sub(AROUND);
        let around = self.source_line.chars().skip(from).take(at - from + AROUND);
        let shown: String = around.map(|c| if c.is_control() { ' ' } else { c }).collect();
        format!("{shown}\n{}^", " ".repeat(at - from))
    }
}

/// Parses a file of rules.
///
/// # Errors
/// The first place that does not fit.
pub fn parse(source: &str) -> Result<Vec<Rule>, RuleError> {
    Ok(parser::parse(source)?.into_iter().map(|(rule, _)| rule).collect())
}

/// Parses a file of rules and says in which line, from 1, each begins.
///
/// # Errors
/// The first place that does not fit.
pub fn parse_placed(source: &str) -> Result<Vec<(Rule, usize)>, RuleError> {
    parser::parse(source)
}

/// Parses one term.
///
/// # Errors
/// The first place that does not fit.
pub fn parse_term(source: &str) -> Result<Term, RuleError> {
    parser::parse_term(source)
}

impl fmt::Display for Rule {
    /// The rule's text, as a file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algebra = self.algebra.replace('\\', "\\\\").replace('"', "\\\"");
        writeln!(f, "rule {} {} \"{algebra}\" {{", self.name, self.class)?;
        match &self.search {
            Search::Patterns { lhs, rhs, when } => {
                for left in lhs {
                    writeln!(f, "    {left}")?;
                }
                writeln!(f, "    => {rhs}")?;
                for (at, predicate) in when.iter().enumerate() {
                    let comma = if at + 1 < when.len() { "," } else { "" };
                    writeln!(f, "    {} {predicate}{comma}", if at == 0 { "if" } else { "  " })?;
                }
            }
            Search::Native(native) => writeln!(f, "    native {}", native.name)?,
        }
        f.write_str("}\n")
    }
}
