//! Machine code of many kernels as one piece, for whoever runs, stores or links it.
//!
//! In: kernels and the arena's offsets. Out: a [`CodeImage`]: bytes that run wherever they lie at a multiple of
//! [`CODE_ALIGN`], the offset of each kernel, and what lies where. Each kernel is compiled once, for any CPU of the
//! table, this machine's or not, and equal ones (of functions that differ by a format elsewhere) share code; the
//! in-memory backend, artifacts and objects hold the same bytes. Invariants:
//! functions start at multiples of [`CODE_ALIGN`]; calls (of kernels to raw code) are relative to the caller and
//! resolved here; nothing refers to anything outside; the order is that of definition, raw code before its first
//! caller.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::ir::function::FunctionStencil;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{self, AbiParam, ExtFuncData, ExternalName, Signature, UserExternalName};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::{Context, FinalizedRelocTarget, control::ControlPlane};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use lapidary_runtime::program::{CODE_ALIGN, Symbol};

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
    /// Its CLIF, when asked for.
    pub clif: Option<String>,
    /// Its disassembly, when asked for.
    pub asm: Option<String>,
}

/// A function that was compiled, as it was before.
struct Made {
    function: FunctionStencil,
    /// Offsets of what it calls.
    callees: Vec<u32>,
    at: u32,
    code_bytes: usize,
    asm: Option<String>,
}

/// An image being made.
pub struct ImageBuilder {
    target: Target,
    context: Context,
    builder: FunctionBuilderContext,
    image: CodeImage,
    /// Offset of raw code, by what it does.
    raw: HashMap<Raw, u32>,
    /// What was compiled, by a hash of its function.
    made: HashMap<u64, Vec<Made>>,
    /// Whether [`Compiled`] carries CLIF and disassembly.
    pub listings: bool,
}

impl ImageBuilder {
    /// An empty image for this target.
    pub fn new(target: Target) -> ImageBuilder {
        ImageBuilder {
            target,
            context: Context::new(),
            builder: FunctionBuilderContext::new(),
            image: CodeImage::default(),
            raw: HashMap::new(),
            made: HashMap::new(),
            listings: false,
        }
    }

    /// Compiles a kernel; its entry has the index of the call, counted from 0. `arena` gives each buffer's offset in
    /// bytes.
    ///
    /// # Errors
    /// [`Error::Kernel`] if Cranelift refuses the code, or the image gets too large.
    pub fn define(&mut self, kernel: &Kernel, arena: &[usize]) -> Result<Compiled, Error> {
        let refuse = |reason: String| Error::Kernel { kernel: kernel.name.clone(), reason };
        self.context.clear();
        let mut raws = HashMap::new();
        for (micro, raw) in lower::raw_code(kernel, &self.target.features) {
            let offset = self.raw(micro, raw).map_err(refuse)?;
            let function = &mut self.context.func;
            let signature = function.import_signature(raw_signature(raw));
            let name = UserExternalName { namespace: 0, index: offset };
            let name = ExternalName::user(function.declare_imported_user_function(name));
            let callee = ExtFuncData { name, signature, colocated: true, patchable: false };
            raws.insert(raw, function.import_function(callee));
        }
        self.context.func.signature = self.kernel_signature();
        let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let mut emitter = Emitter::new(
            builder,
            self.target.features,
            arena,
            &raws,
            kernel.by_segment.then_some(kernel.tiles),
        );
        lower::lower(&mut emitter, kernel);
        let scratch_bytes = emitter.finish(self.target.isa.frontend_config());
        let clif = self.listings.then(|| self.context.func.display().to_string());
        let name = format!("k{}_{}", self.image.entries.len(), kernel.name);
        let (code_bytes, asm) = self.place_clif(name).map_err(refuse)?;
        Ok(Compiled { scratch_bytes, code_bytes, clif, asm })
    }

    /// A probe of the machine, as a kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the code cannot be made.
    pub fn define_probe(&mut self, probe: Probe) -> Result<(), Error> {
        let refuse = |reason: String| Error::Kernel { kernel: format!("{probe:?}"), reason };
        let features = self.target.features;
        let name = format!("probe{}", self.image.entries.len());
        match probe::assemble(probe, &features) {
            Some(code) => {
                let code = code.map_err(|e| refuse(e.to_string()))?;
                let at = self.place(name, &code).map_err(refuse)?;
                self.image.entries.push(at.into());
            }
            None => {
                self.context.clear();
                self.context.func.signature = self.kernel_signature();
                let raws = HashMap::new();
                let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
                let mut emitter = Emitter::new(builder, features, &[], &raws, None);
                emitter.take_scratch(64);
                probe::emit(&mut emitter, probe);
                emitter.finish(self.target.isa.frontend_config());
                self.place_clif(name).map_err(refuse)?;
            }
        }
        Ok(())
    }

