//! AMX in software, for tests: machine code with tile instructions runs on x86-64 CPUs that have none.
//!
//! [`ready`] installs a handler of SIGILL. An instruction of AMX that the CPU refuses is decoded where it stands and carried
//! out on tile registers that each thread has in memory, then the program goes on after it. On a CPU with AMX nothing is
//! installed, and the same tests run on the real unit. Invariants, after Intel's Software Developer's Manual, volume 2:
//! registers are shaped by LDTILECFG before use and every access keeps to its register's shape; TDPBF16PS takes denormals
//! as 0, fuses each product with its sum and sums even and odd elements of k apart. An instruction that breaks a rule, or is
//! no AMX, ends the process by SIGILL as it would have without the handler.

use std::cell::UnsafeCell;
use std::sync::OnceLock;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use lapidary_runtime::cpu;

const TILES: usize = 8;
const MOST_ROWS: usize = 16;
const MOST_ROW_BYTES: usize = 64;
/// The longest x86-64 instruction.
const MOST_CODE: usize = 15;

/// One thread's tile registers.
struct Tiles {
    configured: bool,
    rows: [usize; TILES],
    row_bytes: [usize; TILES],
    data: [[[u8; MOST_ROW_BYTES]; MOST_ROWS]; TILES],
}

const EMPTY: Tiles = Tiles {
    configured: false,
    rows: [0; TILES],
    row_bytes: [0; TILES],
    data: [[[0; MOST_ROW_BYTES]; MOST_ROWS]; TILES],
};

thread_local! {
    // No destructor and a constant start: a signal handler may use it.
    static STATE: UnsafeCell<Tiles> = const { UnsafeCell::new(EMPTY) };
}

/// Makes tile instructions usable in this process: by the CPU, or else by software. False where neither can be: the CPU must
/// have AVX-512, which code for AMX uses beside it.
pub fn ready() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| {
        if cpu::amx() == cpu::Amx::Ready {
            return true;
        }
        if !["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"].into_iter().all(cpu::has) {
            return false;
        }
        // SAFETY: the handler has the signature that SA_SIGINFO asks for; the structure is plain data.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) == 0
        }
    })
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext_t, ours alone until the handler returns.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as u64;
    // SAFETY: the CPU was about to run the code there; no instruction ends in the last 15 bytes of a code page that has
    // nothing mapped after it, for every function here ends in `ret` and tables follow.
    let code = unsafe { std::slice::from_raw_parts(rip as *const u8, MOST_CODE) };
    let instruction = Decoder::with_ip(64, code, rip, DecoderOptions::NONE).decode();
    let done = STATE.with(|state| {
        // SAFETY: the thread's own; code with tile instructions is not interrupted by itself.
        let tiles = unsafe { &mut *state.get() };
        // SAFETY: addresses are what the instruction would have used.
        unsafe { tiles.carry_out(&instruction, registers) }
    });
    match done {
        Some(()) => registers[libc::REG_RIP as usize] = instruction.next_ip() as i64,
        None => {
            // SAFETY: restores the default; the instruction runs again and ends the process.
            unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
        }
    }
}

