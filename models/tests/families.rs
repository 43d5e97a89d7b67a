//! Configurations of Gemma 1 and Gemma 3 as they are published and as versions of transformers write them again: both
//! dialects, nested ones, what is refused.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lapidary_models::config::Rope;
use lapidary_models::{Config, LayerType};
use serde_json::{Value, json};

fn read(value: &Value) -> Result<(Config, Option<String>), String> {
    let read = Config::read(Path::new("config.json"), value.to_string().as_bytes());
    read.map(|(config, warning)| (config, warning.map(|w| w.to_string()))).map_err(|e| e.to_string())
}

/// The configuration of a file that has nothing to warn of.
#[track_caller]
fn plain(value: &Value) -> Config {
    let (config, warning) = read(value).unwrap_or_else(|e| panic!("{value}: {e}"));
    assert_eq!(warning, None, "{value}");
    assert_eq!(plain_again(&config), config, "it reads back equal");
    config
}

fn plain_again(config: &Config) -> Config {
    read(&config.to_json()).unwrap().0
}

#[track_caller]
fn refused(value: &Value, field: &str) {
    let message = read(value).expect_err(field);
    assert!(message.contains(&format!("`{field}`")), "{message}");
}

/// A value with some fields replaced; null takes one away.
fn with(value: &Value, changes: Value) -> Value {
    let mut value = value.clone();
    let fields = value.as_object_mut().unwrap();
    for (name, change) in changes.as_object().unwrap() {
        fields.remove(name);
        if !change.is_null() {
            fields.insert(name.clone(), change.clone());
        }
    }
    value
}

/// The 2B of Gemma 1 as published.
fn one() -> Value {
    json!({
        "architectures": ["GemmaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 2,
        "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu", "hidden_activation": null, "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma",
        "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
        "transformers_version": "4.38.0.dev0", "use_cache": true, "vocab_size": 256000
    })
}

/// The 1B of Gemma 3 as published, in transformers 4.50's dialect.
fn three() -> Value {
    json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
        "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144
    })
}

/// The 4B as published: sparse, beside a half that reads images.
fn nested() -> Value {
    json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024
        },
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": { "hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27 }
    })
}

#[test]
fn gemma_1_as_published() {
    assert_eq!(plain(&one()), Config::preset("gemma-2b").unwrap());
    // As transformers 5 writes it again.
    let again = with(
        &one(),
        json!({
            "hidden_act": "gelu_pytorch_tanh", "rope_theta": null, "dtype": "bfloat16", "torch_dtype": null,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": true,
        }),
    );
    assert_eq!(plain(&again), Config::preset("gemma-2b").unwrap());
    assert_eq!(plain(&json!({"model_type": "gemma"})), Config::preset("gemma-7b").unwrap());
    // What this family does not have is nothing that it computes.
    let (config, warning) = read(&with(&one(), json!({"sliding_window": 128}))).unwrap();
    assert!(config.layer_types.iter().all(|t| *t == LayerType::Full));
    assert!(warning.unwrap().contains("\"sliding_window\""));
    for (change, field) in [
        (json!({"hidden_act": "silu"}), "hidden_act"),
        (json!({"hidden_activation": "relu"}), "hidden_activation"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "rope_scaling.type"),
        (json!({"architectures": ["GemmaForSequenceClassification"]}), "architectures"),
    ] {
        refused(&with(&one(), change), field);
    }
    let scaled = plain(&with(&one(), json!({"rope_scaling": {"type": "linear", "factor": 2.0}})));
    assert_eq!(scaled.rope(LayerType::Full), Rope { theta: 10_000.0, factor: 2.0 });
}

#[test]
fn gemma_3_as_published() {
    let expected = Config::preset("gemma3-1b").unwrap();
    assert_eq!(plain(&three()), expected);
    assert_eq!(expected.layer_types.iter().filter(|t| **t == LayerType::Full).count(), 4);
    assert_eq!(expected.layer_types[5], LayerType::Full);
    // The pattern's names, and no pattern.
    let named = with(&three(), json!({"sliding_window_pattern": null, "_sliding_window_pattern": 6}));
    assert_eq!(plain(&named), expected);
    assert_eq!(plain(&with(&three(), json!({"sliding_window_pattern": null}))), expected);
    let three_to_one = with(&three(), json!({"sliding_window_pattern": 3}));
    assert_eq!(
        plain(&three_to_one).layer_types[..3],
        [LayerType::Sliding, LayerType::Sliding, LayerType::Full]
    );
    refused(&with(&three_to_one, json!({"_sliding_window_pattern": 6})), "_sliding_window_pattern");
    // As transformers 5 writes it again, whose pattern a list goes before.
    let kinds: Vec<&str> = expected.layer_types.iter().map(|t| t.name()).collect();
    let newer = json!({
        "layer_types": kinds, "sliding_window_pattern": null, "_sliding_window_pattern": 2, "rope_theta": null,
        "rope_local_base_freq": null, "use_bidirectional_attention": false,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}
        }
    });
    assert_eq!(plain(&with(&three(), newer)), expected);
    let defaults = plain(&json!({"model_type": "gemma3_text"}));
    assert_eq!((defaults.hidden_size, defaults.sliding_window, defaults.vocab_size), (2304, 4096, 262_208));
    assert_eq!(defaults.eos_token_id, [1]);
}

