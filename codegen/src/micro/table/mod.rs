//! The table of microkernels.
//!
//! | file | rows |
//! |---|---|
//! | `few` | products of few rows: dot products, weight rows in lanes |
//! | `tiles` | products of many rows |
//! | `beside` | scores, weighted sums, softmax, widening |

mod beside;
mod few;
mod tiles;

use super::Microkernel;

const ROWS: usize = few::ROWS.len() + tiles::ROWS.len() + beside::ROWS.len();

/// Every microkernel; of those that fit, the first one is taken: one for few rows before any tile.
pub const MICROKERNELS: &[Microkernel] = &joined([few::ROWS, tiles::ROWS, beside::ROWS]);

/// The rows of all parts, one part after the other.
const fn joined(parts: [&[Microkernel]; 3]) -> [Microkernel; ROWS] {
    let mut rows = [parts[0][0]; ROWS];
    let (mut part, mut at, mut row) = (0, 0, 0);
    while part < parts.len() {
        if at == parts[part].len() {
            (part, at) = (part + 1, 0);
        } else {
            rows[row] = parts[part][at];
            (at, row) = (at + 1, row + 1);
        }
    }
    rows
}
