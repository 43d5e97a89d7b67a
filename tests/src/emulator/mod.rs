//! An x86-64 CPU in software: carries out the machine code of microkernels, instruction by instruction.
//!
//! In: the code of a function for the System V convention, its arguments. It runs from its first instruction to its
//! return on general registers, flags, vector and mask registers and tile registers that [`Cpu`] holds, decoded from
//! its bytes. Memory is the process' own: [`Cpu::call`] lets code touch its arguments' buffers and itself alone, read
//! what is lent and write what is lent mutably. What is fetched ahead need not be there.
//!
//! Out: the buffers, or a [`Fault`] that names the instruction: one that is not listed, one that reaches outside, one
//! that breaks a rule of the tile registers. Flags are those that jumps of microkernels look at; the rounding mode is
//! to nearest even.
//!
//! `signal` makes this the hand that goes on where the machine's own CPU meets an instruction it lacks.

mod arithmetic;
mod elements;
mod scalar;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod signal;
mod tiles;
mod vector;

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};

use self::elements::Vector;
use self::scalar::Flags;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use self::signal::{install, resume_after_trap};
use self::tiles::Tiles;

/// The longest x86-64 instruction.
const MOST_CODE: usize = 15;
/// More instructions than any test's function takes.
const MOST_STEPS: u64 = 50_000_000;
/// Bytes of the stack that a function is called with.
const STACK_BYTES: usize = 64 << 10;
/// What registers that no caller has set hold: a NaN in every lane.
const UNSET: u32 = 0x7fc0_dead;

/// Why code could not go on.
#[derive(Debug)]
pub enum Fault {
    /// An instruction that the emulator does not list.
    Unknown(Instruction),
    /// An access of so many bytes that lie in no buffer, or in none that may be written.
    Outside(Instruction, u64, usize),
    /// Tile registers: not shaped, or shapes that do not fit.
    Tiles(Instruction),
    /// The function does not end.
    Endless,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |i: &Instruction| format!("{:?} ({:?}) at {:#x}", i.mnemonic(), i.code(), i.ip());
        match self {
            Fault::Unknown(i) => write!(f, "the emulator does not list {}", at(i)),
            Fault::Outside(i, address, bytes) => {
                write!(f, "{} touches {bytes} bytes at {address:#x}, outside of the operands", at(i))
            }
            Fault::Tiles(i) => write!(f, "{} breaks a rule of tile registers", at(i)),
            Fault::Endless => write!(f, "no return within {MOST_STEPS} instructions"),
        }
    }
}

/// One argument of a function.
pub enum Argument<'a> {
    /// The address of what may be read.
    In(&'a [u8]),
    /// The address of what may be read and written.
    Out(&'a mut [u8]),
    /// So many bytes into an argument before.
    Within(usize, usize),
    /// A number.
    Number(u64),
}

/// Memory that code may touch.
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    bytes: usize,
    writable: bool,
}

impl Region {
    fn holds(&self, at: u64, bytes: usize) -> bool {
        at >= self.start
            && at - self.start <= self.bytes as u64
            && bytes as u64 <= self.bytes as u64 - (at - self.start)
    }
}

/// What code may touch.
enum Memory {
    /// All that the process may: code of the process itself, whose accesses are its own.
    All,
    Regions(Vec<Region>),
}

/// Where to go on.
enum Next {
    Here,
    Jump(u64),
    Return,
}

/// The registers, and what memory they may reach.
pub struct Cpu {
    general: [u64; 16],
    flags: Flags,
    vectors: [Vector; 32],
    masks: [u64; 8],
    tiles: Tiles,
    memory: Memory,
}

impl Cpu {
    const fn reaching(memory: Memory) -> Cpu {
        Cpu {
            general: [0; 16],
            flags: Flags::NONE,
            vectors: [[UNSET; 16]; 32],
            masks: [0; 8],
            tiles: Tiles::EMPTY,
            memory,
        }
    }

    /// A CPU whose registers nobody has set.
    #[expect(clippy::new_without_default, reason = "a CPU is made, not defaulted to")]
    pub fn new() -> Cpu {
        Cpu::reaching(Memory::Regions(vec![]))
    }

