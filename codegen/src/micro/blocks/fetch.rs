//! What code with weight rows in lanes fetches meanwhile: to the second cache the rows of a later call, in the order of
//! their bytes; to the first what is near in its own.

use std::ops::Range;

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, Format};

use crate::micro::Lanes;
use crate::micro::dot::Done;
use crate::micro::lanes::AHEAD;

const LINE: usize = 64;
/// How many blocks ahead the first cache is filled.
const NEAR: usize = 2;

/// What is fetched next; and a number to spare.
const FETCH: AsmRegister64 = gpr64::r8;
const SPARE: AsmRegister64 = gpr64::rax;

/// The rows of a later call.
pub(super) struct Ahead<'a> {
    pub(super) lanes: Lanes,
    pub(super) format: &'a Format,
    /// Weight rows of a call.
    pub(super) rows: usize,
}

impl Ahead<'_> {
    /// Readies for the first block, of the rows from `weights` on.
    pub(super) fn begin(&self, a: &mut CodeAssembler, weights: AsmRegister64) -> Done {
        let call = self.rows * self.format.row_bytes(self.lanes.k);
        a.lea(FETCH, ptr(weights + (call * AHEAD.div_ceil(call)) as i32))
    }

    /// Fetches to the first cache, with the 32 elements from `first` of a long block, their share of what each row has
    /// [`NEAR`] blocks later: asked for when it is wanted, a line waits behind those that come from memory. More rows
    /// of x wait for arithmetic instead, and short blocks have several to a line; several streams were not measured.
    pub(super) fn fetch_near(&self, a: &mut CodeAssembler, first: usize, weights: AsmRegister64) -> Done {
        let Lanes { k, rows, streams, .. } = self.lanes;
        let Format { block, planes, .. } = self.format;
        if *block == BLOCK || rows > 1 || streams > 1 {
            return Ok(());
        }
        let of = |row: usize| {
            let near = row * self.format.row_bytes(k) + NEAR * planes[0];
            (0..planes[0]).step_by(LINE).map(move |line| near + line)
        };
        let lines: Vec<usize> = (0..self.rows).flat_map(of).collect();
        let mut lines = lines[self.part(lines.len(), first)].iter();
        lines.try_for_each(|line| a.prefetcht0(byte_ptr(weights + *line as i32)))
    }

    /// Which of so many lines of a block are fetched with the 32 elements from `first`.
    fn part(&self, lines: usize, first: usize) -> Range<usize> {
        let at = |element: usize| lines * element / self.format.block;
        at(first)..at(first + BLOCK)
    }

    /// Fetches what is ahead of the 32 elements from `first` of a block, each line once: asked for twice it would keep
    /// others back. Clobbers the count's register.
    pub(super) fn fetch(&self, a: &mut CodeAssembler, first: usize) -> Done {
        let block = self.format.block;
        let bytes = self.rows * self.format.block_bytes();
        // Of each stream its share of a block's bytes, and of the rows.
        let streams = self.lanes.streams;
        let (share, apart) = (bytes / streams, self.rows * self.format.row_bytes(self.lanes.k) / streams);
        if streams > 1 && share >= LINE {
            let count = (share + LINE / 2) / LINE;
            let of = |stream: usize| (0..count).map(move |i| stream * apart + i * share / count);
            let lines: Vec<usize> = (0..streams).flat_map(of).collect();
            for line in &lines[self.part(lines.len(), first)] {
                a.prefetcht1(byte_ptr(FETCH + *line as i32))?;
            }
            return if first + BLOCK == block { a.add(FETCH, share as i32) } else { Ok(()) };
        }
        let lines = bytes / LINE;
        for line in self.part(lines, first) {
            a.prefetcht1(byte_ptr(FETCH + (line * LINE) as i32))?;
        }
        if first + BLOCK < block {
            return Ok(());
        }
        let (after, rest) = ((lines * LINE) as i32, (bytes % LINE) as i32);
        if rest > 0 {
            // What is beyond whole lines begins another one, or lies in the last.
            let mut within = a.create_label();
            a.lea(SPARE, ptr(FETCH + rest))?;
            a.xor(SPARE, FETCH)?;
            a.test(gpr32::eax, LINE as i32)?;
            a.jz(within)?;
            a.prefetcht1(byte_ptr(FETCH + after))?;
            a.set_label(&mut within)?;
        }
        a.add(FETCH, after + rest)
    }
}
