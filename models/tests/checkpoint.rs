//! Checkpoints: whole and sharded, and every malformed file as one line that names the file and the tensor.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use lapidary_models::{Checkpoint, Config, Error, FormatChoice, Model, WeightDType, checkpoint, synthesize};
use lapidary_runtime::file::safetensors;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A configuration of a few kilobytes.
fn small() -> Config {
    let mut c = Config::preset("2b").unwrap();
    (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers) = (32, 8, 12, 2);
    (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = (2, 1, 4);
    c.layer_types.truncate(2);
    c
}

/// A file as its header (names with dtype, shape, offsets) and its data.
#[derive(Clone)]
struct Parts {
    header: Vec<(String, Value)>,
    data: Vec<u8>,
}

impl Parts {
    fn small() -> Parts {
        let dir = TempDir::new().unwrap();
        synthesize(dir.path(), &small(), WeightDType::BF16, FormatChoice::default(), 1, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap();
        Parts::read(&fs::read(dir.path().join("model.safetensors")).unwrap())
    }

    fn read(file: &[u8]) -> Parts {
        let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&file[8..data]).unwrap();
        let header = header.as_object().unwrap().clone().into_iter().collect();
        Parts { header, data: file[data..].to_vec() }
    }

    fn entry(&mut self, name: &str) -> &mut Value {
        &mut self.header.iter_mut().find(|(n, _)| n == name).unwrap().1
    }

    fn remove(&mut self, name: &str) {
        self.header.retain(|(n, _)| n != name);
    }

    fn push(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let offsets = [self.data.len(), self.data.len() + bytes.len()];
        self.data.extend_from_slice(bytes);
        self.header.push((name.into(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})));
    }

    fn bytes(&self) -> Vec<u8> {
        let fields: Vec<String> = self.header.iter().map(|(n, v)| format!("{}:{v}", json!(n))).collect();
        let mut json = format!("{{{}}}", fields.join(","));
        while json.len() % 8 != 0 {
            json.push(' ');
        }
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &self.data].concat()
    }

    fn open(&self) -> Result<Checkpoint, Error> {
        open(&self.bytes())
    }
}

fn open(file: &[u8]) -> Result<Checkpoint, Error> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    Checkpoint::open(dir.path(), &small())
}

