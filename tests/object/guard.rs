//! Objects on CPUs that lack what they need, under QEMU: `init` refuses, where code would die by a trap; on CPUs that
//! have it they run.

use std::process::Command;

use crate::toolchain::{compile, have, link, run};

/// An architecture whose CPUs are emulated.
struct Emulated {
    cc: &'static str,
    qemu: &'static str,
    /// Of its objects: the CPU it is made for, the CPU it is run on, and whether that has what it needs.
    cases: &'static [(&'static str, &'static str, bool)],
}

const X86_64: Emulated = Emulated {
    cc: "gcc",
    qemu: "qemu-x86_64",
    cases: &[
        ("x86-64-v2", "Nehalem", true),
        ("x86-64-v2", "core2duo", false),
        ("x86-64-v3", "Nehalem", false),
        ("x86-64-v3", "SandyBridge", false),
        ("x86-64-v3", "Haswell", true),
        // AVX2, and an operating system that does not save its registers.
        ("x86-64-v3", "Haswell,xsave=off", false),
        ("x86-64-v4", "Haswell", false),
        ("sapphirerapids", "max", false),
    ],
};
const AARCH64: Emulated = Emulated {
    cc: "aarch64-linux-gnu-gcc",
    qemu: "qemu-aarch64",
    cases: &[
        ("aarch64", "cortex-a53", true),
        ("neoverse-n1", "cortex-a53", false),
        ("neoverse-n1", "cortex-a76", true),
        ("neoverse-n1", "max", true),
    ],
};
const RISCV64: Emulated = Emulated {
    cc: "riscv64-linux-gnu-gcc",
    qemu: "qemu-riscv64",
    cases: &[("rv64gcv", "rv64,v=true,vlen=128", true), ("rv64gcv", "rv64,v=false", false)],
};

/// Statuses of the header: `OK` and `ERROR_CPU`.
const OK: &str = "0";
const LACKS: &str = "7";

impl Emulated {
    fn check(&self) {
        if !have(&[self.cc, self.qemu]) {
            return;
        }
        let mut token = None;
        for &(made_for, run_on, fits) in self.cases {
            let dir = tempfile::tempdir().expect("a folder");
            compile(
                dir.path(),
                &["--cpu", made_for, "--activations", "f32", "--context", "32", "--chunk", "8"],
            );
            let source = env!("CARGO_MANIFEST_DIR").to_string() + "/../tests/object/guard.c";
            let program = link(dir.path(), self.cc, &["-static"], &[source.into()]);
            let answer = |more: &[&str]| {
                let mut command = Command::new(self.qemu);
                command.args(["-cpu", run_on]).arg(&program).arg(dir.path().join("model.weights")).args(more);
                run(&mut command)
            };
            let found = answer(&[]);
            let found: Vec<&str> = found.split_whitespace().collect();
            let case = format!("made for {made_for}, run on {run_on}");
            if fits {
                assert_eq!(found[..3], ["1", OK, OK], "{case}");
                assert_eq!(*token.get_or_insert(found[3].to_string()), found[3], "{case}");
            } else {
                assert_eq!(found, ["0", LACKS], "{case}");
            }
            // CPUID needs no file. Elsewhere what is not known is no refusal.
            let blind =
                if self.qemu == X86_64.qemu && !fits { format!("0 {LACKS}") } else { format!("1 {OK}") };
            assert_eq!(answer(&["blind"]).trim(), blind, "{case}");
        }
    }
}

#[test]
fn a_cpu_of_x86_64_that_lacks_a_feature_is_refused() {
    X86_64.check();
}

#[test]
fn a_cpu_of_aarch64_that_lacks_a_feature_is_refused() {
    AARCH64.check();
}

#[test]
fn a_cpu_of_riscv64_that_lacks_a_feature_is_refused() {
    RISCV64.check();
}

/// What the compiler says that it needs, the header says.
#[test]
fn the_header_lists_what_is_needed() {
    let dir = tempfile::tempdir().expect("a folder");
    compile(dir.path(), &["--cpu", "x86-64-v3"]);
    let header = std::fs::read_to_string(dir.path().join("model.h")).expect("a header");
    for feature in ["avx2", "fma", "sse4.2", "popcnt"] {
        assert!(header.contains(feature), "{feature}");
    }
    assert!(!header.contains("avx512"));
}
