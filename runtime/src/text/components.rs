//! What a `tokenizer.json` may be made of: the parts that Gemma's files use, each checked; anything else is refused by
//! name.
//!
//! In: the JSON of a tokenizer, with or without its vocabulary. Out: [`Components`] that the crate `tokenizers` runs.
//! Invariants: no pattern is a regular expression, so every part takes time in proportion to its text; no field is
//! there twice, so whoever else parses the file sees what was checked; nothing depends on chance.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use tokenizers::{
    AddedToken, Decoder, Encoding, NormalizedString, Normalizer, PostProcessor, PreTokenizedString,
    PreTokenizer, SplitDelimiterBehavior, pattern::Invert,
};

use crate::file::error::{self, Error, Result};
use crate::file::{cause, fields};

/// Added tokens of a file: fifteen times as many as Gemma 3 has.
const MAX_ADDED: usize = 100_000;
/// Bytes of all their texts.
const MAX_ADDED_BYTES: usize = 4 << 20;
/// Bytes of a normalizer's replacement.
const MAX_REPLACEMENT: usize = 64;

/// A text's spaces, made something else.
#[derive(Clone, Debug)]
pub(super) struct Replace {
    from: char,
    to: String,
}

impl Normalizer for Replace {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        text.replace(self.from, &self.to)
    }
}

/// A text, cut at a character.
#[derive(Clone, Debug)]
pub(super) struct Split {
    at: char,
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

impl PreTokenizer for Split {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        text.split(|_, part| {
            if self.invert {
                part.split(Invert(self.at), self.behavior)
            } else {
                part.split(self.at, self.behavior)
            }
        })
    }
}

/// Nothing: what a post-processor adds, BOS, comes from [`Tokenizer::encode`](super::Tokenizer::encode); what a decoder
/// does is the [`Detokenizer`](super::Detokenizer)'s work.
#[derive(Clone, Debug)]
pub(super) struct Never;

impl PostProcessor for Never {
    fn added_tokens(&self, _is_pair: bool) -> usize {
        0
    }

    fn process_encodings(&self, encodings: Vec<Encoding>, _add: bool) -> tokenizers::Result<Vec<Encoding>> {
        Ok(encodings)
    }
}

impl Decoder for Never {
    fn decode_chain(&self, tokens: Vec<String>) -> tokenizers::Result<Vec<String>> {
        Ok(tokens)
    }
}

/// A tokenizer's parts but for vocabulary and merges.
pub(super) struct Components {
    pub(super) normalizer: Option<Replace>,
    pub(super) pre_tokenizer: Option<Split>,
    /// With the ids that the file says they have.
    pub(super) added: Vec<(u32, AddedToken)>,
}

/// The file as it is written; whatever is not named says nothing.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(default, borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(default)]
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
    #[serde(default)]
    post_processor: Option<Value>,
    #[serde(default)]
    decoder: Option<Value>,
    #[serde(default)]
    added_tokens: Option<Vec<RawAdded>>,
    #[serde(default)]
    model: Option<RawModel>,
}

/// An added token.
#[derive(Deserialize)]
struct RawAdded {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// The model's own options.
#[derive(Deserialize)]
struct RawModel {
    #[serde(default, rename = "type")]
    kind: Option<Value>,
    #[serde(default)]
    dropout: Option<Value>,
    #[serde(default)]
    unk_token: Option<Value>,
    #[serde(default)]
    continuing_subword_prefix: Option<Value>,
    #[serde(default)]
    end_of_word_suffix: Option<Value>,
    #[serde(default)]
    fuse_unk: Option<Value>,
    #[serde(default)]
    byte_fallback: Option<Value>,
    #[serde(default)]
    ignore_merges: Option<Value>,
    #[serde(default)]
    vocab: Option<IgnoredAny>,
    #[serde(default)]
    merges: Option<IgnoredAny>,
}

impl Components {
    /// The parts in the bytes of a `tokenizer.json`; `path` is what errors call it. With `model`, the file has a
    /// vocabulary.
    ///
    /// # Errors
    /// [`Error::File`] for malformed JSON, [`Error::Field`] for a part that is none of Gemma's.
    pub(super) fn parse(path: &Path, bytes: &[u8], model: bool) -> Result<Components> {
        let bytes = cause::without_bom(bytes);
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            let found = match fields::json(path, bytes)? {
                Value::Array(_) => "a list".into(),
                other => error::json(&other),
            };
            return Err(Error::file(path, "a JSON object", found));
        }
        let raw: Raw<'_> = match serde_json::from_slice(bytes) {
            Ok(raw) => raw,
            Err(e) if e.is_data() => return Err(Error::file(path, "a tokenizer", error::line(e))),
            Err(e) => return Err(fields::malformed(path, bytes, &e)),
        };
        let check = Check { path };
        if let Some(version) = raw.version.filter(|v| v != "1.0") {
            return Err(check.refuse("version", "\"1.0\"", &Value::from(version)));
        }
        check.decoder(raw.decoder)?;
        let normalizer = check.normalizer(raw.normalizer)?;
        let pre_tokenizer = check.pre_tokenizer(raw.pre_tokenizer)?;
        check.post_processor(raw.post_processor.as_ref())?;
        match raw.model {
            Some(raw) if model => check.model(raw)?,
            None if model => return Err(check.absent("model", "a model of type BPE")),
            Some(_) | None => {}
        }
        let added = check.added(raw.added_tokens.unwrap_or_default())?;
        Ok(Components { normalizer, pre_tokenizer, added })
    }
}

