//! A model's configuration, from and to `config.json`.
//!
//! In: the file's bytes, in the older dialect (`rope_theta`, `hidden_act`, `torch_dtype`) or the newer one
//! (`rope_parameters`, `layer_types`, `dtype`), on its own or nested as `text_config`. Out: a [`Config`] under the
//! file's own names, and a [`Warning`] that names the fields nobody knows. Invariants: every field of the file is used,
//! is a row of [`HARMLESS`] (it changes nothing that is computed here while a condition holds), or is named in the
//! warning; refused is only a value that is malformed or known to change the result. What is absent is what
//! transformers' class takes for it. The sizes of a `Config` are bounded ([`Config::validate`]), so products of them
//! fit u64 and usize.

mod check;
mod fields;
mod parse;
mod rope;
mod write;

use std::path::Path;

use lapidary_runtime::file;
use lapidary_runtime::file::fields::Fields;

use crate::error::{Result, Warning};
use crate::family::{Family, field};
use crate::folder;

pub use fields::{HARMLESS, When};
use parse::{cap, family, layer_types, own_fields, pad, refuse_unsupported, scalar, size, sliding_window};
pub use rope::Rope;
use rope::ropes;
pub(crate) use write::quantization_config;

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

    /// That of a layer where every `period`-th one is full and the others slide.
    pub const fn of(layer: usize, period: usize) -> LayerType {
        if (layer + 1).is_multiple_of(period) { LayerType::Full } else { LayerType::Sliding }
    }
}

/// The number that embeddings are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddingScale {
    /// sqrt(hidden_size) rounded to bfloat16, with which the published weights were trained: that of every folder.
    Rounded,
    /// sqrt(hidden_size) in f32: that of a GGUF, as llama.cpp has it.
    Exact,
}

/// What the weights of norms hold, of the factor 1 + w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeights {
    /// w: those of every folder.
    LessOne,
    /// 1 + w: those of a GGUF.
    Whole,
}

/// A model's configuration; the fields keep the names of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its family: the layers' graph, the fields that only some families have.
    pub family: &'static Family,
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
    /// RoPE of the layers that slide; that of all layers in a family with one.
    pub rope_local: Rope,
    /// RoPE of the layers that see all keys.
    pub rope_global: Rope,
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
    /// How exact the scale of embeddings is.
    pub embedding_scale: EmbeddingScale,
    /// What the weights of norms hold.
    pub norm_weights: NormWeights,
}

/// The `quant_method` of a checkpoint whose matrices are rows of quants as [`quantize`](crate::quantize) describes.
const QUANT_METHOD: &str = "lapidary";
/// The one activation.
const ACTIVATION: &str = "gelu_pytorch_tanh";
/// Largest size of one axis: 64 times the widest published.
pub(crate) const MAX_SIZE: u64 = 1 << 24;
/// Largest number of layers: 22 times the deepest published.
pub const MAX_LAYERS: u64 = 1024;
/// The field for what no other program's `config.json` says, an object of fields of [`own`].
const OWN: &str = "lapidary";

/// Fields of [`OWN`], and the values that they may have.
mod own {
    pub(super) const EMBEDDING_SCALE: &str = "embedding_scale";
    pub(super) const EXACT: &str = "exact";
    pub(super) const NORM_WEIGHTS: &str = "norm_weights";
    pub(super) const WHOLE: &str = "1 + w";
}

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
        let (family, mut f, around) = family(Fields::parse(path, bytes)?)?;
        let mut unknown = Vec::new();
        let tie_word_embeddings = refuse_unsupported(&mut f, family, &mut unknown)?;
        let d = (family.defaults)();
        let [rope_local, rope_global] = ropes(&mut f, &d, &mut unknown)?;
        let (embedding_scale, norm_weights) = own_fields(&mut f)?;
        let vocab_size = size(&mut f, "vocab_size", d.vocab_size, MAX_SIZE)?;
        let largest_id = vocab_size as u64 - 1;
        let num_hidden_layers = size(&mut f, "num_hidden_layers", d.num_hidden_layers, MAX_LAYERS)?;
        let layer_types = layer_types(&mut f, family, num_hidden_layers)?;
        let head_dim = size(&mut f, "head_dim", d.head_dim, MAX_SIZE)?;
        let config = Config {
            family,
            vocab_size,
            hidden_size: size(&mut f, "hidden_size", d.hidden_size, MAX_SIZE)?,
            intermediate_size: size(&mut f, "intermediate_size", d.intermediate_size, MAX_SIZE)?,
            num_hidden_layers,
            num_attention_heads: size(&mut f, "num_attention_heads", d.num_attention_heads, MAX_SIZE)?,
            num_key_value_heads: size(&mut f, "num_key_value_heads", d.num_key_value_heads, MAX_SIZE)?,
            head_dim,
            query_pre_attn_scalar: match family.has(field::QUERY_SCALE) {
                true => scalar(&mut f, field::QUERY_SCALE, d.query_pre_attn_scalar)?,
                false => head_dim as f64,
            },
            rms_norm_eps: scalar(&mut f, "rms_norm_eps", d.rms_norm_eps)?,
            rope_local,
            rope_global,
            sliding_window: match family.has(field::WINDOW) {
                true => sliding_window(&mut f, &layer_types, d.sliding_window)?,
                false => d.sliding_window,
            },
            layer_types,
            attn_logit_softcapping: cap(&mut f, family, field::ATTENTION_CAP, d.attn_logit_softcapping)?,
            final_logit_softcapping: cap(&mut f, family, field::FINAL_CAP, d.final_logit_softcapping)?,
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
            embedding_scale,
            norm_weights,
        };
        config.validate(path)?;
        let rest = f.rest().chain(around.into_iter().flat_map(Fields::rest));
        fields::hold(path, &config, rest, &mut unknown)?;
        Ok((config, Warning::of_unknown(path, &unknown)))
    }

    /// RoPE of a kind of layer.
    pub fn rope(&self, kind: LayerType) -> Rope {
        match kind {
            LayerType::Sliding => self.rope_local,
            LayerType::Full => self.rope_global,
        }
    }

    /// Keys that a kind of layer sees, the query's own included; nothing for all.
    pub fn window(&self, kind: LayerType) -> Option<usize> {
        match kind {
            LayerType::Sliding => Some(self.sliding_window),
            LayerType::Full => None,
        }
    }

    /// The same with so many layers, of the published kinds.
    #[must_use]
    pub fn with_layers(self, layers: usize) -> Config {
        Config { num_hidden_layers: layers, layer_types: self.family.layer_types(layers), ..self }
    }

    /// What embeddings are multiplied by.
    pub fn embedding_scale(&self) -> f32 {
        let exact = (self.hidden_size as f32).sqrt();
        match self.embedding_scale {
            EmbeddingScale::Rounded => half::bf16::from_f32(exact).to_f32(),
            EmbeddingScale::Exact => exact,
        }
    }

    /// What attention scores are multiplied by: query_pre_attn_scalar^(-1/2), whatever head_dim is.
    pub fn attention_scale(&self) -> f32 {
        self.query_pre_attn_scalar.powf(-0.5) as f32
    }
}
