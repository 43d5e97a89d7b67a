//! What pays on some CPUs and not on others that have the same features: rows of one table, told by who made the CPU.
//!
//! Features say what runs, a tuning what is worth running. A machine of no row is tuned for as most are.

use super::feature::Architecture;
use super::set::Set;

/// Who made a CPU, as CPUID says: twelve letters and the family. Of other architectures, nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maker {
    /// Leaf 0: EBX, EDX, ECX.
    pub letters: [u8; 12],
    /// Leaf 1, base and extended.
    pub family: u32,
}

impl Maker {
    /// One that no row is for.
    pub const NONE: Maker = Maker { letters: [0; 12], family: 0 };
    /// Intel's, of every family that has AVX-512 up to Granite Rapids.
    pub const INTEL: Maker = Maker { letters: *b"GenuineIntel", family: 6 };

    /// AMD's, of a family.
    pub const fn amd(family: u32) -> Maker {
        Maker { letters: *b"AuthenticAMD", family }
    }

    /// This machine's.
    #[cfg(target_arch = "x86_64")]
    pub fn here() -> Maker {
        use std::arch::x86_64::__cpuid;
        let leaf = __cpuid(0);
        let mut letters = [0; 12];
        for (at, word) in [leaf.ebx, leaf.edx, leaf.ecx].into_iter().enumerate() {
            letters[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let version = __cpuid(1).eax;
        let (base, extended) = (version >> 8 & 0xf, version >> 20 & 0xff);
        Maker { letters, family: if base == 0xf { base + extended } else { base } }
    }

    /// This machine's.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn here() -> Maker {
        Maker::NONE
    }
}

/// A kind of CPU.
#[derive(Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Its name in artifacts.
    pub name: &'static str,
    /// What it is tuned to use, without which it means nothing.
    pub features: Set,
    /// Whose CPUs.
    pub letters: [u8; 12],
    /// The first family of theirs that it is so of; later ones are taken to follow.
    pub family: u32,
}

/// Every kind.
pub const TUNINGS: &[Tuning] = &[
    // Products of bf16 at twice the rate of fused multiply-adds of f32 since Zen 4 (family 25); on Intel's CPUs at
    // half of it (Sapphire Rapids, measured), where f32 is the better way.
    Tuning {
        name: "bf16",
        features: Set::of(Architecture::X86_64, &["avx512bf16"]),
        letters: *b"AuthenticAMD",
        family: 0x19,
    },
];

impl Tuning {
    /// The kind of a machine.
    pub fn of(features: Set, maker: Maker) -> Option<&'static Tuning> {
        TUNINGS
            .iter()
            .find(|t| features.has(t.features) && maker.letters == t.letters && maker.family >= t.family)
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<&'static Tuning> {
        TUNINGS.iter().find(|t| t.name == name)
    }
}
