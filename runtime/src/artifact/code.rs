//! Machine code in memory of its own: written first, then mapped to be executed, at no time both.
//!
//! The code is written into a file in memory (`memfd_create`), sealed, and mapped anew, readable and executable. No mapping is
//! ever turned from writable into executable, so this works where the system refuses that (`PR_SET_MDWE`, systemd's
//! `MemoryDenyWriteExecute=`). Where it has no such files, a mapping is turned.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};

use memmap2::{Mmap, MmapMut, MmapOptions};

/// Code that can be called; entry points die with it.
pub struct Executable(Mmap);

impl Executable {
    /// A copy of `code`, which must be position-independent.
    ///
    /// # Errors
    /// The system's answer, if it gives no memory or will not execute it.
    pub fn new(code: &[u8]) -> io::Result<Executable> {
        let memory = match in_file(code) {
            Ok(memory) => memory,
            Err(_) => turned(code)?,
        };
        flush(&memory);
        Ok(Executable(memory))
    }

    /// The address of the first byte, a multiple of a page.
    pub fn base(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

/// Code in a file in memory, which nobody can write to any more, mapped to be executed.
fn in_file(code: &[u8]) -> io::Result<Mmap> {
    let mut file = memory_file()?;
    file.write_all(if code.is_empty() { &[0] } else { code })?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: asks the system about a file that is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the file is sealed: nobody can change or shorten it.
    unsafe { MmapOptions::new().map_exec(&file) }
}

fn memory_file() -> io::Result<File> {
    const NAME: &CStr = c"lapidary-code";
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Some systems demand to be told that it is no program to start; old ones do not know the word.
    for flags in [flags | libc::MFD_NOEXEC_SEAL, flags] {
        // SAFETY: the name ends in NUL.
        let file = unsafe { libc::memfd_create(NAME.as_ptr(), flags) };
        if file >= 0 {
            // SAFETY: a descriptor that is open and nobody else's.
            return Ok(unsafe { File::from_raw_fd(file) });
        }
    }
    Err(io::Error::last_os_error())
}

/// Code in memory that is turned from writable into executable.
fn turned(code: &[u8]) -> io::Result<Mmap> {
    let mut memory = MmapMut::map_anon(code.len().max(1))?;
    memory[..code.len()].copy_from_slice(code);
    memory.make_exec()
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// `mov eax, 42; ret`.
    const CODE: [u8; 6] = [0xb8, 42, 0, 0, 0, 0xc3];

    #[test]
    fn either_way_code_runs() {
        let ways: [fn(&[u8]) -> io::Result<Mmap>; 2] = [in_file, turned];
        for memory in ways {
            let memory = memory(&CODE).expect("memory");
            // SAFETY: the bytes are a function of this kind.
            let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(memory.as_ptr()) };
            assert_eq!(function(), 42);
        }
        assert!(Executable::new(&[]).is_ok());
    }

    /// The one mapping of the code cannot be written to.
    #[test]
    fn never_both() {
        let code = Executable::new(&CODE).expect("memory");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let start = format!("{:x}-", code.base().addr());
        let line = maps.lines().find(|line| line.starts_with(&start)).expect("its map");
        assert!(line.contains(" r-xs ") && line.contains("lapidary-code"), "{line}");
    }
}
