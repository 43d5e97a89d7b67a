//! The wire: shapes of answers, parameters, refusals.

use serde_json::{Value, json};

use super::answers::{PROMPT, chat, completion, joined, stream, text};
use super::client;
use super::process::{Server, binary};

#[test]
fn greedy_text_is_the_commands() {
    let server = Server::start(&[]);
    let output = binary().args(["run", "--temp", "0", "-n", "40", PROMPT]).output().unwrap();
    let expected = String::from_utf8(output.stdout).unwrap();
    let body = completion(PROMPT, json!({ "temperature": 0, "max_tokens": 40 }));
    let answer = server.ok("/v1/completions", &body);
    assert_eq!(text(&answer), expected.strip_suffix('\n').unwrap());
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "object", "created", "model", "system_fingerprint", "seed", "choices", "usage"]);
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 40);
    assert_eq!(answer["usage"]["prompt_tokens"], 13);
    assert_eq!(answer["usage"]["total_tokens"], 53);

    // Streamed, the same text; a sampled one is the command's, too.
    let chunks = stream(&server, "/v1/completions", body);
    assert_eq!(joined(&chunks), text(&answer));
    let args = ["run", "--temp", "0.9", "--top-k", "0", "--top-p", "0.9", "--seed", "5", "-n", "40", PROMPT];
    let output = binary().args(args).output().unwrap();
    let expected = String::from_utf8(output.stdout).unwrap();
    let how = json!({ "temperature": 0.9, "top_p": 0.9, "seed": 5, "max_tokens": 40 });
    let answer = server.ok("/v1/completions", &completion(PROMPT, how));
    assert_eq!(text(&answer), expected.strip_suffix('\n').unwrap());
}

#[test]
fn chats_stream_as_openai_has_it() {
    let server = Server::start(&["--alias", "austen"]);
    let more = json!({ "seed": 3, "max_tokens": 12, "stream_options": { "include_usage": true } });
    let chunks = stream(&server, "/v1/chat/completions", chat("Who are you?", more));
    let first = &chunks[0];
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["model"], "austen");
    assert_eq!(first["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let [.., last, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["usage"].is_null()));
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    assert!(chunks.iter().all(|chunk| chunk["id"] == first["id"]));

    let whole =
        server.ok("/v1/chat/completions", &chat("Who are you?", json!({ "seed": 3, "max_tokens": 12 })));
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    assert_eq!(text(&whole), joined(&chunks));
    // Whether instructions go into a message of their own is the template's business.
    let body = json!({ "messages": [
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "Who " }, { "type": "text", "text": "are you?" }] },
    ]});
    let prompt = server.ok("/apply-template", &body)["prompt"].as_str().unwrap().to_string();
    assert!(prompt.contains("Be brief.") && prompt.contains("Who are you?"), "{prompt}");
}

