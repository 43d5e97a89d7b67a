//! Machines as data: real CPUs, what Linux says that they have (`/proc/cpuinfo`, hardware capabilities, the line
//! `isa`), and the step of the table of targets whose code they should take of a file that has all.

use lapidary_runtime::cpu::{Architecture, Host, Maker, Set};

/// A machine.
pub(crate) struct Machine {
    /// What it is.
    pub(crate) name: &'static str,
    /// The name of its CPU among `--cpu`'s, whose code it must take.
    pub(crate) cpu: &'static str,
    /// The best step that runs and pays there; none where no code of the table runs.
    pub(crate) step: &'static str,
    maker: Maker,
    architecture: Architecture,
    /// Words of Linux, in its spelling.
    flags: &'static [&'static str],
}

impl Machine {
    /// As the runtime would find it.
    pub(crate) fn host(&self) -> Host {
        let ours = self.flags.iter().flat_map(|words| words.split(' ')).filter_map(|word| {
            let ours = RENAMED.iter().find(|(linux, _)| *linux == word).map_or(word, |(_, ours)| ours);
            // What is no row is of no use to code.
            Set::named(self.architecture, ours)
        });
        Host::new(ours.fold(Set::empty(self.architecture), Set::and), self.maker)
    }
}

/// Linux' spelling where it is not Rust's.
const RENAMED: &[(&str, &str)] = &[
    ("pni", "sse3"),
    ("cx16", "cmpxchg16b"),
    ("sse4_1", "sse4.1"),
    ("sse4_2", "sse4.2"),
    ("abm", "lzcnt"),
    ("avx_vnni", "avxvnni"),
    ("avx512_vnni", "avx512vnni"),
    ("avx512_bitalg", "avx512bitalg"),
    ("avx512_bf16", "avx512bf16"),
    ("amx_tile", "amx-tile"),
    ("amx_bf16", "amx-bf16"),
    ("amx_int8", "amx-int8"),
    ("asimd", "neon"),
    ("atomics", "lse"),
    ("asimdhp", "fp16"),
    ("asimddp", "dotprod"),
    ("c", "zca"),
    // Not Linux' words, but what is read beside them.
    ("vlen128", "zvl128b"),
];

const NEHALEM: &str = "fpu sse sse2 pni ssse3 cx16 sse4_1 sse4_2 popcnt";
const HASWELL: &str = "movbe aes xsave avx f16c rdrand abm bmi1 avx2 bmi2 fma";
const SKYLAKE_SP: &str = "avx512f avx512dq avx512cd avx512bw avx512vl pku";
const ICE_LAKE: &str = "avx512ifma sha_ni avx512vbmi avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg \
                        avx512_vpopcntdq";
const SAPPHIRE_RAPIDS: &str = "avx_vnni avx512_bf16 avx512_fp16 serialize";
const AMX: &str = "amx_bf16 amx_tile amx_int8";
const ARMV8: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid";
const ARMV8_2: &str = "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp";
const ARMV8_6: &str = "jscvt fcma sha3 sha512 asimdfhm i8mm bf16";

const fn x86(
    name: &'static str,
    cpu: &'static str,
    step: &'static str,
    maker: Maker,
    flags: &'static [&'static str],
) -> Machine {
    Machine { name, cpu, step, maker, architecture: Architecture::X86_64, flags }
}

const fn arm(
    name: &'static str,
    cpu: &'static str,
    step: &'static str,
    flags: &'static [&'static str],
) -> Machine {
    Machine { name, cpu, step, maker: Maker::NONE, architecture: Architecture::Aarch64, flags }
}

const INTEL: Maker = Maker::INTEL;
const ZEN: Maker = Maker::amd(0x17);
const ZEN3: Maker = Maker::amd(0x19);
const ZEN5: Maker = Maker::amd(0x1a);

