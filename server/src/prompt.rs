//! Requests' texts and messages to token ids.

use lapidary_runtime::file;
use lapidary_runtime::text::chat::Content;
use lapidary_runtime::text::{ChatTemplate, Message, prompt};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::model::Vocabulary;
use crate::tools::Tools;
use crate::wire::request::WireMessage;

/// The most prompts of a request.
const MOST_PROMPTS: usize = 64;
/// Stands inside of special tokens that are to be text, until they are tokens: no character.
const MARK: char = '\u{FDD0}';

/// The prompt of messages, up to where the model's turn begins.
pub(crate) fn render(
    vocabulary: &Vocabulary,
    messages: &[WireMessage],
    tools: Option<&Tools>,
    plain_content: bool,
) -> Result<String, ApiError> {
    let Some(template) = vocabulary.text.chat_template() else {
        return Err(ApiError::unsupported("the model has no chat template: it serves /v1/completions"));
    };
    if messages.is_empty() {
        return Err(ApiError::field("messages", "`messages`: expected at least one message"));
    }
    let mut said = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        said.push(read(index, message, plain_content.then(|| vocabulary.specials()))?);
    }
    calls_as_text(template, &mut said, messages);
    // What OpenAI calls `developer` now.
    let instructs = said.first().is_some_and(|m| ["system", "developer"].contains(&m.role.as_str()));
    let system = instructs.then(|| said.remove(0)).map(|message| match message.content {
        Content::Text(text) => text,
        Content::Parts(parts) => parts.concat(),
    });
    let refuse = |error: file::Error| ApiError::field("messages", error.to_string());
    let Some(tools) = tools else {
        return prompt::render(template, system.as_deref(), &said).map_err(refuse);
    };
    // A template that passes tools over is helped: the instructions tell of them.
    if template.source().is_ok_and(|source| source.contains("tools")) {
        return prompt::render_with(template, system.as_deref(), &said, Some(tools.list())).map_err(refuse);
    }
    let system = match system.filter(|system| !system.trim().is_empty()) {
        Some(system) => format!("{system}\n\n{}", tools.instructions()),
        None => tools.instructions(),
    };
    prompt::render(template, Some(&system), &said).map_err(refuse)
}

/// Calls and their results, for a template that knows none: an answer's calls as it wrote them, results as what the
/// user says next.
fn calls_as_text(template: &ChatTemplate, said: &mut Vec<Message>, messages: &[WireMessage]) {
    let text = |content: &Content| match content {
        Content::Text(text) => text.clone(),
        Content::Parts(parts) => parts.concat(),
    };
    let source = template.source().unwrap_or_default();
    let knows_results = source.contains("'tool'") || source.contains("\"tool\"");
    let mut whole: Vec<Message> = Vec::with_capacity(said.len());
    let mut results = false;
    for (mut message, wire) in said.drain(..).zip(messages) {
        if let Some(calls) =
            wire.tool_calls.as_ref().and_then(Value::as_array).filter(|list| !list.is_empty())
        {
            let written: Vec<String> = calls.iter().map(|call| written(&call["function"])).collect();
            let written = match &written[..] {
                [one] => one.clone(),
                several => format!("[{}]", several.join(", ")),
            };
            let before = text(&message.content);
            message.content =
                Content::Text(if before.is_empty() { written } else { before + "\n" + &written });
        }
        let result = message.role == "tool" && !knows_results;
        if result {
            let mut response = json!({ "tool_response": text(&message.content) });
            if let Some(id) = &wire.tool_call_id {
                response["tool_call_id"] = id.as_str().into();
            }
            message = Message::new("user", response.to_string());
        }
        match whole.last_mut().filter(|_| results && message.role == "user") {
            Some(last) => {
                let more = text(&message.content);
                last.content = Content::Text(text(&last.content) + "\n" + &more);
            }
            None => whole.push(message),
        }
        results = result;
    }
    *said = whole;
}

/// A call, as an answer writes it.
fn written(function: &Value) -> String {
    let arguments = match &function["arguments"] {
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        arguments => arguments.clone(),
    };
    json!({ "name": function["name"], "arguments": arguments }).to_string()
}

