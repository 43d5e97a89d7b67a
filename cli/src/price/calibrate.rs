//! `lapidary calibrate`: this machine's constants for the cost model, measured and kept.
//!
//! In: threads, the CPU that code is made for. Out: a calibration ([`super::calibration`]) where every command that
//! prices finds it, or in a file of one's own, and a table of its figures.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use lapidary_codegen::price::calibrate::{STEPS, Subject, calibrate};
use lapidary_models::Cache;
use lapidary_passes::price::FIGURES;
use lapidary_runtime::cpu::Cores;
use lapidary_runtime::file::whole::Output;

use super::calibration::{self, Calibration};
use crate::cpus;
use crate::options;
use crate::output;

/// Measure this machine's constants for the cost model, and keep them
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary calibrate\n  lapidary calibrate --cpu x86-64-v3 -o avx2.json")]
pub(crate) struct Args {
    /// Threads [default: one a fast core, which is what prices are reckoned for]
    #[arg(long, value_name = "N", value_parser = options::threads())]
    threads: Option<usize>,
    /// CPU to make code for; `help` lists their names
    #[arg(long, value_name = "NAME", default_value = "native", value_parser = cpus::name)]
    cpu: String,
    /// Times that everything is measured, for medians
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    repeat: u64,
    /// File to write, for `--calibration FILE` [default: one in the user's cache directory, which is used without being
    /// named]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the calibration as JSON
    #[arg(long)]
    json: bool,
}

/// Bytes of a last cache that the system does not tell.
const LAST_CACHE: usize = 32 << 20;

/// Measures and writes.
pub(crate) fn run(args: &Args) -> Result<()> {
    cpus::check(&args.cpu)?;
    let threads = args.threads.unwrap_or_else(|| Cores::here().threads());
    let path = args.output.clone().or_else(|| Calibration::path(&args.cpu, threads));
    let path =
        path.ok_or_else(|| anyhow!("no cache directory: neither XDG_CACHE_HOME nor HOME is set; -o FILE"))?;
    let failed = || format!("cannot write {}", path.display());
    if let Some(cache) = Cache::of_user().filter(|_| args.output.is_none()) {
        cache.make(0).with_context(failed)?;
    }
    // Before a minute's measuring.
    let file = Output::create(&path).with_context(failed)?;
    let bar = output::bar(2 * args.repeat * STEPS as u64, "calibrating", output::Unit::Steps);
    let last_cache = calibration::last_cache().unwrap_or(LAST_CACHE);
    let measure = |rounded| {
        let passes = args.repeat as usize;
        let subject = Subject { cpu: &args.cpu, threads, rounded, last_cache, passes };
        calibrate(&subject, &|| bar.inc(1))
    };
    let found = Calibration {
        cpu: calibration::cpu_name(),
        threads,
        code: args.cpu.clone(),
        auto: measure(true)?,
        f32: measure(false)?,
    };
    bar.finish_and_clear();
    found.write(file).with_context(failed)?;
    output::say(&format!("{}: written", path.display()));
    if args.json {
        return output::print_json(&found.to_json());
    }
    let mut text = format!(
        "{}, {threads} threads, code for {}\n{:<22}{:>14}{:>18}  unit\n",
        found.cpu, found.code, "figure", "auto", "--activations f32"
    );
    for figure in FIGURES {
        let values = [&found.auto, &found.f32].map(|machine| number(figure.get(machine)));
        text.push_str(&format!("{:<22}{:>14}{:>18}  {}\n", figure.name, values[0], values[1], figure.unit));
    }
    output::print(&text)
}

/// Four digits that matter, or all before the point.
fn number(value: f64) -> String {
    let digits = (3.0 - value.abs().max(1e-3).log10().floor()).clamp(0.0, 6.0);
    format!("{value:.*}", digits as usize)
}
