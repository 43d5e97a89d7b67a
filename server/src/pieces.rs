//! Tokens of texts that come again: a chat's turns, which each of its prompts holds once more.
//!
//! A text is cut behind the tokens that end a turn, where tokenisers cut it too, so that its parts have the ids that
//! they have within it ([`Pieces::of`] tries whether they do). Parts of some length are kept with their ids, those used
//! last, up to a bound. Nothing here changes which ids come out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapidary_runtime::file::Error;
use lapidary_runtime::text::Tokenizer;

/// Bytes of a part that is worth keeping.
const LEAST: usize = 64;
/// Bytes that all parts take at most, with their ids.
const MOST: usize = 1 << 20;

/// Ids by their texts.
type Ids = HashMap<String, Arc<[u32]>>;

/// Parts of texts.
pub(crate) struct Pieces {
    /// What texts are cut behind.
    ends: Vec<String>,
    kept: Mutex<Kept>,
}

/// What was used since the last change, and before it.
#[derive(Default)]
struct Kept {
    new: Ids,
    old: Ids,
    /// Bytes of the new ones.
    bytes: usize,
}

impl Pieces {
    /// For texts that are cut behind those of these tokens whose parts have the ids that they have together.
    pub(crate) fn of(tokenizer: Option<&Tokenizer>, ends: &[u32]) -> Pieces {
        let text = |id: &u32| {
            let tokenizer = tokenizer?;
            let text = tokenizer.piece(*id)?;
            let ids = |text: &str, add_bos| tokenizer.encode(text, add_bos).ok();
            let cuts = ["\n<x y", " x", "x\n", "\u{2581}x", "\t\t", ">", ""].iter().all(|after| {
                ["x", "x ", "\n"].iter().all(|before| {
                    let (whole, first) = (format!("{before}{text}{after}"), format!("{before}{text}"));
                    let parts = ids(&first, true).zip(ids(after, false)).map(|(a, b)| [a, b].concat());
                    parts.is_some() && parts == ids(&whole, true)
                })
            });
            (cuts && ids(&text, false)? == [*id]).then_some(text)
        };
        Pieces { ends: ends.iter().filter_map(text).collect(), kept: Mutex::default() }
    }

    /// The ids of a text, by those of its parts: `encode` makes these, told whether BOS comes first.
    ///
    /// # Errors
    /// As `encode`; [`Error::Long`] once there are more than `most`: the rest is left as it is.
    pub(crate) fn encode(
        &self,
        text: &str,
        add_bos: bool,
        most: usize,
        encode: impl Fn(&str, bool) -> Result<Vec<u32>, Error>,
    ) -> Result<Vec<u32>, Error> {
        let mut ids = vec![];
        for (index, part) in self.parts(text).into_iter().enumerate() {
            let bos = add_bos && index == 0;
            if (LEAST..MOST / 8).contains(&part.len()) {
                // One with BOS is another than the same text later.
                let key = format!("{}{part}", if bos { '^' } else { ' ' });
                let known = self.kept().find(&key);
                match known {
                    Some(known) => ids.extend_from_slice(&known),
                    None => {
                        let made = encode(part, bos)?;
                        ids.extend_from_slice(&made);
                        self.kept().add(key, made.into());
                    }
                }
            } else {
                ids.extend(encode(part, bos)?);
            }
            if ids.len() > most {
                return Err(Error::Long { tokens: ids.len(), most });
            }
        }
        Ok(ids)
    }

    /// A text in parts, each up to an end; an empty one is a part too.
    fn parts<'t>(&self, text: &'t str) -> Vec<&'t str> {
        if text.is_empty() {
            return vec![text];
        }
        self.ends.iter().fold(vec![text], |parts, end| {
            parts.into_iter().flat_map(|part| part.split_inclusive(end.as_str())).collect()
        })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, key: &str) -> Option<Arc<[u32]>> {
        if let Some(ids) = self.new.get(key) {
            return Some(ids.clone());
        }
        let (key, ids) = self.old.remove_entry(key)?;
        self.add(key, ids.clone());
        Some(ids)
    }

    /// Those of before go when the new ones are half of what may be.
    fn add(&mut self, key: String, ids: Arc<[u32]>) {
        let bytes = key.len() + size_of_val(&*ids);
        if self.bytes + bytes > MOST / 2 {
            self.old = std::mem::take(&mut self.new);
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.new.insert(key, ids);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A byte an id, BOS as 1.
    fn bytes(text: &str, add_bos: bool) -> Result<Vec<u32>, Error> {
        Ok(add_bos.then_some(1).into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    #[test]
    fn ids_are_those_of_the_whole() {
        let pieces = Pieces { ends: vec!["<end>".into(), "<eos>".into()], kept: Mutex::default() };
        let long = "a long turn ".repeat(40);
        for text in ["", "x", "<end>", "x<end>", "x<eos><end>y", &format!("{long}<end>\n{long}<end>{long}")] {
            for _ in 0..3 {
                for bos in [true, false] {
                    assert_eq!(
                        pieces.encode(text, bos, usize::MAX, bytes).unwrap(),
                        bytes(text, bos).unwrap(),
                        "{text:?}"
                    );
                }
            }
        }
        // What comes again is not made again.
        let text = format!("{long}<end>\n{long}<end>");
        let never = |_: &str, _| Ok(vec![]);
        assert_eq!(pieces.encode(&text, true, usize::MAX, never).unwrap(), bytes(&text, true).unwrap());
    }

    #[test]
    fn texts_that_are_too_long_are_left_early() {
        let pieces = Pieces { ends: vec!["<end>".into(), "<eos>".into()], kept: Mutex::default() };
        let made = std::cell::Cell::new(0);
        let count = |text: &str, bos: bool| {
            made.set(made.get() + 1);
            bytes(text, bos)
        };
        // Of a million parts, which take as long to find as one does.
        let found = pieces.encode(&"<end>".repeat(1 << 20), true, 500, count);
        assert!(matches!(found, Err(Error::Long { most: 500, tokens: 501..520 })), "{found:?}");
        assert!(made.get() <= 101, "{}", made.get());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let pieces = Pieces { ends: vec!["<end>".into()], kept: Mutex::default() };
        for i in 0..2000 {
            pieces.encode(&format!("{i}{}<end>", "x".repeat(LEAST + i)), true, usize::MAX, bytes).unwrap();
        }
        let kept = pieces.kept();
        let all = [&kept.new, &kept.old].into_iter().flatten();
        let bytes: usize = all.map(|(key, ids)| key.len() + size_of_val(&**ids)).sum();
        assert!((MOST / 4..=MOST).contains(&bytes), "{bytes}");
    }
}
