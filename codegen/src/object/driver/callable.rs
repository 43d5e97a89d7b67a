//! The call of a function that is no model's: what `runtime::Callable` does, as generated code.
//!
//! In: an image, and where everything lies. Out: a [`Driver`] whose `call(engine[, T], inputs.., outputs..)` checks its
//! arguments, fills the frame with the caller's addresses, copies what kernels hold otherwise than the caller, and runs
//! the variant that serves `T`.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I16, I32, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use lapidary_runtime::program::{
    Element, FRAME_ROWS, FRAME_SLOTS, Image, Length, Lookup, Operand, Phase, Role, Signature,
};

use super::launch::SEGMENT;
use super::writer::Writer;
use super::{Driver, Maker, launch, open, tables};
use crate::Error;
use crate::object::callable::Places;
use crate::object::state::{READY, engine_word, number};
use crate::object::weights::WeightsFile;
use crate::object::{Status, guard};
use crate::target::Target;

/// The function's place among the driver's, behind those that any driver begins with.
const RUN: u32 = 2;

/// Makes the driver.
///
/// # Errors
/// [`Error::Object`] if Cranelift refuses the code.
pub fn emit(
    target: &Target,
    image: &Image<Signature>,
    places: &Places,
    weights: &WeightsFile,
) -> Result<Driver, Error> {
    let (tables, template) = tables(&image.constants, &places.engine);
    let engine = &places.engine;
    let mut maker = Maker::new(target);
    maker.define("launch", false, 5, None, launch::launch(engine))?;
    maker.define("groups", false, 2, Some(I64), |w, p| launch::groups(w, engine, p[0], p[1]))?;
    let variants = &image.functions[0].variants;
    maker.define("run", false, 2, None, |w, p| launch::run(w, variants, p[0], p[1]))?;
    maker.define("init", true, 6, Some(I32), |w, p| open::init(w, engine, weights, template, p))?;
    maker.functions.last_mut().map_or(Ok(()), |init| guard::put_before(target, init))?;
    let signature = &image.plan;
    let counted = usize::from(signature.has_rows());
    let pointers = parameters(signature).count();
    let rooms: Vec<usize> = variants.iter().map(|v| v.rows).collect();
    maker.define("call", true, 1 + counted + pointers, Some(I32), |w, p| {
        call(w, signature, places, &rooms, p);
    })?;
    maker.functions.push(guard::supported(target)?);
    Ok(Driver { functions: maker.functions, tables })
}

/// The operands that a caller passes, by their places: inputs, then what is returned.
pub(in crate::object) fn parameters(signature: &Signature) -> impl Iterator<Item = usize> {
    let inputs = signature.operands.iter().enumerate().filter(|(_, o)| o.role == Role::Input);
    inputs.map(|(at, _)| at).chain(signature.returns.iter().copied())
}

/// `call(engine[, rows], pointers..)`.
fn call(w: &mut Writer<'_>, signature: &Signature, places: &Places, rooms: &[usize], p: &[Value]) {
    let (engine, rest) = p.split_first().map_or_else(|| unreachable!("an engine"), |(e, rest)| (*e, rest));
    let (rows, pointers) = match rest {
        [rows, pointers @ ..] if signature.has_rows() => (*rows, pointers),
        pointers => (w.int(I64, 1), pointers),
    };
    let not_ready = w.int(I32, Status::State.code());
    w.check_mark(engine, READY, not_ready);
    let before = w.offset(rows, -1);
    let beyond = w.compare(IntCC::UnsignedGreaterThanOrEqual, before, signature.most.rows as i64);
    w.fail_if(beyond, Status::Context);
    for &pointer in pointers {
        let null = w.compare(IntCC::Equal, pointer, 0);
        w.fail_if(null, Status::Argument);
    }
    let frame = w.offset(engine, places.engine.frames as i64);
    let mut addresses: Vec<Option<Value>> = vec![None; signature.operands.len()];
    for (at, &pointer) in parameters(signature).zip(pointers) {
        addresses[at] = Some(pointer);
    }
    for lookup in &signature.lookups {
        let ids = addresses[lookup.ids].unwrap_or_else(|| w.load(I64, frame, slot(lookup.ids)));
        check_ids(w, signature, lookup, ids, rows);
    }
    let room = room(w, rooms, rows);
    for (at, operand) in signature.operands.iter().enumerate() {
        let Some(pointer) = addresses[at] else { continue };
        let held = places.copies[at].map_or(pointer, |copy| w.offset(engine, copy as i64));
        if operand.role == Role::Input && places.copies[at].is_some() {
            Transfer { operand, rows, room, dense: pointer, held, is_in: true }.emit(w);
        }
        w.store(held, frame, slot(at));
    }
    w.store(rows, frame, (FRAME_ROWS * 8) as i64);
    let segment = w.offset(engine, places.engine.segments as i64);
    let zero = w.int(I64, 0);
    for (value, at) in [zero, rows, rows, zero].into_iter().zip(SEGMENT) {
        w.store(value, segment, at);
    }
    let (one, phase) = (w.int(I64, 1), w.int(I64, number(Phase::Decode)));
    w.store(one, engine, engine_word::SEGMENTS.into());
    w.store(phase, engine, engine_word::PHASE.into());
    w.call(RUN, &[engine, frame]);
    for &at in &signature.returns {
        if let (Some(copy), Some(pointer)) = (places.copies[at], addresses[at]) {
            let (operand, held) = (&signature.operands[at], w.offset(engine, copy as i64));
            Transfer { operand, rows, room, dense: pointer, held, is_in: false }.emit(w);
        }
    }
    let done = w.int(I32, Status::Ok.code());
    w.finish(Some(done));
}

