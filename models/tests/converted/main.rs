//! Converted weights: which tensors take which format. `cache` has the cache that they are kept in.
#![allow(clippy::unwrap_used)]

mod cache;

use std::cell::Cell;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use lapidary_models::quantize::{convert_rows, dequantize_rows};
use lapidary_models::weight_cache::Origin;
use lapidary_models::{
    Cache, Config, Error, FormatChoice, Model, QuantFormat, Quantization, QuantizedWeights, TensorFormat,
    WeightDType, synthesize,
};
use lapidary_runtime::program::WeightSource;
use tempfile::TempDir;

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
