//! Memory that kernels work in.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::memory;

/// Bytes on a 64-byte boundary, zeroed at first: by the system, so that pages never touched cost no physical memory.
pub struct Aligned {
    allocation: NonNull<u8>,
    layout: Layout,
    /// The first byte: within the allocation, which has [`Aligned::BOUNDARY`] bytes to spare.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its allocation, nothing about it is tied to a thread.
unsafe impl Send for Aligned {}
// SAFETY: a shared one only reads.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// What the first byte's address is a multiple of.
    const BOUNDARY: usize = 64;

    /// `len` zero bytes.
    ///
    /// # Panics
    /// If there is no memory for them.
    pub fn zeroed(len: usize) -> Self {
        // SAFETY: as the caller says.
        let ask = |layout| unsafe { alloc_zeroed(layout) };
        Self::allocate(len, ask).unwrap_or_else(|| panic!("there is no memory for {len} bytes"))
    }

    /// `len` zero bytes, or nothing if there is no memory for them.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        // SAFETY: as the caller says.
        Self::allocate(len, |layout| memory::fallible(|| unsafe { alloc_zeroed(layout) }))
    }

    /// Zero bytes; `zeroed` is given a layout of a size that is not zero.
    fn allocate(len: usize, zeroed: impl FnOnce(Layout) -> *mut u8) -> Option<Self> {
        // Word-aligned with room to align by hand: for higher alignments the system allocator zeroes by writing.
        let layout = Layout::from_size_align(len.checked_add(Self::BOUNDARY)?, size_of::<u64>()).ok()?;
        let allocation = NonNull::new(zeroed(layout))?;
        let skip = allocation.as_ptr().align_offset(Self::BOUNDARY);
        // SAFETY: less than a boundary lies before the first multiple of it, which the allocation has to spare.
        let start = unsafe { allocation.add(skip.min(Self::BOUNDARY)) };
        Some(Self { allocation, layout, start, len })
    }

    /// A copy of `bytes`.
    ///
    /// # Panics
    /// If there is no memory for it.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::try_from_bytes(bytes).unwrap_or_else(|| panic!("there is no memory for {} bytes", bytes.len()))
    }

    /// A copy of `bytes`, or nothing if there is no memory for it.
    pub(crate) fn try_from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut aligned = Self::try_zeroed(bytes.len())?;
        aligned.as_mut_slice().copy_from_slice(bytes);
        Some(aligned)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The address of the first byte, to write.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the allocation has `len` initialised bytes from the start, borrowed with self.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the allocation has `len` initialised bytes from the start, borrowed mutably with self.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped once.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}
