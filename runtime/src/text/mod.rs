//! Text: prompts to token ids, ids to text, messages to prompts. Behind the feature `text`.
//!
//! | module | what it knows |
//! |---|---|
//! | [`tokenizer`] | text to ids, by a folder's `tokenizer.json` |
//! | [`detokenizer`] | ids to text, as they come |
//! | [`chat`] | messages to the text of a prompt, by the model's template |

mod bpe;
pub mod chat;
pub mod detokenizer;
pub mod tokenizer;
mod within;

pub use chat::{ChatTemplate, Message};
pub use detokenizer::Detokenizer;
pub use tokenizer::Tokenizer;

use crate::artifact::{
    Artifact, CHAT_TEMPLATE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_TABLES,
};
use crate::file::fields::Fields;
use crate::file::{self, Result};

/// What an artifact holds of text.
pub struct Text {
    /// The tokenizer; without one a model still turns ids into logits.
    pub tokenizer: Option<Tokenizer>,
    /// The chat template.
    pub chat_template: Option<ChatTemplate>,
    /// The tokens that end a text, ascending.
    pub stop_tokens: Vec<u32>,
}

impl Text {
    /// The text sections of an artifact whose vocabulary has `vocab` entries.
    ///
    /// # Errors
    /// [`file::Error`] for a section that is malformed.
    pub fn of(artifact: &Artifact, vocab: usize) -> Result<Text> {
        let path = artifact.path();
        let config = artifact.section(TOKENIZER_CONFIG);
        let tokenizer = match (artifact.shared(TOKENIZER_TABLES), artifact.section(TOKENIZER)) {
            (Some(tables), _) => Some(Tokenizer::from_tables(path, tables, config)?),
            (None, Some(bytes)) => Some(Tokenizer::from_bytes(path, bytes, config)?),
            (None, None) => None,
        };
        let chat_template = match (&tokenizer, artifact.section(CHAT_TEMPLATE)) {
            (Some(t), Some(bytes)) => {
                let refuse = |found: String| {
                    file::Error::file(path.join(CHAT_TEMPLATE), "a chat template in UTF-8", found)
                };
                let source = String::from_utf8(bytes.to_vec()).map_err(|_| refuse("other bytes".into()))?;
                let template = ChatTemplate::new(source, t.bos_token(), t.eos_token());
                Some(template.map_err(|e| refuse(e.to_string()))?)
            }
            _ => None,
        };
        let stop_tokens = match artifact.section(GENERATION_CONFIG) {
            Some(bytes) => Fields::parse(&path.join(GENERATION_CONFIG), bytes)?
                .tokens("eos_token_id", vocab.saturating_sub(1) as u64)?
                .unwrap_or_default(),
            None => Vec::new(),
        };
        if let Some(t) = &tokenizer
            && t.vocab_size() > vocab
        {
            let (expected, found) = (format!("at most {vocab} ids"), format!("{} ids", t.vocab_size()));
            return Err(file::Error::file(path.join(TOKENIZER), expected, found));
        }
        Ok(Text { tokenizer, chat_template, stop_tokens })
    }

    /// Whether the model was tuned to take turns: its stop tokens include `<end_of_turn>`.
    pub fn is_instruction_tuned(&self) -> bool {
        let end = self.tokenizer.as_ref().and_then(Tokenizer::end_of_turn_id);
        end.is_some_and(|id| self.stop_tokens.contains(&id))
    }
}
