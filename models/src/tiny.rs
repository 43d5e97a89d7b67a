//! The built-in model's files, as they lie in `data/tiny-gemma2` (see its README for where they come from).
//!
//! Invariant: the weights start at a multiple of 64, so tensors are read in place.

/// `config.json`.
pub(crate) const CONFIG: &[u8] = include_bytes!("../data/tiny-gemma2/config.json");
/// `generation_config.json`.
pub(crate) const GENERATION_CONFIG: &[u8] = include_bytes!("../data/tiny-gemma2/generation_config.json");
/// `tokenizer.json`.
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../data/tiny-gemma2/tokenizer.json");
/// `tokenizer_config.json`.
pub(crate) const TOKENIZER_CONFIG: &[u8] = include_bytes!("../data/tiny-gemma2/tokenizer_config.json");

/// `model.safetensors`.
pub(crate) fn weights() -> &'static [u8] {
    &WEIGHTS.0
}

#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../data/tiny-gemma2/model.safetensors"));
