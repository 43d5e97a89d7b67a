//! The driver of an object: what `runtime::Engine` does, as generated code.
//!
//! In: an image and where everything lies. Out: a [`Driver`]: functions whose references are not resolved yet, and the
//! read-only tables. `forward` is straight-line: a call of each layer's function on its frame; a function picks its
//! variant by the call's rows and launches its kernels in order. Invariants: the code refers to kernels, tables and
//! itself only; it allocates nothing; it writes engine and states alone, and only once its arguments are checked.

use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, FuncRef, GlobalValueData, InstBuilder, MemFlagsData, Signature,
    StackSlotData, StackSlotKind, Type, UserExternalName, Value,
};
use cranelift_codegen::{Context, FinalizedRelocTarget, control::ControlPlane};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use lapidary_runtime::program::{self, FRAME_ROWS, Image, Phase, Segment, Step};

use super::state::{
    Call, FROM_BITS, From, HeadCall, OPEN, Places, READY, STATE_ALIGN, engine_word, number, word,
};
use super::weights::{HASH_FACTOR, HASH_SHIFT, WEIGHT_ALIGN, WeightsFile};
use super::{Status, guard, refuse};
use crate::Error;
use crate::target::Target;

/// Launches predicted to take less than this many nanoseconds stay on the calling thread; as the runtime's pool has it.
const PARALLEL_NS: i64 = 5_000;

/// What a reference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Referent {
    /// An offset of the image's code.
    Kernel(u32),
    /// A function of the driver, by index.
    Function(u32),
    /// An offset of the read-only tables.
    Table(u32),
    /// The instruction at this offset of the same function, which holds the upper half of an address (RISC-V).
    Instruction(u32),
}

/// A place of the code that a linker fills in.
#[derive(Clone, Copy, Debug)]
pub struct Reference {
    /// Bytes from the function's start.
    pub at: u32,
    /// How.
    pub kind: Reloc,
    /// What to.
    pub to: Referent,
    /// Added to the address.
    pub addend: i64,
}

impl Reference {
    /// Moves the place `by` bytes up, with all of its function.
    pub(super) fn shift(&mut self, by: u32) {
        self.at += by;
        if let Referent::Instruction(at) = &mut self.to {
            *at += by;
        }
    }
}

/// A function of the driver.
#[derive(Clone, Debug)]
pub struct DriverFunction {
    /// Its name, without the object's prefix.
    pub name: String,
    /// Whether callers of the object see it.
    pub public: bool,
    /// Its code.
    pub code: Vec<u8>,
    /// What is to be filled in.
    pub references: Vec<Reference>,
}

/// The generated code around an image.
#[derive(Clone, Debug)]
pub struct Driver {
    /// In the order of [`Referent::Function`].
    pub functions: Vec<DriverFunction>,
    /// The image's constants, then the frames' template.
    pub tables: Vec<u8>,
}

/// Namespaces of [`UserExternalName`].
const KERNELS: u32 = 0;
const FUNCTIONS: u32 = 1;
const TABLES: u32 = 2;

/// The functions' parameters and results, in the order of [`Driver::functions`]; those of the program's functions
/// follow.
const LAUNCH: u32 = 0;
const GROUPS: u32 = 1;
const PLACE: u32 = 2;
const SETTLE: u32 = 3;
const FORWARD: u32 = 4;
const APPEND: u32 = 5;
const FIRST_RUN: u32 = 6;

