//! Microkernels: the inner loops of linear kernels and attention, as rows of one table.
//!
//! A row states what it is for (row regime, what the CPU must have) and how its code is emitted. There are two kinds.
//! *Dot* microkernels serve one row of x, or few: weight rows are streams, read as they lie. *Tile* microkernels serve
//! many: outer products over packed operands, `c[n][t] (+)= sum over k of w[n][k] x[k][t]`, with the rows t of x in
//! lanes, so that weights need no transpose. Contract: no allocation, no calls out, no state; pointers and counts in,
//! a block of results out.
//!
//! Add a microkernel as a row of [`MICROKERNELS`] (`table.rs`); of those that fit, the first one is taken. Tests walk
//! the table.

mod aarch64;
mod amx;
mod blocks;
mod cached;
mod clif;
mod dot;
mod dot_groups;
mod dot_int8;
mod held;
mod lanes;
mod lanes_bf16;
mod mix;
pub mod probe;
mod scores;
mod soften;
mod table;
mod tile;
mod tile_int8;
mod widen;

use cranelift_codegen::ir::Value;
use iced_x86::IcedError;
use lapidary_ir::{BLOCK, DType};

pub use self::held::Held;
pub use self::soften::UNSEEN;
pub use self::table::MICROKERNELS;
use crate::emit::{Emitter, Features};

/// One block of dot products: operands of a [`Emit::Dot`].
pub struct Block {
    /// Weights' element type.
    pub dtype: DType,
    /// Address of each weight row of the block (`nr` of them; past the matrix' end the last row again).
    pub weights: Vec<Value>,
    /// Length of the sums.
    pub k: usize,
    /// Address of x, f32 rows contiguous along k.
    pub x: Value,
    /// Bytes from one row of x to the next.
    pub x_stride: i64,
    /// Rows of x (i64).
    pub rows: Value,
    /// Address of the block of results, f32 `(rows, nr)`, contiguous.
    pub c: Value,
}

/// A tile's fixed measures: what the code of a [`Emit::RawTile`] or [`Emit::Inline`] is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// How x is held: f32, bf16 or q8.
    pub operands: DType,
    /// How the weights are held: as x, or with q8 in halves of q8 or q4.
    pub weights: DType,
    /// Rows of x, in lanes: at most the panel's.
    pub columns: usize,
    /// Weight rows.
    pub nr: usize,
    /// Rows of x in a panel: `columns` of them are read.
    pub panel: usize,
    /// Bytes from one weight row to the next.
    pub weight_stride: i32,
    /// Bytes from one row of results to the next.
    pub c_stride: i32,
    /// How many bytes ahead of the first weight row what follows is fetched meanwhile, in the order that it lies in; 0
    /// if it is not. Of [`Emit::ConfiguredTile`] alone.
    pub ahead: i32,
    /// Whether k lies in fours in both operands: see [`Microkernel::has_fours`].
    pub fours: bool,
}

/// Dot products' fixed measures: what the code of a [`Emit::RawDot`] is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// How x is held: f32, or q8 as [`int8_row_bytes`] says.
    pub operands: DType,
    /// Weights' element type.
    pub dtype: DType,
    /// Length of the sums.
    pub k: usize,
    /// Weight rows, each a stream; they follow one another in memory.
    pub rows: usize,
    /// Rows of x: with `rows` a pair of [`Microkernel::dot_shapes`].
    pub xs: usize,
    /// Bytes from one row of x to the next.
    pub x_stride: i32,
    /// Bytes from one row's results to the next's.
    pub c_stride: i32,
}

impl Dot {
    /// Of one row of x.
    pub fn of_one_row(operands: DType, dtype: DType, k: usize, rows: usize) -> Dot {
        Dot { operands, dtype, k, rows, xs: 1, x_stride: 0, c_stride: 0 }
    }
}

/// Dot products with weight rows in lanes: what the code of a [`Emit::RawLanes`] is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lanes {
    /// Weights' element type.
    pub dtype: DType,
    /// Length of the sums.
    pub k: usize,
    /// The most rows of x, at most those that the microkernel takes at a time.
    pub rows: usize,
    /// Bytes from one weight row to the next: quantised ones follow one another.
    pub weight_stride: i32,
    /// Bytes from one row of results to the next.
    pub c_stride: i32,
    /// Sums of a result that blocks go to in turn: one, or [`SUMS`].
    pub sums: usize,
}

