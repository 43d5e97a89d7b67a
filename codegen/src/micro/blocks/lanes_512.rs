//! Integer dot products with weight rows in lanes, with AVX-512 VNNI: few rows of x against 16 weight rows as they lie,
//! in any format of blocks.
//!
//! Of each 32 elements of k the rows' quants are brought into registers, transposed: four elements a register, a weight
//! row a lane. Every row of x then meets them, its quants broadcast, four at a time. So weights are read and unpacked
//! once for all rows of x. A group's products are summed exactly, multiplied by x's scale, and added times the weights'
//! scales; then what the offset and x's sum come to: as `lanes_256.rs` does for 8 weight rows, to the same bits.
//!
//! Bits need not be brought down to be multiplied: quants may come 2^n times as large, which is taken off a group's sum
//! ([`Lifted`]). The scales' integers stay transposed in registers for a block, and each group's scale is made when it
//! is wanted. Bytes that hold fields of more than 32 elements are kept in the stack's frame, transposed.

use std::collections::BTreeMap;

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::format::Scale;
use lapidary_ir::{BLOCK, Format};

use super::fetch::Ahead;
use super::{Constants, excess, offset, scales_of, windows_of_more};
use crate::micro::dot::Done;
use crate::micro::tile::ZMM;
use crate::micro::{Code, LANE_BLOCK, Lanes};

/// Weight rows, a lane each.
pub(in crate::micro) const LANES: usize = 16;
/// Elements of k whose products a lane adds up at a time, and how often that is done for a block of x.
const STEP: usize = 4;
const STEPS: usize = BLOCK / STEP;
pub(super) const VECTOR: i32 = 4 * LANES as i32;
/// Bytes of a window: what is transposed of each row at a time, a dword a register.
pub(super) const WINDOW: usize = 16;

const X: AsmRegister64 = gpr64::rdi;
const W: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const ROWS: AsmRegister64 = gpr64::rcx;
const COUNT: AsmRegister64 = gpr64::rax;
/// The second plane.
const SECOND: AsmRegister64 = gpr64::r9;
/// A row of x, and its results.
const ROW: AsmRegister64 = gpr64::r10;
const RESULTS: AsmRegister64 = gpr64::r11;
pub(super) const STACK: AsmRegister64 = gpr64::rsp;

/// Registers, by number in [`ZMM`]: the window of the scales' integers.
pub(super) const INTEGERS: [usize; 4] = [0, 1, 2, 3];
/// The block's scale, and its offset times -8 or 8; the same of each group of 32 elements.
pub(super) const FLOATS: [usize; 2] = [4, 5];
pub(super) const SCALE: [[usize; 2]; 2] = [[6, 28], [7, 30]];
/// Two windows, and what turning takes.
pub(super) const TURNED: [[usize; 4]; 2] = [[8, 9, 10, 11], [12, 13, 14, 15]];
pub(super) const SPARE: usize = 16;
/// The quants of 32 elements.
pub(super) const QUANTS: [usize; STEPS] = [17, 18, 19, 20, 21, 22, 23, 24];
pub(super) const FIELD: AsmRegisterZmm = zmm25;
pub(super) const T: AsmRegisterZmm = zmm26;
const TOTAL: AsmRegisterZmm = zmm27;
/// Results of one row of x.
const SUM: AsmRegisterZmm = zmm29;

/// A window's four registers, or where they are kept in the frame.
#[derive(Clone, Copy)]
pub(super) enum Window {
    Held([usize; 4]),
    Kept(i32),
}

/// How many bits up quants are, as they are multiplied.
#[derive(Clone, Copy, Default)]
pub(super) struct Lifted(pub(super) usize);

pub(super) struct Rows<'a> {
    pub(super) lanes: Lanes,
    pub(super) format: &'a Format,
    /// What is taken off quants: a power of two, or 0.
    zero: i32,
    /// Bytes of the frame; the windows that are kept there, by their byte in a block, and whether they are yet.
    frame: i32,
    pub(super) kept: BTreeMap<usize, (i32, bool)>,
    /// Where the integers' window begins in a block.
    pub(super) integers: Option<usize>,
    pub(super) constants: Constants,
}

