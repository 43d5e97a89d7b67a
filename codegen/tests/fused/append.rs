//! Appends to caches: rounded to nearest even, in their place, and nowhere else; rings wrap.

use lapidary_codegen::kernel::Body;
use lapidary_ir::BLOCK;
use lapidary_ir::DType::{self, BF16, F16, F32};
use lapidary_ir::Dim::{Fixed, Keys, Rows};
use lapidary_ir::interp::Tensor;
use lapidary_runtime::program::Tiles;

use super::harness::*;

/// A number as a dtype holds it.
fn rounded(dtype: DType, x: f64) -> f64 {
    match dtype {
        F16 => half::f16::from_f32(x as f32).to_f64(),
        BF16 => half::bf16::from_f32(x as f32).to_f64(),
        F32 | DType::I32 | DType::Bool | DType::Block(_) => x,
    }
}

#[test]
fn any_shape() {
    let mut random = Random(21);
    for _ in 0..120 {
        let rows = 1 + random.below(20);
        let keys = rows + random.below(50);
        let (groups, d) = (1 + random.below(4), 1 + random.below(40));
        let mut m = Memory::new(&mut random, rows, keys);
        let dims = [Fixed(groups), Rows, Fixed(d)];
        let (dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        // Numbers that overflow, underflow and lie halfway too; but an f16 that is read is finite.
        let mut edges = [65520.0, -65519.9, 1e-8, 5.96e-8, 257.0 / 256.0, 259.0 / 256.0, 3e38, -0.0, 6.1e-5]
            .into_iter()
            .filter(|x: &f32| dtype != F16 || x.abs() < 65504.0);
        let x =
            m.input(&mut random, dtype, &dims, layout, |r| edges.next().unwrap_or_else(|| 3.0 * r.float()));

        let ring = (random.below(2) == 0).then(|| rows + random.below(20));
        let long = ring.unwrap_or(m.capacity.keys);
        let dtype = random.one_of(&FLOATS);
        let axes = [(Fixed(groups), long * d + random.below(3)), (Keys, d), (Fixed(d), 1)];
        let mut cache = view(m.slots.len(), dtype, &axes);
        cache.ring = ring;
        let before = random.floats(groups * axes[0].1);
        m.slots.push(Slot::of(dtype, &before));
        let tiles = Tiles { fixed: groups as u32, rows: 1 };
        let cpu = random.one_of(&CPUS);
        m.run(&mut random, cpu, Body::Append, &[&x], &cache, tiles);

        let x = m.read(&x);
        let mut want: Vec<f64> = before.iter().map(|&x| rounded(dtype, x.into())).collect();
        for (i, &x) in x.iter().enumerate() {
            let (g, t, i) = (i / d / rows, i / d % rows, i % d);
            let key = (keys - rows + t) % ring.unwrap_or(usize::MAX);
            want[g * axes[0].1 + key * d + i] = rounded(dtype, x);
        }
        // The whole cache, so that old keys are seen to stay.
        let got: Vec<f64> = (0..want.len()).map(|i| m.slots[1].get(i as i64)).collect();
        let wrong = (0..want.len()).find(|&i| got[i] != want[i]).map(|i| (i, got[i], want[i]));
        assert_eq!(wrong, None, "{rows} rows to {keys} keys of {dtype}, ring {ring:?}");
    }
}

/// Blocks of 8 bits have the bytes that the interpreter gives them; other rows stay.
#[test]
fn eight_bits() {
    let mut random = Random(22);
    for _ in 0..60 {
        let rows = 1 + random.below(9);
        let keys = rows + random.below(20);
        let (groups, d) = (1 + random.below(3), BLOCK * (1 + random.below(8)));
        let mut m = Memory::new(&mut random, rows, keys);
        let layout = random.one_of(&[Layout::Rows, Layout::Any]);
        // Blocks of any size, of zeros, and with two largest magnitudes; now and then halfway between two quants.
        let size = random.one_of(&[1.0, 1e-3, 1e4, 0.0, 1e-41]);
        let from = random.one_of(&FLOATS[..2]);
        let x = m.input(&mut random, from, &[Fixed(groups), Rows, Fixed(d)], layout, |r| match r.below(9) {
            0 => 127.0 * size,
            1 => -127.0 * size,
            2 => (r.below(200) as f32 - 100.5) * size,
            _ => r.float() * 127.0 * size,
        });
        let ring = (random.below(2) == 0).then(|| rows + random.below(20));
        let long = ring.unwrap_or(m.capacity.keys) + random.below(2);
        let mut cache =
            view(m.slots.len(), DType::Q8, &[(Fixed(groups), long * d), (Keys, d), (Fixed(d), 1)]);
        cache.ring = ring;
        m.slots.push(Slot::quantised(DType::Q8, groups * long, d, &mut random));
        let before = m.slots[1].clone();
        let cpu = random.one_of(&CPUS);
        m.run(&mut random, cpu, Body::Append, &[&x], &cache, Tiles { fixed: groups as u32, rows: 1 });

        let mut want: Vec<Vec<u8>> = (0..groups * long).map(|row| before.row(row).to_vec()).collect();
        for (i, x) in m.read(&x).chunks(d).enumerate() {
            let key = (keys - rows + i % rows) % ring.unwrap_or(usize::MAX);
            let row = Tensor { dtype: DType::Q8, shape: vec![1, d], data: x.to_vec() };
            want[i / rows * long + key] = row.to_bytes();
        }
        for (row, want) in want.iter().enumerate() {
            assert_eq!(m.slots[1].row(row), want, "row {row} of {rows} rows to {keys} keys, ring {ring:?}");
        }
    }
}
