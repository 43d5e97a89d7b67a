//! A tokenizer's vocabulary and merges as tables that are read in place: nothing is parsed before the first text.
//!
//! In: the JSON of a byte-pair tokenizer, once, when an artifact is written; then the tables' bytes, mapped. Out:
//! tokens, the same as the crate `tokenizers` finds. Invariants: every read is checked ([`Tables`]), so tables that
//! were made wrong, with right sums, give wrong tokens or none, never more; a text of n characters takes O(n log n).
//!
//! Layout, in words of 32 bits, little-endian: the header ([`HEADER`] words: version, ids, tokens, merges, flags, id of
//! the unknown token or [`NONE`], bytes of JSON, bytes of text); for each id the end of its text; the ids of tokens,
//! ascending by text; for each id, and one more, the first of its merges as the left part; merges of three words (right
//! part, rank, result), ascending by left and right part. Then the rest of the tokenizer as JSON, and the tokens' texts
//! by id.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Token};

use super::tables::{MAX_ID, NONE, Tables, WORD, append_sums, word_at};
use crate::artifact::{MAX_TEXT, Shared};

/// The version of the layout.
const VERSION: u32 = 2;
/// Words of the header.
const HEADER: usize = 8;
/// Flag: characters that are no token become tokens of their bytes.
const BYTE_FALLBACK: u32 = 1;
/// Flag: unknown characters in a row become one token.
const FUSE_UNKNOWN: u32 = 2;
/// Flag: a text that is a token is that token.
const IGNORE_MERGES: u32 = 4;
/// Byte-pair encoding by mapped tables.
#[derive(Clone)]
pub(crate) struct Bpe {
    tables: Tables,
    /// Ids: one more than the largest.
    ids: usize,
    flags: u32,
    unknown: Option<u32>,
    ends: Range<usize>,
    by_text: Range<usize>,
    first: Range<usize>,
    merges: Range<usize>,
    json: Range<usize>,
    text: Range<usize>,
}

impl Bpe {
    /// Tables in `bytes`, or what is wrong with them.
    pub(crate) fn new(bytes: Shared) -> Result<Bpe, String> {
        let word = |i: usize| word_at(&bytes, i * WORD).ok_or("no header");
        let version = word(0)?;
        if version != VERSION {
            return Err(format!("version {version}"));
        }
        let (ids, tokens, merges) = (word(1)? as usize, word(2)? as usize, word(3)? as usize);
        let (flags, unknown) = (word(4)?, word(5)?);
        let (json, text) = (word(6)? as usize, word(7)? as usize);
        if ids as u64 > MAX_ID + 1 {
            return Err(format!("{ids} ids"));
        }
        if json > MAX_TEXT {
            return Err(format!("{json} bytes of JSON, more than {MAX_TEXT}"));
        }
        let mut at = HEADER * WORD;
        // No sum overflows: each of a few terms is below 2^36.
        let mut take = |length: usize| {
            at += length;
            at - length..at
        };
        let (ends, by_text) = (take(ids * WORD), take(tokens * WORD));
        let (first, merges) = (take((ids + 1) * WORD), take(merges * 3 * WORD));
        let (json, text) = (take(json), take(text));
        let tables = Tables::new(bytes, text.end)?;
        let unknown = Some(unknown).filter(|&id| id != NONE);
        let bpe = Bpe { tables, ids, flags, unknown, ends, by_text, first, merges, json, text };
        match bpe.slice(0..HEADER * WORD).and(bpe.slice(bpe.json.clone())) {
            Some(_) => Ok(bpe),
            None => Err("damaged ones".into()),
        }
    }

    /// Bytes, if they are undamaged.
    fn slice(&self, range: Range<usize>) -> Option<&[u8]> {
        self.tables.slice(range)
    }

    /// Whether damage was met.
    pub(crate) fn is_damaged(&self) -> bool {
        self.tables.is_damaged()
    }

    /// Word `index` of those from byte `start` on.
    fn read(&self, start: usize, index: usize) -> Option<u32> {
        self.tables.read(start, index)
    }

