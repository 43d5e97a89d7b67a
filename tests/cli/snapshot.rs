//! `--save` and `--load` of `lapidary run` and `lapidary-run`, `/save` and `/load` of their conversations: what is
//! loaded goes on with the tokens of an unbroken run.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::artifact::lapidary_run;
use super::command::{Outcome, lapidary, lapidary_with, name, run_with};

/// More than three windows of the built-in model, in tokens.
fn long() -> String {
    let ids: Vec<String> = (0..420).map(|i| ((i * 37 + i * i * 11) % 4000 + 20).to_string()).collect();
    ids.join(",")
}

fn tokens(found: &Value) -> Vec<u64> {
    found["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect()
}

#[test]
fn a_saved_run_goes_on_as_unbroken() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("text.state");
    let (ids, file) = (long(), name(&path));
    let sampled = ["--temp", "0.9", "--seed", "5", "--repeat-penalty", "1.1"];
    // A prompt that is longer than a ring, in chunks; then other threads and another context.
    let run = |rest: &[&str]| lapidary(&[&["run", "--json", "--chunk", "64"], rest].concat()).json();
    let whole = run(&[&["--ids", &ids, "-n", "30", "--context", "600"], &sampled[..]].concat());
    let first =
        run(&[&["--ids", &ids, "-n", "12", "--context", "600", "--save", file], &sampled[..]].concat());
    // The options are the file's.
    let rest = run(&["--load", file, "-n", "18", "--threads", "1", "--context", "600"]);
    assert_eq!([tokens(&first), tokens(&rest)].concat(), tokens(&whole));
    assert_eq!(rest["seed"], 5);
    // A larger context cuts attention's keys in other parts: other last bits, if any.
    assert_eq!(tokens(&run(&["--load", file, "-n", "3", "--context", "900"])).len(), 3);
    // The file may be replaced by what came of it, and a prompt may follow.
    run(&["--load", file, "-n", "2", "--context", "600", "--save", file]);
    let more = run(&["--load", file, "-n", "4", "--context", "600", "-p", " It is"]);
    assert!(more["stats"]["prompt_tokens"].as_u64().unwrap() > 0, "{more}");
}

#[test]
fn what_cannot_be_loaded_is_said() {
    let dir = TempDir::new().unwrap();
    let (path, second) = (dir.path().join("text.state"), dir.path().join("other.state"));
    let (file, other) = (name(&path), name(&second));
    lapidary(&["run", "-n", "4", "--context", "64", "--save", file, "It is"]).ok();
    let load = |rest: &[&str]| lapidary(&[&["run", "-n", "2", "--load", file], rest].concat());
    load(&["--context", "64"]).ok();
    load(&["--context", "3"]).fails(&["tokens do not fit"]);
    load(&["--kv-cache", "f32"]).fails(&[file, "kv_cache", "f32", "bf16"]);
    load(&["--weights", "q8", "--no-cache"]).fails(&[file, "weights_format"]);
    fs::write(other, "no such thing").unwrap();
    lapidary(&["run", "--load", other]).fails(&[other]);
    lapidary(&["run", "--load", name(dir.path())]).fails(&[name(dir.path())]);
    let outcome = lapidary(&["run", "-n", "1", "--save", name(dir.path()), "It is"]);
    assert!(outcome.err.contains(name(dir.path())) && outcome.code == Some(1), "{}", outcome.err);
}

#[test]
fn a_saved_conversation_goes_on() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("talk.state");
    let file = name(&path);
    let chat = |input: &str| lapidary_with(&["chat", "-n", "6", "--context", "256"], input.as_bytes());
    let answers = |input: &str| chat(input).ok();
    let whole = answers("hello\nand then\nwhy\n");
    let first = answers(&format!("hello\nand then\n/save {file}\n"));
    let rest = answers(&format!("another\n/load {file}\nwhy\n"));
    assert!(whole.starts_with(&first), "{whole:?} {first:?}");
    assert!(rest.ends_with(&whole[first.len()..]), "{whole:?} {rest:?}");
    for (input, named) in [
        (format!("/load {}\n", dir.path().display()), "folder"),
        ("/load /no/such\n".into(), "/no/such"),
        (format!("/save {}\n", dir.path().display()), "folder"),
    ] {
        let outcome = chat(&input);
        assert!(outcome.err.contains("error:") && outcome.err.contains(named), "{}", outcome.err);
        outcome.ok();
    }
    lapidary(&["run", "-n", "2", "--context", "256", "--save", file, "It is"]).ok();
    let outcome = chat(&format!("/load {file}\n"));
    assert!(outcome.err.contains("a conversation's state"), "{}", outcome.err);
}

/// `lapidary-run` on an artifact of the built-in model.
fn alone(model: &Path, args: &[&str], input: &[u8]) -> Outcome {
    run_with(Command::new(lapidary_run()), &[args, &["-m", name(model)]].concat(), input)
}

#[test]
fn a_text_goes_on_without_the_compiler() {
    let dir = TempDir::new().unwrap();
    let (model, path) = (dir.path().join("tiny.lap"), dir.path().join("text.state"));
    let (ids, file) = (long(), name(&path));
    lapidary(&["compile", "--context", "600", "--chunk", "64", "-o", name(&model)]).ok();
    let sampled = ["--temp", "0.9", "--seed", "5", "--repeat-penalty", "1.1"];
    let run = |rest: &[&str]| alone(&model, &[&["--json"], rest].concat(), b"").json();
    let whole = run(&[&["--ids", &ids, "-n", "30"], &sampled[..]].concat());
    let first = run(&[&["--ids", &ids, "-n", "12", "--save", file], &sampled[..]].concat());
    // The options are the file's, which either command goes on from.
    let rest = run(&["--load", file, "-n", "18", "--threads", "1"]);
    let compiler = lapidary(&["run", "--json", "-m", name(&model), "--load", file, "-n", "18"]).json();
    for rest in [&rest, &compiler] {
        assert_eq!([tokens(&first), tokens(rest)].concat(), tokens(&whole));
        assert_eq!(rest["seed"], 5);
    }
    let more = run(&["--load", file, "-n", "4", "-p", " It is"]);
    let prompt = more["stats"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(prompt, lapidary(&["tokenize", "--no-bos", " It is"]).ok().lines().count() as u64, "{more}");
    let refused = |args: &[&str], named: &[&str]| alone(&model, args, b"").fails(named);
    refused(&["--load", "/no/such"], &["/no/such"]);
    refused(&["--load", file, "--context", "3"], &["tokens do not fit"]);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, bytes).unwrap();
    refused(&["--load", file], &[file, "the file is damaged"]);
    let outcome = alone(&model, &["chat", "--load", file], b"");
    assert_eq!(outcome.code, Some(2), "{}", outcome.err);
}

#[test]
fn a_conversation_goes_on_without_the_compiler() {
    let dir = TempDir::new().unwrap();
    let (model, path) = (dir.path().join("tiny.lap"), dir.path().join("talk.state"));
    let file = name(&path);
    lapidary(&["compile", "--context", "256", "-o", name(&model)]).ok();
    let answers = |input: &str| alone(&model, &["chat", "-n", "6"], input.as_bytes()).ok();
    let whole = answers("hello\nand then\nwhy\n");
    let first = answers(&format!("hello\nand then\n/save {file}\n"));
    let rest = answers(&format!("another\n/load {file}\nwhy\n"));
    assert!(whole.starts_with(&first), "{whole:?} {first:?}");
    assert!(rest.ends_with(&whole[first.len()..]), "{whole:?} {rest:?}");
}
