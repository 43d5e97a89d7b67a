//! Engines over the built-in model and a small Gemma 3: every sequence gets the bits that it gets alone, whoever is
//! stepped with it, however its tokens are split, and whatever was forked, truncated, saved and loaded in between.
//!
//! `LAPIDARY_FUZZ_CASES=N` tries N times as many batches; the seeds are fixed.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use lapidary::{Activations, Engine, KvCache, Model, Options, Phase, Selection, Sequence, Want, Work};
use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_models::{Config, FormatChoice, Model as Files, QuantFormat, WeightDType, synthesize};
use lapidary_runtime::Rng;
use lapidary_runtime::snapshot::Notes;
use lapidary_tests::{golden_model, stored};

/// Positions: several times what a ring holds.
const CONTEXT: usize = 400;
/// Rows of a call: rings of 128 + 40 rows wrap, and decode has more than one variant.
const CHUNK: usize = 40;

/// Tokens, what each was computed as, and in which step.
type Text = Vec<(u32, Phase, usize)>;

/// A sequence and what it should be.
struct Subject {
    sequence: Sequence,
    text: Text,
}

/// Logits of texts, each computed alone: one sequence in an engine of its own, what was prefilled in the largest calls,
/// what was decoded token by token; or in the steps that it was computed in.
struct Alone {
    engine: Engine,
    by_step: bool,
    known: HashMap<Vec<(u32, bool)>, Vec<u32>>,
}

impl Alone {
    fn logits(&mut self, text: &[(u32, Phase, usize)]) -> Vec<u32> {
        let key: Vec<(u32, bool)> = text.iter().map(|&(id, phase, _)| (id, phase == Phase::Decode)).collect();
        if let Some(known) = self.known.get(&key).filter(|_| !self.by_step) {
            return known.clone();
        }
        let mut sequence = self.engine.sequence().unwrap();
        for part in text.chunk_by(|a, b| a.1 == b.1 && (a.2 == b.2 || !self.by_step)) {
            let most = if part[0].1 == Phase::Decode && !self.by_step { 1 } else { part.len() };
            for part in part.chunks(most) {
                let tokens: Vec<u32> = part.iter().map(|&(id, ..)| id).collect();
                let (sequence, phase) = (&mut sequence, part[0].1);
                let work = Work { sequence, tokens: &tokens, phase, want: Want::Nothing };
                self.engine.step(&mut [work]).unwrap();
            }
        }
        let logits: Vec<u32> = self.engine.logits(&sequence).iter().map(|x| x.to_bits()).collect();
        self.known.insert(key, logits.clone());
        logits
    }
}

fn best(logits: &[u32]) -> u32 {
    let value = |v: usize| f32::from_bits(logits[v]);
    (0..logits.len()).fold(0, |best, v| if value(v) > value(best) { v } else { best }) as u32
}

