//! A Gemma 2's configuration, from and to `config.json`.
//!
//! In: the file's bytes, in the older dialect (`rope_theta`, `hidden_act`, `torch_dtype`) or the newer one
//! (`rope_parameters`, `layer_types`, `dtype`). Out: a [`Config`] under the file's own names. Invariants: every field of the
//! file is used, is in [`IGNORED`] (it changes nothing that is computed here), or is refused by name; the sizes of a `Config`
//! are bounded ([`Config::validate`]), so products of them fit u64 and usize.

use std::path::Path;

use serde_json::{Value, json};

use lapidary_runtime::file;
use lapidary_runtime::file::fields::{Fields, is_positive};

use crate::error::{Error, Result};
use crate::quantize::BLOCK;

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
    /// Whether the head's matrix is the embedding table; always true.
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
/// The class whose weights are read.
const ARCHITECTURE: &str = "Gemma2ForCausalLM";
/// The `quant_method` of a checkpoint whose matrices are rows of quants as [`quantize`](crate::quantize) describes.
const QUANT_METHOD: &str = "lapidary";
/// The one activation.
const ACTIVATION: &str = "gelu_pytorch_tanh";
/// Largest size of one axis: 64 times the widest published.
const MAX_SIZE: u64 = 1 << 24;
/// Largest number of layers: 22 times the deepest published.
pub const MAX_LAYERS: u64 = 1024;
/// The caps of transformers' `Gemma2Config` for a file that does not name them.
const ATTN_CAP: f32 = 50.0;
const FINAL_CAP: f32 = 30.0;

/// Fields of transformers' `PretrainedConfig` that change nothing computed here: how the model was trained, how Python
/// loads, labels, prints or samples it. Dtypes are stated by the checkpoint itself, tensor by tensor.
pub const IGNORED: &[&str] = &[
    // Provenance and loading.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "auto_map",
    "attn_implementation",
    "dtype",
    "name_or_path",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "transformers.js_config",
    "tf_legacy_loss",
    "use_bfloat16",
    "use_cache",
    "cache_implementation",
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "pruned_heads",
    "unsloth_fixed",
    "unsloth_version",
    // Training.
    "attention_dropout",
    "finetuning_task",
    "initializer_range",
    "problem_type",
    "task_specific_params",
    // What a call returns.
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "id2label",
    "label2id",
    "num_labels",
    // Other architectures' halves.
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "is_decoder",
    "prefix",
    "sep_token_id",
    "tie_encoder_decoder",
    "tokenizer_class",
    // Defaults of sampling, which transformers itself moved to generation_config.json.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

impl Config {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// [`Error::Missing`] without the file; otherwise as [`Config::from_json`].
    pub fn from_folder(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        match file::read_if_present(&path)? {
            Some(bytes) => Config::from_json(&path, &bytes),
            None => Err(Error::Missing { path: dir.into(), file: "config.json".into() }),
        }
    }

    /// Reads a configuration from JSON; `path` is what errors call it.
    ///
    /// # Errors
    /// [`Error::File`] if it is not a JSON object, [`Error::File`] for a field that is missing, malformed, not supported
    /// or not known.
    pub fn from_json(path: &Path, bytes: &[u8]) -> Result<Config> {
        let mut f = Fields::parse(path, bytes)?;
        refuse_unsupported(&mut f)?;
        let rope_theta = rope_theta(&mut f)?;
        let vocab_size = f.integer("vocab_size", 1, MAX_SIZE)?;
        let num_hidden_layers = f.integer("num_hidden_layers", 1, MAX_LAYERS)? as usize;
        let config = Config {
            vocab_size: vocab_size as usize,
            hidden_size: f.integer("hidden_size", 1, MAX_SIZE)? as usize,
            intermediate_size: f.integer("intermediate_size", 1, MAX_SIZE)? as usize,
            num_hidden_layers,
            num_attention_heads: f.integer("num_attention_heads", 1, MAX_SIZE)? as usize,
            num_key_value_heads: f.integer("num_key_value_heads", 1, MAX_SIZE)? as usize,
            head_dim: f.integer("head_dim", 2, MAX_SIZE)? as usize,
            query_pre_attn_scalar: f.positive("query_pre_attn_scalar")?,
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta,
            sliding_window: f.integer("sliding_window", 1, MAX_SIZE)? as usize,
            layer_types: layer_types(&mut f, num_hidden_layers)?,
            attn_logit_softcapping: cap(&mut f, "attn_logit_softcapping", ATTN_CAP)?,
            final_logit_softcapping: cap(&mut f, "final_logit_softcapping", FINAL_CAP)?,
            max_position_embeddings: f.integer("max_position_embeddings", 1, MAX_SIZE)? as usize,
            tie_word_embeddings: true,
            bos_token_id: f.optional_integer("bos_token_id", 0, vocab_size - 1)?.unwrap_or(2) as u32,
            eos_token_id: f.tokens("eos_token_id", vocab_size - 1)?.unwrap_or_else(|| vec![1]),
            pad_token_id: f.optional_integer("pad_token_id", 0, vocab_size - 1)?.unwrap_or(0) as u32,
        };
        f.finish(IGNORED)?;
        config.validate(path)?;
        Ok(config)
    }

    /// Checks what [`Config::from_json`] guarantees, for a configuration made or changed in Rust; `path` is what errors
    /// call it.
    ///
    /// # Errors
    /// [`Error::File`] naming the first field that is out of range or does not fit another.
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
        check(c.tie_word_embeddings, "tie_word_embeddings", "true", json!(false))?;
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
        let c = self;
        json!({
            "architectures": [ARCHITECTURE],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": c.attn_logit_softcapping,
            "bos_token_id": c.bos_token_id,
            "eos_token_id": match c.eos_token_id[..] { [one] => json!(one), ref list => json!(list) },
            "final_logit_softcapping": c.final_logit_softcapping,
            "head_dim": c.head_dim,
            "hidden_activation": ACTIVATION,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "layer_types": c.layer_types.iter().map(|t| t.name()).collect::<Vec<_>>(),
            "max_position_embeddings": c.max_position_embeddings,
            "model_type": MODEL_TYPE,
            "num_attention_heads": c.num_attention_heads,
            "num_hidden_layers": c.num_hidden_layers,
            "num_key_value_heads": c.num_key_value_heads,
            "pad_token_id": c.pad_token_id,
            "query_pre_attn_scalar": integer_if_whole(c.query_pre_attn_scalar),
            "rms_norm_eps": c.rms_norm_eps,
            "rope_parameters": { "rope_theta": c.rope_theta, "rope_type": "default" },
            "sliding_window": c.sliding_window,
            "tie_word_embeddings": c.tie_word_embeddings,
            "vocab_size": c.vocab_size,
        })
    }
}