/// Makes the driver.
///
/// # Errors
/// [`Error::Object`] if Cranelift refuses the code.
pub fn emit(target: &Target, image: &Image, places: &Places, weights: &WeightsFile) -> Result<Driver, Error> {
    let mut tables = image.constants.clone();
    tables.resize(tables.len().next_multiple_of(STATE_ALIGN), 0);
    let template = tables.len() as u32;
    tables.extend(places.template.iter().flat_map(|w| w.to_le_bytes()));

    let mut maker =
        Maker { target, context: Context::new(), builder: FunctionBuilderContext::new(), functions: vec![] };
    maker.define("launch", false, 5, None, launch_body(places))?;
    maker.define("groups", false, 2, Some(I64), |w, p| groups(w, places, p[0], p[1]))?;
    maker.define("place", false, 4, None, |w, p| place(w, places, p))?;
    maker.define("settle", false, 2, None, |w, p| settle(w, image, places, p[0], p[1]))?;
    maker.define("forward", false, 2, None, |w, p| forward(w, places, p[0], p[1]))?;
    maker.define("append", false, 4, Some(I32), |w, p| append(w, image, p))?;
    for (index, function) in image.functions.iter().enumerate() {
        let called = index == places.head.call.function
            || index == places.head_argmax.call.function
            || places.body.iter().any(|c| c.function == index);
        // A function that nobody calls keeps its number.
        let steps = if called { &function.variants[..] } else { &[] };
        let name = format!("run_{}", function.name);
        maker.define(&name, false, 2, None, |w, p| run(w, steps, p[0], p[1]))?;
    }
    maker.define("init", true, 6, Some(I32), |w, p| init(w, places, weights, template, p))?;
    maker.functions.last_mut().map_or(Ok(()), |init| guard::put_before(target, init))?;
    maker.define("open", true, 3, Some(I32), |w, p| open(w, places, p))?;
    maker.define("prefill", true, 3, Some(I32), |w, p| prefill(w, p[0], p[1], p[2]))?;
    maker.define("decode", true, 2, Some(I32), |w, p| decode(w, p[0], p[1]))?;
    let batches = image.functions.iter().all(|f| f.batches);
    maker.define("step", true, 3, Some(I32), |w, p| step(w, image, (batches, places.decode_rows), p))?;
    maker.define("logits", true, 1, Some(I64), |w, p| {
        let to = places.logits as i64;
        output(w, places, p[0], &places.head, word::LOGITS_VALID, to, 0, |w, s| w.offset(s, to));
    })?;
    maker.define("argmax", true, 1, Some(I32), |w, p| {
        let to = word::TOKEN.into();
        output(w, places, p[0], &places.head_argmax, word::TOKEN_VALID, to, -1, |w, s| w.load(I32, s, to));
    })?;
    maker.define("position", true, 1, Some(I64), |w, p| {
        let zero = w.int(I64, 0);
        w.check_open(p[0], zero);
        let position = w.load(I64, p[0], word::POSITION.into());
        w.finish(Some(position));
    })?;
    maker.define("rollback", true, 2, Some(I32), |w, p| rollback(w, places, p[0], p[1]))?;
    maker.functions.push(guard::supported(target)?);
    Ok(Driver { functions: maker.functions, tables })
}

/// Compiles functions.
struct Maker<'a> {
    target: &'a Target,
    context: Context,
    builder: FunctionBuilderContext,
    functions: Vec<DriverFunction>,
}

impl Maker<'_> {
    /// A function of `parameters` 64-bit words (an i32 is passed as one, its upper half ignored).
    fn define(
        &mut self,
        name: &str,
        public: bool,
        parameters: usize,
        result: Option<Type>,
        body: impl FnOnce(&mut Writer<'_>, &[Value]),
    ) -> Result<(), Error> {
        let isa = &*self.target.isa;
        self.context.clear();
        let mut signature = Signature::new(isa.default_call_conv());
        signature.params = vec![AbiParam::new(I64); parameters];
        // RISC-V's convention has an i32 fill its register; others do not mind.
        signature.returns.extend(result.map(|ty| AbiParam::new(ty).sext()));
        self.context.func.signature = signature;
        let mut builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let entry = builder.create_block();
        builder.append_block_params_for_function_params(entry);
        builder.switch_to_block(entry);
        let params = builder.block_params(entry).to_vec();
        let mut writer = Writer { b: builder };
        body(&mut writer, &params);
        writer.b.seal_all_blocks();
        writer.b.finalize(isa.frontend_config());
        let failed = |reason: String| refuse(format!("`{name}`: {reason}"));
        self.context
            .compile(isa, &mut ControlPlane::default())
            .map_err(|e| failed(format!("{:?}", e.inner)))?;
        let code = self.context.compiled_code().ok_or_else(|| failed("it has no code".into()))?;
        let names = self.context.func.params.user_named_funcs();
        let mut references = vec![];
        for reloc in code.buffer.relocs() {
            let to = match &reloc.target {
                FinalizedRelocTarget::Func(at) => Referent::Instruction(*at),
                FinalizedRelocTarget::ExternalName(ExternalName::User(to)) => match names.get(*to) {
                    Some(&UserExternalName { namespace: KERNELS, index }) => Referent::Kernel(index),
                    Some(&UserExternalName { namespace: FUNCTIONS, index }) => Referent::Function(index),
                    Some(&UserExternalName { namespace: TABLES, index }) => Referent::Table(index),
                    other => return Err(failed(format!("it refers outside: {other:?}"))),
                },
                FinalizedRelocTarget::ExternalName(_) => {
                    return Err(failed(format!("it refers outside: {reloc:?}")));
                }
            };
            references.push(Reference { at: reloc.offset, kind: reloc.kind, to, addend: reloc.addend });
        }
        let code = code.code_buffer().to_vec();
        self.functions.push(DriverFunction { name: name.into(), public, code, references });
        Ok(())
    }
}

