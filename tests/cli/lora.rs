//! `--lora`: logits of a model with an adapter are those of the merged model; states and caches know it.

use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::tensor::{Dtype, TensorView, serialize};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::json;

use super::command::{difference, lapidary, logits, name};

const RANK: usize = 4;
/// (out, in).
const SHAPE: [usize; 2] = [288, 896];
const MODULE: &str = "layers.2.mlp.down_proj";
const SCALE: f32 = 8.0 / RANK as f32;

/// About a fiftieth, other values for each seed.
fn values(seed: u32, count: usize) -> Vec<f32> {
    (0..count as u32)
        .map(|i| (i.wrapping_mul(2654435761).wrapping_add(seed) >> 16) as f32 / 1e6 - 0.03)
        .collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn adapter(dir: &Path) -> PathBuf {
    let folder = dir.join("adapter");
    fs::create_dir_all(&folder).unwrap();
    let (a, b) = (bytes(&values(1, RANK * SHAPE[1])), bytes(&values(2, SHAPE[0] * RANK)));
    let tensor = |shape: [usize; 2], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
    let tensors = [
        (format!("base_model.model.model.{MODULE}.lora_A.weight"), tensor([RANK, SHAPE[1]], &a)),
        (format!("base_model.model.model.{MODULE}.lora_B.weight"), tensor([SHAPE[0], RANK], &b)),
    ];
    fs::write(folder.join("adapter_model.safetensors"), serialize(tensors, None).unwrap()).unwrap();
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["down_proj"]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

/// The built-in model's folder with the adapter merged, here.
fn merged(dir: &Path) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/data/tiny-gemma2");
    let folder = dir.join("merged");
    fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(data.join(file), folder.join(file)).unwrap();
    }
    let file = fs::read(data.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let matrix = format!("model.{MODULE}.weight");
    let stored = file.tensor(&matrix).unwrap();
    assert_eq!((stored.shape(), stored.dtype()), (&SHAPE[..], Dtype::BF16));
    let (a, b) = (values(1, RANK * SHAPE[1]), values(2, SHAPE[0] * RANK));
    let mut w: Vec<f32> =
        stored.data().as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
    for (at, w) in w.iter_mut().enumerate() {
        let (i, j) = (at / SHAPE[1], at % SHAPE[1]);
        *w += SCALE * (0..RANK).map(|r| b[i * RANK + r] * a[r * SHAPE[1] + j]).sum::<f32>();
    }
    let merged = bytes(&w);
    let tensors = file.iter().map(|(name, view)| match name == matrix {
        true => (name.to_string(), TensorView::new(Dtype::F32, SHAPE.to_vec(), &merged).unwrap()),
        false => (name.to_string(), view),
    });
    serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
    folder
}

#[test]
fn an_adapter_is_the_merged_model() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, merged) = (adapter(dir.path()), merged(dir.path()));
    let exact = ["--activations", "f32", "--weights", "f32", "--no-cache"];
    let of = |args: &[&str]| logits("2,17,5,9", &[&exact[..], args].concat()).2;
    let plain = of(&[]);
    let expected = of(&["-m", name(&merged)]);
    let found = of(&["--lora", name(&adapter)]);
    assert!(difference(&found, &expected) < 1e-3);
    assert!(difference(&found, &plain) > 0.01, "{}", difference(&found, &plain));
    // Nothing of it, half of it twice.
    let scaled = |scale: &str| format!("{}:{scale}", name(&adapter));
    assert_eq!(of(&["--lora", &scaled("0")]), plain);
    assert!(difference(&of(&["--lora", &scaled("0.5"), "--lora", &scaled("5e-1")]), &expected) < 1e-3);
    // An artifact has the sum.
    let file = dir.path().join("merged.lap");
    lapidary(&[
        "compile",
        "--lora",
        name(&adapter),
        "--activations",
        "f32",
        "--weights",
        "f32",
        "-o",
        name(&file),
    ])
    .ok();
    assert!(difference(&logits("2,17,5,9", &["-m", name(&file)]).2, &expected) < 1e-3);
    lapidary(&["run", "-m", name(&file), "--lora", name(&adapter), "x"])
        .fails(&["--lora", "compiled already"]);
}

#[test]
fn what_is_wrong_with_an_adapter_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = adapter(dir.path());
    let state = dir.path().join("state");
    let with = |args: &[&str]| lapidary(&[&["run", "-n", "2", "--temp", "0"][..], args].concat());
    with(&["--lora", name(&adapter), "--save", name(&state), "x"]).ok();
    with(&["--lora", name(&adapter), "--load", name(&state)]).ok();
    with(&["--load", name(&state)]).fails(&["weights", "which is loaded"]);
    let scale = with(&["--lora", &format!("{}:much", name(&adapter)), "x"]);
    assert!(scale.code == Some(2) && scale.err.contains("FOLDER:SCALE"), "{}", scale.err);
    with(&["--lora", name(&dir.path().join("none")), "x"]).fails(&["none has no adapter_config.json"]);
    let bench = |adapter: &Path| {
        let short = ["bench", "--prompt-tokens", "2", "--gen-tokens", "1", "--depth", "1", "--repeat", "1"];
        lapidary(&[&short[..], &["--lora", name(adapter)]].concat())
    };
    bench(&adapter).ok();
    bench(&dir.path().join("none")).fails(&["none has no adapter_config.json"]);
    with(&["-m", name(&adapter), "x"]).fails(&["it is a LoRA adapter", "`--lora`"]);
    let config = adapter.join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"r\":4", "\"r\":8")).unwrap();
    with(&["--lora", name(&adapter), "x"]).fails(&[
        "layers.2.mlp.down_proj.lora_A.weight",
        "[8, 896]",
        "[4, 896]",
    ]);
}
