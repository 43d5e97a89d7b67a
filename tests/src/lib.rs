//! What the tests share: models compiled under any selection of rules, sessions on them, reference logits, what must
//! hold of any input.

pub mod emulator;
pub mod fuzz;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use lapidary_codegen::target::{Placement, Target};
use lapidary_codegen::{Compilation, Options, compile};
use lapidary_ir::{DType, InputKind, Module, TensorType};
use lapidary_models::{FormatChoice, Model, TensorFormat, export, graph};
use lapidary_passes::{Machine, Selection};
use lapidary_runtime::Session;
use lapidary_runtime::program::WeightSource;

/// A model's weights for a session.
pub struct Weights(pub Arc<Model>);

// SAFETY: a checkpoint is mapped or static, and never changes while the model lives.
unsafe impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        self.0.checkpoint.tensor(name).map(|t| t.bytes)
    }
}

/// How a test compiles a model.
pub struct Setup {
    /// Rules.
    pub selection: Selection,
    /// Rows of a call.
    pub chunk: usize,
    /// dtype of the KV cache.
    pub cache: DType,
    /// Threads of the session.
    pub threads: usize,
    /// CPU.
    pub cpu: &'static str,
    /// Positions; the configuration's, if less.
    pub context: usize,
    /// Whether products may round activations.
    pub rounded: bool,
    /// Whether kernels are priced as commands do, by the constants of the CPU and the bytes of a token's weights.
    pub target_prices: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            selection: Selection::all(),
            chunk: 512,
            cache: DType::F32,
            threads: 2,
            cpu: "native",
            context: 1024,
            rounded: false,
            target_prices: false,
        }
    }
}

/// Compiles a model.
pub fn compile_model(model: &Model, setup: &Setup) -> Result<Compilation> {
    let config = &model.config;
    let weight = |name: &str| model.checkpoint.format_of(name).map_or(DType::F32, DType::from);
    let module = graph::module(config, &graph::Storage { weight: &weight, cache: setup.cache });
    let layers = graph::layers(config, &weight);
    let machine = if setup.target_prices {
        let machine = Target::new(setup.cpu, Placement::Object)?.machine(setup.rounded);
        Machine { weight_bytes: weight_bytes(&module, &layers), ..machine }
    } else {
        Machine::GENERIC
    };
    let parts = lapidary_codegen::Model { hidden: config.hidden_size, vocab: config.vocab_size, layers };
    let options = Options {
        selection: setup.selection.clone(),
        cpu: setup.cpu.into(),
        context: setup.context.min(config.max_position_embeddings),
        chunk: setup.chunk,
        rounded: setup.rounded,
        machine,
        listings: false,
    };
    Ok(compile(&module, &parts, &options)?)
}

/// Bytes of weights that a token reads: those of each layer and of the prediction.
fn weight_bytes(module: &Module, layers: &[(String, String)]) -> f64 {
    let functions = layers.iter().map(|(name, _)| name.as_str()).chain(["head_argmax"]);
    let inputs = functions.filter_map(|name| module.function(name)).flat_map(|f| &f.inputs);
    let weights = inputs.filter(|i| i.kind == InputKind::Weight);
    let elements = |ty: &TensorType| ty.shape.iter().filter_map(|d| d.fixed()).product();
    weights.map(|i| i.ty.dtype.row_bytes(elements(&i.ty)) as f64).sum()
}

/// A model again, in a folder, with every matrix in another format.
pub fn stored(model: &Model, folder: &Path, format: TensorFormat) -> Result<Arc<Model>> {
    let choice = FormatChoice { body: Some(format), head: Some(format) };
    export(model, folder, choice, 2, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(Arc::new(Model::open(folder)?))
}

/// A session on a model.
pub fn session(model: &Arc<Model>, setup: &Setup) -> Result<Session> {
    let program = compile_model(model, setup)?.program;
    Ok(Session::new(program, Arc::new(Weights(model.clone())), setup.threads)?)
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
pub fn golden_model(case: &str) -> Result<Arc<Model>> {
    let folder = golden_folder(case);
    let model = if folder.join("config.json").exists() { Model::open(&folder)? } else { Model::built_in()? };
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
