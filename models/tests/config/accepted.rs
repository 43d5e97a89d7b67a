//! What is taken: fields that change nothing, whatever they hold or within their condition, and unknown ones, which are
//! warned of.

use lapidary_models::config::{HARMLESS, When};
use lapidary_models::{Config, LayerType};
use serde_json::{Value, json};

use crate::{changed, parse, read, refusal, tiny, without};

/// Checks that some fields change nothing, and are nothing to warn of.
#[track_caller]
fn changes_nothing(changes: Value) {
    assert_eq!(read(&changed(&changes)), (parse(&tiny()).unwrap(), None), "{changes}");
}

#[test]
fn activations() {
    // transformers reads hidden_activation and not hidden_act; Gemma's "gelu" there has always meant the form with
    // tanh.
    changes_nothing(json!({"hidden_activation": null}));
    for other in ["gelu", "relu", "silu"] {
        changes_nothing(json!({"hidden_act": other}));
    }
    for same in ["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh"] {
        changes_nothing(json!({"hidden_activation": same}));
        changes_nothing(json!({"hidden_activation": null, "hidden_act": same}));
    }
    let mut older = without("hidden_activation");
    older["hidden_act"] = json!("gelu");
    assert_eq!(read(&older), (parse(&tiny()).unwrap(), None));
    older["hidden_act"] = json!("silu");
    assert!(parse(&older).unwrap_err().to_string().contains("`hidden_act`"));
    assert!(refusal(json!({"hidden_activation": null, "hidden_act": "gelu"})).contains("`hidden_act`"));
    assert!(refusal(json!({"hidden_activation": "gelu"})).contains("`hidden_activation`"));
}

#[test]
fn what_changes_nothing() {
    for changes in [
        json!({"sliding_window_size": 128, "_attn_implementation": "eager", "attn_implementation": "sdpa"}),
        json!({"sliding_window_size": 128.0}),
        json!({"sliding_window_size": null}),
        json!({"sliding_window_pattern": 2, "_sliding_window_pattern": 2}),
        json!({"max_seq_length": 2048, "pretraining_tp": 1, "use_cache": false}),
        json!({"rope_scaling": null}),
        json!({"rope_scaling": {}}),
        json!({"rope_scaling": {"rope_type": "default"}}),
        json!({"rope_scaling": {"type": "default"}}),
        json!({"rope_scaling": {"rope_type": "default", "factor": 1.0, "original_max_position_embeddings": 8192}}),
        json!({"rope_scaling": {"type": "linear", "factor": 1.0}}),
        json!({"rope_parameters": {"rope_theta": 10000, "rope_type": "default", "partial_rotary_factor": 1.0}}),
        json!({"rope_parameters": {}}),
        json!({"rope_parameters": null, "rope_theta": 10000}),
        json!({"rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e4}
        }}),
        json!({"partial_rotary_factor": 1.0}),
        json!({"partial_rotary_factor": 1}),
        json!({"rope_local_base_freq": 10000.0}),
        json!({"attention_bias": null, "mlp_bias": false, "use_bidirectional_attention": null}),
        json!({"attention_bias": 0}),
        json!({"pad_token_id": -1}),
        json!({"pad_token_id": 4096}),
        json!({"pad_token_id": null}),
        json!({"eos_token_id": []}),
        json!({"eos_token_id": null}),
        json!({"eos_token_id": -1}),
        json!({"eos_token_id": [1, -1]}),
        json!({"bos_token_id": null}),
        json!({"tie_word_embeddings": null}),
        json!({"tie_word_embeddings": 1}),
        json!({"architectures": null}),
        json!({"architectures": ["Gemma2Model"]}),
        json!({"architectures": ["Gemma2ForCausalLMWithValueHead"]}),
        json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}),
        json!({"quantization_config": {"load_in_4bit": true, "quant_method": "bitsandbytes"}}),
        json!({"quantization_config": {"bits": 4}, "compression_config": {}, "quantization": {"group_size": 64}}),
        json!({"unsloth_version": "2024.9", "unsloth_fixed": true, "unsloth_anything": [1]}),
        json!({"id2label": {"0": "A"}, "label2id": {"A": 0}, "num_labels": 1}),
        json!({"torch_dtype": "float16", "dtype": "auto", "_name_or_path": "google/gemma-2-2b"}),
        json!({"hidden_dropout_prob": 0.1, "initializer_range": 1, "neftune_noise_alpha": 5}),
        json!({"a_field_of_the_future": null}),
    ] {
        changes_nothing(changes);
    }
}

