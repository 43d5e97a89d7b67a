//! The fields of `config.json` that change nothing that is computed here, and under which condition.
//!
//! In: what is left of a configuration once its own fields are taken, and the configuration. Out: the names that nobody
//! knows. A field is *understood* (a field of [`Config`], or taken by name where that is read), *known to be harmless*
//! (a row of [`HARMLESS`]) or *unknown*, which is worth a warning and no more. An error is for a value that is known to
//! change the result: that of a row whose condition does not hold.

use std::path::Path;

use lapidary_runtime::file;
use lapidary_runtime::file::fields::{is_off, refused};
use serde_json::Value;

use crate::config::{Config, LayerType, parse::NESTED};
use crate::error;

/// When a field changes nothing. Null never changes anything.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Whatever its value.
    Always,
    /// While it is off: false, 0 or empty.
    Off,
    /// While it is on: true.
    On,
    /// While it is this number.
    Is(f64),
    /// While it agrees with another field, which is the one that is read.
    As(&'static str),
    /// While it is the period with which full layers follow sliding ones.
    Period,
}

use When::{Always, As, Is, Off, On, Period};

/// The fields that are known to be harmless, and when.
#[rustfmt::skip]
pub const HARMLESS: &[(&str, When)] = &[
    // Twins of a field that is read, and what only one value of is built.
    ("sliding_window_size", As("sliding_window")),
    ("window_size", As("sliding_window")),
    ("sliding_window_pattern", Period),
    ("_sliding_window_pattern", Period),
    ("rope_local_base_freq", As("rope_theta")),
    ("rope_base", As("rope_theta")),
    ("rotary_dim", As("head_dim")),
    ("num_layers", As("num_hidden_layers")),
    ("num_heads", As("num_attention_heads")),
    ("num_kv_heads", As("num_key_value_heads")),
    ("partial_rotary_factor", Is(1.0)),
    ("rotary_pct", Is(1.0)),
    ("rope_factor", Is(1.0)),
    ("rope_ratio", Is(1.0)),
    ("is_causal", On),
    ("attention_bias", Off),
    ("mlp_bias", Off),
    ("qkv_bias", Off),
    ("use_bias", Off),
    ("lm_head_bias", Off),
    ("use_bidirectional_attention", Off),
    ("rope_interleaved", Off),
    ("use_qk_norm", Off),
    ("alibi", Off),
    ("is_encoder_decoder", Off),
    ("add_cross_attention", Off),
    ("pruned_heads", Off),
    ("use_moe", Off),
    ("enable_moe_block", Off),
    ("num_experts", Off),
    ("num_local_experts", Off),
    ("num_kv_shared_layers", Off),
    // Of other types of RoPE than those that are read.
    ("original_max_position_embeddings", Always),
    // Longest texts, of trainers and of tokenizers.
    ("max_length", Always),
    ("max_seq_len", Always),
    ("max_seq_length", Always),
    ("max_sequence_length", Always),
    ("model_max_length", Always),
    ("seq_length", Always),
    // Where it comes from, and how Python loads and runs it.
    ("_attn_implementation", Always),
    ("_attn_implementation_autoset", Always),
    ("_attn_implementation_internal", Always),
    ("_commit_hash", Always),
    ("_experts_implementation", Always),
    ("_flash_attn_2_enabled", Always),
    ("_from_auto", Always),
    ("_from_model_config", Always),
    ("_name_or_path", Always),
    ("_output_attentions", Always),
    ("_remove_final_layer_norm", Off),
    ("attn_implementation", Always),
    ("auto_map", Always),
    ("base_model_name_or_path", Always),
    ("base_model_tp_plan", Always),
    ("cache_implementation", Always),
    ("chunk_size_feed_forward", Always),
    ("custom_pipelines", Always),
    ("dtype", Always),
    ("fp16", Always),
    ("bf16", Always),
    ("gradient_checkpointing", Always),
    ("model_name", Always),
    ("name_or_path", Always),
    ("neuron", Always),
    ("pretraining_tp", Always),
    ("tensor_parallel_size", Always),
    ("tf_legacy_loss", Always),
    ("torch_dtype", Always),
    ("torchscript", Always),
    ("transformers.js_config", Always),
    ("transformers_version", Always),
    ("transformers_weights", Always),
    ("use_bfloat16", Always),
    ("use_cache", Always),
    ("use_flash_attn", Always),
    ("use_flash_attention", Always),
    ("use_flash_attention_2", Always),
    ("flash_attention", Always),
    ("use_mem_efficient_attention", Always),
    ("use_sdpa", Always),
    ("vllm_version", Always),
    // How it was trained.
    ("attention_dropout", Always),
    ("attn_pdrop", Always),
    ("classifier_dropout", Always),
    ("dropout", Always),
    ("embd_pdrop", Always),
    ("ff_dropout", Always),
    ("finetuning_task", Always),
    ("hidden_dropout", Always),
    ("hidden_dropout_prob", Always),
    ("initializer_range", Always),
    ("label_smoothing", Always),
    ("layerdrop", Always),
    ("loss_type", Always),
    ("mlp_dropout", Always),
    ("neftune_noise_alpha", Always),
    ("problem_type", Always),
    ("resid_pdrop", Always),
    ("task_specific_params", Always),
    ("unsloth_fixed", Always),
    ("unsloth_tokenizer_fixed", Always),
    ("unsloth_version", Always),
    ("use_unsloth", Always),
    ("z_loss", Always),
    // Of quantisers: tensors state their own formats, and those that are really quantised are refused where they are
    // read.
    ("compression_config", Always),
    ("quantization", Always),
    ("awq_config", Always),
    ("quant_config", Always),
    ("pre_quantized", Always),
    ("kv_cache_scheme", Always),
    // What a call returns.
    ("id2label", Always),
    ("keys_to_ignore_at_inference", Always),
    ("label2id", Always),
    ("num_labels", Always),
    ("output_attentions", Always),
    ("output_hidden_states", Always),
    ("output_router_logits", Always),
    ("output_scores", Always),
    ("return_dict", Always),
    ("return_dict_in_generate", Always),
    // Halves that read images, and what stands for one in a text.
    ("vision_config", Always),
    ("image_token_index", Always),
    ("image_token_id", Always),
    ("boi_token_index", Always),
    ("boi_token_id", Always),
    ("eoi_token_index", Always),
    ("eoi_token_id", Always),
    ("mm_tokens_per_image", Always),
    // Other architectures' halves.
    ("cross_attention_hidden_size", Always),
    ("decoder_start_token_id", Always),
    ("is_decoder", Always),
    ("prefix", Always),
    ("sep_token_id", Always),
    ("tie_encoder_decoder", Always),
    ("tokenizer_class", Always),
    // Tokens that are never produced.
    ("cls_token_id", Always),
    ("mask_token_id", Always),
    ("unk_token_id", Always),
    // Sampling, which transformers itself moved to generation_config.json.
    ("assistant_early_exit", Always),
    ("bad_words_ids", Always),
    ("begin_suppress_tokens", Always),
    ("diversity_penalty", Always),
    ("do_sample", Always),
    ("early_stopping", Always),
    ("encoder_no_repeat_ngram_size", Always),
    ("exponential_decay_length_penalty", Always),
    ("forced_bos_token_id", Always),
    ("forced_eos_token_id", Always),
    ("generation_config", Always),
    ("length_penalty", Always),
    ("max_new_tokens", Always),
    ("min_length", Always),
    ("min_p", Always),
    ("no_repeat_ngram_size", Always),
    ("num_beam_groups", Always),
    ("num_beams", Always),
    ("num_return_sequences", Always),
    ("remove_invalid_values", Always),
    ("repetition_penalty", Always),
    ("suppress_tokens", Always),
    ("temperature", Always),
    ("top_k", Always),
    ("top_p", Always),
    ("typical_p", Always),
];

