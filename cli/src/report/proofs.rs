//! How kernels came about: each one's rewrites, term by term, and what it was chosen over.
//!
//! In: a saturated function and its row regimes. Out: for each regime, by group, the index of a proof in a table that
//! all functions share, and the forms that were not chosen. Regimes mostly choose the same kernels: their proofs are
//! kept once.

use std::collections::HashMap;

use anyhow::Result;
use lapidary_codegen::compile::FunctionReport;
use lapidary_ir::{Extent, Id};
use lapidary_passes::explain::{Alternative, Explainer, Explanation, Priced};
use lapidary_passes::{CostModel, Limits, Machine, Selection, prepare, select};
use serde_json::{Value, json};

use super::data::graph;

/// Forms shown beside a kernel's own.
const ALTERNATIVES: usize = 4;

/// Proofs by index, equal ones once.
#[derive(Default)]
pub(crate) struct Proofs {
    /// The proofs.
    pub(crate) all: Vec<Value>,
    known: HashMap<String, usize>,
}

impl Proofs {
    fn add(&mut self, proof: Value) -> usize {
        let key = proof.to_string();
        if let Some(&at) = self.known.get(&key) {
            return at;
        }
        self.all.push(proof);
        self.known.insert(key, self.all.len() - 1);
        self.all.len() - 1
    }
}

/// Of one row regime, by group: the proof, or why there is none, and the forms that were not chosen.
pub(crate) struct Explained {
    /// Of the groups, in their order.
    pub(crate) groups: Vec<(Value, Vec<Alternative>)>,
}

/// Explains the kernels of a function in each row regime. `groups` are the fused nodes of each regime's kernels.
pub(crate) fn explain(
    report: &FunctionReport,
    selection: &Selection,
    machine: Machine,
    extent: &(dyn Fn(usize) -> Extent + Sync),
    groups: &[Vec<Id>],
) -> Result<Vec<Explained>> {
    let mut regimes = vec![];
    for (variant, groups) in report.variants.iter().zip(groups) {
        let extent = extent(variant.rows);
        let mut saturated = prepare(&report.source, selection, Limits::default())?;
        let extracted = select(&saturated, machine, extent)?;
        let model = CostModel { machine, extent };
        let explainer = Explainer::new(&mut saturated, selection, model);
        let kernels = explainer.kernels(&extracted);
        let of_group = |&group: &Id| {
            if !kernels.contains(&group) {
                return (Value::Null, vec![]);
            }
            let explanation = explainer.kernel(&extracted, group, ALTERNATIVES);
            (proof(&explanation), explanation.alternatives)
        };
        regimes.push(Explained { groups: groups.iter().map(of_group).collect() });
    }
    Ok(regimes)
}

/// Puts a regime's proofs into the table; what the regime's JSON holds of them.
pub(crate) fn place(explained: Explained, proofs: &mut Proofs) -> (Vec<Value>, Vec<Value>) {
    explained
        .groups
        .into_iter()
        .map(|(proof, alternatives)| {
            let at = if proof.is_null() { Value::Null } else { json!(proofs.add(proof)) };
            (at, alternatives.iter().map(alternative).collect())
        })
        .unzip()
}

fn proof(e: &Explanation) -> Value {
    let steps: Vec<Value> = e
        .steps
        .iter()
        .map(|s| {
            let also: Vec<[String; 2]> = s.also.iter().map(|(v, p)| [v.to_string(), p.to_string()]).collect();
            json!({
                "rule": s.rule,
                "class": s.class.to_string(),
                "algebra": s.algebra,
                "lhs": s.lhs.to_string(),
                "also": also,
                "rhs": s.rhs.to_string(),
                "bindings": s.bindings,
                "at": usize::from(s.at),
                "from": s.from,
                "to": usize::from(s.to),
                "into": s.into,
                "graph": graph(&s.function),
            })
        })
        .collect();
    json!({ "start": graph(&e.start), "steps": steps, "gap": e.gap })
}

fn alternative(a: &Alternative) -> Value {
    let priced =
        |list: &[Priced]| -> Vec<Value> { list.iter().map(|p| json!([p.text, p.nanoseconds])).collect() };
    json!({
        "text": a.text,
        "ns": a.function_nanoseconds,
        "extra": a.extra_nanoseconds,
        "added": priced(&a.added),
        "saved": priced(&a.saved),
    })
}
