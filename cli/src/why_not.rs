//! `lapidary why-not`: whether a rule fired, and if not, what stood in its way.
//!
//! In: a rule's name; a model's module, or a file of the tensor language. Out: for each function how often the rule
//! fired, the matches that its condition refused with the values seen, or the longest prefixes of its pattern, as text
//! or JSON.

use std::fmt::Write;

use anyhow::{Result, anyhow, ensure};
use lapidary_passes::why_not::{Near, Refused, WhyNot, why_not};
use lapidary_passes::{Limits, prepare};
use serde_json::{Value, json};

use crate::functions::FunctionArgs;
use crate::output::{self, Usage};

/// Refusals that are printed of each function; JSON has them all.
const SHOWN: usize = 5;

/// Show why a rule did not fire: the condition that failed, or where its pattern stopped.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary why-not --fn layer_global window-mask\n  \
    lapidary why-not --rules my.rules my-rule graph.ir --json")]
pub(crate) struct Args {
    #[command(flatten)]
    of: FunctionArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The rule; and a file of the tensor language, which ends in `.ir` or is `-` for stdin
    #[arg(value_name = "RULE] [FILE.ir", num_args = 1..=2, required = true)]
    what: Vec<String>,
}

/// Prints the answer.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (file, names) = FunctionArgs::file(&args.what);
    let [name] = &names[..] else {
        return Err(Usage::new(anyhow!("expected one RULE, found {}", names.len())).into());
    };
    let selection = args.of.compile.selection()?;
    let prepared = selection.rules().prepared().iter().find(|p| p.rule.name == *name);
    let Some(prepared) = prepared else {
        let known: Vec<&str> = selection.rules().rules().map(|r| r.name.as_str()).collect();
        let error = anyhow!("unknown rule `{name}`: expected one of {}", known.join(", "));
        return Err(Usage::new(error).into());
    };
    let enabled = selection.admits(&prepared.group, &prepared.rule.name);
    let source = args.of.source(file)?;
    let functions = args.of.functions(&source)?;
    ensure!(!functions.is_empty(), "{}: expected a function, found none", source.name);
    let mut texts = vec![];
    let mut values = vec![];
    for function in &functions {
        let mut saturated = prepare(function, &selection, Limits::default())?;
        if let Some(warning) = saturated.report.warning() {
            output::note("warning", &warning);
        }
        let answer = why_not(&mut saturated, prepared);
        if args.json {
            values.push(to_json(&function.name, enabled, &answer));
        } else {
            texts.push(to_text(&function.name, enabled, prepared.alternatives.is_empty(), &answer)?);
        }
    }
    if args.json { output::print_json(&Value::Array(values)) } else { output::print(&texts.join("\n")) }
}

fn to_text(function: &str, enabled: bool, native: bool, w: &WhyNot) -> Result<String> {
    let mut out = String::new();
    let times = match w.fired {
        0 => "did not fire".into(),
        1 => "fired once".into(),
        n => format!("fired {n} times"),
    };
    writeln!(out, "{} ({}, {}) in {function}: {times}", w.rule, w.group, w.class)?;
    if !enabled {
        writeln!(out, "  it does not run here: --passes, --only or --disable leaves it out")?;
        if w.admitted > 0 {
            writeln!(out, "  {} of its matches hold all the same", w.admitted)?;
        }
    } else if w.fired == 0 && w.admitted > 0 {
        writeln!(out, "  {} of its matches hold, and what it makes was there already", w.admitted)?;
    }
    if native && w.fired == 0 {
        writeln!(out, "  it searches the whole graph and found nothing to merge")?;
    }
    for r in w.refused.iter().take(SHOWN) {
        writeln!(out, "  refused at {}", r.at)?;
        writeln!(out, "    pattern   {}", r.pattern)?;
        writeln!(out, "    where     {}", listed(&r.bindings))?;
        writeln!(out, "    failed    {}", r.predicate)?;
        writeln!(out, "    seen      {}", r.seen)?;
    }
    if w.refused.len() > SHOWN {
        writeln!(out, "  and {} refusals more (--json lists them)", w.refused.len() - SHOWN)?;
    }
    for n in &w.nearest {
        writeln!(out, "  nearest at {}", n.at)?;
        writeln!(out, "    pattern   {}", n.pattern)?;
        writeln!(out, "    matched   {} of {} nodes", n.matched, n.of)?;
        if !n.bindings.is_empty() {
            writeln!(out, "    where     {}", listed(&n.bindings))?;
        }
        writeln!(out, "    expected  {}", n.expected)?;
        writeln!(out, "    stopped   {}", n.stopped_at)?;
        if n.found.len() > 1 {
            writeln!(out, "    which is  {}", n.found.join(", "))?;
        }
    }
    if w.fired == 0 && w.admitted == 0 && w.refused.is_empty() && w.nearest.is_empty() && !native {
        writeln!(out, "  nothing here begins as its pattern does")?;
    }
    Ok(out)
}

fn listed(bindings: &[(String, String)]) -> String {
    bindings.iter().map(|(var, value)| format!("{var} = {value}")).collect::<Vec<_>>().join(", ")
}

fn to_json(function: &str, enabled: bool, w: &WhyNot) -> Value {
    let pairs = |pairs: &[(String, String)]| -> Value {
        Value::Object(pairs.iter().map(|(k, v)| (k.clone(), json!(v))).collect())
    };
    let refused = |r: &Refused| {
        json!({
            "at": r.at, "pattern": r.pattern, "bindings": pairs(&r.bindings),
            "predicate": r.predicate, "seen": r.seen,
        })
    };
    let near = |n: &Near| {
        json!({
            "at": n.at, "pattern": n.pattern, "matched": n.matched, "of": n.of, "expected": n.expected,
            "stopped_at": n.stopped_at, "found": n.found, "bindings": pairs(&n.bindings),
        })
    };
    json!({
        "function": function,
        "rule": w.rule,
        "group": w.group,
        "class": w.class.to_string(),
        "enabled": enabled,
        "fired": w.fired,
        "admitted": w.admitted,
        "refused": w.refused.iter().map(refused).collect::<Vec<_>>(),
        "nearest": w.nearest.iter().map(near).collect::<Vec<_>>(),
    })
}
