//! Bytes that are read in place and held against their sums when they are first read: damage is an error and costs no
//! reading ahead.
//!
//! In: bytes, mapped, of which the last are the sum of each block of [`BLOCK`] bytes before them, the first word of its
//! SHA-256; or bytes that were just made, without sums. Out: slices and words (32 bits, little-endian). Invariants:
//! every read is bounds-checked; no byte is handed out that differs from what was written.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use sha2::{Digest, Sha256};

use crate::artifact::Shared;

/// Bytes that share a sum.
const BLOCK: usize = 4096;
/// Bytes of a word.
pub(super) const WORD: usize = size_of::<u32>();
/// No id.
pub(super) const NONE: u32 = u32::MAX;
/// The largest id that is believed: as the largest vocabulary of a configuration.
pub(super) const MAX_ID: u64 = 1 << 24;

/// What is known of a block, or of all.
const UNREAD: u8 = 0;
const GOOD: u8 = 1;
const DAMAGED: u8 = 2;

/// Tables in place.
#[derive(Clone)]
pub(super) struct Tables {
    bytes: Shared,
    /// Bytes before the sums.
    length: usize,
    /// What is known of each block; the last is of all of them. Shared by all copies.
    seen: Arc<[AtomicU8]>,
}

impl Tables {
    /// Tables of which `length` bytes come before the sums, or what is wrong with them.
    pub(super) fn new(bytes: Shared, length: usize) -> Result<Tables, String> {
        let blocks = length.div_ceil(BLOCK);
        let end = length + blocks * WORD;
        if end != bytes.len() {
            return Err(format!("{} bytes, of which the header counts {end}", bytes.len()));
        }
        let seen = (0..=blocks).map(|_| AtomicU8::new(UNREAD)).collect();
        Ok(Tables { bytes, length, seen })
    }

    /// Tables that were just made: they have no sums and need none.
    pub(super) fn made(bytes: Vec<u8>) -> Tables {
        let (length, blocks) = (bytes.len(), bytes.len().div_ceil(BLOCK));
        let seen = (0..=blocks).map(|_| AtomicU8::new(GOOD)).collect();
        Tables { bytes: Shared::from_vec(bytes), length, seen }
    }

    /// All bytes and their sums, as a file holds them.
    pub(super) fn with_sums(&self) -> Option<Vec<u8>> {
        let mut bytes = self.slice(0..self.length)?.to_vec();
        append_sums(&mut bytes);
        Some(bytes)
    }

    /// Bytes, if their blocks are what they were when they were written.
    pub(super) fn slice(&self, range: Range<usize>) -> Option<&[u8]> {
        let slice = self.bytes.get(range.clone()).filter(|_| range.end <= self.length)?;
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            match self.seen.get(block)?.load(Ordering::Relaxed) {
                GOOD => {}
                DAMAGED => return None,
                _ => self.check(block)?,
            }
        }
        Some(slice)
    }

    /// Holds a block against its sum.
    fn check(&self, block: usize) -> Option<()> {
        let end = self.length.min((block + 1) * BLOCK);
        let sum = word_at(&self.bytes, self.length + block * WORD)?;
        let good = sum_of(self.bytes.get(block * BLOCK..end)?) == sum;
        self.seen.get(block)?.store(if good { GOOD } else { DAMAGED }, Ordering::Relaxed);
        if !good {
            self.seen.last()?.store(DAMAGED, Ordering::Relaxed);
        }
        good.then_some(())
    }

    /// Whether damage was met.
    pub(super) fn is_damaged(&self) -> bool {
        self.seen.last().is_some_and(|all| all.load(Ordering::Relaxed) == DAMAGED)
    }

    /// Word `index` of those from byte `start` on.
    pub(super) fn read(&self, start: usize, index: usize) -> Option<u32> {
        let at = start + index * WORD;
        self.slice(at..at + WORD)?.first_chunk().map(|word| u32::from_le_bytes(*word))
    }

    /// Makes the sums of tables right, whatever else is wrong with them.
    pub(super) fn seal(bytes: &mut Vec<u8>) {
        // The sums are a word for each block before them.
        let blocks = bytes.len().div_ceil(BLOCK + WORD);
        let end = bytes.len().saturating_sub(blocks * WORD);
        bytes.truncate(end);
        append_sums(bytes);
    }
}

/// The word at a byte.
pub(super) fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// A block's sum.
fn sum_of(block: &[u8]) -> u32 {
    word_at(&Sha256::digest(block), 0).unwrap_or(0)
}

/// Puts the sums behind what they are of.
pub(super) fn append_sums(bytes: &mut Vec<u8>) {
    let sums: Vec<u8> = bytes.chunks(BLOCK).flat_map(|block| sum_of(block).to_le_bytes()).collect();
    bytes.extend(sums);
}
