//! Kept prefixes: what is prefilled, and that it changes nothing; slots in files.

use std::thread;

use serde_json::{Value, json};

use super::answers::{chat, completion, text};
use super::client;
use super::process::Server;

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn prompt_tokens(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens"].as_u64().unwrap()
}

/// A chat of so many turns; of each: tokens of the prompt, those that were kept, and the text.
fn talk(server: &Server, turns: usize, system: &str) -> Vec<(u64, u64, String)> {
    let mut messages = vec![json!({ "role": "system", "content": system })];
    let mut all = vec![];
    for turn in 0..turns {
        messages.push(json!({ "role": "user", "content": format!("Tell me more, {turn}.") }));
        let body = json!({ "messages": messages, "seed": turn, "max_tokens": 24, "logprobs": true });
        let answer = server.ok("/v1/chat/completions", &body);
        messages.push(json!({ "role": "assistant", "content": text(&answer) }));
        let told = answer["choices"][0]["logprobs"].to_string();
        all.push((prompt_tokens(&answer), cached(&answer), text(&answer).to_string() + &told));
    }
    all
}

#[test]
fn a_turn_prefills_what_is_new() {
    let system = "Speak as they did in Hertfordshire. ".repeat(12);
    let server = Server::start(&[]);
    let turns = talk(&server, 8, &system);
    assert_eq!(turns[0].1, 0);
    for pair in turns.windows(2) {
        let (before, now) = (&pair[0], &pair[1]);
        // What was there before the answer, at least; what is new is short.
        assert!(now.1 >= before.0 - 1 && now.0 - now.1 < 60, "{} {} {}", before.0, now.0, now.1);
    }
}

#[test]
fn twenty_turns_prefill_their_new_tokens_alone() {
    // Some 2,000 tokens of instructions; windows of 128, so that rings have wrapped in the first prompt.
    let system = "Speak as they did in Hertfordshire. ".repeat(170);
    for (args, strict) in
        [(&["--context", "4096"][..], false), (&["--context", "4096", "--strict-replay"], true)]
    {
        let turns = talk(&Server::start(args), 20, &system);
        assert!(turns[0].0 > 2000 && turns[0].1 == 0, "{}", turns[0].0);
        for (turn, pair) in turns.windows(2).enumerate() {
            let (before, now) = (&pair[0], &pair[1]);
            // Strictly all of the prompt before; else of its answer, too, as far as its text has the same tokens.
            assert!(
                if strict { now.1 == before.0 } else { now.1 >= before.0 },
                "{strict} {turn}: {} {}",
                before.0,
                now.1
            );
        }
        let kept: u64 = turns.iter().map(|turn| turn.1).sum();
        let prompts: u64 = turns.iter().rev().skip(1).map(|turn| turn.0).sum();
        assert!(strict || kept > prompts, "no answer was used again: {kept} {prompts}");
    }
}

#[test]
fn chats_with_the_same_instructions_hold_them_once() {
    let system = "Speak as they did in Hertfordshire. ".repeat(45);
    // Room for two chats and no more, were each to hold all of its text.
    let server = Server::start(&["--context", "1024", "--cache-memory", "4"]);
    let ask = |question: &str| {
        let messages =
            json!([{ "role": "system", "content": system }, { "role": "user", "content": question }]);
        server.ok("/v1/chat/completions", &json!({ "messages": messages, "seed": 1, "max_tokens": 4 }))
    };
    let questions: Vec<String> =
        (0..8).map(|i| format!("Question {i}: why is number {i} the best?")).collect();
    let first: Vec<Value> = questions.iter().map(|question| ask(question)).collect();
    assert!(prompt_tokens(&first[0]) > 500 && cached(&first[0]) == 0, "{}", first[0]["usage"]);
    assert!(first.iter().skip(1).all(|answer| cached(answer) > 500));
    let more: Vec<u64> = questions.iter().map(|question| cached(&ask(question))).collect();
    // What each has of its own is there still.
    let whole = |(cached, answer): (&u64, &Value)| *cached == prompt_tokens(answer) - 1;
    assert!(more.iter().zip(&first).filter(|&both| whole(both)).count() >= 6, "{more:?}");
    assert!(server.metric("lapidary_prefix_cache_bytes") <= f64::from(4 << 20));
}

#[test]
fn strict_prefixes_change_no_bit_where_windows_wrap() {
    // Windows of 128 and chunks of 16: rings of 144 rows wrap in the first prompt.
    let system = "Speak as they did in Hertfordshire. ".repeat(16);
    let limits = ["--chunk", "16", "--context", "1024"];
    let strict = Server::start(&[&limits[..], &["--strict-replay"]].concat());
    let kept = talk(&strict, 6, &system);
    assert!(kept[0].0 > 144 && kept.iter().skip(1).all(|turn| turn.1 > 100), "{kept:?}");
    // A server that keeps nothing.
    let cold = Server::start(
        &[&limits[..], &["--strict-replay", "--cache-memory", "1", "--kv-memory", "64"]].concat(),
    );
    let mut messages = vec![json!({ "role": "system", "content": system })];
    for (turn, known) in kept.iter().enumerate() {
        messages.push(json!({ "role": "user", "content": format!("Tell me more, {turn}.") }));
        // Forgets whatever there is.
        for slot in 0..16 {
            cold.ok(&format!("/slots/{slot}?action=erase"), &json!({}));
        }
        let body = json!({ "messages": messages, "seed": turn, "max_tokens": 24, "logprobs": true });
        let answer = cold.ok("/v1/chat/completions", &body);
        assert_eq!(
            text(&answer).to_string() + &answer["choices"][0]["logprobs"].to_string(),
            known.2,
            "{turn}"
        );
        messages.push(json!({ "role": "assistant", "content": text(&answer) }));
    }
}