/// With AVX-512 VNNI.
pub(in crate::micro) fn lanes_512(lanes: Lanes) -> Code {
    let Some(format) = lanes.dtype.format() else { unreachable!("blocks have a format") };
    let zero = excess(format);
    let again = windows_of_more(format).into_iter().zip(0..);
    let kept: BTreeMap<_, _> = again.map(|(byte, i)| (byte, (i * 4 * VECTOR, false))).collect();
    let frame = kept.len() as i32 * 4 * VECTOR;
    let integers = integers_at(format);
    Rows { lanes, format, zero, frame, kept, integers, constants: Constants::default() }.all()
}

/// Where the 16 bytes begin that all integers of scales and offsets lie in, and floats too if they can.
fn integers_at(format: &Format) -> Option<usize> {
    let groups = 0..format.block / format.group;
    let scales = || scales_of(format);
    let places = |scale: &Scale| groups.clone().filter_map(|j| scale.times.places(j)).collect::<Vec<_>>();
    let bytes: Vec<usize> =
        scales().flat_map(places).flat_map(|(places, _)| places).map(|place| place.byte).collect();
    let (first, last) = (*bytes.iter().min()?, *bytes.iter().max()?);
    let floats: Vec<usize> = scales().flat_map(|scale| [scale.byte, scale.byte + 1]).collect();
    let all = || floats.iter().copied().chain([first, last]);
    let from = all().min()?.min(format.planes[0] - WINDOW);
    Some(if all().all(|byte| (from..from + WINDOW).contains(&byte)) { from } else { first })
        .map(|from| from.min(format.planes[0] - WINDOW))
}

