//! Machine code of many kernels as one piece, for whoever runs, stores or links it.
//!
//! In: kernels and the arena's offsets. Out: a [`CodeImage`]: bytes that run wherever they lie at a multiple of
//! [`CODE_ALIGN`], the offset of each kernel, and what lies where. Each kernel is compiled once, for any CPU of the
//! table, this machine's or not, and equal ones (of functions that differ by a format elsewhere) share code; the
//! in-memory backend, artifacts and objects hold the same bytes. Invariants:
//! functions start at multiples of [`CODE_ALIGN`]; calls (of kernels to raw code) are relative to the caller and
//! resolved here; nothing refers to anything outside; the order is that of definition, raw code before its first
//! caller. Kernels become Cranelift IR as they are defined and machine code at the end, all at once, on as many threads
//! as there are: the bytes do not depend on how many.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, ExtFuncData, ExternalName, Function, Signature, UserExternalName};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::{Context, FinalizedRelocTarget, control::ControlPlane};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use lapidary_runtime::program::{CODE_ALIGN, Symbol};
use lapidary_runtime::threads;

use crate::Error;
use crate::emit::Emitter;
use crate::kernel::Kernel;
use crate::lower;
use crate::micro::probe::{self, Probe};
use crate::micro::{Microkernel, Raw};
use crate::target::Target;

/// The most bytes of code: what the shortest call of a target (AArch64's) reaches.
const MOST_BYTES: usize = 128 << 20;

/// Finished code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeImage {
    /// Code and the read-only data among it.
    pub bytes: Vec<u8>,
    /// Offset of each kernel in bytes, in the order of definition.
    pub entries: Vec<u64>,
    /// Every function, raw code too, by rising offset.
    pub symbols: Vec<Symbol>,
}

/// What became of a kernel.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Scratch that it needs, in bytes a thread.
    pub scratch_bytes: usize,
    /// Machine code, in bytes.
    pub code_bytes: usize,
    /// What making it took: less where an equal kernel had been made.
    pub time: Duration,
    /// Its CLIF, when asked for.
    pub clif: Option<String>,
    /// Its disassembly, when asked for.
    pub asm: Option<String>,
}

/// A kernel that is defined.
struct Defined {
    /// The piece that is its code.
    piece: usize,
    /// Whether it is the first of that code.
    is_first: bool,
    compiled: Compiled,
}

/// A function of the image.
struct Piece {
    /// The kernel or the microkernel that it is of, as errors name it.
    of: String,
    /// Its symbol.
    name: String,
    code: Code,
}

enum Code {
    /// Made already.
    Raw(Vec<u8>),
    /// To be compiled; it calls pieces, by their index.
    Clif(Box<Function>),
}

/// Machine code of a piece, before it has a place.
struct Made {
    bytes: Vec<u8>,
    /// Calls: the place of the distance, its kind, the piece that is called and what is added.
    calls: Vec<(u32, Reloc, usize, i64)>,
    asm: Option<String>,
    time: Duration,
}

/// An image being made.
pub struct ImageBuilder {
    target: Target,
    builder: FunctionBuilderContext,
    /// In the order of definition.
    pieces: Vec<Piece>,
    kernels: Vec<Defined>,
    /// Raw code's piece, by what it does.
    raw: HashMap<Raw, usize>,
    /// Kernels' pieces, by a hash of their function.
    known: HashMap<u64, Vec<usize>>,
    /// Whether [`Compiled`] carries CLIF and disassembly.
    pub listings: bool,
}

impl ImageBuilder {
    /// An empty image for this target.
    pub fn new(target: Target) -> ImageBuilder {
        ImageBuilder {
            target,
            builder: FunctionBuilderContext::new(),
            pieces: vec![],
            kernels: vec![],
            raw: HashMap::new(),
            known: HashMap::new(),
            listings: false,
        }
    }

    /// Adds a kernel; its entry has the index of the call, counted from 0. `arena` gives each buffer's offset in bytes.
    ///
    /// # Errors
    /// [`Error::Kernel`] if its raw code cannot be made.
    pub fn define(&mut self, kernel: &Kernel, arena: &[usize]) -> Result<(), Error> {
        let start = Instant::now();
        let mut function = Function::with_name_signature(Default::default(), self.kernel_signature());
        let mut raws = HashMap::new();
        for (micro, raw) in lower::raw_code(kernel, &self.target.features) {
            let piece = self
                .raw(micro, raw)
                .map_err(|reason| Error::Kernel { kernel: kernel.name.clone(), reason })?;
            let signature = function.import_signature(raw_signature(raw));
            let name = UserExternalName { namespace: 0, index: piece as u32 };
            let name = ExternalName::user(function.declare_imported_user_function(name));
            let callee = ExtFuncData { name, signature, colocated: true, patchable: false };
            raws.insert(raw, function.import_function(callee));
        }
        let builder = FunctionBuilder::new(&mut function, &mut self.builder);
        let by_segment = kernel.by_segment.then_some(kernel.tiles);
        let mut emitter = Emitter::new(builder, self.target.features, arena, &raws, by_segment);
        lower::lower(&mut emitter, kernel);
        let scratch_bytes = emitter.finish(self.target.isa.frontend_config());
        let clif = self.listings.then(|| function.display().to_string());
        let name = format!("k{}_{}", self.kernels.len(), kernel.name);
        let compiled = Compiled { scratch_bytes, clif, time: start.elapsed(), ..Compiled::default() };
        self.push(kernel.name.clone(), name, function, compiled);
        Ok(())
    }