/// Offset of an operand's word in the frame, in bytes.
fn slot(at: usize) -> i64 {
    ((FRAME_SLOTS + at) * size_of::<u64>()) as i64
}

/// Rows that the variant which serves `rows` holds.
fn room(w: &mut Writer<'_>, rooms: &[usize], rows: Value) -> Value {
    let mut room = w.int(I64, rooms.last().map_or(1, |&n| n as i64));
    for &n in rooms.iter().rev().skip(1) {
        let fits = w.compare(IntCC::UnsignedLessThanOrEqual, rows, n as i64);
        let n = w.int(I64, n as i64);
        room = w.b.ins().select(fits, n, room);
    }
    room
}

/// A length, where `T` is `rows`.
fn length(w: &mut Writer<'_>, length: Length, rows: Value) -> Value {
    match length {
        Length::Fixed(n) => w.int(I64, n as i64),
        Length::Rows | Length::Keys => rows,
    }
}

/// Returns an error for an id that is out of bounds.
fn check_ids(w: &mut Writer<'_>, signature: &Signature, lookup: &Lookup, ids: Value, rows: Value) {
    let mut count = w.int(I64, 1);
    for &axis in &signature.operands[lookup.ids].shape {
        let n = length(w, axis, rows);
        count = w.b.ins().imul(count, n);
    }
    let entries = length(w, lookup.entries, rows);
    let zero = w.int(I64, 0);
    w.for_range(zero, count, 1, |w, i| {
        let at = w.element(ids, i, size_of::<i32>());
        let id = w.load(I32, at, 0);
        let id = w.b.ins().sextend(I64, id);
        let out = w.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, id, entries);
        w.fail_if(out, Status::Token);
    });
}

/// An operand between where the caller has it, dense, and where kernels hold it, with room for the variant's rows.
struct Transfer<'a> {
    operand: &'a Operand,
    rows: Value,
    room: Value,
    dense: Value,
    held: Value,
    is_in: bool,
}

impl Transfer<'_> {
    fn emit(&self, w: &mut Writer<'_>) {
        let zero = w.int(I64, 0);
        self.axis(w, 0, zero, zero);
    }

    /// The axes from one on, of the elements that start at these indices.
    fn axis(&self, w: &mut Writer<'_>, axis: usize, dense: Value, held: Value) {
        let Some(&n) = self.operand.shape.get(axis) else { return self.element(w, dense, held) };
        let (n, room) = (length(w, n, self.rows), length(w, n, self.room));
        let (dense, held) = (w.b.ins().imul(dense, n), w.b.ins().imul(held, room));
        let zero = w.int(I64, 0);
        w.for_range(zero, n, 1, |w, i| {
            let (dense, held) = (w.b.ins().iadd(dense, i), w.b.ins().iadd(held, i));
            self.axis(w, axis + 1, dense, held);
        });
    }

    fn element(&self, w: &mut Writer<'_>, dense: Value, held: Value) {
        let (outside, inside): (Type, Type) = match self.operand.element {
            Element::Bool => (I8, I32),
            Element::F16 | Element::BF16 => (I16, I16),
            Element::F32 | Element::I32 | Element::Block { .. } => (I32, I32),
        };
        let dense = w.element(self.dense, dense, outside.bytes() as usize);
        let held = w.element(self.held, held, inside.bytes() as usize);
        let (from, to, ty) = if self.is_in { (dense, held, outside) } else { (held, dense, inside) };
        let mut value = w.load(ty, from, 0);
        if self.operand.element == Element::Bool {
            let truth = w.compare(IntCC::NotEqual, value, 0);
            value = if self.is_in { w.b.ins().bmask(I32, truth) } else { truth };
        }
        w.store(value, to, 0);
    }
}
