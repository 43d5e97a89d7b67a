//! Gemma 2 as a module of the tensor language, in naive, paper-shaped primitives.
//!
//! In: a configuration and how its weights and caches are stored. Out: `embed`, one layer function a kind
//! (`layer_local`, `layer_global`), and two heads. Nothing is fused here: heads are repeated by a broadcast, the mask
//! is a comparison and a select, softcap is div, tanh, mul. Names and order follow `modeling_gemma2.py` of Hugging Face
//! transformers and the report "Gemma 2: Improving Open Language Models at a Practical Size" (2024), section 2.

use lapidary_ir::{Builder, DType, Dim, Function, Id, InputKind, Module, Op};

use crate::config::{Config, LayerType};
use crate::dtype::{TensorFormat, WeightDType};

/// How tensors are stored, which the graph states as types.
pub struct Storage<'a> {
    /// dtype of a tensor of the checkpoint, by its name; layers' by the name in layer 0.
    pub weight: &'a dyn Fn(&str) -> DType,
    /// dtype of the KV cache.
    pub cache: DType,
}

/// The name of the embedding table, which is the head's matrix too.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// The name of the function of a layer type.
pub fn layer_name(kind: LayerType) -> &'static str {
    match kind {
        LayerType::Sliding => "layer_local",
        LayerType::Full => "layer_global",
    }
}

