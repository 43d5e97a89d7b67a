//! A Gemma 2's configuration, from and to `config.json`.
//!
//! In: the file's bytes, in the older dialect (`rope_theta`, `hidden_act`, `torch_dtype`) or the newer one
//! (`rope_parameters`, `layer_types`, `dtype`). Out: a [`Config`] under the file's own names, and a [`Warning`] that
//! names the fields nobody knows. Invariants: every field of the file is used, is a row of [`HARMLESS`] (it changes
//! nothing that is computed here while a condition holds), or is named in the warning; refused is only a value that is
//! malformed or known to change the result. What is absent is what transformers' `Gemma2Config` takes for it. The sizes
//! of a `Config` are bounded ([`Config::validate`]), so products of them fit u64 and usize.

mod fields;
mod parse;

use std::path::Path;

use lapidary_ir::format::BLOCK;
use serde_json::{Value, json};

use lapidary_runtime::file;
use lapidary_runtime::file::fields::{Fields, is_positive};

use crate::error::{Result, Warning};
use crate::folder;
use crate::preset::PRESETS;

pub use fields::{HARMLESS, When};
use parse::{cap, layer_types, pad, refuse_unsupported, rope_theta, scalar, size, sliding_window};

/// Which keys a layer's queries see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerType {
    /// The last `sliding_window` keys, the query's own included.
    Sliding,
    /// All keys up to the query's own.
    Full,
}

impl LayerType {
    /// The name in `layer_types`.
    pub const fn name(self) -> &'static str {
        match self {
            LayerType::Sliding => "sliding_attention",
            LayerType::Full => "full_attention",
        }
    }

    /// The published alternation: even layers slide.
    pub const fn published(layer: usize) -> LayerType {
        if layer.is_multiple_of(2) { LayerType::Sliding } else { LayerType::Full }
    }
}

/// A Gemma 2's configuration; the fields keep the names of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// The attention scores are multiplied by its power of -1/2.
    pub query_pre_attn_scalar: f64,
    /// What RMSNorm adds to the mean square.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Keys a sliding layer's query sees, its own included.
    pub sliding_window: usize,
    /// One a layer.
    pub layer_types: Vec<LayerType>,
    /// Cap of the attention scores; none where the file says null.
    pub attn_logit_softcapping: Option<f32>,
    /// Cap of the logits; none where the file says null.
    pub final_logit_softcapping: Option<f32>,
    /// Tokens of context the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the head's matrix is said to be the embedding table. It always is: where this is false, the checkpoint
    /// must hold an equal copy.
    pub tie_word_embeddings: bool,
    /// The token that starts every text.
    pub bos_token_id: u32,
    /// The tokens that end a text.
    pub eos_token_id: Vec<u32>,
    /// The token that fills batches; never produced here.
    pub pad_token_id: u32,
}

/// The model type this crate builds.
const MODEL_TYPE: &str = "gemma2";
/// The class whose weights are read; trainers put more after it.
const ARCHITECTURE: &str = "Gemma2ForCausalLM";
/// The `quant_method` of a checkpoint whose matrices are rows of quants as [`quantize`](crate::quantize) describes.
const QUANT_METHOD: &str = "lapidary";
/// The one activation.
const ACTIVATION: &str = "gelu_pytorch_tanh";
/// Largest size of one axis: 64 times the widest published.
const MAX_SIZE: u64 = 1 << 24;
/// Largest number of layers: 22 times the deepest published.
pub const MAX_LAYERS: u64 = 1024;
/// The configuration's file.
pub(crate) const CONFIG: &str = "config.json";

impl Config {
    /// Reads `config.json` of a folder; what there is to warn of is left out.
    ///
    /// # Errors
    /// As [`Config::read_folder`].
    pub fn from_folder(dir: &Path) -> Result<Config> {
        Ok(Config::read_folder(dir)?.0)
    }

