//! What the CPU of this machine has, by the names that artifacts and messages use.
//!
//! [`FEATURES`] is the list: a row a name, and how it is found out. x86-64 answers by CPUID and, for the wide registers,
//! by what the system saves of them; AArch64 and RISC-V by what the system says. AMX needs more: Linux gives a process its
//! tile registers on request only (`arch_prctl(ARCH_REQ_XCOMP_PERM)`, Linux' `Documentation/arch/x86/xstate.rst`), which must
//! come before the threads that use them. [`amx`] asks once; the first to look for the feature does.

use std::sync::OnceLock;

/// A named feature.
pub struct Feature {
    /// Its name, as Linux' `/proc/cpuinfo` and Rust spell it.
    pub name: &'static str,
    /// Whether this machine has it and may use it.
    pub present: fn() -> bool,
}

/// The tile registers of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amx {
    /// The CPU or the system has none, or lacks products of bf16 or int8.
    Absent,
    /// The CPU has them, the system refused this process: its error number.
    Refused(i32),
    /// Ready for use in threads made from now on, and in this one.
    Ready,
}

/// Every feature that code may ask for.
#[cfg(target_arch = "x86_64")]
pub const FEATURES: &[Feature] = &[
    Feature { name: "sse3", present: || std::arch::is_x86_feature_detected!("sse3") },
    Feature { name: "ssse3", present: || std::arch::is_x86_feature_detected!("ssse3") },
    Feature { name: "sse4.1", present: || std::arch::is_x86_feature_detected!("sse4.1") },
    Feature { name: "sse4.2", present: || std::arch::is_x86_feature_detected!("sse4.2") },
    Feature { name: "popcnt", present: || std::arch::is_x86_feature_detected!("popcnt") },
    Feature { name: "cmpxchg16b", present: || std::arch::is_x86_feature_detected!("cmpxchg16b") },
    Feature { name: "f16c", present: || std::arch::is_x86_feature_detected!("f16c") },
    Feature { name: "amd", present: is_amd },
    Feature { name: "avx", present: || std::arch::is_x86_feature_detected!("avx") },
    Feature { name: "avx2", present: || std::arch::is_x86_feature_detected!("avx2") },
    Feature { name: "fma", present: || std::arch::is_x86_feature_detected!("fma") },
    Feature { name: "bmi1", present: || std::arch::is_x86_feature_detected!("bmi1") },
    Feature { name: "bmi2", present: || std::arch::is_x86_feature_detected!("bmi2") },
    Feature { name: "lzcnt", present: || std::arch::is_x86_feature_detected!("lzcnt") },
    Feature { name: "avx512f", present: || std::arch::is_x86_feature_detected!("avx512f") },
    Feature { name: "avx512bw", present: || std::arch::is_x86_feature_detected!("avx512bw") },
    Feature { name: "avx512dq", present: || std::arch::is_x86_feature_detected!("avx512dq") },
    Feature { name: "avx512vl", present: || std::arch::is_x86_feature_detected!("avx512vl") },
    Feature { name: "avx512bitalg", present: || std::arch::is_x86_feature_detected!("avx512bitalg") },
    Feature { name: "avx512vbmi", present: || std::arch::is_x86_feature_detected!("avx512vbmi") },
    Feature { name: "avx512vnni", present: || std::arch::is_x86_feature_detected!("avx512vnni") },
    Feature { name: "avx512bf16", present: || std::arch::is_x86_feature_detected!("avx512bf16") },
    Feature { name: "amx", present: || amx() == Amx::Ready },
];

/// Every feature that code may ask for.
#[cfg(target_arch = "aarch64")]
pub const FEATURES: &[Feature] = &[
    Feature { name: "neon", present: || std::arch::is_aarch64_feature_detected!("neon") },
    Feature { name: "lse", present: || std::arch::is_aarch64_feature_detected!("lse") },
    Feature { name: "dotprod", present: || std::arch::is_aarch64_feature_detected!("dotprod") },
    Feature { name: "i8mm", present: || std::arch::is_aarch64_feature_detected!("i8mm") },
];

/// Every feature that code may ask for.
#[cfg(target_arch = "riscv64")]
pub const FEATURES: &[Feature] =
    &[Feature { name: "v", present: || std::arch::is_riscv_feature_detected!("v") }];

/// Every feature that code may ask for.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
pub const FEATURES: &[Feature] = &[];

/// Whether this machine has a feature; a name that is not in [`FEATURES`] it does not have.
pub fn has(name: &str) -> bool {
    FEATURES.iter().any(|f| f.name == name && (f.present)())
}

/// This machine's architecture, as target triples name it.
pub const ARCHITECTURE: &str = std::env::consts::ARCH;

/// Those of `names` that the machine lacks.
pub fn lacking(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).filter(|name| !has(name)).collect()
}

/// The machine in a few words, for errors: its architecture and what it has.
pub fn description() -> String {
    let found: Vec<&str> = FEATURES.iter().filter(|f| (f.present)()).map(|f| f.name).collect();
    format!("{ARCHITECTURE} with {}", if found.is_empty() { "no vectors".into() } else { found.join(", ") })
}

/// Whether the CPU is AMD's, by its vendor string. No instruction set: some code pays there only.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    (leaf.ebx, leaf.edx, leaf.ecx)
        == (u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"enti"), u32::from_le_bytes(*b"cAMD"))
}

/// Asks for the tile registers, once a process.
pub fn amx() -> Amx {
    static AMX: OnceLock<Amx> = OnceLock::new();
    *AMX.get_or_init(request_amx)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn request_amx() -> Amx {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// CPUID 7.0 EDX: AMX-BF16, AMX-TILE, AMX-INT8 (Intel SDM volume 2, CPUID).
    const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// CPUID 1 ECX: XGETBV may be used.
    const OSXSAVE: u32 = 1 << 27;
    /// XCR0: tile configuration and tile data.
    const TILES: u64 = 1 << 17 | 1 << 18;
    /// The number of `arch_prctl` on x86-64.
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;

    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: XGETBV of register 0 is there where CPUID says OSXSAVE; the caller has looked.
        unsafe { _xgetbv(0) }
    }

    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 || __cpuid_count(7, 0).edx & AMX != AMX {
        return Amx::Absent;
    }
    // SAFETY: OSXSAVE implies XSAVE.
    if unsafe { enabled() } & TILES != TILES {
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
fn request_amx() -> Amx {
    Amx::Absent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<&str> = FEATURES.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), FEATURES.len());
        assert!(!has("no such feature"));
    }

    #[test]
    fn amx_is_asked_for_once() {
        assert_eq!(amx(), amx());
        if cfg!(target_arch = "x86_64") {
            assert_eq!(has("amx"), amx() == Amx::Ready);
        }
    }
}
