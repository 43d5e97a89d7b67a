//! Logits and the most likely token: a head on a state's last row, run when first asked for.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{InstBuilder, Value};

use super::launch::call_on_frame;
use super::writer::Writer;
use crate::object::state::{HeadCall, Places, engine_word, word};

/// `logits(state)` and `argmax(state)`: a head on the last row, run when first asked for; it writes at `to` in the
/// state.
#[allow(clippy::too_many_arguments)]
pub(super) fn output(
    w: &mut Writer<'_>,
    places: &Places,
    state: Value,
    head: &HeadCall,
    valid: i32,
    to: i64,
    otherwise: i64,
    result: impl FnOnce(&mut Writer<'_>, Value) -> Value,
) {
    let ty = w.b.func.signature.returns[0].value_type;
    let otherwise = w.int(ty, otherwise);
    w.check_open(state, otherwise);
    let predicts = w.load(I64, state, word::PREDICTS.into());
    let none = w.compare(IntCC::Equal, predicts, 0);
    w.return_if(none, otherwise);
    let (make, after) = (w.b.create_block(), w.b.create_block());
    let known = w.load(I64, state, valid.into());
    w.b.ins().brif(known, after, &[], make, &[]);
    w.b.switch_to_block(make);
    let engine = w.load(I64, state, word::ENGINE.into());
    let (from, to) = (w.offset(state, places.last as i64), w.offset(state, to));
    w.store(from, engine, head.reads as i64);
    w.store(to, engine, head.writes as i64);
    let one = w.int(I64, 1);
    w.store(one, engine, engine_word::SEGMENTS.into());
    w.store(predicts, engine, engine_word::PHASE.into());
    call_on_frame(w, &head.call, engine, one);
    w.store(one, state, valid.into());
    w.b.ins().jump(after, &[]);
    w.b.switch_to_block(after);
    let value = result(w, state);
    w.finish(Some(value));
}
