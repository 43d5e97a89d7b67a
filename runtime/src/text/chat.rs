//! Messages to the text of a prompt, by the model's own chat template.
//!
//! In: a Jinja template, from one of the places that transformers reads it from, and messages. Out: text that starts
//! with BOS and holds special tokens written out; [`Tokenizer::encode`](super::Tokenizer::encode) parses them. The
//! environment is transformers' (`jinja`). A template's work is bounded, so a hostile one ends in an
//! error; one that is broken is an error where it is used, not where its folder is opened.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};
use serde_json::Value as Json;

use super::jinja::{self, NAME};
use super::source;
use super::special::SpecialTokens;
use super::tokenizer::TOKENIZER_CONFIG;
use crate::file;
use crate::file::error::{self, Error, Result};
use crate::file::fields::Fields;

/// The file that holds the template in newer folders.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The folder of further templates.
const ADDITIONAL: &str = "additional_chat_templates";
/// The file that holds the template of a processor, in older folders.
const PROCESSOR: &str = "chat_template.json";
/// The field that holds the template.
const FIELD: &str = "chat_template";
/// The template of several that is meant for messages alone.
const DEFAULT: &str = "default";
/// Steps, or 64 bytes of text each, that every rendering may take; published templates take a few hundred.
const FUEL: u64 = 50_000;
/// The same for each message.
const MESSAGE_FUEL: u64 = 300;
/// Bytes of messages for a further one: each may be copied some thirty times.
const BYTES: u64 = 2;

/// Levels of lists and objects within each other that tools may have.
pub const MAX_TOOLS: usize = jinja::MAX_NESTED / 2;

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A text.
    Text(String),
    /// Texts, as `[{"type": "text", "text": ...}]`.
    Parts(Vec<String>),
}

impl From<String> for Content {
    fn from(text: String) -> Content {
        Content::Text(text)
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Content {
        Content::Text(text.into())
    }
}

impl Content {
    /// Its bytes.
    fn len(&self) -> usize {
        match self {
            Content::Text(text) => text.len(),
            Content::Parts(parts) => parts.iter().map(String::len).sum(),
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `user` or `assistant`; a template may know more.
    pub role: String,
    /// What was said.
    pub content: Content,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<Content>) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    /// The messages in the bytes of a JSON list of `{"role", "content"}`, a content a text or a list of
    /// `{"type": "text", "text"}`; `path` is what errors call it.
    ///
    /// # Errors
    /// [`Error::File`] for another form, which names the message, counted from 0.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Message>> {
        let list = match serde_json::from_slice(bytes) {
            Ok(Json::Array(list)) => list,
            Ok(other) => return Err(Error::file(path, "a JSON list of messages", error::json(&other))),
            Err(e) => {
                let found = error::line(format!("malformed JSON: {e}"));
                return Err(Error::file(path, "a JSON list of messages", found));
            }
        };
        let one = |(i, value): (usize, &Json)| {
            let refuse = |expected: &str, found: &Json| {
                Error::file(path, format!("message {i}: {expected}"), error::json(found))
            };
            let fields = value.as_object().ok_or_else(|| refuse("an object of role and content", value))?;
            if let Some((name, _)) =
                fields.iter().find(|(name, v)| !matches!(name.as_str(), "role" | "content") && !v.is_null())
            {
                return Err(refuse("no other fields than role and content", &Json::from(name.as_str())));
            }
            let role =
                value["role"].as_str().ok_or_else(|| refuse("a role that is a text", &value["role"]))?;
            let part = |part: &Json| {
                let text = part["text"].as_str().filter(|_| part["type"] == "text");
                text.map(str::to_string)
                    .ok_or_else(|| refuse("parts {\"type\": \"text\", \"text\": ...}", part))
            };
            let content = match &value["content"] {
                Json::String(text) => Content::Text(text.clone()),
                Json::Array(parts) => Content::Parts(parts.iter().map(part).collect::<Result<_>>()?),
                other => return Err(refuse("a content that is a text or a list of parts", other)),
            };
            Ok(Message::new(role, content))
        };
        list.iter().enumerate().map(one).collect()
    }

    /// As a template sees it. Parts that it does not loop over come as one text, where Python would show their list.
    fn value(&self, loops: bool) -> Value {
        let content = match &self.content {
            Content::Text(text) => Value::from(text.as_str()),
            Content::Parts(parts) if loops => {
                parts.iter().map(|text| context! { type => "text", text => text.as_str() }).collect()
            }
            Content::Parts(parts) => Value::from(parts.concat()),
        };
        Value::from_pairs([("role", Value::from(self.role.as_str())), ("content", content)])
    }
}

/// A chat template.
pub struct ChatTemplate {
    path: PathBuf,
    /// Its text, or what a file should have held and what it holds.
    source: std::result::Result<String, (String, String)>,
    special: SpecialTokens,
    /// Compiled by the first who needs it; else what is wrong with it.
    environment: OnceLock<std::result::Result<Environment<'static>, String>>,
}

impl ChatTemplate {
    /// The template of a folder, or nothing where it has none: `chat_template.jinja` if present, else the one named
    /// `default` in `additional_chat_templates`, else the field `chat_template` of `tokenizer_config.json` (a string,
    /// or a list of which the one named `default` counts), else of `chat_template.json`.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::File`] if `tokenizer_config.json` is malformed.
    pub fn from_folder(dir: &Path, special: &SpecialTokens) -> Result<Option<ChatTemplate>> {
        for path in [dir.join(CHAT_TEMPLATE), dir.join(ADDITIONAL).join("default.jinja")] {
            if let Some(bytes) = file::read_if_present(&path)? {
                return Ok(Some(ChatTemplate::from_bytes(path, bytes, special)));
            }
        }
        for name in [TOKENIZER_CONFIG, PROCESSOR] {
            let path = dir.join(name);
            if let Some(bytes) = file::read_if_present(&path)?
                && let Some(template) = ChatTemplate::from_config(&path, &bytes, special)?
            {
                return Ok(Some(template));
            }
        }
        Ok(None)
    }