/// Random batches; each wanted thing is what the sequence gets alone.
fn batches(model: &Model, by_step: bool, seed: u64, steps: usize) {
    let mut random = Rng::new(seed);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    let (program, weights) = (model.program().unwrap(), model.weights().unwrap());
    let of = |threads| Engine::new(program.clone(), weights.clone(), threads).unwrap();
    let mut engine = of(1 + below(4));
    let mut alone = Alone { engine: of(1), by_step, known: HashMap::new() };
    let vocab = program.plan.vocab;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sequence");
    let mut subjects: Vec<Subject> =
        (0..1 + below(12)).map(|_| Subject { sequence: engine.sequence().unwrap(), text: vec![] }).collect();
    for step in 0..steps {
        let at = below(subjects.len());
        match below(4) {
            0 => {
                let from = below(subjects.len());
                let (sequence, text) = (subjects[from].sequence.fork().unwrap(), subjects[from].text.clone());
                subjects[at] = Subject { sequence, text };
            }
            1 => {
                let subject = &mut subjects[at];
                let to = if by_step { 0 } else { subject.sequence.position().saturating_sub(below(60)) };
                let reached = subject.sequence.truncate(to);
                subject.text.truncate(reached);
            }
            2 => {
                let subject = &mut subjects[at];
                engine.save(&subject.sequence, &path, &Notes::default()).unwrap();
                subject.sequence = engine.load(&path).unwrap().0;
            }
            _ => {}
        }
        let mut plans = vec![];
        for subject in &mut subjects {
            if CONTEXT - subject.sequence.position() < 130 {
                subject.sequence.truncate(0);
                subject.text.clear();
            }
            let phase = if below(2) == 0 { Phase::Prefill } else { Phase::Decode };
            // Long texts at first, so that rings wrap.
            let count = match (phase, step) {
                // Together they fit one call.
                _ if by_step => 1 + below(2),
                (Phase::Prefill, 0) => 1 + below(120),
                (Phase::Prefill, _) => 1 + below(50),
                (Phase::Decode, _) => 1 + below(3),
            };
            let tokens: Vec<u32> = (0..count).map(|_| below(vocab) as u32).collect();
            let wants = [Want::Nothing, Want::Logits, Want::AllLogits, Want::Argmax, Want::AllArgmax];
            let want = wants[below(wants.len())];
            // All logits are all compared, and all tokens.
            let want = match want {
                Want::AllLogits if count > 4 || by_step => Want::Logits,
                Want::AllArgmax if count > 4 || by_step => Want::Argmax,
                want => want,
            };
            plans.push((tokens, phase, want));
        }
        let chosen: Vec<usize> = (0..subjects.len()).filter(|_| below(4) > 0).collect();
        let mut works: Vec<Work<'_>> = subjects
            .iter_mut()
            .zip(&plans)
            .enumerate()
            .filter(|(index, _)| chosen.contains(index))
            .map(|(_, (subject, (tokens, phase, want)))| Work {
                sequence: &mut subject.sequence,
                tokens,
                phase: *phase,
                want: *want,
            })
            .collect();
        let outputs = engine.step(&mut works).unwrap();
        let mut found = vec![];
        for (work, &index) in chosen.iter().enumerate() {
            let bits: Vec<u32> = outputs.logits(work).iter().map(|x| x.to_bits()).collect();
            found.push((index, bits, outputs.tokens(work).to_vec()));
        }
        for (index, bits, best_tokens) in found {
            let (tokens, phase, want) = &plans[index];
            let text = &mut subjects[index].text;
            let before = text.len();
            text.extend(tokens.iter().map(|&id| (id, *phase, step)));
            let what =
                format!("seed {seed}, step {step}, sequence {index}: {before} and {tokens:?} as {phase:?}");
            match want {
                Want::Nothing => {}
                Want::Logits => assert!(bits == alone.logits(text), "{what}"),
                Want::Argmax => assert_eq!(best_tokens, [best(&alone.logits(text))], "{what}"),
                Want::AllArgmax => {
                    for (at, &token) in best_tokens.iter().enumerate() {
                        assert_eq!(token, best(&alone.logits(&text[..=before + at])), "{what}, token {at}");
                    }
                    assert_eq!(best_tokens.len(), tokens.len(), "{what}");
                }
                Want::AllLogits => {
                    for (at, row) in bits.chunks(vocab).enumerate() {
                        assert!(row == alone.logits(&text[..=before + at]), "{what}, token {at}");
                    }
                }
            }
        }
    }
}

/// Runs of batches for each way of compiling.
fn cases() -> u64 {
    std::env::var("LAPIDARY_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn cpus_here() -> Vec<&'static str> {
    let runs = |cpu: &&str| Target::new(cpu, Placement::Jit).unwrap().lacking_here().is_none();
    TARGETS.iter().map(|t| t.name).filter(runs).collect()
}

fn native_and_avx2() -> Vec<&'static str> {
    let avx2 = cpus_here().into_iter().filter(|&cpu| cpu == "x86-64-v3");
    std::iter::once("native").chain(avx2).collect()
}

