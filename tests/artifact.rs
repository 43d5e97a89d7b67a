//! Artifacts: the same logits as in-memory code, to the bit; the same bytes every time; and files that are damaged in
//! ten thousand ways, each refused or, where only weights differ, run, without a panic and without memory beyond the
//! file's size.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapidary_codegen::price::work::{demand, work};
use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_codegen::view::Capacity;
use lapidary_codegen::{Model as Description, Options, compile, compile_image};
use lapidary_ir::{DType, Module};
use lapidary_models::graph::{self, Storage};
use lapidary_models::{Model, Tokenizer};
use lapidary_passes::Selection;
use lapidary_runtime::artifact::write::{About, Part, write};
use lapidary_runtime::artifact::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_TABLES,
};
use lapidary_runtime::program::WeightSource;
use lapidary_runtime::{Artifact, Session};

#[path = "artifact/damage.rs"]
mod damage;
#[path = "artifact/fuzz.rs"]
mod fuzz;
#[path = "artifact/signing.rs"]
mod signing;

/// The weights of a model.
struct Weights(Arc<Model>);

// SAFETY: the built-in model's bytes are static.
unsafe impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        self.0.checkpoint.tensor(name).map(|t| t.bytes)
    }
}

fn weight(model: &Model, name: &str) -> DType {
    model.checkpoint.format_of(name).map_or(DType::F32, DType::from)
}

fn module(model: &Model) -> Module {
    let weight = |name: &str| weight(model, name);
    graph::module(&model.config, &Storage { weight: &weight, cache: DType::BF16 })
}

fn description(model: &Model) -> Description {
    let config = &model.config;
    let layers = graph::layers(config, &|name| weight(model, name));
    Description { hidden: config.hidden_size, vocab: config.vocab_size, layers }
}

fn options(cpu: &str) -> Options {
    Options {
        selection: Selection::all(),
        cpu: cpu.into(),
        context: 64,
        chunk: 16,
        rounded: true,
        machine: lapidary_passes::Machine::GENERIC,
        listings: false,
    }
}

/// Writes an artifact of the built-in model for these CPUs; `weights` says whether it has them.
fn build(path: &Path, model: &Model, cpus: &[&str], weights: bool) {
    let (module, description) = (module(model), description(model));
    let images: Vec<_> =
        cpus.iter().map(|cpu| compile_image(&module, &description, &options(cpu)).unwrap().image).collect();
    let mut parts = vec![];
    for (cpu, image) in cpus.iter().zip(&images) {
        let features = Target::new(cpu, Placement::Object).unwrap().required();
        parts.extend(Part::image(cpu, &features, image));
    }
    parts.push(Part::text(CONFIG, model.config.to_json().to_string().into_bytes()));
    let file = model.tokenizer_file().unwrap().unwrap();
    parts.push(Part::text(TOKENIZER_TABLES, Tokenizer::tables(&file).unwrap()));
    parts.push(Part::text(TOKENIZER, file));
    let special = r#"{"bos_token":"<bos>","eos_token":"<eos>"}"#;
    parts.push(Part::text(TOKENIZER_CONFIG, special.as_bytes()));
    let template = model.chat_template.as_ref().unwrap().source().unwrap();
    parts.push(Part::text(CHAT_TEMPLATE, template.as_bytes()));
    let stop = format!(r#"{{"eos_token_id":{:?}}}"#, model.stop_tokens);
    parts.push(Part::text(GENERATION_CONFIG, stop.into_bytes()));
    for spec in model.config.tensors().into_iter().filter(|_| weights) {
        let tensor = model.checkpoint.tensor(&spec.name).unwrap();
        let (dtype, shape) = (tensor.format.stored_dtype(), tensor.format.stored_shape(tensor.shape));
        parts.push(Part::weight(&spec.name, dtype, shape, tensor.bytes));
    }
    let cpus: Vec<String> = cpus.iter().map(|c| c.to_string()).collect();
    let about = About { target: &triple(), cpus: &cpus, weights: "f32", compiler: "test", key: None };
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
    let model = Arc::new(Model::built_in().unwrap());
    let (dir, path) = place();
    let here = |name: &&str| Target::new(name, Placement::Jit).unwrap().lacking_here().is_none();
    let mut cpus: Vec<&str> = TARGETS.iter().map(|t| t.name).filter(here).collect();
    if cpus.is_empty() {
        cpus.push("native");
    }
    build(&path, &model, &cpus, true);
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    artifact.verify().unwrap();
    let (module, description) = (module(&model), description(&model));
    for cpu in &cpus {
        let jit = compile(&module, &description, &options(cpu)).unwrap().program;
        let mut jit = Session::new(jit, Arc::new(Weights(model.clone())), 1).unwrap();
        let program = Arc::new(artifact.program(Some(cpu)).unwrap());
        let mut stored = Session::new(program, artifact.clone(), 2).unwrap();
        assert!(logits(&mut jit) == logits(&mut stored), "{cpu}: an artifact's logits are others");
    }
    let best = artifact.program(None).unwrap();
    let last = artifact.program(cpus.last().copied()).unwrap();
    assert_eq!(best.functions[0].variants[0].arena_bytes, last.functions[0].variants[0].arena_bytes);
    let again = dir.path().join("again.lap");
    build(&again, &model, &cpus, true);
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap(), "two compilations differ");
    let error = artifact.program(Some("pentium")).err().unwrap().to_string();
    assert!(error.contains("it has no code for CPU \"pentium\""), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left over");
}

/// Code for any CPU of the table is made without running it, in one piece of aligned functions.
#[test]
fn every_cpu_compiles() {
    let model = Model::built_in().unwrap();
    for cpu in TARGETS {
        let image = compile_image(&module(&model), &description(&model), &options(cpu.name));
        let image = image.unwrap_or_else(|e| panic!("{}: {e}", cpu.name)).image;
        for pair in image.symbols.windows(2) {
            assert!(pair[0].offset + pair[0].bytes <= pair[1].offset && pair[1].offset % 64 == 0);
        }
        assert!(!image.symbols.is_empty());
    }
}

/// A program says of its kernels what their shapes say, for calls of any rows and keys, whatever was fused.
#[test]
fn kernels_say_what_they_read_and_compute() {
    let model = Model::built_in().unwrap();
    let mut kernels = 0;
    for selection in [Selection::all(), Selection::none()] {
        let options = Options { selection, ..options("x86-64-v3") };
        let compiled = compile_image(&module(&model), &description(&model), &options).unwrap();
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
