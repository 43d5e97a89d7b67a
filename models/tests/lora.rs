//! LoRA adapters merged into matrices, against W + s B A computed here in f64; what is refused, by name.
#![cfg(feature = "tiny")]
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use lapidary_models::lora::WEIGHTS;
use lapidary_models::quantize::dequantize_rows;
use lapidary_models::weight_cache::Origin;
use lapidary_models::{
    Adapter, Cache, Model, QuantFormat, Quantization, QuantizedWeights, TensorFormat, WeightDType,
};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Tensors of an adapter: name, shape, values.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

const RANK: usize = 3;
/// In the built-in model: (out, in).
const MATRICES: [(&str, [usize; 2]); 3] = [
    ("layers.0.self_attn.q_proj", [256, 288]),
    ("layers.1.self_attn.q_proj", [256, 288]),
    ("layers.1.mlp.down_proj", [288, 896]),
];

/// Values of about a tenth, other ones for each seed.
fn values(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 24) as f32 * 0.2 - 0.1
        })
        .collect()
}

fn tensors(seed: u32) -> Tensors {
    let mut all = Vec::new();
    for (i, (module, [n, k])) in MATRICES.into_iter().enumerate() {
        let seed = seed + 10 * i as u32;
        let name = |part| format!("base_model.model.model.{module}.{part}.weight");
        all.push((name("lora_A"), vec![RANK, k], values(seed, RANK * k)));
        all.push((name("lora_B"), vec![n, RANK], values(seed + 1, n * RANK)));
    }
    all
}

fn config() -> Value {
    json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", "use_rslora": false, "use_dora": false,
        "modules_to_save": null, "init_lora_weights": true, "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": "tiny", "lora_dropout": 0.05, "rank_pattern": {}, "task_type": "CAUSAL_LM",
    })
}

fn write(folder: &Path, config: &Value, tensors: &Tensors) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(WEIGHTS), serialize(views, None).unwrap()).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

fn weights(body: Option<TensorFormat>, adapters: Vec<Adapter>, cache: Option<Cache>) -> QuantizedWeights {
    let adapters = adapters.into_iter().map(Arc::new).collect();
    let options = Quantization { body, head: None, adapters, threads: 2, cache };
    let go = |_: u64, _: u64| ControlFlow::Continue(());
    QuantizedWeights::open(Arc::new(Model::built_in().unwrap()), &options, &go).unwrap()
}

/// The values of a matrix as the built-in model stores it.
fn stored(model: &Model, name: &str) -> Vec<f64> {
    let view = model.checkpoint.tensor(name).unwrap();
    assert_eq!(view.format, WeightDType::BF16.into());
    view.bytes.as_chunks().0.iter().map(|b| f64::from(bf16::from_le_bytes(*b).to_f32())).collect()
}

/// W + s B A of each matrix, by its name.
fn merged(model: &Model, adapters: &[(&Tensors, f64)]) -> HashMap<String, Vec<f64>> {
    let mut all = HashMap::new();
    for (module, [n, k]) in MATRICES {
        let name = format!("model.{module}.weight");
        let mut w = stored(model, &name);
        for (tensors, scale) in adapters {
            let of =
                |part: &str| &tensors.iter().find(|t| t.0.contains(&format!("{module}.{part}"))).unwrap().2;
            let (a, b) = (of("lora_A"), of("lora_B"));
            for i in 0..n {
                for j in 0..k {
                    let sum: f64 =
                        (0..RANK).map(|r| f64::from(b[i * RANK + r]) * f64::from(a[r * k + j])).sum();
                    w[i * k + j] += scale * sum;
                }
            }
        }
        all.insert(name, w);
    }
    all
}

