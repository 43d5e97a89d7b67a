//! Lines to `lapidary chat`: from a person at a terminal, with editing and history, or from a file or pipe.
//!
//! Invariants: each line comes once, in order, however many are sent at once and whenever (while an answer is made,
//! too); a line that is not UTF-8, or is endless, is refused alone.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use crate::dialog::Line;
use crate::history;
use crate::keyboard::Keyboard;
use crate::output;

/// Where lines come from.
pub(crate) enum Lines {
    /// A person.
    Terminal { editor: Box<DefaultEditor>, keyboard: Keyboard, history: Option<PathBuf> },
    /// A file, a pipe, or a terminal that cannot be drawn on. `prompts`: somebody sits there.
    Plain { prompts: bool },
}

impl Lines {
    /// Lines of stdin; with `keep` those of a terminal are kept for the next time.
    pub(crate) fn new(keep: bool) -> Result<Lines> {
        let person = io::stdin().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|t| t.is_empty() || t == "dumb" || t == "cons25");
        if !person || dumb || !io::stdout().is_terminal() {
            return Ok(Lines::Plain { prompts: person });
        }
        let config = Config::builder()
            .max_history_size(history::LINES)
            .context("cannot read from the terminal")?
            .history_ignore_space(true)
            .build();
        let mut editor =
            Box::new(DefaultEditor::with_config(config).context("cannot read from the terminal")?);
        let keyboard = Keyboard::new().context("cannot read from the terminal")?;
        let history = history::path().filter(|_| keep).and_then(|path| {
            let ready = history::prepare(&path).map_err(anyhow::Error::from);
            match ready.and_then(|()| Ok(editor.load_history(&path)?)) {
                Ok(()) => Some(path),
                Err(error) => {
                    let why = output::one_line(&error);
                    output::note("note", &format!("lines are not kept: {}: {why}", path.display()));
                    None
                }
            }
        });
        Ok(Lines::Terminal { editor, keyboard, history })
    }

    /// The next line; nothing at the end.
    pub(crate) fn next(&mut self, prompt: &str) -> Result<Option<Line>> {
        match self {
            Lines::Terminal { editor, keyboard, history } => {
                let read =
                    keyboard.line(|| editor.readline(prompt)).context("cannot read from the terminal")?;
                match read {
                    Ok(line) if keyboard.was_not_utf8(&line) => Ok(Some(Line::NOT_UTF8)),
                    Ok(line) => {
                        let added = !line.trim().is_empty()
                            && editor.add_history_entry(line.as_str()).unwrap_or(false);
                        if let Some(path) = history.as_ref().filter(|_| added)
                            && let Err(error) = editor.append_history(path)
                        {
                            output::note("note", &format!("lines are not kept: {}: {error}", path.display()));
                            *history = None;
                        }
                        Ok(Some(Line::Text(line)))
                    }
                    Err(ReadlineError::Interrupted) => Ok(Some(Line::Abandoned)),
                    Err(ReadlineError::Eof) => Ok(None),
                    // Only where there is no thread for the keyboard.
                    Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                        Ok(Some(Line::NOT_UTF8))
                    }
                    Err(error) => Err(error).context("cannot read from the terminal"),
                }
            }
            Lines::Plain { prompts } => {
                if *prompts {
                    let to_stdout = io::stdout().is_terminal();
                    if to_stdout { output::print(prompt)? } else { output::ask(prompt) }
                }
                Line::read(&mut io::stdin().lock()).context("cannot read from stdin")
            }
        }
    }
}
