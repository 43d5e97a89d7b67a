//! Attention kernels against f64 loops: groups, head_dims, windows, rings, caps, both modes, caches of any dtype. Keys
//! that no row sees are NaN.

use lapidary_codegen::kernel::{AttentionWay, Body, Maximum};
use lapidary_codegen::lower::{attention_parts, attention_way};
use lapidary_codegen::target::{Placement, Target};
use lapidary_codegen::view::View;
use lapidary_ir::DType::{self, F32, I32};
use lapidary_ir::Dim::{Fixed, Keys, Rows};
use lapidary_runtime::program::Tiles;

use super::harness::*;
use super::softmax::{visible, window};

/// A call of attention.
#[derive(Clone, Copy, Debug)]
struct Case {
    cpu: &'static str,
    rows: usize,
    /// Keys before the call's.
    past: usize,
    groups: usize,
    /// Query heads a group.
    repeat: usize,
    head_dim: usize,
    scale: f32,
    cap: Option<f32>,
    window: Option<usize>,
    /// Rows of a cache that wraps.
    ring: Option<usize>,
    maximum: Maximum,
    cache: DType,
    /// Positions of all sorts, not those of the last rows.
    lost: bool,
    /// Whether many rows may round both products' factors to bf16.
    rounded: bool,
}

impl Case {
    fn random(random: &mut Random) -> Case {
        let rows = random.one_of(&[1, 1, 2, 3, 4, 5, 7, 8, 9, 17, 40]);
        let past = random.one_of(&[0, 1, 3, 4, 30, 70]);
        let keys = rows + past;
        let window = window(random, keys);
        let ring = window.filter(|_| random.below(2) == 0).map(|w| w + rows + random.below(3));
        let maximum = random.one_of(&[Maximum::Online, Maximum::Bounded]);
        let cache = random.one_of(&[DType::F32, DType::BF16, DType::F16, DType::Q8]);
        let head_dim = if cache == DType::Q8 {
            random.one_of(&[32, 64, 96])
        } else {
            random.one_of(&[1, 2, 4, 6, 8, 10, 16, 18, 32, 36, 64])
        };
        let cap = random.one_of(&[None, Some(2.0), Some(50.0)]);
        // Bounded logits are within 60: by the cap, or as |q| and |k| are below 1.
        let far = if maximum == Maximum::Bounded && cap.is_none() { 50.0 / head_dim as f32 } else { 20.0 };
        Case {
            cpu: random.one_of(&CPUS),
            rows,
            past,
            groups: random.one_of(&[1, 1, 2, 3, 4]),
            repeat: random.one_of(&[1, 2, 2, 3, 4, 5]),
            head_dim,
            scale: random.one_of(&[(head_dim as f32).sqrt().recip(), 0.0625, far]),
            cap,
            window,
            ring,
            maximum,
            cache,
            lost: ring.is_none() && random.below(4) == 0,
            rounded: random.below(3) == 0,
        }
    }

    fn body(&self, parts: usize, way: AttentionWay) -> Body {
        let Case { scale, cap, window, maximum, .. } = *self;
        Body::Attention { scale, cap, window, maximum, parts, way }
    }

    /// Runs the kernel of q, k, v and positions, in parts and merged where the compiler would.
    fn run(&self, m: &mut Memory, random: &mut Random, inputs: [&View; 4], y: &View) -> Vec<f64> {
        let features = Target::new(self.cpu, Placement::Jit).expect("a target").features;
        let views = inputs.map(View::clone);
        let way = attention_way(&views, self.rounded, m.capacity.rows, &features);
        let tiles = way.tiles(self.groups, self.repeat, Rows);
        match attention_parts(way, &views, self.window, m.capacity) {
            None => m.run(random, self.cpu, self.body(1, way), &inputs, y, tiles),
            Some((parts, width)) => {
                let dims = [Rows, Fixed(self.groups * self.repeat), Fixed(parts), Fixed(width)];
                let held = m.output(random, F32, &dims, Layout::Rows);
                let tiles = Tiles { fixed: tiles.fixed * parts as u32, ..tiles };
                m.run(random, self.cpu, self.body(parts, way), &inputs, &held, tiles);
                let merge = Body::MergeAttention { window: self.window, maximum: self.maximum };
                m.run_rows(random, self.cpu, merge, &[&held, inputs[3]], y)
            }
        }
    }

