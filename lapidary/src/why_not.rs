//! Whether a rule fired, and if not, what stood in its way, as text and JSON.
//!
//! In: functions, the rules that run, a rule's name. Out: for each function how often the rule fired, the matches that
//! its condition refused with the values seen, or the longest prefixes of its pattern.

use std::fmt::{self, Write};

use lapidary_ir::Function;
use lapidary_passes::why_not::{Near, Refused, WhyNot, why_not};
use lapidary_passes::{Limits, Selection, prepare};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Refusals that are in text of each function; JSON has them all.
const SHOWN: usize = 5;

/// What became of a rule in a function.
pub struct Answer {
    function: String,
    enabled: bool,
    native: bool,
    answer: WhyNot,
    /// What saturation warns of.
    pub warning: Option<String>,
}

/// Answers for a rule, of each function.
///
/// # Errors
/// [`Error::Choice`] for a rule that there is not; [`Error::Compiler`] for a function that is broken.
pub fn answers(functions: &[Function], selection: &Selection, rule: &str) -> Result<Vec<Answer>> {
    let prepared = selection.rules().prepared().iter().find(|p| p.rule.name == rule);
    let Some(prepared) = prepared else {
        let known: Vec<&str> = selection.rules().rules().map(|r| r.name.as_str()).collect();
        return Err(Error::Choice { kind: "rule", name: format!("`{rule}`"), known: known.join(", ") });
    };
    let enabled = selection.admits(&prepared.group, &prepared.rule.name);
    let native = prepared.alternatives.is_empty();
    let one = |function: &Function| {
        let prepare = prepare(function, selection, Limits::default());
        let mut saturated = prepare.map_err(|e| Error::Compiler(e.into()))?;
        let warning = saturated.report.warning();
        let answer = why_not(&mut saturated, prepared);
        Ok(Answer { function: function.name.clone(), enabled, native, answer, warning })
    };
    functions.iter().map(one).collect()
}

impl Answer {
    /// As text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let written = write_text(&mut out, &self.function, self.enabled, self.native, &self.answer);
        debug_assert!(written.is_ok(), "a string takes all text");
        out
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        to_json(&self.function, self.enabled, &self.answer)
    }
}

fn write_text(out: &mut String, function: &str, enabled: bool, native: bool, w: &WhyNot) -> fmt::Result {
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
    Ok(())
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
