//! Objects for other architectures, run by QEMU, against sessions of this process: within a tolerance.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::toolchain::{compile, have, link, link_example, run};
use crate::{
    PROMPT, SHORT_PROMPT, SMALL, TOLERANCE, check_source, cpus_here, expected, folder, found, options,
    prompt, worst,
};

/// The same where activations are rounded to 8 bits: what a rounding that falls the other way costs, up to 0.12
/// measured (about what rounding itself costs); without one, 3e-6.
const ROUNDED_TOLERANCE: f32 = 0.25;

/// A machine that is emulated: its CPU and target by name, its linker, its emulator.
pub(crate) struct Emulated {
    pub(crate) cpu: &'static str,
    target: &'static str,
    cc: &'static str,
    qemu: &'static [&'static str],
}

pub(crate) const AARCH64: Emulated = Emulated {
    cpu: "aarch64",
    target: "aarch64-unknown-linux-gnu",
    cc: "aarch64-linux-gnu-gcc",
    qemu: &["qemu-aarch64"],
};

/// With the shortest vectors that code for it may rely on.
pub(crate) const RISCV64: Emulated = Emulated {
    cpu: "rv64gcv",
    // Rust's name for it.
    target: "riscv64gc-unknown-linux-gnu",
    cc: "riscv64-linux-gnu-gcc",
    qemu: &["qemu-riscv64", "-cpu", "rv64,v=true,vlen=128"],
};

/// Vectors twice as long, of which half is used.
const RISCV64_LONG: &[&str] = &["qemu-riscv64", "-cpu", "rv64,v=true,vlen=256"];

impl Emulated {
    fn is_there(&self) -> bool {
        have(&[self.cc, self.qemu[0]])
    }

    /// A folder with an object for it, of [`options`], and the example linked with it.
    fn example(&self) -> (TempDir, PathBuf) {
        let mut args = options(self.cpu);
        args.extend(["--target", self.target].map(String::from));
        let dir = folder(&args);
        let program = link_example(dir.path(), self.cc, &["-static"]);
        (dir, program)
    }

    /// Holds an object to its header.
    fn check(&self) {
        let dir = tempfile::tempdir().expect("a folder");
        compile(dir.path(), &[&["--target", self.target, "--activations", "f32"], &SMALL[..]].concat());
        let check = link(dir.path(), self.cc, &["-static"], &[check_source()]);
        run(Command::new(self.qemu[0])
            .args(&self.qemu[1..])
            .arg(check)
            .arg(dir.path().join("model.weights")));
    }
}

#[test]
fn aarch64_agrees_under_qemu() {
    if !AARCH64.is_there() {
        return;
    }
    let (_dir, program) = AARCH64.example();
    let prompt = prompt(PROMPT);
    let session = expected("native", &prompt);
    for threads in [1, 2] {
        let difference = worst(&found(AARCH64.qemu, &program, &prompt, threads), &session);
        assert!(difference <= TOLERANCE, "{threads} threads: {difference}");
    }
    AARCH64.check();
}

/// Longer vectors give the same bits: kernels use 128 of theirs.
#[test]
fn riscv64_agrees_under_qemu() {
    if !RISCV64.is_there() {
        return;
    }
    let (_dir, program) = RISCV64.example();
    let prompt = prompt(PROMPT);
    let logits = found(RISCV64.qemu, &program, &prompt, 2);
    let difference = worst(&logits, &expected("native", &prompt));
    assert!(difference <= TOLERANCE, "{difference}");
    let short = &prompt[..SHORT_PROMPT];
    assert_eq!(
        found(RISCV64.qemu, &program, short, 1),
        found(RISCV64_LONG, &program, short, 2),
        "vectors of 256 bits"
    );
    RISCV64.check();
}

#[test]
fn every_format_of_weights_agrees_on_riscv64() {
    if !have(&["gcc"]) || !RISCV64.is_there() {
        return;
    }
    for format in ["f32", "f16", "q8", "q4"] {
        let logits = |cpu: &str, cc: &str, flags: &[&str], runner: &[&str]| {
            let dir = tempfile::tempdir().expect("a folder");
            let exact = ["--activations", "f32", "--context", "64", "--chunk", "16", "--cpu", cpu];
            compile(dir.path(), &[&["--weights", format, "--no-cache"], &exact[..]].concat());
            let program = link_example(dir.path(), cc, flags);
            found(runner, &program, &prompt(SHORT_PROMPT), 1)
        };
        let there =
            logits(RISCV64.cpu, RISCV64.cc, &[], &[RISCV64.qemu, &["-L", "/usr/riscv64-linux-gnu"]].concat());
        let difference = worst(&there, &logits("native", "gcc", &[], &[]));
        assert!(difference <= TOLERANCE, "{format}: {difference}");
    }
}

/// Products of rounded activations, each CPU's code on one that has no more than it asks for. Architectures round x to
/// 8 bits alike, so what differs is the order of sums, and now and then a rounding that falls the other way.
#[test]
fn rounded_products_of_aarch64_agree_under_qemu() {
    let (tools, here) = (["gcc", "aarch64-linux-gnu-gcc", "qemu-aarch64"], "x86-64-v3");
    if !cpus_here().contains(&here) || !have(&tools) {
        return;
    }
    let cpus = [("cortex-a72", "cortex-a72"), ("neoverse-n1", "cortex-a76"), ("neoverse-v1", "max")];
    for format in ["q8", "q4", "bf16"] {
        let logits = |cpu: &str, cc: &str, flags: &[&str], runner: &[&str]| {
            let dir = tempfile::tempdir().expect("a folder");
            compile(dir.path(), &["--weights", format, "--no-cache", "--context", "64", "--cpu", cpu]);
            let program = link_example(dir.path(), cc, flags);
            found(runner, &program, &prompt(SHORT_PROMPT), 1)
        };
        let expected = logits(here, "gcc", &[], &[]);
        let all = cpus.map(|(cpu, qemu)| {
            let ours = logits(cpu, tools[1], &["-static"], &[tools[2], "-cpu", qemu]);
            let difference = worst(&ours, &expected);
            assert!(difference <= ROUNDED_TOLERANCE, "{format} on {cpu}: {difference}");
            ours
        });
        assert_eq!(all[0] == all[1], format == "bf16", "{format}: `sdot` is for q8 and q4");
        assert!(all[1] != all[2], "{format}: `smmla` or `bfmmla` is not used");
    }
}
