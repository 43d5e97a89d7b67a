//! Tokens found by scores, as SentencePiece and llama.cpp find them, by tables that are read in place.
//!
//! In: a vocabulary ([`Vocabulary`]), of which tables are made, or the tables that an artifact holds. Out:
//! ids. A text is first cut at the special tokens in it (`special_cuts`). What lies between, spaces made `▁`, starts as
//! characters; the adjacent pair whose text together is the token of the highest score is merged, of equal ones the
//! leftmost, until there is none; a character that is no token becomes its bytes, `<0xE2>`. Invariants: every read is
//! checked ([`Tables`]), so tables that were made wrong give wrong tokens or none; a text of n characters takes
//! O(n log n) steps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::detokenizer::{Piece, byte};
use super::special_cuts::{self, Starts};
use super::tables::{MAX_ID, NONE, Tables, WORD, word_at};
use super::vocabulary::{HEADER, MAX_TOKEN, SPACE_PREFIX, TokenKind, VERSION, Vocabulary, probes};
use crate::artifact::Shared;

/// What stands for a space.
const SPACE: char = '▁';

/// A vocabulary with scores, in tables.
#[derive(Clone)]
pub(crate) struct Scores {
    tables: Tables,
    /// Ids: one more than the largest.
    ids: usize,
    seed: u32,
    flags: u32,
    bos: u32,
    eos: Option<u32>,
    unknown: Option<u32>,
    longest: usize,
    ends: Range<usize>,
    scores: Range<usize>,
    kinds: Range<usize>,
    slots: Range<usize>,
    special: Range<usize>,
    text: Range<usize>,
    starts: Starts,
}

impl Scores {
    /// The tables of a vocabulary, or what is wrong with it.
    pub(super) fn made(vocabulary: &Vocabulary) -> Result<Scores, String> {
        let bytes = vocabulary.tables()?;
        let header = bytes[..HEADER * WORD].to_vec();
        Scores::with(&header, |_| Ok(Tables::made(bytes)))
    }

    /// Tables in `bytes`, or what is wrong with them.
    pub(super) fn new(bytes: Shared) -> Result<Scores, String> {
        let header = bytes.get(..HEADER * WORD).ok_or("no header")?.to_vec();
        let made = Scores::with(&header, |length| Tables::new(bytes, length))?;
        // What was believed of it must be what was written.
        made.tables.slice(0..HEADER * WORD).ok_or("damaged ones")?;
        Ok(made)
    }

    fn with(header: &[u8], tables: impl FnOnce(usize) -> Result<Tables, String>) -> Result<Scores, String> {
        let word = |i: usize| word_at(header, i * WORD).ok_or("no header");
        let (version, ids, slots) = (word(0)?, word(1)? as usize, word(2)? as usize);
        let (seed, flags, bos) = (word(3)?, word(4)?, word(5)?);
        let id = |i: usize| word(i).map(|id| Some(id).filter(|&id| id != NONE));
        let (eos, unknown, special) = (id(6)?, id(7)?, word(8)? as usize);
        let (longest, text) = (word(9)? as usize, word(10)? as usize);
        if version != VERSION {
            return Err(format!("version {version}"));
        }
        if ids as u64 > MAX_ID + 1 || !slots.is_power_of_two() || special > ids || longest > MAX_TOKEN {
            return Err(format!("{ids} ids, {slots} slots, {special} special tokens"));
        }
        if [Some(bos), eos, unknown].into_iter().flatten().any(|id| id as usize >= ids) {
            return Err(format!("special tokens beyond {ids} ids"));
        }
        let mut at = HEADER * WORD;
        // No sum overflows: each of a few terms is below 2^36.
        let mut take = |length: usize| {
            at += length;
            at - length..at
        };
        let [ends, scores, kinds] = [(); 3].map(|()| take(ids * WORD));
        let (slots, special, text) = (take(slots * WORD), take(special * WORD), take(text));
        let tables = tables(text.end)?;
        let starts = Starts::default();
        let mut made = Scores {
            tables,
            ids,
            seed,
            flags,
            bos,
            eos,
            unknown,
            longest,
            ends,
            scores,
            kinds,
            slots,
            special,
            text,
            starts,
        };
        made.starts = Starts::of(&made);
        if made.tables.is_damaged() { Err("damaged ones".into()) } else { Ok(made) }
    }

    /// The tables with their sums.
    pub(super) fn to_tables(&self) -> Option<Vec<u8>> {
        self.tables.with_sums()
    }

    /// Whether damage was met.
    pub(crate) fn is_damaged(&self) -> bool {
        self.tables.is_damaged()
    }

    /// Ids: one more than the largest.
    pub(crate) fn ids(&self) -> usize {
        self.ids
    }

    pub(super) fn bos(&self) -> u32 {
        self.bos
    }

    pub(super) fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The ids of special tokens, ascending by text.
    pub(super) fn special(&self, index: usize) -> Option<u32> {
        self.tables.read(self.special.start, index)
    }

    /// How many special tokens there are.
    pub(super) fn specials(&self) -> usize {
        self.special.len() / WORD
    }

