//! Text form: printing and parsing.
//!
//! ```text
//! ; a comment
//! function layer_local(
//!     %x: f32[T,288] rows,
//!     %k_cache: bf16[2,S,64] cache window=128,
//!     %self_attn.q_proj.weight: bf16[256,288] weight,
//! ) {
//!     v0 = (mul %x %x)              ; f32[T,288]
//!     v1 = (rsqrt (add v0 1e-6))
//!     return y=v1
//! }
//! ```
//!
//! A term is an operator over terms in parentheses, a value's or an input's name, or a leaf: a number (`1.0`), an
//! integer (`1`), a dtype, dims (`[T,4]`), `none`, a mode, an epilogue. Printing puts each node on a line of its own,
//! save leaves, weights and caps, which stand inside of the node that uses them. Parsing shares equal nodes and checks
//! no types: that is [`verify`](crate::verify)'s.

mod derived;
mod parse;
mod print;
#[cfg(test)]
mod tests;

pub use self::derived::derived_operators;
pub use self::parse::{apply, arity, nearest, parse_module, shown, words};
pub use self::print::{node, print, statement};

/// How deep terms may be nested in text.
pub const MAX_NESTING: usize = 256;

/// Whether this may name a function, an input, a value or an output.
pub(crate) fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}
