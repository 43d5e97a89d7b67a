//! The arguments: the artifact, and what is continued.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Parser;
use lapidary_runtime::{file, one_line};

use crate::artifact::ArtifactArgs;
use crate::generation::{GenerationArgs, parse_ids};
use crate::sampling::SamplingArgs;
use crate::speculation::SpeculationArgs;
use crate::state::StateArgs;

/// Continue a text, or hold a conversation, by a compiled model: an artifact that `lapidary compile` wrote.
#[derive(Parser)]
#[command(
    name = "lapidary-run",
    version,
    override_usage = "lapidary-run [OPTIONS] FILE PROMPT\n       lapidary-run chat [OPTIONS] FILE",
    after_help = "Examples:\n  lapidary-run gemma-2-2b-it.lap --temp 0 \"Why is the sky blue?\"\n  \
    lapidary-run chat gemma-2-2b-it.lap --system \"Be brief.\"\n\n\
    In a conversation a line is a message; /help lists the commands."
)]
pub(crate) struct Args {
    /// Artifact and the text to continue; `-`, or nothing where stdin is no terminal, reads the text from stdin
    #[arg(value_name = "FILE PROMPT")]
    pub(crate) words: Vec<OsString>,
    /// Artifact
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
    /// The text to continue
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// File with the text to continue
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) file: Option<PathBuf>,
    /// Token ids to continue, separated by commas, instead of a text; nothing is put before them
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file", "chat", "raw", "system"])]
    pub(crate) ids: Option<String>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) speculation: SpeculationArgs,
    #[command(flatten)]
    pub(crate) artifact: ArtifactArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Give the prompt to the model as it is, without the chat template of an instruction-tuned one
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    pub(crate) raw: bool,
    /// Put the prompt into the chat template, of a model that is not instruction-tuned too; without a prompt: hold a
    /// conversation
    #[arg(long)]
    pub(crate) chat: bool,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    pub(crate) json: bool,
    /// Print times, and memory before use, on stderr at the end
    #[arg(long)]
    pub(crate) stats: bool,
}

/// A mistake in the arguments that the parser of arguments cannot see.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What is continued.
pub(crate) enum Source {
    Text(String),
    Ids(Vec<u32>),
    /// Lines, each a message.
    Lines,
}

impl Args {
    /// The artifact, and what is continued.
    pub(crate) fn source(&self) -> Result<(PathBuf, Source)> {
        let usage = |text: &str| anyhow::Error::from(Usage(text.into()));
        let (path, words) = match (&self.model, &self.words[..]) {
            (Some(path), words) => (path.clone(), words),
            (None, [path, words @ ..]) => (PathBuf::from(path), words),
            (None, []) => return Err(usage("expected FILE, an artifact of `lapidary compile`, and PROMPT")),
        };
        let source = match (&self.ids, &self.prompt, &self.file, words) {
            (_, _, _, [_, _, ..]) => return Err(usage("expected one PROMPT: put quotes around it")),
            (Some(_), _, _, [_]) | (None, Some(_), _, [_]) | (None, None, Some(_), [_]) => {
                return Err(usage("expected one prompt, found PROMPT and another by an option"));
            }
            (Some(list), ..) => {
                Source::Ids(parse_ids(list, "--ids").map_err(|e| usage(&one_line(e.as_ref())))?)
            }
            (None, Some(text), ..) => Source::Text(text.clone()),
            (None, None, Some(file), _) if file.as_os_str() != "-" => Source::Text(read(file)?),
            (None, None, Some(_), _) => Source::Text(stdin()?),
            (None, None, None, [word]) if word == "-" => Source::Text(stdin()?),
            (None, None, None, [word]) => {
                Source::Text(word.to_str().ok_or_else(|| usage("PROMPT: expected UTF-8 text"))?.to_string())
            }
            (None, None, None, []) if self.chat => Source::Lines,
            (None, None, None, []) if self.state.load.is_some() => Source::Ids(vec![]),
            (None, None, None, []) if io::stdin().is_terminal() => {
                return Err(usage(NO_PROMPT));
            }
            (None, None, None, []) => Source::Text(stdin().map_err(|e| usage(&one_line(e.as_ref())))?),
        };
        Ok((path, source))
    }
}

/// What is missing where there is no prompt.
const NO_PROMPT: &str = "expected a PROMPT: lapidary-run FILE \"text\", -f FILE, or text on stdin; \
    `lapidary-run chat FILE` holds a conversation";

fn read(path: &Path) -> Result<String> {
    Ok(file::text(path, file::read(path)?)?)
}

fn stdin() -> Result<String> {
    let name = Path::new("stdin");
    let text = file::text(name, file::limited(name, io::stdin().lock())?)?;
    ensure!(!text.trim().is_empty(), "stdin is empty: {NO_PROMPT}");
    Ok(text)
}
