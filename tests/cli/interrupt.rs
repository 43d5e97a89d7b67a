//! Signals that end a command: it ends by the signal's exit code and leaves nothing half written; in `chat` Ctrl-C ends
//! the answer alone.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::command::{binary, name};
use crate::surroundings::{names, plain, send, wait_for};

/// What Ctrl-C sends.
fn interrupt(child: &Child) {
    send(child, libc::SIGINT);
}

/// Waits for the answer to begin.
fn first_byte(child: &mut Child) {
    let out = child.stdout.as_mut().expect("piped");
    assert_eq!(out.read(&mut [0]).expect("a byte"), 1);
}

#[test]
fn run_ends() {
    for (signal, last) in [(libc::SIGINT, true), (libc::SIGTERM, false), (libc::SIGHUP, false)] {
        let mut child = plain().args(["run", "-n", "1000", "hello"]).spawn().expect("the binary runs");
        first_byte(&mut child);
        send(&child, signal);
        let output = child.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(128 + signal), "{errors}");
        assert!(errors.lines().all(|l| l.starts_with("note: ")), "{errors}");
        assert!(!last || output.stdout.ends_with(b"\n"));
    }
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

/// A program under `nohup` goes on.
#[test]
fn a_signal_that_is_ignored_stays_so() {
    let mut command = plain();
    let ignore = || {
        // SAFETY: a call of the system.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(ignore) };
    let mut child = command.args(["run", "-n", "40", "hello"]).spawn().expect("the binary runs");
    first_byte(&mut child);
    send(&child, libc::SIGHUP);
    assert_eq!(child.wait_with_output().expect("it ends").status.code(), Some(0));
}

/// Every command that writes, by every signal: nothing is left beside the output, nor in the cache, nor does the folder
/// stay that was made for it.
#[test]
fn no_file_is_left() {
    let ids = vec!["2"; 1024].join(",");
    let slow = ["--chunk", "1", "--passes", "none"];
    let commands: [&[&str]; 8] = [
        &["logits", "--ids", &ids, "-o", "OUT/x"],
        &["synth", "--preset", "27b", "-o", "OUT/x"],
        &["synth", "--preset", "27b", "-o", "OUT"],
        &["quantize", "--weights", "q4", "--threads", "1", "-o", "OUT/x"],
        &["compile", "--emit", "object", "-o", "OUT/x.o"],
        &["compile", "-o", "OUT/x.lap"],
        &["report", "-o", "OUT/x.html"],
        &["calibrate", "-o", "OUT/x.json"],
    ];
    for command in commands {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            let dir = tempfile::tempdir().expect("a folder");
            let out = dir.path().join("out");
            fs::create_dir(&out).expect("made");
            let mut args: Vec<String> = command.iter().map(|a| a.replace("OUT", name(&out))).collect();
            if command[0] == "logits" {
                args.extend(slow.map(String::from));
            }
            let mut child = plain().args(&args).spawn().expect("the binary runs");
            assert!(wait_for(&mut child, || !names(&out).is_empty()), "{command:?} makes no file");
            ends_by(child, signal, &out, &format!("{command:?}"));
        }
    }
}

/// The weights' cache, by `run`.
#[test]
fn no_file_is_left_in_the_cache() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = dir.path().join("lapidary");
        let mut command = plain();
        command.env("XDG_CACHE_HOME", dir.path());
        let args = ["run", "--weights", "q4", "--threads", "1", "-n", "100000", "hello"];
        let mut child = command.args(args).spawn().expect("the binary runs");
        let partial = || names(&cache).iter().any(|n| n.ends_with(".partial"));
        assert!(wait_for(&mut child, partial), "it makes no file");
        ends_by(child, signal, &cache, "run");
    }
}

/// Ends a command that writes into `dir`, and looks what is left.
fn ends_by(child: Child, signal: i32, dir: &Path, what: &str) {
    let start = Instant::now();
    send(&child, signal);
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(start.elapsed() < Duration::from_secs(60), "{what}: it takes its time");
    assert_eq!(output.status.code(), Some(128 + signal), "{what}: {errors}");
    assert_eq!(names(dir), [""; 0], "{what}, signal {signal}");
}

/// At any moment of writing an artifact: nothing, or the whole.
#[test]
fn an_artifact_is_whole_or_not_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.lap");
    let args = ["compile", "--passes", "none", "--context", "16", "-o", name(&path)];
    let start = Instant::now();
    assert!(binary().args(args).output().expect("it runs").status.success());
    let time = start.elapsed();
    let whole = fs::read(&path).expect("the file");
    for moment in 0..12u32 {
        fs::remove_file(&path).ok();
        let child = plain().args(args).spawn().expect("the binary runs");
        sleep(time * (6 + moment) / 18);
        send(&child, [libc::SIGTERM, libc::SIGHUP, libc::SIGINT][moment as usize % 3]);
        child.wait_with_output().expect("it ends");
        match names(dir.path()).as_slice() {
            [] => {}
            [only] if only == "x.lap" => assert!(fs::read(&path).expect("the file") == whole),
            others => panic!("{others:?} are left"),
        }
    }
}
