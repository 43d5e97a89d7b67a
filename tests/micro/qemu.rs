//! Raw code of AArch64 under QEMU, on the oldest of its CPUs that a row is for: what that CPU lacks ends the program.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lapidary_codegen::micro::{MICROKERNELS, Microkernel};
use lapidary_codegen::target::{Placement, Target};

use crate::cases::{self, Case, Operand};
use crate::operands::Values;
use crate::run::compare;

/// CPUs of the table, and QEMU's of the same features (of the last one, or more), oldest first.
const CPUS: [(&str, &str); 3] =
    [("cortex-a72", "cortex-a72"), ("cortex-a76", "cortex-a76"), ("neoverse-v1", "max")];

/// Whether the tools are there.
fn have(tools: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let missing: Vec<&str> = tools.iter().copied().filter(|tool| !is_there(tool)).collect();
    assert!(
        missing.is_empty() || env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(),
        "not found: {}",
        missing.join(", ")
    );
    missing.is_empty()
}

#[test]
fn rows_of_aarch64_run_under_qemu() {
    let tools = ["aarch64-linux-gnu-gcc", "qemu-aarch64"];
    if !have(&tools) {
        eprintln!("SKIPPED, nothing was tested: not found: one of {}", tools.join(", "));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("call");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("micro/call.c");
    let mut gcc = Command::new(tools[0]);
    gcc.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o"]).arg(&program).arg(source);
    assert!(gcc.status().unwrap().success(), "{gcc:?}");
    let targets = CPUS.map(|(cpu, _)| Target::new(cpu, Placement::Object).unwrap());
    let runs_on = |m: &Microkernel, t: &Target| m.is_raw() && (m.runs_on)(&t.features);
    let mut rows = 0;
    for micro in MICROKERNELS {
        let Some(at) = targets.iter().position(|t| runs_on(micro, t)) else { continue };
        rows += 1;
        for values in [Values::Any, Values::Small] {
            let cases = cases::all(micro, &targets, values);
            assert!(!cases.is_empty(), "{}: no cases", micro.name);
            let found = call(CPUS[at].1, &program, micro, &cases, dir.path());
            for (case, found) in cases.iter().zip(found) {
                compare(case, &found, values)
                    .unwrap_or_else(|e| panic!("{}, {:?}, {values:?}: {e:#}", micro.name, case.raw));
            }
        }
    }
    let of_all = MICROKERNELS.iter().filter(|m| targets.iter().any(|t| runs_on(m, t))).count();
    assert!(rows > 0 && rows == of_all, "{rows} of {of_all}");
}

/// Results of all cases.
fn call(cpu: &str, program: &PathBuf, micro: &Microkernel, cases: &[Case], dir: &Path) -> Vec<Vec<u8>> {
    let mut bytes = (cases.len() as u64).to_le_bytes().to_vec();
    let mut lengths = vec![];
    for case in cases {
        let code = micro.assemble(case.raw).unwrap();
        bytes.extend((code.len() as u64).to_le_bytes());
        bytes.extend(code);
        bytes.extend((case.operands.len() as u64).to_le_bytes());
        for operand in &case.operands {
            let (words, of): ([u64; 3], &[u8]) = match operand {
                Operand::In(of) | Operand::Work(of) => ([0, of.len() as u64, 0], of),
                Operand::Out(of) => {
                    lengths.push(of.len());
                    ([1, of.len() as u64, 0], of)
                }
                Operand::Within(before, at) => ([2, *before as u64, *at as u64], &[]),
                Operand::Number(number) => ([3, *number, 0], &[]),
            };
            words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            bytes.extend(of);
        }
    }
    let input = dir.join("cases");
    std::fs::write(&input, bytes).unwrap();
    let mut qemu = Command::new("qemu-aarch64");
    qemu.args(["-cpu", cpu]).arg(program).stdin(File::open(&input).unwrap()).stderr(Stdio::piped());
    let output = qemu.output().unwrap();
    let mut found = output.stdout.as_slice();
    let mut results = vec![];
    for (case, length) in cases.iter().zip(lengths) {
        assert!(
            found.len() >= length,
            "{}, {:?}, on {cpu}: {}\n{}",
            micro.name,
            case.raw,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let (result, rest) = found.split_at(length);
        results.push(result.to_vec());
        found = rest;
    }
    assert!(output.status.success(), "{}: {}", micro.name, output.status);
    results
}
