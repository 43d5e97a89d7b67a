//! Lapidary's runtime: programs, sessions, KV cache, thread pool, sampling. Knows no compiler.

pub mod program;