/// Scores: what the code of a [`Emit::RawScores`] is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scores {
    /// The keys' element type; not q4.
    pub dtype: DType,
    /// Length of the sums, a multiple of [`BLOCK`].
    pub k: usize,
    /// Keys; they follow one another in memory. At most four.
    pub rows: usize,
    /// Queries: at most 2.
    pub heads: usize,
    /// Bytes from one query to the next.
    pub q_stride: i32,
    /// Bytes from one query's scores to the next's.
    pub c_stride: i32,
}

/// A weighted sum of rows: what the code of a [`Emit::RawMix`] is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mix {
    /// The rows' element type; not q4.
    pub dtype: DType,
    /// Their length; they follow one another in memory.
    pub k: usize,
    /// First column that is summed, a multiple of [`BLOCK`].
    pub column: usize,
    /// Columns, a multiple of [`BLOCK`]: at most those of the microkernel's shape.
    pub columns: usize,
    /// Sums side by side: at most 2.
    pub heads: usize,
    /// Bytes from one head's weights to the next's.
    pub weight_stride: i32,
    /// Bytes from one head's sums to the next's.
    pub c_stride: i32,
}

/// Scores to shares: what the code of a [`Emit::RawSoften`] is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Soften {
    /// Columns of a panel, a multiple of 16: elements from one key's scores to the next's.
    pub panel: usize,
    /// Keys of a block, an even number.
    pub keys: usize,
    /// What products are multiplied by, the bits of an f32.
    pub scale: u32,
    /// What scores are capped by, if they are, the bits of an f32.
    pub cap: Option<u32>,
    /// Whether the columns' maximum is taken off first.
    pub online: bool,
}

/// Widening: what the code of a [`Emit::RawWiden`] is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Widen {
    /// Weights' element type.
    pub from: DType,
    /// f32, bf16, or q8 for blocks as integer tiles read them.
    pub to: DType,
}

/// A function of raw code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Raw {
    /// Operands: x, weights, c, k, accumulate.
    Tile(Tile),
    /// Operands: x (f32 of length k; or, for a row of the table with operands q8, what [`int8_row_bytes`] says),
    /// weights, c (f32, rows).
    Dot(Dot),
    /// Readies this thread for tiles of a row of the table with [`Microkernel::is_configured`]; no operands.
    Configure,
    /// Undoes that; no operands.
    Release,
    /// Operands: x (rounded, as [`lane_row_bytes`] says), weights (the first row), c f32 `[rows][lanes]`, rows of x
    /// (not 0).
    Lanes(Lanes),
    /// Operands: queries (f32), keys (the first row), c f32 `[heads][rows]`, as many bytes as the keys to fetch
    /// meanwhile.
    Scores(Scores),
    /// Operands: values (the first row), weights f32 `[heads][rows]`, c f32 `[heads][columns]` (added to), rows (not
    /// 0), as many bytes to fetch meanwhile.
    Mix(Mix),
    /// Operands: products f32 `[keys][panel]`, which are clobbered; shares bf16 `[keys / 2][panel][2]`; the columns' state,
    /// arrays one after another, `[panel]` each: the first key that a column sees and one past the last (i32), its
    /// denominator, its maximum and what its sums are to be multiplied by (f32); the first key; keys (not 0); columns.
    Soften(Soften),
    /// Operands: the first element's block in its format's first plane, in its last, results, blocks (not 0); of floats
    /// the elements, anything, results, times [`BLOCK`] elements.
    Widen(Widen),
}

impl Raw {
    /// How many operands the function takes, all 64-bit words.
    pub fn operands(self) -> usize {
        match self {
            Raw::Soften(_) => 6,
            Raw::Tile(_) | Raw::Mix(_) => 5,
            Raw::Dot(_) => 3,
            Raw::Lanes(_) | Raw::Scores(_) | Raw::Widen(_) => 4,
            Raw::Configure | Raw::Release => 0,
        }
    }
}

/// A tile's operands in one call.
#[derive(Clone, Copy)]
pub struct TileOperands {
    /// Address of the panel of x, f32 `[k][panel]`, bf16 `[k / 2][panel][2]`, or q8 in blocks: for each scales f32
    /// `[panel]`, -8 times the sums of quants i32 `[panel]`, quants `[8][panel][4]`.
    pub x: Value,
    /// Address of the first weight row, f32 or bf16 `[nr][k]`, or integers as [`Microkernel::held_bytes`] counts them,
    /// rows `weight_stride` apart.
    pub weights: Value,
    /// Address of the results, f32 `[nr][columns]`, rows `c_stride` apart.
    pub c: Value,
    /// Length of the sums, of bf16 in pairs, of q8 in blocks (i64).
    pub k: Value,
    /// 0 to start the sums, else they are added to what `c` holds (i64).
    pub accumulate: Value,
}

