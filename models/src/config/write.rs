//! A configuration written as `config.json`.
//!
//! In: a [`Config`]. Out: JSON in transformers' newer dialect, with the fields that its family has. What folders never
//! have (a GGUF's unrounded embedding scale, its norms stored whole) is under a field of our own, which others do not
//! read.

use lapidary_ir::format::BLOCK;
use serde_json::{Map, Value, json};

use super::{ACTIVATION, Config, EmbeddingScale, NormWeights, OWN, QUANT_METHOD, Rope, own};
use crate::family::field;

impl Config {
    /// The configuration as a `config.json` that [`Config::from_json`] reads back equal.
    pub fn to_json(&self) -> Value {
        let Config {
            family,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            query_pre_attn_scalar,
            rms_norm_eps,
            rope_local,
            rope_global,
            sliding_window,
            layer_types,
            attn_logit_softcapping,
            final_logit_softcapping,
            max_position_embeddings,
            tie_word_embeddings,
            bos_token_id,
            eos_token_id,
            pad_token_id,
            embedding_scale,
            norm_weights,
        } = self;
        let mut all = json!({
            "architectures": [family.architectures[0]],
            "attention_bias": false,
            "attention_dropout": 0.0,
            field::ATTENTION_CAP: attn_logit_softcapping,
            "bos_token_id": bos_token_id,
            "eos_token_id": match eos_token_id[..] { [one] => json!(one), ref list => json!(list) },
            field::FINAL_CAP: final_logit_softcapping,
            "head_dim": head_dim,
            "hidden_activation": ACTIVATION,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            field::LAYER_TYPES: layer_types.iter().map(|t| t.name()).collect::<Vec<_>>(),
            "max_position_embeddings": max_position_embeddings,
            "model_type": family.model_type,
            "num_attention_heads": num_attention_heads,
            "num_hidden_layers": num_hidden_layers,
            "num_key_value_heads": num_key_value_heads,
            "pad_token_id": pad_token_id,
            field::QUERY_SCALE: integer_if_whole(*query_pre_attn_scalar),
            "rms_norm_eps": rms_norm_eps,
            "rope_parameters": match family.has(field::LOCAL_ROPE) {
                false => rope(rope_global),
                true => json!({ "full_attention": rope(rope_global), "sliding_attention": rope(rope_local) }),
            },
            field::WINDOW: sliding_window,
            "tie_word_embeddings": tie_word_embeddings,
            "vocab_size": vocab_size,
        });
        let mut ours = Map::new();
        if *embedding_scale == EmbeddingScale::Exact {
            ours.insert(own::EMBEDDING_SCALE.into(), json!(own::EXACT));
        }
        if *norm_weights == NormWeights::Whole {
            ours.insert(own::NORM_WEIGHTS.into(), json!(own::WHOLE));
        }
        if let Value::Object(fields) = &mut all {
            fields.retain(|name, _| !field::ALL.contains(&name.as_str()) || family.has(name));
            if !ours.is_empty() {
                fields.insert(OWN.into(), ours.into());
            }
        }
        all
    }
}

/// One description of RoPE.
fn rope(rope: &Rope) -> Value {
    match rope.factor {
        1.0 => json!({ "rope_theta": rope.theta, "rope_type": "default" }),
        factor => json!({ "factor": factor, "rope_theta": rope.theta, "rope_type": "linear" }),
    }
}

/// A number as published configurations have it: transformers refuses `256.0` where it wants an integer.
fn integer_if_whole(x: f64) -> Value {
    // Whole numbers up to 2^53 are exact in both types.
    if x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0 { json!(x as i64) } else { json!(x) }
}

/// The `quantization_config` of a checkpoint that holds quantised matrices.
pub(crate) fn quantization_config() -> Value {
    json!({ "quant_method": QUANT_METHOD, "block_size": BLOCK })
}
