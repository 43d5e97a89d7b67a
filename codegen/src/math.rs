//! Vectorised elementary functions over F32X4, made of CLIF arithmetic alone: no libc, the same bits on every lane.
//!
//! Bounds are in units in the last place of the f32 result, checked by `codegen/tests/math.rs` against f64.
//!
//! | function | bound | where |
//! |---|---|---|
//! | `exp` | 2 ulp | results that are normal; below `exp(-87.3)` 0, above `exp(88.7)` inf |
//! | `exp_bounded` | 2 ulp | -80 to 80 |
//! | `exp_below` | as `exp`, the same bits | numbers that are not above 0 |
//! | `tanh` | 3 ulp | everywhere |
//! | `sin_cos` | 1.5e-7 absolute | angles to 1e6 |
//! | `log` | 2 ulp | positive normals |
//! | `pow` | 2 + 2 abs(b log a) ulp | positive normal bases, results that are normal |
//! | `softcap` | 3 ulp | results above 1e-36, below that 1e-36 absolute |
//! | `gelu_tanh` | 2 ulp of x | to 1e12 |

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32X4, F64X2, I32, I32X4};
use cranelift_codegen::ir::{ConstantData, InstBuilder, Value};

use crate::emit::Emitter;
use crate::micro::MAGIC;

/// Horner's scheme over coefficients from the highest power down.
fn polynomial(e: &mut Emitter<'_>, x: Value, coefficients: &[f32]) -> Value {
    let mut sum = e.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        let c = e.splat(c);
        sum = e.fma(sum, x, c);
    }
    sum
}

/// -ln 2 in two parts, the first exact times whole numbers.
pub(crate) const LN_2: [f32; 2] = [-0.693_359_4, 2.121_944_4e-4];
/// Coefficients of (e^r - 1 - r) / r^2, from the highest power down (Cephes' expf).
pub(crate) const EXP: [f32; 6] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x. Cephes' expf: x = n ln 2 + r, a polynomial in r, n added to the exponent.
pub fn exp(e: &mut Emitter<'_>, x: Value) -> Value {
    let lowest = e.splat(-87.33);
    let highest = e.splat(88.72);
    let above = e.b.ins().fcmp(FloatCC::GreaterThan, x, lowest);
    let over = e.b.ins().fcmp(FloatCC::GreaterThan, x, highest);
    let clamped = e.choose(above, x, lowest);
    let clamped = e.choose(over, highest, clamped);
    let log2e = e.splat(std::f32::consts::LOG2_E);
    let magic = e.splat(MAGIC);
    let n = e.fma(clamped, log2e, magic);
    let bits = e.bitcast(I32X4, n);
    let n = e.b.ins().fsub(n, magic);
    let p = exp_of_rest(e, clamped, n);
    // The product with 2^n is a normal number: 2^128 comes with a p below 1.
    let by = e.b.ins().iconst(I32, 23);
    let exponent = e.b.ins().ishl(bits, by);
    let p = e.bitcast(I32X4, p);
    let p = e.b.ins().iadd(p, exponent);
    let p = e.bitcast(F32X4, p);
    let zero = e.splat(0.0);
    let infinity = e.splat(f32::INFINITY);
    let p = e.choose(above, p, zero);
    let p = e.choose(over, infinity, p);
    let unordered = e.b.ins().fcmp(FloatCC::Unordered, x, x);
    e.choose(unordered, x, p)
}

/// e^x where x is finite and within [-80, 80]: the core of [`exp`] without its edges.
pub fn exp_bounded(e: &mut Emitter<'_>, x: Value) -> Value {
    let log2e = e.splat(std::f32::consts::LOG2_E);
    let magic = e.splat(MAGIC);
    let n = e.fma(x, log2e, magic);
    let bits = e.bitcast(I32X4, n);
    let n = e.b.ins().fsub(n, magic);
    let p = exp_of_rest(e, x, n);
    let by = e.b.ins().iconst(I32, 23);
    let exponent = e.b.ins().ishl(bits, by);
    let p = e.bitcast(I32X4, p);
    let p = e.b.ins().iadd(p, exponent);
    e.bitcast(F32X4, p)
}

