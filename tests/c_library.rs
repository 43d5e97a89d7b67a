//! `liblapidary`: its example prints what `lapidary run` prints, and it holds to its header, as a static and as a
//! shared library, under valgrind too.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

// What is about objects is theirs.
#[allow(dead_code)]
#[path = "object/toolchain.rs"]
mod toolchain;

use toolchain::{example, have, run};

const PROMPT: &str = "It is a truth universally acknowledged";
/// What a static library needs of the system: what `rustc --print native-static-libs` names.
const SYSTEM: [&str; 5] = ["-lgcc_s", "-lpthread", "-lm", "-ldl", "-lc"];
/// What it is run under; that statics hold memory at the end is no leak.
const VALGRIND: [&str; 6] = [
    "valgrind",
    "--quiet",
    "--leak-check=full",
    "--show-leak-kinds=definite,indirect",
    "--errors-for-leak-kinds=definite,indirect",
    "--error-exitcode=9",
];

/// How a program is linked.
#[derive(Clone, Copy, Debug)]
enum Linkage {
    Static,
    Shared,
}

/// The folder of the libraries, which are built as users build them, once.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        run(Command::new(env!("CARGO")).current_dir(root).args(["build", "-q", "-p", "lapidary-c"]));
        let folder = Path::new(env!("CARGO_BIN_EXE_lapidary")).parent().unwrap();
        assert!(folder.join("liblapidary.a").is_file() && folder.join("liblapidary.so").is_file());
        folder.into()
    })
}

fn include() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/c/include")
}

/// Links a program of one source with the library; what runs it.
fn link(dir: &Path, source: &Path, linkage: Linkage) -> PathBuf {
    let program = dir.join(format!("{linkage:?}"));
    let mut command = Command::new("gcc");
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-g", "-I"]).arg(include());
    command.arg(source);
    match linkage {
        Linkage::Static => command.arg(libraries().join("liblapidary.a")).args(SYSTEM),
        Linkage::Shared => {
            let path = format!("-Wl,-rpath,{}", libraries().display());
            command.arg("-L").arg(libraries()).args(["-llapidary", &path, "-lm"])
        }
    };
    run(command.arg("-o").arg(&program));
    program
}

/// An artifact of the built-in model.
fn artifact(dir: &Path, args: &[&str]) -> PathBuf {
    let path = dir.join("model.lap");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    run(command.args(["compile", "-o"]).arg(&path).args(args));
    path
}

#[test]
fn the_header_is_c11_and_cpp17() {
    if !have(&["gcc", "g++"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("empty.c");
    std::fs::write(&source, "#include <lapidary.h>\nint main(void) { return lapidary_version() == 0; }\n")
        .unwrap();
    for (compiler, language) in [("gcc", &["-std=c11"][..]), ("g++", &["-x", "c++", "-std=c++17"])] {
        let mut command = Command::new(compiler);
        command.args(language).args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I"]);
        run(command.arg(include()).arg(&source));
    }
}

#[test]
fn the_example_prints_what_the_command_prints() {
    if !have(&["gcc"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let model = artifact(dir.path(), &[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    let expected = run(command.args(["run", "--temp", "0", "-n", "24", PROMPT]));
    for linkage in [Linkage::Static, Linkage::Shared] {
        let program = link(dir.path(), &example().join("generate.c"), linkage);
        let text = run(Command::new(program).arg(&model).args(["-n", "24", PROMPT]));
        assert_eq!(text, expected, "{linkage:?}");
    }
}

#[test]
fn the_example_builds_by_its_makefile() {
    if !have(&["gcc", "make"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for file in ["Makefile", "generate.c"] {
        std::fs::copy(example().join(file), dir.path().join(file)).unwrap();
    }
    let lapidary = format!("LAPIDARY={}", env!("CARGO_BIN_EXE_lapidary"));
    let (library, include) =
        (format!("LIBRARY={}", libraries().display()), format!("INCLUDE={}", include().display()));
    let mut command = Command::new("make");
    let text = run(command.args(["-s", "text", &lapidary, &library, &include]).current_dir(dir.path()));
    assert!(text.len() > 40, "{text}");
}

#[test]
fn it_holds_to_its_header_and_valgrind_finds_nothing() {
    if !have(&["gcc", "valgrind"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // It knows no AVX-512.
    let cpu = if cfg!(target_arch = "x86_64") { &["--cpu", "x86-64-v2"][..] } else { &[] };
    let model = artifact(dir.path(), cpu);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/c_library/check.c");
    for linkage in [Linkage::Static, Linkage::Shared] {
        let program = link(dir.path(), &source, linkage);
        for runner in [&[][..], &VALGRIND] {
            let words = [runner, &[program.to_str().unwrap()]].concat();
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).arg(&model).arg(dir.path().join("text.state"));
            assert_eq!(run(&mut command), "ok\n", "{linkage:?} {runner:?}");
        }
    }
}
