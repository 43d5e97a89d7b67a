//! What raw code is specialised to, and what it is called with: the fixed measures of each kind of function, and its
//! operands.

use cranelift_codegen::ir::Value;
use lapidary_ir::DType;

use super::amx::Shapes;

/// One block of dot products: operands of a [`Emit::Dot`](super::Emit::Dot).
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

/// A tile's fixed measures: what the code of a [`Emit::RawTile`](super::Emit::RawTile) or
/// [`Emit::Inline`](super::Emit::Inline) is specialised to.
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
    /// if it is not. Of [`Emit::ConfiguredTile`](super::Emit::ConfiguredTile) alone.
    pub ahead: i32,
    /// Whether k lies in fours in both operands: see [`Microkernel::has_fours`](super::Microkernel::has_fours).
    pub fours: bool,
    /// What is done meanwhile, if something is. Of [`Emit::ConfiguredTile`](super::Emit::ConfiguredTile), where x and
    /// sums then pass the first cache by, which the weights have to themselves; others
    /// [fetch](super::Microkernel::is_fetching).
    pub streams: Option<Streams>,
}

/// What a tile does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Streams {
    /// What it fetches.
    pub fetched: Fetched,
    /// What it widens, if it does.
    pub widened: Option<Widened>,
}

/// What is fetched in each step: so many lines of so many weight rows as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fetched {
    /// Weight rows.
    pub rows: i32,
    /// Bytes from one of them to the next.
    pub stride: i32,
    /// Lines of each, which follow one another, and the next step's them.
    pub lines: i32,
}

/// What is widened while steps multiply: the elements of weight rows that come next, for a later call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Widened {
    /// Their element type, in blocks.
    pub weights: DType,
    /// Elements of a whole row.
    pub k: usize,
    /// Rows.
    pub rows: i32,
    /// Bytes from one widened row to the next.
    pub stride: i32,
}

/// A tile of weights as they are stored: what the code of a [`Emit::ConfiguredTile`](super::Emit::ConfiguredTile) for
/// these is specialised to. It takes whole rows, as many as the microkernel's block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredTile {
    /// Weights' element type, in blocks.
    pub weights: DType,
    /// Length of the sums, a multiple of [`Microkernel::elements_stored`](super::Microkernel::elements_stored).
    pub k: usize,
    /// Rows of x, in lanes: at most the panel's.
    pub columns: usize,
    /// Rows of x in a panel: `columns` of them are read.
    pub panel: usize,
    /// Bytes from one row of results to the next.
    pub c_stride: i32,
    /// Streams in which the weight rows after these are fetched: see
    /// [`Features::streams`](crate::emit::Features::streams).
    pub streams: usize,
}

/// Dot products' fixed measures: what the code of a [`Emit::RawDot`](super::Emit::RawDot) is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// How x is held: f32, or q8 as [`int8_row_bytes`](super::int8_row_bytes) says.
    pub operands: DType,
    /// Weights' element type.
    pub dtype: DType,
    /// Length of the sums.
    pub k: usize,
    /// Weight rows, each a stream; they follow one another in memory.
    pub rows: usize,
    /// Rows of x: with `rows` a pair of [`Microkernel::dot_shapes`](super::Microkernel::dot_shapes).
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

/// Dot products with weight rows in lanes: what the code of a [`Emit::RawLanes`](super::Emit::RawLanes) is specialised
/// to.
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
    /// Sums of a result that blocks go to in turn: one, or [`SUMS`](super::SUMS).
    pub sums: usize,
    /// Streams in which the weight rows after these are fetched: see
    /// [`Features::streams`](crate::emit::Features::streams).
    pub streams: usize,
}

/// One row of x against weight rows in blocks, far from each other: what the code for these is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row {
    /// Weights' element type.
    pub dtype: DType,
    /// Length of the sums.
    pub k: usize,
}

/// Scores: what the code of a [`Emit::RawScores`](super::Emit::RawScores) is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scores {
    /// The keys' element type; not q4.
    pub dtype: DType,
    /// Length of the sums, a multiple of [`BLOCK`](lapidary_ir::BLOCK).
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