/// e^x where x is not above 0, or NaN: [`exp`] without its upper edge.
pub fn exp_below(e: &mut Emitter<'_>, x: Value) -> Value {
    let lowest = e.splat(-87.33);
    // NaN is not.
    let below = e.b.ins().fcmp(FloatCC::LessThanOrEqual, x, lowest);
    let below = e.bitcast(F32X4, below);
    let kept = e.b.ins().bnot(below);
    let x = e.b.ins().band(kept, x);
    let log2e = e.splat(std::f32::consts::LOG2_E);
    // With the exponent's bias, so that the low bits are 2^n's own.
    let magic = e.splat(MAGIC + 127.0);
    let n = e.fma(x, log2e, magic);
    let bits = e.bitcast(I32X4, n);
    let n = e.b.ins().fsub(n, magic);
    let p = exp_of_rest(e, x, n);
    let by = e.b.ins().iconst(I32, 23);
    let power = e.b.ins().ishl(bits, by);
    let power = e.bitcast(F32X4, power);
    let p = e.b.ins().fmul(p, power);
    e.b.ins().band(kept, p)
}

/// e^(x - n ln 2), of a size of at most half of ln 2.
fn exp_of_rest(e: &mut Emitter<'_>, x: Value, n: Value) -> Value {
    let r = LN_2.into_iter().fold(x, |r, part| {
        let part = e.splat(part);
        e.fma(n, part, r)
    });
    let p = polynomial(e, r, &EXP);
    let one = e.splat(1.0);
    let square = e.b.ins().fmul(r, r);
    let linear = e.b.ins().fadd(r, one);
    e.fma(p, square, linear)
}

/// tanh x = 1 - 2 / (e^2x + 1); below 0.625 Cephes' odd polynomial, where that would cancel.
pub fn tanh(e: &mut Emitter<'_>, x: Value) -> Value {
    let size = e.b.ins().fabs(x);
    let limit = e.splat(9.5);
    let below = e.b.ins().fcmp(FloatCC::LessThan, size, limit);
    let clamped = e.choose(below, size, limit);
    let twice = e.b.ins().fadd(clamped, clamped);
    let power = exp_bounded(e, twice);
    let (one, two) = (e.splat(1.0), e.splat(2.0));
    let denominator = e.b.ins().fadd(power, one);
    let quotient = e.b.ins().fdiv(two, denominator);
    let large = e.b.ins().fsub(one, quotient);
    let sign_bit = e.splat(-0.0);
    let sign = e.b.ins().band(x, sign_bit);
    let large = e.b.ins().bor(large, sign);
    let square = e.b.ins().fmul(x, x);
    let p = polynomial(
        e,
        square,
        &[-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1],
    );
    let cube = e.b.ins().fmul(x, square);
    let small = e.fma(p, cube, x);
    let threshold = e.splat(0.625);
    // Not "at least": NaN takes the polynomial and stays NaN.
    let is_large = e.b.ins().fcmp(FloatCC::GreaterThan, size, threshold);
    e.choose(is_large, large, small)
}

/// sin x and cos x. The quarter turn is taken off in f64, so large positions keep their angle.
pub fn sin_cos(e: &mut Emitter<'_>, x: Value) -> (Value, Value) {
    let two_over_pi = e.splat(std::f32::consts::FRAC_2_PI);
    let magic = e.splat(MAGIC);
    let scaled = e.fma(x, two_over_pi, magic);
    let quadrant = e.bitcast(I32X4, scaled);
    let turns = e.b.ins().fsub(scaled, magic);
    let upper = |e: &mut Emitter<'_>, v: Value| e.shuffle(v, v, [2, 3, 2, 3]);
    let (x_high, turns_high) = (upper(e, x), upper(e, turns));
    let low = reduce(e, x, turns);
    let high = reduce(e, x_high, turns_high);
    let r = e.shuffle(low, high, [0, 1, 4, 5]);

    let square = e.b.ins().fmul(r, r);
    let p = polynomial(e, square, &[-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]);
    let cube = e.b.ins().fmul(square, r);
    let sine = e.fma(p, cube, r);
    let p = polynomial(e, square, &[2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2]);
    let fourth = e.b.ins().fmul(square, square);
    let (one, minus_half) = (e.splat(1.0), e.splat(-0.5));
    let cosine = e.fma(square, minus_half, one);
    let cosine = e.fma(p, fourth, cosine);

    let one = e.splat_int(1);
    let odd = e.b.ins().band(quadrant, one);
    let is_odd = e.b.ins().icmp(IntCC::Equal, odd, one);
    let sin = e.choose(is_odd, cosine, sine);
    let cos = e.choose(is_odd, sine, cosine);
    // Signs: sine turns negative in quadrants 2 and 3, cosine in 1 and 2.
    let by = e.b.ins().iconst(I32, 30);
    let sign_bit = e.splat_int(i32::MIN);
    let sin_sign = e.b.ins().ishl(quadrant, by);
    let sin_sign = e.b.ins().band(sin_sign, sign_bit);
    let next = e.b.ins().iadd(quadrant, one);
    let cos_sign = e.b.ins().ishl(next, by);
    let cos_sign = e.b.ins().band(cos_sign, sign_bit);
    let (sin_sign, cos_sign) = (e.bitcast(F32X4, sin_sign), e.bitcast(F32X4, cos_sign));
    (e.b.ins().bxor(sin, sin_sign), e.b.ins().bxor(cos, cos_sign))
}

