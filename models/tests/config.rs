//! `config.json`: both dialects, every refusal by name, the published counts, and bytes that never panic.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lapidary_ir::DType;
use lapidary_models::{Config, LayerType, ParameterCounts, WeightDType};
use proptest::prelude::*;
use serde_json::{Value, json};

const TINY: &[u8] = include_bytes!("../data/tiny-gemma2/config.json");

fn tiny() -> Value {
    serde_json::from_slice(TINY).unwrap()
}

fn parse(value: &Value) -> lapidary_models::Result<Config> {
    Config::from_json(Path::new("config.json"), value.to_string().as_bytes())
}

/// The message for the tiny configuration with some fields replaced.
fn refusal(changes: Value) -> String {
    let mut value = tiny();
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let message = parse(&value).expect_err(&changes.to_string()).to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn newer_dialect() {
    let c = parse(&tiny()).unwrap();
    assert_eq!((c.hidden_size, c.num_hidden_layers, c.head_dim, c.sliding_window), (288, 5, 64, 128));
    assert_eq!((c.query_pre_attn_scalar, c.rope_theta), (72.0, 10_000.0));
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

#[test]
fn activation_may_be_null() {
    let mut value = tiny();
    value["hidden_activation"] = Value::Null;
    assert!(parse(&value).is_ok());
    value["hidden_act"] = json!("gelu");
    assert!(parse(&value).unwrap_err().to_string().contains("`hidden_act`"));
}

#[test]
fn refusals_name_the_field() {
    let cases = [
        (json!({"model_type": "llama"}), "field `model_type`: expected \"gemma2\", found \"llama\""),
        (json!({"model_type": null}), "`model_type`"),
        (json!({"architectures": ["Gemma2ForSequenceClassification"]}), "`architectures`"),
        (
            json!({"hidden_activation": "relu"}),
            "field `hidden_activation`: expected \"gelu_pytorch_tanh\", found \"relu\"",
        ),
        (json!({"attention_bias": true}), "`attention_bias`"),
        (json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention`"),
        (json!({"tie_word_embeddings": false}), "`tie_word_embeddings`"),
        (json!({"quantization_config": {"bits": 4}}), "`quantization_config.quant_method`"),
        (json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling`"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}), "`rope_parameters.rope_type`"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "factor": 8}}), "`rope_parameters.factor`"),
        (json!({"rope_parameters": {}}), "`rope_theta`"),
        (json!({"rope_theta": 5e4}), "`rope_theta`"),
        (json!({"use_moe": true}), "`use_moe`"),
        (json!({"new\nfield": 3}), "`new\\nfield`"),
        (json!({"hidden_size": 0}), "`hidden_size`"),
        (json!({"hidden_size": -8}), "`hidden_size`"),
        (json!({"hidden_size": 288.5}), "`hidden_size`"),
        (json!({"hidden_size": "288"}), "`hidden_size`"),
        (json!({"hidden_size": 18446744073709551615u64}), "`hidden_size`"),
        (json!({"vocab_size": null}), "`vocab_size`: expected an integer from 1 to 16777216, found nothing"),
        (json!({"num_hidden_layers": 100000}), "`num_hidden_layers`"),
        (json!({"num_hidden_layers": 6}), "`layer_types`"),
        (json!({"layer_types": ["chunked_attention"]}), "`layer_types`"),
        (json!({"num_key_value_heads": 3}), "`num_key_value_heads`"),
        (json!({"head_dim": 65}), "`head_dim`"),
        (json!({"num_attention_heads": 1 << 24}), "`num_attention_heads`"),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps`"),
        (json!({"rms_norm_eps": -1e-6}), "`rms_norm_eps`"),
        (json!({"query_pre_attn_scalar": 1e300}), "`query_pre_attn_scalar`"),
        (json!({"attn_logit_softcapping": 0.0}), "`attn_logit_softcapping`"),
        (json!({"sliding_window": null}), "`sliding_window`"),
        (json!({"eos_token_id": 4096}), "`eos_token_id`"),
        (json!({"eos_token_id": []}), "`eos_token_id`"),
        (json!({"bos_token_id": 1.5}), "`bos_token_id`"),
    ];
    for (change, expected) in cases {
        let message = refusal(change);
        assert!(message.starts_with("config.json: "), "{message}");
        assert!(message.contains(expected), "{message}: not {expected}");
    }
}

#[test]
fn integers_may_be_written_as_floats() {
    let mut value = tiny();
    value["hidden_size"] = json!(288.0);
    value["query_pre_attn_scalar"] = json!(72.0);
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
    assert!(Config::preset("3b").unwrap_err().to_string().contains("\"3b\": expected one of 2b, 9b, 27b"));
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
        let new = [json!(n), json!(n % 2000), json!(x), json!(s), json!([n, x]), json!({"a": x}), json!(true), json!(-(n as i128 % 99) as i64)];
        fields.insert(name, new[kind].clone());
        if let Err(e) = parse(&value) {
            prop_assert!(!e.to_string().contains('\n'));
        }
    }
}
