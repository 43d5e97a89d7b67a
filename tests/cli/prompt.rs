//! `run`: where prompts come from, the forms they take, what ends a text, what is told on stderr, and others' flags.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::command::{binary, lapidary, lapidary_with, name};
use super::folder::{self, edit};
use super::terminal::Terminal;

const PROMPT: &str = "It is a truth universally acknowledged";

/// The built-in model's folder, to be changed.
fn tiny() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    for entry in fs::read_dir(folder::tiny()).expect("the folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    dir
}

/// A small random model that is instruction-tuned.
pub(crate) fn tuned() -> TempDir {
    let dir = folder::small();
    let tiny = fs::read(folder::tiny().join("tokenizer_config.json")).expect("the file");
    fs::write(dir.path().join("tokenizer_config.json"), tiny).expect("written");
    edit(&dir.path().join("tokenizer_config.json"), |c| {
        drop(c.as_object_mut().expect("an object").remove("instruction_tuned"))
    });
    dir
}

/// Text and stderr of `run` without choice.
fn greedy(args: &[&str]) -> (String, String) {
    let outcome = lapidary(&[&["run", "--temp", "0"], args].concat());
    let err = outcome.err.clone();
    (outcome.ok(), err)
}

#[test]
fn prompts_come_from_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt");
    fs::write(&file, PROMPT).unwrap();
    let (expected, _) = greedy(&["-n", "9", PROMPT]);
    for args in [&["-p", PROMPT][..], &["--prompt", PROMPT], &["-f", name(&file)], &["--file", name(&file)]] {
        assert_eq!(greedy(&[&["-n", "9"], args].concat()).0, expected, "{args:?}");
    }
    for args in [&["-"][..], &[], &["-f", "-"]] {
        let args = [&["run", "--temp", "0", "-n", "9"], args].concat();
        assert_eq!(lapidary_with(&args, PROMPT.as_bytes()).ok(), expected, "{args:?}");
    }
    // A prompt that looks like an option.
    greedy(&["-n", "1", "-p", "-c is what he said"]);

    let tokenizer = lapidary_models::Model::built_in().unwrap().tokenizer.unwrap();
    let ids: Vec<String> = tokenizer.encode(PROMPT, true).unwrap().iter().map(u32::to_string).collect();
    assert_eq!(greedy(&["-n", "9", "--ids", &ids.join(",")]).0, expected);
    let alone = lapidary(&["run", "--ids", "2,17,5", "-n", "2", "--json"]).json();
    assert_eq!(alone["stats"]["prompt_tokens"], 3, "nothing is put before ids");
    lapidary(&["run", "--ids", "2,5000"]).fails(&["token id 5000"]);
    for args in [
        &["--ids", "2,x"][..],
        &["--ids", "2", "x"],
        &["-p", "x", "y"],
        &["-f", "x", "-p", "y"],
        &["--ids", ""],
    ] {
        assert_eq!(lapidary(&[&["run"], args].concat()).code, Some(2), "{args:?}");
    }
}

#[test]
fn a_stop_text_ends_the_output_and_is_not_in_it() {
    let (whole, _) = greedy(&["-n", "24", PROMPT]);
    let whole = whole.trim_end_matches('\n');
    // Wherever tokens are cut: each pair of characters of the text.
    let words: Vec<&str> = whole.split(' ').collect();
    for pair in words.windows(2).skip(2).take(5) {
        let stop = format!("{} {}", &pair[0][pair[0].len().min(1)..], pair[1]);
        let expected = &whole[..whole.find(&stop).unwrap()];
        let (text, err) = greedy(&["-n", "24", "--stop", "no such text", "--stop", &stop, PROMPT]);
        assert_eq!(text, format!("{expected}\n"), "{stop}");
        assert!(!err.contains("ended"), "{err}");
    }
    let stop = words[3];
    let found = lapidary(&["run", "--temp", "0", "-n", "24", "--stop", stop, "--json", PROMPT]).json();
    assert_eq!(
        (found["stop"].as_str(), found["text"].as_str()),
        (Some("stop_text"), whole.split_once(stop).map(|s| s.0))
    );
    // What was held back for a stop text that did not come is printed.
    let (text, _) = greedy(&["-n", "24", "--stop", &format!("{}no", &whole[whole.len() - 3..]), PROMPT]);
    assert_eq!(text, format!("{whole}\n"));
    assert_eq!(lapidary(&["run", "--stop", "", "x"]).code, Some(2));
}

