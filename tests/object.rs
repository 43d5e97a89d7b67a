//! Objects: linked with C compilers, run, and held against sessions of this process: to the bit on the same CPU, within
//! [`TOLERANCE`] on another architecture.

#[path = "object/emulated.rs"]
mod emulated;
#[path = "object/guard.rs"]
mod guard;
#[path = "object/own.rs"]
mod own;
#[path = "object/sample.rs"]
mod sample;
#[path = "object/toolchain.rs"]
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use emulated::{AARCH64, RISCV64};
use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_tests::{exact, golden, golden_model, session};
use tempfile::TempDir;
use toolchain::{compile, example, have, link, link_example, run};

/// The most that logits of another architecture may differ by.
const TOLERANCE: f32 = 1e-3;
/// Positions: more than a window and a chunk, so that local caches are rings.
const CONTEXT: usize = 256;
/// Rows of a call: several calls a prompt, and rings that wrap.
const CHUNK: usize = 16;
/// Tokens of the prompt: more than a ring holds.
const PROMPT: usize = 170;
/// Tokens of the prompt under valgrind, which is fifty times slower.
const SHORT_PROMPT: usize = 20;
/// Tokens generated.
const TOKENS: usize = 4;
/// What `check.c` fills to the last position and rolls back in: rings of 24 rows.
const SMALL: [&str; 6] = ["--context", "64", "--chunk", "8", "--sliding-window", "16"];

/// Options that compile what [`expected`] runs.
fn options(cpu: &str) -> Vec<String> {
    let (context, chunk) = (CONTEXT.to_string(), CHUNK.to_string());
    ["--activations", "f32", "--context", &context, "--chunk", &chunk, "--cpu", cpu]
        .map(String::from)
        .to_vec()
}

fn folder(args: &[String]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    compile(dir.path(), &args.iter().map(String::as_str).collect::<Vec<_>>());
    dir
}

fn prompt(tokens: usize) -> Vec<u32> {
    golden("tiny-long").expect("golden").ids[..tokens].to_vec()
}

/// Logits behind each token that a session generates.
fn expected(cpu: &'static str, prompt: &[u32]) -> Vec<f32> {
    let model = golden_model("tiny-long").expect("a model");
    let options = exact().cpu(cpu).chunk(CHUNK).context(CONTEXT).threads(1);
    let mut session = session(&model, options).expect("a session");
    session.prefill(prompt).expect("room");
    let mut all = session.logits().to_vec();
    for _ in 1..TOKENS {
        let next = session.argmax();
        session.decode(next).expect("room");
        all.extend_from_slice(session.logits());
    }
    all
}

/// The same from a program, started by `runner`.
fn found(runner: &[&str], program: &Path, prompt: &[u32], threads: usize) -> Vec<f32> {
    let weights = program.with_file_name("model.weights");
    let mut command = match runner {
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        [] => Command::new(program),
    };
    command.arg(weights).args(["-t", &threads.to_string(), "-n", &TOKENS.to_string(), "-l"]);
    let text = run(command.args(prompt.iter().map(u32::to_string)));
    text.split_whitespace().map(|x| x.parse().expect("a number")).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference = |(x, y): (&f32, &f32)| if (x - y).is_nan() { f32::INFINITY } else { (x - y).abs() };
    a.iter().zip(b).map(difference).fold(0.0, f32::max)
}

/// CPUs of the table that this machine is, and `native`.
fn cpus_here() -> Vec<&'static str> {
    let runs = |cpu: &&str| Target::new(cpu, Placement::Object).expect("a target").lacking_here().is_none();
    TARGETS.iter().map(|t| t.name).filter(runs).chain(["native"]).collect()
}

#[test]
fn the_header_is_c11_and_cpp17() {
    if !have(&["gcc", "g++"]) {
        return;
    }
    let dir = folder(&options("native"));
    for (compiler, language, standard) in [("gcc", "c", "-std=c11"), ("g++", "c++", "-std=c++17")] {
        let mut command = Command::new(compiler);
        command.args(["-x", language, standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]);
        run(command.arg(dir.path().join("model.h")));
    }
}

#[test]
fn an_object_refers_to_nothing_outside() {
    if !have(&["nm"]) {
        return;
    }
    for cpu in ["native", AARCH64.cpu, RISCV64.cpu] {
        let dir = folder(&options(cpu));
        let object = dir.path().join("model.o");
        assert_eq!(run(Command::new("nm").arg("--undefined-only").arg(&object)), "");
        let public = run(Command::new("nm").args(["--extern-only", "--format=posix"]).arg(&object));
        let mut names: Vec<&str> = public.lines().filter_map(|l| l.split(' ').next()).collect();
        names.sort_unstable();
        let all = [
            "argmax",
            "decode",
            "init",
            "logits",
            "open",
            "position",
            "prefill",
            "rollback",
            "step",
            "supported",
        ];
        assert_eq!(names, all.map(|n| format!("model_{n}")));
    }
}

/// The program in the documentation, as it stands there, prints what the example prints.
#[test]
fn the_documented_program_works() {
    if !have(&["gcc"]) {
        return;
    }
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/object.md"));
    let docs = docs.expect("the documentation");
    let (_, source) = docs.split_once("```c\n").expect("a C program");
    let (source, _) = source.split_once("```").expect("its end");
    let dir = folder(&[]);
    let example = link_example(dir.path(), "gcc", &[]);
    let weights = example.with_file_name("model.weights");
    let greedy = run(Command::new(&example).arg(weights).args(["-n", "16", "2", "17", "5"]));
    let main = dir.path().join("main.c");
    fs::write(&main, source).expect("written");
    let program = link(dir.path(), "gcc", &[], &[main]);
    assert_eq!(run(Command::new(program).current_dir(dir.path())).trim(), greedy.trim());
}