/// The message, which must be one line that names the file.
fn message(result: Result<Checkpoint, Error>) -> String {
    let message = result.err().expect("it must be refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

const UP: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn a_file_opens() {
    let parts = Parts::small();
    let c = parts.open().unwrap();
    let up = c.tensor(UP).unwrap();
    assert_eq!((up.format, up.shape, up.bytes.len()), (WeightDType::BF16.into(), &[12, 8][..], 12 * 8 * 2));
    assert_eq!(c.weight_bytes(), small().weight_bytes(WeightDType::BF16));
    assert_eq!(c.names().count(), 2 + 2 * 11);
    assert!(c.tensor("model.layers.2.mlp.up_proj.weight").is_none());
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&c);
}

#[test]
fn agrees_with_the_safetensors_crate() {
    let file = Parts::small().bytes();
    let theirs = ::safetensors::SafeTensors::deserialize(&file).unwrap();
    let ours = open(&file).unwrap();
    for name in ours.names() {
        let (t, o) = (theirs.tensor(name).unwrap(), ours.tensor(name).unwrap());
        assert_eq!((t.shape(), t.data()), (o.shape, o.bytes), "{name}");
    }
}

#[test]
fn malformed_files() {
    let whole = Parts::small();
    let file = whole.bytes();
    let cut = message(open(&file[..file.len() - 3]));
    assert!(
        cut.contains("model.safetensors: tensor \"model.norm.weight\": expected a file of at least"),
        "{cut}"
    );
    assert!(message(open(&file[..100])).contains("expected a header of at most 92 bytes"));
    assert!(message(open(&[])).contains("at least 8 bytes, found 0 bytes"));
    assert!(message(open(&[&file[..], b"more"].concat())).contains("bytes, found"));
    let mut long = file.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(message(open(&long)).contains("found a length of 18446744073709551615"));
    long[8] = b'[';
    long[..8].copy_from_slice(&file[..8]);
    assert!(message(open(&long)).contains("expected a JSON object as header"));
}

#[test]
fn malformed_entries() {
    let change = |f: &dyn Fn(&mut Parts)| {
        let mut parts = Parts::small();
        f(&mut parts);
        message(parts.open())
    };
    type Case<'a> = (&'a dyn Fn(&mut Parts), &'a str);
    let cases: &[Case<'_>] = &[
        (
            &|p| p.entry(UP)["shape"] = json!([8, 12]),
            "tensor \"model.layers.1.mlp.up_proj.weight\": expected shape [12, 8], found shape [8, 12]",
        ),
        (&|p| p.entry(UP)["shape"] = json!([12, 9]), "expected 216 bytes for its shape, found 192 bytes"),
        (&|p| p.entry(UP)["shape"] = json!([u64::MAX, u64::MAX]), "expected a shape of less than 2^64 bytes"),
        (&|p| p.entry(UP)["shape"] = json!([-1]), "expected dtype, shape and data_offsets"),
        (&|p| p.entry(UP)["dtype"] = json!("I16"), "expected dtype F32, F16 or BF16, found dtype I16"),
        (&|p| p.entry(UP)["dtype"] = json!("Q4_0"), "expected dtype F32, F16 or BF16, found dtype \"Q4_0\""),
        (&|p| p.entry(UP)["data_offsets"] = json!([192, 0]), "expected data_offsets that ascend"),
        (&|p| p.entry(UP)["data_offsets"] = json!([0, 192]), "an overlap"),
        (
            &|p| p.entry(UP)["data_offsets"] = json!([u64::MAX - 192, u64::MAX]),
            "tensor \"model.layers.1.mlp.up_proj.weight\"",
        ),
        (
            &|p| p.entry(UP)["dtype"] = json!("F16"),
            "expected dtype BF16 as in model.layers.0.mlp.up_proj.weight, found dtype F16",
        ),
        (&|p| p.push(UP, "BF16", &[1], &[0; 2]), "expected one entry, found a second of the same name"),
        (
            &|p| p.push("model.extra.weight", "BF16", &[1], &[0; 2]),
            "tensor \"model.extra.weight\": expected no tensor of this name",
        ),
        (&|p| p.push("a\nb", "BF16", &[1], &[0; 2]), "tensor \"a\\nb\""),
        (
            &|p| p.push("lm_head.weight", "BF16", &[32, 8], &[0; 512]),
            "tensor \"lm_head.weight\": expected a copy of model.embed_tokens.weight",
        ),
    ];
    for (f, expected) in cases {
        let found = change(*f);
        assert!(found.contains(expected), "{found}: not {expected}");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let mut parts = Parts::small();
    let [_, end] = <[usize; 2]>::try_from(offsets(parts.entry("model.norm.weight"))).unwrap();
    parts.remove("model.norm.weight");
    parts.data.truncate(end - 16);
    let found = message(parts.open());
    assert!(
        found.ends_with("tensor \"model.norm.weight\": expected shape [8], found no such tensor"),
        "{found}"
    );
}

fn offsets(entry: &Value) -> Vec<usize> {
    serde_json::from_value(entry["data_offsets"].clone()).unwrap()
}

#[test]
fn what_changes_nothing_passes() {
    let mut parts = Parts::small();
    let place = offsets(parts.entry("model.embed_tokens.weight"));
    let table = parts.data[place[0]..place[1]].to_vec();
    parts.push("lm_head.weight", "BF16", &[32, 8], &table);
    parts.push("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", &[2], &[0; 8]);
    let c = parts.open().unwrap();
    assert!(c.tensor("lm_head.weight").is_none());
}

/// Two shards and an index: (folder, index).
fn sharded() -> (TempDir, Value) {
    let whole = Parts::small();
    let dir = TempDir::new().unwrap();
    let mut shards = [Parts { header: vec![], data: vec![] }, Parts { header: vec![], data: vec![] }];
    let mut map = BTreeMap::new();
    for (i, (name, entry)) in whole.header.iter().filter(|(n, _)| n != "__metadata__").enumerate() {
        let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).unwrap();
        let place = offsets(entry);
        shards[i % 2].push(name, "BF16", &shape, &whole.data[place[0]..place[1]]);
        map.insert(name.clone(), format!("model-{}.safetensors", i % 2));
    }
    for (i, shard) in shards.iter().enumerate() {
        fs::write(dir.path().join(format!("model-{i}.safetensors")), shard.bytes()).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": map});
    write_index(dir.path(), &index);
    (dir, index)
}

fn write_index(dir: &Path, index: &Value) {
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards() {
    let (dir, index) = sharded();
    let whole = Parts::small().open().unwrap();
    let c = Checkpoint::open(dir.path(), &small()).unwrap();
    assert!(c.names().eq(whole.names()));
    assert!(c.names().all(|n| c.tensor(n) == whole.tensor(n)));

    let changed = |tensor: &str, file: Value| {
        let mut index = index.clone();
        index["weight_map"][tensor] = file;
        write_index(dir.path(), &index);
        message(Checkpoint::open(dir.path(), &small()))
    };
    for bad in
        ["../model-0.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "..", "", "config.json"]
    {
        let found = changed(UP, json!(bad));
        assert!(found.contains(&format!("field `weight_map.{UP}`: expected the plain name")), "{found}");
    }
    assert!(changed(UP, json!(7)).contains("found 7"));
    assert!(changed(UP, json!("model-7.safetensors")).contains("has no model-7.safetensors"));
    assert!(
        changed("model.extra", json!("model-0.safetensors"))
            .contains("tensor \"model.extra\": expected it in")
    );
    let here = index["weight_map"][UP].as_str().unwrap();
    let other = if here == "model-0.safetensors" { "model-1.safetensors" } else { "model-0.safetensors" };
    assert!(changed(UP, json!(other)).contains(&format!("expected it in {other}")));
    write_index(dir.path(), &json!({"weight_map": []}));
    assert!(message(Checkpoint::open(dir.path(), &small())).contains("`weight_map`"));
    write_index(dir.path(), &index);
    fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    assert!(message(Checkpoint::open(dir.path(), &small())).contains("has no model-1.safetensors"));
}

#[test]
fn folders() {
    let dir = TempDir::new().unwrap();
    let refused = |path: &Path| Model::open(path).err().unwrap().to_string();
    assert!(
        refused(&dir.path().join("nowhere"))
            .ends_with("is not a model folder: expected a folder, found nothing")
    );
    assert!(refused(dir.path()).ends_with("has no config.json"));
    let config = dir.path().join("config.json");
    fs::write(&config, small().to_json().to_string()).unwrap();
    assert!(refused(&config).ends_with("expected a folder, found a file"));
    assert!(refused(dir.path()).ends_with("has no model.safetensors and no model.safetensors.index.json"));
}

proptest! {
    #[test]
    fn any_header(bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0..250u64) {
        let file = [&length.to_le_bytes()[..], &bytes].concat();
        let _ = safetensors::read(Path::new("f"), &file);
        let _ = safetensors::read(Path::new("f"), &bytes);
        let _ = checkpoint::parse_index(Path::new("i"), &bytes);
    }

    /// What we accept of mutated headers, the reference crate accepts too, with the same places.
    #[test]
    fn mutated_headers(at in prop::collection::vec((0..400usize, any::<u8>()), 1..4), name in 0..20usize, offsets in any::<[u64; 2]>()) {
        let mut parts = SMALL.with(Clone::clone);
        let mut file = parts.bytes();
        at.iter().for_each(|&(i, b)| file[i] = b);
        if let Ok(entries) = safetensors::read(Path::new("f"), &file) {
            let theirs = ::safetensors::SafeTensors::deserialize(&file).unwrap();
            for e in entries {
                prop_assert_eq!(theirs.tensor(&e.name).unwrap().data(), &file[e.bytes]);
            }
        }
        parts.header[name].1["data_offsets"] = json!(offsets);
        parts.header[name].1["shape"] = json!([offsets[1].wrapping_sub(offsets[0]) / 2]);
        let _ = safetensors::read(Path::new("f"), &parts.bytes());
    }

    #[test]
    fn any_index(file in ".{0,20}", tensor in ".{0,20}") {
        let index = json!({"weight_map": {tensor: file}}).to_string();
        if let Ok(map) = checkpoint::parse_index(Path::new("i"), index.as_bytes()) {
            prop_assert!(map.values().all(|f| !f.contains(['/', '\\']) && f.ends_with(".safetensors")));
        }
    }
}

thread_local! {
    static SMALL: Parts = Parts::small();
}
