//! One row of x against weight rows in any format of blocks, with AVX-512 VNNI: four at a time, each far from the
//! others and followed by the one after it, so that memory serves four streams in the order of their bytes.
//!
//! Rows that lie side by side, as `lanes_512.rs` reads 16 of them, reach a page of memory all at once, and what is
//! fetched for them comes late. Here a row's products are summed along it, 64 elements a register; the four rows'
//! sums of each 16 elements are then brought together, a row a lane. They are exact, so that scaled and added up group
//! by group, as `lanes_512.rs` does, they come to the same bits.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::format::Reading;
use lapidary_ir::{BLOCK, Format};

use super::bf16_512::{LANE, QUANTS, UNIT, Unit};
use super::quants_512::Wanted;
use super::{PLANES, excess, offset};
use crate::micro::dot::{Done, XMM};
use crate::micro::rounded::{ROW_BLOCKS, RowUnit};
use crate::micro::tile::ZMM;
use crate::micro::{Code, Row};

/// Weight rows at a time.
pub(super) const ROWS: usize = 4;
/// Elements whose sums are scaled together.
pub(super) const ELEMENTS: usize = ROW_BLOCKS * BLOCK;
/// How many bytes ahead at least the first cache is filled, of each row: what is fetched behind the last rows is lost.
const AHEAD: usize = 3072;
const LINE: usize = 64;

/// Bytes from each of the four rows to the next; the first one's, in its first plane; what is fetched of it.
const APART: AsmRegister64 = gpr64::r8;
/// Three times that.
const THREE: AsmRegister64 = gpr64::rbx;
pub(super) const W: AsmRegister64 = gpr64::r9;
const X: AsmRegister64 = gpr64::r10;
const FETCH: AsmRegister64 = gpr64::r11;
const C: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;
const SPARE: AsmRegister64 = gpr64::rax;
pub(super) const STACK: AsmRegister64 = gpr64::rsp;

/// The stack's frame: products, scaled by x, and what x's sums are worth; scales and offsets; numbers.
const SCALED: i32 = 0;
const SUMS: i32 = 2 * VECTOR;
pub(super) const SCALES: i32 = 4 * VECTOR;
const NUMBERS: i32 = 12 * VECTOR;
const LEFT: i32 = NUMBERS;
const COLUMNS: i32 = NUMBERS + 8;
const ROW_OF_X: i32 = NUMBERS + 16;
const BEFORE: i32 = NUMBERS + 24;
const FRAME: i32 = NUMBERS + 32;
pub(super) const VECTOR: i32 = 64;

/// Sums of products, of the first half of elements and of the second.
const PRODUCTS: [[usize; ROWS]; 2] = [[8, 9, 10, 11], [12, 13, 14, 5]];
/// Results, a weight row a lane.
const RESULTS: AsmRegisterXmm = xmm15;
/// Of x's four blocks, in the order of their sums, each four times.
const EACH: AsmRegisterZmm = zmm28;
/// Quants of x, and of a row, of the first half of elements and of the second.
const OF_X: [AsmRegisterZmm; 2] = [zmm30, zmm31];
const OF_ROW: [usize; 2] = [QUANTS, 3];
/// What makes quants unsigned, or their table.
const READ: AsmRegisterZmm = zmm29;

/// Weight rows that lie apart.
pub(super) struct Apart<'a> {
    row: Row,
    pub(super) format: &'a Format,
    pub(super) unit: Unit<'a>,
    /// What is taken off quants: a power of two, or 0.
    zero: i32,
}

/// With AVX-512 VNNI.
pub(in crate::micro) fn row_512(row: Row) -> Code {
    let Some(format) = row.dtype.format() else { unreachable!("blocks have a format") };
    let zero = excess(format);
    let mut unit = Unit::new(format);
    let places = RowUnit::quants(row.dtype);
    for i in 0..unit.order.len() {
        let at: usize = (0..3).map(|bit| places[bit] * (i >> bit & 1)).sum();
        unit.order[at / LANE] = i;
    }
    Apart { row, format, unit, zero }.all()
}

