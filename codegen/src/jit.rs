//! The in-memory backend: kernels to machine code in this process, through cranelift-jit.
//!
//! In: kernels and the arena's offsets. Out: entry points, which live as long as the [`Code`] that holds them. Memory
//! is never writable and executable at once (cranelift-jit maps it writable, then flips it).

use std::collections::HashMap;

use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, Signature};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::{Context, control::ControlPlane};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{ArenaMemoryProvider, JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module, default_libcall_names};
use lapidary_runtime::program::KernelFn;

use crate::Error;
use crate::emit::Emitter;
use crate::kernel::Kernel;
use crate::lower;
use crate::micro::probe::{self, Probe};
use crate::micro::{Microkernel, Raw};
use crate::target::Target;

/// Address space reserved for a program's code, in one piece: calls reach 2 GiB. Memory is taken as it is written.
const CODE_SPACE: usize = 256 << 20;

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

/// Kernels being compiled into one module.
pub struct Jit {
    module: JITModule,
    target: Target,
    context: Context,
    builder: FunctionBuilderContext,
    functions: Vec<FuncId>,
    /// Raw code, by what it does.
    raw: HashMap<Raw, FuncId>,
    /// Whether [`Compiled`] carries CLIF and disassembly.
    pub listings: bool,
}

/// Finished machine code; entry points die with it.
pub struct Code {
    module: Option<JITModule>,
}

// SAFETY: the module is finished: nothing of it is touched but its executable memory, until it is freed on drop.
unsafe impl Send for Code {}
// SAFETY: as above; shared references reach nothing mutable.
unsafe impl Sync for Code {}

impl Drop for Code {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: the program that held the entry points owns this and is being dropped with them.
            unsafe { module.free_memory() }
        }
    }
}

impl Jit {
    /// An empty module for this target.
    ///
    /// # Errors
    /// [`Error::Kernel`] if address space for the code cannot be had.
    pub fn new(target: Target) -> Result<Jit, Error> {
        let mut builder = JITBuilder::with_isa(target.isa.clone(), default_libcall_names());
        let refuse =
            |e: &dyn std::fmt::Display| Error::Kernel { kernel: "all".into(), reason: e.to_string() };
        let memory = ArenaMemoryProvider::new_with_size(CODE_SPACE).map_err(|e| refuse(&e))?;
        builder.memory_provider(Box::new(memory));
        let module = JITModule::new(builder);
        let context = module.make_context();
        Ok(Jit {
            module,
            target,
            context,
            builder: FunctionBuilderContext::new(),
            functions: Vec::new(),
            raw: HashMap::new(),
            listings: false,
        })
    }

    /// Compiles a kernel; its entry point has the index of the call, counted from 0. `arena` gives each buffer's
    /// offset in bytes.
    ///
    /// # Errors
    /// [`Error::Kernel`] if Cranelift refuses the code.
    pub fn define(&mut self, kernel: &Kernel, arena: &[usize]) -> Result<Compiled, Error> {
        let refuse = |reason: String| Error::Kernel { kernel: kernel.name.clone(), reason };
        let mut raws = HashMap::new();
        for (micro, raw) in lower::raw_code(kernel, &self.target.features) {
            let id = self.raw(micro, raw).map_err(refuse)?;
            raws.insert(raw, self.module.declare_func_in_func(id, &mut self.context.func));
        }
        self.context.func.signature = kernel_signature(&self.module);
        let name = format!("k{}_{}", self.functions.len(), kernel.name);
        let id = self
            .module
            .declare_function(&name, Linkage::Local, &self.context.func.signature)
            .map_err(|e| refuse(e.to_string()))?;
        let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let mut emitter = Emitter::new(builder, self.target.features, arena, &raws);
        lower::lower(&mut emitter, kernel);
        let scratch_bytes = emitter.finish(self.module.target_config());
        let clif = self.listings.then(|| self.context.func.display().to_string());
        self.context.set_disasm(self.listings);
        self.module
            .define_function_with_control_plane(id, &mut self.context, &mut ControlPlane::default())
            .map_err(|e| refuse(format!("{e:?}")))?;
        let code = self.context.compiled_code();
        let compiled = Compiled {
            scratch_bytes,
            code_bytes: code.map_or(0, |c| c.code_info().total_size as usize),
            clif,
            asm: code.and_then(|c| c.vcode.clone()),
        };
        self.module.clear_context(&mut self.context);
        self.functions.push(id);
        Ok(compiled)
    }

    /// A probe of the machine, as a kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the code cannot be made.
    pub fn define_probe(&mut self, probe: Probe) -> Result<(), Error> {
        let refuse = |reason: String| Error::Kernel { kernel: format!("{probe:?}"), reason };
        let features = self.target.features;
        let mut signature = kernel_signature(&self.module);
        let raw = probe::assemble(probe, &features);
        if raw.is_some() {
            signature.call_conv = CallConv::SystemV;
        }
        let id = self
            .module
            .declare_function(&format!("probe{}", self.functions.len()), Linkage::Local, &signature)
            .map_err(|e| refuse(e.to_string()))?;
        match raw {
            Some(code) => {
                let code = code.map_err(|e| refuse(e.to_string()))?;
                self.module.define_function_bytes(id, 64, &code, &[]).map_err(|e| refuse(e.to_string()))?;
            }
            None => {
                self.context.func.signature = signature;
                let raws = HashMap::new();
                let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
                let mut emitter = Emitter::new(builder, features, &[], &raws);
                emitter.take_scratch(64);
                probe::emit(&mut emitter, probe);
                emitter.finish(self.module.target_config());
                self.module.define_function(id, &mut self.context).map_err(|e| refuse(format!("{e:?}")))?;
                self.module.clear_context(&mut self.context);
            }
        }
        self.functions.push(id);
        Ok(())
    }

    /// Raw code, made on first use.
    fn raw(&mut self, micro: &Microkernel, raw: Raw) -> Result<FuncId, String> {
        if let Some(&id) = self.raw.get(&raw) {
            return Ok(id);
        }
        let code = micro.assemble(raw).map_err(|e| format!("{}: {e}", micro.name))?;
        let mut signature = Signature::new(CallConv::SystemV);
        signature.params = vec![AbiParam::new(I64); raw.operands()];
        let name = format!("{}_{}", micro.name, self.raw.len());
        let id =
            self.module.declare_function(&name, Linkage::Local, &signature).map_err(|e| e.to_string())?;
        self.module.define_function_bytes(id, 64, &code, &[]).map_err(|e| e.to_string())?;
        self.raw.insert(raw, id);
        Ok(id)
    }

    /// Makes the code executable: the entry points, in the order of definition, and their owner.
    ///
    /// # Errors
    /// [`Error::Kernel`] if memory cannot be had or protected.
    pub fn finish(mut self) -> Result<(Vec<KernelFn>, Code), Error> {
        self.module
            .finalize_definitions()
            .map_err(|e| Error::Kernel { kernel: "all".into(), reason: e.to_string() })?;
        let entries = self
            .functions
            .iter()
            .map(|&id| {
                let address = self.module.get_finalized_function(id);
                // SAFETY: the function was built with the signature of `KernelFn`, in this machine's C convention.
                unsafe { std::mem::transmute::<*const u8, KernelFn>(address) }
            })
            .collect();
        Ok((entries, Code { module: Some(self.module) }))
    }
}

/// `(frame, tile_begin, tile_end, scratch)`, all 64-bit words; no result.
fn kernel_signature(module: &JITModule) -> Signature {
    let mut signature = module.make_signature();
    signature.params = vec![AbiParam::new(I64); 4];
    signature
}