/// A message; with `specials` those within it are marked.
fn read(index: usize, message: &WireMessage, specials: Option<&[String]>) -> Result<Message, ApiError> {
    let mark = |text: &str| match specials {
        Some(specials) => marked(text, specials),
        None => text.to_string(),
    };
    let refuse = |what: &str| {
        let param = format!("messages[{index}].content");
        let message = format!("`{param}`: {what}");
        ApiError::field(param, message)
    };
    let content = match &message.content {
        None | Some(Value::Null) => Content::Text(String::new()),
        Some(Value::String(text)) => Content::Text(mark(text)),
        Some(Value::Array(parts)) => {
            let part = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text" | "input_text"), Some(text)) => Ok(mark(text)),
                (Some(other @ ("image_url" | "input_audio" | "file")), _) => {
                    Err(refuse(&format!("the model reads texts alone, found `{other}`")))
                }
                _ => Err(refuse("expected parts {\"type\": \"text\", \"text\": ...}")),
            };
            Content::Parts(parts.iter().map(part).collect::<Result<_, _>>()?)
        }
        Some(_) => return Err(refuse("expected a text or a list of parts")),
    };
    Ok(Message::new(message.role.clone(), content))
}

/// A text whose special tokens have a mark after their first character.
fn marked(text: &str, specials: &[String]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let special = specials.iter().find(|special| rest.starts_with(special.as_str()));
        let taken = special.map_or(first.len_utf8(), String::len);
        out.push(if first == MARK { char::REPLACEMENT_CHARACTER } else { first });
        if special.is_some() {
            out.push(MARK);
        }
        out.push_str(&rest[first.len_utf8()..taken]);
        rest = &rest[taken..];
    }
    out
}

/// The ids of a rendered prompt, BOS first.
pub(crate) fn encode(vocabulary: &Vocabulary, text: &str, param: &str) -> Result<Vec<u32>, ApiError> {
    let (tokenizer, context) = (vocabulary.tokenizer()?, vocabulary.context);
    let failed = |error: file::Error| match error {
        file::Error::Long { tokens, .. } => ApiError::too_long(param, tokens, context),
        error => ApiError::field(param, error.to_string()),
    };
    let mut ids = vec![];
    for (index, part) in text.split(MARK).enumerate() {
        let encode = |piece: &str, bos| tokenizer.encode_within(piece, bos, context);
        ids.extend(vocabulary.pieces.encode(part, index == 0, context, encode).map_err(failed)?);
        if ids.len() >= context {
            return Err(ApiError::too_long(param, ids.len(), context));
        }
    }
    Ok(ids)
}

/// The prompts of `/v1/completions`: a text, ids, or a list of either.
pub(crate) fn prompts(vocabulary: &Vocabulary, prompt: &Value) -> Result<Vec<Vec<u32>>, ApiError> {
    let expected = "expected a text, a list of token ids, or a list of either";
    let refuse = || ApiError::field("prompt", format!("`prompt`: {expected}"));
    let list = match prompt {
        Value::String(text) => return Ok(vec![encode(vocabulary, text, "prompt")?]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            return Ok(vec![ids(vocabulary, list)?]);
        }
        Value::Array(list) => list,
        _ => return Err(refuse()),
    };
    if list.is_empty() || list.len() > MOST_PROMPTS {
        let message = format!("`prompt`: expected 1 to {MOST_PROMPTS} prompts, found {}", list.len());
        return Err(ApiError::field("prompt", message));
    }
    let one = |prompt: &Value| match prompt {
        Value::String(text) => encode(vocabulary, text, "prompt"),
        Value::Array(list) => ids(vocabulary, list),
        _ => Err(refuse()),
    };
    list.iter().map(one).collect()
}

/// Ids as they are.
fn ids(vocabulary: &Vocabulary, list: &[Value]) -> Result<Vec<u32>, ApiError> {
    let (vocab, context) = (vocabulary.size, vocabulary.context);
    if list.is_empty() || list.len() >= context {
        let message = format!("`prompt`: expected 1 to {} tokens, found {}", context - 1, list.len());
        return Err(match list.len() {
            0 => ApiError::field("prompt", message),
            tokens => ApiError::too_long("prompt", tokens, context),
        });
    }
    let id = |value: &Value| {
        let id = value.as_u64().filter(|&id| id < vocab as u64);
        id.map(|id| id as u32).ok_or_else(|| {
            ApiError::field("prompt", format!("`prompt`: expected token ids below {vocab}, found {value}"))
        })
    };
    list.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_are_marked_the_longest_first() {
        let specials = ["<eos>>".to_string(), "<eos>".to_string()];
        assert_eq!(marked("a<eos>b<eos>>", &specials), format!("a<{MARK}eos>b<{MARK}eos>>"));
        assert_eq!(marked(&format!("x{MARK}y<eo"), &specials), "x\u{FFFD}y<eo");
    }
}
