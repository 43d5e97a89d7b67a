//! AVX2 and AVX-512 scores, assembled: queries of several heads against rows of keys as they lie, each key widened once
//! for all.
//!
//! Meanwhile rows of memory that are read next, the block's values, are fetched into the second cache.

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::cached::Cached;
use super::dot::{Done, XMM, reduce};
use super::{Code, Scores};

const Q: AsmRegister64 = gpr64::rdi;
const KEYS: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const NEXT: AsmRegister64 = gpr64::rcx;
const COUNT: AsmRegister64 = gpr64::r8;
const SCALES: AsmRegister64 = gpr64::r9;

/// AVX-512, 16 lanes: two heads at most, of four keys each.
pub(super) fn scores_512(scores: Scores) -> Code {
    scores_of::<AsmRegisterZmm>(scores)
}

/// AVX2 with FMA and F16C, 8 lanes: so many too.
pub(super) fn scores_256(scores: Scores) -> Code {
    scores_of::<AsmRegisterYmm>(scores)
}

fn scores_of<V: Cached>(scores: Scores) -> Code {
    let Scores { dtype, rows, heads, q_stride, c_stride, .. } = scores;
    let (row_bytes, block_bytes) = (scores.row_bytes(), scores.block_bytes());
    let parts = (BLOCK / V::LANES) as i32;
    let (sums, rest) = V::ALL.split_at(heads * rows);
    let &[key, scale, mask, first, second, ..] = rest else {
        unreachable!("there are at most two heads, of four keys each")
    };
    let queries = &[first, second][..heads];
    let a = &mut CodeAssembler::new(64)?;
    if dtype == DType::Q8 {
        mask.upper_halves(a)?;
    }
    for sum in sums {
        sum.zero(a)?;
    }
    scores.walk(a, &mut |a| {
        for part in 0..parts {
            for (h, q) in queries.iter().enumerate() {
                q.load(a, ptr(Q + (h as i32 * q_stride + part * V::BYTES)))?;
            }
            for r in 0..rows {
                if dtype == DType::Q8 {
                    scale.scale(a, SCALES + (r as i32 * row_bytes - 2), mask)?;
                }
                key.widen(a, dtype, KEYS + (r as i32 * row_bytes + part * block_bytes / parts), scale)?;
                for (h, &q) in queries.iter().enumerate() {
                    sums[h * rows + r].multiply_add(a, key, q)?;
                }
            }
        }
        Ok(())
    })?;
    for h in 0..heads {
        for r in 0..rows {
            let sum = h * rows + r;
            V::fold(a, sum)?;
            reduce(a, sum, 15)?;
            a.vmovss(dword_ptr(C + (h as i32 * c_stride + r as i32 * 4)), XMM[sum])?;
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

impl Scores {
    fn row_bytes(self) -> i32 {
        self.dtype.row_bytes(self.k) as i32
    }

    /// Bytes of a block, without its scale.
    fn block_bytes(self) -> i32 {
        if self.dtype == DType::Q8 { BLOCK as i32 } else { self.dtype.row_bytes(BLOCK) as i32 }
    }

    /// Walks k in blocks, and fetches rows that are read next.
    fn walk(self, a: &mut CodeAssembler, body: &mut dyn FnMut(&mut CodeAssembler) -> Done) -> Done {
        if self.dtype == DType::Q8 {
            a.lea(SCALES, ptr(KEYS + self.k as i32))?;
        }
        let mut again = a.create_label();
        a.mov(COUNT, (self.k / BLOCK) as i64)?;
        a.set_label(&mut again)?;
        // In the order they lie in, which memory serves best.
        let fetched = self.rows as i32 * self.dtype.row_bytes(BLOCK) as i32;
        for line in (0..fetched).step_by(64) {
            a.prefetcht1(byte_ptr(NEXT + line))?;
        }
        body(a)?;
        a.add(Q, BLOCK as i32 * 4)?;
        a.add(KEYS, self.block_bytes())?;
        a.add(NEXT, fetched)?;
        if self.dtype == DType::Q8 {
            a.add(SCALES, 2)?;
        }
        a.dec(COUNT)?;
        a.jnz(again)
    }
}
