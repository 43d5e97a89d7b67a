//! Lapidary's fusion passes: a function of primitives in, the cheapest fused form out.
//!
//! The pipeline is straight, and [`PIPELINE`] lists it. Rules are rows of tables ([`rules`]), their conditions read
//! e-class data ([`analysis`]), and what they make is chosen by price ([`price`], [`mod@extract`]). Saturation happens
//! once a function; extraction once a row regime, for prices depend on the number of rows.
//!
//! | module | holds |
//! |---|---|
//! | [`rules`] | the rewrite rules, as data |
//! | [`analysis`] | types, value ranges and leaves of e-classes |
//! | [`range`] | intervals |
//! | [`mod@saturate`] | equality saturation, with its limits and report |
//! | [`price`] | what a kernel costs on a machine, predicted or measured |
//! | [`mod@extract`] | the cheapest term, sharing counted |
//! | [`explain`] | how a kernel came about, in steps that replay |
//! | [`listing`] | an e-graph as text and Graphviz |
//! | [`check`] | rules held against the interpreter, counterexamples |
//! | [`weights`] | terms of weights alone, taken out of a function |
//! | [`mod@why_not`] | what kept a rule from firing |
//! | [`mod@what_if`] | what another machine would change |

#![forbid(unsafe_code)]
#![warn(clippy::wildcard_enum_match_arm)]

use std::collections::BTreeSet;
use std::sync::Arc;

use lapidary_ir::{Extent, Function, verify};

pub mod analysis;
pub mod check;
pub mod explain;
pub mod extract;
pub mod listing;
pub mod price;
pub mod range;
pub mod rules;
pub mod saturate;
pub mod weights;
pub mod what_if;
pub mod why_not;

pub use extract::{Extracted, extract};
pub use price::{CostModel, Machine, Objective};
pub use rules::{Rule, RuleSet};
pub use saturate::{Limits, Report, Round, Saturated, StopReason, saturate};

/// The pipeline, in order: what each stage does to a function.
pub const PIPELINE: &[(&str, &str)] = &[
    ("verify", "every invariant of the graph"),
    ("saturate", "every form that the rules reach, in one e-graph"),
    ("extract", "the cheapest form, for each row regime"),
    ("verify", "every invariant of the result"),
];

/// An error of a pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule built an ill-typed node or merged classes of different types.
    #[error("function `{function}`: rule `{rule}`{} is unsound: {reason}",
        place.as_ref().map(|p| format!(" ({p})")).unwrap_or_default())]
    Unsound {
        /// The function's name.
        function: String,
        /// The rule's name.
        rule: String,
        /// The file and the line of the rule, if it came from a file.
        place: Option<String>,
        /// The node or merge, in words.
        reason: String,
    },
    /// A rule or group that does not exist.
    #[error("unknown {what} `{name}`: expected one of {known}")]
    Unknown {
        /// `rule` or `pass`.
        what: &'static str,
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A broken graph.
    #[error(transparent)]
    Graph(#[from] lapidary_ir::Error),
}

/// Which rules there are, and which of them run.
#[derive(Clone, Debug)]
pub struct Selection {
    rules: Arc<RuleSet>,
    /// Groups that run; `None` for all.
    groups: Option<BTreeSet<String>>,
    /// Rules that do not.
    disabled: BTreeSet<String>,
    /// The only rules that do; `None` for all.
    only: Option<BTreeSet<String>>,
}

impl Default for Selection {
    fn default() -> Selection {
        Selection {
            rules: Arc::clone(RuleSet::builtin()),
            groups: None,
            disabled: BTreeSet::new(),
            only: None,
        }
    }
}

impl Selection {
    /// Every built-in rule.
    pub fn all() -> Selection {
        Selection::default()
    }

    /// No rule: the graph is compiled as written.
    pub fn none() -> Selection {
        Selection { groups: Some(BTreeSet::new()), ..Selection::default() }
    }

    /// Of the built-in rules; the names are as of [`Selection::of`].
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that is none.
    pub fn new(passes: &str, disabled: &[String]) -> Result<Selection, Error> {
        Selection::of(Arc::clone(RuleSet::builtin()), passes, disabled, &[])
    }

    /// Of these rules. `passes` is `all`, `none` or group names separated by commas; `disabled` are names of rules that
    /// do not run; `only`, unless it is empty, of the only ones that do.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that is neither.
    pub fn of(
        rules: Arc<RuleSet>,
        passes: &str,
        disabled: &[String],
        only: &[String],
    ) -> Result<Selection, Error> {
        let groups = match passes {
            "all" => None,
            "none" => Some(BTreeSet::new()),
            names => {
                Some(names.split(',').map(|n| known(&rules, "pass", n.trim())).collect::<Result<_, _>>()?)
            }
        };
        let names = |names: &[String]| -> Result<BTreeSet<String>, Error> {
            names.iter().map(|n| known(&rules, "rule", n)).collect()
        };
        let (disabled, only) = (names(disabled)?, names(only)?);
        Ok(Selection { only: (!only.is_empty()).then_some(only), groups, disabled, rules })
    }

    /// Every rule, those that do not run included.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// The names of the rules that run, in order.
    pub fn enabled(&self) -> impl Iterator<Item = &str> {
        let prepared = self.rules.prepared().iter();
        prepared.filter(|p| self.admits(&p.group, &p.rule.name)).map(|p| p.rule.name.as_str())
    }

    /// The same rules, of which these run.
    pub fn with_only(&self, names: impl IntoIterator<Item = String>) -> Selection {
        Selection { only: Some(names.into_iter().collect()), ..self.clone() }
    }

    /// The same but for one rule.
    pub fn without(&self, rule: &str) -> Selection {
        let mut other = self.clone();
        other.disabled.insert(rule.into());
        other
    }

    /// Whether a rule of a group runs.
    pub fn admits(&self, group: &str, rule: &str) -> bool {
        self.groups.as_ref().is_none_or(|g| g.contains(group))
            && self.only.as_ref().is_none_or(|o| o.contains(rule))
            && !self.disabled.contains(rule)
    }
}

fn known(rules: &RuleSet, what: &'static str, name: &str) -> Result<String, Error> {
    let names: Vec<&str> = match what {
        "rule" => rules.rules().map(|r| r.name.as_str()).collect(),
        _ => rules.groups().iter().map(|g| g.name.as_str()).collect(),
    };
    if names.contains(&name) {
        return Ok(name.into());
    }
    let prefix = if what == "pass" { "all, none, " } else { "" };
    Err(Error::Unknown { what, name: name.into(), known: format!("{prefix}{}", names.join(", ")) })
}

/// Runs the pipeline's first half: a verified function, saturated by the selected rules.
///
/// # Errors
/// A broken graph or an unsound rule.
pub fn prepare(function: &Function, selection: &Selection, limits: Limits) -> Result<Saturated, Error> {
    verify::verify(function)?;
    let enabled: BTreeSet<&str> = selection.enabled().collect();
    saturate(function, selection.rules(), &|rule| enabled.contains(rule.name.as_str()), limits)
}

/// Runs the pipeline's second half: the cheapest form for calls of this extent, verified.
///
/// # Errors
/// A result that breaks an invariant: a bug of a rule.
pub fn select(saturated: &Saturated, machine: Machine, extent: Extent) -> Result<Extracted, Error> {
    let extracted = extract(saturated, &CostModel { machine, extent });
    verify::verify(&extracted.function)?;
    Ok(extracted)
}
