//! What a path is that is no model folder, and what a folder is that lacks what a model needs: the usual causes, with
//! what to do.
//!
//! In: a path as the user gave it. Out: words for an [`Error`]. Nothing is opened but plain files, of which the first
//! bytes are read, and at most [`ENTRIES`] names of a folder are looked at.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use lapidary_runtime::file::{self, cause};
use serde_json::Value;

use crate::checkpoint::{INDEX, SINGLE};
use crate::config::CONFIG;
use crate::error::{Error, Result, Warning, line, quote};

/// The file that makes a folder a LoRA adapter.
const ADAPTER: &str = "adapter_config.json";
/// Names of a folder that are looked at.
const ENTRIES: usize = 10_000;

/// Ends of the names of files that hold weights in forms that are not read here.
const OTHER_WEIGHTS: &[(&str, &str)] = &[
    (".gguf", "a GGUF file, a model by itself: give that file"),
    (".ggml", "a GGML file, which only llama.cpp and its kin read"),
    (".bin", "a PyTorch checkpoint"),
    (".pt", "a PyTorch checkpoint"),
    (".pth", "a PyTorch checkpoint"),
    (".ckpt", "a PyTorch checkpoint"),
    (".distcp", "a distributed PyTorch checkpoint"),
    (".msgpack", "a Flax checkpoint"),
    (".h5", "a TensorFlow checkpoint"),
    (".keras", "a Keras checkpoint"),
    (".npz", "a NumPy archive"),
    (".onnx", "an ONNX model"),
    (".tflite", "a TensorFlow Lite model"),
    (".task", "a MediaPipe model"),
    (".sbs", "a gemma.cpp model"),
    (".mlmodelc", "a Core ML model"),
    (".nemo", "a NeMo checkpoint"),
];

/// What is read instead of [`OTHER_WEIGHTS`].
const NEEDED: &str = "expected a GGUF file, or the model's folder with safetensors files";

/// What is given in the place of a path that leads nowhere.
const NAMES: &str = "those have an owner, as google/gemma-2-2b-it, or a GGUF's hf.co/OWNER/REPO:Q4_K_M";

/// Refuses what is no folder.
pub(crate) fn check(dir: &Path) -> Result<()> {
    let found = match fs::metadata(dir) {
        Ok(data) if data.is_dir() => return Ok(()),
        Ok(data) if data.is_file() => file_of(dir),
        Ok(_) => "neither a file nor a folder".into(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => nothing_at(dir),
        Err(source) => return Err(Error::read(dir, source)),
    };
    Err(Error::NotAFolder { path: dir.into(), found })
}

/// The error for a folder without `file`.
pub(crate) fn lacks(dir: &Path, file: String) -> Error {
    let cause = cause_of(dir).map_or(String::new(), |cause| format!("; {cause}"));
    Error::Missing { path: dir.into(), file, cause }
}

/// The error for a folder without a shard that its index names.
pub(crate) fn lacks_shard(dir: &Path, shard: &str) -> Error {
    let file = format!("{shard}, a shard that {INDEX} names");
    Error::Missing { path: dir.into(), file, cause: " (is the download complete?)".into() }
}

/// What there is to warn of in a folder that opens.
pub(crate) fn warning(dir: &Path) -> Option<Warning> {
    let path = dir.join(ADAPTER);
    let message = "the adapter beside the model is not applied (`--lora` merges it)";
    path.exists().then(|| Warning { path, message: message.into() })
}

/// What a file is that was given for a folder.
fn file_of(path: &Path) -> String {
    /// Bytes that are looked at: an artifact says what it is in its metadata.
    const BYTES: u64 = 4096;
    let mut start = Vec::new();
    let _ = File::open(path).and_then(|f| f.take(BYTES).read_to_end(&mut start));
    let parent = match path.parent().and_then(Path::to_str) {
        None | Some("") => "the folder that holds it".to_string(),
        Some(parent) => line(parent),
    };
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    if start.windows(17).any(|w| w == b"lapidary-artifact") {
        return "a file (an artifact? its name must end in .lap)".into();
    }
    if name.ends_with(".safetensors") || name.ends_with(".json") {
        return format!("a file (give {parent})");
    }
    if let Some(what) = cause::foreign(&start).or_else(|| other_weights(&name)) {
        return format!("a file: {what}; {NEEDED}");
    }
    "a file".into()
}

fn other_weights(name: &str) -> Option<&'static str> {
    OTHER_WEIGHTS.iter().find(|(end, _)| name.to_lowercase().ends_with(end)).map(|(_, what)| *what)
}

