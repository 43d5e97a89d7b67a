//! What the compiler minimises, and for what machine: `--cost`, and the figures of `--what-if`.

use std::sync::OnceLock;

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use lapidary_codegen::price::candidates;
use lapidary_codegen::target::{Placement, Target};
use lapidary_models::weight_cache::Cache;
use lapidary_passes::price::{FIGURES, Machine, Measured, Objective};
use lapidary_runtime::cpu::Cores;

use super::calibration::{self, Which, cpu_name};
use crate::options::CompileArgs;
use crate::output::{self, Usage};

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
    /// Times of candidate kernels on this machine, measured once and kept
    Measured,
}

impl CostName {
    /// A machine whose prices are this cost. `cpu` is what code is made for, `base` what times are reckoned from.
    fn machine(self, cpu: &str, base: Machine) -> Result<Machine> {
        let objective = match self {
            CostName::Measured => {
                let target = Target::new(cpu, Placement::Jit).map_err(Usage::new)?;
                if let Some(reason) = target.lacking_here() {
                    bail!("--cost measured: code for {cpu} cannot be timed here: {reason}");
                }
                return Ok(Machine { measured: Some(measured(cpu)), ..base });
            }
            CostName::Roofline => Objective::Roofline,
            CostName::Flops => Objective::Flops,
            CostName::Bytes => Objective::Bytes,
            CostName::Nodes => Objective::Nodes,
        };
        Ok(objective.machine(base))
    }
}

/// What kernels for a CPU are priced by, where flags ask for other constants than those built in, `base`.
///
/// Without a flag it is the built-in ones, so that what runs has the bits of what is stored, which depend on no machine
/// that it does not name.
pub(crate) fn prices(
    args: &CompileArgs,
    cpu: &str,
    base: &dyn Fn() -> Result<Machine>,
) -> Result<Option<Machine>> {
    let which = args.calibration.as_ref().unwrap_or(&Which::None);
    let calibrated = calibration::chosen(which, cpu)?.map(|found| found.machine(args.activations));
    if calibrated.is_none() && args.cost == CostName::Roofline {
        return Ok(None);
    }
    let built_in = base()?;
    let machine = calibrated.map_or(built_in, |found| Machine { shapes: built_in.shapes, ..found });
    args.cost.machine(cpu, machine).map(Some)
}

/// The prices measured on this machine, of code for `cpu`, on as many threads as it has: one set for the whole command.
fn measured(cpu: &str) -> &'static Measured {
    static PRICES: OnceLock<Measured> = OnceLock::new();
    PRICES.get_or_init(|| {
        let threads = Cores::here().threads();
        let this = format!("{} {cpu} {threads} {}", cpu_name(), env!("CARGO_PKG_VERSION"));
        let hash = this
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        // Without a place to keep them they are measured again.
        let cache = Cache::of_user().filter(|cache| cache.make(0).is_ok());
        let path = cache.map(|c| c.dir.join(format!("kernels-{hash:016x}.txt")));
        let known = path.as_deref().map(candidates::read).unwrap_or_default();
        let bar = output::bar(0, "measuring kernels", output::Unit::Steps);
        Measured::new(path, threads, known).watched(move |done, of| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            if done == of {
                bar.finish_and_clear();
                bar.reset();
            }
        })
    })
}

/// What `--what-if` takes besides the names of a calibration's figures, and what each is.
const NAMES: [(&str, &str); 3] = [
    ("cores", "cores; all but memory and launches scale with them"),
    ("bandwidth", "GB/s of memory"),
    ("flops", "GFLOP/s of tuned kernels; other products scale with it"),
];

/// A machine that differs as the text says: `cores=16,bandwidth=200`.
pub(crate) fn machine(base: Machine, text: &str) -> Result<Machine> {
    let mut machine = base;
    let known = || {
        let named = NAMES.iter().map(|(name, what)| format!("{name} ({what})"));
        let figures =
            FIGURES.iter().filter(|f| f.name != "flops").map(|f| format!("{} ({})", f.name, f.unit));
        named.chain(figures).collect::<Vec<_>>().join(", ")
    };
    let mut pairs = vec![];
    for pair in text.split(',') {
        let bad = |why: String| Usage::new(anyhow!("--what-if `{pair}`: {why}"));
        let (name, value) = pair.split_once('=').ok_or_else(|| bad("expected NAME=NUMBER".into()))?;
        let name = name.trim();
        if !NAMES.iter().any(|(known, _)| *known == name) && !FIGURES.iter().any(|f| f.name == name) {
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
            "cores" => machine = machine.on(value),
            "bandwidth" => {
                machine.keys *= value / machine.memory;
                machine.memory = value;
            }
            "flops" => {
                let times = value / machine.flops.bf16;
                for rate in [
                    &mut machine.flops.f32,
                    &mut machine.flops.bf16,
                    &mut machine.flops.q8,
                    &mut machine.flops.q4,
                    &mut machine.few_flops,
                    &mut machine.product_flops,
                    &mut machine.loose_flops,
                    &mut machine.attention_flops,
                    &mut machine.attention_tile_flops,
                ] {
                    *rate *= times;
                }
            }
            _ => {
                if let Some(figure) = FIGURES.iter().find(|f| f.name == name) {
                    *(figure.of)(&mut machine) = value;
                }
            }
        }
    }
    Ok(machine)
}
