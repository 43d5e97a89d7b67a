//! Guessed tokens: answers are what they are without, whatever is asked of them.

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use lapidary::Model;
use lapidary_runtime::Speculation;
use lapidary_runtime::text::Text;
use lapidary_server::{Options, Served};
use serde_json::{Value, json};

use super::answers::completion;
use super::client;
use super::replay::asked;

/// A server on a thread, which guesses in each step, or never.
fn start(guesses: bool) -> String {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = free.local_addr().unwrap();
    drop(free);
    let load = move || {
        let engine = Model::built_in(lapidary::Options::new().threads(1))?.engine()?;
        let speculation = guesses.then(|| Speculation::lookup(8).always());
        let files = lapidary_models::Model::built_in()?;
        let text = Text { tokenizer: files.tokenizer, chat_template: None, stop_tokens: files.stop_tokens };
        Ok(Served { name: "it".into(), engine, speculation, text: Box::new(text) })
    };
    // It ends with the process.
    thread::spawn(move || lapidary_server::serve(Options::new(address), Box::new(load)));
    let address = address.to_string();
    while !client::open(&address, "GET", "/health", &[], b"").is_ok_and(|answer| answer.status == 200) {
        thread::sleep(Duration::from_millis(20));
    }
    address
}

#[test]
fn guesses_change_no_bit() {
    let (guessing, plain) = (start(true), start(false));
    let schema = json!({ "type": "array", "items": { "enum": ["she", "was", "very"] }, "maxItems": 20 });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "it", "schema": schema } });
    let again = "she was very ".repeat(12);
    let more = [
        completion(&again, json!({ "n": 2, "seed": 5, "max_tokens": 40, "logprobs": 2 })),
        completion(&again, json!({ "temperature": 0, "max_tokens": 60 })),
        completion(&again, json!({ "temperature": 0, "max_tokens": 60, "stop": ["was"] })),
        completion(&again, json!({ "temperature": 0, "max_tokens": 1 })),
        completion(&again, json!({ "seed": 9, "max_tokens": 80, "response_format": format })),
        completion(&again, json!({ "temperature": 0, "frequency_penalty": 0.3, "max_tokens": 60 })),
    ];
    let choices = |address: &str, body: &Value| {
        let answer = client::ask(address, "POST", "/v1/completions", &[], body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        (answer.json()["choices"].clone(), answer.json()["usage"]["completion_tokens"].clone())
    };
    for body in asked().iter().chain(&more) {
        assert_eq!(choices(&guessing, body), choices(&plain, body), "{body}");
    }
    // All at once: several are guessed in a step.
    let bodies: Vec<Value> = asked().into_iter().chain(more).collect();
    thread::scope(|scope| {
        let (guessing, choices) = (&guessing, &choices);
        let answers: Vec<_> =
            bodies.iter().map(|body| scope.spawn(move || choices(guessing, body))).collect();
        for (body, answer) in bodies.iter().zip(answers) {
            assert_eq!(answer.join().unwrap(), choices(&plain, body), "{body}");
        }
    });
    let counted = |address: &str, name: &str| {
        let text = client::ask(address, "GET", "/metrics", &[], b"").text();
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok());
        line.unwrap_or_else(|| panic!("{name}: {text}"))
    };
    let tokens = "lapidary_guessed_tokens_total";
    assert_eq!(counted(&plain, tokens), 0);
    assert!(counted(&guessing, tokens) > counted(&guessing, "lapidary_guessed_tokens_right_total"));
    assert!(counted(&guessing, "lapidary_guessed_tokens_right_total") > 50);
    // What a step made is counted after its answers are sent.
    let made = |address| counted(address, "lapidary_generation_tokens_total");
    let deadline = Instant::now() + Duration::from_secs(20);
    while made(&guessing) != made(&plain) {
        assert!(Instant::now() < deadline, "{} and {} tokens", made(&guessing), made(&plain));
        thread::sleep(Duration::from_millis(20));
    }
}
