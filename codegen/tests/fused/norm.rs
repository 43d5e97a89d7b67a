//! RMSNorm kernels against f64 loops: any rank, layout and dtype, with and without a residual.

use lapidary_codegen::kernel::{Body, Epilogue, Kernel, Linear};
use lapidary_ir::DType::{self, F32};
use lapidary_ir::Dim::{Fixed, Rows};

use super::harness::*;
use super::linear::{Case, run_whole};

/// A row divided by its root mean square, times 1 + w.
pub(crate) fn norm(row: &mut [f64], w: &[f64], eps: f32) {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    for (x, w) in row.iter_mut().zip(w) {
        *x *= scale * (1.0 + w);
    }
}

#[test]
fn any_shape() {
    let mut random = Random(11);
    for _ in 0..150 {
        let (rows, k) = (1 + random.below(40), 1 + random.below(70));
        let dims = match random.below(3) {
            0 => vec![Fixed(k)],
            1 => vec![Rows, Fixed(k)],
            _ => vec![Fixed(1 + random.below(3)), Rows, Fixed(k)],
        };
        let eps = random.one_of(&[1e-6, 1e-5, 0.1]);
        // Rows of all sizes; of zeros too.
        let size = random.one_of(&[1.0, 1.0, 1e-4, 1e4, 0.0]);
        let mut m = Memory::new(&mut random, rows, rows);
        let float = |r: &mut Random| size * r.float();
        let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        let x = m.input(&mut random, dtype, &dims, layout, float);
        let dtype = random.one_of(&FLOATS);
        let w = m.input(&mut random, dtype, &[Fixed(k)], Layout::Rows, |r| r.float());
        let residual = (random.below(2) == 0).then(|| {
            let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
            m.input(&mut random, dtype, &dims, layout, |r| 2.0 * r.float())
        });
        let dtype = random.one_of(&FLOATS);
        let y = m.output(&mut random, dtype, &dims, Layout::Any);
        let cpu = random.one_of(&CPUS);
        let got = match &residual {
            Some(r) => m.run_rows(&mut random, cpu, Body::AddRmsNorm { eps }, &[r, &x, &w], &y),
            None => m.run_rows(&mut random, cpu, Body::RmsNorm { eps }, &[&x, &w], &y),
        };
        let (mut want, weights) = (m.read(&x), m.read(&w));
        want.chunks_mut(k).for_each(|row| norm(row, &weights, eps));
        let residual = residual.map_or(vec![0.0; want.len()], |r| m.read(&r));
        let normed = want.clone();
        want.iter_mut().zip(&residual).for_each(|(y, r)| *y += r);
        assert_close(&format!("{dims:?} eps {eps}"), dtype, &got, &want, |i| {
            2e-6 * (normed[i].abs() + residual[i].abs()) + 1e-30
        });
    }
}

/// A row's result has the same bits whatever rows are beside it.
#[test]
fn rows_do_not_meet() {
    let mut random = Random(12);
    let mut m = Memory::new(&mut random, 7, 7);
    let dims = [Rows, Fixed(29)];
    let x = m.input(&mut random, F32, &dims, Layout::Rows, |r| r.float());
    let w = m.input(&mut random, F32, &[Fixed(29)], Layout::Rows, |r| r.float());
    let y = m.output(&mut random, F32, &dims, Layout::Rows);
    let all = m.run_rows(&mut random, "native", Body::RmsNorm { eps: 1e-6 }, &[&x, &w], &y);
    for row in 0..7i64 {
        m.rows = 1;
        let mut one = x.clone();
        one.offset += row * x.axes[0].stride;
        let alone = m.run_rows(&mut random, "native", Body::RmsNorm { eps: 1e-6 }, &[&one, &w], &y);
        assert_eq!(alone, all[row as usize * 29..][..29], "row {row}");
    }
}

/// Fusing a norm into a linear kernel changes no bit.
#[test]
fn a_prologue_is_the_norm() {
    let mut random = Random(4);
    for (k, capacity, cpu) in [(7, 1, "native"), (288, 3, "native"), (61, 19, "native"), (61, 5, "x86-64-v2")]
    {
        let mut case = Case {
            cpu,
            capacity,
            rows: capacity,
            k,
            weights: vec![(21, DType::BF16)],
            x: F32,
            output: F32,
            prologue: Some(1e-5),
            epilogue: Epilogue::Store,
            last_row: false,
            rounded: false,
            decoded: false,
        };
        let (fused, mut slots) = case.kernel(&mut random);
        run_whole(&fused, cpu, capacity, &mut slots);
        let want = read(&fused.outputs[0], &slots, capacity, 1);

        let normed = view(slots.len(), F32, &[(Rows, k), (Fixed(k), 1)]);
        slots.push(Slot::unwritten(F32, capacity * k));
        let norm = kernel(
            Body::RmsNorm { eps: 1e-5 },
            fused.inputs[..2].to_vec(),
            vec![normed.clone()],
            Kernel::row_tiles(&normed),
            fused.capacity,
        );
        let machine = Machine::new(&norm, cpu);
        machine.run(capacity, 1, &mut slots, &[(0, machine.tiles(capacity))]);
        case.prologue = None;
        let mut plain = fused.clone();
        let Body::Linear(body) = fused.body.clone() else { unreachable!("a linear kernel") };
        plain.body = Body::Linear(Linear { prologue: None, ..body });
        plain.inputs = vec![normed, fused.inputs[2].clone()];
        run_whole(&plain, cpu, capacity, &mut slots);
        assert_eq!(read(&plain.outputs[0], &slots, capacity, 1), want, "k {k}, {capacity} rows");
    }
}