/// Each row of the table: a value that fulfils its condition changes nothing; one that does not is refused by name.
#[test]
fn every_harmless_field() {
    let own = |twin: &str| match twin {
        "rope_theta" => json!(10_000.0),
        name => tiny()[name].clone(),
    };
    for (name, when) in HARMLESS {
        let (good, bad) = match when {
            When::Always => (json!(["any", {"value": 3}]), None),
            When::Off => (json!(false), Some(json!(true))),
            When::On => (json!(true), Some(json!(false))),
            When::Is(x) => (json!(x), Some(json!(x / 2.0))),
            When::As(twin) => (own(twin), Some(json!(7))),
            When::Period => (json!(2), Some(json!(6))),
        };
        changes_nothing(json!({ *name: good }));
        changes_nothing(json!({ *name: null }));
        if let Some(bad) = bad {
            let message = refusal(json!({ *name: bad }));
            assert!(message.contains(&format!("`{name}`")), "{message}");
            if let When::As(twin) = when {
                assert!(message.contains(&format!("`{twin}`")), "both are named: {message}");
            }
        }
        let twice = HARMLESS.iter().filter(|(other, _)| other == name).count();
        assert_eq!(twice, 1, "{name}");
    }
}

/// What transformers' `Gemma2Config` takes for what is absent.
#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let (config, warning) = read(&json!({"model_type": "gemma2"}));
    assert_eq!((config, warning), (Config::preset("2b").unwrap(), None));
}

#[test]
fn full_layers_need_no_window() {
    let full = json!({"layer_types": vec!["full_attention"; 5], "sliding_window": null, "sliding_window_size": 4096});
    let (config, warning) = read(&changed(&full));
    assert!(config.layer_types.iter().all(|t| *t == LayerType::Full));
    assert_eq!(warning, None);
    assert_eq!(parse(&config.to_json()).unwrap(), config);
    let mut one = full;
    one["layer_types"][2] = json!("sliding_attention");
    assert!(refusal(one).contains("`sliding_window`"));
}

#[test]
fn unknown_fields_are_named_in_one_warning() {
    let (config, warning) =
        read(&changed(&json!({"brand_new": 1, "another\n\u{1b}[31m": {"x": []}, "off": false})));
    assert_eq!(config, parse(&tiny()).unwrap());
    let expected =
        r#"config.json: fields are not known and ignored: "brand_new", "another\n\u{1b}[31m", "off""#;
    assert_eq!(warning.unwrap(), expected);
    let (_, warning) = read(&changed(&json!({"rope_parameters": {"rope_theta": 1e4, "rope_new": 3}})));
    assert_eq!(
        warning.unwrap(),
        r#"config.json: field is not known and ignored: "rope_parameters.rope_new""#
    );
    let (_, warning) = read(&changed(&json!({"architectures": ["SomebodysOwnModel"]})));
    assert!(warning.unwrap().contains("\"architectures\""));
    // However many there are, and however long.
    let many: serde_json::Map<_, _> =
        (0..50_000).map(|i| (format!("{i}{}", "x\u{202e}".repeat(200)), json!(i))).collect();
    let (_, warning) = read(&changed(&many.into()));
    let warning = warning.unwrap();
    assert!(warning.ends_with(" more") && !warning.contains('\u{202e}'), "{warning}");
}
