//! The in-memory backend: an image's code, made executable in this process.
//!
//! In: a [`CodeImage`], which is position-independent. Out: its place, which lives as long as the [`Code`] that holds it. Memory
//! is never writable and executable at once, nor turned from one to the other where the system has files in memory
//! ([`Executable`]), so that it works where that is refused.

use lapidary_runtime::artifact::code::Executable;
use lapidary_runtime::program::KernelFn;

use crate::Error;
use crate::image::CodeImage;

/// Executable machine code; entry points die with it.
pub struct Code(Executable);

impl Code {
    /// The address of the image's first byte.
    pub fn base(&self) -> *const u8 {
        self.0.base()
    }

    /// The entry point at this offset of the image.
    ///
    /// # Safety
    /// The offset must be one of the image's entries, and the machine must have what its target needs; the entry point must
    /// not be called once the code is dropped.
    pub unsafe fn entry(&self, offset: u64) -> KernelFn {
        let address = self.base().wrapping_add(offset as usize);
        // SAFETY: entries are built with the signature of `KernelFn`, in the C convention.
        unsafe { std::mem::transmute::<*const u8, KernelFn>(address) }
    }
}

/// Makes an image for this machine executable.
///
/// # Errors
/// [`Error::Memory`] if memory cannot be had or executed.
pub fn map(image: &CodeImage) -> Result<Code, Error> {
    Executable::new(&image.bytes).map(Code).map_err(Error::Memory)
}
