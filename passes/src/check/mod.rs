//! The check of rules: each against the reference interpreter, on functions made for it.
//!
//! In: rules, a number of cases. Out: for each rule what was tried, and a small counterexample if it is unsound. A case is
//! a function on which a left side matches ([`instance`]); the rule alone saturates it; every form that it made is
//! evaluated on ordinary and edge values ([`values`], [`forms`]) and, where its operators are arithmetic, exactly
//! over rational numbers ([`mod@rational`]); merges are typed; and prices must not rise.

pub mod forms;
pub mod instance;
mod price;
pub mod rational;
pub mod values;

use egg::Id;
use lapidary_ir::interp::{Precision, Tensor, Value, evaluate, evaluate_all};
use lapidary_ir::{Extent, Function, Op};

use crate::rules::{Class, Predicate, Rule, RuleSet, Search};
use crate::{Error, Limits, Saturated, saturate};
use forms::{Difference, check_call, check_outputs, compare, compare_where, flatten, new_forms};
use instance::Size;
pub use price::Loss;
use price::{Prices, prices, wider};
use values::{Random, Values, draw};

/// Rows and keys of the calls: one row, a few, all of the keys.
pub const EXTENTS: [Extent; 4] = [
    Extent { rows: 1, keys: 1 },
    Extent { rows: 1, keys: 5 },
    Extent { rows: 3, keys: 3 },
    Extent { rows: 3, keys: 7 },
];

/// Attempts at a function for one case.
const ATTEMPTS: usize = 3000;

/// Functions that shrinking tries, half of them with every free length 1.
const SHRINKING: usize = 400;

/// What the check of a rule came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The rule's name.
    pub rule: String,
    /// Its class.
    pub class: Class,
    /// Functions on which it fired and was checked.
    pub cases: usize,
    /// Of these, how many were evaluated exactly over rational numbers.
    pub rational: usize,
    /// Price of what the rule makes as a share of what it replaces: the least and the greatest over cases and regimes.
    pub price: Option<(f64, f64)>,
    /// The same where every inner value of the left side is wanted too.
    pub shared_price: Option<(f64, f64)>,
    /// The smallest function on which fusing despite other users would be worse.
    pub loss: Option<Loss>,
    /// Why it was not checked, if it was not.
    pub skipped: Option<String>,
    /// What is wrong.
    pub failure: Option<Failure>,
}

/// A counterexample.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What law is broken, and where.
    pub reason: String,
    /// The function, on which the rule fires.
    pub function: Function,
    /// The seed of its inputs.
    pub seed: u64,
}

/// Nodes of a function, attributes and inputs not counted.
pub fn nodes(function: &Function) -> usize {
    let body = function.body.as_ref();
    body.iter().filter(|op| !egg::Language::is_leaf(*op) && !op.is_attribute()).count()
}

/// Checks one rule.
pub fn check_rule(rules: &RuleSet, rule: &Rule, cases: usize, seed: u64) -> Outcome {
    let mut outcome = Outcome {
        rule: rule.name.clone(),
        class: rule.class,
        cases: 0,
        rational: 0,
        price: None,
        shared_price: None,
        loss: None,
        skipped: None,
        failure: None,
    };
    let Search::Patterns { lhs, .. } = &rule.search else {
        outcome.skipped = Some("a native search has no left side to make functions of".into());
        return outcome;
    };
    let mut random = Random(seed ^ 0x6c61_7069_6461_7279);
    let mut missed = vec![];
    for case in 0..cases.max(lhs.len()) {
        let side = case % lhs.len();
        if missed.contains(&side) {
            continue;
        }
        let size = Size { longest: 1 + case % 4 };
        let Some((function, checked)) = find(rules, rule, side, size, seed + case as u64, &mut random) else {
            // Nothing small fits, or nothing at all.
            if size.longest == 4 || cases < 4 {
                missed.push(side);
            }
            continue;
        };
        outcome.cases += 1;
        match checked {
            Checked::Agrees { rational, prices } => {
                outcome.rational += usize::from(rational);
                outcome.price = wider(outcome.price, prices.alone);
                outcome.shared_price = wider(outcome.shared_price, prices.shared);
                let size = |l: &Loss| l.function.body.as_ref().len();
                if let Some(loss) = prices.loss
                    && outcome.loss.as_ref().is_none_or(|l| size(&loss) < size(l))
                {
                    outcome.loss = Some(loss);
                }
            }
            Checked::Fails(reason) => {
                let seed = seed + case as u64;
                let failure = Failure { reason, function, seed };
                outcome.failure = Some(shrink(rules, rule, lhs.len(), failure, &mut random));
                return outcome;
            }
            Checked::Silent => unreachable!("`find` gives what fired"),
        }
    }
    if outcome.cases == 0 {
        outcome.skipped = Some("no function was found on which it fires".into());
    } else if let Some((least, _)) = outcome.price
        && least > 1.0 + 1e-9
    {
        // Dearer in every case and every regime: nothing would ever choose it.
        let mut random = Random(seed);
        let found =
            (0..lhs.len()).find_map(|side| find(rules, rule, side, Size { longest: 4 }, seed, &mut random));
        if let Some((function, _)) = found {
            let reason = format!(
                "cost law: what it makes is dearer than what it replaces in every case, by {:.2}% at best",
                (least - 1.0) * 100.0
            );
            outcome.failure = Some(Failure { reason, function, seed });
        }
    }
    outcome
}