#[test]
fn merged_matrices_are_the_definition() {
    let dir = TempDir::new().unwrap();
    let model = Model::built_in().unwrap();
    let (one, other) = (tensors(1), tensors(100));
    let mut rs = config();
    rs["use_rslora"] = true.into();
    write(&dir.path().join("one"), &config(), &one);
    write(&dir.path().join("other"), &rs, &other);
    let open = |name: &str, factor| Adapter::open(&dir.path().join(name), factor, &model.config).unwrap();
    let adapters = || vec![open("one", 1.0), open("other", -0.5)];
    // alpha / r, and a factor of -0.5 of alpha / sqrt r.
    let expected = merged(&model, &[(&one, 2.0), (&other, -0.5 * 6.0 / 3f64.sqrt())]);
    let [plain, f32s, q8] = [None, Some(WeightDType::F32.into()), Some(QuantFormat::Q8.into())]
        .map(|body| weights(body, adapters(), None));
    for (module, [n, k]) in MATRICES {
        let name = format!("model.{module}.weight");
        let expected = &expected[&name];
        assert_eq!(plain.format(&name), Some(WeightDType::BF16.into()));
        for (b, x) in plain.tensor(&name).unwrap().as_chunks().0.iter().zip(expected) {
            let found = f64::from(bf16::from_le_bytes(*b).to_f32());
            assert!((found - x).abs() <= x.abs() / 256.0 + 1e-6, "{name}: {found} for {x}");
        }
        for (b, x) in f32s.tensor(&name).unwrap().as_chunks().0.iter().zip(expected) {
            assert!((f64::from(f32::from_le_bytes(*b)) - x).abs() < 1e-6, "{name}");
        }
        let rows = dequantize_rows(QuantFormat::Q8, q8.tensor(&name).unwrap(), n, k);
        for (found, block) in rows.chunks(32).zip(expected.chunks(32)) {
            let most = block.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            // Half a step, and what the scale's rounding to bf16 moves the largest by.
            assert!(
                found.iter().zip(block).all(|(f, x)| (f64::from(*f) - x).abs() <= most / 110.0),
                "{name}"
            );
        }
    }
    // What no adapter names stays in place.
    let name = "model.layers.0.mlp.down_proj.weight";
    assert_eq!(plain.format(name), None);
    assert_eq!(plain.tensor(name).unwrap().as_ptr(), {
        let weights = weights(None, vec![], None);
        weights.tensor(name).unwrap().as_ptr()
    });
}

