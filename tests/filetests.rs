//! Stages of the compiler as text: `filetests/<stage>/*.ir` in, a snapshot beside each out.
//!
//! `ir` is parsed and printed; `fused` is what extraction chose, a row regime each; `kernels` is one line a kernel:
//! what it reads and writes, and how it is cut into tiles; `blocks` is the same of whole blocks of models, with the
//! number of kernels and launches as written and fused. Nothing here depends on the machine that runs it. To accept
//! what changed: `INSTA_UPDATE=always cargo test -p lapidary-tests --test filetests`, then read the difference.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::Path;

use lapidary::Graph;
use lapidary_codegen::Options;
use lapidary_codegen::compile::{FunctionReport, compile_functions};
use lapidary_codegen::view::{Base, View};
use lapidary_ir::{DType, Function, Module, text, verify};
use lapidary_models::Model;
use lapidary_passes::Selection;
use lapidary_tests::exact;

fn parse(path: &Path) -> Module {
    let name = path.file_name().unwrap().display();
    let module =
        text::parse_module(&std::fs::read_to_string(path).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
    verify::verify_module(&module).unwrap_or_else(|e| panic!("{name}: {e}"));
    module
}

/// As `lapidary opt` compiles, for a named CPU.
fn compile(functions: &[Function]) -> Vec<FunctionReport> {
    compile_with(functions, Selection::all())
}

/// The same by some of the rules.
fn compile_with(functions: &[Function], selection: Selection) -> Vec<FunctionReport> {
    let options = Options {
        selection,
        cpu: "x86-64-v3".into(),
        context: 4096,
        chunk: 512,
        rounded: false,
        machine: lapidary_passes::Machine::GENERIC,
        listings: false,
    };
    let reports = compile_functions(functions, &options).unwrap().reports;
    for report in &reports {
        assert_eq!(report.saturation.warning(), None);
    }
    reports
}

/// A function's forms, equal ones of several regimes once.
fn forms(report: &FunctionReport, print: impl Fn(&lapidary_codegen::compile::Lowered) -> String) -> String {
    let mut forms: Vec<(Vec<String>, String)> = vec![];
    for lowered in &report.variants {
        let (rows, form) = (lowered.rows.to_string(), print(lowered));
        match forms.last_mut() {
            Some((regimes, same)) if *same == form => regimes.push(rows),
            _ => forms.push((vec![rows], form)),
        }
    }
    let titled = |(regimes, form): &(Vec<String>, String)| {
        format!("; {}, rows: {}\n{form}", report.source.name, regimes.join(", "))
    };
    forms.iter().map(titled).collect::<Vec<_>>().join("\n")
}

fn fused(report: &FunctionReport) -> String {
    let rules: Vec<&str> = report.saturation.fired.iter().map(|(rule, _)| rule.as_str()).collect();
    let rules = if rules.is_empty() { "none".into() } else { rules.join(", ") };
    format!("; rules: {rules}\n{}", forms(report, |l| l.function.to_string()))
}

fn kernels(report: &FunctionReport) -> String {
    forms(report, |lowered| {
        let place = |view: &View| match view.base {
            Base::Arena(_) => "arena".to_owned(),
            Base::Slot(at) | Base::Cache(at) => lowered.schedule.slots[at].name.clone(),
            Base::Constant(_) => "constant".to_owned(),
            Base::Number(x) => format!("{x:?}"),
            Base::Integer(x) => x.to_string(),
        };
        let view = |view: &View| {
            let dims: Vec<String> = view.dims().iter().map(ToString::to_string).collect();
            let ring = view.ring.map_or_else(String::new, |rows| format!("%{rows}"));
            format!("{}[{}]@{}{ring}", view.dtype, dims.join(","), place(view))
        };
        let views = |all: &[View]| all.iter().map(view).collect::<Vec<_>>().join(", ");
        let mut out = String::new();
        for (k, &joins) in lowered.schedule.kernels.iter().zip(&lowered.schedule.joins) {
            let node = text::node(&lowered.function, k.node);
            let (fixed, rows) = (k.tiles.fixed, k.tiles.rows);
            let tiles = match rows {
                0 => format!("{fixed}"),
                1 => format!("{fixed}*T"),
                _ => format!("{fixed}*ceil(T/{rows})"),
            };
            let (reads, writes) = (views(&k.inputs), views(&k.outputs));
            // What joins the launch of the kernel above it.
            let joins = if joins { "+ " } else { "" };
            writeln!(out, "{joins}{}: {tiles} tiles ({reads}) -> ({writes})\n    {node}", k.body.name())
                .unwrap();
        }
        out
    })
}

/// The kernels of a function, and how many they and their launches are, as written and fused.
fn block(function: &Function) -> String {
    let counts = |report: &FunctionReport| {
        let count = |lowered: &lapidary_codegen::compile::Lowered| {
            let joins = &lowered.schedule.joins;
            let launches = joins.iter().filter(|joins| !**joins).count();
            format!("{} kernels in {launches} launches of {} rows", joins.len(), lowered.rows)
        };
        report.variants.iter().map(count).collect::<Vec<_>>().join(", ")
    };
    let of = |selection| compile_with(std::slice::from_ref(function), selection).remove(0);
    let (written, report) = (of(Selection::none()), of(Selection::all()));
    let rules: Vec<&str> = report.saturation.fired.iter().map(|(rule, _)| rule.as_str()).collect();
    format!(
        "; as written: {}\n; fused: {}\n; rules: {}\n{}",
        counts(&written),
        counts(&report),
        rules.join(", "),
        kernels(&report)
    )
}

/// Compares with the snapshot in the stage's folder.
macro_rules! snapshot {
    ($stage:literal, $name:expr, $text:expr) => {
        insta::with_settings!({
            snapshot_path => concat!("filetests/", $stage, "/snapshots"),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $text) })
    };
}

#[test]
fn ir() {
    insta::glob!("filetests/ir/*.ir", |path| {
        let printed = parse(path).to_string();
        assert_eq!(
            text::parse_module(&printed).unwrap().to_string(),
            printed,
            "is not printed as it is parsed"
        );
        snapshot!("ir", "ir", printed);
    });
}

#[test]
fn fused_forms() {
    insta::glob!("filetests/fused/*.ir", |path| {
        let reports = compile(&parse(path).functions);
        snapshot!("fused", "fused", reports.iter().map(fused).collect::<Vec<_>>().join("\n"));
    });
}

#[test]
fn kernel_lists() {
    insta::glob!("filetests/kernels/*.ir", |path| {
        let reports = compile(&parse(path).functions);
        snapshot!("kernels", "kernels", reports.iter().map(kernels).collect::<Vec<_>>().join("\n"));
    });
}

#[test]
fn blocks() {
    insta::glob!("filetests/blocks/*.ir", |path| {
        let functions = parse(path).functions;
        snapshot!("blocks", "blocks", functions.iter().map(block).collect::<Vec<_>>().join("\n"));
    });
}

#[test]
fn tiny_model() {
    let model = Model::built_in().unwrap();
    let module = Graph::of(&model.config, &exact(), &|_| DType::BF16).unwrap().module;
    for name in ["layer_local", "layer_global", "head"] {
        let reports = compile(std::slice::from_ref(module.function(name).unwrap()));
        snapshot!("fused", format!("tiny_{name}"), fused(&reports[0]));
    }
}
