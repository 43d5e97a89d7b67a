//! Text: tokens of a text and back, and the chat template.

use std::ffi::c_char;

use lapidary_runtime::text::{Message as Said, prompt};

use crate::boundary::{Failure, Status, call, fill, give, optional_text, reference, slice, text, text_of};
use crate::model::Model;

/// One message of a conversation.
#[repr(C)]
pub struct Message {
    /// `user` or `assistant`; a template may know more.
    role: *const c_char,
    /// What was said.
    content: *const c_char,
}

/// The tokens of `bytes` bytes of text, special tokens in it among them; `begin` other than 0 puts the token before
/// them that texts begin with, once. `count` is how many there are, also where `room` is too small for them
/// (LAPIDARY_STATUS_ROOM): `tokens` may be null, of room 0, to ask for it.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_tokenize(
    model: *const Model,
    text: *const c_char,
    bytes: usize,
    begin: u32,
    tokens: *mut u32,
    room: usize,
    count: *mut usize,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let tokenizer = unsafe { reference(model, "model") }?.0.tokenizer()?;
        // SAFETY: the caller's promise.
        let ids = tokenizer.encode(unsafe { text_of(text, bytes, "text") }?, begin != 0)?;
        // SAFETY: the caller's promise.
        unsafe { fill("tokens", &ids, None, tokens, room, count) }
    })
}

/// The text of tokens, which ends with a null; special tokens give none. `bytes` is its length without the null, also
/// where `room`, which includes it, is too small (LAPIDARY_STATUS_ROOM): `text` may be null, of room 0, to ask for it.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_detokenize(
    model: *const Model,
    tokens: *const u32,
    count: usize,
    text: *mut c_char,
    room: usize,
    bytes: *mut usize,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let tokenizer = unsafe { reference(model, "model") }?.0.tokenizer()?;
        // SAFETY: the caller's promise.
        let found = tokenizer.decode(unsafe { slice(tokens, count, "tokens") }?);
        // SAFETY: the caller's promise.
        unsafe { fill("text", found.as_bytes(), Some(0), text.cast(), room, bytes) }
    })
}

/// The prompt for messages by the model's chat template, up to where the model's turn begins: to be tokenized with
/// `begin`. `system` are instructions, null for none. `text`, `room` and `bytes` as in lapidary_detokenize().
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_chat(
    model: *const Model,
    system: *const c_char,
    messages: *const Message,
    count: usize,
    text: *mut c_char,
    room: usize,
    bytes: *mut usize,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let opened = &unsafe { reference(model, "model") }?.0;
        // SAFETY: the caller's promise.
        let (system, messages) =
            unsafe { (optional_text(system, "system")?, slice(messages, count, "messages")?) };
        // SAFETY: the caller's promise.
        let said =
            |m: &Message| Ok(unsafe { Said::new(words(m.role, "role")?, words(m.content, "content")?) });
        let messages = messages.iter().map(said).collect::<Result<Vec<Said>, Failure>>()?;
        let template = opened.text.chat_template.as_ref();
        let template =
            template.ok_or_else(|| Failure::new(Status::Absent, "the artifact has no chat template"))?;
        let found = prompt::render(template, system, &messages)?;
        // SAFETY: the caller's promise.
        unsafe { fill("text", found.as_bytes(), Some(0), text.cast(), room, bytes) }
    })
}

/// # Safety
/// As [`text`].
unsafe fn words<'a>(first: *const c_char, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    unsafe { text(first, name) }
}

/// Whether a token ends a text of this model.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_ends_text(model: *const Model, token: u32, ends: *mut bool) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let opened = &unsafe { reference(model, "model") }?.0;
        // SAFETY: the caller's promise.
        unsafe { give(ends, opened.text.stop_tokens.contains(&token), "ends") }
    })
}
