//! Scores to shares of attention by many rows, assembled: scale, softcap, mask and exponential of a block of keys, 16
//! columns at a time, and the shares rounded to bf16 in pairs of keys.
//!
//! Everything is in powers of two, so that exponentials need no factor: a score of s is s log2 e here. With a cap c it
//! is c log2 e (1 - 2 / (2^t + 1)), t = 2 log2 e x scale / c, which is c tanh(x scale / c) log2 e. Powers of two are
//! Cephes' exp2f: the nearest integer goes to the exponent, a polynomial takes the rest. Keys outside of a column's
//! range have a share of 0.
//!
//! With a running maximum ([`Soften::online`]) scores are walked twice; the first time they are capped, masked and
//! kept, and the columns' maximum rises.

use std::f32::consts::LOG2_E;

use iced_x86::code_asm::{
    registers::{gpr32, gpr64},
    *,
};

use super::blocks::Constants;
use super::dot::Done;
use super::tile::ZMM;
use super::{Code, MAGIC, Soften};

/// Columns of a register.
const LANES: i32 = 16;
/// Bytes of a register.
const BYTES: i32 = 4 * LANES;

/// What stands for the score of a key that is not seen, and for a maximum over none.
pub const UNSEEN: f32 = -1e30;

const SCORES: AsmRegister64 = gpr64::rdi;
const SHARES: AsmRegister64 = gpr64::rsi;
const STATE: AsmRegister64 = gpr64::rdx;
const KEY: AsmRegister64 = gpr64::rcx;
const COUNT: AsmRegister64 = gpr64::r8;
const COLUMNS: AsmRegister64 = gpr64::r9;
/// Bytes of the columns that are done.
const DONE: AsmRegister64 = gpr64::r10;
const FROM: AsmRegister64 = gpr64::rax;
const TO: AsmRegister64 = gpr64::r11;
/// Counts keys, once the number of the first is in a register of its own.
const LEFT: AsmRegister64 = KEY;

/// What a score is worked out in: of the first key of a pair, and of the second.
const WORK: [[AsmRegisterZmm; 4]; 2] = [[zmm0, zmm1, zmm2, zmm3], [zmm4, zmm5, zmm6, zmm7]];
/// The number of the first key.
const FIRST: AsmRegisterZmm = zmm8;
const TOTAL: AsmRegisterZmm = zmm9;
const HIGHEST: AsmRegisterZmm = zmm10;
/// How far the key at hand is past the first that a column sees, and how far before the last.
const PAST: AsmRegisterZmm = zmm11;
const BEFORE: AsmRegisterZmm = zmm12;
const ONE: AsmRegisterZmm = zmm13;
/// Which halves of two registers' bf16 make pairs.
const PAIRS: AsmRegisterZmm = zmm14;
/// Numbers from here on.
const NUMBERS: usize = 15;

/// Coefficients of 2^r - 1 over r for -0.5 to 0.5, from the highest power down (Cephes' exp2f), then 1.
const POWER: [f32; 7] =
    [1.535_336_2e-4, 1.339_887_4e-3, 9.618_437e-3, 5.550_332_6e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0];
/// The largest power of the cap's exponential: beyond it the hyperbolic tangent is 1.
const LARGEST: f32 = 60.0;
/// The least power of a share.
const LEAST: f32 = -126.0;

/// Numbers that stay in registers, by number after [`NUMBERS`].
#[derive(Clone, Copy)]
enum Number {
    Scale = POWER.len() as isize,
    Magic,
    Least,
    Largest,
    Top,
    Slope,
    Unseen,
    /// Above what stands for keys that are not seen, below every score.
    Lowest,
    /// Two to the least power.
    Nothing,
}

impl Number {
    fn register(self) -> AsmRegisterZmm {
        ZMM[NUMBERS + self as usize]
    }
}

