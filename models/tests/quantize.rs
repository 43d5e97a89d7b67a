//! Quantised weights: the bytes of a block, the error of its scale, and the cache they are kept in.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fs::{self, File, FileTimes};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use half::{bf16, f16};
use lapidary_models::quantize::{NotFinite, convert_rows, dequantize_rows, quantize_rows};
use lapidary_models::weight_cache::Origin;
use lapidary_models::{
    Cache, Config, Error, FormatChoice, Model, QuantFormat, Quantization, QuantizedWeights, TensorFormat,
    WeightDType, synthesize,
};
use lapidary_runtime::program::WeightSource;
use proptest::prelude::*;
use tempfile::TempDir;

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

/// Rows of `o_proj` (48 elements) do not divide into blocks; the embedding table makes several pieces.
fn config() -> Config {
    let mut c = Config::preset("2b").unwrap();
    (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers) = (70_000, 64, 96, 2);
    (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = (2, 1, 24);
    c.layer_types.truncate(2);
    c
}

const GO: fn(u64, u64) -> ControlFlow<()> = |_, _| ControlFlow::Continue(());

const EMBEDDING: &str = "model.embed_tokens.weight";
const UP: &str = "model.layers.1.mlp.up_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const O: &str = "model.layers.0.self_attn.o_proj.weight";
const NORM: &str = "model.norm.weight";

/// A model's folder and a cache directory.
struct Place {
    model: TempDir,
    cache: TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { model: TempDir::new().unwrap(), cache: TempDir::new().unwrap() };
        synthesize(
            place.model.path(),
            &config(),
            WeightDType::BF16,
            FormatChoice::default(),
            3,
            &mut |_, _| ControlFlow::Continue(()),
        )
        .unwrap();
        place
    }

    fn weights(&self) -> PathBuf {
        self.model.path().join("model.safetensors")
    }

    fn model(&self) -> Arc<Model> {
        Arc::new(Model::open(self.model.path()).unwrap())
    }

    fn cache(&self, limit: u64) -> Option<Cache> {
        Some(Cache { dir: self.cache.path().join("deep/lapidary"), limit })
    }

    /// Options with q4 matrices, a q8 head, and this cache.
    fn options(&self) -> Quantization {
        let (body, head) = (Some(QuantFormat::Q4.into()), Some(QuantFormat::Q8.into()));
        Quantization { body, head, adapters: vec![], threads: 2, cache: self.cache(Cache::LIMIT) }
    }

    fn open(&self, options: &Quantization) -> QuantizedWeights {
        QuantizedWeights::open(self.model(), options, &GO).unwrap()
    }

    /// Names in the cache directory, hidden ones included.
    fn files(&self) -> Vec<PathBuf> {
        let dir = fs::read_dir(self.cache.path().join("deep/lapidary"));
        let mut files: Vec<_> = dir.into_iter().flatten().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// All tensors, each quantised on its own.
fn assert_right(place: &Place, weights: &QuantizedWeights, options: &Quantization) {
    let model = place.model();
    for name in model.checkpoint.names() {
        let view = model.checkpoint.tensor(name).unwrap();
        let found = WeightSource::tensor(weights, name).unwrap();
        let format = options.format_of(name, view.shape);
        assert_eq!(weights.format(name), format, "{name}");
        match format {
            None => assert_eq!(found, view.bytes, "{name}"),
            Some(format) => {
                let (n, k) = (view.shape[0], view.shape[1]);
                let mut expected = vec![0; n * format.row_bytes(k)];
                convert_rows(view.format, format, view.bytes, n, k, &mut expected).unwrap();
                assert!(found == expected, "{name}");
                assert_eq!(found.as_ptr().addr() % 2, 0, "{name}");
            }
        }
    }
    assert!(weights.tensor("model.layers.2.mlp.up_proj.weight").is_none());
}

fn made(weights: &QuantizedWeights) -> &Path {
    match weights.origin() {
        Origin::Made(path) => path,
        other => panic!("{other:?}"),
    }
}

fn found(weights: &QuantizedWeights) -> bool {
    matches!(weights.origin(), Origin::Found(_))
}

#[test]
fn which_tensors_take_which_format() {
    let place = Place::new();
    let options = place.options();
    let weights = place.open(&options);
    let formats = [EMBEDDING, UP, DOWN, O, NORM].map(|name| weights.format(name).map(TensorFormat::name));
    assert_eq!(formats, [Some("q8"), Some("q4"), Some("q4"), None, None]);
    assert_right(&place, &weights, &options);
    let total =
        place.model().checkpoint.names().map(|n| weights.tensor(n).unwrap().len() as u64).sum::<u64>();
    assert_eq!(weights.weight_bytes(), total);

    let head = Quantization { body: None, ..place.options() };
    assert_right(&place, &place.open(&head), &head);
    let none = Quantization { head: None, ..head };
    let weights = place.open(&none);
    assert!(matches!(weights.origin(), Origin::Checkpoint));
    assert_right(&place, &weights, &none);
    assert_eq!(place.files().len(), 2);
}

#[test]
fn threads_and_place_do_not_matter() {
    let place = Place::new();
    for threads in [0, 1, 2, 5, 64] {
        let options = Quantization { threads, cache: None, ..place.options() };
        let weights = place.open(&options);
        assert!(matches!(weights.origin(), Origin::Memory(None)));
        assert_right(&place, &weights, &options);
        let kept = place.open(&Quantization { threads, ..place.options() });
        assert_right(&place, &kept, &options);
        fs::remove_file(made(&kept)).unwrap();
    }
}

#[test]
fn every_dtype_is_read() {
    for dtype in [WeightDType::F32, WeightDType::F16] {
        let place = Place { model: TempDir::new().unwrap(), cache: TempDir::new().unwrap() };
        synthesize(place.model.path(), &config(), dtype, FormatChoice::default(), 3, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_right(&place, &place.open(&place.options()), &place.options());
    }
}

#[test]
fn progress_ends_at_the_total() {
    let place = Place::new();
    let seen = Cell::new((0, 0));
    let expected: usize = place
        .model()
        .config
        .tensors()
        .iter()
        .map(|t| match place.options().format_of(&t.name, &t.shape) {
            Some(_) => 2 * t.elements() as usize,
            None => 0,
        })
        .sum();
    let progress = |done, total| {
        assert!(done > seen.get().0 && total == expected as u64);
        seen.set((done, total));
        ControlFlow::Continue(())
    };
    QuantizedWeights::open(place.model(), &place.options(), &progress).unwrap();
    assert_eq!(seen.get(), (expected as u64, expected as u64));
    QuantizedWeights::open(place.model(), &place.options(), &|_, _| panic!("there is nothing to do"))
        .unwrap();
}

#[test]
fn the_second_start_is_a_map() {
    let place = Place::new();
    let first = place.open(&place.options());
    let path = made(&first).to_path_buf();
    assert_eq!(place.files(), std::slice::from_ref(&path));
    // A time to come: no system replaces it by itself.
    let ahead = SystemTime::now() + Duration::from_secs(7200);
    let old = FileTimes::new().set_accessed(ahead).set_modified(SystemTime::UNIX_EPOCH);
    File::options().write(true).open(&path).unwrap().set_times(old).unwrap();
    let second = place.open(&place.options());
    assert!(found(&second), "{:?}", second.origin());
    assert_right(&place, &second, &place.options());
    let data = fs::metadata(&path).unwrap();
    assert_eq!(data.modified().unwrap(), SystemTime::UNIX_EPOCH, "it was written again");
    let limit = SystemTime::now() + Duration::from_secs(60);
    assert!(data.accessed().unwrap() < limit, "it was not marked as used");
}

#[test]
fn a_cache_file_is_a_safetensors_file() {
    let place = Place::new();
    let weights = place.open(&place.options());
    let file = fs::read(made(&weights)).unwrap();
    let (length, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    assert_eq!((length + 8) % 64, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "lapidary-q4");
    assert_eq!(metadata.metadata().as_ref().unwrap()["head"], "q8");
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let up = tensors.tensor(UP).unwrap();
    assert_eq!((up.dtype(), up.shape()), (safetensors::Dtype::U8, &[96, 36][..]));
    assert_eq!(up.data(), weights.tensor(UP).unwrap());
    assert!(tensors.tensor(O).is_err());
    assert!(tensors.tensor(NORM).is_err());
}

#[test]
fn a_broken_cache_file_is_made_anew() {
    let place = Place::new();
    let path = made(&place.open(&place.options())).to_path_buf();
    let whole = fs::read(&path).unwrap();
    let changed = |f: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        f(&mut bytes);
        bytes
    };
    let broken = [
        vec![],
        changed(&|b| b.truncate(whole.len() - 1)),
        changed(&|b| b.push(0)),
        changed(&|b| b[0] ^= 1),
        changed(&|b| b[40] ^= 1),
        vec![0; whole.len()],
    ];
    for bytes in broken {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let weights = place.open(&place.options());
        assert_eq!(made(&weights), path);
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(place.files(), std::slice::from_ref(&path));
    }
    assert!(found(&place.open(&place.options())));
}

#[test]
fn what_the_bytes_depend_on_is_in_the_name() {
    let place = Place::new();
    let first = made(&place.open(&place.options())).to_path_buf();
    let q8 = Quantization { body: Some(QuantFormat::Q8.into()), ..place.options() };
    assert_ne!(made(&place.open(&q8)), first);
    let swapped = Quantization { head: Some(QuantFormat::Q4.into()), ..q8 };
    assert_ne!(made(&place.open(&swapped)), first);

    // A model that is moved keeps its cache.
    let moved = TempDir::new().unwrap();
    for entry in fs::read_dir(place.model.path()).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), moved.path().join(entry.file_name())).unwrap();
    }
    let place = Place { model: moved, ..place };
    assert!(found(&place.open(&place.options())));

    // Equal length and time, one byte at the end of the embedding table.
    let times = fs::metadata(place.weights()).unwrap().modified().unwrap();
    let mut bytes = fs::read(place.weights()).unwrap();
    let end = 70_000 * 64 * 2 + 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    bytes[end - 1] ^= 1;
    fs::write(place.weights(), &bytes).unwrap();
    File::options().write(true).open(place.weights()).unwrap().set_modified(times).unwrap();
    assert_ne!(made(&place.open(&place.options())), first);

    // Equal bytes, another time.
    File::options()
        .write(true)
        .open(place.weights())
        .unwrap()
        .set_modified(times + Duration::from_secs(1))
        .unwrap();
    assert!(!found(&place.open(&place.options())));
}

