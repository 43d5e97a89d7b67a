//! What the compiler minimises, and for what machine: `--cost` and `--what-if`.

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use lapidary_passes::{Machine, Objective};

use crate::output::Usage;

/// What `--cost` takes.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CostName {
    /// Predicted time
    #[default]
    Roofline,
    /// Arithmetic operations alone
    Flops,
    /// Bytes moved alone
    Bytes,
    /// Kernels alone
    Nodes,
}

impl CostName {
    /// The objective of this name.
    pub(crate) fn objective(self) -> Objective {
        match self {
            CostName::Roofline => Objective::Roofline,
            CostName::Flops => Objective::Flops,
            CostName::Bytes => Objective::Bytes,
            CostName::Nodes => Objective::Nodes,
        }
    }
}

/// The cores that the machine of the cost model has: its figures are for these together.
const CORES: f64 = 2.0;

/// What `--what-if` takes, and what each is.
const FIGURES: [(&str, &str); 6] = [
    ("cores", "cores; cache, arithmetic and transcendental functions scale with them"),
    ("bandwidth", "GB/s of memory"),
    ("cache", "GB/s of cache"),
    ("flops", "GFLOP/s of tuned kernels"),
    ("launch", "ns of a launch"),
    ("transcendental", "ns an element"),
];

/// A machine that differs as the text says: `cores=16,bandwidth=200`.
pub(crate) fn machine(base: Machine, text: &str) -> Result<Machine> {
    let mut machine = base;
    let known = || FIGURES.map(|(name, what)| format!("{name} ({what})")).join(", ");
    let mut pairs = vec![];
    for pair in text.split(',') {
        let bad = |why: String| Usage::new(anyhow!("--what-if `{pair}`: {why}"));
        let (name, value) = pair.split_once('=').ok_or_else(|| bad("expected NAME=NUMBER".into()))?;
        let name = name.trim();
        if !FIGURES.iter().any(|(known, _)| *known == name) {
            return Err(bad(format!("expected one of {}", known())).into());
        }
        let value: f64 = value
            .trim()
            .parse()
            .ok()
            .filter(|v: &f64| v.is_finite() && *v > 0.0)
            .ok_or_else(|| bad(format!("expected a number above 0, found `{}`", value.trim())))?;
        pairs.push((name, value));
    }
    // Cores first: what is named beside them is for all of them.
    pairs.sort_by_key(|(name, _)| *name != "cores");
    for (name, value) in pairs {
        match name {
            "cores" => {
                let times = value / CORES;
                machine.cache *= times;
                machine.flops *= times;
                machine.loose_flops *= times;
                machine.transcendental /= times;
            }
            "bandwidth" => machine.memory = value,
            "cache" => machine.cache = value,
            "flops" => {
                machine.loose_flops *= value / machine.flops;
                machine.flops = value;
            }
            "launch" => machine.launch = value,
            _ => machine.transcendental = value,
        }
    }
    Ok(machine)
}
