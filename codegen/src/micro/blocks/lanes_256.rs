//! Integer dot products with weight rows in lanes, with AVX2 or AVX-VNNI: few rows of x against 8 weight rows as they
//! lie, in any format of blocks.
//!
//! Of each 32 elements of k the rows' quants are brought into registers, transposed: four elements a register, a weight
//! row a lane. Every row of x then meets them, its quants broadcast, four at a time. So weights are read and unpacked
//! once for all rows of x. A group's products are summed exactly, multiplied by x's scale, and added times the weights'
//! scales; then what the offset and x's sum come to. What quants are shifted by to be unsigned is taken off a group's
//! sum before. Tiles of integers do the same in the same order (`tile_int8.rs`), so that a result has the same bits.
//!
//! Without VNNI products are summed in 16 bits as long as they fit, by how large quants may be; quants of 8 bits keep
//! their sign, which x takes over.
//!
//! Where a result's blocks go to several sums in turn, as those of `dot_groups.rs` do, these lie in the frame, and are
//! added up in that code's order at the end. Else of one row of x alone a weight row's sums are made before
//! (`row_256.rs`).
//!
//! What a block has to be unpacked but once is kept in the stack's frame: scales, and bytes that hold fields of more
//! than 32 elements. The rows after these are fetched meanwhile in the order of their bytes.

use std::collections::BTreeMap;

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::format::Reading;
use lapidary_ir::{BLOCK, Format};

use super::fetch::Ahead;
use super::{Constants, offset, windows_of_more};
use crate::micro::dot::{Done, XMM, YMM};
use crate::micro::lanes::Turned;
use crate::micro::{Code, LANE_BLOCK, Lanes, SUMS};

/// Weight rows, a lane each.
pub(in crate::micro) const LANES: usize = 8;
/// Elements of k whose products a lane adds up at a time, and how often that is done for a block of x.
const STEP: usize = 4;
pub(super) const STEPS: usize = BLOCK / STEP;

pub(super) const X: AsmRegister64 = gpr64::rdi;
pub(super) const W: AsmRegister64 = gpr64::rsi;
pub(super) const C: AsmRegister64 = gpr64::rdx;
pub(super) const ROWS: AsmRegister64 = gpr64::rcx;
pub(super) const COUNT: AsmRegister64 = gpr64::rax;
/// The second plane.
const SECOND: AsmRegister64 = gpr64::r9;
/// A row of x, and its results.
pub(super) const ROW: AsmRegister64 = gpr64::r10;
pub(super) const RESULTS: AsmRegister64 = gpr64::r11;
pub(super) const STACK: AsmRegister64 = gpr64::rsp;

/// Registers of quants, one of them to spare; and others that unpacking works in.
pub(super) const QUANTS: [usize; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
pub(super) const WORK: [usize; 5] = [9, 10, 11, 12, 15];
/// The scale of the block's first group; that of its second, or the offset.
pub(super) const SCALE: [usize; 2] = [9, 15];
pub(super) const T: AsmRegisterYmm = ymm10;
pub(super) const TOTAL: AsmRegisterYmm = ymm11;
pub(super) const PART: AsmRegisterYmm = ymm12;
pub(super) const SUM: AsmRegisterYmm = ymm13;
pub(super) const ONES: AsmRegisterYmm = ymm14;

/// With AVX-VNNI.
pub(in crate::micro) fn lanes_avx_vnni(lanes: Lanes) -> Code {
    lanes_256(lanes, Products::Vex)
}

/// With AVX2.
pub(in crate::micro) fn lanes_avx2(lanes: Lanes) -> Code {
    lanes_256(lanes, Products::Words)
}

/// How bytes are multiplied.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Products {
    /// By AVX-VNNI.
    Vex,
    /// In words, by AVX2.
    Words,
}

impl Products {
    /// Four products to each sum, of `w` and a register's x in memory.
    pub(super) fn add(
        self,
        a: &mut CodeAssembler,
        to: AsmRegisterYmm,
        w: AsmRegisterYmm,
        x: AsmMemoryOperand,
    ) -> Done {
        match self {
            Products::Vex => a.vex().vpdpbusd(to, w, x),
            Products::Words => unreachable!("there is no such instruction"),
        }
    }
}

/// What quants are in registers.
#[derive(Clone, Copy)]
pub(super) enum Quants {
    /// Unsigned, at most `most`: `zero` stands for 0.
    Unsigned { zero: i32, most: i32 },
    /// Magnitudes in registers, the numbers themselves in the frame.
    Signed,
}

