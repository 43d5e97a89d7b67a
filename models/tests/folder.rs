//! Folders and files that are no model, or not a whole one: the usual cause in one line, with what to do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use lapidary_models::{Config, FormatChoice, Model, WeightDType, export, synthesize};
use lapidary_runtime::file;
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4837\n";

/// A folder of a few kilobytes that opens, tokenizer included.
fn small() -> TempDir {
    let mut c = Config::preset("9b").unwrap();
    (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers) = (4096, 8, 12, 2);
    (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = (2, 1, 4);
    c.layer_types.truncate(2);
    let dir = TempDir::new().unwrap();
    synthesize(dir.path(), &c, WeightDType::BF16, FormatChoice::default(), 1, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap();
    dir
}

/// The message for a path, which must be one line that names all of `named`.
#[track_caller]
fn refused(path: &Path, named: &[&str]) -> String {
    let message = Model::open(path).err().expect("it must be refused").to_string();
    assert!(!message.chars().any(char::is_control), "{message}");
    for name in named {
        assert!(message.contains(name), "`{name}` is not named: {message}");
    }
    message
}

/// A folder with these files, each of a few bytes.
fn with(files: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}").unwrap();
    }
    dir
}

#[test]
fn pointers_and_pages_in_place_of_any_file() {
    Model::open(small().path()).unwrap();
    let files =
        ["config.json", WEIGHTS, INDEX, "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    let gzip = [b"\x1f\x8b\x08\0".as_slice(), &[0; 40]].concat();
    let contents: [(&[u8], &str); 6] = [
        (POINTER.as_bytes(), "Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "HTML page"),
        (b"PK\x03\x04\x14\0\0\0\0\0archive/data.pkl", "ZIP archive"),
        (b"GGUF\x03\0\0\0\x20\x01\0\0\0\0\0\0", "GGUF file"),
        (&gzip, "gzip"),
        (b"\xff\xfe{\0\n\0\n\0\n\0}\0", "UTF-16"),
    ];
    for file in files {
        for (content, cause) in contents {
            let dir = small();
            if file == INDEX {
                fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
            }
            fs::write(dir.path().join(file), content).unwrap();
            refused(dir.path(), &[file, cause]);
        }
        // A link into a cache whose file is not there.
        let dir = small();
        let _ = fs::remove_file(dir.path().join(file));
        if file == INDEX {
            fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
        }
        symlink("../../blobs/3f289bc0", dir.path().join(file)).unwrap();
        refused(dir.path(), &[file, "a link to \"../../blobs/3f289bc0\", where nothing is"]);
    }
    let dir = small();
    let template = dir.path().join("chat_template.jinja");
    fs::write(&template, POINTER).unwrap();
    assert!(
        file::read(&template).unwrap_err().to_string().contains("expected text, found a Git LFS pointer")
    );
    for file in ["config.json", "tokenizer.json", "generation_config.json", WEIGHTS] {
        let dir = small();
        fs::write(dir.path().join(file), "").unwrap();
        refused(dir.path(), &[file, "empty file"]);
        fs::write(dir.path().join(file), [0; 64]).unwrap();
        refused(dir.path(), &[file, "zero bytes"]);
    }
    // Shards, too.
    let dir = small();
    fs::rename(dir.path().join(WEIGHTS), dir.path().join("a.safetensors")).unwrap();
    let index = "{\"weight_map\": {\"model.norm.weight\": \"a.safetensors\"}}";
    fs::write(dir.path().join(INDEX), index).unwrap();
    Model::open(dir.path()).unwrap();
    fs::write(dir.path().join("a.safetensors"), POINTER).unwrap();
    refused(dir.path(), &["a.safetensors", "Git LFS pointer"]);
    fs::remove_file(dir.path().join("a.safetensors")).unwrap();
    symlink("gone", dir.path().join("a.safetensors")).unwrap();
    refused(dir.path(), &["a.safetensors", "a link to \"gone\""]);
}

#[test]
fn byte_order_marks_change_nothing() {
    let dir = small();
    let before = Model::open(dir.path()).unwrap();
    let file_names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    for file in file_names {
        let path = dir.path().join(file);
        let text = [b"\xEF\xBB\xBF", &fs::read(&path).unwrap()[..]].concat();
        fs::write(path, text).unwrap();
    }
    let after = Model::open(dir.path()).unwrap();
    assert_eq!((after.config, after.stop_tokens), (before.config, before.stop_tokens));
    let ids = |m: &Option<lapidary_models::Tokenizer>| m.as_ref().unwrap().encode("once upon", true).unwrap();
    assert_eq!(ids(&after.tokenizer), ids(&before.tokenizer));
}

#[test]
fn truncated_downloads() {
    let dir = small();
    let path = dir.path().join(WEIGHTS);
    let whole = fs::read(&path).unwrap();
    for keep in [whole.len() - 1, whole.len() / 2, 2000, 100, 9] {
        fs::write(&path, &whole[..keep]).unwrap();
        refused(dir.path(), &[WEIGHTS, "cut short"]);
    }
}

#[test]
fn other_forms_of_weights() {
    refused(with(&["config.json", "gemma-2-2b-it-Q4_K_M.gguf"]).path(), &["`model_type`"]);
    let with_config = |files: &[&str]| {
        let dir = with(files);
        fs::copy(small().path().join("config.json"), dir.path().join("config.json")).unwrap();
        dir
    };
    let gguf = "gemma-2-2b-it-Q4_K_M.gguf";
    for dir in [with(&[gguf, "README.md"]), with_config(&[gguf])] {
        refused(dir.path(), &[gguf, "GGUF", "safetensors"]);
    }
    for (file, cause) in [
        ("pytorch_model.bin", "PyTorch"),
        ("pytorch_model-00001-of-00002.bin", "PyTorch"),
        ("consolidated.00.pth", "PyTorch"),
        ("model.pt", "PyTorch"),
        ("flax_model.msgpack", "Flax"),
        ("tf_model.h5", "TensorFlow"),
        ("2b-it-sfp.sbs", "gemma.cpp"),
    ] {
        refused(with_config(&[file]).path(), &[file, cause, "has no model.safetensors"]);
    }
    refused(
        with_config(&["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]).path(),
        &["model-00001-of-00002.safetensors", "index"],
    );
    refused(
        with_config(&["model.fp16.safetensors"]).path(),
        &["model.fp16.safetensors", "under the name model.safetensors"],
    );
    refused(with_config(&["model.safetensors.incomplete"]).path(), &["interrupted download"]);

    let adapter = with(&["adapter_config.json", "adapter_model.safetensors", "README.md"]);
    let config = "{\"base_model_name_or_path\": \"google/gemma-2-2b\\u001b[2J\", \"r\": 16}";
    fs::write(adapter.path().join("adapter_config.json"), config).unwrap();
    refused(adapter.path(), &["LoRA", "--lora", "google/gemma-2-2b"]);
    refused(with_config(&["adapter_config.json", "adapter_model.bin"]).path(), &["LoRA", "--lora"]);
    // Beside a whole model it is not applied, which is said.
    let both = small();
    fs::write(both.path().join("adapter_config.json"), "{}").unwrap();
    let warnings = Model::open(both.path()).unwrap().warnings;
    assert!(
        matches!(&warnings[..], [one] if one.to_string().contains("adapter_config.json: the adapter")),
        "{warnings:?}"
    );
    // A trainer's folder of folders.
    refused(
        with(&["checkpoint-500/config.json", "trainer_state.json"]).path(),
        &["no config.json", "\"checkpoint-500\""],
    );
}

#[test]
fn files_given_for_folders() {
    let dir = small();
    let folder = dir.path().to_str().unwrap().to_string();
    for file in ["config.json", WEIGHTS, "tokenizer.json"] {
        refused(&dir.path().join(file), &["found a file", &format!("give {folder}")]);
    }
    let write = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::File::create(&path).unwrap().write_all(content).unwrap();
        path
    };
    refused(&write("model.gguf", b"GGUF\x03\0"), &["model.gguf", "cut short"]);
    refused(&write("model-without-an-end", b"GGUF\x03\0"), &["cut short"]);
    refused(&write("pytorch_model.bin", b"anything"), &["PyTorch"]);
    refused(&write("model.zip", b"PK\x03\x04"), &["ZIP"]);
    refused(&write("pointer", POINTER.as_bytes()), &["Git LFS"]);
    refused(
        &write("model.artifact", b"\x10\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"lapidary-artifact\"}}"),
        &[".lap"],
    );
    let plain = refused(&write("notes", b"x"), &[]);
    assert!(plain.ends_with("expected a folder or a GGUF file, found a file"), "{plain}");
}

#[test]
fn names_that_are_no_paths() {
    for (name, hint) in [
        ("gemma-2-9b", "OWNER/REPO"),
        ("gemma2:2b", "ollama"),
        ("gemma2:27b-instruct-q4_K_M", "ollama"),
        ("~/models/gemma", "the shell"),
    ] {
        refused(Path::new(name), &["is not a model: expected a folder or a GGUF file, found nothing", hint]);
    }
    for name in ["/no/such/folder", "a/b/c", "-x", "../y z", "no\nsuch"] {
        let message = Model::open(Path::new(name)).err().unwrap().to_string();
        assert!(message.ends_with("found nothing"), "{message}");
    }
    let dir = TempDir::new().unwrap();
    let link = dir.path().join("link");
    symlink("nowhere", &link).unwrap();
    refused(&link, &["a link to \"nowhere\", where nothing is"]);
}

/// The root of a model in a Hugging Face cache: refs, blobs, and a snapshot of links.
fn cache() -> (TempDir, PathBuf, PathBuf) {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("hub/models--google--gemma-2-2b-it");
    let snapshot = root.join("snapshots/299a8560bedf22ed1c72a8a11e7dce4a7f9f51f8");
    for folder in [&snapshot, &root.join("blobs"), &root.join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(root.join("refs/main"), "299a8560bedf22ed1c72a8a11e7dce4a7f9f51f8").unwrap();
    let model = small();
    for entry in fs::read_dir(model.path()).unwrap() {
        let (entry, blob) =
            (entry.as_ref().unwrap(), root.join("blobs").join(entry.as_ref().unwrap().file_name()));
        fs::copy(entry.path(), &blob).unwrap();
        symlink(Path::new("../../blobs").join(entry.file_name()), snapshot.join(entry.file_name())).unwrap();
    }
    (dir, root, snapshot)
}

#[test]
fn caches_of_hugging_face() {
    let (dir, root, snapshot) = cache();
    let snapshot_name = snapshot.to_str().unwrap();
    Model::open(&snapshot).unwrap();
    for folder in [&root, &root.join("snapshots"), &dir.path().join("hub"), &dir.path().to_path_buf()] {
        refused(folder, &["Hugging Face cache", &format!("give {snapshot_name}").replace("give ", "")]);
    }
    // Another snapshot: the one of main counts; without main, none does.
    let older = root.join("snapshots/0000000000000000000000000000000000000000");
    fs::create_dir(&older).unwrap();
    refused(&root, &[snapshot_name]);
    fs::write(root.join("refs/main"), "../../../etc").unwrap();
    let message = refused(&root, &["snapshots/COMMIT"]);
    assert!(!message.contains("etc"), "{message}");
    // A blob that is not there.
    fs::remove_file(root.join("blobs/config.json")).unwrap();
    refused(&snapshot, &["config.json", "a link to \"../../blobs/config.json\", where nothing is"]);
}

/// What was quantised by another program's configuration, or kept a copy of its head, is as good as any once exported.
#[test]
fn exports_of_strange_folders_open() {
    let dir = small();
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = serde_json::json!({"quant_method": "gptq", "bits": 4});
    config["brand_new"] = 1.into();
    fs::write(&path, [b"\xEF\xBB\xBF", config.to_string().as_bytes()].concat()).unwrap();
    let model = Model::open(dir.path()).unwrap();
    assert_eq!(model.warnings.len(), 1);
    assert!(
        model.warnings[0].to_string().ends_with("config.json: field is not known and ignored: \"brand_new\"")
    );
    let out = TempDir::new().unwrap();
    export(&model, out.path(), FormatChoice::default(), 1, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let again = Model::open(out.path()).unwrap();
    assert_eq!(again.config, model.config);
    let text = fs::read_to_string(out.path().join("config.json")).unwrap();
    assert!(!text.contains("gptq") && text.contains("brand_new"), "{text}");
}
