//! Targets: the CPUs that code is made for.
//!
//! In: a name, or a machine. Out: a [`Target`]: what code may use there ([`lapidary_runtime::cpu`] is the table of
//! features), what pays there, and Cranelift's description of both. Names are rows of [`TARGETS`] and [`CPUS`];
//! `native` is this machine. Invariants: Cranelift may use what the target's features name and nothing else, and so
//! may microkernels; what code for a target needs of a CPU are those features.

mod choice;
mod flags;
mod table;

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use lapidary_runtime::cpu::{self, Architecture, Host, Set, Tuning};
use lapidary_runtime::program::MadeFor;

use crate::Error;
use crate::emit::Features;

pub use choice::{cpu_of_target, known, unknown_cpu};
pub use flags::OTHERS;
pub use table::{CPUS, Cpu, TARGETS, least, row, rows, triple, triple_of};

/// A CPU chosen: Cranelift's description of it.
#[derive(Clone)]
pub struct Target {
    /// The row's name, or `native`.
    pub name: String,
    /// Cranelift's instruction set.
    pub isa: OwnedTargetIsa,
    /// What lowerings choose by.
    pub features: Features,
    /// All that code may use.
    pub set: Set,
    /// What pays on it besides what pays elsewhere.
    pub tuning: Option<&'static Tuning>,
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
        if name == "native" {
            return Target::native(cpu::host(), placement);
        }
        let row = row(name).ok_or_else(|| unknown_cpu(name, triple(Architecture::HERE)))?;
        Target::make(name, row.features, row.tuning.and_then(Tuning::named), placement)
    }

    /// What `native` is on a machine.
    ///
    /// # Errors
    /// [`Error::Target`] says what the machine lacks that all code needs, or what Cranelift refuses.
    pub fn native(host: &Host, placement: Placement) -> Result<Target, Error> {
        let lacks = least(host.features.architecture()).without(host.features);
        if !lacks.is_empty() {
            let reason = format!("all code needs {}, which this machine lacks", lacks.words());
            return Err(Error::Target { cpu: "native".into(), reason });
        }
        Target::make("native", host.features, host.tuning, placement)
    }

    fn make(
        name: &str,
        set: Set,
        tuning: Option<&'static Tuning>,
        placement: Placement,
    ) -> Result<Target, Error> {
        let refuse = |reason: String| Error::Target { cpu: name.into(), reason };
        let mut flags = settings::builder();
        // Where RISC-V code is to be independent of its place, Cranelift reaches all through a global offset table;
        // else what is colocated, as everything is here, from the program counter, which is as independent.
        let has_table = set.architecture() == Architecture::Riscv64;
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
        let mut builder =
            isa::lookup_by_name(triple(set.architecture())).map_err(|e| refuse(e.to_string()))?;
        flags::enable(&mut builder, set).map_err(|e| refuse(e.to_string()))?;
        let isa = builder.finish(settings::Flags::new(flags)).map_err(|e| refuse(e.to_string()))?;
        Ok(Target { name: name.into(), isa, features: Features::of(set, tuning), set, tuning })
    }

    /// What a CPU must have to run this code, by the names of [`lapidary_runtime::cpu`].
    pub fn required(&self) -> Vec<String> {
        self.set.names().into_iter().map(str::to_string).collect()
    }

    /// The same, with its name and the step that it comes to.
    pub fn made_for(&self) -> MadeFor {
        let step = self.step().map(|step| step.name).filter(|name| *name != self.name);
        MadeFor { cpu: self.name.clone(), step: step.map(str::to_string), features: self.required() }
    }

    /// Why code for this CPU does not run on this machine, if it does not.
    pub fn lacking_here(&self) -> Option<String> {
        self.lacking_on(cpu::host())
    }

    /// The same of any machine.
    pub fn lacking_on(&self, host: &Host) -> Option<String> {
        let (asked, there) = (self.set.architecture(), host.features.architecture());
        if asked != there {
            return Some(format!("its code is for {}, this machine is {}", asked.name(), there.name()));
        }
        let lacks = self.set.without(host.features);
        (!lacks.is_empty()).then(|| format!("it needs {}, which this machine lacks", lacks.words()))
    }

    /// Where it stands among targets of its architecture: better ones are greater.
    pub fn rank(&self) -> impl Ord + use<> {
        let f = self.features;
        ((f.amx, f.bf16, f.avx512, f.vnni, f.avx2 && f.fma, f.dotprod), self.set.len())
    }

    /// The best step of the table that its features and tuning hold, if they hold one.
    pub fn step(&self) -> Option<&'static Cpu> {
        let tuned = |step: &Cpu| step.tuning.is_none() || step.tuning == self.tuning.map(|t| t.name);
        TARGETS.iter().rev().find(|step| self.set.has(step.features) && tuned(step))
    }
}
