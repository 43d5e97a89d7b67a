//! Machine code in memory of its own: written, then made executable, never both.

use std::io;

use memmap2::{Mmap, MmapMut};

/// Code that can be called; entry points die with it.
pub(super) struct Executable(Mmap);

impl Executable {
    /// A copy of `code`, which must be position-independent.
    ///
    /// # Errors
    /// The system's answer, if it gives no memory or will not execute it.
    pub(super) fn new(code: &[u8]) -> io::Result<Executable> {
        let mut memory = MmapMut::map_anon(code.len().max(1))?;
        memory[..code.len()].copy_from_slice(code);
        let memory = memory.make_exec()?;
        flush(&memory);
        Ok(Executable(memory))
    }

    /// The address of the first byte, a multiple of a page.
    pub(super) fn base(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

/// Makes instruction fetches see what was written: caches of instructions are coherent here.
#[cfg(not(any(target_arch = "aarch64", target_arch = "riscv64")))]
fn flush(_code: &[u8]) {}

/// Makes instruction fetches see what was written.
#[cfg(target_arch = "aarch64")]
fn flush(code: &[u8]) {
    use std::arch::asm;
    /// The smallest line that the architecture allows, in bytes: cleaning one twice is harmless.
    const LINE: usize = 16;
    let lines = || code.iter().step_by(LINE).map(std::ptr::from_ref);
    for line in lines() {
        // SAFETY: cleans a line of memory that is mapped; changes no memory.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: barriers change no memory.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
    for line in lines() {
        // SAFETY: invalidates a line of instructions; changes no memory.
        unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: barriers change no memory.
    unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Makes instruction fetches of every thread see what was written.
#[cfg(target_arch = "riscv64")]
fn flush(code: &[u8]) {
    /// The number of Linux' `riscv_flush_icache`: it runs `fence.i` on every hart, which a process cannot. The kernel always
    /// has it, and fails for unknown flags alone.
    const RISCV_FLUSH_ICACHE: libc::c_long = 259;
    const EVERY_THREAD: usize = 0;
    let range = code.as_ptr_range();
    // SAFETY: a system call that reads and writes no memory of the process.
    unsafe { libc::syscall(RISCV_FLUSH_ICACHE, range.start, range.end, EVERY_THREAD) };
}