#[test]
fn prompts_that_part_share_what_they_have_in_common() {
    let server = Server::start(&["--chunk", "16", "--context", "1024"]);
    let system = "Speak as they did in Hertfordshire. ".repeat(16);
    let ask = |question: &str| {
        let body = completion(&format!("{system}{question}"), json!({ "max_tokens": 40, "seed": 1 }));
        server.ok("/v1/completions", &body)
    };
    let first = ask("Who was Mr. Darcy, and what did he say to her then?");
    assert_eq!(cached(&first), 0);
    // Windows have wrapped: the place where they part is known from now on.
    ask("What is a ball?");
    let third = ask("Why should one marry?");
    assert!(cached(&third) > 100, "{}", cached(&third));
    assert_eq!(cached(&ask("How far is London from there?")), cached(&third));
}

#[test]
fn slots_are_restored_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let args = ["--strict-replay", "--slot-save-path", path, "--parallel", "2"];
    let body =
        chat(&"It was a long walk. ".repeat(12), json!({ "seed": 4, "max_tokens": 30, "logprobs": true }));
    let mut server = Server::start(&args);
    server.post("/slots/0?action=save", &json!({ "filename": "walk" })).refuses(404, &["slot 0"]);
    let cold = server.ok("/v1/chat/completions", &body);
    let saved = server.ok("/slots/0?action=save", &json!({ "filename": "walk" }));
    assert_eq!(saved["n_saved"], cold["usage"]["prompt_tokens"]);
    server.child.kill().unwrap();
    drop(server);

    let server = Server::start(&args);
    let restored = server.ok("/slots/1?action=restore", &json!({ "filename": "walk" }));
    assert_eq!(restored["n_restored"], saved["n_saved"]);
    let warm = server.ok("/v1/chat/completions", &body);
    assert_eq!(cached(&warm), prompt_tokens(&warm) - 1);
    assert_eq!(warm["choices"], cold["choices"]);
    let erased = server.ok("/slots/1?action=erase", &json!({}));
    assert!(erased["n_erased"].is_number());

    for name in ["../walk", "/etc/passwd", ".walk", "", "a/b", "a b"] {
        let answer = server.post("/slots/0?action=save", &json!({ "filename": name }));
        answer.refuses(400, &["filename"]);
    }
    server.post("/slots/0?action=restore", &json!({ "filename": "none" })).refuses(404, &["none"]);
    server.post("/slots/7?action=erase", &json!({})).refuses(404, &["slot 7"]);
    server.post("/slots/0?action=walk", &json!({})).refuses(400, &["action"]);
    std::fs::write(folder.path().join("walk"), b"something else").unwrap();
    server.post("/slots/0?action=restore", &json!({ "filename": "walk" })).refuses(400, &["walk"]);
    drop(server);
    Server::start(&[])
        .post("/slots/0?action=save", &json!({ "filename": "a" }))
        .refuses(501, &["--slot-save-path"]);
}

#[test]
fn files_of_slots_are_written_one_by_one_while_streams_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--slot-save-path", folder.path().to_str().unwrap(), "--context", "65536"];
    let server = Server::start(&args);
    server.ok(
        "/v1/completions",
        &completion("A walk", json!({ "max_tokens": 40, "seed": 1, "ignore_eos": true })),
    );
    let more = json!({ "max_tokens": -1, "ignore_eos": true, "stream": true, "seed": 1 });
    let body = completion("A ball", more).to_string();
    let mut stream = client::open(&server.address, "POST", "/v1/completions", &[], body.as_bytes()).unwrap();
    stream.event().unwrap();
    let act = |path: String, name: String| server.ok(&path, &json!({ "filename": name }));
    // The stream is in the first slot, which held the walk before.
    let saved: Vec<Value> = thread::scope(|scope| {
        let save = |i| scope.spawn(move || act("/slots/0?action=save".into(), format!("walk{i}")));
        let all: Vec<_> = (0..6).map(save).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(
        saved
            .iter()
            .all(|one| one["n_saved"] == saved[0]["n_saved"] && one["n_written"].as_u64() > Some(1000))
    );
    for i in 0..6 {
        let restored = act(format!("/slots/{}?action=restore", 1 + i), format!("walk{i}"));
        assert_eq!(restored["n_restored"], saved[0]["n_saved"]);
    }
    for _ in 0..20 {
        assert!(stream.event().unwrap().is_some());
    }
}