    /// The text of a token.
    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        std::str::from_utf8(self.bytes(id)?).ok()
    }

    /// The same as bytes.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = self.tables.read(self.ends.start, id).filter(|_| id < self.ids)? as usize;
        let start = if id == 0 { 0 } else { self.tables.read(self.ends.start, id - 1)? as usize };
        if start >= end || end > self.text.len() {
            return None;
        }
        self.tables.slice(self.text.start + start..self.text.start + end)
    }

    /// The token of a text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        for slot in probes(text, self.seed, self.slots.len() / WORD) {
            let id = self.tables.read(self.slots.start, slot).filter(|&id| id != NONE)?;
            if self.bytes(id)? == text.as_bytes() {
                return Some(id);
            }
        }
        None
    }

    /// What a token stands for.
    pub(super) fn piece(&self, id: u32) -> Option<Piece> {
        let text = self.text(id)?;
        let kind = self.tables.read(self.kinds.start, id as usize)?;
        Some(match TokenKind::of(kind.into())? {
            TokenKind::Normal => Piece::Text(text.replace(SPACE, " ").into()),
            TokenKind::UserDefined => Piece::Text(text.into()),
            TokenKind::Byte => byte(text).map_or_else(|| Piece::Text(text.into()), Piece::Byte),
            TokenKind::Unknown | TokenKind::Control | TokenKind::Unused => Piece::Nothing,
        })
    }

    /// The ids of a text, its special tokens parsed; or why there are none.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        // As after a special token.
        let mut begins = true;
        for (part, special) in special_cuts::cut(self, &self.starts, text) {
            match special {
                Some(id) => ids.push(id),
                None => {
                    let prefix = begins && self.flags & SPACE_PREFIX != 0;
                    let spaced: String =
                        prefix.then_some(' ').into_iter().chain(text[part].chars()).collect();
                    self.merge(&spaced.replace(' ', "▁"), &mut ids)?;
                }
            }
            begins = special.is_some();
        }
        if self.is_damaged() { Err("its tables are damaged".into()) } else { Ok(ids) }
    }

    /// Puts the tokens of a text without spaces and special tokens behind `ids`.
    fn merge(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), String> {
        if u32::try_from(text.len()).is_err() {
            return Err("4 GiB of text without a special token".into());
        }
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (start, character) in text.char_indices() {
            let at = symbols.len() as u32;
            let end = start + character.len_utf8();
            symbols.push(Symbol {
                start: start as u32,
                end: end as u32,
                previous: at.wrapping_sub(1),
                next: at + 1,
            });
        }
        // By score, then from the left: rank, left and right symbol, and where their text ends.
        let mut queue = BinaryHeap::with_capacity(symbols.len());
        for at in 1..symbols.len() as u32 {
            queue.extend(self.pair(text, &symbols, at - 1, at));
        }
        while let Some(Reverse((_, left, right, end))) = queue.pop() {
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            // What was queued may have been merged otherwise since.
            if l.is_gone() || r.is_gone() || l.end != r.start || r.end != end {
                continue;
            }
            symbols[left as usize] = Symbol { end, next: r.next, ..l };
            symbols[right as usize].end = r.start;
            if let Some(next) = symbols.get_mut(r.next as usize) {
                next.previous = left;
                queue.extend(self.pair(text, &symbols, left, r.next));
            }
            queue.extend(self.pair(text, &symbols, l.previous, left));
        }
        for symbol in symbols.iter().filter(|s| !s.is_gone()) {
            let piece = &text[symbol.start as usize..symbol.end as usize];
            match self.id(piece) {
                Some(id) => ids.push(id),
                None => self.bytes_of(piece, ids)?,
            }
        }
        Ok(())
    }

    /// The merge of two symbols, if what they make together is a token.
    fn pair(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: u32,
        right: u32,
    ) -> Option<Reverse<(u32, u32, u32, u32)>> {
        let (l, r) = (symbols.get(left as usize)?, symbols.get(right as usize)?);
        let id = self.id(&text[l.start as usize..r.end as usize])?;
        let score = self.tables.read(self.scores.start, id as usize)?;
        // Ascending as the scores descend: bits of floats compare as their values do, but for the sign.
        let rank = if score >> 31 == 0 { !(score | 1 << 31) } else { score };
        Some(Reverse((rank, left, right, r.end)))
    }

    /// Puts the tokens of a character's bytes behind `ids`.
    fn bytes_of(&self, character: &str, ids: &mut Vec<u32>) -> Result<(), String> {
        for byte in character.bytes() {
            let id = self.id(&format!("<0x{byte:02X}>")).or(self.unknown);
            ids.push(id.ok_or_else(|| format!("no token for the byte 0x{byte:02X}"))?);
        }
        Ok(())
    }
}

/// A part of a text that is being encoded: bytes from `start` to `end`, none once it is part of the one before.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    end: u32,
    /// Index of the symbol before; beyond all for the first.
    previous: u32,
    /// Index of the symbol after; beyond all for the last.
    next: u32,
}

impl Symbol {
    fn is_gone(self) -> bool {
        self.start == self.end
    }
}
