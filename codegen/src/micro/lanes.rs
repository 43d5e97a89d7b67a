//! Integer dot products with weight rows in lanes, assembled: few rows of x against 16 weight rows as they lie.
//!
//! Of each block of 32 elements of k a format's part ([`scales`], [`quants`]) brings the rows' quants into registers,
//! transposed: four elements a register, a weight row a lane, unsigned; and their scales into one more. Every row of x
//! then meets them, its quants broadcast, four at a time. So weights are read and unpacked once for up
//! to [`ROWS`] rows of x. A block's products are summed exactly, multiplied by x's scale, and added times the weights'
//! scales: what tiles of integers do (`tile_int8.rs`), in the same order, so that a result has the same bits.
//!
//! Weight rows follow one another in memory. The 16 after these are fetched meanwhile in the order of their bytes, or
//! in as many streams as memory serves best.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::{Done, XMM};
use super::tile::{Vector, ZMM};
use super::{Code, Lanes};
use crate::micro;

/// Weight rows, a lane each.
pub(super) const LANES: usize = 16;
/// The most rows of x of a call.
pub(super) const ROWS: usize = 16;
/// Blocks whose scales are loaded at a time: 16 bytes of each row.
pub(super) const GROUP: usize = 8;
/// How many bytes ahead at least the second cache is filled, in whole calls' rows.
pub(super) const AHEAD: usize = 32 << 10;
/// Elements of k whose products a lane adds up at a time.
const STEP: usize = 4;

/// Lines that are fetched ahead at a time: one after another, lest they wait for each other.
pub(super) const LINES: usize = 2;

pub(super) const X: AsmRegister64 = gpr64::rdi;
pub(super) const W: AsmRegister64 = gpr64::rsi;
pub(super) const C: AsmRegister64 = gpr64::rdx;
pub(super) const COUNT: AsmRegister64 = gpr64::rcx;
pub(super) const LEFT: AsmRegister64 = gpr64::rax;
pub(super) const FETCH: AsmRegister64 = gpr64::r8;
pub(super) const SCALES: AsmRegister64 = gpr64::r9;
/// Where the part of the last row of x begins, in an even block and in an odd one.
const ENTRIES: [AsmRegister64; 2] = [gpr64::r10, gpr64::r11];

