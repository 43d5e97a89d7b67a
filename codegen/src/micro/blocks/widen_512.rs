//! Widening of blocks with AVX-512: 16 lanes, to f32.

use iced_x86::code_asm::*;
use lapidary_ir::format::{Offset, Place, Reading, Scale};
use lapidary_ir::{DType, Format};

use super::bf16_512::bf16_512;
use super::{Constants, PLANES, TO, fetch, fields_of, finish, float_at, offset, values};
use crate::micro::dot::{Done, XMM, YMM};
use crate::micro::tile::ZMM;
use crate::micro::{Code, Widen};

/// The code.
pub(in crate::micro) fn widen_512(widen: Widen, format: &Format) -> Code {
    if widen.to == DType::BF16 {
        return bf16_512(widen, format);
    }
    let a = &mut CodeAssembler::new(64)?;
    let mut constants = Constants::default();
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    if widen.fetches {
        fetch(a, format.planes[0])?;
    }
    let (scales, offsets, scale, added) = (8, 9, 10, 11);
    let groups = format.block / format.group;
    scales_512(a, &mut constants, format, &[&format.scale], scales)?;
    if let Some(offset) = offset(format) {
        scales_512(a, &mut constants, format, &[offset], offsets)?;
    }
    for (chunk, first) in (0..format.block).step_by(16).enumerate() {
        let group = first / format.group;
        if groups > 1 && first % format.group == 0 {
            let lane = constants.dwords(a, vec![group as u32]);
            a.vpbroadcastd(zmm12, dword_ptr(lane))?;
            a.vpermps(ZMM[scale], zmm12, ZMM[scales])?;
            if offset(format).is_some() {
                a.vpermps(ZMM[added], zmm12, ZMM[offsets])?;
            }
        }
        let [scale, added] = if groups > 1 { [scale, added] } else { [scales, offsets] }.map(|i| ZMM[i]);
        let x = ZMM[chunk % 2];
        quants_512(a, &mut constants, format, first, chunk % 2)?;
        a.vmulps(x, x, scale)?;
        match format.offset {
            Offset::None => {}
            Offset::Minus(_) => a.vsubps(x, x, added)?,
            Offset::Plus(_) => a.vaddps(x, x, added)?,
        }
        a.vmovups(zmmword_ptr(TO + (first * 4) as i32), x)?;
    }
    finish(a, widen, format, again)?;
    constants.emit(a)?;
    a.assemble(0)
}

/// A scale of every group of a block, one a lane; of a block of one group in every lane. Of two scales, halves that lie
/// beside each other, in turn. Clobbers registers 2 to 5.
pub(super) fn scales_512(
    a: &mut CodeAssembler,
    constants: &mut Constants,
    format: &Format,
    scales: &[&Scale],
    to: usize,
) -> Done {
    let (float, part, scale) = (3, 4, scales[0]);
    if scales.len() > 1 {
        a.vpbroadcastd(ZMM[float], dword_ptr(PLANES[scale.plane] + scale.byte as i32))?;
    } else {
        a.vpbroadcastw(ZMM[float], float_at(scale))?;
    }
    if scale.dtype == DType::BF16 {
        a.vpslld(ZMM[to], ZMM[float], 16)?;
    } else {
        a.vcvtph2ps(ZMM[to], YMM[float])?;
    }
    let Some((fields, reading)) = fields_of(format, scales, 0..16) else { return Ok(()) };
    let mut width = 0;
    for (f, field) in fields.iter().enumerate() {
        let x = ZMM[if f == 0 { 2 } else { part }];
        let places = constants.bytes(a, &field.bytes);
        a.vmovdqu(XMM[part], xmmword_ptr(PLANES[0] + field.from as i32))?;
        a.vpshufb(XMM[part], XMM[part], xmmword_ptr(places))?;
        match reading {
            Reading::Signed => a.vpmovsxbd(x, XMM[part])?,
            Reading::Less(_) | Reading::Table(_) => a.vpmovzxbd(x, XMM[part])?,
        }
        if field.shifts.iter().any(|&s| s > 0) {
            let shifts = constants.dwords(a, field.shifts.clone());
            a.vpsrlvd(x, x, zmmword_ptr(shifts))?;
        }
        if field.width < 8 {
            let mask = constants.dwords(a, vec![(1 << field.width) - 1]);
            a.vpandd(x, x, dword_bcst(mask))?;
        }
        if f > 0 {
            a.vpslld(x, x, width)?;
            a.vpord(zmm2, zmm2, x)?;
        }
        width += field.width as i32;
    }
    if let Reading::Less(zero @ 1..) = reading {
        let zero = constants.dwords(a, vec![zero as u32]);
        a.vpsubd(zmm2, zmm2, dword_bcst(zero))?;
    }
    a.vcvtdq2ps(zmm2, zmm2)?;
    a.vmulps(ZMM[to], ZMM[to], zmm2)
}

/// Quants of 16 elements from `first`, f32, in register `to`. Clobbers register 2.
fn quants_512(
    a: &mut CodeAssembler,
    constants: &mut Constants,
    format: &Format,
    first: usize,
    to: usize,
) -> Done {
    let numbers = &format.quants;
    let (x, y) = (ZMM[to], zmm2);
    let lowest = numbers.bits[0].place(first);
    let at = |place: Place| xmmword_ptr(PLANES[0] + place.byte as i32);
    if let Reading::Signed = numbers.reading {
        a.vpmovsxbd(x, at(lowest))?;
        return a.vcvtdq2ps(x, x);
    }
    a.vpmovzxbd(x, at(lowest))?;
    if lowest.shift > 0 {
        a.vpsrld(x, x, lowest.shift as i32)?;
    }
    if let Some(table) = values(numbers) {
        // Of a lane the lowest four bits count.
        let table = constants.dwords(a, table.map(|v| f32::from(v).to_bits()).to_vec());
        return a.vpermps(x, x, zmmword_ptr(table));
    }
    if lowest.shift + lowest.width < 8 {
        let mask = constants.dwords(a, vec![(1 << lowest.width) - 1]);
        a.vpandd(x, x, dword_bcst(mask))?;
    }
    let mut width = lowest.width;
    for bits in &numbers.bits[1..] {
        let place = bits.place(first);
        let mask = constants.dwords(a, vec![((1 << bits.width) - 1) << width]);
        if bits.run == 1 {
            a.kmovw(k1, word_ptr(PLANES[0] + place.byte as i32))?;
            a.vpord(x.k1(), x, dword_bcst(mask))?;
        } else {
            a.vpmovzxbd(y, at(place))?;
            match place.shift as i32 - width as i32 {
                0 => {}
                down @ 1.. => a.vpsrld(y, y, down)?,
                up => a.vpslld(y, y, -up)?,
            }
            a.vpandd(y, y, dword_bcst(mask))?;
            a.vpord(x, x, y)?;
        }
        width += bits.width;
    }
    if let Reading::Less(zero @ 1..) = numbers.reading {
        let zero = constants.dwords(a, vec![zero as u32]);
        a.vpsubd(x, x, dword_bcst(zero))?;
    }
    a.vcvtdq2ps(x, x)
}
