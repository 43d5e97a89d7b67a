//! Text: prompts to token ids, ids to text, messages to prompts. Behind the feature `text`.
//!
//! | module | what it knows |
//! |---|---|
//! | [`tokenizer`] | text to ids, by a folder's `tokenizer.json` or a GGUF's tokens and scores |
//! | [`detokenizer`] | ids to text, as they come |
//! | [`special`] | the special tokens that a folder names |
//! | [`chat`] | messages to the text of a prompt, by the model's template |
//! | [`prompt`] | plain or by the template; where instructions go |
//! | [`stop`], [`answer`] | the text of an answer as it comes, up to a stop text |
//! | [`conversation`] | what was said, cut to the context, and the answers to it |

pub mod answer;
mod bpe;
pub mod chat;
mod components;
pub mod conversation;
pub mod detokenizer;
mod jinja;
mod json;
pub mod prompt;
mod scores;
mod source;
pub mod special;
mod special_cuts;
pub mod stop;
mod tables;
pub mod tokenizer;
mod vocabulary;
mod within;

pub use answer::AnswerText;
pub use chat::{ChatTemplate, Content, Message};
pub use conversation::{Answer, AnswerEnd, Conversation, ConversationError, Partner};
pub use detokenizer::Detokenizer;
pub use prompt::PromptForm;
pub use special::SpecialTokens;
pub use stop::StopTexts;
pub use tokenizer::Tokenizer;
pub use vocabulary::{TokenKind, Vocabulary};

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
    /// The tokens that end a text, as [`stop_tokens`] has them.
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
                let path = path.join(CHAT_TEMPLATE);
                Some(ChatTemplate::from_bytes(path, bytes.to_vec(), t.special_tokens()))
            }
            _ => None,
        };
        let listed = match artifact.section(GENERATION_CONFIG) {
            Some(bytes) => Fields::parse(&path.join(GENERATION_CONFIG), bytes)?
                .tokens("eos_token_id", vocab.saturating_sub(1) as u64)?
                .unwrap_or_default(),
            None => Vec::new(),
        };
        let stop_tokens = stop_tokens(listed, tokenizer.as_ref());
        if let Some(t) = &tokenizer
            && t.vocab_size() > vocab
        {
            let (expected, found) = (format!("at most {vocab} ids"), format!("{} ids", t.vocab_size()));
            return Err(file::Error::file(path.join(TOKENIZER), expected, found));
        }
        Ok(Text { tokenizer, chat_template, stop_tokens })
    }

    /// Whether the model was tuned to take turns.
    pub fn is_instruction_tuned(&self) -> bool {
        is_instruction_tuned(self.tokenizer.as_ref(), self.chat_template.as_ref())
    }
}

/// Whether a model was tuned to take turns: it has a chat template and `<end_of_turn>` in its vocabulary, and its
/// folder does not say that it is a base model.
pub fn is_instruction_tuned(tokenizer: Option<&Tokenizer>, template: Option<&ChatTemplate>) -> bool {
    let turns = |t: &Tokenizer| t.end_of_turn_id().is_some() && !t.special_tokens().is_base();
    template.is_some() && tokenizer.is_some_and(turns)
}

/// The tokens that end a text, ascending: those that the configurations list, EOS, and `<end_of_turn>`.
pub fn stop_tokens(mut listed: Vec<u32>, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
    listed.extend(tokenizer.and_then(Tokenizer::eos_id));
    listed.extend(tokenizer.and_then(Tokenizer::end_of_turn_id));
    listed.sort_unstable();
    listed.dedup();
    listed
}
