//! `config.json`: both dialects, the published files and counts, and bytes that never panic.
//!
//! `accepted` has what changes nothing or is warned of, `refusals` what is refused by name.
#![allow(clippy::unwrap_used)]

mod accepted;
mod refusals;

use std::path::Path;

use std::ops::ControlFlow;

use lapidary_ir::DType;
use lapidary_models::{
    Config, FormatChoice, LayerType, Model, ParameterCounts, Preset, WeightDType, synthesize,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const TINY: &[u8] = include_bytes!("../../data/tiny-gemma2/config.json");

fn tiny() -> Value {
    serde_json::from_slice(TINY).unwrap()
}

fn parse(value: &Value) -> lapidary_models::Result<Config> {
    Config::from_json(Path::new("config.json"), value.to_string().as_bytes())
}

/// The tiny configuration with some fields replaced.
fn changed(changes: &Value) -> Value {
    let mut value = tiny();
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    value
}

/// The tiny configuration without a field.
fn without(name: &str) -> Value {
    let mut value = tiny();
    value.as_object_mut().unwrap().remove(name).expect(name);
    value
}

/// What a file makes, and the warning, which must be one line.
fn read(value: &Value) -> (Config, Option<String>) {
    let read = Config::read(Path::new("config.json"), value.to_string().as_bytes());
    let (config, warning) = read.unwrap_or_else(|e| panic!("{value}: {e}"));
    let warning = warning.map(|w| w.to_string());
    assert!(warning.iter().all(|w| !w.chars().any(char::is_control) && w.len() < 1000), "{warning:?}");
    (config, warning)
}

/// The message for the tiny configuration with some fields replaced.
fn refusal(changes: Value) -> String {
    let message = parse(&changed(&changes)).expect_err(&changes.to_string()).to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn newer_dialect() {
    let c = parse(&tiny()).unwrap();
    assert_eq!((c.hidden_size, c.num_hidden_layers, c.head_dim, c.sliding_window), (288, 5, 64, 128));
    assert_eq!((c.query_pre_attn_scalar, c.rope_global.theta), (72.0, 10_000.0));
    assert_eq!(c.layer_types[..3], [LayerType::Sliding, LayerType::Full, LayerType::Sliding]);
    assert_eq!((c.attn_logit_softcapping, c.final_logit_softcapping), (Some(50.0), Some(30.0)));
    assert_eq!(c.embedding_scale(), 17.0); // sqrt(288) = 16.97 rounded to 8 bits
    assert_eq!(c.attention_scale(), 72f64.powf(-0.5) as f32);
}

#[test]
fn older_dialect() {
    // As published with gemma-2-9b: both activations, dtype and rotary base under their older names.
    let older = json!({
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 107],
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
        "query_pre_attn_scalar": 256.0, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "sliding_window_size": null, "torch_dtype": "float32", "transformers_version": "4.42.0.dev0",
        "use_cache": true, "vocab_size": 256000
    });
    let mut expected = Config::preset("9b").unwrap();
    expected.eos_token_id = vec![1, 107];
    assert_eq!(parse(&older).unwrap(), expected);
}

#[test]
fn softcaps_default_and_switch_off() {
    let mut value = tiny();
    value.as_object_mut().unwrap().remove("attn_logit_softcapping");
    value["final_logit_softcapping"] = Value::Null;
    let c = parse(&value).unwrap();
    assert_eq!((c.attn_logit_softcapping, c.final_logit_softcapping), (Some(50.0), None));
}

/// The three `config.json`s as published, sizes of the 2B, 9B and 27B.
fn published() -> [Value; 3] {
    let of = |sizes: [usize; 6], scalar: f64, more: Value| {
        let [hidden, layers, heads, kv_heads, head_dim, intermediate] = sizes;
        let mut value = json!({
            "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
            "final_logit_softcapping": 30.0, "head_dim": head_dim, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": hidden, "initializer_range": 0.02,
            "intermediate_size": intermediate, "max_position_embeddings": 8192, "model_type": "gemma2",
            "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv_heads,
            "pad_token_id": 0, "query_pre_attn_scalar": scalar, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
            "sliding_window": 4096, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0",
            "use_cache": true, "vocab_size": 256000
        });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let more = || json!({ "_attn_implementation": "eager", "sliding_window_size": 4096 });
    [
        of([2304, 26, 8, 4, 256, 9216], 256.0, json!({})),
        of([3584, 42, 16, 8, 256, 14336], 256.0, more()),
        of([4608, 46, 32, 16, 128, 36864], 144.0, more()),
    ]
}

#[test]
fn published_configurations_open() {
    for (published, name) in published().into_iter().zip(["gemma2-2b", "gemma2-9b", "gemma2-27b"]) {
        let preset = Config::preset(name).unwrap();
        assert_eq!(read(&published), (preset.clone(), None), "{name}");
        // The same file with small shapes, as a folder with weights.
        let mut small = published;
        for (name, size) in [
            ("vocab_size", 4096),
            ("hidden_size", 32),
            ("intermediate_size", 48),
            ("num_hidden_layers", 3),
            ("num_attention_heads", 4),
            ("num_key_value_heads", 2),
            ("head_dim", 16),
        ] {
            small[name] = json!(size);
        }
        let config = read(&small).0;
        assert_eq!(config.query_pre_attn_scalar, preset.query_pre_attn_scalar);
        let dir = tempfile::TempDir::new().unwrap();
        let write = |dtype| {
            synthesize(dir.path(), &config, dtype, FormatChoice::default(), 1, &mut |_, _| {
                ControlFlow::Continue(())
            })
        };
        write(WeightDType::BF16).unwrap();
        std::fs::write(dir.path().join("config.json"), small.to_string()).unwrap();
        let model = Model::open(dir.path()).unwrap();
        assert_eq!((model.config, model.warnings), (config, vec![]), "{name}");
    }
}

#[test]
fn integers_may_be_written_as_floats() {
    let mut value = tiny();
    value["hidden_size"] = json!(288.0);
    value["query_pre_attn_scalar"] = json!(72.0);
    value["sliding_window"] = json!(128.0);
    value["eos_token_id"] = json!([1.0]);
    assert_eq!(parse(&value).unwrap(), parse(&tiny()).unwrap());
}

#[test]
fn parameters_are_those_of_the_report() {
    // Gemma 2 report, table 2; its vocabulary is padded to 256,128.
    let table = [
        ("2b", 590_118_912, 2_024_517_888),
        ("9b", 917_962_752, 8_324_201_984),
        ("27b", 1_180_237_824, 26_047_480_320),
    ];
    for (name, embedding, non_embedding) in table {
        let mut c = Config::preset(name).unwrap();
        c.vocab_size = 256_128;
        assert_eq!(c.parameter_counts(), ParameterCounts { embedding, non_embedding }, "{name}");
    }
    let unknown = Config::preset("3b").unwrap_err().to_string();
    assert!(unknown.contains("\"3b\": expected one of ") && unknown.contains("gemma2-9b, "), "{unknown}");
    // The published shapes added up; of the larger ones, without the half that reads images.
    for (name, total) in [
        ("gemma-2b", 2_506_172_416),
        ("gemma-7b", 8_537_680_896),
        ("gemma3-270m", 268_098_176),
        ("gemma3-1b", 999_885_952),
        ("gemma3-4b", 3_880_263_168),
        ("gemma3-12b", 11_766_034_176),
        ("gemma3-27b", 27_009_346_304),
    ] {
        assert_eq!(Config::preset(name).unwrap().parameter_counts().total(), total, "{name}");
    }
    for preset in Preset::all() {
        let config = (preset.config)();
        assert_eq!(Config::preset(preset.name).unwrap(), config);
        assert_eq!(parse(&config.to_json()).unwrap(), config, "{}", preset.name);
        let names = Preset::all().flat_map(|p| [Some(p.name), p.alias]).flatten();
        assert_eq!(
            names.filter(|n| *n == preset.name || Some(*n) == preset.alias).count(),
            1 + preset.alias.iter().count()
        );
    }
}

#[test]
fn sizes() {
    let c = Config::preset("2b").unwrap();
    assert_eq!(c.weight_bytes(WeightDType::BF16), 5_228_683_776);
    assert_eq!(c.kv_rows(LayerType::Sliding, 8192, 512), 4608);
    assert_eq!(c.kv_rows(LayerType::Sliding, 1000, 512), 1000);
    assert_eq!(c.kv_bytes(8192, 512, DType::BF16), 13 * (4608 + 8192) * 2 * 4 * 256 * 2);
    assert_eq!(c.kv_bytes(8192, 512, DType::Q8), 13 * (4608 + 8192) * 2 * 4 * (256 + 16));
    assert_eq!(c.kv_bytes(usize::MAX, usize::MAX, DType::BF16), u64::MAX);
    let matrices = 2 * (c.parameter_counts().total() - (26 * 4 + 1) * 2304);
    assert_eq!(c.flops_per_token(0), matrices + 26 * 4 * 8 * 256);
    assert_eq!(c.flops_per_token(8191), matrices + 13 * (4096 + 8192) * 4 * 8 * 256);
}

#[test]
fn written_configurations_read_back() {
    let mut odd = parse(&tiny()).unwrap();
    odd.attn_logit_softcapping = Some(0.1);
    odd.final_logit_softcapping = None;
    odd.eos_token_id = vec![1, 107];
    let presets = ["2b", "9b", "27b"].map(|n| Config::preset(n).unwrap());
    for c in presets.into_iter().chain([odd]) {
        assert_eq!(parse(&c.to_json()).unwrap(), c);
    }
    let scalar = |x: f64| {
        let mut c = Config::preset("2b").unwrap();
        c.query_pre_attn_scalar = x;
        assert_eq!(parse(&c.to_json()).unwrap(), c);
        c.to_json()["query_pre_attn_scalar"].to_string()
    };
    // transformers wants an integer where there is one.
    assert_eq!([scalar(256.0), scalar(72.5)], ["256", "72.5"]);
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Config::from_json(Path::new("c"), &bytes);
    }

    #[test]
    fn mutated_files(at in prop::collection::vec((0..TINY.len(), any::<u8>()), 1..6)) {
        let mut bytes = TINY.to_vec();
        at.into_iter().for_each(|(i, b)| bytes[i] = b);
        let _ = Config::from_json(Path::new("c"), &bytes);
    }

    #[test]
    fn mutated_values(field in 0..30usize, kind in 0..8usize, n in any::<u64>(), x in any::<f64>(), s in ".*") {
        let mut value = tiny();
        let fields = value.as_object_mut().unwrap();
        let name = fields.keys().nth(field % fields.len()).unwrap().clone();
        let new = [json!(n), json!(n % 2000), json!(x), json!(s), json!([n, x]),
            json!({"a": x}), json!(true), json!(-(n as i128 % 99) as i64)];
        fields.insert(name, new[kind].clone());
        if let Err(e) = parse(&value) {
            prop_assert!(!e.to_string().contains('\n'));
        }
    }
}
