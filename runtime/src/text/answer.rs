//! The text of an answer as its tokens come: detokenized, and cut where a stop text begins.

use super::detokenizer::Detokenizer;
use super::stop::StopTexts;

/// An answer under way.
#[derive(Clone)]
pub struct AnswerText {
    detokenizer: Detokenizer,
    stops: StopTexts,
    /// What is certain.
    text: String,
    /// The text of the token at hand.
    piece: String,
}

impl AnswerText {
    /// An answer that any of `stops` ends.
    pub fn new(detokenizer: Detokenizer, stops: &[String]) -> AnswerText {
        AnswerText { detokenizer, stops: StopTexts::new(stops), text: String::new(), piece: String::new() }
    }

    /// Takes the next token; the text that became certain by it. Once a stop text is met ([`stopped`](Self::stopped))
    /// there is none.
    pub fn push(&mut self, id: u32) -> &str {
        let from = self.text.len();
        self.piece.clear();
        self.detokenizer.push_to(id, &mut self.piece);
        self.stops.push_to(&self.piece, &mut self.text);
        &self.text[from..]
    }

    /// Whether a stop text was met.
    pub fn stopped(&self) -> bool {
        self.stops.found()
    }

    /// The text that was still held back; call it after the last token.
    pub fn finish(&mut self) -> &str {
        let from = self.text.len();
        let rest = self.detokenizer.finish();
        self.stops.push_to(&rest, &mut self.text);
        self.stops.finish_to(&mut self.text);
        &self.text[from..]
    }

    /// All of it so far.
    pub fn text(&self) -> &str {
        &self.text
    }
}