/// What unpacking works in, by number in [`ZMM`]: eight for quants, one for sums of products.
pub(super) const WORK: [usize; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
pub(super) const SCALE: AsmRegisterZmm = zmm9;
/// The scales of a group's blocks, in pairs: an even one's in the lower half of a lane.
pub(super) const PAIRS: [usize; GROUP / 2] = [10, 11, 12, 13];
/// What quants are masked or shifted by.
pub(super) const MASK: AsmRegisterZmm = zmm14;
/// The upper halves of lanes.
pub(super) const UPPER: AsmRegisterZmm = zmm15;
/// The results of each row of x.
pub(super) const SUMS: &[AsmRegisterZmm] = ZMM.split_at(16).1;

/// With AVX-512 VNNI.
pub(super) fn lanes_vnni(lanes: Lanes) -> Code {
    let Lanes { dtype, k, rows, .. } = lanes;
    let blocks = k / BLOCK;
    // What is left counts down to this, so that groups begin at its multiples of GROUP.
    let end = (blocks.next_multiple_of(GROUP) - blocks) as i32;
    let a = &mut CodeAssembler::new(64)?;
    let [mut start, mut group, mut last, mut pair, mut done] = std::array::from_fn(|_| a.create_label());
    let mut entries: [Vec<CodeLabel>; 2] =
        std::array::from_fn(|_| (0..rows).map(|_| a.create_label()).collect());

    for (t, (&even, &odd)) in entries[0].iter().zip(&entries[1]).enumerate() {
        a.lea(ENTRIES[0], ptr(even))?;
        a.lea(ENTRIES[1], ptr(odd))?;
        if t + 1 < rows {
            a.cmp(COUNT, t as i32 + 1)?;
            a.je(start)?;
        }
    }
    a.set_label(&mut start)?;
    begin(a, lanes, if dtype == DType::Q4 { 0x0f0f_0f0f } else { 0x8080_8080 })?;
    a.mov(LEFT, blocks.next_multiple_of(GROUP) as i64)?;

    a.set_label(&mut group)?;
    if end > 0 && blocks > GROUP {
        a.cmp(LEFT, GROUP as i32)?;
        a.je(last)?;
    }
    if blocks >= GROUP {
        scales(a, lanes, false)?;
        a.add(SCALES, 2 * GROUP as i32)?;
    }
    if end > 0 {
        if blocks > GROUP {
            a.jmp(pair)?;
            a.set_label(&mut last)?;
        }
        scales(a, lanes, true)?;
    }

    a.set_label(&mut pair)?;
    let fetched = fetched(lanes);
    for (odd, labels) in entries.iter_mut().enumerate() {
        let (quants, total) = quants(a, lanes, &fetched[odd])?;
        block_scale(a, odd)?;
        if rows > 1 {
            a.jmp(ENTRIES[odd])?;
        }
        for t in (0..rows).rev() {
            a.set_label(&mut labels[t])?;
            meet(a, lanes, t, &quants, total)?;
        }
        a.add(X, micro::lane_row_bytes(DType::Q8, BLOCK) as i32)?;
        a.add(W, dtype.row_bytes(BLOCK) as i32 - 2)?;
        a.dec(LEFT)?;
        if odd == 0 && !blocks.is_multiple_of(2) {
            a.cmp(LEFT, end)?;
            a.je(done)?;
        }
    }
    if blocks.is_multiple_of(2) {
        a.cmp(LEFT, end)?;
        a.je(done)?;
    }
    a.add(FETCH, pair_bytes(lanes) as i32)?;
    for pair in PAIRS.windows(2) {
        a.vmovdqa32(ZMM[pair[0]], ZMM[pair[1]])?;
    }
    a.test(gpr32::eax, GROUP as i32 - 1)?;
    a.jnz(pair)?;
    a.jmp(group)?;

    a.set_label(&mut done)?;
    store(a, lanes)?;
    a.assemble(0)
}

/// Readies what stays in registers: no sums, what quants are masked by, places of what is fetched and of scales, and in
/// `k1` the blocks of the last group if it has not all of them.
pub(super) fn begin(a: &mut CodeAssembler, lanes: Lanes, mask: u32) -> Done {
    let Lanes { dtype, k, rows, .. } = lanes;
    let (blocks, row_bytes) = (k / BLOCK, dtype.row_bytes(k));
    for &sum in &SUMS[..rows] {
        a.vpxord(sum, sum, sum)?;
    }
    a.mov(gpr32::eax, mask)?;
    a.vpbroadcastd(MASK, gpr32::eax)?;
    a.mov(gpr32::eax, 0xffff_0000u32)?;
    a.vpbroadcastd(UPPER, gpr32::eax)?;
    if !blocks.is_multiple_of(GROUP) {
        a.mov(gpr32::eax, (1u32 << (blocks % GROUP)) - 1)?;
        a.kmovw(k1, gpr32::eax)?;
    }
    let bytes = LANES * row_bytes;
    a.lea(FETCH, ptr(W + (bytes * AHEAD.div_ceil(bytes)) as i32))?;
    a.lea(SCALES, ptr(W + (row_bytes - 2 * blocks) as i32))
}

/// Bytes of each stream that are fetched with a pair of blocks.
pub(super) fn pair_bytes(lanes: Lanes) -> usize {
    LANES * 2 * lanes.dtype.row_bytes(BLOCK) / lanes.streams
}

/// Lines that are fetched with a pair's even block and with its odd one: of each stream whole ones.
pub(super) fn fetched(lanes: Lanes) -> [Vec<i32>; 2] {
    let stream_bytes = LANES * lanes.dtype.row_bytes(lanes.k) / lanes.streams;
    let of =
        |stream| (0..pair_bytes(lanes)).step_by(64).map(move |line| (stream * stream_bytes + line) as i32);
    let mut even: Vec<i32> = (0..lanes.streams).flat_map(of).collect();
    let odd = even.split_off(even.len() / 2);
    [even, odd]
}

/// The scales of a pair's even block, or of its odd one, as f32: [`SCALE`].
pub(super) fn block_scale(a: &mut CodeAssembler, odd: usize) -> Done {
    let pair = ZMM[PAIRS[0]];
    if odd == 0 { a.vpslld(SCALE, pair, 16) } else { a.vpandd(SCALE, pair, UPPER) }
}

/// Stores the sums of as many rows of x as there are, and returns.
pub(super) fn store(a: &mut CodeAssembler, lanes: Lanes) -> Done {
    let mut stored = a.create_label();
    for (t, &sum) in SUMS[..lanes.rows].iter().enumerate() {
        if t > 0 {
            a.cmp(COUNT, t as i32 + 1)?;
            a.jb(stored)?;
        }
        a.vmovups(zmmword_ptr(C + t as i32 * lanes.c_stride), sum)?;
    }
    a.set_label(&mut stored)?;
    a.vzeroupper()?;
    a.ret()
}

/// Row `t`'s part in a block.
fn meet(
    a: &mut CodeAssembler,
    lanes: Lanes,
    t: usize,
    quants: &[usize; BLOCK / STEP],
    total: AsmRegisterZmm,
) -> Done {
    let word = |i: usize| X + (t * micro::lane_row_bytes(DType::Q8, lanes.k) + i * 4) as i32;
    a.vpbroadcastd(total, dword_ptr(word(1)))?;
    if lanes.dtype == DType::Q8 {
        // Shifted by 128, which is 16 times 8.
        a.vpslld(total, total, 4)?;
    }
    for (step, &w) in quants.iter().enumerate() {
        a.evex().vpdpbusd(total, ZMM[w], dword_bcst(word(4 + step)))?;
    }
    a.vcvtdq2ps(total, total)?;
    a.vmulps(total, total, dword_bcst(word(0)))?;
    a.vfmadd231ps(SUMS[t], total, SCALE)
}

/// Scales of a group's blocks, or of those that `k1` counts: [`PAIRS`]. Clobbers [`WORK`].
pub(super) fn scales(a: &mut CodeAssembler, lanes: Lanes, some: bool) -> Done {
    let row_bytes = lanes.dtype.row_bytes(lanes.k) as i32;
    let [spare, part, ..] = WORK;
    for (row, register) in PAIRS.into_iter().enumerate() {
        for quarter in 0..LANES / 4 {
            let at = SCALES + (row + 4 * quarter) as i32 * row_bytes;
            let to = ZMM[register];
            match (quarter, some) {
                (0, false) => a.vmovdqu(XMM[register], xmmword_ptr(at))?,
                (0, true) => a.vmovdqu16(XMM[register].k1().z(), xmmword_ptr(at))?,
                (_, false) => a.vinserti32x4(to, to, xmmword_ptr(at), quarter as u32)?,
                (_, true) => {
                    a.vmovdqu16(XMM[part].k1().z(), xmmword_ptr(at))?;
                    a.vinserti32x4(to, to, XMM[part], quarter as u32)?;
                }
            }
        }
    }
    turn(a, PAIRS, spare)
}

/// Sixteen bytes of every row, `stride` bytes apart, from byte `byte` of each on: a register has those of each fourth
/// row. Fetches so many of the lines ahead with each of them.
pub(super) fn load(
    a: &mut CodeAssembler,
    registers: [usize; 4],
    (stride, byte): (i32, i32),
    (ahead, lines): (&mut dyn Iterator<Item = i32>, usize),
) -> Done {
    for (row, register) in registers.into_iter().enumerate() {
        let at = |quarter: usize| xmmword_ptr(W + ((row + 4 * quarter) as i32 * stride + byte));
        a.vmovdqu(XMM[register], at(0))?;
        for line in ahead.take(lines) {
            a.prefetcht1(byte_ptr(FETCH + line))?;
        }
        for quarter in 1..LANES / 4 {
            a.vinserti32x4(ZMM[register], ZMM[register], at(quarter), quarter as u32)?;
        }
    }
    Ok(())
}

/// A block's quants, unsigned, elements 4 i to 4 i + 3 in the i-th register; and one of [`WORK`] that is free. Fetches
/// these bytes' lines ahead on the way.
fn quants(
    a: &mut CodeAssembler,
    lanes: Lanes,
    ahead: &[i32],
) -> Result<([usize; BLOCK / STEP], AsmRegisterZmm), IcedError> {
    let row_bytes = lanes.dtype.row_bytes(lanes.k) as i32;
    let ahead = &mut ahead.iter().copied();
    let [p, q, r, s, t, u, v, w, spare] = WORK;
    let (first, second) = ([p, q, r, s], [t, u, v, w]);
    load(a, first, (row_bytes, 0), (ahead, LINES))?;
    turn(a, first, spare)?;
    if lanes.dtype == DType::Q4 {
        // The second half of the elements are the bytes' upper halves.
        for (low, high) in first.into_iter().zip(second) {
            a.vpsrlw(ZMM[high], ZMM[low], 4)?;
            a.vpandd(ZMM[low], ZMM[low], MASK)?;
            a.vpandd(ZMM[high], ZMM[high], MASK)?;
        }
    } else {
        load(a, second, (row_bytes, 16), (ahead, LINES))?;
        turn(a, second, spare)?;
        for quant in join(first, second) {
            a.vpxord(ZMM[quant], ZMM[quant], MASK)?;
        }
    }
    Ok((join(first, second), ZMM[spare]))
}

pub(super) fn join(first: [usize; 4], second: [usize; 4]) -> [usize; 8] {
    let [a, b, c, d] = first;
    let [e, f, g, h] = second;
    [a, b, c, d, e, f, g, h]
}

/// Transposes four registers where they are, dwords within each 128 bits, by way of a fifth: the i-th has dword i of
/// each then.
pub(super) fn turn(a: &mut CodeAssembler, registers: [usize; 4], spare: usize) -> Done {
    Turned::turn(a, registers.map(|i| ZMM[i]), ZMM[spare])
}

/// Vectors of either width that are transposed so.
pub(super) trait Turned: Vector {
    fn turn(a: &mut CodeAssembler, registers: [Self; 4], spare: Self) -> Done;
}

macro_rules! turned {
    ($($vector:ty),*) => {
        $(impl Turned for $vector {
            fn turn(a: &mut CodeAssembler, [p, q, r, s]: [Self; 4], t: Self) -> Done {
                a.vpunpckldq(t, p, q)?;
                a.vpunpckhdq(p, p, q)?;
                a.vpunpckldq(q, r, s)?;
                a.vpunpckhdq(s, r, s)?;
                a.vpunpcklqdq(r, p, s)?;
                a.vpunpckhqdq(s, p, s)?;
                a.vpunpcklqdq(p, t, q)?;
                a.vpunpckhqdq(q, t, q)
            }
        })*
    };
}

turned!(AsmRegisterYmm, AsmRegisterZmm);
