//! Constrained answers: JSON, schemas, grammars; those that nothing fulfils, and hostile ones.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::answers::{PROMPT, chat, completion, text};
use super::process::Server;

fn schema(schema: Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "it", "schema": schema } })
}

#[test]
fn answers_fulfil_their_schema() {
    let server = Server::start(&[]);
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 8 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "rank": { "enum": ["mr", "mrs", "miss"] },
        },
        "required": ["name", "age", "rank"],
        "additionalProperties": false,
    });
    for seed in 0..4 {
        let more = json!({ "seed": seed, "max_tokens": 200, "response_format": schema(person.clone()) });
        let answer = server.ok("/v1/chat/completions", &chat("Who is it?", more));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        let found: Value = serde_json::from_str(text(&answer)).unwrap_or_else(|_| panic!("{answer}"));
        assert!(found["name"].as_str().is_some_and(|name| name.chars().count() <= 8), "{found}");
        assert!(found["age"].as_u64().is_some_and(|age| age <= 120), "{found}");
        assert!(["mr", "mrs", "miss"].contains(&found["rank"].as_str().unwrap()), "{found}");
    }
    let lark = "start: \"yes\" | \"no\" | \"perhaps\"";
    for seed in 0..4 {
        let body = completion(PROMPT, json!({ "seed": seed, "grammar": lark, "max_tokens": 50 }));
        let answer = server.ok("/v1/completions", &body);
        assert!(["yes", "no", "perhaps"].contains(&text(&answer)), "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    // The same seed, the same answer; the schema beside the format's name, too.
    let list = json!({ "type": "array", "items": { "type": "boolean" }, "maxItems": 3 });
    let flat = json!({ "type": "json_schema", "schema": list });
    let body = completion(PROMPT, json!({ "seed": 3, "max_tokens": 100, "response_format": flat }));
    let answer = server.ok("/v1/completions", &body);
    let found: Value = serde_json::from_str(text(&answer)).unwrap();
    assert!(
        found.as_array().is_some_and(|list| list.len() <= 3 && list.iter().all(Value::is_boolean)),
        "{found}"
    );
    assert_eq!(server.ok("/v1/completions", &body)["choices"], answer["choices"]);
    let object = json!({ "type": "json_object" });
    let body = completion(PROMPT, json!({ "seed": 3, "max_tokens": 20, "response_format": object }));
    assert!(text(&server.ok("/v1/completions", &body)).trim_start().starts_with('{'));
}

#[test]
fn schemas_that_cannot_be_are_refused_in_time() {
    let server = Server::start(&[]);
    let deep =
        (0..60).fold(json!({ "type": "string" }), |inner, _| json!({ "type": "array", "items": inner }));
    let wide: serde_json::Map<String, Value> =
        (0..20_000).map(|i| (format!("field{i}"), json!({ "type": "string" }))).collect();
    let cases = [
        schema(json!({ "type": "nothing" })),
        schema(json!({ "type": "integer", "minimum": 5, "maximum": 3 })),
        schema(json!({ "$ref": "#/$defs/none" })),
        schema(json!({ "type": "string", "pattern": "(" })),
        schema(json!({ "type": "object", "properties": wide })),
    ];
    for format in cases {
        let start = Instant::now();
        let body = completion(PROMPT, json!({ "max_tokens": 4, "response_format": format }));
        server.post("/v1/completions", &body).refuses(400, &["response_format"]);
        assert!(start.elapsed() < Duration::from_secs(30));
    }
    for lark in ["start: start", "start: /(/", "begin: \"a\"", &"x".repeat(1 << 20)] {
        let body = completion(PROMPT, json!({ "max_tokens": 4, "grammar": lark }));
        server.post("/v1/completions", &body).refuses(400, &["grammar"]);
    }
    // Deep and exponential ones are bounded work either way.
    let exponential = json!({ "type": "string", "pattern": "(((a{1,1000}){1,1000}){1,1000}){1,1000}" });
    for hostile in [deep, exponential] {
        let start = Instant::now();
        let body = completion(PROMPT, json!({ "max_tokens": 4, "response_format": schema(hostile) }));
        let status = server.post("/v1/completions", &body).status;
        assert!(status == 200 || status == 400, "{status}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }
    let alive = completion(PROMPT, json!({ "max_tokens": 2 }));
    server.ok("/v1/completions", &alive);
}
