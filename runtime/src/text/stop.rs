//! Texts that end an answer, found as the answer comes.
//!
//! In: pieces of text. Out: the text that is certain not to begin one of the stop texts; the rest is held back until it
//! is decided. Invariants: nothing of a stop text is ever given out, wherever the pieces are cut; of several the one
//! that is complete first counts; no more is held back than the longest stop text, short of one byte.

/// The texts that end an answer, and what is held back for them.
#[derive(Clone, Debug, Default)]
pub struct StopTexts {
    /// None is empty.
    texts: Vec<String>,
    held: String,
    found: bool,
}

impl StopTexts {
    /// Stops at any of `texts`; empty ones stop nothing.
    pub fn new(texts: &[String]) -> StopTexts {
        let texts = texts.iter().filter(|t| !t.is_empty()).cloned().collect();
        StopTexts { texts, held: String::new(), found: false }
    }

    /// Whether a stop text was met: nothing comes out any more.
    pub fn found(&self) -> bool {
        self.found
    }

    /// Takes the next piece, and appends to `out` what is decided.
    pub fn push_to(&mut self, piece: &str, out: &mut String) {
        if self.texts.is_empty() {
            out.push_str(piece);
            return;
        }
        // Character by character, so that the stop text that is complete first is the one that is found.
        for c in piece.chars() {
            if self.found {
                return;
            }
            self.held.push(c);
            let complete = self.texts.iter().filter(|t| self.held.ends_with(t.as_str()));
            if let Some(longest) = complete.map(String::len).max() {
                out.push_str(&self.held[..self.held.len() - longest]);
                self.held.clear();
                self.found = true;
                return;
            }
            let kept = self.texts.iter().map(|t| overlap(&self.held, t)).max().unwrap_or(0);
            out.extend(self.held.drain(..self.held.len() - kept));
        }
    }

    /// Appends what was held back, at the end of the answer.
    pub fn finish_to(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`, short of all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = text.char_indices().map(|(at, _)| &text[at..]);
    ends.filter(|end| end.len() < stop.len()).find(|end| stop.starts_with(end)).map_or(0, str::len)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Rng;

    /// What comes out of pieces, and whether a stop text was met.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stop = StopTexts::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut out = String::new();
        for piece in pieces {
            stop.push_to(piece, &mut out);
        }
        stop.finish_to(&mut out);
        (out, stop.found())
    }

    #[test]
    fn stop_texts_are_found_across_pieces() {
        assert_eq!(run(&["END"], &["a E", "N", "D b", "c"]), ("a ".into(), true));
        assert_eq!(run(&["END"], &["a E", "N", "d b"]), ("a ENd b".into(), false));
        assert_eq!(run(&["END"], &["EEN", "ENDx"]), ("EEN".into(), true));
        assert_eq!(run(&["END"], &["a EN"]), ("a EN".into(), false), "what is held back comes at the end");
        // Complete first, not begun first.
        assert_eq!(run(&["abcd", "bc"], &["xabc", "d"]), ("xa".into(), true));
        assert_eq!(run(&["bc", "abc"], &["xabcd"]), ("x".into(), true));
        assert_eq!(run(&["é\n"], &["caf", "é", "\n", "x"]), ("caf".into(), true));
        assert_eq!(run(&["aab"], &["aaaa", "b"]), ("aa".into(), true));
        assert_eq!(run(&[""], &["any", "thing"]), ("anything".into(), false));
        assert_eq!(run(&[], &["any", "thing"]), ("anything".into(), false));
    }

    #[test]
    fn nothing_is_held_back_that_cannot_begin_a_stop_text() {
        let mut stop = StopTexts::new(&["\n\nUser:".into()]);
        let mut out = String::new();
        stop.push_to("hello\n", &mut out);
        assert_eq!(out, "hello");
        stop.push_to("you", &mut out);
        assert_eq!(out, "hello\nyou");
    }

    /// However a text is cut, what comes out is what comes before the stop text that ends first.
    #[test]
    fn cuts_do_not_matter() {
        let mut rng = Rng::new(11);
        let mut random = |below: usize| (rng.unit() * below as f64) as usize;
        let letters = ['a', 'b', 'é'];
        for _ in 0..2000 {
            let mut word =
                |most: usize| -> String { (0..1 + random(most)).map(|_| letters[random(3)]).collect() };
            let (text, stops) = (word(30), [word(3), word(4)]);
            let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
            let met = ends.filter_map(|end| {
                let starts =
                    stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(|s| end - s.len());
                starts.min()
            });
            let expected = met.into_iter().next().map_or(text.as_str(), |start| &text[..start]);
            let mut pieces: Vec<String> = vec![String::new()];
            for c in text.chars() {
                if random(3) == 0 {
                    pieces.push(String::new());
                }
                pieces.last_mut().unwrap().push(c);
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            assert_eq!(run(&stops, &pieces).0, expected, "{text} {stops:?}");
        }
    }
}