#[test]
fn objects_and_sessions_agree_to_the_bit() {
    if !have(&["gcc"]) {
        return;
    }
    for cpu in cpus_here() {
        let dir = folder(&options(cpu));
        let program = link_example(dir.path(), "gcc", &[]);
        let prompt = prompt(PROMPT);
        let session = expected(cpu, &prompt);
        for threads in [1, 3] {
            let object = found(&[], &program, &prompt, threads);
            assert_eq!(object.len(), session.len());
            let same = object.iter().zip(&session).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(same, "{cpu}, {threads} threads: {}", worst(&object, &session));
        }
    }
}

// It knows no AVX-512.
#[test]
fn valgrind_finds_nothing_of_vectors_of_128_bits() {
    valgrind_finds_nothing("x86-64-v2");
}

#[test]
fn valgrind_finds_nothing_of_vectors_of_256_bits() {
    valgrind_finds_nothing("x86-64-v3");
}

#[track_caller]
fn valgrind_finds_nothing(cpu: &'static str) {
    if !cpus_here().contains(&cpu) || !have(&["gcc", "valgrind"]) {
        return;
    }
    const VALGRIND: &[&str] = &["valgrind", "--quiet", "--leak-check=full", "--error-exitcode=9"];
    let dir = folder(&options(cpu));
    let program = link_example(dir.path(), "gcc", &[]);
    let prompt = prompt(SHORT_PROMPT);
    let difference = worst(&found(VALGRIND, &program, &prompt, 2), &expected(cpu, &prompt));
    assert!(difference <= TOLERANCE, "{cpu}: {difference}");
    compile(dir.path(), &[&["--cpu", cpu][..], &SMALL].concat());
    let check = link(dir.path(), "gcc", &[], &[check_source()]);
    run(Command::new(VALGRIND[0]).args(&VALGRIND[1..]).arg(check).arg(dir.path().join("model.weights")));
}

fn check_source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/object/check.c")
}

#[test]
fn objects_hold_to_their_header() {
    if !have(&["gcc"]) {
        return;
    }
    for mode in [
        &["--activations", "f32"][..],
        &["--weights", "q8", "--no-cache"],
        &["--weights", "q4", "--no-cache"],
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        compile(dir.path(), &[&SMALL, mode].concat());
        let check = link(dir.path(), "gcc", &[], &[check_source()]);
        run(Command::new(check).arg(dir.path().join("model.weights")));
    }
}

#[test]
fn the_example_builds_by_its_makefile() {
    if !have(&["gcc", "make"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    for file in ["Makefile", "main.c", "threads.c", "threads.h"] {
        fs::copy(example().join(file), dir.path().join(file)).expect("a copy");
    }
    let lapidary = format!("LAPIDARY={}", env!("CARGO_BIN_EXE_lapidary"));
    let out = run(Command::new("make").args(["-s", "run", &lapidary]).current_dir(dir.path()));
    assert_eq!(out.split_whitespace().filter(|id| id.parse::<u32>().is_ok()).count(), 16, "{out}");
}

#[test]
fn two_compiles_are_equal_and_weights_are_safetensors() {
    let args = ["--weights", "q4", "--no-cache", "--cpu", "aarch64"].map(String::from);
    let (first, second) = (folder(&args), folder(&args));
    for file in ["model.o", "model.h", "model.weights"] {
        let read = |dir: &TempDir| fs::read(dir.path().join(file)).expect(file);
        assert!(read(&first) == read(&second), "{file} differs");
    }
    let bytes = fs::read(first.path().join("model.weights")).expect("weights");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let model = golden_model("tiny-long").expect("a model");
    assert!(file.len() >= model.checkpoint.names().count());
    for name in model.checkpoint.names() {
        let tensor = file.tensor(name).expect(name);
        let offset = tensor.data().as_ptr().addr() - bytes.as_ptr().addr();
        assert_eq!(offset % 64, 0, "{name}");
    }
}

#[test]
fn what_cannot_be_written_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let lapidary = env!("CARGO_BIN_EXE_lapidary");
    let fails = |script: &str, code: i32, named: &[&str]| {
        let output = Command::new("sh").args(["-c", script]).current_dir(dir.path()).output().expect("sh");
        let err = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(named.iter().all(|name| err.contains(name)), "{named:?}: {err}");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0, "{script} leaves files");
    };
    let compile = format!("{lapidary} compile --emit object");
    // The limit, in blocks of 512 bytes, lets object and header pass and not the weights.
    let full = format!("trap '' XFSZ; ulimit -f 2000; exec {compile} -o model.o");
    fails(&full, 1, &["model.weights", "bytes"]);
    fails(&format!("{compile} -o missing/model.o"), 1, &["missing/model.o"]);
    fails(&format!("{compile} -o model.elf"), 2, &["model.elf", "NAME.o"]);
    fails(&format!("{compile} -o 2b.o"), 2, &["2b.o", "letter"]);
    let known = ["sparc", "aarch64-unknown-linux-gnu", "riscv64-unknown-linux-gnu"];
    fails(&format!("{compile} --target sparc -o model.o"), 2, &known);
    let other = "--target aarch64-unknown-linux-gnu --cpu znver4";
    fails(&format!("{compile} {other} -o model.o"), 2, &["znver4", "aarch64"]);
}
