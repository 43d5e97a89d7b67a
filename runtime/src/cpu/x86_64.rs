//! The features of x86-64, and how CPUID and XCR0 tell them (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).

use super::feature::Register::{Eax, Ebx, Ecx, Edx};
use super::feature::{Architecture, Cpuid, Feature, Probe, Register};
use super::set::Set;

/// A leaf, a subleaf, a register.
type Place = (u32, u32, Register);
const LEAF_1_ECX: Place = (1, 0, Ecx);
const LEAF_7_EBX: Place = (7, 0, Ebx);
const LEAF_7_ECX: Place = (7, 0, Ecx);
const LEAF_7_EDX: Place = (7, 0, Edx);
const LEAF_7_1_EAX: Place = (7, 1, Eax);
const EXTENDED_1_ECX: Place = (0x8000_0001, 0, Ecx);

/// XCR0: nothing to save but what always is.
const NONE: u64 = 0;
/// SSE and AVX state.
const YMM: u64 = 1 << 1 | 1 << 2;
/// The same, mask registers, the upper halves of zmm0 to 15, zmm16 to 31.
const ZMM: u64 = YMM | 1 << 5 | 1 << 6 | 1 << 7;
/// Tile configuration and tile data.
const TILES: u64 = 1 << 17 | 1 << 18;
/// CPUID 1 ECX: the system uses XSAVE, XGETBV may be used.
const OSXSAVE: u32 = 1 << 27;

const fn row(
    name: &'static str,
    words: &'static str,
    ((leaf, subleaf, register), bit, saved): (Place, u32, u64),
    needs: &'static [&'static str],
    cranelift: Option<&'static str>,
    compiler: &'static str,
) -> Feature {
    let probe = Cpuid { leaf, subleaf, register, bit, saved, on_request: saved & TILES != 0 };
    Feature { name, words, probe: Probe::Cpuid(probe), needs, cranelift, compiler }
}

/// Every feature that code may need; SSE2 is every CPU's.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    row("cmpxchg16b", "CMPXCHG16B", (LEAF_1_ECX, 13, NONE), &[], Some("has_cmpxchg16b"), "-mcx16"),
    row("sse3", "SSE3", (LEAF_1_ECX, 0, NONE), &[], Some("has_sse3"), "-msse3"),
    row("ssse3", "SSSE3", (LEAF_1_ECX, 9, NONE), &["sse3"], Some("has_ssse3"), "-mssse3"),
    row("sse4.1", "SSE4.1", (LEAF_1_ECX, 19, NONE), &["ssse3"], Some("has_sse41"), "-msse4.1"),
    row("sse4.2", "SSE4.2", (LEAF_1_ECX, 20, NONE), &["sse4.1"], Some("has_sse42"), "-msse4.2"),
    row("popcnt", "POPCNT", (LEAF_1_ECX, 23, NONE), &[], Some("has_popcnt"), "-mpopcnt"),
    row("lzcnt", "LZCNT", (EXTENDED_1_ECX, 5, NONE), &[], Some("has_lzcnt"), "-mlzcnt"),
    // Encoded as AVX is, and defined without it.
    row("bmi1", "BMI1", (LEAF_7_EBX, 3, NONE), &[], Some("has_bmi1"), "-mbmi"),
    row("bmi2", "BMI2", (LEAF_7_EBX, 8, NONE), &[], Some("has_bmi2"), "-mbmi2"),
    row("avx", "AVX", (LEAF_1_ECX, 28, YMM), &["sse4.2"], Some("has_avx"), "-mavx"),
    row("f16c", "F16C", (LEAF_1_ECX, 29, YMM), &["avx"], None, "-mf16c"),
    row("fma", "FMA", (LEAF_1_ECX, 12, YMM), &["avx"], Some("has_fma"), "-mfma"),
    row("avx2", "AVX2", (LEAF_7_EBX, 5, YMM), &["avx"], Some("has_avx2"), "-mavx2"),
    row("avxvnni", "AVX-VNNI", (LEAF_7_1_EAX, 4, YMM), &["avx2"], Some("has_avx_vnni"), "-mavxvnni"),
    row("avx512f", "AVX-512 F", (LEAF_7_EBX, 16, ZMM), &["avx2", "fma", "f16c"], Some("has_avx512f"), "-mavx512f"),
    row("avx512bw", "AVX-512 BW", (LEAF_7_EBX, 30, ZMM), &["avx512f"], None, "-mavx512bw"),
    row("avx512dq", "AVX-512 DQ", (LEAF_7_EBX, 17, ZMM), &["avx512f"], Some("has_avx512dq"), "-mavx512dq"),
    row("avx512vl", "AVX-512 VL", (LEAF_7_EBX, 31, ZMM), &["avx512f"], Some("has_avx512vl"), "-mavx512vl"),
    row("avx512vbmi", "AVX-512 VBMI", (LEAF_7_ECX, 1, ZMM), &["avx512bw"], Some("has_avx512vbmi"), "-mavx512vbmi"),
    row("avx512bitalg", "AVX-512 BITALG", (LEAF_7_ECX, 12, ZMM), &["avx512bw"], Some("has_avx512bitalg"),
        "-mavx512bitalg"),
    row("avx512vnni", "AVX-512 VNNI", (LEAF_7_ECX, 11, ZMM), &["avx512f"], Some("has_avx512vnni"), "-mavx512vnni"),
    row("avx512bf16", "AVX-512 BF16", (LEAF_7_1_EAX, 5, ZMM), &["avx512bw"], None, "-mavx512bf16"),
    row("amx-tile", "AMX", (LEAF_7_EDX, 24, TILES), &[], None, "-mamx-tile"),
    row("amx-bf16", "AMX BF16", (LEAF_7_EDX, 22, TILES), &["amx-tile"], None, "-mamx-bf16"),
    row("amx-int8", "AMX INT8", (LEAF_7_EDX, 25, TILES), &["amx-tile"], None, "-mamx-int8"),
];

/// What `cpuid(leaf, subleaf)`, EAX to EDX, and XCR0, asked for only where there is one, say. Registers on request are
/// taken to be granted.
pub fn decode(cpuid: impl Fn(u32, u32) -> [u32; 4], xcr0: impl FnOnce() -> u64) -> Set {
    let osxsave = cpuid(1, 0)[2] & OSXSAVE != 0;
    let saved = if osxsave { xcr0() } else { 0 };
    FEATURES.iter().fold(Set::empty(Architecture::X86_64), |set, row| {
        let Probe::Cpuid(probe) = row.probe else { return set };
        // A leaf beyond the last answers as the last does; a subleaf beyond the last, zeros.
        let known = probe.leaf <= cpuid(probe.leaf & 0x8000_0000, 0)[0];
        let word = cpuid(probe.leaf, probe.subleaf)[probe.register as usize];
        match known && word >> probe.bit & 1 == 1 && saved & probe.saved == probe.saved {
            true => set.and(Set::of(Architecture::X86_64, &[row.name])),
            false => set,
        }
    })
}

/// What this machine has, registers on request too.
#[cfg(target_arch = "x86_64")]
pub(super) fn here() -> Set {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};

    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: XGETBV of register 0 is there where CPUID says OSXSAVE; the caller has looked.
        unsafe { _xgetbv(0) }
    }

    let cpuid = |leaf, subleaf| {
        let answer = __cpuid_count(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    };
    // SAFETY: called where CPUID says OSXSAVE, which implies XSAVE.
    decode(cpuid, || unsafe { xcr0() })
}
