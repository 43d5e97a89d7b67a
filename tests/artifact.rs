//! Artifacts: the same logits as in-memory code, to the bit; the same bytes every time; and files that are damaged in
//! ten thousand ways, each refused or, where only weights differ, run, without a panic and without memory beyond the
//! file's size.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapidary::{Artifact, Compile, Graph, Model, Options, Selection, Session};
use lapidary_codegen::price::work::{demand, work};
use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_codegen::view::Capacity;
use lapidary_codegen::{ImageCompilation, compile_image};
use lapidary_models::{Model as Files, Tokenizer};
use lapidary_runtime::artifact::write::{About, Part, write};
use lapidary_runtime::artifact::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_TABLES,
};
use lapidary_runtime::program::WeightSource;

#[path = "artifact/damage.rs"]
mod damage;
#[path = "artifact/fuzz.rs"]
mod fuzz;
#[path = "artifact/limited.rs"]
mod limited;
#[path = "artifact/signing.rs"]
mod signing;

fn options(cpu: &str) -> Options {
    Options::new().cpu(cpu).context(64).chunk(16)
}

/// The built-in model's code for a CPU.
fn image(files: &Files, options: &Options) -> ImageCompilation {
    let graph = Graph::stored(files, options).unwrap();
    compile_image(&graph.module, &graph.parts, &graph.compiler(options).unwrap()).unwrap()
}

/// Writes an artifact of the built-in model for this machine, without the weights.
fn build(path: &Path, files: &Files) {
    let image = image(files, &options("native")).image;
    let features = Target::new("native", Placement::Object).unwrap().required();
    let mut parts = Vec::from(Part::image("native", &features, &image));
    parts.push(Part::text(CONFIG, files.config.to_json().to_string().into_bytes()));
    let file = files.tokenizer_file().unwrap().unwrap();
    parts.push(Part::text(TOKENIZER_TABLES, Tokenizer::tables(&file).unwrap()));
    parts.push(Part::text(TOKENIZER, file));
    let special = r#"{"bos_token":"<bos>","eos_token":"<eos>"}"#;
    parts.push(Part::text(TOKENIZER_CONFIG, special.as_bytes()));
    let template = files.chat_template.as_ref().unwrap().source().unwrap();
    parts.push(Part::text(CHAT_TEMPLATE, template.as_bytes()));
    let stop = format!(r#"{{"eos_token_id":{:?}}}"#, files.stop_tokens);
    parts.push(Part::text(GENERATION_CONFIG, stop.into_bytes()));
    let cpus = ["native".to_string()];
    let about =
        About { target: &triple(), cpus: &cpus, weights: "f32", function: None, compiler: "test", key: None };
    write(path, &about, &parts, &mut |_, _| {}).unwrap();
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn logits(session: &mut Session) -> Vec<u32> {
    session.prefill(&[2, 7, 11, 13, 17]).unwrap();
    session.decode(19).unwrap();
    session.logits().iter().map(|x| x.to_bits()).collect()
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.lap");
    (dir, path)
}

#[test]
fn same_logits_and_same_bytes() {
    let files = Arc::new(Files::built_in().unwrap());
    let (dir, path) = place();
    let here = |name: &&str| Target::new(name, Placement::Jit).unwrap().lacking_here().is_none();
    let mut cpus: Vec<&str> = TARGETS.iter().map(|t| t.name).filter(here).collect();
    if cpus.is_empty() {
        cpus.push("native");
    }
    let model = |cpu: &str, threads| Model::of(files.clone(), options(cpu).threads(threads)).unwrap();
    // In any order.
    let how = cpus.iter().rev().copied().fold(Compile::artifact(), Compile::cpu);
    let written = model("native", 2).compile(&how, &path).unwrap();
    assert_eq!(written.bytes, fs::metadata(&path).unwrap().len());
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    artifact.verify().unwrap();
    assert_eq!(artifact.cpus(), written.cpus);
    for cpu in &cpus {
        let mut jit = model(cpu, 1).session().unwrap();
        let stored = Model::open(&path, Options::new().cpu(*cpu).threads(2).verify(true)).unwrap();
        assert!(stored.compilation().unwrap().is_none());
        let mut stored = stored.session().unwrap();
        assert!(logits(&mut jit) == logits(&mut stored), "{cpu}: an artifact's logits are others");
    }
    let best = artifact.program(None).unwrap();
    let last = artifact.program(artifact.cpus().last().map(String::as_str)).unwrap();
    assert_eq!(best.functions[0].variants[0].arena_bytes, last.functions[0].variants[0].arena_bytes);
    let again = dir.path().join("again.lap");
    let how = cpus.iter().copied().fold(Compile::artifact(), Compile::cpu);
    model("native", 1).compile(&how, &again).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap(), "two compilations differ");
    let error = artifact.program(Some("pentium")).err().unwrap().to_string();
    assert!(error.contains("it has no code for CPU \"pentium\""), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left over");
}

/// Code for any CPU of the table is made without running it, in one piece of aligned functions.
#[test]
fn every_cpu_compiles() {
    let files = Files::built_in().unwrap();
    for cpu in TARGETS {
        let image = image(&files, &options(cpu.name)).image;
        for pair in image.symbols.windows(2) {
            assert!(pair[0].offset + pair[0].bytes <= pair[1].offset && pair[1].offset % 64 == 0);
        }
        assert!(!image.symbols.is_empty());
    }
}

/// A program says of its kernels what their shapes say, for calls of any rows and keys, whatever was fused.
#[test]
fn kernels_say_what_they_read_and_compute() {
    let files = Files::built_in().unwrap();
    let mut kernels = 0;
    for selection in [Selection::all(), Selection::none()] {
        let compiled = image(&files, &options("x86-64-v3").rules(selection));
        let features = Target::new("x86-64-v3", Placement::Object).unwrap().features;
        for (function, report) in compiled.image.functions.iter().zip(&compiled.functions) {
            for (variant, lowered) in function.variants.iter().zip(&report.variants) {
                for (step, kernel) in variant.steps.iter().zip(&lowered.schedule.kernels) {
                    for (rows, keys) in [(1, 1), (1, 37), (7, 7), (5, 64), (16, 40)] {
                        let work = work(kernel, Capacity { rows, keys });
                        let said = (step.demand.bytes(rows, keys), step.demand.flops(rows, keys));
                        assert_eq!(said, (work.memory_bytes, work.flops), "{} at {rows}, {keys}", step.name);
                    }
                    assert_eq!(step.demand, demand(kernel, &features));
                    kernels += 1;
                }
            }
        }
    }
    assert!(kernels > 100, "{kernels}");
}
