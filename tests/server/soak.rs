//! A soak: clients with random prompts who break off, send nonsense and read slowly. Nothing leaks, nothing is stuck,
//! and every answer is what it is alone.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lapidary_runtime::Rng;
use serde_json::{Value, json};

use super::answers::{completion, joined, text};
use super::client;
use super::process::Server;

/// Clients at once.
const CLIENTS: usize = 32;
/// How long it takes unless it is said.
const SECONDS: u64 = 10;

/// Seconds after which memory is as it stays, within two per cent.
const LONG: u64 = 60;
/// Bytes by which it comes and goes: of requests under way.
const PAGES: usize = 1 << 20;
/// Memory of kept prefixes, in MiB.
const KEPT_MIB: usize = 16;

/// Words of prompts.
const WORDS: [&str; 8] = ["she", "was", "Darcy", "ball", "the", "very", "marry", "walk"];

struct Dice(Rng);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    fn body(&mut self) -> Value {
        let words: Vec<&str> = (0..1 + self.below(60)).map(|_| WORDS[self.below(WORDS.len())]).collect();
        let temperature = [0.0, 0.7, 1.3][self.below(3)];
        let more = json!({
            "seed": self.below(1 << 30),
            "max_tokens": 1 + self.below(40),
            "temperature": temperature,
            "ignore_eos": true,
        });
        completion(&words.join(" "), more)
    }
}

/// What a client does once; the request and the text, if it waited for the end.
fn act(address: &str, dice: &mut Dice) -> Option<(Value, String)> {
    let mut body = dice.body();
    let open = |body: &[u8]| client::open(address, "POST", "/v1/completions", &[], body).unwrap();
    match dice.below(8) {
        0 => {
            let cut = body.to_string();
            let cut = &cut[..dice.below(cut.len())];
            assert_eq!(open(cut.as_bytes()).status, 400);
            None
        }
        1 => {
            body["max_tokens"] = json!("all");
            assert_eq!(open(body.to_string().as_bytes()).status, 400);
            None
        }
        // Breaks off: after some events, or before there is any.
        2 | 3 => {
            body["stream"] = json!(true);
            body["max_tokens"] = json!(300);
            let mut response = open(body.to_string().as_bytes());
            if response.status == 200 {
                for _ in 0..dice.below(20) {
                    if response.event().unwrap().is_none() {
                        break;
                    }
                }
            }
            None
        }
        4 | 5 => {
            let response = open(body.to_string().as_bytes());
            assert!(response.status == 200 || response.status == 429);
            let answer = response.whole().unwrap();
            (answer.status == 200).then(|| (body, text(&answer.json()).to_string()))
        }
        // Reads slowly, now and then.
        _ => {
            let mut streamed = body.clone();
            streamed["stream"] = json!(true);
            let mut response = open(streamed.to_string().as_bytes());
            if response.status != 200 {
                return None;
            }
            let mut chunks: Vec<Value> = vec![];
            while let Some(data) = response.event().unwrap() {
                if data != "[DONE]" {
                    chunks.push(serde_json::from_str(&data).unwrap());
                }
                if dice.below(20) == 0 {
                    thread::sleep(Duration::from_millis(30));
                }
            }
            Some((body, joined(&chunks)))
        }
    }
}

#[test]
fn clients_of_every_kind_for_a_while() {
    let seconds = std::env::var("LAPIDARY_SOAK_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SECONDS);
    let kept = KEPT_MIB.to_string();
    let server =
        Server::start(&["--strict-replay", "--kv-memory", "64", "--cache-memory", &kept, "--queue", "48"]);
    let answers = Mutex::new(vec![]);
    let run = |time: Duration, seed: usize| {
        let end = Instant::now() + time;
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (server, answers) = (&server, &answers);
                scope.spawn(move || {
                    let mut dice = Dice(Rng::new((seed * CLIENTS + client) as u64));
                    while Instant::now() < end {
                        if let Some(answer) = act(&server.address, &mut dice) {
                            answers.lock().unwrap().push(answer);
                        }
                    }
                });
            }
        });
        server.wait_for("lapidary_num_requests_running", 0.0);
        server.wait_for("lapidary_num_requests_waiting", 0.0);
    };
    let whole = Duration::from_secs(seconds);
    run(whole / 3, 1);
    // What it has beside KV caches, whose bytes it tells.
    let (over, own) = (AtomicBool::new(false), Mutex::new(vec![]));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let caches = server.metric("lapidary_kv_cache_bytes") as usize;
                own.lock().unwrap().push(server.resident().saturating_sub(caches));
                thread::sleep(Duration::from_millis(100));
            }
        });
        run(whole * 2 / 3, 2);
        over.store(true, Ordering::Relaxed);
    });
    let mut own = own.into_inner().unwrap();
    let half = own.len() / 2;
    let mut median = |range: Range<usize>| {
        let part = &mut own[range];
        part.sort_unstable();
        part[part.len() / 2]
    };
    let (before, after) = (median(0..half), median(half..2 * half));
    // In a short time not all has been there once: threads, buffers as large as they come to be.
    let share = if seconds >= LONG { 50 } else { 4 };
    eprintln!("resident memory beside caches: {before}, then {after}");
    assert!(after <= before + before / share + PAGES, "resident memory grew from {before} to {after}");
    let answers = answers.into_inner().unwrap();
    assert!(answers.len() > CLIENTS, "{}", answers.len());
    let alone = Server::start(&["--strict-replay"]);
    for (body, expected) in answers.iter().step_by(answers.len().div_ceil(400)) {
        assert_eq!(text(&alone.ok("/v1/completions", body)), expected, "{body}");
    }
}
