//! A model as a module of the tensor language, and the paper-shaped primitives that families write their layers in.
//!
//! In: a configuration and how its weights and caches are stored. Out: `embed`, one layer function for each kind of
//! layer and the formats of its weights (`layer_local`, `layer_local.1`, `layer_global`), and two heads. Nothing is
//! fused here: heads are repeated by a broadcast, the mask is a comparison and a select, softcap is div, tanh, mul.
//! Names and order follow the `modeling_gemma*.py` of Hugging Face transformers and the report "Gemma 2: Improving Open
//! Language Models at a Practical Size" (2024), section 2.

mod primitives;

use lapidary_ir::{DType, Dim, Function, InputKind, Module, Op};

use crate::config::{Config, LayerType};
use crate::dtype::{TensorFormat, WeightDType};
use crate::layout::{EMBEDDING, FINAL_NORM};

pub(crate) use primitives::Graph;
use primitives::Stored;

/// How tensors are stored, which the graph states as types.
pub struct Storage<'a> {
    /// dtype of a tensor of the checkpoint, by its whole name.
    pub weight: &'a dyn Fn(&str) -> DType,
    /// dtype of the KV cache.
    pub cache: DType,
}

/// A layer function: of one kind of layer, with its weights in certain formats.
struct LayerFunction {
    kind: LayerType,
    /// Of its weights, in the order of a layer's tensors.
    formats: Vec<DType>,
    /// The first layer that is so.
    first: usize,
    /// How many functions of this kind come before it.
    number: usize,
}

impl LayerFunction {
    /// `layer_local`; of those that come later with other formats `layer_local.1` and so on.
    fn name(&self) -> String {
        let kind = match self.kind {
            LayerType::Sliding => "layer_local",
            LayerType::Full => "layer_global",
        };
        match self.number {
            0 => kind.into(),
            number => format!("{kind}.{number}"),
        }
    }
}

/// The layer functions there are, and the number of each layer's.
fn layer_functions(config: &Config, weight: &dyn Fn(&str) -> DType) -> (Vec<LayerFunction>, Vec<usize>) {
    let roles = config.layer_tensors();
    let mut functions: Vec<LayerFunction> = vec![];
    let mut of = Vec::with_capacity(config.layer_types.len());
    for (layer, &kind) in config.layer_types.iter().enumerate() {
        let prefix = layer_prefix(layer);
        let formats: Vec<DType> = roles.iter().map(|(role, _)| weight(&format!("{prefix}{role}"))).collect();
        let same = |f: &LayerFunction| f.kind == kind && f.formats == formats;
        of.push(functions.iter().position(same).unwrap_or_else(|| {
            let number = functions.iter().filter(|f| f.kind == kind).count();
            functions.push(LayerFunction { kind, formats, first: layer, number });
            functions.len() - 1
        }));
    }
    (functions, of)
}

/// Each layer's function in [`module`], and the prefix of its weights. `weight` is [`Storage::weight`].
pub fn layers(config: &Config, weight: &dyn Fn(&str) -> DType) -> Vec<(String, String)> {
    let (functions, of) = layer_functions(config, weight);
    of.into_iter().enumerate().map(|(layer, f)| (functions[f].name(), layer_prefix(layer))).collect()
}

/// What is put before a layer function's weight names: `model.layers.3.`.
pub fn layer_prefix(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// The model's module.
pub fn module(config: &Config, storage: &Storage<'_>) -> Module {
    let mut functions = vec![embed(config, storage)];
    let (layers, _) = layer_functions(config, storage.weight);
    for kind in [LayerType::Sliding, LayerType::Full] {
        let own = layers.iter().filter(|f| f.kind == kind);
        functions.extend(own.map(|f| layer(config, storage, f.kind, f.first, &f.name())));
    }
    functions.extend([Head::Logits, Head::Argmax].map(|h| head(config, storage, h)));
    Module { functions }
}

/// What a head gives of each row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    /// Its logits.
    Logits,
    /// Its most likely token.
    Argmax,
}

/// ids (T) -> y (T, hidden).
fn embed(config: &Config, storage: &Storage<'_>) -> Function {
    let mut g = Graph::new("embed", String::new(), config, storage);
    let ids = g.b.input("ids", InputKind::Rows, DType::I32, &[Dim::Rows]);
    let table = g.stored(EMBEDDING, &[config.vocab_size, config.hidden_size]);
    let rows = g.b.add(Op::Gather([table.id, ids]));
    let rows = g.widen(Stored { id: rows, dtype: table.dtype });
    let y = g.times(rows, config.embedding_scale());
    g.b.output("y", y);
    g.b.finish()
}

/// x (T, hidden) -> logits (T, vocab) or token (T, 1).
fn head(config: &Config, storage: &Storage<'_>, head: Head) -> Function {
    let name = match head {
        Head::Logits => "head",
        Head::Argmax => "head_argmax",
    };
    let mut g = Graph::new(name, String::new(), config, storage);
    let x = g.b.input("x", InputKind::Rows, DType::F32, &[Dim::Rows, Dim::Fixed(config.hidden_size)]);
    let x = g.rms_norm(x, FINAL_NORM);
    let logits = g.linear(x, EMBEDDING, config.vocab_size, config.hidden_size);
    let logits = g.softcap(logits, config.final_logit_softcapping);
    match head {
        Head::Logits => g.b.output("logits", logits),
        Head::Argmax => {
            let axis = g.b.int(1);
            let token = g.b.add(Op::Argmax([logits, axis]));
            g.b.output("token", token);
        }
    }
    g.b.finish()
}

/// x (T, hidden), pos (T), caches (kv_heads, S, head_dim) -> y (T, hidden), caches; its weights stored as those of
/// layer
/// `number` are.
pub(crate) fn layer(
    config: &Config,
    storage: &Storage<'_>,
    kind: LayerType,
    number: usize,
    name: &str,
) -> Function {
    let mut g = Graph::new(name, layer_prefix(number), config, storage);
    let hidden = Dim::Fixed(config.hidden_size);
    let x = g.b.input("x", InputKind::Rows, DType::F32, &[Dim::Rows, hidden]);
    let pos = g.b.input("pos", InputKind::Rows, DType::I32, &[Dim::Rows]);
    let y = (config.family.layer)(&mut g, x, pos, kind);
    g.b.output("y", y);
    g.b.finish()
}

impl From<WeightDType> for DType {
    fn from(dtype: WeightDType) -> DType {
        match dtype {
            WeightDType::F32 => DType::F32,
            WeightDType::F16 => DType::F16,
            WeightDType::BF16 => DType::BF16,
        }
    }
}

impl From<TensorFormat> for DType {
    fn from(format: TensorFormat) -> DType {
        match format {
            TensorFormat::Float(dtype) => dtype.into(),
            TensorFormat::Quant(format) => DType::Block(format),
        }
    }
}