/// Every machine.
#[rustfmt::skip]
pub(crate) const MACHINES: &[Machine] = &[
    x86("Nehalem", "nehalem", "x86-64-v2", INTEL, &[NEHALEM]),
    x86("Ivy Bridge", "ivybridge", "x86-64-v2", INTEL, &[NEHALEM, "avx f16c xsave"]),
    x86("Haswell", "haswell", "x86-64-v3", INTEL, &[NEHALEM, HASWELL]),
    x86("Skylake", "skylake", "x86-64-v3", INTEL, &[NEHALEM, HASWELL]),
    x86("Skylake-SP", "skylake-avx512", "x86-64-v4", INTEL, &[NEHALEM, HASWELL, SKYLAKE_SP]),
    x86("Cascade Lake", "cascadelake", "x86-64-v4-vnni", INTEL, &[NEHALEM, HASWELL, SKYLAKE_SP, "avx512_vnni"]),
    x86("Cooper Lake", "cooperlake", "x86-64-v4-vnni", INTEL,
        &[NEHALEM, HASWELL, SKYLAKE_SP, "avx512_vnni avx512_bf16"]),
    x86("Ice Lake-SP", "icelake-server", "x86-64-v4-vnni", INTEL, &[NEHALEM, HASWELL, SKYLAKE_SP, ICE_LAKE]),
    x86("Tiger Lake", "tigerlake", "x86-64-v4-vnni", INTEL, &[NEHALEM, HASWELL, SKYLAKE_SP, ICE_LAKE]),
    x86("Alder Lake", "alderlake", "x86-64-v3-vnni", INTEL,
        &[NEHALEM, HASWELL, "avx_vnni gfni vaes vpclmulqdq serialize"]),
    x86("Sapphire Rapids", "sapphirerapids", "x86-64-v4-amx", INTEL,
        &[NEHALEM, HASWELL, SKYLAKE_SP, ICE_LAKE, SAPPHIRE_RAPIDS, AMX]),
    x86("Sapphire Rapids whose hypervisor hides AMX", "icelake-server", "x86-64-v4-vnni", INTEL,
        &[NEHALEM, HASWELL, SKYLAKE_SP, ICE_LAKE, SAPPHIRE_RAPIDS]),
    x86("Granite Rapids", "graniterapids", "x86-64-v4-amx", INTEL,
        &[NEHALEM, HASWELL, SKYLAKE_SP, ICE_LAKE, SAPPHIRE_RAPIDS, AMX, "amx_fp16"]),
    x86("Zen 2", "znver2", "x86-64-v3", ZEN, &[NEHALEM, HASWELL, "sse4a sha_ni clzero"]),
    x86("Zen 3", "znver3", "x86-64-v3", ZEN3, &[NEHALEM, HASWELL, "sse4a sha_ni clzero vaes vpclmulqdq"]),
    x86("Zen 4", "znver4", "x86-64-v4-bf16", ZEN3, &[NEHALEM, HASWELL, SKYLAKE_SP, ICE_LAKE, "avx512_bf16 sse4a"]),
    x86("Zen 5", "znver5", "x86-64-v4-bf16", ZEN5,
        &[NEHALEM, HASWELL, SKYLAKE_SP, ICE_LAKE, "avx512_bf16 avx_vnni sse4a"]),
    x86("Zen 4 whose hypervisor hides AVX-512 F alone", "znver3", "x86-64-v3", ZEN3,
        &[NEHALEM, HASWELL, "avx512dq avx512bw avx512vl", ICE_LAKE, "avx512_bf16"]),
    arm("Cortex-A53 (Raspberry Pi 3)", "cortex-a53", "aarch64", &[ARMV8]),
    arm("Cortex-A72 (Raspberry Pi 4)", "cortex-a72", "aarch64", &["fp asimd evtstrm crc32 cpuid"]),
    arm("Cortex-A55", "cortex-a55", "aarch64-dotprod", &[ARMV8, ARMV8_2]),
    arm("Cortex-A76 (Raspberry Pi 5)", "cortex-a76", "aarch64-dotprod", &[ARMV8, ARMV8_2]),
    arm("Cortex-A78", "cortex-a78", "aarch64-dotprod", &[ARMV8, ARMV8_2]),
    arm("Neoverse N1 (Graviton2)", "neoverse-n1", "aarch64-dotprod", &[ARMV8, ARMV8_2, "ssbs"]),
    arm("Neoverse V1 (Graviton3)", "neoverse-v1", "aarch64-i8mm", &[ARMV8, ARMV8_2, ARMV8_6, "sve svebf16 svei8mm"]),
    arm("Neoverse N2", "neoverse-n2", "aarch64-i8mm", &[ARMV8, ARMV8_2, ARMV8_6, "sve sve2"]),
    arm("Neoverse V2 (Graviton4)", "neoverse-v2", "aarch64-i8mm", &[ARMV8, ARMV8_2, ARMV8_6, "sve sve2"]),
    arm("Apple M1", "apple-m1", "aarch64-dotprod", &[ARMV8, ARMV8_2, "jscvt fcma sha3 sha512 asimdfhm paca"]),
    arm("Apple M2", "apple-m2", "aarch64-i8mm", &[ARMV8, ARMV8_2, ARMV8_6, "paca bti"]),
    arm("Apple M4", "apple-m4", "aarch64-i8mm", &[ARMV8, ARMV8_2, ARMV8_6, "paca bti sme"]),
    Machine {
        name: "SpacemiT K1", cpu: "spacemit-k1", step: "rv64gcv", maker: Maker::NONE,
        architecture: Architecture::Riscv64,
        flags: &["c zcd v vlen128 zvl32b zvl64b zicond zba zbb zbc zbs zfh zfhmin zvfh zvfhmin zicboz zvkt"],
    },
];
