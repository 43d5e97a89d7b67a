//! What makes a family of models: a row of [`MODELS`](crate::MODELS).
//!
//! A family is a file: its row and its layer, written in the primitives of [`graph`](crate::graph). All families share
//! the embedding, the heads, the form of a configuration and the names of what is around the layers; the names and
//! shapes of a layer's tensors are those that its graph declares.

use std::fmt;

use lapidary_ir::Id;

use crate::config::{Config, EmbeddingScale, LayerType, NormWeights, Rope};
use crate::graph::Graph;
use crate::preset::Preset;

/// A family of models.
pub struct Family {
    /// For people: `Gemma 2`.
    pub name: &'static str,
    /// Its `model_type`.
    pub model_type: &'static str,
    /// A `model_type` whose `text_config` is a configuration of this family, beside halves that are not built.
    pub wrapper: Option<&'static str>,
    /// The classes of transformers whose weights are read; the first is written.
    pub architectures: &'static [&'static str],
    /// The fields of `config.json` that only some families have, of those that this one has ([`field`]).
    pub fields: &'static [&'static str],
    /// Each layer of a number that this divides, counted from 1, sees all keys; the others slide.
    pub period: usize,
    /// What is absent in a `config.json` means: the defaults of transformers' class.
    pub defaults: fn() -> Config,
    /// The published sizes.
    pub presets: &'static [Preset],
    /// Writes a layer: x f32 (T, hidden) and pos i32 (T) to f32 (T, hidden).
    pub(crate) layer: fn(&mut Graph<'_>, Id, Id, LayerType) -> Id,
}

/// Fields of `config.json` that only some families have.
pub mod field {
    /// The scale of attention; head_dim where it is no field.
    pub const QUERY_SCALE: &str = "query_pre_attn_scalar";
    /// Keys that a sliding layer sees.
    pub const WINDOW: &str = "sliding_window";
    /// Which layers slide.
    pub const LAYER_TYPES: &str = "layer_types";
    /// The same as a period, in place of a list.
    pub const PATTERN: &str = "sliding_window_pattern";
    /// The base of RoPE in layers that slide; without it all layers have one RoPE.
    pub const LOCAL_ROPE: &str = "rope_local_base_freq";
    /// The cap of the attention scores.
    pub const ATTENTION_CAP: &str = "attn_logit_softcapping";
    /// The activation under its older name, where a null under its newer one says nothing.
    pub const OLD_ACTIVATION: &str = "hidden_act";
    /// The cap of the logits.
    pub const FINAL_CAP: &str = "final_logit_softcapping";

    /// All of them.
    pub const ALL: &[&str] =
        &[QUERY_SCALE, WINDOW, LAYER_TYPES, PATTERN, LOCAL_ROPE, ATTENTION_CAP, OLD_ACTIVATION, FINAL_CAP];
}

impl Family {
    /// The family of a `model_type`, a wrapper's included.
    pub fn of(model_type: &str) -> Option<&'static Family> {
        let named = |f: &&&Family| f.model_type == model_type || f.wrapper == Some(model_type);
        crate::MODELS.iter().find(named).copied()
    }

    /// Whether its configurations have a field of [`field`].
    pub fn has(&self, field: &str) -> bool {
        self.fields.contains(&field)
    }

    /// The published kinds of so many layers.
    pub fn layer_types(&self, layers: usize) -> Vec<LayerType> {
        (0..layers).map(|layer| LayerType::of(layer, self.period)).collect()
    }
}

impl Family {
    /// A configuration of these sizes (hidden, layers, heads, KV heads, head_dim, intermediate) with what the families
    /// have in common: Gemma 1 as it is.
    pub(crate) fn sized(&'static self, sizes: [usize; 6]) -> Config {
        let [hidden_size, num_hidden_layers, heads, kv_heads, head_dim, intermediate_size] = sizes;
        let rope = Rope { theta: 10_000.0, factor: 1.0 };
        Config {
            family: self,
            vocab_size: 256_000,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            query_pre_attn_scalar: head_dim as f64,
            rms_norm_eps: 1e-6,
            rope_local: rope,
            rope_global: rope,
            // Where no layer slides, nobody asks.
            sliding_window: 8192,
            layer_types: self.layer_types(num_hidden_layers),
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            max_position_embeddings: 8192,
            tie_word_embeddings: true,
            bos_token_id: 2,
            eos_token_id: vec![1],
            pad_token_id: 0,
            embedding_scale: EmbeddingScale::Rounded,
            norm_weights: NormWeights::LessOne,
        }
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.model_type == other.model_type
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