/// x - turns pi/2 of the lower two lanes, in f64.
fn reduce(e: &mut Emitter<'_>, x: Value, turns: Value) -> Value {
    let x = e.b.ins().fvpromote_low(x);
    let turns = e.b.ins().fvpromote_low(turns);
    let pi_over_two = e.b.ins().f64const(std::f64::consts::FRAC_PI_2);
    let pi_over_two = e.b.ins().splat(F64X2, pi_over_two);
    let off = e.b.ins().fmul(turns, pi_over_two);
    let rest = e.b.ins().fsub(x, off);
    e.b.ins().fvdemote(rest)
}

/// Natural logarithm. Cephes' logf; 0 gives -inf, negatives NaN, denormals -inf.
pub fn log(e: &mut Emitter<'_>, x: Value) -> Value {
    let bits = e.bitcast(I32X4, x);
    // Mantissa to [sqrt(1/2), sqrt 2).
    let offset = e.splat_int(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32);
    let shifted = e.b.ins().isub(bits, offset);
    let by = e.b.ins().iconst(I32, 23);
    let exponent = e.b.ins().sshr(shifted, by);
    let exponent_bits = e.b.ins().ishl(exponent, by);
    let mantissa = e.b.ins().isub(bits, exponent_bits);
    let mantissa = e.bitcast(F32X4, mantissa);
    let one = e.splat(1.0);
    let r = e.b.ins().fsub(mantissa, one);
    let n = e.b.ins().fcvt_from_sint(F32X4, exponent);
    let p = polynomial(
        e,
        r,
        &[
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let square = e.b.ins().fmul(r, r);
    let cube = e.b.ins().fmul(square, r);
    let (low, high, minus_half) = (e.splat(-2.121_944_4e-4), e.splat(0.693_359_4), e.splat(-0.5));
    let tail = e.b.ins().fmul(p, cube);
    let tail = e.fma(n, low, tail);
    let tail = e.fma(square, minus_half, tail);
    let sum = e.b.ins().fadd(r, tail);
    let result = e.fma(n, high, sum);
    let least = e.splat(f32::MIN_POSITIVE);
    let zero = e.splat(0.0);
    let normal = e.b.ins().fcmp(FloatCC::GreaterThanOrEqual, x, least);
    let small = e.b.ins().fcmp(FloatCC::GreaterThanOrEqual, x, zero);
    let (nan, minus_infinity, infinity) =
        (e.splat(f32::NAN), e.splat(f32::NEG_INFINITY), e.splat(f32::INFINITY));
    let edge = e.choose(small, minus_infinity, nan);
    let result = e.choose(normal, result, edge);
    let is_infinite = e.b.ins().fcmp(FloatCC::Equal, x, infinity);
    e.choose(is_infinite, infinity, result)
}

/// a^b for a > 0: e^(b log a).
pub fn pow(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let log = log(e, a);
    let exponent = e.b.ins().fmul(b, log);
    exp(e, exponent)
}

/// cap tanh(x / cap).
pub fn softcap(e: &mut Emitter<'_>, cap: f32, x: Value) -> Value {
    let cap = e.splat(cap);
    let x = e.b.ins().fdiv(x, cap);
    let x = tanh(e, x);
    e.b.ins().fmul(x, cap)
}

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^(-2 sqrt(2/pi) (x + 0.044715 x^3))).
pub fn gelu_tanh(e: &mut Emitter<'_>, x: Value) -> Value {
    let square = e.b.ins().fmul(x, x);
    let c = -2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let (first, third) = (e.splat(c as f32), e.splat((c * 0.044_715) as f32));
    let slope = e.fma(square, third, first);
    let exponent = e.b.ins().fmul(slope, x);
    let power = exp(e, exponent);
    let one = e.splat(1.0);
    let denominator = e.b.ins().fadd(power, one);
    e.b.ins().fdiv(x, denominator)
}

/// The lane numbers 0, 1, 2, 3 as I32X4.
pub fn lane_numbers(e: &mut Emitter<'_>) -> Value {
    let bytes: Vec<u8> = (0i32..4).flat_map(i32::to_le_bytes).collect();
    let constant = e.b.func.dfg.constants.insert(ConstantData::from(&bytes[..]));
    e.b.ins().vconst(I32X4, constant)
}
