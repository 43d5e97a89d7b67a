//! What is refused: each by the name of its field, and files that are no JSON by what they seem to be.

use std::path::Path;

use lapidary_models::Config;
use serde_json::json;

use crate::{parse, refusal, tiny};

#[test]
fn refusals_name_the_field() {
    let cases = [
        (
            json!({"model_type": "llama"}),
            "field `model_type`: expected \"gemma\", \"gemma2\", \"gemma3_text\", \"gemma3\", found \"llama\"",
        ),
        (json!({"model_type": null}), "`model_type`"),
        (json!({"architectures": ["Gemma2ForSequenceClassification"]}), "`architectures`"),
        (json!({"architectures": ["Gemma2ForTokenClassification"]}), "`architectures`"),
        (json!({"architectures": 3}), "`architectures`"),
        (
            json!({"hidden_activation": "relu"}),
            "field `hidden_activation`: expected \"gelu_pytorch_tanh\", found \"relu\"",
        ),
        (json!({"attention_bias": true}), "`attention_bias`"),
        (json!({"attention_bias": 1}), "`attention_bias`"),
        (json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention`"),
        (json!({"tie_word_embeddings": "yes"}), "`tie_word_embeddings`"),
        (
            json!({"quantization_config": {"quant_method": "lapidary", "block_size": 64}}),
            "`quantization_config.block_size`: expected 32, found 64",
        ),
        (json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor`"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            "`rope_scaling.factor`: expected 1, as `rope_parameters.rope_type` says, found 2.0",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 1}}),
            "`rope_scaling.type`",
        ),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "`rope_scaling.factor`"),
        (json!({"rope_scaling": {"factor": 8}}), "`rope_scaling.factor`"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 1.0}}), "`rope_scaling.rope_type`"),
        (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), "`rope_scaling.rope_type`"),
        (json!({"rope_scaling": {"rope_type": "default", "type": "yarn"}}), "`rope_scaling.type`"),
        (json!({"rope_scaling": "linear"}), "`rope_scaling`"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}), "`rope_parameters.rope_type`"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "factor": 8}}), "`rope_parameters.factor`"),
        (
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            "`rope_parameters.partial_rotary_factor`",
        ),
        (
            json!({"rope_parameters": {
                "full_attention": {"rope_theta": 1e6},
                "sliding_attention": {"rope_theta": 1e4}
            }}),
            "expected 10000, as `rope_parameters.sliding_attention.rope_theta` says",
        ),
        (
            json!({"rope_theta": 5e4}),
            "field `rope_theta`: expected 10000, as `rope_parameters.rope_theta` says",
        ),
        (
            json!({"sliding_window_size": 2048}),
            "field `sliding_window_size`: expected 128, as `sliding_window` says, found 2048",
        ),
        (json!({"sliding_window_pattern": 6}), "`sliding_window_pattern`"),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor`"),
        (json!({"use_moe": true}), "`use_moe`"),
        (json!({"num_experts": 8}), "`num_experts`"),
        (json!({"pruned_heads": {"0": [1]}}), "`pruned_heads`"),
        (json!({"hidden_size": 0}), "`hidden_size`"),
        (json!({"hidden_size": -8}), "`hidden_size`"),
        (json!({"hidden_size": 288.5}), "`hidden_size`"),
        (json!({"hidden_size": "288"}), "`hidden_size`"),
        (json!({"hidden_size": 18446744073709551615u64}), "`hidden_size`"),
        (json!({"vocab_size": null}), "`vocab_size`: expected an integer from 1 to 16777216, found null"),
        (json!({"rms_norm_eps": null}), "`rms_norm_eps`"),
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
        (json!({"eos_token_id": [1, "2"]}), "`eos_token_id`"),
        (json!({"bos_token_id": 1.5}), "`bos_token_id`"),
        (json!({"pad_token_id": "<pad>"}), "`pad_token_id`"),
    ];
    for (change, expected) in cases {
        let message = refusal(change);
        assert!(message.starts_with("config.json: "), "{message}");
        assert!(message.contains(expected), "{message}: not {expected}");
    }
}

#[test]
fn byte_order_marks_and_wrong_encodings() {
    let text = tiny().to_string();
    let marked = [b"\xEF\xBB\xBF", text.as_bytes()].concat();
    assert_eq!(Config::from_json(Path::new("c"), &marked).unwrap(), parse(&tiny()).unwrap());
    let wide = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let message = |bytes: &[u8]| Config::from_json(Path::new("c"), bytes).unwrap_err().to_string();
    for bytes in [
        [b"\xFF\xFE", &wide(u16::to_le_bytes)[..]].concat(),
        [b"\xFE\xFF", &wide(u16::to_be_bytes)[..]].concat(),
        wide(u16::to_le_bytes),
        wide(u16::to_be_bytes),
    ] {
        assert!(message(&bytes).contains("UTF-16"), "{}", message(&bytes));
    }
    assert!(message(&text.as_bytes()[..text.len() / 2]).contains("cut short"));
    assert!(message(b" \n").contains("an empty file"));
    assert!(message(b"{\"error\": \"Repository not found\"}").contains("\"Repository not found\""));
    assert!(message(b"Access to model google/gemma-2-2b is restricted.").contains("the text \"Access to"));
}
