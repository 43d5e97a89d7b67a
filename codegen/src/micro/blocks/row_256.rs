//! One row of x against 8 weight rows, each read as it follows the one before: the integers that `lanes_256.rs` adds
//! up.
//!
//! Weight rows in lanes are eight streams, which memory serves worse than one. So of one row of x a group's products
//! are summed row by row first, 32 elements a register, and only the sums are transposed: they are exact, so results
//! have the bits that more rows of x together come to.
//!
//! The sums go to the stack's frame in units of eight a weight row: of groups of 32 those of 8 blocks of x, of groups
//! of 16 those of 4, first groups before second ones. A unit's rows are then transposed where they lie.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::BLOCK;
use lapidary_ir::format::{Bits, Reading};

use super::halves;
use super::lanes_256::{
    COUNT, LANES, ONES, Products, Quants, RESULTS, ROW, ROWS, Rows, STACK, T, VECTOR, W, X,
};
use crate::micro::LANE_BLOCK;
use crate::micro::dot::{Done, XMM, YMM};

/// Elements whose sums are made in a round.
const ROUND: usize = 256;
/// Blocks whose lanes are summed up at a time.
const FOUR: usize = 4;
/// Bytes of a unit of eight weight rows.
pub(super) const UNIT: i32 = LANES as i32 * VECTOR;
/// How many bytes ahead the second cache is filled, whole lines.
const AHEAD: i32 = 16 << 10;
const LINE: usize = 64;

/// Where the block is read; where what is fetched in streams lies, or else a number to spare.
const AT: AsmRegister64 = gpr64::r9;
const FETCH: AsmRegister64 = gpr64::r8;
const SPARE: AsmRegister64 = FETCH;
const FIELD: AsmRegisterYmm = ymm11;

