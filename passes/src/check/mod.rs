//! The check of rules: each against the reference interpreter, on functions made for it.
//!
//! In: rules, a number of cases. Out: for each rule what was tried, and a small counterexample if it is unsound. A case is
//! a function on which a left side matches ([`instance`]); the rule alone saturates it; every form that it made is
//! evaluated on ordinary and edge values ([`values`], [`forms`]) and, where its operators are arithmetic, exactly
//! over rational numbers ([`mod@rational`]); merges are typed; and prices must not rise.

pub mod forms;
pub mod instance;
pub mod rational;
pub mod values;

use egg::Id;
use lapidary_ir::interp::{Precision, Tensor, Value, evaluate, evaluate_all};
use lapidary_ir::{Extent, Function, Op};

use crate::rules::{Class, Predicate, Rule, RuleSet, Search};
use crate::{CostModel, Error, Limits, Machine, Saturated, extract, saturate};
use forms::{Difference, check_call, check_outputs, compare, compare_where, flatten, new_forms};
use instance::Size;
use values::{Random, Values, draw};

/// Rows and keys of the calls: one row, a few, all of the keys.
pub const EXTENTS: [Extent; 4] = [
    Extent { rows: 1, keys: 1 },
    Extent { rows: 1, keys: 5 },
    Extent { rows: 3, keys: 3 },
    Extent { rows: 3, keys: 7 },
];

/// Calls that prices are taken for: decoding and prefill.
const REGIMES: [Extent; 2] = [Extent { rows: 1, keys: 512 }, Extent { rows: 512, keys: 512 }];

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

impl Failure {
    /// Nodes of the function, attributes and inputs not counted.
    pub fn nodes(&self) -> usize {
        let body = self.function.body.as_ref();
        body.iter().filter(|op| !egg::Language::is_leaf(*op) && !op.is_attribute()).count()
    }
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
            Checked::Agrees { rational, price, shared_price } => {
                outcome.rational += usize::from(rational);
                outcome.price = wider(outcome.price, price);
                outcome.shared_price = wider(outcome.shared_price, shared_price);
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
                "cost law: what it makes is dearer than what it replaces in every case, {least:.2} times at best"
            );
            outcome.failure = Some(Failure { reason, function, seed });
        }
    }
    outcome
}

/// The least of both and the greatest of both.
fn wider(a: Option<(f64, f64)>, b: Option<(f64, f64)>) -> Option<(f64, f64)> {
    match (a, b) {
        (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
        _ => a.or(b),
    }
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
        price: Option<(f64, f64)>,
        shared_price: Option<(f64, f64)>,
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
        Ok((price, shared_price)) => Checked::Agrees { rational, price, shared_price },
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
                    Values::Edge => compare_where(found, expected, bound, f64::is_finite),
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

/// The same over rational numbers, exactly; `false` where some operator is beyond them.
fn rational_forms(saturated: &Saturated, rule: &Rule, seed: u64) -> Result<bool, Difference> {
    let flat = flatten(saturated);
    let new = new_forms(&flat, saturated);
    // Constants that need only be near others are rounded.
    let share = if tolerance(rule) > 1e-9 { 1e-6 } else { 0.0 };
    let mut proved = false;
    for extent in EXTENTS {
        let inputs = rational::inputs(&saturated.source, extent, seed);
        for &(at, id) in &new {
            let written = saturated.source.outputs[at].1;
            let (Some(expected), Some(found)) = (
                rational::evaluate(&saturated.source, written, &inputs, extent, share == 0.0),
                rational::evaluate(&flat.function, id, &inputs, extent, share == 0.0),
            ) else {
                return Ok(proved);
            };
            proved = true;
            if let Some((at, e, f)) = rational::differ(&expected, &found, share) {
                return Err(Difference(format!(
                    "exact rational evaluation: element {at} is {f}, expected {e}, in a call of {} rows and {} keys",
                    extent.rows, extent.keys
                )));
            }
        }
    }
    Ok(proved)
}

type Prices = (Option<(f64, f64)>, Option<(f64, f64)>);

/// What the rule makes, priced as a share of what it replaces: alone, and where inner values have other users. Extraction
/// must choose the cheaper.
fn prices(rules: &RuleSet, rule: &Rule, saturated: &Saturated) -> Result<Prices, String> {
    let source = &saturated.source;
    let flat = flatten(saturated);
    let new = new_forms(&flat, saturated);
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
    let mut all: Prices = (None, None);
    for extent in REGIMES {
        let (Some(written), Some(shared_written)) =
            (price(source, false, extent), price(&shared, false, extent))
        else {
            return Ok(all);
        };
        for &(at, id) in &new {
            let made = |outputs: &[(String, Id)]| {
                // The flat function's terms include the source's own, by other ids: outputs are added one by one.
                let mut function = Function { outputs: vec![], ..flat.function.clone() };
                function.outputs.push((source.outputs[at].0.clone(), id));
                let mut placed: Vec<Id> = vec![];
                for op in source.body.as_ref() {
                    let op = egg::Language::map_children(op.clone(), |c| placed[usize::from(c)]);
                    let known = function.body.as_ref().iter().position(|o| *o == op);
                    let id = known.map_or_else(|| function.body.add(op), Id::from);
                    placed.push(id);
                }
                let others = outputs.iter().filter(|(name, _)| *name != source.outputs[at].0);
                function.outputs.extend(others.map(|(n, id)| (n.clone(), placed[usize::from(*id)])));
                function
            };
            if let Some(cost) = price(&made(&source.outputs), false, extent) {
                let share = cost / written;
                all.0 = wider(all.0, Some((share, share)));
            }
            if shared.outputs.len() > source.outputs.len()
                && let Some(cost) = price(&made(&shared.outputs), false, extent)
            {
                let share = cost / shared_written;
                all.1 = wider(all.1, Some((share, share)));
            }
        }
        for (function, written) in [(source, written), (&shared, shared_written)] {
            if let Some(chosen) = price(function, true, extent)
                && chosen > written * (1.0 + 1e-9)
            {
                return Err(format!(
                    "cost law: extraction chooses {chosen:.0} ns where {written:.0} ns is there, {} rows",
                    extent.rows
                ));
            }
        }
    }
    Ok(all)
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
