//! Engines and states made ready, in the caller's memory.
//!
//! In: the caller's memory and its weights file. Out: `init`, which checks that the file is the one that was laid out
//! and fills the frames, and `open`, which makes a state of an engine.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use cranelift_frontend::Variable;

use super::tokens::set_predicts;
use super::writer::Writer;
use crate::object::Status;
use crate::object::state::{Engine, FROM_BITS, From, OPEN, Places, READY, engine_word, word};
use crate::object::weights::{HASH_FACTOR, HASH_SHIFT, WEIGHT_ALIGN, WeightsFile};

/// `init(engine, engine_bytes, weights, weights_bytes, parallel_for, context)`.
pub(super) fn init(w: &mut Writer<'_>, places: &Engine, file: &WeightsFile, template: u32, p: &[Value]) {
    let [engine, engine_bytes, weights, weights_bytes, parallel_for, context] = p else {
        unreachable!("six parameters")
    };
    w.check_place(*engine, *engine_bytes, places.bytes, Status::State);
    if !file.tensors.is_empty() {
        check_weights(w, file, *weights, *weights_bytes);
    }
    let zero = w.int(I64, 0);
    let constants = w.table(0);
    let words = w.table(template);
    let frames = w.offset(*engine, places.frames as i64);
    let end = w.int(I64, places.template.len() as i64 * 8);
    w.for_range(zero, end, 8, |w, at| {
        let from = w.b.ins().iadd(words, at);
        let entry = w.load(I64, from, 0);
        let offset = w.b.ins().ushr_imm_u(entry, i64::from(FROM_BITS));
        let kind = w.b.ins().band_imm_u(entry, (1 << FROM_BITS) - 1);
        let mut base = zero;
        for (from, address) in
            [(From::Engine, *engine), (From::Weights, *weights), (From::Constants, constants)]
        {
            let is = w.compare(IntCC::Equal, kind, from as i64);
            base = w.b.ins().select(is, address, base);
        }
        let address = w.b.ins().iadd(base, offset);
        let to = w.b.ins().iadd(frames, at);
        w.store(address, to, 0);
    });
    w.store(*parallel_for, *engine, engine_word::PARALLEL_FOR.into());
    w.store(*context, *engine, engine_word::CONTEXT.into());
    let ready = w.int(I64, READY as i64);
    w.store(ready, *engine, engine_word::READY.into());
    let done = w.int(I32, Status::Ok.code());
    w.finish(Some(done));
}

/// Returns an error for weights that are not the file's.
fn check_weights(w: &mut Writer<'_>, file: &WeightsFile, weights: Value, weights_bytes: Value) {
    let bad = w.misplaced(weights, WEIGHT_ALIGN);
    let other = w.compare(IntCC::NotEqual, weights_bytes, file.bytes as i64);
    let bad = w.b.ins().bor(bad, other);
    w.fail_if(bad, Status::Weights);

    let hash: Variable = w.b.declare_var(I64);
    let zero = w.int(I64, 0);
    w.b.def_var(hash, zero);
    let end = w.int(I64, file.header.len() as i64);
    w.for_range(zero, end, 8, |w, at| {
        let at = w.b.ins().iadd(weights, at);
        let next = w.load(I64, at, 0);
        let held = w.b.use_var(hash);
        let mixed = w.b.ins().bxor(held, next);
        let factor = w.int(I64, HASH_FACTOR as i64);
        let mixed = w.b.ins().imul(mixed, factor);
        let high = w.b.ins().ushr_imm_u(mixed, i64::from(HASH_SHIFT));
        let mixed = w.b.ins().bxor(mixed, high);
        w.b.def_var(hash, mixed);
    });
    let found = w.b.use_var(hash);
    let other = w.compare(IntCC::NotEqual, found, file.hash() as i64);
    w.fail_if(other, Status::Weights);
}

/// `open(state, state_bytes, engine)`: a state at position 0.
pub(super) fn open(w: &mut Writer<'_>, places: &Places, p: &[Value]) {
    let [state, state_bytes, engine] = *p else { unreachable!("three parameters") };
    let not_ready = w.int(I32, Status::State.code());
    w.check_mark(engine, READY, not_ready);
    w.check_place(state, state_bytes, places.state_bytes, Status::State);
    let zero = w.int(I64, 0);
    w.store(engine, state, word::ENGINE.into());
    w.store(zero, state, word::POSITION.into());
    w.store(zero, state, word::HIGH.into());
    set_predicts(w, state, zero);
    let mark = w.int(I64, OPEN as i64);
    w.store(mark, state, word::READY.into());
    let done = w.int(I32, Status::Ok.code());
    w.finish(Some(done));
}
