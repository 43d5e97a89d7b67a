//! What a row of the table of features is.
//!
//! A row holds all that anything asks about a feature: its names, how a machine tells that it has it, what code
//! generators and C compilers call it. Rows are data, so that the same row serves this process, a table of other
//! machines, and a probe that is written into machine code.

use super::{aarch64, riscv64, x86_64};

/// An architecture that code can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
}

impl Architecture {
    /// Every one.
    pub const ALL: [Architecture; 3] = [Architecture::X86_64, Architecture::Aarch64, Architecture::Riscv64];

    /// This machine's.
    pub const HERE: Architecture = here();

    /// Its features, each after those that it builds on.
    pub const fn features(self) -> &'static [Feature] {
        match self {
            Architecture::X86_64 => x86_64::FEATURES,
            Architecture::Aarch64 => aarch64::FEATURES,
            Architecture::Riscv64 => riscv64::FEATURES,
        }
    }

    /// As target triples begin.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
            Architecture::Riscv64 => "riscv64",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Architecture> {
        Architecture::ALL.into_iter().find(|a| a.name() == name)
    }
}

#[cfg(target_arch = "x86_64")]
const fn here() -> Architecture {
    Architecture::X86_64
}

#[cfg(target_arch = "aarch64")]
const fn here() -> Architecture {
    Architecture::Aarch64
}

#[cfg(target_arch = "riscv64")]
const fn here() -> Architecture {
    Architecture::Riscv64
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
compile_error!("Lapidary runs on x86-64, AArch64 and 64-bit RISC-V");

/// Something that a CPU has or has not, and that code may need.
#[derive(Debug)]
pub struct Feature {
    /// Its name in artifacts, in messages and for the shell: lower case, as Rust's `target_feature` spells it.
    pub name: &'static str,
    /// What people call it: `AVX-512 VNNI`.
    pub words: &'static str,
    /// How it is found out.
    pub probe: Probe,
    /// Names of rows above it without which it is of no use.
    pub needs: &'static [&'static str],
    /// What Cranelift calls it, if Cranelift can use it: `has_avx512vnni`.
    pub cranelift: Option<&'static str>,
    /// What GCC and Clang call it: an option on x86-64 (`-mavx512vnni`), elsewhere what follows the name of an
    /// architecture in `-march` (`+dotprod`, `_zba`).
    pub compiler: &'static str,
}

/// How a feature is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// x86-64.
    Cpuid(Cpuid),
    /// AArch64.
    Hwcap(Hwcap),
    /// RISC-V.
    RiscV(RiscV),
}

/// A bit of CPUID, and what the system must save of the registers that come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpuid {
    /// EAX.
    pub leaf: u32,
    /// ECX.
    pub subleaf: u32,
    /// The register that answers.
    pub register: Register,
    /// The bit's number.
    pub bit: u32,
    /// Bits of XCR0 that must all be set.
    pub saved: u64,
    /// Whether Linux gives the registers on request alone ([`super::amx`]).
    pub on_request: bool,
}

/// A register that CPUID answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// What Linux says in the auxiliary vector, and the field of an identification register that says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hwcap {
    /// Bits that must all be set in AT_HWCAP.
    pub first: u64,
    /// The same of AT_HWCAP2.
    pub second: u64,
    /// The register: Linux answers a read of it (`HWCAP_CPUID`).
    pub register: IdRegister,
    /// The lowest bit of the field, of four bits.
    pub shift: u32,
    /// The least value of the field, signed, that says so.
    pub least: i32,
}

/// An identification register of AArch64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdRegister {
    /// ID_AA64PFR0_EL1.
    Pfr0,
    /// ID_AA64ISAR0_EL1.
    Isar0,
    /// ID_AA64ISAR1_EL1.
    Isar1,
}

/// What Linux says on RISC-V; of the first two either is enough, as older systems know one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RiscV {
    /// The letter of the bit of AT_HWCAP, if it has one.
    pub letter: Option<u8>,
    /// The bit of `RISCV_HWPROBE_KEY_IMA_EXT_0`, if it has one.
    pub hwprobe: Option<u32>,
    /// The least bits of a vector register, where that is the question.
    pub vector_bits: Option<u32>,
}

/// Whether two texts are the same, at compile time.
pub(super) const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