/// Where things lie in the frame, in bytes from its end.
pub(super) struct Frame {
    /// The stack's end before.
    before: i32,
    /// Blocks that are left.
    left: i32,
    /// Where among a row's sums the block's turn is, in bytes.
    turn: i32,
    /// Scales of all groups of a block; their offsets.
    pub(super) scales: [i32; 2],
    /// Signed quants.
    pub(super) signed: i32,
    /// Sums of one row of x: see `row_256.rs`; or of each row [`SUMS`], a vector each.
    pub(super) sums: i32,
    /// Sixteen bytes of each row, transposed, by their place in a block; and whether the code has stored them.
    windows: BTreeMap<usize, (i32, bool)>,
    bytes: i32,
}

pub(super) const VECTOR: i32 = 4 * LANES as i32;

impl Frame {
    fn new(format: &Format, quants: Quants, lanes: Lanes) -> Frame {
        let groups = (format.block / format.group) as i32;
        let mut bytes = VECTOR;
        let mut take = |some: bool, vectors: i32| {
            let at = bytes;
            bytes += if some { vectors * VECTOR } else { 0 };
            at
        };
        let scales = [take(true, groups), take(offset(format).is_some(), groups)];
        let signed = take(matches!(quants, Quants::Signed), STEPS as i32);
        let sums = match lanes {
            Lanes { sums: 1, rows: 1, k, .. } => Rows::units(k, format.group) * LANES,
            Lanes { sums: 1, .. } => 0,
            Lanes { sums, rows, .. } => sums * rows,
        };
        let sums = take(true, sums as i32);
        let windows =
            windows_of_more(format).into_iter().map(|byte| (byte, (take(true, 4), false))).collect();
        Frame { before: 0, left: 8, turn: 16, scales, signed, sums, windows, bytes }
    }
}

/// What goes from block to block of a row.
pub(super) struct Rows<'a> {
    pub(super) lanes: Lanes,
    pub(super) format: &'a Format,
    pub(super) by: Products,
    pub(super) quants: Quants,
    pub(super) frame: Frame,
    pub(super) constants: Constants,
}

fn lanes_256(lanes: Lanes, by: Products) -> Code {
    let Some(format) = lanes.dtype.format() else { unreachable!("blocks have a format") };
    let width: usize = format.quants.bits.iter().map(|b| b.width).sum();
    let quants = match format.quants.reading {
        Reading::Less(zero) => Quants::Unsigned { zero, most: (1 << width) - 1 },
        Reading::Signed | Reading::Table(_) if by == Products::Words => Quants::Signed,
        Reading::Signed | Reading::Table(_) => Quants::Unsigned { zero: 128, most: 255 },
    };
    let frame = Frame::new(format, quants, lanes);
    let mut rows = Rows { lanes, format, by, quants, frame, constants: Constants::default() };
    rows.all()
}

