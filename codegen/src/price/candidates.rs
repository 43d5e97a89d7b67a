//! Candidate kernels measured: what `--cost measured` extracts by.
//!
//! In: a saturated function, the prices known so far, how to compile. Out: the prices of every kernel worth measuring,
//! added and kept in the file of the prices. A file that cannot be read or written costs time, nothing else; it is
//! replaced whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use lapidary_ir::Extent;
use lapidary_passes::price::{Candidate, Machine, Measured, candidates};
use lapidary_passes::{Saturated, Selection};
use lapidary_runtime::file::{self, whole::Output};

use super::timing::{self, Setup};
use crate::Error;
use crate::compile::{Options, compile_functions};

/// How much more than the last cache is read to empty it.
const EVICT: f64 = 2.0;
/// The first line of a file of prices; another one is another version's.
const HEADER: &str = "lapidary measured kernels 2";

/// The prices in a file: none if it is not there, or not one of this version.
pub fn read(path: &Path) -> BTreeMap<u64, f64> {
    let bytes = file::read_unnoted(path).unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap_or_default();
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return BTreeMap::new();
    }
    lines
        .filter_map(|line| {
            let (key, ns) = line.split_once(' ')?;
            let ns: f64 = ns.parse().ok()?;
            Some((u64::from_str_radix(key, 16).ok()?, ns)).filter(|_| ns.is_finite() && ns > 0.0)
        })
        .collect()
}

fn write(path: &Path, prices: &BTreeMap<u64, f64>) -> std::io::Result<()> {
    let mut text = format!("{HEADER}\n");
    for (key, ns) in prices {
        let _ = writeln!(text, "{key:016x} {ns}");
    }
    let mut output = Output::create(path)?;
    output.write_all(text.as_bytes())?;
    output.finish().map(drop)
}

/// Measures the kernels of a function that are worth it and have no price yet.
///
/// # Errors
/// A kernel that does not compile: a bug; threads that cannot be had.
pub(crate) fn fill(
    measured: &Measured,
    saturated: &Saturated,
    options: &Options,
    extent: Extent,
) -> Result<(), Error> {
    // Weights that no cache holds from one token to the next are read from memory.
    let machine = &options.machine;
    let evict = if machine.is_resident() { 0 } else { (EVICT * machine.last_cache) as usize };
    let setup = Setup { evict, ..Setup::hot(measured.threads) };
    let mut unknown = candidates(saturated, options.machine, extent);
    unknown.retain(|candidate| !measured.prices().contains_key(&candidate.key));
    if unknown.is_empty() {
        return Ok(());
    }
    let mut found = vec![];
    for (done, candidate) in unknown.iter().enumerate() {
        measured.tell(done, unknown.len());
        if let Some(ns) = measure(candidate, setup, options, extent)? {
            found.push((candidate.key, ns));
        }
    }
    measured.tell(unknown.len(), unknown.len());
    measured.prices().extend(found);
    if let Some(path) = &measured.path {
        // Others may have measured since.
        let mut all = read(path);
        all.extend(measured.prices().iter());
        // Best effort: without the file the next run measures again.
        let _ = write(path, &all);
    }
    Ok(())
}

/// The time of one candidate in nanoseconds; none if its kernel has no code alone.
fn measure(
    candidate: &Candidate,
    setup: Setup,
    options: &Options,
    extent: Extent,
) -> Result<Option<f64>, Error> {
    let context = extent.keys.max(extent.rows);
    let alone = Options {
        selection: Selection::none(),
        context,
        chunk: extent.rows,
        machine: Machine::GENERIC,
        listings: false,
        ..options.clone()
    };
    let loose = match compile_functions(std::slice::from_ref(&candidate.function), &alone) {
        Ok(loose) => loose,
        Err(Error::Unsupported { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let timing = timing::time(&loose, 0, context, extent, setup)?;
    let Some(lowered) = loose.reports[0].variants.iter().find(|v| v.rows >= extent.rows) else {
        return Ok(None);
    };
    let own = |node: lapidary_ir::Id| {
        let name = lowered.function.body[node].to_string();
        !candidate.around.contains(&name)
    };
    let kernels = lowered.schedule.kernels.iter().zip(&timing.kernels);
    let ns: f64 = kernels.filter(|(k, _)| own(k.node)).map(|(_, ns)| ns).sum();
    Ok((ns > 0.0).then_some(ns))
}
