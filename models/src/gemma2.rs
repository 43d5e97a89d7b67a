//! Gemma 2: norms before and after attention and MLP, every other layer sees a window, scores and logits are capped.
//!
//! Source: `modeling_gemma2.py` of Hugging Face transformers; "Gemma 2: Improving Open Language Models at a Practical
//! Size" (2024), section 2 and table 1; the published `config.json`s.

use lapidary_ir::Id;

use crate::config::{Config, LayerType};
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
    Config {
        query_pre_attn_scalar,
        sliding_window: 4096,
        attn_logit_softcapping: Some(50.0),
        final_logit_softcapping: Some(30.0),
        ..GEMMA2.sized(sizes)
    }
}

/// x (T, hidden), pos (T) -> (T, hidden).
fn layer(g: &mut Graph<'_>, x: Id, pos: Id, kind: LayerType) -> Id {
    g.layer_of_four_norms(x, |g, h| attention(g, h, pos, kind))
}

fn attention(g: &mut Graph<'_>, x: Id, pos: Id, kind: LayerType) -> Id {
    let [q, k, v] = g.qkv(x);
    let rotary = g.rotary(pos, kind);
    let (q, k) = (g.rope(q, rotary), g.rope(k, rotary));
    g.attend([q, k, v], pos, kind)
}
