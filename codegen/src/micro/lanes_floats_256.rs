//! Dot products of floats with weight rows in lanes with AVX2, assembled: few rows of x in f32 against 16 weight rows
//! of bf16, which are read, turned and widened once for several rows of x, as `lanes_floats.rs` says, 8 at a time.
//!
//! Products of a result wait for each other. So up to four rows of x meet both eights in one loop; more are enough to
//! hide that, and meet the second eight after all of the first.

use std::ops::Range;

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::DType;

use super::dot::{Done, XMM, YMM, fill};
use super::lanes::{AHEAD, C, COUNT, FETCH, LANES, LEFT, Turned, W, X};
use super::lanes_floats::LINE;
use super::tile::Vector;
use super::{Code, Lanes};

/// The most rows of x of a call.
pub(super) const ROWS: usize = 8;
/// Weight rows of a vector.
const EIGHT: usize = 8;
/// Elements of k whose pairs are in registers at a time.
const ELEMENTS: usize = 8;

/// Where x and weights are in a loop.
const X_AT: AsmRegister64 = gpr64::r9;
const W_AT: AsmRegister64 = gpr64::r10;

/// Pairs of elements; the first elements of one of them, its second ones lie in its place; one of x.
const PAIRS: [AsmRegisterYmm; ELEMENTS / 2] = [ymm0, ymm1, ymm2, ymm3];
const FIRST: AsmRegisterYmm = ymm4;
const ELEMENT: AsmRegisterYmm = ymm6;
/// The upper halves of lanes, by number.
const UPPER: usize = 7;
const SUMS: &[AsmRegisterYmm] = YMM.split_at(8).1;

/// k is a multiple of 8.
pub(super) fn lanes_256(lanes: Lanes) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let bytes = LANES * lanes.weight_stride as usize;
    a.lea(FETCH, ptr(W + (bytes * AHEAD.div_ceil(bytes)) as i32))?;
    fill(a, UPPER, 0xffff_0000)?;
    for rows in 1..=lanes.rows {
        let mut next = a.create_label();
        if rows < lanes.rows {
            a.cmp(COUNT, rows as i32)?;
            a.jne(next)?;
        }
        let together = if rows * LANES / EIGHT <= SUMS.len() { LANES / EIGHT } else { 1 };
        for first in (0..LANES / EIGHT).step_by(together) {
            let meeting = Meeting { lanes, rows, eights: first..first + together };
            meeting.emit(a)?;
        }
        a.vzeroupper()?;
        a.ret()?;
        if rows < lanes.rows {
            a.set_label(&mut next)?;
        }
    }
    a.assemble(0)
}

/// Rows of x that meet some eights of weight rows in one loop.
struct Meeting {
    lanes: Lanes,
    rows: usize,
    eights: Range<usize>,
}

impl Meeting {
    fn sum(&self, t: usize, eight: usize) -> AsmRegisterYmm {
        SUMS[(eight - self.eights.start) * self.rows + t]
    }

    fn results(&self) -> impl Iterator<Item = (usize, usize)> {
        self.eights.clone().flat_map(|eight| (0..self.rows).map(move |t| (t, eight)))
    }

    fn emit(&self, a: &mut CodeAssembler) -> Done {
        let Lanes { k, weight_stride, c_stride, .. } = self.lanes;
        let mut again = a.create_label();
        a.mov(X_AT, X)?;
        a.mov(W_AT, W)?;
        a.mov(LEFT, (k / ELEMENTS) as i64)?;
        self.results().try_for_each(|(t, eight)| self.sum(t, eight).zero(a))?;
        a.set_label(&mut again)?;
        if weight_stride as usize == DType::BF16.row_bytes(k) {
            let bytes = self.eights.len() * EIGHT * DType::BF16.row_bytes(ELEMENTS);
            (0..bytes).step_by(LINE).try_for_each(|line| a.prefetcht1(byte_ptr(FETCH + line)))?;
            a.add(FETCH, bytes as i32)?;
        }
        self.eights.clone().try_for_each(|eight| self.meet(a, eight))?;
        a.add(X_AT, DType::F32.row_bytes(ELEMENTS) as i32)?;
        a.add(W_AT, DType::BF16.row_bytes(ELEMENTS) as i32)?;
        a.dec(LEFT)?;
        a.jnz(again)?;
        self.results().try_for_each(|(t, eight)| {
            let at = t as i32 * c_stride + eight as i32 * AsmRegisterYmm::BYTES;
            self.sum(t, eight).store(a, ymmword_ptr(C + at))
        })
    }

    /// Eight weight rows with every row of x.
    fn meet(&self, a: &mut CodeAssembler, eight: usize) -> Done {
        for (row, pair) in PAIRS.into_iter().enumerate() {
            let row_at = |n: usize| xmmword_ptr(W_AT + (eight * EIGHT + n) as i32 * self.lanes.weight_stride);
            a.vmovdqu(XMM[row], row_at(row))?;
            a.vinserti128(pair, pair, row_at(row + EIGHT / 2), 1)?;
        }
        Turned::turn(a, PAIRS, FIRST)?;
        for (i, second) in PAIRS.into_iter().enumerate() {
            a.vpslld(FIRST, second, 16)?;
            a.vpand(second, second, YMM[UPPER])?;
            for (element, w) in [(2 * i, FIRST), (2 * i + 1, second)] {
                for t in 0..self.rows {
                    let x = DType::F32.row_bytes(t * self.lanes.k + element) as i32;
                    a.vbroadcastss(ELEMENT, dword_ptr(X_AT + x))?;
                    a.vfmadd231ps(self.sum(t, eight), w, ELEMENT)?;
                }
            }
        }
        Ok(())
    }
}
