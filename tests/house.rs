//! The house in order: files of one page, lines that a screen holds. What is longer is two files, or two lines.
//!
//! In: every source in the repository, found by walking its folders; builds, environments and hidden folders are left
//! out. In Markdown prose alone is held to it: tables and blocks of code cannot be broken.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a file of Rust or Python.
const MOST_LINES: usize = 400;
/// The most columns of a line.
const MOST_COLUMNS: usize = 120;

/// The folder that holds the workspace's members.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Whether a folder holds no sources of ours: hidden, built into (the root's `target`, which a cache may have put back
/// without Cargo's mark, or any with the mark), an environment of Python.
fn is_foreign(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let hidden = name.starts_with('.') && name != ".ci" && name != ".github";
    let marks = ["CACHEDIR.TAG", "pyvenv.cfg"];
    let made = folder == root().join("target") || marks.iter().any(|mark| folder.join(mark).exists());
    hidden || made || name == "node_modules" || folder.is_symlink()
}

/// Files below a folder whose names end so.
fn files(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !is_foreign(&path) {
                files(&path, endings, found);
            }
        } else if path.extension().is_some_and(|own| endings.iter().any(|ending| own == *ending)) {
            found.push(path);
        }
    }
}

/// Those of the repository, each by its path in it, with its text.
fn sources(endings: &[&str]) -> Vec<(String, String)> {
    let root = root();
    let mut found = vec![];
    files(root, endings, &mut found);
    found.sort();
    assert!(!found.is_empty(), "no sources of {endings:?}");
    let of = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, text)
    };
    found.into_iter().map(of).collect()
}

/// Lines that are wider, each by its place, among those that count.
fn wide(name: &str, text: &str, mut counts: impl FnMut(&str) -> bool) -> Vec<String> {
    let lines = text.lines().enumerate().filter(|(_, line)| counts(line));
    let widths = lines.map(|(at, line)| (at + 1, line.chars().count()));
    widths.filter(|(_, n)| *n > MOST_COLUMNS).map(|(at, n)| format!("{name}:{at}: {n} columns")).collect()
}

#[test]
fn files_have_one_page() {
    let long: Vec<String> = sources(&["rs", "py"])
        .iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, n)| *n > MOST_LINES)
        .map(|(name, n)| format!("{name}: {n} lines"))
        .collect();
    assert!(
        long.is_empty(),
        "longer than {MOST_LINES} lines, to be split by what they do:\n{}",
        long.join("\n")
    );
}

#[test]
fn lines_fit_a_screen() {
    let code = sources(&["rs", "py", "pyi", "sh", "c", "h", "mjs", "toml", "yml"]);
    let mut found: Vec<String> = code.iter().flat_map(|(name, text)| wide(name, text, |_| true)).collect();
    for (name, text) in sources(&["md"]) {
        let mut in_code = false;
        let is_prose = |line: &str| {
            let line = line.trim_start();
            let fence = line.starts_with("```");
            in_code ^= fence;
            !in_code && !fence && !line.starts_with(['|', '#'])
        };
        found.extend(wide(&name, &text, is_prose));
    }
    assert!(found.is_empty(), "wider than {MOST_COLUMNS} columns:\n{}", found.join("\n"));
}
