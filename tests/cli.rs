//! The command line, end to end: what each command prints, writes and exits with, on the built-in model and on folders
//! made here. `cli/bad_input.rs` has what is refused, `cli/inputs.rs` files that are none, `cli/outputs.rs` outputs
//! that are inputs, `cli/interrupt.rs` signals, `cli/refusals.rs` what the system refuses.
#![allow(clippy::unwrap_used)]

#[path = "cli/artifact.rs"]
mod artifact;
#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/call.rs"]
mod call;
#[path = "cli/chat.rs"]
mod chat;
#[path = "cli/command.rs"]
mod command;
#[path = "cli/configuration.rs"]
mod configuration;
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
#[path = "cli/signing.rs"]
mod signing;
#[path = "cli/snapshot.rs"]
mod snapshot;
#[path = "cli/speculation.rs"]
mod speculation;
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

/// The figures of the built-in model's README: transformers, float32.
#[test]
fn perplexity_is_the_reference() {
    let text = golden("eval.txt");
    let eval = |args: &[&str]| {
        let all = ["eval", "--text", name(&text), "--context", "512", "--json"];
        let found = lapidary(&[&all, args].concat()).json();
        numbers(&found, &["tokens", "nll", "perplexity"]);
        assert_eq!(found["tokens"], 6599);
        let (nll, perplexity) = (found["nll"].as_f64().unwrap(), found["perplexity"].as_f64().unwrap());
        assert!((nll.exp() - perplexity).abs() < 1e-6);
        perplexity
    };
    let near =
        |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.005, "{found}, {expected}");
    let whole = eval(&[]);
    let half = eval(&["--sliding-window", "64"]);
    near(whole, 38.543);
    near(half, 38.841);
    // The change itself, nearer than the figures.
    let change = half - whole;
    assert!((change - 0.298).abs() < 0.03, "{change}");
}

#[test]
fn evaluation_with_an_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, &fs::read(golden("eval.txt")).unwrap()[..1200]).unwrap();
    let eval = |args: &[&str]| {
        lapidary(&[&["eval", "--text", name(&text), "--context", "64", "--json"], args].concat()).json()
    };
    let (plain, same, overlap) = (eval(&[]), eval(&["--stride", "63"]), eval(&["--stride", "16"]));
    assert_eq!(plain, same);
    assert_eq!(plain["tokens"], overlap["tokens"]);
    assert!(overlap["nll"].as_f64() < plain["nll"].as_f64(), "more context predicts better");
    let people = lapidary(&["eval", "--text", name(&text), "--context", "64"]).ok();
    assert!(people.contains("perplexity") && people.lines().count() == 3, "{people}");
}

/// Quantised weights predict nearly as well, and `--against` says how nearly.
#[test]
fn quantised_weights_keep_the_perplexity() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, &fs::read(golden("eval.txt")).unwrap()[..4000]).unwrap();
    for (weights, most, divergence) in [("q8", 0.003, 1e-3), ("q4", 0.04, 0.1)] {
        let args = ["eval", "--text", name(&text), "--context", "256", "--json", "--no-cache"];
        let found = lapidary(&[&args[..], &["--weights", weights, "--against", "bf16"]].concat()).json();
        let (ours, theirs) =
            (found["perplexity"].as_f64().unwrap(), found["against"]["perplexity"].as_f64().unwrap());
        assert!((ours / theirs - 1.0).abs() < most, "{weights}: {ours} against {theirs}");
        let kl = found["against"]["mean_kl"].as_f64().unwrap();
        assert!(kl > 0.0 && kl < divergence, "{weights}: KL {kl}");
        let same = found["against"]["top1_agreement"].as_f64().unwrap();
        assert!(same > 0.8 && same <= 1.0, "{weights}: top-1 agreement {same}");
    }
}

/// What `--activations auto` costs: bf16 or, of quantised weights, 8-bit blocks.
#[test]
fn rounded_activations_keep_the_distribution() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, &fs::read(golden("eval.txt")).unwrap()[..2000]).unwrap();
    for (weights, most) in [("bf16", 1e-4), ("q8", 1e-3), ("q4", 1e-3)] {
        for chunk in ["512", "1"] {
            let args = ["eval", "--text", name(&text), "--context", "256", "--json", "--no-cache"];
            let how = ["--weights", weights, "--chunk", chunk, "--against-activations", "f32"];
            let found = lapidary(&[&args[..], &how].concat()).json();
            let kl = found["against"]["mean_kl"].as_f64().unwrap();
            assert!(kl > 0.0 && kl <= most, "{weights}, chunk {chunk}: KL {kl}");
        }
    }
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

