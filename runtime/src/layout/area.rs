//! The areas that calls pass each other rows in.

use crate::program::Plan;

/// Memory that calls pass each other rows in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// i32 (T).
    Ids,
    /// i32 (T).
    Positions,
    /// f32 (T, hidden): the residual stream before an even layer.
    Even,
    /// f32 (T, hidden): the residual stream before an odd layer.
    Odd,
    /// f32 (T, hidden): rows that are predicted from.
    Picked,
    /// f32 (T, vocab).
    Logits,
    /// i32 (T).
    Tokens,
}

impl Area {
    /// Every area.
    pub const ALL: [Area; 7] =
        [Area::Ids, Area::Positions, Area::Even, Area::Odd, Area::Picked, Area::Logits, Area::Tokens];

    /// Bytes of a row.
    pub fn row_bytes(self, plan: &Plan) -> usize {
        let word = size_of::<f32>();
        match self {
            Area::Ids | Area::Positions | Area::Tokens => word,
            Area::Even | Area::Odd | Area::Picked => plan.hidden.saturating_mul(word),
            Area::Logits => plan.vocab.saturating_mul(word),
        }
    }

    /// What it is called in an error.
    pub fn name(self) -> &'static str {
        match self {
            Area::Ids => "ids",
            Area::Positions => "positions",
            Area::Even | Area::Odd => "the residual stream",
            Area::Picked => "the rows of a prediction",
            Area::Logits => "logits",
            Area::Tokens => "predicted tokens",
        }
    }
}