impl Rows<'_> {
    fn all(&mut self) -> Code {
        let a = &mut CodeAssembler::new(64)?;
        let Lanes { k, sums, .. } = self.lanes;
        let format = self.format;
        let ahead = Ahead { lanes: self.lanes, format, rows: LANES };
        a.mov(COUNT, STACK)?;
        a.sub(STACK, self.frame.bytes + VECTOR)?;
        a.and(STACK, -VECTOR)?;
        a.mov(qword_ptr(STACK + self.frame.before), COUNT)?;
        if sums > 1 {
            a.mov(qword_ptr(STACK + self.frame.turn), 0)?;
        }
        a.vpcmpeqd(ONES, ONES, ONES)?;
        a.vpsrlw(ONES, ONES, 15)?;
        if self.is_alone() {
            self.sums(a)?;
            a.vxorps(SUM, SUM, SUM)?;
        } else {
            ahead.begin(a, W)?;
            let mut again = a.create_label();
            a.vxorps(SUM, SUM, SUM)?;
            self.results(a)?;
            a.mov(COUNT, ROWS)?;
            a.set_label(&mut again)?;
            (0..sums as i32).try_for_each(|i| a.vmovups(ymmword_ptr(RESULTS + i * VECTOR), SUM))?;
            a.add(RESULTS, self.result_bytes())?;
            a.dec(COUNT)?;
            a.jnz(again)?;
        }
        if format.planes.len() > 1 {
            a.lea(SECOND, ptr(W + format.plane_at(1, k) as i32))?;
        }
        a.mov(COUNT, (k / format.block) as i64)?;
        a.mov(qword_ptr(STACK + self.frame.left), COUNT)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        self.scales(a)?;
        for first in (0..format.block).step_by(BLOCK) {
            if self.is_alone() {
                self.meet(a, first, None)?;
                continue;
            }
            ahead.fetch(a, first)?;
            let quants = self.unpack(a, first)?;
            self.meet(a, first, Some(quants))?;
        }
        if self.is_alone() {
            a.add(RESULTS, self.sum_bytes())?;
        }
        if sums > 1 {
            a.mov(COUNT, qword_ptr(STACK + self.frame.turn))?;
            a.add(COUNT, VECTOR)?;
            a.and(COUNT, sums as i32 * VECTOR - 1)?;
            a.mov(qword_ptr(STACK + self.frame.turn), COUNT)?;
        }
        a.add(X, (format.block / BLOCK * self.lanes.rows * LANE_BLOCK) as i32)?;
        for (plane, bytes) in [W, SECOND].into_iter().zip(format.planes) {
            a.add(plane, *bytes as i32)?;
        }
        a.dec(qword_ptr(STACK + self.frame.left))?;
        a.jnz(again)?;
        if self.is_alone() {
            a.vmovups(ymmword_ptr(C), SUM)?;
        } else if sums > 1 {
            self.add_up(a)?;
        }
        a.mov(STACK, qword_ptr(STACK + self.frame.before))?;
        a.vzeroupper()?;
        a.ret()?;
        self.constants.emit(a)?;
        a.assemble(0)
    }

    /// Where the first row's results, or the sums that it is the block's turn to, lie: to [`RESULTS`].
    pub(super) fn results(&self, a: &mut CodeAssembler) -> Done {
        if self.lanes.sums == 1 {
            return a.mov(RESULTS, C);
        }
        a.lea(RESULTS, ptr(STACK + self.frame.sums))?;
        a.add(RESULTS, qword_ptr(STACK + self.frame.turn))
    }

    /// Bytes from one row's to the next's.
    pub(super) fn result_bytes(&self) -> i32 {
        match self.lanes.sums {
            1 => self.lanes.c_stride,
            sums => sums as i32 * VECTOR,
        }
    }

    /// Adds up each row's sums, as `dot::reduce` adds up lanes.
    fn add_up(&self, a: &mut CodeAssembler) -> Done {
        let mut again = a.create_label();
        a.lea(RESULTS, ptr(STACK + self.frame.sums))?;
        a.set_label(&mut again)?;
        let sum = |i: usize| ymmword_ptr(RESULTS + i as i32 * VECTOR);
        for (i, &half) in YMM[..SUMS / 2].iter().enumerate() {
            a.vmovups(half, sum(i))?;
            a.vaddps(half, half, sum(i + SUMS / 2))?;
        }
        a.vaddps(ymm0, ymm0, ymm1)?;
        a.vaddps(ymm2, ymm2, ymm3)?;
        a.vaddps(ymm0, ymm0, ymm2)?;
        a.vmovups(ymmword_ptr(C), ymm0)?;
        a.add(C, self.lanes.c_stride)?;
        a.add(RESULTS, self.result_bytes())?;
        a.dec(ROWS)?;
        a.jnz(again)
    }

    /// Whether there is one row of x alone, whose results stay in a register.
    pub(super) fn is_alone(&self) -> bool {
        self.lanes.rows == 1 && self.lanes.sums == 1
    }

    /// Bytes into the block's first plane (or the second), of row `r`.
    pub(super) fn at(&self, plane: usize, r: usize, byte: usize) -> AsmMemoryOperand {
        let register = if plane == 0 { W } else { SECOND };
        register + (r * self.format.row_bytes(self.lanes.k) + byte) as i32
    }

    /// Sixteen bytes of every row, transposed: dwords 0 to 3, a row a lane. Clobbers a register more.
    pub(super) fn window(
        &mut self,
        a: &mut CodeAssembler,
        byte: usize,
        into: [usize; 4],
        spare: usize,
    ) -> Done {
        let vectors = |at: i32| (0..4).map(move |i| ymmword_ptr(STACK + at + i * VECTOR));
        if let Some(&(at, true)) = self.frame.windows.get(&byte) {
            for (register, from) in into.into_iter().zip(vectors(at)) {
                a.vmovdqu(YMM[register], from)?;
            }
            return Ok(());
        }
        for (r, register) in into.into_iter().enumerate() {
            a.vmovdqu(XMM[register], xmmword_ptr(self.at(0, r, byte)))?;
            let upper = xmmword_ptr(self.at(0, r + 4, byte));
            a.vinserti128(YMM[register], YMM[register], upper, 1)?;
        }
        Turned::turn(a, into.map(|i| YMM[i]), YMM[spare])?;
        if let Some((at, stored)) = self.frame.windows.get_mut(&byte) {
            for (register, to) in into.into_iter().zip(vectors(*at)) {
                a.vmovdqu(to, YMM[register])?;
            }
            *stored = true;
        }
        Ok(())
    }
}
