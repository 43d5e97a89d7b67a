//! Tokens into calls, and what calls leave to states.
//!
//! In: states, tokens of the caller. Out: `append` and what stands on it (`prefill`, `decode`), `step` over several
//! states, `rollback`; inside, `place`, `forward` and `settle`. Everything is checked before anything changes.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{InstBuilder, StackSlotData, StackSlotKind, Value};
use lapidary_runtime::program::{Image, Phase, Segment};

use super::launch::{SEGMENT, call_on_frame};
use super::writer::Writer;
use super::{APPEND, FORWARD, PLACE, SETTLE};
use crate::object::Status;
use crate::object::state::{Places, engine_word, number, word};

/// `place(state, ids, rows, first)`: puts a state's next rows into the call, from row `first` on, as its next segment.
pub(super) fn place(w: &mut Writer<'_>, places: &Places, p: &[Value]) {
    let [state, ids, rows, first] = *p else { unreachable!("four parameters") };
    let engine = w.load(I64, state, word::ENGINE.into());
    let position = w.load(I64, state, word::POSITION.into());
    let zero = w.int(I64, 0);
    let word = size_of::<i32>();
    w.for_range(zero, rows, 1, |w, i| {
        let at = w.element(ids, i, word);
        let id = w.load(I32, at, 0);
        let row = w.b.ins().iadd(first, i);
        let to = w.element(engine, row, word);
        w.store(id, to, places.ids as i64);
        let position = w.b.ins().iadd(position, i);
        let position = w.b.ins().ireduce(I32, position);
        w.store(position, to, places.positions as i64);
    });
    let index = w.load(I64, engine, engine_word::SEGMENTS.into());
    let segment = w.element(engine, index, Segment::BYTES);
    let segment = w.offset(segment, places.engine.segments as i64);
    let keys = w.b.ins().iadd(position, rows);
    let kv = w.offset(state, places.kv as i64);
    for (value, at) in [first, rows, keys, kv].into_iter().zip(SEGMENT) {
        w.store(value, segment, at);
    }
    let count = w.offset(index, 1);
    w.store(count, engine, engine_word::SEGMENTS.into());
    w.finish(None);
}

/// `forward(engine, rows)`: appends the rows that are in place.
pub(super) fn forward(w: &mut Writer<'_>, places: &Places, engine: Value, rows: Value) {
    for call in &places.body {
        call_on_frame(w, call, engine, rows);
    }
    w.finish(None);
}

/// `settle(state, index)`: what the call appended as segment `index` is the state's.
pub(super) fn settle(w: &mut Writer<'_>, image: &Image, places: &Places, state: Value, index: Value) {
    let engine = w.load(I64, state, word::ENGINE.into());
    let segment = w.element(engine, index, Segment::BYTES);
    let segment = w.offset(segment, places.engine.segments as i64);
    let [first, rows, keys, _] = SEGMENT.map(|at| w.load(I64, segment, at));
    w.store(keys, state, word::POSITION.into());
    let high = w.load(I64, state, word::HIGH.into());
    let high = w.b.ins().umax(high, keys);
    w.store(high, state, word::HIGH.into());
    let last = w.b.ins().iadd(first, rows);
    let last = w.offset(last, -1);
    let from = w.element(engine, last, image.plan.hidden * size_of::<f32>());
    let from = w.offset(from, places.residual_out as i64);
    let to = w.offset(state, places.last as i64);
    let (zero, end) = (w.int(I64, 0), w.int(I64, (image.plan.hidden * size_of::<f32>()) as i64));
    w.for_range(zero, end, size_of::<f32>() as i64, |w, at| {
        let (from, to) = (w.b.ins().iadd(from, at), w.b.ins().iadd(to, at));
        let element = w.load(I32, from, 0);
        w.store(element, to, 0);
    });
    let phase = w.load(I64, engine, engine_word::PHASE.into());
    set_predicts(w, state, phase);
    w.finish(None);
}

/// What is predicted from changes.
pub(super) fn set_predicts(w: &mut Writer<'_>, state: Value, predicts: Value) {
    w.store(predicts, state, word::PREDICTS.into());
    let zero = w.int(I64, 0);
    w.store(zero, state, word::LOGITS_VALID.into());
    w.store(zero, state, word::TOKEN_VALID.into());
}

