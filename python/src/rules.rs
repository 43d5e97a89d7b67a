//! Rules of one's own, beside the built-in ones.

use std::sync::Arc;

use lapidary::RuleSet;
use lapidary::passes::check::check_rule;
use lapidary::passes::rules::{USER, text};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::usage;

/// The built-in rules and a text's, in the group `user`.
#[pyclass(frozen, module = "lapidary._lapidary")]
pub(crate) struct Rules {
    pub(crate) rules: Arc<RuleSet>,
}

#[pymethods]
impl Rules {
    /// Parses rules; `name` is what errors call the text.
    #[new]
    fn new(source: &str, name: &str) -> PyResult<Rules> {
        let rules = text::parse_placed(source)
            .map_err(|error| usage(format!("{name}: {error}\n{}", error.excerpt())))?;
        if rules.is_empty() {
            return Err(usage(format!("{name}: expected a rule, found none")));
        }
        Ok(Rules { rules: Arc::new(RuleSet::with_file(name, rules)) })
    }

    /// The built-in rules alone.
    #[staticmethod]
    fn builtin() -> Rules {
        Rules { rules: Arc::clone(RuleSet::builtin()) }
    }

    /// The names of the text's rules.
    #[getter]
    fn names(&self) -> Vec<&str> {
        self.own().map(|(_, name)| name).collect()
    }

    /// The text's rules, as a rule file has them.
    fn __str__(&self) -> String {
        let own = self.rules.prepared().iter().filter(|p| p.group == USER);
        own.map(|p| p.rule.to_string()).collect::<Vec<_>>().join("\n")
    }

    /// Every rule: its name, group, class and algebra.
    fn all(&self) -> Vec<(String, String, String, String)> {
        let row = |group: &str, rule: &lapidary::passes::Rule| {
            (rule.name.clone(), group.to_string(), rule.class.to_string(), rule.algebra.clone())
        };
        self.rules.prepared().iter().map(|p| row(&p.group, &p.rule)).collect()
    }

    /// Holds each of the text's rules against the reference interpreter, on `cases` functions made for it.
    fn check<'py>(&self, py: Python<'py>, cases: usize, seed: u64) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let mut rows = Vec::new();
        for (group, name) in self.own() {
            let Some(rule) = self.rules.find(name) else { unreachable!("a rule of group {group}") };
            let outcome = py.detach(|| check_rule(&self.rules, rule, cases, seed));
            py.check_signals()?;
            let row = PyDict::new(py);
            row.set_item("rule", &outcome.rule)?;
            row.set_item("class", outcome.class.to_string())?;
            row.set_item("place", self.rules.place(name))?;
            row.set_item("cases", outcome.cases)?;
            row.set_item("verdict", outcome.verdict().word())?;
            let reason = outcome.failure.as_ref().map(|f| f.reason.clone()).or(outcome.skipped.clone());
            row.set_item("reason", reason)?;
            row.set_item("counterexample", outcome.failure.as_ref().map(|f| f.function.to_string()))?;
            rows.push(row);
        }
        Ok(rows)
    }
}

impl Rules {
    fn own(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = self.rules.prepared().iter().filter(|p| p.group == USER);
        own.map(|p| (p.group.as_str(), p.rule.name.as_str()))
    }
}
