//! Integer dot products of several rows of x by AMX tiles, assembled: up to 16 rows of x against 16 weight rows as they
//! lie, with these in lanes.
//!
//! What `lanes.rs` does, in the same order and to the same bits, but for who multiplies: a block's quants, transposed
//! as there, are the right operand of a tile product as they are, the rows of x the left one, and a block's sums, whole
//! integers, come out a row of x a register. Four blocks are at work at a time, so that nothing waits for memory that
//! was just written, or for a product:
//!
//! ```text
//! unpack block p      quants of 16 weight rows, 8 registers          -> frame
//! store p - 2         sums (rows of x, 16 weight rows)               -> frame
//! multiply p - 1      (rows of x, 32) by (32, 16 weight rows)        -> tile register
//! scale p - 3         to f32, times x's scale, added times weights'  -> registers
//! ```
//!
//! Vectors take eight products of four elements for each row of x and block: with a few rows they are as fast, and do
//! these. Intel's Software Developer's Manual, volume 2, has the instructions (LDTILECFG, TDPBSSD).

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::Done;
use super::lanes::{self, COUNT, FETCH, GROUP, LANES, LINES, PAIRS, SCALE, SCALES, SUMS, W, WORK, X};
use super::tile::ZMM;
use super::{Code, LANE_BLOCK, Lanes, amx};

/// How many blocks later one that is unpacked is multiplied, its sums are stored, and they are scaled.
const MULTIPLIED: i32 = 1;
const STORED: i32 = 2;
const SCALED: i32 = 3;
/// Rows of x from which tiles are faster than vectors.
pub(super) const FEWEST: usize = 5;
/// Rows of x that narrower tile registers are for.
const HALF: usize = lanes::ROWS / 2;
/// Rows of x that are scaled or left out together.
const TIER: usize = 4;

/// Bytes from one row of x to the next, and from one row to the next of what the frame holds.
const X_STRIDE: AsmRegister64 = gpr64::r10;
const STRIDE: AsmRegister64 = gpr64::r11;
/// Pairs of blocks that were begun, and so many more: a group's scales are wanted where it is a multiple of four.
const BEGUN: AsmRegister64 = gpr64::rax;
const MORE: i32 = 3;
const STACK: AsmRegister64 = gpr64::rsp;

/// Tile registers: quants; rows of x, and sums in turn, of half of the rows and of all.
const QUANTS: AsmRegisterTmm = tmm0;
const ROWS_OF_X: [AsmRegisterTmm; 2] = [tmm1, tmm4];
const TOTALS: [[AsmRegisterTmm; 2]; 2] = [[tmm2, tmm3], [tmm5, tmm6]];

/// The frame: quants and sums of two blocks each, where the stack was, and constants.
const VECTOR: i32 = 4 * LANES as i32;
const QUANTS_BYTES: i32 = BLOCK as i32 / 4 * VECTOR;
const TOTALS_BYTES: i32 = lanes::ROWS as i32 * VECTOR;
const TOTALS_AT: i32 = 2 * QUANTS_BYTES;
const BEFORE: i32 = TOTALS_AT + 2 * TOTALS_BYTES;
const SIGN_AT: i32 = BEFORE + 8;
const SIXTEENTH_AT: i32 = SIGN_AT + 4;

/// Upper halves of bytes, and their signs.
const UPPER_QUANT: AsmRegisterZmm = lanes::MASK;
const UPPER_MASK: u32 = 0xf0f0_f0f0;
const SIGN: u32 = 0x8080_8080;
/// A sixteenth, as f32: quants of 4 bits come in upper halves of bytes, which scales make up for to the bit.
const SIXTEENTH: u32 = 0x3d80_0000;
/// `(a & b) ^ c`, for `vpternlogd`.
const AND_XOR: u32 = 0x6a;

/// With AVX-512 VNNI and AMX.
pub(super) fn lanes_amx(lanes: Lanes) -> Code {
    if lanes.rows < FEWEST {
        return lanes::lanes_vnni(lanes);
    }
    let pairs = (lanes.k / BLOCK / 2) as i32;
    let a = &mut CodeAssembler::new(64)?;
    begin(a, lanes)?;
    let [mut all, mut done] = [a.create_label(), a.create_label()];
    a.cmp(COUNT, HALF as i32)?;
    a.ja(all)?;
    Rows { lanes, pairs, met: HALF }.all(a)?;
    a.jmp(done)?;
    a.set_label(&mut all)?;
    Rows { lanes, pairs, met: lanes::ROWS }.all(a)?;
    a.set_label(&mut done)?;
    a.mov(STACK, qword_ptr(STACK + BEFORE))?;
    lanes::store(a, lanes)?;
    a.assemble(0)
}

