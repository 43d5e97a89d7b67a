//! Where a text is cut at the special tokens that are written out in it: the longest first over the whole text, of
//! equally long ones the leftmost; what is cut is not looked at again.
//!
//! In: a text and a vocabulary with scores. Out: its parts in order, each a special token or a text between.
//! Invariants: the parts cover the text; a text of n bytes takes O(n) steps for each length of token that occurs in it,
//! of which there are at most [`MAX_SPECIAL`].

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::scores::Scores;
use super::vocabulary::MAX_SPECIAL;

/// Which of the special tokens, ascending by text, begin with each byte: from one word to the next.
#[derive(Clone, Default)]
pub(super) struct Starts(Arc<[u32]>);

impl Starts {
    /// Those of a vocabulary.
    pub(super) fn of(scores: &Scores) -> Starts {
        let mut starts = vec![0u32; 257];
        for index in 0..scores.specials() {
            let first = scores.special(index).and_then(|id| scores.bytes(id)?.first().copied());
            // Tables that were made wrong find fewer.
            starts[usize::from(first.unwrap_or(0)) + 1] = index as u32 + 1;
        }
        for byte in 0..256 {
            starts[byte + 1] = starts[byte + 1].max(starts[byte]);
        }
        Starts(starts.into())
    }

    /// Calls `with` with each special token at the start of a text, the shortest first, and its bytes.
    fn each(&self, scores: &Scores, text: &[u8], with: &mut dyn FnMut(usize, u32)) -> Option<()> {
        let first = usize::from(*text.first()?);
        let (mut low, mut high) = (*self.0.get(first)? as usize, *self.0.get(first + 1)? as usize);
        let mut depth = 1;
        while low < high && depth <= MAX_SPECIAL {
            let id = scores.special(low)?;
            if scores.bytes(id)?.len() == depth {
                with(depth, id);
                low += 1;
            }
            // Those whose next byte is the text's.
            let next = *text.get(depth)?;
            let bound = |low: usize, above: bool| {
                let (mut low, mut end) = (low, high);
                while low < end {
                    let middle = (low + end) / 2;
                    let byte = *scores.bytes(scores.special(middle)?)?.get(depth)?;
                    if byte < next || (above && byte == next) { low = middle + 1 } else { end = middle }
                }
                Some(low)
            };
            low = bound(low, false)?;
            high = bound(low, true)?;
            depth += 1;
        }
        Some(())
    }
}

/// The parts of a text: where each lies, and which special token it is, if it is one.
pub(super) fn cut(scores: &Scores, starts: &Starts, text: &str) -> Vec<(Range<usize>, Option<u32>)> {
    let bytes = text.as_bytes();
    let mut lengths = BTreeSet::new();
    for at in 0..bytes.len() {
        starts.each(scores, &bytes[at..], &mut |length, _| {
            lengths.insert(length);
        });
    }
    let mut parts = Vec::from_iter((!text.is_empty()).then_some((0..text.len(), None)));
    for length in lengths.into_iter().rev() {
        let mut cut = Vec::with_capacity(parts.len());
        for (range, special) in parts {
            if special.is_some() {
                cut.push((range, special));
                continue;
            }
            let (mut from, mut at) = (range.start, range.start);
            while at + length <= range.end {
                let mut found = None;
                starts.each(scores, &bytes[at..at + length], &mut |l, id| {
                    found = Some(id).filter(|_| l == length).or(found);
                });
                // Tables that were made wrong may hold parts of characters.
                match found.filter(|_| text.is_char_boundary(at) && text.is_char_boundary(at + length)) {
                    None => at += 1,
                    Some(id) => {
                        cut.extend((from < at).then_some((from..at, None)));
                        cut.push((at..at + length, Some(id)));
                        at += length;
                        from = at;
                    }
                }
            }
            cut.extend((from < range.end).then_some((from..range.end, None)));
        }
        parts = cut;
    }
    parts
}
