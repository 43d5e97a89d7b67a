//! RoPE kernels against f64: any heads, layout and head_dim, positions as far as a context goes.

use lapidary_codegen::kernel::Body;
use lapidary_ir::DType::{F32, I32};
use lapidary_ir::Dim::{Fixed, Rows};

use super::harness::*;

#[test]
fn any_shape() {
    let mut random = Random(41);
    for _ in 0..100 {
        let (rows, heads, half) = (1 + random.below(20), 1 + random.below(4), 1 + random.below(20));
        let mut m = Memory::new(&mut random, rows, rows);
        let dims = [Fixed(heads), Rows, Fixed(2 * half)];
        let layout = random.one_of(&[Layout::Rows, Layout::Any]);
        let x = m.input(&mut random, F32, &dims, layout, |r| r.float());
        let far = random.one_of(&[4, 300, 8192, 1 << 20]);
        let pos = m.input(&mut random, I32, &[Rows], Layout::Any, |r| r.below(far) as f32);
        let mut i = 0;
        let frequencies = m.input(&mut random, F32, &[Fixed(half)], Layout::Rows, |_| {
            i += 1;
            10000f32.powf(-(i as f32 - 1.0) / half as f32)
        });
        let y = m.output(&mut random, F32, &dims, Layout::Any);
        let cpu = random.one_of(&CPUS);
        let got = m.run_rows(&mut random, cpu, Body::Rope, &[&x, &pos, &frequencies], &y);
        let (x, pos, frequencies) = (m.read(&x), m.read(&pos), m.read(&frequencies));
        let mut want = x.clone();
        for (row, (y, x)) in want.chunks_mut(2 * half).zip(x.chunks(2 * half)).enumerate() {
            for i in 0..half {
                // The angle is of f32, as in the model's own code.
                let angle = f64::from(pos[row % rows] as f32 * frequencies[i] as f32);
                let (sin, cos) = angle.sin_cos();
                y[i] = x[i] * cos - x[half + i] * sin;
                y[half + i] = x[half + i] * cos + x[i] * sin;
            }
        }
        assert_close(&format!("{heads} heads of {half}, positions to {far}"), F32, &got, &want, |_| 6e-7);
    }
}
