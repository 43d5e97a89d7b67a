//! Prices of what a rule makes: alone, and where the values that it takes in have other users.
//!
//! In: a saturated function on which the rule fired. Out: shares of the price of what was written, or the law that is
//! broken: extraction must never choose the dearer form.

use egg::Id;
use lapidary_ir::{Extent, Function, Op};

use super::forms::{flatten, new_forms};
use crate::rules::{Rule, RuleSet, Search};
use crate::{CostModel, Limits, Machine, Saturated, extract, saturate};

/// Calls that prices are taken for: decoding and prefill.
const REGIMES: [Extent; 2] = [Extent { rows: 1, keys: 512 }, Extent { rows: 512, keys: 512 }];

/// What a rule makes dearer than what it replaces is worth a word from here on: less is below what prices tell apart.
const LOSS: f64 = 1.05;

/// Time from which on it is, in nanoseconds: views cost next to nothing, whatever their number.
const LOSS_NS: f64 = 50.0;

/// Where a rule does not pay: a function that is dearer with what it makes, be it that inner values have other users,
/// so that they are computed again. It is no failure, for extraction declines it there.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The function, with its inner values among its outputs if they have other users.
    pub function: Function,
    /// The call that is priced.
    pub extent: Extent,
    /// Predicted time as written, ns.
    pub written_ns: f64,
    /// Predicted time of the cheapest function that takes what the rule makes, ns.
    pub made_ns: f64,
}

/// What a rule makes as a share of what it replaces, the least and the greatest.
#[derive(Default)]
pub(super) struct Prices {
    /// Where nothing else is wanted.
    pub(super) alone: Option<(f64, f64)>,
    /// Where inner values have other users.
    pub(super) shared: Option<(f64, f64)>,
    /// Where that does not pay.
    pub(super) loss: Option<Loss>,
    /// Where it does not pay alone.
    pub(super) dear: Option<Loss>,
}

/// What the rule makes, priced as a share of what it replaces: alone, and where inner values have other users.
/// Extraction must choose the cheaper.
///
/// # Errors
/// What extraction chose, and what it should have.
pub(super) fn prices(rules: &RuleSet, rule: &Rule, saturated: &Saturated) -> Result<Prices, String> {
    let source = &saturated.source;
    let flat = flatten(saturated);
    let new = new_forms(&flat, saturated);
    // A native search merges what several outputs are: one without the others is no saving.
    let choices: Vec<Vec<(usize, Id)>> = match &rule.search {
        Search::Patterns { .. } => new.iter().map(|&form| vec![form]).collect(),
        Search::Native(_) => {
            let mut first = new;
            first.dedup_by_key(|(at, _)| *at);
            vec![first]
        }
    };
    let mut shared = source.clone();
    let types = source.types().unwrap_or_default();
    for (at, op) in source.body.as_ref().iter().enumerate() {
        let inner = !egg::Language::is_leaf(op) && !matches!(op, Op::Append(_) | Op::NormPrologue(_));
        let tensor = matches!(types.get(at), Some(lapidary_ir::Type::Tensor(t)) if !t.dtype.is_quantised());
        if inner && tensor && source.outputs.iter().all(|(_, id)| usize::from(*id) != at) {
            shared.outputs.push((format!("inner{at}"), Id::from(at)));
        }
    }
    let price = |function: &Function, enabled: bool, extent: Extent| -> Option<f64> {
        let s = saturate(function, rules, &|r| enabled && r.name == rule.name, Limits::default()).ok()?;
        Some(extract(&s, &CostModel { machine: Machine::GENERIC, extent }).nanoseconds)
    };
    let mut all = Prices::default();
    for extent in REGIMES {
        let (Some(written), Some(shared_written)) =
            (price(source, false, extent), price(&shared, false, extent))
        else {
            return Ok(all);
        };
        for forms in &choices {
            let replaced = |name: &str| forms.iter().any(|&(at, _)| source.outputs[at].0 == name);
            let made = |outputs: &[(String, Id)]| {
                // The flat function's terms include the source's own, by other ids: outputs are added one by one.
                let mut function = Function { outputs: vec![], ..flat.function.clone() };
                function.outputs.extend(forms.iter().map(|&(at, id)| (source.outputs[at].0.clone(), id)));
                let mut placed: Vec<Id> = vec![];
                for op in source.body.as_ref() {
                    let op = egg::Language::map_children(op.clone(), |c| placed[usize::from(c)]);
                    let known = function.body.as_ref().iter().position(|o| *o == op);
                    let id = known.map_or_else(|| function.body.add(op), Id::from);
                    placed.push(id);
                }
                let others = outputs.iter().filter(|(name, _)| !replaced(name));
                function.outputs.extend(others.map(|(n, id)| (n.clone(), placed[usize::from(*id)])));
                function
            };
            let loss = |function: &Function, written_ns: f64, made_ns: f64| {
                Some(Loss { function: function.clone(), extent, written_ns, made_ns })
            };
            if let Some(cost) = price(&made(&source.outputs), false, extent) {
                let share = cost / written;
                all.alone = wider(all.alone, Some((share, share)));
                if share > 1.0 + 1e-9 {
                    all.dear = clearer(all.dear.take(), loss(source, written, cost));
                }
            }
            if shared.outputs.len() > source.outputs.len()
                && let Some(cost) = price(&made(&shared.outputs), false, extent)
            {
                let share = cost / shared_written;
                all.shared = wider(all.shared, Some((share, share)));
                if share > LOSS && cost - shared_written > LOSS_NS && all.loss.is_none() {
                    all.loss = loss(&shared, shared_written, cost);
                }
            }
        }
        for (function, written) in [(source, written), (&shared, shared_written)] {
            if let Some(chosen) = price(function, true, extent)
                && chosen > written * (1.0 + 1e-9)
            {
                return Err(format!(
                    "extraction chooses {chosen:.0} ns where {written:.0} ns is there, {} rows",
                    extent.rows
                ));
            }
        }
    }
    Ok(all)
}

/// The least of both and the greatest of both.
pub(super) fn wider(a: Option<(f64, f64)>, b: Option<(f64, f64)>) -> Option<(f64, f64)> {
    match (a, b) {
        (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
        _ => a.or(b),
    }
}

/// The smaller function of both.
pub(super) fn smaller(a: Option<Loss>, b: Option<Loss>) -> Option<Loss> {
    let size = |l: &Loss| l.function.body.as_ref().len();
    match (a, b) {
        (Some(a), Some(b)) => Some(if size(&b) < size(&a) { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// The one that costs more of both, by the share.
fn clearer(a: Option<Loss>, b: Option<Loss>) -> Option<Loss> {
    let share = |l: &Loss| l.made_ns / l.written_ns;
    match (a, b) {
        (Some(a), Some(b)) => Some(if share(&b) > share(&a) { b } else { a }),
        (a, b) => a.or(b),
    }
}