/// How a microkernel becomes code.
#[derive(Clone, Copy)]
pub enum Emit {
    /// Dot products, as instructions in the kernel itself.
    Dot(fn(&mut Emitter<'_>, &Block)),
    /// Dot products of one row of x, as machine code for the System V convention of its CPU: see [`Raw::Dot`].
    RawDot(fn(Dot) -> Code),
    /// The same of x rounded to 8 bits, with long rows a result's blocks in turn to [`SUMS`] sums; weights of 4 bits
    /// meet it in pairs of blocks: see [`int8_row_bytes`].
    PairedDot(fn(Dot) -> Code),
    /// The same of a few rows of x, rounded to the operands' type, with weight rows in lanes, as machine code so too:
    /// see [`Raw::Lanes`].
    RawLanes(fn(Lanes) -> Code),
    /// The same in the order of [`Emit::PairedDot`] with long rows, for more rows of x.
    SplitLanes(fn(Lanes) -> Code),
    /// The same of blocks in any format; of many rows too, where no other row reads them as they lie.
    BlockLanes(fn(Lanes) -> Code),
    /// A tile, as instructions in the kernel itself.
    Inline(fn(&mut Emitter<'_>, Tile, &TileOperands)),
    /// A tile, as machine code for the System V x86-64 convention: see [`Raw::Tile`].
    RawTile(fn(Tile) -> Code),
    /// The same, of integers, and how it reads weights.
    IntegerTile(fn(Tile) -> Code, Held),
    /// The same as [`Emit::RawTile`], in tile registers: between [`Raw::Configure`] and [`Raw::Release`].
    ConfiguredTile(fn(Tile) -> Code),
    /// Scores of a few keys, as machine code so too: see [`Raw::Scores`].
    RawScores(fn(Scores) -> Code),
    /// A weighted sum of rows, as machine code so too: see [`Raw::Mix`].
    RawMix(fn(Mix) -> Code),
    /// Scores to shares, as machine code so too: see [`Raw::Soften`].
    RawSoften(fn(Soften) -> Code),
    /// Widening, as machine code so too: see [`Raw::Widen`].
    RawWiden(fn(Widen) -> Code),
    /// The same of quantised rows for integer tiles alone.
    RawHold(fn(Widen) -> Code),
}

/// Machine code, or why it could not be assembled.
pub type Code = Result<Vec<u8>, IcedError>;

/// Sums of a result by [`Emit::PairedDot`] with long rows.
pub const SUMS: usize = 8;

/// The most weight rows that [`Emit::RawDot`] takes at a time; those left over go one by one.
pub const DOT_ROWS: usize = 4;

/// Weight rows of length `k` that [`Emit::RawDot`] takes at a time. Of quantised rows of a KiB or more one: memory
/// serves one stream better than four. Shorter ones end too soon to wait for each one's sum.
pub fn dot_rows(dtype: DType, k: usize) -> usize {
    if dtype.is_quantised() && is_long(dtype, k) { 1 } else { DOT_ROWS }
}

/// Whether weight rows of length `k` have a KiB or more. Of quantised ones [`Emit::PairedDot`] takes several rows of x
/// with these alone: the last blocks of shorter ones, where they are no group, take too much of their time.
pub fn is_long(dtype: DType, k: usize) -> bool {
    const LONG: usize = 1024;
    dtype.row_bytes(k) >= LONG
}

/// A row of the table.
pub struct Microkernel {
    /// Name.
    pub name: &'static str,
    /// How x is held: f32; bf16, in pairs along k, and weights so too; q8, rounded to 8 bits in blocks, for quantised
    /// weights. All but f32 round activations.
    pub operands: DType,
    /// Rows of x in a panel (dot: in registers).
    pub mr: usize,
    /// Columns and weight rows of each shape of tile, the widest first: `columns` that are left over at the end of the
    /// rows take a narrower shape. Dot: one shape.
    pub shapes: &'static [(usize, usize)],
    /// Weight rows of a tile of a linear kernel's tile space, a multiple of every shape's; with packed x also for how
    /// many elements of k they are held at a time, so that what is held and a panel of x stay in cache.
    pub block: (usize, usize),
    /// What the length of the sums must be a multiple of.
    pub kr: usize,
    /// The most rows of a call that it is meant for; 0 if it takes no product of x and weights.
    pub max_rows: usize,
    /// Whether the CPU has what it takes.
    pub runs_on: fn(&Features) -> bool,
    /// Its code.
    pub emit: Emit,
}

/// The most rows of a call that are taken as few: their weights are read where they lie.
pub const FEW_ROWS: usize = 32;

// A name is a row's own.
impl PartialEq for Microkernel {
    fn eq(&self, other: &Microkernel) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Microkernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Microkernel {
    /// Rows of x and weight rows that dot products take together, the most rows of x first, besides one row of x.
    pub fn dot_shapes(&self, dtype: DType) -> &'static [(usize, usize)] {
        match self.emit {
            Emit::RawDot(_) if self.operands == DType::F32 => match self.mr {
                8 => &[(8, 1), (4, 2), (2, 4)],
                _ if dtype.is_quantised() => &[],
                _ => &[(4, 1), (2, 2)],
            },
            Emit::RawDot(_) | Emit::PairedDot(_) => &[(4, 1), (2, 2)],
            _ => &[],
        }
    }

    /// Weight rows of a tile of a linear kernel's tile space.
    pub fn block_rows(&self) -> usize {
        self.block.0
    }

    /// The code of a raw function.
    ///
    /// # Panics
    /// If this microkernel has no such function.
    pub fn assemble(&self, raw: Raw) -> Code {
        match (self.emit, raw) {
            (Emit::RawDot(emit) | Emit::PairedDot(emit), Raw::Dot(dot)) => emit(dot),
            (
                Emit::RawTile(emit) | Emit::IntegerTile(emit, _) | Emit::ConfiguredTile(emit),
                Raw::Tile(tile),
            ) => emit(tile),
            (Emit::ConfiguredTile(_), Raw::Configure) => amx::configure(),
            (Emit::ConfiguredTile(_), Raw::Release) => amx::release(),
            (Emit::RawLanes(emit) | Emit::SplitLanes(emit) | Emit::BlockLanes(emit), Raw::Lanes(lanes)) => {
                emit(lanes)
            }
            (Emit::RawScores(emit), Raw::Scores(scores)) => emit(scores),
            (Emit::RawMix(emit), Raw::Mix(mix)) => emit(mix),
            (Emit::RawSoften(emit), Raw::Soften(soften)) => emit(soften),
            (Emit::RawWiden(emit) | Emit::RawHold(emit), Raw::Widen(widen)) => emit(widen),
            (emit, raw) => unreachable!("{}: {raw:?} of {}", self.name, matches!(emit, Emit::Dot(_))),
        }
    }

    /// Bytes that `n` elements of k of one row of x take in a panel.
    pub fn panel_bytes(&self, n: usize) -> usize {
        match self.operands {
            DType::Q8 => n / BLOCK * tile_int8::PANEL_BLOCK,
            DType::BF16 => n.div_ceil(2) * 4,
            _ => n * 4,
        }
    }

    /// Bytes that `n` elements of a row of weights take as tiles read them.
    pub fn held_bytes(&self, weights: DType, n: usize) -> usize {
        match self.emit {
            Emit::IntegerTile(_, held) => n / BLOCK * held.block_bytes(weights),
            _ => n * self.operands.bytes(),
        }
    }

    /// The most elements of k that a block of weight rows is held for at a time.
    pub fn part(&self) -> usize {
        self.block.1
    }

    /// Whether it reads bf16 in fours of k, as linear kernels bring them: panels of x `[k / 4][panel][4]`, and of two weight
    /// rows four elements each in turn.
    pub fn has_fours(&self) -> bool {
        self.operands == DType::BF16 && self.kr == 4
    }

    /// Whether its tiles run between [`Raw::Configure`] and [`Raw::Release`].
    pub fn is_configured(&self) -> bool {
        matches!(self.emit, Emit::ConfiguredTile(_))
    }

    /// How it reads quantised weights in scratch, if it is a tile of integers.
    pub fn held(&self) -> Option<Held> {
        if let Emit::IntegerTile(_, held) = self.emit { Some(held) } else { None }
    }

    /// Whether it takes x as it holds it for weights that are so.
    fn takes(&self, quantised: Quantised) -> bool {
        match (self.emit, self.operands) {
            (Emit::BlockLanes(_), _) => quantised == Quantised::Blocks,
            (Emit::RawLanes(_), DType::BF16) => quantised == Quantised::Halves,
            (_, DType::Q8) => quantised == Quantised::Own,
            _ => true,
        }
    }

    /// Whether weight rows are its lanes, and x rows rounded as [`lane_row_bytes`] says.
    pub fn has_lanes(&self) -> bool {
        matches!(self.emit, Emit::RawLanes(_) | Emit::SplitLanes(_) | Emit::BlockLanes(_))
    }

    /// Sums of a result that blocks go to in turn where weight rows are its lanes.
    pub fn sums(&self) -> usize {
        if let Emit::SplitLanes(_) = self.emit { SUMS } else { 1 }
    }

    /// The microkernel for calls of up to [`FEW_ROWS`] rows of `k` elements that adds up in this one's order, and so
    /// comes to the same bits, if the CPU has one.
    pub fn of_few_rows(&self, k: usize, features: &Features) -> Option<&'static Microkernel> {
        let one_by_one = match self.emit {
            Emit::IntegerTile(..) => true,
            Emit::RawTile(_) => !self.has_fours(),
            _ => false,
        };
        let same = |m: &&Microkernel| {
            one_by_one
                && m.has_lanes()
                && m.sums() == 1
                && m.operands == self.operands
                && k.is_multiple_of(m.kr)
        };
        MICROKERNELS.iter().filter(same).find(|m| (m.runs_on)(features))
    }

    /// The microkernel for calls of more rows than dot products are good for that adds up in this one's order with long
    /// weight rows, if the CPU has one.
    pub fn of_more_rows(&self, features: &Features) -> Option<&'static Microkernel> {
        let Emit::PairedDot(_) = self.emit else { return None };
        MICROKERNELS.iter().find(|m| m.sums() == SUMS && (m.runs_on)(features))
    }

    /// Whether its code is called, not part of the kernel.
    pub fn is_raw(&self) -> bool {
        !matches!(self.emit, Emit::Dot(_) | Emit::Inline(_))
    }

    /// Whether x comes packed in panels.
    pub fn is_packed(&self) -> bool {
        use Emit::{ConfiguredTile, Inline, IntegerTile, RawTile};
        matches!(self.emit, Inline(_) | RawTile(_) | IntegerTile(..) | ConfiguredTile(_))
    }
}

/// Widening that not only integer tiles ask for.
const TO_FLOATS: Widen = Widen { from: DType::BF16, to: DType::F32 };

/// The widening of weights that the CPU has, if it has one.
pub fn widening(features: &Features, widen: Widen) -> Option<&'static Microkernel> {
    let does = |m: &&Microkernel| match m.emit {
        Emit::RawWiden(_) => true,
        Emit::RawHold(_) => widen.to == DType::Q8,
        _ => false,
    };
    MICROKERNELS.iter().filter(does).find(|m| (m.runs_on)(features))
}

/// The scores of several queries that the CPU has, if it has them.
pub fn scoring(features: &Features) -> Option<&'static Microkernel> {
    MICROKERNELS.iter().find(|m| matches!(m.emit, Emit::RawScores(_)) && (m.runs_on)(features))
}

