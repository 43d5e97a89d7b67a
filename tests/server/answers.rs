//! What tests make of answers.

use serde_json::{Value, json};

use super::client;
use super::process::Server;

/// A prompt of the golden files.
pub(crate) const PROMPT: &str = "It is a truth universally acknowledged";

/// The text of the first choice.
#[track_caller]
pub(crate) fn text(answer: &Value) -> &str {
    let choice = &answer["choices"][0];
    choice["text"].as_str().or(choice["message"]["content"].as_str()).expect("a text")
}

/// A body of `/v1/completions`: a prompt, and what is set beside it.
pub(crate) fn completion(prompt: &str, more: Value) -> Value {
    let mut body = json!({ "prompt": prompt });
    let fields = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(fields);
    body
}

/// A body of `/v1/chat/completions` with one message.
pub(crate) fn chat(message: &str, more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": message }] });
    let fields = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(fields);
    body
}

/// Chunks of a streamed answer.
#[track_caller]
pub(crate) fn stream(server: &Server, path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let response = client::open(&server.address, "POST", path, &[], body.to_string().as_bytes());
    let response = response.expect("a response");
    assert_eq!(response.status, 200);
    response.events()
}

/// The text of chunks.
pub(crate) fn joined(chunks: &[Value]) -> String {
    let piece = |chunk: &Value| {
        let choice = &chunk["choices"][0];
        choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default().to_string()
    };
    chunks.iter().map(piece).collect()
}
