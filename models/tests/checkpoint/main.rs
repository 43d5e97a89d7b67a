//! Checkpoints: every malformed file is one line that names the file and the tensor.
//!
//! `names` has tensors under other names and beside those of the model, `shards` checkpoints of several files, and
//! headers and indices of random bytes.
#![allow(clippy::unwrap_used)]

mod names;
mod shards;

use std::fs;
use std::ops::ControlFlow;

use lapidary_ir::DType;
use lapidary_models::{Checkpoint, Config, Error, FormatChoice, LayerType, WeightDType, graph, synthesize};
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

/// Layers with a role in different formats are different functions, each there once.
#[test]
fn a_role_may_have_another_format_in_each_layer() {
    let mut parts = Parts::small();
    parts.entry(UP)["dtype"] = json!("F16");
    let c = parts.open().unwrap();
    assert_eq!(c.format_of(UP), Some(WeightDType::F16.into()));
    assert_eq!(c.format_of(&UP.replace('1', "0")), Some(WeightDType::BF16.into()));

    let mut config = small();
    config.num_hidden_layers = 6;
    config.layer_types = (0..6).map(|i| [LayerType::Sliding, LayerType::Full][i % 2]).collect();
    let weight = |name: &str| match name {
        "model.layers.2.mlp.up_proj.weight" | "model.layers.3.mlp.up_proj.weight" => DType::Q8,
        "model.layers.4.mlp.down_proj.weight" => DType::Q8,
        _ => DType::F32,
    };
    let names: Vec<String> = graph::layers(&config, &weight).into_iter().map(|(name, _)| name).collect();
    let expected =
        ["layer_local", "layer_global", "layer_local.1", "layer_global.1", "layer_local.2", "layer_global"];
    assert_eq!(names, expected);
    let module = graph::module(&config, &graph::Storage { weight: &weight, cache: DType::F32 });
    let functions: Vec<&str> = module.functions.iter().map(|f| f.name.as_str()).collect();
    let layers = ["layer_local", "layer_local.1", "layer_local.2", "layer_global", "layer_global.1"];
    assert_eq!(functions, [&["embed"], &layers[..], &["head", "head_argmax"]].concat());
    let of = |name: &str, role: &str| {
        let inputs = &module.functions.iter().find(|f| f.name == name).unwrap().inputs;
        inputs.iter().find(|i| i.name == role).unwrap().ty.dtype
    };
    assert_eq!(of("layer_local.1", "mlp.up_proj.weight"), DType::Q8);
    assert_eq!(of("layer_local.1", "mlp.down_proj.weight"), DType::F32);
    assert_eq!(of("layer_local.2", "mlp.down_proj.weight"), DType::Q8);
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
        (&|p| p.push(UP, "BF16", &[1], &[0; 2]), "expected one entry, found a second of the same name"),
        (
            &|p| p.push("model.layers.1.self_attn.q_proj.bias", "BF16", &[8], &[0; 16]),
            "tensor \"model.layers.1.self_attn.q_proj.bias\": expected no bias",
        ),
        (
            &|p| p.push("model.layers.0.self_attn.q_norm.weight", "BF16", &[4], &[0; 8]),
            "expected no norm of queries",
        ),
        (
            &|p| p.push("model.layers.2.mlp.up_proj.weight", "BF16", &[12, 8], &[0; 192]),
            "expected no tensor of this name, as num_hidden_layers is 2",
        ),
        (
            &|p| p.push("model.layers.0.self_attn.q_proj.lora_A.weight", "BF16", &[1, 8], &[0; 16]),
            "expected no LoRA adapter",
        ),
        (
            &|p| p.push("model.embed_tokens.embed_scale", "BF16", &[], &[0x80, 0x3f]),
            "expected 2.828125, found 1",
        ),
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
