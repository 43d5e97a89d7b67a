//! The model as the server sees it: an engine, and what turns text into tokens and back.

use std::sync::OnceLock;

use lapidary_runtime::text::{ChatTemplate, Tokenizer};
use lapidary_runtime::{Engine, Speculation};

use crate::error::ApiError;
use crate::pieces::Pieces;

/// What a model knows of text.
pub trait Text: Send + Sync {
    /// Text to ids and back.
    fn tokenizer(&self) -> Option<&Tokenizer>;
    /// Messages to the text of a prompt.
    fn chat_template(&self) -> Option<&ChatTemplate>;
    /// The tokens that end a text.
    fn stop_tokens(&self) -> &[u32];
}

impl Text for lapidary_runtime::text::Text {
    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }
}

/// A model, loaded.
pub struct Served {
    /// What `/v1/models` calls it.
    pub name: String,
    /// Steps its sequences.
    pub engine: Engine,
    /// Guesses how answers go on; by a model, only of one that is made alone.
    pub speculation: Option<Speculation>,
    /// Its text.
    pub text: Box<dyn Text>,
}

/// What requests need of a model beside its engine.
pub(crate) struct Vocabulary {
    pub(crate) name: String,
    pub(crate) text: Box<dyn Text>,
    /// Tokens that the engine knows.
    pub(crate) size: usize,
    /// The most tokens of a sequence.
    pub(crate) context: usize,
    /// When it was loaded, in seconds since 1970.
    pub(crate) created: u64,
    /// See [`Vocabulary::specials`].
    specials: OnceLock<Vec<String>>,
    /// Ids of texts that come again.
    pub(crate) pieces: Pieces,
}

impl Vocabulary {
    pub(crate) fn new(
        name: String,
        text: Box<dyn Text>,
        size: usize,
        context: usize,
        created: u64,
    ) -> Vocabulary {
        let pieces = Pieces::of(text.tokenizer(), text.stop_tokens());
        Vocabulary { name, text, size, context, created, specials: OnceLock::new(), pieces }
    }

    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer, ApiError> {
        // The server does not start without one.
        self.text.tokenizer().ok_or_else(|| ApiError::internal("the model has no tokenizer"))
    }

    /// What a token stands for in a text: nothing of a special one.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        let Some(tokenizer) = self.text.tokenizer() else { return vec![] };
        // One of a character's bytes, which alone is no text.
        let piece = tokenizer.piece(id).unwrap_or_default();
        let digits = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        let byte = digits.filter(|d| d.len() == 2).and_then(|d| u8::from_str_radix(d, 16).ok());
        match byte {
            Some(byte) => vec![byte],
            None => tokenizer.detokenizer().push(id).into_bytes(),
        }
    }

    /// How a token is shown: special ones by their own texts.
    pub(crate) fn shown(&self, id: u32) -> Vec<u8> {
        let bytes = self.bytes(id);
        if !bytes.is_empty() {
            return bytes;
        }
        self.text.tokenizer().and_then(|t| t.piece(id)).unwrap_or_default().into_bytes()
    }

    /// The texts of special tokens.
    pub(crate) fn specials(&self) -> &[String] {
        self.specials.get_or_init(|| {
            let Some(tokenizer) = self.text.tokenizer() else { return vec![] };
            let special = |&id: &u32| self.bytes(id).is_empty();
            let ids = (0..tokenizer.vocab_size() as u32).filter(special);
            let mut texts: Vec<String> =
                ids.filter_map(|id| tokenizer.piece(id)).filter(|t| t.len() > 1).collect();
            // Longer ones first: one may begin with another.
            texts.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
            texts
        })
    }
}
