//! Reductions against f64 loops: sum, mean, max, min, product, argmax of any layout; NaN and ties.

use lapidary_codegen::kernel::{Body, Reduction};
use lapidary_ir::DType::{F16, F32, I32};
use lapidary_ir::Dim::{Fixed, Keys, Rows};

use super::harness::*;

const REDUCTIONS: [Reduction; 6] =
    [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min, Reduction::Prod, Reduction::Argmax];

fn reduced(reduction: Reduction, x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match reduction {
        Reduction::Sum => x.iter().sum(),
        Reduction::Mean => x.iter().sum::<f64>() / x.len() as f64,
        Reduction::Max => max,
        Reduction::Min => x.iter().copied().fold(f64::INFINITY, f64::min),
        Reduction::Prod => x.iter().product(),
        Reduction::Argmax => x.iter().position(|&x| x == max).unwrap_or(0) as f64,
    }
}

#[test]
fn any_shape() {
    let mut random = Random(61);
    for i in 0..360 {
        let reduction = REDUCTIONS[i % 6];
        let (rows, n) = (1 + random.below(20), 1 + random.below(40));
        let keys = rows + random.below(40);
        let mut m = Memory::new(&mut random, rows, keys);
        let last = random.one_of(&[Fixed(n), Fixed(n), Keys, Rows]);
        let outer = match random.below(4) {
            0 => vec![],
            1 => vec![Rows],
            2 => vec![Fixed(1 + random.below(4)), Rows],
            _ => vec![Keys],
        };
        let dtype = random.one_of(&FLOATS);
        // Few values make ties; some are no numbers, of which sums are none either.
        let picks = matches!(reduction, Reduction::Max | Reduction::Min | Reduction::Argmax);
        // Loads widen every finite f16, and no other.
        let holes = picks && dtype != F16 && random.below(2) == 0;
        let kinds = random.one_of(&[4, 1000]);
        let x =
            m.input(&mut random, dtype, &[&outer[..], &[last]].concat(), Layout::Any, |r| match r.below(8) {
                _ if reduction == Reduction::Prod => (r.float() + 2.0) / 2.0,
                0 if holes => f32::NAN,
                1 if holes => f32::NEG_INFINITY,
                2 if holes && kinds == 4 => f32::NAN,
                _ => r.below(kinds) as f32 / kinds as f32 * 8.0 - 5.0,
            });
        let to = if reduction == Reduction::Argmax { I32 } else { F32 };
        let y = m.output(&mut random, to, &[&outer[..], &[Fixed(1)]].concat(), Layout::Any);
        let cpu = random.one_of(&CPUS);
        let got = m.run_rows(&mut random, cpu, Body::Reduce(reduction), &[&x], &y);
        let x = m.read(&x);
        let line = x.len() / got.len();
        let want: Vec<f64> = x.chunks(line).map(|x| reduced(reduction, x)).collect();
        let bound = match reduction {
            Reduction::Sum => 5e-6 * line as f64,
            Reduction::Mean => 5e-6,
            Reduction::Prod => 3e-7 * line as f64 * want.iter().fold(1.0f64, |most, x| most.max(x.abs())),
            Reduction::Max | Reduction::Min | Reduction::Argmax => 0.0,
        };
        assert_close(&format!("{reduction:?} {outer:?} of {last:?}"), F32, &got, &want, |_| bound);
    }
}

/// The first of equals, wherever in its four it lies; of no numbers the first.
#[test]
fn argmax_of_ties_and_nan() {
    let mut random = Random(62);
    for n in 1..19 {
        for first in 0..n {
            let mut m = Memory::new(&mut random, 3, 3);
            let mut i = 0;
            let x = m.input(&mut random, F32, &[Rows, Fixed(n)], Layout::Rows, |_| {
                let (row, at) = (i / n, i % n);
                i += 1;
                match row {
                    0 => {
                        if at < first {
                            1.0
                        } else {
                            2.0
                        }
                    }
                    1 => {
                        if at == first {
                            f32::NEG_INFINITY
                        } else {
                            f32::NAN
                        }
                    }
                    _ => f32::NAN,
                }
            });
            let y = m.output(&mut random, I32, &[Rows, Fixed(1)], Layout::Rows);
            let got = m.run_rows(&mut random, "native", Body::Reduce(Reduction::Argmax), &[&x], &y);
            assert_eq!(got, [first as f64, first as f64, 0.0], "{n} elements");
        }
    }
}