fn check(case: &str, format: Option<QuantFormat>, by_step: bool, all: Vec<Options>) {
    let files = golden_model(case).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = match format {
        None => files,
        Some(format) => stored(&files, &folder.path().join("model"), format.into()).unwrap(),
    };
    check_files(&files, by_step, all);
}

fn check_files(files: &Arc<Files>, by_step: bool, all: Vec<Options>) {
    for (at, options) in (0..).zip(all) {
        let model = Model::of(files.clone(), options).unwrap();
        for case in 0..cases() {
            batches(&model, by_step, 1000 * at + case, if by_step { 20 } else { 7 });
        }
    }
}

/// For so many positions and rows.
fn options() -> Options {
    Options::new().chunk(CHUNK).context(CONTEXT)
}

fn of_cpus(cpus: &[&'static str]) -> Vec<Options> {
    let of = |&cpu: &&'static str| {
        let options = options().cpu(cpu);
        let exact = options.clone().activations(Activations::F32);
        [options.clone(), exact, options.kv_cache(KvCache::Int8)]
    };
    cpus.iter().flat_map(of).collect()
}

#[test]
fn company_changes_no_bit() {
    check("tiny-long", None, false, of_cpus(&cpus_here()));
}

/// Windows that wrap every few tokens, a RoPE for each kind of layer, norms of heads, a running maximum.
#[test]
fn company_changes_no_bit_of_gemma_3() {
    check("three-text", None, false, of_cpus(&native_and_avx2()));
}

#[test]
fn company_changes_no_bit_of_q8() {
    check("tiny-long", Some(QuantFormat::Q8), false, of_cpus(&cpus_here()));
}

#[test]
fn company_changes_no_bit_of_q4() {
    check("tiny-long", Some(QuantFormat::Q4), false, of_cpus(&cpus_here()));
}

/// Files whose roles have blocks of several formats.
#[test]
fn company_changes_no_bit_of_blocks() {
    for name in ["gemma2-mixed", "gemma3-mixed"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("gguf/models/{name}.gguf"));
        let files = Arc::new(Files::open(path).unwrap());
        check_files(&files, false, cpus_here().into_iter().map(|cpu| options().cpu(cpu)).collect());
    }
}

/// Rows of more than 1 KiB, of which several are decoded by kernels that load a weight once for all of them, or by the
/// matrix unit's, as one is.
#[test]
fn company_changes_no_bit_of_long_rows() {
    let built_in = golden_model("tiny-long").unwrap();
    let config = Config {
        hidden_size: 2048,
        intermediate_size: 2080,
        num_hidden_layers: 2,
        layer_types: built_in.config.layer_types[..2].to_vec(),
        vocab_size: 512,
        ..built_in.config.clone()
    };
    for format in [None, Some(QuantFormat::Q8), Some(QuantFormat::Q4)] {
        let folder = tempfile::tempdir().unwrap();
        let format = format.map(Into::into);
        let choice = FormatChoice { body: format, head: format };
        let goes_on = &mut |_, _| ControlFlow::Continue(());
        synthesize(folder.path(), &config, WeightDType::BF16, choice, 5, goes_on).unwrap();
        let files = Arc::new(Files::open(folder.path()).unwrap());
        let all = native_and_avx2().into_iter().map(|cpu| options().cpu(cpu)).collect();
        check_files(&files, false, all);
    }
}

/// Functions that hold what is one sequence's are called for one after the other. Unfused, sums over keys go by the
/// keys of the call: a step is compared with the same step alone.
#[test]
fn company_changes_no_bit_of_what_does_not_batch() {
    let options = options().activations(Activations::F32).rules(Selection::none());
    check("tiny-long", None, true, vec![options]);
}
