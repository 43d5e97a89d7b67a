//! `chat`: lines and commands, through a pipe and at a terminal; what is kept of them; what the context has no room
//! for.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::command::{Outcome, lapidary_with, name};
use super::prompt::tuned;
use super::terminal::Terminal;

/// A conversation through a pipe.
fn chat(args: &[&str], input: &[u8]) -> Outcome {
    lapidary_with(&[&["chat", "-n", "6", "--temp", "0"], args].concat(), input)
}

/// The messages that a conversation took, by what they cost in prompt tokens.
fn prompt_tokens(args: &[&str], input: &str) -> Vec<usize> {
    let out = chat(args, input.as_bytes()).ok();
    let lines = out.lines().filter_map(|l| l.strip_prefix("prompt "));
    lines.map(|l| l.trim().trim_end_matches(" tokens").parse().unwrap()).collect()
}

#[test]
fn slashes_begin_commands_and_paths_are_messages() {
    let outcome =
        chat(&[], b"/usr/bin/env\n/stats\n//usr\n/stats\n/nothing at all\n/help\n/help me\n/quit\nnever\n");
    for known in ["`/nothing`", "`/help`", "/system, /reset, /save, /load, /stats, /help, /quit"] {
        assert!(outcome.err.contains(known), "{}", outcome.err);
    }
    assert_eq!(outcome.err.matches("unknown command").count(), 2, "{}", outcome.err);
    let out = outcome.ok();
    assert_eq!(out.matches("generated   6 tokens").count(), 2, "{out}");
    for listed in ["/system TEXT", "//TEXT", "\"\"\"", "Ctrl-C"] {
        assert!(out.contains(listed), "{out}");
    }
}

#[test]
fn several_lines_are_one_message() {
    let one = |message: &str| prompt_tokens(&[], &format!("{message}\n/stats\n"));
    let whole = one("\"\"\"a b c\nd e f\"\"\"");
    assert_eq!(whole.len(), 1);
    assert!(whole[0] > one("a b c")[0]);
    for same in ["\"\"\"\na b c\nd e f\n\"\"\"", "a b c\\\nd e f", "\"\"\"a b c\r\nd e f\"\"\"\r"] {
        assert_eq!(one(same), whole, "{same}");
    }
    // Commands within are text; the end of the input ends it.
    assert_eq!(one("\"\"\"\n/quit\n\"\"\"").len(), 1);
    assert!(!chat(&[], b"\"\"\"\n/stats\nhello").ok().trim().is_empty());
}

#[test]
fn a_line_that_is_no_text_is_refused_alone() {
    let outcome = chat(&[], b"\xff\xfe\nhello\n/stats\n\"\"\"a\n\xc3(\nb\"\"\"\n/stats\n");
    assert_eq!(outcome.err.matches("not UTF-8").count(), 2, "{}", outcome.err);
    assert_eq!(outcome.ok().matches("generated   6 tokens").count(), 2);
}

#[test]
fn instructions_come_first_and_stay() {
    let args = ["--context", "128"];
    let plain = prompt_tokens(&args, "hello\n/stats\n")[0];
    let (given, set) = (
        prompt_tokens(&[&args[..], &["--system", "Be as brief as you can."]].concat(), "hello\n/stats\n"),
        prompt_tokens(&args, "/system Be as brief as you can.\nhello\n/stats\n"),
    );
    assert!(given == set && given[0] > plain, "{given:?}, {set:?}, {plain}");
    assert_eq!(prompt_tokens(&args, "/system x\n/system\nhello\n/stats\n"), [plain]);
    // Of a conversation that outgrew its context, too: as many tokens as at first.
    let long = format!("/system Be as brief as you can.\n{}", "hello\n/reset\n".repeat(3));
    assert_eq!(prompt_tokens(&args, &format!("{long}hello\n/stats\n")), given);
}

/// Turns go before an answer, not its end: each answer has all of its tokens.
#[test]
fn the_oldest_turns_make_room() {
    for (context, most) in [("64", "24"), ("64", "40"), ("80", "60")] {
        let input = "tell me more\n/stats\n".repeat(6);
        let args = ["chat", "-n", most, "--temp", "0", "--ignore-eos", "--context", context];
        let outcome = lapidary_with(&args, input.as_bytes());
        assert!(outcome.err.contains("left out"), "{}", outcome.err);
        assert!(!outcome.err.contains("fill the context"), "{}", outcome.err);
        let told = outcome.err.find("left out").unwrap();
        assert!(told > outcome.err.find("cut after").unwrap(), "the first turn fits: {}", outcome.err);
        let out = outcome.ok();
        assert_eq!(out.matches(&format!("generated   {most} tokens")).count(), 6, "{context}, {most}: {out}");
    }
    // Where nothing is left to leave out, the context ends the answer.
    let outcome =
        lapidary_with(&["chat", "-n", "-1", "--temp", "0", "--ignore-eos", "--context", "48"], b"hello\n");
    assert!(outcome.err.contains("fill the context"), "{}", outcome.err);
    outcome.ok();
}