    /// The last kernel's function, as Cranelift left it.
    #[cfg(test)]
    pub(crate) fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    /// The image.
    pub fn finish(self) -> CodeImage {
        self.image
    }

    /// Offset of raw code, made on first use.
    fn raw(&mut self, micro: &Microkernel, raw: Raw) -> Result<u32, String> {
        if let Some(&at) = self.raw.get(&raw) {
            return Ok(at);
        }
        let code = micro.assemble(raw).map_err(|e| format!("{}: {e}", micro.name))?;
        let at = self.place(format!("{}_{}", micro.name, self.raw.len()), &code)?;
        self.raw.insert(raw, at);
        Ok(at)
    }

    /// Compiles the context's function into the image as its next entry, or finds an equal one there: its length in
    /// bytes, and its disassembly if there are to be listings.
    fn place_clif(&mut self, name: String) -> Result<(usize, Option<String>), String> {
        let ir::Function { stencil, params, .. } = &self.context.func;
        let callees: Vec<u32> = params.user_named_funcs().values().map(|name| name.index).collect();
        let mut hasher = DefaultHasher::new();
        stencil.hash(&mut hasher);
        let key = hasher.finish();
        let mut same = self.made.get(&key).into_iter().flatten();
        if let Some(same) = same.find(|made| made.callees == callees && made.function == *stencil) {
            self.image.entries.push(same.at.into());
            return Ok((same.code_bytes, same.asm.clone()));
        }
        let function = stencil.clone();
        self.context.set_disasm(self.listings);
        let result = self.context.compile(&*self.target.isa, &mut ControlPlane::default());
        result.map_err(|e| format!("{:?}", e.inner))?;
        let code = self.context.compiled_code().ok_or("it has no code")?;
        if code.buffer.alignment as usize > CODE_ALIGN {
            return Err(format!("its code asks for an alignment of {} bytes", code.buffer.alignment));
        }
        let mut bytes = code.code_buffer().to_vec();
        let at = next(self.image.bytes.len());
        for reloc in code.buffer.relocs() {
            let callee = callee(&reloc.target, &self.context.func)
                .ok_or_else(|| format!("it refers outside: {reloc:?}"))?;
            let distance = i64::from(callee) - (at as i64 + i64::from(reloc.offset)) + reloc.addend;
            patch(&mut bytes, reloc.offset as usize, reloc.kind, distance)?;
        }
        let asm = code.vcode.clone();
        let at = self.place(name, &bytes)?;
        self.image.entries.push(at.into());
        let code_bytes = bytes.len();
        self.made.entry(key).or_default().push(Made { function, callees, at, code_bytes, asm: asm.clone() });
        Ok((code_bytes, asm))
    }

    /// Appends a function: its offset.
    fn place(&mut self, name: String, code: &[u8]) -> Result<u32, String> {
        let at = next(self.image.bytes.len());
        if at + code.len() > MOST_BYTES {
            return Err(format!("the code is larger than {MOST_BYTES} bytes"));
        }
        self.image.bytes.resize(at, 0);
        self.image.bytes.extend_from_slice(code);
        self.image.symbols.push(Symbol { name, offset: at as u64, bytes: code.len() as u64 });
        Ok(at as u32)
    }

    /// `(frame, tile_begin, tile_end, scratch)`, all 64-bit words; no result. The target's C convention.
    fn kernel_signature(&self) -> Signature {
        let mut signature = Signature::new(self.target.isa.default_call_conv());
        signature.params = vec![AbiParam::new(I64); 4];
        signature
    }
}

/// Raw code's signature: words in, no result.
fn raw_signature(raw: Raw) -> Signature {
    let mut signature = Signature::new(CallConv::SystemV);
    signature.params = vec![AbiParam::new(I64); raw.operands()];
    signature
}

/// Where the next function starts after `bytes` of code.
fn next(bytes: usize) -> usize {
    bytes.next_multiple_of(CODE_ALIGN)
}

/// Offset of the raw code that a relocation is to: what [`ImageBuilder::define`] named it.
fn callee(target: &FinalizedRelocTarget, function: &ir::Function) -> Option<u32> {
    match target {
        FinalizedRelocTarget::ExternalName(ExternalName::User(name)) => {
            function.params.user_named_funcs().get(*name).map(|name| name.index)
        }
        _ => None,
    }
}

/// Writes a call's distance, in bytes from the relocation's place.
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
