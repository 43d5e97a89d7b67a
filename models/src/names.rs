//! Names of tensors as programs write them: what is put before a model's own, what is left beside them, and what says
//! that a tensor is quantised.
//!
//! In: the names of a checkpoint. Out: the prefix under which all of a model's tensors lie, or what the names betray. A
//! prefix is taken only where it is certain: every tensor that is needed lies under that one.

use crate::config::Config;
use crate::error::quote;
use crate::layout::{ROTARY_BUFFER, TensorSpec};

/// What names begin with in a checkpoint as published.
pub(crate) const PREFIX: &str = "model.";
/// A tensor that every model has, without its prefix.
const ANCHOR: &str = "layers.0.input_layernorm.weight";
/// Parts of names that wrappers put anywhere: torch.compile, FSDP, activation checkpointing, PEFT once its adapter is
/// merged.
const WRAPPERS: &[&str] =
    &["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "base_layer"];

/// Ends of the names of tensors that change nothing: what is computed anew here, and what trainers and quantisers leave
/// beside plain weights.
const HARMLESS: &[&str] = &[
    // Angles of RoPE and masks, of older transformers and of gemma_pytorch.
    ROTARY_BUFFER,
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary_emb.cos_sin_cache",
    "freqs_cis",
    "attn.masked_bias",
    "attn.causal_mask",
    "causal_mask",
    "attention_mask",
    "position_ids",
    "embed_positions.weights",
    // Scales of a cache of 8 bits, which only a cache of 8 bits reads.
    "self_attn.k_scale",
    "self_attn.v_scale",
    "self_attn.kv_scale",
    "self_attn.attn.k_scale",
    "self_attn.attn.v_scale",
    "k_proj.output_scale",
    "v_proj.output_scale",
    "k_proj.k_scale",
    "v_proj.v_scale",
    // Ranges that calibrations saw.
    "quantizer._amax",
    "activation_post_process.min_val",
    "activation_post_process.max_val",
    // Reward and value heads of trainers, beside the model's own head.
    "v_head.summary.weight",
    "v_head.summary.bias",
    "value_head.weight",
    "value_head.bias",
];

/// The first parts of the names of a model's other halves, which a text does not reach.
const OTHER_HALVES: &[&str] = &["vision_tower", "multi_modal_projector"];

/// Parts of names that only quantised tensors have, and of what format, the telling ones first.
const QUANTISED: &[(&str, &str)] = &[
    (".quant_state.bitsandbytes__", "bitsandbytes (4 bits)"),
    (".weight.absmax", "bitsandbytes (4 bits)"),
    (".weight.quant_map", "bitsandbytes (4 bits)"),
    (".weight.nested_absmax", "bitsandbytes (4 bits)"),
    (".SCB", "bitsandbytes (8 bits)"),
    (".weight_format", "bitsandbytes (8 bits)"),
    (".g_idx", "GPTQ"),
    (".qweight", "AWQ or GPTQ"),
    (".qzeros", "AWQ or GPTQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_shape", "compressed-tensors"),
    (".weight_zero_point", "compressed-tensors"),
    (".weight_scale_inv", "FP8 in blocks"),
    (".weight_scale_2", "NVFP4"),
    (".weight_scale", "FP8 or INT8 with scales (compressed-tensors, FBGEMM, ModelOpt)"),
    (".weight_scales", "EETQ"),
    (".W_q", "HQQ"),
    (".weight._data", "Quanto"),
    (".weight._scale", "Quanto"),
    (".codebooks", "AQLM"),
    (".Qidxs", "QuIP#"),
    (".biases", "MLX"),
    (".scales", "MLX, AWQ or GPTQ"),
];
/// dtypes of safetensors that only quantised tensors have.
const QUANTISED_DTYPES: &[(&str, &str)] = &[
    ("F8_E4M3", "FP8"),
    ("F8_E5M2", "FP8"),
    ("F8_E8M0", "MX scales"),
    ("I8", "INT8"),
    ("U32", "packed integers (MLX)"),
    ("I32", "packed integers (GPTQ, AWQ)"),
];

/// A name without what wrappers put into it.
pub(crate) fn unwrapped(name: &str) -> String {
    if !WRAPPERS.iter().any(|w| name.contains(w)) {
        return name.into();
    }
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// The prefix under which all of `specs` lie, by their names without [`PREFIX`]; else the one that most of a model lies
/// under.
///
/// # Errors
/// Two prefixes, if all lie under each.
pub(crate) fn prefix<'a>(
    names: impl Iterator<Item = &'a str>,
    specs: &[TensorSpec],
    has: impl Fn(&str) -> bool,
) -> Result<String, [String; 2]> {
    let mut all: Vec<&str> = names.filter_map(|n| n.strip_suffix(ANCHOR)).collect();
    all.retain(|p| p.is_empty() || p.ends_with('.'));
    // What is published goes first.
    all.sort_unstable_by_key(|p| (*p != PREFIX, *p));
    let count = |p: &str| specs.iter().filter(|s| has(&under(p, &s.name))).count();
    match all[..] {
        [] => return Ok(PREFIX.into()),
        [one] => return Ok(one.into()),
        _ => {}
    }
    // A handful: nobody keeps more than a few copies of a model in one file.
    let counts: Vec<(usize, &str)> = all.iter().take(16).map(|p| (count(p), *p)).collect();
    let most = counts.iter().map(|(n, _)| *n).max().unwrap_or(0);
    let mut best = counts.iter().filter(|(n, _)| *n == most).map(|(_, p)| (*p).to_string());
    match (best.next(), best.next()) {
        (Some(first), Some(second)) if first != PREFIX => Err([first, second]),
        (Some(first), _) => Ok(first),
        (None, _) => Ok(PREFIX.into()),
    }
}

/// A tensor's name under another prefix.
pub(crate) fn under(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.strip_prefix(PREFIX).unwrap_or(name))
}

