//! Integer dot products with weight rows in lanes, with AVX-512 VNNI: few rows of x against 16 weight rows as they lie,
//! in any format of blocks.
//!
//! Of each 32 elements of k the rows' quants are brought into registers, transposed: four elements a register, a weight
//! row a lane. Every row of x then meets them, its quants broadcast, four at a time. So weights are read and unpacked
//! once for all rows of x. A group's products are summed exactly, multiplied by x's scale, and added times the weights'
//! scales; then what the offset and x's sum come to: as `lanes_256.rs` does for 8 weight rows, to the same bits.
//!
//! Bits need not be brought down to be multiplied: quants may come 2^n times as large, which is taken off a group's sum
//! ([`Lifted`]). The scales' integers stay transposed in registers for a block, and each group's scale is made when it
//! is wanted. Bytes that hold fields of more than 32 elements are kept in the stack's frame, transposed.

use std::collections::BTreeMap;

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::format::{Bits, Offset, Place, Reading, Scale};
use lapidary_ir::{BLOCK, DType, Format};

use super::fetch::Ahead;
use super::lanes_256::halves;
use super::{Constants, offset};
use crate::micro::dot::{Done, XMM, YMM};
use crate::micro::tile::ZMM;
use crate::micro::{Code, LANE_BLOCK, Lanes, lane_row_bytes};

/// Weight rows, a lane each.
pub(in crate::micro) const LANES: usize = 16;
/// Elements of k whose products a lane adds up at a time, and how often that is done for a block of x.
const STEP: usize = 4;
const STEPS: usize = BLOCK / STEP;
const VECTOR: i32 = 4 * LANES as i32;
/// Bytes of a window: what is transposed of each row at a time, a dword a register.
const WINDOW: usize = 16;

const X: AsmRegister64 = gpr64::rdi;
const W: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const ROWS: AsmRegister64 = gpr64::rcx;
const COUNT: AsmRegister64 = gpr64::rax;
/// The second plane.
const SECOND: AsmRegister64 = gpr64::r9;
/// A row of x, and its results.
const ROW: AsmRegister64 = gpr64::r10;
const RESULTS: AsmRegister64 = gpr64::r11;
const STACK: AsmRegister64 = gpr64::rsp;

/// Registers, by number in [`ZMM`]: the window of the scales' integers.
const INTEGERS: [usize; 4] = [0, 1, 2, 3];
/// The block's scale, and its offset times -8 or 8; of a group.
const FLOATS: [usize; 2] = [4, 5];
const SCALE: [usize; 2] = [6, 7];
/// Two windows, and what turning takes.
const TURNED: [[usize; 4]; 2] = [[8, 9, 10, 11], [12, 13, 14, 15]];
const SPARE: usize = 16;
/// The quants of 32 elements.
const QUANTS: [usize; STEPS] = [17, 18, 19, 20, 21, 22, 23, 24];
const FIELD: AsmRegisterZmm = zmm25;
const T: AsmRegisterZmm = zmm26;
const TOTAL: AsmRegisterZmm = zmm27;
const PART: AsmRegisterZmm = zmm28;
/// Results of one row of x.
const SUM: AsmRegisterZmm = zmm29;

/// A window's four registers, or where they are kept in the frame.
#[derive(Clone, Copy)]
enum Window {
    Held([usize; 4]),
    Kept(i32),
}

/// How many bits up quants are, as they are multiplied.
#[derive(Clone, Copy, Default)]
struct Lifted(usize);

struct Rows<'a> {
    lanes: Lanes,
    format: &'a Format,
    /// What is taken off quants: a power of two, or 0.
    zero: i32,
    /// Bytes of the frame; the windows that are kept there, by their byte in a block, and whether they are yet.
    frame: i32,
    kept: BTreeMap<usize, (i32, bool)>,
    /// Where the integers' window begins in a block.
    integers: Option<usize>,
    constants: Constants,
}

/// With AVX-512 VNNI.
pub(in crate::micro) fn lanes_512(lanes: Lanes) -> Code {
    let Some(format) = lanes.dtype.format() else { unreachable!("blocks have a format") };
    let zero = match format.quants.reading {
        Reading::Less(zero) => zero,
        Reading::Signed | Reading::Table(_) => 128,
    };
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
    let again = uses.into_iter().filter(|(_, uses)| *uses > 1).zip(0..);
    let kept: BTreeMap<_, _> = again.map(|((byte, _), i)| (byte, (i * 4 * VECTOR, false))).collect();
    let frame = kept.len() as i32 * 4 * VECTOR;
    let integers = integers_at(format);
    Rows { lanes, format, zero, frame, kept, integers, constants: Constants::default() }.all()
}

