//! The options of what is generated, and from what: shared by `lapidary run`, `lapidary chat` and `lapidary-run`.

use anyhow::{Result, anyhow, ensure};

/// How much to generate, and what ends it.
#[derive(clap::Args)]
pub(crate) struct GenerationArgs {
    /// Most tokens to generate; -1: until the end [default: 128; of an answer in a conversation 1024]
    #[arg(short = 'n', long, value_name = "TOKENS", value_parser = token_count)]
    tokens: Option<usize>,
    /// Instructions to the model, before all that is said; by the chat template
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Text that ends the output, which does not have it (may be repeated)
    #[arg(long, value_name = "TEXT", value_parser = stop_text, allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Go on where the model would end
    #[arg(long)]
    ignore_eos: bool,
}

/// Most tokens of a text, unless asked otherwise.
pub(crate) const TEXT_TOKENS: usize = 128;
/// Most tokens of an answer in a conversation, unless asked otherwise.
pub(crate) const ANSWER_TOKENS: usize = 1024;

impl GenerationArgs {
    /// Most tokens to generate.
    pub(crate) fn tokens(&self, otherwise: usize) -> usize {
        self.tokens.unwrap_or(otherwise)
    }

    /// The tokens that end the output, of those that the model has for it.
    pub(crate) fn stop_tokens(&self, model: &[u32]) -> Vec<u32> {
        if self.ignore_eos { Vec::new() } else { model.to_vec() }
    }
}

/// A number of tokens; llama.cpp's -1 and -2 are as many as the context has room for.
fn token_count(text: &str) -> Result<usize, String> {
    match text {
        "-1" | "-2" => Ok(usize::MAX),
        _ => text.parse().map_err(|_| "expected a number of tokens, or -1: until the end".into()),
    }
}

fn stop_text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("expected a text, found none".into()) } else { Ok(text.into()) }
}

/// Ids of a list, separated by commas or blanks; the error names the first that is none.
pub(crate) fn parse_ids(list: &str, from: &str) -> Result<Vec<u32>> {
    let words = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
    let ids = words
        .map(|w| w.parse().map_err(|_| anyhow!("{from}: `{w}` is not a token id")))
        .collect::<Result<Vec<u32>>>()?;
    ensure!(!ids.is_empty(), "{from}: expected token ids, found none");
    Ok(ids)
}