/// What may have been meant by a path that leads to nothing.
fn nothing_at(path: &Path) -> String {
    if let Ok(target) = fs::read_link(path) {
        return format!("a link to {}, where nothing is", quote(&target.to_string_lossy()));
    }
    let Some(text) = path.to_str() else { return "nothing".into() };
    if text.starts_with("~") {
        return "nothing (the shell did not replace the ~)".into();
    }
    let part = |p: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        !p.is_empty() && p.chars().all(plain) && p.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    // A name that is none of the hub's, `OWNER/REPO`, which `lapidary -m` takes.
    match text.split_once(':') {
        Some((name, tag)) if part(tag) && part(name) => {
            format!("nothing (a name of ollama? {NAMES})")
        }
        None if part(text) && text.to_lowercase().starts_with("gemma") => {
            format!("nothing (a name on the Hugging Face hub? {NAMES})")
        }
        _ => "nothing".into(),
    }
}

/// The snapshot of a model in a Hugging Face cache that its main branch names, else the only one, as a path to give.
fn snapshot(root: &Path) -> Option<String> {
    let snapshots = root.join("snapshots");
    let held = names(&snapshots);
    let main = file::read_if_present(&root.join("refs/main")).ok().flatten();
    let main = main.and_then(|bytes| String::from_utf8(bytes).ok());
    let main = main.as_deref().map(str::trim).filter(|m| held.iter().any(|name| name == m));
    let one = main.or_else(|| held.first().filter(|_| held.len() == 1).map(String::as_str))?;
    Some(line(snapshots.join(one).display()))
}

/// Names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(ENTRIES);
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// Why a folder may lack its configuration or its weights.
fn cause_of(dir: &Path) -> Option<String> {
    let names = names(dir);
    let has = |name: &str| names.iter().any(|n| n == name);
    if has(ADAPTER) || names.iter().any(|n| n.starts_with("adapter_model.")) {
        let config = file::read_if_present(&dir.join(ADAPTER)).ok().flatten();
        let config: Option<Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let base = config.and_then(|c| c["base_model_name_or_path"].as_str().map(quote));
        let base = base.map_or("its base model".into(), |base| format!("its base model {base}"));
        return Some(format!("it is a LoRA adapter: give {base} as the model, and the adapter by `--lora`"));
    }
    if let Some(cause) = cause_in_cache(dir, &names) {
        return Some(cause);
    }
    let weights = names.iter().filter(|n| n.ends_with(".safetensors"));
    let weights: Vec<&String> = weights.collect();
    if let [name, ..] = weights[..]
        && has(CONFIG)
    {
        let name = quote(name);
        return Some(if weights.len() > 1 {
            format!("it has {name} and others, but not their index: download {INDEX} too")
        } else {
            format!("its weights {name} would be read under the name {SINGLE}")
        });
    }
    if let Some(name) = names.iter().find(|n| n.ends_with(".incomplete") || n.ends_with(".part")) {
        return Some(format!("{} is what an interrupted download left", quote(name)));
    }
    if weights.is_empty()
        && let Some((name, what)) = names.iter().find_map(|n| Some((n, other_weights(n)?)))
    {
        return Some(format!("its {} is {what}; {NEEDED}", quote(name)));
    }
    if !has(CONFIG) {
        let inside = names.iter().rev().find(|n| dir.join(n).join(CONFIG).is_file());
        return inside.map(|n| format!("its folder {} has one: give that", quote(n)));
    }
    None
}

/// The same of a folder of a Hugging Face cache, which holds models under `models--OWNER--NAME/snapshots/COMMIT`.
fn cause_in_cache(dir: &Path, names: &[String]) -> Option<String> {
    let has = |name: &str| names.iter().any(|n| n == name);
    let whole = |root: &Path| snapshot(root).unwrap_or_else(|| line(root.join("snapshots/COMMIT").display()));
    if has("snapshots") && (has("blobs") || has("refs") || !has(CONFIG)) {
        return Some(format!("it is a model's root in a Hugging Face cache: give {}", whole(dir)));
    }
    if let ("snapshots", Some(root)) = (dir.file_name()?.to_str()?, dir.parent()) {
        return Some(format!("it holds a Hugging Face cache's snapshots: give {}", whole(root)));
    }
    let hub = if has("hub") && !has(CONFIG) { dir.join("hub") } else { dir.to_path_buf() };
    let held = if hub == dir { names.to_vec() } else { self::names(&hub) };
    let models: Vec<&String> = held.iter().filter(|n| n.starts_with("models--")).collect();
    let gemma = models.iter().find(|n| n.to_lowercase().contains("gemma-2"));
    let model = gemma.or(models.first())?;
    Some(format!(
        "it is the root of a Hugging Face cache: give a model's snapshot, as {}",
        whole(&hub.join(model))
    ))
}