#[test]
fn quants_of_others_become_q8() {
    let dir = TempDir::new().unwrap();
    let model = Arc::new(Model::built_in().unwrap());
    let one = tensors(1);
    write(&dir.path().join("one"), &config(), &one);
    // The built-in model in 4 bits, as a folder of its own.
    let q4 = dir.path().join("q4");
    let choice = lapidary_models::FormatChoice { body: Some(QuantFormat::Q4.into()), head: None };
    lapidary_models::export(&model, q4.as_path(), choice, 2, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let model = Arc::new(Model::open(&q4).unwrap());
    let adapter = Arc::new(Adapter::open(&dir.path().join("one"), 1.0, &model.config).unwrap());
    let options = Quantization { body: None, head: None, adapters: vec![adapter], threads: 1, cache: None };
    let go = |_: u64, _: u64| ControlFlow::Continue(());
    let weights = QuantizedWeights::open(model.clone(), &options, &go).unwrap();
    let (module, [n, k]) = MATRICES[2];
    let name = format!("model.{module}.weight");
    assert_eq!(weights.format(&name), Some(QuantFormat::Q8.into()));
    let (before, after) = (
        dequantize_rows(QuantFormat::Q4, model.checkpoint.tensor(&name).unwrap().bytes, n, k),
        dequantize_rows(QuantFormat::Q8, weights.tensor(&name).unwrap(), n, k),
    );
    let of = |part: &str| &one.iter().find(|t| t.0.contains(&format!("{module}.{part}"))).unwrap().2;
    let (a, b) = (of("lora_A"), of("lora_B"));
    for i in 0..n {
        for j in 0..k {
            let sum: f32 = (0..RANK).map(|r| b[i * RANK + r] * a[r * k + j]).sum();
            let expected = before[i * k + j] + 2.0 * sum;
            assert!((after[i * k + j] - expected).abs() < 0.02, "row {i}, column {j}");
        }
    }
}

#[test]
fn the_cache_knows_adapters_apart() {
    let dir = TempDir::new().unwrap();
    let model = Model::built_in().unwrap();
    write(&dir.path().join("one"), &config(), &tensors(1));
    write(&dir.path().join("other"), &config(), &tensors(2));
    let cache = || Some(Cache { dir: dir.path().join("cache"), limit: Cache::LIMIT });
    let open = |name: &str, factor| Adapter::open(&dir.path().join(name), factor, &model.config).unwrap();
    let with = |adapters: Vec<Adapter>| weights(Some(QuantFormat::Q8.into()), adapters, cache());
    let mut seen = Vec::new();
    let all: [&dyn Fn() -> Vec<Adapter>; 5] = [
        &Vec::new,
        &|| vec![open("one", 1.0)],
        &|| vec![open("one", 0.5)],
        &|| vec![open("other", 1.0)],
        &|| vec![open("one", 1.0), open("other", 1.0)],
    ];
    for adapters in all {
        let made = with(adapters());
        assert!(matches!(made.origin(), Origin::Made(_)), "{:?}", made.origin());
        let found = with(adapters());
        assert!(matches!(found.origin(), Origin::Found(_)), "{:?}", found.origin());
        let name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(made.tensor(name), found.tensor(name));
        let bytes = made.tensor(name).unwrap().to_vec();
        assert!(!seen.contains(&bytes));
        seen.push(bytes);
    }
}

#[test]
fn what_is_no_plain_adapter_of_the_model_is_refused() {
    let dir = TempDir::new().unwrap();
    let model = Model::built_in().unwrap();
    let refused = |config: &Value, tensors: &Tensors, named: &[&str]| {
        let folder = dir.path().join("adapter");
        write(&folder, config, tensors);
        let message = Adapter::open(&folder, 1.0, &model.config).err().unwrap().to_string();
        assert!(!message.contains('\n'), "{message}");
        for part in named {
            assert!(message.contains(part), "{part}: {message}");
        }
    };
    let with = |field: &str, value: Value| {
        let mut config = config();
        config[field] = value;
        config
    };
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("init_lora_weights", json!("pissa")),
        ("r", json!(0)),
        ("lora_alpha", json!("many")),
        ("rank_pattern", json!({"^model.*q_proj": 8})),
        ("target_modules", json!(["q_proj", "down_proj", "k_proj"])),
        ("target_modules", json!(["q_proj"])),
    ] {
        refused(&with(field, value), &tensors(1), &["adapter_config.json", field]);
    }
    // Another rank than the file's, for all or for some.
    refused(&with("r", json!(4)), &tensors(1), &["lora_A.weight", "shape [4, 288]", "[3, 288]"]);
    refused(
        &with("rank_pattern", json!({"layers.1.mlp.down_proj": 5})),
        &tensors(1),
        &["down_proj.lora_A", "r 5"],
    );
    let name = |module: &str, part: &str| format!("base_model.model.model.{module}.{part}.weight");
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors(1);
        change(&mut tensors);
        tensors
    };
    // B of another model, no B, a layer that there is not, what is no layer's, a tensor twice.
    let wide = changed(&|t| t[1] = (t[1].0.clone(), vec![300, RANK], vec![0.0; 300 * RANK]));
    refused(&config(), &wide, &["layers.0.self_attn.q_proj.lora_B", "[256, 3]", "[300, 3]"]);
    let alone = changed(&|t| drop(t.remove(1)));
    refused(&config(), &alone, &["q_proj.lora_A.weight", "lora_B"]);
    let beyond = changed(&|t| t.iter_mut().for_each(|t| t.0 = t.0.replace("layers.0.", "layers.99.")));
    refused(&config(), &beyond, &["layers.99.self_attn.q_proj"]);
    let table = changed(&|t| t[0].0 = "base_model.model.model.embed_tokens.lora_embedding_A".into());
    refused(&config(), &table, &["embed_tokens.lora_embedding_A"]);
    let head = changed(&|t| t[0].0 = "base_model.model.lm_head.lora_A.weight".into());
    refused(&config(), &head, &["lm_head.lora_A.weight"]);
    let twice = changed(&|t| {
        let again = (name("layers.0.self_attn.q_proj", "lora_A.default"), t[0].1.clone(), t[0].2.clone());
        t.push(again);
    });
    refused(&config(), &twice, &["lora_A.default.weight", "one tensor of this meaning"]);
    let infinite = changed(&|t| t[0].2[5] = f32::INFINITY);
    refused(&config(), &infinite, &["q_proj.lora_A.weight", "finite"]);
    let message = Adapter::open(dir.path(), 1.0, &model.config).err().unwrap().to_string();
    assert!(message.contains("adapter_config.json") && message.contains("PEFT"), "{message}");
}

#[test]
fn a_module_may_have_a_rank_and_an_alpha_of_its_own() {
    let dir = TempDir::new().unwrap();
    let model = Model::built_in().unwrap();
    let (mut config, one) = (config(), tensors(1));
    config["r"] = 8.into();
    config["lora_alpha"] = 1.into();
    config["rank_pattern"] = json!({"q_proj": RANK, "down_proj": RANK});
    config["alpha_pattern"] = json!({"layers.1.mlp.down_proj": 12});
    config["target_modules"] = "all-linear".into();
    write(dir.path(), &config, &one);
    let adapter = Adapter::open(dir.path(), 1.0, &model.config).unwrap();
    assert_eq!(adapter.names().count(), 3);
    let weights = weights(Some(WeightDType::F32.into()), vec![adapter], None);
    for (matrix, scale) in [(0, 1.0 / 3.0), (2, 4.0)] {
        let name = format!("model.{}.weight", MATRICES[matrix].0);
        let expected = &merged(&model, &[(&one, scale)])[&name];
        for (b, x) in weights.tensor(&name).unwrap().as_chunks().0.iter().zip(expected) {
            assert!((f64::from(f32::from_le_bytes(*b)) - x).abs() < 1e-6, "{name}");
        }
    }
}
