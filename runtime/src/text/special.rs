//! The special tokens that a folder names, and what it says of itself.
//!
//! In: `tokenizer_config.json` and, in older folders, `special_tokens_map.json`. Out: names and texts of tokens, as
//! transformers gives them to a chat template; whether the model is marked as a base model. Unknown fields say nothing;
//! only the tokens that every text needs are held to their type.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::file::error::Result;
use crate::file::fields::Fields;

/// The file of older folders that names the special tokens.
pub const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
/// The field by which a folder says that its model is a base model although it has a chat template.
const INSTRUCTION_TUNED: &str = "instruction_tuned";
/// The field by which it says that texts begin without BOS.
const ADD_BOS: &str = "add_bos_token";
/// The list of special tokens without names of their own.
const ADDITIONAL: &str = "additional_special_tokens";
/// The same in newer folders, or an object of names and tokens.
const EXTRA: &str = "extra_special_tokens";
/// Tokens that a text cannot do without.
const NEEDED: [&str; 2] = ["bos_token", "eos_token"];

/// Special tokens by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Name (`bos_token`) and text (`<bos>`), in the file's order, each name once.
    named: Vec<(String, String)>,
    /// Those without a name.
    additional: Vec<String>,
    /// Whether the folder says that its model is not instruction-tuned.
    base: bool,
    /// Whether it says that BOS is not put before a text.
    without_bos: bool,
}

impl SpecialTokens {
    /// What the bytes of `tokenizer_config.json` say; `path` is what errors call it.
    ///
    /// # Errors
    /// [`Error::File`](crate::file::Error::File) for malformed JSON, [`Error::Field`](crate::file::Error::Field) for a
    /// BOS or EOS token that is none.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<SpecialTokens> {
        let mut fields = Fields::parse(path, bytes)?;
        let base = fields.take(INSTRUCTION_TUNED) == Some(Value::Bool(false));
        let without_bos = fields.take(ADD_BOS) == Some(Value::Bool(false));
        let mut tokens = SpecialTokens { base, without_bos, ..SpecialTokens::default() };
        for name in fields.names() {
            let value = fields.take(&name).unwrap_or(Value::Null);
            match (name.as_str(), &value) {
                (EXTRA, Value::Object(named)) => {
                    named.iter().for_each(|(name, v)| tokens.name(name, text(v)));
                }
                (EXTRA | ADDITIONAL, Value::Array(list)) => {
                    tokens.additional.extend(list.iter().filter_map(text).map(str::to_string));
                }
                (name, value) if name.ends_with("_token") => {
                    let token = text(value);
                    if token.is_none() && NEEDED.contains(&name) && !value.is_null() {
                        return Err(fields.refuse(name, "a token", value));
                    }
                    tokens.name(name, token);
                }
                _ => {}
            }
        }
        Ok(tokens)
    }

    /// Tokens by name and text.
    pub fn of(named: &[(&str, &str)]) -> SpecialTokens {
        let mut tokens = SpecialTokens::default();
        named.iter().for_each(|(name, token)| tokens.name(name, Some(token)));
        tokens
    }

    /// Takes the names that are not there yet from another file.
    pub(crate) fn add_missing(&mut self, other: SpecialTokens) {
        other.named.iter().for_each(|(name, token)| self.name(name, Some(token)));
        if self.additional.is_empty() {
            self.additional = other.additional;
        }
    }

    /// Names a token, unless the name is taken.
    pub(crate) fn name(&mut self, name: &str, token: Option<&str>) {
        if let Some(token) = token.filter(|_| self.get(name).is_none()) {
            self.named.push((name.into(), token.into()));
        }
    }

    /// A token by its name, `bos_token`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(n, _)| n == name).map(|(_, token)| token.as_str())
    }

    /// Names and texts.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }

    /// Those without a name.
    pub fn additional(&self) -> &[String] {
        &self.additional
    }

    /// Whether the folder says that its model is not instruction-tuned.
    pub fn is_base(&self) -> bool {
        self.base
    }

    /// Whether BOS is put before a text, as it is unless the folder says otherwise.
    pub fn adds_bos(&self) -> bool {
        !self.without_bos
    }

    /// The same, BOS put before a text or not.
    pub fn with_bos(self, adds: bool) -> SpecialTokens {
        SpecialTokens { without_bos: !adds, ..self }
    }

    /// The same as the JSON of a `tokenizer_config.json`.
    pub fn to_json(&self) -> Value {
        let mut map: Map<String, Value> = self.named().map(|(n, t)| (n.to_string(), json!(t))).collect();
        if !self.additional.is_empty() {
            map.insert(ADDITIONAL.into(), json!(self.additional));
        }
        if self.base {
            map.insert(INSTRUCTION_TUNED.into(), json!(false));
        }
        if self.without_bos {
            map.insert(ADD_BOS.into(), json!(false));
        }
        Value::Object(map)
    }
}

/// A token's text: a string, or an object that holds it as `content`.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
