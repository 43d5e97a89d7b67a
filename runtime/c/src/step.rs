//! Steps: tokens appended to sequences, of many in one call, and what is predicted from them.

use std::sync::Arc;

use lapidary_runtime::{Phase, Want, Work as Appended};

use crate::boundary::{Failure, Status, call, exclusive, reference, slice};
use crate::sequence::Sequence;

/// Phase: tokens that are given, a prompt, were it of one.
pub const LAPIDARY_PHASE_PREFILL: u32 = 0;
/// Phase: tokens that were chosen, or drafted.
pub const LAPIDARY_PHASE_DECODE: u32 = 1;

/// Want: that the sequence holds the tokens.
pub const LAPIDARY_WANT_NOTHING: u32 = 0;
/// Want: the logits after the last token.
pub const LAPIDARY_WANT_LOGITS: u32 = 1;
/// Want: the logits after each token.
pub const LAPIDARY_WANT_ALL_LOGITS: u32 = 2;
/// Want: the most likely token after the last, the lowest of equals.
pub const LAPIDARY_WANT_ARGMAX: u32 = 3;

/// Tokens to append to a sequence, and what is wanted of them.
#[repr(C)]
pub struct Work {
    /// The sequence; each once a step, all of one model.
    sequence: *mut Sequence,
    /// The tokens: at least one if anything is wanted.
    tokens: *const u32,
    /// How many.
    count: usize,
    /// LAPIDARY_PHASE_PREFILL or LAPIDARY_PHASE_DECODE. The two may differ in last bits; within a phase a token's
    /// result depends on its own text alone, not on how tokens are split over steps nor on what shares them.
    phase: u32,
    /// LAPIDARY_WANT_NOTHING, _LOGITS, _ALL_LOGITS or _ARGMAX.
    want: u32,
    /// Where logits go, a row of lapidary_info.vocab numbers each; null where none are wanted.
    logits: *mut f32,
    /// Numbers that there is room for.
    room: usize,
    /// The token that was wanted.
    token: u32,
}

/// Appends tokens to sequences, those of all in as few calls of kernels as can be. Where it fails, nothing was
/// appended.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_step(works: *mut Work, count: usize) -> Status {
    call(|| {
        // SAFETY: the caller's promise; what is written is written by pointer, once these are gone.
        let asked = unsafe { slice(works.cast_const(), count, "works") }?;
        // SAFETY: the caller's promise.
        let sequence = |work: &Work| unsafe { reference(work.sequence, "sequence") };
        let sequences = asked.iter().map(sequence).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = sequences.first() else { return Ok(()) };
        let model = first.model.clone();
        if sequences.iter().any(|s| !Arc::ptr_eq(&s.model, &model)) {
            return Err(Failure::argument("the sequences are of several models"));
        }
        // A sequence that is in two works is in use by the time of the second.
        let mut states = sequences.iter().map(|s| s.state()).collect::<Result<Vec<_>, _>>()?;
        let mut rows = Vec::with_capacity(count);
        let mut appended = Vec::with_capacity(count);
        for (work, state) in asked.iter().zip(&mut states) {
            // SAFETY: the caller's promise.
            let tokens = unsafe { slice(work.tokens, work.count, "tokens") }?;
            let (phase, want) = (phase(work.phase)?, want(work.want)?);
            let wanted = match want {
                Want::Nothing | Want::Argmax | Want::AllArgmax => 0,
                Want::Logits => 1,
                Want::AllLogits => tokens.len(),
            };
            let needed = wanted.saturating_mul(model.vocab);
            if needed > work.room {
                return Err(Failure::room("logits", needed, work.room));
            }
            if wanted > 0 && work.logits.is_null() {
                return Err(Failure::argument("logits is null"));
            }
            rows.push(work.logits);
            appended.push(Appended { sequence: &mut state.tokens, tokens, phase, want });
        }
        let mut engine = model.engine()?;
        // Rows go to where they are wanted as they are made. Tokens are few.
        let argmax: Vec<bool> = appended.iter().map(|w| w.want == Want::Argmax).collect();
        let all: Vec<bool> = appended.iter().map(|w| w.want == Want::AllLogits).collect();
        let tokens = engine.step_each(&mut appended, &mut |work, token, logits| {
            let row = if all[work] { token } else { 0 };
            // SAFETY: there is room for as many rows, as was looked at above.
            unsafe {
                rows[work].add(row * logits.len()).copy_from_nonoverlapping(logits.as_ptr(), logits.len())
            };
        })?;
        for (index, _) in argmax.iter().enumerate().filter(|(_, wanted)| **wanted) {
            // SAFETY: the caller's promise; `asked` is read no more.
            unsafe { exclusive(works.add(index), "works") }?.token = tokens.token(index);
        }
        Ok(())
    })
}

fn phase(number: u32) -> Result<Phase, Failure> {
    match number {
        LAPIDARY_PHASE_PREFILL => Ok(Phase::Prefill),
        LAPIDARY_PHASE_DECODE => Ok(Phase::Decode),
        other => Err(Failure::argument(format!("phase is {other}"))),
    }
}

fn want(number: u32) -> Result<Want, Failure> {
    match number {
        LAPIDARY_WANT_NOTHING => Ok(Want::Nothing),
        LAPIDARY_WANT_LOGITS => Ok(Want::Logits),
        LAPIDARY_WANT_ALL_LOGITS => Ok(Want::AllLogits),
        LAPIDARY_WANT_ARGMAX => Ok(Want::Argmax),
        other => Err(Failure::argument(format!("want is {other}"))),
    }
}
