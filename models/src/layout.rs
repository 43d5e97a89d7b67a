//! The tensors of a configuration: their names in a checkpoint, and their shapes, in the order they are written.
//!
//! Linear weights are (out, in), as checkpoints store them.

use lapidary_ir::{DType, Input, InputKind};

use crate::config::{Config, LayerType};
use crate::graph::{self, Storage, layer_prefix};

/// The embedding table (vocab, hidden), which is the head's matrix too.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The last norm (hidden).
pub const FINAL_NORM: &str = "model.norm.weight";
/// The head's matrix where a file repeats it though it is tied.
pub const TIED_HEAD: &str = "lm_head.weight";
/// End of the names of buffers that older files carry and nobody reads.
pub const ROTARY_BUFFER: &str = "rotary_emb.inv_freq";

/// What a tensor is for, which decides how it is drawn by `synth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// The embedding table.
    Embedding,
    /// A linear layer's matrix.
    Matrix,
    /// The w of an RMSNorm's (1 + w).
    Norm,
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The whole name: `model.layers.3.mlp.up_proj.weight`.
    pub name: String,
    /// Elements along each axis.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: TensorKind,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// The name within its layer, or the whole name outside of layers: the same for every layer.
    pub fn role(&self) -> &str {
        role(&self.name)
    }
}

/// The name within a layer (`mlp.up_proj.weight`), or the whole name outside of layers.
pub fn role(name: &str) -> &str {
    let inner = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    match inner {
        Some((_, role)) => role,
        None => name,
    }
}

impl Config {
    /// Every tensor of a checkpoint of this configuration.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let hidden = self.hidden_size;
        let layer = self.layer_tensors();
        let mut all = vec![spec(EMBEDDING.into(), &[self.vocab_size, hidden])];
        for prefix in (0..self.num_hidden_layers).map(layer_prefix) {
            all.extend(layer.iter().map(|(name, shape)| spec(format!("{prefix}{name}"), shape)));
        }
        all.push(spec(FINAL_NORM.into(), &[hidden]));
        all
    }

    /// The tensors of one layer, role and shape: those that its graph declares, in their order.
    pub fn layer_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let storage = Storage { weight: &|_| DType::F32, cache: DType::F32 };
        let layer = graph::layer(self, &storage, LayerType::Full, 0, "layer");
        let weights = layer.inputs.into_iter().filter(|input| input.kind == InputKind::Weight);
        let sized = |input: Input| (input.name, input.ty.shape.iter().filter_map(|d| d.fixed()).collect());
        weights.map(sized).collect()
    }
}

fn spec(name: String, shape: &[usize]) -> TensorSpec {
    let kind = match shape {
        [_] => TensorKind::Norm,
        _ if name == EMBEDDING => TensorKind::Embedding,
        _ => TensorKind::Matrix,
    };
    TensorSpec { name, shape: shape.to_vec(), kind }
}
