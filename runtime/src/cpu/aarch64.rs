//! The features of AArch64, and how Linux tells them (`Documentation/arch/arm64/elf_hwcaps.rst`; Arm ARM, D24.2).

use super::feature::IdRegister::{Isar0, Isar1, Pfr0};
use super::feature::{Architecture, Feature, Hwcap, IdRegister, Probe};
use super::set::Set;

/// A register, the lowest bit of a field of it, the least value that says so.
type Field = (IdRegister, u32, i32);

const fn row(
    name: &'static str,
    words: &'static str,
    (first, second): (u64, u64),
    (register, shift, least): Field,
    needs: &'static [&'static str],
    cranelift: Option<&'static str>,
    compiler: &'static str,
) -> Feature {
    let probe = Hwcap { first, second, register, shift, least };
    Feature { name, words, probe: Probe::Hwcap(probe), needs, cranelift, compiler }
}

/// Every feature that code may need.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    row("neon", "NEON", (1 << 1, 0), (Pfr0, 20, 0), &[], None, "+simd"),
    row("lse", "atomics of ARMv8.1 (LSE)", (1 << 8, 0), (Isar0, 20, 2), &[], Some("has_lse"), "+lse"),
    row("fp16", "half-precision arithmetic of ARMv8.2 (FP16)", (1 << 9 | 1 << 10, 0), (Pfr0, 20, 1),
        &["neon"], Some("has_fp16"), "+fp16"),
    row("dotprod", "the dot products of ARMv8.2 (dotprod)", (1 << 20, 0), (Isar0, 44, 1),
        &["neon"], Some("has_dotprod"), "+dotprod"),
    row("bf16", "products of bf16 of ARMv8.6 (BF16)", (0, 1 << 14), (Isar1, 44, 1), &["neon"], None, "+bf16"),
    row("i8mm", "products of 8-bit matrices of ARMv8.6 (I8MM)", (0, 1 << 13), (Isar1, 52, 1),
        &["neon"], Some("has_i8mm"), "+i8mm"),
];

/// What AT_HWCAP and AT_HWCAP2 say.
pub fn decode(first: u64, second: u64) -> Set {
    FEATURES.iter().fold(Set::empty(Architecture::Aarch64), |set, row| match row.probe {
        Probe::Hwcap(probe)
            if first & probe.first == probe.first && second & probe.second == probe.second =>
        {
            set.and(Set::of(Architecture::Aarch64, &[row.name]))
        }
        Probe::Cpuid(_) | Probe::Hwcap(_) | Probe::RiscV(_) => set,
    })
}

/// What this machine has.
#[cfg(target_arch = "aarch64")]
pub(super) fn here() -> Set {
    // SAFETY: reads the process's auxiliary vector.
    let (first, second) = unsafe { (libc::getauxval(libc::AT_HWCAP), libc::getauxval(libc::AT_HWCAP2)) };
    decode(first, second)
}
