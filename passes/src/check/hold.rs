//! Every form that a rule made, held against the interpreter on values of several kinds.
//!
//! In: a function that one rule saturated. Out: the first counterexample, and the law that it breaks.

use egg::Id;
use lapidary_ir::interp::{Precision, Tensor, Value, evaluate, evaluate_all};
use lapidary_ir::{Extent, Function, Op};

use super::forms::{Difference, check_call, check_outputs, compare_where, flatten, near, new_forms};
use super::values::{Values, draw};
use super::{EXTENTS, Fault};
use crate::Saturated;
use crate::rules::{Class, Predicate, Rule, Search};

/// A law broken, and where.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Counter {
    /// The law.
    pub fault: Fault,
    /// In words.
    pub reason: String,
}

/// The relative difference that a class allows where nothing is rounded to f32.
pub fn tolerance(rule: &Rule) -> f64 {
    let near = match &rule.search {
        Search::Patterns { when, .. } => when.iter().any(|p| matches!(p, Predicate::Near { .. })),
        Search::Native(_) => false,
    };
    match rule.class {
        Class::Exact => 1e-12,
        // A constant that need only be near another is itself rounded to f32.
        Class::Reassociating if near => 1e-6,
        Class::Reassociating => 1e-9,
        Class::Approximate(bound) => bound.into(),
    }
}

/// What values are drawn, and what is asked of what comes of them.
struct Trial {
    values: Values,
    precision: Precision,
    asked: Asked,
}

#[derive(Clone, Copy, PartialEq)]
enum Asked {
    /// The same numbers, within this relative difference.
    Same(f64),
    /// Finite where what was written is.
    Finite,
}

/// The trials of a rule. Sums of the largest numbers among ordinary ones lose the latter, in one order or another:
/// where rounding may differ, only what is finite is asked about there. The other way to overflow is exp of numbers
/// that are merely large, in 32 bits.
fn trials(rule: &Rule) -> Vec<Trial> {
    let trial = |values, precision, asked| Trial { values, precision, asked };
    let same = Asked::Same(tolerance(rule));
    match rule.class {
        Class::Exact => vec![
            trial(Values::Ordinary, Precision::F32, Asked::Same(0.0)),
            trial(Values::Ordinary, Precision::F64, same),
            trial(Values::Edge, Precision::F32, Asked::Same(0.0)),
            trial(Values::Edge, Precision::F64, same),
        ],
        Class::Reassociating | Class::Approximate(_) => vec![
            trial(Values::Ordinary, Precision::F64, same),
            trial(Values::Special, Precision::F64, same),
            trial(Values::Edge, Precision::F64, Asked::Finite),
            trial(Values::Large, Precision::F32, Asked::Finite),
        ],
    }
}

