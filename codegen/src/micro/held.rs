//! How integer tiles read their operands: blocks of weight rows in scratch, and of rows of x in panels.

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType};

use crate::emit::Emitter;

/// How blocks of quantised weight rows are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// Each half of 4 bits of the quants, unsigned, the upper ones first, then the scale (f32).
    Halves,
    /// The quants, unsigned, then the scale (f32).
    Whole,
    /// The quants, signed, then the scale (f32).
    Signed,
    /// Those of two rows in turn, eight at a time, signed, then each row's scale twice (f32). A row begins at its own
    /// first eight.
    Pairs,
}

impl Held {
    /// Bytes of a block of one row.
    pub fn block_bytes(self, weights: DType) -> usize {
        match self {
            Held::Halves => self.halves(weights) * BLOCK + 4,
            Held::Whole | Held::Signed => BLOCK + 4,
            Held::Pairs => BLOCK + 8,
        }
    }

    /// How many numbers a quant is held as.
    pub fn halves(self, weights: DType) -> usize {
        if self == Held::Halves && weights != DType::Q4 { 2 } else { 1 }
    }

    /// What quants are held more than they are.
    pub fn shift(self, weights: DType) -> i64 {
        match self {
            Held::Halves | Held::Whole if weights == DType::Q4 => 8,
            Held::Halves | Held::Whole => 128,
            Held::Signed | Held::Pairs => 0,
        }
    }

    /// How many quants of a row of x follow one another in a panel.
    pub fn run(self) -> usize {
        if self == Held::Pairs { 8 } else { 4 }
    }

    /// Where row `n` begins, in bytes from row 0, of rows `stride` bytes apart.
    pub(crate) fn row(self, e: &mut Emitter<'_>, n: Value, stride: i64) -> Value {
        if self != Held::Pairs {
            return e.scale(n, stride);
        }
        let (one, even) = (e.i64(1), e.i64(!1));
        let pair = e.b.ins().band(n, even);
        let pair = e.scale(pair, stride);
        let odd = e.b.ins().band(n, one);
        let odd = e.scale(odd, self.run() as i64);
        e.b.ins().iadd(pair, odd)
    }
}