/// Beginnings of the names of fields that are harmless whatever follows: what trainers note of their own.
const NOTES: &[&str] = &["unsloth_", "axolotl_", "trl_", "llamafactory_", "neuron_", "mlx_", "wandb_"];

/// Holds what is left of a configuration against the table; what nobody knows goes to `unknown`.
pub(crate) fn hold(
    path: &Path,
    config: &Config,
    rest: impl Iterator<Item = (String, Value)>,
    unknown: &mut Vec<String>,
) -> file::Result<()> {
    for (name, value) in rest {
        if value.is_null() || NOTES.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let own = name.strip_prefix(NESTED).and_then(|n| n.strip_prefix('.')).unwrap_or(&name);
        match HARMLESS.iter().find(|(field, _)| *field == own) {
            None => unknown.push(name),
            Some((_, when)) => {
                if let Some(expected) = when.refused(config, &value) {
                    return Err(refused(path, &name, &expected, error::json(&value)));
                }
            }
        }
    }
    Ok(())
}

impl When {
    /// What is expected of a value that is none of it.
    fn refused(self, config: &Config, value: &Value) -> Option<String> {
        let number = value.as_f64();
        match self {
            Always => None,
            Off => (!is_off(value)).then(|| "false".to_string()),
            On => is_off(value).then(|| "true".to_string()),
            Is(only) => (number != Some(only)).then(|| only.to_string()),
            As(twin) => {
                let own = config.number(twin);
                (number != own).then(|| match own {
                    Some(own) => format!("{own}, as `{twin}` says"),
                    None => format!("what `{twin}` says"),
                })
            }
            Period => {
                let full = |i: usize| (i as f64 + 1.0) % number.unwrap_or(0.0) == 0.0;
                let mut layers = config.layer_types.iter().enumerate();
                let same = number.is_some() && layers.all(|(i, t)| (*t == LayerType::Full) == full(i));
                (!same).then(|| "the period of full layers in `layer_types`".to_string())
            }
        }
    }
}

impl Config {
    /// A number of the configuration that has a twin under another name.
    fn number(&self, name: &str) -> Option<f64> {
        match name {
            "sliding_window" => Some(self.sliding_window as f64),
            "rope_theta" => Some(self.rope_global.theta),
            "head_dim" => Some(self.head_dim as f64),
            "num_hidden_layers" => Some(self.num_hidden_layers as f64),
            "num_attention_heads" => Some(self.num_attention_heads as f64),
            "num_key_value_heads" => Some(self.num_key_value_heads as f64),
            _ => None,
        }
    }
}
