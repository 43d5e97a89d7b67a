//! The features of 64-bit RISC-V beyond RV64G, and how Linux tells them (`Documentation/arch/riscv/hwprobe.rst`).
//!
//! Three things may answer: AT_HWCAP has a bit for each extension of one letter, `riscv_hwprobe` (Linux 6.4) knows
//! more, and the line `isa` of `/proc/cpuinfo` names all that the system knows of. What any of them says is so.

use super::feature::{Architecture, Feature, Probe, RiscV};
use super::set::Set;

const fn row(
    name: &'static str,
    words: &'static str,
    letter: Option<u8>,
    hwprobe: Option<u32>,
    needs: &'static [&'static str],
    cranelift: Option<&'static str>,
    compiler: &'static str,
) -> Feature {
    let probe = Probe::RiscV(RiscV { letter, hwprobe, vector_bits: None });
    Feature { name, words, probe, needs, cranelift, compiler }
}

const fn vectors(
    name: &'static str,
    words: &'static str,
    bits: u32,
    cranelift: &'static str,
    compiler: &'static str,
) -> Feature {
    let probe = Probe::RiscV(RiscV { letter: None, hwprobe: None, vector_bits: Some(bits) });
    Feature { name, words, probe, needs: &["v"], cranelift: Some(cranelift), compiler }
}

/// Every feature that code may need; RV64G is every CPU's.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    // The C extension is these two, where there are floats of 64 bits.
    row("zca", "compressed instructions (Zca)", Some(b'c'), Some(43), &[], Some("has_zca"), "_zca"),
    row("zcd", "compressed loads of f64 (Zcd)", Some(b'c'), Some(45), &["zca"], Some("has_zcd"), "_zcd"),
    row("zcb", "more compressed instructions (Zcb)", None, Some(44), &["zca"], Some("has_zcb"), "_zcb"),
    row("zba", "address generation (Zba)", None, Some(3), &[], Some("has_zba"), "_zba"),
    row("zbb", "bit manipulation (Zbb)", None, Some(4), &[], Some("has_zbb"), "_zbb"),
    row("zbs", "single bits (Zbs)", None, Some(5), &[], Some("has_zbs"), "_zbs"),
    row("zbc", "carry-less multiplication (Zbc)", None, Some(7), &[], Some("has_zbc"), "_zbc"),
    row("zbkb", "bit manipulation for cryptography (Zbkb)", None, Some(8), &[], Some("has_zbkb"), "_zbkb"),
    row("zicond", "conditional operations (Zicond)", None, Some(35), &[], Some("has_zicond"), "_zicond"),
    row("zfa", "more floating-point instructions (Zfa)", None, Some(32), &[], Some("has_zfa"), "_zfa"),
    row("zfhmin", "half-precision loads (Zfhmin)", None, Some(28), &[], Some("has_zfhmin"), "_zfhmin"),
    row("zfh", "half-precision arithmetic (Zfh)", None, Some(27), &["zfhmin"], Some("has_zfh"), "_zfh"),
    row("v", "vectors (V)", Some(b'v'), Some(2), &[], Some("has_v"), "v"),
    vectors("zvl32b", "vectors of 32 bits", 32, "has_zvl32b", "_zvl32b"),
    vectors("zvl64b", "vectors of 64 bits", 64, "has_zvl64b", "_zvl64b"),
    vectors("zvl128b", "vectors of 128 bits", 128, "has_zvl128b", "_zvl128b"),
    row("zvfh", "vectors of half precision (Zvfh)", None, Some(30), &["v", "zfhmin"], Some("has_zvfh"), "_zvfh"),
    row("zvbb", "bit manipulation of vectors (Zvbb)", None, Some(17), &["v"], Some("has_zvbb"), "_zvbb"),
];

/// What AT_HWCAP, `riscv_hwprobe` and the line `isa` say, and the bits of a vector register (0: there is none).
pub fn decode(hwcap: u64, hwprobe: u64, isa: &str, vector_bits: u32) -> Set {
    let mut parts = isa.split('_');
    let letters = parts.next().and_then(|first| first.strip_prefix("rv64")).unwrap_or_default();
    let longer: Vec<&str> = parts.collect();
    FEATURES.iter().fold(Set::empty(Architecture::Riscv64), |set, row| {
        let Probe::RiscV(probe) = row.probe else { return set };
        let lettered = |letter: u8| hwcap >> (letter - b'a') & 1 == 1 || letters.contains(char::from(letter));
        let present = probe.letter.is_some_and(lettered)
            || probe.hwprobe.is_some_and(|bit| hwprobe >> bit & 1 == 1)
            || probe.vector_bits.is_some_and(|bits| vector_bits >= bits)
            || (probe.vector_bits.is_none() && longer.contains(&row.name));
        if present { set.and(Set::of(Architecture::Riscv64, &[row.name])) } else { set }
    })
}

/// What this machine has.
#[cfg(target_arch = "riscv64")]
pub(super) fn here() -> Set {
    // SAFETY: reads the process's auxiliary vector.
    let hwcap = unsafe { libc::getauxval(libc::AT_HWCAP) };
    let isa = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("isa"))?;
        Some(line.split_once(':')?.1.trim().to_string())
    });
    let isa = isa.unwrap_or_default();
    let hwprobe = hwprobe();
    let has_vectors = decode(hwcap, hwprobe, &isa, 0).has(Set::of(Architecture::Riscv64, &["v"]));
    decode(hwcap, hwprobe, &isa, if has_vectors { vector_bits() } else { 0 })
}

/// `RISCV_HWPROBE_KEY_IMA_EXT_0`, of all CPUs; 0 where the system does not know the call.
#[cfg(target_arch = "riscv64")]
fn hwprobe() -> u64 {
    /// The number of `riscv_hwprobe`.
    const RISCV_HWPROBE: libc::c_long = 258;
    const KEY_IMA_EXT_0: u64 = 4;
    let mut pair = [KEY_IMA_EXT_0, 0];
    // SAFETY: the call reads and writes one pair of a key and a value; no CPUs named means all.
    let result = unsafe { libc::syscall(RISCV_HWPROBE, pair.as_mut_ptr(), 1usize, 0usize, 0usize, 0usize) };
    if result == 0 && pair[0] == KEY_IMA_EXT_0 { pair[1] } else { 0 }
}

/// Bits of a vector register, where there are such.
#[cfg(target_arch = "riscv64")]
fn vector_bits() -> u32 {
    let bytes: u64;
    // SAFETY: reads the register `vlenb`, which CPUs with vectors have.
    unsafe { std::arch::asm!("csrr {}, 0xc22", out(reg) bytes, options(nomem, nostack)) };
    8 * bytes as u32
}
