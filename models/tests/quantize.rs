//! Quantised weights: the bytes of a block, and the error of its scale.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use lapidary_models::quantize::{NotFinite, dequantize_rows, quantize_rows};
use lapidary_models::{QuantFormat, WeightDType};
use proptest::prelude::*;

const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8, QuantFormat::Q4];

fn bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn quantize(format: QuantFormat, x: &[f32], k: usize) -> Vec<u8> {
    let n = x.len() / k;
    let mut out = vec![0xaa; n * format.row_bytes(k)];
    quantize_rows(format, WeightDType::F32, &bytes(x), n, k, &mut out).unwrap();
    out
}

fn round_trip(format: QuantFormat, x: &[f32]) -> Vec<f32> {
    dequantize_rows(format, &quantize(format, x, 32), x.len() / 32, 32)
}

/// The scales of rows of one block.
fn scales(format: QuantFormat, rows: &[u8]) -> Vec<f32> {
    let rows = rows.chunks(format.row_bytes(32));
    rows.map(|r| bf16::from_le_bytes(*r.last_chunk().unwrap()).to_f32()).collect()
}

fn squared(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

/// What the signed extreme as -8 leaves.
fn plain_q4(x: &[f32]) -> f64 {
    let extreme = x.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
    let scale = bf16::from_f32(extreme / -8.0).to_f32();
    let scale = if scale.abs() < f32::MIN_POSITIVE { 0.0 } else { scale };
    let value =
        |x: f32| if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even().clamp(-8.0, 7.0) * scale };
    squared(x, &x.iter().map(|x| value(*x)).collect::<Vec<_>>())
}

/// A stream of numbers in 0..1.
fn uniform(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    }
}

