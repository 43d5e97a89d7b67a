//! Microkernels: the inner loops of linear kernels and attention, as rows of one table.
//!
//! A row states what it is for (row regime, what the CPU must have) and how its code is emitted. There are two kinds.
//! *Dot* microkernels serve one row of x, or few: weight rows are streams, read as they lie. *Tile* microkernels serve
//! many: outer products over packed operands, `c[n][t] (+)= sum over k of w[n][k] x[k][t]`, with the rows t of x in
//! lanes, so that weights need no transpose. Contract: no allocation, no calls out, no state; pointers and counts in,
//! a block of results out.
//!
//! Add a microkernel as a row of [`MICROKERNELS`] (`table/`); of those that fit, the first one is taken. Tests walk
//! the table.

mod aarch64;
mod amx;
mod amx_stored;
mod amx_widen;
mod blocks;
mod cached;
mod choose;
mod clif;
mod dot;
mod dot_groups;
mod dot_int8;
mod held;
mod hold_256;
mod hold_512;
mod lanes;
mod lanes_amx;
mod lanes_floats;
mod lanes_floats_256;
mod mix;
mod pack_512;
pub mod probe;
mod raw;
mod rounded;
mod scores;
mod soften;
mod table;
mod tile;
mod tile_int8;
mod tile_vnni;
mod turn;
mod widen;

use iced_x86::IcedError;
use lapidary_ir::{BLOCK, DType};

pub use self::amx::Shapes;
pub use self::choose::{
    Quantised, choose, mixing, packing, raw_reads, scoring, select, select_for, softening, turning, widening,
};
pub use self::held::Held;
pub use self::raw::{
    Block, Dot, Fetched, Lanes, Mix, Pack, Raw, Row, Scores, Soften, StoredTile, Streams, Tile, TileOperands,
    Turn, Widen, WidenOperands, Widened,
};
pub use self::rounded::{
    LANE_BLOCK, MAGIC, ROW_BLOCKS, RowUnit, int8_quant_bytes, int8_row_bytes, lane_row_bytes,
};
pub use self::soften::UNSEEN;
pub use self::table::MICROKERNELS;
use crate::emit::{Emitter, Features};

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
    /// The same, with several rows of x in tile registers: between [`Raw::Configure`] and [`Raw::Release`].
    TileLanes(fn(Lanes) -> Code),
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
    /// Sums of panels to rows, as machine code so too: see [`Raw::Turn`].
    RawTurn(fn(Turn) -> Code),
    /// Packing of rounded rows of x, as machine code so too: see [`Raw::Pack`].
    RawPack(fn(Pack) -> Code),
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

/// Whether weight rows of length `k` have a KiB or more. Of quantised ones [`Emit::PairedDot`] takes several rows of x
/// with these alone: the last blocks of shorter ones, where they are no group, take too much of their time.
pub fn is_long(dtype: DType, k: usize) -> bool {
    const LONG: usize = 1024;
    dtype.row_bytes(k) >= LONG
}

