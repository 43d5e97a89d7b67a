//! AVX2 and AVX-512 weighted sums, assembled: rows of values as they lie, each times a weight, added to rows of f32.
//!
//! `c[h][i] += sum over j of weights[h][j] values[j][i]` for the columns `i` of the code's own: a row of values is
//! widened in registers once for all heads. Columns are whole blocks of 32.

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::cached::Cached;
use super::dot::Done;
use super::{Code, Mix};

const VALUES: AsmRegister64 = gpr64::rdi;
const WEIGHTS: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;
const NEXT: AsmRegister64 = gpr64::r8;

/// Rows ahead that are fetched into the first cache.
const AHEAD: i32 = 8;

/// Columns that fit the registers, of 16 and of 8 lanes, with two heads' sums.
pub(super) const COLUMNS_512: usize = 128;
pub(super) const COLUMNS_256: usize = 32;

impl Mix {
    /// Where elements from `i` of a row lie, and their block's scale as a dword's upper half.
    fn at(self, i: usize) -> (i32, i32) {
        let i = self.column + i;
        if self.dtype == DType::Q8 {
            (i as i32, (self.k + i / BLOCK * 2) as i32 - 2)
        } else {
            (self.dtype.row_bytes(i) as i32, 0)
        }
    }
}

/// AVX-512: 16 lanes.
pub(super) fn mix_512(mix: Mix) -> Code {
    mix_of::<AsmRegisterZmm>(mix)
}

/// AVX2 with FMA and F16C: 8 lanes.
pub(super) fn mix_256(mix: Mix) -> Code {
    mix_of::<AsmRegisterYmm>(mix)
}

fn mix_of<V: Cached>(mix: Mix) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let vectors = mix.columns / V::LANES;
    let (sums, rest) = V::ALL.split_at(mix.heads * vectors);
    let &[first, second, value, scale, mask, ..] = rest else {
        unreachable!("columns were chosen so that two heads' sums fit")
    };
    let shares = &[first, second][..mix.heads];
    let at = |i: usize| C + ((i / vectors) as i32 * mix.c_stride + (i % vectors) as i32 * V::BYTES);
    if mix.dtype == DType::Q8 {
        mask.upper_halves(a)?;
    }
    for (i, sum) in sums.iter().enumerate() {
        sum.load(a, ptr(at(i)))?;
    }
    rows(a, mix, &mut |a| {
        for (h, share) in shares.iter().enumerate() {
            share.broadcast(a, dword_ptr(WEIGHTS + h as i32 * mix.weight_stride))?;
        }
        for v in 0..vectors {
            let (at, scale_at) = mix.at(v * V::LANES);
            if mix.dtype == DType::Q8 && (v * V::LANES).is_multiple_of(BLOCK) {
                scale.scale(a, VALUES + scale_at, mask)?;
            }
            value.widen(a, mix.dtype, VALUES + at, scale)?;
            for (h, &share) in shares.iter().enumerate() {
                sums[h * vectors + v].multiply_add(a, value, share)?;
            }
        }
        Ok(())
    })?;
    for (i, sum) in sums.iter().enumerate() {
        sum.store(a, ptr(at(i)))?;
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// The loop over rows of values; there is at least one.
fn rows(a: &mut CodeAssembler, mix: Mix, body: &mut dyn FnMut(&mut CodeAssembler) -> Done) -> Done {
    let row_bytes = mix.dtype.row_bytes(mix.k) as i32;
    let (from, to) = (mix.at(0).0, mix.at(mix.columns).0);
    let fetched = mix.dtype.row_bytes(mix.columns) as i32;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    for line in (from..to).step_by(64) {
        a.prefetcht0(byte_ptr(VALUES + (AHEAD * row_bytes + line)))?;
    }
    for line in (0..fetched).step_by(64) {
        a.prefetcht1(byte_ptr(NEXT + line))?;
    }
    body(a)?;
    a.add(VALUES, row_bytes)?;
    a.add(NEXT, fetched)?;
    a.add(WEIGHTS, 4)?;
    a.dec(COUNT)?;
    a.jnz(again)
}
