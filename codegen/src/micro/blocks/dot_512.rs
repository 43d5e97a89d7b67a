//! Dot products of a row of x rounded to 8 bits with a weight row in blocks of any format, with AVX-512 VNNI.
//!
//! 256 elements a round. A group's products are summed exactly in integers, of quants that are brought to unsigned
//! bytes, and scaled by both scales. What that shifts quants by, and the format's offset, meet the sums of x's own
//! quants: of groups of 32 those that come with x, eight in a register; of groups of 16 sums made here.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::format::{Offset, Place, Reading};
use lapidary_ir::{BLOCK, DType, Format};

use super::widen_512::scales_512;
use super::{Constants, PLANES, offset};
use crate::micro::dot::{Done, XMM, YMM};
use crate::micro::tile::ZMM;
use crate::micro::{Code, Dot, int8_quant_bytes};

/// Elements of a round, and of a register of bytes.
const ROUND: usize = 256;
const CHUNK: usize = 64;
/// How far ahead weights are fetched, in bytes.
const AHEAD: i32 = 2048;

// Where the code for scales has the block, as widening does.
const W: AsmRegister64 = PLANES[0];
const X: AsmRegister64 = gpr64::r8;
const X_SCALES: AsmRegister64 = gpr64::r9;
const X_SUMS: AsmRegister64 = gpr64::r10;
const C: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;

/// Sums of products, and of what is shifted and offset; two of each, lest one waits for the other.
const SUMS: [AsmRegisterZmm; 2] = [zmm16, zmm17];
const SHIFTED: [AsmRegisterZmm; 2] = [zmm18, zmm19];
/// Registers, a lane a group of a round: the weights' scales, their offsets, the products of both scales.
const SCALES: usize = 8;
const OFFSETS: usize = 9;
const BOTH: usize = 10;
const X_SCALE: AsmRegisterZmm = zmm11;
const NONE: AsmRegisterZmm = zmm12;

/// The code.
pub(in crate::micro) fn dot_vnni(dot: Dot) -> Code {
    let Some(format) = dot.dtype.format() else { unreachable!("blocks have a format") };
    let a = &mut CodeAssembler::new(64)?;
    let mut constants = Constants::default();
    // x comes first, weights second.
    a.mov(X, gpr64::rdi)?;
    a.mov(W, gpr64::rsi)?;
    let quants = int8_quant_bytes(dot.k);
    a.lea(X_SCALES, ptr(X + quants as i32))?;
    a.lea(X_SUMS, ptr(X + (quants + dot.k / BLOCK * 4) as i32))?;
    for register in SUMS.into_iter().chain(SHIFTED).chain([NONE]) {
        a.vpxord(register, register, register)?;
    }
    if dot.k >= ROUND {
        let mut again = a.create_label();
        a.mov(COUNT, (dot.k / ROUND) as i64)?;
        a.set_label(&mut again)?;
        let bytes = format.row_bytes(ROUND) as i32;
        (0..bytes).step_by(64).try_for_each(|line| a.prefetcht0(byte_ptr(W + (AHEAD + line))))?;
        round(a, &mut constants, format, ROUND)?;
        a.add(W, bytes)?;
        a.add(X, ROUND as i32)?;
        a.add(X_SCALES, (ROUND / BLOCK * 4) as i32)?;
        a.add(X_SUMS, (ROUND / BLOCK * 4) as i32)?;
        a.dec(COUNT)?;
        a.jnz(again)?;
    }
    if !dot.k.is_multiple_of(ROUND) {
        round(a, &mut constants, format, dot.k % ROUND)?;
    }
    a.vaddps(zmm16, zmm16, zmm17)?;
    a.vaddps(zmm18, zmm18, zmm19)?;
    a.vaddps(zmm16, zmm16, zmm18)?;
    a.vextractf64x4(ymm0, zmm16, 1)?;
    a.vmovaps(zmm1, zmm16)?;
    a.vaddps(ymm0, ymm0, ymm1)?;
    a.vextractf128(xmm1, ymm0, 1)?;
    a.vaddps(xmm0, xmm0, xmm1)?;
    a.vhaddps(xmm0, xmm0, xmm0)?;
    a.vhaddps(xmm0, xmm0, xmm0)?;
    a.vmovss(dword_ptr(C), xmm0)?;
    a.vzeroupper()?;
    a.ret()?;
    constants.emit(a)?;
    a.assemble(0)
}

