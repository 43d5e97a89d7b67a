//! The in-memory backend: an image's code, made executable in this process through cranelift-jit.
//!
//! In: a [`CodeImage`]. Out: its place, which lives as long as the [`Code`] that holds it. Memory is never writable and
//! executable at once (cranelift-jit maps it writable, then flips it).

use cranelift_jit::{ArenaMemoryProvider, JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};
use lapidary_runtime::program::{CODE_ALIGN, KernelFn};

use crate::Error;
use crate::image::CodeImage;

/// Address space beyond the code's own that is asked for, in bytes: alignment of what cranelift-jit puts there.
const SLACK: usize = 1 << 16;

/// Executable machine code; entry points die with it.
pub struct Code {
    module: Option<JITModule>,
    base: *const u8,
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

impl Code {
    /// The address of the image's first byte.
    pub fn base(&self) -> *const u8 {
        self.base
    }

    /// The entry point at this offset of the image.
    ///
    /// # Safety
    /// The offset must be one of the image's entries, and the machine must have what its target needs; the entry point must
    /// not be called once the code is dropped.
    pub unsafe fn entry(&self, offset: u64) -> KernelFn {
        let address = self.base.wrapping_add(offset as usize);
        // SAFETY: entries are built with the signature of `KernelFn`, in the C convention.
        unsafe { std::mem::transmute::<*const u8, KernelFn>(address) }
    }
}

/// Makes an image for this machine executable.
///
/// # Errors
/// [`Error::Kernel`] if memory cannot be had or protected.
pub fn map(image: &CodeImage) -> Result<Code, Error> {
    let refuse = |e: &dyn std::fmt::Display| Error::Kernel { kernel: "all".into(), reason: e.to_string() };
    let mut builder = JITBuilder::new(default_libcall_names()).map_err(|e| refuse(&e))?;
    let memory = ArenaMemoryProvider::new_with_size(image.bytes.len() + SLACK).map_err(|e| refuse(&e))?;
    builder.memory_provider(Box::new(memory));
    let mut module = JITModule::new(builder);
    let signature = module.make_signature();
    let id = module.declare_function("image", Linkage::Local, &signature).map_err(|e| refuse(&e))?;
    // An empty function would have no address.
    let bytes = if image.bytes.is_empty() { &[0; CODE_ALIGN][..] } else { &image.bytes };
    module.define_function_bytes(id, CODE_ALIGN as u64, bytes, &[]).map_err(|e| refuse(&e))?;
    module.finalize_definitions().map_err(|e| refuse(&e))?;
    let base = module.get_finalized_function(id);
    Ok(Code { module: Some(module), base })
}
