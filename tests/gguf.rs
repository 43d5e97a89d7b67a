//! GGUF files: the container and every hole that readers of it had, the tokenizer in them, models made of them.
#![allow(clippy::unwrap_used)]

#[path = "gguf/container.rs"]
mod container;
#[path = "gguf/models.rs"]
mod models;
#[path = "gguf/real.rs"]
mod real;
#[path = "gguf/tokenizer.rs"]
mod tokenizer;
