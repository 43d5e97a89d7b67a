//! What code is chosen by: sets of a target's features that go together.

use lapidary_runtime::cpu::{Architecture, Set, Tuning};

/// What lowerings and microkernels choose by: sets of the target's features that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Fused multiply-add in one instruction; else a multiply and an add.
    pub fma: bool,
    /// x86-64: AVX2, and conversions of f16.
    pub avx2: bool,
    /// x86-64: AVX-VNNI, beside AVX2.
    pub avxvnni: bool,
    /// x86-64: AVX-512 F, BW, DQ and VL.
    pub avx512: bool,
    /// x86-64: AVX-512 VNNI.
    pub vnni: bool,
    /// x86-64: AVX-512 BF16, on CPUs tuned for it: it is there on others too, and slower than FMA.
    pub bf16: bool,
    /// x86-64: AMX tiles, with products of bf16.
    pub amx: bool,
    /// x86-64: products of bytes in these, beside the former.
    pub amx_int8: bool,
    /// AArch64: vectors of 128 bits.
    pub neon: bool,
    /// AArch64: dot products of bytes (FEAT_DotProd).
    pub dotprod: bool,
    /// AArch64: products of matrices of bytes (FEAT_I8MM), beside the former.
    pub i8mm: bool,
    /// AArch64: products of matrices of bf16 (FEAT_BF16).
    pub bfmmla: bool,
}

impl Features {
    /// Whether one row of x is best met by weight rows far from each other, in four streams of memory. AMD's Zen 4
    /// serves one better, and Zen 5, which has AVX-VNNI too, four.
    pub fn far_rows(&self) -> bool {
        self.avxvnni || self.streams() > 1
    }

    /// How many streams, each in the order of its bytes, weights are best fetched in that lie side by side. The second
    /// cache's prefetcher goes 20 lines ahead of each on Intel's CPUs, too few of one for the memory; AMD's serve one
    /// best.
    pub fn streams(&self) -> usize {
        if (self.avx512 || self.avxvnni) && !self.bf16 { 4 } else { 1 }
    }

    /// Those of a set, on CPUs tuned so.
    pub fn of(set: Set, tuning: Option<&Tuning>) -> Features {
        const fn x86(names: &[&str]) -> Set {
            Set::of(Architecture::X86_64, names)
        }
        const AVX2: Set = x86(&["avx", "avx2", "f16c"]);
        const AVX512: Set = x86(&["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "f16c", "fma"]);
        const AVX_VNNI: Set = x86(&["avxvnni"]);
        const VNNI: Set = x86(&["avx512vnni"]);
        const BF16: Set = x86(&["avx512bf16"]);
        // What tiles multiply is rounded by AVX-512 BF16.
        const AMX: Set = x86(&["amx-tile", "amx-bf16", "avx512bf16"]);
        const AMX_INT8: Set = x86(&["amx-int8"]);
        const fn arm(names: &[&str]) -> Set {
            Set::of(Architecture::Aarch64, names)
        }
        let avx512 = set.has(AVX512);
        Features {
            // Arm and RISC-V have it wherever they have floats.
            fma: set.architecture() != Architecture::X86_64 || set.has(x86(&["fma"])),
            avx2: set.has(AVX2),
            avxvnni: set.has(AVX2.and(AVX_VNNI)),
            avx512,
            vnni: avx512 && set.has(VNNI),
            bf16: avx512 && set.has(BF16) && tuning.is_some_and(|t| t.features.has(BF16)),
            amx: avx512 && set.has(AMX),
            amx_int8: avx512 && set.has(AMX.and(AMX_INT8)),
            neon: set.has(arm(&["neon"])),
            dotprod: set.has(arm(&["dotprod"])),
            i8mm: set.has(arm(&["dotprod", "i8mm"])),
            bfmmla: set.has(arm(&["bf16"])),
        }
    }
}
