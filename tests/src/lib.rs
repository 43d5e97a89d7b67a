//! What the tests share: sessions on models, compiled with any options; reference logits; what must hold of any input.

pub mod emulator;
pub mod fuzz;
pub mod gguf;
pub mod hub;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use lapidary::{Activations, Model, Options, Session};
use lapidary_models::{FormatChoice, Model as Files, TensorFormat, export};

/// Options that round nothing: activations and KV cache in 32-bit floats.
pub fn exact() -> Options {
    Options::new().activations(Activations::F32).context(1024).threads(2)
}

/// A session on a model.
pub fn session(files: &Arc<Files>, options: Options) -> Result<Session> {
    Ok(Model::of(files.clone(), options)?.session()?)
}

/// A model again, in a folder, with every matrix in another format.
pub fn stored(model: &Files, folder: &Path, format: TensorFormat) -> Result<Arc<Files>> {
    let choice = FormatChoice { body: Some(format), head: Some(format) };
    export(model, folder, choice, 2, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(Arc::new(Files::open(folder)?))
}

/// Logits of every position, `(ids, vocab)`.
pub fn logits(session: &mut Session, ids: &[u32]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    session.score(ids, &mut |_, row| all.extend_from_slice(row))?;
    Ok(all)
}

/// Reference logits.
pub struct Golden {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The positions that logits are kept for.
    pub rows: Vec<usize>,
    /// `(rows, vocab)`, after the final softcap.
    pub logits: Vec<f32>,
}

/// The folder of a golden case.
pub fn golden_folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(case)
}

/// Reads `golden.safetensors` of a case.
pub fn golden(case: &str) -> Result<Golden> {
    let path = golden_folder(case).join("golden.safetensors");
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let ints = |name: &str| -> Result<Vec<i32>> {
        let data = file.tensor(name)?.data().to_vec();
        Ok(data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let logits = file.tensor("logits")?.data().to_vec();
    Ok(Golden {
        ids: ints("ids")?.into_iter().map(|i| i as u32).collect(),
        rows: ints("rows")?.into_iter().map(|i| i as usize).collect(),
        logits: logits.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    })
}

/// The model of a golden case: its folder, or the built-in model.
pub fn golden_model(case: &str) -> Result<Arc<Files>> {
    let folder = golden_folder(case);
    let model = if folder.join("config.json").exists() { Files::open(&folder)? } else { Files::built_in()? };
    Ok(Arc::new(model))
}

/// Largest absolute difference between a session's logits and the reference's.
pub fn worst_difference(session: &mut Session, golden: &Golden) -> Result<f32> {
    let all = logits(session, &golden.ids)?;
    let vocab = all.len() / golden.ids.len();
    let mut worst = 0f32;
    for (at, &row) in golden.rows.iter().enumerate() {
        for (ours, theirs) in all[row * vocab..][..vocab].iter().zip(&golden.logits[at * vocab..][..vocab]) {
            let difference = (ours - theirs).abs();
            worst = if difference.is_nan() { f32::INFINITY } else { worst.max(difference) };
        }
    }
    Ok(worst)
}
