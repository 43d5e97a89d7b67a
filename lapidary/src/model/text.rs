//! A model's text: what turns it into tokens and back, and conversations into text.

use lapidary_runtime::text::{ChatTemplate, Message, Partner, Tokenizer, prompt};

use super::Model;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::generate::Generate;

impl Model {
    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Lacks`]: a model without one turns ids into logits, no more.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let lacks = "no tokenizer.json: a model without a tokenizer serves only `lapidary logits`";
        self.files.tokenizer.as_ref().ok_or_else(|| self.lacks(lacks))
    }

    /// Whether another model has the same tokens, as one that guesses for another must.
    ///
    /// # Errors
    /// [`Error::Lacks`], which names what differs.
    pub fn check_same_tokens(&self, other: &Model) -> Result<()> {
        let (own, others) = (self.config().vocab_size, other.config().vocab_size);
        if own != others {
            return Err(
                self.lacks(&format!("{own} tokens, expected the {others} of the model that it guesses for"))
            );
        }
        let (Some(own), Some(others)) = (&self.files.tokenizer, &other.files.tokenizer) else {
            return Ok(());
        };
        let differs = (0..others.vocab_size() as u32).find(|&id| own.piece(id) != others.piece(id));
        match differs {
            Some(id) => Err(self.lacks(&format!(
                "token {id} is {:?}, expected {:?} as in the model that it guesses for",
                own.piece(id).unwrap_or_default(),
                others.piece(id).unwrap_or_default()
            ))),
            None => Ok(()),
        }
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::Lacks`]: a model without one continues text.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        let lacks = "no chat template: a model without one serves `lapidary run`";
        self.files.chat_template.as_ref().ok_or_else(|| self.lacks(lacks))
    }

    /// The tokens that end a text, ascending.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.files.stop_tokens
    }

    /// Whether it was tuned to take turns.
    pub fn is_instruction_tuned(&self) -> bool {
        self.files.is_instruction_tuned()
    }

    /// The ids of a text, BOS first; one longer than the context is refused before all of it is tokenised.
    ///
    /// # Errors
    /// [`Error::Lacks`] without a tokenizer, [`Error::Text`] for a text that is too long.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer()?.encode_within(text, true, self.context())?)
    }

    /// The ids of a conversation, instructions before it, up to where the model's turn begins: by the chat template.
    ///
    /// # Errors
    /// [`Error::Lacks`] without a tokenizer or a template, [`Error::Text`] for messages that the template refuses or
    /// that are too long.
    pub fn encode_chat(&self, system: Option<&str>, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode(&prompt::render(self.chat_template()?, system, messages)?)
    }

    /// Who answers in a [`Conversation`](crate::Conversation), by how answers are generated.
    ///
    /// # Errors
    /// [`Error::Lacks`] without a tokenizer or a template.
    pub fn partner(&self, how: &Generate) -> Result<Partner<'_>> {
        // A model without a tokenizer has no template that could be read either: that is what it lacks.
        let tokenizer = self.tokenizer()?;
        Ok(Partner {
            template: self.chat_template()?,
            tokenizer,
            stop_tokens: how.stop_tokens(self),
            stop_texts: how.stop.clone(),
            max_new: how.max_tokens,
        })
    }
}
