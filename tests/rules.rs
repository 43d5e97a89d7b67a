//! The law of rules, held to by every rule of the table.
//!
//! `filetests/rules/<rule>.ir` has functions on which the rule fires, one for each left side as the rule spells it, and
//! functions named `.._not` on which it must not. A comment `; needs: a, b` names rules that run before it, `;
//! tolerance: x` a relative bound in place of the class's own.
//!
//! Extraction picks the cheapest form, which may hide what a rule made. So the whole e-graph is checked: every node of
//! every class is evaluated over one value for each of its operands' classes, and must give its class's value.
//!
//! `extraction` holds what extraction chooses against trees, and against all forms of small graphs.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use egg::Searcher;
use lapidary::Graph;
use lapidary_ir::interp::{Precision, evaluate};
use lapidary_ir::{DType, Extent, Function, text};
use lapidary_models::{Config, Model};
use lapidary_passes::check::forms::{check_graph, compare, flatten};
use lapidary_passes::check::values;
use lapidary_passes::rules::{self, Class, Rule, Search};
use lapidary_passes::{
    Error, Limits, Machine, Report, RuleSet, Saturated, Selection, StopReason, prepare, saturate, select,
};
use lapidary_tests::exact;
use proptest::prelude::*;

#[path = "rules/extraction.rs"]
mod extraction;
#[path = "generate/functions.rs"]
mod functions;
#[path = "generate/oracle.rs"]
mod oracle;

/// Rows and keys of the calls: one row, a few, all of the keys.
const EXTENTS: [Extent; 5] = [
    Extent { rows: 1, keys: 1 },
    Extent { rows: 1, keys: 6 },
    Extent { rows: 3, keys: 3 },
    Extent { rows: 3, keys: 8 },
    Extent { rows: 7, keys: 11 },
];

/// Calls that extraction is asked for: decoding and prefill.
const REGIMES: [Extent; 2] = [Extent { rows: 1, keys: 512 }, Extent { rows: 512, keys: 512 }];

/// What a rule's filetest holds.
struct Filetest {
    needs: Vec<String>,
    tolerance: f64,
    fires: Vec<Function>,
    must_not: Vec<Function>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests").join("rules")
}

fn read(rule: &Rule) -> Result<Filetest> {
    let path = folder().join(format!("{}.ir", rule.name));
    let source = std::fs::read_to_string(&path)
        .with_context(|| format!("rule `{}` has no filetest filetests/rules/{0}.ir", rule.name))?;
    let header = |key: &str| source.lines().find_map(|l| l.strip_prefix("; ")?.strip_prefix(key));
    let needs = header("needs: ").map(|n| n.split(", ").map(str::to_owned).collect()).unwrap_or_default();
    let tolerance = match header("tolerance: ") {
        Some(stated) => stated.split(',').next().unwrap_or_default().parse()?,
        None => tolerance(rule.class),
    };
    let (must_not, fires) =
        text::parse_module(&source)?.functions.into_iter().partition(|f| f.name.ends_with("_not"));
    Ok(Filetest { needs, tolerance, fires, must_not })
}

/// The relative difference that a class allows where nothing is rounded to f32.
fn tolerance(class: Class) -> f64 {
    match class {
        Class::Exact => 1e-12,
        Class::Reassociating => 1e-9,
        Class::Approximate(bound) => bound.into(),
    }
}