/// Returns an error if `count` tokens do not fit a state, or one is none.
fn check_tokens(w: &mut Writer<'_>, image: &Image, state: Value, ids: Value, count: Value) {
    let plan = &image.plan;
    let position = w.load(I64, state, word::POSITION.into());
    let context = w.int(I64, plan.context as i64);
    let room = w.b.ins().isub(context, position);
    let above = w.b.ins().icmp(IntCC::UnsignedGreaterThan, count, room);
    w.fail_if(above, Status::Context);
    let zero = w.int(I64, 0);
    w.for_range(zero, count, 1, |w, i| {
        let at = w.element(ids, i, size_of::<i32>());
        let id = w.load(I32, at, 0);
        let out = w.compare(IntCC::UnsignedGreaterThanOrEqual, id, plan.vocab as i64);
        w.fail_if(out, Status::Token);
    });
}

/// `append(state, ids, count, phase)`: checks all, then appends chunk by chunk.
pub(super) fn append(w: &mut Writer<'_>, image: &Image, p: &[Value]) {
    let [state, ids, count, phase] = *p else { unreachable!("four parameters") };
    let plan = &image.plan;
    let not_open = w.int(I32, Status::State.code());
    w.check_open(state, not_open);
    let none = w.compare(IntCC::Equal, count, 0);
    w.fail_if(none, Status::Ok);
    let null = w.compare(IntCC::Equal, ids, 0);
    w.fail_if(null, Status::Argument);
    check_tokens(w, image, state, ids, count);
    let engine = w.load(I64, state, word::ENGINE.into());
    w.store(phase, engine, engine_word::PHASE.into());
    let (zero, chunk) = (w.int(I64, 0), w.int(I64, plan.chunk as i64));
    w.for_range(zero, count, plan.chunk as i64, |w, done| {
        let left = w.b.ins().isub(count, done);
        let rows = w.b.ins().umin(left, chunk);
        let from = w.element(ids, done, size_of::<i32>());
        one_state(w, engine, state, from, rows);
    });
    let done = w.int(I32, Status::Ok.code());
    w.finish(Some(done));
}

/// A call of one state's rows.
fn one_state(w: &mut Writer<'_>, engine: Value, state: Value, ids: Value, rows: Value) {
    let zero = w.int(I64, 0);
    w.store(zero, engine, engine_word::SEGMENTS.into());
    w.call(PLACE, &[state, ids, rows, zero]);
    w.call(FORWARD, &[engine, rows]);
    w.call(SETTLE, &[state, zero]);
}

/// `prefill(state, ids, count)`: appends tokens that are given.
pub(super) fn prefill(w: &mut Writer<'_>, state: Value, ids: Value, count: Value) {
    let phase = w.int(I64, number(Phase::Prefill));
    let status = w.result(APPEND, &[state, ids, count, phase], I32);
    w.finish(Some(status));
}

/// `decode(state, id)`: appends one token.
pub(super) fn decode(w: &mut Writer<'_>, state: Value, id: Value) {
    let slot = w.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, 8, 3));
    let id = w.b.ins().ireduce(I32, id);
    w.b.ins().stack_store(I64, id, slot, 0);
    let ids = w.b.ins().stack_addr(I64, slot, 0);
    let (one, phase) = (w.int(I64, 1), w.int(I64, number(Phase::Decode)));
    let status = w.result(APPEND, &[state, ids, one, phase], I32);
    w.finish(Some(status));
}