impl Tiles {
    /// One instruction; none if it is no tile instruction or breaks a rule.
    ///
    /// # Safety
    /// The memory that the instruction addresses must be valid for what it does.
    unsafe fn carry_out(&mut self, i: &Instruction, registers: &[i64; 23]) -> Option<()> {
        let tile = |operand: u32| -> Option<usize> {
            let register = i.op_register(operand);
            register.is_tmm().then(|| register as usize - Register::TMM0 as usize)
        };
        if !self.configured && !matches!(i.mnemonic(), Mnemonic::Ldtilecfg | Mnemonic::Tilerelease) {
            return None;
        }
        match i.mnemonic() {
            Mnemonic::Ldtilecfg => {
                let at = address(i, registers)? as *const [u8; 64];
                // SAFETY: the caller vouches for the instruction's 64 bytes.
                let shape = unsafe { at.read_unaligned() };
                *self = EMPTY;
                if shape[0] == 0 {
                    return Some(());
                }
                for t in 0..TILES {
                    self.row_bytes[t] =
                        usize::from(u16::from_le_bytes([shape[16 + 2 * t], shape[17 + 2 * t]]));
                    self.rows[t] = usize::from(shape[48 + t]);
                }
                let fits = self.rows.iter().all(|&r| r <= MOST_ROWS)
                    && self.row_bytes.iter().all(|&b| b <= MOST_ROW_BYTES && b % 4 == 0);
                self.configured = true;
                (shape[0] == 1 && fits).then_some(())
            }
            Mnemonic::Tilerelease => {
                *self = EMPTY;
                Some(())
            }
            Mnemonic::Tilezero => {
                let t = tile(0)?;
                self.data[t] = [[0; MOST_ROW_BYTES]; MOST_ROWS];
                self.is_shaped(t)
            }
            Mnemonic::Tileloadd | Mnemonic::Tileloaddt1 => {
                let t = tile(0)?;
                let (start, stride) = rows(i, registers)?;
                self.data[t] = [[0; MOST_ROW_BYTES]; MOST_ROWS];
                for r in 0..self.rows[t] {
                    let from = start.wrapping_add(stride.wrapping_mul(r as u64)) as *const u8;
                    // SAFETY: the caller vouches for the register's rows in memory.
                    let row = unsafe { std::slice::from_raw_parts(from, self.row_bytes[t]) };
                    self.data[t][r][..row.len()].copy_from_slice(row);
                }
                self.is_shaped(t)
            }
            Mnemonic::Tilestored => {
                let t = tile(1)?;
                let (start, stride) = rows(i, registers)?;
                for r in 0..self.rows[t] {
                    let to = start.wrapping_add(stride.wrapping_mul(r as u64)) as *mut u8;
                    let row = &self.data[t][r][..self.row_bytes[t]];
                    // SAFETY: the caller vouches for the register's rows in memory.
                    unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), to, row.len()) };
                }
                self.is_shaped(t)
            }
            Mnemonic::Tdpbf16ps => self.multiply(tile(0)?, tile(1)?, tile(2)?),
            _ => None,
        }
    }

    fn is_shaped(&self, tile: usize) -> Option<()> {
        (self.rows[tile] > 0 && self.row_bytes[tile] > 0).then_some(())
    }

    /// TDPBF16PS: `c[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]`, over k.
    fn multiply(&mut self, c: usize, a: usize, b: usize) -> Option<()> {
        let distinct = c != a && c != b && a != b;
        let (rows, depth, columns) = (self.rows[c], self.row_bytes[a] / 4, self.row_bytes[c] / 4);
        let fits = self.rows[a] == rows && self.rows[b] == depth && self.row_bytes[b] == self.row_bytes[c];
        if !distinct || !fits {
            return None;
        }
        for m in 0..rows {
            for n in 0..columns {
                let (mut even, mut odd) = (0f32, 0f32);
                for k in 0..depth {
                    let (x, y) = (&self.data[a][m][4 * k..], &self.data[b][k][4 * n..]);
                    even = flush(bf16(x[0], x[1]).mul_add(bf16(y[0], y[1]), even));
                    odd = flush(bf16(x[2], x[3]).mul_add(bf16(y[2], y[3]), odd));
                }
                let at = &mut self.data[c][m][4 * n..4 * n + 4];
                let before = f32::from_le_bytes([at[0], at[1], at[2], at[3]]);
                at.copy_from_slice(&flush(flush(before) + flush(even + odd)).to_le_bytes());
            }
        }
        Some(())
    }
}

/// Denormals are 0.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

fn bf16(low: u8, high: u8) -> f32 {
    flush(f32::from_bits(u32::from(low) << 16 | u32::from(high) << 24))
}

/// Start and stride of a register's rows in memory: the index is the stride.
fn rows(i: &Instruction, registers: &[i64; 23]) -> Option<(u64, u64)> {
    let stride = match i.memory_index() {
        Register::None => 0,
        index => value(index, registers)?.wrapping_mul(u64::from(i.memory_index_scale())),
    };
    let base = value(i.memory_base(), registers)?;
    Some((base.wrapping_add(i.memory_displacement64()), stride))
}

/// The address of an operand in memory.
fn address(i: &Instruction, registers: &[i64; 23]) -> Option<u64> {
    if i.is_ip_rel_memory_operand() {
        return Some(i.ip_rel_memory_address());
    }
    let (start, stride) = rows(i, registers)?;
    Some(start.wrapping_add(stride))
}

/// What a general register holds.
fn value(register: Register, registers: &[i64; 23]) -> Option<u64> {
    let at = match register {
        Register::RAX => libc::REG_RAX,
        Register::RBX => libc::REG_RBX,
        Register::RCX => libc::REG_RCX,
        Register::RDX => libc::REG_RDX,
        Register::RSI => libc::REG_RSI,
        Register::RDI => libc::REG_RDI,
        Register::RBP => libc::REG_RBP,
        Register::RSP => libc::REG_RSP,
        Register::R8 => libc::REG_R8,
        Register::R9 => libc::REG_R9,
        Register::R10 => libc::REG_R10,
        Register::R11 => libc::REG_R11,
        Register::R12 => libc::REG_R12,
        Register::R13 => libc::REG_R13,
        Register::R14 => libc::REG_R14,
        Register::R15 => libc::REG_R15,
        _ => return None,
    };
    Some(registers[at as usize] as u64)
}