    /// A probe of the machine, as a kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the code cannot be made.
    pub fn define_probe(&mut self, probe: Probe) -> Result<(), Error> {
        let of = format!("{probe:?}");
        let features = self.target.features;
        let name = format!("probe{}", self.kernels.len());
        match probe::assemble(probe, &features) {
            Some(code) => {
                let code = code.map_err(|e| Error::Kernel { kernel: of.clone(), reason: e.to_string() })?;
                let compiled = Compiled { code_bytes: code.len(), ..Compiled::default() };
                self.kernels.push(Defined { piece: self.pieces.len(), is_first: true, compiled });
                self.pieces.push(Piece { of, name, code: Code::Raw(code) });
            }
            None => {
                let mut function = Function::with_name_signature(Default::default(), self.kernel_signature());
                let raws = HashMap::new();
                let builder = FunctionBuilder::new(&mut function, &mut self.builder);
                let mut emitter = Emitter::new(builder, features, &[], &raws, None);
                emitter.take_scratch(64);
                probe::emit(&mut emitter, probe);
                let scratch_bytes = emitter.finish(self.target.isa.frontend_config());
                self.push(of, name, function, Compiled { scratch_bytes, ..Compiled::default() });
            }
        }
        Ok(())
    }

    /// The last kernel's function, before Cranelift has it.
    #[cfg(test)]
    pub(crate) fn last(&self) -> &Function {
        match self.pieces.last().map(|piece| &piece.code) {
            Some(Code::Clif(function)) => function,
            Some(Code::Raw(_)) | None => panic!("no kernel of Cranelift's was defined"),
        }
    }

    /// The image, and what became of each kernel, in the order of definition.
    ///
    /// # Errors
    /// [`Error::Kernel`] if Cranelift refuses the code, or the image gets too large.
    pub fn finish(self) -> Result<(CodeImage, Vec<Compiled>), Error> {
        let ImageBuilder { target, pieces, kernels, listings, .. } = self;
        let mut image = CodeImage::default();
        let (codes, names): (Vec<_>, Vec<_>) =
            pieces.into_iter().map(|piece| (piece.code, (piece.of, piece.name))).unzip();
        let mades = threads::map(threads::of_machine(), codes, |code| match code {
            Code::Raw(bytes) => Ok(Made { bytes, calls: vec![], asm: None, time: Duration::ZERO }),
            Code::Clif(function) => make(*function, &target, listings),
        });
        let (mut offsets, mut made) = (Vec::with_capacity(names.len()), Vec::with_capacity(names.len()));
        for ((of, name), piece) in names.into_iter().zip(mades) {
            let refuse = |reason: String| Error::Kernel { kernel: of.clone(), reason };
            let mut piece = piece.map_err(refuse)?;
            let at = image.bytes.len().next_multiple_of(CODE_ALIGN);
            for &(place, kind, callee, addend) in &piece.calls {
                let distance = offsets[callee] as i64 - (at as i64 + i64::from(place)) + addend;
                patch(&mut piece.bytes, place as usize, kind, distance).map_err(refuse)?;
            }
            if at + piece.bytes.len() > MOST_BYTES {
                return Err(refuse(format!("the code is larger than {MOST_BYTES} bytes")));
            }
            image.bytes.resize(at, 0);
            image.bytes.extend_from_slice(&piece.bytes);
            image.symbols.push(Symbol { name, offset: at as u64, bytes: piece.bytes.len() as u64 });
            offsets.push(at as u64);
            made.push(piece);
        }
        image.entries = kernels.iter().map(|kernel| offsets[kernel.piece]).collect();
        let compiled = kernels.into_iter().map(|Defined { piece, is_first, mut compiled }| {
            let made = &made[piece];
            compiled.code_bytes = made.bytes.len();
            compiled.asm = made.asm.clone();
            compiled.time += if is_first { made.time } else { Duration::ZERO };
            compiled
        });
        Ok((image, compiled.collect()))
    }