#[test]
fn rope_of_each_kind() {
    let of = |changes: Value| {
        let config = plain(&with(&three(), changes));
        [config.rope(LayerType::Sliding), config.rope(LayerType::Full)].map(|r| (r.theta, r.factor))
    };
    assert_eq!(of(json!({})), [(1e4, 1.0), (1e6, 1.0)]);
    // Both names of the type; a scale is that of the layers that see all keys.
    for name in ["type", "rope_type"] {
        let scaling = json!({"rope_scaling": { name: "linear", "factor": 8.0 }});
        assert_eq!(of(scaling), [(1e4, 1.0), (1e6, 8.0)]);
    }
    let newer = json!({
        "rope_theta": null, "rope_local_base_freq": null,
        "rope_parameters": {
            "full_attention": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0},
            "sliding_attention": {"rope_theta": 2e4, "rope_type": "linear", "factor": 2.0}
        }
    });
    assert_eq!(of(newer.clone()), [(2e4, 2.0), (5e5, 4.0)]);
    // What two fields say must agree.
    let both = |changes: Value| with(&with(&three(), newer.clone()), changes);
    refused(&both(json!({"rope_theta": 1e6})), "rope_theta");
    refused(&both(json!({"rope_local_base_freq": 1e4})), "rope_local_base_freq");
    refused(&both(json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}})), "rope_scaling.factor");
    refused(
        &with(&three(), json!({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}})),
        "rope_scaling.rope_type",
    );
    refused(&with(&three(), json!({"rope_scaling": {"factor": 8.0}})), "rope_scaling.factor");
}

#[test]
fn gemma_3_refuses_what_changes_the_result() {
    refused(&with(&three(), json!({"use_bidirectional_attention": true})), "use_bidirectional_attention");
    refused(&with(&three(), json!({"hidden_activation": "relu"})), "hidden_activation");
    refused(&with(&three(), json!({"architectures": ["Gemma3ForSequenceClassification"]})), "architectures");
    refused(&with(&three(), json!({"sliding_window_pattern": 0})), "sliding_window_pattern");
    // A cap of the scores is never applied; that is said.
    let (config, warning) = read(&with(&three(), json!({"attn_logit_softcapping": 50.0}))).unwrap();
    assert_eq!(config, Config::preset("gemma3-1b").unwrap());
    assert!(warning.unwrap().contains("\"attn_logit_softcapping\""));
    let capped = plain(&with(&three(), json!({"final_logit_softcapping": 30.0})));
    assert_eq!(capped.final_logit_softcapping, Some(30.0));
}

#[test]
fn nested_configurations() {
    assert_eq!(plain(&nested()), Config::preset("gemma3-4b").unwrap());
    let text =
        |changes: Value| with(&nested(), json!({"text_config": with(&nested()["text_config"], changes)}));
    let larger = text(json!({
        "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32,
        "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168
    }));
    assert_eq!(plain(&larger), Config::preset("gemma3-27b").unwrap());
    // What is harmless is so inside too; what nobody knows is named with its place.
    assert_eq!(plain(&text(json!({"use_cache": true, "torch_dtype": "bfloat16"}))), plain(&nested()));
    let (_, warning) = read(&text(json!({"brand_new": 1}))).unwrap();
    assert!(warning.unwrap().contains("\"text_config.brand_new\""));
    // Tokens of the whole go before those of its half.
    assert_eq!(plain(&text(json!({"eos_token_id": 1}))).eos_token_id, [1, 106]);
    refused(&text(json!({"hidden_size": 0})), "text_config.hidden_size");
    refused(&text(json!({"model_type": "gemma2"})), "text_config.model_type");
    refused(&text(json!({"use_bidirectional_attention": true})), "text_config.use_bidirectional_attention");
    refused(&with(&nested(), json!({"text_config": null})), "text_config");
    refused(&with(&nested(), json!({"text_config": [1]})), "text_config");
}
