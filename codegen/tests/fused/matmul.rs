//! Products of activations against f64 sums: matmul over any strides, scores of grouped heads.

use lapidary_codegen::kernel::{Body, Product};
use lapidary_codegen::lower::matmul_tiles;
use lapidary_codegen::micro;
use lapidary_codegen::target::{Placement, Target};
use lapidary_codegen::view::{Base, Capacity, View};
use lapidary_ir::DType::F32;
use lapidary_ir::Dim::{Fixed, Keys, Rows};

use super::harness::*;

/// a (.., M, K) against b (.., N, K) by tiles, b packed first; every `repeat` matrices of a meet one of b.
fn by_tiles(
    m: &mut Memory,
    random: &mut Random,
    cpu: &str,
    (a, b, y): (&View, &View, &View),
    (scale, cap, repeat): (f32, Option<f32>, usize),
) -> Vec<f64> {
    let features = Target::new(cpu, Placement::Jit).expect("a target").features;
    let micro = micro::select(usize::MAX, 1, F32, &features);
    let form = matmul_tiles::packed(b, m.capacity, micro);
    let ready = View { base: Base::Slot(m.slots.len()), ..form };
    m.slots.push(Slot::unwritten(F32, m.capacity.elements(&ready.dims())));
    m.run(
        random,
        cpu,
        Body::PackColumns(micro),
        &[b],
        &ready,
        matmul_tiles::pack_tiles(b, m.capacity, micro),
    );
    let body = Body::Product(Product { scale, cap, repeat, micro });
    m.run(random, cpu, body, &[a, &ready], y, matmul_tiles::product_tiles(a, m.capacity, micro))
}

#[test]
fn matmul_by_tiles() {
    let mut random = Random(53);
    for i in 0..120 {
        let (rows, n) = (1 + random.below(70), 1 + random.below(60));
        let k = if i % 8 == 0 { 250 + random.below(300) } else { 1 + random.below(40) };
        let keys = rows + random.below(60);
        let mut m = Memory::new(&mut random, rows, keys);
        let batch: Vec<_> = (0..random.below(3)).map(|_| Fixed(1 + random.below(3))).collect();
        let [left, inner, right] = random.one_of(&[
            [Rows, Fixed(k), Fixed(n)],
            [Rows, Fixed(k), Keys],
            [Rows, Keys, Fixed(n)],
            [Fixed(n), Fixed(k), Fixed(17)],
            [Rows, Fixed(k), Rows],
            [Fixed(n), Rows, Fixed(n)],
        ]);
        let of = |tail: [_; 2]| [&batch[..], &tail].concat();
        let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        let a = m.input(&mut random, dtype, &of([left, inner]), layout, |r| r.float());
        let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        // As columns lie, or as rows of the product's other form.
        let columns = random.below(2) == 0;
        let dims = if columns { of([right, inner]) } else { of([inner, right]) };
        let b = m.input(&mut random, dtype, &dims, layout, |r| r.float());
        let mut order: Vec<usize> = (0..dims.len()).collect();
        order.swap(dims.len() - 2, dims.len() - 1);
        let b = if columns { b } else { b.transposed(&order) };
        let y = m.output(&mut random, F32, &of([left, right]), Layout::Any);
        let cpu = random.one_of(&CPUS);
        let got = by_tiles(&mut m, &mut random, cpu, (&a, &b, &y), (1.0, None, 1));
        let extent = Capacity { rows, keys };
        let [left, inner, right] = [left, inner, right].map(|d| extent.of(d));
        let (a, b) = (m.read(&a), m.read(&b));
        let mut want = vec![];
        for (a, b) in a.chunks(left * inner).zip(b.chunks(inner * right)) {
            for a in a.chunks(inner) {
                want.extend(b.chunks(inner).map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()));
            }
        }
        assert_close(&format!("{cpu} {batch:?} {left} {inner} {right}"), F32, &got, &want, |_| {
            3e-7 * (inner as f64 + 1.0)
        });
    }
}

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
        let got = match random.below(2) {
            0 => m.run_rows(&mut random, cpu, Body::Scores { scale, cap }, &[&q, &k], &y),
            _ => by_tiles(&mut m, &mut random, cpu, (&q, &k, &y), (scale, cap, repeat)),
        };
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