    /// The piece of raw code, made on first use.
    fn raw(&mut self, micro: &Microkernel, raw: Raw) -> Result<usize, String> {
        if let Some(&piece) = self.raw.get(&raw) {
            return Ok(piece);
        }
        let code = micro.assemble(raw).map_err(|e| format!("{}: {e}", micro.name))?;
        let (piece, name) = (self.pieces.len(), format!("{}_{}", micro.name, self.raw.len()));
        self.pieces.push(Piece { of: micro.name.into(), name, code: Code::Raw(code) });
        self.raw.insert(raw, piece);
        Ok(piece)
    }

    /// Adds a function as the next entry, or finds an equal one.
    fn push(&mut self, of: String, name: String, function: Function, compiled: Compiled) {
        let mut hasher = DefaultHasher::new();
        function.stencil.hash(&mut hasher);
        let same = self.known.entry(hasher.finish()).or_default();
        let known = same.iter().copied().find(|&piece| match &self.pieces[piece].code {
            Code::Clif(other) => other.stencil == function.stencil && callees(other).eq(callees(&function)),
            Code::Raw(_) => false,
        });
        let piece = known.unwrap_or_else(|| {
            same.push(self.pieces.len());
            self.pieces.push(Piece { of, name, code: Code::Clif(Box::new(function)) });
            self.pieces.len() - 1
        });
        self.kernels.push(Defined { piece, is_first: known.is_none(), compiled });
    }

    /// `(frame, tile_begin, tile_end, scratch)`, all 64-bit words; no result. The target's C convention.
    fn kernel_signature(&self) -> Signature {
        let mut signature = Signature::new(self.target.isa.default_call_conv());
        signature.params = vec![AbiParam::new(I64); 4];
        signature
    }
}

/// The pieces that a function may call, by index.
fn callees(function: &Function) -> impl Iterator<Item = u32> {
    function.params.user_named_funcs().values().map(|name| name.index)
}

/// A function's machine code.
fn make(function: Function, target: &Target, listings: bool) -> Result<Made, String> {
    let start = Instant::now();
    let mut context = Context::for_function(function);
    context.set_disasm(listings);
    let result = context.compile(&*target.isa, &mut ControlPlane::default());
    result.map_err(|e| format!("{:?}", e.inner))?;
    let code = context.compiled_code().ok_or("it has no code")?;
    if code.buffer.alignment as usize > CODE_ALIGN {
        return Err(format!("its code asks for an alignment of {} bytes", code.buffer.alignment));
    }
    let calls = code.buffer.relocs().iter().map(|reloc| {
        let callee = callee(&reloc.target, &context.func);
        let callee = callee.ok_or_else(|| format!("it refers outside: {reloc:?}"))?;
        Ok((reloc.offset, reloc.kind, callee as usize, reloc.addend))
    });
    let calls = calls.collect::<Result<_, String>>()?;
    let (bytes, asm) = (code.code_buffer().to_vec(), code.vcode.clone());
    Ok(Made { bytes, calls, asm, time: start.elapsed() })
}

/// Raw code's signature: words in, no result.
fn raw_signature(raw: Raw) -> Signature {
    let mut signature = Signature::new(CallConv::SystemV);
    signature.params = vec![AbiParam::new(I64); raw.operands()];
    signature
}

/// The piece that a relocation is to: what [`ImageBuilder::define`] named it.
fn callee(target: &FinalizedRelocTarget, function: &Function) -> Option<u32> {
    let FinalizedRelocTarget::ExternalName(ExternalName::User(name)) = target else { return None };
    function.params.user_named_funcs().get(*name).map(|name| name.index)
}

/// Writes a call's distance, in bytes from the relocation's place.
#[expect(clippy::wildcard_enum_match_arm, reason = "Cranelift has many more kinds than calls have")]
fn patch(code: &mut [u8], at: usize, kind: Reloc, distance: i64) -> Result<(), String> {
    let too_far = || format!("a call over {distance} bytes");
    let word: &mut [u8; 4] = code
        .get_mut(at..)
        .and_then(|c| c.first_chunk_mut())
        .ok_or_else(|| format!("a relocation outside of its code, at {at}"))?;
    match kind {
        Reloc::X86PCRel4 | Reloc::X86CallPCRel4 => {
            *word = i32::try_from(distance).map_err(|_| too_far())?.to_le_bytes();
        }
        // `bl`: 26 bits that count instructions.
        Reloc::Arm64Call if distance % 4 == 0 && (-(1 << 27)..1 << 27).contains(&distance) => {
            let offset = (distance >> 2) as u32 & 0x03ff_ffff;
            *word = (u32::from_le_bytes(*word) & !0x03ff_ffff | offset).to_le_bytes();
        }
        Reloc::Arm64Call => return Err(too_far()),
        other => return Err(format!("a relocation of kind {other}")),
    }
    Ok(())
}
