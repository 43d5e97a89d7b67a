//! The command line, end to end: what each command prints, writes and exits with, on the built-in model and on folders
//! made here. `cli/arguments.rs` has mistakes in arguments, `cli/bad_input.rs` what is refused, `cli/inputs.rs` files
//! that are none, `cli/outputs.rs` outputs that are inputs, `cli/interrupt.rs` signals, `cli/refusals.rs` what the
//! system refuses.
#![allow(clippy::unwrap_used)]

#[path = "cli/arguments.rs"]
mod arguments;
#[path = "cli/artifact.rs"]
mod artifact;
#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/call.rs"]
mod call;
#[path = "cli/chat.rs"]
mod chat;
#[path = "cli/command.rs"]
mod command;
#[path = "cli/configuration.rs"]
mod configuration;
#[path = "cli/evaluation.rs"]
mod evaluation;
#[path = "cli/explain.rs"]
mod explain;
#[path = "cli/folder.rs"]
mod folder;
#[path = "cli/hub.rs"]
mod hub;
#[path = "cli/inputs.rs"]
mod inputs;
#[cfg(unix)]
#[path = "cli/interrupt.rs"]
mod interrupt;
#[path = "cli/lab.rs"]
mod lab;
#[path = "cli/lora.rs"]
mod lora;
#[path = "cli/manual.rs"]
mod manual;
#[path = "cli/outputs.rs"]
mod outputs;
#[path = "cli/pricing.rs"]
mod pricing;
#[path = "cli/prompt.rs"]
mod prompt;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/residence.rs"]
mod residence;
#[path = "cli/signing.rs"]
mod signing;
#[path = "cli/snapshot.rs"]
mod snapshot;
#[path = "cli/soundness.rs"]
mod soundness;
#[path = "cli/speculation.rs"]
mod speculation;
#[path = "cli/stages.rs"]
mod stages;
#[path = "cli/surroundings.rs"]
mod surroundings;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/tokenize.rs"]
mod tokenize;
#[cfg(unix)]
#[path = "cli/writing.rs"]
mod writing;

use std::fs;
use std::path::{Path, PathBuf};

use command::{binary, difference, lapidary, lapidary_with, logits, name};
use serde_json::Value;

/// A prompt of the golden files.
const PROMPT: &str = "It is a truth universally acknowledged";

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(file)
}

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("JSON")
}

/// Checks that an object has exactly these fields, each a number.
#[track_caller]
fn numbers(value: &Value, fields: &[&str]) {
    let object = value.as_object().expect("an object");
    assert_eq!(object.keys().collect::<Vec<_>>(), fields);
    for (field, value) in object {
        assert!(value.is_number(), "{field}: {value}");
    }
}