impl Apart<'_> {
    fn all(&mut self) -> Code {
        let a = &mut CodeAssembler::new(64)?;
        let mut row = a.create_label();
        a.push(THREE)?;
        self.begin(a)?;
        a.set_label(&mut row)?;
        self.rows(a)?;
        a.dec(qword_ptr(STACK + LEFT))?;
        a.jnz(row)?;
        a.mov(STACK, qword_ptr(STACK + BEFORE))?;
        a.pop(THREE)?;
        a.vzeroupper()?;
        a.ret()?;
        self.unit.end(a)?;
        a.assemble(0)
    }

    /// Makes the frame, and what stays in registers.
    fn begin(&mut self, a: &mut CodeAssembler) -> Done {
        a.mov(SPARE, STACK)?;
        a.sub(STACK, FRAME + VECTOR)?;
        a.and(STACK, -VECTOR)?;
        a.mov(qword_ptr(STACK + BEFORE), SPARE)?;
        a.mov(qword_ptr(STACK + ROW_OF_X), PLANES[0])?;
        a.mov(qword_ptr(STACK + LEFT), COUNT)?;
        a.mov(W, PLANES[1])?;
        a.imul_3(APART, COUNT, self.format.row_bytes(self.row.k) as i32)?;
        a.lea(THREE, ptr(APART + APART * 2))?;
        a.shl(COUNT, 2)?;
        a.mov(qword_ptr(STACK + COLUMNS), COUNT)?;
        let each = self.order().into_iter().flat_map(|block| [block as u32; 4]).collect();
        let each = self.unit.constants.dwords(a, each);
        a.vmovdqu32(EACH, zmmword_ptr(each))?;
        self.ready_scales(a)?;
        match self.format.quants.reading {
            Reading::Less(_) => Ok(()),
            Reading::Signed => {
                let sign = self.unit.constants.dwords(a, vec![0x8080_8080]);
                a.vpbroadcastd(READ, dword_ptr(sign))
            }
            Reading::Table(table) => {
                let bytes: Vec<u8> = table.iter().map(|&v| (i32::from(v) + 128) as u8).collect();
                let table = self.unit.constants.bytes(a, &bytes.repeat(4));
                a.vmovdqu32(READ, zmmword_ptr(table))
            }
        }
    }

    /// Four rows, and on to the next of each stream.
    fn rows(&mut self, a: &mut CodeAssembler) -> Done {
        let (k, format) = (self.row.k, self.format);
        let (step, row_bytes) = (format.block.max(ELEMENTS), format.row_bytes(k));
        a.vpxor(RESULTS, RESULTS, RESULTS)?;
        a.mov(X, qword_ptr(STACK + ROW_OF_X))?;
        // A row's first elements want the second plane's first bytes.
        let ahead = if format.planes.len() > 1 { AHEAD.max(format.plane_at(1, k) + LINE) } else { AHEAD };
        a.lea(FETCH, ptr(W + ahead as i32))?;
        if format.planes.len() > 1 {
            a.lea(PLANES[1], ptr(W + format.plane_at(1, k) as i32))?;
        }
        if k >= step {
            let mut again = a.create_label();
            a.mov(COUNT, (k / step) as i64)?;
            a.set_label(&mut again)?;
            self.step(a, step)?;
            a.dec(COUNT)?;
            a.jnz(again)?;
        }
        if !k.is_multiple_of(step) {
            self.step(a, k % step)?;
        }
        let fetched = (k / step * self.lines(step) + self.lines(k % step)) * LINE;
        fetch(a, row_bytes.saturating_sub(fetched).div_ceil(LINE))?;
        a.add(W, (row_bytes - k / format.block * format.planes[0]) as i32)?;
        self.store(a)
    }

    /// Whole lines of memory that `n` elements' quants take.
    fn lines(&self, n: usize) -> usize {
        n / self.format.block * self.format.planes[0] / LINE
    }

    /// `n` elements of four rows, and on to the next.
    fn step(&mut self, a: &mut CodeAssembler, n: usize) -> Done {
        let (format, lines) = (self.format, self.lines(n));
        fetch(a, lines)?;
        if format.block > BLOCK {
            self.long_scales(a)?;
        }
        for first in (0..n).step_by(ELEMENTS) {
            self.elements(a, first, ROW_BLOCKS.min((n - first) / BLOCK))?;
        }
        let blocks = n / format.block;
        a.add(FETCH, (lines * LINE) as i32)?;
        a.add(W, (blocks * format.planes[0]) as i32)?;
        if let Some(bytes) = format.planes.get(1) {
            a.add(PLANES[1], (blocks * bytes) as i32)?;
        }
        a.add(X, (n.div_ceil(ELEMENTS) * RowUnit::BYTES) as i32)
    }

    /// The elements from `first` on, so many blocks of x.
    fn elements(&mut self, a: &mut CodeAssembler, first: usize, blocks: usize) -> Done {
        let x = (first / ELEMENTS * RowUnit::BYTES) as i32;
        // Sixteens of elements in each half.
        let lanes = match self.is_one_sum() {
            true => [blocks, blocks],
            false => [(2 * blocks).min(4), (2 * blocks).saturating_sub(4)],
        };
        self.products(a, (first, x), lanes)?;
        if self.format.block == BLOCK {
            self.short_scales(a, blocks)?;
        }
        together(a, PRODUCTS[0])?;
        let two = lanes[1] > 0 && !self.is_one_sum();
        if two {
            together(a, PRODUCTS[1])?;
        }
        if self.format.group < BLOCK {
            self.by_halves(a, (first, blocks), x)
        } else {
            self.by_blocks(a, (first, blocks), (x, two))
        }
    }

    /// Whether a block's two halves come to the same lanes of one sum.
    fn is_one_sum(&self) -> bool {
        self.unit.order[UNIT / LANE] == 1
    }

    /// The blocks in the order of their sums.
    fn order(&self) -> [usize; ROW_BLOCKS] {
        let each = if self.is_one_sum() { 1 } else { 2 };
        std::array::from_fn(|i| self.unit.order[i * each] / 2)
    }

    /// The products of the elements from `first` on, so many times 16 in each half, of each row.
    fn products(&mut self, a: &mut CodeAssembler, (first, x): (usize, i32), lanes: [usize; 2]) -> Done {
        let halves: Vec<usize> = (0..2).filter(|&half| lanes[half] > 0).collect();
        let of = |half: usize| Wanted { first: first + half * UNIT, lanes: lanes[half], to: OF_ROW[half] };
        // Rows take turns with every line of memory, unless it has elements of both halves.
        for halves in halves.chunks(if self.format.quants.bits[0].width < 8 { 2 } else { 1 }) {
            let wanted: Vec<Wanted> = halves.iter().map(|&half| of(half)).collect();
            for &half in halves {
                a.vmovdqu32(OF_X[half], zmmword_ptr(X + (x + half as i32 * VECTOR)))?;
            }
            a.mov(PLANES[0], W)?;
            let [low, high] = PRODUCTS;
            for (q, (low, high)) in low.into_iter().zip(high).enumerate() {
                let sums = if self.is_one_sum() { [low; 2] } else { [low, high] };
                self.unit.fields(a, &wanted)?;
                halves.iter().try_for_each(|&half| self.multiply(a, half, sums[half]))?;
                if q + 1 < ROWS {
                    a.add(PLANES[0], APART)?;
                }
            }
        }
        Ok(())
    }

    /// Multiplies a row's quants of half of the elements, for a sum.
    fn multiply(&self, a: &mut CodeAssembler, half: usize, sum: usize) -> Done {
        let quants = ZMM[OF_ROW[half]];
        match self.format.quants.reading {
            Reading::Less(_) => {}
            Reading::Signed => a.vpxord(quants, quants, READ)?,
            Reading::Table(_) => a.vpshufb(quants, READ, quants)?,
        }
        if half == 0 || !self.is_one_sum() {
            a.vpxor(XMM[sum], XMM[sum], XMM[sum])?;
        }
        a.vpdpbusd(ZMM[sum], quants, OF_X[half])
    }

    /// Adds up sums of whole blocks, a block's four rows in each 128 bits.
    fn by_blocks(
        &mut self,
        a: &mut CodeAssembler,
        (first, blocks): (usize, usize),
        (x, two): (i32, bool),
    ) -> Done {
        let [[low, ..], [high, ..]] = PRODUCTS.map(|products| products.map(|i| ZMM[i]));
        let t = if self.is_one_sum() { low } else { zmm0 };
        if !self.is_one_sum() {
            let other = if two { high } else { low };
            a.vshufi32x4(t, low, other, 0b10_00_10_00)?;
            a.vshufi32x4(zmm1, low, other, 0b11_01_11_01)?;
            a.vpaddd(t, t, zmm1)?;
        }
        if self.zero > 0 {
            a.vmovdqu(xmm1, xmmword_ptr(X + (x + RowUnit::SUMS)))?;
            a.vpermd(zmm1, EACH, zmm1)?;
            self.less(a, t, zmm1)?;
        }
        a.vmovdqu(xmm1, xmmword_ptr(X + (x + RowUnit::SCALES)))?;
        a.vpermps(zmm1, EACH, zmm1)?;
        a.vcvtdq2ps(t, t)?;
        a.vmulps(t, t, zmm1)?;
        a.vmovups(zmmword_ptr(STACK + SCALED), t)?;
        let order = self.order();
        for block in 0..blocks {
            let element = first + block * BLOCK;
            let at = order.iter().position(|&b| b == block).map_or(0, |i| 16 * i as i32);
            a.vmovups(xmm1, xmmword_ptr(STACK + (SCALED + at)))?;
            a.vfmadd231ps(RESULTS, xmm1, xmmword_ptr(self.scale_at(0, element)))?;
            if offset(self.format).is_some() {
                a.vbroadcastss(xmm1, dword_ptr(X + (x + RowUnit::WORTH + 4 * block as i32)))?;
                a.vfmadd231ps(RESULTS, xmm1, xmmword_ptr(self.scale_at(1, element)))?;
            }
        }
        Ok(())
    }

    /// The same of sums of half blocks.
    fn by_halves(&mut self, a: &mut CodeAssembler, (first, blocks): (usize, usize), x: i32) -> Done {
        let (sums, scales, spare) = (zmm1, zmm2, zmm3);
        for (half, products) in PRODUCTS.into_iter().enumerate().take(blocks.div_ceil(2)) {
            let t = ZMM[products[0]];
            let each = |lane: u32| 2 * half as u32 + lane / 8;
            let places = self.unit.constants.dwords(a, (0..16).map(each).collect());
            a.vmovdqu32(spare, zmmword_ptr(places))?;
            a.vmovdqu(xmm2, xmmword_ptr(X + (x + RowUnit::SCALES)))?;
            a.vpermps(scales, spare, scales)?;
            // Of x's blocks the first halves' sums, the second halves', in turn.
            a.vmovdqu(xmm0, xmmword_ptr(X + (x + RowUnit::FIRSTS)))?;
            a.vmovdqu(xmm1, xmmword_ptr(X + (x + RowUnit::SUMS)))?;
            a.vpsubd(xmm1, xmm1, xmm0)?;
            if half == 0 {
                a.vpunpckldq(xmm1, xmm0, xmm1)?;
            } else {
                a.vpunpckhdq(xmm1, xmm0, xmm1)?;
            }
            a.vpermd(sums, EACH, sums)?;
            if offset(self.format).is_some() {
                a.vcvtdq2ps(zmm0, sums)?;
                a.vmulps(zmm0, zmm0, scales)?;
                a.vmovups(zmmword_ptr(STACK + (SUMS + half as i32 * VECTOR)), zmm0)?;
            }
            if self.zero > 0 {
                self.less(a, t, sums)?;
            }
            a.vcvtdq2ps(t, t)?;
            a.vmulps(t, t, scales)?;
            a.vmovups(zmmword_ptr(STACK + (SCALED + half as i32 * VECTOR)), t)?;
        }
        for lane in 0..2 * blocks {
            let element = first + lane * LANE;
            let at = 16 * lane as i32;
            a.vmovups(xmm1, xmmword_ptr(STACK + (SCALED + at)))?;
            a.vfmadd231ps(RESULTS, xmm1, xmmword_ptr(self.scale_at(0, element)))?;
            if offset(self.format).is_some() {
                a.vmovups(xmm1, xmmword_ptr(STACK + (SUMS + at)))?;
                a.vfmadd231ps(RESULTS, xmm1, xmmword_ptr(self.scale_at(1, element)))?;
            }
        }
        Ok(())
    }

    /// Takes off what quants are more than they stand for: of -8 times x's sums what that comes to. Clobbers these.
    fn less(&self, a: &mut CodeAssembler, from: AsmRegisterZmm, sums: AsmRegisterZmm) -> Done {
        match self.zero.trailing_zeros() as i32 - 3 {
            0 => {}
            up @ 1.. => a.vpslld(sums, sums, up)?,
            down => a.vpsrad(sums, sums, -down)?,
        }
        a.vpaddd(from, from, sums)
    }

    /// Stores the results of the four rows, each among its stream's, and goes on to the next ones.
    fn store(&self, a: &mut CodeAssembler) -> Done {
        a.vmovups(xmmword_ptr(STACK + SCALED), RESULTS)?;
        a.mov(SPARE, C)?;
        for q in 0..ROWS as i32 {
            a.mov(gpr32::ecx, dword_ptr(STACK + (SCALED + 4 * q)))?;
            a.mov(dword_ptr(SPARE), gpr32::ecx)?;
            if q + 1 < ROWS as i32 {
                a.add(SPARE, qword_ptr(STACK + COLUMNS))?;
            }
        }
        a.add(C, 4)
    }
}

