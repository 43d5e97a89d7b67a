//! The CPUs that code is made for: features and tuning under a name.
//!
//! [`TARGETS`] are the steps at which code gets better; an artifact for no CPU in particular has them all. [`CPUS`]
//! are the names of CPUs that users know from other compilers (GCC's and LLVM's spelling): rows of the same kind. A
//! name's features are those that the table of features has of it; add a CPU here.

use lapidary_runtime::cpu::{Architecture, Set};

/// A CPU that code can be made for.
#[derive(Debug)]
pub struct Cpu {
    /// The name that `--cpu` takes.
    pub name: &'static str,
    /// Target triple.
    pub triple: &'static str,
    /// What it has.
    pub features: Set,
    /// What pays on it besides what pays elsewhere: a row of [`lapidary_runtime::cpu::TUNINGS`].
    pub tuning: Option<&'static str>,
}

/// The triple of an architecture.
pub const fn triple(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "x86_64-unknown-linux-gnu",
        Architecture::Aarch64 => "aarch64-unknown-linux-gnu",
        Architecture::Riscv64 => "riscv64-unknown-linux-gnu",
    }
}

/// What every piece of code for an architecture may take for granted, beside what all of its CPUs have: Cranelift
/// calls libraries or gives up where it lacks.
pub const fn least(architecture: Architecture) -> Set {
    match architecture {
        Architecture::X86_64 => Set::of(architecture, &["sse3", "ssse3", "sse4.1"]),
        Architecture::Aarch64 => Set::of(architecture, &["neon"]),
        Architecture::Riscv64 => Set::of(architecture, &["v", "zvl32b", "zvl64b", "zvl128b"]),
    }
}

const fn cpu(name: &'static str, features: Set) -> Cpu {
    Cpu { name, triple: triple(features.architecture()), features, tuning: None }
}

const fn tuned(name: &'static str, features: Set, tuning: &'static str) -> Cpu {
    Cpu { tuning: Some(tuning), ..cpu(name, features) }
}

const fn x86(base: Set, names: &[&str]) -> Set {
    base.and(Set::of(Architecture::X86_64, names))
}

const fn arm(base: Set, names: &[&str]) -> Set {
    base.and(Set::of(Architecture::Aarch64, names))
}

const fn riscv(base: Set, names: &[&str]) -> Set {
    base.and(Set::of(Architecture::Riscv64, names))
}

const V2: Set =
    x86(Set::empty(Architecture::X86_64), &["cmpxchg16b", "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt"]);
const V3: Set = x86(V2, &["avx", "avx2", "f16c", "fma", "bmi1", "bmi2", "lzcnt"]);
const V3_VNNI: Set = x86(V3, &["avxvnni"]);
const V4: Set = x86(V3, &["avx512f", "avx512bw", "avx512dq", "avx512vl"]);
const V4_VNNI: Set = x86(V4, &["avx512vnni"]);
const V4_BF16: Set = x86(V4_VNNI, &["avx512bf16"]);
const V4_AMX: Set = x86(V4_BF16, &["amx-tile", "amx-bf16", "amx-int8"]);

const IVY_BRIDGE: Set = x86(V2, &["avx", "f16c"]);
const ICE_LAKE: Set = x86(V4_VNNI, &["avx512vbmi", "avx512bitalg"]);
const ZEN4: Set = x86(ICE_LAKE, &["avx512bf16"]);
const ZEN5: Set = x86(ZEN4, &["avxvnni"]);
const SAPPHIRE_RAPIDS: Set = x86(ZEN5, &["amx-tile", "amx-bf16", "amx-int8"]);

const ARMV8: Set = arm(Set::empty(Architecture::Aarch64), &["neon"]);
const ARM_DOTPROD: Set = arm(ARMV8, &["lse", "dotprod"]);
const ARM_I8MM: Set = arm(ARM_DOTPROD, &["bf16", "i8mm"]);
/// ARMv8.2 as Arm's cores of 2017 and later have it.
const ARMV8_2: Set = arm(ARM_DOTPROD, &["fp16"]);
/// The same with products of bf16 and of 8-bit matrices.
const ARMV8_6: Set = arm(ARMV8_2, &["bf16", "i8mm"]);

