//! Raw code over blocks of any format, assembled from the format's description: widening, and dot products.
//!
//! In: a [`Format`]. Out: code that goes over a row's blocks, one block a round, unrolled: first the scales of all its
//! groups in one register, then its elements a register at a time, each the format's own value to the bit. What is not
//! in registers comes from constants behind the code.

mod bf16_512;
mod fetch;
mod lanes_256;
mod lanes_512;
mod meet_256;
mod quants_512;
mod row_256;
mod row_512;
mod row_scales_512;
mod unpack_256;
mod unpack_512;
mod widen_256;
mod widen_512;

use std::collections::BTreeMap;

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::format::{Bits, Numbers, Offset, Place, Reading, Scale};
use lapidary_ir::{BLOCK, Format};

pub(super) use self::bf16_512::Unit;
pub(super) use self::lanes_256::{LANES, lanes_avx_vnni, lanes_avx2};
pub(super) use self::lanes_512::{LANES as LANES_512, lanes_512};
pub(super) use self::row_512::row_512;
pub(super) use self::widen_256::widen_256;
pub(super) use self::widen_512::widen_512;
use super::Widen;
use super::dot::Done;

/// Where the block begins in its first plane, and in its last.
pub(super) const PLANES: [AsmRegister64; 2] = [gpr64::rdi, gpr64::rsi];
/// Where widened elements go.
pub(super) const TO: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;

/// How far ahead weights are fetched, in bytes.
const AHEAD: i32 = 1024;

/// What `vpternlogd` makes of a register, and of another one where a third has ones: either.
const OR_MASKED: u32 = 0xf8;

/// Data behind the code.
#[derive(Default)]
pub(super) struct Constants {
    rows: Vec<(CodeLabel, Vec<u32>)>,
}

impl Constants {
    /// The label of these dwords.
    pub(super) fn dwords(&mut self, a: &mut CodeAssembler, dwords: Vec<u32>) -> CodeLabel {
        if let Some((label, _)) = self.rows.iter().find(|(_, held)| *held == dwords) {
            return *label;
        }
        let label = a.create_label();
        self.rows.push((label, dwords));
        label
    }

    /// The label of these bytes, a multiple of four.
    pub(super) fn bytes(&mut self, a: &mut CodeAssembler, bytes: &[u8]) -> CodeLabel {
        let dwords = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        self.dwords(a, dwords)
    }

    /// Puts them down.
    pub(super) fn emit(&mut self, a: &mut CodeAssembler) -> Done {
        for (label, dwords) in &mut self.rows {
            a.set_label(label)?;
            a.dd(dwords)?;
        }
        Ok(())
    }
}

/// One field of some numbers in a row, to be brought into a register: 16 bytes that hold them, which of these each
/// number's is, how far up, and how wide the field is.
struct Field {
    from: usize,
    bytes: [u8; 16],
    shifts: Vec<u32>,
    width: usize,
}

/// Where the integers of scales lie that take turns, field by field; of `lanes` lanes the last ones again past the end.
fn fields_of(
    format: &Format,
    scales: &[&Scale],
    lanes: std::ops::Range<usize>,
) -> Option<(Vec<Field>, Reading)> {
    let groups = format.block / format.group;
    let places = |j: usize| scales[j % scales.len()].times.places((j / scales.len()).min(groups - 1));
    let (first, reading) = places(0)?;
    let all: Vec<Vec<Place>> = lanes.filter_map(|j| Some(places(j)?.0)).collect();
    let fields = (0..first.len()).map(|f| {
        let lowest = all.iter().map(|p| p[f].byte).min().unwrap_or(0);
        let from = lowest.min(format.planes[0] - 16);
        let mut bytes = [0; 16];
        all.iter().zip(&mut bytes).for_each(|(p, b)| *b = (p[f].byte - from) as u8);
        Field { from, bytes, shifts: all.iter().map(|p| p[f].shift as u32).collect(), width: first[f].width }
    });
    Some((fields.collect(), reading))
}

/// Where a field of the elements from `first` on, and of those half a block of x later, lies.
fn halves(bits: &Bits, first: usize) -> [Place; 2] {
    [bits.place(first), bits.place(first + BLOCK / 2)]
}

/// The windows of 16 bytes, by their first bytes in a block, that hold fields of more than 32 elements.
fn windows_of_more(format: &Format) -> Vec<usize> {
    let mut uses = BTreeMap::<usize, usize>::new();
    for first in (0..format.block).step_by(BLOCK) {
        for bits in format.quants.bits.iter().filter(|bits| bits.run > 1) {
            let [low, high] = halves(bits, first).map(|place| place.byte);
            *uses.entry(low).or_default() += 1;
            if high != low {
                *uses.entry(high).or_default() += 1;
            }
        }
    }
    uses.into_iter().filter(|(_, uses)| *uses > 1).map(|(byte, _)| byte).collect()
}

/// What of a format's offset there is to load.
fn offset(format: &Format) -> Option<&Scale> {
    match &format.offset {
        Offset::None => None,
        Offset::Plus(offset) | Offset::Minus(offset) => Some(offset),
    }
}

/// What a format's quants, made unsigned, are more than they stand for: a power of two, or 0.
fn excess(format: &Format) -> i32 {
    match format.quants.reading {
        Reading::Less(zero) => zero,
        Reading::Signed | Reading::Table(_) => 128,
    }
}

/// What an offset is multiplied by where x's sums come times -8.
fn eighth(format: &Format) -> f32 {
    match format.offset {
        Offset::Plus(_) => -0.125,
        Offset::None | Offset::Minus(_) => 0.125,
    }
}

/// A format's scale, and its offset if it has one.
fn scales_of(format: &Format) -> impl Iterator<Item = &Scale> {
    [&format.scale].into_iter().chain(offset(format))
}

/// The plane of a scale's float, and its place in it.
fn float_at(scale: &Scale) -> AsmMemoryOperand {
    word_ptr(PLANES[scale.plane] + scale.byte as i32)
}

/// Steps the operands on by a block and goes round, then ends the function.
fn finish(a: &mut CodeAssembler, widen: Widen, format: &Format, again: CodeLabel) -> Done {
    for (plane, bytes) in PLANES.into_iter().zip(format.planes) {
        a.add(plane, *bytes as i32)?;
    }
    a.add(TO, (format.block * widen.to.bytes()) as i32)?;
    a.dec(COUNT)?;
    a.jnz(again)?;
    a.vzeroupper()?;
    a.ret()
}

/// Fetches so many bytes of what comes later.
fn fetch(a: &mut CodeAssembler, bytes: usize) -> Done {
    (0..bytes as i32).step_by(64).try_for_each(|line| a.prefetcht0(byte_ptr(PLANES[0] + (AHEAD + line))))
}

/// The table of 16 values that quants of one field of four bits count in.
fn values(numbers: &Numbers) -> Option<[i8; 16]> {
    match numbers.reading {
        Reading::Table(table) => Some(*table),
        Reading::Less(zero) if numbers.bits.len() == 1 && numbers.bits[0].width == 4 => {
            Some(std::array::from_fn(|i| (i as i32 - zero) as i8))
        }
        Reading::Less(_) | Reading::Signed => None,
    }
}
