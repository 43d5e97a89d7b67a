//! Rows of x against 32 elements of 8 weight rows in registers: the inner loop of `lanes_256.rs`.

use iced_x86::code_asm::*;
use lapidary_ir::BLOCK;

use super::lanes_256::{
    COUNT, ONES, PART, Products, Quants, RESULTS, ROW, ROWS, Rows, SCALE, STACK, STEPS, SUM, T, TOTAL,
    VECTOR, X,
};
use super::offset;
use crate::micro::LANE_BLOCK;
use crate::micro::dot::{Done, YMM};

/// The largest sum of products in 16 bits, over the largest magnitude of x: of two quants.
const ROOM: i32 = i16::MAX as i32 / (2 * 127);

impl Rows<'_> {
    /// Every row of x, with these quants; of one alone its sums of products are there.
    pub(super) fn meet(&self, a: &mut CodeAssembler, first: usize, quants: Option<[usize; STEPS]>) -> Done {
        let group = self.format.group.min(BLOCK);
        let groups = BLOCK / group;
        let place = |kind: usize, g: usize| {
            let vector = (first / self.format.group + g) as i32 * VECTOR;
            ymmword_ptr(STACK + self.frame.scales[kind] + vector)
        };
        for (g, register) in SCALE.into_iter().enumerate().take(groups) {
            a.vmovups(YMM[register], place(0, g))?;
        }
        let offset = offset(self.format).is_some();
        if offset && groups == 1 {
            a.vmovups(YMM[SCALE[1]], place(1, 0))?;
        }
        let alone = self.is_alone();
        let x = first / BLOCK * self.lanes.rows * LANE_BLOCK;
        let mut again = a.create_label();
        if !alone {
            a.mov(ROW, X)?;
            self.results(a)?;
            a.mov(COUNT, ROWS)?;
            a.set_label(&mut again)?;
            a.vmovups(SUM, ymmword_ptr(RESULTS))?;
        }
        let row = if alone { X } else { ROW };
        let word = |i: usize| row + (x + 4 * i) as i32;
        for g in 0..groups {
            if let Some(quants) = quants {
                let steps = g * STEPS / groups..(g + 1) * STEPS / groups;
                let part: Vec<(usize, usize)> = steps.map(|step| (step, quants[step])).collect();
                self.products(a, &part, (g, groups), &word)?;
            } else {
                a.vmovdqu(TOTAL, self.sum_at(first, (g, groups)))?;
                self.shift(a, (g, groups), &word)?;
            }
            a.vcvtdq2ps(TOTAL, TOTAL)?;
            a.vbroadcastss(T, dword_ptr(word(0)))?;
            a.vmulps(TOTAL, TOTAL, T)?;
            a.vfmadd231ps(SUM, TOTAL, YMM[SCALE[g]])?;
            if offset && groups > 1 {
                sum_of(a, (g, groups), &word, TOTAL, PART)?;
                a.vcvtdq2ps(TOTAL, TOTAL)?;
                a.vmulps(TOTAL, TOTAL, T)?;
                a.vfmadd231ps(SUM, TOTAL, place(1, g))?;
            }
        }
        if offset && groups == 1 {
            a.vbroadcastss(T, dword_ptr(word(3)))?;
            a.vfmadd231ps(SUM, T, YMM[SCALE[1]])?;
        }
        if !alone {
            a.vmovups(ymmword_ptr(RESULTS), SUM)?;
            a.add(ROW, LANE_BLOCK as i32)?;
            a.add(RESULTS, self.result_bytes())?;
            a.dec(COUNT)?;
            a.jnz(again)?;
        }
        Ok(())
    }

    /// The products of a group, some steps and their quants, summed in [`TOTAL`]. Clobbers [`T`] and [`PART`].
    fn products(
        &self,
        a: &mut CodeAssembler,
        steps: &[(usize, usize)],
        group: (usize, usize),
        word: &dyn Fn(usize) -> AsmMemoryOperand,
    ) -> Done {
        let (zero, most) = match self.quants {
            Quants::Signed => {
                for (i, &(step, quant)) in steps.iter().enumerate() {
                    let signed = ymmword_ptr(STACK + self.frame.signed + step as i32 * VECTOR);
                    a.vpbroadcastd(T, dword_ptr(word(4 + step)))?;
                    a.vpsignb(T, T, signed)?;
                    // Two products of at most 128 * 127 each: no overflow.
                    a.vpmaddubsw(T, YMM[quant], T)?;
                    if i == 0 {
                        a.vpmaddwd(TOTAL, T, ONES)?;
                    } else {
                        a.vpmaddwd(T, T, ONES)?;
                        a.vpaddd(TOTAL, TOTAL, T)?;
                    }
                }
                return Ok(());
            }
            Quants::Unsigned { zero, most } => (zero, most),
        };
        if self.by != Products::Words {
            if zero > 0 {
                sum_of(a, group, word, TOTAL, T)?;
                times(a, zero, TOTAL)?;
            } else {
                a.vpxor(TOTAL, TOTAL, TOTAL)?;
            }
            // Two sums, so that each waits half as long for those before it.
            a.vpxor(PART, PART, PART)?;
            for (&(step, quant), sum) in steps.iter().zip([TOTAL, PART].into_iter().cycle()) {
                a.vpbroadcastd(T, dword_ptr(word(4 + step)))?;
                a.vex().vpdpbusd(sum, YMM[quant], T)?;
            }
            return a.vpaddd(TOTAL, TOTAL, PART);
        }
        for (i, steps) in steps.chunks((ROOM / most) as usize).enumerate() {
            let sum = if i == 0 { TOTAL } else { PART };
            for (i, &(step, quant)) in steps.iter().enumerate() {
                a.vpbroadcastd(T, dword_ptr(word(4 + step)))?;
                if i == 0 {
                    a.vpmaddubsw(sum, YMM[quant], T)?;
                } else {
                    a.vpmaddubsw(T, YMM[quant], T)?;
                    a.vpaddw(sum, sum, T)?;
                }
            }
            a.vpmaddwd(sum, sum, ONES)?;
            if i > 0 {
                a.vpaddd(TOTAL, TOTAL, PART)?;
            }
        }
        self.shift(a, group, word)
    }

    /// Takes what quants are shifted by off [`TOTAL`]. Clobbers [`T`] and [`PART`].
    fn shift(
        &self,
        a: &mut CodeAssembler,
        group: (usize, usize),
        word: &dyn Fn(usize) -> AsmMemoryOperand,
    ) -> Done {
        let Quants::Unsigned { zero: zero @ 1.., .. } = self.quants else { return Ok(()) };
        sum_of(a, group, word, T, PART)?;
        times(a, zero, T)?;
        a.vpaddd(TOTAL, TOTAL, T)
    }
}

/// Brings -8 times a sum to what quants shifted by `zero`, a power of two, come to with it.
fn times(a: &mut CodeAssembler, zero: i32, to: AsmRegisterYmm) -> Done {
    match zero.trailing_zeros() as i32 - 3 {
        0 => Ok(()),
        up @ 1.. => a.vpslld(to, to, up),
        down => a.vpsrad(to, to, -down),
    }
}

/// -8 times the sum of x's quants in a group. Clobbers `other`.
fn sum_of(
    a: &mut CodeAssembler,
    (g, groups): (usize, usize),
    word: &dyn Fn(usize) -> AsmMemoryOperand,
    to: AsmRegisterYmm,
    other: AsmRegisterYmm,
) -> Done {
    match (g, groups) {
        (_, 1) => a.vpbroadcastd(to, dword_ptr(word(1))),
        (0, _) => a.vpbroadcastd(to, dword_ptr(word(2))),
        (_, _) => {
            a.vpbroadcastd(to, dword_ptr(word(1)))?;
            a.vpbroadcastd(other, dword_ptr(word(2)))?;
            a.vpsubd(to, to, other)
        }
    }
}