/// Whether a tensor that is not the model's changes nothing.
pub(crate) fn is_harmless(name: &str) -> bool {
    // A whole word at the end.
    let ends = |end: &str| name.strip_suffix(end).is_some_and(|rest| !rest.ends_with(char::is_alphanumeric));
    let first = name.split('.').find(|part| *part != "model");
    first.is_some_and(|part| OTHER_HALVES.contains(&part)) || HARMLESS.iter().any(|end| ends(end))
}

/// The format of which a tensor's name or dtype is a sign; the lower the number, the more telling.
pub(crate) fn quantised(name: &str, dtype: &str) -> Option<(usize, &'static str)> {
    // A whole part of the name, unless the sign itself ends in the middle of one.
    let whole = |part: &str, rest: &str| part.ends_with("__") || rest.is_empty() || rest.starts_with('.');
    let named = |part: &str| name.match_indices(part).any(|(at, _)| whole(part, &name[at + part.len()..]));
    if let Some(rank) = QUANTISED.iter().position(|(part, _)| named(part)) {
        return Some((rank, QUANTISED[rank].1));
    }
    // Buffers may be of any dtype.
    let row = QUANTISED_DTYPES.iter().position(|(d, _)| *d == dtype).filter(|_| name.ends_with(".weight"))?;
    Some((QUANTISED.len() + row, QUANTISED_DTYPES[row].1))
}

/// What was expected where a tensor lies that is neither the model's nor harmless, by the usual causes.
pub(crate) fn expectation(name: &str, config: &Config) -> String {
    let (family, layers) = (config.family.name, config.num_hidden_layers);
    if name.contains("lora_") || name.contains(".lora.") {
        return "no LoRA adapter (its base model is the model; `--lora` merges the adapter)".into();
    }
    if name.contains(".modules_to_save.") || name.contains(".original_module.") {
        return "no PEFT modules (merge them into the base model first: `merge_and_unload`)".into();
    }
    if name.ends_with(".bias") {
        return format!("no bias, as {family} has none");
    }
    if name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight") {
        return format!("no norm of queries or keys, as {family} has none (another family?)");
    }
    if name.contains(".experts.") || name.contains(".router.") {
        return format!("no experts, as {family} has none");
    }
    let layer = name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next());
    if layer.and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n >= layers) {
        return format!("no tensor of this name, as num_hidden_layers is {layers}");
    }
    "no tensor of this name".into()
}

/// Words for a format of which a tensor is a sign.
pub(crate) fn quants(format: &str, sign: &str) -> String {
    format!("tensors quantised by {format} (tensor {}); plain F32, F16 or BF16 weights are read", quote(sign))
}
