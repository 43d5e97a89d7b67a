//! Bad input: one line on stderr that names the thing, exit code 1, no panic, no file left.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::command::{Outcome, binary, lapidary, lapidary_with, name};
use crate::folder::{self, INDEX, Parts, WEIGHTS, edit, edit_weights};

/// A tensor of the small model.
const DOWN: &str = "model.layers.1.mlp.down_proj.weight";

/// `logits` on a folder. What it should write is not there afterwards if it failed, under no name.
#[track_caller]
fn logits(dir: &Path) -> Outcome {
    let out = tempfile::tempdir().expect("a folder");
    let path = out.path().join("out.safetensors");
    let outcome = lapidary(&["logits", "-m", name(dir), "--ids", "2,5", "-o", name(&path)]);
    let left = fs::read_dir(out.path()).expect("the folder").count();
    assert_eq!(left, usize::from(outcome.code == Some(0)), "{}", outcome.err);
    outcome
}

/// Checks that a changed folder fails.
#[track_caller]
fn refused(change: impl FnOnce(&Path), named: &[&str]) {
    let dir = folder::small();
    change(dir.path());
    logits(dir.path()).fails(named);
}

/// Checks that a folder with another config.json fails.
#[track_caller]
fn config_refused(field: &str, value: Value, named: &[&str]) {
    refused(
        |dir| edit(&dir.join("config.json"), |c| c[field] = value),
        &[named, &["config.json", field]].concat(),
    );
}

#[test]
fn the_small_model_loads() {
    logits(folder::small().path()).ok();
}

#[test]
fn malformed_weights() {
    let cut = |keep: fn(usize) -> usize| {
        move |dir: &Path| {
            let bytes = fs::read(dir.join(WEIGHTS)).expect("weights");
            fs::write(dir.join(WEIGHTS), &bytes[..keep(bytes.len())]).expect("written");
        }
    };
    refused(cut(|n| n - 100), &[WEIGHTS, "model.layers.1.", "cut short"]);
    refused(cut(|_| 100), &[WEIGHTS, "header"]);
    refused(cut(|_| 7), &[WEIGHTS, "7 bytes"]);
    refused(cut(|_| 0), &[WEIGHTS, "0 bytes"]);
    for length in [1u64 << 40, u64::MAX] {
        let header = |dir: &Path| {
            let mut bytes = fs::read(dir.join(WEIGHTS)).expect("weights");
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            fs::write(dir.join(WEIGHTS), bytes).expect("written");
        };
        refused(header, &[WEIGHTS, "header", &length.to_string()]);
    }
    let folder = |dir: &Path| {
        fs::remove_file(dir.join(WEIGHTS)).expect("removed");
        fs::create_dir(dir.join(WEIGHTS)).expect("made");
    };
    refused(folder, &[WEIGHTS, "folder"]);
    let absent = |dir: &Path| fs::remove_file(dir.join(WEIGHTS)).expect("removed");
    refused(absent, &[WEIGHTS, INDEX]);
}

#[test]
fn wrong_tensors() {
    let weights = |change: fn(&mut Parts)| move |dir: &Path| edit_weights(dir, change);
    let overlap = |p: &mut Parts| {
        let twin = p.header["model.layers.1.mlp.gate_proj.weight"]["data_offsets"].clone();
        p.header["model.layers.1.mlp.up_proj.weight"]["data_offsets"] = twin;
    };
    refused(weights(overlap), &[WEIGHTS, "model.layers.1.mlp.", "overlap"]);
    refused(weights(|p| p.header[DOWN]["shape"] = json!([48, 32])), &[DOWN, "[32, 48]", "[48, 32]"]);
    refused(weights(|p| p.header[DOWN]["shape"] = json!([32, 47])), &[DOWN, "bytes for its shape"]);
    refused(weights(|p| p.header[DOWN]["dtype"] = json!("I16")), &[DOWN, "I16"]);
    refused(weights(|p| p.header[DOWN]["dtype"] = json!("F4")), &[DOWN, "F4"]);
    refused(weights(|p| p.header[DOWN] = json!(3)), &[DOWN]);
    refused(weights(|p| p.push("model.layers.7.x", "BF16", &json!([2]), &[0; 4])), &["model.layers.7.x"]);
    let absent = |p: &mut Parts| {
        p.data.truncate(p.range("model.norm.weight").start);
        p.header.remove("model.norm.weight");
    };
    refused(weights(absent), &["model.norm.weight", "no such tensor"]);
    let hostile = |p: &mut Parts| p.push("a\nb\u{1b}[31m", "BF16", &json!([2]), &[0; 4]);
    refused(weights(hostile), &[r"a\nb\u{1b}[31m"]);
}

/// Moves the weights into one shard under an index of `weight_map`'s making.
fn sharded(dir: &Path, shard: &str, index: impl FnOnce(&Parts) -> Value) {
    let parts = Parts::read(&dir.join(WEIGHTS));
    fs::rename(dir.join(WEIGHTS), dir.join(shard)).expect("renamed");
    fs::write(dir.join(INDEX), index(&parts).to_string()).expect("written");
}

