//! Widening of blocks with AVX2 and F16C: 8 lanes, to f32.

use iced_x86::code_asm::*;
use lapidary_ir::format::{Offset, Place, Reading, Scale};
use lapidary_ir::{DType, Format};

use super::{Constants, PLANES, TO, fetch, fields_of, finish, float_at, offset, values};
use crate::micro::dot::{Done, YMM};
use crate::micro::{Code, Widen};

/// The code.
pub(in crate::micro) fn widen_256(widen: Widen, format: &Format) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let mut constants = Constants::default();
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    if widen.fetches {
        fetch(a, format.planes[0])?;
    }
    let groups = format.block / format.group;
    // Each in as many registers as hold all groups.
    let (scales, offsets, scale, added) = ([8, 9], [10, 11], 12, 13);
    scales_256(a, &mut constants, format, &format.scale, scales)?;
    if let Some(offset) = offset(format) {
        scales_256(a, &mut constants, format, offset, offsets)?;
    }
    for first in (0..format.block).step_by(8) {
        let group = first / format.group;
        if groups > 1 && first % format.group == 0 {
            let lane = constants.dwords(a, vec![group as u32 % 8]);
            a.vpbroadcastd(ymm14, dword_ptr(lane))?;
            a.vpermps(YMM[scale], ymm14, YMM[scales[group / 8]])?;
            if offset(format).is_some() {
                a.vpermps(YMM[added], ymm14, YMM[offsets[group / 8]])?;
            }
        }
        let [scale, added] =
            if groups > 1 { [scale, added] } else { [scales[0], offsets[0]] }.map(|i| YMM[i]);
        quants_256(a, &mut constants, format, first)?;
        a.vmulps(ymm0, ymm0, scale)?;
        match format.offset {
            Offset::None => {}
            Offset::Plus(_) => a.vaddps(ymm0, ymm0, added)?,
            Offset::Minus(_) => a.vsubps(ymm0, ymm0, added)?,
        }
        a.vmovups(ymmword_ptr(TO + first as i32 * 4), ymm0)?;
    }
    finish(a, widen, format, again)?;
    constants.emit(a)?;
    a.assemble(0)
}

/// A scale of every group of a block, eight a register; of a block of one group in every lane. Clobbers registers 2 to
/// 4.
fn scales_256(
    a: &mut CodeAssembler,
    constants: &mut Constants,
    format: &Format,
    scale: &Scale,
    to: [usize; 2],
) -> Done {
    let float = ymm3;
    if scale.dtype == DType::BF16 {
        a.vpbroadcastw(float, float_at(scale))?;
        a.vpslld(float, float, 16)?;
    } else {
        a.vpbroadcastw(xmm3, float_at(scale))?;
        a.vcvtph2ps(float, xmm3)?;
    }
    let groups = format.block / format.group;
    for (half, to) in to.into_iter().enumerate().take(groups.div_ceil(8)) {
        let to = YMM[to];
        let Some((fields, reading)) = fields_of(format, &[scale], 8 * half..8 * half + 8) else {
            return a.vmovaps(to, float);
        };
        let mut width = 0;
        for (f, field) in fields.iter().enumerate() {
            let x = if f == 0 { ymm2 } else { ymm4 };
            let places = constants.bytes(a, &field.bytes);
            a.vmovdqu(xmm4, xmmword_ptr(PLANES[0] + field.from as i32))?;
            a.vpshufb(xmm4, xmm4, xmmword_ptr(places))?;
            match reading {
                Reading::Signed => a.vpmovsxbd(x, xmm4)?,
                Reading::Less(_) | Reading::Table(_) => a.vpmovzxbd(x, xmm4)?,
            }
            if field.shifts.iter().any(|&s| s > 0) {
                let shifts = constants.dwords(a, field.shifts.clone());
                a.vpsrlvd(x, x, ymmword_ptr(shifts))?;
            }
            if field.width < 8 {
                let mask = constants.dwords(a, vec![(1 << field.width) - 1; 8]);
                a.vpand(x, x, ymmword_ptr(mask))?;
            }
            if f > 0 {
                a.vpslld(x, x, width)?;
                a.vpor(ymm2, ymm2, x)?;
            }
            width += field.width as i32;
        }
        if let Reading::Less(zero @ 1..) = reading {
            let zero = constants.dwords(a, vec![zero as u32; 8]);
            a.vpsubd(ymm2, ymm2, ymmword_ptr(zero))?;
        }
        a.vcvtdq2ps(ymm2, ymm2)?;
        a.vmulps(to, float, ymm2)?;
    }
    Ok(())
}

/// Quants of 8 elements from `first`, f32, in register 0. Clobbers registers 1 and 2.
fn quants_256(a: &mut CodeAssembler, constants: &mut Constants, format: &Format, first: usize) -> Done {
    let numbers = &format.quants;
    let (x, y) = (ymm0, ymm1);
    let lowest = numbers.bits[0].place(first);
    let at = |place: Place| qword_ptr(PLANES[0] + place.byte as i32);
    if let Reading::Signed = numbers.reading {
        a.vpmovsxbd(x, at(lowest))?;
        return a.vcvtdq2ps(x, x);
    }
    if let Some(table) = values(numbers) {
        let table = constants.bytes(a, &table.map(|v| v as u8));
        let mask = constants.dwords(a, vec![0x0f0f_0f0f; 4]);
        a.vmovq(xmm1, at(lowest))?;
        if lowest.shift > 0 {
            a.vpsrlw(xmm1, xmm1, lowest.shift as i32)?;
        }
        a.vpand(xmm1, xmm1, xmmword_ptr(mask))?;
        a.vmovdqu(xmm2, xmmword_ptr(table))?;
        a.vpshufb(xmm1, xmm2, xmm1)?;
        a.vpmovsxbd(x, xmm1)?;
        return a.vcvtdq2ps(x, x);
    }
    a.vpmovzxbd(x, at(lowest))?;
    if lowest.shift > 0 {
        a.vpsrld(x, x, lowest.shift as i32)?;
    }
    if lowest.shift + lowest.width < 8 {
        let mask = constants.dwords(a, vec![(1 << lowest.width) - 1; 8]);
        a.vpand(x, x, ymmword_ptr(mask))?;
    }
    let mut width = lowest.width;
    for bits in &numbers.bits[1..] {
        let place = bits.place(first);
        let mask = constants.dwords(a, vec![((1 << bits.width) - 1) << width; 8]);
        if bits.run == 1 {
            // Each lane has its bit of the byte, or not.
            let each = constants.dwords(a, (0..8).map(|i| 1 << i).collect());
            a.vpbroadcastb(y, byte_ptr(PLANES[0] + place.byte as i32))?;
            a.vpand(y, y, ymmword_ptr(each))?;
            a.vpcmpeqd(y, y, ymmword_ptr(each))?;
        } else {
            a.vpmovzxbd(y, at(place))?;
            match place.shift as i32 - width as i32 {
                0 => {}
                down @ 1.. => a.vpsrld(y, y, down)?,
                up => a.vpslld(y, y, -up)?,
            }
        }
        a.vpand(y, y, ymmword_ptr(mask))?;
        a.vpor(x, x, y)?;
        width += bits.width;
    }
    if let Reading::Less(zero @ 1..) = numbers.reading {
        let zero = constants.dwords(a, vec![zero as u32; 8]);
        a.vpsubd(x, x, ymmword_ptr(zero))?;
    }
    a.vcvtdq2ps(x, x)
}
