//! Compilers and emulators that objects are tried with, and the C programs built with them.
//!
//! A missing tool skips its test with a line on stderr, or fails it where `LAPIDARY_REQUIRE_TOOLS` is set, as `.ci/run`
//! does.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Whether these programs are there.
pub(crate) fn have(tools: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let missing: Vec<&str> = tools.iter().copied().filter(|tool| !is_there(tool)).collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(), "not found: {missing}");
    eprintln!("SKIPPED, nothing was tested: not found: {missing}");
    false
}

/// Runs a command that must succeed: its stdout.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let err = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{err}");
    String::from_utf8(stdout).expect("UTF-8")
}

/// Writes `model.o`, `model.h` and `model.weights` of the built-in model to a folder.
#[track_caller]
pub(crate) fn compile(dir: &Path, args: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    run(command.args(["compile", "--emit", "object", "-o"]).arg(dir).args(args));
}

/// The sources of the C example.
pub(crate) fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/c")
}

/// Links a C program of these sources with the object of a folder.
#[track_caller]
pub(crate) fn link(dir: &Path, cc: &str, flags: &[&str], sources: &[PathBuf]) -> PathBuf {
    let program = dir.join("program");
    let mut command = Command::new(cc);
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", "-g", "-I"]).arg(dir);
    command.arg("-I").arg(example()).args(flags).args(sources).arg(dir.join("model.o"));
    run(command.args(["-pthread", "-o"]).arg(&program));
    program
}

/// Links the C example.
#[track_caller]
pub(crate) fn link_example(dir: &Path, cc: &str, flags: &[&str]) -> PathBuf {
    link(dir, cc, flags, &[example().join("main.c"), example().join("threads.c")])
}