/// Holds every form that a rule made on a function against the interpreter; `false` if the function has no value.
///
/// # Errors
/// The first difference.
pub fn differences(saturated: &Saturated, rule: &Rule, seed: u64) -> Result<bool, Counter> {
    let flat = flatten(saturated);
    let new = new_forms(&flat, saturated);
    let source = &saturated.source;
    let exact = rule.class == Class::Exact;
    let indices: Vec<Id> = source
        .body
        .as_ref()
        .iter()
        .filter_map(|op| if let Op::Argmax([x, _]) = op { Some(*x) } else { None })
        .collect();
    let mut has_value = false;
    for extent in EXTENTS {
        for Trial { values, precision, asked } in trials(rule) {
            let inputs = draw(source, extent, seed, values);
            let Ok(expected) = evaluate(source, &inputs, extent, precision) else { return Ok(false) };
            // Of two values that round to the same, a rule that reassociates may take either's index.
            if !exact && indices.iter().any(|&x| has_ties(source, x, &inputs, extent)) {
                continue;
            }
            let ordinary = values == Values::Ordinary;
            has_value |= ordinary && expected.iter().any(|t| t.data.iter().any(|x| !x.is_nan()));
            let judge = |found: &Tensor, expected: &Tensor| match asked {
                Asked::Finite => {
                    if expected.dtype.is_float() {
                        stays_finite(found, expected)
                    } else {
                        Ok(())
                    }
                }
                // What is no number is promised nothing.
                Asked::Same(bound) if ordinary => compare_where(found, expected, bound, |_, b| !b.is_nan())
                    .map_err(|d| with_class(d, rule.class, found, expected)),
                Asked::Same(_) if !exact && !expected.dtype.is_float() => Ok(()),
                Asked::Same(bound) if exact => compare_where(found, expected, bound, |_, b| b.is_finite()),
                Asked::Same(bound) => {
                    // No real number has become NaN: a row that has one was lost as it was written.
                    compare_where(found, expected, bound, |at, b| b.is_finite() && !lost(expected, at))
                }
            };
            let named = |Difference { reason, lost }: Difference| {
                let overflows = asked == Asked::Finite || !ordinary && lost;
                let fault = if overflows { Fault::Overflow } else { Fault::Value };
                Counter { fault, reason: format!("{} rule, {} values: {reason}", rule.class, values.word()) }
            };
            check_outputs(&flat, &new, &expected, &inputs, extent, precision, &judge).map_err(named)?;
            if ordinary {
                // Which of two forms of an inner value was written is not known here: of both, one may be no number.
                let either = |found: &Tensor, expected: &Tensor| {
                    let mut known = found.clone();
                    let pairs = known.data.iter_mut().zip(&expected.data);
                    pairs.filter(|(f, e)| f.is_nan() && !exact && e.is_finite()).for_each(|(f, e)| *f = *e);
                    judge(&known, expected)
                };
                check_call(&flat, &inputs, extent, precision, &either).map_err(named)?;
            }
        }
    }
    Ok(has_value)
}

/// Whether the row of an element, along the last axis, has a NaN.
fn lost(expected: &Tensor, at: usize) -> bool {
    let width = expected.shape.last().copied().unwrap_or(1).max(1);
    let row = at / width;
    expected.data[row * width..(row + 1) * width].iter().any(|x| x.is_nan())
}

/// Every element is finite that is expected to be.
fn stays_finite(found: &Tensor, expected: &Tensor) -> Result<(), Difference> {
    let at = (found.data.iter().zip(&expected.data).enumerate())
        .position(|(at, (f, e))| e.is_finite() && !f.is_finite() && !lost(expected, at));
    match at {
        None => Ok(()),
        Some(at) => {
            let (f, e) = (found.data[at], expected.data[at]);
            let reason = format!("element {at} of {:?} is {f:e}, expected a finite one ({e:e})", found.shape);
            Err(Difference { reason, lost: true })
        }
    }
}

/// A difference so small that the rule may be true by another class, with that said.
fn with_class(difference: Difference, class: Class, found: &Tensor, expected: &Tensor) -> Difference {
    if found.data.len() != expected.data.len() {
        return difference;
    }
    let pairs = found.data.iter().zip(&expected.data).filter(|(_, e)| !e.is_nan());
    let off = pairs.map(|(f, e)| (f - e).abs() / f.abs().max(e.abs()).max(1.0));
    let most = off.fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
    match class {
        Class::Exact if most < 1e-5 => difference.within(|reason| {
            format!("{reason} (if it only rounds otherwise, in another order for one, its class is `reassociating`)")
        }),
        Class::Reassociating if most < 1e-4 => {
            let bound = 10f64.powi((2.0 * most).log10().ceil() as i32);
            difference.within(|reason| {
                format!("{reason} (if a constant is rounded, its class is `approximate({bound:e})`)")
            })
        }
        Class::Exact | Class::Reassociating | Class::Approximate(_) => difference,
    }
}

/// Whether two elements of a node are nearly equal.
fn has_ties(function: &Function, id: Id, inputs: &[Tensor], extent: Extent) -> bool {
    let Ok(all) = evaluate_all(function, inputs, extent, Precision::F64) else { return false };
    let Value::Tensor(x) = &all[usize::from(id)] else { return false };
    let mut sorted = x.data.clone();
    sorted.sort_by(f64::total_cmp);
    sorted.windows(2).any(|w| near(w[0], w[1], 1e-9))
}
