//! Lapidary's runtime: artifacts, programs, sessions, KV cache, thread pool, sampling, text. Knows no compiler.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "Lapidary runs on Linux alone: it maps files and memory, and asks for CPU features, as Linux has them"
);

pub mod artifact;
mod bind;
pub mod cpu;
pub mod demand;
mod error;
pub mod fault;
pub mod file;
pub mod generate;
mod kv;
pub mod memory;
pub mod pool;
pub mod program;
mod rng;
pub mod sampler;
pub mod session;
pub mod terminal;
#[cfg(feature = "text")]
pub mod text;
pub mod threads;

pub use artifact::Artifact;
pub use error::{Error, one_line};
pub use generate::{Generation, StopReason, generate};
pub use pool::Pool;
pub use rng::Rng;
pub use sampler::{Sampler, SamplerOptions};
pub use session::{Memory, Profile, Session};
