//! The check of rules: each against the reference interpreter, on functions made for it.
//!
//! In: rules, a number of cases. Out: for each rule what was tried, and a small counterexample if it is unsound. A case
//! is a function on which a left side matches ([`instance`]); the rule alone saturates it; every form that it made is
//! evaluated on ordinary, edge and large values ([`values`], [`forms`], `hold`) and, where its operators are
//! arithmetic, exactly over rational numbers ([`mod@rational`]); merges are typed; and extraction never chooses what is
//! dearer. A rule that is true and never pays is told apart from one that is not true ([`Verdict`]).

pub mod forms;
mod hold;
pub mod instance;
mod price;
pub mod rational;
pub mod values;

use std::collections::HashMap;

use lapidary_ir::{Extent, Function};

use crate::rules::{Class, Rule, RuleSet};
use crate::why_not::why_not;
use crate::{Error, Limits, Saturated, saturate};
use forms::{Difference, flatten, new_forms};
pub use hold::{Counter, differences, tolerance};
use instance::{Size, sides};
pub use price::Loss;
use price::{Prices, prices, smaller, wider};
use values::Random;

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
    /// Of a rule that never pays, the smallest function.
    pub dear: Option<Loss>,
    /// Why it was not checked, if it was not.
    pub skipped: Option<String>,
    /// What is wrong.
    pub failure: Option<Failure>,
}

/// What the check of a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was found against it.
    Sound,
    /// As sound, but what it makes is dearer than what it replaces wherever it fires: by itself nothing would choose
    /// it.
    DoesNotPay,
    /// Nothing was tried.
    NotChecked,
    /// It breaks a law.
    Fails(Fault),
}

impl Verdict {
    /// In a word or three.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Sound => "sound",
            Verdict::DoesNotPay => "sound, does not pay",
            Verdict::NotChecked => "not checked",
            Verdict::Fails(Fault::Value) => "UNSOUND",
            Verdict::Fails(Fault::Types) => "ILL-TYPED",
            Verdict::Fails(Fault::Overflow) => "OVERFLOWS",
            Verdict::Fails(Fault::Price) => "MISPRICED",
        }
    }
}

/// The law that a counterexample breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both sides have the same value.
    Value,
    /// Both sides have one type, and what is made has one at all.
    Types,
    /// What is made is finite where what was written is.
    Overflow,
    /// Extraction chooses nothing dearer than what was written.
    Price,
}

impl Outcome {
    /// What it says.
    pub fn verdict(&self) -> Verdict {
        match (&self.failure, &self.skipped, &self.dear) {
            (Some(failure), ..) => Verdict::Fails(failure.fault),
            (None, Some(_), _) => Verdict::NotChecked,
            (None, None, Some(_)) => Verdict::DoesNotPay,
            (None, None, None) => Verdict::Sound,
        }
    }
}

/// A counterexample.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The law.
    pub fault: Fault,
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
        dear: None,
        skipped: None,
        failure: None,
    };
    let sides = sides(rule);
    let mut dear = None;
    let mut missing = Missing::default();
    let mut random = Random(seed ^ 0x6c61_7069_6461_7279);
    let mut missed = vec![];
    for case in 0..cases.max(sides) {
        let side = case % sides;
        if missed.contains(&side) {
            continue;
        }
        let size = Size { longest: 1 + case % 4 };
        let Some((function, checked)) =
            find(rules, rule, side, size, seed + case as u64, &mut random, &mut missing)
        else {
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
                outcome.loss = smaller(outcome.loss, prices.loss);
                dear = smaller(dear, prices.dear);
            }
            Checked::Fails(Counter { fault, reason }) => {
                let seed = seed + case as u64;
                let failure = Failure { fault, reason, function, seed };
                outcome.failure = Some(shrink(rules, rule, sides, failure, &mut random));
                return outcome;
            }
            Checked::Silent => unreachable!("`find` gives what fired"),
        }
    }
    if outcome.cases == 0 {
        outcome.skipped = Some(format!("no function was found on which it fires{}", missing.most()));
    } else if outcome.price.is_some_and(|(least, _)| least > 1.0 + 1e-9) {
        // Dearer in every case and every regime: by itself nothing would choose it.
        outcome.dear = dear;
    }
    outcome
}

/// Why attempts came to nothing, and how often.
#[derive(Default)]
struct Missing(HashMap<Reason, usize>);

/// What an attempt came to nothing by.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Reason {
    /// It has no type.
    Type(String),
    /// The rule's condition refused it.
    Condition(String),
}

impl Missing {
    fn note(&mut self, reason: Reason) {
        *self.0.entry(reason).or_default() += 1;
    }

