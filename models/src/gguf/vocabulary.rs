//! The tokenizer in a GGUF's keys.
//!
//! In: the keys. Out: a [`Tokenizer`] by scores, which finds llama.cpp's ids; the tokens that end a text; the chat
//! template. Invariants: ids are those of the list of tokens; texts are UTF-8, scores are numbers.

use lapidary_runtime::text::{ChatTemplate, SpecialTokens, TokenKind, Tokenizer, Vocabulary};

use super::keys::Keys;
use super::value::{Kind, List, Value};
use crate::error::{Error, Result, line};

/// What kind of tokenizer it is.
const MODEL: &str = "tokenizer.ggml.model";
/// SentencePiece's, with scores: Gemma's.
const SCORED: &str = "llama";
/// None at all.
const NONE: &str = "no_vocab";
/// Texts by id.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// Numbers by id.
const SCORES: &str = "tokenizer.ggml.scores";
/// Kinds by id.
const KINDS: &str = "tokenizer.ggml.token_type";
/// Whether a text gets a space before it.
const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
/// Whether BOS is put before a text.
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const PADDING: &str = "tokenizer.ggml.padding_token_id";
/// What ends a turn.
const EOT: &str = "tokenizer.ggml.eot_token_id";
/// Names of tokens as chat templates know them, and their keys.
const NAMED: [(&str, &str); 4] =
    [("bos_token", BOS), ("eos_token", EOS), ("unk_token", UNKNOWN), ("pad_token", PADDING)];
const TEMPLATE: &str = "tokenizer.chat_template";

/// How many tokens a file lists; nothing where it has no tokenizer.
pub(crate) fn tokens(keys: Keys<'_>) -> Result<Option<usize>> {
    Ok(list(keys)?.map(|tokens| tokens.count))
}

fn list(keys: Keys<'_>) -> Result<Option<&List>> {
    if keys.get(MODEL).is_none() || keys.one_of(MODEL, &[SCORED, NONE])? == NONE {
        return Ok(None);
    }
    let expected = "a list of texts";
    match keys.list(TOKENS, expected, |kind| kind == Kind::Text)? {
        Some(tokens) => Ok(Some(tokens)),
        None => Err(keys.absent(TOKENS, expected)),
    }
}

/// The ids that a file names: BOS, padding, and those that end a text.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    pub(crate) bos: Option<u32>,
    pub(crate) padding: Option<u32>,
    /// EOS and the end of a turn.
    pub(crate) ends: Vec<u32>,
}

/// The ids that a file names, of `vocab` tokens.
pub(crate) fn ids(keys: Keys<'_>, vocab: usize) -> Result<Ids> {
    let id = |key: &str| id(keys, key, vocab);
    let ends = [id(EOS)?, id(EOT)?].into_iter().flatten().collect();
    Ok(Ids { bos: id(BOS)?, padding: id(PADDING)?, ends })
}

fn id(keys: Keys<'_>, key: &str, vocab: usize) -> Result<Option<u32>> {
    let largest = (vocab as u64).saturating_sub(1).min(u32::MAX.into());
    Ok(keys.integer(key, 0, largest)?.map(|id| id as u32))
}

