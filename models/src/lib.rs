//! Lapidary's models: configurations, checkpoints, tokenizers, and the graphs built from them.
