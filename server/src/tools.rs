//! Functions that an answer may call: what is asked for, the grammar of a call, and calls found in answers.
//!
//! In: `tools` and `tool_choice`, the text of an answer as it comes. Out: what of it is said, and what is called. A
//! call is a JSON object `{"name", "arguments"}` and nothing else, alone or in a list, maybe within `tool_call`,
//! `tool_calls` or a fence; `parameters` means `arguments`, as Google's documentation of Gemma has it. Invariant: what
//! is no call of a function that was given is text, unchanged.

use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// The most functions.
const MOST_TOOLS: usize = 128;
/// What a fence begins and ends with.
const FENCE: &str = "```";

/// What an answer has to do with the functions.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    /// Call some or none.
    Auto,
    /// Call one or more.
    Required,
    /// Call this one.
    Named(String),
}

/// The functions of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// As they came.
    list: Value,
    /// Names, and schemas of arguments.
    functions: Vec<(String, Value)>,
    choice: Choice,
    /// Whether an answer that must call may call several.
    parallel: bool,
}

/// A function that an answer calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

impl Tools {
    /// Those of a request's fields; none if there are none, or none may be called.
    pub(crate) fn new(
        tools: Option<&Value>,
        choice: Option<&Value>,
        parallel: Option<bool>,
    ) -> Result<Option<Tools>, ApiError> {
        let refuse = |field: &str, what: &str| Err(ApiError::field(field, format!("`{field}`: {what}")));
        let list = match tools {
            None | Some(Value::Null) => &[],
            Some(Value::Array(list)) if list.len() <= MOST_TOOLS => &list[..],
            Some(Value::Array(_)) => return refuse("tools", &format!("expected at most {MOST_TOOLS}")),
            Some(_) => return refuse("tools", "expected a list"),
        };
        let mut functions = Vec::with_capacity(list.len());
        for (index, tool) in list.iter().enumerate() {
            let field = format!("tools[{index}].function");
            let function = &tool["function"];
            let Some(name) = function["name"].as_str().filter(|name| !name.is_empty()) else {
                return refuse(&field, "expected an object with a `name`");
            };
            let schema = match &function["parameters"] {
                Value::Null => json!({ "type": "object", "properties": {}, "additionalProperties": false }),
                schema @ Value::Object(_) => schema.clone(),
                _ => return refuse(&format!("{field}.parameters"), "expected a schema"),
            };
            functions.push((name.to_string(), schema));
        }
        let expected = "expected none, auto, required or {\"type\": \"function\", \"function\": {\"name\"}}";
        let choice = match choice {
            None | Some(Value::Null) => Choice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "auto" => Choice::Auto,
                "required" => Choice::Required,
                "none" => return Ok(None),
                _ => return refuse("tool_choice", expected),
            },
            Some(choice) => match choice["function"]["name"].as_str() {
                Some(name) if functions.iter().any(|(known, _)| known == name) => Choice::Named(name.into()),
                Some(_) => return refuse("tool_choice", "there is no tool of this name"),
                None => return refuse("tool_choice", expected),
            },
        };
        if functions.is_empty() {
            return match choice {
                Choice::Auto => Ok(None),
                Choice::Required | Choice::Named(_) => refuse("tool_choice", "it needs `tools`"),
            };
        }
        let parallel = parallel.unwrap_or(false);
        Ok(Some(Tools { list: Value::from(list), functions, choice, parallel }))
    }

    /// The list, as it came.
    pub(crate) fn list(&self) -> &Value {
        &self.list
    }

    /// What tells a model of them whose chat template does not.
    pub(crate) fn instructions(&self) -> String {
        let functions: Vec<String> =
            self.list.as_array().into_iter().flatten().map(|tool| tool["function"].to_string()).collect();
        format!(
            "You can call these functions:\n{}\nTo call one, answer with {{\"name\": its name, \"arguments\": an \
             object}} and nothing else; to call several, with a JSON list of such objects.",
            functions.join("\n")
        )
    }

    /// The schema of an answer that must call.
    pub(crate) fn schema(&self) -> Option<Value> {
        let chosen = |name: &str| match &self.choice {
            Choice::Auto => false,
            Choice::Required => true,
            Choice::Named(chosen) => chosen == name,
        };
        let (mut calls, mut schemas) = (vec![], Map::new());
        for (index, (name, schema)) in self.functions.iter().enumerate().filter(|(_, (name, _))| chosen(name))
        {
            let place = format!("tool{index}");
            calls.push(json!({
                "type": "object",
                "properties": {
                    "name": { "const": name },
                    "arguments": { "$ref": format!("#/$defs/{place}") },
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            }));
            let mut schema = schema.clone();
            refer(&mut schema, &format!("#/$defs/{place}"));
            schemas.insert(place, schema);
        }
        let call = match calls.len() {
            0 => return None,
            1 => calls.remove(0),
            _ => json!({ "anyOf": calls }),
        };
        let several = self.parallel && self.choice == Choice::Required;
        let mut whole = if several { json!({ "type": "array", "items": call, "minItems": 1 }) } else { call };
        whole["$defs"] = schemas.into();
        Some(whole)
    }

    /// The calls that a text is, if it is nothing else.
    fn calls(&self, text: &str) -> Option<Vec<Call>> {
        let value: Value = serde_json::from_str(unfenced(text)).ok()?;
        let value = match &value {
            Value::Object(fields) if fields.len() == 1 => {
                fields.get("tool_calls").or(fields.get("tool_call")).unwrap_or(&value)
            }
            _ => &value,
        };
        match value {
            Value::Array(list) if !list.is_empty() => list.iter().map(|call| self.call(call)).collect(),
            one => self.call(one).map(|call| vec![call]),
        }
    }

    fn call(&self, value: &Value) -> Option<Call> {
        let value = if value["function"].is_object() { &value["function"] } else { value };
        let name = value["name"].as_str()?;
        self.functions.iter().find(|(known, _)| known == name)?;
        let arguments = match (value.get("arguments"), value.get("parameters")) {
            (Some(Value::String(text)), _) => text.clone(),
            (Some(arguments @ Value::Object(_)), _) | (None, Some(arguments @ Value::Object(_))) => {
                arguments.to_string()
            }
            _ => return None,
        };
        Some(Call { name: name.into(), arguments })
    }
}