    /// The most frequent, to be added to a sentence; conditions first, for what they refuse came further than what has
    /// no type.
    fn most(&self) -> String {
        let weight = |(reason, n): (&Reason, &usize)| (matches!(reason, Reason::Condition(_)), *n);
        let most = self.0.iter().max_by(|a, b| weight(*a).cmp(&weight(*b)).then(b.0.cmp(a.0)));
        most.map_or_else(String::new, |(Reason::Type(reason) | Reason::Condition(reason), _)| {
            format!("; most often, {reason}")
        })
    }
}

/// Attempts whose condition is asked why it refused.
const ASKED: usize = 40;

/// A function of this left side on which the rule fires, checked.
fn find(
    rules: &RuleSet,
    rule: &Rule,
    side: usize,
    size: Size,
    seed: u64,
    random: &mut Random,
    missing: &mut Missing,
) -> Option<(Function, Checked)> {
    let mut asked = 0;
    for _ in 0..ATTEMPTS {
        let function = match instance::attempt(rule, side, size, random) {
            Ok(function) => function,
            Err(reason) => {
                reason.into_iter().for_each(|r| missing.note(Reason::Type(r)));
                continue;
            }
        };
        match check_function(rules, rule, &function, seed) {
            Checked::Silent if asked < ASKED => {
                asked += 1;
                if let Some(reason) = refusal(rules, rule, &function) {
                    missing.note(Reason::Condition(reason));
                }
            }
            Checked::Silent => {}
            checked @ (Checked::Agrees { .. } | Checked::Fails(_)) => return Some((function, checked)),
        }
    }
    None
}

/// What the rule's condition refuses on a function that its left side matches.
fn refusal(rules: &RuleSet, rule: &Rule, function: &Function) -> Option<String> {
    let prepared = rules.prepared().iter().find(|p| p.rule.name == rule.name)?;
    let mut saturated = saturate(function, rules, &|_| false, Limits::default()).ok()?;
    let refused = why_not(&mut saturated, prepared).refused.into_iter().next()?;
    Some(format!("its condition `{}` fails: {}", refused.predicate, refused.seen))
}

/// What became of one function.
enum Checked {
    /// The rule does not fire on it, or it has no value.
    Silent,
    Agrees {
        rational: bool,
        prices: Box<Prices>,
    },
    Fails(Counter),
}

fn alone(rules: &RuleSet, rule: &Rule, function: &Function) -> Result<Saturated, Error> {
    let limits = Limits { iterations: 6, nodes: 4000 };
    saturate(function, rules, &|r| r.name == rule.name, limits)
}

fn check_function(rules: &RuleSet, rule: &Rule, function: &Function, seed: u64) -> Checked {
    let saturated = match alone(rules, rule, function) {
        Ok(saturated) => saturated,
        Err(error) => {
            let reason = if let Error::Unsound { reason, .. } = error { reason } else { error.to_string() };
            return Checked::Fails(Counter { fault: Fault::Types, reason: format!("typed merge: {reason}") });
        }
    };
    if saturated.report.fired.is_empty() {
        return Checked::Silent;
    }
    match differences(&saturated, rule, seed) {
        Ok(true) => {}
        Ok(false) => return Checked::Silent,
        Err(counter) => return Checked::Fails(counter),
    }
    let rational = match rational_forms(&saturated, rule, seed) {
        Ok(rational) => rational,
        Err(Difference { reason, .. }) => {
            return Checked::Fails(Counter { fault: Fault::Value, reason });
        }
    };
    match prices(rules, rule, &saturated) {
        Ok(prices) => Checked::Agrees { rational, prices: Box::new(prices) },
        Err(reason) => Checked::Fails(Counter { fault: Fault::Price, reason }),
    }
}

/// The same over rational numbers, exactly; `false` where that proves nothing: some operator is beyond them, or the
/// sides would agree by a law of a function that is unknown there.
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
                    return Err(Difference::new(format!(
                        "exact rational evaluation: element {at} is {f}, expected {e}, in a call of {} rows and \
                         {} keys",
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
            let Some(function) = (0..20).find_map(|_| instance::attempt(rule, side, size, random).ok())
            else {
                continue;
            };
            if weight(&function) >= weight(&best.function) {
                continue;
            }
            for seed in 0..4 {
                // A smaller function that breaks another law would tell another story.
                if let Checked::Fails(Counter { fault, reason }) =
                    check_function(rules, rule, &function, seed)
                    && fault == best.fault
                {
                    best = Failure { fault, reason, function, seed };
                    break;
                }
            }
        }
    }
    best
}
