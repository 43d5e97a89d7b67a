//! Which row of the table is taken: by rows of a call, length of the sums, formats of the weights and CPU.

use lapidary_ir::DType;

use super::{Emit, FEW_ROWS, MICROKERNELS, Microkernel, Widen};
use crate::emit::Features;

/// Widening that not only integer tiles ask for.
const TO_FLOATS: Widen = Widen { from: DType::BF16, to: DType::F32, fetches: true };

/// The widening of weights, or what holds them for tiles of integers, that the CPU has, if it has one.
pub fn widening(features: &Features, widen: Widen) -> Option<&'static Microkernel> {
    let holds = widen.to == DType::Q8;
    let does = |m: &&Microkernel| match holds {
        true => matches!(m.emit, Emit::RawHold(_)),
        false => matches!(m.emit, Emit::RawWiden(_)),
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

/// What brings sums of panels to rows that the CPU has, if it has it.
pub fn turning(features: &Features) -> Option<&'static Microkernel> {
    MICROKERNELS.iter().find(|m| matches!(m.emit, Emit::RawTurn(_)) && (m.runs_on)(features))
}

/// What packs rows of x, rounded to 8 bits, that the CPU has, if it has it.
pub fn packing(features: &Features) -> Option<&'static Microkernel> {
    MICROKERNELS.iter().find(|m| matches!(m.emit, Emit::RawPack(_)) && (m.runs_on)(features))
}

/// The weighted sum of rows that the CPU has, if it has one.
pub fn mixing(features: &Features) -> Option<&'static Microkernel> {
    MICROKERNELS.iter().find(|m| matches!(m.emit, Emit::RawMix(_)) && (m.runs_on)(features))
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
    // Shorter rows are of models that caches hold: they take longer to turn, and tiles to begin, than dot products do.
    const LONG: usize = 2048;
    let is_long = DType::BF16.row_bytes(k) >= LONG;
    let fits = |m: &&Microkernel| {
        let operands = (m.operands == DType::F32 || rounded) && m.takes(quantised);
        let turned = !m.operands.is_quantised() && m.has_lanes();
        let pays = !turned || is_long;
        // Blocks that CLIF would widen to scratch it multiplies sooner itself.
        let widened = matches!(m.emit, Emit::RawDot(_)) && quantised == Quantised::Blocks;
        let read = !widened || widening(features, TO_FLOATS).is_some();
        // Tiles of the matrix unit multiply what they widen sooner than vectors what lies.
        let many = !features.amx || rows <= FEW_ROWS || !matches!(m.emit, Emit::BlockLanes(_));
        operands
            && pays
            && read
            && many
            && rows <= m.max_rows
            && k.is_multiple_of(m.kr)
            && (m.runs_on)(features)
    };
    // One row of bf16 tiles read nearly as fast as dot products do, and up to 32 in the same time: in calls of few rows
    // they go before these.
    let by_tiles =
        |m: &&Microkernel| quantised == Quantised::Halves && is_long && m.is_configured() && fits(m);
    match MICROKERNELS.iter().find(by_tiles).or_else(|| MICROKERNELS.iter().find(fits)) {
        Some(m) => m,
        None => unreachable!("the portable rows fit everything"),
    }
}
