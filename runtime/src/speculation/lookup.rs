//! Guesses by the text itself: what followed the latest tokens where they stood before.

use std::collections::HashMap;

use super::Guesses;

/// Tokens that an earlier place must have in common with the text's end, to be looked at.
const SHORTEST: usize = 2;
/// Tokens in common beyond which places are equally good.
const LONGEST: usize = 16;
/// Places that are looked at, latest first: a text may repeat two tokens all the time.
const PLACES: usize = 64;
/// Marks that there is no place.
const NONE: u32 = u32::MAX;

/// The places of all pairs of tokens in a text.
#[derive(Default)]
pub(super) struct Lookup {
    text: Vec<u32>,
    /// Where each pair stood last: the index of its second token.
    latest: HashMap<[u32; SHORTEST], u32>,
    /// For each token, where the pair that it ends stood before.
    earlier: Vec<u32>,
}

impl Lookup {
    /// Appends up to `most` guesses to `ids`, whose one token comes after the text `held`.
    pub(super) fn guess(&mut self, held: &[u32], most: usize, ids: &mut Vec<u32>) -> Guesses {
        self.follow(held, ids);
        let none = Guesses { count: 0, class: 0 };
        let Some(end) = self.text.len().checked_sub(1).filter(|_| most > 0) else { return none };
        let (mut best, mut length) = (None, SHORTEST - 1);
        let mut place = self.earlier[end];
        for _ in 0..PLACES {
            if place == NONE {
                break;
            }
            let at = place as usize;
            let (here, there) = (self.text[..=end].iter().rev(), self.text[..=at].iter().rev());
            let common = here.zip(there).take(LONGEST).take_while(|(a, b)| a == b).count();
            if common > length {
                (best, length) = (Some(at), common);
            }
            if common == LONGEST {
                break;
            }
            place = self.earlier[at];
        }
        let Some(at) = best else { return none };
        // Beyond the end the text goes on as it is guessed to: with what follows the place, again.
        let period = end - at;
        ids.extend((0..most).map(|ahead| self.text[at + 1 + ahead % period]));
        let class = match length {
            0..=2 => 0,
            3 => 1,
            4..=7 => 2,
            _ => 3,
        };
        Guesses { count: most, class }
    }

    /// Takes in what the text has more than before. One that was rolled back is taken in anew.
    fn follow(&mut self, held: &[u32], last: &[u32]) {
        let known = self.text.len();
        let same = known == 0
            || held.get(known - 1) == self.text.last() && {
                let from = known.saturating_sub(LONGEST);
                held[from..known] == self.text[from..]
            };
        if !same {
            *self = Lookup::default();
        }
        for &token in held[self.text.len()..].iter().chain(last) {
            let end = self.text.len() as u32;
            let pair = self.text.last().map(|&before| [before, token]);
            self.text.push(token);
            self.earlier.push(pair.and_then(|pair| self.latest.insert(pair, end)).unwrap_or(NONE));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn guess(lookup: &mut Lookup, text: &[u32], most: usize) -> Vec<u32> {
        let (&last, held) = text.split_last().unwrap();
        let mut ids = vec![last];
        let guesses = lookup.guess(held, most, &mut ids);
        assert_eq!(guesses.count, ids.len() - 1);
        ids.split_off(1)
    }

    #[test]
    fn what_followed_follows() {
        let mut lookup = Lookup::default();
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 5, 6, 9], 3), [0u32; 0]);
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 5, 6, 9, 1], 3), [0u32; 0]);
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 5, 6, 9, 1, 2], 3), [3, 4, 5]);
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 5, 6, 9, 1, 2], 0), [0u32; 0]);
    }

    #[test]
    fn the_longest_place_is_taken_then_the_latest() {
        let text = [7, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2, 5, 8, 1, 2];
        assert_eq!(guess(&mut Lookup::default(), &text, 1), [4]);
        let text = [7, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2, 5, 6, 1, 2];
        assert_eq!(guess(&mut Lookup::default(), &text, 1), [5]);
    }

    #[test]
    fn a_text_that_repeats_is_guessed_to_go_on() {
        assert_eq!(guess(&mut Lookup::default(), &[1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(guess(&mut Lookup::default(), &[4, 4, 4], 3), [4, 4, 4]);
    }

    #[test]
    fn a_text_that_was_rolled_back_is_taken_in_anew() {
        let mut lookup = Lookup::default();
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 1, 2], 1), [3]);
        assert_eq!(guess(&mut lookup, &[1, 2, 4, 1, 2], 1), [4]);
        assert_eq!(guess(&mut lookup, &[1, 2], 1), [0u32; 0]);
        // Longer than before and another: the beginning alone is the same.
        assert_eq!(guess(&mut lookup, &[1, 5, 6, 1, 5], 1), [6]);
    }
}