    /// The tables of a tokenizer's JSON, or nothing for one that they cannot hold.
    pub(crate) fn tables(json: &[u8]) -> Option<Vec<u8>> {
        let mut rest: Value = serde_json::from_slice(json).ok()?;
        let model = rest.as_object_mut()?.shift_remove("model")?;
        let absent = |name: &str| model[name].is_null() || model[name] == "";
        let plain = model["type"] == "BPE"
            && (model["dropout"].is_null() || model["dropout"] == json!(0.0))
            && absent("continuing_subword_prefix")
            && absent("end_of_word_suffix");
        let vocab = model["vocab"].as_object().filter(|_| plain)?;
        let mut texts: Vec<Option<&str>> = Vec::new();
        for (text, id) in vocab {
            let id = id.as_u64().filter(|&id| id <= MAX_ID)? as usize;
            texts.resize(texts.len().max(id + 1), None);
            if text.is_empty() || texts[id].replace(text).is_some() {
                return None;
            }
        }
        let id = |text: &str| Some(vocab.get(text)?.as_u64()? as u32);
        let unknown = match model["unk_token"].as_str() {
            Some(text) => id(text)?,
            None => NONE,
        };
        let mut ranks: HashMap<(u32, u32), (u32, u32)> = HashMap::new();
        for (rank, merge) in (0..).zip(model["merges"].as_array()?) {
            let (left, right) = match merge {
                Value::String(pair) => pair.split_once(' ').filter(|(_, right)| !right.contains(' '))?,
                pair => (pair[0].as_str()?, pair[1].as_str()?),
            };
            ranks.insert((id(left)?, id(right)?), (rank, id(&format!("{left}{right}"))?));
        }
        let mut merges: Vec<_> = ranks.into_iter().collect();
        merges.sort_unstable();
        let mut by_text: Vec<u32> = (0..).zip(&texts).filter_map(|(i, t)| t.map(|_| i)).collect();
        by_text.sort_unstable_by_key(|&id| texts[id as usize]);
        let flag = |name: &str, bit: u32| if model[name] == true { bit } else { 0 };
        let flags = flag("byte_fallback", BYTE_FALLBACK)
            | flag("fuse_unk", FUSE_UNKNOWN)
            | flag("ignore_merges", IGNORE_MERGES);
        let rest = rest.to_string();
        let text: String = texts.iter().copied().flatten().collect();

        let mut words = vec![VERSION, texts.len() as u32, by_text.len() as u32, merges.len() as u32];
        words.extend([flags, unknown, u32::try_from(rest.len()).ok()?, u32::try_from(text.len()).ok()?]);
        let mut end = 0;
        words.extend(texts.iter().map(|t| {
            end += t.map_or(0, str::len) as u32;
            end
        }));
        words.extend(by_text);
        let before = |left: usize| merges.partition_point(|((l, _), _)| (*l as usize) < left) as u32;
        words.extend((0..=texts.len()).map(before));
        words.extend(merges.iter().flat_map(|((_, right), (rank, result))| [*right, *rank, *result]));
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.extend(rest.bytes());
        bytes.extend(text.bytes());
        append_sums(&mut bytes);
        Some(bytes)
    }

    /// The tokenizer's JSON but for vocabulary and merges.
    pub(crate) fn json(&self) -> &[u8] {
        self.slice(self.json.clone()).unwrap_or_default()
    }

    /// Ids: one more than the largest.
    pub(crate) fn ids(&self) -> usize {
        self.ids
    }

