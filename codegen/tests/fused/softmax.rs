//! Softmax and the mask against f64 loops: ranges of keys, windows, running maximum or none; what is hidden is NaN.

use lapidary_codegen::kernel::{Body, Maximum};
use lapidary_codegen::view::View;
use lapidary_ir::DType::{F32, I32};
use lapidary_ir::Dim::{Fixed, Keys, Rows};

use super::harness::*;

/// The keys that a row sees: (pos - window, pos], of those there are.
pub(crate) fn visible(pos: f64, window: Option<usize>, keys: usize) -> std::ops::Range<usize> {
    let high = (pos as i64 + 1).clamp(0, keys as i64);
    let low = window.map_or(0, |w| (pos as i64 + 1 - w as i64).clamp(0, high));
    low as usize..high as usize
}

/// A window of none, less than, as many as, or more than the keys.
pub(crate) fn window(random: &mut Random, keys: usize) -> Option<usize> {
    match random.below(5) {
        0 => None,
        1 => Some(keys),
        2 => Some(keys + 1 + random.below(9)),
        _ => Some(1 + random.below(keys)),
    }
}

/// Positions of the last rows, or any at all, also of rows that see no key.
fn positions(m: &mut Memory, random: &mut Random) -> View {
    if random.below(3) > 0 {
        return m.positions(random);
    }
    let keys = m.keys;
    m.input(random, I32, &[Rows], Layout::Any, |r| r.below(keys + 12) as f32 - 6.0)
}

#[test]
fn softmax_of_any_range() {
    let mut random = Random(81);
    for i in 0..200 {
        let rows = 1 + random.below(20);
        let keys = rows + random.below(40);
        let mut m = Memory::new(&mut random, rows, keys);
        let ranged = i % 2 == 0;
        let window = if ranged { window(&mut random, keys) } else { None };
        let pos = positions(&mut m, &mut random);
        let some = Fixed(1 + random.below(30));
        let last = if ranged { Keys } else { random.one_of(&[Keys, some]) };
        let heads = 1 + random.below(3);
        let dims = if random.below(2) == 0 { vec![Rows, last] } else { vec![Fixed(heads), Rows, last] };
        let maximum = random.one_of(&[Maximum::Online, Maximum::Bounded]);
        let size = if maximum == Maximum::Bounded { 60.0 } else { random.one_of(&[1.0, 60.0, 3e4]) };
        let n = if last == Keys { keys } else { last.fixed().unwrap() };
        let seen = m.read(&pos);
        let mut at = 0;
        let x = m.input(&mut random, F32, &dims, Layout::Any, |r| {
            let (row, key) = (at / n % rows, at % n);
            at += 1;
            let hidden = ranged && !visible(seen[row], window, n).contains(&key);
            if hidden { f32::NAN } else { size * r.float() }
        });
        let y = m.output(&mut random, F32, &dims, Layout::Any);
        let cpu = random.one_of(&CPUS);
        let body = Body::Softmax { ranged, window, maximum };
        let inputs: &[&View] = if ranged { &[&x, &pos] } else { &[&x] };
        let got = m.run_rows(&mut random, cpu, body, inputs, &y);
        let mut want = m.read(&x);
        for (row, x) in want.chunks_mut(n).enumerate() {
            let range = if ranged { visible(seen[row % rows], window, n) } else { 0..n };
            let max = x[range.clone()].iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = x[range.clone()].iter().map(|x| (x - max).exp()).sum();
            for (key, x) in x.iter_mut().enumerate() {
                *x = if range.contains(&key) { (*x - max).exp() / sum } else { 0.0 };
            }
        }
        assert_close(&format!("{dims:?} window {window:?} {maximum:?}"), F32, &got, &want, |i| {
            // A difference of logits has their rounding, and a share that one's relative error.
            (3e-6 + 6e-8 * 2.0 * f64::from(size)) * want[i] + 1e-37
        });
    }
}

/// Logits that a mask has made -inf count for nothing, and a row of them alone is 0, as in `op`.
#[test]
fn masked_logits() {
    let mut random = Random(82);
    for n in 1..14 {
        let mut m = Memory::new(&mut random, 3, 3);
        let mut at = 0;
        let x = m.input(&mut random, F32, &[Rows, Fixed(n)], Layout::Rows, |r| {
            let row = at / n;
            at += 1;
            if row == 0 || (row == 1 && at % 2 == 0) { f32::NEG_INFINITY } else { r.float() }
        });
        let y = m.output(&mut random, F32, &[Rows, Fixed(n)], Layout::Rows);
        for maximum in [Maximum::Online, Maximum::Bounded] {
            let mut again = Memory { slots: m.slots.clone(), ..m };
            let body = Body::Softmax { ranged: false, window: None, maximum };
            let got = again.run_rows(&mut random, "native", body, &[&x], &y);
            let mut want = m.read(&x);
            for x in want.chunks_mut(n) {
                let sum: f64 = x.iter().map(|x| x.exp()).sum();
                x.iter_mut().for_each(|x| *x = if sum == 0.0 { 0.0 } else { x.exp() / sum });
            }
            assert_close(&format!("{n} logits {maximum:?}"), F32, &got, &want, |i| 1e-6 * want[i]);
        }
    }
}

#[test]
fn mask_of_any_range() {
    let mut random = Random(83);
    for _ in 0..100 {
        let rows = 1 + random.below(20);
        let keys = rows + random.below(40);
        let mut m = Memory::new(&mut random, rows, keys);
        let window = window(&mut random, keys);
        let pos = positions(&mut m, &mut random);
        let heads = 1 + random.below(3);
        let dims = if random.below(2) == 0 { vec![Rows, Keys] } else { vec![Fixed(heads), Rows, Keys] };
        let x = m.input(&mut random, F32, &dims, Layout::Any, |r| r.float());
        let y = m.output(&mut random, F32, &dims, Layout::Any);
        let cpu = random.one_of(&CPUS);
        let got = m.run_rows(&mut random, cpu, Body::WindowMask { window }, &[&x, &pos], &y);
        let (x, seen) = (m.read(&x), m.read(&pos));
        let hidden = |i: usize| !visible(seen[i / keys % rows], window, keys).contains(&(i % keys));
        let want: Vec<f64> = (0..x.len()).map(|i| if hidden(i) { f64::NEG_INFINITY } else { x[i] }).collect();
        assert_eq!(got, want, "window {window:?}");
    }
}
