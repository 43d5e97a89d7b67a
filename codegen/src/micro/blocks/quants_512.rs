//! Quants of any kind as bytes with AVX-512, 64 elements at a time, field by field: for their widening to bf16.

use iced_x86::code_asm::*;
use lapidary_ir::format::{Bits, Place, Reading};

use super::bf16_512::{FIELD, LANE, QUANTS, UNIT, Unit};
use super::{OR_MASKED, PLANES};
use crate::micro::dot::{Done, XMM};
use crate::micro::tile::ZMM;

/// Clobbered where two units are wanted.
const SPARE: usize = 4;

/// Quants that are wanted: of so many times 16 elements from the first on, a byte each, in a register.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) first: usize,
    pub(super) lanes: usize,
    pub(super) to: usize,
}

impl Unit<'_> {
    /// A byte each quant, as its fields come to. Bytes that have fields of both, if two units are wanted, are loaded
    /// once, to the register of [`FIELD`].
    pub(super) fn fields(&mut self, a: &mut CodeAssembler, wanted: &[Wanted]) -> Done {
        let mut to = 0;
        for bits in self.format.quants.bits {
            if bits.run == 1 {
                wanted.iter().try_for_each(|w| self.single_bits(a, bits, w, to))?;
            } else {
                self.field(a, bits, wanted, to)?;
            }
            to += bits.width;
        }
        Ok(())
    }

    /// A byte each quant, less what it is more than it stands for.
    pub(super) fn quants(&mut self, a: &mut CodeAssembler, first: usize) -> Done {
        self.fields(a, &[Wanted { first, lanes: self.lanes, to: QUANTS }])?;
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
    fn field(&mut self, a: &mut CodeAssembler, bits: &Bits, wanted: &[Wanted], to: usize) -> Done {
        let places =
            |w: &Wanted| (0..w.lanes).map(|lane| self.place(bits, w.first, lane)).collect::<Vec<_>>();
        let all: Vec<Vec<Place>> = wanted.iter().map(places).collect();
        let bytes = |places: &[Place]| places.iter().map(|place| place.byte).collect::<Vec<_>>();
        let shared = all.len() > 1 && all.iter().all(|places| bytes(places) == bytes(&all[0]));
        for (i, (w, places)) in wanted.iter().zip(&all).enumerate() {
            let from = if shared || to > 0 { FIELD } else { w.to };
            if i == 0 || !shared {
                load(a, from, places)?;
            }
            let spare = if shared { SPARE } else { from };
            self.cut(a, places, (from, spare), (w.to, to))?;
        }
        Ok(())
    }

    /// Cuts a field out of the bytes in a register, for a register's bytes from bit `to` on. Clobbers the second
    /// register.
    fn cut(
        &mut self,
        a: &mut CodeAssembler,
        places: &[Place],
        (from, spare): (usize, usize),
        (quants, to): (usize, usize),
    ) -> Done {
        let [from, spare, quants] = [from, spare, quants].map(|i| ZMM[i]);
        let turned = if to == 0 { quants } else { spare };
        let up: Vec<u32> = places.iter().map(|place| (32 + to - place.shift) as u32 % 32).collect();
        let x = if up.iter().any(|&u| u != up[0]) {
            let up = up.iter().cycle().take(UNIT / LANE).flat_map(|&u| [u; 4]).collect();
            let up = self.constants.dwords(a, up);
            a.vprolvd(turned, from, zmmword_ptr(up))?;
            turned
        } else if up[0] > 0 {
            a.vprold(turned, from, up[0])?;
            turned
        } else {
            from
        };
        let width = places[0].width;
        if width == 8 {
            return if x == quants { Ok(()) } else { a.vmovdqa32(quants, x) };
        }
        let mask = self.constants.dwords(a, vec![(((1u32 << width) - 1) << to) * 0x0101_0101]);
        if to == 0 {
            return a.vpandd(quants, x, dword_bcst(mask));
        }
        a.vpternlogd(quants, x, dword_bcst(mask), OR_MASKED)
    }

    /// A bit of each element, from four bytes that follow one another, to bit `to` of its quant.
    fn single_bits(&mut self, a: &mut CodeAssembler, bits: &Bits, w: &Wanted, to: usize) -> Done {
        let at = |lane: usize| dword_ptr(PLANES[0] + self.place(bits, w.first, lane).byte as i32);
        a.kmovd(k1, at(0))?;
        if w.lanes > 2 {
            a.kmovd(k2, at(2))?;
            a.kunpckdq(k1, k2, k1)?;
        }
        let bit = self.constants.bytes(a, &[1 << to; UNIT]);
        a.vpaddb(ZMM[w.to].k1(), ZMM[w.to], zmmword_ptr(bit))
    }
}

/// The bytes that hold a field, 16 of each 16 elements.
fn load(a: &mut CodeAssembler, register: usize, places: &[Place]) -> Done {
    let at = |lane: usize| PLANES[0] + places[lane].byte as i32;
    let follow = |lane: usize| places[lane + 1].byte == places[lane].byte + LANE;
    let x = ZMM[register];
    let whole = places.len() == UNIT / LANE;
    if whole && (0..3).all(follow) {
        a.vmovdqu32(x, zmmword_ptr(at(0)))
    } else if whole && follow(0) && follow(2) {
        a.vbroadcasti64x4(x, ymmword_ptr(at(0)))?;
        if places[0].byte != places[2].byte {
            a.vinserti64x4(x, x, ymmword_ptr(at(2)), 1)?;
        }
        Ok(())
    } else {
        a.vmovdqu(XMM[register], xmmword_ptr(at(0)))?;
        (1..places.len()).try_for_each(|lane| a.vinserti32x4(x, x, xmmword_ptr(at(lane)), lane as u32))
    }
}
