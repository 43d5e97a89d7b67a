//! Sums of panels brought to rows.

use lapidary_codegen::micro::{Microkernel, Raw, Turn};

use super::{Case, Operand, Want, before};
use crate::operands::{Source, Values, float_bytes};

/// Whole blocks and ends of them, plain and, of values that need not come out exactly, gated.
pub(super) fn turns(micro: &Microkernel, source: &mut Source, values: Values) -> Vec<Case> {
    let (nr, mr) = micro.shapes[0];
    let sizes = [(1, 1), (nr, mr), (nr + 1, mr - 1), (2 * nr, 2 * mr), (2 * nr - 3, 2 * mr + 5), (3 * nr, 7)];
    let all = sizes.into_iter().flat_map(|size| [false, true].map(|by_rows| (size, by_rows)));
    let all = all.flat_map(|(size, by_rows)| [(size, by_rows, false), (size, by_rows, true)]);
    let all = all.filter(|(.., gated)| !gated || values != Values::Small);
    all.map(|(size, by_rows, gated)| turn(micro, size, by_rows, gated, source)).collect()
}

fn turn(
    micro: &Microkernel,
    (width, rows): (usize, usize),
    by_rows: bool,
    gated: bool,
    source: &mut Source,
) -> Case {
    let panel = if by_rows { width.next_multiple_of(16) + 16 } else { 3 * micro.mr };
    let out_stride = width + 3;
    let height = if by_rows { rows } else { width.next_multiple_of(micro.shapes[0].0) };
    let [mut first, second]: [Vec<f32>; 2] =
        std::array::from_fn(|_| (0..height * panel).map(|_| source.float()).collect());
    // Where the exponential has its ends.
    for (at, &x) in [0.0, -0.0, 12.0, -12.0, 60.0, -60.0, 1e9, -1e9].iter().enumerate() {
        if gated && at < panel {
            first[at] = x;
        }
    }
    let (out, _) = before(source, rows * out_stride);
    let result = |row: usize, column: usize| {
        let at = if by_rows { row * panel + column } else { column * panel + row };
        let [x, up] = [&first, &second].map(|sums| f64::from(sums[at]));
        if !gated {
            return (x, 0.0);
        }
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        (0.5 * x * (1.0 + inner.tanh()) * up, (x * up).abs())
    };
    let want = (0..rows * out_stride).map(|at| {
        let (row, column) = (at / out_stride, at % out_stride);
        (column < width).then(|| result(row, column))
    });
    Case {
        raw: Raw::Turn(Turn { panel, by_rows, gated, out_stride: 4 * out_stride as i32 }),
        want: Want::Floats(want.collect()),
        operands: vec![
            Operand::In(float_bytes(&first)),
            Operand::In(float_bytes(&second)),
            Operand::Out(out),
            Operand::Number(rows as u64),
            Operand::Number(width as u64),
        ],
    }
}
