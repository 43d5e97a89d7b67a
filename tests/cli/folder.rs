//! Model folders: small ones of random weights, made wrong on purpose, and the built-in model stored otherwise.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lapidary_models::{Config, FormatChoice, WeightDType, synthesize};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The weights' file.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The shards' index.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Where the built-in model's files lie.
pub(crate) fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/data/tiny-gemma2")
}

/// A folder of random weights that loads: two layers, 32 positions, the built-in tokenizer.
pub(crate) fn small() -> TempDir {
    let mut c = Config::preset("9b").expect("a preset").with_layers(2);
    (c.vocab_size, c.hidden_size, c.intermediate_size) = (4096, 32, 48);
    (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = (2, 1, 16);
    (c.max_position_embeddings, c.sliding_window) = (32, 8);
    let dir = TempDir::new().expect("a folder");
    synthesize(dir.path(), &c, WeightDType::BF16, FormatChoice::default(), 1, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .expect("weights");
    dir
}

/// Changes a JSON file.
pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).expect("the file")).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("written");
}

/// A safetensors file, taken apart.
pub(crate) struct Parts {
    /// The JSON header.
    pub(crate) header: Map<String, Value>,
    /// What follows it.
    pub(crate) data: Vec<u8>,
}

impl Parts {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Parts {
        let bytes = fs::read(path).expect("the file");
        let (length, rest) = bytes.split_first_chunk().expect("a length");
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        Parts { header: serde_json::from_slice(header).expect("a header"), data: data.into() }
    }

    /// Writes a file, its data aligned to 8 bytes.
    pub(crate) fn write(&self, path: &Path) {
        let mut header = Value::Object(self.header.clone()).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let length = (header.len() as u64).to_le_bytes();
        fs::write(path, [&length, header.as_bytes(), &self.data].concat()).expect("written");
    }

    /// The bytes of a tensor within the data.
    pub(crate) fn range(&self, name: &str) -> std::ops::Range<usize> {
        let at = |i: usize| self.header[name]["data_offsets"][i].as_u64().expect("an offset") as usize;
        at(0)..at(1)
    }

    /// Appends a tensor.
    pub(crate) fn push(&mut self, name: &str, dtype: &str, shape: &Value, bytes: &[u8]) {
        let offsets = [self.data.len(), self.data.len() + bytes.len()];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        self.header.insert(name.into(), entry);
        self.data.extend_from_slice(bytes);
    }
}

/// Changes the weights' file of a folder.
pub(crate) fn edit_weights(dir: &Path, change: impl FnOnce(&mut Parts)) {
    let path = dir.join(WEIGHTS);
    let mut parts = Parts::read(&path);
    change(&mut parts);
    parts.write(&path);
}

/// The built-in model with another dtype, each bf16 encoded by `encode`, in `shards` files.
pub(crate) fn converted(dtype: &str, encode: impl Fn(half::bf16) -> Vec<u8>, shards: usize) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    fs::copy(tiny().join("config.json"), dir.path().join("config.json")).expect("copied");
    let from = Parts::read(&tiny().join(WEIGHTS));
    let mut files: Vec<Parts> = (0..shards).map(|_| Parts { header: Map::new(), data: Vec::new() }).collect();
    let mut map = Map::new();
    for (at, (tensor, entry)) in from.header.iter().filter(|(n, _)| *n != "__metadata__").enumerate() {
        let values =
            from.data[from.range(tensor)].as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b));
        let bytes: Vec<u8> = values.flat_map(&encode).collect();
        files[at % shards].push(tensor, dtype, &entry["shape"], &bytes);
        map.insert(tensor.clone(), shard(at % shards).into());
    }
    if let [one] = &files[..] {
        one.write(&dir.path().join(WEIGHTS));
        return dir;
    }
    for (at, file) in files.iter().enumerate() {
        file.write(&dir.path().join(shard(at)));
    }
    let index = json!({ "metadata": { "total_size": 1, "new": [] }, "weight_map": map, "unknown": true });
    fs::write(dir.path().join(INDEX), index.to_string()).expect("written");
    dir
}

/// A shard's name.
pub(crate) fn shard(at: usize) -> String {
    format!("part-{at}.safetensors")
}
