//! AMX: Linux gives a process its tile registers on request only (`arch_prctl(ARCH_REQ_XCOMP_PERM)`, Linux'
//! `Documentation/arch/x86/xstate.rst`), which must come before the threads that use them.

use std::sync::OnceLock;

use super::feature::{Architecture, Probe};
use super::set::Set;

/// The tile registers of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amx {
    /// The CPU or the system has none.
    Absent,
    /// The CPU has them, the system refused this process: its error number.
    Refused(i32),
    /// Ready for use in threads made from now on, and in this one.
    Ready,
}

/// The rows whose registers come on request.
pub(super) fn on_request() -> Set {
    let rows = Architecture::X86_64.features().iter();
    let asked = rows.filter(|row| matches!(row.probe, Probe::Cpuid(probe) if probe.on_request));
    asked.fold(Set::empty(Architecture::X86_64), |set, row| {
        set.and(Set::of(Architecture::X86_64, &[row.name]))
    })
}

/// Asks for the tile registers, once a process.
pub fn amx() -> Amx {
    static AMX: OnceLock<Amx> = OnceLock::new();
    *AMX.get_or_init(request)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn request() -> Amx {
    /// The number of `arch_prctl` on x86-64.
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;

    if !super::x86_64::here().has(Set::of(Architecture::X86_64, &["amx-tile"])) {
        return Amx::Absent;
    }
    let result: i64;
    // SAFETY: a system call that reads no memory and writes none; it clobbers rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if result == 0 { Amx::Ready } else { Amx::Refused(-result as i32) }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn request() -> Amx {
    Amx::Absent
}
