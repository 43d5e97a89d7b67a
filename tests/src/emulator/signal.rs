//! The emulator as the hand of this process' own CPU: a handler of SIGILL.
//!
//! Where the CPU meets an instruction that it lacks, the registers are taken from the signal's frame, and the emulator
//! goes on to the function's return, or to the first instruction that it does not list and the CPU may have. Registers
//! that the CPU has go back to the frame; those that it lacks (tiles, or the upper parts of vectors) each thread has in
//! memory. What neither knows ends the process by SIGILL, as it would have without the handler, after a line that names
//! it.

use std::arch::x86_64::__cpuid_count;
use std::cell::UnsafeCell;
use std::sync::OnceLock;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use super::scalar::Flags;
use super::{Cpu, Fault, MOST_CODE, Memory, Next};

thread_local! {
    // No destructor to run and a constant start: a signal handler may use it.
    static STATE: UnsafeCell<Cpu> = const { UnsafeCell::new(Cpu::reaching(Memory::All)) };
}

/// Makes code for other x86-64 CPUs run in this process. False if the system refuses.
pub fn install() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| {
        // SAFETY: the handler has the signature that SA_SIGINFO asks for; the structure is plain data.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = enter as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) == 0
        }
    })
}

/// The instruction that no CPU has. Code after it runs in the emulator: how the handler is tried on a CPU that has all.
pub fn resume_after_trap() -> [u8; 2] {
    [0x0f, 0x0b]
}

/// General registers in the order of instructions' numbers.
const GENERAL: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const CARRY: i64 = 1;
const ZERO: i64 = 1 << 6;
const SIGN: i64 = 1 << 7;
const OVERFLOW: i64 = 1 << 11;

