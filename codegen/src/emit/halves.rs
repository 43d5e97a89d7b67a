//! Floats of 16 bits, four lanes of them: widened to f32, rounded from it, and stored in pairs and fours.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32X4, I32, I32X4};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use lapidary_ir::DType;

use super::Emitter;

impl Emitter<'_> {
    /// Four u16, or one in every lane, zero-extended to I32X4.
    pub(super) fn load_halves(
        &mut self,
        address: Value,
        offset: i32,
        lanes: usize,
        flags: MemFlagsData,
    ) -> Value {
        if lanes == 4 {
            self.b.ins().uload16x4(flags, address, offset)
        } else {
            let x = self.b.ins().uload16(I32, flags, address, offset);
            self.b.ins().splat(I32X4, x)
        }
    }

    /// Zero-extended 16-bit floats (I32X4) as F32X4, exactly: denormals, infinities and NaN too.
    pub(super) fn widen(&mut self, dtype: DType, half: Value) -> Value {
        if dtype == DType::BF16 {
            let shift = self.b.ins().iconst(I32, 16);
            let bits = self.b.ins().ishl(half, shift);
            return self.bitcast(F32X4, bits);
        }
        // The exponent field moves up by 13 bits, the bias by 112: a multiply by 2^112 mends it, for denormals too.
        let magnitude = self.splat_int(0x7fff);
        let magnitude = self.b.ins().band(half, magnitude);
        let by = self.b.ins().iconst(I32, 13);
        let bits = self.b.ins().ishl(magnitude, by);
        let small = self.bitcast(F32X4, bits);
        let bias = self.splat(f32::from_bits((127 + 112) << 23));
        let value = self.b.ins().fmul(small, bias);
        // Of an infinity or NaN the exponent is all ones.
        let largest = self.splat_int(0x7bff);
        let special = self.b.ins().icmp(IntCC::SignedGreaterThan, magnitude, largest);
        let ones = self.splat_int(0x7f80_0000);
        let ones = self.b.ins().band(special, ones);
        let ones = self.bitcast(F32X4, ones);
        let value = self.b.ins().bor(value, ones);
        let sign = self.splat_int(0x8000);
        let sign = self.b.ins().band(half, sign);
        let by = self.b.ins().iconst(I32, 16);
        let sign = self.b.ins().ishl(sign, by);
        let sign = self.bitcast(F32X4, sign);
        self.b.ins().bor(value, sign)
    }

    /// Stores four pairs of bf16: lane i of `first` beside lane i of `second`, rounded.
    pub fn store_pairs(&mut self, first: Value, second: Value, address: Value, byte_offset: i64) {
        let both = self.pairs(first, second);
        self.b.ins().store(MemFlagsData::new().with_notrap(), both, address, byte_offset as i32);
    }

    /// Four pairs of bf16 (I32X4): lane i of `first` below lane i of `second`, rounded.
    fn pairs(&mut self, first: Value, second: Value) -> Value {
        let (low, high) = (self.narrow_bf16(first), self.narrow_bf16(second));
        let by = self.b.ins().iconst(I32, 16);
        let high = self.b.ins().ishl(high, by);
        self.b.ins().bor(low, high)
    }

    /// Stores four fours of bf16, one after another: lane i of each value, rounded.
    pub fn store_fours(&mut self, [a, b, c, d]: [Value; 4], address: Value) {
        let [first, second] = [(a, b), (c, d)].map(|(low, high)| {
            let pairs = self.pairs(low, high);
            self.bitcast(F32X4, pairs)
        });
        for (lanes, byte) in [([0, 4, 1, 5], 0), ([2, 6, 3, 7], 16)] {
            let fours = self.shuffle(first, second, lanes);
            self.store(DType::F32, fours, address, byte, 4);
        }
    }

    /// Stores one half of four pairs of bf16: of an even index the first, with a second of 0, else the second.
    pub fn store_half_pair(&mut self, value: Value, index: Value, address: Value) {
        let half = self.narrow_bf16(value);
        let odd = self.b.ins().band_imm_u(index, 1);
        self.choose_path(
            odd,
            |e| {
                let flags = MemFlagsData::new().with_notrap();
                let by = e.b.ins().iconst(I32, 16);
                let high = e.b.ins().ishl(half, by);
                let low = e.b.ins().load(I32X4, flags, address, 0);
                let both = e.b.ins().bor(low, high);
                e.b.ins().store(flags, both, address, 0);
            },
            |e| {
                e.b.ins().store(MemFlagsData::new().with_notrap(), half, address, 0);
            },
        );
    }

    /// F32X4 rounded to bf16 (nearest even), in the low halves of I32X4; NaN stays NaN.
    pub(super) fn narrow_bf16(&mut self, value: Value) -> Value {
        let bits = self.bitcast(I32X4, value);
        let by = self.b.ins().iconst(I32, 16);
        let one = self.splat_int(1);
        let odd = self.b.ins().ushr(bits, by);
        let odd = self.b.ins().band(odd, one);
        let half = self.splat_int(0x7fff);
        let rounded = self.b.ins().iadd(bits, half);
        let rounded = self.b.ins().iadd(rounded, odd);
        let unordered = self.b.ins().fcmp(FloatCC::Unordered, value, value);
        let nan = self.splat_int(0x7fc0_0000);
        let bits = self.b.ins().bitselect(unordered, nan, rounded);
        self.b.ins().ushr(bits, by)
    }

    /// F32X4 rounded to f16 (nearest even), in the low halves of I32X4; overflow gives infinity, NaN stays NaN.
    pub(super) fn narrow_f16(&mut self, value: Value) -> Value {
        let bits = self.bitcast(I32X4, value);
        let sign_mask = self.splat_int(i32::MIN);
        let sign = self.b.ins().band(bits, sign_mask);
        let magnitude = self.b.ins().bxor(bits, sign);
        // Normal results: rebias, round at bit 13. Small ones: an add of 0.5 aligns the denormal's bits and rounds.
        let by = self.b.ins().iconst(I32, 13);
        let one = self.splat_int(1);
        let odd = self.b.ins().ushr(magnitude, by);
        let odd = self.b.ins().band(odd, one);
        let rebias = self.splat_int((15i32 - 127).wrapping_shl(23).wrapping_add(0xfff));
        let normal = self.b.ins().iadd(magnitude, rebias);
        let normal = self.b.ins().iadd(normal, odd);
        let normal = self.b.ins().ushr(normal, by);
        let half = self.splat(0.5);
        let small = self.bitcast(F32X4, magnitude);
        let small = self.b.ins().fadd(small, half);
        let small = self.bitcast(I32X4, small);
        let half_bits = self.splat_int(0.5f32.to_bits() as i32);
        let small = self.b.ins().isub(small, half_bits);
        let least_normal = self.splat_int(113 << 23);
        let is_small = self.b.ins().icmp(IntCC::SignedLessThan, magnitude, least_normal);
        let result = self.b.ins().bitselect(is_small, small, normal);
        let overflow = self.splat_int(143 << 23);
        let is_over = self.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, magnitude, overflow);
        let infinity_bits = self.splat_int(0x7f80_0000);
        let is_nan = self.b.ins().icmp(IntCC::SignedGreaterThan, magnitude, infinity_bits);
        let (infinity, nan) = (self.splat_int(0x7c00), self.splat_int(0x7e00));
        let special = self.b.ins().bitselect(is_nan, nan, infinity);
        let result = self.b.ins().bitselect(is_over, special, result);
        let by = self.b.ins().iconst(I32, 16);
        let sign = self.b.ins().ushr(sign, by);
        self.b.ins().bor(result, sign)
    }
}