/// Refuses in the name of a file.
struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    fn error(&self, field: &str, expected: &str, found: String) -> Error {
        Error::Field { path: self.path.into(), field: field.into(), expected: expected.into(), found }
    }

    fn refuse(&self, field: &str, expected: &str, found: &Value) -> Error {
        self.error(field, expected, error::json(found))
    }

    fn absent(&self, field: &str, expected: &str) -> Error {
        self.error(field, expected, "nothing".into())
    }

    fn decoder(&self, decoder: Option<Value>) -> Result<()> {
        let gemma = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
        ] });
        match decoder {
            Some(decoder) if decoder == gemma => Ok(()),
            Some(other) => Err(self.refuse("decoder", &gemma.to_string(), &other)),
            None => Err(self.absent("decoder", &gemma.to_string())),
        }
    }

    fn normalizer(&self, normalizer: Option<Value>) -> Result<Option<Replace>> {
        const EXPECTED: &str = "null, or a Replace of one character by a short text";
        let Some(value) = normalizer else { return Ok(None) };
        // A sequence of one is what some writers make of it.
        let one = match value.get("normalizers").and_then(Value::as_array).map(Vec::as_slice) {
            Some([one]) if value["type"] == "Sequence" => one,
            Some([]) if value["type"] == "Sequence" => return Ok(None),
            _ => &value,
        };
        let to = one["content"].as_str().filter(|to| to.len() <= MAX_REPLACEMENT);
        match (one["type"] == "Replace", character(&one["pattern"]), to) {
            (true, Some(from), Some(to)) => Ok(Some(Replace { from, to: to.into() })),
            _ => Err(self.refuse("normalizer", EXPECTED, &value)),
        }
    }

    fn pre_tokenizer(&self, part: Option<Value>) -> Result<Option<Split>> {
        const EXPECTED: &str = "null, or a Split at one character";
        let Some(value) = part else { return Ok(None) };
        let behavior = SplitDelimiterBehavior::deserialize(&value["behavior"]).ok();
        let invert = value["invert"].as_bool();
        match (value["type"] == "Split", character(&value["pattern"]), behavior, invert) {
            (true, Some(at), Some(behavior), Some(invert)) => Ok(Some(Split { at, behavior, invert })),
            _ => Err(self.refuse("pre_tokenizer", EXPECTED, &value)),
        }
    }

    /// A post-processor says which special tokens a text gets; those are BOS, whatever it says.
    fn post_processor(&self, part: Option<&Value>) -> Result<()> {
        let Some(value) = part else { return Ok(()) };
        let of = |value: &Value| value["type"] == "TemplateProcessing";
        let all = value["processors"].as_array().is_some_and(|all| all.iter().all(of));
        if of(value) || (value["type"] == "Sequence" && all) {
            return Ok(());
        }
        Err(self.refuse("post_processor", "null, or a TemplateProcessing", value))
    }

    fn model(&self, raw: RawModel) -> Result<()> {
        let RawModel {
            kind,
            dropout,
            unk_token,
            continuing_subword_prefix,
            end_of_word_suffix,
            fuse_unk,
            byte_fallback,
            ignore_merges,
            vocab,
            merges,
        } = raw;
        let refuse = |name: &str, expected: &str, found: &Value| {
            self.refuse(&format!("model.{name}"), expected, found)
        };
        match &kind {
            Some(kind) if kind != "BPE" => return Err(refuse("type", "\"BPE\"", kind)),
            None => return Err(self.absent("model.type", "\"BPE\"")),
            Some(_) => {}
        }
        if let Some(dropout) = dropout.filter(|d| d.as_f64() != Some(0.0)) {
            return Err(refuse("dropout", "null or 0: tokens do not depend on chance", &dropout));
        }
        for (name, value) in [
            ("continuing_subword_prefix", continuing_subword_prefix),
            ("end_of_word_suffix", end_of_word_suffix),
        ] {
            if let Some(value) = value.filter(|v| v != "") {
                return Err(refuse(name, "null", &value));
            }
        }
        if let Some(token) = unk_token.filter(|t| !t.is_string()) {
            return Err(refuse("unk_token", "a token or null", &token));
        }
        let flags =
            [("fuse_unk", fuse_unk), ("byte_fallback", byte_fallback), ("ignore_merges", ignore_merges)];
        for (name, value) in flags {
            if let Some(value) = value.filter(|v| !v.is_boolean()) {
                return Err(refuse(name, "true or false", &value));
            }
        }
        for (name, there) in [("vocab", vocab.is_some()), ("merges", merges.is_some())] {
            if !there {
                return Err(self.absent(&format!("model.{name}"), "the tokens of a model of type BPE"));
            }
        }
        Ok(())
    }

    fn added(&self, raw: Vec<RawAdded>) -> Result<Vec<(u32, AddedToken)>> {
        let field = "added_tokens";
        if raw.len() > MAX_ADDED {
            let expected = format!("at most {MAX_ADDED} tokens");
            return Err(self.error(field, &expected, format!("{} tokens", raw.len())));
        }
        let bytes: usize = raw.iter().map(|t| t.token.content.len()).sum();
        if bytes > MAX_ADDED_BYTES {
            let expected = format!("tokens of {MAX_ADDED_BYTES} bytes together");
            return Err(self.error(field, &expected, format!("{bytes} bytes")));
        }
        if raw.iter().any(|t| t.token.content.is_empty()) {
            return Err(self.error(field, "tokens that are texts", "an empty one".into()));
        }
        Ok(raw.into_iter().map(|t| (t.id, t.token)).collect())
    }
}

/// The character of a pattern `{"String": " "}`.
fn character(pattern: &Value) -> Option<char> {
    let object: &Map<String, Value> = pattern.as_object().filter(|o| o.len() == 1)?;
    let mut characters = object.get("String")?.as_str()?.chars();
    characters.next().filter(|_| characters.next().is_none())
}
