//! Compilation: a module to a program, by way of passes, schedule, memory plan and kernels.
//!
//! In: a module, how its functions make up a model, and options. Out: an [`Image`] for whoever stores or links it, or
//! the [`Program`] that the runtime runs here, and for people every stage's result ([`FunctionReport`]). Each function
//! is saturated once and extracted, scheduled and lowered once a row regime. Nothing is executed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapidary_ir::{Function, InputKind, Module};
use lapidary_passes::{Machine, Report, Selection};
use lapidary_runtime::program::{self, Aligned, Image, Plan, Program, Step, Variant};
use lapidary_runtime::threads;

use crate::Error;
use crate::form::{HEADS, form};
use crate::image::{CodeImage, Compiled, ImageBuilder};
use crate::jit;
use crate::memory::MemoryPlan;
use crate::price::work;
use crate::schedule::{self, Schedule};
use crate::target::{Placement, Target};
use crate::view::Base;

pub use crate::form::{regime_of, regimes};

/// How to compile.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which rules run.
    pub selection: Selection,
    /// The CPU, a name of [`crate::target::TARGETS`] or `native`.
    pub cpu: String,
    /// The most positions, in tokens.
    pub context: usize,
    /// The most rows of a call, in tokens.
    pub chunk: usize,
    /// Whether products may round their activations where that is faster: to bf16, or to blocks of 8 bits.
    pub rounded: bool,
    /// The machine that kernels are priced for.
    pub machine: Machine,
    /// Whether kernels carry CLIF and disassembly.
    pub listings: bool,
}

/// How a module's functions make up a model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Entries of a row of logits.
    pub vocab: usize,
    /// Each layer's function and weight prefix.
    pub layers: Vec<(String, String)>,
}

/// A function compiled for one row regime, every stage of it.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The most rows of a call.
    pub rows: usize,
    /// The extracted function.
    pub function: Function,
    /// Its predicted time in nanoseconds, in the calls that it was extracted for: of one row, or of a chunk.
    pub nanoseconds: f64,
    /// Its kernels.
    pub schedule: Schedule,
    /// Its arena.
    pub memory: MemoryPlan,
    /// What became of each kernel, once all are machine code.
    pub compiled: Vec<Compiled>,
}

/// A compiled function, every stage of it.
#[derive(Clone, Debug)]
pub struct FunctionReport {
    /// As the model wrote it.
    pub source: Function,
    /// What saturation did.
    pub saturation: Report,
    /// By rising rows.
    pub variants: Vec<Lowered>,
    /// What each stage took.
    pub times: Times,
}

/// Time of each stage of a function, all row regimes together. Several threads may be at work: sums are no wall time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Verifying and saturating.
    pub saturate: Duration,
    /// Extracting, and verifying the result.
    pub extract: Duration,
    /// Kernels, views and the memory plan.
    pub schedule: Duration,
    /// Machine code.
    pub code: Duration,
}

/// A program and how it came about.
pub struct Compilation {
    /// For the runtime.
    pub program: Arc<Program>,
    /// For people.
    pub functions: Vec<FunctionReport>,
    /// Graph to machine code, wall time.
    pub time: Duration,
}

/// A program that is not in place, and how it came about.
pub struct ImageCompilation {
    /// For artifacts, objects and the in-memory backend.
    pub image: Image,
    /// For people.
    pub functions: Vec<FunctionReport>,
    /// Graph to machine code, wall time.
    pub time: Duration,
}

/// Compiles a model to run in this process. The caller sees to it that the CPU is this machine's.
///
/// # Errors
/// A graph that is broken or has no kernels, an unknown CPU, memory that cannot be had.
pub fn compile(module: &Module, model: &Model, options: &Options) -> Result<Compilation, Error> {
    let start = Instant::now();
    let ImageCompilation { image, functions, .. } = compile_image(module, model, options)?;
    let Image { functions: unlinked, constants, plan, code, .. } = image;
    let image = CodeImage { bytes: code, ..CodeImage::default() };
    let code = jit::map(&image)?;
    let program = Program {
        functions: link(unlinked, &code),
        constants: Aligned::from_bytes(&constants),
        plan,
        made_for: Target::new(&options.cpu, Placement::Object)?.made_for(),
        code: Box::new(code),
    };
    Ok(Compilation { program: Arc::new(program), functions, time: start.elapsed() })
}

