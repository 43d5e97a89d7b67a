//! Elements as they lie to f32 in registers: what dot products, scores and weighted sums are written over.

use lapidary_ir::DType;

use super::asm::Assembler;

/// Registers that widening takes: zero, for bf16; what nibbles are masked by, then 8 a byte in the one to spare.
#[derive(Clone, Copy)]
pub(super) struct Widened {
    pub(super) zero: u32,
    pub(super) nibble: u32,
    pub(super) spare: u32,
}

impl Widened {
    /// Fills them.
    pub(super) fn ready(self, a: &mut Assembler, dtype: DType) {
        match dtype {
            DType::BF16 => a.zero(self.zero),
            DType::Q4 => {
                a.splat_bytes(self.nibble, 0x0f);
                a.splat_bytes(self.spare, 8);
            }
            _ => {}
        }
    }

    /// Bytes of nibbles to the lower, or the upper, less 8.
    pub(super) fn nibbles(self, a: &mut Assembler, v: u32, upper: bool) {
        match upper {
            true => a.high_nibbles(v, v),
            false => a.and(v, v, self.nibble),
        }
        a.sub_bytes(v, v, self.spare);
    }

    /// Eight bytes in the first register to f32 in both.
    pub(super) fn integers(self, a: &mut Assembler, [first, second]: [u32; 2]) {
        a.widen_bytes(first, first);
        a.widen_upper_halves(second, first);
        a.widen_halves(first, first);
        a.convert_to_float(first, first);
        a.convert_to_float(second, second);
    }
}

/// Eight elements at an address to f32 in two registers; of q8 without their scale.
pub(super) fn widen(
    a: &mut Assembler,
    dtype: DType,
    (address, bytes): (u32, i32),
    [first, second]: [u32; 2],
    registers: Widened,
) {
    match dtype {
        DType::BF16 => {
            a.load_q(first, address, bytes);
            a.zip_upper_halves(second, registers.zero, first);
            a.zip_lower_halves(first, registers.zero, first);
        }
        DType::F16 => {
            a.load_q(first, address, bytes);
            a.widen_upper_f16(second, first);
            a.widen_f16(first, first);
        }
        DType::Q8 => {
            a.load_d(first, address, bytes);
            registers.integers(a, [first, second]);
        }
        _ => a.load_pair(first, second, address, bytes),
    }
}