#[test]
fn a_stop_text_ends_an_answer() {
    let whole = lapidary_with(&["chat", "-n", "24", "--temp", "0"], b"hello\n").ok();
    let word = whole.split_whitespace().nth(4).unwrap();
    let args = ["chat", "-n", "24", "--temp", "0", "--stop", word];
    let stopped = lapidary_with(&args, b"hello\n");
    assert!(!stopped.err.contains("cut"), "{}", stopped.err);
    let expected = format!("{}\n", &whole[..whole.find(word).unwrap()]);
    assert_eq!(stopped.ok(), expected);
}

/// The model's folder, a home, and a conversation at a terminal there.
fn person(home: &str, args: &[&str], environment: &[(&str, &str)]) -> Terminal {
    let mut all = vec![("HOME", home), ("XDG_STATE_HOME", "")];
    all.extend_from_slice(environment);
    let most: &[&str] = if args.contains(&"-n") { &[] } else { &["-n", "6"] };
    Terminal::run(&[&["chat", "--temp", "0"], most, args].concat(), &all)
}

#[test]
fn lines_sent_at_once_are_all_taken() {
    let home = tempfile::tempdir().unwrap();
    let mut person = person(name(home.path()), &[], &[]);
    person.wait_for("> ");
    person.send(b"/one\n/two\n\xff\xfe/bad\n/three\r/four\n");
    for line in ["`/one`", "`/two`", "not UTF-8", "`/three`", "`/four`"] {
        person.wait_for(line);
    }
    assert!(
        !person.seen.contains("command `/bad`") && !person.seen.contains("command `\u{fffd}"),
        "{}",
        person.seen
    );
    // A line longer than what is read at once, and one after it.
    person.send(format!("/{}\n/six\n", "x".repeat(3000)).as_bytes());
    person.wait_for("`/six`");
    person.send(b"/quit\n");
    person.ends(0);
}

#[test]
fn what_is_typed_while_an_answer_is_made_is_taken() {
    let (home, model) = (tempfile::tempdir().unwrap(), tuned());
    let args = ["-n", "400", "--ignore-eos", "-m", name(model.path()), "--context", "900"];
    let mut person = person(name(home.path()), &args[..], &[]);
    person.wait_for("> ");
    person.send(b"hello\n");
    std::thread::sleep(std::time::Duration::from_millis(50));
    // The end of what is typed, Ctrl-D, is not lost either.
    person.send(b"/one\n/two\n/three\n\x04");
    for line in ["`/one`", "`/two`", "`/three`"] {
        person.wait_for(line);
    }
    person.ends(0);
}

#[test]
fn lines_are_kept_for_the_next_time() {
    let home = tempfile::tempdir().unwrap();
    let kept = home.path().join(".local/state/lapidary/chat_history");
    let mut first = person(name(home.path()), &[], &[]);
    first.wait_for("> ");
    first.send(b"/remembered\n");
    first.wait_for("unknown command");
    first.send(b" /private\n");
    first.wait_for("unknown command");
    first.send(b"\x04");
    first.ends(0);
    let text = fs::read_to_string(&kept).unwrap();
    assert!(text.contains("/remembered") && !text.contains("private"), "{text}");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    // Mode and all are mended; the line comes back.
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o644)).unwrap();
    let mut second = person(name(home.path()), &[], &[]);
    second.wait_for("> ");
    second.send(b"\x1b[A\r");
    second.wait_for("unknown command `/remembered`");
    second.send(b"\x04");
    second.ends(0);
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    let state = tempfile::tempdir().unwrap();
    for (args, environment) in
        [(&["--no-history"][..], ("XDG_STATE_HOME", name(state.path()))), (&[], ("HOME", ""))]
    {
        let mut third = person("/nonexistent", args, &[environment]);
        third.wait_for("> ");
        third.send(b"/forgotten\n");
        third.wait_for("unknown command");
        third.send(b"\x04");
        third.ends(0);
        assert!(!third.seen.contains("not kept"), "{}", third.seen);
    }
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    assert!(!fs::read_to_string(&kept).unwrap().contains("forgotten"));
    // A planted link is not followed.
    let target = state.path().join("target");
    fs::create_dir(state.path().join("lapidary")).unwrap();
    std::os::unix::fs::symlink(&target, state.path().join("lapidary/chat_history")).unwrap();
    let mut fourth = person(name(home.path()), &[], &[("XDG_STATE_HOME", name(state.path()))]);
    fourth.wait_for("not kept");
    fourth.wait_for("> ");
    fourth.send(b"hello\n\x04");
    fourth.ends(0);
    assert!(!target.exists());
}

#[test]
fn odd_terminals() {
    let home = tempfile::tempdir().unwrap();
    for environment in [("TERM", "dumb"), ("TERM", ""), ("NO_COLOR", "1"), ("COLUMNS", "5")] {
        let mut person = person(name(home.path()), &[], &[environment]);
        person.wait_for("> ");
        person.send(b"/one\n");
        person.wait_for("`/one`");
        person.send(b"hello\n");
        person.wait_for("cut after 6");
        person.send(b"\x04");
        person.ends(0);
        if environment.0 == "TERM" {
            assert!(!person.seen.contains('\x1b'), "{:?}", person.seen);
        }
    }
}
