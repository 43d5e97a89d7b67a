//! `--lookup` and `--draft`: the same text, and what is told of the guesses.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::artifact::lapidary_run;
use super::command::{lapidary, name, run_with};

/// Text that is likely to be copied, and not.
const PROMPT: &str = "To be, or not to be, that is the question. To be, or not to be, that is";

fn text(found: &Value) -> &str {
    found["text"].as_str().unwrap()
}

#[test]
fn guesses_change_no_text() {
    let dir = TempDir::new().unwrap();
    let small = dir.path().join("small");
    lapidary(&["quantize", "--weights", "q4", "-o", name(&small)]).ok();
    for sampling in [&["--temp", "0"][..], &["--temp", "0.8", "--seed", "4", "--repeat-penalty", "1.1"]] {
        let run = |args: &[&str]| {
            lapidary(&[&["run", "--json", "-n", "60"], sampling, args, &[PROMPT]].concat()).json()
        };
        let plain = run(&[]);
        assert!(plain["stats"].get("speculation").is_none(), "{plain}");
        for guessing in [&["--lookup", "6"][..], &["--draft", name(&small), "--draft-max", "3"]] {
            let found = run(guessing);
            assert_eq!((text(&found), &found["tokens"]), (text(&plain), &plain["tokens"]), "{guessing:?}");
            let told = &found["stats"]["speculation"];
            let number = |field: &str| told[field].as_f64().unwrap();
            assert!(number("steps") > 0.0 && number("tokens") >= number("steps"), "{told}");
            assert!(number("right") <= number("guessed") && number("gain") > 0.0, "{told}");
        }
    }
    let said = lapidary(&["run", "-n", "9", "--temp", "0", "--lookup", "4", "--stats", PROMPT]).err;
    assert!(said.contains("\nguessed     ") && said.contains(" x plain\n"), "{said}");
    let said = lapidary(&["run", "-n", "9", "--temp", "0", "--lookup", "0", "--stats", PROMPT]).err;
    assert!(!said.contains("\nguessed "), "{said}");
}

#[test]
fn an_artifact_guesses_too() {
    let dir = TempDir::new().unwrap();
    let (path, small) = (dir.path().join("m.lap"), dir.path().join("s.lap"));
    lapidary(&["compile", "--context", "128", "-o", name(&path)]).ok();
    lapidary(&["compile", "--context", "128", "--weights", "q4", "--no-cache", "-o", name(&small)]).ok();
    let run = |args: &[&str]| {
        let all = [&[name(&path), "--json", "--temp", "0", "-n", "40"], args, &["-p", PROMPT]].concat();
        run_with(Command::new(lapidary_run()), &all, b"").json()
    };
    let plain = run(&[]);
    for guessing in [&["--lookup", "6"][..], &["--draft", name(&small)]] {
        let found = run(guessing);
        assert_eq!(found["tokens"], plain["tokens"], "{guessing:?}");
        assert!(found["stats"]["speculation"]["steps"].as_u64().unwrap() > 0, "{found}");
    }
}

#[test]
fn guesses_that_cannot_be_are_refused() {
    let dir = TempDir::new().unwrap();
    let other = dir.path().join("other");
    lapidary(&["synth", "--preset", "gemma3-270m", "--layers", "1", "-o", name(&other)]).ok();
    for wrong in [
        &["--lookup", "32"][..],
        &["--lookup", "x"],
        &["--lookup", "2", "--draft", "m"],
        &["--draft-max", "2"],
    ] {
        let outcome = lapidary(&[&["run"], wrong, &["hello"]].concat());
        assert_eq!(outcome.code, Some(2), "{wrong:?}: {}", outcome.err);
    }
    lapidary(&["run", "--draft", name(&other), "hello"]).fails(&[name(&other), "4096", "guesses for"]);
    lapidary(&["run", "--draft", "no-such-model", "hello"]).fails(&["no-such-model"]);
}
