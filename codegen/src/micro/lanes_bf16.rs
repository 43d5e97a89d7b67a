//! Dot products of bf16 with weight rows in lanes, assembled: few rows of x, rounded to bf16, against 16 weight rows.
//!
//! The weight rows' elements come transposed into registers ([`turn`]): a pair of them a register, a weight row a lane.
//! Every row of x then meets them, its pairs broadcast. So weights are read and turned once for up to [`ROWS`] rows of
//! x, and pairs are added up one after another, as tiles add them (`tile.rs`): a result has the same bits.
//!
//! Weight rows that follow one another lie in memory. The 16 after these are fetched meanwhile in the order of their
//! bytes, so that memory serves one stream. Rows that lie apart are held in cache.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::lanes::{AHEAD, COUNT, FETCH, LANES, LEFT, SUMS, W, WORK, X, join, load, store, turn};
use super::tile::ZMM;
use super::{Code, Lanes};

/// Elements of k whose pairs are in registers at a time.
const STEP: usize = 16;
/// Where the part of the last row of x begins, in each step of a loop.
const ENTRIES: [AsmRegister64; BLOCK / STEP] = [gpr64::r10, gpr64::r11];

/// With AVX-512 BF16; k is a multiple of [`BLOCK`].
pub(super) fn lanes_bf16(lanes: Lanes) -> Code {
    let Lanes { k, rows, weight_stride, .. } = lanes;
    let a = &mut CodeAssembler::new(64)?;
    let [mut start, mut again] = std::array::from_fn(|_| a.create_label());
    let mut entries: [Vec<CodeLabel>; ENTRIES.len()] =
        std::array::from_fn(|_| (0..rows).map(|_| a.create_label()).collect());

    for t in 0..rows {
        for (entry, labels) in ENTRIES.into_iter().zip(&entries) {
            a.lea(entry, ptr(labels[t]))?;
        }
        if t + 1 < rows {
            a.cmp(COUNT, t as i32 + 1)?;
            a.je(start)?;
        }
    }
    a.set_label(&mut start)?;
    for &sum in &SUMS[..rows] {
        a.vpxord(sum, sum, sum)?;
    }
    let follow = weight_stride as usize == DType::BF16.row_bytes(k);
    let bytes = LANES * weight_stride as usize;
    a.lea(FETCH, ptr(W + (bytes * AHEAD.div_ceil(bytes)) as i32))?;
    a.mov(LEFT, (k / BLOCK) as i64)?;

    a.set_label(&mut again)?;
    for (step, labels) in entries.iter_mut().enumerate() {
        let pairs = pairs(a, lanes, step, follow)?;
        if rows > 1 {
            a.jmp(ENTRIES[step])?;
        }
        for t in (0..rows).rev() {
            a.set_label(&mut labels[t])?;
            for (i, &pair) in pairs.iter().enumerate() {
                let at = t * DType::BF16.row_bytes(k) + step * STEP * 2 + i * 4;
                a.vdpbf16ps(SUMS[t], ZMM[pair], dword_bcst(X + at as i32))?;
            }
        }
    }
    a.add(X, 2 * BLOCK as i32)?;
    a.add(W, 2 * BLOCK as i32)?;
    if follow {
        a.add(FETCH, (LANES * 2 * BLOCK) as i32)?;
    }
    a.dec(LEFT)?;
    a.jnz(again)?;
    store(a, lanes)?;
    a.assemble(0)
}

/// A step's pairs, those of elements 2 i and 2 i + 1 in the i-th register. Fetches as many bytes ahead on the way, if
/// asked.
fn pairs(
    a: &mut CodeAssembler,
    lanes: Lanes,
    step: usize,
    fetch: bool,
) -> Result<[usize; STEP / 2], IcedError> {
    let (bytes, stride) = (STEP as i32 * 2, lanes.weight_stride);
    let (first, all) = (step as i32 * bytes, LANES as i32 * bytes);
    let lines = step as i32 * all..(step as i32 + 1) * all;
    let ahead = &mut lines.step_by(64).filter(|_| fetch);
    let [p, q, r, s, t, u, v, w, spare] = WORK;
    let (low, high) = ([p, q, r, s], [t, u, v, w]);
    for (registers, from) in [(low, first), (high, first + 16)] {
        load(a, registers, (stride, from), (ahead, 1))?;
        turn(a, registers, spare)?;
    }
    Ok(join(low, high))
}