/// Where the 16 bytes begin that all integers of scales and offsets lie in, and floats too if they can.
fn integers_at(format: &Format) -> Option<usize> {
    let groups = 0..format.block / format.group;
    let scales = || [&format.scale].into_iter().chain(offset(format));
    let places = |scale: &Scale| groups.clone().filter_map(|j| scale.times.places(j)).collect::<Vec<_>>();
    let bytes: Vec<usize> =
        scales().flat_map(places).flat_map(|(places, _)| places).map(|place| place.byte).collect();
    let (first, last) = (*bytes.iter().min()?, *bytes.iter().max()?);
    let floats: Vec<usize> = scales().flat_map(|scale| [scale.byte, scale.byte + 1]).collect();
    let all = || floats.iter().copied().chain([first, last]);
    let from = all().min()?.min(format.planes[0] - WINDOW);
    Some(if all().all(|byte| (from..from + WINDOW).contains(&byte)) { from } else { first })
        .map(|from| from.min(format.planes[0] - WINDOW))
}

impl Rows<'_> {
    fn all(&mut self) -> Code {
        let a = &mut CodeAssembler::new(64)?;
        let (k, format) = (self.lanes.k, self.format);
        let before = self.frame;
        a.mov(COUNT, STACK)?;
        a.sub(STACK, self.frame + 2 * VECTOR)?;
        a.and(STACK, -VECTOR)?;
        a.mov(qword_ptr(STACK + before), COUNT)?;
        let ahead = Ahead { lanes: self.lanes, format, rows: LANES };
        ahead.begin(a, W)?;
        a.vpxord(SUM, SUM, SUM)?;
        let mut again = a.create_label();
        if !self.is_alone() {
            a.mov(RESULTS, C)?;
            a.mov(COUNT, ROWS)?;
            a.set_label(&mut again)?;
            a.vmovups(zmmword_ptr(RESULTS), SUM)?;
            a.add(RESULTS, self.lanes.c_stride)?;
            a.dec(COUNT)?;
            a.jnz(again)?;
        }
        if format.planes.len() > 1 {
            a.lea(SECOND, ptr(W + format.plane_at(1, k) as i32))?;
        }
        a.mov(qword_ptr(STACK + (before + 8)), (k / format.block) as i32)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        if let Some(byte) = self.integers {
            self.turn(a, byte, INTEGERS)?;
        }
        self.floats(a)?;
        for first in (0..format.block).step_by(BLOCK) {
            ahead.fetch(a, first)?;
            let lifted = self.unpack(a, first)?;
            self.meet(a, first, lifted)?;
        }
        a.add(X, (format.block / BLOCK * LANE_BLOCK) as i32)?;
        for (plane, bytes) in [W, SECOND].into_iter().zip(format.planes) {
            a.add(plane, *bytes as i32)?;
        }
        a.dec(qword_ptr(STACK + (before + 8)))?;
        a.jnz(again)?;
        if self.is_alone() {
            a.vmovups(zmmword_ptr(C), SUM)?;
        }
        a.mov(STACK, qword_ptr(STACK + before))?;
        a.vzeroupper()?;
        a.ret()?;
        self.constants.emit(a)?;
        a.assemble(0)
    }

    /// Whether there is one row of x alone, whose results stay in a register.
    fn is_alone(&self) -> bool {
        self.lanes.rows == 1
    }

    /// Bytes into the block's first plane (or the second), of row `r`.
    fn at(&self, plane: usize, r: usize, byte: usize) -> AsmMemoryOperand {
        let register = if plane == 0 { W } else { SECOND };
        register + (r * self.format.row_bytes(self.lanes.k) + byte) as i32
    }

    /// A dword in every lane.
    fn each(&mut self, a: &mut CodeAssembler, dword: u32) -> AsmMemoryOperand {
        dword_bcst(self.constants.dwords(a, vec![dword]))
    }

    /// A window, transposed: dword i of row r in lane r of the i-th register. Clobbers [`SPARE`].
    fn turn(&self, a: &mut CodeAssembler, byte: usize, into: [usize; 4]) -> Done {
        for (i, register) in into.into_iter().enumerate() {
            a.vmovdqu(XMM[register], xmmword_ptr(self.at(0, i, byte)))?;
            for quarter in 1..4 {
                let row = xmmword_ptr(self.at(0, 4 * quarter + i, byte));
                a.vinserti32x4(ZMM[register], ZMM[register], row, quarter as u32)?;
            }
        }
        let [p, q, r, s, t] = [into[0], into[1], into[2], into[3], SPARE].map(|i| ZMM[i]);
        a.vpunpckldq(t, p, q)?;
        a.vpunpckhdq(p, p, q)?;
        a.vpunpckldq(q, r, s)?;
        a.vpunpckhdq(s, r, s)?;
        a.vpunpcklqdq(r, p, s)?;
        a.vpunpckhqdq(s, p, s)?;
        a.vpunpcklqdq(p, t, q)?;
        a.vpunpckhqdq(q, t, q)
    }

    /// A window, from the frame if it is there; else it is put there if it is wanted again.
    fn window(&mut self, a: &mut CodeAssembler, byte: usize, into: [usize; 4]) -> Result<Window, IcedError> {
        if let Some(&(at, true)) = self.kept.get(&byte) {
            return Ok(Window::Kept(at));
        }
        self.turn(a, byte, into)?;
        if let Some((at, is_there)) = self.kept.get_mut(&byte) {
            for (i, register) in (0..).zip(into) {
                a.vmovdqa32(zmmword_ptr(STACK + (*at + i * VECTOR)), ZMM[register])?;
            }
            *is_there = true;
        }
        Ok(Window::Held(into))
    }

    /// The block's scale and offset of each row. Clobbers windows' registers.
    fn floats(&mut self, a: &mut CodeAssembler) -> Done {
        let scales = [Some(&self.format.scale), offset(self.format)];
        for (kind, scale) in scales.into_iter().flatten().enumerate() {
            let (to, half) = (FLOATS[kind], TURNED[0][0]);
            let within = self.integers.filter(|from| (*from..from + WINDOW).contains(&scale.byte));
            match within.filter(|_| scale.plane == 0) {
                Some(from) => {
                    let byte = scale.byte - from;
                    let mut word = ZMM[INTEGERS[byte / 4]];
                    if byte % 4 > 0 {
                        a.vpsrld(ZMM[half], word, (byte % 4 * 8) as i32)?;
                        word = ZMM[half];
                    }
                    a.vpmovdw(YMM[half], word)?;
                }
                None => {
                    let parts = [half, TURNED[0][1]];
                    for (part, register) in parts.into_iter().enumerate() {
                        a.vpxor(XMM[register], XMM[register], XMM[register])?;
                        for r in 0..LANES / 2 {
                            let word = word_ptr(self.at(scale.plane, part * LANES / 2 + r, scale.byte));
                            a.vpinsrw(XMM[register], XMM[register], word, r as u32)?;
                        }
                    }
                    a.vinserti128(YMM[half], YMM[half], XMM[parts[1]], 1)?;
                }
            }
            if scale.dtype == DType::BF16 {
                a.vpmovzxwd(ZMM[to], YMM[half])?;
                a.vpslld(ZMM[to], ZMM[to], 16)?;
            } else {
                a.vcvtph2ps(ZMM[to], YMM[half])?;
            }
            if kind > 0 {
                let eighth = match self.format.offset {
                    Offset::Plus(_) => -0.125f32,
                    Offset::None | Offset::Minus(_) => 0.125,
                };
                let eighth = self.each(a, eighth.to_bits());
                a.vmulps(ZMM[to], ZMM[to], eighth)?;
            }
        }
        Ok(())
    }

    /// A group's scale, or what x's sum is worth, times -8: in which register. Clobbers [`FIELD`].
    fn scale(&mut self, a: &mut CodeAssembler, kind: usize, group: usize) -> Result<usize, IcedError> {
        let scale = [Some(&self.format.scale), offset(self.format)][kind];
        let (Some((places, reading)), Some(from)) =
            (scale.and_then(|scale| scale.times.places(group)), self.integers)
        else {
            return Ok(FLOATS[kind]);
        };
        let x = ZMM[SCALE[kind]];
        let mut width = 0;
        for (f, place) in places.iter().enumerate() {
            let byte = place.byte - from;
            let source = ZMM[INTEGERS[byte / 4]];
            let bit = (byte % 4 * 8 + place.shift) as i32;
            if let Reading::Signed = reading {
                let down = if bit < 24 {
                    a.vpslld(x, source, 24 - bit)?;
                    x
                } else {
                    source
                };
                a.vpsrad(x, down, 24)?;
                continue;
            }
            let mask = self.each(a, ((1 << place.width) - 1) << width);
            let to = if f == 0 { x } else { FIELD };
            let moved = shifted(a, to, source, bit - width)?;
            if f == 0 {
                a.vpandd(x, moved, mask)?;
            } else {
                a.vpternlogd(x, moved, mask, OR_MASKED)?;
            }
            width += place.width as i32;
        }
        if let Reading::Less(zero @ 1..) = reading {
            let zero = self.each(a, zero as u32);
            a.vpsubd(x, x, zero)?;
        }
        a.vcvtdq2ps(x, x)?;
        a.vmulps(x, x, ZMM[FLOATS[kind]])?;
        Ok(SCALE[kind])
    }

    /// How far up the quants of the 32 elements from `first` take the least to unpack.
    fn lift(&self, first: usize) -> Lifted {
        let bits = self.format.quants.bits;
        let width: usize = bits.iter().map(|bits| bits.width).sum();
        let Reading::Less(_) = self.format.quants.reading else { return Lifted(0) };
        let moved = |lift: usize| {
            let mut to = lift;
            let mut moved = 0;
            for bits in bits {
                let places = halves(bits, first);
                moved += places.iter().filter(|place| bits.run > 1 && place.shift != to).count();
                to += bits.width;
            }
            // Four registers each; against one instruction for every row and group.
            4 * moved + if lift > 0 { self.lanes.rows * (BLOCK / self.format.group).max(1) } else { 0 }
        };
        Lifted((0..=8 - width).min_by_key(|lift| moved(*lift)).unwrap_or(0))
    }

    /// Quants of the 32 elements from `first`, unsigned, four a register.
    fn unpack(&mut self, a: &mut CodeAssembler, first: usize) -> Result<Lifted, IcedError> {
        let lifted = self.lift(first);
        let mut to = lifted.0;
        for (f, bits) in self.format.quants.bits.iter().enumerate() {
            if bits.run == 1 {
                self.single_bits(a, bits.place(first).byte, to)?;
            } else {
                self.fields(a, bits, (first, to), f == 0)?;
            }
            to += bits.width;
        }
        match self.format.quants.reading {
            Reading::Less(_) => {}
            Reading::Signed => {
                let sign = self.each(a, 0x8080_8080);
                QUANTS.into_iter().try_for_each(|quant| a.vpxord(ZMM[quant], ZMM[quant], sign))?;
            }
            Reading::Table(table) => {
                let bytes: Vec<u8> = table.iter().map(|&v| (i32::from(v) + 128) as u8).collect();
                let table = self.constants.bytes(a, &bytes.repeat(4));
                a.vmovdqu32(T, zmmword_ptr(table))?;
                QUANTS.into_iter().try_for_each(|quant| a.vpshufb(ZMM[quant], T, ZMM[quant]))?;
            }
        }
        Ok(lifted)
    }

    /// A field of the 32 elements from `first`, from bit `to` of each byte; others' bits stay, but of the first.
    fn fields(
        &mut self,
        a: &mut CodeAssembler,
        bits: &Bits,
        (first, to): (usize, usize),
        is_first: bool,
    ) -> Done {
        let places: [Place; 2] = halves(bits, first);
        let low = self.window(a, places[0].byte, TURNED[0])?;
        let same = places[0].byte == places[1].byte;
        let high = if same { low } else { self.window(a, places[1].byte, TURNED[1])? };
        let mask = (((1u32 << bits.width) - 1) << to) * 0x0101_0101;
        let mask = self.each(a, mask);
        for (half, (window, place)) in [low, high].into_iter().zip(places).enumerate() {
            let down = place.shift as i32 - to as i32;
            for i in 0..4 {
                let quant = ZMM[QUANTS[4 * half + i]];
                let through = if is_first { quant } else { FIELD };
                let moved = match window {
                    Window::Held(registers) => shifted_words(a, through, ZMM[registers[i]], down)?,
                    Window::Kept(at) => {
                        let from = zmmword_ptr(STACK + (at + i as i32 * VECTOR));
                        match down {
                            0 => a.vmovdqa32(through, from)?,
                            1.. => a.vpsrlw(through, from, down)?,
                            _ => a.vpsllw(through, from, -down)?,
                        }
                        through
                    }
                };
                match (is_first, bits.width) {
                    (true, 8) if moved == quant => {}
                    (true, 8) => a.vmovdqa32(quant, moved)?,
                    (true, _) => a.vpandd(quant, moved, mask)?,
                    (false, _) => a.vpternlogd(quant, moved, mask, OR_MASKED)?,
                }
            }
        }
        Ok(())
    }

    /// A bit of each element, from four bytes that follow one another: as bit `to` of its quant.
    fn single_bits(&mut self, a: &mut CodeAssembler, byte: usize, to: usize) -> Done {
        let [p, q, ..] = TURNED[0];
        for quarter in 0..4 {
            let into = if quarter == 0 { p } else { q };
            a.vmovd(XMM[into], dword_ptr(self.at(0, 4 * quarter, byte)))?;
            for r in 1..4 {
                let row = dword_ptr(self.at(0, 4 * quarter + r, byte));
                a.vpinsrd(XMM[into], XMM[into], row, r as u32)?;
            }
            if quarter > 0 {
                a.vinserti32x4(ZMM[p], ZMM[p], XMM[q], quarter as u32)?;
            }
        }
        let bit = self.constants.dwords(a, vec![(1 << to) * 0x0101_0101; LANES]);
        a.vmovdqu32(FIELD, zmmword_ptr(bit))?;
        for (step, quant) in QUANTS.into_iter().enumerate() {
            // Each lane's byte of these four elements, four times; each of them looks at its own bit.
            let places: Vec<u8> = (0..VECTOR as usize).map(|i| (i % 16 / 4 * 4 + step / 2) as u8).collect();
            let places = self.constants.bytes(a, &places);
            let each: Vec<u8> = (0..VECTOR as usize).map(|i| 1 << (step % 2 * 4 + i % 4)).collect();
            let each = self.constants.bytes(a, &each);
            a.vpshufb(ZMM[q], ZMM[p], zmmword_ptr(places))?;
            a.vptestmb(k1, ZMM[q], zmmword_ptr(each))?;
            a.vpaddb(ZMM[quant].k1(), ZMM[quant], FIELD)?;
        }
        Ok(())
    }

    /// Every row of x, with these quants.
    fn meet(&mut self, a: &mut CodeAssembler, first: usize, lifted: Lifted) -> Done {
        let groups = BLOCK / self.format.group.min(BLOCK);
        let offset = offset(self.format).is_some();
        // Of two groups in a block the scales are made before rows go round; the offsets' registers serve the second.
        let alone = self.is_alone();
        let mut scales = [[0; 2]; 2];
        for g in 0..groups {
            let group = first / self.format.group + g;
            scales[0][g] = self.scale(a, 0, group)?;
            if g == 0 && groups > 1 && scales[0][0] == SCALE[0] {
                a.vmovdqa32(ZMM[TURNED[1][0]], ZMM[SCALE[0]])?;
                scales[0][0] = TURNED[1][0];
            }
            if offset {
                scales[1][g] = self.scale(a, 1, group)?;
                if g == 0 && groups > 1 && scales[1][0] == SCALE[1] {
                    a.vmovdqa32(ZMM[TURNED[1][1]], ZMM[SCALE[1]])?;
                    scales[1][0] = TURNED[1][1];
                }
            }
        }
        let x = first / BLOCK * LANE_BLOCK;
        let row = if alone { X } else { ROW };
        let word = |i: usize| row + (x + 4 * i) as i32;
        let mut again = a.create_label();
        if !alone {
            a.mov(ROW, X)?;
            a.mov(RESULTS, C)?;
            a.mov(COUNT, ROWS)?;
            a.set_label(&mut again)?;
            a.vmovups(SUM, zmmword_ptr(RESULTS))?;
        }
        for g in 0..groups {
            self.products(a, (g, groups), lifted, &word)?;
            a.vcvtdq2ps(TOTAL, TOTAL)?;
            a.vmulps(TOTAL, TOTAL, dword_bcst(word(0)))?;
            a.vfmadd231ps(SUM, TOTAL, ZMM[scales[0][g]])?;
            if offset && groups > 1 {
                sum_of(a, (g, groups), &word, TOTAL)?;
                a.vcvtdq2ps(TOTAL, TOTAL)?;
                a.vmulps(TOTAL, TOTAL, dword_bcst(word(0)))?;
                a.vfmadd231ps(SUM, TOTAL, ZMM[scales[1][g]])?;
            }
        }
        if offset && groups == 1 {
            a.vfmadd231ps(SUM, ZMM[scales[1][0]], dword_bcst(word(3)))?;
        }
        if !alone {
            a.vmovups(zmmword_ptr(RESULTS), SUM)?;
            a.add(ROW, lane_row_bytes(DType::Q8, self.lanes.k) as i32)?;
            a.add(RESULTS, self.lanes.c_stride)?;
            a.dec(COUNT)?;
            a.jnz(again)?;
        }
        Ok(())
    }

    /// The products of a group, summed in [`TOTAL`]. Clobbers [`PART`].
    fn products(
        &self,
        a: &mut CodeAssembler,
        (g, groups): (usize, usize),
        Lifted(lift): Lifted,
        word: &dyn Fn(usize) -> AsmMemoryOperand,
    ) -> Done {
        if self.zero > 0 {
            sum_of(a, (g, groups), word, TOTAL)?;
            match self.zero.trailing_zeros() as i32 - 3 + lift as i32 {
                0 => {}
                up @ 1.. => a.vpslld(TOTAL, TOTAL, up)?,
                down => a.vpsrad(TOTAL, TOTAL, -down)?,
            }
        } else {
            a.vpxord(TOTAL, TOTAL, TOTAL)?;
        }
        // Of several rows two sums, so that each waits half as long for those before it.
        let sums = if self.is_alone() { [TOTAL, TOTAL] } else { [TOTAL, PART] };
        if !self.is_alone() {
            a.vpxord(PART, PART, PART)?;
        }
        for (step, sum) in (g * STEPS / groups..(g + 1) * STEPS / groups).zip(sums.into_iter().cycle()) {
            a.vpdpbusd(sum, ZMM[QUANTS[step]], dword_bcst(word(4 + step)))?;
        }
        if !self.is_alone() {
            a.vpaddd(TOTAL, TOTAL, PART)?;
        }
        if lift > 0 { a.vpsrad(TOTAL, TOTAL, lift as i32) } else { Ok(()) }
    }
}

