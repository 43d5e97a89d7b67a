//! The in-memory backend: an image's code, made executable in this process through cranelift-jit.
//!
//! In: a [`CodeImage`], which is position-independent. Out: its place, which lives as long as the [`Code`] that holds
//! it. Memory is never writable and executable at once, nor turned from one to the other where the system has files in
//! memory: cranelift-jit writes into what `Sealed` provides, so that it works where turning is refused.

use std::io;

use cranelift_jit::{BranchProtection, JITBuilder, JITMemoryKind, JITMemoryProvider, JITModule};
use cranelift_module::{Linkage, Module, ModuleError, ModuleResult, default_libcall_names};
use lapidary_runtime::artifact::code::{Executable, Staging};
use lapidary_runtime::program::{CODE_ALIGN, KernelFn};

use crate::Error;
use crate::image::CodeImage;

/// Memory for one image.
enum Sealed {
    /// Being written; so many bytes are taken.
    Open(Staging, usize),
    /// Executable.
    Closed { _code: Executable },
    /// Given back, or never had.
    Gone,
}

impl JITMemoryProvider for Sealed {
    fn allocate(&mut self, size: usize, align: u64, _kind: JITMemoryKind) -> io::Result<*mut u8> {
        let Sealed::Open(staging, taken) = self else { return Err(io::ErrorKind::OutOfMemory.into()) };
        // The start of the memory is a page's, whose length every alignment of code divides.
        let from = taken.next_multiple_of(align as usize);
        let place = staging.bytes().get_mut(from..from + size).ok_or(io::ErrorKind::OutOfMemory)?;
        *taken = from + size;
        Ok(place.as_mut_ptr())
    }

    unsafe fn free_memory(&mut self) {
        *self = Sealed::Gone;
    }

    fn finalize(&mut self, _branches: BranchProtection) -> ModuleResult<()> {
        if let Sealed::Open(staging, _) = std::mem::replace(self, Sealed::Gone) {
            let _code = staging.seal().map_err(|err| ModuleError::Allocation { err })?;
            *self = Sealed::Closed { _code };
        }
        Ok(())
    }
}

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
    /// The offset must be one of the image's entries, and the machine must have what its target needs; the entry point
    /// must not be called once the code is dropped.
    pub unsafe fn entry(&self, offset: u64) -> KernelFn {
        let address = self.base.wrapping_add(offset as usize);
        // SAFETY: entries are built with the signature of `KernelFn`, in the C convention.
        unsafe { std::mem::transmute::<*const u8, KernelFn>(address) }
    }
}

/// Makes an image for this machine executable.
///
/// # Errors
/// [`Error::Memory`] if memory cannot be had or executed.
pub fn map(image: &CodeImage) -> Result<Code, Error> {
    let refuse = |error: ModuleError| {
        if let ModuleError::Allocation { err } = error {
            Error::Memory(err)
        } else {
            Error::Kernel { kernel: "all".into(), reason: error.to_string() }
        }
    };
    // An empty function would have no address.
    let bytes = if image.bytes.is_empty() { &[0; CODE_ALIGN][..] } else { &image.bytes };
    let staging = Staging::new(bytes.len()).map_err(Error::Memory)?;
    let mut builder = JITBuilder::new(default_libcall_names()).map_err(refuse)?;
    builder.memory_provider(Box::new(Sealed::Open(staging, 0)));
    let mut module = JITModule::new(builder);
    let signature = module.make_signature();
    let id = module.declare_function("image", Linkage::Local, &signature).map_err(refuse)?;
    module.define_function_bytes(id, CODE_ALIGN as u64, bytes, &[]).map_err(refuse)?;
    module.finalize_definitions().map_err(refuse)?;
    let base = module.get_finalized_function(id);
    Ok(Code { module: Some(module), base })
}
