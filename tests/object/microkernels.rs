//! Raw microkernels of AArch64 under QEMU, each against a scalar loop (`dot.c`) over edges of k and of rows.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use lapidary_codegen::micro::{DOT_ROWS, Dot, Emit, MICROKERNELS, Raw};
use lapidary_codegen::target::{Placement, Target};
use lapidary_ir::DType;

use crate::toolchain::{have, run};

#[test]
fn raw_dot_products_of_aarch64() {
    let tools = ["aarch64-linux-gnu-gcc", "qemu-aarch64"];
    if !have(&tools) {
        return;
    }
    let features = Target::new("neoverse-n1", Placement::Object).expect("a target").features;
    let (mut code, mut table, mut externs, mut count) =
        (String::from(".text\n"), String::new(), String::new(), 0);
    for microkernel in MICROKERNELS.iter().filter(|m| (m.runs_on)(&features)) {
        let Emit::RawDot(emit) = microkernel.emit else { continue };
        assert_eq!(microkernel.operands, DType::Q8, "{}: `dot.c` knows no other", microkernel.name);
        for (dtype, bits) in [(DType::Q8, 8), (DType::Q4, 4)] {
            for k in [32, 64, 96, 288, 4128] {
                for rows in [1, DOT_ROWS] {
                    let dot = Dot::of_one_row(microkernel.operands, dtype, k, rows);
                    let bytes = emit(dot).expect("code");
                    assert_eq!(bytes, microkernel.assemble(Raw::Dot(dot)).expect("code"));
                    let name = format!("dot_{count}");
                    let _ = writeln!(code, ".balign 64\n.globl {name}\n{name}:");
                    for word in bytes.as_chunks().0 {
                        let _ = writeln!(code, ".inst {:#010x}", u32::from_le_bytes(*word));
                    }
                    let _ = writeln!(externs, "extern void {name}(const void *, const void *, float *);");
                    let _ = writeln!(table, "    {{{name}, {bits}, {k}, {rows}}},");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 0, "no raw dot products for AArch64");
    code.push_str(".section .note.GNU-stack,\"\",%progbits\n");
    let header = format!(
        "{externs}static const struct {{\n    dot_function function;\n    int bits;\n    size_t k, rows;\n}} cases[] = {{\n{table}}};\n"
    );
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("cases.s"), code).expect("a file");
    fs::write(dir.path().join("cases.h"), header).expect("a file");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/object/dot.c");
    let program = dir.path().join("program");
    let mut link = Command::new(tools[0]);
    link.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-I"]).arg(dir.path());
    run(link.arg(source).arg(dir.path().join("cases.s")).args(["-lm", "-o"]).arg(&program));
    run(Command::new(tools[1]).arg(program));
}