/// What `vpternlogd` makes of a register, and of another one where a third has ones: either.
const OR_MASKED: u32 = 0xf8;

/// Dwords moved down by so many bits: through `to`, or as they are.
fn shifted(
    a: &mut CodeAssembler,
    to: AsmRegisterZmm,
    from: AsmRegisterZmm,
    down: i32,
) -> Result<AsmRegisterZmm, IcedError> {
    match down {
        0 => return Ok(from),
        1.. => a.vpsrld(to, from, down)?,
        _ => a.vpslld(to, from, -down)?,
    }
    Ok(to)
}

/// The same of words.
fn shifted_words(
    a: &mut CodeAssembler,
    to: AsmRegisterZmm,
    from: AsmRegisterZmm,
    down: i32,
) -> Result<AsmRegisterZmm, IcedError> {
    match down {
        0 => return Ok(from),
        1.. => a.vpsrlw(to, from, down)?,
        _ => a.vpsllw(to, from, -down)?,
    }
    Ok(to)
}

/// -8 times the sum of x's quants in a group. Clobbers [`T`].
fn sum_of(
    a: &mut CodeAssembler,
    (g, groups): (usize, usize),
    word: &dyn Fn(usize) -> AsmMemoryOperand,
    to: AsmRegisterZmm,
) -> Done {
    match (g, groups) {
        (_, 1) => a.vpbroadcastd(to, dword_ptr(word(1))),
        (0, _) => a.vpbroadcastd(to, dword_ptr(word(2))),
        (_, _) => {
            a.vpbroadcastd(to, dword_ptr(word(1)))?;
            a.vpsubd(to, to, dword_bcst(word(2)))
        }
    }
}
