//! Text from a model, piece by piece.
//!
//! In: a session, a prompt's tokens, [`Generate`]. Out: a [`Generation`], an iterator over the text as it becomes
//! certain. Invariants: the pieces together are [`Generation::text`]; a stop text and what follows it are in none.

use lapidary_runtime::text::{AnswerEnd, AnswerText};
use lapidary_runtime::{Decoding, Sampler, SamplerOptions, Session};

use crate::error::{Error, Result};
use crate::model::Model;

/// How much to generate, how tokens are chosen, what ends the text.
///
/// ```
/// use lapidary::{Generate, SamplerOptions};
///
/// let sampler = SamplerOptions { temperature: 0.8, top_k: 40, seed: 7, ..SamplerOptions::default() };
/// let how = Generate { max_tokens: 40, sampler, stop: vec!["\n".into()], ..Generate::default() };
/// # let _ = how;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// The most tokens.
    pub max_tokens: usize,
    /// How tokens are chosen: by default the most likely one.
    pub sampler: SamplerOptions,
    /// Texts that end it.
    pub stop: Vec<String>,
    /// Tokens that end it: by default the model's own.
    pub stop_tokens: Option<Vec<u32>>,
}

impl Default for Generate {
    fn default() -> Generate {
        Generate { max_tokens: 128, sampler: SamplerOptions::default(), stop: Vec::new(), stop_tokens: None }
    }
}

impl Generate {
    /// The tokens that end a model's text.
    pub(crate) fn stop_tokens(&self, model: &Model) -> Vec<u32> {
        self.stop_tokens.clone().unwrap_or_else(|| model.stop_tokens().to_vec())
    }
}

/// Text under way: pieces, of which one may be empty, for a character may take several tokens, and what may be the
/// beginning of a stop text waits.
///
/// Afterwards the session holds the prompt and the tokens emitted, except possibly the last one.
pub struct Generation<'a> {
    session: Held<'a>,
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    decoding: Decoding,
    answer: AnswerText,
    /// Why it ended, once it did.
    end: Option<AnswerEnd>,
    /// Whether what was held back is given out.
    finished: bool,
}

/// A session that is lent, or that ends with the text.
enum Held<'a> {
    Lent(&'a mut Session),
    Own(Box<Session>),
}

impl Held<'_> {
    fn session(&mut self) -> &mut Session {
        match self {
            Held::Lent(session) => session,
            Held::Own(session) => session,
        }
    }
}

impl Model {
    /// Appends a prompt's tokens to a session of this model, then generates. An empty prompt goes on from the session's
    /// last token.
    ///
    /// ```
    /// use lapidary::{Generate, Model, Options};
    ///
    /// let model = Model::built_in(Options::new())?;
    /// let mut session = model.session()?;
    /// let prompt = model.encode("It is a truth universally acknowledged")?;
    /// let how = Generate { max_tokens: 6, ..Generate::default() };
    /// let mut text = String::new();
    /// for piece in model.generate(&mut session, &prompt, &how)? {
    ///     text.push_str(&piece?);
    /// }
    /// assert_eq!(text, ", and the whole world is");
    /// # Ok::<(), lapidary::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Run`] for a prompt that does not fit, sampler options out of their ranges, or an empty session without
    /// a prompt; [`Error::Lacks`] without a tokenizer.
    pub fn generate<'a>(
        &self,
        session: &'a mut Session,
        prompt: &[u32],
        how: &Generate,
    ) -> Result<Generation<'a>> {
        self.begin(Held::Lent(session), prompt, how)
    }

    /// The same with a session of its own, which lives as long as the text is under way.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn generate_with(
        &self,
        session: Session,
        prompt: &[u32],
        how: &Generate,
    ) -> Result<Generation<'static>> {
        self.begin(Held::Own(Box::new(session)), prompt, how)
    }

    fn begin<'a>(&self, mut session: Held<'a>, prompt: &[u32], how: &Generate) -> Result<Generation<'a>> {
        let sampler = Sampler::new(how.sampler, self.config().vocab_size)?;
        let answer = AnswerText::new(self.tokenizer()?.detokenizer(), &how.stop);
        session.session().prefill(prompt)?;
        let decoding = Decoding::new(session.session(), how.max_tokens)?;
        let stop_tokens = how.stop_tokens(self);
        Ok(Generation { session, sampler, stop_tokens, decoding, answer, end: None, finished: false })
    }
}

impl Generation<'_> {
    /// The text so far.
    pub fn text(&self) -> &str {
        self.answer.text()
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        self.decoding.tokens()
    }

    /// Why it ended; before that, none.
    pub fn end(&self) -> Option<AnswerEnd> {
        self.end
    }

    /// Ends it here; the text that was still held back.
    pub fn finish(&mut self) -> String {
        self.end.get_or_insert(AnswerEnd::Interrupted);
        self.decoding.settle(self.session.session());
        if std::mem::replace(&mut self.finished, true) { String::new() } else { self.answer.finish().into() }
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        self.decoding.settle(self.session.session());
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<String>;

    /// The text that the next token makes certain; at the end what was held back, if anything was. After an error there
    /// is none.
    fn next(&mut self) -> Option<Result<String>> {
        if self.end.is_none() {
            match self.decoding.next(self.session.session(), &mut self.sampler, &self.stop_tokens) {
                Ok(Some(token)) => {
                    let piece = self.answer.push(token).to_string();
                    if self.answer.stopped() {
                        self.end = Some(AnswerEnd::StopText);
                    }
                    return Some(Ok(piece));
                }
                Ok(None) => {
                    let Some(reason) = self.decoding.end() else { unreachable!("it ended for a reason") };
                    self.end = Some(AnswerEnd::of(reason, false));
                }
                Err(error) => {
                    (self.end, self.finished) = (Some(AnswerEnd::Interrupted), true);
                    return Some(Err(Error::Run(error)));
                }
            }
        }
        Some(self.finish()).filter(|rest| !rest.is_empty()).map(Ok)
    }
}