    /// Reads a configuration from JSON; what there is to warn of is left out.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn from_json(path: &Path, bytes: &[u8]) -> Result<Config> {
        Ok(Config::read(path, bytes)?.0)
    }

    /// Reads `config.json` of a folder, and what there is to warn of.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing) without the file; otherwise as [`Config::read`].
    pub fn read_folder(dir: &Path) -> Result<(Config, Option<Warning>)> {
        let path = dir.join(CONFIG);
        match file::read_if_present(&path)? {
            Some(bytes) => Config::read(&path, &bytes),
            None => Err(folder::lacks(dir, CONFIG.into())),
        }
    }

    /// Reads a configuration from JSON; `path` is what errors call it. A warning names the fields that are not known.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it is not a JSON object, and naming the field for a value that is
    /// missing, malformed, or known to change the result.
    pub fn read(path: &Path, bytes: &[u8]) -> Result<(Config, Option<Warning>)> {
        let mut f = Fields::parse(path, bytes)?;
        let mut unknown = Vec::new();
        let tie_word_embeddings = refuse_unsupported(&mut f, &mut unknown)?;
        // What transformers' class of the same name takes for a field that is absent is what its 2B has.
        let d = PRESETS[0].config();
        let rope_theta = rope_theta(&mut f, d.rope_theta, &mut unknown)?;
        let vocab_size = size(&mut f, "vocab_size", d.vocab_size, MAX_SIZE)?;
        let largest_id = vocab_size as u64 - 1;
        let num_hidden_layers = size(&mut f, "num_hidden_layers", d.num_hidden_layers, MAX_LAYERS)?;
        let layer_types = layer_types(&mut f, num_hidden_layers)?;
        let config = Config {
            vocab_size,
            hidden_size: size(&mut f, "hidden_size", d.hidden_size, MAX_SIZE)?,
            intermediate_size: size(&mut f, "intermediate_size", d.intermediate_size, MAX_SIZE)?,
            num_hidden_layers,
            num_attention_heads: size(&mut f, "num_attention_heads", d.num_attention_heads, MAX_SIZE)?,
            num_key_value_heads: size(&mut f, "num_key_value_heads", d.num_key_value_heads, MAX_SIZE)?,
            head_dim: size(&mut f, "head_dim", d.head_dim, MAX_SIZE)?,
            query_pre_attn_scalar: scalar(&mut f, "query_pre_attn_scalar", d.query_pre_attn_scalar)?,
            rms_norm_eps: scalar(&mut f, "rms_norm_eps", d.rms_norm_eps)?,
            rope_theta,
            sliding_window: sliding_window(&mut f, &layer_types, d.sliding_window)?,
            layer_types,
            attn_logit_softcapping: cap(&mut f, "attn_logit_softcapping", d.attn_logit_softcapping)?,
            final_logit_softcapping: cap(&mut f, "final_logit_softcapping", d.final_logit_softcapping)?,
            // transformers itself does without.
            max_position_embeddings: f
                .optional_integer("max_position_embeddings", 1, MAX_SIZE)?
                .map_or(d.max_position_embeddings, |n| n as usize),
            tie_word_embeddings,
            bos_token_id: f
                .optional_integer("bos_token_id", 0, largest_id)?
                .map_or(d.bos_token_id, |n| n as u32),
            eos_token_id: f
                .tokens("eos_token_id", largest_id)?
                .filter(|l| !l.is_empty())
                .unwrap_or(d.eos_token_id),
            pad_token_id: pad(&mut f, largest_id)?.unwrap_or(d.pad_token_id),
        };
        config.validate(path)?;
        fields::hold(path, &config, f.rest(), &mut unknown)?;
        Ok((config, Warning::of_unknown(path, &unknown)))
    }

    /// Checks what [`Config::from_json`] guarantees, for a configuration made or changed in Rust; `path` is what errors
    /// call it.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) naming the first field that is out of range or does not fit another.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let check = |ok: bool, field: &str, expected: &str, found: Value| {
            let error = || file::Error::Field {
                path: path.into(),
                field: field.into(),
                expected: expected.into(),
                found: found.to_string(),
            };
            if ok { Ok(()) } else { Err(error().into()) }
        };
        let c = self;
        let sizes = [
            ("vocab_size", c.vocab_size, MAX_SIZE),
            ("hidden_size", c.hidden_size, MAX_SIZE),
            ("intermediate_size", c.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", c.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", c.num_attention_heads, MAX_SIZE),
            ("num_key_value_heads", c.num_key_value_heads, MAX_SIZE),
            ("head_dim", c.head_dim, MAX_SIZE),
            ("sliding_window", c.sliding_window, MAX_SIZE),
            ("max_position_embeddings", c.max_position_embeddings, MAX_SIZE),
        ];
        for (name, size, max) in sizes {
            let ok = (1..=max).contains(&(size as u64));
            check(ok, name, &format!("an integer from 1 to {max}"), json!(size))?;
        }
        check(c.head_dim.is_multiple_of(2), "head_dim", "an even integer", json!(c.head_dim))?;
        let width = c.num_attention_heads as u64 * c.head_dim as u64;
        let expected = format!("at most {MAX_SIZE} / head_dim");
        check(width <= MAX_SIZE, "num_attention_heads", &expected, json!(c.num_attention_heads))?;
        let divides = c.num_attention_heads.is_multiple_of(c.num_key_value_heads);
        let expected = format!("a divisor of num_attention_heads {}", c.num_attention_heads);
        check(divides, "num_key_value_heads", &expected, json!(c.num_key_value_heads))?;
        let numbers = [
            ("query_pre_attn_scalar", c.query_pre_attn_scalar),
            ("rms_norm_eps", c.rms_norm_eps),
            ("rope_theta", c.rope_theta),
            ("attn_logit_softcapping", c.attn_logit_softcapping.unwrap_or(1.0).into()),
            ("final_logit_softcapping", c.final_logit_softcapping.unwrap_or(1.0).into()),
        ];
        for (name, x) in numbers {
            check(is_positive(x), name, "a finite number above 0", json!(x))?;
        }
        let expected = format!("{} entries, one a layer", c.num_hidden_layers);
        let found = json!(format!("{} entries", c.layer_types.len()));
        check(c.layer_types.len() == c.num_hidden_layers, "layer_types", &expected, found)?;
        let token = |id: u32| (id as usize) < c.vocab_size;
        let expected = format!("token ids below vocab_size {}", c.vocab_size);
        check(token(c.bos_token_id), "bos_token_id", &expected, json!(c.bos_token_id))?;
        check(c.eos_token_id.iter().all(|&id| token(id)), "eos_token_id", &expected, json!(c.eos_token_id))?;
        check(token(c.pad_token_id), "pad_token_id", &expected, json!(c.pad_token_id))
    }

    /// What embeddings are multiplied by: sqrt(hidden_size) rounded to bfloat16, as the published weights expect.
    pub fn embedding_scale(&self) -> f32 {
        half::bf16::from_f32((self.hidden_size as f32).sqrt()).to_f32()
    }

    /// What attention scores are multiplied by: query_pre_attn_scalar^(-1/2), whatever head_dim is.
    pub fn attention_scale(&self) -> f32 {
        self.query_pre_attn_scalar.powf(-0.5) as f32
    }

    /// The configuration as a `config.json` that [`Config::from_json`] reads back equal.
    pub fn to_json(&self) -> Value {
        let Config {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            query_pre_attn_scalar,
            rms_norm_eps,
            rope_theta,
            sliding_window,
            layer_types,
            attn_logit_softcapping,
            final_logit_softcapping,
            max_position_embeddings,
            tie_word_embeddings,
            bos_token_id,
            eos_token_id,
            pad_token_id,
        } = self;
        json!({
            "architectures": [ARCHITECTURE],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": attn_logit_softcapping,
            "bos_token_id": bos_token_id,
            "eos_token_id": match eos_token_id[..] { [one] => json!(one), ref list => json!(list) },
            "final_logit_softcapping": final_logit_softcapping,
            "head_dim": head_dim,
            "hidden_activation": ACTIVATION,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "layer_types": layer_types.iter().map(|t| t.name()).collect::<Vec<_>>(),
            "max_position_embeddings": max_position_embeddings,
            "model_type": MODEL_TYPE,
            "num_attention_heads": num_attention_heads,
            "num_hidden_layers": num_hidden_layers,
            "num_key_value_heads": num_key_value_heads,
            "pad_token_id": pad_token_id,
            "query_pre_attn_scalar": integer_if_whole(*query_pre_attn_scalar),
            "rms_norm_eps": rms_norm_eps,
            "rope_parameters": { "rope_theta": rope_theta, "rope_type": "default" },
            "sliding_window": sliding_window,
            "tie_word_embeddings": tie_word_embeddings,
            "vocab_size": vocab_size,
        })
    }
}

/// A number as published configurations have it: transformers refuses `256.0` where it wants an integer.
fn integer_if_whole(x: f64) -> Value {
    // Whole numbers up to 2^53 are exact in both types.
    if x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0 { json!(x as i64) } else { json!(x) }
}

/// The `quantization_config` of a checkpoint that holds quantised matrices.
pub(crate) fn quantization_config() -> Value {
    json!({ "quant_method": QUANT_METHOD, "block_size": BLOCK })
}
