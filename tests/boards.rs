//! `lapidary-run` as it is shipped to boards, a static file for x86-64 and one for AArch64: run under QEMU as CPUs that
//! people have, on artifacts made here, and held to the text that the compiler in memory gives on this machine.
//!
//! `runtime/run/cross.sh` makes the files. Without them, or without QEMU, the tests are skipped with a line on stderr,
//! or fail where `LAPIDARY_REQUIRE_TOOLS` is set, as `.ci/run` does.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lapidary_runtime::threads;

const PROMPT: &str = "It is a truth universally acknowledged";
/// What both sides are asked for.
const GREEDY: [&str; 5] = ["--temp", "0", "-n", "24", PROMPT];
/// Weights as stored, and in 4 bits.
const FORMATS: [&[&str]; 2] = [&[], &["--weights", "q4", "--no-cache"]];
/// Bytes that a file stays under: 4 MB.
const MOST_BYTES: u64 = 4_000_000;

/// A file for boards and what runs it.
struct Board {
    /// As the file's name ends.
    architecture: &'static str,
    target: &'static str,
    emulator: &'static str,
    /// QEMU's names of CPUs: the newest, then what people have, down to the least that is served.
    cpus: &'static [&'static str],
}

/// With every extension that QEMU knows; a Raspberry Pi 5, with dot products; a Raspberry Pi 3, without.
const AARCH64: Board = Board {
    architecture: "aarch64",
    target: "aarch64-unknown-linux-gnu",
    emulator: "qemu-aarch64",
    cpus: &["max", "cortex-a76", "cortex-a53"],
};
/// With AVX2, without FMA, and with SSE4.2 alone.
const X86_64: Board = Board {
    architecture: "x86_64",
    target: "x86_64-unknown-linux-gnu",
    emulator: "qemu-x86_64",
    cpus: &["Haswell", "SandyBridge", "Nehalem"],
};

impl Board {
    /// The file, if it and what runs it are there.
    fn file(&self) -> Option<PathBuf> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
        let file = target.join("boards").join(format!("lapidary-run-{}", self.architecture));
        let path = env::var_os("PATH").unwrap_or_default();
        let emulator = env::split_paths(&path).any(|dir| dir.join(self.emulator).is_file());
        if file.is_file() && emulator {
            return Some(file);
        }
        let missing = format!("not found: {} (runtime/run/cross.sh) or {}", file.display(), self.emulator);
        assert!(env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(), "{missing}");
        eprintln!("SKIPPED, nothing was tested: {missing}");
        None
    }

    /// The file on an artifact, as a CPU.
    fn output(&self, file: &Path, cpu: &str, artifact: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(self.emulator);
        command.args(["-cpu", cpu]).arg(file).arg(artifact).args(args);
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
    }

    /// Every CPU and number of threads gives the text of this machine's JIT.
    fn check(&self) {
        let Some(file) = self.file() else { return };
        let dir = tempfile::tempdir().expect("a folder");
        for format in FORMATS {
            let expected = lapidary(&[&["run"], format, &GREEDY].concat());
            let artifact = dir.path().join("t.lap");
            let path = artifact.to_str().expect("UTF-8");
            lapidary(&[&["compile", "--target", self.target, "-o", path], format].concat());
            threads::map(threads::of_machine(), self.cpus.to_vec(), |cpu| {
                for threads in ["1", "2"] {
                    let found =
                        self.output(&file, cpu, &artifact, &[&["--threads", threads], &GREEDY[..]].concat());
                    let err = String::from_utf8_lossy(&found.stderr);
                    assert!(found.status.success(), "{cpu}, {format:?}: {}: {err}", found.status);
                    let found = String::from_utf8(found.stdout).expect("UTF-8");
                    assert_eq!(found, expected, "{cpu}, {format:?}, {threads} threads");
                }
            });
        }
    }

    /// Code that a CPU lacks an instruction for is refused with a line that names it.
    fn refuses(&self, code: &str, cpu: &str, feature: &str) {
        let Some(file) = self.file() else { return };
        let dir = tempfile::tempdir().expect("a folder");
        let artifact = dir.path().join("t.lap");
        let path = artifact.to_str().expect("UTF-8");
        lapidary(&["compile", "--target", self.target, "--cpu", code, "-o", path]);
        let found = self.output(&file, cpu, &artifact, &GREEDY);
        let err = String::from_utf8_lossy(&found.stderr);
        assert_eq!(found.status.code(), Some(1), "{err}");
        assert!(err.to_lowercase().contains(feature) && err.lines().count() == 1, "{err}");
        assert!(found.stdout.is_empty());
    }

    /// It asks for no loader, so for no library, and stays small.
    fn is_static(&self) {
        let Some(file) = self.file() else { return };
        let elf = std::fs::read(&file).expect("a file");
        assert!((elf.len() as u64) < MOST_BYTES, "{}: {} bytes", file.display(), elf.len());
        let word = |at: usize, bytes: usize| {
            elf[at..at + bytes].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)) as usize
        };
        // The program headers of a 64-bit ELF file: their place, size and number; a type each (ELF-64, version 1.5).
        let (start, size, count) = (word(32, 8), word(54, 2), word(56, 2));
        assert!(elf.starts_with(b"\x7fELF") && count > 0);
        const PT_INTERP: usize = 3;
        assert!(
            (0..count).all(|i| word(start + i * size, 4) != PT_INTERP),
            "{} asks for a loader",
            file.display()
        );
    }
}

/// stdout of a command that must succeed.
#[track_caller]
fn lapidary(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lapidary")).args(args).output().expect("lapidary");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {err}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn artifacts_for_aarch64_give_the_text_of_this_machine() {
    AARCH64.check();
}

#[test]
fn artifacts_for_x86_64_give_the_text_of_this_machine() {
    X86_64.check();
}

#[test]
fn what_a_cpu_lacks_is_named() {
    AARCH64.refuses("neoverse-n1", "cortex-a53", "dotprod");
    X86_64.refuses("x86-64-v3", "Nehalem", "avx2");
}

#[test]
fn files_for_boards_are_static() {
    AARCH64.is_static();
    X86_64.is_static();
}
