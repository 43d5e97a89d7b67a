//! Lapidary's fusion passes: a function of primitives in, the cheapest fused form out.
//!
//! The pipeline is straight, and [`PIPELINE`] lists it. Rules are rows of tables ([`rules`]), their conditions read
//! e-class data ([`analysis`]), and what they make is chosen by price ([`cost`], [`mod@extract`]). Saturation happens once a
//! function; extraction once a row regime, for prices depend on the number of rows.
//!
//! | module | holds |
//! |---|---|
//! | [`rules`] | the rewrite rules, as data |
//! | [`analysis`] | types, value ranges and leaves of e-classes |
//! | [`range`] | intervals |
//! | [`mod@saturate`] | equality saturation, with its limits and report |
//! | [`cost`] | what a kernel costs on a machine |
//! | [`mod@extract`] | the cheapest term, sharing counted |

#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use lapidary_ir::{Extent, Function, verify};

pub mod analysis;
pub mod cost;
pub mod extract;
pub mod range;
pub mod rules;
pub mod saturate;

pub use cost::{CostModel, Machine};
pub use extract::{Extracted, extract};
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
    #[error("function `{function}`: rule `{rule}` is unsound: {reason}")]
    Unsound {
        /// The function's name.
        function: String,
        /// The rule's name.
        rule: String,
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

/// Which rules run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Groups that run; `None` for all.
    groups: Option<BTreeSet<String>>,
    /// Rules that do not.
    disabled: BTreeSet<String>,
}

impl Selection {
    /// Every rule.
    pub fn all() -> Selection {
        Selection::default()
    }

    /// No rule: the graph is compiled as written.
    pub fn none() -> Selection {
        Selection { groups: Some(BTreeSet::new()), disabled: BTreeSet::new() }
    }

    /// `passes` is `all`, `none` or group names separated by commas; `disabled` are rule names.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that is neither.
    pub fn new(passes: &str, disabled: &[String]) -> Result<Selection, Error> {
        let groups = match passes {
            "all" => None,
            "none" => Some(BTreeSet::new()),
            names => Some(names.split(',').map(|n| known("pass", n.trim())).collect::<Result<_, _>>()?),
        };
        let disabled = disabled.iter().map(|n| known("rule", n)).collect::<Result<_, _>>()?;
        Ok(Selection { groups, disabled })
    }

    /// Whether a rule of a group runs.
    pub fn admits(&self, group: &str, rule: &str) -> bool {
        self.groups.as_ref().is_none_or(|g| g.contains(group)) && !self.disabled.contains(rule)
    }
}

fn known(what: &'static str, name: &str) -> Result<String, Error> {
    let names: Vec<&str> = match what {
        "rule" => rules::all().map(|r| r.name).collect(),
        _ => rules::GROUPS.iter().map(|g| g.name).collect(),
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
    saturate(
        function,
        &|rule| {
            rules::GROUPS
                .iter()
                .any(|g| g.rules.iter().any(|r| r.name == rule.name) && selection.admits(g.name, rule.name))
        },
        limits,
    )
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