#[test]
fn the_end_of_text_can_be_ignored() {
    let found = lapidary(&["run", "--temp", "0", "-n", "8", "--json", PROMPT]).json();
    let third = &found["tokens"][2];
    let dir = tiny();
    fs::write(dir.path().join("generation_config.json"), json!({ "eos_token_id": [third] }).to_string())
        .unwrap();
    let args = ["run", "-m", name(dir.path()), "--temp", "0", "-n", "8", "--raw", "--json", PROMPT];
    let ended = lapidary(&args).json();
    assert_eq!((&ended["stop"], ended["tokens"].as_array().unwrap().len()), (&json!("end_of_text"), 2));
    let ignored = lapidary(&[&args[..], &["--ignore-eos"]].concat()).json();
    assert_eq!((&ignored["stop"], &ignored["tokens"]), (&json!("length"), &found["tokens"]));
}

#[test]
fn the_form_is_chosen_and_told_to_a_person() {
    let (base, dir) = (tiny(), tuned());
    let prompt_tokens = |args: &[&str]| {
        let found = lapidary(&[&["run", "-n", "1", "--json", "hi"], args].concat()).json();
        found["stats"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = prompt_tokens(&[]);
    let model = ["-m", name(dir.path())];
    assert_eq!(prompt_tokens(&[&model[..], &["--raw"]].concat()), plain);
    let chat = prompt_tokens(&model);
    assert!(chat > plain + 4, "{chat}, {plain}");
    assert_eq!(prompt_tokens(&["--chat"]), chat);
    assert!(prompt_tokens(&["--system", "Be brief."]) > chat, "instructions take tokens, in the template");
    assert_eq!(lapidary(&["run", "--raw", "--chat", "x"]).code, Some(2));

    edit(&base.path().join("tokenizer_config.json"), |c| {
        drop(c.as_object_mut().unwrap().remove("chat_template"))
    });
    for option in [&["--chat"][..], &["--system", "Be brief."]] {
        let outcome = lapidary(&[&["run", "-m", name(base.path()), "x"], option].concat());
        outcome.fails(&[name(base.path()), "no chat template", option[0]]);
    }

    for (args, told) in [(&["--raw"][..], "plain text"), (&[], "chat template")] {
        let mut person = Terminal::run(&[&["run", "-n", "1", "hi"], &model[..], args].concat(), &[]);
        person.wait_for(told);
        person.ends(0);
        let nobody = lapidary(&[&["run", "-n", "1", "hi"], &model[..], args].concat());
        assert!(!nobody.err.contains(told), "{}", nobody.err);
    }
}

/// Instructions go into the user's turn of a template that refuses them.
#[test]
fn instructions_are_in_the_users_turn() {
    let tokenizer = lapidary_models::Model::built_in().unwrap().tokenizer.unwrap();
    let rendered = "<bos><start_of_turn>user\nBe brief.\n\nhi<end_of_turn>\n<start_of_turn>model\n";
    let ids: Vec<String> = tokenizer.encode(rendered, true).unwrap().iter().map(u32::to_string).collect();
    let (expected, _) = greedy(&["-n", "12", "--ids", &ids.join(",")]);
    assert_eq!(greedy(&["-n", "12", "--system", "Be brief.", "hi"]).0, expected);
}

#[test]
fn ends_and_models_are_told() {
    let notes = |args: &[&str]| greedy(args).1;
    let note = notes(&["-n", "3", "hello"]);
    assert!(note.contains("built-in tiny model") && note.contains("ended after 3 tokens (-n"), "{note}");
    let note = notes(&["--context", "8", "hello"]);
    assert!(note.contains("context of 8 tokens is full"), "{note}");
    let dir = tiny();
    let note = notes(&["-m", name(dir.path()), "-n", "3", "hello"]);
    assert!(note.contains("ended after 3") && !note.contains("built-in"), "{note}");
    // Until the end: here the context's.
    let found = lapidary(&["run", "--context", "140", "-n", "-1", "--json", "hello"]).json();
    assert_eq!(found["stop"], "context");
    assert!(found["tokens"].as_array().unwrap().len() > 130);
}

#[test]
fn what_was_meant_for_something_else_is_hinted_at() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    fs::write(&file, "x").unwrap();
    for (prompt, hint) in
        [("path/to/some/model", "-m MODEL"), (name(&file), "-f FILE"), (name(dir.path()), "-m FOLDER")]
    {
        let (_, err) = greedy(&["-n", "1", prompt]);
        let line = err.lines().find(|l| l.starts_with("hint: ")).unwrap_or_else(|| panic!("{prompt}: {err}"));
        assert!(line.contains(hint) && line.contains(prompt), "{line}");
    }
    for prompt in ["hello", "and/or what?", "Note: this"] {
        assert!(!greedy(&["-n", "1", prompt]).1.contains("hint"), "{prompt}");
    }
    for model in ["gemma2:2b", "google/gemma-2-2b-it", "hf.co/a/b:Q4_0", "gemma.gguf"] {
        let alone = lapidary(&["run", model]);
        let told = alone.err.contains("-m MODEL PROMPT") && alone.err.contains(model);
        assert!(alone.code == Some(2) && told && alone.err.lines().count() == 1, "{}", alone.err);
        lapidary(&["run", "-n", "1", "-p", model]).ok();
    }
    let two = lapidary(&["run", "gemma2:2b", "Why is the sky blue?"]);
    assert!(
        two.code == Some(2) && two.err.contains("-m MODEL") && two.err.lines().count() == 1,
        "{}",
        two.err
    );
    let two = lapidary(&["run", "Why", "is"]);
    assert!(two.code == Some(2) && two.err.contains("quotes") && two.err.contains("`-m`"), "{}", two.err);
    let named = lapidary(&["run", "gemma2", "Why is the sky blue?"]);
    assert!(named.code == Some(2) && named.err.contains("-m MODEL"), "{}", named.err);
    for input in [&b""[..], b"\n"] {
        lapidary_with(&["run", "-"], input).fails(&["stdin is empty", "PROMPT"]);
    }
    let nothing = lapidary(&["run"]);
    assert!(nothing.code == Some(2) && nothing.err.contains("stdin is empty"), "{}", nothing.err);
}

#[test]
fn others_flags_work() {
    let (expected, _) =
        greedy(&["--context", "64", "--threads", "1", "--seed", "3", "--top-k", "5", "-n", "9", PROMPT]);
    for args in [
        "-c 64 -t 1 -s 3 --top_k 5 -n 9 -p",
        "--ctx-size 64 --threads 1 --seed 3 --top-k 5 --predict 9 --prompt",
        "--ctx_size=64 -t1 --seed=3 --top_k=5 --n_predict=9 -p",
        "-c64 -t 1 -s 3 --top-k 5 --max-new-tokens 9 --temperature 0 -no-cnv",
    ] {
        let args: Vec<&str> = args.split(' ').chain([PROMPT]).collect();
        let temperature = !args.contains(&"--temperature");
        let outcome =
            lapidary(&[&["run"][..], if temperature { &["--temp", "0"][..] } else { &[] }, &args].concat());
        assert_eq!(outcome.ok(), expected, "{args:?}");
    }
    for (args, ours) in [
        (&["run", "-ngl", "99", "x"][..], "CPUs"),
        (&["run", "--n-gpu-layers", "99", "x"], "CPUs"),
        (&["run", "-cnv"], "lapidary chat"),
        (&["run", "-fa", "on", "x"], "fused"),
        (&["chat", "--mlock"], "--no-mmap"),
        (&["compile", "-mu", "https://x", "-o", "/nowhere/x"], "OWNER/REPO"),
        (&["run", "--format", "json", "x"], "--json"),
    ] {
        let outcome = lapidary(args);
        assert_eq!((outcome.code, outcome.err.lines().count()), (Some(2), 1), "{}", outcome.err);
        assert!(outcome.err.contains(ours) && outcome.err.contains(args[1]), "{}", outcome.err);
    }
    // -1 is all, of what is counted in tokens; below 0 it is that value that is wrong, not an option that is unknown.
    let all =
        |name: &str, value: &str| greedy(&["-n", "9", "--repeat-penalty", "1.3", name, value, PROMPT]).0;
    assert_eq!(all("--repeat-last-n", "-1"), all("--repeat_last_n", "100000"));
    assert_eq!(all("--top-k", "-1"), all("--top-k", "0"));
    for option in ["--threads", "--context", "--chunk", "--top-k"] {
        let outcome = lapidary(&["run", option, "-7", "x"]);
        assert!(outcome.code == Some(2) && outcome.err.contains("invalid value '-7'"), "{}", outcome.err);
    }
    let drawn = |seed: &str| lapidary(&["run", "--temp", "2", "-n", "24", "-s", seed, PROMPT]).ok();
    assert_ne!(drawn("-1"), drawn("-1"), "-1 is another seed each time");
}

/// `lapidary ... | head -1`, of what is printed before the pipe closes.
#[test]
fn a_closed_pipe_ends_generated_scripts_quietly() {
    for args in [&["completions", "bash"][..], &["man"]] {
        let mut child = binary().args(args).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    }
}
