//! Ctrl-C: it ends a command with exit code 130 and leaves no file; in `chat` it ends the answer alone.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::command::{binary, name};

/// What Ctrl-C sends.
fn interrupt(child: &Child) {
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(kill.success());
}

/// Waits for the answer to begin.
fn first_byte(child: &mut Child) {
    let out = child.stdout.as_mut().expect("piped");
    assert_eq!(out.read(&mut [0]).expect("a byte"), 1);
}

#[test]
fn run_ends() {
    let mut child = binary().args(["run", "-n", "1000", "hello"]).spawn().expect("the binary runs");
    first_byte(&mut child);
    interrupt(&child);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(130), &b""[..]));
    assert!(output.stdout.ends_with(b"\n"));
}

#[test]
fn chat_goes_on() {
    let mut child =
        binary().args(["chat", "-n", "1000"]).stdin(Stdio::piped()).spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"hello\n").expect("written");
    first_byte(&mut child);
    interrupt(&child);
    stdin.write_all(b"/stats\n/quit\n").expect("written");
    let output = child.wait_with_output().expect("it ends");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(errors.contains("note: stopped") && out.contains("generated "), "{out}\n{errors}");
}

#[test]
fn no_file_is_left() {
    let dir = tempfile::tempdir().expect("a folder");
    let count = || fs::read_dir(dir.path()).map_or(0, |entries| entries.count());
    let out = dir.path().join("out");
    let ids = vec!["2"; 1024].join(",");
    let logits = ["logits", "--ids", &ids, "--chunk", "1", "--passes", "none", "-o", name(&out)];
    let synth = ["synth", "--preset", "27b", "-o", name(dir.path())];
    for args in [&logits[..], &synth] {
        let child = binary().args(args).spawn().expect("the binary runs");
        let start = Instant::now();
        while count() == 0 {
            assert!(start.elapsed().as_secs() < 60, "{} makes no file", args[0]);
            sleep(Duration::from_millis(5));
        }
        interrupt(&child);
        let output = child.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), count()), (Some(130), 0), "{}: {errors}", args[0]);
    }
}
