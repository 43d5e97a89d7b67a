//! A model: an artifact with the engine that runs it.

use std::ffi::c_char;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use lapidary_runtime::artifact::PublicKey;
use lapidary_runtime::cpu::Cores;
use lapidary_runtime::file::Residence;
use lapidary_runtime::text::{Text, Tokenizer};
use lapidary_runtime::{Artifact, Engine};

use crate::boundary::{Failure, Status, call, give, optional_text, path, reference};

/// An open artifact.
pub struct Model(pub(crate) Arc<Opened>);

/// What a model and its sequences share.
pub(crate) struct Opened {
    pub(crate) engine: Mutex<Engine>,
    pub(crate) text: Text,
    /// Entries of a row of logits.
    pub(crate) vocab: usize,
}

impl Opened {
    /// The engine, once others have done their calls.
    pub(crate) fn engine(&self) -> Result<MutexGuard<'_, Engine>, Failure> {
        self.engine.lock().map_err(|_| Failure::broken())
    }

    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        let none = || Failure::new(Status::Absent, "the artifact has no tokenizer");
        self.text.tokenizer.as_ref().ok_or_else(none)
    }
}

/// Weights lie in the file, mapped, for the first step, then in memory of the process if there is room for twice as
/// many bytes: that is read faster.
pub const LAPIDARY_RESIDENCE_AUTO: u32 = 0;
/// Weights lie in the file, mapped: processes that open the same file share one copy.
pub const LAPIDARY_RESIDENCE_MAPPED: u32 = 1;
/// Weights are copied to memory of the process at once.
pub const LAPIDARY_RESIDENCE_MEMORY: u32 = 2;

fn residence(number: u32) -> Result<Residence, Failure> {
    match number {
        LAPIDARY_RESIDENCE_AUTO => Ok(Residence::Auto),
        LAPIDARY_RESIDENCE_MAPPED => Ok(Residence::Mapped),
        LAPIDARY_RESIDENCE_MEMORY => Ok(Residence::Memory),
        other => Err(Failure::argument(format!("residence is {other}"))),
    }
}

/// How an artifact is opened. All zeros, or null in its place, are the defaults.
#[repr(C)]
pub struct Options {
    /// CPU whose code is run; null: the best that the file has for this machine.
    cpu: *const c_char,
    /// PEM file of an ed25519 public key: a file that its owner did not sign is refused. Null: none. An artifact is
    /// code, and its hashes prove its integrity, not its origin.
    trust: *const c_char,
    /// Not 0: every section is held against its hash first. 0: only code and what describes it.
    verify: u32,
    /// Threads; 0: one a fast core.
    threads: u32,
    /// Most tokens that a sequence may hold, fewer than the file is compiled for; 0: as many.
    context: usize,
    /// Most bytes that the caches of all sequences may take; 0: any.
    kv_bytes: usize,
    /// LAPIDARY_RESIDENCE_AUTO, _MAPPED or _MEMORY.
    residence: u32,
}

/// What a model is.
#[repr(C)]
pub struct Info {
    /// Entries of a row of logits.
    vocab: usize,
    /// Most tokens that a sequence may hold.
    context: usize,
    /// Most tokens that are computed at once; a call may have any number.
    batch: usize,
    /// Threads, the caller's included.
    threads: usize,
    /// The token that texts begin with; 0 without a tokenizer.
    bos: u32,
    /// Whether it has a tokenizer.
    has_tokenizer: bool,
    /// Whether it has a chat template.
    has_chat_template: bool,
    /// Whether it was tuned to take turns: its prompts should be made by lapidary_chat().
    is_instruction_tuned: bool,
}

/// Where memory goes, in bytes.
#[repr(C)]
pub struct Memory {
    /// Weights.
    weights: usize,
    /// Of them, those in the mapped file.
    weights_mapped: usize,
    /// The caches of a sequence whose context is full.
    kv_sequence: usize,
    /// The caches of all sequences as they are, in whole pages.
    kv_used: usize,
    /// Temporaries of a call.
    arena: usize,
    /// Scratch of all threads.
    scratch: usize,
    /// The residual stream, inputs and logits.
    activations: usize,
}

