//! Prompts that must fit a context: one that does not is refused before all of it is tokenised.
//!
//! A text is tokenised from its start, as far as it takes to know that it has too many tokens; each time twice as far,
//! so that one that fits costs twice as much at most. How many tokens a start has depends on where it is cut by a few
//! at its end.

use super::Tokenizer;
use crate::file::{Error, Result};

/// Texts up to this many bytes are tokenised at once.
const START: usize = 256 << 10;
/// Bytes of a start for each token of the context: more than those of most tokens.
const BYTES_PER_TOKEN: usize = 16;
/// Tokens by which a start must exceed the context: more than a cut can make.
const MARGIN: usize = 64;

impl Tokenizer {
    /// The ids of `text`, as [`Tokenizer::encode`] gives them, if they are at most `most` or not known to be more
    /// without tokenising all of a short text: what is returned may still be too long.
    ///
    /// # Errors
    /// [`Error::Long`], and as [`Tokenizer::encode`].
    pub fn encode_within(&self, text: &str, add_bos: bool, most: usize) -> Result<Vec<u32>> {
        let mut bytes = START.max(BYTES_PER_TOKEN.saturating_mul(most));
        while bytes < text.len() {
            let start = &text[..text.floor_char_boundary(bytes)];
            let tokens = self.encode(start, add_bos)?.len();
            if tokens > most.saturating_add(MARGIN) {
                return Err(Error::Long { tokens, most });
            }
            bytes = bytes.saturating_mul(2);
        }
        self.encode(text, add_bos)
    }
}
