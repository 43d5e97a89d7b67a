//! Gemma 1: two norms a layer, every layer sees all keys, nothing is capped.
//!
//! Source: `modeling_gemma.py` of Hugging Face transformers; "Gemma: Open Models Based on Gemini Research and Technology"
//! (2024), table 1; the published `config.json`s. Their `hidden_act` of `gelu` means the form with tanh.

use lapidary_ir::Id;

use crate::config::{Config, EmbeddingScale, LayerType, NormWeights, Rope};
use crate::family::{Family, field};
use crate::graph::Graph;
use crate::preset::Preset;

/// Its row.
pub(crate) static GEMMA1: Family = Family {
    name: "Gemma 1",
    model_type: "gemma",
    wrapper: None,
    architectures: &["GemmaForCausalLM", "GemmaModel"],
    fields: &[field::OLD_ACTIVATION],
    period: 1,
    defaults: b7,
    presets: &[
        Preset { name: "gemma-2b", alias: None, config: || size([2048, 18, 8, 1, 256, 16384]) },
        Preset { name: "gemma-7b", alias: None, config: b7 },
    ],
    layer,
};

/// The 7B, of which transformers' class has the sizes.
fn b7() -> Config {
    size([3072, 28, 16, 16, 256, 24576])
}

/// A size: hidden, layers, heads, KV heads, head_dim, intermediate.
fn size(sizes: [usize; 6]) -> Config {
    let [hidden_size, num_hidden_layers, heads, kv_heads, head_dim, intermediate_size] = sizes;
    let rope = Rope { theta: 10_000.0, factor: 1.0 };
    Config {
        family: &GEMMA1,
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
        // No layer slides.
        sliding_window: 8192,
        layer_types: GEMMA1.layer_types(num_hidden_layers),
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

/// x (T, hidden), pos (T) -> (T, hidden).
fn layer(g: &mut Graph<'_>, x: Id, pos: Id, kind: LayerType) -> Id {
    let h = g.rms_norm(x, "input_layernorm.weight");
    let h = attention(g, h, pos, kind);
    let x = g.sum(x, h);

    let h = g.rms_norm(x, "post_attention_layernorm.weight");
    let h = g.mlp(h);
    g.sum(x, h)
}

fn attention(g: &mut Graph<'_>, x: Id, pos: Id, kind: LayerType) -> Id {
    let [q, k, v] = g.qkv(x);
    let rotary = g.rotary(pos, kind);
    let (q, k) = (g.rope(q, rotary), g.rope(k, rotary));
    let k = g.cached("k_cache", k, kind);
    let v = g.cached("v_cache", v, kind);
    let scores = g.scores(q, k);
    let scores = g.mask(scores, pos, kind);
    let weights = g.softmax(scores);
    g.mix(weights, v)
}
