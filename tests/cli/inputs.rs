//! Files that are none: pipes, sockets, devices, files without an end; texts that are too long; names that steer a
//! terminal. Each is refused with one line, at once.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::command::{binary, lapidary, lapidary_with, name};
use crate::folder;
use crate::surroundings::{one_line, soon};

/// Makes a pipe with a name.
fn pipe(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
    // SAFETY: the path ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

/// Puts something at a path.
type Make = fn(&Path);

/// What is no file: each kind, and what the message calls it.
fn kinds() -> [(&'static str, Make); 7] {
    [
        ("a pipe", pipe),
        ("a device", |path| symlink("/dev/zero", path).expect("a link")),
        ("a socket", |path| drop(UnixListener::bind(path).expect("a socket"))),
        ("a folder", |path| fs::create_dir(path).expect("made")),
        // Both are regular files of no length: one without an end, one that never answers (or refuses).
        ("the system makes up", |path| symlink("/proc/self/pagemap", path).expect("a link")),
        ("the system makes up", |path| symlink("/proc/kmsg", path).expect("a link")),
        ("the system makes up", |path| symlink("/sys/kernel/uevent_seqnum", path).expect("a link")),
    ]
}

/// Every argument that names a file.
#[test]
fn files_that_are_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let commands: [(&[&str], &str); 14] = [
        (&["eval", "--text", "FILE"], "x.txt"),
        (&["logits", "--ids-file", "FILE", "-o", name(&out)], "x"),
        (&["run", "--rules", "FILE", "hello"], "x.rules"),
        (&["opt", "--rules", "FILE"], "x.rules"),
        (&["rules", "--rules", "FILE"], "x.rules"),
        (&["check-rules", "--rules", "FILE"], "x.rules"),
        (&["run", "--calibration", "FILE", "hello"], "x.json"),
        (&["opt", "FILE"], "x.ir"),
        (&["report", "FILE", "-o", name(&out)], "x.ir"),
        (&["verify", "FILE"], "x.lap"),
        (&["inspect", "-m", "FILE"], "x.lap"),
        (&["run", "-m", "FILE", "hello"], "x.lap"),
        (&["bench", "-m", "FILE"], "x.lap"),
        (&["logits", "-m", "FILE", "--ids", "2", "-o", name(&out)], "x.lap"),
    ];
    for (args, file) in commands {
        for (what, make) in kinds() {
            let place = tempfile::tempdir().expect("a folder");
            let path = place.path().join(file);
            make(&path);
            let args: Vec<&str> = args.iter().map(|a| if *a == "FILE" { name(&path) } else { a }).collect();
            let start = Instant::now();
            one_line(&soon(binary().args(&args)), &[name(&path), what]);
            assert!(start.elapsed() < Duration::from_secs(30), "{args:?}");
            assert!(!out.exists());
        }
    }
}

/// Every file of a model's folder.
#[test]
fn files_of_a_folder_that_are_none() {
    let files = [
        "config.json",
        folder::WEIGHTS,
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        folder::INDEX,
    ];
    for file in files {
        for (what, make) in kinds() {
            let model = folder::small();
            let path = model.path().join(file);
            if file == folder::INDEX {
                fs::remove_file(model.path().join(folder::WEIGHTS)).expect("removed");
            }
            fs::remove_file(&path).ok();
            make(&path);
            one_line(&soon(binary().args(["run", "-m", name(model.path()), "hello"])), &[name(&path), what]);
        }
    }
    // A shard that an index names.
    let model = folder::converted("BF16", |x| x.to_le_bytes().into(), 2);
    let path = model.path().join(folder::shard(1));
    for (what, make) in kinds() {
        fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).expect("removed");
        make(&path);
        one_line(&soon(binary().args(["inspect", "-m", name(model.path())])), &[name(&path), what]);
    }
}

/// A file that is larger than any text (it has holes, and takes no room) is not read at all.
#[test]
fn a_file_that_is_too_large() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x");
    fs::File::create(&path).expect("made").set_len(1 << 40).expect("grown");
    for args in
        [&["eval", "--text", name(&path)][..], &["opt", name(&path)], &["run", "--rules", name(&path), "hi"]]
    {
        let start = Instant::now();
        one_line(&soon(binary().args(args)), &[name(&path), "at most", "1099511627776"]);
        assert!(start.elapsed() < Duration::from_secs(20), "{args:?}");
    }
}

