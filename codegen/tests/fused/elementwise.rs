//! Elementwise kernels against f64: every operator, broadcast operands of any layout, numbers, dtypes.

use lapidary_codegen::kernel::{Body, Elementwise as E};
use lapidary_codegen::view::{Base, View};
use lapidary_ir::DType::{self, Bool, F32, I32};
use lapidary_ir::Dim::{self, Fixed, Rows};

use super::harness::*;

/// An operator, its operands' and its result's dtype, what it means, and whether its first operand is positive.
type Row = (E, &'static [DType], DType, fn(&[f64]) -> f64, bool);

const F: &[DType] = &[F32];
const FF: &[DType] = &[F32, F32];
const II: &[DType] = &[I32, I32];

fn truth(x: bool) -> f64 {
    if x { -1.0 } else { 0.0 }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

const OPERATORS: &[Row] = &[
    (E::Copy, F, F32, |x| x[0], false),
    (E::Copy, &[I32], I32, |x| x[0], false),
    (E::Copy, &[I32], F32, |x| x[0], false),
    (E::Neg, F, F32, |x| -x[0], false),
    (E::Recip, F, F32, |x| 1.0 / x[0], true),
    (E::Sqrt, F, F32, |x| x[0].sqrt(), true),
    (E::Rsqrt, F, F32, |x| 1.0 / x[0].sqrt(), true),
    (E::Exp, F, F32, |x| x[0].exp(), false),
    (E::Tanh, F, F32, |x| x[0].tanh(), false),
    (E::Cos, F, F32, |x| x[0].cos(), false),
    (E::Sin, F, F32, |x| x[0].sin(), false),
    (E::Abs, F, F32, |x| x[0].abs(), false),
    (E::Floor, F, F32, |x| x[0].floor(), false),
    (E::Log, F, F32, |x| x[0].ln(), true),
    (E::Add, FF, F32, |x| x[0] + x[1], false),
    (E::Add, II, I32, |x| x[0] + x[1], false),
    (E::Sub, FF, F32, |x| x[0] - x[1], false),
    (E::Sub, II, I32, |x| x[0] - x[1], false),
    (E::Mul, FF, F32, |x| x[0] * x[1], false),
    (E::Mul, II, I32, |x| x[0] * x[1], false),
    (E::Div, FF, F32, |x| x[0] / x[1], false),
    (E::Pow, FF, F32, |x| x[0].powf(x[1]), true),
    (E::Maximum, FF, F32, |x| x[0].max(x[1]), false),
    (E::Maximum, II, I32, |x| x[0].max(x[1]), false),
    (E::Minimum, FF, F32, |x| x[0].min(x[1]), false),
    (E::Minimum, II, I32, |x| x[0].min(x[1]), false),
    (E::Eq, FF, Bool, |x| truth(x[0] == x[1]), false),
    (E::Eq, II, Bool, |x| truth(x[0] == x[1]), false),
    (E::Lt, FF, Bool, |x| truth(x[0] < x[1]), false),
    (E::Lt, II, Bool, |x| truth(x[0] < x[1]), false),
    (E::Le, FF, Bool, |x| truth(x[0] <= x[1]), false),
    (E::Le, II, Bool, |x| truth(x[0] <= x[1]), false),
    (E::And, &[Bool, Bool], Bool, |x| truth(x[0] != 0.0 && x[1] != 0.0), false),
    (E::Or, &[Bool, Bool], Bool, |x| truth(x[0] != 0.0 || x[1] != 0.0), false),
    (E::Not, &[Bool], Bool, |x| truth(x[0] == 0.0), false),
    (E::Select, &[Bool, F32, F32], F32, |x| if x[0] != 0.0 { x[1] } else { x[2] }, false),
    (E::Select, &[Bool, I32, I32], I32, |x| if x[0] != 0.0 { x[1] } else { x[2] }, false),
    (E::Softcap(3.0), F, F32, |x| 3.0 * (x[0] / 3.0).tanh(), false),
    (E::GeluTanh, F, F32, |x| gelu(x[0]), false),
    (E::GatedGelu, FF, F32, |x| gelu(x[0]) * x[1], false),
];

/// A value that an operand of this dtype may have.
fn value(random: &mut Random, dtype: DType, positive: bool) -> f32 {
    match dtype {
        I32 => random.below(7) as f32 - 3.0,
        Bool => -(random.below(2) as f32),
        F32 | DType::F16 | DType::BF16 if positive => 0.1 + 2.0 * random.float().abs(),
        DType::Block(_) => unreachable!("no elementwise operator takes {dtype}"),
        // Of few values, so that comparisons meet equals.
        F32 | DType::F16 | DType::BF16 => (random.float() * 16.0).round() / 4.0 + 0.0625,
    }
}

/// Some of an output's axes, or their last ones, of length 1 or not: what broadcasts to it.
fn broadcast(random: &mut Random, dims: &[Dim]) -> Vec<Dim> {
    let from = if random.below(3) == 0 { random.below(dims.len() + 1) } else { 0 };
    dims[from..].iter().map(|&d| if random.below(4) == 0 { Fixed(1) } else { d }).collect()
}

/// What a broadcast operand has for each element of the output.
fn stretched(m: &Memory, view: &View, dims: &[Dim]) -> Vec<f64> {
    let count =
        m.read(&super::harness::view(0, I32, &dims.iter().map(|&d| (d, 0)).collect::<Vec<_>>())).len();
    match view.base {
        Base::Number(x) => vec![x.into(); count],
        Base::Integer(x) => vec![x.into(); count],
        Base::Arena(_) | Base::Slot(_) | Base::Cache(_) | Base::Constant(_) => m.read(&view.stretched(dims)),
    }
}

#[test]
fn every_operator() {
    let mut random = Random(71);
    for i in 0..12 * OPERATORS.len() {
        let (op, dtypes, to, f, positive) = OPERATORS[i % OPERATORS.len()];
        let (rows, n) = (1 + random.below(9), 1 + random.below(20));
        let mut m = Memory::new(&mut random, rows, rows + 3);
        let dims = match random.below(6) {
            0 => vec![],
            1 => vec![Fixed(n)],
            2 => vec![Rows, Dim::Keys],
            3 => vec![Fixed(1 + random.below(4)), Rows, Fixed(n)],
            4 => vec![Fixed(n), Rows],
            _ => vec![Rows, Fixed(n)],
        };
        let mut views = vec![];
        for (at, &dtype) in dtypes.iter().enumerate() {
            let positive = positive && at == 0;
            let view = if at > 0 && dtype != Bool && random.below(4) == 0 {
                let x = value(&mut random, dtype, positive);
                let base = if dtype == I32 { Base::Integer(x as i32) } else { Base::Number(x) };
                View { base, ..view(0, dtype, &[]) }
            } else {
                let dims = broadcast(&mut random, &dims);
                // Loads widen.
                let stored = if dtype == F32 { random.one_of(&FLOATS) } else { dtype };
                m.input(&mut random, stored, &dims, Layout::Any, |r| value(r, dtype, positive))
            };
            views.push(view);
        }
        let to = if to == F32 { random.one_of(&[F32, F32, DType::BF16, DType::F16]) } else { to };
        let y = m.output(&mut random, to, &dims, Layout::Any);
        let cpu = random.one_of(&CPUS);
        let got = m.run_rows(&mut random, cpu, Body::Elementwise(op), &views.iter().collect::<Vec<_>>(), &y);
        let operands: Vec<Vec<f64>> = views.iter().map(|v| stretched(&m, v, &dims)).collect();
        let want: Vec<f64> =
            (0..got.len()).map(|i| f(&operands.iter().map(|x| x[i]).collect::<Vec<_>>())).collect();
        let exact = matches!(op, E::Copy | E::Neg | E::Lt | E::Le | E::And | E::Select);
        assert_close(&format!("{op:?} {dtypes:?} to {to} {dims:?}"), to, &got, &want, |i| {
            if exact || to == I32 { 0.0 } else { 3e-6 * (want[i].abs() + 0.1) }
        });
    }
}

/// A base of any sign to a whole power.
#[test]
fn whole_powers() {
    let mut random = Random(72);
    for power in [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0f32] {
        for cpu in CPUS {
            let mut m = Memory::new(&mut random, 5, 5);
            let x = m.input(&mut random, F32, &[Rows, Fixed(7)], Layout::Any, |r| 2.0 * r.float());
            let y = m.output(&mut random, F32, &[Rows, Fixed(7)], Layout::Any);
            let by = View { base: Base::Number(power), ..view(0, F32, &[]) };
            let got = m.run_rows(&mut random, cpu, Body::Elementwise(E::Pow), &[&x, &by], &y);
            let want: Vec<f64> = m.read(&x).iter().map(|x| x.powf(power.into())).collect();
            assert_close(&format!("power {power}"), F32, &got, &want, |i| 1e-6 * want[i].abs());
        }
    }
}

#[test]
fn iota_counts() {
    let mut random = Random(73);
    for to in [F32, I32] {
        for last in [Fixed(1), Fixed(7), Rows, Dim::Keys] {
            let mut m = Memory::new(&mut random, 5, 13);
            let y = m.output(&mut random, to, &[last], Layout::Any);
            let got = m.run_rows(&mut random, "native", Body::Elementwise(E::Iota), &[], &y);
            let want: Vec<f64> = (0..got.len()).map(|i| i as f64).collect();
            assert_eq!(got, want, "{last} {to}");
        }
    }
}
