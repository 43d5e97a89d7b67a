//! Calls of functions: required ones, of their schemas; calls and results in what is said; refusals.

use serde_json::{Value, json};

use super::answers::{chat, stream};
use super::process::Server;

const CHAT: &str = "/v1/chat/completions";

fn tools() -> Value {
    let weather = json!({
        "type": "object",
        "properties": {
            "place": { "enum": ["Bath", "London", "Meryton"] },
            "days": { "$ref": "#/$defs/days" },
        },
        "required": ["place", "days"],
        "additionalProperties": false,
        "$defs": { "days": { "type": "integer", "minimum": 1, "maximum": 7 } },
    });
    json!([
        { "type": "function", "function": { "name": "weather", "description": "How it is", "parameters": weather } },
        { "type": "function", "function": { "name": "time" } },
    ])
}

fn ask(choice: Value, seed: u64) -> Value {
    let more = json!({ "tools": tools(), "tool_choice": choice, "seed": seed, "max_tokens": 100 });
    chat("How is the weather?", more)
}

/// Checks a call, and gives its name.
#[track_caller]
fn checked(call: &Value) -> String {
    let name = call["function"]["name"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    match name {
        "weather" => {
            assert!(
                ["Bath", "London", "Meryton"].contains(&arguments["place"].as_str().unwrap()),
                "{arguments}"
            );
            assert!((1..=7).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
        }
        "time" => assert_eq!(arguments, json!({})),
        other => panic!("{other}"),
    }
    name.to_string()
}

#[test]
fn a_call_that_is_required_is_made() {
    let server = Server::start(&[]);
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for (choice, seed) in [(json!("required"), 1), (json!("required"), 2), (named.clone(), 3), (named, 4)] {
        let body = ask(choice.clone(), seed);
        let answer = server.ok(CHAT, &body);
        let choice_ = &answer["choices"][0];
        assert_eq!(choice_["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(choice_["message"]["content"], Value::Null);
        let calls = choice_["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["type"]), (1, &json!("function")));
        let name = checked(&calls[0]);
        assert!(choice == "required" || name == "weather", "{name}");

        // Streamed, the same in deltas.
        let chunks = stream(&server, CHAT, body);
        let deltas: Vec<&Value> =
            chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
        assert!(deltas[0]["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{deltas:?}");
        assert_eq!(deltas[0]["function"]["name"], name.as_str());
        let text: String =
            deltas.iter().map(|delta| delta["function"]["arguments"].as_str().unwrap()).collect();
        assert_eq!(calls[0]["function"]["arguments"], text.as_str());
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").is_empty())
        );
    }
    let mut several = ask(json!("required"), 5);
    several["parallel_tool_calls"] = json!(true);
    let answer = server.ok(CHAT, &several);
    if answer["choices"][0]["finish_reason"] == "tool_calls" {
        answer["choices"][0]["message"]["tool_calls"]
            .as_array()
            .unwrap()
            .iter()
            .for_each(|call| drop(checked(call)));
    }
}

#[test]
fn an_answer_that_calls_nothing_is_text() {
    let server = Server::start(&[]);
    let body = |choice: Value| {
        let mut body = ask(choice, 1);
        body["max_tokens"] = json!(12);
        body
    };
    for choice in [json!("auto"), json!("none"), Value::Null] {
        let answer = server.ok(CHAT, &body(choice.clone()));
        let message = &answer["choices"][0]["message"];
        assert!(message.get("tool_calls").is_none() && message["content"].is_string(), "{answer}");
        let chunks = stream(&server, CHAT, body(choice));
        assert_eq!(super::answers::joined(&chunks), message["content"].as_str().unwrap());
    }
}

#[test]
fn prompts_tell_of_functions_calls_and_results() {
    let server = Server::start(&[]);
    let call = json!({ "id": "c1", "type": "function", "function": { "name": "time", "arguments": "{\"zone\": 5}" } });
    let messages = json!([
        { "role": "user", "content": "What time is it?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "c1", "content": "half past four" },
        { "role": "user", "content": "Thank you." },
    ]);
    let prompt = server.ok("/apply-template", &json!({ "messages": messages, "tools": tools() }));
    let prompt = prompt["prompt"].as_str().unwrap();
    for part in ["\"Meryton\"", r#"{"name":"time","arguments":{"zone":5}}"#, "half past four", "Thank you."] {
        assert!(prompt.contains(part), "{part}: {prompt}");
    }
    let body = json!({ "messages": messages, "tools": tools(), "max_tokens": 4 });
    server.ok(CHAT, &body);
}

#[test]
fn what_cannot_be_called_is_refused() {
    let server = Server::start(&[]);
    let refused = |body: Value, field: &str| server.post(CHAT, &body).refuses(400, &[field]);
    refused(ask(json!("always"), 1), "tool_choice");
    refused(ask(json!({ "type": "function", "function": { "name": "none" } }), 1), "tool_choice");
    refused(chat("a", json!({ "tool_choice": "required" })), "tool_choice");
    refused(chat("a", json!({ "tools": [{ "type": "function" }] })), "tools[0].function");
    let bad =
        json!([{ "type": "function", "function": { "name": "x", "parameters": { "type": "nothing" } } }]);
    refused(chat("a", json!({ "tools": bad, "tool_choice": "required" })), "tools");
    let mut both = ask(json!("required"), 1);
    both["response_format"] = json!({ "type": "json_object" });
    refused(both, "tool_choice");
}
