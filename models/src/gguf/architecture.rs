//! What a GGUF calls a family of models: its name in keys, what absent keys mean, what tensors are called.
//!
//! Defaults are llama.cpp's.

use super::keys::Keys;
use crate::error::Result;
use crate::family::Family;

/// A family's row.
pub(crate) struct Architecture {
    /// What `general.architecture` says and keys begin with.
    pub(super) name: &'static str,
    /// The family's `model_type`.
    model_type: &'static str,
    /// The number of layers of the size whose scores are scaled by hidden size over heads, where all others' are by the
    /// length of a key.
    pub(super) whole_heads: Option<usize>,
    /// Base of the rotary frequencies of layers that slide; else that of the others, scaled as theirs.
    pub(super) local_theta: Option<f64>,
    /// Cap of the attention scores; without one there is none, whatever keys say.
    pub(super) attention_cap: Option<f32>,
    /// Cap of the logits.
    pub(super) final_cap: Option<f32>,
    /// Keys that a sliding layer sees; without one, and without a key, no layer slides.
    pub(super) window: Option<usize>,
    /// The last layer of as many sees all keys; a family without has one kind of layers.
    pub(super) period: Option<usize>,
    /// Names of tensors that are other than in [`ROLES`]: a role in a folder, and the name here.
    roles: &'static [(&'static str, &'static str)],
}

/// The families.
pub(crate) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "gemma",
        model_type: "gemma",
        whole_heads: None,
        local_theta: None,
        attention_cap: None,
        final_cap: None,
        window: None,
        period: None,
        roles: &[("post_attention_layernorm.weight", "ffn_norm.weight")],
    },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        whole_heads: Some(46),
        local_theta: None,
        attention_cap: Some(50.0),
        final_cap: Some(30.0),
        window: Some(4096),
        period: Some(2),
        roles: &[],
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        whole_heads: Some(62),
        local_theta: Some(10_000.0),
        attention_cap: None,
        final_cap: None,
        window: None,
        period: Some(6),
        roles: &[],
    },
];

/// The name of the embedding table.
pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// The head's matrix, where a file repeats it.
pub(crate) const HEAD: &str = "output.weight";
/// What tensors outside of layers are called in a folder, and here.
const WHOLE: &[(&str, &str)] =
    &[("model.embed_tokens.weight", EMBEDDING), ("model.norm.weight", "output_norm.weight")];
/// What the tensors of a layer are called in a folder, and here.
const ROLES: &[(&str, &str)] = &[
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("post_attention_layernorm.weight", "post_attention_norm.weight"),
    ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
];

impl Architecture {
    /// That of a file.
    pub(super) fn of(keys: Keys<'_>) -> Result<&'static Architecture> {
        let built = || ARCHITECTURES.iter().filter(|a| Family::of(a.model_type).is_some());
        let name = keys.one_of("general.architecture", &built().map(|a| a.name).collect::<Vec<_>>())?;
        Ok(built().find(|a| a.name == name).unwrap_or_else(|| unreachable!("{name} is one of them")))
    }

    /// The family that it is called here.
    pub(super) fn family(&self) -> &'static Family {
        Family::of(self.model_type).unwrap_or_else(|| unreachable!("{} is built", self.name))
    }

    /// A tensor's name in a file, by its name in a folder.
    pub(crate) fn stored_name(&self, name: &str) -> String {
        let find = |rows: &[(&'static str, &'static str)], name: &str| {
            rows.iter().find(|(folder, _)| *folder == name).map(|(_, stored)| *stored)
        };
        if let Some(stored) = find(WHOLE, name) {
            return stored.into();
        }
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let named = layer.and_then(|(layer, role)| {
            Some(format!("blk.{layer}.{}", find(self.roles, role).or_else(|| find(ROLES, role))?))
        });
        named.unwrap_or_else(|| unreachable!("{name} has no name in a GGUF"))
    }
}