/// A function of this left side on which the rule fires, checked.
fn find(
    rules: &RuleSet,
    rule: &Rule,
    side: usize,
    size: Size,
    seed: u64,
    random: &mut Random,
) -> Option<(Function, Checked)> {
    for _ in 0..ATTEMPTS {
        let Some(function) = instance::attempt(rule, side, size, random) else { continue };
        match check_function(rules, rule, &function, seed) {
            Checked::Silent => {}
            checked => return Some((function, checked)),
        }
    }
    None
}

/// What became of one function.
enum Checked {
    /// The rule does not fire on it, or it has no value.
    Silent,
    Agrees {
        rational: bool,
        prices: Prices,
    },
    Fails(String),
}

fn alone(rules: &RuleSet, rule: &Rule, function: &Function) -> Result<Saturated, Error> {
    let limits = Limits { iterations: 6, nodes: 4000 };
    saturate(function, rules, &|r| r.name == rule.name, limits)
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

fn check_function(rules: &RuleSet, rule: &Rule, function: &Function, seed: u64) -> Checked {
    let saturated = match alone(rules, rule, function) {
        Ok(saturated) => saturated,
        Err(error) => return Checked::Fails(format!("typed merge: {error}")),
    };
    if saturated.report.fired.is_empty() {
        return Checked::Silent;
    }
    match differences(&saturated, rule, seed) {
        Ok(true) => {}
        Ok(false) => return Checked::Silent,
        Err(Difference(reason)) => return Checked::Fails(reason),
    }
    let rational = match rational_forms(&saturated, rule, seed) {
        Ok(rational) => rational,
        Err(Difference(reason)) => return Checked::Fails(reason),
    };
    match prices(rules, rule, &saturated) {
        Ok(prices) => Checked::Agrees { rational, prices },
        Err(reason) => Checked::Fails(reason),
    }
}

/// Holds every form that a rule made on a function against the interpreter; `false` if the function has no value.
///
/// # Errors
/// The first difference.
pub fn differences(saturated: &Saturated, rule: &Rule, seed: u64) -> Result<bool, Difference> {
    let flat = flatten(saturated);
    let new = new_forms(&flat, saturated);
    let source = &saturated.source;
    let (exact, tolerance) = (rule.class == Class::Exact, tolerance(rule));
    let indices: Vec<Id> = source
        .body
        .as_ref()
        .iter()
        .filter_map(|op| match op {
            Op::Argmax([x, _]) => Some(*x),
            _ => None,
        })
        .collect();
    for extent in EXTENTS {
        for values in [Values::Ordinary, Values::Edge] {
            let inputs = draw(source, extent, seed, values);
            let precisions: &[(Precision, f64)] = match (exact, values) {
                (true, _) => &[(Precision::F32, 0.0), (Precision::F64, 1e-12)],
                (false, _) => &[(Precision::F64, 0.0)],
            };
            for &(precision, bound) in precisions {
                let Ok(expected) = evaluate(source, &inputs, extent, precision) else { return Ok(false) };
                let bound = if exact { bound } else { tolerance };
                // Of two values that round to the same, a rule that reassociates may take either's index.
                if !exact && indices.iter().any(|&x| has_ties(source, x, &inputs, extent)) {
                    continue;
                }
                let judge = |found: &Tensor, expected: &Tensor| match values {
                    Values::Ordinary => compare(found, expected, bound),
                    Values::Edge if !exact && !expected.dtype.is_float() => Ok(()),
                    Values::Edge if exact => compare_where(found, expected, bound, |_, b| b.is_finite()),
                    Values::Edge => compare_where(found, expected, bound, |at, b| {
                        // No real number has overflowed to NaN: a row that has one was lost as it was written.
                        let row = at / expected.shape.last().copied().unwrap_or(1).max(1);
                        let width = expected.shape.last().copied().unwrap_or(1);
                        b.is_finite()
                            && !expected.data[row * width..(row + 1) * width].iter().any(|x| x.is_nan())
                    }),
                };
                let named = |Difference(reason): Difference| {
                    let kind = if values == Values::Edge { "edge" } else { "ordinary" };
                    Difference(format!("{} rule, {kind} values: {reason}", rule.class))
                };
                check_outputs(&flat, &new, &expected, &inputs, extent, precision, &judge).map_err(named)?;
                if values == Values::Ordinary {
                    check_call(&flat, &inputs, extent, precision, &judge).map_err(named)?;
                }
            }
        }
    }
    Ok(true)
}

/// Whether two elements of a node are nearly equal.
fn has_ties(function: &Function, id: Id, inputs: &[Tensor], extent: Extent) -> bool {
    let Ok(all) = evaluate_all(function, inputs, extent, Precision::F64) else { return false };
    let Value::Tensor(x) = &all[usize::from(id)] else { return false };
    let mut sorted = x.data.clone();
    sorted.sort_by(f64::total_cmp);
    sorted.windows(2).any(|w| forms::near(w[0], w[1], 1e-9))
}

/// The same over rational numbers, exactly; `false` where that proves nothing: some operator is beyond them, or the sides
/// would agree by a law of a function that is unknown there.
fn rational_forms(saturated: &Saturated, rule: &Rule, seed: u64) -> Result<bool, Difference> {
    let flat = flatten(saturated);
    let new = new_forms(&flat, saturated);
    let source = &saturated.source;
    // Constants that need only be near others are rounded, and an approximation is off by as much as its bound.
    let share = if tolerance(rule) > 1e-9 { tolerance(rule) } else { 0.0 };
    let mut proved = false;
    for extent in EXTENTS {
        let inputs = rational::inputs(source, extent, seed);
        for &(at, id) in &new {
            let written = source.outputs[at].1;
            let unknown =
                rational::transcendental(source, written) || rational::transcendental(&flat.function, id);
            // Rounded arguments of an unknown function give unrelated values.
            if unknown && share > 0.0 {
                return Ok(false);
            }
            let (Some(expected), Some(found)) = (
                rational::evaluate(source, written, &inputs, extent),
                rational::evaluate(&flat.function, id, &inputs, extent),
            ) else {
                return Ok(proved);
            };
            match rational::differ(&expected, &found, share) {
                None => proved = true,
                Some(_) if unknown => return Ok(false),
                Some((at, e, f)) => {
                    return Err(Difference(format!(
                        "exact rational evaluation: element {at} is {f}, expected {e}, in a call of {} rows and {} keys",
                        extent.rows, extent.keys
                    )));
                }
            }
        }
    }
    Ok(proved)
}

/// Looks for the smallest function that fails.
fn shrink(rules: &RuleSet, rule: &Rule, sides: usize, first: Failure, random: &mut Random) -> Failure {
    let weight = |f: &Function| {
        let elements: usize = f.inputs.iter().map(|i| i.ty.elements(Extent { rows: 2, keys: 2 })).sum();
        (f.body.as_ref().len(), elements)
    };
    let mut best = first;
    for step in 0..SHRINKING {
        let size = Size { longest: if step < SHRINKING / 2 { 1 } else { 2 } };
        for side in 0..sides {
            let Some(function) = (0..20).find_map(|_| instance::attempt(rule, side, size, random)) else {
                continue;
            };
            if weight(&function) >= weight(&best.function) {
                continue;
            }
            for seed in 0..4 {
                if let Checked::Fails(reason) = check_function(rules, rule, &function, seed) {
                    best = Failure { reason, function, seed };
                    break;
                }
            }
        }
    }
    best
}