/// A function being written.
struct Writer<'a> {
    b: FunctionBuilder<'a>,
}

impl Writer<'_> {
    fn int(&mut self, ty: Type, value: i64) -> Value {
        self.b.ins().iconst(ty, if ty == I32 { i64::from(value as u32) } else { value })
    }

    fn offset(&mut self, value: Value, by: i64) -> Value {
        let by = self.int(I64, by);
        self.b.ins().iadd(value, by)
    }

    /// Offsets may be beyond 32 bits.
    fn load(&mut self, ty: Type, base: Value, offset: i64) -> Value {
        let at = self.offset(base, offset);
        self.b.ins().load(ty, MemFlagsData::trusted(), at, 0)
    }

    fn store(&mut self, value: Value, base: Value, offset: i64) {
        let at = self.offset(base, offset);
        self.b.ins().store(MemFlagsData::trusted(), value, at, 0);
    }

    fn compare(&mut self, cc: IntCC, a: Value, b: i64) -> Value {
        let ty = self.b.func.dfg.value_type(a);
        let b = self.int(ty, b);
        self.b.ins().icmp(cc, a, b)
    }

    fn name(&mut self, namespace: u32, index: u32) -> ExternalName {
        let name = UserExternalName { namespace, index };
        ExternalName::user(self.b.func.declare_imported_user_function(name))
    }

    fn function(&mut self, namespace: u32, index: u32, parameters: usize, result: Option<Type>) -> FuncRef {
        let mut signature = Signature::new(self.b.func.signature.call_conv);
        signature.params = vec![AbiParam::new(I64); parameters];
        signature.returns.extend(result.map(AbiParam::new));
        let signature = self.b.func.import_signature(signature);
        let name = self.name(namespace, index);
        self.b.func.import_function(ExtFuncData { name, signature, colocated: true, patchable: false })
    }

    /// Calls a function of the driver.
    fn call(&mut self, index: u32, operands: &[Value]) {
        let function = self.function(FUNCTIONS, index, operands.len(), None);
        self.b.ins().call(function, operands);
    }

    /// The result of a function of the driver.
    fn result(&mut self, index: u32, operands: &[Value], ty: Type) -> Value {
        let function = self.function(FUNCTIONS, index, operands.len(), Some(ty));
        let call = self.b.ins().call(function, operands);
        self.b.inst_results(call)[0]
    }

    /// The address of a kernel.
    fn kernel(&mut self, offset: u64) -> Value {
        let function = self.function(KERNELS, offset as u32, 4, None);
        self.b.ins().func_addr(I64, function)
    }

    /// The address of a table.
    fn table(&mut self, offset: u32) -> Value {
        let name = self.name(TABLES, offset);
        let data = GlobalValueData::Symbol { name, offset: 0.into(), colocated: true, tls: false };
        let table = self.b.create_global_value(data);
        self.b.ins().symbol_value(I64, table)
    }

    /// Calls a function at an address.
    fn call_at(&mut self, address: Value, operands: &[Value]) {
        let mut signature = Signature::new(self.b.func.signature.call_conv);
        signature.params = vec![AbiParam::new(I64); operands.len()];
        let signature = self.b.func.import_signature(signature);
        self.b.ins().call_indirect(signature, address, operands);
    }

    /// Returns `value` if `condition` is not 0.
    fn return_if(&mut self, condition: Value, value: Value) {
        let (out, on) = (self.b.create_block(), self.b.create_block());
        self.b.ins().brif(condition, out, &[], on, &[]);
        self.b.switch_to_block(out);
        self.b.ins().return_(&[value]);
        self.b.switch_to_block(on);
    }

    fn fail_if(&mut self, condition: Value, status: Status) {
        let status = self.int(I32, status.code());
        self.return_if(condition, status);
    }

    /// Returns `otherwise` if the memory is null or does not start with `mark`.
    fn check_mark(&mut self, memory: Value, mark: u64, otherwise: Value) {
        let null = self.compare(IntCC::Equal, memory, 0);
        self.return_if(null, otherwise);
        let found = self.load(I64, memory, 0);
        let raw = self.compare(IntCC::NotEqual, found, mark as i64);
        self.return_if(raw, otherwise);
    }

    /// Returns `otherwise` if the state is null or not open.
    fn check_open(&mut self, state: Value, otherwise: Value) {
        self.check_mark(state, OPEN, otherwise);
    }

    /// Returns `status` if the memory is null, misaligned or shorter than it must be.
    fn check_place(&mut self, memory: Value, bytes: Value, least: usize, status: Status) {
        let bad = self.misplaced(memory, STATE_ALIGN);
        let short = self.compare(IntCC::UnsignedLessThan, bytes, least as i64);
        let bad = self.b.ins().bor(bad, short);
        self.fail_if(bad, status);
    }

    /// Whether an address is null or no multiple of `align`.
    fn misplaced(&mut self, address: Value, align: usize) -> Value {
        let null = self.compare(IntCC::Equal, address, 0);
        let mask = self.int(I64, align as i64 - 1);
        let low = self.b.ins().band(address, mask);
        let off = self.compare(IntCC::NotEqual, low, 0);
        self.b.ins().bor(null, off)
    }

    /// The address of element `index` of an array.
    fn element(&mut self, array: Value, index: Value, bytes: usize) -> Value {
        let at = self.b.ins().imul_imm_s(index, bytes as i64);
        self.b.ins().iadd(array, at)
    }

    fn finish(&mut self, value: Option<Value>) {
        let values: Vec<Value> = value.into_iter().collect();
        self.b.ins().return_(&values);
    }

    /// `for index in begin..end by step`; `by` and `end` are values of the function.
    fn for_range(&mut self, begin: Value, end: Value, by: i64, body: impl FnOnce(&mut Self, Value)) {
        let index: Variable = self.b.declare_var(I64);
        self.b.def_var(index, begin);
        let (head, inside, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().jump(head, &[]);
        self.b.switch_to_block(head);
        let at = self.b.use_var(index);
        let more = self.b.ins().icmp(IntCC::UnsignedLessThan, at, end);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        body(self, at);
        let next = self.offset(at, by);
        self.b.def_var(index, next);
        self.b.ins().jump(head, &[]);
        self.b.switch_to_block(after);
    }
}

