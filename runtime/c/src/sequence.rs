//! Sequences: texts at some position, with the caches of their tokens.

use std::ffi::c_char;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use lapidary_runtime::snapshot::Notes;
use lapidary_runtime::{Phase, Sampler, Sequence as Tokens, Want, Work};

use crate::boundary::{Failure, Status, call, fill, give, path, reference};
use crate::model::{Model, Opened};

/// A text under way.
pub struct Sequence {
    state: Mutex<State>,
    pub(crate) model: Arc<Opened>,
}

/// What a call has for itself.
pub(crate) struct State {
    pub(crate) tokens: Tokens,
    /// What chose last, kept for its memory.
    pub(crate) sampler: Option<Sampler>,
}

impl Sequence {
    /// What it holds, if no other call has it.
    pub(crate) fn state(&self) -> Result<MutexGuard<'_, State>, Failure> {
        self.state.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::new(Status::Busy, "another call is using the sequence"),
            TryLockError::Poisoned(_) => Failure::broken(),
        })
    }

    /// Gives a sequence to C.
    ///
    /// # Safety
    /// `to` must be null, or good to be written.
    unsafe fn give(model: &Arc<Opened>, tokens: Tokens, to: *mut *mut Sequence) -> Result<(), Failure> {
        let state = Mutex::new(State { tokens, sampler: None });
        let sequence = Box::into_raw(Box::new(Sequence { state, model: model.clone() }));
        // SAFETY: the caller's promise.
        unsafe { give(to, sequence, "sequence") }
    }
}

/// Makes an empty sequence. It takes address space for its context, and memory as it is used.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_sequence_new(model: *const Model, sequence: *mut *mut Sequence) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { give(sequence, null_mut(), "sequence") }?;
        // SAFETY: the caller's promise.
        let opened = &unsafe { reference(model, "model") }?.0;
        let tokens = opened.engine()?.sequence()?;
        // SAFETY: the caller's promise.
        unsafe { Sequence::give(opened, tokens, sequence) }
    })
}

/// Frees a sequence; null is none.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_sequence_free(sequence: *mut Sequence) {
    call(|| {
        if !sequence.is_null() {
            // SAFETY: the caller's promise: this library gave it, and nobody uses it any more.
            drop(unsafe { Box::from_raw(sequence) });
        }
        Ok(())
    });
}

/// Makes a copy of a sequence, which shares nothing with it.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_sequence_fork(
    sequence: *const Sequence,
    copy: *mut *mut Sequence,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { give(copy, null_mut(), "copy") }?;
        // SAFETY: the caller's promise.
        let sequence = unsafe { reference(sequence, "sequence") }?;
        let tokens = sequence.state()?.tokens.fork()?;
        // SAFETY: the caller's promise.
        unsafe { Sequence::give(&sequence.model, tokens, copy) }
    })
}

/// Forgets the tokens from `position` on, or all where a sliding window before `position` is gone. `reached`, which may
/// be null, is the position then: `position` (or the sequence's end, if that is before) or 0.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_sequence_truncate(
    sequence: *mut Sequence,
    position: usize,
    reached: *mut usize,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let at = unsafe { reference(sequence, "sequence") }?.state()?.tokens.truncate(position);
        if reached.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { give(reached, at, "reached") }
    })
}

/// The tokens that a sequence holds. `count` is how many there are, its position, also where `room` is too small for
/// them (LAPIDARY_STATUS_ROOM): `tokens` may be null, of room 0, to ask for it.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_sequence_tokens(
    sequence: *const Sequence,
    tokens: *mut u32,
    room: usize,
    count: *mut usize,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let state = unsafe { reference(sequence, "sequence") }?.state()?;
        // SAFETY: the caller's promise.
        unsafe { fill("tokens", state.tokens.tokens(), None, tokens, room, count) }
    })
}

/// Writes a sequence to a file, for lapidary_sequence_load() with the same model, or for `lapidary run --load`.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_sequence_save(sequence: *const Sequence, file: *const c_char) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let (sequence, file) = unsafe { (reference(sequence, "sequence")?, path(file, "file")?) };
        let state = sequence.state()?;
        Ok(sequence.model.engine()?.save(&state.tokens, file, &Notes::default())?)
    })
}

/// Makes a sequence of a file of lapidary_sequence_save(), or of `lapidary run --save`. One of another model is
/// refused.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_sequence_load(
    model: *const Model,
    file: *const c_char,
    sequence: *mut *mut Sequence,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { give(sequence, null_mut(), "sequence") }?;
        // SAFETY: the caller's promise.
        let (opened, file) = unsafe { (&reference(model, "model")?.0, path(file, "file")?) };
        let mut engine = opened.engine()?;
        let (mut tokens, notes) = engine.load(file)?;
        // A token that was chosen last, and is in no cache yet.
        if let Some(id) = notes.pending {
            let (tokens, phase) = (&mut tokens, Phase::Decode);
            engine.step(&mut [Work { sequence: tokens, tokens: &[id], phase, want: Want::Nothing }])?;
        }
        drop(engine);
        // SAFETY: the caller's promise.
        unsafe { Sequence::give(opened, tokens, sequence) }
    })
}
