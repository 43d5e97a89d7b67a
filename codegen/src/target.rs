//! Targets: the CPUs that code is made for, as rows of one table.
//!
//! A CPU's row names Cranelift's settings for it. `native` asks the machine. Cost figures for extraction are the
//! passes' business (`lapidary_passes::cost`).

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use lapidary_passes::Machine;
use lapidary_passes::machine::Formats;
use lapidary_runtime::cpu;

use crate::Error;
use crate::emit::Features;

/// A CPU that code can be made for.
pub struct Cpu {
    /// The name that `--cpu` takes.
    pub name: &'static str,
    /// Target triple.
    pub triple: &'static str,
    /// Cranelift settings switched on.
    settings: &'static [&'static str],
    /// What microkernels may use.
    features: Features,
}

const PORTABLE: Features =
    Features { fma: false, avx2: false, avx512: false, vnni: false, bf16: false, amx: false, dotprod: false };
const AVX2: Features = Features { fma: true, avx2: true, ..PORTABLE };
const AVX512: Features = Features { avx512: true, ..AVX2 };
const SAPPHIRE_RAPIDS: Features = Features { vnni: true, amx: true, ..AVX512 };
const ZEN4: Features = Features { bf16: true, vnni: true, ..AVX512 };
const ARM: Features = Features { fma: true, ..PORTABLE };
const NEOVERSE_N1: Features = Features { dotprod: true, ..ARM };
const RISCV: Features = Features { fma: true, ..PORTABLE };

const V2: &[&str] = &["has_cmpxchg16b", "has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt"];
const V3: &[&str] = &[
    "has_cmpxchg16b",
    "has_sse3",
    "has_ssse3",
    "has_sse41",
    "has_sse42",
    "has_popcnt",
    "has_avx",
    "has_avx2",
    "has_fma",
    "has_bmi1",
    "has_bmi2",
    "has_lzcnt",
];
const V4: &[&str] = &[
    "has_cmpxchg16b",
    "has_sse3",
    "has_ssse3",
    "has_sse41",
    "has_sse42",
    "has_popcnt",
    "has_avx",
    "has_avx2",
    "has_fma",
    "has_bmi1",
    "has_bmi2",
    "has_lzcnt",
    "has_avx512f",
    "has_avx512vl",
    "has_avx512dq",
];

/// Compressed instructions, and vectors of 128 bits or more. Cranelift takes RV64G for granted.
const RV64GCV: &[&str] = &["has_zca", "has_zcd", "has_v", "has_zvl128b", "has_zvl64b", "has_zvl32b"];

/// Every named CPU, oldest first; add a target here.
pub const TARGETS: &[Cpu] = &[
    Cpu { name: "x86-64-v2", triple: "x86_64-unknown-linux-gnu", settings: V2, features: PORTABLE },
    Cpu { name: "x86-64-v3", triple: "x86_64-unknown-linux-gnu", settings: V3, features: AVX2 },
    Cpu { name: "x86-64-v4", triple: "x86_64-unknown-linux-gnu", settings: V4, features: AVX512 },
    Cpu {
        name: "sapphirerapids",
        triple: "x86_64-unknown-linux-gnu",
        settings: V4,
        features: SAPPHIRE_RAPIDS,
    },
    Cpu { name: "znver4", triple: "x86_64-unknown-linux-gnu", settings: V4, features: ZEN4 },
    Cpu { name: "aarch64", triple: "aarch64-unknown-linux-gnu", settings: &[], features: ARM },
    Cpu {
        name: "neoverse-n1",
        triple: "aarch64-unknown-linux-gnu",
        settings: &["has_lse"],
        features: NEOVERSE_N1,
    },
    Cpu { name: "rv64gcv", triple: "riscv64-unknown-linux-gnu", settings: RV64GCV, features: RISCV },
];

/// Other names of the table's triples: Rust's.
const ALIASES: &[(&str, &str)] = &[("riscv64gc-unknown-linux-gnu", "riscv64-unknown-linux-gnu")];

/// A triple as the table names it.
pub fn triple_of(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, triple)| triple)
}