/// Fetches so many lines of each row, those of one row never at once.
fn fetch(a: &mut CodeAssembler, lines: usize) -> Done {
    let mut turns = (0..lines).flat_map(|line| (0..ROWS).map(move |q| (line, q)));
    turns.try_for_each(|(line, q)| a.prefetcht0(byte_ptr(of_row(FETCH, q) + (line * LINE) as i32)))
}

/// Where row `q` has what `first` is the first row's.
pub(super) fn of_row(first: AsmRegister64, q: usize) -> AsmMemoryOperand {
    match q {
        0 => first + 0,
        1 | 2 => first + APART * q as i32,
        _ => first + THREE,
    }
}

/// Of four rows' sums in dwords: of each 128 bits their sum, a row a lane, in the first. Clobbers the others.
fn together(a: &mut CodeAssembler, rows: [usize; ROWS]) -> Done {
    let ([p, q, r, s], spare) = (rows.map(|i| ZMM[i]), zmm4);
    for (to, other) in [(p, q), (r, s)] {
        a.vpunpckldq(spare, to, other)?;
        a.vpunpckhdq(to, to, other)?;
        a.vpaddd(to, to, spare)?;
    }
    a.vpunpcklqdq(spare, p, r)?;
    a.vpunpckhqdq(p, p, r)?;
    a.vpaddd(p, p, spare)
}
