//! What `compile` writes when it is not left to end well: killed at any moment, or without room.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use super::command::{binary, lapidary, name};

/// Moments at which each is killed.
const KILLS: u32 = 12;
/// Less than weights take, more than anything else of an object: in blocks of 512 bytes.
const BLOCKS: u32 = 8000;

/// What each kind writes: arguments, and the names that files may have.
const KINDS: [(&str, &str, &[&str]); 2] = [
    ("artifact", "model.lap", &["model.lap"]),
    ("object", "model.o", &["model.o", "model.h", "model.weights"]),
];

/// The arguments of a compilation that takes little time.
fn arguments<'a>(emit: &'a str, output: &'a Path) -> [&'a str; 9] {
    ["compile", "--passes", "none", "--context", "16", "--emit", emit, "-o", name(output)]
}

/// Files by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_string_lossy().into(), fs::read(&p).unwrap())).collect()
}

/// At each moment there is nothing, or the whole, under each final name. What has no final name is hidden.
#[test]
fn killed_at_any_moment() {
    for (emit, output, names) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        lapidary(&arguments(emit, &dir.path().join(output))).ok();
        let time = start.elapsed();
        let whole = files(dir.path());
        assert_eq!(whole.len(), names.len(), "{:?}", whole.keys());
        let (mut cut, mut done) = (0, 0);
        // The last half of the moments lie in the last third, where files are written.
        let moment = |i: u32| match i {
            0..6 => time * i / 9,
            _ => time * (12 + (i - 6)) / 18,
        };
        for i in 0..KILLS {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(output);
            let mut child = binary();
            let mut child = child.args(arguments(emit, &path)).stderr(Stdio::null()).spawn().unwrap();
            sleep(moment(i));
            child.kill().unwrap();
            child.wait().unwrap();
            let found = files(dir.path());
            for (file, bytes) in &found {
                if names.contains(&file.as_str()) {
                    assert!(bytes == &whole[file], "{file} is cut short after {:?}", moment(i));
                } else {
                    assert!(file.starts_with('.'), "{file} is left over after {:?}", moment(i));
                }
            }
            *if found.keys().any(|f| names.contains(&f.as_str())) { &mut done } else { &mut cut } += 1;
        }
        assert!(cut > 0, "{emit}: none was killed before it was done, {done} were done");
    }
}

/// A file that may grow no further, as on a disk that is full: the error names it and what it needs.
#[test]
fn no_room() {
    for (emit, output, names) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(output);
        // What was there stays.
        fs::write(&path, "before").unwrap();
        let script = format!("ulimit -f {BLOCKS}; exec \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, "sh", name(Path::new(binary().get_program()))])
            .args(arguments(emit, &path))
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        let file = dir.path().join(names[names.len() - 1]);
        let words: Vec<&str> =
            error.strip_prefix("error: cannot write ").unwrap().split(['(', ' ']).collect();
        assert_eq!(words[0], name(&file), "{error}");
        let needed: usize = words.iter().find_map(|word| word.parse().ok()).unwrap();
        assert!(needed > 512 * BLOCKS as usize && error.contains("bytes"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        let left = files(dir.path());
        assert_eq!(left.len(), 1, "{:?}", left.keys());
        assert_eq!(fs::read(&path).unwrap(), b"before");
    }
}