/// Makes references within a schema ones to where it stands.
fn refer(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" => {
                        if let Some(rest) = target.strip_prefix('#') {
                            *target = format!("{place}{rest}");
                        }
                    }
                    value => refer(value, place),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| refer(value, place)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What a text has within a fence, if it is one.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix(FENCE).and_then(|rest| rest.strip_suffix(FENCE));
    // The rest of the first line says what it is.
    inner.and_then(|inner| inner.split_once('\n')).map_or(text, |(_, inner)| inner)
}

/// An answer that may be a call, as it comes.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// What may be a call.
    held: String,
    /// Whether it is none.
    says: bool,
}

impl Heard {
    /// More of its text: what of it is said.
    pub(crate) fn take(&mut self, more: &str) -> String {
        if self.says {
            return more.into();
        }
        self.held.push_str(more);
        let start = self.held.trim_start();
        let may_call = start.starts_with(['{', '[']) || start.starts_with(FENCE) || FENCE.starts_with(start);
        if may_call {
            return String::new();
        }
        self.says = true;
        std::mem::take(&mut self.held)
    }

    /// At its end: what of it was not said yet, or what it calls.
    pub(crate) fn end(&mut self, tools: &Tools) -> (String, Vec<Call>) {
        let held = std::mem::take(&mut self.held);
        match tools.calls(&held) {
            Some(calls) => (String::new(), calls),
            None => (held, vec![]),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tools(choice: Value) -> Tools {
        let schema = json!({
            "type": "object",
            "properties": { "place": { "$ref": "#/$defs/place" } },
            "$defs": { "place": { "type": "string" } },
        });
        let list = json!([
            { "type": "function", "function": { "name": "weather", "parameters": schema } },
            { "type": "function", "function": { "name": "time" } },
        ]);
        Tools::new(Some(&list), Some(&choice), None).unwrap().unwrap()
    }

    /// What is said of a text that comes in pieces of so many characters, and what it calls.
    fn heard(text: &str, size: usize) -> (String, Vec<Call>) {
        let (mut heard, mut said) = (Heard::default(), String::new());
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(size) {
            said += &heard.take(&piece.iter().collect::<String>());
        }
        let (rest, calls) = heard.end(&tools(json!("auto")));
        (said + &rest, calls)
    }

    #[test]
    fn calls_are_found_in_every_form() {
        let weather = Call { name: "weather".into(), arguments: r#"{"place":"Bath"}"#.into() };
        let forms = [
            r#"{"name": "weather", "arguments": {"place": "Bath"}}"#,
            r#" {"name": "weather", "parameters": {"place": "Bath"}} "#,
            r#"{"tool_call": {"name": "weather", "arguments": {"place": "Bath"}}}"#,
            r#"{"tool_calls": [{"name": "weather", "arguments": {"place": "Bath"}}]}"#,
            r#"[{"type": "function", "function": {"name": "weather", "arguments": "{\"place\":\"Bath\"}"}}]"#,
            "```json\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Bath\"}}\n```",
        ];
        for form in forms {
            for size in [1, 3, 1000] {
                assert_eq!(heard(form, size), (String::new(), vec![weather.clone()]), "{form}");
            }
        }
        let two = r#"[{"name":"weather","arguments":{"place":"Bath"}},{"name":"time","arguments":{}}]"#;
        assert_eq!(heard(two, 2).1.len(), 2);
    }

    #[test]
    fn what_is_no_call_is_said() {
        let texts = [
            "",
            "It rains.",
            "  `code` and more",
            "``",
            "[1, 2]",
            "{\"name\": \"weather\"",
            r#"{"name": "none", "arguments": {}}"#,
            r#"[{"name": "time", "arguments": {}}, 5]"#,
            r#"{"name": "time", "arguments": {}} and more"#,
            "```\nfn main() {}\n```",
        ];
        for text in texts {
            for size in [1, 2, 1000] {
                assert_eq!(heard(text, size), (text.to_string(), vec![]), "{text}");
            }
        }
        // What cannot be a call does not wait.
        assert_eq!(Heard::default().take(" It"), " It");
    }

    #[test]
    fn schemas_are_of_the_functions_that_may_be_called() {
        assert_eq!(tools(json!("auto")).schema(), None);
        let both = tools(json!("required")).schema().unwrap();
        assert_eq!(both["anyOf"][1]["properties"]["name"]["const"], "time");
        let place = &both["$defs"]["tool0"]["properties"]["place"]["$ref"];
        assert_eq!(
            both.pointer(place.as_str().unwrap().strip_prefix('#').unwrap()).unwrap()["type"],
            "string"
        );
        let named = tools(json!({ "type": "function", "function": { "name": "time" } })).schema().unwrap();
        assert_eq!(named["properties"]["name"]["const"], "time");
    }
}