/// `n` elements, whole blocks, at most a round.
fn round(a: &mut CodeAssembler, constants: &mut Constants, format: &Format, n: usize) -> Done {
    let per_block = n / BLOCK;
    let some = per_block < ROUND / BLOCK;
    if some {
        a.mov(gpr32::eax, (1u32 << per_block) - 1)?;
        a.kmovw(k2, gpr32::eax)?;
        a.evex().vmovups(ymm11.k2().z(), ymmword_ptr(X_SCALES))?;
    } else {
        a.vmovups(ymm11, ymmword_ptr(X_SCALES))?;
    }
    if format.group < BLOCK {
        let twice = constants.dwords(a, (0..16).map(|lane| lane / 2).collect());
        a.vmovups(zmm0, zmmword_ptr(twice))?;
        a.vpermps(X_SCALE, zmm0, X_SCALE)?;
    }
    scales(a, constants, format, n, false, SCALES)?;
    a.vmulps(ZMM[BOTH], ZMM[SCALES], X_SCALE)?;
    let zero = zero(format);
    if offset(format).is_some() {
        scales(a, constants, format, n, true, OFFSETS)?;
    }
    if format.group >= BLOCK && (zero > 0 || offset(format).is_some()) {
        // What each group's sum of x's quants is worth: the offset less the shift, times x's scale.
        let sums = ymm0;
        if some {
            a.vmovdqu32(sums.k2().z(), ymmword_ptr(X_SUMS))?;
        } else {
            a.vmovdqu32(sums, ymmword_ptr(X_SUMS))?;
        }
        a.vcvtdq2ps(sums, sums)?;
        a.vmulps(sums, sums, ymm11)?;
        match format.offset {
            Offset::None => {}
            Offset::Plus(_) => a.vfmadd231ps(SHIFTED[0], zmm0, ZMM[OFFSETS])?,
            Offset::Minus(_) => a.vfnmadd231ps(SHIFTED[0], zmm0, ZMM[OFFSETS])?,
        }
        if zero > 0 {
            let shift = constants.dwords(a, vec![(zero as f32).to_bits()]);
            a.vmulps(zmm0, zmm0, dword_bcst(shift))?;
            a.vfnmadd231ps(SHIFTED[1], zmm0, ZMM[SCALES])?;
        }
    } else if offset(format).is_some() {
        a.vmulps(ZMM[OFFSETS], ZMM[OFFSETS], X_SCALE)?;
    }
    for (chunk, first) in (0..n).step_by(CHUNK).enumerate() {
        let whole = first + CHUNK <= n;
        quants(a, constants, format, first, whole)?;
        let x = zmmword_ptr(X + first as i32);
        let (total, scale) = (zmm4, zmm5);
        a.vmovdqa32(total, NONE)?;
        a.evex().vpdpbusd(total, zmm0, x)?;
        let lanes = (0..16).map(|lane| ((first + 4 * lane) / format.group) as u32).collect();
        let lanes = constants.dwords(a, lanes);
        a.vmovups(zmm6, zmmword_ptr(lanes))?;
        a.vpermps(scale, zmm6, ZMM[BOTH])?;
        if format.group < BLOCK {
            let by = if offset(format).is_some() { 1 } else { zero };
            if by > 0 {
                let bytes = constants.dwords(a, vec![u32::from_le_bytes([by as u8; 4])]);
                a.vpbroadcastd(zmm7, dword_ptr(bytes))?;
                a.vmovdqa32(zmm1, NONE)?;
                a.evex().vpdpbusd(zmm1, zmm7, x)?;
            }
            match format.offset {
                Offset::None if by > 0 => a.vpsubd(total, total, zmm1)?,
                Offset::None => {}
                Offset::Plus(_) | Offset::Minus(_) => {
                    a.vcvtdq2ps(zmm1, zmm1)?;
                    a.vpermps(zmm6, zmm6, ZMM[OFFSETS])?;
                    match format.offset {
                        Offset::Minus(_) => a.vfnmadd231ps(SHIFTED[chunk % 2], zmm1, zmm6)?,
                        _ => a.vfmadd231ps(SHIFTED[chunk % 2], zmm1, zmm6)?,
                    }
                }
            }
        }
        a.vcvtdq2ps(total, total)?;
        a.vfmadd231ps(SUMS[chunk % 2], total, scale)?;
    }
    Ok(())
}

/// What quants are shifted by so that they are unsigned.
fn zero(format: &Format) -> i32 {
    match format.quants.reading {
        Reading::Less(zero) => zero,
        Reading::Signed | Reading::Table(_) => 128,
    }
}

/// The scales of the groups of `n` elements, or their offsets, one a lane. Clobbers registers 2 to 5.
fn scales(
    a: &mut CodeAssembler,
    constants: &mut Constants,
    format: &Format,
    n: usize,
    offsets: bool,
    to: usize,
) -> Done {
    let scale = match offset(format) {
        Some(offset) if offsets => offset,
        _ => &format.scale,
    };
    if format.block == ROUND {
        return scales_512(a, constants, format, scale, to);
    }
    // A float each of as many blocks.
    a.vpxor(xmm2, xmm2, xmm2)?;
    for block in 0..n / format.block {
        let at = W + (block * format.block_bytes() + scale.byte) as i32;
        a.vpinsrw(xmm2, xmm2, word_ptr(at), block as u32)?;
    }
    if scale.dtype == DType::BF16 {
        a.vpmovzxwd(YMM[to], xmm2)?;
        a.vpslld(ZMM[to], ZMM[to], 16)
    } else {
        a.vcvtph2ps(YMM[to], xmm2)
    }
}

