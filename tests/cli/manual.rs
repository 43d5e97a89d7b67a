//! Completions and man pages: shells and `man` can read them.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use super::command::{lapidary, name};

/// Feeds a program, if it is installed; its output.
fn feed(program: &str, args: &[&str], input: &str) -> Option<String> {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.ok()?;
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{program}: {errors}");
    Some(String::from_utf8_lossy(&output.stdout).into())
}

#[test]
fn shells_complete() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lapidary(&["completions", shell]).ok();
        for word in ["lapidary", "chat", "completions", "temp"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        if ["bash", "zsh", "fish"].contains(&shell) {
            feed(shell, &["-n"], &script);
        }
    }
    // What bash offers after `lapidary comp` and `lapidary run --te`.
    let script = lapidary(&["completions", "bash"]).ok();
    let ask = |words: &str, last: usize| {
        let line = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}; \
             _lapidary lapidary \"${{COMP_WORDS[-1]}}\" lapidary; echo \"${{COMPREPLY[@]}}\""
        );
        feed("bash", &["-s"], &line).map(|offered| offered.trim().to_string())
    };
    if let Some(offered) = ask("lapidary comp", 1) {
        assert_eq!(offered, "compile completions");
        assert_eq!(ask("lapidary run --te", 2).as_deref(), Some("--temp"));
    }
    let unknown = lapidary(&["completions", "csh"]);
    assert!(unknown.code == Some(2) && unknown.err.contains("bash"), "{}", unknown.err);
}

#[test]
fn man_reads_the_pages() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    lapidary(&["man", "-o", name(&folder)]).ok();
    let mut names: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for page in ["lapidary.1", "lapidary-chat.1", "lapidary-run.1", "lapidary-man.1"] {
        assert!(names.iter().any(|n| n == page), "{names:?}");
    }
    for page in &names {
        let text = fs::read_to_string(folder.join(page)).unwrap();
        assert!(text.contains(".TH lapidary") && text.contains(".SH SYNOPSIS"), "{page}");
        if let Some(shown) = feed("groff", &["-man", "-Tutf8", "-ww"], &text) {
            // Bold letters are struck twice.
            let mut shown = shown.replace('\u{8}', "");
            shown.retain(|c| !c.is_whitespace());
            assert!(shown.contains("SSYYNNOOPPSSIISS"), "{page}");
        }
    }
    assert_eq!(lapidary(&["man"]).ok(), fs::read_to_string(folder.join("lapidary.1")).unwrap());
    let run = lapidary(&["man", "run"]).ok();
    assert_eq!(run, fs::read_to_string(folder.join("lapidary-run.1")).unwrap());
    assert!(run.contains("lapidary run") && run.contains("temp"), "{run}");
    let unknown = lapidary(&["man", "walk"]);
    assert!(
        unknown.code == Some(2) && unknown.err.contains("walk") && unknown.err.contains("chat"),
        "{}",
        unknown.err
    );
    lapidary(&["man", "-o", name(&folder.join("lapidary.1"))]).fails(&["lapidary.1"]);
}