#[test]
fn greedy_text_is_the_reference() {
    let reference = json(&fs::read(golden("greedy.json")).unwrap());
    let (ids, text) = (reference["greedy_ids"].as_array().unwrap(), reference["text"].as_str().unwrap());
    let found = lapidary(&["run", "--temp", "0", "-n", "60", "--json", PROMPT]).json();
    let tokens = found["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 60);
    assert!(ids.ends_with(tokens), "{tokens:?}");
    assert_eq!(format!("{PROMPT}{}", found["text"].as_str().unwrap()), text);
    assert_eq!(found["stop"], "length");

    // Streamed, from stdin, in any chunks, on any number of threads, unfused.
    let streamed = format!("{}\n", found["text"].as_str().unwrap());
    for args in [&["--threads", "1"][..], &["--threads", "2"], &["--chunk", "1"], &["--passes", "none"]] {
        let args = [&["run", "--temp", "0", "-n", "60", "-"], args].concat();
        assert_eq!(lapidary_with(&args, PROMPT.as_bytes()).ok(), streamed, "{args:?}");
    }
}

#[test]
fn statistics() {
    let outcome = lapidary(&["run", "-n", "3", "--stats", "--json", "hello"]);
    for word in ["compile", "load", "prefill", "decode", "weights", "kv local", "kv global", " ms", " tok/s"]
    {
        assert!(outcome.err.contains(word), "{word}: {}", outcome.err);
    }
    let mut stats = outcome.json()["stats"].take();
    let code = ["cpu", "cpu_step", "cpu_features"]
        .map(|field| stats.as_object_mut().unwrap().shift_remove(field).unwrap());
    assert!(
        code[0] == "native" && code[2].as_array().is_some_and(|features| !features.is_empty()),
        "{code:?}"
    );
    let stats = &stats;
    let fields = [
        "compile_ms",
        "load_ms",
        "threads",
        "cores",
        "fast_cores",
        "cpus",
        "prompt_tokens",
        "prefill_ms",
        "prefill_tokens_per_second",
        "generated_tokens",
        "decode_ms",
        "decode_tokens_per_second",
        "weight_bytes",
        "weight_bytes_mapped",
        "kv_local_bytes",
        "kv_global_bytes",
        "kv_bytes",
        "arena_bytes",
        "scratch_bytes",
        "activation_bytes",
    ];
    numbers(stats, &fields);
    assert_eq!((&stats["generated_tokens"], &stats["weight_bytes"]), (&3.into(), &12_324_672.into()));
    let err = lapidary(&["run", "-n", "3", "hello"]).err;
    assert!(err.lines().all(|l| l.starts_with("note: ")), "stderr has notes only unless asked: {err}");
}

#[test]
fn a_seed_decides_the_text() {
    let run = |args: &[&str]| lapidary(&[&["run", "-n", "24", "--temp", "1"], args, &[PROMPT]].concat()).ok();
    let three = run(&["--seed", "3"]);
    assert_eq!(three, run(&["--seed", "3", "--threads", "1"]));
    assert_eq!(three, run(&["--seed", "3", "--threads", "2", "--chunk", "3"]));
    assert_ne!(three, run(&["--seed", "8"]));
    // One candidate leaves no choice.
    assert_eq!(run(&["--top-k", "1", "--seed", "3"]), run(&["--top-k", "1", "--seed", "8"]));
}

#[test]
fn the_context_ends_a_text() {
    let found = lapidary(&["run", "--context", "8", "--temp", "0", "--json", "hello"]).json();
    assert_eq!(found["stop"], "context");
    assert_eq!(lapidary(&["run", "-n", "0", "hello"]).ok(), "\n");
}

#[test]
fn chat() {
    let input = "hello\n/stats\n/reset\n\n/nothing\n/help\nhello\n/quit\nnever\n";
    let outcome = lapidary_with(&["chat", "-n", "6", "--temp", "0"], input.as_bytes());
    assert!(outcome.err.contains("not instruction-tuned"), "{}", outcome.err);
    assert!(outcome.err.contains("error: unknown command `/nothing`"), "{}", outcome.err);
    let out = outcome.ok();
    let (first, rest) = out.split_once("code ").unwrap();
    assert!(out.contains("generated   6 tokens") && out.contains("/reset        forget"), "{out}");
    assert!(rest.ends_with(&format!("\n{first}")), "after /reset the same answer is expected: {out}");

    // A message that does not fit is told; the next is answered.
    let input = format!("{}\nhello\n", "long ".repeat(1100));
    let outcome = lapidary_with(&["chat", "-n", "6", "--temp", "0"], input.as_bytes());
    assert!(outcome.err.contains("error: the message is"), "{}", outcome.err);
    assert_eq!(outcome.ok(), first);
    // History that outgrows the context loses its oldest turns.
    let outcome =
        lapidary_with(&["chat", "-n", "6", "--context", "60"], "hello there\n".repeat(8).as_bytes());
    assert!(outcome.err.contains("its oldest turn is left out"), "{}", outcome.err);
    outcome.ok();
}

#[test]
fn logits_agree_however_they_are_cut() {
    let ids: Vec<String> = (0..40).map(|i| ((i * 97 + 2) % 4096).to_string()).collect();
    let ids = ids.join(",");
    let reference = logits(&ids, &["--activations", "f32"]);
    assert_eq!((reference.0, reference.1), (40, 4096));
    for args in [
        &["--chunk", "1"][..],
        &["--chunk", "7"],
        &["--threads", "1"],
        &["--passes", "none"],
        &["--disable", "softcap", "--disable", "attention"],
        &["-m", name(&folder::tiny())],
    ] {
        let (_, _, found) = logits(&ids, &[args, &["--activations", "f32"]].concat());
        let worst = difference(&found, &reference.2);
        assert!(worst <= 1e-3, "{args:?}: {worst}");
    }
    // A KV cache in bf16: 8 bits of mantissa.
    let worst = difference(&logits(&ids, &[]).2, &reference.2);
    assert!(worst > 0.0 && worst < 0.2, "{worst}");
    // The window of 4 is another model.
    let (_, _, narrow) = logits(&ids, &["--sliding-window", "4"]);
    assert!(difference(&narrow, &reference.2) > 0.2);
}

#[test]
fn ids_may_come_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (list, out) = (dir.path().join("ids"), dir.path().join("out.safetensors"));
    fs::write(&list, "2, 17\n5\n").unwrap();
    // What was there is replaced.
    fs::write(&out, "before").unwrap();
    assert_eq!(lapidary(&["logits", "--ids-file", name(&list), "-o", name(&out)]).ok(), "");
    let bytes = fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, _, values) = logits("2,17,5", &[]);
    let expected: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    assert!(file.tensor("logits").unwrap().data() == expected);
}