    /// The text of a token.
    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let end = self.read(self.ends.start, id).filter(|_| id < self.ids)? as usize;
        let start = if id == 0 { 0 } else { self.read(self.ends.start, id - 1)? as usize };
        if start >= end || end > self.text.len() {
            return None;
        }
        std::str::from_utf8(self.slice(self.text.start + start..self.text.start + end)?).ok()
    }

    /// The token of a text.
    fn id(&self, text: &str) -> Option<u32> {
        let (mut low, mut high) = (0, self.by_text.len() / WORD);
        while low < high {
            let middle = (low + high) / 2;
            let id = self.read(self.by_text.start, middle)?;
            match self.text(id)?.cmp(text) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(id),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Rank and result of a merge.
    fn merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let left = Some(left as usize).filter(|&id| id < self.ids)?;
        let first = |i: usize| self.read(self.first.start, i);
        let count = self.merges.len() / (3 * WORD);
        let (mut low, mut high) = (first(left)? as usize, (first(left + 1)? as usize).min(count));
        let field = |merge: usize, i: usize| self.read(self.merges.start, 3 * merge + i);
        while low < high {
            let middle = (low + high) / 2;
            match field(middle, 0)?.cmp(&right) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some((field(middle, 1)?, field(middle, 2)?)),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The characters of a text as tokens, or their bytes.
    fn characters(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = Vec::with_capacity(text.len());
        let mut unknown: Option<Symbol> = None;
        let flag = |bit: u32| self.flags & bit != 0;
        let mut buffer = [0; 4];
        for character in text.chars() {
            let character = &*character.encode_utf8(&mut buffer);
            if let Some(id) = self.id(character) {
                symbols.extend(unknown.take());
                symbols.push(Symbol::new(id, character.len()));
                continue;
            }
            if flag(BYTE_FALLBACK) {
                let byte = |b: u8| Some(Symbol::new(self.id(&format!("<0x{b:02X}>"))?, 1));
                if let Some(bytes) = character.bytes().map(byte).collect::<Option<Vec<_>>>() {
                    // An unknown token that is held back comes after them, as in the crate `tokenizers`.
                    symbols.extend(bytes);
                    continue;
                }
            }
            let Some(id) = self.unknown else { continue };
            let mut bytes = character.len();
            match unknown.take() {
                Some(Symbol { bytes: before, .. }) if flag(FUSE_UNKNOWN) => bytes += before,
                before => symbols.extend(before),
            }
            unknown = Some(Symbol::new(id, bytes));
        }
        symbols.extend(unknown);
        symbols
    }

    /// A text's tokens: their ids and how many bytes of text each stands for.
    fn encode(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = self.characters(text);
        let count = symbols.len();
        for (i, symbol) in symbols.iter_mut().enumerate() {
            (symbol.previous, symbol.next) = (i.wrapping_sub(1), i + 1);
        }
        // By rank, then from the left.
        let mut queue = BinaryHeap::with_capacity(count);
        for (i, pair) in symbols.windows(2).enumerate() {
            queue.extend(self.merge(pair[0].id, pair[1].id).map(|(rank, result)| Reverse((rank, i, result))));
        }
        while let Some(Reverse((_, at, result))) = queue.pop() {
            let left = symbols[at];
            if left.bytes == 0 || left.next >= count {
                continue;
            }
            let right = symbols[left.next];
            // What was queued may have been merged otherwise since.
            if self.merge(left.id, right.id).is_none_or(|(_, now)| now != result) {
                continue;
            }
            symbols[left.next].bytes = 0;
            symbols[at] = Symbol { id: result, bytes: left.bytes + right.bytes, next: right.next, ..left };
            if let Some(next) = symbols.get_mut(right.next) {
                next.previous = at;
                let merge = self.merge(result, next.id);
                queue.extend(merge.map(|(rank, result)| Reverse((rank, at, result))));
            }
            if let Some(previous) = symbols.get(left.previous) {
                let merge = self.merge(previous.id, result);
                queue.extend(merge.map(|(rank, result)| Reverse((rank, left.previous, result))));
            }
        }
        symbols.retain(|s| s.bytes != 0);
        symbols
    }
}

/// A token of a text that is being encoded.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Bytes of text; 0 once it is part of the one before.
    bytes: usize,
    /// Index of the symbol before; beyond all for the first.
    previous: usize,
    /// Index of the symbol after; beyond all for the last.
    next: usize,
}

impl Symbol {
    fn new(id: u32, bytes: usize) -> Symbol {
        Symbol { id, bytes, previous: 0, next: 0 }
    }
}

impl Model for Bpe {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        let whole = (self.flags & IGNORE_MERGES != 0).then(|| self.id(sequence)).flatten();
        let symbols = match whole {
            Some(id) => vec![Symbol::new(id, sequence.len())],
            None => self.encode(sequence),
        };
        if self.is_damaged() {
            return Err("its tables are damaged".into());
        }
        let mut at = 0;
        let token = |s: Symbol| {
            at += s.bytes;
            Token::new(s.id, self.text(s.id).unwrap_or_default().into(), (at - s.bytes, at))
        };
        Ok(symbols.into_iter().map(token).collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.text(id).map(str::to_string)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        (0..self.ids as u32).filter_map(|id| Some((self.text(id)?.to_string(), id))).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.by_text.len() / WORD
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("tables are not saved".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