/// stdin has no length: what comes is read up to a limit.
#[test]
fn an_input_without_end() {
    for args in [&["run", "-"][..], &["opt", "-"]] {
        let mut command = binary();
        command.stdin(fs::File::open("/dev/zero").expect("a device"));
        one_line(&soon(command.args(args)), &["stdin", "at most 134217728 bytes"]);
    }
}

/// A prompt of 50 MB: what shows that it does not fit is its start.
#[test]
fn a_prompt_that_is_too_long() {
    let lines = "It is a truth universally acknowledged.\n".repeat(50_000_000 / 40);
    let letters = "a".repeat(50_000_000);
    let words = "the sky ".repeat(50_000_000 / 8);
    for text in [&lines, &letters, &words] {
        let start = Instant::now();
        let outcome = lapidary_with(&["run", "-"], text.as_bytes());
        outcome.fails(&["the prompt is too long", "at least", "the context is 1024"]);
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }
    // In a chat it is told, and the next message is answered; a line without end is not kept whole to begin with.
    for (line, why) in [
        (&letters[..10_000_000], "error: the message is "),
        (&letters[..], "error: the line has more than 16 MiB"),
    ] {
        let outcome = lapidary_with(&["chat", "-n", "2"], format!("{line}\nhello\n").as_bytes());
        assert!(outcome.err.contains(why), "{}", outcome.err);
        assert!(!outcome.ok().is_empty());
    }
    // One that is only somewhat too long is counted.
    lapidary(&["run", "hello ".repeat(1100).as_str()])
        .fails(&["the prompt is ", "tokens, the context is 1024"]);
}

/// What steers a terminal: escape sequences of 7 and 8 bits, a carriage return, text that runs the other way.
const STEERING: &str = "\u{1b}[2J\u{9b}31m\r\u{202e}\u{7f}\u{7}";

/// Checks that nothing of it is in an output.
#[track_caller]
fn harmless(what: &str, text: &str) {
    let bad = text.chars().find(|c| (c.is_control() && *c != '\n' && *c != '\t') || STEERING.contains(*c));
    let bad = bad.filter(|c| !matches!(c, '[' | '2' | 'J' | '3' | '1' | 'm'));
    assert_eq!(bad, None, "{what}: {text:?}");
}

/// Names and values of files, in messages and in what is shown.
#[test]
fn nothing_steers_the_terminal() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = |file: &str| -> PathBuf { dir.path().join(file) };
    let check = |args: &[&str]| {
        let outcome = lapidary(args);
        harmless("stdout", &outcome.out);
        harmless("stderr", &outcome.err);
        assert_ne!(outcome.code, None);
    };
    // Fields, values and names of a folder.
    let edits: [&dyn Fn(&Path); 6] = [
        &|m| folder::edit(&m.join("config.json"), |c| c[STEERING] = true.into()),
        &|m| folder::edit(&m.join("config.json"), |c| c["model_type"] = STEERING.into()),
        &|m| folder::edit(&m.join("config.json"), |c| c["hidden_size"] = STEERING.into()),
        &|m| folder::edit(&m.join("tokenizer_config.json"), |c| c["bos_token"] = STEERING.into()),
        &|m| fs::write(m.join("config.json"), format!("{{{STEERING}")).expect("written"),
        &|m| folder::edit_weights(m, |w| w.push(STEERING, STEERING, &serde_json::json!([1]), &[0; 2])),
    ];
    for edit in edits {
        let model = folder::small();
        edit(model.path());
        check(&["inspect", "-m", name(model.path())]);
        // A model's own words go to a pipe as they are.
        check(&["run", "-n", "0", "-m", name(model.path()), "hello"]);
    }
    // A folder's own name.
    let hostile = place(&format!("m{STEERING}"));
    let model = folder::small();
    fs::create_dir(&hostile).expect("made");
    for file in crate::surroundings::names(model.path()) {
        fs::copy(model.path().join(&file), hostile.join(&file)).expect("copied");
    }
    for args in [&["inspect", "-m", name(&hostile)][..], &["inspect", "--json", "-m", name(&hostile)]] {
        check(args);
        assert_eq!(lapidary(args).code, Some(0));
    }
    check(&["run", "-m", name(&place(&format!("no{STEERING}"))), "hello"]);
    // Rules and functions.
    let (rules, ir) = (place("x.rules"), place("x.ir"));
    let text = lapidary(&["rules", "--show", "softcap"]).ok();
    for text in [STEERING.to_string(), text.replacen("softcap", STEERING, 1), format!("{text}{STEERING}")] {
        fs::write(&rules, &text).expect("written");
        check(&["rules", "--rules", name(&rules)]);
        check(&["run", "-n", "0", "--rules", name(&rules), "hello"]);
    }
    let text = lapidary(&["opt", "--fn", "head", "--emit", "ir"]).ok();
    for text in [STEERING.to_string(), text.replacen("head", STEERING, 1), format!("; {STEERING}\n{text}")] {
        fs::write(&ir, &text).expect("written");
        check(&["opt", name(&ir)]);
    }
    // What an artifact says of itself.
    let lap = place("x.lap");
    lapidary(&["compile", "-m", name(model.path()), "-o", name(&lap)]).ok();
    let bytes = fs::read(&lap).expect("the file");
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    let hostile = serde_json::Value::from(STEERING).to_string();
    for field in ["\"weights\":\"", "\"target\":\"", "\"cpus\":\""] {
        let text = String::from_utf8(bytes[8..header].to_vec()).expect("JSON");
        let at = text.find(field).expect("the field") + field.len();
        let end = at + text[at..].find('"').expect("its end");
        let mut text = format!("{}{}{}", &text[..at], hostile.trim_matches('"'), &text[end..]);
        let cut = text.trim_end().len();
        text.truncate(cut);
        text.push_str(&" ".repeat((header - 8).saturating_sub(cut)));
        fs::write(&lap, [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[header..]].concat())
            .expect("written");
        for args in [
            &["inspect", "-m", name(&lap)][..],
            &["inspect", "--json", "-m", name(&lap)],
            &["verify", name(&lap)],
        ] {
            check(args);
        }
        check(&["run", "-m", name(&lap), "hello"]);
    }
}