/// Opens an artifact. `options` may be null.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_open(
    file: *const c_char,
    options: *const Options,
    model: *mut *mut Model,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { give(model, std::ptr::null_mut(), "model") }?;
        // SAFETY: the caller's promise.
        let file = unsafe { path(file, "file") }?;
        let none = Options {
            cpu: std::ptr::null(),
            trust: std::ptr::null(),
            verify: 0,
            threads: 0,
            context: 0,
            kv_bytes: 0,
            residence: LAPIDARY_RESIDENCE_AUTO,
        };
        // SAFETY: the caller's promise.
        let options = if options.is_null() { &none } else { unsafe { reference(options, "options") }? };
        // SAFETY: the caller's promise.
        let opened = unsafe { open(file, options) }?;
        // SAFETY: the caller's promise.
        unsafe { give(model, Box::into_raw(Box::new(Model(Arc::new(opened)))), "model") }
    })
}

/// # Safety
/// The options' texts must end with a null.
unsafe fn open(file: &Path, options: &Options) -> Result<Opened, Failure> {
    // SAFETY: the caller's promise.
    let cpu = unsafe { optional_text(options.cpu, "cpu") }?;
    let artifact = Arc::new(Artifact::open(file)?);
    if !options.trust.is_null() {
        // SAFETY: the caller's promise.
        artifact.signer(&[PublicKey::read(unsafe { path(options.trust, "trust") }?)?])?;
    }
    if options.verify != 0 {
        artifact.verify()?;
    }
    let mut program = artifact.program(cpu)?;
    if options.context > 0 {
        program.limit_context(options.context)?;
    }
    let vocab = program.plan.vocab;
    let text = Text::of(&artifact, vocab)?;
    let threads = match options.threads {
        0 => Cores::here().threads(),
        n => n as usize,
    };
    let engine = Engine::new(Arc::new(program), artifact, threads)?;
    let mut engine = engine.with_residence(residence(options.residence)?)?;
    if options.kv_bytes > 0 {
        engine.limit_kv(options.kv_bytes);
    }
    Ok(Opened { engine: Mutex::new(engine), text, vocab })
}

/// Frees a model; null is none. Its sequences live on.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_close(model: *mut Model) {
    call(|| {
        if !model.is_null() {
            // SAFETY: the caller's promise: `lapidary_open` gave it, and nobody uses it any more.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// Says what a model is.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_describe(model: *const Model, info: *mut Info) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let opened = &unsafe { reference(model, "model") }?.0;
        let engine = opened.engine()?;
        let plan = &engine.program().plan;
        let text = &opened.text;
        let told = Info {
            vocab: plan.vocab,
            context: plan.context,
            batch: plan.chunk,
            threads: engine.threads(),
            bos: text.tokenizer.as_ref().map_or(0, Tokenizer::bos_id),
            has_tokenizer: text.tokenizer.is_some(),
            has_chat_template: text.chat_template.is_some(),
            is_instruction_tuned: text.is_instruction_tuned(),
        };
        // SAFETY: the caller's promise.
        unsafe { give(info, told, "info") }
    })
}

/// Says where a model's memory goes.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_memory_of(model: *const Model, memory: *mut Memory) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let engine = unsafe { reference(model, "model") }?.0.engine()?;
        let lapidary_runtime::Memory {
            weights,
            weights_mapped,
            kv_local,
            kv_global,
            arena,
            scratch,
            activations,
        } = engine.memory();
        let (kv_sequence, kv_used) = (kv_local + kv_global, engine.kv_bytes());
        // SAFETY: the caller's promise.
        unsafe {
            give(
                memory,
                Memory { weights, weights_mapped, kv_sequence, kv_used, arena, scratch, activations },
                "memory",
            )
        }
    })
}

/// Sets the most bytes that the caches of all sequences may take: calls that need more give LAPIDARY_STATUS_MEMORY.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_limit_kv(model: *mut Model, bytes: usize) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { reference(model, "model") }?.0.engine()?.limit_kv(bytes);
        Ok(())
    })
}
