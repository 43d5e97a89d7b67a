//! Products of activations against f64 sums: matmul over any strides, scores of grouped heads.

use lapidary_codegen::kernel::Body;
use lapidary_ir::DType::F32;
use lapidary_ir::Dim::{Fixed, Keys, Rows};

use super::harness::*;

#[test]
fn matmul_of_any_layout() {
    let mut random = Random(51);
    for _ in 0..200 {
        let (rows, k, n) = (1 + random.below(9), 1 + random.below(20), 1 + random.below(20));
        let keys = rows + random.below(20);
        let mut m = Memory::new(&mut random, rows, keys);
        let batch: Vec<_> = (0..random.below(3)).map(|_| Fixed(1 + random.below(3))).collect();
        let [left, inner, right] = random.one_of(&[
            [Rows, Fixed(k), Fixed(n)],
            [Rows, Fixed(k), Keys],
            [Rows, Keys, Fixed(n)],
            [Fixed(n), Fixed(k), Fixed(k)],
            [Rows, Fixed(k), Rows],
        ]);
        let of = |tail: [_; 2]| [&batch[..], &tail].concat();
        let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        let a = m.input(&mut random, dtype, &of([left, inner]), layout, |r| r.float());
        let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        let b = m.input(&mut random, dtype, &of([inner, right]), layout, |r| r.float());
        let y = m.output(&mut random, F32, &of([left, right]), Layout::Any);
        let cpu = random.one_of(&CPUS);
        let got = m.run_rows(&mut random, cpu, Body::Matmul, &[&a, &b], &y);
        let extent = lapidary_codegen::view::Capacity { rows, keys };
        let [left, inner, right] = [left, inner, right].map(|d| extent.of(d));
        let (a, b) = (m.read(&a), m.read(&b));
        let mut want = vec![];
        for (a, b) in a.chunks(left * inner).zip(b.chunks(inner * right)) {
            for a in a.chunks(inner) {
                want.extend(
                    (0..right).map(|j| a.iter().enumerate().map(|(i, a)| a * b[i * right + j]).sum::<f64>()),
                );
            }
        }
        assert_close(&format!("{batch:?} {left} {inner} {right}"), F32, &got, &want, |_| {
            3e-7 * (inner as f64 + 1.0)
        });
    }
}

#[test]
fn scores_of_grouped_heads() {
    let mut random = Random(52);
    for _ in 0..150 {
        let (rows, groups, repeat) = (1 + random.below(9), 1 + random.below(3), 1 + random.below(3));
        let (keys, d) = (rows + random.below(20), random.one_of(&[1, 2, 8, 10, 18, 32]));
        let mut m = Memory::new(&mut random, rows, keys);
        let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        let q = m.input(&mut random, dtype, &[Fixed(groups * repeat), Rows, Fixed(d)], layout, |r| r.float());
        let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        let k = m.input(&mut random, dtype, &[Fixed(groups), Keys, Fixed(d)], layout, |r| r.float());
        let y = m.output(&mut random, F32, &[Fixed(groups * repeat), Rows, Keys], Layout::Any);
        let (scale, cap) =
            (random.one_of(&[1.0, 0.0625, 3.0]), random.one_of(&[None, Some(2.0), Some(50.0)]));
        let cpu = random.one_of(&CPUS);
        let got = m.run_rows(&mut random, cpu, Body::Scores { scale, cap }, &[&q, &k], &y);
        let (q, k) = (m.read(&q), m.read(&k));
        let mut want = vec![];
        for (row, q) in q.chunks(d).enumerate() {
            for k in k[row / rows / repeat * keys * d..][..keys * d].chunks(d) {
                let score = f64::from(scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                want.push(cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()));
            }
        }
        let bound =
            4e-7 * f64::from(scale) * (d as f64 + 1.0) + 1e-6 * f64::from(cap.unwrap_or(0.0)).min(3.0);
        assert_close(&format!("{groups}x{repeat} d {d} {scale} {cap:?}"), F32, &got, &want, |_| bound);
    }
}
