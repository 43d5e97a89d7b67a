//! Synthetic checkpoints and the built-in model.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::ops::ControlFlow;

use lapidary_models::quantize::{convert_rows, dequantize_rows};
use lapidary_models::{
    Checkpoint, Config, Error, FormatChoice, Model, QuantFormat, WeightDType, export, synthesize,
};
use tempfile::TempDir;

fn config() -> Config {
    let mut c = Config::preset("9b").unwrap();
    (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers) = (5000, 1000, 300, 3);
    (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = (4, 2, 10);
    c.layer_types.truncate(3);
    c
}

fn write(dtype: WeightDType, seed: u64) -> TempDir {
    let dir = TempDir::new().unwrap();
    let mut last = (0, 0);
    let mut progress = |done, total| {
        last = (done, total);
        ControlFlow::Continue(())
    };
    synthesize(dir.path(), &config(), dtype, FormatChoice::default(), seed, &mut progress).unwrap();
    assert_eq!(last, (config().weight_bytes(dtype), config().weight_bytes(dtype)));
    dir
}

fn file(dir: &TempDir) -> Vec<u8> {
    fs::read(dir.path().join("model.safetensors")).unwrap()
}

#[test]
fn a_seed_decides_everything() {
    let dir = write(WeightDType::BF16, 7);
    assert_eq!(file(&dir), file(&write(WeightDType::BF16, 7)));
    assert_ne!(file(&dir), file(&write(WeightDType::BF16, 8)));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().contains("partial")), "{names:?}");
    let again =
        synthesize(dir.path(), &config(), WeightDType::BF16, FormatChoice::default(), 7, &mut |_, _| {
            ControlFlow::Continue(())
        });
    assert!(again.unwrap_err().to_string().contains("already holds"));
}