/// Compiles a model for any CPU of the table.
///
/// # Errors
/// As [`compile`].
pub fn compile_image(module: &Module, model: &Model, options: &Options) -> Result<ImageCompilation, Error> {
    compile_image_for(Target::new(&options.cpu, Placement::Object)?, module, model, options)
}

/// The same for a target that need not have a name; measured prices are those of the options' CPU.
///
/// # Errors
/// As [`compile`].
pub fn compile_image_for(
    target: Target,
    module: &Module,
    model: &Model,
    options: &Options,
) -> Result<ImageCompilation, Error> {
    let start = Instant::now();
    let mut compiler = Compiler::new(options, target);
    compiler.add(&module.functions)?;
    let Finished { reports, functions, constants, code } = compiler.finish()?;
    let index = |name: &str| {
        module.functions.iter().position(|f| f.name == name).ok_or_else(|| Error::Unsupported {
            function: name.into(),
            node: "module".into(),
            reason: "the module has no such function".into(),
        })
    };
    let layers = model
        .layers
        .iter()
        .map(|(name, prefix)| Ok(program::Layer { function: index(name)?, prefix: prefix.clone() }))
        .collect::<Result<_, Error>>()?;
    let caches = module.functions.iter().flat_map(|f| &f.inputs);
    let cache = caches.filter(|i| matches!(i.kind, InputKind::Cache { .. })).map(|i| i.ty.dtype).next();
    let plan = Plan {
        kv: cache.map_or("none", |dtype| dtype.name()).into(),
        hidden: model.hidden,
        vocab: model.vocab,
        context: options.context,
        chunk: options.chunk,
        embed: index("embed")?,
        layers,
        head: index(HEADS[0])?,
        head_argmax: index(HEADS[1])?,
    };
    let image = Image { functions, constants, plan, code: code.bytes, symbols: code.symbols };
    Ok(ImageCompilation { image, functions: reports, time: start.elapsed() })
}

/// Compiles functions that make up no model, and maps them: what tests run.
///
/// # Errors
/// As [`compile`].
pub fn compile_functions(functions: &[Function], options: &Options) -> Result<Loose, Error> {
    let mut compiler = Compiler::new(options, Target::new(&options.cpu, Placement::Object)?);
    compiler.add(functions)?;
    let Finished { reports, functions, constants, code } = compiler.finish()?;
    let code = jit::map(&code)?;
    let constants = Aligned::from_bytes(&constants);
    Ok(Loose { reports, functions: link(functions, &code), constants, code: Box::new(code) })
}

/// Functions with their entry points in place.
pub(crate) fn link(functions: Vec<program::Function<u64>>, code: &jit::Code) -> Vec<program::Function> {
    // SAFETY: the offsets are entries of the image that was mapped; whoever holds the functions holds the code.
    functions.into_iter().map(|f| unsafe { f.link(code.base()) }).collect()
}

/// Compiled functions and what they need to run.
pub struct Loose {
    /// Every stage of each function.
    pub reports: Vec<FunctionReport>,
    /// What to call.
    pub functions: Vec<program::Function>,
    /// Folded tables.
    pub constants: Aligned,
    /// Owner of the machine code.
    pub code: Box<dyn std::any::Any + Send + Sync>,
}

pub(crate) struct Compiler<'a> {
    options: &'a Options,
    target: Target,
    image: ImageBuilder,
    constants: Vec<u8>,
    functions: Vec<FunctionReport>,
}

pub(crate) struct Finished {
    pub(crate) reports: Vec<FunctionReport>,
    pub(crate) functions: Vec<program::Function<u64>>,
    pub(crate) constants: Vec<u8>,
    pub(crate) code: CodeImage,
}

