//! The loops that attention goes by, as the schedule chose them.

use lapidary_ir::{DType, Dim};
use lapidary_runtime::program::Tiles;

use super::ATTENTION_ROWS;
use crate::micro::Microkernel;

/// The loops that attention goes by: chosen by rows, CPU and how the operands lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionWay {
    /// Many rows: both products in tiles.
    Tiles(QueryTiles),
    /// Few rows, by raw code: of dot products, and of weighted sums.
    Rows(&'static Microkernel, &'static Microkernel),
    /// Few rows, on any CPU.
    Plain,
}

/// How the columns of a tile of attention are made up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryTiles {
    /// Of both products, which says how their factors are held.
    pub micro: &'static Microkernel,
    /// Query heads of a tile.
    pub heads: usize,
    /// Rows of a panel.
    pub rows: usize,
    /// Panels of a tile.
    pub panels: usize,
    /// What makes shares of scores, if there is raw code for it.
    pub soften: Option<&'static Microkernel>,
}

impl AttentionWay {
    /// The tile space of attention by so many rows of `repeat` query heads for each of `groups` KV heads.
    pub fn tiles(self, groups: usize, repeat: usize, rows: Dim) -> Tiles {
        let tiles = match self {
            AttentionWay::Tiles(QueryTiles { heads, rows, panels, .. }) => {
                Tiles { fixed: (groups * repeat.div_ceil(heads)) as u32, rows: (rows * panels) as u32 }
            }
            AttentionWay::Rows(..) | AttentionWay::Plain => {
                Tiles { fixed: groups as u32, rows: ATTENTION_ROWS }
            }
        };
        match rows {
            Dim::Fixed(n) => Tiles { fixed: tiles.fixed * n.div_ceil(tiles.rows as usize) as u32, rows: 0 },
            Dim::Rows | Dim::Keys => tiles,
        }
    }

    /// How products hold their operands.
    pub fn operands(self) -> DType {
        match self {
            AttentionWay::Tiles(tiles) => tiles.micro.operands,
            AttentionWay::Rows(..) | AttentionWay::Plain => DType::F32,
        }
    }
}
