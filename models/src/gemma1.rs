//! Gemma 1: two norms a layer, every layer sees all keys, nothing is capped.
//!
//! Source: `modeling_gemma.py` of Hugging Face transformers; "Gemma: Open Models Based on Gemini Research and
//! Technology" (2024), table 1; the published `config.json`s. Their `hidden_act` of `gelu` means the form with tanh.

use lapidary_ir::Id;

use crate::config::{Config, LayerType};
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
        Preset { name: "gemma-2b", alias: None, config: || GEMMA1.sized([2048, 18, 8, 1, 256, 16384]) },
        Preset { name: "gemma-7b", alias: None, config: b7 },
    ],
    layer,
};

/// The 7B, of which transformers' class has the sizes.
fn b7() -> Config {
    GEMMA1.sized([3072, 28, 16, 16, 256, 24576])
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
    g.attend([q, k, v], pos, kind)
}
