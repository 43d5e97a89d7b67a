//! What is written: words to stdout, notes to stderr.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use lapidary_runtime::terminal;

/// Writes a model's words to stdout at once; what could steer a terminal is written out on one.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() { terminal::escape(text) } else { text.into() };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")
}

/// Writes `label: text` to stderr; a closed stderr is nobody's business.
pub(crate) fn note(label: &str, text: &str) {
    say(&format!("{label}: {}", terminal::line(text)));
}

/// Writes a line to stderr.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
