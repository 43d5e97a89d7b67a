//! Calls of raw microkernels at their edges, and what they must come to: a file for each kind of product, one for what
//! attention is made of, one for packing, one for widening.

mod attention;
mod few;
mod packs;
mod stored;
mod tiles;
mod turns;
mod widenings;

use lapidary_codegen::micro::{Emit, Microkernel, Raw};
use lapidary_codegen::target::Target;

use crate::operands::{Source, Values, float_bytes};

/// An operand in memory, or a number.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    In(Vec<u8>),
    /// Results; one a call.
    Out(Vec<u8>),
    /// Written, of no interest afterwards.
    Work(Vec<u8>),
    /// So many bytes into an operand before.
    Within(usize, usize),
    Number(u64),
}

/// What results must be.
pub(crate) enum Want {
    /// f32: each a value and the size of what was summed up; none stays as it was.
    Floats(Vec<Option<(f64, f64)>>),
    Bytes(Vec<u8>),
    /// bf16, then f32.
    Shares {
        shares: Vec<f64>,
        state: Vec<f64>,
    },
}

/// One call.
pub(crate) struct Case {
    pub(crate) raw: Raw,
    pub(crate) operands: Vec<Operand>,
    pub(crate) want: Want,
}

/// Every case of a row.
pub(crate) fn all(micro: &Microkernel, targets: &[Target], values: Values) -> Vec<Case> {
    let source = &mut Source::new(micro.name.len() as u64, values);
    match micro.emit {
        Emit::RawDot(_) | Emit::PairedDot(_) => few::dots(micro, source),
        Emit::RawLanes(_) | Emit::TileLanes(_) | Emit::SplitLanes(_) | Emit::BlockLanes(_) => {
            few::lanes(micro, source)
        }
        Emit::RawTile(_) => tiles::tiles(micro, source),
        Emit::ConfiguredTile(_) => {
            let mut cases = tiles::tiles(micro, source);
            cases.extend(stored::tiles(micro, source));
            cases
        }
        Emit::IntegerTile(..) => tiles::integer_tiles(micro, source),
        Emit::RawScores(_) => attention::scores(micro, source),
        Emit::RawMix(_) => attention::mixes(micro, source),
        Emit::RawSoften(_) => attention::softenings(source),
        Emit::RawTurn(_) => turns::turns(micro, source, values),
        Emit::RawPack(_) => packs::packs(micro, source),
        Emit::RawWiden(_) | Emit::RawHold(_) => widenings::widenings(micro, targets, source),
        Emit::Dot(_) | Emit::Inline(_) => unreachable!("no raw code"),
    }
}

/// A sum of products: its value and size.
fn dot<'a>(start: f64, pairs: impl Iterator<Item = (&'a f64, f64)>) -> (f64, f64) {
    pairs.fold((start, start.abs()), |(sum, size), (a, b)| (sum + a * b, size + (a * b).abs()))
}

/// What tiles start from: results, padding beside them; as bytes and as numbers.
fn before(source: &mut Source, n: usize) -> (Vec<u8>, Vec<f32>) {
    let floats: Vec<f32> = (0..n).map(|_| source.float()).collect();
    (float_bytes(&floats), floats)
}