/// A weighted sum of rows: what the code of a [`Emit::RawMix`](super::Emit::RawMix) is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mix {
    /// The rows' element type; not q4.
    pub dtype: DType,
    /// Their length; they follow one another in memory.
    pub k: usize,
    /// First column that is summed, a multiple of [`BLOCK`](lapidary_ir::BLOCK).
    pub column: usize,
    /// Columns, a multiple of [`BLOCK`](lapidary_ir::BLOCK): at most those of the microkernel's shape.
    pub columns: usize,
    /// Sums side by side: at most 2.
    pub heads: usize,
    /// Bytes from one head's weights to the next's.
    pub weight_stride: i32,
    /// Bytes from one head's sums to the next's.
    pub c_stride: i32,
}

/// Scores to shares: what the code of a [`Emit::RawSoften`](super::Emit::RawSoften) is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Soften {
    /// Columns of a panel, a multiple of 16: elements from one key's scores to the next's.
    pub panel: usize,
    /// Elements from one array of the columns' state to the next.
    pub apart: usize,
    /// Keys of a block, an even number.
    pub keys: usize,
    /// What products are multiplied by, the bits of an f32.
    pub scale: u32,
    /// What scores are capped by, if they are, the bits of an f32.
    pub cap: Option<u32>,
    /// Whether the columns' maximum is taken off first.
    pub online: bool,
}

/// Sums of panels to rows: what the code of a [`Emit::RawTurn`](super::Emit::RawTurn) is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn {
    /// Rows of x in a panel, a multiple of 16: elements from one weight row's sums to the next's.
    pub panel: usize,
    /// Whether sums lie by rows of x instead, `panel` elements from one row's to the next's.
    pub by_rows: bool,
    /// Whether a result is the tanh approximation of GELU of the first weight's sum times the second's.
    pub gated: bool,
    /// Bytes from one row of the output to the next.
    pub out_stride: i32,
}

/// Rows of x to lanes of a panel, rounded: what the code of a [`Emit::RawPack`](super::Emit::RawPack) is specialised
/// to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pack {
    /// Rows of x in the panel.
    pub panel: usize,
    /// Bytes from one row of x to the next.
    pub x_stride: i32,
}

/// Widening: what the code of a [`Emit::RawWiden`](super::Emit::RawWiden) is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Widen {
    /// Weights' element type.
    pub from: DType,
    /// f32, bf16, or q8 for blocks as integer tiles read them.
    pub to: DType,
    /// Whether what follows in the row is fetched meanwhile.
    pub fetches: bool,
}

/// A function of raw code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Raw {
    /// Operands: x, weights, c, k, accumulate; if it fetches, where the first line of that is; if it widens too,
    /// what [`WidenOperands`] says.
    Tile(Tile),
    /// Operands: x, weights (the first row), c, scratch of
    /// [`Microkernel::stored_bytes`](super::Microkernel::stored_bytes).
    StoredTile(StoredTile),
    /// Operands: x (f32 of length k; or, for a row of the table with operands q8, what
    /// [`int8_row_bytes`](super::int8_row_bytes) says), weights, c (f32, rows).
    Dot(Dot),
    /// Readies this thread for functions of a row of the table that
    /// [`Microkernel::around`](super::Microkernel::around) has shapes for; no operands.
    Configure(Shapes),
    /// Undoes that; no operands.
    Release,
    /// Operands: x (rounded, as [`lane_row_bytes`](super::lane_row_bytes) says; of
    /// [`Emit::SplitLanes`](super::Emit::SplitLanes) and [`Emit::BlockLanes`](super::Emit::BlockLanes) block by block,
    /// of all `rows` rows), weights (the first row), c f32 `[rows][lanes]`, rows of x (not 0).
    Lanes(Lanes),
    /// Operands: x (rounded, as [`RowUnit`](super::RowUnit) says), weights (the first row), c f32, a quarter of the
    /// weight rows (not 0); they and their results follow one another.
    Row(Row),
    /// Operands: queries (f32), keys (the first row), c f32 `[heads][rows]`, as many bytes as the keys to fetch
    /// meanwhile.
    Scores(Scores),
    /// Operands: values (the first row), weights f32 `[heads][rows]`, c f32 `[heads][columns]` (added to), rows (not
    /// 0), as many bytes to fetch meanwhile.
    Mix(Mix),
    /// Operands: products f32 `[keys][panel]`, which are clobbered; shares bf16 `[keys / 2][panel][2]`; the columns'
    /// state, arrays of which `[panel]` is walked, `apart` elements from one to the next: the first key that a column
    /// sees and one past the last (i32), its denominator, its maximum and what its sums are to be multiplied by (f32);
    /// the first key; keys (not 0); columns.
    Soften(Soften),
    /// Operands: the first weight's sums f32 `[width][panel]` (or by rows), the second's or anything, the output (the
    /// first row's element), rows of x, weight rows (neither 0; sums of whole sixteens of them are read).
    Turn(Turn),
    /// Operands: the first of as many rows of x (f32) as the microkernel takes, the first of their lanes in a panel of
    /// blocks as [`TileOperands`] says, blocks (not 0).
    Pack(Pack),
    /// Operands: the first element's block in its format's first plane, in its last, results, blocks (not 0); of floats
    /// the elements, anything, results, times [`BLOCK`](lapidary_ir::BLOCK) elements.
    Widen(Widen),
}

