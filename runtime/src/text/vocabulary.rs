//! Tokens with scores, and the tables that [`scores`](super::scores) reads: how they are made.
//!
//! In: a [`Vocabulary`]. Out: the tables' bytes, in one pass over its tokens, or what is wrong with it. Invariants:
//! texts are distinct; a token is found within [`MAX_PROBES`] slots, whatever the texts are.
//!
//! Layout, in words of 32 bits, little-endian: the header ([`HEADER`] words: version, ids, slots, seed, flags, ids of
//! BOS, EOS and the unknown token or [`NONE`], special tokens, bytes of the longest token, bytes of text); for each id
//! the end of its text, then its score (binary32), then its kind; the slots, a table of ids by the hash of their text
//! ([`NONE`] where there is none; the next slots where one is taken); the ids of special tokens, ascending by text.
//! Then the tokens' texts by id.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::tables::{MAX_ID, NONE, WORD};

/// The version of the layout; [`bpe`](super::bpe) has another.
pub(super) const VERSION: u32 = 3;
/// Words of the header.
pub(super) const HEADER: usize = 11;
/// Flag: a text gets a space before it.
pub(super) const SPACE_PREFIX: u32 = 1;
/// Bytes of a token's text: over a hundred times the longest of Gemma's.
pub(super) const MAX_TOKEN: usize = 1 << 14;
/// Bytes of a special token's text.
pub(super) const MAX_SPECIAL: usize = 256;
/// Slots that are looked at for a token; a good seed needs a few dozen.
const MAX_PROBES: usize = 512;
/// Seeds that are tried for the slots.
const SEEDS: u32 = 16;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal = 1,
    /// What stands for unknown characters.
    Unknown = 2,
    /// No text; found where it is written out.
    Control = 3,
    /// Text as it is, spaces too; found before all others.
    UserDefined = 4,
    /// No text.
    Unused = 5,
    /// One byte, `<0x0A>`.
    Byte = 6,
}

impl TokenKind {
    /// Every kind.
    pub const ALL: [TokenKind; 6] = [
        TokenKind::Normal,
        TokenKind::Unknown,
        TokenKind::Control,
        TokenKind::UserDefined,
        TokenKind::Unused,
        TokenKind::Byte,
    ];

    /// The kind of a number in a GGUF.
    pub fn of(number: i64) -> Option<TokenKind> {
        TokenKind::ALL.into_iter().find(|kind| *kind as i64 == number)
    }

    /// Whether texts are cut where such a token is written out.
    const fn is_special(self) -> bool {
        match self {
            TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => true,
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => false,
        }
    }
}

/// Tokens, their scores and kinds, of which [`Tokenizer::scored`](super::Tokenizer::scored) makes a tokenizer.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// The texts one after the other; one without bytes is no token.
    pub text: String,
    /// By id: the end of its text.
    pub ends: Vec<u32>,
    /// By id: the higher, the sooner it is merged; not NaN.
    pub scores: Vec<f32>,
    /// By id.
    pub kinds: Vec<TokenKind>,
    /// What every text begins with.
    pub bos: u32,
    /// What ends a text.
    pub eos: Option<u32>,
    /// What stands for a character whose bytes are no tokens.
    pub unknown: Option<u32>,
    /// Whether a text gets a space before it.
    pub space_prefix: bool,
}

impl Vocabulary {
    /// The text of a token; nothing beyond the last.
    pub fn token(&self, id: u32) -> Option<&str> {
        ((id as usize) < self.ends.len()).then(|| self.text_of(id as usize))
    }

    fn text_of(&self, id: usize) -> &str {
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.text.get(start as usize..self.ends[id] as usize).unwrap_or_default()
    }

    /// Where each token is found by its text: a seed and slots, or which ids have one text.
    fn slots(&self) -> Result<(u32, Vec<u32>), String> {
        let count = (2 * self.ends.len()).next_power_of_two();
        'seeds: for seed in 0..SEEDS {
            let mut slots = vec![NONE; count];
            for id in (0..self.ends.len()).filter(|&id| !self.text_of(id).is_empty()) {
                let text = self.text_of(id);
                let free = probes(text, seed, count).find(|&slot| {
                    let other = slots[slot];
                    other == NONE || self.text_of(other as usize) == text
                });
                match free {
                    None => continue 'seeds,
                    Some(slot) if slots[slot] == NONE => slots[slot] = id as u32,
                    Some(slot) => return Err(format!("one text for the ids {} and {id}", slots[slot])),
                }
            }
            return Ok((seed, slots));
        }
        Err("texts whose hashes are alike".into())
    }

    /// The tables, without sums; or what is wrong with the vocabulary.
    pub(super) fn tables(&self) -> Result<Vec<u8>, String> {
        let ids = self.ends.len();
        if !self.ends.is_sorted() || self.ends.last().is_some_and(|&end| end as usize > self.text.len()) {
            return Err("ends beyond the text".into());
        }
        if ids as u64 > MAX_ID + 1 || ids == 0 || self.scores.len() != ids || self.kinds.len() != ids {
            return Err(format!("{ids} tokens, {} scores, {} kinds", self.scores.len(), self.kinds.len()));
        }
        let mut special: Vec<usize> = (0..ids).filter(|&id| self.kinds[id].is_special()).collect();
        special.retain(|&id| !self.text_of(id).is_empty());
        special.sort_unstable_by_key(|&id| self.text_of(id));
        let longest =
            |ids: &mut dyn Iterator<Item = usize>| ids.map(|id| self.text_of(id).len()).max().unwrap_or(0);
        let most = longest(&mut (0..ids));
        for (found, most, what) in [
            (most, MAX_TOKEN, "token"),
            (longest(&mut special.iter().copied()), MAX_SPECIAL, "special token"),
        ] {
            if found > most {
                return Err(format!("a {what} of {found} bytes, more than {most}"));
            }
        }
        let (seed, slots) = self.slots()?;
        let flags = if self.space_prefix { SPACE_PREFIX } else { 0 };
        let id = |id: Option<u32>| id.unwrap_or(NONE);
        let header =
            [VERSION, ids as u32, slots.len() as u32, seed, flags, self.bos, id(self.eos), id(self.unknown)];
        let header = header.into_iter().chain([special.len(), most, self.text.len()].map(|n| n as u32));
        let words = header
            .chain(self.ends.iter().copied())
            // Neither zero is the greater.
            .chain(self.scores.iter().map(|score| (score + 0.0).to_bits()))
            .chain(self.kinds.iter().map(|kind| *kind as u32))
            .chain(slots.iter().copied())
            .chain(special.iter().map(|&id| id as u32));
        let count = HEADER + 3 * ids + slots.len() + special.len();
        let mut bytes = Vec::with_capacity(count * WORD + self.text.len());
        words.for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes.extend_from_slice(self.text.as_bytes());
        Ok(bytes)
    }
}

/// The slots that a text may have, in order.
pub(super) fn probes(text: &str, seed: u32, count: usize) -> impl Iterator<Item = usize> {
    let first = xxh3_64_with_seed(text.as_bytes(), seed.into()) as usize;
    (0..MAX_PROBES.min(count)).map(move |i| first.wrapping_add(i) & (count - 1))
}
