//! `--cpu`: its values, and `--cpu help`, which lists them.
//!
//! In: the argument. Out: the same; or, for `help`, the names of all CPUs on stdout, and the command ends. A row says
//! what a name's code may use, as the step of the table that it holds and what it has beyond.

use std::fmt::Write;

use anyhow::Result;
use lapidary::Options;
use lapidary_codegen::target::{Cpu, Placement, TARGETS, Target, rows, triple};
use lapidary_runtime::cpu::{Architecture, Set};

use crate::options;
use crate::output::{self, Usage};

/// The value of `--cpu`, for clap; several, separated by commas, are its user's business.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if text != "help" {
        return Ok(text.into());
    }
    // As other compilers do: a list, and success, whatever else was asked for.
    let printed = output::print(&list());
    std::process::exit(i32::from(printed.is_err()));
}

/// Fails if code for a CPU would not run here; a CPU that there is not is a mistake in the arguments.
pub(crate) fn check(name: &str) -> Result<()> {
    let options = options::watched(Options::new().cpu(name));
    options.check().map_err(|e| Usage::new(options::error(e)))?;
    options.runs_here().map_err(options::error)
}

/// All names, this machine's architecture first.
fn list() -> String {
    let mut text = String::from("CPUs that --cpu takes, and what code for them may use\n");
    let here = Target::new("native", Placement::Object).map_or_else(
        |error| error.to_string(),
        |native| match native.step() {
            Some(step) => format!("this machine: {}", beyond(native.set, step)),
            None => format!("this machine: {}", native.set),
        },
    );
    let _ = writeln!(text, "\n{:<18}{here}", "native");
    let mut architectures = Architecture::ALL;
    architectures.sort_by_key(|&architecture| architecture != Architecture::HERE);
    for architecture in architectures {
        let target = triple(architecture);
        let _ = writeln!(text, "\n{target}");
        for (at, row) in rows().enumerate().filter(|(_, row)| row.triple == target) {
            let below = |step: &&Cpu| {
                row.features.has(step.features) && (step.tuning.is_none() || step.tuning == row.tuning)
            };
            let lower = TARGETS.iter().take(at).rev().find(below);
            let has = lower.map_or_else(|| row.features.to_string(), |step| beyond(row.features, step));
            let _ = writeln!(text, "  {:<16}{has}", row.name);
        }
    }
    text
}

/// Features as a step and what is beyond it.
fn beyond(features: Set, step: &Cpu) -> String {
    let rest = features.without(step.features);
    if rest.is_empty() { step.name.into() } else { format!("{} and {rest}", step.name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_listed_once() {
        let text = list();
        for row in rows() {
            let lines = text.lines().filter(|line| line.split_whitespace().next() == Some(row.name));
            assert_eq!(lines.count(), 1, "{}", row.name);
        }
        assert!(text.contains("x86-64-v3       x86-64-v2 and "), "{text}");
        assert!(text.contains("cortex-a76      aarch64-dotprod and fp16"), "{text}");
        assert!(
            text.lines().nth(4).is_some_and(|line| line.starts_with(triple(Architecture::HERE))),
            "{text}"
        );
    }
}
