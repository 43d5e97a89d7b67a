//! A conversation: what was said, the prompt that it makes, and the answers to it.
//!
//! The history is rendered anew each turn; what of it the session holds already (the longest common prefix) is kept,
//! the rest is appended. When it outgrows the context, its oldest turns are left out *before* the answer, so that the
//! answer has room: as much as it may take, up to half of the context. An answer that fills the context all the same
//! goes on after the next oldest turns are left out; only where there are none left does the context end it. The
//! instructions always stay.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answer::AnswerText;
use super::chat::{ChatTemplate, Content, Message};
use super::prompt;
use super::tokenizer::Tokenizer;
use crate::file;
use crate::generate::{StopReason, generate};
use crate::sampler::{Sampler, SamplerOptions};
use crate::session::Session;
use crate::snapshot::Notes;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    /// The template or the tokenizer refuses the message.
    #[error(transparent)]
    Text(#[from] file::Error),
    /// The model failed.
    #[error(transparent)]
    Run(#[from] crate::Error),
    /// The message alone, with the instructions, is longer than the context.
    #[error("the message is {tokens} tokens, the context is {context} (--context takes more)")]
    TooLong {
        /// Tokens of the prompt that it makes.
        tokens: usize,
        /// The most that the session holds.
        context: usize,
    },
}

/// What a conversation is held with.
pub struct Partner<'a> {
    /// Messages to the text of a prompt.
    pub template: &'a ChatTemplate,
    /// Text to ids and back.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<u32>,
    /// Texts that end an answer.
    pub stop_texts: Vec<String>,
    /// Most tokens of an answer.
    pub max_new: usize,
}

/// The prompt of a turn.
pub struct Prompt {
    /// Its ids, all of them.
    ids: Vec<u32>,
    /// Turns that were left out of it: a message and its answer each.
    pub left_out: usize,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its text, short of a stop text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub end: AnswerEnd,
    /// Turns that were left out while it was made.
    pub left_out: usize,
    /// Tokens of prompt appended: what the session did not hold already.
    pub prompt_tokens: usize,
    /// Time to append them.
    pub prefill: Duration,
    /// Time to choose and append its tokens.
    pub decode: Duration,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerEnd {
    /// The model ended it.
    EndOfText,
    /// A stop text did.
    StopText,
    /// As many tokens as were asked for.
    Length,
    /// The context is full, and there is no older turn to leave out.
    Context,
    /// A callback broke off.
    Interrupted,
}

impl AnswerEnd {
    /// What ended a generation whose text met a stop text or not.
    pub fn of(stop: StopReason, met_stop_text: bool) -> AnswerEnd {
        match stop {
            _ if met_stop_text => AnswerEnd::StopText,
            StopReason::EndOfText(_) => AnswerEnd::EndOfText,
            StopReason::Length => AnswerEnd::Length,
            StopReason::Context => AnswerEnd::Context,
            StopReason::Interrupted => AnswerEnd::Interrupted,
        }
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            AnswerEnd::EndOfText => "end_of_text",
            AnswerEnd::StopText => "stop_text",
            AnswerEnd::Length => "length",
            AnswerEnd::Context => "context",
            AnswerEnd::Interrupted => "interrupted",
        }
    }
}

/// What was said.
#[derive(Default)]
pub struct Conversation {
    /// Instructions, before all that is said.
    pub system: Option<String>,
    /// User and assistant by turns, the oldest first.
    messages: Vec<Message>,
}

impl Conversation {
    /// Nothing said yet.
    pub fn new(system: Option<String>) -> Conversation {
        Conversation { system, ..Conversation::default() }
    }

    /// Forgets everything said, and `session` with it; the instructions stay.
    pub fn reset(&mut self, session: &mut Session) {
        self.messages.clear();
        session.reset();
    }

    /// Writes it to a file, with what `session` holds and the options that answers were chosen by.
    ///
    /// # Errors
    /// As [`Session::save`].
    pub fn save(&self, session: &Session, options: SamplerOptions, path: &Path) -> Result<(), crate::Error> {
        let text = |content: &Content| match content {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => parts.concat(),
        };
        let messages = self.messages.iter().map(|m| (m.role.clone(), text(&m.content)));
        let said = Said { system: self.system.clone(), messages: messages.collect() };
        // Texts alone: it cannot fail.
        let conversation = serde_json::to_string(&said).ok();
        session.save(path, &Notes { sampler: Some(options), conversation, ..Notes::default() })
    }

    /// Goes on with the conversation in a file, in the place of what was said and of what `session` holds.
    ///
    /// # Errors
    /// As [`Session::load`]; a file that holds no conversation. Nothing has changed then.
    pub fn load(&mut self, session: &mut Session, path: &Path) -> Result<Notes, crate::Error> {
        let none = |found: String| file::Error::file(path, "a conversation's state", found);
        let (notes, said) = session.load_with(path, |notes| {
            let text = notes.conversation.as_deref().ok_or_else(|| none("one of `run --save`".into()))?;
            Ok(serde_json::from_str::<Said>(text).map_err(|e| none(file::error::line(e)))?)
        })?;
        self.system = said.system;
        self.messages = said.messages.into_iter().map(|(role, text)| Message::new(role, text)).collect();
        Ok(notes)
    }

