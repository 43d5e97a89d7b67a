//! Values of four lanes: made, loaded, stored and rearranged. `halves` has what is stored in 16 bits.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32, F32X4, I8X16, I16, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value};
use lapidary_ir::{BLOCK, DType};

use super::Emitter;

impl Emitter<'_> {
    /// A scalar f32.
    pub fn f32(&mut self, value: f32) -> Value {
        self.b.ins().f32const(value)
    }

    /// Four equal f32.
    pub fn splat(&mut self, value: f32) -> Value {
        let scalar = self.f32(value);
        self.b.ins().splat(F32X4, scalar)
    }

    /// Four equal i32.
    pub fn splat_int(&mut self, value: i32) -> Value {
        let scalar = self.b.ins().iconst(I32, i64::from(value as u32));
        self.b.ins().splat(I32X4, scalar)
    }

    /// The same bits as another type.
    pub fn bitcast(&mut self, ty: Type, value: Value) -> Value {
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), value)
    }

    /// `a * b + c` in 4 lanes or one, fused where the target has it.
    pub fn fma(&mut self, a: Value, b: Value, c: Value) -> Value {
        if self.features.fma {
            self.b.ins().fma(a, b, c)
        } else {
            let product = self.b.ins().fmul(a, b);
            self.b.ins().fadd(product, c)
        }
    }

    /// Lane by lane, `a` where the mask (I32X4, 0 or -1) is set, else `b`; both F32X4.
    pub fn choose(&mut self, mask: Value, a: Value, b: Value) -> Value {
        let mask = self.bitcast(F32X4, mask);
        self.b.ins().bitselect(mask, a, b)
    }

    /// The larger, lane by lane; `b` where either is NaN. (CLIF's fmax is NaN-exact and twice as slow.)
    pub fn fmax(&mut self, a: Value, b: Value) -> Value {
        let greater = self.b.ins().fcmp(FloatCC::LessThan, b, a);
        self.choose(greater, a, b)
    }

    /// Lane 0 as a scalar.
    pub fn lane0(&mut self, value: Value) -> Value {
        self.b.ins().extractlane(value, 0u8)
    }

    /// Lanes rearranged: lane `i` of the result is lane `lanes[i]` of `a` (0..4) or `b` (4..8), all F32X4.
    pub fn shuffle(&mut self, a: Value, b: Value, lanes: [u8; 4]) -> Value {
        let bytes: Vec<u8> = lanes.iter().flat_map(|&l| (0..4).map(move |i| l * 4 + i)).collect();
        self.shuffle_bytes(a, b, &bytes)
    }

    /// The halves of lanes of a and b by turns: of the lower two lanes, of the upper two.
    pub fn zip_halves(&mut self, a: Value, b: Value) -> [Value; 2] {
        [0, 8].map(|from| {
            let halves = (from..from + 8).step_by(2).flat_map(|i| [i, i + 1, 16 + i, 16 + i + 1]);
            self.shuffle_bytes(a, b, &halves.collect::<Vec<u8>>())
        })
    }

    /// Bytes of a (0 to 15) and b (16 to 31).
    fn shuffle_bytes(&mut self, a: Value, b: Value, bytes: &[u8]) -> Value {
        let mask = self.b.func.dfg.immediates.push(ConstantData::from(bytes));
        let (a, b) = (self.bitcast(I8X16, a), self.bitcast(I8X16, b));
        let shuffled = self.b.ins().shuffle(a, b, mask);
        self.bitcast(F32X4, shuffled)
    }

    /// The four lanes' sum as a scalar, always (0 + 2) + (1 + 3).
    pub fn sum_lanes(&mut self, value: Value) -> Value {
        let upper = self.shuffle(value, value, [2, 3, 0, 1]);
        let pairs = self.b.ins().fadd(value, upper);
        let odd = self.shuffle(pairs, pairs, [1, 0, 3, 2]);
        let sum = self.b.ins().fadd(pairs, odd);
        self.lane0(sum)
    }

    /// The largest of the four lanes as a scalar.
    pub fn max_lanes(&mut self, value: Value) -> Value {
        let upper = self.shuffle(value, value, [2, 3, 0, 1]);
        let pairs = self.fmax(value, upper);
        let odd = self.shuffle(pairs, pairs, [1, 0, 3, 2]);
        let max = self.fmax(pairs, odd);
        self.lane0(max)
    }

    /// Flags of a load: no trap; read-only data may also move, so that the scheduler need not keep loads in order.
    pub(super) fn load_flags(readonly: bool) -> MemFlagsData {
        let flags = MemFlagsData::new().with_notrap();
        if readonly { flags.with_readonly().with_can_move() } else { flags }
    }

    /// Loads `lanes` (4 or 1) contiguous elements as F32X4, widening f16 and bf16. One element comes in every lane.
    pub fn load(&mut self, dtype: DType, address: Value, byte_offset: i64, lanes: usize) -> Value {
        self.load_with(dtype, address, byte_offset, lanes, false)
    }

    /// [`Emitter::load`] of data that nothing writes while the kernel runs (weights, constants).
    pub fn load_readonly(&mut self, dtype: DType, address: Value, byte_offset: i64, lanes: usize) -> Value {
        self.load_with(dtype, address, byte_offset, lanes, true)
    }

    fn load_with(
        &mut self,
        dtype: DType,
        address: Value,
        offset: i64,
        lanes: usize,
        readonly: bool,
    ) -> Value {
        let flags = Self::load_flags(readonly);
        let offset = offset as i32;
        match (dtype, lanes) {
            (DType::F32, 4) if self.features.fma => self.b.ins().load(F32X4, flags, address, offset),
            // Without AVX Cranelift 0.135 folds a load into `cmpps`, which faults where the address is not aligned; a
            // bitcast keeps it apart.
            (DType::F32, 4) => {
                let x = self.b.ins().load(I32X4, flags, address, offset);
                self.bitcast(F32X4, x)
            }
            (DType::F32, _) => {
                let x = self.b.ins().load(F32, flags, address, offset);
                self.b.ins().splat(F32X4, x)
            }
            (DType::BF16 | DType::F16, _) => {
                let half = self.load_halves(address, offset, lanes, flags);
                self.widen(dtype, half)
            }
            (DType::I32 | DType::Bool, _) => unreachable!("integers load through load_int"),
            (DType::Block(_), _) => unreachable!("blocks load through load_block"),
        }
    }

    /// Four bytes of an i32 to four i32.
    pub(super) fn widen_bytes(&mut self, bytes: Value, signed: bool) -> Value {
        let x = self.b.ins().scalar_to_vector(I32X4, bytes);
        let x = self.bitcast(I8X16, x);
        if signed {
            let x = self.b.ins().swiden_low(x);
            self.b.ins().swiden_low(x)
        } else {
            let x = self.b.ins().uwiden_low(x);
            self.b.ins().uwiden_low(x)
        }
    }

    /// Loads 4 or 1 contiguous i32 (or bool masks) as I32X4. One element comes in every lane.
    pub fn load_int(&mut self, address: Value, byte_offset: i64, lanes: usize) -> Value {
        let flags = Self::load_flags(false);
        if lanes == 4 {
            self.b.ins().load(I32X4, flags, address, byte_offset as i32)
        } else {
            let x = self.b.ins().load(I32, flags, address, byte_offset as i32);
            self.b.ins().splat(I32X4, x)
        }
    }

    /// One i32 as i64.
    pub fn load_index(&mut self, address: Value) -> Value {
        let x = self.b.ins().load(I32, Self::load_flags(false), address, 0);
        self.b.ins().sextend(I64, x)
    }

    /// Stores 4 lanes, or lane 0 alone, of an F32X4 as `dtype`, rounding to nearest even for bf16 and f16.
    pub fn store(&mut self, dtype: DType, value: Value, address: Value, byte_offset: i64, lanes: usize) {
        let flags = MemFlagsData::new().with_notrap();
        let offset = byte_offset as i32;
        match dtype {
            DType::F32 if lanes == 4 => {
                self.b.ins().store(flags, value, address, offset);
            }
            DType::F32 => {
                let x = self.lane0(value);
                self.b.ins().store(flags, x, address, offset);
            }
            DType::BF16 | DType::F16 => {
                let half =
                    if dtype == DType::BF16 { self.narrow_bf16(value) } else { self.narrow_f16(value) };
                if lanes == 4 {
                    // The low half of each lane, side by side.
                    let mask = [0u8, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13];
                    let mask = self.b.func.dfg.immediates.push(ConstantData::from(&mask[..]));
                    let half = self.bitcast(I8X16, half);
                    let packed = self.b.ins().shuffle(half, half, mask);
                    let packed = self.bitcast(I64X2, packed);
                    let packed = self.b.ins().extractlane(packed, 0);
                    self.b.ins().store(flags, packed, address, offset);
                    return;
                }
                for lane in 0..lanes {
                    let x = self.b.ins().extractlane(half, lane as u8);
                    let x = self.b.ins().ireduce(I16, x);
                    self.b.ins().store(flags, x, address, offset + 2 * lane as i32);
                }
            }
            DType::I32 | DType::Bool => unreachable!("integers are stored through store_int"),
            DType::Block(_) => unreachable!("nothing writes blocks"),
        }
    }

    /// Stores 4 lanes, or lane 0 alone, of an I32X4.
    pub fn store_int(&mut self, value: Value, address: Value, byte_offset: i64, lanes: usize) {
        let flags = MemFlagsData::new().with_notrap();
        let value = if lanes == 4 { value } else { self.b.ins().extractlane(value, 0u8) };
        self.b.ins().store(flags, value, address, byte_offset as i32);
    }

    /// I32X4 times a number.
    pub fn scale_int(&mut self, value: Value, by: i64) -> Value {
        let by = self.b.ins().iconst(I32, by);
        let by = self.b.ins().splat(I32X4, by);
        self.b.ins().imul(value, by)
    }

    /// Stores the four words of I8X16 `stride` bytes apart.
    pub fn store_words(&mut self, value: Value, address: Value, byte_offset: i64, stride: i64) {
        let words = self.bitcast(I32X4, value);
        for lane in 0..4u8 {
            let word = self.b.ins().extractlane(words, lane);
            let at = byte_offset + i64::from(lane) * stride;
            self.b.ins().store(MemFlagsData::new().with_notrap(), word, address, at as i32);
        }
    }

    /// Stores the two halves of I8X16 `stride` bytes apart.
    pub fn store_doubles(&mut self, value: Value, address: Value, byte_offset: i64, stride: i64) {
        let doubles = self.bitcast(I64X2, value);
        for lane in 0..2u8 {
            let double = self.b.ins().extractlane(doubles, lane);
            let at = byte_offset + i64::from(lane) * stride;
            self.b.ins().store(MemFlagsData::new().with_notrap(), double, address, at as i32);
        }
    }

    /// F32X4 of small magnitude to the nearest I32X4. (A magic number: CLIF's own conversion saturates and is slow.)
    pub fn round_to_int(&mut self, value: Value) -> Value {
        let magic = self.splat(12_582_912.0);
        let shifted = self.b.ins().fadd(value, magic);
        let (bits, base) = (self.bitcast(I32X4, shifted), self.bitcast(I32X4, magic));
        self.b.ins().isub(bits, base)
    }

    /// The sum of the four lanes, in every lane.
    pub fn sum_int_lanes(&mut self, value: Value) -> Value {
        let first = self.b.ins().extractlane(value, 0u8);
        let sum = (1..4u8).fold(first, |sum, lane| {
            let x = self.b.ins().extractlane(value, lane);
            self.b.ins().iadd(sum, x)
        });
        self.b.ins().splat(I32X4, sum)
    }

    /// A block of I32X4 as two I8X16, saturated.
    pub fn narrow_int8(&mut self, quants: &[Value; BLOCK / 4]) -> [Value; 2] {
        std::array::from_fn(|half| {
            let four = &quants[4 * half..4 * half + 4];
            let low = self.b.ins().snarrow(four[0], four[1]);
            let high = self.b.ins().snarrow(four[2], four[3]);
            self.b.ins().snarrow(low, high)
        })
    }

    /// Copies `bytes`, a multiple of 16.
    pub fn copy(&mut self, from: Value, to: Value, bytes: i64) {
        let flags = MemFlagsData::new().with_notrap();
        let values: Vec<Value> =
            (0..bytes / 16).map(|i| self.b.ins().load(I8X16, flags, from, i as i32 * 16)).collect();
        for (i, value) in values.into_iter().enumerate() {
            self.b.ins().store(flags, value, to, i as i32 * 16);
        }
    }
}
