//! Dot products of floats with weight rows in lanes, assembled: few rows of x against 16 weight rows of bf16.
//!
//! The weight rows' elements come transposed into registers ([`turn`]): a pair of them a register, a weight row a lane.
//! Rows of x that are rounded to bf16 meet pairs, their own broadcast; those of f32 meet each of a pair's elements,
//! widened. So weights are read, turned and widened once for several rows of x, and products are added up one after
//! another, as tiles add them (`tile.rs`): a result has the same bits.
//!
//! Weight rows that follow one another lie in memory. The 16 after these are fetched meanwhile in the order of their
//! bytes, or in as many streams as memory serves best. Rows that lie apart are held in cache.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::Done;
use super::lanes::{AHEAD, COUNT, FETCH, LANES, LEFT, SUMS, W, WORK, X, join, load, store, turn};
use super::tile::{Vector, ZMM};
use super::{Code, Lanes};

/// Elements of k whose pairs are in registers at a time: a step.
const ELEMENTS: usize = 16;
const STEPS: usize = BLOCK / ELEMENTS;
/// Where the part of the last row of x begins, in each of them.
const ENTRIES: [AsmRegister64; STEPS] = [gpr64::r10, gpr64::r11];
/// Bytes of a line of memory; of x that meet a register.
pub(super) const LINE: usize = 64;
const WORD: usize = 4;

/// With AVX-512 BF16; k is a multiple of [`BLOCK`].
pub(super) fn lanes_bf16(lanes: Lanes) -> Code {
    lanes_of::<Pairs>(lanes)
}

/// With AVX-512; k is a multiple of [`BLOCK`].
pub(super) fn lanes_512(lanes: Lanes) -> Code {
    lanes_of::<Sixteen>(lanes)
}

/// How weight rows are brought into registers, and rows of x meet them.
trait Meeting {
    /// Bytes of an element of x.
    const X_ELEMENT: usize;
    /// Readies what stays in registers.
    fn begin(a: &mut CodeAssembler) -> Done;
    /// A step's registers, in the order of their elements; lines ahead are fetched on the way.
    fn weights(
        a: &mut CodeAssembler,
        stride: i32,
        step: usize,
        ahead: &mut dyn Iterator<Item = i32>,
    ) -> Result<Vec<AsmRegisterZmm>, IcedError>;
    /// Adds the products of a register and the same elements of x, so many bytes on.
    fn meet(a: &mut CodeAssembler, sum: AsmRegisterZmm, w: AsmRegisterZmm, x: i32) -> Done;
}

fn lanes_of<M: Meeting>(lanes: Lanes) -> Code {
    let Lanes { k, rows, weight_stride: stride, .. } = lanes;
    let a = &mut CodeAssembler::new(64)?;
    let [mut start, mut again] = std::array::from_fn(|_| a.create_label());
    let mut entries: [Vec<CodeLabel>; STEPS] =
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
    let sums = &SUMS[..rows];
    sums.iter().try_for_each(|sum| sum.zero(a))?;
    M::begin(a)?;
    let follow = stride as usize == DType::BF16.row_bytes(k);
    let bytes = LANES * stride as usize;
    a.lea(FETCH, ptr(W + (bytes * AHEAD.div_ceil(bytes)) as i32))?;
    a.mov(LEFT, (k / BLOCK) as i64)?;

    a.set_label(&mut again)?;
    let stream_bytes = bytes / lanes.streams;
    let fetched = DType::BF16.row_bytes(LANES * ELEMENTS) / lanes.streams;
    for (step, labels) in entries.iter_mut().enumerate() {
        let lines = |stream| {
            (step * fetched..(step + 1) * fetched).step_by(LINE).map(move |line| stream * stream_bytes + line)
        };
        let lines = (0..lanes.streams).flat_map(lines).map(|line| line as i32);
        let weights = M::weights(a, stride, step, &mut lines.filter(|_| follow))?;
        if rows > 1 {
            a.jmp(ENTRIES[step])?;
        }
        for t in (0..rows).rev() {
            a.set_label(&mut labels[t])?;
            let row = (t * k + step * ELEMENTS) * M::X_ELEMENT;
            for (i, &w) in weights.iter().enumerate() {
                M::meet(a, sums[t], w, (row + i * WORD) as i32)?;
            }
        }
    }
    a.add(X, (BLOCK * M::X_ELEMENT) as i32)?;
    a.add(W, DType::BF16.row_bytes(BLOCK) as i32)?;
    if follow {
        a.add(FETCH, (STEPS * fetched) as i32)?;
    }
    a.dec(LEFT)?;
    a.jnz(again)?;
    store(a, lanes)?;
    a.assemble(0)
}

/// Pairs of 16 weight rows with pairs of x.
struct Pairs;

impl Meeting for Pairs {
    const X_ELEMENT: usize = 2;

    fn begin(_: &mut CodeAssembler) -> Done {
        Ok(())
    }

    fn weights(
        a: &mut CodeAssembler,
        stride: i32,
        step: usize,
        ahead: &mut dyn Iterator<Item = i32>,
    ) -> Result<Vec<AsmRegisterZmm>, IcedError> {
        let first = DType::BF16.row_bytes(step * ELEMENTS) as i32;
        let [p, q, r, s, t, u, v, w, spare] = WORK;
        let (low, high) = ([p, q, r, s], [t, u, v, w]);
        for (registers, from) in [(low, first), (high, first + 16)] {
            load(a, registers, (stride, from), (ahead, 1))?;
            turn(a, registers, spare)?;
        }
        Ok(join(low, high).map(|i| ZMM[i]).to_vec())
    }

    fn meet(a: &mut CodeAssembler, sum: AsmRegisterZmm, w: AsmRegisterZmm, x: i32) -> Done {
        a.vdpbf16ps(sum, w, dword_bcst(X + x))
    }
}

/// Elements of 16 weight rows with those of x, in f32.
struct Sixteen;

impl Meeting for Sixteen {
    const X_ELEMENT: usize = 4;

    /// `k1` has every second bf16.
    fn begin(a: &mut CodeAssembler) -> Done {
        a.mov(gpr32::eax, 0xaaaa_aaaau32)?;
        a.kmovd(k1, gpr32::eax)
    }

    fn weights(
        a: &mut CodeAssembler,
        stride: i32,
        step: usize,
        ahead: &mut dyn Iterator<Item = i32>,
    ) -> Result<Vec<AsmRegisterZmm>, IcedError> {
        let pairs = Pairs::weights(a, stride, step, ahead)?;
        let mut elements = vec![];
        for (&second, &first) in pairs.iter().zip(&ZMM[pairs.len()..]) {
            a.vpslld(first, second, 16)?;
            a.vmovdqu16(second.k1().z(), second)?;
            elements.extend([first, second]);
        }
        Ok(elements)
    }

    fn meet(a: &mut CodeAssembler, sum: AsmRegisterZmm, w: AsmRegisterZmm, x: i32) -> Done {
        a.vfmadd231ps(sum, w, dword_bcst(X + x))
    }
}