/// A number as published configurations have it: transformers refuses `256.0` where it wants an integer.
fn integer_if_whole(x: f64) -> Value {
    // Whole numbers up to 2^53 are exact in both types.
    if x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0 { json!(x as i64) } else { json!(x) }
}

/// Takes the fields of which only one value is built.
fn refuse_unsupported(f: &mut Fields) -> file::Result<()> {
    match f.take("model_type") {
        Some(t) if t == MODEL_TYPE => {}
        Some(other) => return Err(f.refuse("model_type", &json!(MODEL_TYPE).to_string(), &other)),
        None => return Err(f.absent("model_type", &json!(MODEL_TYPE).to_string())),
    }
    f.only("architectures", json!([ARCHITECTURE]))?;
    let activation = f.take("hidden_activation");
    let act = f.take("hidden_act");
    for (name, value) in [("hidden_activation", &activation), ("hidden_act", &act)] {
        match value {
            Some(v) if v == ACTIVATION => break,
            Some(v) => return Err(f.refuse(name, &json!(ACTIVATION).to_string(), v)),
            None => {}
        }
    }
    f.only("tie_word_embeddings", json!(true))?;
    f.only("attention_bias", json!(false))?;
    f.only("use_bidirectional_attention", json!(false))?;
    if let Some(value) = f.take("rope_scaling") {
        return Err(f.refuse("rope_scaling", "null", &value));
    }
    // Tensors state their own formats; this tells other programs that the U8 ones are rows of quants.
    if let Some(mut quantization) = f.object("quantization_config")? {
        match quantization.take("quant_method") {
            Some(method) if method == QUANT_METHOD => {}
            Some(other) => {
                return Err(quantization.refuse("quant_method", &json!(QUANT_METHOD).to_string(), &other));
            }
            None => return Err(quantization.absent("quant_method", &json!(QUANT_METHOD).to_string())),
        }
        quantization.only("block_size", json!(BLOCK))?;
        quantization.finish(&[])?;
    }
    Ok(())
}

/// The `quantization_config` of a checkpoint that holds quantised matrices.
pub(crate) fn quantization_config() -> Value {
    json!({ "quant_method": QUANT_METHOD, "block_size": BLOCK })
}

/// The rotary base: `rope_theta`, or the newer dialect's `rope_parameters`.
fn rope_theta(f: &mut Fields) -> file::Result<f64> {
    let older = f.optional_positive("rope_theta")?;
    let mut newer = None;
    if let Some(mut rope) = f.object("rope_parameters")? {
        for name in ["rope_type", "type"] {
            rope.only(name, json!("default"))?;
        }
        newer = rope.optional_positive("rope_theta")?;
        rope.finish(&[])?;
    }
    match (older, newer) {
        (Some(a), Some(b)) if a != b => {
            Err(f.refuse("rope_theta", &format!("rope_parameters.rope_theta {b}"), &json!(a)))
        }
        (Some(theta), _) | (None, Some(theta)) => Ok(theta),
        (None, None) => Err(f.absent("rope_theta", "a finite number above 0, here or in rope_parameters")),
    }
}

/// `layer_types`, or the published alternation where the file does not say.
fn layer_types(f: &mut Fields, layers: usize) -> file::Result<Vec<LayerType>> {
    let Some(value) = f.take("layer_types") else {
        return Ok((0..layers).map(LayerType::published).collect());
    };
    let kind = |v: &Value| [LayerType::Sliding, LayerType::Full].into_iter().find(|t| v == t.name());
    let kinds: Option<Vec<LayerType>> = value.as_array().and_then(|l| l.iter().map(kind).collect());
    kinds.filter(|k| k.len() == layers).ok_or_else(|| {
        let expected = format!("{layers} of \"sliding_attention\" and \"full_attention\", one a layer");
        f.refuse("layer_types", &expected, &value)
    })
}

/// A softcap: null switches it off, and a file that does not name it means the default.
fn cap(f: &mut Fields, name: &str, default: f32) -> file::Result<Option<f32>> {
    match f.take_nullable(name) {
        None => Ok(Some(default)),
        Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|x| is_positive(*x)) {
            Some(x) => Ok(Some(x as f32)),
            None => Err(f.refuse(name, "a finite number above 0, or null", &value)),
        },
    }
}
