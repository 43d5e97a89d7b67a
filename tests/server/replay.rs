//! Replay: with a seed the same tokens and the same bits of log-probabilities, whoever else is served.

use std::thread;

use serde_json::{Value, json};

use super::answers::{completion, stream};
use super::client;
use super::process::Server;

/// What clients ask: prompts and parameters of every kind.
pub(crate) fn asked() -> Vec<Value> {
    let prompts = ["It is a truth", "She was", "My dear Mr. Bennet", "The evening altogether passed off"];
    let how = |index: usize| match index % 4 {
        0 => json!({ "temperature": 0 }),
        1 => json!({ "temperature": 1.2, "top_k": 50 }),
        2 => json!({ "top_p": 0.8, "presence_penalty": 0.5, "logit_bias": { "70": 2 } }),
        _ => json!({ "temperature": 0.9, "repetition_penalty": 1.1, "min_p": 0.02 }),
    };
    let one = |index: usize| {
        let mut how = how(index);
        how["seed"] = json!(1000 + index);
        how["max_tokens"] = json!(20 + index % 7);
        how["logprobs"] = json!(3);
        let prompt = format!("{} {}", prompts[index % 4], "again and ".repeat(index % 5 * 8));
        completion(&prompt, how)
    };
    (0..17).map(one).collect()
}

fn choice(server: &Server, body: &Value) -> Value {
    server.ok("/v1/completions", body)["choices"][0].clone()
}

#[test]
fn company_and_restarts_change_no_bit() {
    let asked = asked();
    let alone: Vec<Value> = {
        let server = Server::start(&["--strict-replay"]);
        let alone = asked.iter().map(|body| choice(&server, body)).collect();
        assert_eq!(server.end(), Some(0));
        alone
    };
    // A server of its own, with fewer threads and other limits; twice, so that prefixes are there the second time.
    let server =
        Server::start(&["--strict-replay", "--threads", "1", "--parallel", "16", "--prefill-budget", "5"]);
    let server = &server;
    for round in 0..2 {
        thread::scope(|scope| {
            let answers: Vec<_> =
                asked.iter().map(|body| scope.spawn(move || choice(server, body))).collect();
            for ((body, alone), answer) in asked.iter().zip(&alone).zip(answers) {
                assert_eq!(&answer.join().unwrap(), alone, "round {round}: {body}");
            }
        });
    }
    assert!(server.metric("lapidary_prefix_cache_hits_total") > 0.0);
}

#[test]
fn long_prompts_do_not_stop_streams() {
    let server = Server::start(&["--prefill-budget", "4"]);
    let long = "word ".repeat(600);
    thread::scope(|scope| {
        let body = completion("She was", json!({ "max_tokens": 200, "ignore_eos": true, "seed": 1 }));
        let mut body = body;
        body["stream"] = json!(true);
        let text = body.to_string();
        let mut response =
            client::open(&server.address, "POST", "/v1/completions", &[], text.as_bytes()).unwrap();
        response.event().unwrap();
        let prompt = completion(&long, json!({ "max_tokens": 1, "seed": 1 }));
        let other = scope.spawn(move || {
            let answer = server.ok("/v1/completions", &prompt);
            (answer, server)
        });
        // The stream goes on while the prompt is prefilled, some 150 steps.
        let mut events = 0;
        while !other.is_finished() {
            match response.event().unwrap() {
                Some(_) => events += 1,
                None => break,
            }
        }
        assert!(events > 20, "{events}");
        other.join().unwrap();
    });
}

#[test]
fn a_stream_is_what_the_whole_is() {
    let server = Server::start(&[]);
    for body in asked().into_iter().take(4) {
        let whole = choice(&server, &body);
        let chunks = stream(&server, "/v1/completions", body);
        let told = |field: &str| -> Vec<Value> {
            let lists = chunks.iter().filter_map(|c| c["choices"][0]["logprobs"][field].as_array());
            lists.flatten().cloned().collect()
        };
        for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(&json!(told(field)), &whole["logprobs"][field], "{field}");
        }
    }
}
