//! The published Gemma 2 sizes, by name; one row each.
//!
//! Source: "Gemma 2: Improving Open Language Models at a Practical Size" (2024), table 1, and the published
//! `config.json`s.

use crate::config::{Config, LayerType};
use crate::error::{Error, Result, quote};

/// What differs between the published sizes.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// `2b`, `9b` or `27b`.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// See [`Config::query_pre_attn_scalar`]; at 27b it is hidden_size / num_attention_heads, not head_dim.
    pub query_pre_attn_scalar: f64,
}

/// The published sizes.
pub const PRESETS: &[Preset] = &[
    preset("2b", [2304, 26, 8, 4, 256, 9216], 256.0),
    preset("9b", [3584, 42, 16, 8, 256, 14336], 256.0),
    preset("27b", [4608, 46, 32, 16, 128, 36864], 144.0),
];

/// A row: hidden, layers, heads, KV heads, head_dim, intermediate; the attention scalar.
const fn preset(name: &'static str, sizes: [usize; 6], query_pre_attn_scalar: f64) -> Preset {
    let [hidden, layers, heads, kv_heads, head_dim, intermediate] = sizes;
    Preset {
        name,
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: intermediate,
        query_pre_attn_scalar,
    }
}

impl Preset {
    /// The whole configuration.
    pub fn config(&self) -> Config {
        Config {
            vocab_size: 256_000,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            query_pre_attn_scalar: self.query_pre_attn_scalar,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            sliding_window: 4096,
            layer_types: (0..self.num_hidden_layers).map(LayerType::published).collect(),
            attn_logit_softcapping: Some(50.0),
            final_logit_softcapping: Some(30.0),
            max_position_embeddings: 8192,
            tie_word_embeddings: true,
            bos_token_id: 2,
            eos_token_id: vec![1],
            pad_token_id: 0,
        }
    }
}

impl Config {
    /// The published configuration of a size: `2b`, `9b` or `27b`.
    ///
    /// # Errors
    /// [`Error::Preset`] for any other name.
    pub fn preset(name: &str) -> Result<Config> {
        PRESETS.iter().find(|p| p.name == name).map(Preset::config).ok_or_else(|| Error::Preset {
            name: quote(name),
            known: PRESETS.iter().map(|p| p.name).collect::<Vec<_>>().join(", "),
        })
    }
}