#[test]
fn a_caller_that_breaks_off_leaves_no_file() {
    let dir = TempDir::new().unwrap();
    let stopped =
        synthesize(dir.path(), &config(), WeightDType::F32, FormatChoice::default(), 7, &mut |_, _| {
            ControlFlow::Break(())
        });
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn values_are_normal() {
    let dir = write(WeightDType::F32, 7);
    let c = Checkpoint::open(dir.path(), &config()).unwrap();
    let expected = |name: &str| match name {
        "model.embed_tokens.weight" => 0.5 / 1000f64.sqrt(),
        n if n.contains("norm") => 0.05,
        n if n.contains("down_proj") => 1.0 / 300f64.sqrt(),
        n if n.contains("o_proj") => 1.0 / 40f64.sqrt(),
        _ => 1.0 / 1000f64.sqrt(),
    };
    for name in c.names() {
        let tensor = c.tensor(name).unwrap();
        let values: Vec<f64> =
            tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let deviation = (values.iter().map(|x| x * x).sum::<f64>() / n).sqrt();
        let ratio = deviation / expected(name);
        assert!(mean.abs() < 5.0 * expected(name) / n.sqrt(), "{name}: mean {mean}");
        assert!((ratio - 1.0).abs() < 4.0 / n.sqrt(), "{name}: deviation {ratio} of what it should be");
        // Neighbours, the next hashes, and the next piece of the embedding table.
        for lag in (1..=8).chain([4 << 20]).filter(|&lag| lag + 100 < values.len()) {
            let pairs = values.iter().zip(&values[lag..]);
            let n = (values.len() - lag) as f64;
            let together = pairs.map(|(a, b)| a * b).sum::<f64>() / (n * deviation * deviation);
            assert!(together.abs() < 5.0 / n.sqrt(), "{name}: {lag} apart go together: {together}");
        }
    }
}

#[test]
#[cfg(feature = "tiny")]
fn a_folder_opens_as_a_model() {
    for dtype in [WeightDType::BF16, WeightDType::F16, WeightDType::F32] {
        let dir = write(dtype, 3);
        let model = Model::open(dir.path()).unwrap();
        assert_eq!(model.config, config());
        assert_eq!(model.checkpoint.format_of("model.norm.weight"), Some(dtype.into()));
        let tokenizer = model.tokenizer.unwrap();
        assert_eq!(tokenizer.decode(&[4999, 4096]), "");
    }
}

#[test]
#[cfg(feature = "tiny")]
fn the_built_in_model() {
    let model = Model::built_in().unwrap();
    assert_eq!(model.config.parameter_counts().total() * 2, model.checkpoint.weight_bytes());
    for name in model.checkpoint.names() {
        let bytes = model.checkpoint.tensor(name).unwrap().bytes;
        assert!(bytes.as_ptr().addr().is_multiple_of(2), "{name}");
    }
}

#[test]
fn a_refusal_names_path_and_bytes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    let inside = path.join("model");
    let message =
        synthesize(&inside, &config(), WeightDType::BF16, FormatChoice::default(), 0, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap_err()
        .to_string();
    let needed = config().weight_bytes(WeightDType::BF16);
    assert!(
        message.contains(&inside.display().to_string()) && message.contains(&needed.to_string()),
        "{message}"
    );
}

/// Drawn straight into quants, and quantised from the folder of floats: the same bytes; and back to floats.
#[test]
fn a_quantised_checkpoint_is_that_of_the_floats() {
    let mut c = config();
    (c.hidden_size, c.intermediate_size, c.head_dim) = (128, 96, 16);
    let go = &mut |_, _| ControlFlow::Continue(());
    let (floats, straight, exported, back) =
        (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let choice = FormatChoice { body: Some(QuantFormat::Q4.into()), head: Some(QuantFormat::Q8.into()) };
    synthesize(floats.path(), &c, WeightDType::BF16, FormatChoice::default(), 5, go).unwrap();
    synthesize(straight.path(), &c, WeightDType::BF16, choice, 5, go).unwrap();
    export(&Model::open(floats.path()).unwrap(), exported.path(), choice, 3, go).unwrap();
    assert_eq!(file(&straight), file(&exported));
    let model = Model::open(straight.path()).unwrap();
    assert_eq!(model.config, c);
    let up = "model.layers.1.mlp.up_proj.weight";
    let formats = ["model.embed_tokens.weight", up, "model.norm.weight"]
        .map(|n| model.checkpoint.format_of(n).unwrap().name());
    assert_eq!(formats, ["q8", "q4", "BF16"]);
    let f32s = FormatChoice { body: Some(WeightDType::F32.into()), head: Some(WeightDType::F32.into()) };
    export(&model, back.path(), f32s, 1, go).unwrap();
    let opened = Model::open(back.path()).unwrap();
    let view = model.checkpoint.tensor(up).unwrap();
    let values = dequantize_rows(QuantFormat::Q4, view.bytes, view.shape[0], view.shape[1]);
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(opened.checkpoint.tensor(up).unwrap().bytes, bytes);
    let config = fs::read_to_string(back.path().join("config.json")).unwrap();
    assert!(!config.contains("quantization_config"), "{config}");
}

/// To the nearest, ties to even; what would become infinite is refused by its place.
#[test]
fn floats_of_another_width() {
    let convert = |x: f32, to: WeightDType| {
        let mut out = [0; 2];
        convert_rows(WeightDType::F32.into(), to.into(), &x.to_le_bytes(), 1, 1, &mut out)
            .map(|()| u16::from_le_bytes(out))
    };
    assert_eq!(convert(f32::from_bits(0x3f80_8000), WeightDType::BF16), Ok(0x3f80));
    assert_eq!(convert(f32::from_bits(0x3f81_8000), WeightDType::BF16), Ok(0x3f82));
    assert_eq!(convert(f32::from_bits(0x3f80_8001), WeightDType::BF16), Ok(0x3f81));
    assert_eq!(convert(65504.0, WeightDType::F16), Ok(0x7bff));
    let bad = convert(70000.0, WeightDType::F16).unwrap_err();
    assert_eq!((bad.row, bad.column, bad.value), (0, 0, 70000.0));
}