/// 37 blocks of each kind: more than one group of lanes, and not whole groups.
fn kinds() -> Vec<(&'static str, Vec<f32>)> {
    let mut u = uniform(5);
    let mut many = |f: &mut dyn FnMut(usize, f32, f32) -> f32| -> Vec<f32> {
        (0..37 * 32).map(|i| f(i, u(), u())).collect()
    };
    let normal = |a: f32, b: f32| (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos();
    vec![
        ("normal", many(&mut |_, a, b| 0.02 * normal(a, b))),
        ("uniform", many(&mut |_, a, _| a - 0.5)),
        ("positive", many(&mut |_, a, _| a)),
        ("outlier", many(&mut |i, a, b| normal(a, b) * if i % 32 == 7 { 50.0 } else { 1.0 })),
        ("constant", many(&mut |i, _, _| (i / 32) as f32 - 18.0)),
        ("zero", many(&mut |i, _, _| if i % 2 == 0 { 0.0 } else { -0.0 })),
        ("denormal", many(&mut |_, a, _| (a - 0.5) * 1e-39)),
        ("tiny", many(&mut |_, a, _| (a - 0.5) * 1e-34)),
        ("huge", many(&mut |_, a, _| (a - 0.5) * 1e38)),
    ]
}

#[test]
fn the_bytes_of_q8() {
    // max|x| is 127 quarters: the scale is 0.25.
    let mut x = [0.0f32; 64];
    (x[0], x[1], x[2], x[31]) = (31.75, -31.75, 0.25, -0.25);
    (x[32], x[33], x[63]) = (-127.0, 2.5, 3.5);
    let mut expected = [0u8; 64 + 4];
    (expected[0], expected[1], expected[2], expected[31]) = (127, 0x81, 1, 0xff);
    // Ties go to even.
    (expected[32], expected[33], expected[63]) = (0x81, 2, 4);
    expected[64..66].copy_from_slice(&0x3e80u16.to_le_bytes());
    expected[66..68].copy_from_slice(&0x3f80u16.to_le_bytes());
    assert_eq!(quantize(QuantFormat::Q8, &x, 64), expected);
    assert_eq!(QuantFormat::Q8.row_bytes(64), 68);
}

#[test]
fn the_bytes_of_q4() {
    // All sixteen quants of scale 0.5, and the same again with the sign of the scale turned.
    let mut x: Vec<f32> = (0..32).map(|i| (i % 16 - 8) as f32 * 0.5).collect();
    x[16..].reverse();
    let turned: Vec<f32> = x.iter().map(|x| -x).collect();
    let row = [x.clone(), turned].concat();
    let block: Vec<u8> = (0..16u8).map(|j| j | (15 - j) << 4).collect();
    let scales = [0x3f00u16.to_le_bytes(), 0xbf00u16.to_le_bytes()].concat();
    let expected = [block.clone(), block, scales].concat();
    assert_eq!(quantize(QuantFormat::Q4, &row, 64), expected);
    assert_eq!(dequantize_rows(QuantFormat::Q4, &expected, 1, 64), row);
    // Two rows: one after another.
    let rows = [row.clone(), row].concat();
    assert_eq!(quantize(QuantFormat::Q4, &rows, 64), [expected.clone(), expected].concat());
    assert_eq!(QuantFormat::Q4.row_bytes(64), 36);
}

#[test]
fn a_row_of_several_blocks_is_its_blocks() {
    for (kind, x) in kinds() {
        for format in FORMATS {
            let apart = round_trip(format, &x);
            let k = x.len();
            assert_eq!(
                dequantize_rows(format, &quantize(format, &x, k), 1, k),
                apart,
                "{kind} {}",
                format.name()
            );
        }
    }
}

#[test]
fn q8_is_off_by_half_a_scale_at_most() {
    for (kind, x) in kinds() {
        let rows = quantize(QuantFormat::Q8, &x, 32);
        let y = round_trip(QuantFormat::Q8, &x);
        for (block, scale) in scales(QuantFormat::Q8, &rows).into_iter().enumerate() {
            let largest = x[32 * block..][..32].iter().fold(0.0f32, |m, x| m.max(x.abs()));
            // Below, there is no normal scale.
            let bound = if largest / 127.0 < 1.2e-38 { largest } else { 0.500_01 * scale };
            for i in 32 * block..32 * block + 32 {
                assert!((x[i] - y[i]).abs() <= bound, "{kind}: {} became {} at scale {scale}", x[i], y[i]);
            }
        }
    }
}

#[test]
fn q4_beats_the_largest_magnitude() {
    for (kind, x) in kinds() {
        let y = round_trip(QuantFormat::Q4, &x);
        let (mut all, mut plain) = (0.0, 0.0);
        for (x, y) in x.chunks(32).zip(y.chunks(32)) {
            let (error, before) = (squared(x, y), plain_q4(x));
            assert!(error <= before * (1.0 + 1e-5), "{kind}: {error} instead of {before}");
            (all, plain) = (all + error, plain + before);
        }
        if kind == "normal" {
            assert!(all < 0.9 * plain, "{all} of {plain}");
        }
    }
}

#[test]
fn what_was_quantised_stays() {
    for (kind, x) in kinds() {
        for format in FORMATS {
            let once = round_trip(format, &x);
            assert_eq!(round_trip(format, &once), once, "{kind} {}", format.name());
        }
    }
}

#[test]
fn zeros_are_zeros() {
    for (kind, x) in kinds().into_iter().filter(|(k, _)| ["zero", "denormal"].contains(k)) {
        let mut q8 = quantize(QuantFormat::Q8, &x, 32);
        assert!(q8.iter().all(|b| *b == 0), "{kind}");
        q8 = quantize(QuantFormat::Q4, &x, 32);
        assert!(q8.chunks(18).all(|r| r[..16] == [0x88; 16] && r[16..] == [0; 2]), "{kind}");
    }
}

#[test]
fn a_weight_that_is_not_finite_is_found() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (row, column) in [(0, 0), (2, 95), (1, 33)] {
            let mut x = vec![1.0; 3 * 96];
            x[row * 96 + column] = value;
            let (f16s, bf16s): (Vec<u8>, Vec<u8>) = (
                x.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                x.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            );
            let sources =
                [(WeightDType::F32, bytes(&x)), (WeightDType::F16, f16s), (WeightDType::BF16, bf16s)];
            for (dtype, source) in sources {
                let mut out = vec![0; 3 * QuantFormat::Q4.row_bytes(96)];
                let NotFinite { row: r, column: c, value: v } =
                    quantize_rows(QuantFormat::Q4, dtype, &source, 3, 96, &mut out).unwrap_err();
                assert_eq!((r, c, v.is_nan()), (row, column, value.is_nan()));
            }
        }
    }
}

proptest! {
    #[test]
    fn any_block_keeps_its_bounds(
        bits in prop::collection::vec(any::<u16>(), 32),
        same in any::<bool>(),
    ) {
        // Any bf16 that is not within a step of overflow; or all of one exponent.
        let value = |b: u16| if same { (b & 0x807f) | 0x3f00 } else if b & 0x7f80 >= 0x7f00 { b & 0xbfff } else { b };
        let x: Vec<f32> = bits.iter().map(|b| bf16::from_bits(value(*b)).to_f32()).collect();

        for format in FORMATS {
            let once = round_trip(format, &x);
            prop_assert!(once.iter().all(|y| y.is_finite()));
            prop_assert_eq!(&round_trip(format, &once), &once);
        }
        let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let y = round_trip(QuantFormat::Q8, &x);
        prop_assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= largest / 250.0 || largest < 1e-35));
    }

    #[test]
    fn sources_agree(bits in prop::collection::vec(-2048i16..2048, 96)) {
        // Multiples of 2^-8 of at most 8 bits are exact in every dtype.
        let x: Vec<f32> = bits.iter().map(|b| bf16::from_f32(f32::from(*b) / 256.0).to_f32()).collect();
        let f16s: Vec<u8> = x.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = x.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        for format in FORMATS {
            let expected = quantize(format, &x, 96);
            for (dtype, source) in [(WeightDType::F16, &f16s), (WeightDType::BF16, &bf16s)] {
                let mut out = vec![0; expected.len()];
                quantize_rows(format, dtype, source, 1, 96, &mut out).unwrap();
                prop_assert_eq!(&out, &expected);
            }
        }
    }
}