impl<'a> Compiler<'a> {
    pub(crate) fn new(options: &'a Options, target: Target) -> Compiler<'a> {
        let mut image = ImageBuilder::new(target.clone());
        image.listings = options.listings;
        Compiler { options, target, image, constants: vec![], functions: vec![] }
    }

    /// Adds functions: their forms by as many threads as there are, unless forms are to be measured.
    pub(crate) fn add(&mut self, functions: &[Function]) -> Result<(), Error> {
        let (options, features) = (self.options, self.target.features);
        let threads = if options.machine.measured.is_some() { 1 } else { threads::of_machine() };
        let formed = threads::map(threads, functions.iter().collect(), |f| form(f, options, features));
        formed.into_iter().try_for_each(|formed| self.define(formed?))
    }

    /// Kernels to Cranelift IR.
    fn define(&mut self, mut formed: FunctionReport) -> Result<(), Error> {
        for Lowered { schedule, memory, .. } in &mut formed.variants {
            self.place_constants(schedule);
            schedule.kernels.iter().try_for_each(|kernel| self.image.define(kernel, &memory.offsets))?;
        }
        self.functions.push(formed);
        Ok(())
    }

    /// Moves a schedule's tables into the program's; equal ones are shared.
    fn place_constants(&mut self, schedule: &mut Schedule) {
        if schedule.constants.is_empty() {
            return;
        }
        let own = &schedule.constants;
        let step = 64;
        let same = (0..self.constants.len().saturating_sub(own.len() - 1))
            .step_by(step)
            .find(|&at| self.constants[at..at + own.len()] == own[..]);
        let start = same.unwrap_or_else(|| {
            let at = self.constants.len().next_multiple_of(step);
            self.constants.resize(at, 0);
            self.constants.extend(own);
            at
        });
        for kernel in &mut schedule.kernels {
            for view in kernel.inputs.iter_mut().chain(&mut kernel.outputs) {
                if let Base::Constant(at) = &mut view.base {
                    *at += start;
                }
            }
        }
    }

    /// Machine code of all of it.
    pub(crate) fn finish(self) -> Result<Finished, Error> {
        let Compiler { target, image, constants, functions: mut reports, .. } = self;
        let (code, compiled) = image.finish()?;
        let mut compiled = compiled.into_iter();
        for report in &mut reports {
            for variant in &mut report.variants {
                variant.compiled = compiled.by_ref().take(variant.schedule.kernels.len()).collect();
                report.times.code += variant.compiled.iter().map(|c| c.time).sum::<Duration>();
            }
        }
        let features = target.features;
        let mut entries = code.entries.iter().copied();
        let functions = reports
            .iter()
            .map(|f| {
                let variants = f
                    .variants
                    .iter()
                    .map(|v| Variant {
                        rows: v.rows,
                        arena_bytes: v.memory.bytes,
                        scratch_bytes: v.compiled.iter().map(|c| c.scratch_bytes).max().unwrap_or(0),
                        steps: v
                            .schedule
                            .kernels
                            .iter()
                            .zip(&v.schedule.joins)
                            .zip(entries.by_ref())
                            .map(|((kernel, &joins), entry)| Step {
                                name: kernel.name.clone(),
                                kernel: entry,
                                tiles: kernel.tiles,
                                by_segment: kernel.by_segment,
                                tile_ns: schedule::tile_nanoseconds(kernel),
                                resumes: kernel.resumes(),
                                joins,
                                demand: work::demand(kernel, &features),
                            })
                            .collect(),
                    })
                    .collect();
                let slots = f.variants.first().map(|v| v.schedule.slots.clone()).unwrap_or_default();
                let batches = f.variants.iter().all(|v| v.schedule.batches);
                program::Function { name: f.source.name.clone(), slots, batches, variants }
            })
            .collect();
        Ok(Finished { reports, functions, constants, code })
    }
}
