//! Artifacts: the same logits as in-memory code, to the bit; the same bytes every time; and files that are damaged in ten
//! thousand ways, each refused or, where only weights differ, run, without a panic and without memory beyond the file's size.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_codegen::{Model as Description, Options, compile, compile_image};
use lapidary_ir::{DType, Module};
use lapidary_models::gemma2::{self, Storage};
use lapidary_models::{Config, Model};
use lapidary_passes::Selection;
use lapidary_runtime::artifact::write::{About, Part, write};
use lapidary_runtime::program::WeightSource;
use lapidary_runtime::{Artifact, Session};

/// The most bytes beyond what was held before that the loader may take: the file's size, and this.
const BOUND: usize = 8 << 20;
/// Damaged files.
const CASES: usize = 10_000;

/// Refuses what would go beyond a limit.
struct Limited;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

#[global_allocator]
static ALLOCATOR: Limited = Limited;

// SAFETY: memory comes from and goes back to the system's allocator; refusing with null is allowed.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = HELD.fetch_add(layout.size(), Ordering::Relaxed);
        if before.saturating_add(layout.size()) > MOST.load(Ordering::Relaxed) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise on `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise: `at` came from `alloc` with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

/// The weights of a model.
struct Weights(Arc<Model>);

// SAFETY: the built-in model's bytes are static.
unsafe impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        self.0.checkpoint.tensor(name).map(|t| t.bytes)
    }
}

fn module(model: &Model) -> Module {
    let weight = |name: &str| model.checkpoint.format_of(name).map_or(DType::F32, DType::from);
    gemma2::module(&model.config, &Storage { weight: &weight, cache: DType::BF16 })
}

fn description(config: &Config) -> Description {
    let layers = config.layer_types.iter().enumerate();
    let layers = layers.map(|(i, kind)| (gemma2::layer_name(*kind).to_string(), gemma2::layer_prefix(i)));
    Description { hidden: config.hidden_size, vocab: config.vocab_size, layers: layers.collect() }
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
    let (module, description) = (module(model), description(&model.config));
    let images: Vec<_> =
        cpus.iter().map(|cpu| compile_image(&module, &description, &options(cpu)).unwrap().image).collect();
    let mut parts = vec![];
    for (cpu, image) in cpus.iter().zip(&images) {
        let features = Target::new(cpu, Placement::Object).unwrap().required();
        parts.extend(Part::image(cpu, &features, image));
    }
    parts.push(Part::text("config.json", model.config.to_json().to_string().into_bytes()));
    for spec in model.config.tensors().into_iter().filter(|_| weights) {
        let tensor = model.checkpoint.tensor(&spec.name).unwrap();
        let (dtype, shape) = (tensor.format.stored_dtype(), tensor.format.stored_shape(tensor.shape));
        parts.push(Part::weight(&spec.name, dtype, shape, tensor.bytes));
    }
    let cpus: Vec<String> = cpus.iter().map(|c| c.to_string()).collect();
    let about = About { target: &triple(), cpus: &cpus, weights: "f32", compiler: "test" };
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
fn everything() {
    // One test: the allocator's limit is the process'.
    same_logits_and_same_bytes();
    every_cpu_compiles();
    damage();
}

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
    let (module, description) = (module(&model), description(&model.config));
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
fn every_cpu_compiles() {
    let model = Model::built_in().unwrap();
    for cpu in TARGETS {
        let image = compile_image(&module(&model), &description(&model.config), &options(cpu.name));
        let image = image.unwrap_or_else(|e| panic!("{}: {e}", cpu.name)).image;
        for pair in image.symbols.windows(2) {
            assert!(pair[0].offset + pair[0].bytes <= pair[1].offset && pair[1].offset % 64 == 0);
        }
        assert!(!image.symbols.is_empty());
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

const SIZES: &[&str] =
    &["0", "-1", "1", "63", "4096", "4294967296", "18446744073709551615", "1e30", "\"\"", "null", "[]"];

/// One damaged file.
fn mutate(good: &[u8], header: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    match random.below(6) {
        // Bits, anywhere.
        0 => {
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        // Bits of the header.
        1 => {
            for _ in 0..=random.below(3) {
                let at = random.below(header);
                bytes[at] ^= 1 << random.below(8);
            }
        }
        // Cut short, or too long.
        2 => {
            let length = random.below(bytes.len() + 64);
            bytes.resize(length, 0);
        }
        // The header's length.
        3 => {
            let length = (random.below(usize::MAX) as u64) >> random.below(64);
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        // A number of the header is another: overlaps, holes, absurd sizes.
        _ => {
            let text = String::from_utf8_lossy(&good[8..header]).trim_end().to_string();
            let digits: Vec<usize> = text
                .char_indices()
                .filter(|(i, c)| c.is_ascii_digit() && !text[..*i].ends_with(|c: char| c.is_ascii_digit()))
                .map(|(i, _)| i)
                .collect();
            let at = digits[random.below(digits.len())];
            let end = text[at..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |n| at + n);
            let new = if random.below(2) == 0 {
                SIZES[random.below(SIZES.len())].to_string()
            } else {
                random.below(good.len()).to_string()
            };
            let mut text = format!("{}{new}{}", &text[..at], &text[end..]).into_bytes();
            // As long as before where it fits, so that only the number is wrong.
            text.resize(text.len().max(header - 8), b' ');
            bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text);
            bytes.extend(&good[header..]);
        }
    }
    bytes
}

fn damage() {
    let model = Model::built_in().unwrap();
    let (_dir, path) = place();
    build(&path, &model, &["native"], false);
    let good = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    Artifact::open(&path).unwrap().program(None).unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut loaded) = (0, 0);
    for case in 0..CASES {
        let bytes = mutate(&good, header, &mut random);
        let same = bytes == good;
        fs::write(&path, &bytes).unwrap();
        MOST.store(HELD.load(Ordering::Relaxed) + good.len() + BOUND, Ordering::Relaxed);
        let program = Artifact::open(&path).and_then(|a| {
            a.program(None)?;
            a.verify()
        });
        match program {
            Ok(()) => loaded += 1,
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains('\n') && text.contains("model.lap"), "case {case}: {text:?}");
                assert!(!same, "case {case}: the file is as it was, and refused: {text}");
                refused += 1;
            }
        }
        MOST.store(usize::MAX, Ordering::Relaxed);
    }
    // Padding and what the metadata say of the compiler are hashed by nobody.
    assert!(refused > CASES * 9 / 10, "{refused} refused, {loaded} loaded");
}
