//! `lapidary tokenize`: text or messages to ids and pieces, ids to text.
//!
//! In: a tokenizer (a folder, of which only the tokenizer's files are read, an artifact, or a `tokenizer.json`) and a
//! text, messages or ids. Out: a line a token, or one JSON object. Exit code 1 is a failure, 2 a mistake in the
//! arguments.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use lapidary_models::gguf::{self, Gguf};
use lapidary_models::model::tokenizer_of;
use lapidary_models::{ChatTemplate, Message, Model, Tokenizer, tokenizer};
use lapidary_runtime::{Artifact, file};
use serde_json::json;

use crate::hub;
use crate::output;

/// Show the token ids of a text, the prompt and ids of messages, or the text of ids
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary tokenize \"It is a truth\"\n  \
    lapidary tokenize -m gemma-2-2b-it --chat messages.json --json\n  \
    lapidary tokenize -m gemma-2-2b-it/tokenizer.json - < text.txt\n  \
    lapidary tokenize --ids 2,17")]
#[command(group(clap::ArgGroup::new("input").required(true).args(["chat", "ids", "text"])))]
pub(crate) struct Args {
    /// Folder with a tokenizer.json, such a file itself, a GGUF file, a name OWNER/REPO[:TAG], or an artifact NAME.lap
    /// [default: the built-in tiny model's]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Messages, a JSON list of {"role", "content"}, that the model's chat template makes a prompt of; `-` reads stdin
    #[arg(long, value_name = "FILE")]
    chat: Option<PathBuf>,
    /// Ids that are made text: numbers separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    ids: Vec<u32>,
    /// Leave out the BOS token that a prompt begins with
    #[arg(long, conflicts_with = "ids")]
    no_bos: bool,
    /// Print one JSON object: prompt, ids and pieces
    #[arg(long)]
    json: bool,
    /// The text; `-` reads it from stdin
    #[arg(value_name = "TEXT")]
    text: Option<String>,
}

/// Bytes of a text.
const MAX_TEXT: u64 = 32 << 20;

/// Prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (tokenizer, template) = open(args.model.as_deref())?;
    let (prompt, ids) = if !args.ids.is_empty() {
        let most = tokenizer.vocab_size();
        let beyond = args.ids.iter().find(|id| **id as usize >= most);
        if let Some(id) = beyond {
            return Err(anyhow!("--ids: expected ids below {most}, found {id}"));
        }
        (tokenizer.decode(&args.ids), args.ids.clone())
    } else {
        let prompt = match &args.chat {
            Some(path) => {
                let template = template.ok_or_else(|| {
                    anyhow!("{}: no chat template: only text can be tokenized", tokenizer.path().display())
                })?;
                template.render(&messages(path)?, true)?
            }
            None => match args.text.as_deref().unwrap_or_default() {
                "-" => text_of("stdin", stdin()?)?,
                text => text.to_string(),
            },
        };
        ensure!(
            prompt.len() as u64 <= MAX_TEXT,
            "the prompt is {} bytes, more than {MAX_TEXT}",
            prompt.len()
        );
        let ids = tokenizer.encode(&prompt, !args.no_bos)?;
        (prompt, ids)
    };
    let pieces: Vec<String> = ids.iter().map(|&id| tokenizer.piece(id).unwrap_or_default()).collect();
    if args.json {
        return output::print_json(&json!({ "prompt": prompt, "ids": ids, "pieces": pieces }));
    }
    if !args.ids.is_empty() {
        return output::print(&format!("{}\n", shown(&prompt)));
    }
    let mut lines = String::new();
    if args.chat.is_some() {
        lines += &shown(&prompt);
        lines += if prompt.ends_with('\n') { "\n" } else { "\n\n" };
    }
    for (id, piece) in ids.iter().zip(&pieces) {
        // As in JSON, so that blanks, line ends and control characters are seen.
        lines += &format!("{id:>7}  {}\n", json!(piece));
    }
    output::print(&lines)
}

/// A text as it goes to stdout: to a terminal without control characters but line ends and tabs.
fn shown(text: &str) -> String {
    if !io::stdout().is_terminal() {
        return text.into();
    }
    let escape = |c: char| c.is_control() && c != '\n' && c != '\t';
    text.chars().map(|c| if escape(c) { c.escape_unicode().to_string() } else { c.into() }).collect()
}

/// The tokenizer and chat template of a folder, a file or the built-in model.
fn open(path: Option<&Path>) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let Some(path) = path else { return of_model(Model::built_in()?) };
    let path = &hub::locate_text(path)?;
    let data = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if data.is_dir() {
        return of_folder(path);
    }
    ensure!(data.is_file(), "{}: expected a folder or a file, found a device or a pipe", path.display());
    if path.file_name().is_some_and(|name| name == tokenizer::TOKENIZER) {
        // Beside it lie the special tokens and the template.
        return of_folder(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
    }
    if path.extension().is_some_and(|e| e == "json") {
        return Ok((Tokenizer::from_file(path)?, None));
    }
    if Gguf::is_at(path) {
        let gguf = Gguf::open(path)?;
        let tokenizer = gguf::tokenizer(gguf.keys())?;
        let tokenizer = tokenizer.ok_or_else(|| anyhow!("{}: it has no tokenizer", path.display()))?;
        let template = gguf.chat_template(tokenizer.special_tokens());
        return Ok((tokenizer, template));
    }
    of_model(Model::from_artifact(&Artifact::open(path)?)?)
}

fn of_folder(dir: &Path) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let tokenizer = tokenizer_of(dir)?;
    let tokenizer = tokenizer.ok_or_else(|| anyhow!("{}: no {}", dir.display(), tokenizer::TOKENIZER))?;
    let template = ChatTemplate::from_folder(dir, tokenizer.special_tokens())?;
    Ok((tokenizer, template))
}

fn of_model(model: Model) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let Model { path, tokenizer, chat_template, .. } = model;
    let tokenizer = tokenizer.ok_or_else(|| anyhow!("{}: it has no tokenizer", path.display()))?;
    Ok((tokenizer, chat_template))
}

/// The messages in a file, or stdin.
fn messages(path: &Path) -> Result<Vec<Message>> {
    if path == Path::new("-") {
        return Ok(Message::parse(Path::new("stdin"), &stdin()?)?);
    }
    Ok(Message::parse(path, &file::read(path)?)?)
}

fn stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_TEXT + 1).read_to_end(&mut bytes).context("cannot read stdin")?;
    ensure!(bytes.len() as u64 <= MAX_TEXT, "stdin: expected at most {MAX_TEXT} bytes, found more");
    Ok(bytes)
}

fn text_of(name: &str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| anyhow!("{name}: expected UTF-8 text, found other bytes"))
}