/// With AVX-512 BF16.
pub(super) fn soften_512(soften: Soften) -> Code {
    let Soften { panel, apart, keys, cap, online, .. } = soften;
    let row = panel as i32 * 4;
    let at = |array: i32| zmmword_ptr(STATE + DONE + array * apart as i32 * 4);
    let [low, high, denominator, highest, rescale] = std::array::from_fn(|i| at(i as i32));
    let a = &mut CodeAssembler::new(64)?;
    let mut constants = Constants::default();
    numbers(a, soften, &mut constants)?;
    a.vpbroadcastd(FIRST, gpr32::ecx)?;
    a.xor(gpr32::r10d, gpr32::r10d)?;
    a.shl(COLUMNS, 2)?;
    let mut columns = a.create_label();
    a.set_label(&mut columns)?;
    let range = |a: &mut CodeAssembler| -> Done {
        a.lea(FROM, ptr(SCORES + DONE))?;
        a.vpsubd(PAST, FIRST, low)?;
        a.vmovups(BEFORE, high)?;
        a.vpsubd(BEFORE, BEFORE, FIRST)?;
        a.vpsubd(BEFORE, BEFORE, ONE)
    };
    a.vmovups(TOTAL, denominator)?;
    range(a)?;
    if online {
        a.vmovups(HIGHEST, highest)?;
        a.mov(LEFT, COUNT)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        let [score, t, u, v] = WORK[0];
        a.vmovups(score, zmmword_ptr(FROM))?;
        scaled(a, cap.is_some(), WORK[0])?;
        unseen(a, t)?;
        a.vpandnd(u, t, score)?;
        a.vpandd(v, t, Number::Unseen.register())?;
        a.vpord(score, u, v)?;
        a.vmovups(zmmword_ptr(FROM), score)?;
        a.vmaxps(HIGHEST, HIGHEST, score)?;
        a.add(FROM, row)?;
        a.dec(LEFT)?;
        a.jnz(again)?;
        // The sums so far, to the new maximum.
        a.vmovups(score, highest)?;
        a.vmovups(highest, HIGHEST)?;
        a.vsubps(score, score, HIGHEST)?;
        a.vmaxps(score, Number::Least.register(), score)?;
        power(a, WORK[0])?;
        a.vmovups(rescale, score)?;
        a.vmulps(TOTAL, TOTAL, score)?;
        // Far above what stands for keys that are not seen: their shares are 0, also if none is seen.
        a.vmaxps(HIGHEST, HIGHEST, Number::Lowest.register())?;
        range(a)?;
    }
    a.lea(TO, ptr(SHARES + DONE))?;
    a.mov(LEFT, COUNT)?;
    a.inc(LEFT)?;
    a.shr(LEFT, 1)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    for (key, work) in WORK.into_iter().enumerate() {
        let [score, t, ..] = work;
        a.vmovups(score, zmmword_ptr(FROM + key as i32 * row))?;
        if online {
            a.vsubps(score, score, HIGHEST)?;
            // What is not a number stays none.
            a.vmaxps(score, Number::Least.register(), score)?;
            power(a, work)?;
            // The least power is none.
            a.vsubps(score, score, Number::Nothing.register())?;
        } else {
            scaled(a, cap.is_some(), work)?;
            power(a, work)?;
        }
        // An odd number's last pair has a second key that nobody sees.
        unseen(a, t)?;
        a.vpandnd(score, t, score)?;
        a.vaddps(TOTAL, TOTAL, score)?;
    }
    let [[first, ..], [second, ..]] = WORK;
    a.vcvtne2ps2bf16(first, second, first)?;
    a.vpermw(first, PAIRS, first)?;
    a.vmovups(zmmword_ptr(TO), first)?;
    a.add(FROM, 2 * row)?;
    a.add(TO, row)?;
    a.dec(LEFT)?;
    a.jnz(again)?;
    a.vmovups(denominator, TOTAL)?;
    // Pairs of keys that are not there.
    let (mut clear, mut cleared) = (a.create_label(), a.create_label());
    a.mov(LEFT, COUNT)?;
    a.inc(LEFT)?;
    a.shr(LEFT, 1)?;
    a.sub(LEFT, keys as i32 / 2)?;
    a.jz(cleared)?;
    a.vpxord(first, first, first)?;
    a.set_label(&mut clear)?;
    a.vmovups(zmmword_ptr(TO), first)?;
    a.add(TO, row)?;
    a.inc(LEFT)?;
    a.jnz(clear)?;
    a.set_label(&mut cleared)?;
    a.add(DONE, BYTES)?;
    a.cmp(DONE, COLUMNS)?;
    a.jb(columns)?;
    a.vzeroupper()?;
    a.ret()?;
    constants.emit(a)?;
    a.assemble(0)
}

