//! Gemma 2: norms before and after attention and MLP, every other layer sees a window, scores and logits are capped.
//!
//! Source: `modeling_gemma2.py` of Hugging Face transformers; "Gemma 2: Improving Open Language Models at a Practical
//! Size" (2024), section 2 and table 1; the published `config.json`s.

use lapidary_ir::Id;

use crate::config::{Config, EmbeddingScale, LayerType, NormWeights, Rope};
use crate::family::{Family, field};
use crate::graph::Graph;
use crate::preset::Preset;

/// Its row.
pub(crate) static GEMMA2: Family = Family {
    name: "Gemma 2",
    model_type: "gemma2",
    wrapper: None,
    architectures: &["Gemma2ForCausalLM", "Gemma2Model"],
    fields: &[field::QUERY_SCALE, field::WINDOW, field::LAYER_TYPES, field::ATTENTION_CAP, field::FINAL_CAP],
    period: 2,
    defaults: b2,
    presets: &[
        Preset { name: "gemma2-2b", alias: Some("2b"), config: b2 },
        Preset {
            name: "gemma2-9b",
            alias: Some("9b"),
            config: || size([3584, 42, 16, 8, 256, 14336], 256.0),
        },
        // The scalar is hidden_size / num_attention_heads here, not head_dim.
        Preset {
            name: "gemma2-27b",
            alias: Some("27b"),
            config: || size([4608, 46, 32, 16, 128, 36864], 144.0),
        },
    ],
    layer,
};

/// The 2B, of which transformers' class has the sizes.
fn b2() -> Config {
    size([2304, 26, 8, 4, 256, 9216], 256.0)
}

/// A size: hidden, layers, heads, KV heads, head_dim, intermediate; the attention scalar.
fn size(sizes: [usize; 6], query_pre_attn_scalar: f64) -> Config {
    let [hidden_size, num_hidden_layers, heads, kv_heads, head_dim, intermediate_size] = sizes;
    let rope = Rope { theta: 10_000.0, factor: 1.0 };
    Config {
        family: &GEMMA2,
        vocab_size: 256_000,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        query_pre_attn_scalar,
        rms_norm_eps: 1e-6,
        rope_local: rope,
        rope_global: rope,
        sliding_window: 4096,
        layer_types: GEMMA2.layer_types(num_hidden_layers),
        attn_logit_softcapping: Some(50.0),
        final_logit_softcapping: Some(30.0),
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
    let h = g.rms_norm(h, "post_attention_layernorm.weight");
    let x = g.sum(x, h);

    let h = g.rms_norm(x, "pre_feedforward_layernorm.weight");
    let h = g.mlp(h);
    let h = g.rms_norm(h, "post_feedforward_layernorm.weight");
    g.sum(x, h)
}

fn attention(g: &mut Graph<'_>, x: Id, pos: Id, kind: LayerType) -> Id {
    let [q, k, v] = g.qkv(x);
    let rotary = g.rotary(pos, kind);
    let (q, k) = (g.rope(q, rotary), g.rope(k, rotary));
    let k = g.cached("k_cache", k, kind);
    let v = g.cached("v_cache", v, kind);
    let scores = g.scores(q, k);
    let scores = g.softcap(scores, g.config.attn_logit_softcapping);
    let scores = g.mask(scores, pos, kind);
    let weights = g.softmax(scores);
    g.mix(weights, v)
}
