//! Checkpoints of several files: their index, and whatever lies in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lapidary_models::{Checkpoint, Model, checkpoint};
use lapidary_runtime::file::safetensors;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::names::EMBEDDING;
use super::{Parts, UP, message, offsets, small};

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
    write_index(dir.path(), &json!({"weight_map": []}));
    assert!(message(Checkpoint::open(dir.path(), &small())).contains("`weight_map`"));
    write_index(dir.path(), &index);
    fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    assert!(
        message(Checkpoint::open(dir.path(), &small()))
            .ends_with("index.json names (is the download complete?)")
    );
}

#[test]
fn folders() {
    let dir = TempDir::new().unwrap();
    let refused = |path: &Path| Model::open(path).err().unwrap().to_string();
    assert!(
        refused(&dir.path().join("nowhere"))
            .ends_with("is not a model: expected a folder or a GGUF file, found nothing")
    );
    assert!(refused(dir.path()).ends_with("has no config.json"));
    let config = dir.path().join("config.json");
    fs::write(&config, small().to_json().to_string()).unwrap();
    assert!(refused(&config).contains("expected a folder or a GGUF file, found a file (give "));
    assert!(refused(dir.path()).ends_with("has no model.safetensors and no model.safetensors.index.json"));
}

/// What index and shards say differently is of no account while each tensor that is needed is in one place.
#[test]
fn indices_and_shards_may_differ() {
    let whole = Parts::small().open().unwrap();
    let (dir, index) = sharded();
    let opened = |index: &Value| {
        write_index(dir.path(), index);
        let c = Checkpoint::open(dir.path(), &small()).unwrap();
        assert!(c.names().eq(whole.names()) && c.names().all(|n| c.tensor(n) == whole.tensor(n)));
        c.warning().map(|w| w.to_string())
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut index = index.clone();
        change(&mut index);
        index
    };
    let map = |i: &mut Value| i["weight_map"].as_object_mut().unwrap().clone();
    let here = map(&mut index.clone())[UP].clone();
    let other = if here == "model-0.safetensors" { "model-1.safetensors" } else { "model-0.safetensors" };
    // In a shard but not in the index; in another shard than the index says.
    assert_eq!(opened(&changed(&|i| drop(i["weight_map"].as_object_mut().unwrap().remove(UP)))), None);
    assert_eq!(opened(&changed(&|i| i["weight_map"][UP] = json!(other))), None);
    // In the index but in no shard: a warning, in one line whatever the name.
    let warning = opened(&changed(&|i| {
        i["weight_map"]["lm_head.weight"] = json!(other);
        i["weight_map"]["a\n\u{1b}[2J"] = json!(other);
    }));
    let warning = warning.unwrap();
    assert!(warning.ends_with(r#"not needed: "a\n\u{1b}[2J", "lm_head.weight""#), "{warning}");

    // An equal head in a shard, in the index or not; another one.
    let path = dir.path().join(other);
    let shard = fs::read(&path).unwrap();
    let with_head = |change: u8| {
        let mut whole = Parts::small();
        let place = offsets(whole.entry(EMBEDDING));
        let mut head = whole.data[place[0]..place[1]].to_vec();
        head[0] ^= change;
        let mut parts = Parts::read(&shard);
        parts.push("lm_head.weight", "BF16", &[32, 8], &head);
        fs::write(&path, parts.bytes()).unwrap();
    };
    with_head(0);
    assert_eq!(opened(&index), None);
    assert_eq!(opened(&changed(&|i| i["weight_map"]["lm_head.weight"] = json!(other))), None);
    with_head(1);
    write_index(dir.path(), &index);
    assert!(message(Checkpoint::open(dir.path(), &small())).contains("\"lm_head.weight\": expected a copy"));

    // A tensor in two shards: equal, or as the index says, or nobody knows.
    let twice = |value: u8| {
        let mut parts = Parts::read(&shard);
        let mut whole = Parts::small();
        let place = offsets(whole.entry(UP));
        let mut bytes = whole.data[place[0]..place[1]].to_vec();
        bytes[0] ^= value;
        parts.push(UP, "BF16", &[12, 8], &bytes);
        fs::write(&path, parts.bytes()).unwrap();
    };
    twice(0);
    assert_eq!(opened(&changed(&|i| drop(i["weight_map"].as_object_mut().unwrap().remove(UP)))), None);
    twice(1);
    assert_eq!(opened(&index), None);
    write_index(dir.path(), &changed(&|i| drop(i["weight_map"].as_object_mut().unwrap().remove(UP))));
    let found = message(Checkpoint::open(dir.path(), &small()));
    assert!(found.contains(&format!("tensor {UP:?}: expected the values that it has in")), "{found}");

    // One that is needed and in no shard.
    let parts = Parts::read(&shard);
    let mut left = Parts { header: vec![], data: vec![] };
    let lost = parts.header[0].0.clone();
    for (name, entry) in &parts.header[1..] {
        let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).unwrap();
        let place = offsets(entry);
        left.push(name, "BF16", &shape, &parts.data[place[0]..place[1]]);
    }
    fs::write(&path, left.bytes()).unwrap();
    write_index(dir.path(), &index);
    let found = message(Checkpoint::open(dir.path(), &small()));
    assert!(found.contains(&format!("index.json: tensor {lost:?}: expected it in {other:?}")), "{found}");
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
    fn mutated_headers(
        at in prop::collection::vec((0..400usize, any::<u8>()), 1..4),
        name in 0..20usize,
        offsets in any::<[u64; 2]>(),
    ) {
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
