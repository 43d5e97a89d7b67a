//! Hostile requests: refused or closed, memory bounded, others served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::answers::{PROMPT, chat, completion};
use super::client;
use super::process::Server;

/// Bytes by which a server may grow, whatever is sent to it.
const GROWTH: usize = 256 << 20;

/// That others are served.
#[track_caller]
fn alive(server: &Server) {
    server.ok("/v1/completions", &completion(PROMPT, json!({ "max_tokens": 2, "seed": 1 })));
}

#[test]
fn numbers_out_of_all_bounds_are_refused() {
    let server = Server::start(&["--context", "512"]);
    let fields = [
        "max_tokens",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logprobs",
        "best_of",
        "stop",
        "stream",
        "echo",
        "logit_bias",
        "response_format",
        "max_completion_tokens",
        "top_logprobs",
        "stream_options",
    ];
    let values = [
        "-1",
        "-2147483649",
        "18446744073709551616",
        "1e308",
        "-1e308",
        "1e999",
        "0.1",
        "\"x\"",
        "[]",
        "{}",
        "[[[]]]",
        "true",
        "null",
        "9223372036854775807",
        "-9223372036854775808",
        "{\"a\":-1e30}",
        "\"\"",
    ];
    for path in ["/v1/completions", "/v1/chat/completions"] {
        for field in fields {
            for value in values {
                let said = "\"prompt\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]";
                let most = if field == "max_tokens" { "" } else { ",\"max_tokens\":1" };
                let body = format!("{{{said}{most},\"{field}\":{value}}}");
                let answer = client::ask(&server.address, "POST", path, &[], body.as_bytes());
                assert!(answer.status == 200 || answer.status == 400, "{}: {body}", answer.status);
            }
        }
    }
    for body in ["{\"tokens\":[-1]}", "{\"tokens\":[4294967295]}", "{\"tokens\":[1e300]}", "{\"tokens\":5}"] {
        let answer = client::ask(&server.address, "POST", "/detokenize", &[], body.as_bytes());
        assert!(answer.status == 200 || answer.status == 400, "{body}");
    }
    for path in [
        "/slots/-1",
        "/slots/99999999999999999999",
        "/slots/x",
        "/v1/models/%00",
        "/%ff",
        "/slots/1?action=%00",
    ] {
        let answer = client::ask(&server.address, "POST", path, &[], b"{}");
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
    }
    alive(&server);
}

#[test]
fn large_bodies_and_many_stop_texts_are_refused() {
    let server = Server::start(&[]);
    let before = server.resident();
    let huge = vec![b'x'; 100 << 20];
    for _ in 0..3 {
        // It is answered, or closed while it is still being sent.
        if let Ok(response) = client::open(&server.address, "POST", "/v1/completions", &[], &huge) {
            assert_eq!(response.status, 413);
        }
    }
    let stops: Vec<&str> = vec!["s"; 1_000_000];
    server.post("/v1/completions", &completion("a", json!({ "stop": stops }))).refuses(400, &["stop"]);
    let deep = "[".repeat(100_000);
    let body = format!("{{\"prompt\":{deep}");
    client::ask(&server.address, "POST", "/v1/completions", &[], body.as_bytes()).refuses(400, &[]);
    let tools = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let tools: Value = serde_json::from_str(&tools).unwrap();
    server.post("/v1/chat/completions", &chat("a", json!({ "tools": tools }))).refuses(400, &["tools"]);
    let messages: Vec<Value> = (0..100_000).map(|_| json!({ "role": "user", "content": "a" })).collect();
    let answer = server.post("/v1/chat/completions", &json!({ "messages": messages }));
    assert_eq!(answer.status, 400, "{}", answer.text());
    // Half a body, then nothing; lengths that lie.
    for head in [
        "Content-Length: 1000",
        "Transfer-Encoding: chunked",
        "Content-Length: -5",
        "Content-Length: 9999999999999999999999",
    ] {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        let text = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\nff\r\n{{");
        stream.write_all(text.as_bytes()).unwrap();
        alive(&server);
    }
    assert!(server.resident() < before + GROWTH, "{} {before}", server.resident());
}

#[test]
fn floods_of_headers_are_refused() {
    let server = Server::start(&[]);
    let send = |head: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // What it has refused it does not read.
        let _ = stream.write_all(head.as_bytes());
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let many: String = (0..10_000).map(|i| format!("X-{i}: y\r\n")).collect();
    let long = format!("X: {}\r\n", "y".repeat(10 << 20));
    let heads = [
        format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        format!("GET /health HTTP/1.1\r\nHost: x\r\n{long}\r\n"),
        format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20)),
        "GARBAGE\r\n\r\n".to_string(),
        "GET /health HTTP/9.9\r\n\r\n".to_string(),
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"
            .to_string(),
    ];
    for head in heads {
        let answer = send(&head);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{answer}"
        );
    }
    alive(&server);
}

/// How many files a process may have open, once it has asked for as many as it may.
fn files() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the system fills in a structure of numbers.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the system reads one.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    limit.rlim_max as usize
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let server = Server::start(&[]);
    let before = server.resident();
    // Some are left to the other tests of this process.
    let count = files().saturating_sub(500).min(10_000);
    assert!(count > 1_000, "{count}");
    let mut silent = vec![];
    for index in 0..count {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        if index % 2 == 0 {
            // Half a head.
            let _ = stream.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: ");
        }
        silent.push(stream);
        if index % 1_000 == 999 {
            alive(&server);
        }
    }
    assert!(server.metric("lapidary_connections") <= 4096.0);
    assert!(server.resident() < before + GROWTH, "{} {before}", server.resident());
    // Closed after a while, if nothing comes.
    let start = Instant::now();
    let last = silent.last_mut().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let _ = last.read(&mut [0; 1000]);
    assert!(start.elapsed() < Duration::from_secs(40));
}
