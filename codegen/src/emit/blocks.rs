//! Elements of blocks, in four lanes, read as their format describes itself.
//!
//! In: a row of whole blocks and the number of an element. Out: quants, a group's scale and offset, or elements, equal
//! to the bit to [`Format::dequantise`]. Nothing here knows a format by name.

use cranelift_codegen::ir::types::{F32, F32X4, I8X16, I32, I32X4};
use cranelift_codegen::ir::{ConstantData, InstBuilder, Value};
use lapidary_ir::Format;
use lapidary_ir::format::{Bits, Numbers, Offset, Reading, Scale, Times};

use super::Emitter;

/// A row of blocks.
#[derive(Clone, Copy)]
pub struct BlockRow {
    /// What they are.
    pub format: &'static Format,
    /// Its address.
    pub address: Value,
    /// Its elements.
    pub k: usize,
}

/// What the elements of a group share.
#[derive(Clone, Copy)]
pub struct Group {
    /// F32X4, in every lane.
    pub scale: Value,
    /// What is added, F32X4, in every lane.
    pub offset: Option<Value>,
}

impl Emitter<'_> {
    /// Elements `i..i + 4`, F32X4; `i` is a multiple of 4.
    pub fn load_block(&mut self, row: BlockRow, i: Value) -> Value {
        let group = self.load_group(row, i);
        let quants = self.load_quants(row, i);
        self.scaled(quants, group)
    }

    /// Elements from their quants.
    pub fn scaled(&mut self, quants: Value, group: Group) -> Value {
        let value = self.b.ins().fmul(quants, group.scale);
        match group.offset {
            Some(offset) => self.b.ins().fadd(value, offset),
            None => value,
        }
    }

    /// What the elements of the group share that element `i` is in.
    pub fn load_group(&mut self, row: BlockRow, i: Value) -> Group {
        let within = self.within(row, i);
        let j = self.b.ins().ushr_imm_u(within, i64::from(row.format.group.trailing_zeros()));
        let scale = self.load_scale(row, &row.format.scale, i, j);
        let offset = match &row.format.offset {
            Offset::None => None,
            Offset::Plus(offset) => Some(self.load_scale(row, offset, i, j)),
            Offset::Minus(offset) => {
                let offset = self.load_scale(row, offset, i, j);
                Some(self.b.ins().fneg(offset))
            }
        };
        Group { scale, offset }
    }

    /// Quants of elements `i..i + 4`, F32X4; `i` is a multiple of 4.
    pub fn load_quants(&mut self, row: BlockRow, i: Value) -> Value {
        let block = self.block(row, 0, i);
        let within = self.within(row, i);
        let numbers = &row.format.quants;
        let mut bytes = None;
        let mut width = 0;
        for bits in numbers.bits {
            let field = self.four_fields(*bits, block, within);
            bytes = Some(match bytes {
                Some(low) => {
                    let high = self.b.ins().ishl_imm_u(field, width);
                    self.b.ins().bor(low, high)
                }
                None => field,
            });
            width += bits.width as i64;
        }
        let Some(bytes) = bytes else { unreachable!("quants have bits") };
        let quants = match numbers.reading {
            Reading::Signed => self.widen_bytes(bytes, true),
            Reading::Less(zero) => {
                let quants = self.widen_bytes(bytes, false);
                if zero == 0 {
                    quants
                } else {
                    let zero = self.splat_int(zero);
                    self.b.ins().isub(quants, zero)
                }
            }
            Reading::Table(table) => {
                let table: Vec<u8> = table.iter().map(|&x| x as u8).collect();
                let table = self.b.func.dfg.constants.insert(ConstantData::from(&table[..]));
                let table = self.b.ins().vconst(I8X16, table);
                let places = self.b.ins().scalar_to_vector(I32X4, bytes);
                let places = self.bitcast(I8X16, places);
                let values = self.b.ins().swizzle(table, places);
                let low = self.b.ins().swiden_low(values);
                self.b.ins().swiden_low(low)
            }
        };
        self.b.ins().fcvt_from_sint(F32X4, quants)
    }

    /// The address of element `i`'s block in a plane.
    fn block(&mut self, row: BlockRow, plane: usize, i: Value) -> Value {
        let number = self.b.ins().ushr_imm_u(i, i64::from(row.format.block.trailing_zeros()));
        let at = self.scale(number, row.format.planes[plane] as i64);
        let at = self.offset(at, row.format.plane_at(plane, row.k) as i64);
        self.b.ins().iadd(row.address, at)
    }

    /// The place of element `i` in its block.
    fn within(&mut self, row: BlockRow, i: Value) -> Value {
        self.b.ins().band_imm_u(i, row.format.block as i64 - 1)
    }

    /// A scale, or an offset as it is stored, of group `j` of element `i`'s block, in every lane.
    fn load_scale(&mut self, row: BlockRow, scale: &Scale, i: Value, j: Value) -> Value {
        let block = self.block(row, scale.plane, i);
        let factor = self.load_readonly(scale.dtype, block, scale.byte as i64, 1);
        let times = match &scale.times {
            Times::One => return factor,
            Times::Numbers(numbers) => self.number(numbers, block, j),
            Times::SixBits { byte, second } => self.six_bits(*byte, *second, block, j),
        };
        let times = self.b.ins().fcvt_from_sint(F32, times);
        let times = self.b.ins().splat(F32X4, times);
        self.b.ins().fmul(factor, times)
    }

    /// One number, an i32.
    fn number(&mut self, numbers: &Numbers, block: Value, j: Value) -> Value {
        let j = self.offset(j, numbers.first as i64);
        let mut number = None;
        let mut width = 0;
        for bits in numbers.bits {
            let (byte, shift) = self.place(*bits, block, j);
            let field = self.load_byte(byte, bits.byte);
            let field = self.field(field, *bits, shift, 1);
            number = Some(match number {
                Some(low) => {
                    let high = self.b.ins().ishl_imm_u(field, width);
                    self.b.ins().bor(low, high)
                }
                None => field,
            });
            width += bits.width as i64;
        }
        let Some(number) = number else { unreachable!("numbers have bits") };
        match numbers.reading {
            Reading::Less(zero) => {
                let zero = self.b.ins().iconst(I32, i64::from(zero as u32));
                self.b.ins().isub(number, zero)
            }
            Reading::Signed => {
                let up = self.b.ins().ishl_imm_u(number, 24);
                self.b.ins().sshr_imm_u(up, 24)
            }
            Reading::Table(_) => unreachable!("scales are no table's"),
        }
    }

    /// Number `j` of one of [`Times::SixBits`]' lists, an i32.
    fn six_bits(&mut self, byte: usize, second: bool, block: Value, j: Value) -> Value {
        // Of the halves of a list the second one differs: this is 0 or 4.
        let half = self.b.ins().band_imm_u(j, 4);
        let low_at = if second { self.offset(j, 4) } else { self.b.ins().iadd(j, half) };
        let low_at = self.b.ins().iadd(block, low_at);
        let low = self.load_byte(low_at, byte);
        let low = if second {
            let half = self.b.ins().ireduce(I32, half);
            self.b.ins().ushr(low, half)
        } else {
            low
        };
        let low = self.b.ins().band_imm_u(low, 15);
        let high_at = self.b.ins().band_imm_u(j, 3);
        let high_at = self.offset(high_at, if second { 4 } else { 0 });
        let high_at = self.b.ins().iadd(block, high_at);
        let high = self.load_byte(high_at, byte);
        let shift = self.b.ins().ushr_imm_u(half, 1);
        let shift = self.offset(shift, 4);
        let shift = self.b.ins().ireduce(I32, shift);
        let high = self.b.ins().ushr(high, shift);
        let high = self.b.ins().band_imm_u(high, 3);
        let high = self.b.ins().ishl_imm_u(high, 4);
        self.b.ins().bor(low, high)
    }

    /// Where the byte of number `i` is, less the field's first, and how far up its bits are (i32).
    fn place(&mut self, bits: Bits, block: Value, i: Value) -> (Value, Value) {
        let fields = 8 / bits.width;
        let run = i64::from(bits.run.trailing_zeros());
        let runs = self.b.ins().ushr_imm_u(i, run + i64::from(fields.trailing_zeros()));
        let at = self.scale(runs, bits.run as i64);
        let in_run = self.b.ins().band_imm_u(i, bits.run as i64 - 1);
        let at = self.b.ins().iadd(at, in_run);
        let byte = self.b.ins().iadd(block, at);
        let shift = self.b.ins().ushr_imm_u(i, run);
        let shift = self.b.ins().band_imm_u(shift, fields as i64 - 1);
        let shift = self.scale(shift, bits.width as i64);
        (byte, self.b.ins().ireduce(I32, shift))
    }

    /// The field of numbers `i..i + 4`, a byte each, an i32.
    fn four_fields(&mut self, bits: Bits, block: Value, i: Value) -> Value {
        let (byte, shift) = self.place(bits, block, i);
        if bits.run > 1 {
            let word = self.b.ins().load(I32, Self::load_flags(true), byte, bits.byte as i32);
            return self.field(word, bits, shift, 0x0101_0101);
        }
        // Four neighbouring bits of a byte, each moved up by 7 more than the one before.
        let byte = self.load_byte(byte, bits.byte);
        let four = self.b.ins().ushr(byte, shift);
        let four = self.b.ins().band_imm_u(four, 15);
        let by = self.b.ins().iconst(I32, 1 | 1 << 7 | 1 << 14 | 1 << 21);
        let spread = self.b.ins().imul(four, by);
        self.b.ins().band_imm_u(spread, 0x0101_0101)
    }

    /// Bits of each byte of a word from `shift` on, or of one byte; `ones` has the lowest bit of each.
    fn field(&mut self, word: Value, bits: Bits, shift: Value, ones: i64) -> Value {
        if bits.width == 8 {
            return word;
        }
        let word = self.b.ins().ushr(word, shift);
        self.b.ins().band_imm_u(word, ones * ((1 << bits.width) - 1))
    }

    /// A byte as an i32.
    fn load_byte(&mut self, address: Value, at: usize) -> Value {
        self.b.ins().uload8(I32, Self::load_flags(true), address, at as i32)
    }
}
