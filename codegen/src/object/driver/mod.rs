//! The driver of an object: what `runtime::Engine` does, as generated code.
//!
//! In: an image and where everything lies. Out: a [`Driver`]: functions whose references are not resolved yet, and the
//! read-only tables. `forward` is straight-line: a call of each layer's function on its frame; a function picks its
//! variant by the call's rows and launches its kernels in order. Invariants: the code refers to kernels, tables and
//! itself only; it allocates nothing; it writes engine and states alone, and only once its arguments are checked.
//!
//! | module | holds |
//! |---|---|
//! | `writer` | the hand that the functions are written with |
//! | `launch` | kernels over their tiles, functions on their frames |
//! | `tokens` | tokens into calls, and what calls leave to states |
//! | `heads` | logits and the most likely token |
//! | `open` | engines and states made ready |
//! | [`callable`] | the call of a function that is no model's |

pub mod callable;
mod heads;
mod launch;
mod open;
mod tokens;
mod writer;

use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{AbiParam, ExternalName, Signature, Type, UserExternalName, Value};
use cranelift_codegen::{Context, FinalizedRelocTarget, control::ControlPlane};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use lapidary_runtime::program::Image;

use super::state::{Engine, Places, STATE_ALIGN, word};
use super::weights::WeightsFile;
use super::{guard, refuse};
use crate::Error;
use crate::target::Target;
use writer::Writer;

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
    let (tables, template) = tables(&image.constants, &places.engine);
    let mut maker = Maker::new(target);
    maker.define("launch", false, 5, None, launch::launch(&places.engine))?;
    maker.define("groups", false, 2, Some(I64), |w, p| launch::groups(w, &places.engine, p[0], p[1]))?;
    maker.define("place", false, 4, None, |w, p| tokens::place(w, places, p))?;
    maker.define("settle", false, 2, None, |w, p| tokens::settle(w, image, places, p[0], p[1]))?;
    maker.define("forward", false, 2, None, |w, p| tokens::forward(w, places, p[0], p[1]))?;
    maker.define("append", false, 4, Some(I32), |w, p| tokens::append(w, image, p))?;
    for (index, function) in image.functions.iter().enumerate() {
        let called = index == places.head.call.function
            || index == places.head_argmax.call.function
            || places.body.iter().any(|c| c.function == index);
        // A function that nobody calls keeps its number.
        let steps = if called { &function.variants[..] } else { &[] };
        let name = format!("run_{}", function.name);
        maker.define(&name, false, 2, None, |w, p| launch::run(w, steps, p[0], p[1]))?;
    }
    maker.define("init", true, 6, Some(I32), |w, p| open::init(w, &places.engine, weights, template, p))?;
    maker.functions.last_mut().map_or(Ok(()), |init| guard::put_before(target, init))?;
    maker.define("open", true, 3, Some(I32), |w, p| open::open(w, places, p))?;
    maker.define("prefill", true, 3, Some(I32), |w, p| tokens::prefill(w, p[0], p[1], p[2]))?;
    maker.define("decode", true, 2, Some(I32), |w, p| tokens::decode(w, p[0], p[1]))?;
    let batches = image.functions.iter().all(|f| f.batches);
    maker.define("step", true, 3, Some(I32), |w, p| {
        tokens::step(w, image, (batches, places.decode_rows), p)
    })?;
    maker.define("logits", true, 1, Some(I64), |w, p| {
        let to = places.logits as i64;
        heads::output(w, places, p[0], &places.head, word::LOGITS_VALID, to, 0, |w, s| w.offset(s, to));
    })?;
    maker.define("argmax", true, 1, Some(I32), |w, p| {
        let to = word::TOKEN.into();
        heads::output(w, places, p[0], &places.head_argmax, word::TOKEN_VALID, to, -1, |w, s| {
            w.load(I32, s, to)
        });
    })?;
    maker.define("position", true, 1, Some(I64), |w, p| {
        let zero = w.int(I64, 0);
        w.check_open(p[0], zero);
        let position = w.load(I64, p[0], word::POSITION.into());
        w.finish(Some(position));
    })?;
    maker.define("rollback", true, 2, Some(I32), |w, p| tokens::rollback(w, places, p[0], p[1]))?;
    maker.functions.push(guard::supported(target)?);
    Ok(Driver { functions: maker.functions, tables })
}

/// The read-only tables, and where the frames' template starts in them.
fn tables(constants: &[u8], engine: &Engine) -> (Vec<u8>, u32) {
    let mut tables = constants.to_vec();
    tables.resize(tables.len().next_multiple_of(STATE_ALIGN), 0);
    let template = tables.len() as u32;
    tables.extend(engine.template.iter().flat_map(|w| w.to_le_bytes()));
    (tables, template)
}

/// Compiles functions.
struct Maker<'a> {
    target: &'a Target,
    context: Context,
    builder: FunctionBuilderContext,
    functions: Vec<DriverFunction>,
}

impl<'a> Maker<'a> {
    fn new(target: &'a Target) -> Maker<'a> {
        Maker { target, context: Context::new(), builder: FunctionBuilderContext::new(), functions: vec![] }
    }

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