/// The CPU that code for a triple is made for: `cpu`, if it is one of that target's; its oldest, if none is named.
///
/// # Errors
/// [`Error::UnknownTarget`] lists what there is.
pub fn cpu_of_target<'a>(triple: &str, cpu: Option<&'a str>) -> Result<&'a str, Error> {
    let list = |names: &mut dyn Iterator<Item = &'static str>| {
        let mut names: Vec<&str> = names.collect();
        names.dedup();
        names.join(", ")
    };
    let triple = triple_of(triple);
    let of_target = || TARGETS.iter().filter(|t| t.triple == triple).map(|t| t.name);
    let Some(oldest) = of_target().next() else {
        let known = list(&mut TARGETS.iter().map(|t| t.triple));
        return Err(Error::UnknownTarget(format!("unknown target `{triple}`: expected {known}")));
    };
    match cpu {
        None => Ok(oldest),
        Some(cpu) if of_target().any(|name| name == cpu) => Ok(cpu),
        Some(cpu) => {
            let known = list(&mut of_target());
            Err(Error::UnknownTarget(format!("CPU `{cpu}` is none of {triple}: expected {known}")))
        }
    }
}

/// A CPU chosen: Cranelift's description of it.
#[derive(Clone)]
pub struct Target {
    /// The row's name, or `native`.
    pub name: String,
    /// Cranelift's instruction set.
    pub isa: OwnedTargetIsa,
    /// What lowerings choose by.
    pub features: Features,
}

/// Whether code runs where it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// At a fixed address of this process.
    Jit,
    /// Anywhere: position-independent.
    Object,
}