/// What makes shares of the scores of many rows, rounded to `operands`, that the CPU has, if it has it.
pub fn softening(operands: DType, features: &Features) -> Option<&'static Microkernel> {
    let does = |m: &&Microkernel| matches!(m.emit, Emit::RawSoften(_)) && m.operands == operands;
    MICROKERNELS.iter().filter(does).find(|m| (m.runs_on)(features))
}

/// The weighted sum of rows that the CPU has, if it has one.
pub fn mixing(features: &Features) -> Option<&'static Microkernel> {
    MICROKERNELS.iter().find(|m| matches!(m.emit, Emit::RawMix(_)) && (m.runs_on)(features))
}

/// Bytes of the quants of a row of x rounded to 8 bits: k (i8), and what is left of a pair of blocks.
pub fn int8_quant_bytes(k: usize) -> usize {
    k.next_multiple_of(2 * BLOCK)
}

/// 1.5 times 2^23: this and an integer below 2^22 is a float whose bits are this one's and the integer.
pub const MAGIC: f32 = 12_582_912.0;

/// Bytes of a row of x rounded to 8 bits: quants, then for each block its scale (f32), then for each block the sum of
/// its quants (i32), or for [`Emit::RawDot`] 8 times that and [`MAGIC`] (f32); a multiple of 64. Quants lie as they follow one another, or in pairs of blocks as
/// [`Emit::PairedDot`] reads them: the first halves of both, then their second halves.
pub fn int8_row_bytes(k: usize) -> usize {
    (int8_quant_bytes(k) + k / BLOCK * 8).next_multiple_of(64)
}

