//! The emulator behind SIGILL: functions that a trap hands over to it, in the midst of what the CPU itself has begun.

use std::io::ErrorKind;
use std::process::Command;

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_codegen::micro::{Emit, MICROKERNELS};
use lapidary_tests::emulator;

use crate::operands::Values;
use crate::run::{code, native};
use crate::{cases, x86};

/// Whole microkernels behind the trap: the bytes that the emulator alone comes to.
#[test]
fn trapped_microkernels_come_to_the_same() {
    assert!(emulator::install());
    let targets = x86();
    for micro in MICROKERNELS.iter().filter(|m| targets.iter().any(|t| (m.runs_on)(&t.features))) {
        // The handler stands on the stack where the frame of sums would be.
        if matches!(micro.emit, Emit::Dot(_) | Emit::Inline(_) | Emit::SplitLanes(_)) {
            continue;
        }
        for case in cases::all(micro, &targets, Values::Small).into_iter().step_by(7) {
            let trapped: Vec<Vec<u8>> = code(micro, case.raw)
                .into_iter()
                .map(|code| [emulator::resume_after_trap().to_vec(), code].concat())
                .collect();
            let found = native::run(&trapped, &case);
            crate::run::compare(&case, &found, Values::Small)
                .unwrap_or_else(|e| panic!("{}, {:?}: {e}", micro.name, case.raw));
        }
    }
}

/// Registers go from the CPU to the emulator and back: sums begun by one and ended by the other.
#[test]
fn registers_pass_between_the_cpu_and_the_emulator() {
    assert!(emulator::install());
    let wide = std::arch::is_x86_feature_detected!("avx512f");
    if !std::arch::is_x86_feature_detected!("avx2") {
        // Vectors of 128 bits alone pass; the test above has them.
        return;
    }
    let a = &mut CodeAssembler::new(64).unwrap();
    let body = |a: &mut CodeAssembler| -> Result<(), iced_x86::IcedError> {
        a.mov(gpr64::r9, 40i64)?;
        a.vmovups(ymm3, ptr(gpr64::rdi))?;
        if wide {
            a.vmovups(zmm20, ptr(gpr64::rdi))?;
        }
        a.dec(gpr64::r9)?;
        a.db(&emulator::resume_after_trap())?;
        // Two that the emulator carries out, on what the CPU has set; then one that it does not list.
        a.vaddps(ymm3, ymm3, ymm3)?;
        a.add(gpr64::r9, 3)?;
        if wide {
            a.vaddps(zmm20, zmm20, zmm20)?;
        }
        a.vsqrtps(ymm4, ymm3)?;
        a.vmovups(ptr(gpr64::rsi), ymm4)?;
        if wide {
            a.vmovups(ptr(gpr64::rsi + 32), zmm20)?;
        }
        a.mov(ptr(gpr64::rdx), gpr64::r9)?;
        a.vzeroupper()?;
        a.ret()
    };
    body(a).unwrap();
    let map = native::executable(&a.assemble(0).unwrap());
    let x: Vec<f32> = (0..16).map(|i| (2 * i * i) as f32).collect();
    let mut out = [0f32; 24];
    let mut counter = 0u64;
    // SAFETY: a function of three addresses in the System V convention.
    unsafe {
        type Function = extern "C" fn(*const f32, *mut f32, *mut u64);
        let function = std::mem::transmute::<*const u8, Function>(map.as_ptr());
        function(x.as_ptr(), out.as_mut_ptr(), &mut counter);
    }
    assert_eq!(counter, 42);
    assert!((0..8).all(|i| out[i] == 2.0 * i as f32));
    if wide {
        assert!((0..16).all(|i| out[8 + i] == 2.0 * x[i]));
    }
}

/// The same on a CPU whose frames of signals end with registers of 256 bits: this program, by QEMU.
#[test]
fn registers_pass_on_a_cpu_without_avx512_too() {
    let mut command = Command::new("qemu-x86_64");
    let test = "signal::registers_pass_between_the_cpu_and_the_emulator";
    command.args(["-cpu", "Haswell"]).arg(std::env::current_exe().unwrap()).args(["--exact", test]);
    match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let missing = "not found: qemu-x86_64";
            assert!(std::env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(), "{missing}");
            eprintln!("SKIPPED, nothing was tested: {missing}");
        }
        output => {
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}", output.status);
        }
    }
}