#[test]
fn several_answers_have_seeds_of_their_own() {
    let server = Server::start(&[]);
    let how = |n: usize, seed: u64| json!({ "n": n, "seed": seed, "max_tokens": 16 });
    let answer = server.ok("/v1/completions", &completion(PROMPT, how(3, 40)));
    let texts: Vec<&str> =
        answer["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 3);
    for (index, expected) in texts.iter().enumerate() {
        let alone = server.ok("/v1/completions", &completion(PROMPT, how(1, 40 + index as u64)));
        assert_eq!(text(&alone), *expected, "answer {index}");
    }
    // Several prompts, each with several answers.
    let both = json!({ "prompt": [PROMPT, [2, 17, 5]], "n": 2, "seed": 40, "max_tokens": 16 });
    let both = server.ok("/v1/completions", &both);
    let choices = both["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert!(choices[0]["text"] == texts[0] && choices[1]["text"] == texts[1]);
    assert_eq!(both["usage"]["prompt_tokens"], 16);
    assert_eq!(both["usage"]["completion_tokens"], 64);
    // Without a seed the answer says which it had.
    let answer = server.ok("/v1/completions", &completion(PROMPT, json!({})));
    let again = json!({ "seed": answer["seed"] });
    assert_eq!(text(&server.ok("/v1/completions", &completion(PROMPT, again))), text(&answer));
}

#[test]
fn parameters_do_what_they_say() {
    let server = Server::start(&[]);
    let run = |more: Value| server.ok("/v1/completions", &completion(PROMPT, more));
    let greedy = run(json!({ "temperature": 0, "max_tokens": 30, "logprobs": 0 }));
    let plain = text(&greedy).to_string();
    // A stop text ends it and is not in it; one of several; across tokens.
    let stop = &plain[10..16];
    let stopped = run(json!({ "temperature": 0, "max_tokens": 30, "stop": ["never", stop], "logprobs": 0 }));
    assert_eq!(text(&stopped), &plain[..plain.find(stop).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let told: Vec<&str> = stopped["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    assert!(told.concat().starts_with(text(&stopped)), "{told:?}");
    // The first token, forbidden and forced.
    let first = greedy["choices"][0]["logprobs"]["tokens"][0].as_str().unwrap();
    let ids = server.ok("/tokenize", &json!({ "content": first }))["tokens"].clone();
    let id = ids[0].to_string();
    let other = run(json!({ "temperature": 0, "max_tokens": 1, "logit_bias": { id.clone(): -100 } }));
    assert_ne!(text(&other), first);
    let forced = run(json!({ "temperature": 1, "seed": 1, "max_tokens": 3, "logit_bias": { id: 100 } }));
    assert_eq!(text(&forced), first.repeat(3));
    // What was said is less likely then.
    let penalised = |name: &str| run(json!({ "temperature": 0, "max_tokens": 60, name: 2.0 }));
    let longer = run(json!({ "temperature": 0, "max_tokens": 60 }));
    for name in ["presence_penalty", "frequency_penalty", "repetition_penalty"] {
        assert_ne!(text(&penalised(name)), text(&longer), "{name}");
    }
    let greedy_by = [json!({ "top_k": 1 }), json!({ "top_p": 0.0 }), json!({ "min_p": 1.0 })];
    for mut how in greedy_by {
        how["max_tokens"] = json!(30);
        assert_eq!(text(&run(how)), plain);
    }
    let echoed = run(json!({ "temperature": 0, "max_tokens": 30, "echo": true }));
    assert_eq!(text(&echoed), format!("{PROMPT}{plain}"));
    assert_eq!(run(json!({ "max_tokens": 0 }))["usage"]["completion_tokens"], 0);
}

#[test]
fn log_probabilities_are_the_models() {
    let server = Server::start(&[]);
    let more = json!({ "temperature": 0, "max_tokens": 5, "logprobs": true, "top_logprobs": 3 });
    let body = chat("Hello", more);
    let answer = server.ok("/v1/chat/completions", &body);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let mut bytes: Vec<u8> = vec![];
    for place in content {
        let top = place["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token chosen is the first.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&place["token"], &place["logprob"]));
        let logprob = |i: usize| top[i]["logprob"].as_f64().unwrap();
        assert!(logprob(0) <= 0.0 && logprob(0) >= logprob(1) && logprob(1) >= logprob(2), "{place}");
        bytes.extend(place["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8));
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), text(&answer));
    let streamed = stream(&server, "/v1/chat/completions", body);
    let told: Vec<Value> = streamed
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(&told, content);

    // Of a prompt's tokens, too: those that its continuation had when it was an answer.
    let greedy = server.ok(
        "/v1/completions",
        &completion(PROMPT, json!({ "temperature": 0, "max_tokens": 4, "logprobs": 1 })),
    );
    let ids = |text: &str| {
        let body = json!({ "content": text, "add_special": true });
        server.ok("/tokenize", &body)["tokens"].as_array().unwrap().len()
    };
    let whole = format!("{PROMPT}{}", text(&greedy));
    let scored = server
        .ok("/v1/completions", &completion(&whole, json!({ "max_tokens": 0, "logprobs": 1, "echo": true })));
    let logprobs = &scored["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), ids(&whole));
    assert!(logprobs["token_logprobs"][0].is_null());
    assert_eq!(text(&scored), whole);
    let offsets: Vec<usize> =
        logprobs["text_offset"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap() as usize).collect();
    for (offset, token) in offsets.iter().zip(logprobs["tokens"].as_array().unwrap()).skip(1) {
        assert!(whole[*offset..].starts_with(token.as_str().unwrap()), "{offset} {token}");
    }
    // Prefilled, not decoded: nearly the same.
    let decoded = greedy["choices"][0]["logprobs"]["token_logprobs"][0].as_f64().unwrap();
    let prefilled = logprobs["token_logprobs"][ids(PROMPT)].as_f64().unwrap();
    assert!((decoded - prefilled).abs() < 0.05, "{decoded} {prefilled}");
}

#[test]
fn what_is_wrong_is_named() {
    let server = Server::start(&["--parallel", "4"]);
    let cases = [
        (json!({ "max_tokens": "many" }), "max_tokens"),
        (json!({ "max_tokens": -5 }), "max_tokens"),
        (json!({ "max_tokens": 1e30 }), "max_tokens"),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "temperature": [1] }), "temperature"),
        (json!({ "top_p": 1.5 }), "top_p"),
        (json!({ "top_k": -7 }), "top_k"),
        (json!({ "min_p": 2 }), "min_p"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 5 }), "n"),
        (json!({ "n": 9_000_000_000_000_000_000u64 }), "n"),
        (json!({ "seed": 1.5 }), "seed"),
        (json!({ "stop": 5 }), "stop"),
        (json!({ "stop": [1] }), "stop"),
        (json!({ "stop": vec!["x"; 100] }), "stop"),
        (json!({ "logit_bias": { "999999999": 1 } }), "logit_bias.999999999"),
        (json!({ "logit_bias": { "-1": 1 } }), "logit_bias.-1"),
        (json!({ "logit_bias": { "5": 1000 } }), "logit_bias.5"),
        (json!({ "presence_penalty": 3 }), "presence_penalty"),
        (json!({ "frequency_penalty": "x" }), "frequency_penalty"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (json!({ "stream": "yes" }), "stream"),
        (json!({ "stream_options": { "include_usage": true } }), "stream_options"),
        (json!({ "response_format": { "type": "xml" } }), "response_format"),
        (json!({ "logprobs": 21 }), "logprobs"),
        (json!({ "suffix": "end" }), "suffix"),
        (json!({ "best_of": 3 }), "best_of"),
        (json!({ "prompt": 7 }), "prompt"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "prompt": [99_999_999] }), "prompt"),
        (json!({ "prompt": [-1] }), "prompt"),
        (json!({ "prompt": [[1, 2], "a", 5] }), "prompt"),
        (json!({ "prompt": vec!["a"; 65] }), "prompt"),
    ];
    for (more, param) in cases {
        let answer = server.post("/v1/completions", &completion("a", more.clone()));
        answer.refuses(400, &[param]);
        assert_eq!(answer.json()["error"]["param"], param, "{more}");
    }
    let cases = [
        (json!({}), "messages"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": "hello" }), "messages"),
        (json!({ "messages": [{ "content": "x" }] }), "messages[0]"),
        (json!({ "messages": [{ "role": "user", "content": 5 }] }), "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "messages[0].content",
        ),
        (json!({ "messages": [{ "role": "user", "content": "x" }], "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "messages": [{ "role": "user", "content": "x" }], "tools": 5 }), "tools"),
        (json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 0 }), "max_tokens"),
    ];
    for (body, param) in cases {
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, 400, "{body}");
        let found = answer.json()["error"]["param"].as_str().unwrap().to_string();
        assert!(found.starts_with(param), "{found}: {body}");
    }
    // Longer than the context.
    let long = "word ".repeat(20_000);
    let answer = server.post("/v1/completions", &completion(&long, json!({})));
    answer.refuses(400, &["prompt", "context"]);
    assert_eq!(answer.json()["error"]["type"], "exceed_context_size_error");
    // What nobody knows is passed over.
    server.ok("/v1/completions", &completion("a", json!({ "max_tokens": 1, "user": "me", "future": [1] })));
    for body in ["", "nothing", "[1]", "{\"prompt\": \"a\"", "{\"prompt\": \"\\ud800\"}", "\u{0}"] {
        let answer = client::ask(&server.address, "POST", "/v1/completions", &[], body.as_bytes());
        answer.refuses(400, &[]);
    }
    for path in ["/v1/embeddings", "/v1/responses", "/v1/audio/speech", "/infill"] {
        server.post(path, &json!({})).refuses(501, &["not supported"]);
    }
    server.get("/v1/nothing").refuses(404, &["openapi"]);
    server.get("/v1/completions").refuses(405, &[]);
    server.get("/v1/models/other").refuses(404, &["lapidary-tiny"]);
}

#[test]
fn texts_and_state_are_told() {
    let server = Server::start(&["--context", "256", "--parallel", "3"]);
    let tokens = server.ok("/tokenize", &json!({ "content": PROMPT, "add_special": true }))["tokens"].clone();
    assert_eq!(tokens.as_array().unwrap().len(), 13);
    assert_eq!(server.ok("/detokenize", &json!({ "tokens": tokens }))["content"], PROMPT);
    let pieces = server.ok("/tokenize", &json!({ "content": "é<bos>", "with_pieces": true }));
    assert!(pieces["tokens"][0]["id"].is_number(), "{pieces}");
    // Bytes of a character that is no token of its own.
    let pieces = server.ok("/tokenize", &json!({ "content": "€", "with_pieces": true }));
    let bytes: Vec<u64> =
        pieces["tokens"].as_array().unwrap().iter().filter_map(|token| token["piece"][0].as_u64()).collect();
    assert_eq!(bytes, "€".bytes().map(u64::from).collect::<Vec<_>>(), "{pieces}");
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "lapidary-tiny");
    assert_eq!(server.get("/v1/models/lapidary-tiny").json(), models["data"][0]);
    let props = server.get("/props").json();
    assert!(props["n_ctx"] == 256 && props["total_slots"] == 3, "{props}");
    assert_eq!(server.get("/slots").json().as_array().unwrap().len(), 3);
    let description = server.get("/openapi.json").json();
    for path in ["/v1/chat/completions", "/v1/completions", "/slots/{id}"] {
        assert!(description["paths"][path].is_object(), "{path}");
    }
    let schema = &description["components"]["schemas"]["ChatRequest"]["properties"];
    assert!(schema["messages"].is_object() && schema["temperature"].is_object());
    // As much as the context holds, and no more.
    let answer =
        server.ok("/v1/completions", &completion(PROMPT, json!({ "max_tokens": -1, "ignore_eos": true })));
    assert_eq!(answer["usage"]["completion_tokens"], 256 + 1 - 13);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}
