//! Quants of any kind as bytes with AVX-512, 64 elements at a time, field by field: for their widening to bf16.

use iced_x86::code_asm::*;
use lapidary_ir::format::{Bits, Place, Reading};

use super::bf16_512::{FIELD, LANE, QUANTS, UNIT, Unit};
use super::{OR_MASKED, PLANES};
use crate::micro::dot::{Done, XMM};
use crate::micro::tile::ZMM;

impl Unit<'_> {
    /// A byte each quant, as its fields come to.
    pub(super) fn fields(&mut self, a: &mut CodeAssembler, first: usize) -> Done {
        let mut to = 0;
        for bits in self.format.quants.bits {
            if bits.run == 1 {
                self.single_bits(a, bits, first, to)?;
            } else {
                self.field(a, bits, first, to)?;
            }
            to += bits.width;
        }
        Ok(())
    }

    /// A byte each quant, less what it is more than it stands for.
    pub(super) fn quants(&mut self, a: &mut CodeAssembler, first: usize) -> Done {
        self.fields(a, first)?;
        let quants = ZMM[QUANTS];
        match self.format.quants.reading {
            Reading::Less(0) | Reading::Signed => Ok(()),
            Reading::Less(zero) => {
                let zero = self.constants.bytes(a, &[zero as u8; UNIT]);
                a.vpsubb(quants, quants, zmmword_ptr(zero))
            }
            Reading::Table(table) => {
                let bytes = table.map(|v| v as u8).repeat(UNIT / LANE);
                let table = self.constants.bytes(a, &bytes);
                a.vmovdqu32(ZMM[FIELD], zmmword_ptr(table))?;
                a.vpshufb(quants, ZMM[FIELD], quants)
            }
        }
    }

    /// A field of every quant, to bit `to` of its byte; others' bits stay, but of the first.
    fn field(&mut self, a: &mut CodeAssembler, bits: &Bits, first: usize, to: usize) -> Done {
        let places: Vec<Place> = (0..self.lanes).map(|lane| self.place(bits, first, lane)).collect();
        let at = |lane: usize| PLANES[0] + places[lane].byte as i32;
        let follow = |lane: usize| places[lane + 1].byte == places[lane].byte + LANE;
        let register = if to == 0 { QUANTS } else { FIELD };
        let x = ZMM[register];
        let whole = self.lanes == UNIT / LANE;
        if whole && (0..3).all(follow) {
            a.vmovdqu32(x, zmmword_ptr(at(0)))?;
        } else if whole && follow(0) && follow(2) {
            a.vbroadcasti64x4(x, ymmword_ptr(at(0)))?;
            if places[0].byte != places[2].byte {
                a.vinserti64x4(x, x, ymmword_ptr(at(2)), 1)?;
            }
        } else {
            a.vmovdqu(XMM[register], xmmword_ptr(at(0)))?;
            for lane in 1..self.lanes {
                a.vinserti32x4(x, x, xmmword_ptr(at(lane)), lane as u32)?;
            }
        }
        let up: Vec<u32> = places.iter().map(|place| (32 + to - place.shift) as u32 % 32).collect();
        if up.iter().any(|&u| u != up[0]) {
            let up = up.iter().cycle().take(UNIT / LANE).flat_map(|&u| [u; 4]).collect();
            let up = self.constants.dwords(a, up);
            a.vprolvd(x, x, zmmword_ptr(up))?;
        } else if up[0] > 0 {
            a.vprold(x, x, up[0])?;
        }
        if bits.width == 8 {
            return Ok(());
        }
        let mask = self.constants.dwords(a, vec![(((1u32 << bits.width) - 1) << to) * 0x0101_0101]);
        if to == 0 {
            return a.vpandd(x, x, dword_bcst(mask));
        }
        a.vpternlogd(ZMM[QUANTS], x, dword_bcst(mask), OR_MASKED)
    }

    /// A bit of each element, from four bytes that follow one another, to bit `to` of its quant.
    fn single_bits(&mut self, a: &mut CodeAssembler, bits: &Bits, first: usize, to: usize) -> Done {
        let at = |lane: usize| dword_ptr(PLANES[0] + self.place(bits, first, lane).byte as i32);
        a.kmovd(k1, at(0))?;
        if self.lanes > 2 {
            a.kmovd(k2, at(2))?;
            a.kunpckdq(k1, k2, k1)?;
        }
        let bit = self.constants.bytes(a, &[1 << to; UNIT]);
        a.vpaddb(ZMM[QUANTS].k1(), ZMM[QUANTS], zmmword_ptr(bit))
    }
}
