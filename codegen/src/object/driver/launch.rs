//! Kernels over their tiles, and the program's functions on their frames.
//!
//! In: an engine whose frames are filled. Out: `launch`, `groups` and a `run_NAME` for each function: the variant that
//! serves the call's rows, its kernels in order, each on the calling thread or by the caller's callback.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{InstBuilder, Value};
use cranelift_frontend::Variable;
use lapidary_runtime::program::{FRAME_ROWS, Phase, Segment, Step, Variant};

use super::writer::Writer;
use super::{FIRST_RUN, GROUPS, LAUNCH};
use crate::object::state::{Call, Engine, engine_word, number};

/// Launches predicted to take less than this many nanoseconds stay on the calling thread; as the runtime's pool has it.
const PARALLEL_NS: i64 = 5_000;

/// `launch(engine, kernel, frame, tiles, tile_ns)`: one kernel over its tiles, on this thread or by the caller's
/// callback.
pub(super) fn launch(places: &Engine) -> impl FnOnce(&mut Writer<'_>, &[Value]) {
    let scratch = places.scratch as i64;
    move |w, p| {
        let [engine, kernel, frame, tiles, tile_ns] = p else { unreachable!("five parameters") };
        let callback = w.load(I64, *engine, engine_word::PARALLEL_FOR.into());
        let time = w.b.ins().imul(*tiles, *tile_ns);
        let small = w.compare(IntCC::UnsignedLessThan, time, PARALLEL_NS);
        let one = w.compare(IntCC::Equal, *tiles, 1);
        let none = w.compare(IntCC::Equal, callback, 0);
        let here = w.b.ins().bor(small, one);
        let here = w.b.ins().bor(here, none);
        let (alone, together) = (w.b.create_block(), w.b.create_block());
        w.b.ins().brif(here, alone, &[], together, &[]);
        w.b.switch_to_block(alone);
        let zero = w.int(I64, 0);
        let scratch = w.offset(*engine, scratch);
        w.call_at(*kernel, &[*frame, zero, *tiles, scratch]);
        w.finish(None);
        w.b.switch_to_block(together);
        let context = w.load(I64, *engine, engine_word::CONTEXT.into());
        w.call_at(callback, &[context, *tiles, *kernel, *frame]);
        w.finish(None);
    }
}

/// Byte offsets of a segment's words.
pub(super) const SEGMENT: [i64; 4] = [
    std::mem::offset_of!(Segment, first) as i64,
    std::mem::offset_of!(Segment, rows) as i64,
    std::mem::offset_of!(Segment, keys) as i64,
    std::mem::offset_of!(Segment, kv) as i64,
];

/// `groups(engine, by)`: groups of `by` rows of the call's segments, each one's last as short as it is.
pub(super) fn groups(w: &mut Writer<'_>, places: &Engine, engine: Value, by: Value) {
    let table = w.offset(engine, places.segments as i64);
    let (zero, count) = (w.int(I64, 0), w.load(I64, engine, engine_word::SEGMENTS.into()));
    let sum: Variable = w.b.declare_var(I64);
    w.b.def_var(sum, zero);
    w.for_range(zero, count, 1, |w, index| {
        let segment = w.element(table, index, Segment::BYTES);
        let rows = w.load(I64, segment, SEGMENT[1]);
        let up = w.b.ins().iadd(rows, by);
        let up = w.offset(up, -1);
        let own = w.b.ins().udiv(up, by);
        let before = w.b.use_var(sum);
        let all = w.b.ins().iadd(before, own);
        w.b.def_var(sum, all);
    });
    let sum = w.b.use_var(sum);
    w.finish(Some(sum));
}

/// `run_NAME(engine, frame)`: a function's kernels, in order, of the variant that serves the frame's rows of the call's
/// phase.
pub(super) fn run(w: &mut Writer<'_>, variants: &[Variant<u64>], engine: Value, frame: Value) {
    let rows = w.load(I64, frame, (FRAME_ROWS * 8) as i64);
    let phase = w.load(I64, engine, engine_word::PHASE.into());
    let decodes = w.compare(IntCC::Equal, phase, number(Phase::Decode));
    for (index, variant) in variants.iter().enumerate() {
        let last = index + 1 == variants.len();
        let next = w.b.create_block();
        if !last {
            let inside = w.b.create_block();
            let fits = w.compare(IntCC::UnsignedLessThanOrEqual, rows, variant.rows as i64);
            let fits = w.b.ins().band(fits, decodes);
            w.b.ins().brif(fits, inside, &[], next, &[]);
            w.b.switch_to_block(inside);
        }
        for step in &variant.steps {
            let tiles = tile_count(w, step, engine, rows);
            let kernel = w.kernel(step.kernel);
            let tile_ns = w.int(I64, step.tile_ns.into());
            w.call(LAUNCH, &[engine, kernel, frame, tiles, tile_ns]);
        }
        if !last {
            w.finish(None);
            w.b.switch_to_block(next);
        }
    }
    w.finish(None);
}

/// [`Step::tiles`].
fn tile_count(w: &mut Writer<'_>, step: &Step<u64>, engine: Value, rows: Value) -> Value {
    let (fixed, by) = (w.int(I64, step.tiles.fixed.into()), step.tiles.rows);
    let groups = match (by, step.by_segment) {
        (0, false) => return fixed,
        (0, true) => w.load(I64, engine, engine_word::SEGMENTS.into()),
        (1, _) => rows,
        (by, false) => {
            let up = w.offset(rows, i64::from(by) - 1);
            let by = w.int(I64, by.into());
            w.b.ins().udiv(up, by)
        }
        (by, true) => {
            let by = w.int(I64, by.into());
            w.result(GROUPS, &[engine, by], I64)
        }
    };
    w.b.ins().imul(groups, fixed)
}

/// Calls a function of the program on its frame, for so many rows.
pub(super) fn call_on_frame(w: &mut Writer<'_>, call: &Call, engine: Value, rows: Value) {
    let frame = w.offset(engine, call.frame as i64);
    w.store(rows, frame, (FRAME_ROWS * 8) as i64);
    w.call(FIRST_RUN + call.function as u32, &[engine, frame]);
}