impl Raw {
    /// How many operands the function takes, all 64-bit words.
    pub fn operands(self) -> usize {
        match self {
            Raw::Soften(_) => 6,
            Raw::Tile(Tile { streams: Some(Streams { widened: Some(_), .. }), .. }) => 10,
            Raw::Tile(Tile { streams: Some(_), .. }) => 6,
            Raw::Tile(_) | Raw::Mix(_) | Raw::Turn(_) => 5,
            Raw::Dot(_) | Raw::Pack(_) => 3,
            Raw::StoredTile(_) | Raw::Lanes(_) | Raw::Row(_) | Raw::Scores(_) | Raw::Widen(_) => 4,
            Raw::Configure(_) | Raw::Release => 0,
        }
    }
}

/// A tile's operands in one call.
#[derive(Clone, Copy)]
pub struct TileOperands {
    /// Address of the panel of x, f32 `[k][panel]`, bf16 `[k / 2][panel][2]`, or q8 in blocks: for each scales f32
    /// `[panel]`, -8 times the sums of quants i32 `[panel]`, quants `[8][panel][4]`.
    pub x: Value,
    /// Address of the first weight row, f32 or bf16 `[nr][k]`, or integers as
    /// [`Microkernel::held_bytes`](super::Microkernel::held_bytes) counts them, rows `weight_stride` apart.
    pub weights: Value,
    /// Address of the results, f32 `[nr][columns]`, rows `c_stride` apart.
    pub c: Value,
    /// Length of the sums, of bf16 in pairs, of q8 in blocks (i64).
    pub k: Value,
    /// 0 to start the sums, else they are added to what `c` holds (i64).
    pub accumulate: Value,
    /// If something is done meanwhile: the address of weights as they are stored that are wanted next, and what is
    /// widened.
    pub streams: Option<(Value, Option<WidenOperands>)>,
}

impl TileOperands {
    /// All of them, as the code takes them.
    pub(crate) fn values(&self) -> Vec<Value> {
        let TileOperands { x, weights, c, k, accumulate, streams } = *self;
        let (fetched, widened) = streams.unzip();
        let widened = widened.flatten().into_iter();
        let widened = widened.flat_map(|w| w.planes.into_iter().chain([w.to, w.rounds]));
        [x, weights, c, k, accumulate].into_iter().chain(fetched).chain(widened).collect()
    }
}

/// What a tile widens in one call.
#[derive(Clone, Copy)]
pub struct WidenOperands {
    /// Addresses of the first row's next block, in its first plane and in its last.
    pub planes: [Value; 2],
    /// Address of the first row's results.
    pub to: Value,
    /// How many times [`Microkernel::elements_stored`](super::Microkernel::elements_stored) of each row (i64).
    pub rounds: Value,
}