/// What is put before a layer function's weight names: `model.layers.3.`.
pub fn layer_prefix(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// The model's module.
pub fn module(config: &Config, storage: &Storage<'_>) -> Module {
    let mut functions = vec![embed(config, storage)];
    for kind in [LayerType::Sliding, LayerType::Full] {
        if config.layer_types.contains(&kind) {
            functions.push(layer(config, storage, kind));
        }
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
    let mut g = Graph { b: Builder::new("embed"), config, storage };
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
    let mut g = Graph { b: Builder::new(name), config, storage };
    let x = g.b.input("x", InputKind::Rows, DType::F32, &[Dim::Rows, Dim::Fixed(config.hidden_size)]);
    let x = g.rms_norm(x, "model.norm.weight");
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

/// x (T, hidden), pos (T), caches (kv_heads, S, head_dim) -> y (T, hidden), caches.
fn layer(config: &Config, storage: &Storage<'_>, kind: LayerType) -> Function {
    let mut g = Graph { b: Builder::new(layer_name(kind)), config, storage };
    let hidden = Dim::Fixed(config.hidden_size);
    let x = g.b.input("x", InputKind::Rows, DType::F32, &[Dim::Rows, hidden]);
    let pos = g.b.input("pos", InputKind::Rows, DType::I32, &[Dim::Rows]);
    let window = (kind == LayerType::Sliding).then_some(config.sliding_window);

    let h = g.rms_norm(x, "input_layernorm.weight");
    let h = g.attention(h, pos, window);
    let h = g.rms_norm(h, "post_attention_layernorm.weight");
    let x = g.b.add(Op::Add([x, h]));

    let h = g.rms_norm(x, "pre_feedforward_layernorm.weight");
    let h = g.mlp(h);
    let h = g.rms_norm(h, "post_feedforward_layernorm.weight");
    let y = g.b.add(Op::Add([x, h]));
    g.b.output("y", y);
    g.b.finish()
}

/// A value as it is stored.
struct Stored {
    id: Id,
    dtype: DType,
}

/// A function being written.
struct Graph<'a> {
    b: Builder,
    config: &'a Config,
    storage: &'a Storage<'a>,
}

impl Graph<'_> {
    /// Declares a weight under its name in the checkpoint (a layer's without the layer's prefix).
    fn stored(&mut self, name: &str, shape: &[usize]) -> Stored {
        let full = if name.starts_with("model.") { name.into() } else { layer_prefix(0) + name };
        let dtype = (self.storage.weight)(&full);
        let dims: Vec<Dim> = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        Stored { id: self.b.input(name, InputKind::Weight, dtype, &dims), dtype }
    }

    /// A stored value as f32.
    fn widen(&mut self, stored: Stored) -> Id {
        if stored.dtype == DType::F32 {
            return stored.id;
        }
        let f32 = self.b.dtype(DType::F32);
        self.b.add(Op::Cast([stored.id, f32]))
    }

    fn times(&mut self, x: Id, factor: f32) -> Id {
        let factor = self.b.num(factor);
        self.b.add(Op::Mul([x, factor]))
    }

    fn transpose(&mut self, x: Id, axes: &[usize]) -> Id {
        let axes: Vec<Dim> = axes.iter().map(|&a| Dim::Fixed(a)).collect();
        let axes = self.b.dims(&axes);
        self.b.add(Op::Transpose([x, axes]))
    }

    fn reshape(&mut self, x: Id, dims: &[Dim]) -> Id {
        let dims = self.b.dims(dims);
        self.b.add(Op::Reshape([x, dims]))
    }

    fn broadcast(&mut self, x: Id, dims: &[Dim]) -> Id {
        let dims = self.b.dims(dims);
        self.b.add(Op::Broadcast([x, dims]))
    }

    /// x (T, K) times w (N, K) transposed.
    fn linear(&mut self, x: Id, name: &str, n: usize, k: usize) -> Id {
        let w = self.stored(name, &[n, k]);
        let w = self.widen(w);
        let w = self.transpose(w, &[1, 0]);
        self.b.add(Op::Matmul([x, w]))
    }

    /// x / sqrt(mean(x^2) + eps) * (1 + w), the multiplication in f32.
    fn rms_norm(&mut self, x: Id, name: &str) -> Id {
        let axis = self.b.int(1);
        let squares = self.b.add(Op::Mul([x, x]));
        let mean = self.b.add(Op::Mean([squares, axis]));
        let eps = self.b.num(self.config.rms_norm_eps as f32);
        let mean = self.b.add(Op::Add([mean, eps]));
        let scale = self.b.add(Op::Rsqrt(mean));
        let x = self.b.add(Op::Mul([x, scale]));
        let w = self.stored(name, &[self.config.hidden_size]);
        let w = self.widen(w);
        let one = self.b.num(1.0);
        let w = self.b.add(Op::Add([one, w]));
        self.b.add(Op::Mul([x, w]))
    }

    /// tanh(x / cap) * cap.
    fn softcap(&mut self, x: Id, cap: Option<f32>) -> Id {
        let Some(cap) = cap else { return x };
        let cap = self.b.num(cap);
        let x = self.b.add(Op::Div([x, cap]));
        let x = self.b.add(Op::Tanh(x));
        self.b.add(Op::Mul([x, cap]))
    }

    /// (T, heads * head_dim) -> (heads, T, head_dim).
    fn split_heads(&mut self, x: Id, heads: usize) -> Id {
        let x = self.reshape(x, &[Dim::Rows, Dim::Fixed(heads), Dim::Fixed(self.config.head_dim)]);
        self.transpose(x, &[1, 0, 2])
    }

    /// cos and sin (T, head_dim) of the angles pos * theta^(-2i / head_dim), the same for both halves.
    fn rotary(&mut self, pos: Id) -> (Id, Id) {
        let half = self.config.head_dim / 2;
        let f32 = self.b.dtype(DType::F32);
        let dims = self.b.dims(&[Dim::Fixed(half)]);
        let i = self.b.add(Op::Iota([dims, f32]));
        let i = self.times(i, 2.0);
        let head_dim = self.b.num(self.config.head_dim as f32);
        let exponent = self.b.add(Op::Div([i, head_dim]));
        let theta = self.b.num(self.config.rope_theta as f32);
        let period = self.b.add(Op::Pow([theta, exponent]));
        let frequencies = self.b.add(Op::Recip(period));
        let pos = self.b.add(Op::Cast([pos, f32]));
        let pos = self.reshape(pos, &[Dim::Rows, Dim::Fixed(1)]);
        let angles = self.b.add(Op::Mul([pos, frequencies]));
        let axis = self.b.int(1);
        let angles = self.b.add(Op::Concat([angles, angles, axis]));
        (self.b.add(Op::Cos(angles)), self.b.add(Op::Sin(angles)))
    }

    /// x (heads, T, head_dim): x * cos + rotate_half(x) * sin.
    fn rope(&mut self, x: Id, (cos, sin): (Id, Id)) -> Id {
        let (axis, zero, half) =
            (self.b.int(2), self.b.int(0), self.b.int((self.config.head_dim / 2) as i64));
        let second = self.b.add(Op::Slice([x, axis, half, half]));
        let second = self.b.add(Op::Neg(second));
        let first = self.b.add(Op::Slice([x, axis, zero, half]));
        let rotated = self.b.add(Op::Concat([second, first, axis]));
        let straight = self.b.add(Op::Mul([x, cos]));
        let turned = self.b.add(Op::Mul([rotated, sin]));
        self.b.add(Op::Add([straight, turned]))
    }

    /// Appends rows (kv_heads, T, head_dim) to a cache and repeats it for every query head: (heads, S, head_dim).
    fn cached(&mut self, name: &str, rows: Id, window: Option<usize>) -> Id {
        let c = self.config;
        let dtype = self.storage.cache;
        let (groups, d) = (Dim::Fixed(c.num_key_value_heads), Dim::Fixed(c.head_dim));
        let cache = self.b.input(name, InputKind::Cache { window }, dtype, &[groups, Dim::Keys, d]);
        // An append makes blocks of 8 bits itself.
        let rows = if dtype == DType::F32 || dtype.is_quantised() {
            rows
        } else {
            let dtype = self.b.dtype(dtype);
            self.b.add(Op::Cast([rows, dtype]))
        };
        let all = self.b.add(Op::Append([cache, rows]));
        self.b.output(name, all);
        let all = self.widen(Stored { id: all, dtype });
        let repeat = c.num_attention_heads / c.num_key_value_heads;
        if repeat == 1 {
            return all;
        }
        let all = self.reshape(all, &[groups, Dim::Fixed(1), Dim::Keys, d]);
        let all = self.broadcast(all, &[groups, Dim::Fixed(repeat), Dim::Keys, d]);
        self.reshape(all, &[Dim::Fixed(c.num_attention_heads), Dim::Keys, d])
    }

    /// scores (heads, T, S): -inf where key j is after the row's position, or window or more before it.
    fn mask(&mut self, scores: Id, pos: Id, window: Option<usize>) -> Id {
        let i32 = self.b.dtype(DType::I32);
        let keys = self.b.dims(&[Dim::Keys]);
        let key = self.b.add(Op::Iota([keys, i32]));
        let key = self.reshape(key, &[Dim::Fixed(1), Dim::Keys]);
        let query = self.reshape(pos, &[Dim::Rows, Dim::Fixed(1)]);
        let mut visible = self.b.add(Op::Le([key, query]));
        if let Some(window) = window {
            let window = self.b.int(window as i64);
            let before = self.b.add(Op::Sub([query, window]));
            let near = self.b.add(Op::Lt([before, key]));
            visible = self.b.add(Op::And([visible, near]));
        }
        let hidden = self.b.num(f32::NEG_INFINITY);
        self.b.add(Op::Select([visible, scores, hidden]))
    }

    /// Along the last of three axes.
    fn softmax(&mut self, x: Id) -> Id {
        let axis = self.b.int(2);
        let max = self.b.add(Op::Max([x, axis]));
        let x = self.b.add(Op::Sub([x, max]));
        let x = self.b.add(Op::Exp(x));
        let sum = self.b.add(Op::Sum([x, axis]));
        self.b.add(Op::Div([x, sum]))
    }

    fn attention(&mut self, x: Id, pos: Id, window: Option<usize>) -> Id {
        let c = self.config;
        let (heads, groups, d) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        let q = self.linear(x, "self_attn.q_proj.weight", heads * d, c.hidden_size);
        let k = self.linear(x, "self_attn.k_proj.weight", groups * d, c.hidden_size);
        let v = self.linear(x, "self_attn.v_proj.weight", groups * d, c.hidden_size);
        let (q, k, v) =
            (self.split_heads(q, heads), self.split_heads(k, groups), self.split_heads(v, groups));
        let rotary = self.rotary(pos);
        let (q, k) = (self.rope(q, rotary), self.rope(k, rotary));
        let k = self.cached("k_cache", k, window);
        let v = self.cached("v_cache", v, window);
        let k = self.transpose(k, &[0, 2, 1]);
        let scores = self.b.add(Op::Matmul([q, k]));
        let scores = self.times(scores, c.attention_scale());
        let scores = self.softcap(scores, c.attn_logit_softcapping);
        let scores = self.mask(scores, pos, window);
        let weights = self.softmax(scores);
        let x = self.b.add(Op::Matmul([weights, v]));
        let x = self.transpose(x, &[1, 0, 2]);
        let x = self.reshape(x, &[Dim::Rows, Dim::Fixed(heads * d)]);
        self.linear(x, "self_attn.o_proj.weight", c.hidden_size, heads * d)
    }

    /// down(gelu_tanh(gate(x)) * up(x)).
    fn mlp(&mut self, x: Id) -> Id {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let gate = self.linear(x, "mlp.gate_proj.weight", inner, hidden);
        let up = self.linear(x, "mlp.up_proj.weight", inner, hidden);
        let gate = self.gelu_tanh(gate);
        let x = self.b.add(Op::Mul([gate, up]));
        self.linear(x, "mlp.down_proj.weight", hidden, inner)
    }

    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    fn gelu_tanh(&mut self, x: Id) -> Id {
        let square = self.b.add(Op::Mul([x, x]));
        let cube = self.b.add(Op::Mul([square, x]));
        let cube = self.times(cube, 0.044715);
        let inner = self.b.add(Op::Add([x, cube]));
        let c = (2.0 / std::f64::consts::PI).sqrt() as f32;
        let inner = self.times(inner, c);
        let tanh = self.b.add(Op::Tanh(inner));
        let one = self.b.num(1.0);
        let gate = self.b.add(Op::Add([one, tanh]));
        let half = self.times(x, 0.5);
        self.b.add(Op::Mul([half, gate]))
    }
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
