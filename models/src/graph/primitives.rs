//! The primitives that layers are written in: a builder that knows the configuration and how weights are stored.
//!
//! In: values of a function being written. Out: further ones, each from operators that a paper would name. A weight is
//! declared where it is first used, by its name in the checkpoint; the order of declarations is the order of a layer's
//! tensors.

use lapidary_ir::{Builder, DType, Dim, Id, InputKind, Op};

use super::Storage;
use crate::config::{Config, LayerType, NormWeights};

/// A value as it is stored.
pub(super) struct Stored {
    pub(super) id: Id,
    pub(super) dtype: DType,
}

/// A function being written.
pub(crate) struct Graph<'a> {
    pub(super) b: Builder,
    /// Of the model.
    pub(crate) config: &'a Config,
    storage: &'a Storage<'a>,
    /// What is put before names of weights that are a layer's.
    prefix: String,
}

impl<'a> Graph<'a> {
    /// An empty function; a layer's weights are stored as those under this prefix.
    pub(super) fn new(name: &str, prefix: String, config: &'a Config, storage: &'a Storage<'a>) -> Graph<'a> {
        Graph { b: Builder::new(name), config, storage, prefix }
    }

    /// Declares a weight under its name in the checkpoint (a layer's without the layer's prefix).
    pub(super) fn stored(&mut self, name: &str, shape: &[usize]) -> Stored {
        let full = if name.starts_with("model.") { name.into() } else { self.prefix.clone() + name };
        let dtype = (self.storage.weight)(&full);
        let dims: Vec<Dim> = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        Stored { id: self.b.input(name, InputKind::Weight, dtype, &dims), dtype }
    }

    /// A stored value as f32.
    pub(super) fn widen(&mut self, stored: Stored) -> Id {
        if stored.dtype == DType::F32 {
            return stored.id;
        }
        let f32 = self.b.dtype(DType::F32);
        self.b.add(Op::Cast([stored.id, f32]))
    }

    /// x y.
    pub(crate) fn product(&mut self, x: Id, y: Id) -> Id {
        self.b.add(Op::Mul([x, y]))
    }

    /// x + y.
    pub(crate) fn sum(&mut self, x: Id, y: Id) -> Id {
        self.b.add(Op::Add([x, y]))
    }

    /// x times a number.
    pub(crate) fn times(&mut self, x: Id, factor: f32) -> Id {
        let factor = self.b.num(factor);
        self.product(x, factor)
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

    /// x (T, K) times w (N, K) transposed: (T, N).
    pub(crate) fn linear(&mut self, x: Id, name: &str, n: usize, k: usize) -> Id {
        let w = self.stored(name, &[n, k]);
        let w = self.widen(w);
        let w = self.transpose(w, &[1, 0]);
        self.b.add(Op::Matmul([x, w]))
    }

    /// The norm of x (T, hidden).
    pub(crate) fn rms_norm(&mut self, x: Id, name: &str) -> Id {
        self.norm(x, 1, name, self.config.hidden_size)
    }

    /// x / sqrt(mean(x^2) + eps) * (1 + w) along the last axis, of `width`; the multiplication in f32.
    pub(crate) fn norm(&mut self, x: Id, last_axis: i64, name: &str, width: usize) -> Id {
        let axis = self.b.int(last_axis);
        let squares = self.product(x, x);
        let mean = self.b.add(Op::Mean([squares, axis]));
        let eps = self.b.num(self.config.rms_norm_eps as f32);
        let mean = self.sum(mean, eps);
        let scale = self.b.add(Op::Rsqrt(mean));
        let x = self.product(x, scale);
        let w = self.stored(name, &[width]);
        let w = self.widen(w);
        let w = match self.config.norm_weights {
            NormWeights::LessOne => {
                let one = self.b.num(1.0);
                self.sum(one, w)
            }
            NormWeights::Whole => w,
        };
        self.product(x, w)
    }

    /// tanh(x / cap) * cap; x itself without a cap.
    pub(crate) fn softcap(&mut self, x: Id, cap: Option<f32>) -> Id {
        let Some(cap) = cap else { return x };
        let cap = self.b.num(cap);
        let x = self.b.add(Op::Div([x, cap]));
        let x = self.b.add(Op::Tanh(x));
        self.product(x, cap)
    }

    /// Queries (heads, T, head_dim), keys and values (kv_heads, T, head_dim) of x (T, hidden), before RoPE.
    pub(crate) fn qkv(&mut self, x: Id) -> [Id; 3] {
        let c = self.config;
        let (hidden, d) = (c.hidden_size, c.head_dim);
        let (heads, groups) = (c.num_attention_heads, c.num_key_value_heads);
        let q = self.linear(x, "self_attn.q_proj.weight", heads * d, hidden);
        let k = self.linear(x, "self_attn.k_proj.weight", groups * d, hidden);
        let v = self.linear(x, "self_attn.v_proj.weight", groups * d, hidden);
        [self.split_heads(q, heads), self.split_heads(k, groups), self.split_heads(v, groups)]
    }

    /// (T, heads * head_dim) -> (heads, T, head_dim).
    fn split_heads(&mut self, x: Id, heads: usize) -> Id {
        let x = self.reshape(x, &[Dim::Rows, Dim::Fixed(heads), Dim::Fixed(self.config.head_dim)]);
        self.transpose(x, &[1, 0, 2])
    }

    /// cos and sin (T, head_dim) of the angles pos * theta^(-2i / head_dim) / factor, the same for both halves.
    pub(crate) fn rotary(&mut self, pos: Id, kind: LayerType) -> (Id, Id) {
        let rope = self.config.rope(kind);
        let half = self.config.head_dim / 2;
        let f32 = self.b.dtype(DType::F32);
        let dims = self.b.dims(&[Dim::Fixed(half)]);
        let i = self.b.add(Op::Iota([dims, f32]));
        let i = self.times(i, 2.0);
        let head_dim = self.b.num(self.config.head_dim as f32);
        let exponent = self.b.add(Op::Div([i, head_dim]));
        let theta = self.b.num(rope.theta as f32);
        let period = self.b.add(Op::Pow([theta, exponent]));
        let mut frequencies = self.b.add(Op::Recip(period));
        if rope.factor != 1.0 {
            let factor = self.b.num(rope.factor as f32);
            frequencies = self.b.add(Op::Div([frequencies, factor]));
        }
        let pos = self.b.add(Op::Cast([pos, f32]));
        let pos = self.reshape(pos, &[Dim::Rows, Dim::Fixed(1)]);
        let angles = self.product(pos, frequencies);
        let axis = self.b.int(1);
        let angles = self.b.add(Op::Concat([angles, angles, axis]));
        (self.b.add(Op::Cos(angles)), self.b.add(Op::Sin(angles)))
    }

    /// x (heads, T, head_dim): x * cos + rotate_half(x) * sin.
    pub(crate) fn rope(&mut self, x: Id, (cos, sin): (Id, Id)) -> Id {
        let (axis, zero, half) =
            (self.b.int(2), self.b.int(0), self.b.int((self.config.head_dim / 2) as i64));
        let second = self.b.add(Op::Slice([x, axis, half, half]));
        let second = self.b.add(Op::Neg(second));
        let first = self.b.add(Op::Slice([x, axis, zero, half]));
        let rotated = self.b.add(Op::Concat([second, first, axis]));
        let straight = self.product(x, cos);
        let turned = self.product(rotated, sin);
        self.sum(straight, turned)
    }

    /// Appends rows (kv_heads, T, head_dim) to a cache and repeats it for every query head: (heads, S, head_dim).
    fn cached(&mut self, name: &str, rows: Id, kind: LayerType) -> Id {
        let c = self.config;
        let dtype = self.storage.cache;
        let (groups, d) = (Dim::Fixed(c.num_key_value_heads), Dim::Fixed(c.head_dim));
        let window = c.window(kind);
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

    /// Scaled scores (heads, T, S) of queries (heads, T, head_dim) with keys (heads, S, head_dim).
    fn scores(&mut self, q: Id, k: Id) -> Id {
        let k = self.transpose(k, &[0, 2, 1]);
        let scores = self.b.add(Op::Matmul([q, k]));
        self.times(scores, self.config.attention_scale())
    }

    /// scores (heads, T, S): -inf where key j is after the row's position, or a window or more before it.
    fn mask(&mut self, scores: Id, pos: Id, kind: LayerType) -> Id {
        let i32 = self.b.dtype(DType::I32);
        let keys = self.b.dims(&[Dim::Keys]);
        let key = self.b.add(Op::Iota([keys, i32]));
        let key = self.reshape(key, &[Dim::Fixed(1), Dim::Keys]);
        let query = self.reshape(pos, &[Dim::Rows, Dim::Fixed(1)]);
        let mut visible = self.b.add(Op::Le([key, query]));
        if let Some(window) = self.config.window(kind) {
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

    /// Values (heads, S, head_dim) mixed by weights (heads, T, S), and their projection: (T, hidden).
    fn mix(&mut self, weights: Id, v: Id) -> Id {
        let c = self.config;
        let width = c.num_attention_heads * c.head_dim;
        let x = self.b.add(Op::Matmul([weights, v]));
        let x = self.transpose(x, &[1, 0, 2]);
        let x = self.reshape(x, &[Dim::Rows, Dim::Fixed(width)]);
        self.linear(x, "self_attn.o_proj.weight", c.hidden_size, width)
    }

    /// Attention of q (heads, T, head_dim) over k and v (kv_heads, T, head_dim), appended to the caches, projected:
    /// (T, hidden). Scores are scaled, capped if the configuration says so, and masked, in this order.
    pub(crate) fn attend(&mut self, [q, k, v]: [Id; 3], pos: Id, kind: LayerType) -> Id {
        let k = self.cached("k_cache", k, kind);
        let v = self.cached("v_cache", v, kind);
        let scores = self.scores(q, k);
        let scores = self.softcap(scores, self.config.attn_logit_softcapping);
        let scores = self.mask(scores, pos, kind);
        let weights = self.softmax(scores);
        self.mix(weights, v)
    }

    /// A layer with norms before and after both of its halves, x (T, hidden) -> (T, hidden).
    pub(crate) fn layer_of_four_norms(&mut self, x: Id, attention: impl FnOnce(&mut Self, Id) -> Id) -> Id {
        let h = self.rms_norm(x, "input_layernorm.weight");
        let h = attention(self, h);
        let h = self.rms_norm(h, "post_attention_layernorm.weight");
        let x = self.sum(x, h);

        let h = self.rms_norm(x, "pre_feedforward_layernorm.weight");
        let h = self.mlp(h);
        let h = self.rms_norm(h, "post_feedforward_layernorm.weight");
        self.sum(x, h)
    }

    /// down(gelu_tanh(gate(x)) * up(x)).
    pub(crate) fn mlp(&mut self, x: Id) -> Id {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let gate = self.linear(x, "mlp.gate_proj.weight", inner, hidden);
        let up = self.linear(x, "mlp.up_proj.weight", inner, hidden);
        let gate = self.gelu_tanh(gate);
        let x = self.product(gate, up);
        self.linear(x, "mlp.down_proj.weight", hidden, inner)
    }

    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    fn gelu_tanh(&mut self, x: Id) -> Id {
        let square = self.product(x, x);
        let cube = self.product(square, x);
        let cube = self.times(cube, 0.044715);
        let inner = self.sum(x, cube);
        let c = (2.0 / std::f64::consts::PI).sqrt() as f32;
        let inner = self.times(inner, c);
        let tanh = self.b.add(Op::Tanh(inner));
        let one = self.b.num(1.0);
        let gate = self.sum(one, tanh);
        let half = self.times(x, 0.5);
        self.product(half, gate)
    }
}