/// Brings numbers into their registers.
fn numbers(a: &mut CodeAssembler, Soften { scale, cap, .. }: Soften, constants: &mut Constants) -> Done {
    let (scale, cap) = (f32::from_bits(scale), cap.map(f32::from_bits));
    let slope = cap.map_or(scale * LOG2_E, |cap| 2.0 * LOG2_E * scale / cap);
    let top = cap.unwrap_or(0.0) * LOG2_E;
    let others = [
        (Number::Scale, slope),
        (Number::Magic, MAGIC),
        (Number::Least, LEAST),
        (Number::Largest, LARGEST),
        (Number::Top, top),
        (Number::Slope, 2.0 * top),
        (Number::Unseen, UNSEEN),
        (Number::Lowest, UNSEEN / 2.0),
        (Number::Nothing, f32::MIN_POSITIVE),
    ];
    let power = POWER.iter().enumerate().map(|(i, &c)| (ZMM[NUMBERS + i], c));
    for (register, value) in power.chain(others.map(|(number, value)| (number.register(), value))) {
        let number = constants.dwords(a, vec![value.to_bits()]);
        a.vbroadcastss(register, dword_ptr(number))?;
    }
    let one = constants.dwords(a, vec![1]);
    a.vpbroadcastd(ONE, dword_ptr(one))?;
    let pairs = constants.dwords(a, (0..LANES as u32).map(|i| i | (i + LANES as u32) << 16).collect());
    a.vmovups(PAIRS, zmmword_ptr(pairs))
}

/// The product in the first register to a score in powers of two.
fn scaled(a: &mut CodeAssembler, capped: bool, work: [AsmRegisterZmm; 4]) -> Done {
    let [score, t, ..] = work;
    a.vmulps(score, score, Number::Scale.register())?;
    if !capped {
        return Ok(());
    }
    // What is not a number stays none.
    a.vpxord(t, t, t)?;
    a.vsubps(t, t, Number::Largest.register())?;
    a.vmaxps(score, t, score)?;
    a.vminps(score, Number::Largest.register(), score)?;
    power(a, work)?;
    a.vaddps(score, score, ZMM[NUMBERS + POWER.len() - 1])?;
    a.vdivps(t, Number::Slope.register(), score)?;
    a.vsubps(score, Number::Top.register(), t)
}

/// Two to the power of the first register, of at least [`LEAST`] and at most 127.
fn power(a: &mut CodeAssembler, [x, n, rest, p]: [AsmRegisterZmm; 4]) -> Done {
    a.vaddps(n, x, Number::Magic.register())?;
    a.vsubps(rest, n, Number::Magic.register())?;
    a.vsubps(rest, x, rest)?;
    a.vpslld(n, n, 23)?;
    a.vmovaps(p, ZMM[NUMBERS])?;
    for i in 1..POWER.len() {
        a.vfmadd213ps(p, rest, ZMM[NUMBERS + i])?;
    }
    a.vpaddd(x, p, n)
}

/// All ones where a column does not see the key at hand; then the next one is.
fn unseen(a: &mut CodeAssembler, to: AsmRegisterZmm) -> Done {
    a.vpord(to, PAST, BEFORE)?;
    a.vpsrad(to, to, 31)?;
    a.vpaddd(PAST, PAST, ONE)?;
    a.vpsubd(BEFORE, BEFORE, ONE)
}