    /// A cache whose visible keys alone are numbers.
    fn cache(&self, m: &mut Memory, random: &mut Random, seen: &[f64]) -> View {
        let (d, long) = (self.head_dim, self.ring.unwrap_or(m.capacity.keys));
        if self.cache == DType::Q8 {
            let long = long + random.below(2);
            let axes = [(Fixed(self.groups), long * d), (Keys, d), (Fixed(d), 1)];
            let view = View { ring: self.ring, ..view(m.slots.len(), self.cache, &axes) };
            let mut slot = Slot::quantised(self.cache, self.groups * long, d, random);
            let is_seen = |key| seen.iter().any(|&pos| visible(pos, self.window, m.keys).contains(&key));
            let stored: Vec<usize> =
                (0..m.keys).filter(|&k| is_seen(k)).map(|k| k % self.ring.unwrap_or(usize::MAX)).collect();
            for row in (0..self.groups * long).filter(|row| !stored.contains(&(row % long))) {
                slot.poison_row(row);
            }
            m.slots.push(slot);
            return view;
        }
        let axes = [(Fixed(self.groups), long * d + random.below(3)), (Keys, d), (Fixed(d), 1)];
        let view = View { ring: self.ring, ..view(m.slots.len(), self.cache, &axes) };
        let mut slot = Slot::poisoned(self.cache, self.groups * axes[0].1);
        for (i, at) in elements(&view, m.rows, m.keys).into_iter().enumerate() {
            let key = i / d % m.keys;
            if seen.iter().any(|&pos| visible(pos, self.window, m.keys).contains(&key)) {
                slot.set(at as usize, random.float());
            }
        }
        m.slots.push(slot);
        view
    }

