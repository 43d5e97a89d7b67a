//! Elements as they lie to f32 in registers: what dot products, scores and weighted sums are written over.

use lapidary_ir::DType;

use super::asm::Assembler;

/// Registers that widening nibbles takes: their mask, and 8 in each byte.
#[derive(Clone, Copy)]
pub(super) struct Nibbles {
    pub(super) mask: u32,
    pub(super) eight: u32,
}

impl Nibbles {
    /// Fills them.
    pub(super) fn ready(self, a: &mut Assembler) {
        a.splat_bytes(self.mask, 0x0f);
        a.splat_bytes(self.eight, 8);
    }

    /// Bytes of nibbles to the lower, or the upper, less 8.
    pub(super) fn split(self, a: &mut Assembler, v: u32, upper: bool) {
        match upper {
            true => a.high_nibbles(v, v),
            false => a.and(v, v, self.mask),
        }
        a.sub_bytes(v, v, self.eight);
    }
}

/// Eight bytes in the first register to f32 in both.
pub(super) fn integers(a: &mut Assembler, [first, second]: [u32; 2]) {
    a.widen_bytes(first, first);
    a.widen_upper_halves(second, first);
    a.widen_halves(first, first);
    a.convert_to_float(first, first);
    a.convert_to_float(second, second);
}

/// Eight elements at an address to f32 in two registers, by one that is 0; of q8 without their scale.
pub(super) fn widen(
    a: &mut Assembler,
    dtype: DType,
    (address, bytes): (u32, i32),
    [first, second]: [u32; 2],
    zero: u32,
) {
    match dtype {
        DType::BF16 => {
            a.load_q(first, address, bytes);
            // Two ways, for shifts have fewer pipes than the rest.
            a.zip_upper_halves(second, zero, first);
            a.widen_bf16(first, first);
        }
        DType::F16 => {
            a.load_q(first, address, bytes);
            a.widen_upper_f16(second, first);
            a.widen_f16(first, first);
        }
        DType::Q8 => {
            a.load_d(first, address, bytes);
            integers(a, [first, second]);
        }
        DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => {
            a.load_q(first, address, bytes);
            a.load_q(second, address, bytes + 16);
        }
    }
}