impl Rows<'_> {
    /// Units of a weight row.
    pub(super) fn units(k: usize, group: usize) -> usize {
        (k / group.min(BLOCK)).div_ceil(LANES)
    }

    /// The sums of all groups of 8 weight rows, transposed, in the frame. Clobbers every register but `X` and `W`.
    pub(super) fn sums(&mut self, a: &mut CodeAssembler) -> Done {
        let (k, format) = (self.lanes.k, self.format);
        let units = Rows::units(k, format.group) as i32;
        let plane = k / format.block * format.planes[0];
        let (mut row, mut again) = (a.create_label(), a.create_label());
        a.mov(AT, W)?;
        a.lea(RESULTS, ptr(STACK + self.frame.sums))?;
        a.mov(ROWS, LANES as i64)?;
        let rounds = k / ROUND;
        let streams = if rounds < self.lanes.streams { 1 } else { self.lanes.streams };
        if streams > 1 {
            let call = LANES * format.row_bytes(k);
            a.lea(FETCH, ptr(W + (call * (AHEAD as usize).div_ceil(call)) as i32))?;
        }
        a.set_label(&mut row)?;
        a.mov(ROW, X)?;
        if streams > 1 {
            self.streamed(a, rounds, streams)?;
        } else if k >= ROUND {
            a.mov(COUNT, rounds as i64)?;
            a.set_label(&mut again)?;
            self.round(a, ROUND, false)?;
            a.dec(COUNT)?;
            a.jnz(again)?;
        }
        if !k.is_multiple_of(ROUND) {
            self.round(a, k % ROUND, streams > 1)?;
        }
        let rest = format.row_bytes(k) - plane;
        if streams == 1 {
            (0..rest)
                .step_by(LINE)
                .try_for_each(|line| a.prefetcht1(byte_ptr(AT + (AHEAD + line as i32))))?;
        }
        a.add(AT, rest as i32)?;
        a.add(RESULTS, VECTOR - units * UNIT)?;
        a.dec(ROWS)?;
        a.jnz(row)?;

        let mut unit = a.create_label();
        a.lea(RESULTS, ptr(STACK + self.frame.sums))?;
        a.mov(COUNT, i64::from(units))?;
        a.set_label(&mut unit)?;
        transpose(a)?;
        a.add(RESULTS, UNIT)?;
        a.dec(COUNT)?;
        a.jnz(unit)?;
        a.lea(RESULTS, ptr(STACK + self.frame.sums))
    }

    /// Where the sums of group `g` of the 32 elements from `first` of a block lie, from [`RESULTS`] on.
    pub(super) fn sum_at(&self, first: usize, (g, groups): (usize, usize)) -> AsmMemoryOperand {
        let block = first / BLOCK;
        let (unit, lane) = if groups == 1 { (0, block) } else { (block / FOUR, g * FOUR + block % FOUR) };
        ymmword_ptr(RESULTS + unit as i32 * UNIT + lane as i32 * VECTOR)
    }

    /// What [`RESULTS`] goes on by from block to block.
    pub(super) fn sum_bytes(&self) -> i32 {
        (self.format.block / self.format.group.min(BLOCK)) as i32 * VECTOR
    }

    /// Whole rounds of a weight row. Meanwhile as many streams bring the rows of a later call, each its share of them:
    /// in this row's time as much of it as there is of a row.
    fn streamed(&mut self, a: &mut CodeAssembler, rounds: usize, streams: usize) -> Done {
        let row = self.format.row_bytes(self.lanes.k);
        let (visits, share, apart) = (rounds / streams, row.div_ceil(streams), LANES * row / streams);
        let step = share.div_ceil(visits);
        let mut again = a.create_label();
        a.mov(COUNT, visits as i64)?;
        a.set_label(&mut again)?;
        for stream in 0..streams {
            for line in (0..step).step_by(LINE) {
                a.prefetcht1(byte_ptr(FETCH + (stream * apart + line) as i32))?;
            }
            self.round(a, ROUND, true)?;
        }
        a.add(FETCH, step as i32)?;
        a.dec(COUNT)?;
        a.jnz(again)?;
        for _ in 0..rounds % streams {
            self.round(a, ROUND, true)?;
        }
        a.sub(FETCH, (visits * step - share) as i32)
    }

    /// Fetches as many bytes ahead, each line once.
    fn fetch_ahead(&self, a: &mut CodeAssembler, bytes: usize) -> Done {
        (0..bytes / LINE).try_for_each(|i| a.prefetcht1(byte_ptr(AT + (AHEAD + (i * LINE) as i32))))?;
        if !bytes.is_multiple_of(LINE) {
            let mut within = a.create_label();
            a.lea(SPARE, ptr(AT + (bytes % LINE) as i32))?;
            a.xor(SPARE, AT)?;
            a.test(gpr32::r8d, LINE as i32)?;
            a.jz(within)?;
            a.prefetcht1(byte_ptr(AT + (AHEAD + (bytes / LINE * LINE) as i32)))?;
            a.set_label(&mut within)?;
        }
        Ok(())
    }

    /// The sums of `n` elements of a weight row, at most a round, and on to the next; `fetched` says whether something
    /// else brings what follows.
    fn round(&mut self, a: &mut CodeAssembler, n: usize, fetched: bool) -> Done {
        let bytes = n / self.format.block * self.format.planes[0];
        if !fetched {
            self.fetch_ahead(a, bytes)?;
        }
        let halved = self.format.group < BLOCK;
        let blocks = n / BLOCK;
        for (four, first) in (0..blocks).step_by(FOUR).enumerate() {
            // Four blocks' sums of four lanes, in register 0 or 4.
            let to = if halved { 0 } else { four % 2 * FOUR };
            for i in 0..FOUR {
                if first + i < blocks {
                    self.block(a, (first + i) * BLOCK, to + i)?;
                } else {
                    a.vpxor(YMM[to + i], YMM[to + i], YMM[to + i])?;
                }
            }
            a.vphaddd(YMM[to], YMM[to], YMM[to + 1])?;
            a.vphaddd(YMM[to + 2], YMM[to + 2], YMM[to + 3])?;
            a.vphaddd(YMM[to], YMM[to], YMM[to + 2])?;
            if halved {
                a.vmovdqu(ymmword_ptr(RESULTS + four as i32 * UNIT), ymm0)?;
            }
        }
        if !halved {
            if blocks <= FOUR {
                a.vpxor(ymm4, ymm4, ymm4)?;
            }
            a.vperm2i128(ymm1, ymm0, ymm4, 0x20)?;
            a.vperm2i128(ymm0, ymm0, ymm4, 0x31)?;
            a.vpaddd(ymm0, ymm0, ymm1)?;
            a.vmovdqu(ymmword_ptr(RESULTS), ymm0)?;
        }
        a.add(AT, bytes as i32)?;
        a.add(ROW, (blocks * LANE_BLOCK) as i32)?;
        a.add(RESULTS, Rows::units(n, self.format.group) as i32 * UNIT)
    }

    /// The products of the 32 elements from `first` of a round, summed in fours, in register `to`.
    fn block(&mut self, a: &mut CodeAssembler, first: usize, to: usize) -> Done {
        let format = self.format;
        let (base, first_in_block) = (first / format.block * format.planes[0], first % format.block);
        let x = ymmword_ptr(ROW + (first / BLOCK * LANE_BLOCK + LANE_BLOCK - BLOCK) as i32);
        let (w, mut width) = (ymm8, 0);
        for (f, bits) in format.quants.bits.iter().enumerate() {
            let into = if f == 0 { 8 } else { 9 };
            if bits.run == 1 {
                self.single(a, base + bits.place(first_in_block).byte, width)?;
            } else {
                self.field(a, bits, (base, first_in_block), width, into)?;
            }
            if f > 0 {
                a.vpor(w, w, YMM[into])?;
            }
            width += bits.width;
        }
        let signed = matches!(self.quants, Quants::Signed);
        match format.quants.reading {
            Reading::Less(_) => {}
            Reading::Signed if signed => {}
            Reading::Signed => {
                let sign = self.constants.dwords(a, vec![0x8080_8080; LANES]);
                a.vpxor(w, w, ymmword_ptr(sign))?;
            }
            Reading::Table(table) => {
                let table = self.table(a, table);
                a.vmovdqu(T, ymmword_ptr(table))?;
                a.vpshufb(w, T, w)?;
            }
        }
        if self.by != Products::Words {
            a.vpxor(YMM[to], YMM[to], YMM[to])?;
            return self.by.add(a, YMM[to], w, x);
        }
        if signed {
            a.vmovdqu(T, x)?;
            a.vpsignb(T, T, w)?;
            a.vpabsb(w, w)?;
            a.vpmaddubsw(w, w, T)?;
        } else {
            a.vpmaddubsw(w, w, x)?;
        }
        a.vpmaddwd(YMM[to], w, ONES)
    }

    /// A field of 32 elements, of which the first is `first` of the block `base` bytes on, from bit `to_bit` of each
    /// byte of register `into`.
    fn field(
        &mut self,
        a: &mut CodeAssembler,
        bits: &Bits,
        (base, first): (usize, usize),
        to_bit: usize,
        into: usize,
    ) -> Done {
        let [low, high] = halves(bits, first);
        let at = |byte: usize| AT + (base + byte) as i32;
        let x = YMM[into];
        let down = low.shift as i32 - to_bit as i32;
        if high.byte == low.byte {
            // The second half of the elements lie further up in the same bytes.
            a.vmovdqu(XMM[into], xmmword_ptr(at(low.byte)))?;
            a.vpsrlw(xmm10, XMM[into], (high.shift - low.shift) as i32)?;
            a.vinserti128(x, x, xmm10, 1)?;
        } else if high.byte == low.byte + BLOCK / 2 {
            a.vmovdqu(x, ymmword_ptr(at(low.byte)))?;
        } else {
            a.vmovdqu(XMM[into], xmmword_ptr(at(low.byte)))?;
            a.vinserti128(x, x, xmmword_ptr(at(high.byte)), 1)?;
        }
        match down {
            0 => {}
            1.. => a.vpsrlw(x, x, down)?,
            _ => a.vpsllw(x, x, -down)?,
        }
        if bits.width == 8 {
            return Ok(());
        }
        let mask = (((1u32 << bits.width) - 1) << to_bit) * 0x0101_0101;
        let mask = self.constants.dwords(a, vec![mask; LANES]);
        a.vpand(x, x, ymmword_ptr(mask))
    }

    /// A bit of each of 32 elements, of four bytes, as bit `to_bit` of each byte of register 9.
    fn single(&mut self, a: &mut CodeAssembler, byte: usize, to_bit: usize) -> Done {
        let places: Vec<u8> = (0..BLOCK).map(|i| (i / 8) as u8).collect();
        let each: Vec<u8> = (0..BLOCK).map(|i| 1 << (i % 8)).collect();
        let [places, each] = [places, each].map(|bytes| self.constants.bytes(a, &bytes));
        let bit = self.constants.dwords(a, vec![(1 << to_bit) * 0x0101_0101; LANES]);
        a.vpbroadcastd(ymm9, dword_ptr(AT + byte as i32))?;
        a.vpshufb(ymm9, ymm9, ymmword_ptr(places))?;
        a.vmovdqu(FIELD, ymmword_ptr(each))?;
        a.vpand(ymm9, ymm9, FIELD)?;
        a.vpcmpeqb(ymm9, ymm9, FIELD)?;
        a.vpand(ymm9, ymm9, ymmword_ptr(bit))
    }
}