#[test]
fn the_oldest_makes_room() {
    let place = Place::new();
    let mut paths = Vec::new();
    let formats = [Some(QuantFormat::Q4.into()), Some(QuantFormat::Q8.into())];
    for (body, age) in [(formats[0], 100), (formats[1], 300), (None, 200)] {
        let path = made(&place.open(&Quantization { body, ..place.options() })).to_path_buf();
        let then = SystemTime::now() - Duration::from_secs(age);
        let times = FileTimes::new().set_accessed(then).set_modified(then);
        File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        paths.push(path);
    }
    let dir = paths[0].parent().unwrap();
    let foreign = [dir.join("model.safetensors"), dir.join(".x.partial")];
    foreign.iter().for_each(|f| fs::write(f, "mine").unwrap());
    let abandoned = dir.join(format!(".{:032x}.7.0.partial", 7));
    let fresh = dir.join(format!(".{:032x}.8.0.partial", 7));
    [&abandoned, &fresh].iter().for_each(|f| fs::write(f, "").unwrap());
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    File::options().write(true).open(&abandoned).unwrap().set_modified(long_ago).unwrap();

    // The one of 200 seconds is used again; then what is needed is just less than the one of 300.
    assert!(found(&place.open(&Quantization { body: None, ..place.options() })));
    let total: u64 = paths.iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    let head = Some(QuantFormat::Q4.into());
    let cache = place.cache(total);
    let new = Quantization { head, cache, ..place.options() };
    let new = made(&place.open(&new)).to_path_buf();
    assert!(!paths[1].exists(), "the oldest is there");
    assert!(paths[0].exists() && paths[2].exists() && new.exists());
    assert!(foreign.iter().all(|f| f.exists()), "a file of another's was removed");
    assert!(!abandoned.exists() && fresh.exists());

    // No room at all: nothing is removed, memory does.
    let small = Quantization {
        head,
        cache: place.cache(1000),
        body: Some(QuantFormat::Q8.into()),
        adapters: vec![],
        threads: 1,
    };
    let weights = place.open(&small);
    let Origin::Memory(Some(reason)) = weights.origin() else { panic!("{:?}", weights.origin()) };
    assert!(reason.to_string().contains("a limit of 1000 bytes"), "{reason}");
    assert_right(&place, &weights, &small);
    assert!(new.exists());
}