/// An index that puts all tensors into `shard`.
fn all_in(shard: &'static str) -> impl FnOnce(&Parts) -> Value {
    move |parts| {
        let names = parts.header.keys().filter(|n| *n != "__metadata__");
        let map: serde_json::Map<String, Value> = names.map(|n| (n.clone(), shard.into())).collect();
        json!({ "weight_map": map, "not known": 1 })
    }
}

#[test]
fn shards() {
    let dir = folder::small();
    sharded(dir.path(), "a.safetensors", all_in("a.safetensors"));
    logits(dir.path()).ok();

    refused(|d| sharded(d, "a.safetensors", all_in("b.safetensors")), &["b.safetensors", "shard"]);
    for outside in ["../a.safetensors", "/a.safetensors", "x/../../a.safetensors", "", "a.bin"] {
        refused(|d| sharded(d, "a.safetensors", all_in(outside)), &[INDEX, "weight_map", outside]);
    }
    refused(|d| sharded(d, "a.safetensors", |_| json!({ "weight_map": {} })), &[INDEX, "weight_map"]);
    refused(|d| sharded(d, "a.safetensors", |_| json!({ "metadata": {} })), &[INDEX, "weight_map"]);
    refused(|d| sharded(d, "a.safetensors", |_| json!([1])), &[INDEX, "weight_map"]);
    let other = |parts: &Parts| {
        let mut index = all_in("a.safetensors")(parts);
        index["weight_map"]["model.layers.9.x"] = "b.safetensors".into();
        index
    };
    refused(|d| sharded(d, "a.safetensors", other), &["b.safetensors", "shard"]);
}

#[test]
fn configurations() {
    config_refused("model_type", json!("llama"), &["gemma2", "llama"]);
    config_refused("hidden_activation", json!("silu"), &["gelu_pytorch_tanh", "silu"]);
    config_refused("attention_bias", json!(true), &["true"]);
    config_refused("rope_scaling", json!({ "factor": 2 }), &[]);
    config_refused("head_dim", Value::Null, &["null"]);
    config_refused("head_dim", json!(15), &["even"]);
    config_refused("layer_types", json!(["full_attention", "x"]), &[]);
    config_refused("eos_token_id", json!(4096), &["4096"]);
    refused(|d| fs::remove_file(d.join("config.json")).expect("removed"), &["no config.json"]);
    for text in ["", "{", "[]", "\u{0}", "{} {}", "null"] {
        refused(|d| fs::write(d.join("config.json"), text).expect("written"), &["config.json"]);
    }
    refused(|d| fs::write(d.join("config.json"), [0xff, 0xfe]).expect("written"), &["config.json"]);
    refused(|d| fs::write(d.join("config.json"), "[".repeat(1 << 20)).expect("written"), &["config.json"]);
    let folder = |dir: &Path| {
        fs::remove_file(dir.join("config.json")).expect("removed");
        fs::create_dir(dir.join("config.json")).expect("made");
    };
    refused(folder, &["config.json"]);
}

/// Sizes that are refused, or that the tensors do not have, cost no memory: 2 GiB of addresses do.
#[test]
#[cfg(target_os = "linux")]
fn absurd_sizes_allocate_nothing() {
    let sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"];
    let values = [json!(1u64 << 24), json!(1u64 << 40), json!(u64::MAX), json!(1e300), json!(-1), json!(0)];
    let dir = folder::small();
    let out = dir.path().join("out.safetensors");
    let path = dir.path().join("config.json");
    let before = fs::read(&path).expect("config.json");
    for field in sizes {
        for value in &values {
            fs::write(&path, &before).expect("written");
            edit(&path, |c| c[field] = value.clone());
            let outcome = std::process::Command::new("sh")
                .args([
                    "-c",
                    "ulimit -v 2097152; exec \"$0\" \"$@\"",
                    binary().get_program().to_str().expect("UTF-8"),
                ])
                .args(["logits", "-m", name(dir.path()), "--ids", "2", "-o", name(&out)])
                .output()
                .expect("sh runs");
            let error = String::from_utf8(outcome.stderr).expect("UTF-8");
            assert_eq!(outcome.status.code(), Some(1), "{field} {value}: {error}");
            assert_eq!(error.lines().count(), 1, "{field} {value}: {error}");
        }
    }
}

