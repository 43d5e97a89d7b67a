//! Machine code in memory of its own: written first, then mapped to be executed, at no time both.
//!
//! In: code ([`Executable::new`]), or a place for somebody to write it into ([`Staging`]). The place is a file in
//! memory (`memfd_create`); once written, it is mapped anew where it was, readable and executable, and sealed. No
//! mapping is ever turned from writable into executable, so this works where the system refuses that (`PR_SET_MDWE`,
//! systemd's `MemoryDenyWriteExecute=`). Where there are no such files, or the system will not execute one, the mapping
//! is turned.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use memmap2::{MmapMut, MmapOptions};

/// Memory that code is written into before it can be called.
pub struct Staging {
    memory: MmapMut,
    /// The file that the memory is of, if it is of one.
    file: Option<File>,
}

impl Staging {
    /// Zeros, at least `len` bytes (at least one page).
    ///
    /// # Errors
    /// The system's answer, if it gives no memory.
    pub fn new(len: usize) -> io::Result<Staging> {
        let len = len.max(1);
        let in_file = || {
            let file = memory_file()?;
            file.set_len(len as u64)?;
            // SAFETY: nobody else has the file: nobody changes or shortens it.
            let memory = unsafe { MmapOptions::new().len(len).map_mut(&file) }?;
            io::Result::Ok(Staging { memory, file: Some(file) })
        };
        in_file().or_else(|_| Staging::anonymous(len))
    }

    /// The same, of no file.
    fn anonymous(len: usize) -> io::Result<Staging> {
        Ok(Staging { memory: MmapMut::map_anon(len)?, file: None })
    }

    /// Where the code goes, and where it will be: the start of a page.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Makes what was written executable, where it is; it can be written no more.
    ///
    /// # Errors
    /// The system's answer, if it will not execute it.
    pub fn seal(self) -> io::Result<Executable> {
        let Staging { memory, file } = self;
        let (start, len) = (memory.as_ptr().cast_mut().cast::<libc::c_void>(), memory.len());
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        let remapped = file.as_ref().is_some_and(|file| {
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            // SAFETY: takes the place of the mapping that `memory` owns, with the same bytes of the same file.
            let placed = unsafe { libc::mmap(start, len, executable, flags, file.as_raw_fd(), 0) };
            placed == start
        });
        match &file {
            Some(file) if remapped => {
                let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
                // SAFETY: asks the system about a file that is open.
                if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            // SAFETY: the mapping that `memory` owns; nobody writes to it from now on.
            _ if unsafe { libc::mprotect(start, len, executable) } != 0 => {
                return Err(io::Error::last_os_error());
            }
            _ => {}
        }
        flush(&memory);
        Ok(Executable(memory))
    }
}

/// Code that can be called; entry points die with it. What it holds is mapped for reading and executing.
pub struct Executable(MmapMut);

impl Executable {
    /// A copy of `code`, which must be position-independent.
    ///
    /// # Errors
    /// The system's answer, if it gives no memory or will not execute it.
    pub fn new(code: &[u8]) -> io::Result<Executable> {
        let mut staging = Staging::new(code.len())?;
        staging.bytes()[..code.len()].copy_from_slice(code);
        staging.seal()
    }

    /// The address of the first byte, a multiple of a page.
    pub fn base(&self) -> *const u8 {
        self.0.as_ptr()
    }
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
    /// The number of Linux' `riscv_flush_icache`: it runs `fence.i` on every hart, which a process cannot. The kernel
    /// always has it, and fails for unknown flags alone.
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
        for mut staging in
            [Staging::new(CODE.len()), Staging::anonymous(CODE.len())].map(|s| s.expect("memory"))
        {
            staging.bytes()[..CODE.len()].copy_from_slice(&CODE);
            let place = staging.bytes().as_ptr();
            let code = staging.seal().expect("executable");
            assert_eq!(code.base(), place);
            // SAFETY: the bytes are a function of this kind.
            let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(code.base()) };
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
        assert!(line.contains(" r-xp ") && line.contains("lapidary-code"), "{line}");
    }
}