/// Compressed instructions, and vectors of 128 bits or more.
const RV64GCV: Set =
    riscv(Set::empty(Architecture::Riscv64), &["zca", "zcd", "v", "zvl32b", "zvl64b", "zvl128b"]);
const X60: Set = riscv(RV64GCV, &["zba", "zbb", "zbc", "zbs", "zicond", "zfhmin", "zfh", "zvfh"]);

/// The steps of each architecture, each better than those before it.
pub const TARGETS: &[Cpu] = &[
    cpu("x86-64-v2", V2),
    cpu("x86-64-v3", V3),
    cpu("x86-64-v3-vnni", V3_VNNI),
    cpu("x86-64-v4", V4),
    cpu("x86-64-v4-vnni", V4_VNNI),
    tuned("x86-64-v4-bf16", V4_BF16, "bf16"),
    cpu("x86-64-v4-amx", V4_AMX),
    cpu("aarch64", ARMV8),
    cpu("aarch64-dotprod", ARM_DOTPROD),
    cpu("aarch64-i8mm", ARM_I8MM),
    cpu("rv64gcv", RV64GCV),
];

/// CPUs by their names.
pub const CPUS: &[Cpu] = &[
    cpu("nehalem", V2),
    cpu("westmere", V2),
    cpu("sandybridge", x86(V2, &["avx"])),
    cpu("ivybridge", IVY_BRIDGE),
    cpu("haswell", V3),
    cpu("broadwell", V3),
    cpu("skylake", V3),
    cpu("alderlake", V3_VNNI),
    cpu("raptorlake", V3_VNNI),
    cpu("meteorlake", V3_VNNI),
    cpu("arrowlake", V3_VNNI),
    cpu("lunarlake", V3_VNNI),
    cpu("skylake-avx512", V4),
    cpu("cascadelake", V4_VNNI),
    cpu("cooperlake", V4_BF16),
    cpu("icelake-client", ICE_LAKE),
    cpu("icelake-server", ICE_LAKE),
    cpu("tigerlake", ICE_LAKE),
    cpu("rocketlake", ICE_LAKE),
    cpu("sapphirerapids", SAPPHIRE_RAPIDS),
    cpu("emeraldrapids", SAPPHIRE_RAPIDS),
    cpu("graniterapids", SAPPHIRE_RAPIDS),
    cpu("znver1", V3),
    cpu("znver2", V3),
    cpu("znver3", V3),
    tuned("znver4", ZEN4, "bf16"),
    tuned("znver5", ZEN5, "bf16"),
    cpu("cortex-a53", ARMV8),
    cpu("cortex-a57", ARMV8),
    cpu("cortex-a72", ARMV8),
    cpu("cortex-a73", ARMV8),
    cpu("cortex-a55", ARMV8_2),
    cpu("cortex-a75", ARMV8_2),
    cpu("cortex-a76", ARMV8_2),
    cpu("cortex-a77", ARMV8_2),
    cpu("cortex-a78", ARMV8_2),
    cpu("cortex-x1", ARMV8_2),
    cpu("cortex-a510", ARMV8_6),
    cpu("cortex-a710", ARMV8_6),
    cpu("cortex-x2", ARMV8_6),
    cpu("neoverse-n1", ARMV8_2),
    cpu("neoverse-n2", ARMV8_6),
    cpu("neoverse-v1", ARMV8_6),
    cpu("neoverse-v2", ARMV8_6),
    cpu("apple-m1", ARMV8_2),
    cpu("apple-m2", ARMV8_6),
    cpu("apple-m3", ARMV8_6),
    cpu("apple-m4", ARMV8_6),
    cpu("spacemit-x60", X60),
    cpu("spacemit-k1", X60),
];

/// Other names of the table's triples: Rust's.
const ALIASES: &[(&str, &str)] = &[("riscv64gc-unknown-linux-gnu", "riscv64-unknown-linux-gnu")];

/// A triple as the table names it.
pub fn triple_of(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, triple)| triple)
}

/// Every row: steps first.
pub fn rows() -> impl Iterator<Item = &'static Cpu> {
    TARGETS.iter().chain(CPUS)
}

/// The row of this name.
pub fn row(name: &str) -> Option<&'static Cpu> {
    rows().find(|cpu| cpu.name == name)
}
