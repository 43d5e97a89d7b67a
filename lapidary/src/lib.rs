//! Lapidary as a library: Gemma on CPUs, compiled by an e-graph compiler to machine code, in Rust alone.
//!
//! Open a model, make an engine of it, generate. What is opened is a Hugging Face folder, a GGUF, a model of the hub by
//! its name, an artifact that was compiled ahead of time, or the tiny model that is built in, on which everything here
//! runs:
//!
//! ```
//! use lapidary::{Generate, Model, Options};
//!
//! let model = Model::built_in(Options::new())?; // or Model::open("gemma-2-2b-it", Options::new())?
//! let mut session = model.session()?;
//! let prompt = model.encode("It is a truth universally acknowledged")?;
//! for piece in model.generate(&mut session, &prompt, &Generate::default())? {
//!     print!("{}", piece?);
//! }
//! # Ok::<(), lapidary::Error>(())
//! ```
//!
//! | what | how |
//! |---|---|
//! | CPU, context, threads, formats of weights and KV cache, rewrite rules | [`Options`] |
//! | one text at a time | [`Model::session`], [`Model::generate`] |
//! | many sequences in one call, each to the bits that it has alone | [`Model::engine`], [`Engine::step`] |
//! | a conversation by the model's chat template | [`Conversation`], [`Model::partner`] |
//! | saving, forking, rolling back | [`Engine::save`], [`Sequence::fork`], [`Sequence::truncate`] |
//! | a file that runs without a compiler, a C object | [`Model::compile`] |
//! | a function of the tensor language, on tensors of files | [`call`] |
//! | what the compiler did | [`Model::compilation`], [`Graph`], [`mod@explain`], [`why_not`], and the crates below |
//!
//! Many sequences, of which each has its own sampler and may be at another place:
//!
//! ```
//! use lapidary::{Model, Options, Phase, Want, Work};
//!
//! let model = Model::built_in(Options::new().context(128))?;
//! let mut engine = model.engine()?;
//! let mut sequence = engine.sequence()?;
//! let prompt = model.encode("It is a truth universally acknowledged")?;
//! let work = Work { sequence: &mut sequence, tokens: &prompt, phase: Phase::Prefill, want: Want::Argmax };
//! let token = engine.step(&mut [work])?.token(0);
//! assert_eq!(model.tokenizer()?.decode(&[token]), ",");
//!
//! // Two ways to go on from there.
//! let mut other = sequence.fork()?;
//! let step = |sequence, tokens| Work { sequence, tokens, phase: Phase::Decode, want: Want::Argmax };
//! let outputs = engine.step(&mut [step(&mut sequence, &[token]), step(&mut other, &[17])])?;
//! let _next = [outputs.token(0), outputs.token(1)];
//! # Ok::<(), lapidary::Error>(())
//! ```
//!
//! Errors are one type, [`Error`], each one line that names the option, the file or the field. A model's files are not
//! trusted; an artifact is code, so [`Options::trust`] names the keys whose signature it must have.
//!
//! Below are crates of their own, which this one puts together: [`ir`] the tensor language, [`passes`] rewrite rules
//! and extraction, [`codegen`] kernels, [`models`] checkpoints, [`hub`] models by name, [`runtime`] engines and text,
//! which knows no compiler.

#![warn(clippy::wildcard_enum_match_arm)]

pub mod call;
pub mod choice;
mod compile;
mod error;
pub mod explain;
mod generate;
mod graph;
mod model;
mod options;
mod weights;
pub mod why_not;

pub use choice::{Activations, Choice, Format, KvCache};
pub use compile::{Compile, Written};
pub use error::{Error, Result};
pub use generate::{Generate, Generation};
pub use graph::Graph;
pub use model::{Compilation, Model};
pub use options::{CHUNK, MAX_CHUNK, MAX_CONTEXT, MAX_THREADS, NATIVE, Notice, Options};

pub use lapidary_codegen as codegen;
#[cfg(feature = "hub")]
pub use lapidary_hub as hub;
pub use lapidary_ir as ir;
pub use lapidary_models as models;
pub use lapidary_passes as passes;
pub use lapidary_runtime as runtime;

pub use lapidary_models::Config;
pub use lapidary_passes::{RuleSet, Selection};
pub use lapidary_runtime::artifact::{PrivateKey, PublicKey};
pub use lapidary_runtime::text::{
    Answer, AnswerEnd, ChatTemplate, Conversation, Message, Partner, Tokenizer,
};
pub use lapidary_runtime::{
    Artifact, Engine, Memory, Outputs, Phase, Sampler, SamplerOptions, Sequence, Session, Want, Work,
};
