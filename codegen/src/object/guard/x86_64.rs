//! The guard on x86-64: CPUID, XGETBV and, for tile registers, a request to Linux.
//!
//! In: what must be so. Out: code. Invariants: instructions of the first x86-64 CPUs alone, until CPUID has said that
//! more are there; every register that a caller or the code behind the guard may count on is as it was.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lapidary_runtime::cpu::Register;

use super::Ending;

/// Bits of an answer of CPUID that must all be 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) leaf: u32,
    pub(super) subleaf: u32,
    pub(super) register: Register,
    pub(super) bits: u32,
}

/// What the code needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs {
    /// By CPUID.
    pub(super) answers: Vec<Answer>,
    /// Bits of XCR0: registers that the system saves.
    pub(super) saved: u32,
    /// A state that Linux gives a process on request: it is asked for (`arch_prctl(ARCH_REQ_XCOMP_PERM)`).
    pub(super) requested: Option<u32>,
}

/// CPUID leaf 1, ECX: XGETBV may be used (Intel SDM volume 2, CPUID).
const OSXSAVE: u32 = 1 << 27;
/// The number of `arch_prctl` on x86-64, and what it is asked (Linux' `Documentation/arch/x86/xstate.rst`).
const ARCH_PRCTL: i32 = 158;
const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
/// The first leaf of the range that AMD defined: it has a highest leaf of its own.
const EXTENDED: u32 = 0x8000_0000;

/// Assembles the guard.
pub(super) fn assemble(needs: &Needs, ending: Ending) -> Result<Vec<u8>, IcedError> {
    let a = &mut CodeAssembler::new(64)?;
    // What CPUID and a system call overwrite. RAX and R11 hold nothing here.
    let kept = [rbx, rdi, rsi, rdx, rcx];
    for register in kept {
        a.push(register)?;
    }
    let mut lacks = a.create_label();
    let mut answers = needs.answers.clone();
    if needs.saved != 0 {
        answers.push(Answer { leaf: 1, subleaf: 0, register: Register::Ecx, bits: OSXSAVE });
    }
    let mut asked: Vec<(u32, u32)> = answers.iter().map(|answer| (answer.leaf, answer.subleaf)).collect();
    asked.sort_unstable();
    asked.dedup();
    for (leaf, subleaf) in asked {
        // A CPU answers a leaf beyond its highest with another's bits.
        a.mov(eax, leaf & EXTENDED)?;
        a.cpuid()?;
        a.cmp(eax, leaf as i32)?;
        a.jb(lacks)?;
        a.mov(eax, leaf)?;
        a.mov(ecx, subleaf)?;
        a.cpuid()?;
        for (register, found) in
            [(Register::Eax, eax), (Register::Ebx, ebx), (Register::Ecx, ecx), (Register::Edx, edx)]
        {
            let of_register = answers
                .iter()
                .filter(|answer| (answer.leaf, answer.subleaf, answer.register) == (leaf, subleaf, register));
            let bits = of_register.fold(0, |bits, answer| bits | answer.bits);
            if bits != 0 {
                require(a, found, bits, lacks)?;
            }
        }
    }
    if needs.saved != 0 {
        a.xor(ecx, ecx)?;
        a.xgetbv()?;
        require(a, eax, needs.saved, lacks)?;
    }
    if let Some(state) = needs.requested {
        a.mov(eax, ARCH_PRCTL)?;
        a.mov(edi, ARCH_REQ_XCOMP_PERM)?;
        a.mov(esi, state)?;
        a.syscall()?;
        a.test(rax, rax)?;
        a.jne(lacks)?;
    }
    let mut behind = a.create_label();
    let leave = |a: &mut CodeAssembler| kept.into_iter().rev().try_for_each(|register| a.pop(register));
    leave(a)?;
    match ending {
        Ending::Answer => {
            a.mov(eax, 1)?;
            a.ret()?;
        }
        Ending::Continue(_) => a.jmp(behind)?,
    }
    a.set_label(&mut lacks)?;
    leave(a)?;
    a.mov(eax, ending.refusal())?;
    a.ret()?;
    a.set_label(&mut behind)?;
    // A label needs an instruction.
    a.nop()?;
    a.assemble(0)
}

/// Goes to `lacks` unless all of `bits` are 1.
fn require(
    a: &mut CodeAssembler,
    found: AsmRegister32,
    bits: u32,
    lacks: CodeLabel,
) -> Result<(), IcedError> {
    a.and(found, bits as i32)?;
    a.cmp(found, bits as i32)?;
    a.jne(lacks)
}