#[test]
fn stored_otherwise_the_logits_are_the_same() {
    let ids = "2,1092,537,443,2234,658,3464,793,443,681,3322,915";
    let reference = logits(ids, &["--activations", "f32"]);
    let of = |dir: &tempfile::TempDir| logits(ids, &["--activations", "f32", "-m", name(dir.path())]).2;
    let f32s = folder::converted("F32", |x| x.to_f32().to_le_bytes().into(), 1);
    assert!(difference(&of(&f32s), &reference.2) < 1e-4);
    let shards = folder::converted("BF16", |x| x.to_le_bytes().into(), 3);
    assert!(of(&shards) == reference.2);
    // What bf16 holds below 2^-14 loses bits in f16.
    let f16s = folder::converted("F16", |x| half::f16::from_f32(x.to_f32()).to_le_bytes().into(), 2);
    assert!(difference(&of(&f16s), &reference.2) < 1e-2);
    let inspected = lapidary(&["inspect", "--json", "-m", name(f16s.path())]).json();
    assert_eq!((&inspected["weight_dtype"], &inspected["weight_bytes"]), (&"F16".into(), &12_324_672.into()));
}

/// One token at a time or many at once, and on every CPU that runs here: the same logits from quantised weights.
#[test]
fn quantised_weights_in_every_regime() {
    for weights in ["q8", "q4"] {
        let of = |args: &[&str]| {
            let all = ["--weights", weights, "--no-cache", "--activations", "f32"];
            logits("2,17,5,900,77,3000,12", &[&all[..], args].concat()).2
        };
        let whole = of(&[]);
        for args in [&["--chunk", "1"][..], &["--chunk", "3"], &["--passes", "none"], &["--cpu", "x86-64-v2"]]
        {
            let other = of(args);
            let worst = whole.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{weights} {args:?}: {worst}");
        }
    }
}

/// Table 2 of the Gemma 2 report.
#[test]
fn parameters_are_those_of_the_paper() {
    for (preset, embedding, other) in [
        ("2b", 590_118_912u64, 2_024_517_888u64),
        ("9b", 917_962_752, 8_324_201_984),
        ("27b", 1_180_237_824, 26_047_480_320),
    ] {
        let found = lapidary(&["inspect", "--preset", preset, "--vocab", "256128", "--json"]).json();
        assert_eq!(found["embedding_params"], embedding);
        assert_eq!(found["non_embedding_params"], other);
        assert_eq!(found["total_params"], embedding + other);
        let people = lapidary(&["inspect", "--preset", preset, "--vocab", "256128"]).ok();
        assert!(people.contains("non-embedding parameters"), "{people}");
    }
}

#[test]
fn inspect_has_its_fields() {
    let found = lapidary(&["inspect", "--context", "600", "--chunk", "100", "--json"]).json();
    let fields = [
        "model",
        "config",
        "embedding_params",
        "non_embedding_params",
        "total_params",
        "weight_dtype",
        "weight_bytes",
        "weight_formats",
        "context",
        "chunk",
        "kv_dtype",
        "kv_bytes",
        "kv_local_bytes",
        "kv_global_bytes",
        "flops_per_token",
        "flops_per_token_at_context",
    ];
    assert_eq!(found.as_object().unwrap().keys().collect::<Vec<_>>(), fields);
    assert_eq!(found["config"]["model_type"], "gemma2");
    // 3 local layers of 128 + 100 rows, 2 global ones of 600; keys and values, 2 heads of 64, 2 bytes.
    assert_eq!(found["kv_local_bytes"], 3 * 228 * 2 * 2 * 64 * 2);
    assert_eq!(found["kv_global_bytes"], 2 * 600 * 2 * 2 * 64 * 2);
    // A folder with a configuration alone will do.
    let dir = tempfile::tempdir().unwrap();
    fs::copy(folder::tiny().join("config.json"), dir.path().join("config.json")).unwrap();
    let bare = lapidary(&["inspect", "-m", name(dir.path()), "--json"]).json();
    assert_eq!(bare["total_params"], 6_162_336);
}

#[test]
fn synthetic_weights_run() {
    let dir = folder::small();
    let model = name(dir.path());
    assert_eq!(lapidary(&["inspect", "-m", model, "--json"]).json()["config"]["hidden_size"], 32);
    let found = lapidary(&["run", "-m", model, "--json", "--temp", "0", "-n", "5", "hello"]).json();
    assert_eq!(found["tokens"].as_array().unwrap().len(), 5);
}

/// `lapidary ... | head -1`.
#[test]
fn a_reader_that_leaves_is_no_failure() {
    for args in
        [&["run", "hello"][..], &["opt", "--emit", "asm"], &["rules"], &["inspect", "--json"], &["--help"]]
    {
        let mut child = binary().args(args).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(err.lines().all(|l| l.starts_with("note: ")), "{args:?}: {err}");
    }
}
