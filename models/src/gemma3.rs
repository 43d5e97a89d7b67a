//! Gemma 3, the text model: Gemma 2's norms, norms of queries and keys before RoPE, five layers that see a window to
//! one that sees all keys, another RoPE for each of the two kinds, no cap of the scores.
//!
//! Source: `modeling_gemma3.py` of Hugging Face transformers; "Gemma 3 Technical Report" (2025), section 2; the
//! published
//! `config.json`s. transformers applies no `attn_logit_softcapping`, even where one is set: it is no field here.

use lapidary_ir::Id;

use crate::config::{Config, LayerType, Rope};
use crate::family::{Family, field};
use crate::graph::Graph;
use crate::preset::Preset;

/// Its row.
pub(crate) static GEMMA3: Family = Family {
    name: "Gemma 3",
    model_type: "gemma3_text",
    wrapper: Some("gemma3"),
    architectures: &["Gemma3ForCausalLM", "Gemma3TextModel", "Gemma3ForConditionalGeneration", "Gemma3Model"],
    fields: &[
        field::QUERY_SCALE,
        field::WINDOW,
        field::LAYER_TYPES,
        field::PATTERN,
        field::LOCAL_ROPE,
        field::FINAL_CAP,
    ],
    period: 6,
    defaults: || size([2304, 26, 8, 4, 256, 9216], 256.0),
    presets: &[
        Preset { name: "gemma3-270m", alias: None, config: || text([640, 18, 4, 1, 256, 2048]) },
        Preset { name: "gemma3-1b", alias: None, config: || text([1152, 26, 4, 1, 256, 6912]) },
        Preset { name: "gemma3-4b", alias: None, config: || multimodal([2560, 34, 8, 4, 256, 10240], 256.0) },
        Preset {
            name: "gemma3-12b",
            alias: None,
            config: || multimodal([3840, 48, 16, 8, 256, 15360], 256.0),
        },
        // The scalar is hidden_size / num_attention_heads here, not head_dim.
        Preset {
            name: "gemma3-27b",
            alias: None,
            config: || multimodal([5376, 62, 32, 16, 128, 21504], 168.0),
        },
    ],
    layer,
};

/// A size without a vision half.
fn text(sizes: [usize; 6]) -> Config {
    Config {
        vocab_size: 262_144,
        sliding_window: 512,
        max_position_embeddings: 32_768,
        eos_token_id: vec![1, 106],
        ..size(sizes, 256.0)
    }
}

/// The text half of a size with a vision half.
fn multimodal(sizes: [usize; 6], query_pre_attn_scalar: f64) -> Config {
    Config {
        sliding_window: 1024,
        rope_global: Rope { theta: 1_000_000.0, factor: 8.0 },
        eos_token_id: vec![1, 106],
        ..size(sizes, query_pre_attn_scalar)
    }
}

/// What transformers' class takes for the rest. Sizes: hidden, layers, heads, KV heads, head_dim, intermediate.
fn size(sizes: [usize; 6], query_pre_attn_scalar: f64) -> Config {
    Config {
        vocab_size: 262_208,
        query_pre_attn_scalar,
        rope_global: Rope { theta: 1_000_000.0, factor: 1.0 },
        sliding_window: 4096,
        max_position_embeddings: 131_072,
        ..GEMMA3.sized(sizes)
    }
}

/// x (T, hidden), pos (T) -> (T, hidden).
fn layer(g: &mut Graph<'_>, x: Id, pos: Id, kind: LayerType) -> Id {
    g.layer_of_four_norms(x, |g, h| attention(g, h, pos, kind))
}

fn attention(g: &mut Graph<'_>, x: Id, pos: Id, kind: LayerType) -> Id {
    let [q, k, v] = g.qkv(x);
    let head_dim = g.config.head_dim;
    let q = g.norm(q, 2, "self_attn.q_norm.weight", head_dim);
    let k = g.norm(k, 2, "self_attn.k_norm.weight", head_dim);
    let rotary = g.rotary(pos, kind);
    let (q, k) = (g.rope(q, rotary), g.rope(k, rotary));
    g.attend([q, k, v], pos, kind)
}