    /// The template in the field `chat_template` of the JSON file `path`, whose bytes are `config`; nothing where it
    /// has none.
    ///
    /// # Errors
    /// [`Error::File`] if the file is malformed.
    pub fn from_config(path: &Path, config: &[u8], special: &SpecialTokens) -> Result<Option<ChatTemplate>> {
        let Some(value) = Fields::parse(path, config)?.take(FIELD) else { return Ok(None) };
        let default = || -> Option<&str> {
            let named = value.as_array()?.iter().find(|t| t["name"] == DEFAULT)?;
            named["template"].as_str()
        };
        let source = match (&value, default()) {
            (Json::String(source), _) => Ok(source.clone()),
            (_, Some(source)) => Ok(source.to_string()),
            (other, None) => {
                let expected = "a template, or a list of {name, template} with one named default";
                Err((format!("as `{FIELD}` {expected}"), error::json(other)))
            }
        };
        Ok(Some(ChatTemplate::with(path.into(), source, special)))
    }

    /// The template whose file's bytes these are; errors call it `path`.
    pub fn from_bytes(path: PathBuf, bytes: Vec<u8>, special: &SpecialTokens) -> ChatTemplate {
        let source =
            String::from_utf8(bytes).map_err(|_| ("a template in UTF-8".into(), "other bytes".into()));
        ChatTemplate::with(path, source, special)
    }

    /// The template of this text.
    pub fn new(source: impl Into<String>, special: &SpecialTokens) -> ChatTemplate {
        ChatTemplate::with(CHAT_TEMPLATE.into(), Ok(source.into()), special)
    }

    fn with(
        path: PathBuf,
        source: std::result::Result<String, (String, String)>,
        special: &SpecialTokens,
    ) -> ChatTemplate {
        ChatTemplate { path, source, special: special.clone(), environment: OnceLock::new() }
    }

    /// The template's own text.
    ///
    /// # Errors
    /// [`Error::File`] if its file holds none.
    pub fn source(&self) -> Result<&str> {
        let refuse = |(expected, found): &(String, String)| Error::file(&self.path, expected, found);
        self.source.as_deref().map_err(refuse)
    }

    /// Compiles it, once.
    ///
    /// # Errors
    /// [`Error::File`] if that fails.
    pub fn check(&self) -> Result<()> {
        self.environment().map(|_| ())
    }

    fn environment(&self) -> Result<&Environment<'static>> {
        let source = self.source()?;
        let compiled = self.environment.get_or_init(|| jinja::compile(source).map_err(words));
        compiled.as_ref().map_err(|found| Error::file(&self.path, "a chat template that compiles", found))
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the model's turn begins.
    ///
    /// # Errors
    /// [`Error::File`] if it does not compile, [`Error::Template`] with the template's own words if it refuses the
    /// messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, None, add_generation_prompt)
    }

    /// The same with `tools`, a list as the API of OpenAI has it, for a template that knows them; nested no deeper than
    /// [`MAX_TOOLS`].
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let mut environment = self.environment()?.clone();
        if messages.is_empty() {
            // transformers' words.
            let message =
                "Cannot apply chat template to an empty conversation. Provide at least one message.".into();
            return Err(Error::Template { message });
        }
        let listed = tools.map_or(0, |tools| tools.to_string().len());
        let tools = match tools.map(|tools| (tools, depth(tools))) {
            None => Value::from(()),
            Some((tools, ..=MAX_TOOLS)) => plain(tools),
            Some((_, depth)) => {
                let message = format!("`tools` is nested {depth} levels deep, expected at most {MAX_TOOLS}");
                return Err(Error::Template { message });
            }
        };
        let said: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let bytes = said + listed;
        let fuel = FUEL + MESSAGE_FUEL * messages.len() as u64 + bytes as u64 / BYTES;
        environment.set_fuel(Some(fuel));
        let failed = |e: minijinja::Error| {
            let message = match e.kind() {
                ErrorKind::OutOfFuel => format!("it is not done after {fuel} steps"),
                _ => words(e),
            };
            Error::Template { message }
        };
        let template = environment.get_template(NAME).map_err(failed)?;
        let loops = source::loops_over_content(self.source()?);
        let special = self.special.named().map(|(name, token)| (name, Value::from(token)));
        let mut all: Vec<(&str, Value)> = special.collect();
        if !self.special.additional().is_empty() {
            let list = self.special.additional().iter().map(|t| Value::from(t.as_str()));
            all.push(("additional_special_tokens", list.collect()));
        }
        all.extend([
            ("messages", messages.iter().map(|m| m.value(loops)).collect()),
            ("tools", tools),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ]);
        template.render(Value::from_pairs(all)).map_err(failed)
    }
}

/// A value of JSON as templates see it.
fn plain(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::from(whole),
            (None, float) => Value::from(float.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => list.iter().map(plain).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), plain(value))))
        }
    }
}

/// Levels of lists and objects within each other.
fn depth(value: &Json) -> usize {
    match value {
        Json::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Json::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => 0,
    }
}

/// What the engine says, on one line.
fn words(e: minijinja::Error) -> String {
    match (e.kind(), e.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => error::line(detail),
        _ => error::line(e),
    }
}
