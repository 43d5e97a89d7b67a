//! Token ids to text, as they come.
//!
//! In: ids, one at a time. Out: pieces of text whose concatenation is the text of all ids; a piece never ends inside a
//! character. Special tokens and ids outside of the vocabulary give no text. Byte tokens (`<0xE2>`) are held back until
//! they make a character; bytes that cannot become one give U+FFFD, as `String::from_utf8_lossy` does. Each id costs
//! O(its text).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::bpe::Bpe;
use super::scores::Scores;

/// What one token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text, `▁` already turned into a space.
    Text(Box<str>),
    /// One byte of UTF-8.
    Byte(u8),
    /// No text: a special token.
    Nothing,
}

impl Piece {
    /// What a token that is not special stands for.
    pub(crate) fn of(token: &str) -> Piece {
        match byte(token) {
            Some(byte) => Piece::Byte(byte),
            None => Piece::Text(token.replace('▁', " ").into()),
        }
    }
}

/// The byte that a token `<0xE2>` stands for.
pub(super) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// What every id stands for.
#[derive(Clone)]
pub(crate) enum Pieces {
    /// By id.
    Listed(Arc<[Piece]>),
    /// Those of added tokens, then those of the tables; and how many ids there are.
    Mapped(Bpe, Arc<HashMap<u32, Piece>>, usize),
    /// Those of a vocabulary with scores.
    Scored(Scores),
}

impl Pieces {
    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        match self {
            Pieces::Listed(pieces) => pieces.len(),
            Pieces::Mapped(_, _, ids) => *ids,
            Pieces::Scored(scores) => scores.ids(),
        }
    }

    fn get(&self, id: u32) -> Option<Cow<'_, Piece>> {
        // What should be read is said, not left out.
        let unreadable = || Some(Cow::Owned(Piece::Text("\u{FFFD}".into())));
        match self {
            Pieces::Listed(pieces) => pieces.get(id as usize).map(Cow::Borrowed),
            Pieces::Mapped(bpe, added, _) => match added.get(&id) {
                Some(piece) => Some(Cow::Borrowed(piece)),
                None => match bpe.text(id) {
                    Some(token) => Some(Cow::Owned(Piece::of(token))),
                    None if bpe.is_damaged() => unreadable(),
                    None => None,
                },
            },
            Pieces::Scored(scores) => match scores.piece(id) {
                Some(piece) => Some(Cow::Owned(piece)),
                None if scores.is_damaged() => unreadable(),
                None => None,
            },
        }
    }
}

/// What turns ids into text; made by [`Tokenizer::detokenizer`](super::Tokenizer::detokenizer).
#[derive(Clone)]
pub struct Detokenizer {
    pieces: Pieces,
    /// The start of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(crate) fn new(pieces: Pieces) -> Detokenizer {
        Detokenizer { pieces, pending: Vec::with_capacity(4) }
    }

    /// The text that `id` completes; may be empty.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_to(id, &mut text);
        text
    }

    /// As [`push`](Self::push), appending to `text`.
    pub fn push_to(&mut self, id: u32, text: &mut String) {
        match self.pieces.get(id).as_deref() {
            None | Some(Piece::Nothing) => {}
            Some(Piece::Text(piece)) => {
                flush(&mut self.pending, text);
                text.push_str(piece);
            }
            Some(Piece::Byte(byte)) => {
                self.pending.push(*byte);
                drain(&mut self.pending, text);
            }
        }
    }

    /// The text of what is held back, and the state of a new detokenizer: call it after the last id.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        flush(&mut self.pending, &mut text);
        text
    }
}

/// Moves everything that is decided from `pending` to `text`; what is left is the start of a character.
fn drain(pending: &mut Vec<u8>, text: &mut String) {
    loop {
        match std::str::from_utf8(pending) {
            Ok(whole) => {
                text.push_str(whole);
                pending.clear();
                return;
            }
            // Nothing before the error is whole: a whole character went out with its last byte.
            Err(e) => match e.error_len() {
                None => return,
                Some(bad) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    pending.drain(..bad);
                }
            },
        }
    }
}

/// Moves everything to `text`; the start of a character becomes U+FFFD.
fn flush(pending: &mut Vec<u8>, text: &mut String) {
    if !pending.is_empty() {
        text.push(char::REPLACEMENT_CHARACTER);
        pending.clear();
    }
}