/// A row of the table.
#[derive(Clone, Copy)]
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
        let is_raw = matches!(self.emit, Emit::RawDot(_));
        if is_raw && self.operands == DType::F32 {
            return match self.mr {
                8 => &[(8, 1), (4, 2), (2, 4)],
                _ if dtype.is_quantised() => &[],
                _ => &[(4, 1), (2, 2)],
            };
        }
        if is_raw || matches!(self.emit, Emit::PairedDot(_)) { &[(4, 1), (2, 2)] } else { &[] }
    }

    /// Weight rows of length `k` that [`Emit::RawDot`] takes at a time. Of quantised rows of a KiB or more one, for
    /// memory serves one stream better than four, or two that share x where that is loaded one register at a time.
    /// Shorter ones end too soon to wait for each one's sum.
    pub fn dot_rows(&self, dtype: DType, k: usize) -> usize {
        let shares = matches!(self.emit, Emit::RawDot(_)) && self.operands == DType::Q8;
        match dtype.is_quantised() && is_long(dtype, k) {
            true if shares => 2,
            true => 1,
            false => DOT_ROWS,
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
            (Emit::ConfiguredTile(_), Raw::StoredTile(tile)) => amx_stored::tile_stored(tile),
            (Emit::ConfiguredTile(_), Raw::Configure(Shapes::Whole)) => amx::configure(&amx::WHOLE),
            (Emit::TileLanes(_), Raw::Configure(Shapes::Lanes)) => lanes_amx::configure(),
            (Emit::ConfiguredTile(_) | Emit::TileLanes(_), Raw::Release) => amx::release(),
            (
                Emit::RawLanes(emit)
                | Emit::TileLanes(emit)
                | Emit::SplitLanes(emit)
                | Emit::BlockLanes(emit),
                Raw::Lanes(lanes),
            ) => emit(lanes),
            (Emit::RawLanes(_) | Emit::TileLanes(_) | Emit::BlockLanes(_), Raw::Row(row)) => {
                blocks::row_512(row)
            }
            (Emit::RawScores(emit), Raw::Scores(scores)) => emit(scores),
            (Emit::RawMix(emit), Raw::Mix(mix)) => emit(mix),
            (Emit::RawSoften(emit), Raw::Soften(soften)) => emit(soften),
            (Emit::RawTurn(emit), Raw::Turn(turn)) => emit(turn),
            (Emit::RawPack(emit), Raw::Pack(pack)) => emit(pack),
            (Emit::RawWiden(emit) | Emit::RawHold(emit), Raw::Widen(widen)) => emit(widen),
            (emit, raw) => unreachable!("{}: {raw:?} of {}", self.name, matches!(emit, Emit::Dot(_))),
        }
    }

    /// Bytes that `n` elements of k of one row of x take in a panel.
    pub fn panel_bytes(&self, n: usize) -> usize {
        match self.operands {
            DType::Q8 => n / BLOCK * tile_int8::PANEL_BLOCK,
            DType::BF16 => n.div_ceil(2) * 4,
            DType::F32 | DType::F16 | DType::I32 | DType::Bool | DType::Block(_) => n * 4,
        }
    }

    /// Bytes that `n` elements of a row of weights take as tiles read them.
    pub fn held_bytes(&self, weights: DType, n: usize) -> usize {
        match self.held() {
            Some(held) => n / BLOCK * held.block_bytes(weights),
            None => n * self.operands.bytes(),
        }
    }

    /// The most elements of k that a block of weight rows is held for at a time.
    pub fn part(&self) -> usize {
        self.block.1
    }

    /// Whether it reads bf16 in fours of k, as linear kernels bring them: panels of x `[k / 4][panel][4]`, and of two
    /// weight rows four elements each in turn.
    pub fn has_fours(&self) -> bool {
        self.operands == DType::BF16 && self.kr == 4
    }

    /// What its functions run between in calls of at most `most` rows, if they take tile registers:
    /// [`Raw::Configure`] for their shapes, and [`Raw::Release`].
    pub fn around(&self, most: usize) -> Option<[Raw; 2]> {
        let shapes = match self.is_configured() {
            true => Shapes::Whole,
            false if self.has_tiled_lanes(most) => Shapes::Lanes,
            false => return None,
        };
        Some([Raw::Configure(shapes), Raw::Release])
    }

    /// Whether its tiles run between [`Raw::Configure`] and [`Raw::Release`].
    pub fn is_configured(&self) -> bool {
        matches!(self.emit, Emit::ConfiguredTile(_))
    }

    /// Whether tiles of weights that are held fetch the next block of these as it is stored meanwhile.
    pub fn is_fetching(&self) -> bool {
        matches!(self.emit, Emit::IntegerTile(_, Held::Whole))
    }

    /// Elements of stored weight rows that its [`Raw::StoredTile`] widens together, if it takes them so.
    pub fn elements_stored(&self, weights: DType) -> Option<usize> {
        if self.is_configured() { amx_widen::elements(weights) } else { None }
    }

    /// Bytes of scratch that [`Raw::StoredTile`] wants.
    pub fn stored_bytes(&self, weights: DType) -> usize {
        if self.is_configured() { amx_stored::scratch_bytes(weights) } else { 0 }
    }

    /// How it reads quantised weights in scratch, if it is a tile of integers.
    pub fn held(&self) -> Option<Held> {
        if let Emit::IntegerTile(_, held) = self.emit { Some(held) } else { None }
    }

    /// Whether it takes x as it holds it for weights that are so.
    fn takes(&self, quantised: Quantised) -> bool {
        match (self.emit, self.operands) {
            (Emit::BlockLanes(_), _) => quantised == Quantised::Blocks,
            (Emit::RawLanes(_), DType::BF16 | DType::F32) => quantised == Quantised::Halves,
            (_, DType::Q8) => quantised == Quantised::Own,
            _ => true,
        }
    }

    /// Whether weight rows are its lanes, and x rows rounded as [`lane_row_bytes`] says.
    pub fn has_lanes(&self) -> bool {
        use Emit::{BlockLanes, RawLanes, SplitLanes, TileLanes};
        matches!(self.emit, RawLanes(_) | TileLanes(_) | SplitLanes(_) | BlockLanes(_))
    }

    /// Whether it has [`Raw::Row`], for one row of x.
    pub fn has_row(&self) -> bool {
        let is_one = matches!(self.emit, Emit::RawLanes(_) | Emit::TileLanes(_) | Emit::BlockLanes(_));
        is_one && self.operands == DType::Q8 && self.shapes[0].1 == blocks::LANES_512
    }

    /// Whether rows of x meet weight rows in lanes by tile registers in calls of at most `most` rows.
    pub fn has_tiled_lanes(&self, most: usize) -> bool {
        matches!(self.emit, Emit::TileLanes(_)) && most >= lanes_amx::FEWEST
    }

    /// Rows of x that code with weight rows in lanes is made for in calls of at most `most` rows. Tiles read all of
    /// theirs; what those come to that are not there goes nowhere.
    pub fn lane_rows(&self, most: usize) -> usize {
        if self.has_tiled_lanes(most) { self.mr } else { most.min(self.mr) }
    }

    /// Rows of x whose blocks lie side by side where weight rows are its lanes, in calls of at most `most` rows.
    pub fn lane_panel(&self, most: usize) -> usize {
        let by_block = matches!(self.emit, Emit::SplitLanes(_) | Emit::BlockLanes(_));
        if by_block || self.has_tiled_lanes(most) { self.lane_rows(most) } else { 1 }
    }

    /// Sums of a result that blocks go to in turn where weight rows are its lanes.
    pub fn sums(&self) -> usize {
        if let Emit::SplitLanes(_) = self.emit { SUMS } else { 1 }
    }

    /// The microkernel for calls of up to [`FEW_ROWS`] rows of `k` elements that adds up in this one's order, and so
    /// comes to the same bits, if the CPU has one for such weights.
    pub fn of_few_rows(
        &self,
        k: usize,
        quantised: Quantised,
        features: &Features,
    ) -> Option<&'static Microkernel> {
        let one_by_one = matches!(self.emit, Emit::IntegerTile(..))
            || matches!(self.emit, Emit::RawTile(_)) && !self.has_fours();
        let same = |m: &&Microkernel| {
            one_by_one
                && m.has_lanes()
                && !m.has_tiled_lanes(FEW_ROWS)
                && m.sums() == 1
                && m.operands == self.operands
                && (m.takes(quantised) || m.operands != DType::F32)
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