#[test]
fn it_can_be_stopped() {
    let place = Place::new();
    for cache in [None, place.cache(Cache::LIMIT)] {
        let options = Quantization { cache, ..place.options() };
        let result = QuantizedWeights::open(place.model(), &options, &|_, _| ControlFlow::Break(()));
        assert!(matches!(result, Err(Error::Stopped)));
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

#[test]
fn a_cache_that_cannot_be_written_costs_nothing_but_time() {
    let place = Place::new();
    let dir = place.cache.path().join("file");
    fs::write(&dir, "").unwrap();
    let cache = Some(Cache { dir: dir.clone(), limit: Cache::LIMIT });
    let options = Quantization { cache, ..place.options() };
    let weights = place.open(&options);
    let Origin::Memory(Some(reason)) = weights.origin() else { panic!("{:?}", weights.origin()) };
    assert!(reason.to_string().contains(&dir.display().to_string()), "{reason}");
    assert_right(&place, &weights, &options);
}

#[test]
fn a_weight_that_is_not_finite_is_refused() {
    let place = Place::new();
    let offset = {
        let file = fs::read(place.weights()).unwrap();
        let model = place.model();
        let tensor = model.checkpoint.tensor(UP).unwrap();
        let needle = &tensor.bytes[..256];
        file.windows(needle.len()).position(|w| w == needle).unwrap()
    };
    let mut bytes = fs::read(place.weights()).unwrap();
    let place_of_nan = offset + 2 * (5 * 64 + 9);
    bytes[place_of_nan..][..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    fs::write(place.weights(), &bytes).unwrap();
    for cache in [None, place.cache(Cache::LIMIT)] {
        let options = Quantization { cache, ..place.options() };
        let result = QuantizedWeights::open(place.model(), &options, &GO);
        let message = result.err().expect("it must be refused").to_string();
        assert!(message.contains(UP) && message.contains("NaN at row 5, column 9"), "{message}");
        assert!(message.contains("model.safetensors") && !message.contains('\n'), "{message}");
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

#[test]
#[cfg(feature = "tiny")]
fn the_built_in_model_quantises() {
    let cache = TempDir::new().unwrap();
    let model = Arc::new(Model::built_in().unwrap());
    let options = Quantization {
        body: Some(QuantFormat::Q4.into()),
        head: Some(QuantFormat::Q8.into()),
        adapters: vec![],
        threads: 2,
        cache: Some(Cache { dir: cache.path().into(), limit: Cache::LIMIT }),
    };
    let weights = QuantizedWeights::open(model.clone(), &options, &GO).unwrap();
    made(&weights);
    assert!(found(&QuantizedWeights::open(model.clone(), &options, &GO).unwrap()));
    let view = model.checkpoint.tensor(EMBEDDING).unwrap();
    let values =
        dequantize_rows(QuantFormat::Q8, weights.tensor(EMBEDDING).unwrap(), view.shape[0], view.shape[1]);
    let stored = view.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32());
    let (mut error, mut power) = (0.0, 0.0);
    for (x, y) in stored.zip(values) {
        error += f64::from(x - y).powi(2);
        power += f64::from(x).powi(2);
    }
    assert!(error < 1e-4 * power, "{error} of {power}");
}

#[test]
fn the_users_cache() {
    let dir = |xdg: Option<&str>, home: Option<&str>| {
        Cache::of_variables(xdg.map(Into::into), home.map(Into::into)).map(|c| c.dir)
    };
    assert_eq!(dir(Some("/x"), Some("/h")), Some("/x/lapidary".into()));
    assert_eq!(dir(Some(""), Some("/h")), Some("/h/.cache/lapidary".into()));
    assert_eq!(dir(Some("relative"), Some("/h")), Some("/h/.cache/lapidary".into()));
    assert_eq!(dir(None, None), None);
    assert_eq!(dir(None, Some("")), None);
}