/// The tokenizer of a file; nothing where it has none.
///
/// # Errors
/// For keys that are absent, of another type or length, or say what no vocabulary is.
pub fn tokenizer(keys: Keys<'_>) -> Result<Option<Tokenizer>> {
    let Some(tokens) = list(keys)? else { return Ok(None) };
    let mut vocabulary = Vocabulary::default();
    vocabulary.ends.reserve_exact(tokens.count);
    vocabulary.text.reserve(tokens.bytes.len().saturating_sub(8 * tokens.count));
    for (i, bytes) in tokens.texts(keys.file).enumerate() {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(keys.refuse(TOKENS, &format!("as token {i} a text in UTF-8"), "other bytes"));
        };
        vocabulary.text.push_str(text);
        let Ok(end) = u32::try_from(vocabulary.text.len()) else {
            return Err(keys.refuse(TOKENS, "less than 4 GiB of text", "more"));
        };
        vocabulary.ends.push(end);
    }
    vocabulary.scores = scores(keys, tokens.count)?;
    vocabulary.kinds = kinds(keys, tokens.count)?;
    let Some(bos) = id(keys, BOS, tokens.count)? else { return Err(keys.absent(BOS, "the id of BOS")) };
    vocabulary.bos = bos;
    vocabulary.eos = id(keys, EOS, tokens.count)?;
    vocabulary.unknown = id(keys, UNKNOWN, tokens.count)?;
    vocabulary.space_prefix = keys.truth(SPACE_PREFIX)?.unwrap_or(true);
    let mut named = Vec::new();
    for (name, key) in NAMED {
        let text = id(keys, key, tokens.count)?.and_then(|id| vocabulary.token(id));
        named.extend(text.filter(|text| !text.is_empty()).map(|text| (name, text)));
    }
    let special = SpecialTokens::of(&named).with_bos(keys.truth(ADD_BOS)?.unwrap_or(true));
    Ok(Some(Tokenizer::scored(keys.path, &vocabulary, special)?))
}

/// A list of one element a token.
fn column<'a>(
    keys: Keys<'a>,
    key: &str,
    what: &str,
    count: usize,
    is: fn(Kind) -> bool,
) -> Result<Option<&'a List>> {
    match keys.list(key, &format!("a list of {what}"), is)? {
        Some(list) if list.count != count => {
            let found = format!("{} {what}", list.count);
            Err(keys.refuse(key, &format!("{count} {what}, one a token"), found))
        }
        other => Ok(other),
    }
}

fn scores(keys: Keys<'_>, count: usize) -> Result<Vec<f32>> {
    const EXPECTED: &str = "numbers";
    let Some(list) = column(keys, SCORES, EXPECTED, count, |kind| kind == Kind::F32)? else {
        return Err(keys.absent(SCORES, &format!("a list of {EXPECTED}")));
    };
    let bytes = keys.file[list.bytes.clone()].as_chunks().0;
    let scores: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
    match scores.iter().position(|score| score.is_nan()) {
        Some(i) => Err(keys.refuse(SCORES, &format!("as score {i} a number"), "NaN")),
        None => Ok(scores),
    }
}

fn kinds(keys: Keys<'_>, count: usize) -> Result<Vec<TokenKind>> {
    let integers = |kind: Kind| matches!(kind, Kind::Signed(4) | Kind::Unsigned(4));
    let Some(list) = column(keys, KINDS, "integers", count, integers)? else {
        return Ok(vec![TokenKind::Normal; count]);
    };
    let refuse = |i: usize, found: String| {
        let last = TokenKind::ALL.len();
        Err(keys.refuse(KINDS, &format!("as the type of token {i} an integer from 1 to {last}"), found))
    };
    let bytes = keys.file[list.bytes.clone()].as_chunks().0;
    let mut kinds = Vec::with_capacity(bytes.len());
    for (i, bytes) in bytes.iter().enumerate() {
        // An unsigned number beyond i32 is no kind as a negative one either.
        let number = i32::from_le_bytes(*bytes);
        match TokenKind::of(number.into()) {
            Some(kind) => kinds.push(kind),
            None => return refuse(i, number.to_string()),
        }
    }
    Ok(kinds)
}

/// The chat template of a file, if it has one.
pub(crate) fn template(keys: Keys<'_>, special: &SpecialTokens) -> Option<ChatTemplate> {
    let Some(Value::Text(range)) = keys.get(TEMPLATE) else { return None };
    let path = keys.path.join(line(TEMPLATE));
    Some(ChatTemplate::from_bytes(path, keys.file[range.clone()].to_vec(), special))
}

/// The error for a tokenizer that is none, where one is needed.
pub(crate) fn absent(keys: Keys<'_>) -> Error {
    keys.absent(MODEL, SCORED)
}