/// A model's words are its own in a file or a pipe. On a terminal they are text and nothing else.
#[test]
fn words_on_a_terminal() {
    // A vocabulary in which a usual token is an escape sequence.
    let model = folder::small();
    folder::edit(&model.path().join("tokenizer.json"), |t| {
        let vocabulary = t["model"]["vocab"].as_object().expect("a vocabulary");
        let hostile: serde_json::Map<_, _> = vocabulary
            .iter()
            .map(|(token, id)| match id.as_u64() {
                Some(300..) if token.chars().count() > 1 && !token.starts_with('<') => {
                    (format!("{token}\u{1b}[2J"), id.clone())
                }
                _ => (token.clone(), id.clone()),
            })
            .collect();
        t["model"]["vocab"] = hostile.into();
        t["model"]["merges"] = serde_json::json!([]);
    });
    let args = ["run", "-m", name(model.path()), "-n", "20", "--temp", "0", "a"];
    let piped = lapidary(&args).ok();
    assert!(piped.contains('\u{1b}'), "{piped:?}");
    let (terminal, other) = pseudo_terminal();
    let mut command = binary();
    command.stdout(Stdio::from(other));
    let mut child = command.args(args).spawn().expect("the binary runs");
    drop(command);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A terminal whose last writer is gone is an error to who reads it.
        let _ = std::io::Read::read_to_end(&mut { terminal }, &mut bytes);
        bytes
    });
    assert!(child.wait().expect("it ends").success());
    let shown = String::from_utf8(reader.join().expect("it ends")).expect("UTF-8");
    assert!(!shown.contains('\u{1b}') && shown.contains("\\u{1b}[2J"), "{shown:?}");
}

/// Both ends of a terminal.
fn pseudo_terminal() -> (fs::File, fs::File) {
    use std::os::fd::FromRawFd;
    let (mut a, mut b) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: the system fills in two descriptors, which are nobody else's.
    unsafe {
        assert_eq!(libc::openpty(&mut a, &mut b, none, none.cast(), none.cast()), 0);
        (fs::File::from_raw_fd(a), fs::File::from_raw_fd(b))
    }
}

/// A reader that is a file or a pipe gets what is written to it, however it is written.
#[test]
fn a_pipe_as_stdin_is_no_file() {
    let mut child =
        binary().args(["run", "-n", "1", "-"]).stdin(Stdio::piped()).spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("piped");
    for part in ["hel", "lo"] {
        stdin.write_all(part.as_bytes()).expect("written");
    }
    drop(stdin);
    assert!(child.wait_with_output().expect("it ends").status.success());
}
