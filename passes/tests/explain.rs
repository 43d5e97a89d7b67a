//! Explanations replay: each step's patterns, applied to the function before it, give the function after it; and each
//! step keeps what the function computes.
//!
//! Every kernel of every function of the built-in model and of the published sizes, at one row and at many, and every
//! function of the rules' filetests. Functions are printed and parsed back first, so what replays is what is printed.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use lapidary_ir::{DType, Extent, Function, text};
use lapidary_models::{Config, Model, graph};
use lapidary_passes::explain::{Explainer, Explanation, replay};
use lapidary_passes::{CostModel, Limits, Machine, Selection, prepare, select};

/// One function, printed and parsed back.
fn reparsed(function: &Function) -> Function {
    let module = text::parse_module(&function.to_string()).unwrap();
    module.functions.into_iter().next().unwrap()
}

/// Holds a kernel's explanation to what this file says.
fn check(explanation: &Explanation) {
    let what = format!("{}:\n{}", explanation.text, explanation.start);
    assert_eq!(explanation.gap, None, "{what}");
    let mut function = reparsed(&explanation.start);
    for step in &explanation.steps {
        assert_eq!(step.from, text::node(&function, step.at), "{what}");
        function = replay(&function, step).unwrap_or_else(|e| panic!("{e}\n{what}"));
        assert_eq!(function.to_string(), step.function.to_string(), "{}: {what}", step.rule);
        function = reparsed(&step.function);
    }
    assert_eq!(function.to_string(), explanation.end.to_string(), "{what}");
    let operators = explanation.end.to_string();
    let own = explanation.text.split([' ', ')']).next().unwrap();
    assert!(operators.contains(own), "{own} is not in\n{operators}");
}

/// Explains every kernel of a function at both regimes; how many steps that took.
fn check_function(function: &Function, most: usize) -> usize {
    let selection = Selection::all();
    let mut steps = 0;
    for rows in [1, 512] {
        let extent = Extent { rows, keys: 2048 };
        let mut saturated = prepare(function, &selection, Limits::default()).unwrap();
        let extracted = select(&saturated, Machine::GENERIC, extent).unwrap();
        let model = CostModel { machine: Machine::GENERIC, extent };
        let explainer = Explainer::new(&mut saturated, &selection, model);
        for node in explainer.kernels(&extracted) {
            let explanation = explainer.kernel(&extracted, node, most);
            check(&explanation);
            steps += explanation.steps.len();
            for other in &explanation.alternatives {
                assert!(other.extra_nanoseconds > -1e-6 * extracted.nanoseconds, "{}", other.text);
            }
        }
    }
    steps
}

fn functions(config: &Config) -> Vec<Function> {
    let storage = graph::Storage { weight: &|_| DType::BF16, cache: DType::BF16 };
    graph::module(config, &storage).functions
}

#[test]
fn every_kernel_of_the_tiny_model_replays() {
    let model = Model::built_in().unwrap();
    for function in functions(&model.config) {
        assert!(check_function(&function, 4) > 0, "{}", function.name);
    }
}

#[test]
fn every_kernel_of_the_published_sizes_replays() {
    for name in ["2b", "9b", "27b"] {
        for function in functions(&Config::preset(name).unwrap()) {
            assert!(check_function(&function, 0) > 0, "{name} {}", function.name);
        }
    }
}

#[test]
fn every_filetest_of_a_rule_replays() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests/rules");
    let mut steps = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "ir") {
            for function in text::parse_module(&std::fs::read_to_string(&path).unwrap()).unwrap().functions {
                steps += check_function(&function, 2);
            }
        }
    }
    assert!(steps > 100, "{steps}");
}

#[test]
fn the_attention_of_a_local_layer_names_its_rules_in_order() {
    let function = functions(&Config::preset("2b").unwrap());
    let function = function.iter().find(|f| f.name == "layer_local").unwrap();
    let selection = Selection::all();
    let extent = Extent { rows: 1, keys: 4096 };
    let mut saturated = prepare(function, &selection, Limits::default()).unwrap();
    let extracted = select(&saturated, Machine::GENERIC, extent).unwrap();
    let explainer =
        Explainer::new(&mut saturated, &selection, CostModel { machine: Machine::GENERIC, extent });
    let explanations: Vec<_> =
        explainer.kernels(&extracted).into_iter().map(|n| explainer.kernel(&extracted, n, 3)).collect();
    let attention = explanations.iter().find(|e| e.text.starts_with("(attention")).unwrap();
    check(attention);
    let rules: Vec<&str> = attention.steps.iter().map(|s| s.rule.as_str()).collect();
    for rule in ["scores-scale", "scores-softcap", "window-mask", "gqa", "softmax-bounded"] {
        assert!(rules.contains(&rule), "{rule} is not in {rules:?}");
    }
    // No step is idle: without it, a later one does not apply or the end is another.
    for (skipped, idle) in rules.iter().enumerate() {
        let mut function = attention.start.clone();
        let rest = attention.steps.iter().enumerate().filter(|(at, _)| *at != skipped);
        let went = rest.map(|(_, step)| step).all(|step| match replay(&function, step) {
            Ok(after) => {
                function = after;
                true
            }
            Err(_) => false,
        });
        assert!(!went || function.to_string() != attention.end.to_string(), "{idle} is idle");
    }
    assert!(!attention.alternatives.is_empty());
    assert!(attention.alternatives[0].extra_nanoseconds > 0.0);
}

#[test]
fn a_forged_step_does_not_replay() {
    let source = "function f(%x: f32[T,8] rows) {\n    return y=(mul (tanh (div %x 30.0)) 30.0)\n}\n";
    let function = text::parse_module(source).unwrap().functions.remove(0);
    let selection = Selection::all();
    let extent = Extent { rows: 4, keys: 16 };
    let mut saturated = prepare(&function, &selection, Limits::default()).unwrap();
    let extracted = select(&saturated, Machine::GENERIC, extent).unwrap();
    let explainer =
        Explainer::new(&mut saturated, &selection, CostModel { machine: Machine::GENERIC, extent });
    let explanation = explainer.kernel(&extracted, explainer.kernels(&extracted)[0], 0);
    assert_eq!(explanation.steps.len(), 1);
    let mut step = explanation.steps[0].clone();
    assert!(replay(&explanation.start, &step).is_ok());
    step.lhs = "(mul (tanh (div ?x 29.0)) ?c)".parse().unwrap();
    assert!(replay(&explanation.start, &step).is_err());
}
