//! The sums of a panel to rows of results, assembled: blocks of 16 weight rows by 16 rows of x are read, finished if
//! they are to be, transposed in registers and stored along rows of the output. Sums that lie by rows already are
//! finished 16 at a time.
//!
//! What finishes them is the gate of `math::gelu_tanh`, operation by operation, so that its bits are those of kernels
//! that have no panels.

use iced_x86::code_asm::{
    registers::{gpr32, gpr64},
    *,
};

use super::blocks::Constants;
use super::dot::Done;
use super::tile::ZMM;
use super::{Code, MAGIC, Turn};
use crate::math;

/// Weight rows, and rows of x, of a block.
const SIDE: usize = 16;
const VECTOR: i32 = 4 * SIDE as i32;

const SUMS: AsmRegister64 = gpr64::rdi;
/// From the first weight's sums to the second's.
const SECOND: AsmRegister64 = gpr64::rsi;
const OUT: AsmRegister64 = gpr64::rdx;
const ROWS: AsmRegister64 = gpr64::rcx;
const WIDTH: AsmRegister64 = gpr64::r8;
/// The block's sums, weight rows from it on, and its place in the output.
const FROM: AsmRegister64 = gpr64::r9;
const LEFT: AsmRegister64 = gpr64::r10;
const TO: AsmRegister64 = gpr64::r11;
const ROW: AsmRegister64 = gpr64::rax;

/// With AVX-512.
pub(super) fn turn_512(turn: Turn) -> Code {
    let Turn { panel, by_rows, gated, out_stride } = turn;
    let row = panel as i32 * 4;
    // Rows of x at a time; bytes from 16 of their sums to the next 16, and to those of the next rows.
    let (at_once, along, across) = if by_rows { (1, VECTOR, row) } else { (SIDE, SIDE as i32 * row, VECTOR) };
    let a = &mut CodeAssembler::new(64)?;
    let mut constants = Constants::default();
    let masks: Vec<u32> = (0..SIDE as u32).map(|left| (1 << left) - 1).collect();
    let masks = constants.dwords(a, masks);
    let (mut columns, mut blocks) = (a.create_label(), a.create_label());
    a.sub(SECOND, SUMS)?;
    a.set_label(&mut columns)?;
    a.mov(FROM, SUMS)?;
    a.mov(LEFT, WIDTH)?;
    a.mov(TO, OUT)?;
    a.set_label(&mut blocks)?;
    // Which of 16 results there are.
    let mut whole = a.create_label();
    a.mov(gpr32::eax, 0xffff)?;
    a.cmp(LEFT, SIDE as i32)?;
    a.jge(whole)?;
    a.lea(ROW, ptr(masks))?;
    a.mov(gpr32::eax, dword_ptr(ROW + LEFT * 4))?;
    a.set_label(&mut whole)?;
    a.kmovw(k1, gpr32::eax)?;
    for (i, &x) in (0..).zip(&ZMM[..at_once]) {
        a.vmovups(x, zmmword_ptr(FROM + i * row))?;
        if gated {
            gelu(a, &mut constants, x)?;
            a.vmulps(x, x, zmmword_ptr(FROM + SECOND + i * row))?;
        }
    }
    if !by_rows {
        transpose(a)?;
    }
    let mut stored = a.create_label();
    a.mov(ROW, TO)?;
    for (i, &x) in ZMM[..at_once].iter().enumerate() {
        if i > 0 {
            a.cmp(ROWS, i as i32)?;
            a.jle(stored)?;
            a.add(ROW, out_stride)?;
        }
        a.vmovups(zmmword_ptr(ROW).k1(), x)?;
    }
    a.set_label(&mut stored)?;
    a.add(FROM, along)?;
    a.add(TO, VECTOR)?;
    a.sub(LEFT, SIDE as i32)?;
    a.jg(blocks)?;
    a.add(SUMS, across)?;
    a.add(OUT, at_once as i32 * out_stride)?;
    a.sub(ROWS, at_once as i32)?;
    a.jg(columns)?;
    a.vzeroupper()?;
    a.ret()?;
    constants.emit(a)?;
    a.assemble(0)
}