    /// Calls a function of so much code. Tile registers last from call to call; other registers are the function's own.
    ///
    /// # Errors
    /// A [`Fault`], with the buffers as far as they were written.
    pub fn call(&mut self, code: &[u8], arguments: &mut [Argument<'_>]) -> Result<(), Fault> {
        const ORDER: [Register; 6] =
            [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
        let start = code.as_ptr() as u64;
        let mut regions = vec![Region { start, bytes: code.len(), writable: false }];
        let mut words = vec![];
        for argument in arguments.iter_mut() {
            words.push(match argument {
                Argument::In(bytes) => {
                    let start = bytes.as_ptr() as u64;
                    regions.push(Region { start, bytes: bytes.len(), writable: false });
                    start
                }
                Argument::Out(bytes) => {
                    let start = bytes.as_mut_ptr() as u64;
                    regions.push(Region { start, bytes: bytes.len(), writable: true });
                    start
                }
                Argument::Within(before, offset) => words[*before] + *offset as u64,
                Argument::Number(number) => *number,
            });
        }
        let mut stack = vec![0xa5u8; STACK_BYTES];
        regions.push(Region { start: stack.as_mut_ptr() as u64, bytes: stack.len(), writable: true });
        let tiles = std::mem::replace(&mut self.tiles, Tiles::EMPTY);
        *self = Cpu { tiles, ..Cpu::reaching(Memory::Regions(regions)) };
        for (register, word) in ORDER.into_iter().zip(&words) {
            self.general[scalar::number(register)] = *word;
        }
        // As a call leaves it: the address to return to, eight bytes off 16, then the other arguments.
        let rest = words.get(ORDER.len()..).unwrap_or_default();
        let bytes = rest.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let lowest = stack.as_ptr() as u64;
        let at = (lowest + (stack.len() - bytes.len()) as u64) / 16 * 16;
        stack[(at - lowest) as usize..][..bytes.len()].copy_from_slice(&bytes);
        self.general[scalar::number(Register::RSP)] = at - 8;
        let mut at = start;
        for _ in 0..MOST_STEPS {
            let left = &code[(at - start) as usize..];
            let instruction = Decoder::with_ip(64, left, at, DecoderOptions::NONE).decode();
            at = match self.step(&instruction)? {
                Next::Here => instruction.next_ip(),
                Next::Jump(to) if to >= start && to - start < code.len() as u64 => to,
                Next::Jump(to) => return Err(Fault::Outside(instruction, to, 1)),
                Next::Return => return Ok(()),
            };
        }
        Err(Fault::Endless)
    }

    /// Carries out one instruction.
    fn step(&mut self, i: &Instruction) -> Result<Next, Fault> {
        match i.mnemonic() {
            Mnemonic::Vzeroupper => {
                for vector in &mut self.vectors[..16] {
                    vector[4..].fill(0);
                }
                Ok(Next::Here)
            }
            _ if self.tile_step(i)? => Ok(Next::Here),
            _ => match self.scalar_step(i)? {
                Some(next) => Ok(next),
                None => self.vector_step(i).map(|()| Next::Here),
            },
        }
    }

    /// The address of an operand in memory.
    fn address(&self, i: &Instruction) -> u64 {
        if i.is_ip_rel_memory_operand() {
            return i.ip_rel_memory_address();
        }
        let (start, stride) = self.start_and_stride(i);
        start.wrapping_add(stride)
    }

    /// The two parts of an address: base and displacement, index and scale.
    fn start_and_stride(&self, i: &Instruction) -> (u64, u64) {
        let of = |r: Register| if r == Register::None { 0 } else { self.general[scalar::number(r)] };
        let stride = of(i.memory_index()).wrapping_mul(u64::from(i.memory_index_scale()));
        (of(i.memory_base()).wrapping_add(i.memory_displacement64()), stride)
    }

    fn may_touch(&self, i: &Instruction, at: u64, bytes: usize, write: bool) -> Result<(), Fault> {
        match &self.memory {
            Memory::All => Ok(()),
            Memory::Regions(all) if all.iter().any(|r| r.holds(at, bytes) && (r.writable || !write)) => {
                Ok(())
            }
            Memory::Regions(_) => Err(Fault::Outside(*i, at, bytes)),
        }
    }

    /// Reads memory.
    fn read(&self, i: &Instruction, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.may_touch(i, at, into.len(), false)?;
        // SAFETY: within a buffer that the call has borrowed, or an address that the process' own code was about to
        // read.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Writes memory.
    fn write(&self, i: &Instruction, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.may_touch(i, at, bytes.len(), true)?;
        // SAFETY: within a buffer that the call has borrowed mutably, or an address that the process' own code was
        // about to write.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        Ok(())
    }
}