#[test]
fn tokenizers() {
    let run = |dir: &Path| lapidary(&["run", "-m", name(dir), "-n", "1", "hi"]);
    let with = |file: &str, text: &str| {
        let dir = folder::small();
        fs::write(dir.path().join(file), text).expect("written");
        run(dir.path())
    };
    run(folder::small().path()).ok();
    for text in ["", "{}", "[]", "{\"model\": 1}"] {
        with("tokenizer.json", text).fails(&["tokenizer.json"]);
        logits_after("tokenizer.json", text).fails(&["tokenizer.json"]);
    }
    with("tokenizer_config.json", "{\"bos_token\": \"<nope>\"}").fails(&["tokenizer.json", "BOS", "<nope>"]);
    with("tokenizer_config.json", "{\"bos_token\": \"<eos>\"}").fails(&["bos_token_id"]);
    with("tokenizer_config.json", "{\"bos_token\": 7}").fails(&["tokenizer_config.json", "bos_token"]);
    with("tokenizer_config.json", "{\"chat_template\": \"{% if\"}").fails(&["chat template"]);
    with("generation_config.json", "{\"eos_token_id\": 99999}").fails(&["generation_config.json", "99999"]);

    // Without any, text is of no use, and ids are.
    let dir = folder::small();
    fs::remove_file(dir.path().join("tokenizer.json")).expect("removed");
    run(dir.path()).fails(&[name(dir.path()), "no tokenizer.json"]);
    lapidary(&["chat", "-m", name(dir.path())]).fails(&["no tokenizer.json"]);
    logits(dir.path()).ok();
}

/// `logits` on a folder with another file.
fn logits_after(file: &str, text: &str) -> Outcome {
    let dir = folder::small();
    fs::write(dir.path().join(file), text).expect("written");
    logits(dir.path())
}

#[test]
fn paths() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    fs::write(&file, "x").expect("written");
    let (folder, file, nothing) = (name(dir.path()), name(&file), name(&dir.path().join("no")).to_owned());
    for command in [&["run", "hi"][..], &["chat"], &["inspect"], &["opt"], &["eval", "--text", file]] {
        lapidary(&[command, &["-m", &nothing]].concat()).fails(&[&nothing, "nothing"]);
        lapidary(&[command, &["-m", file]].concat()).fails(&[file, "a file"]);
        lapidary(&[command, &["-m", folder]].concat()).fails(&[folder, "config.json"]);
    }
    lapidary(&["eval", "--text", &nothing]).fails(&[&nothing]);
    lapidary(&["eval", "--text", folder]).fails(&[folder]);
    lapidary(&["opt", &nothing]).fails(&[&nothing]);
    lapidary(&["opt", folder]).fails(&[folder]);
    lapidary(&["opt", file]).fails(&[file, "line 1"]);
    lapidary_with(&["opt", "-"], b"").fails(&["stdin", "function"]);
    lapidary_with(&["opt", "-"], b"\xff").fails(&["stdin", "UTF-8"]);
    lapidary_with(&["run", "-"], b"\xff").fails(&["stdin", "UTF-8"]);
    lapidary(&["logits", "--ids-file", &nothing, "-o", &nothing]).fails(&[&nothing]);
    lapidary(&["logits", "--ids-file", file, "-o", &nothing]).fails(&[file, "`x`"]);

    let inside = format!("{file}/out");
    for unwritable in [folder, "/", &inside] {
        lapidary(&["logits", "--ids", "2", "-o", unwritable]).fails(&[unwritable]);
    }
    for unwritable in [file, &inside] {
        lapidary(&["synth", "--preset", "2b", "--layers", "1", "-o", unwritable]).fails(&[unwritable]);
    }
    lapidary(&["synth", "--preset", "2b", "--layers", "1", "-o", folder]).fails(&[folder, "--force"]);
    assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 1);
}

#[test]
fn tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out.safetensors");
    let logits = |args: &[&str]| lapidary(&[&["logits", "-o", name(&out)], args].concat());
    logits(&["--ids", "2,4096"]).fails(&["token id 4096", "4096 entries"]);
    logits(&["--ids", "2,4294967295"]).fails(&["token id 4294967295"]);
    logits(&["--ids", "2,3,4,5", "--context", "3"]).fails(&["4 tokens", "context is 3"]);
    lapidary(&["run", "--context", "3", "once upon a time"]).fails(&["the prompt", "context is 3"]);
    lapidary(&["run", &"long ".repeat(1100)]).fails(&["the prompt", "context is 1024"]);
    assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 0);
}

#[test]
fn not_a_number() {
    let dir = folder::small();
    edit_weights(dir.path(), |p| {
        let start = p.range("model.norm.weight").start;
        p.data[start..start + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    });
    let model = name(dir.path());
    for temperature in ["0", "0.7"] {
        let args = ["run", "-m", model, "-n", "3", "--temp", temperature, "hi"];
        lapidary(&args).fails(&[model, "NaN"]);
    }
    let text = dir.path().join("text");
    fs::write(&text, "some words").expect("written");
    lapidary(&["eval", "-m", model, "--text", name(&text), "--json"]).fails(&[model, "NaN"]);
    let outcome = logits(dir.path());
    assert!(outcome.err.contains("warning: ") && outcome.err.contains("NaN"), "{}", outcome.err);
}