/// Registers 0 to 15, rows of 16, to columns. Clobbers 16 to 31.
fn transpose(a: &mut CodeAssembler) -> Done {
    let (rows, others) = ZMM.split_at(SIDE);
    for i in (0..SIDE).step_by(2) {
        a.vpunpckldq(others[i], rows[i], rows[i + 1])?;
        a.vpunpckhdq(others[i + 1], rows[i], rows[i + 1])?;
    }
    // Within each quarter of a register: column c of four rows.
    for four in (0..SIDE).step_by(4) {
        for half in 0..2 {
            let (low, high) = (others[four + half], others[four + half + 2]);
            a.vpunpcklqdq(rows[four + 2 * half], low, high)?;
            a.vpunpckhqdq(rows[four + 2 * half + 1], low, high)?;
        }
    }
    // Even quarters of two registers, and odd ones; then the same of these.
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xdd;
    for c in 0..4 {
        let of = |four: usize| rows[4 * four + c];
        for (pair, from) in [[0, 1], [2, 3]].into_iter().enumerate() {
            a.vshufi32x4(others[4 * c + 2 * pair], of(from[0]), of(from[1]), EVEN)?;
            a.vshufi32x4(others[4 * c + 2 * pair + 1], of(from[0]), of(from[1]), ODD)?;
        }
    }
    for c in 0..4 {
        let of = |part: usize| others[4 * c + part];
        a.vshufi32x4(rows[c], of(0), of(2), EVEN)?;
        a.vshufi32x4(rows[4 + c], of(1), of(3), EVEN)?;
        a.vshufi32x4(rows[8 + c], of(0), of(2), ODD)?;
        a.vshufi32x4(rows[12 + c], of(1), of(3), ODD)?;
    }
    Ok(())
}

/// `math::gelu_tanh` of a register. Clobbers 16 to 20.
fn gelu(a: &mut CodeAssembler, constants: &mut Constants, x: AsmRegisterZmm) -> Done {
    let [power, n, rest, p, other] = [zmm16, zmm17, zmm18, zmm19, zmm20];
    let mut number = |a: &mut CodeAssembler, value: f32| constants.dwords(a, vec![value.to_bits()]);
    let c = -2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let (first, third) = (number(a, c as f32), number(a, (c * 0.044_715) as f32));
    a.vmulps(other, x, x)?;
    a.vbroadcastss(power, dword_ptr(third))?;
    a.vfmadd213ps(power, other, dword_bcst(first))?;
    a.vmulps(power, power, x)?;
    // `math::exp`: what is below its range, or no number, comes to the end of it, where it adds nothing to one.
    let [lowest, highest] = [-87.33, 88.72].map(|end| number(a, end));
    a.vbroadcastss(rest, dword_ptr(lowest))?;
    a.vmaxps(rest, power, rest)?;
    a.vminps(rest, rest, dword_bcst(highest))?;
    let (log2e, magic) = (number(a, std::f32::consts::LOG2_E), number(a, MAGIC));
    a.vbroadcastss(n, dword_ptr(log2e))?;
    a.vfmadd213ps(n, rest, dword_bcst(magic))?;
    a.vsubps(other, n, dword_bcst(magic))?;
    for part in math::LN_2 {
        let part = number(a, part);
        a.vfmadd231ps(rest, other, dword_bcst(part))?;
    }
    let [highest_power, others @ ..] = math::EXP;
    let highest_power = number(a, highest_power);
    a.vbroadcastss(p, dword_ptr(highest_power))?;
    for power in others {
        let power = number(a, power);
        a.vfmadd213ps(p, rest, dword_bcst(power))?;
    }
    let one = number(a, 1.0);
    a.vmulps(other, rest, rest)?;
    a.vaddps(rest, rest, dword_bcst(one))?;
    a.vfmadd213ps(p, other, rest)?;
    a.vpslld(n, n, 23)?;
    a.vpaddd(p, p, n)?;
    const GREATER: i32 = 30;
    let infinity = number(a, f32::INFINITY);
    a.vcmpps(k2, power, dword_bcst(highest), GREATER)?;
    a.vbroadcastss(other, dword_ptr(infinity))?;
    a.vmovaps(p.k2(), other)?;
    a.vaddps(p, p, dword_bcst(one))?;
    a.vdivps(x, x, p)
}