    /// What is said next by the user: the prompt to answer by, the oldest turns left out that it has no room for.
    ///
    /// # Errors
    /// If the message cannot be said; the conversation is as before.
    pub fn say(
        &mut self,
        partner: &Partner<'_>,
        context: usize,
        text: &str,
    ) -> Result<Prompt, ConversationError> {
        self.messages.push(Message::new("user", text));
        let prompt = self.prompt(partner, context, partner.max_new.min(context / 2), &[]);
        match prompt {
            Ok(Some(prompt)) => {
                self.messages.drain(..2 * prompt.left_out);
                Ok(prompt)
            }
            Ok(None) => {
                let last = &self.messages[self.messages.len() - 1..];
                let ids = self.encode(partner, last, context);
                self.messages.pop();
                Err(ids.map_or_else(
                    |error| error,
                    |ids| ConversationError::TooLong { tokens: ids.len(), context },
                ))
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    /// Answers what was said: each piece of text is given to `on_text`, `on_chunk` is called after each chunk of the
    /// prompt. Either ends the answer by breaking.
    ///
    /// # Errors
    /// If the model fails: the conversation does not go on from there.
    pub fn answer(
        &mut self,
        partner: &Partner<'_>,
        session: &mut Session,
        sampler: &mut Sampler,
        prompt: Prompt,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
        on_chunk: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Answer, ConversationError> {
        let mut stream = AnswerText::new(partner.tokenizer.detokenizer(), &partner.stop_texts);
        let mut answer = Answer {
            text: String::new(),
            tokens: Vec::new(),
            end: AnswerEnd::Interrupted,
            left_out: 0,
            prompt_tokens: 0,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        let mut ids = prompt.ids;
        loop {
            self.keep_prefix(session, &ids);
            let before = session.position();
            let mut on_token = |id: u32| {
                let piece = stream.push(id);
                let flow = if piece.is_empty() { ControlFlow::Continue(()) } else { on_text(piece) };
                if stream.stopped() { ControlFlow::Break(()) } else { flow }
            };
            let generation = generate(
                session,
                sampler,
                &ids[before..],
                partner.max_new - answer.tokens.len(),
                &partner.stop_tokens,
                &mut on_token,
                &mut |_, _| on_chunk(),
            )?;
            answer.prompt_tokens += generation.prompt_tokens;
            answer.prefill += generation.prefill;
            answer.decode += generation.decode;
            answer.tokens.extend_from_slice(&generation.tokens);
            answer.end = AnswerEnd::of(generation.stop, stream.stopped());
            if answer.end != AnswerEnd::Context || self.messages.len() < 3 {
                break;
            }
            let rest = (partner.max_new - answer.tokens.len()).min(session.context() / 4).max(1);
            let Some(shorter) = self.prompt(partner, session.context(), rest, &answer.tokens)? else { break };
            if shorter.left_out == 0 {
                break;
            }
            self.messages.drain(..2 * shorter.left_out);
            answer.left_out += shorter.left_out;
            ids = shorter.ids;
        }
        // Whether `on_text` breaks no longer matters.
        let rest = stream.finish();
        if !rest.is_empty() {
            let _ = on_text(rest);
        }
        answer.text = stream.text().to_string();
        if answer.tokens.is_empty() && answer.end == AnswerEnd::Interrupted {
            self.messages.pop();
        } else {
            self.messages.push(Message::new("assistant", answer.text.clone()));
        }
        Ok(answer)
    }

    /// The ids of the newest messages and of what was answered to the last so far, such that `room` more fit: as few of
    /// the oldest turns left out as that takes. All of them if even that does not do it, as long as the prompt itself
    /// fits; nothing if it does not.
    fn prompt(
        &self,
        partner: &Partner<'_>,
        context: usize,
        room: usize,
        answered: &[u32],
    ) -> Result<Option<Prompt>, ConversationError> {
        let mut last = None;
        for left_out in 0..self.messages.len().div_ceil(2) {
            let mut ids = match self.encode(partner, &self.messages[2 * left_out..], context) {
                Err(ConversationError::TooLong { .. }) => continue,
                ids => ids?,
            };
            ids.extend_from_slice(answered);
            let tokens = ids.len();
            if tokens <= context {
                last = Some(Prompt { ids, left_out });
            }
            if tokens.saturating_add(room) <= context {
                break;
            }
        }
        Ok(last)
    }

    /// The ids of messages; many too many are refused before all of the text is tokenised.
    fn encode(
        &self,
        partner: &Partner<'_>,
        messages: &[Message],
        context: usize,
    ) -> Result<Vec<u32>, ConversationError> {
        let text = prompt::render(partner.template, self.system.as_deref(), messages)?;
        match partner.tokenizer.encode_within(&text, true, context) {
            Err(file::Error::Long { tokens, .. }) => Err(ConversationError::TooLong { tokens, context }),
            ids => Ok(ids?),
        }
    }

    /// Rolls the session back to what it has in common with `ids`, short of the last, which is to be predicted from.
    fn keep_prefix(&self, session: &mut Session, ids: &[u32]) {
        let most = ids.len().saturating_sub(1);
        let common = session.tokens().iter().zip(&ids[..most]).take_while(|(a, b)| a == b).count();
        if session.rollback(common).is_err() {
            // A sliding-window cache no longer holds the window before that position.
            session.reset();
        }
    }
}

/// A conversation as a file keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    system: Option<String>,
    /// Role and text of each message.
    messages: Vec<(String, String)>,
}
