//! Targets: the CPUs that code is made for, as rows of one table.
//!
//! A CPU's row names Cranelift's settings for it. `native` asks the machine. Cost figures for extraction are the
//! passes' business (`lapidary_passes::cost`).

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};

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
}

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

/// Every named CPU, oldest first; add a target here.
pub const TARGETS: &[Cpu] = &[
    Cpu { name: "x86-64-v2", triple: "x86_64-unknown-linux-gnu", settings: V2 },
    Cpu { name: "x86-64-v3", triple: "x86_64-unknown-linux-gnu", settings: V3 },
    Cpu { name: "x86-64-v4", triple: "x86_64-unknown-linux-gnu", settings: V4 },
    Cpu { name: "aarch64", triple: "aarch64-unknown-linux-gnu", settings: &[] },
];

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
        let pic = if placement == Placement::Object { "true" } else { "false" };
        for (key, value) in [
            ("opt_level", "speed"),
            ("is_pic", pic),
            ("use_colocated_libcalls", "false"),
            ("enable_probestack", "false"),
            ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
        ] {
            flags.set(key, value).map_err(|e| refuse(e.to_string()))?;
        }
        let builder = if name == "native" {
            cranelift_native::builder().map_err(|e| refuse(e.into()))?
        } else {
            let cpu = TARGETS.iter().find(|t| t.name == name).ok_or_else(|| Error::UnknownCpu {
                name: name.into(),
                known: TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", "),
            })?;
            let mut builder = isa::lookup_by_name(cpu.triple).map_err(|e| refuse(e.to_string()))?;
            for setting in cpu.settings {
                builder.enable(setting).map_err(|e| refuse(e.to_string()))?;
            }
            builder
        };
        let isa = builder.finish(settings::Flags::new(flags)).map_err(|e| refuse(e.to_string()))?;
        let fma = match isa.triple().architecture.to_string().as_str() {
            "x86_64" => isa.isa_flags().iter().any(|f| f.name == "has_fma" && f.as_bool() == Some(true)),
            _ => true,
        };
        Ok(Target { name: name.into(), isa, features: Features { fma } })
    }
}