/// Aligns the stack as the ABI has it at a call: QEMU 7.2 enters handlers 8 bytes off, where the kernel does not.
#[unsafe(naked)]
extern "C" fn enter(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    std::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "and rsp, -16",
        "call {handle}",
        "mov rsp, rbp",
        "pop rbp",
        "ret",
        handle = sym handle,
    )
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext_t, ours alone until the handler returns.
    let context = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    let carried = STATE.with(|state| {
        // SAFETY: the thread's own; the emulator's code is not interrupted by SIGILL.
        let cpu = unsafe { &mut *state.get() };
        // SAFETY: the frame is the one that the kernel made for this thread.
        let mut frame = unsafe { Frame::of(context.fpregs.cast()) };
        for (number, &register) in GENERAL.iter().enumerate() {
            cpu.general[number] = context.gregs[register as usize] as u64;
        }
        let flags = context.gregs[libc::REG_EFL as usize];
        let is = |bit: i64| flags & bit != 0;
        cpu.flags = Flags { carry: is(CARRY), zero: is(ZERO), sign: is(SIGN), overflow: is(OVERFLOW) };
        frame.read(cpu);
        let next = go_on(cpu, context.gregs[libc::REG_RIP as usize] as u64)?;
        for (number, &register) in GENERAL.iter().enumerate() {
            context.gregs[register as usize] = cpu.general[number] as i64;
        }
        let set = |on: bool, bit: i64| if on { bit } else { 0 };
        context.gregs[libc::REG_EFL as usize] = flags & !(CARRY | ZERO | SIGN | OVERFLOW)
            | set(cpu.flags.carry, CARRY)
            | set(cpu.flags.zero, ZERO)
            | set(cpu.flags.sign, SIGN)
            | set(cpu.flags.overflow, OVERFLOW);
        frame.write(cpu);
        context.gregs[libc::REG_RIP as usize] = next as i64;
        Ok::<(), Fault>(())
    });
    if let Err(fault) = carried {
        eprintln!("{fault}");
        // SAFETY: restores the default; the instruction runs again and ends the process.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

/// Carries out what stands from an address on; where the CPU itself goes on.
fn go_on(cpu: &mut Cpu, start: u64) -> Result<u64, Fault> {
    let mut at = start;
    let mut first = true;
    loop {
        // SAFETY: the CPU was about to run the code there; no instruction ends in the last 15 bytes of a code page that
        // has nothing mapped after it, for every function here ends in `ret` and tables follow.
        let code = unsafe { std::slice::from_raw_parts(at as *const u8, MOST_CODE) };
        let i = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
        if first && i.mnemonic() == Mnemonic::Ud2 {
            at = i.next_ip();
            first = false;
            continue;
        }
        at = match cpu.step(&i) {
            Ok(Next::Here) => i.next_ip(),
            Ok(Next::Jump(to)) => to,
            Ok(Next::Return) => {
                const STACK: usize = 4;
                let mut to = [0; 8];
                cpu.read(&i, cpu.general[STACK], &mut to)?;
                cpu.general[STACK] += 8;
                return Ok(u64::from_le_bytes(to));
            }
            Err(Fault::Unknown(_)) if !first => return Ok(at),
            Err(fault) => return Err(fault),
        };
        first = false;
    }
}

/// Vector registers in a signal's frame: the layout of FXSAVE, then that of XSAVE (Intel's manual, volume 1, chapter
/// 13; Linux' `arch/x86/include/uapi/asm/sigcontext.h`).
struct Frame {
    start: *mut u8,
    /// The state components that the frame has; none without XSAVE.
    components: u64,
}

/// State components: upper halves of registers of 256 bits, masks, upper halves of 512 bits, registers from 16 on.
const UPPER_256: u32 = 2;
const MASKS: u32 = 5;
const UPPER_512: u32 = 6;
const HIGH: u32 = 7;

impl Frame {
    const XMM: usize = 160;
    const RESERVED: usize = 464;
    const MAGIC: u32 = 0x4650_5853;
    const HEADER: usize = 512;

    /// # Safety
    /// The address must be that of the state in a signal's frame.
    unsafe fn of(start: *mut u8) -> Frame {
        let mut frame = Frame { start, components: 0 };
        let magic = u32::from_le_bytes(frame.bytes(Self::RESERVED));
        if magic == Self::MAGIC {
            frame.components = u64::from_le_bytes(frame.bytes(Self::RESERVED + 8));
        }
        frame
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        // SAFETY: offsets are those of components that the frame says it has.
        unsafe { self.start.add(at).cast::<[u8; N]>().read_unaligned() }
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        // SAFETY: offsets are those of components that the frame says it has.
        unsafe { self.start.add(at).cast::<[u8; N]>().write_unaligned(bytes) }
    }

    /// Where a component lies, if the CPU has it.
    fn component(&self, number: u32) -> Option<usize> {
        (self.components >> number & 1 == 1).then(|| __cpuid_count(0xd, number).ebx as usize)
    }

    /// Whether a component was in use; one that was not is all zeros.
    fn in_use(&self, number: u32) -> bool {
        u64::from_le_bytes(self.bytes(Self::HEADER)) >> number & 1 == 1
    }

    /// Dwords `from..from + N` of a register.
    fn words<const N: usize>(&self, at: usize) -> [u32; N] {
        std::array::from_fn(|word| u32::from_le_bytes(self.bytes(at + 4 * word)))
    }

    fn put_words(&mut self, at: usize, words: &[u32]) {
        for (n, word) in words.iter().enumerate() {
            self.put(at + 4 * n, word.to_le_bytes());
        }
    }

    /// Takes the registers that the CPU has.
    fn read(&self, cpu: &mut Cpu) {
        for n in 0..16 {
            cpu.vectors[n][..4].copy_from_slice(&self.words::<4>(Self::XMM + 16 * n));
            if let Some(at) = self.component(UPPER_256) {
                let upper = if self.in_use(UPPER_256) { self.words(at + 16 * n) } else { [0; 4] };
                cpu.vectors[n][4..8].copy_from_slice(&upper);
            }
            if let Some(at) = self.component(UPPER_512) {
                let upper = if self.in_use(UPPER_512) { self.words(at + 32 * n) } else { [0; 8] };
                cpu.vectors[n][8..].copy_from_slice(&upper);
            }
            if let Some(at) = self.component(HIGH) {
                cpu.vectors[16 + n] = if self.in_use(HIGH) { self.words(at + 64 * n) } else { [0; 16] };
            }
        }
        if let Some(at) = self.component(MASKS) {
            for n in 0..8 {
                cpu.masks[n] =
                    if self.in_use(MASKS) { u64::from_le_bytes(self.bytes(at + 8 * n)) } else { 0 };
            }
        }
    }

    /// Gives them back, all in use.
    fn write(&mut self, cpu: &Cpu) {
        for n in 0..16 {
            self.put_words(Self::XMM + 16 * n, &cpu.vectors[n][..4]);
            if let Some(at) = self.component(UPPER_256) {
                self.put_words(at + 16 * n, &cpu.vectors[n][4..8]);
            }
            if let Some(at) = self.component(UPPER_512) {
                self.put_words(at + 32 * n, &cpu.vectors[n][8..]);
            }
            if let Some(at) = self.component(HIGH) {
                self.put_words(at + 64 * n, &cpu.vectors[16 + n]);
            }
        }
        if let Some(at) = self.component(MASKS) {
            for n in 0..8 {
                self.put(at + 8 * n, cpu.masks[n].to_le_bytes());
            }
        }
        if self.components != 0 {
            /// That of registers of 128 bits, in FXSAVE's part.
            const SSE: u64 = 1 << 1;
            let vectors = SSE | 1 << UPPER_256 | 1 << MASKS | 1 << UPPER_512 | 1 << HIGH;
            let used = u64::from_le_bytes(self.bytes(Self::HEADER)) | vectors & self.components;
            self.put(Self::HEADER, used.to_le_bytes());
        }
    }
}
