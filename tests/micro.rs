//! Every row of the table of microkernels on every machine: the code of x86-64 by the emulator of `src/emulator/`,
//! that of AArch64 under QEMU, the rest as instructions of kernels.
//!
//! Raw code runs whole, from entry to return, at the edges of tiles, of k and of dtypes, against a loop in f64; a read
//! or write beside the operands fails. What this machine's CPU can run, it runs too, and the two agree to the bit: that
//! proves the emulator, and the emulator proves what no machine at hand has. No row passes by being skipped.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use lapidary_codegen::micro::{Emit, MICROKERNELS, Microkernel};
use lapidary_codegen::target::{Placement, TARGETS, Target};

#[path = "micro/cases/mod.rs"]
mod cases;
#[path = "micro/inline.rs"]
mod inline;
#[path = "micro/operands.rs"]
mod operands;
#[path = "micro/qemu.rs"]
mod qemu;
#[path = "micro/run.rs"]
mod run;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "micro/signal.rs"]
mod signal;
#[path = "micro/single.rs"]
mod single;

use self::operands::Values;

/// The targets of x86-64.
fn x86() -> Vec<Target> {
    let rows = TARGETS.iter().filter(|t| t.triple.starts_with("x86_64"));
    rows.map(|t| Target::new(t.name, Placement::Object).unwrap()).collect()
}

/// Whether a row is instructions of the kernel itself, for every CPU.
fn is_inline(micro: &Microkernel) -> bool {
    matches!(micro.emit, Emit::Dot(_) | Emit::Inline(_))
}

/// How often a row was run.
#[derive(Default)]
struct Count {
    emulated: usize,
    natively: usize,
}

#[test]
fn every_row_runs_on_every_machine() {
    let targets = x86();
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    for micro in MICROKERNELS {
        let of_x86 = targets.iter().any(|t| (micro.runs_on)(&t.features));
        let count = counts.entry(micro.name).or_default();
        if is_inline(micro) {
            count.natively += inline::check(micro);
            continue;
        }
        if !of_x86 {
            // `micro/qemu.rs` runs those of AArch64.
            let others = TARGETS.iter().filter(|t| !t.triple.starts_with("x86_64"));
            let features = others.map(|t| Target::new(t.name, Placement::Object).unwrap().features);
            assert!(features.into_iter().any(|f| (micro.runs_on)(&f)), "{} runs on no CPU", micro.name);
            continue;
        }
        for values in [Values::Any, Values::Small] {
            for case in cases::all(micro, &targets, values) {
                let ran = run::check(micro, &case, values).unwrap_or_else(|e| panic!("{e:#}"));
                count.emulated += 1;
                count.natively += usize::from(ran.natively);
            }
        }
    }
    for micro in MICROKERNELS {
        let count = &counts[micro.name];
        eprintln!("{}: {} emulated, {} natively", micro.name, count.emulated, count.natively);
        let of_x86 = targets.iter().any(|t| (micro.runs_on)(&t.features));
        let ran = if is_inline(micro) { count.natively } else { count.emulated };
        assert!(!of_x86 || ran > 0, "{} was not run", micro.name);
    }
}