#[test]
fn bench_measures_what_it_says() {
    let args = ["bench", "--prompt-tokens", "8", "--gen-tokens", "4", "--depth", "3", "--repeat", "1"];
    let found = lapidary(&[&args[..], &["--kernels", "--json"]].concat()).json();
    for ceiling in ["read_gbps", "matrix_gflops"] {
        assert!(found["machine"][ceiling].as_f64().unwrap() > 0.0);
    }
    let results = found["results"].as_array().unwrap();
    let phases: Vec<_> = results.iter().map(|r| (r["phase"].as_str(), r["tokens"].as_u64())).collect();
    assert_eq!(phases, [(Some("prefill"), Some(8)), (Some("decode"), Some(4))]);
    for result in results {
        // The built-in model: two operations a weight and more, and every layer's weights read once a call.
        assert!(result["flops_per_token"].as_f64().unwrap() > 2.0 * 4_982_688.0 * 0.99);
        assert!(result["tokens_per_s"].as_f64().unwrap() > 0.0);
        assert!(!result["kernels"].as_array().unwrap().is_empty());
    }
    assert!(results[1]["bytes_per_token"].as_f64().unwrap() > 2.0 * 4_982_688.0);
}

/// Of N sequences a step reads every weight once, and N times the keys and values.
#[test]
fn bench_decodes_several_sequences_at_once() {
    let args = [
        "bench",
        "--context",
        "512",
        "--prompt-tokens",
        "1",
        "--gen-tokens",
        "2",
        "--depth",
        "30",
        "--repeat",
        "1",
    ];
    let found = lapidary(&[&args[..], &["--sequences", "1,3,40", "--kernels", "--json"]].concat()).json();
    let decode: Vec<_> = found["results"].as_array().unwrap().iter().skip(1).collect();
    let figure = |at: usize, name: &str| decode[at][name].as_f64().unwrap();
    assert_eq!([0, 1, 2].map(|at| figure(at, "sequences")), [1.0, 3.0, 40.0]);
    for at in 0..3 {
        assert!(figure(at, "tokens_per_s") > 0.0);
        assert!((figure(at, "flops_per_token") / figure(0, "flops_per_token") - 1.0).abs() < 0.01);
    }
    // Keys and values are a KiB a position and layer; 40 rows are two calls.
    let (one, three, forty) =
        (figure(0, "bytes_per_token"), figure(1, "bytes_per_token"), figure(2, "bytes_per_token"));
    assert!(three > one / 3.0 && three < one / 2.0, "{three} of {one}");
    assert!(forty > one / 20.0 && forty < one / 10.0, "{forty} of {one}");
    for result in decode {
        assert!(result["kernels"].as_array().unwrap().iter().all(|k| k["ms"].as_f64().unwrap() > 0.0));
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

#[test]
fn stages() {
    for stage in ["ir", "fused", "kernels", "clif", "asm", "plan"] {
        let text = lapidary(&["opt", "--fn", "layer_local", "--rows", "1", "--emit", stage]).ok();
        assert!(text.lines().count() > 5 && text.contains("layer_local"), "{stage}: {text}");
    }
    let fused = lapidary(&["opt", "--rows", "1"]).ok();
    for op in ["(attention ", "(rope ", "(norm_prologue ", "(cap 30.0)", "(add_rms_norm ", " gate)"] {
        assert!(fused.contains(op), "{op} is not there: {fused}");
    }
    let figures = lapidary(&["opt", "--json", "--fn", "head"]).json();
    assert_eq!((&figures[0]["function"], &figures[0]["stop"]), (&"head".into(), &"saturated".into()));
    assert!(figures[0]["kernels"][0]["code_bytes"].as_u64() > Some(0));
    lapidary(&["opt", "--fn", "x"]).fails(&["`x`", "layer_local"]);
    lapidary(&["opt", "--rows", "600"]).fails(&["--rows is 600"]);
}

/// A function without its comments.
fn code(text: &str) -> String {
    let lines = text.lines().map(|l| l.split(';').next().unwrap_or("").trim_end());
    lines.filter(|l| !l.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn stages_compose() {
    let written = lapidary(&["opt", "--emit", "ir"]).ok();
    let fused = lapidary(&["opt"]).ok();
    let again = lapidary_with(&["opt", "-", "--emit", "fused", "--context", "1024"], written.as_bytes()).ok();
    assert_eq!(code(&again), code(&fused));
    // What was fused parses, from a file, and is as cheap as it gets.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fused.ir");
    fs::write(&file, &fused).unwrap();
    assert_eq!(code(&lapidary(&["opt", name(&file), "--emit", "ir"]).ok()), code(&fused));
    // Without passes, what comes out is what was written; without one rule, its op is not.
    let unfused = lapidary(&["opt", "--fn", "head", "--passes", "none"]).ok();
    assert_eq!(code(&unfused), code(&lapidary(&["opt", "--fn", "head", "--emit", "ir"]).ok()));
    let one = lapidary(&["opt", "--fn", "layer_global", "--disable", "attention"]).ok();
    assert!(!one.contains("(attention "), "{one}");
}

#[test]
fn rules() {
    let all = lapidary(&["rules", "--json"]).json();
    let names: Vec<&str> = all.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"softcap") && names.contains(&"attention"), "{names:?}");
    assert_eq!(lapidary(&["rules"]).ok().lines().count(), names.len());
    // Each can be left out; without all of them nothing changes.
    let disable: Vec<&str> = names.iter().flat_map(|n| ["--disable", n]).collect();
    let none = lapidary(&[&["opt", "--fn", "head"], &disable[..]].concat()).ok();
    assert_eq!(code(&none), code(&lapidary(&["opt", "--fn", "head", "--emit", "ir"]).ok()));
    let one = lapidary(&["rules", "--show", "softcap", "--json"]).json();
    assert!(one["rhs"].as_str().unwrap().contains("softcap"), "{one}");
    assert!(lapidary(&["rules", "--show", "softcap"]).ok().contains("=>"));
}

#[test]
fn help_has_examples() {
    let commands =
        ["run", "chat", "logits", "eval", "inspect", "synth", "opt", "rules", "check-rules", "bisect"];
    let overview = lapidary(&["--help"]).ok();
    for command in commands {
        assert!(overview.contains(&format!("  {command} ")), "{overview}");
        let help = lapidary(&[command, "--help"]).ok();
        assert!(help.contains("Example") && help.contains(&format!("  lapidary {command}")), "{help}");
    }
}

#[test]
fn mistakes_in_arguments() {
    let cases: [(&[&str], &str); 25] = [
        (&[], "Usage"),
        (&["walk"], "walk"),
        (&["run"], "PROMPT"),
        (&["run", "--temp", "-1", "x"], "--temp"),
        (&["run", "--temp", "nan", "x"], "--temp"),
        (&["run", "--top-p", "2", "x"], "--top-p"),
        (&["run", "--repeat-penalty", "0", "x"], "--repeat-penalty"),
        (&["run", "--threads", "0", "x"], "--threads"),
        (&["run", "--context", "0", "x"], "--context"),
        (&["run", "--bogus", "x"], "--bogus"),
        (&["run", "--cpu", "z80", "x"], "z80"),
        (&["run", "--weights", "q9", "x"], "--weights"),
        (&["bench", "--prompt-tokens", "0"], "--prompt-tokens"),
        (&["bench", "--depth", "5000000000"], "positions"),
        (&["run", "--disable", "nothing", "x"], "`nothing`"),
        (&["run", "--passes", "nothing", "x"], "`nothing`"),
        (&["logits", "--ids", "2,x", "-o", "/nowhere/out"], "`x`"),
        (&["logits", "--ids", "2"], "--output"),
        (&["logits", "--ids", "2", "--activations", "f16", "-o", "/nowhere/out"], "f16"),
        (&["eval"], "--text"),
        (&["eval", "--text", "x", "--stride", "0"], "--stride"),
        (&["inspect", "--preset", "3b"], "3b"),
        (&["synth", "--preset", "2b", "--layers", "99999999999", "-o", "/nowhere"], "--layers"),
        (&["opt", "--emit", "wasm"], "wasm"),
        (&["rules", "--show", "nothing"], "`nothing`"),
    ];
    for (args, named) in cases {
        let outcome = lapidary(args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {}", outcome.err);
        assert!(outcome.err.contains(named), "{args:?}: {}", outcome.err);
        assert_eq!(outcome.out, "", "{args:?}");
    }
}

#[test]
fn cpus_have_names_and_those_of_the_target_are_told() {
    let help = lapidary(&["compile", "--cpu", "help", "-o", "/nowhere.lap"]).ok();
    assert_eq!(lapidary(&["run", "--cpu", "help"]).code, Some(0));
    for name in
        ["native", "x86-64-v4-vnni", "icelake-server", "cortex-a76", "neoverse-v2", "apple-m1", "spacemit-k1"]
    {
        assert!(help.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name}: {help}");
    }
    let refused = |args: &[&str]| {
        let outcome = lapidary(&[args, &["-o", "/nowhere.lap"]].concat());
        assert_eq!((outcome.code, outcome.err.lines().count()), (Some(2), 1), "{args:?}: {}", outcome.err);
        outcome.err
    };
    let arm = ["compile", "--target", "aarch64-unknown-linux-gnu", "--cpu"];
    for more in [&[][..], &["--emit", "object"]] {
        let text = refused(&[&arm[..], &["cortex-a67"], more].concat());
        assert!(text.contains("did you mean `cortex-a") && text.contains("neoverse-v1"), "{text}");
        assert!(!text.contains("x86-64-v3") && !text.contains("rv64gcv"), "{text}");
        let text = refused(&[&arm[..], &["znver4"], more].concat());
        assert!(text.contains("one of x86_64-unknown-linux-gnu") && text.contains("apple-m4"), "{text}");
    }
    let text = refused(&["compile", "--cpu", "znver9000"]);
    assert!(text.contains("did you mean `znver"), "{text}");
    assert_eq!(text.contains("cortex-a76"), cfg!(target_arch = "aarch64"), "{text}");
}

#[test]
fn code_for_another_cpu_does_not_run_here() {
    let other = if cfg!(target_arch = "x86_64") { "aarch64" } else { "x86-64-v3" };
    lapidary(&["run", "--cpu", other, "x"]).fails(&["--cpu", other]);
    lapidary(&["opt", "--cpu", other, "--fn", "head", "--emit", "asm"]).ok();
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
