//! Text: prompts to token ids, ids to text, messages to prompts. Behind the feature `text`.
//!
//! | module | what it knows |
//! |---|---|
//! | [`tokenizer`] | text to ids, by a folder's `tokenizer.json` |
//! | [`detokenizer`] | ids to text, as they come |
//! | [`chat`] | messages to the text of a prompt, by the model's template |

pub mod chat;
pub mod detokenizer;
pub mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use detokenizer::Detokenizer;
pub use tokenizer::Tokenizer;
