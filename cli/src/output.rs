//! What people and programs read: stdout, notes on stderr, progress bars.
//!
//! Invariants: an error or warning is one line; a bar is drawn only on a terminal; nothing here panics when a pipe
//! closes; no control character of a file reaches a terminal.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lapidary_runtime::terminal;
use serde_json::Value;

/// Writes `text` to stdout and flushes it. What in it could steer a terminal is written out, for it may be a file's.
pub(crate) fn print(text: &str) -> Result<()> {
    write(&terminal::escape(text))
}

/// Writes a model's words: the same on a terminal, for a model is a file too; as they are to whatever else reads them.
pub(crate) fn print_words(text: &str) -> Result<()> {
    if io::stdout().is_terminal() { print(text) } else { write(text) }
}

/// Writes a JSON value to stdout, indented, with a line end. JSON itself escapes the control characters of ASCII; those
/// beyond move a terminal too.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    write(&terminal::json(&format!("{value:#}\n")))
}

fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")
}

/// Writes `label: text` to stderr, on one line; a closed stderr is nobody's business.
pub(crate) fn note(label: &str, text: &str) {
    let _ = writeln!(io::stderr().lock(), "{label}: {}", terminal::line(text));
}

/// Writes lines to stderr.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", terminal::escape(text));
}

/// Writes to stderr what somebody is to answer on the same line.
pub(crate) fn ask(text: &str) {
    let mut err = io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Writes a note of interest to a person only: where stderr is a terminal.
pub(crate) fn remark(text: &str) {
    if io::stderr().is_terminal() {
        note("note", text);
    }
}

/// An error and its causes on one line.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    lapidary_runtime::one_line(error.as_ref())
}

/// A mistake in the arguments that the parser of arguments cannot see.
#[derive(Debug)]
pub(crate) struct Usage(String);

impl Usage {
    /// The same error, as a mistake in the arguments.
    pub(crate) fn new(error: impl Into<anyhow::Error>) -> Usage {
        Usage(one_line(&error.into()))
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Whether an error is that stdout's reader went away.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// A bar on stderr, hidden where stderr is no terminal. It is first drawn when it moves.
pub(crate) fn bar(total: u64, what: &str, unit: Unit) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        .with_message(what.to_string());
    let template = match unit {
        Unit::Tokens => "{msg} [{wide_bar}] {pos}/{len} tokens, {per_sec}, {eta} left",
        Unit::Bytes => "{msg} [{wide_bar}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
        Unit::Steps => "{msg} [{wide_bar}] {pos}/{len}, {eta} left",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// What a bar counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Tokens of a text.
    Tokens,
    /// Bytes of a file.
    Bytes,
    /// Measurements.
    Steps,
}

/// Bytes for people: `1.5 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

/// A count with its thousands apart: `2,024,517,888`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(2_024_517_888), "2,024,517,888");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
    }

    #[test]
    fn errors_are_one_line() {
        let error = anyhow::anyhow!("no such\n  file").context("cannot read x");
        assert_eq!(one_line(&error), "cannot read x: no such file");
    }
}
