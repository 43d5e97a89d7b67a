//! Messages to the text of a prompt, by the model's own chat template.
//!
//! In: a Jinja template, from `chat_template.jinja` or `tokenizer_config.json`, and messages. Out: text that starts with BOS
//! and holds special tokens written out; [`Tokenizer::encode`](super::Tokenizer::encode) parses them. The environment is
//! transformers': `trim_blocks`, `lstrip_blocks`, `raise_exception`, and Python's methods of strings and dicts. A template's
//! work is bounded, so a hostile one ends in an error.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Environment, ErrorKind, State, context};

use super::tokenizer::TOKENIZER_CONFIG;
use crate::file;
use crate::file::error::{self, Error, Result};
use crate::file::fields::Fields;

/// The file that holds the template in newer folders.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Instructions a rendering may take: a thousand a message of a long chat.
const FUEL: u64 = 20_000_000;
/// The template's name within its environment.
const NAME: &str = "chat";

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `user` or `assistant`; a template may know more.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The template of a folder, or nothing where it has none: `chat_template.jinja` if present, else the field
    /// `chat_template` of `tokenizer_config.json`, a string or a list of which the one named `default` counts.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::File`], [`Error::Field`]; [`Error::Template`] if it does not compile.
    pub fn from_folder(dir: &Path, bos_token: &str, eos_token: &str) -> Result<Option<ChatTemplate>> {
        let path = dir.join(CHAT_TEMPLATE);
        if let Some(bytes) = file::read_if_present(&path)? {
            let source = String::from_utf8(bytes)
                .map_err(|_| Error::file(path, "a template in UTF-8", "other bytes"))?;
            return ChatTemplate::new(source, bos_token, eos_token).map(Some);
        }
        match file::read_if_present(&dir.join(TOKENIZER_CONFIG))? {
            Some(config) => ChatTemplate::from_config(dir, &config, bos_token, eos_token),
            None => Ok(None),
        }
    }

    /// The template in the bytes of `tokenizer_config.json`, or nothing where it has none.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_folder`].
    pub fn from_config(
        dir: &Path,
        config: &[u8],
        bos_token: &str,
        eos_token: &str,
    ) -> Result<Option<ChatTemplate>> {
        let mut fields = Fields::parse(&dir.join(TOKENIZER_CONFIG), config)?;
        let Some(value) = fields.take("chat_template") else { return Ok(None) };
        let default = |list: &Vec<serde_json::Value>| {
            let named = list.iter().find(|t| t["name"] == "default")?;
            named["template"].as_str().map(str::to_string)
        };
        let source = match &value {
            serde_json::Value::String(source) => Some(source.clone()),
            other => other.as_array().and_then(default),
        };
        match source {
            Some(source) => ChatTemplate::new(source, bos_token, eos_token).map(Some),
            None => {
                let expected = "a template, or a list of {name, template} with one named default";
                Err(fields.refuse("chat_template", expected, &value))
            }
        }
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::Template`] if it does not compile.
    pub fn new(source: String, bos_token: &str, eos_token: &str) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source).map_err(failed)?;
        Ok(ChatTemplate { environment, bos_token: bos_token.into(), eos_token: eos_token.into() })
    }

    /// The template's own text.
    pub fn source(&self) -> String {
        self.environment.get_template(NAME).map(|t| t.source().to_string()).unwrap_or_default()
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the model's turn begins.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own words if it refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let messages =
            messages.iter().map(|m| context! { role => m.role.as_str(), content => m.content.as_str() });
        let context = context! {
            messages => messages.collect::<Vec<Value>>(),
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
        };
        template.render(context).map_err(failed)
    }
}

fn failed(e: minijinja::Error) -> Error {
    let message = match (e.kind(), e.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => error::line(detail),
        _ => error::line(e),
    };
    Error::Template { message }
}

/// Python's methods that templates call on strings and dicts.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    let unknown = || minijinja::Error::from(ErrorKind::UnknownMethod);
    if value.kind() == ValueKind::Map {
        return match method {
            "items" => {
                let () = from_args(args)?;
                state.apply_filter("items", std::slice::from_ref(value))
            }
            "keys" => Ok(Value::from_iter(value.try_iter()?)),
            "get" => {
                let (key, default): (Value, Option<Value>) = from_args(args)?;
                let found = value.get_item(&key)?;
                Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
            }
            _ => Err(unknown()),
        };
    }
    let text = value.as_str().ok_or_else(unknown)?;
    let trimmed = |end: fn(&str, &str) -> String| -> Result<Value, minijinja::Error> {
        let (chars,): (Option<&str>,) = from_args(args)?;
        Ok(end(text, chars.unwrap_or(WHITESPACE)).into())
    };
    match method {
        "strip" => trimmed(|s, set| s.trim_matches(|c| set.contains(c)).into()),
        "lstrip" => trimmed(|s, set| s.trim_start_matches(|c| set.contains(c)).into()),
        "rstrip" => trimmed(|s, set| s.trim_end_matches(|c| set.contains(c)).into()),
        "startswith" => from_args(args).map(|(s,): (&str,)| text.starts_with(s).into()),
        "endswith" => from_args(args).map(|(s,): (&str,)| text.ends_with(s).into()),
        "upper" => from_args(args).map(|()| text.to_uppercase().into()),
        "lower" => from_args(args).map(|()| text.to_lowercase().into()),
        "title" | "capitalize" => state.apply_filter(method, std::slice::from_ref(value)),
        "replace" => from_args(args).map(|(from, to): (&str, &str)| text.replace(from, to).into()),
        "find" => from_args(args).map(|(s,): (&str,)| {
            let chars = |at: usize| text[..at].chars().count() as i64;
            text.find(s).map_or(-1, chars).into()
        }),
        "split" => {
            let (separator, most): (Option<&str>, Option<usize>) = from_args(args)?;
            let most = most.map_or(usize::MAX, |n| n.saturating_add(1));
            Ok(match separator {
                Some(s) => text.splitn(most, s).map(Value::from).collect(),
                None => text.split_whitespace().map(Value::from).collect(),
            })
        }
        _ => Err(unknown()),
    }
}

/// What Python's `str.strip` removes, as far as prompts hold it.
const WHITESPACE: &str = " \t\n\r\x0b\x0c\u{85}\u{a0}\u{2028}\u{2029}\u{3000}";