    fn check(&self, random: &mut Random) {
        let (heads, d, rows, keys) =
            (self.groups * self.repeat, self.head_dim, self.rows, self.past + self.rows);
        let mut m = Memory::new(random, rows, keys);
        let pos = if self.lost {
            m.input(random, I32, &[Rows], Layout::Any, |r| r.below(keys + 12) as f32 - 6.0)
        } else {
            m.positions(random)
        };
        let seen = m.read(&pos);
        let q = m.input(random, F32, &[Fixed(heads), Rows, Fixed(d)], Layout::Rows, |r| r.float());
        let k = self.cache(&mut m, random, &seen);
        let v = self.cache(&mut m, random, &seen);
        let y = m.output(random, F32, &[Fixed(heads), Rows, Fixed(d)], Layout::Rows);
        let got = self.run(&mut m, random, [&q, &k, &v, &pos], &y);

        let (q, k, v) = (m.read(&q), m.read(&k), m.read(&v));
        let scale = f64::from(self.scale);
        let mut want = vec![0.0; q.len()];
        let mut bounds = vec![];
        for (row, (y, q)) in want.chunks_mut(d).zip(q.chunks(d)).enumerate() {
            let group = row / rows / self.repeat * keys;
            let range = visible(seen[row % rows], self.window, keys);
            let score = |key: usize| {
                let dot: f64 = q.iter().zip(&k[(group + key) * d..]).map(|(q, k)| q * k).sum();
                self.cap.map_or(scale * dot, |cap| f64::from(cap) * (scale * dot / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = range.clone().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (key, s) in range.zip(scores) {
                let p = (s - max).exp() / sum;
                y.iter_mut().zip(&v[(group + key) * d..]).for_each(|(y, v)| *y += p * v);
            }
            // An error of a score is a relative error of its weight: the sum's, which the cap does not take from scores
            // near 0, but no more than the capped scores lie apart.
            let size: f64 = scale * q.iter().map(|q| q.abs()).sum::<f64>();
            let unit = if self.rounded { 2f64.powi(-8) } else { 1e-6 };
            let cap = self.cap.map_or(f64::INFINITY, f64::from);
            let sums = (unit * size).min(2.0 * cap);
            bounds.push(
                if self.rounded { 3.0 * unit + sums } else { unit * (3.0 + size.min(cap)) }
                    + f64::from(f32::EPSILON) / 4.0 * size,
            );
        }
        assert_close(&format!("{self:?}"), F32, &got, &want, |i| bounds[i / d]);
    }
}

#[test]
fn any_call() {
    let mut random = Random(91);
    for _ in 0..300 {
        Case::random(&mut random).check(&mut random);
    }
}

/// So many keys that they go in parts, in calls of few rows.
#[test]
fn many_keys() {
    let mut random = Random(94);
    let mut split = 0;
    for _ in 0..40 {
        let case = Case::random(&mut random);
        let rows = 1 + random.below(4);
        let past = random.one_of(&[500, 511, 700, 1030, 2500]);
        let window = random.one_of(&[None, Some(400), Some(513), Some(2000)]);
        let ring = window.filter(|_| random.below(2) == 0).map(|w| w + rows + random.below(3));
        let far = if case.cap.is_none() { 50.0 / case.head_dim as f32 } else { case.scale };
        let case = Case {
            cpu: "native",
            rows,
            past,
            window,
            ring,
            scale: case.scale.min(far),
            lost: ring.is_none() && case.lost,
            ..case
        };
        case.check(&mut random);
        split += usize::from(window != Some(400));
    }
    assert!(split > 10, "{split} calls in parts");
}

/// Gemma's own shapes: two query heads a group, 256 wide, a window that wraps.
#[test]
fn gemma() {
    let mut random = Random(92);
    for (rows, past) in [(1, 0), (1, 90), (33, 0), (33, 70)] {
        for (window, ring, cache) in [
            (None, None, DType::BF16),
            (Some(40), Some(80), DType::BF16),
            (None, None, DType::Q8),
            (Some(40), Some(80), DType::Q8),
        ] {
            let case = Case {
                cpu: "native",
                rows,
                past,
                groups: 4,
                repeat: 2,
                head_dim: 256,
                scale: 0.0625,
                cap: Some(50.0),
                window,
                ring,
                maximum: Maximum::Bounded,
                cache,
                lost: false,
                rounded: window.is_some(),
            };
            case.check(&mut random);
        }
    }
}

/// A row's result has the same bits whatever call it is part of.
#[test]
fn rows_do_not_meet() {
    let mut random = Random(93);
    for _ in 0..20 {
        let case = Case { lost: false, ring: None, cpu: "native", ..Case::random(&mut random) };
        let (heads, d, rows) = (case.groups * case.repeat, case.head_dim, case.rows);
        let mut m = Memory::new(&mut random, rows, case.past + rows);
        let pos = m.positions(&mut random);
        let seen = m.read(&pos);
        let q = m.input(&mut random, F32, &[Fixed(heads), Rows, Fixed(d)], Layout::Rows, |r| r.float());
        let k = case.cache(&mut m, &mut random, &seen);
        let v = case.cache(&mut m, &mut random, &seen);
        let y = m.output(&mut random, F32, &[Fixed(heads), Rows, Fixed(d)], Layout::Rows);
        let all = case.run(&mut m, &mut random, [&q, &k, &v, &pos], &y);
        for row in 0..rows {
            (m.rows, m.keys) = (1, case.past + row + 1);
            let (mut one, mut at) = (q.clone(), pos.clone());
            one.offset += row as i64 * q.axes[1].stride;
            at.offset += row as i64 * pos.axes[0].stride;
            let alone = case.run(&mut m, &mut random, [&one, &k, &v, &at], &y);
            let want: Vec<f64> =
                (0..heads).flat_map(|h| all[(h * rows + row) * d..][..d].iter().copied()).collect();
            // A running maximum is rescaled block by block, and blocks are not the same in every call.
            let online = case.maximum == Maximum::Online;
            // Nor are pairs of keys, of bf16.
            let slack = if (online || case.rounded) && m.capacity.rows > 4 { 1e-6 } else { 0.0 };
            assert_close(&format!("row {row} of {case:?}"), F32, &alone, &want, |_| slack);
        }
    }
}