/// Shapes the tile registers: (rows, bytes of each) of quants, then of x and sums of half of the rows, and of all.
pub(super) fn configure() -> Code {
    let mut shapes = vec![(BLOCK / 4, VECTOR as usize)];
    for rows in [HALF, lanes::ROWS] {
        shapes.extend([(rows, BLOCK), (rows, VECTOR as usize), (rows, VECTOR as usize)]);
    }
    amx::configure(&shapes)
}

/// Readies the frame, and what stays in registers.
fn begin(a: &mut CodeAssembler, lanes: Lanes) -> Done {
    a.mov(BEGUN, STACK)?;
    a.sub(STACK, BEFORE + VECTOR)?;
    a.and(STACK, -VECTOR)?;
    a.mov(qword_ptr(STACK + BEFORE), BEGUN)?;
    for (at, dword) in [(SIGN_AT, SIGN), (SIXTEENTH_AT, SIXTEENTH)] {
        a.mov(dword_ptr(STACK + at), dword)?;
    }
    lanes::begin(a, lanes, UPPER_MASK)?;
    a.mov(X_STRIDE, LANE_BLOCK as i64)?;
    a.mov(STRIDE, i64::from(VECTOR))
}

/// Rows of x with 16 weight rows.
struct Rows {
    lanes: Lanes,
    /// Pairs of blocks of k.
    pairs: i32,
    /// The most rows of x: half, or all of them.
    met: usize,
}

impl Rows {
    /// All of k.
    fn all(&self, a: &mut CodeAssembler) -> Done {
        let mut again = a.create_label();
        a.mov(BEGUN, i64::from(MORE))?;
        a.set_label(&mut again)?;
        for odd in 0..2 {
            self.unpack(a, odd)?;
            self.stages(a, odd, true)?;
        }
        a.add(W, 2 * self.quant_bytes() as i32)?;
        a.add(X, 2 * self.x_block())?;
        a.inc(BEGUN)?;
        a.cmp(BEGUN, self.pairs + MORE)?;
        a.jne(again)?;
        (0..SCALED).try_for_each(|p| self.stages(a, p, false))
    }

    /// Which tile registers it takes.
    fn set(&self) -> usize {
        usize::from(self.met > HALF)
    }

    /// Bytes of a block of all rows of x.
    fn x_block(&self) -> i32 {
        (self.lanes.rows * LANE_BLOCK) as i32
    }

    /// Bytes of a block's quants in a row.
    fn quant_bytes(&self) -> usize {
        self.lanes.dtype.row_bytes(BLOCK) - 2
    }

    /// What is done with blocks before the one at `p`; there is `more` unless all are unpacked.
    fn stages(&self, a: &mut CodeAssembler, p: i32, more: bool) -> Done {
        if more || p < STORED {
            let half = (p - STORED).rem_euclid(2);
            a.tilestored(
                ptr(STACK + STRIDE + (TOTALS_AT + half * TOTALS_BYTES)),
                TOTALS[self.set()][half as usize],
            )?;
        }
        if more || p < MULTIPLIED {
            let before = i32::from(p < MULTIPLIED);
            self.since_pair(a, if more { before } else { 0 }, |a| self.multiply(a, p - MULTIPLIED))?;
        }
        if !more && 2 * self.pairs + p < SCALED {
            return Ok(());
        }
        let before = if more { SCALED - 1 - p } else { 0 };
        self.since_pair(a, before, |a| {
            if p == 1 {
                self.next_scales(a, more)?;
            }
            self.scale(a, p - SCALED)
        })
    }

    /// The scales of the next pair of blocks to be scaled.
    fn next_scales(&self, a: &mut CodeAssembler, more: bool) -> Done {
        let [mut same, mut last, mut done] = std::array::from_fn(|_| a.create_label());
        if more {
            a.test(gpr32::eax, PAIRS.len() as i32 - 1)?;
            a.jnz(same)?;
        }
        let begins = (self.pairs + MORE) % PAIRS.len() as i32 == 0;
        // Blocks of the last group, if it has not all of them.
        let rest = 2 * self.pairs % GROUP as i32;
        if !more && begins {
            return lanes::scales(a, self.lanes, rest > 0);
        }
        if more {
            if rest > 0 {
                // Of one pair the stage after the last block has them.
                a.cmp(BEGUN, self.pairs - rest / 2 + 1 + MORE)?;
                a.je(last)?;
            }
            lanes::scales(a, self.lanes, false)?;
            a.add(SCALES, 2 * GROUP as i32)?;
            a.jmp(done)?;
            if rest > 0 {
                a.set_label(&mut last)?;
                lanes::scales(a, self.lanes, true)?;
                a.jmp(done)?;
            }
            a.set_label(&mut same)?;
        }
        for pair in PAIRS.windows(2) {
            a.vmovdqa32(ZMM[pair[0]], ZMM[pair[1]])?;
        }
        if more { a.set_label(&mut done) } else { Ok(()) }
    }