/// `launch(engine, kernel, frame, tiles, tile_ns)`: one kernel over its tiles, on this thread or by the caller's
/// callback.
fn launch_body(places: &Places) -> impl FnOnce(&mut Writer<'_>, &[Value]) {
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
const SEGMENT: [i64; 4] = [
    std::mem::offset_of!(Segment, first) as i64,
    std::mem::offset_of!(Segment, rows) as i64,
    std::mem::offset_of!(Segment, keys) as i64,
    std::mem::offset_of!(Segment, kv) as i64,
];

/// `groups(engine, by)`: groups of `by` rows of the call's segments, each one's last as short as it is.
fn groups(w: &mut Writer<'_>, places: &Places, engine: Value, by: Value) {
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
fn run(w: &mut Writer<'_>, variants: &[program::Variant<u64>], engine: Value, frame: Value) {
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
fn call_on_frame(w: &mut Writer<'_>, call: &Call, engine: Value, rows: Value) {
    let frame = w.offset(engine, call.frame as i64);
    w.store(rows, frame, (FRAME_ROWS * 8) as i64);
    w.call(FIRST_RUN + call.function as u32, &[engine, frame]);
}

/// `place(state, ids, rows, first)`: puts a state's next rows into the call, from row `first` on, as its next segment.
fn place(w: &mut Writer<'_>, places: &Places, p: &[Value]) {
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
    let segment = w.offset(segment, places.segments as i64);
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
fn forward(w: &mut Writer<'_>, places: &Places, engine: Value, rows: Value) {
    for call in &places.body {
        call_on_frame(w, call, engine, rows);
    }
    w.finish(None);
}

/// `settle(state, index)`: what the call appended as segment `index` is the state's.
fn settle(w: &mut Writer<'_>, image: &Image, places: &Places, state: Value, index: Value) {
    let engine = w.load(I64, state, word::ENGINE.into());
    let segment = w.element(engine, index, Segment::BYTES);
    let segment = w.offset(segment, places.segments as i64);
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
fn set_predicts(w: &mut Writer<'_>, state: Value, predicts: Value) {
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
fn append(w: &mut Writer<'_>, image: &Image, p: &[Value]) {
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
fn prefill(w: &mut Writer<'_>, state: Value, ids: Value, count: Value) {
    let phase = w.int(I64, number(Phase::Prefill));
    let status = w.result(APPEND, &[state, ids, count, phase], I32);
    w.finish(Some(status));
}

/// `decode(state, id)`: appends one token.
fn decode(w: &mut Writer<'_>, state: Value, id: Value) {
    let slot = w.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, 8, 3));
    let id = w.b.ins().ireduce(I32, id);
    w.b.ins().stack_store(I64, id, slot, 0);
    let ids = w.b.ins().stack_addr(I64, slot, 0);
    let (one, phase) = (w.int(I64, 1), w.int(I64, number(Phase::Decode)));
    let status = w.result(APPEND, &[state, ids, one, phase], I32);
    w.finish(Some(status));
}

/// `step(states, ids, count)`: appends a token to each of several states of one engine, in one call.
fn step(w: &mut Writer<'_>, image: &Image, (batches, most): (bool, usize), p: &[Value]) {
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

/// `logits(state)` and `argmax(state)`: a head on the last row, run when first asked for; it writes at `to` in the
/// state.
#[allow(clippy::too_many_arguments)]
fn output(
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

/// `rollback(state, position)`: forgets the tokens from there on.
fn rollback(w: &mut Writer<'_>, places: &Places, state: Value, to: Value) {
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

/// `init(engine, engine_bytes, weights, weights_bytes, parallel_for, context)`.
fn init(w: &mut Writer<'_>, places: &Places, file: &WeightsFile, template: u32, p: &[Value]) {
    let [engine, engine_bytes, weights, weights_bytes, parallel_for, context] = p else {
        unreachable!("six parameters")
    };
    w.check_place(*engine, *engine_bytes, places.engine_bytes, Status::State);
    let bad = w.misplaced(*weights, WEIGHT_ALIGN);
    let other = w.compare(IntCC::NotEqual, *weights_bytes, file.bytes as i64);
    let bad = w.b.ins().bor(bad, other);
    w.fail_if(bad, Status::Weights);

    let hash: Variable = w.b.declare_var(I64);
    let zero = w.int(I64, 0);
    w.b.def_var(hash, zero);
    let end = w.int(I64, file.header.len() as i64);
    w.for_range(zero, end, 8, |w, at| {
        let at = w.b.ins().iadd(*weights, at);
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

/// `open(state, state_bytes, engine)`: a state at position 0.
fn open(w: &mut Writer<'_>, places: &Places, p: &[Value]) {
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
