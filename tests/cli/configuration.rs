//! Folders as publishers and trainers leave them: what changes nothing is silent, what nobody knows is one warning, a
//! usual cause is named.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::command::{Outcome, lapidary, name};
use super::folder::{self, INDEX, Parts, WEIGHTS, edit};

/// The small model with fields added to its configuration.
fn with(fields: Value) -> tempfile::TempDir {
    let dir = folder::small();
    edit(&dir.path().join("config.json"), |config| {
        for (name, value) in fields.as_object().expect("an object") {
            config[name] = value.clone();
        }
    });
    dir
}

/// The warnings of a command that succeeded, each a line without control characters.
#[track_caller]
fn warnings(outcome: &Outcome) -> Vec<&str> {
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    assert!(outcome.err.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", outcome.err);
    outcome.err.lines().filter(|line| line.starts_with("warning: ")).collect()
}

/// Every command that opens a folder, with what it writes under `out`.
fn commands(model: &Path, out: &Path) -> Vec<Outcome> {
    let at = |file: &str| out.join(file).to_str().expect("UTF-8").to_string();
    let model = name(model);
    vec![
        lapidary(&["run", "-m", model, "-n", "1", "hi"]),
        lapidary(&["inspect", "-m", model]),
        lapidary(&["logits", "-m", model, "--ids", "2", "-o", &at("logits.safetensors")]),
        lapidary(&["opt", "-m", model, "--fn", "embed"]),
        lapidary(&["quantize", "-m", model, "-o", &at("q8"), "--weights", "q8"]),
        lapidary(&["compile", "-m", model, "-o", &at("model.lap")]),
    ]
}

#[test]
fn published_fields_are_silent() {
    let dir =
        with(json!({ "sliding_window_size": 8, "_attn_implementation": "eager", "hidden_act": "gelu" }));
    let out = tempfile::tempdir().expect("a folder");
    for outcome in commands(dir.path(), out.path()) {
        assert_eq!(warnings(&outcome), Vec::<&str>::new());
    }
}

#[test]
fn unknown_fields_are_one_warning() {
    let dir = with(json!({ "brand_new": 1, "second\u{1b}]0;x\u{7}\u{9b}2J": "two", "unsloth_version": "x" }));
    let out = tempfile::tempdir().expect("a folder");
    let expected = format!(
        concat!(
            r#"warning: {}/config.json: fields are not known and ignored: "brand_new", "#,
            r#""second\u{{1b}}]0;x\u{{7}}\u{{9b}}2J""#
        ),
        name(dir.path())
    );
    let all = commands(dir.path(), out.path());
    for outcome in &all {
        assert_eq!(warnings(outcome), [expected.as_str()]);
    }
    // The text is that of the folder without them.
    let plain = lapidary(&["run", "-m", name(folder::small().path()), "-n", "1", "hi"]).ok();
    assert_eq!(all[0].out, plain);
    // What was compiled from it needs no warning any more.
    assert_eq!(
        warnings(&lapidary(&["run", "-m", name(&out.path().join("model.lap")), "-n", "1", "hi"])),
        [""; 0]
    );
    // A configuration alone warns too.
    fs::remove_file(dir.path().join(WEIGHTS)).expect("removed");
    assert_eq!(warnings(&lapidary(&["inspect", "-m", name(dir.path())])), [expected.as_str()]);
    std::os::unix::fs::symlink("../blobs/gone", dir.path().join(WEIGHTS)).expect("linked");
    lapidary(&["inspect", "-m", name(dir.path())]).fails(&[WEIGHTS, "a link to \"../blobs/gone\""]);
}

/// Tensors under another prefix, in an index that is not exact, beside a head in another dtype: the same model,
/// quantised too.
#[test]
fn strange_checkpoints_are_the_same_model() {
    let plain = folder::small();
    let strange = folder::small();
    let mut parts = Parts::read(&strange.path().join(WEIGHTS));
    let table = parts.data[parts.range("model.embed_tokens.weight")].to_vec();
    let header = std::mem::take(&mut parts.header);
    for (tensor, entry) in header {
        let prefix = if tensor == "__metadata__" { "" } else { "_orig_mod." };
        parts.header.insert(format!("{prefix}{tensor}"), entry);
    }
    let head: Vec<u8> = table
        .as_chunks()
        .0
        .iter()
        .flat_map(|b| half::bf16::from_le_bytes(*b).to_f32().to_le_bytes())
        .collect();
    parts.push("_orig_mod.lm_head.weight", "F32", &json!([4096, 32]), &head);
    fs::remove_file(strange.path().join(WEIGHTS)).expect("removed");
    parts.write(&strange.path().join("a.safetensors"));
    let map = json!({ "_orig_mod.model.norm.weight": "a.safetensors", "gone.weight": "a.safetensors" });
    fs::write(strange.path().join(INDEX), json!({ "weight_map": map }).to_string()).expect("written");

    let text = |dir: &Path, args: &[&str]| {
        lapidary(&[&["run", "-m", name(dir), "--temp", "0", "-n", "8", "--json", "hello"], args].concat())
    };
    for args in [&[][..], &["--weights", "q8"], &["--weights", "q4", "--no-cache"]] {
        let found = text(strange.path(), args);
        let expected = format!("warning: {}", name(&strange.path().join(INDEX)));
        assert!(
            matches!(warnings(&found)[..], [one] if one.starts_with(&expected) && one.contains("\"gone.weight\""))
        );
        assert_eq!(found.json()["tokens"], text(plain.path(), args).json()["tokens"], "{args:?}");
    }
    // Written anew, nothing is strange about it.
    let out = tempfile::tempdir().expect("a folder");
    lapidary(&["quantize", "-m", name(strange.path()), "-o", name(out.path()), "--weights", "q8"]).ok();
    assert_eq!(warnings(&text(out.path(), &[])), [""; 0]);
}

#[test]
fn usual_causes_are_named() {
    let fails = |model: &str, named: &[&str]| {
        for command in [&["run", "hi"][..], &["inspect"], &["compile", "-o", "/nonexistent/x.lap"][..1]] {
            if command[0] != "compile" {
                lapidary(&[command, &["-m", model]].concat()).fails(named);
            }
        }
    };
    // A name of the hub, which the tests do not reach.
    fails("google/gemma-2-2b-it", &["nothing is at google/gemma-2-2b-it", "by name", "HF_HUB_OFFLINE"]);
    fails("gemma2:2b", &["gemma2:2b", "ollama"]);
    let dir = folder::small();
    fs::write(dir.path().join(WEIGHTS), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        .expect("written");
    fails(name(dir.path()), &[WEIGHTS, "Git LFS pointer"]);
    let file = dir.path().join("model.gguf");
    fs::write(&file, "GGUF").expect("written");
    fails(name(&file), &["model.gguf", "version", "cut short"]);
    // An artifact, too.
    let file = dir.path().join("model.lap");
    fs::write(&file, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").expect("written");
    fails(name(&file), &["model.lap", "Git LFS pointer"]);
}