/// Quants of 64 elements from `first`, or of 32 and zeros, as unsigned bytes in register 0. Clobbers registers 1 and 2.
fn quants(
    a: &mut CodeAssembler,
    constants: &mut Constants,
    format: &Format,
    first: usize,
    whole: bool,
) -> Done {
    let sixteens = if whole { 4 } else { 2 };
    let mut width = 0;
    for (f, bits) in format.quants.bits.iter().enumerate() {
        let to = usize::from(f > 0);
        let places: Vec<Place> = (0..sixteens)
            .map(|i| {
                let element = first + 16 * i;
                let place = bits.place(element % format.block);
                Place { byte: place.byte + element / format.block * format.block_bytes(), ..place }
            })
            .collect();
        if bits.run == 1 {
            let ones = constants.dwords(a, vec![u32::from_le_bytes([1 << width; 4]); 16]);
            a.kmovd(k1, dword_ptr(W + places[0].byte as i32))?;
            if whole {
                a.kmovd(k3, dword_ptr(W + places[2].byte as i32))?;
                a.kunpckdq(k1, k3, k1)?;
            }
            a.vpaddb(zmm0.k1(), zmm0, zmmword_ptr(ones))?;
            width += bits.width;
            continue;
        }
        gather(a, to, &places)?;
        let shifts: Vec<usize> = places.iter().map(|p| p.shift).collect();
        let x = ZMM[to];
        if shifts.iter().all(|&s| s == shifts[0]) {
            match shifts[0] as i32 - width as i32 {
                0 => {}
                down @ 1.. => a.vpsrlw(x, x, down)?,
                up => a.vpsllw(x, x, -up)?,
            }
        } else {
            let words = shifts.iter().flat_map(|&s| [s as u32 * 0x1_0001; 4]);
            let words = constants.dwords(a, words.chain([0; 16]).take(16).collect());
            a.vpsrlvw(x, x, zmmword_ptr(words))?;
            if width > 0 {
                a.vpsllw(x, x, width as i32)?;
            }
        }
        if bits.width < 8 {
            let mask = ((1u32 << bits.width) - 1) << width;
            let mask = constants.dwords(a, vec![mask * 0x0101_0101]);
            a.vpandd(x, x, dword_bcst(mask))?;
        }
        if f > 0 {
            a.vpord(zmm0, zmm0, x)?;
        }
        width += bits.width;
    }
    match format.quants.reading {
        Reading::Less(_) => {}
        Reading::Signed => {
            let sign = constants.dwords(a, vec![0x8080_8080]);
            a.vpxord(zmm0, zmm0, dword_bcst(sign))?;
        }
        Reading::Table(table) => {
            let bytes: Vec<u8> = table.iter().map(|&v| (i32::from(v) + 128) as u8).collect();
            let table = constants.bytes(a, &bytes.repeat(4));
            a.vmovdqu32(zmm2, zmmword_ptr(table))?;
            a.vpshufb(zmm0, zmm2, zmm0)?;
        }
    }
    if !whole {
        // What x has there is no block's.
        a.vmovdqa(ymm0, ymm0)?;
    }
    Ok(())
}

/// Brings 16 bytes from each place into a register, zeros behind the last.
fn gather(a: &mut CodeAssembler, to: usize, places: &[Place]) -> Done {
    let at: Vec<i32> = places.iter().map(|p| p.byte as i32).collect();
    let follow = |i: usize| at[i + 1] == at[i] + 16;
    match at.len() {
        4 if (0..3).all(follow) => a.vmovdqu32(ZMM[to], zmmword_ptr(W + at[0])),
        4 if follow(0) && at[2] == at[0] && follow(2) => a.vbroadcasti64x4(ZMM[to], ymmword_ptr(W + at[0])),
        4 if follow(0) && follow(2) => {
            a.vmovdqu(YMM[to], ymmword_ptr(W + at[0]))?;
            a.vinserti64x4(ZMM[to], ZMM[to], ymmword_ptr(W + at[2]), 1)
        }
        2 if follow(0) => a.vmovdqu(YMM[to], ymmword_ptr(W + at[0])),
        _ => {
            a.vmovdqu(XMM[to], xmmword_ptr(W + at[0]))?;
            (1..at.len()).try_for_each(|i| a.vinserti32x4(ZMM[to], ZMM[to], xmmword_ptr(W + at[i]), i as u32))
        }
    }
}
