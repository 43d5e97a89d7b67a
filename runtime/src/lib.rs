//! Lapidary's runtime: artifacts, programs, engine and sequences, KV cache, thread pool, sampling, text. Knows no
//! compiler.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "Lapidary runs on Linux alone: it maps files and memory, and asks for CPU features, as Linux has them"
);

pub mod artifact;
mod block;
pub mod callable;
pub mod cpu;
pub mod demand;
pub mod engine;
mod error;
pub mod fault;
pub mod file;
pub mod generate;
mod kv;
pub mod layout;
pub mod memory;
pub mod pool;
pub mod program;
mod rng;
pub mod sampler;
pub mod sequence;
pub mod session;
pub mod snapshot;
pub mod speculation;
mod sync;
pub mod terminal;
#[cfg(feature = "text")]
pub mod text;
pub mod threads;

pub use artifact::Artifact;
pub use block::KvBlock;
pub use callable::Callable;
pub use engine::{Engine, Memory, Outputs, Prediction, Profile, Want, Work};
pub use error::{Error, one_line};
pub use generate::{Continue, Decoding, Generation, StopReason, generate};
pub use pool::Pool;
pub use program::Phase;
pub use rng::Rng;
pub use sampler::{Sampler, SamplerOptions};
pub use sequence::Sequence;
pub use session::Session;
pub use speculation::{Guessed, Speculated, Speculation, Together};