/// Runs a check on every rule's filetest; all that fail are named.
fn for_each_rule(check: impl Fn(&'static Rule, &Filetest) -> Result<()>) {
    let mut failures = String::new();
    for rule in rules::all() {
        if let Err(error) = read(rule).and_then(|test| check(rule, &test)) {
            writeln!(failures, "{}: {error:#}", rule.name).unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// A function saturated with one rule and those that it needs.
fn saturated(function: &Function, rule: &Rule, test: &Filetest) -> Result<Saturated> {
    let enabled = |r: &Rule| r.name == rule.name || test.needs.contains(&r.name);
    let saturated = saturate(function, RuleSet::builtin(), &enabled, Limits::default())?;
    ensure!(saturated.report.warning().is_none(), "`{}`: {:?}", function.name, saturated.report);
    Ok(saturated)
}

fn fired(saturated: &Saturated, rule: &str) -> bool {
    saturated.report.fired.iter().any(|(name, _)| name == rule)
}

/// Every form that the passes choose gives what the function gives.
fn check_extracted(saturated: &Saturated, tolerance: f64) -> Result<()> {
    for regime in REGIMES {
        let chosen = select(saturated, Machine::GENERIC, regime)?.function;
        for (seed, extent) in (1..).zip(EXTENTS) {
            let inputs = values::inputs(&saturated.source, extent, seed);
            let expected = evaluate(&saturated.source, &inputs, extent, Precision::F64)?;
            let found = evaluate(&chosen, &inputs, extent, Precision::F64)?;
            for ((name, _), (found, expected)) in chosen.outputs.iter().zip(found.iter().zip(&expected)) {
                compare(found, expected, tolerance)
                    .with_context(|| format!("output `{name}` in a call of {extent:?} of\n{chosen}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn filetests_are_of_rules() {
    let names: BTreeSet<String> = rules::all().map(|r| format!("{}.ir", r.name)).collect();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&file), "filetests/rules/{file} is of no rule");
    }
    let with_twins = rules::all().filter(|r| read(r).is_ok_and(|t| !t.must_not.is_empty())).count();
    assert!(
        2 * with_twins >= names.len(),
        "{with_twins} of {} rules have a function that they must not touch",
        names.len()
    );
}

#[test]
fn every_rule_fires() {
    for_each_rule(|rule, test| {
        ensure!(!test.fires.is_empty(), "no function on which it fires");
        let mut needed = BTreeSet::new();
        for function in &test.fires {
            let saturated = saturated(function, rule, test)?;
            ensure!(fired(&saturated, &rule.name), "does not fire on\n{function}");
            ensure!(
                saturated.report.stop == lapidary_passes::StopReason::Saturated,
                "{:?}",
                saturated.report
            );
            needed.extend(test.needs.iter().filter(|n| fired(&saturated, n)));
        }
        for need in &test.needs {
            ensure!(rules::find(need).is_some(), "needs `{need}`, which is no rule");
            ensure!(needed.contains(need), "needs `{need}`, which does not fire");
        }
        Ok(())
    });
}

#[test]
fn every_left_side_is_tried() {
    for_each_rule(|rule, test| {
        let Search::Patterns { lhs, .. } = &rule.search else { return Ok(()) };
        let graphs = test.fires.iter().map(|f| saturated(f, rule, test)).collect::<Result<Vec<_>>>()?;
        for pattern in lhs {
            let search = pattern.pattern();
            ensure!(graphs.iter().any(|g| !search.search(&g.graph).is_empty()), "no function has {pattern}");
        }
        Ok(())
    });
}

#[test]
fn rules_spare_what_is_not_theirs() {
    for_each_rule(|rule, test| {
        for function in &test.must_not {
            lapidary_ir::verify::verify(function)?;
            ensure!(!fired(&saturated(function, rule, test)?, &rule.name), "fires on\n{function}");
            // Nor do all rules together get it wrong.
            let all = prepare(function, &Selection::all(), Limits::default())?;
            check_graph(&flatten(&all), &EXTENTS, Precision::F64, 1e-6)?;
        }
        Ok(())
    });
}

#[test]
fn rules_keep_values() {
    for_each_rule(|rule, test| {
        for function in &test.fires {
            let saturated = saturated(function, rule, test)?;
            let flat = flatten(&saturated);
            ensure!(!flat.pairs.is_empty(), "`{}`: no class has two forms", function.name);
            check_graph(&flat, &EXTENTS, Precision::F64, test.tolerance)?;
            check_extracted(&saturated, test.tolerance)?;
            // Bit for bit, unless rules that reassociate ran too.
            if rule.class == Class::Exact && test.needs.is_empty() {
                check_graph(&flat, &EXTENTS, Precision::F32, 0.0)?;
            }
        }
        Ok(())
    });
}

#[test]
fn all_rules_together_keep_values() {
    for_each_rule(|_, test| {
        for function in &test.fires {
            let all = prepare(function, &Selection::all(), Limits::default())?;
            check_graph(&flatten(&all), &EXTENTS, Precision::F64, test.tolerance.max(1e-9))?;
            check_extracted(&all, test.tolerance.max(1e-9))?;
        }
        Ok(())
    });
}

#[test]
fn disabled_rules_do_not_fire() {
    for_each_rule(|rule, test| {
        let without = Selection::new("all", std::slice::from_ref(&rule.name))?;
        for function in &test.fires {
            let saturated = prepare(function, &without, Limits::default())?;
            ensure!(!fired(&saturated, &rule.name), "fires on\n{function}");
            check_extracted(&saturated, test.tolerance.max(1e-9))?;
        }
        Ok(())
    });
    assert!(Selection::new("all", &["no-such-rule".to_owned()]).is_err());
    assert!(Selection::new("no-such-group", &[]).is_err());
}

/// The tiny model's functions, with a short vocabulary and a window that a few keys exceed.
fn tiny() -> Vec<Function> {
    let model = Model::built_in().unwrap();
    let config = Config { vocab_size: 32, sliding_window: 4, ..model.config };
    Graph::of(&config, &exact(), &|_| DType::BF16).unwrap().module.functions
}

/// The rounds of a report add up to its totals.
fn check_rounds(report: &Report) {
    assert_eq!(report.rounds.len(), report.iterations);
    let last = report.rounds.last().unwrap();
    assert_eq!((last.nodes, last.classes), (report.nodes, report.classes));
    assert!(last.fired.is_empty() || report.stop != StopReason::Saturated);
    for (rule, total) in &report.fired {
        let rounds = report.rounds.iter().flat_map(|r| &r.fired);
        assert_eq!(rounds.filter(|(r, _)| r == rule).map(|(_, n)| n).sum::<usize>(), *total, "{rule}");
    }
}

#[test]
fn tiny_model_keeps_values() {
    for function in tiny() {
        let saturated = prepare(&function, &Selection::all(), Limits::default()).unwrap();
        assert_eq!(saturated.report.warning(), None);
        check_rounds(&saturated.report);
        let extents = [Extent { rows: 1, keys: 6 }, Extent { rows: 3, keys: 8 }];
        // The constants of GELU are of f32.
        check_graph(&flatten(&saturated), &extents, Precision::F64, 1e-6).unwrap();
        check_extracted(&saturated, 1e-6).unwrap();
    }
}

#[test]
fn saturation_and_extraction_are_deterministic() {
    for function in tiny() {
        let [first, second] = [(); 2].map(|()| {
            let saturated = prepare(&function, &Selection::all(), Limits::default()).unwrap();
            let texts =
                REGIMES.map(|r| select(&saturated, Machine::GENERIC, r).unwrap().function.to_string());
            (saturated.report.fired, saturated.report.nodes, texts)
        });
        assert_eq!(first, second, "{}", function.name);
    }
}

#[test]
fn limits_are_told_and_keep_values() {
    let few_nodes = Limits { nodes: 150, ..Limits::default() };
    let few_rounds = Limits { iterations: 1, ..Limits::default() };
    for (limits, name) in [(few_nodes, "node limit"), (few_rounds, "iteration limit")] {
        let function = tiny().into_iter().find(|f| f.name == "layer_local").unwrap();
        let saturated = prepare(&function, &Selection::all(), limits).unwrap();
        let warning = saturated.report.warning().unwrap();
        assert!(warning.contains(name) && warning.contains("layer_local"), "{warning}");
        check_rounds(&saturated.report);
        check_extracted(&saturated, 1e-6).unwrap();
    }
}

#[test]
fn unsound_merges_are_caught() {
    let source = "function f(%x: f32[T,8] rows, %w: f32[8] weight) { return y=(add %x %w), z=(tanh %w) }";
    let function = &text::parse_module(source).unwrap().functions[0];
    let saturated = saturate(function, RuleSet::builtin(), &|_| false, Limits::default()).unwrap();
    let mut graph = saturated.graph;
    assert_eq!(graph.analysis.error, None);
    graph.union(saturated.outputs[0].1, saturated.outputs[1].1);
    graph.rebuild();
    assert_eq!(graph.analysis.error.as_deref(), Some("merges f32[T,8] with f32[8]"));

    // A merge of one type but two values: what a wrong rule would do.
    let source = "function f(%x: f32[T,8] rows) { return y=(tanh %x), z=(neg %x) }";
    let function = &text::parse_module(source).unwrap().functions[0];
    let mut saturated = saturate(function, RuleSet::builtin(), &|_| false, Limits::default()).unwrap();
    check_graph(&flatten(&saturated), &EXTENTS, Precision::F64, 0.0).unwrap();
    saturated.graph.union(saturated.outputs[0].1, saturated.outputs[1].1);
    saturated.graph.rebuild();
    let error = check_graph(&flatten(&saturated), &EXTENTS, Precision::F64, 1e-3).unwrap_err().to_string();
    assert!(error.contains("(neg %x)") && error.contains("(tanh %x)"), "{error}");

    let ill_typed = "function f(%x: f32[T,8] rows, %i: i32[T] rows) { return y=(add %x %i) }";
    let function = &text::parse_module(ill_typed).unwrap().functions[0];
    match saturate(function, RuleSet::builtin(), &|_| true, Limits::default()).map(|s| s.report) {
        Err(Error::Unsound { function, reason, .. }) => {
            assert_eq!(function, "f");
            assert!(reason.contains("add f32[T,8] i32[T]"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_functions_keep_values(choices in prop::collection::vec(any::<functions::Choice>(), 1..8)) {
        let function = functions::function(&choices);
        let saturated = prepare(&function, &Selection::all(), Limits::default()).unwrap();
        check_graph(&flatten(&saturated), &EXTENTS[3..], Precision::F64, 1e-6).unwrap();
        check_extracted(&saturated, 1e-6).unwrap();
    }
}