/// Transposes eight rows of eight dwords where they lie, from [`RESULTS`] on. Clobbers every vector register.
fn transpose(a: &mut CodeAssembler) -> Done {
    let at = |i: usize| ymmword_ptr(RESULTS + i as i32 * VECTOR);
    for (i, &row) in YMM[..LANES].iter().enumerate() {
        a.vmovdqu(row, at(i))?;
    }
    for pair in (0..LANES).step_by(2) {
        a.vpunpckldq(YMM[8 + pair], YMM[pair], YMM[pair + 1])?;
        a.vpunpckhdq(YMM[9 + pair], YMM[pair], YMM[pair + 1])?;
    }
    for half in [0, 4] {
        let [p, q, r, s] = std::array::from_fn(|i| YMM[8 + half + i]);
        a.vpunpcklqdq(YMM[half], p, r)?;
        a.vpunpckhqdq(YMM[half + 1], p, r)?;
        a.vpunpcklqdq(YMM[half + 2], q, s)?;
        a.vpunpckhqdq(YMM[half + 3], q, s)?;
    }
    for (i, (&low, &high)) in YMM[..4].iter().zip(&YMM[4..8]).enumerate() {
        a.vperm2i128(ymm8, low, high, 0x20)?;
        a.vperm2i128(ymm9, low, high, 0x31)?;
        a.vmovdqu(at(i), ymm8)?;
        a.vmovdqu(at(i + 4), ymm9)?;
    }
    Ok(())
}