    /// Does something from so many pairs on.
    fn since_pair(
        &self,
        a: &mut CodeAssembler,
        pair: i32,
        then: impl FnOnce(&mut CodeAssembler) -> Done,
    ) -> Done {
        if pair == 0 {
            return then(a);
        }
        let mut skipped = a.create_label();
        a.cmp(BEGUN, pair + MORE)?;
        a.jb(skipped)?;
        then(a)?;
        a.set_label(&mut skipped)?;
        // Another label may follow.
        a.zero_bytes()
    }

    /// The quants of a block, signed, four elements a register; those of 4 bits sixteen times as large.
    fn unpack(&self, a: &mut CodeAssembler, p: i32) -> Done {
        let Lanes { dtype, k, .. } = self.lanes;
        let row_bytes = dtype.row_bytes(k) as i32;
        let [p0, q, r, s, t, u, v, w, spare] = WORK;
        let (first, second) = ([p0, q, r, s], [t, u, v, w]);
        let byte = p * self.quant_bytes() as i32;
        let fetched = lanes::fetched(self.lanes);
        let ahead = &mut fetched[p as usize % 2].iter().copied();
        lanes::load(a, first, (row_bytes, byte), (ahead, LINES))?;
        lanes::turn(a, first, spare)?;
        if dtype == DType::Q4 {
            let sign = dword_bcst(STACK + SIGN_AT);
            for (low, high) in first.into_iter().zip(second) {
                a.vpsllw(ZMM[high], ZMM[low], 4)?;
                // The second half of the elements are the bytes' upper halves.
                a.vpternlogd(ZMM[low], UPPER_QUANT, sign, AND_XOR)?;
                a.vpternlogd(ZMM[high], UPPER_QUANT, sign, AND_XOR)?;
            }
        } else {
            lanes::load(a, second, (row_bytes, byte + 16), (ahead, LINES))?;
            lanes::turn(a, second, spare)?;
        }
        let all = if dtype == DType::Q4 { lanes::join(second, first) } else { lanes::join(first, second) };
        for (i, quant) in (0..).zip(all) {
            a.vmovdqa32(zmmword_ptr(STACK + (p % 2 * QUANTS_BYTES + i * VECTOR)), ZMM[quant])?;
        }
        if p % 2 == 1 { a.add(FETCH, lanes::pair_bytes(self.lanes) as i32) } else { Ok(()) }
    }

    /// The sums of a block for each row of x.
    fn multiply(&self, a: &mut CodeAssembler, p: i32) -> Done {
        let half = p.rem_euclid(2);
        let (x, totals) = (ROWS_OF_X[self.set()], TOTALS[self.set()][half as usize]);
        let quants = p * self.x_block() + (LANE_BLOCK - BLOCK) as i32;
        a.tileloadd(x, ptr(X + X_STRIDE + quants))?;
        a.tileloadd(QUANTS, ptr(STACK + STRIDE + half * QUANTS_BYTES))?;
        a.tilezero(totals)?;
        a.tdpbssd(totals, x, QUANTS)
    }

    /// Adds a block's sums to each row's.
    fn scale(&self, a: &mut CodeAssembler, p: i32) -> Done {
        lanes::block_scale(a, p.rem_euclid(2) as usize)?;
        if self.lanes.dtype == DType::Q4 {
            a.vmulps(SCALE, SCALE, dword_bcst(STACK + SIXTEENTH_AT))?;
        }
        let mut done = a.create_label();
        for t in 0..self.met {
            if t > 0 && t.is_multiple_of(TIER) {
                a.cmp(COUNT, t as i32)?;
                a.jbe(done)?;
            }
            let total = ZMM[WORK[t % WORK.len()]];
            let at = TOTALS_AT + p.rem_euclid(2) * TOTALS_BYTES + t as i32 * VECTOR;
            let scale = p * self.x_block() + (t * LANE_BLOCK) as i32;
            a.vcvtdq2ps(total, zmmword_ptr(STACK + at))?;
            a.vmulps(total, total, dword_bcst(X + scale))?;
            a.vfmadd231ps(SUMS[t], total, SCALE)?;
        }
        a.set_label(&mut done)?;
        // Another label may follow.
        a.zero_bytes()
    }
}