/// Bytes of a block of such a row, for [`Emit::RawLanes`]: its scale (f32), -8 times the sum of its quants (i32), the
/// same of the first half of them (i32), the scale times the first of these sums (f32), and the quants.
pub const LANE_BLOCK: usize = 4 * size_of::<f32>() + BLOCK;

/// Bytes of a row of x rounded for [`Emit::RawLanes`]: to 8 bits, block by block; or to bf16.
pub fn lane_row_bytes(operands: DType, k: usize) -> usize {
    match operands {
        DType::BF16 => operands.row_bytes(k),
        _ => k / BLOCK * LANE_BLOCK,
    }
}

/// The microkernel for calls of up to `rows` rows whose x, rows of `k` elements, is held as `operands`.
pub fn select(rows: usize, k: usize, operands: DType, features: &Features) -> &'static Microkernel {
    select_for(rows, k, operands, Quantised::Own, features)
}

/// The same for weights that are so.
pub fn select_for(
    rows: usize,
    k: usize,
    operands: DType,
    quantised: Quantised,
    features: &Features,
) -> &'static Microkernel {
    let fits = |m: &&Microkernel| {
        m.operands == operands
            && m.takes(quantised)
            && rows <= m.max_rows
            && k.is_multiple_of(m.kr)
            && (m.runs_on)(features)
    };
    match MICROKERNELS.iter().find(fits) {
        Some(m) => m,
        None => {
            unreachable!("the portable rows fit everything, and other operands are chosen with their row")
        }
    }
}

