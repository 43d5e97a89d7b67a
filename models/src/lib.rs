//! Lapidary's models: configurations, checkpoints, tokenizers, and the graphs built from them.
//!
//! In: a Hugging Face folder (`config.json`, `generation_config.json`, `model.safetensors` or its shards,
//! `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`), or nothing for the built-in model. Out: a
//! [`Model`].
//!
//! | module | what it knows |
//! |---|---|
//! | [`MODELS`], [`family`] | the families of models, a file each |
//! | [`config`] | `config.json`: every field is used, known to be harmless, or warned of |
//! | [`preset`] | the published sizes, by name |
//! | [`size`] | parameters, weight bytes, KV bytes, FLOPs of a configuration |
//! | [`graph`] | the graph of a configuration, in primitives |
//! | [`mod@gguf`] | models of one file, as llama.cpp has them |
//! | [`layout`] | the names and shapes of the tensors of a configuration |
//! | [`checkpoint`] | all of a model's tensors, mapped and checked |
//! | [`tokenizer`], [`detokenizer`], [`chat`] | text to ids, ids to text, messages to a prompt's text: the runtime's |
//! | [`model`] | a folder as a whole; the built-in model |
//! | [`quantize`] | blocks of 8 and 4 bits: their bytes, their scales |
//! | [`lora`] | adapters, merged as weights are opened |
//! | [`weight_cache`] | a model's weights quantised, made once and mapped after |
//! | [`mod@export`] | checkpoints written: shards, headers, index; a model in other formats |
//! | [`synth`] | full-size checkpoints of random weights, for measurements |
//!
//! Invariant: nothing read from a file is trusted. A malformed file is an [`Error`] of one line, never a panic.

#![deny(unsafe_code)]
#![warn(clippy::wildcard_enum_match_arm)]

pub mod checkpoint;
pub mod config;
pub mod dtype;
pub mod error;
pub mod export;
pub mod family;
mod folder;
mod gemma1;
mod gemma2;
mod gemma3;
pub mod gguf;
pub mod graph;
pub mod layout;
pub mod lora;
pub mod model;
mod names;
pub mod preset;
pub mod quantize;
pub mod size;
pub mod synth;
#[cfg(feature = "tiny")]
mod tiny;
pub mod weight_cache;

pub use checkpoint::{Checkpoint, TensorView};
pub use config::{Config, LayerType};
pub use dtype::{TensorFormat, WeightDType};
pub use error::{Error, Result, Warning};
pub use export::{Destination, FormatChoice, export};
pub use family::Family;
pub use lapidary_runtime::text::{
    ChatTemplate, Content, Detokenizer, Message, SpecialTokens, Tokenizer, chat, detokenizer, special,
    tokenizer,
};
pub use lora::Adapter;
pub use model::Model;
pub use preset::Preset;
pub use quantize::QuantFormat;
pub use size::ParameterCounts;
pub use synth::synthesize;
pub use weight_cache::{Cache, Quantization, QuantizedWeights};

/// The families of models.
pub static MODELS: &[&Family] = &[&gemma1::GEMMA1, &gemma2::GEMMA2, &gemma3::GEMMA3];