impl Rows<'_> {
    fn all(&mut self) -> Code {
        let a = &mut CodeAssembler::new(64)?;
        let (k, format) = (self.lanes.k, self.format);
        let before = self.frame;
        a.mov(COUNT, STACK)?;
        a.sub(STACK, self.frame + 2 * VECTOR)?;
        a.and(STACK, -VECTOR)?;
        a.mov(qword_ptr(STACK + before), COUNT)?;
        let ahead = Ahead { lanes: self.lanes, format, rows: LANES };
        ahead.begin(a, W)?;
        a.vpxord(SUM, SUM, SUM)?;
        let mut again = a.create_label();
        if !self.is_alone() {
            a.mov(RESULTS, C)?;
            a.mov(COUNT, ROWS)?;
            a.set_label(&mut again)?;
            a.vmovups(zmmword_ptr(RESULTS), SUM)?;
            a.add(RESULTS, self.lanes.c_stride)?;
            a.dec(COUNT)?;
            a.jnz(again)?;
        }
        if format.planes.len() > 1 {
            a.lea(SECOND, ptr(W + format.plane_at(1, k) as i32))?;
        }
        a.mov(qword_ptr(STACK + (before + 8)), (k / format.block) as i32)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        if let Some(byte) = self.integers {
            self.turn(a, byte, INTEGERS)?;
        }
        self.floats(a)?;
        for first in (0..format.block).step_by(BLOCK) {
            ahead.fetch(a, first)?;
            ahead.fetch_near(a, first, W)?;
            let lifted = self.unpack(a, first)?;
            self.meet(a, first, lifted)?;
        }
        a.add(X, (format.block / BLOCK * self.lanes.rows * LANE_BLOCK) as i32)?;
        for (plane, bytes) in [W, SECOND].into_iter().zip(format.planes) {
            a.add(plane, *bytes as i32)?;
        }
        a.dec(qword_ptr(STACK + (before + 8)))?;
        a.jnz(again)?;
        if self.is_alone() {
            a.vmovups(zmmword_ptr(C), SUM)?;
        }
        a.mov(STACK, qword_ptr(STACK + before))?;
        a.vzeroupper()?;
        a.ret()?;
        self.constants.emit(a)?;
        a.assemble(0)
    }

    /// Whether there is one row of x alone, whose results stay in a register.
    fn is_alone(&self) -> bool {
        self.lanes.rows == 1
    }

    /// Bytes into the block's first plane (or the second), of row `r`.
    pub(super) fn at(&self, plane: usize, r: usize, byte: usize) -> AsmMemoryOperand {
        let register = if plane == 0 { W } else { SECOND };
        register + (r * self.format.row_bytes(self.lanes.k) + byte) as i32
    }

    /// Every row of x, with these quants.
    fn meet(&mut self, a: &mut CodeAssembler, first: usize, lifted: Lifted) -> Done {
        let groups = BLOCK / self.format.group.min(BLOCK);
        let offset = offset(self.format).is_some();
        let alone = self.is_alone();
        // Of each group its scale's register, and its offset's.
        let mut scales = vec![];
        for group in (first / self.format.group..).take(groups) {
            let scale = self.scale(a, 0, group)?;
            scales.push([scale, if offset { self.scale(a, 1, group)? } else { scale }]);
        }
        let x = first / BLOCK * self.lanes.rows * LANE_BLOCK;
        let row = if alone { X } else { ROW };
        let word = |i: usize| row + (x + 4 * i) as i32;
        let mut again = a.create_label();
        if !alone {
            a.mov(ROW, X)?;
            a.mov(RESULTS, C)?;
            a.mov(COUNT, ROWS)?;
            a.set_label(&mut again)?;
            a.vmovups(SUM, zmmword_ptr(RESULTS))?;
        }
        for (g, &[scale, added]) in scales.iter().enumerate() {
            self.products(a, (g, groups), lifted, &word)?;
            a.vcvtdq2ps(TOTAL, TOTAL)?;
            a.vmulps(TOTAL, TOTAL, dword_bcst(word(0)))?;
            a.vfmadd231ps(SUM, TOTAL, ZMM[scale])?;
            if offset && groups > 1 {
                sum_of(a, (g, groups), &word, TOTAL)?;
                a.vcvtdq2ps(TOTAL, TOTAL)?;
                a.vmulps(TOTAL, TOTAL, dword_bcst(word(0)))?;
                a.vfmadd231ps(SUM, TOTAL, ZMM[added])?;
            }
        }
        if let [[_, added]] = scales[..]
            && offset
        {
            a.vfmadd231ps(SUM, ZMM[added], dword_bcst(word(3)))?;
        }
        if !alone {
            a.vmovups(zmmword_ptr(RESULTS), SUM)?;
            a.add(ROW, LANE_BLOCK as i32)?;
            a.add(RESULTS, self.lanes.c_stride)?;
            a.dec(COUNT)?;
            a.jnz(again)?;
        }
        Ok(())
    }

    /// The products of a group, summed in [`TOTAL`].
    fn products(
        &self,
        a: &mut CodeAssembler,
        (g, groups): (usize, usize),
        Lifted(lift): Lifted,
        word: &dyn Fn(usize) -> AsmMemoryOperand,
    ) -> Done {
        if self.zero > 0 {
            sum_of(a, (g, groups), word, TOTAL)?;
            match self.zero.trailing_zeros() as i32 - 3 + lift as i32 {
                0 => {}
                up @ 1.. => a.vpslld(TOTAL, TOTAL, up)?,
                down => a.vpsrad(TOTAL, TOTAL, -down)?,
            }
        } else {
            a.vpxord(TOTAL, TOTAL, TOTAL)?;
        }
        // One sum: while it waits for those before it other groups and rows go on.
        for step in g * STEPS / groups..(g + 1) * STEPS / groups {
            a.vpdpbusd(TOTAL, ZMM[QUANTS[step]], dword_bcst(word(4 + step)))?;
        }
        if lift > 0 { a.vpsrad(TOTAL, TOTAL, lift as i32) } else { Ok(()) }
    }
}

/// -8 times the sum of x's quants in a group.
fn sum_of(
    a: &mut CodeAssembler,
    (g, groups): (usize, usize),
    word: &dyn Fn(usize) -> AsmMemoryOperand,
    to: AsmRegisterZmm,
) -> Done {
    match (g, groups) {
        (_, 1) => a.vpbroadcastd(to, dword_ptr(word(1))),
        (0, _) => a.vpbroadcastd(to, dword_ptr(word(2))),
        (_, _) => {
            a.vpbroadcastd(to, dword_ptr(word(1)))?;
            a.vpsubd(to, to, dword_bcst(word(2)))
        }
    }
}