/// `step(states, ids, count)`: appends a token to each of several states of one engine, in one call.
pub(super) fn step(w: &mut Writer<'_>, image: &Image, (batches, most): (bool, usize), p: &[Value]) {
    let [states, ids, count] = *p else { unreachable!("three parameters") };
    let (zero, one) = (w.int(I64, 0), w.int(I64, 1));
    let none = w.compare(IntCC::Equal, count, 0);
    w.fail_if(none, Status::Ok);
    for array in [states, ids] {
        let null = w.compare(IntCC::Equal, array, 0);
        w.fail_if(null, Status::Argument);
    }
    let many = w.compare(IntCC::UnsignedGreaterThan, count, image.plan.chunk as i64);
    w.fail_if(many, Status::Argument);
    let state_at = |w: &mut Writer<'_>, i: Value| {
        let at = w.element(states, i, size_of::<u64>());
        w.load(I64, at, 0)
    };
    let not_open = w.int(I32, Status::State.code());
    let first = state_at(w, zero);
    w.check_open(first, not_open);
    let engine = w.load(I64, first, word::ENGINE.into());
    w.for_range(zero, count, 1, |w, i| {
        let state = state_at(w, i);
        w.check_open(state, not_open);
        let own = w.load(I64, state, word::ENGINE.into());
        let other = w.b.ins().icmp(IntCC::NotEqual, own, engine);
        w.fail_if(other, Status::State);
        w.for_range(zero, i, 1, |w, j| {
            let before = state_at(w, j);
            let twice = w.b.ins().icmp(IntCC::Equal, before, state);
            w.fail_if(twice, Status::Argument);
        });
        let id = w.element(ids, i, size_of::<i32>());
        check_tokens(w, image, state, id, one);
    });
    let phase = w.int(I64, number(Phase::Decode));
    w.store(phase, engine, engine_word::PHASE.into());
    if batches {
        let many = w.int(I64, most as i64);
        w.for_range(zero, count, most as i64, |w, done| {
            let left = w.b.ins().isub(count, done);
            let rows = w.b.ins().umin(left, many);
            w.store(zero, engine, engine_word::SEGMENTS.into());
            w.for_range(zero, rows, 1, |w, i| {
                let at = w.b.ins().iadd(done, i);
                let (state, id) = (state_at(w, at), w.element(ids, at, size_of::<i32>()));
                w.call(PLACE, &[state, id, one, i]);
            });
            w.call(FORWARD, &[engine, rows]);
            w.for_range(zero, rows, 1, |w, i| {
                let at = w.b.ins().iadd(done, i);
                let state = state_at(w, at);
                w.call(SETTLE, &[state, i]);
            });
        });
    } else {
        w.for_range(zero, count, 1, |w, i| {
            let (state, id) = (state_at(w, i), w.element(ids, i, size_of::<i32>()));
            one_state(w, engine, state, id, one);
        });
    }
    let done = w.int(I32, Status::Ok.code());
    w.finish(Some(done));
}

/// `rollback(state, position)`: forgets the tokens from there on.
pub(super) fn rollback(w: &mut Writer<'_>, places: &Places, state: Value, to: Value) {
    let not_open = w.int(I32, Status::State.code());
    w.check_open(state, not_open);
    let position = w.load(I64, state, word::POSITION.into());
    let ahead = w.b.ins().icmp(IntCC::UnsignedGreaterThan, to, position);
    w.fail_if(ahead, Status::Position);
    let same = w.b.ins().icmp(IntCC::Equal, to, position);
    w.fail_if(same, Status::Ok);
    let zero = w.int(I64, 0);
    let (some, all) = (w.b.create_block(), w.b.create_block());
    w.b.ins().brif(to, some, &[], all, &[]);
    w.b.switch_to_block(all);
    w.store(zero, state, word::POSITION.into());
    w.store(zero, state, word::HIGH.into());
    set_predicts(w, state, zero);
    let done = w.int(I32, Status::Ok.code());
    w.finish(Some(done));
    w.b.switch_to_block(some);
    // A ring that was written up to `high` holds the positions from `high - rows` on; the next query, at `to`, reads
    // those from `to - window + 1` on.
    let high = w.load(I64, state, word::HIGH.into());
    for ring in &places.rings {
        let over = w.compare(IntCC::UnsignedGreaterThan, high, ring.rows as i64);
        let oldest = w.offset(high, ring.window as i64 - ring.rows as i64 - 1);
        let gone = w.b.ins().icmp(IntCC::SignedLessThan, to, oldest);
        let gone = w.b.ins().band(over, gone);
        w.fail_if(gone, Status::Position);
    }
    w.store(to, state, word::POSITION.into());
    set_predicts(w, state, zero);
    let done = w.int(I32, Status::Ok.code());
    w.finish(Some(done));
}