/// Whether products in raw code read weights of this type as they lie. Others are widened first, as `lower::hold` does.
pub fn raw_reads(weights: DType) -> bool {
    match weights {
        DType::Block(_) => weights == DType::Q8 || weights == DType::Q4,
        DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Bool => true,
    }
}

/// What products' weights are, as far as it matters to how their x may be rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantised {
    /// Floats are among them, or formats that read x each in its own way.
    No,
    /// None is, and all are bf16.
    Halves,
    /// All in one format that most raw code reads as it lies.
    Own,
    /// All in blocks that [`Emit::BlockLanes`] alone reads.
    Blocks,
}

impl Quantised {
    /// Of weights of these types.
    pub fn of(weights: impl Iterator<Item = DType>) -> Quantised {
        let weights: Vec<DType> = weights.collect();
        if weights.iter().all(|w| *w == DType::BF16) {
            return Quantised::Halves;
        }
        if weights.iter().all(|w| !raw_reads(*w)) {
            return Quantised::Blocks;
        }
        let one = weights[0].is_quantised() && weights.iter().all(|w| *w == weights[0]);
        if one { Quantised::Own } else { Quantised::No }
    }
}

/// The best microkernel for calls of up to `rows` rows of `k` elements: `rounded` says whether it may round
/// activations.
pub fn choose(
    rows: usize,
    k: usize,
    rounded: bool,
    quantised: Quantised,
    features: &Features,
) -> &'static Microkernel {
    let fits = |m: &&Microkernel| {
        let operands = (m.operands == DType::F32 || rounded) && m.takes(quantised);
        // Shorter rows are of models that caches hold: they take longer to turn than dot products do.
        const TURNED: usize = 2048;
        let turned = m.operands == DType::BF16 && m.has_lanes();
        let pays = !turned || DType::BF16.row_bytes(k) >= TURNED;
        // Blocks that CLIF would widen to scratch it multiplies sooner itself.
        let widened = matches!(m.emit, Emit::RawDot(_)) && quantised == Quantised::Blocks;
        let read = !widened || widening(features, TO_FLOATS).is_some();
        operands && pays && read && rows <= m.max_rows && k.is_multiple_of(m.kr) && (m.runs_on)(features)
    };
    match MICROKERNELS.iter().find(fits) {
        Some(m) => m,
        None => unreachable!("the portable rows fit everything"),
    }
}