impl Target {
    /// The CPU of this name, or `native`.
    ///
    /// # Errors
    /// [`Error::UnknownCpu`] lists the names; [`Error::Target`] says what Cranelift refuses.
    pub fn new(name: &str, placement: Placement) -> Result<Target, Error> {
        let refuse = |reason: String| Error::Target { cpu: name.into(), reason };
        let mut flags = settings::builder();
        let row = TARGETS.iter().find(|t| t.name == name);
        // Where RISC-V code is to be independent of its place, Cranelift reaches all through a global offset table; else what is
        // colocated, as everything is here, from the program counter, which is as independent.
        let has_table = row.is_some_and(|t| t.triple.starts_with("riscv64"));
        let pic = if placement == Placement::Object && !has_table { "true" } else { "false" };
        for (key, value) in [
            ("opt_level", "speed"),
            ("is_pic", pic),
            ("use_colocated_libcalls", "false"),
            ("enable_probestack", "false"),
            ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
        ] {
            flags.set(key, value).map_err(|e| refuse(e.to_string()))?;
        }
        let (builder, features) = if name == "native" {
            (cranelift_native::builder().map_err(|e| refuse(e.into()))?, host())
        } else {
            let cpu = row.ok_or_else(|| Error::UnknownCpu {
                name: name.into(),
                known: TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", "),
            })?;
            let mut builder = isa::lookup_by_name(cpu.triple).map_err(|e| refuse(e.to_string()))?;
            for setting in cpu.settings {
                builder.enable(setting).map_err(|e| refuse(e.to_string()))?;
            }
            (builder, cpu.features)
        };
        let isa = builder.finish(settings::Flags::new(flags)).map_err(|e| refuse(e.to_string()))?;
        Ok(Target { name: name.into(), isa, features })
    }

    /// The built-in constants that kernels are priced by; `rounded` says whether products may round their activations.
    pub fn machine(&self, rounded: bool) -> Machine {
        let f = self.features;
        let formats = |f32, bf16, q8, q4| Formats { f32, bf16, q8, q4 };
        // Measured by `lapidary calibrate --cpu` on two cores of a Zen 4 server, but for AMX: two cores' peak, of which its kernels are
        // taken to reach a third, and Arm, taken for a CPU of 128-bit vectors. `gelu`, and products in 8 bits of AVX2, are a Zen 3's,
        // by what they take there beside `transcendental` and products in f32.
        let wide = Machine { flops: Formats::all(228.0), few_flops: 228.0, ..Machine::GENERIC };
        let dot =
            |rounded| if rounded { formats(35.0, 60.0, 71.0, 63.0) } else { formats(35.0, 60.0, 50.0, 48.0) };
        match (f.avx512, f.avx2 && f.fma) {
            (true, _) if rounded && f.amx => {
                Machine { flops: Formats::all(2000.0), dot: formats(35.0, 60.0, 80.0, 75.0), ..wide }
            }
            (true, _) if rounded && f.bf16 => Machine::GENERIC,
            (true, _) => Machine { dot: dot(rounded), attention_tile_flops: 160.0, ..wide },
            (false, true) => {
                let (attention_flops, attention_tile_flops) = (122.0, 126.0);
                let flops = if rounded { formats(228.0, 228.0, 320.0, 550.0) } else { wide.flops };
                Machine { dot: dot(rounded), flops, attention_flops, attention_tile_flops, ..wide }
            }
            (false, false) => Machine {
                dot: formats(19.0, 16.0, 8.3, 6.1),
                few_flops: 52.0,
                flops: Formats::all(52.0),
                widen: formats(0.04, 0.05, 0.14, 0.23),
                transcendental: 1.2,
                gelu: 1.8,
                // 4.5 was measured; dearer than its parts, attention would not be fused, and local caches be no rings.
                attention_flops: 42.0,
                attention_tile_flops: 42.0,
                ..Machine::GENERIC
            },
        }
    }

    /// What a CPU must have to run this code, by the names of [`lapidary_runtime::cpu`].
    pub fn required(&self) -> Vec<String> {
        let f = self.features;
        let raw: [(bool, &[&str]); 6] = [
            (f.fma, &["fma"]),
            (f.avx2, &["avx2", "f16c"]),
            (f.avx512, &["avx512f", "avx512bw", "avx512dq", "avx512vl"]),
            (f.vnni, &["avx512vnni"]),
            (f.bf16, &["avx512bf16", "amd"]),
            (f.amx, &["amx"]),
        ];
        match self.isa.triple().architecture.to_string().as_str() {
            "x86_64" => {}
            "riscv64" => return vec!["v".into()],
            _ if f.dotprod => return vec!["dotprod".into(), "lse".into(), "neon".into()],
            _ => return vec!["neon".into()],
        }
        let flags = self.isa.isa_flags().into_iter().filter(|f| f.as_bool() == Some(true));
        let names = flags.filter_map(|f| f.name.strip_prefix("has_")).map(|name| match name {
            "sse41" => "sse4.1",
            "sse42" => "sse4.2",
            other => other,
        });
        let raw = raw.iter().filter(|(uses, _)| *uses).flat_map(|(_, names)| names.iter().copied());
        let mut all: Vec<String> = names.chain(raw).map(str::to_string).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Why code for this CPU does not run on this machine, if it does not.
    pub fn lacking_here(&self) -> Option<String> {
        let machine = std::env::consts::ARCH;
        let triple = self.isa.triple();
        if triple.architecture.to_string() != machine {
            return Some(format!("its code is for {}, this machine is {machine}", triple.architecture));
        }
        let (asked, here) = (self.features, host());
        let lacking = [
            ("FMA", asked.fma && !here.fma),
            ("AVX2", asked.avx2 && !here.avx2),
            ("AVX-512 F, BW, DQ and VL", asked.avx512 && !here.avx512),
            ("AVX-512 VNNI", asked.vnni && !here.vnni),
            ("AVX-512 BF16", asked.bf16 && !here.bf16),
            ("AMX", asked.amx && !here.amx),
            ("the dot products of ARMv8.2 (dotprod)", asked.dotprod && !here.dotprod),
        ];
        if let Some((name, _)) = lacking.iter().find(|(_, lacks)| *lacks) {
            return Some(format!("it needs {name}, which this machine lacks"));
        }
        let native =
            cranelift_native::builder().ok()?.finish(settings::Flags::new(settings::builder())).ok()?;
        let flags = native.isa_flags();
        let has = |name: &str| flags.iter().any(|f| f.name == name && f.as_bool() == Some(true));
        let needs = self.isa.isa_flags().into_iter().find(|f| f.as_bool() == Some(true) && !has(f.name))?;
        Some(format!("it needs {}, which this machine lacks", needs.name.trim_start_matches("has_")))
    }
}

/// What this machine has.
fn host() -> Features {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        Features {
            fma: has!("fma"),
            avx2: has!("avx2"),
            avx512: has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl"),
            vnni: has!("avx512vnni"),
            bf16: has!("avx512bf16") && is_amd(),
            amx: has!("avx512f") && cpu::amx() == cpu::Amx::Ready,
            dotprod: false,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Features { dotprod: cpu::has("dotprod"), ..ARM }
}

/// Whether the CPU is AMD's, by its vendor string.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    (leaf.ebx, leaf.edx, leaf.ecx)
        == (u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"enti"), u32::from_le_bytes(*b"cAMD"))
}
