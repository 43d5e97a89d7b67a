//! What a node's kernel does: the bytes that it moves and its operations, operator by operator.
//!
//! In: a node of an e-graph and a call's extent. Out: [`Work`], which [`CostModel`] makes a time of; nothing of what is
//! no kernel.

use egg::Id;
use lapidary_ir::{Op, TensorType, Type};

use super::arithmetic::is_folded;
use super::cost::CostModel;
use super::operands::{from_memory, has_keys, head_dim, repeats, sees_all, weights_of};
use crate::analysis::{Data, Graph, widens};

/// What a kernel does, before it is priced.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes of weights and caches read.
    pub memory_bytes: f64,
    /// Of these, what attention of few rows reads of keys and values.
    pub key_bytes: f64,
    /// Bytes of activations read and written.
    pub cache_bytes: f64,
    /// f32 operations.
    pub flops: f64,
    /// Operations of loops that are not tuned.
    pub loose_flops: f64,
    /// exp, tanh, sine, cosine, logarithm: elements.
    pub transcendentals: f64,
    /// Launches.
    pub launches: f64,
    /// The arithmetic of one thread that does all of it, nanoseconds.
    pub busy: f64,
    /// Pieces that threads share: at least 1.
    pub tiles: f64,
    /// The same of the kernels that prepare an operand: nanoseconds of one thread.
    pub before: f64,
    /// Of the kernel that adds up parts.
    pub after: f64,
}

impl CostModel {
    /// What a node's kernel does; `None` if it is no kernel.
    pub fn work(&self, graph: &Graph, id: Id, node: &Op) -> Option<Work> {
        let data = |id: Id| &graph[id].data;
        let elements = |t: &TensorType| t.elements(self.extent) as f64;
        let outputs: f64 = match &data(id).ty {
            Type::Tensor(t) | Type::Prologue(t) => t.bytes(self.extent) as f64,
            Type::Tuple(types) => types.iter().map(|t| t.bytes(self.extent) as f64).sum(),
            Type::Weights(_) | Type::Epilogue | Type::Attribute => 0.0,
        };
        let size = data(id).ty.tensor_or_prologue().map_or(0.0, elements);
        // Operands are activations (in cache) unless they come straight from the checkpoint or a KV cache.
        let mut work = Work { launches: 1.0, cache_bytes: outputs, ..Work::default() };
        let read = |work: &mut Work, id: Id| {
            let (cached, bytes) = self.operand(graph, data(id), id);
            if cached { work.cache_bytes += bytes } else { work.memory_bytes += bytes }
        };
        if is_folded(graph, id, node) {
            return None;
        }
        match node {
            Op::Num(_)
            | Op::Int(_)
            | Op::None
            | Op::DType(_)
            | Op::Dims(_)
            | Op::Online
            | Op::Bounded
            | Op::Input(_)
            | Op::Store
            | Op::Gate
            | Op::Cap(_)
            | Op::Then(_)
            | Op::Program(_)
            | Op::Weights(_)
            | Op::Output(_) => return None,
            // Keys or values repeated for each head of a group are no view of their cache: a copy of it is made.
            Op::Reshape([x, _]) if has_keys(data(*x)) && repeats(graph, *x) => read(&mut work, *x),
            // Views.
            Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) => return None,
            // A view, but one that must be copied where the caller wants it: the smaller the better.
            Op::Slice([x, ..]) if !has_keys(data(*x)) => work.launches = 0.0,
            Op::Cast([x, _]) if matches!(&data(id).ty, Type::Tensor(t) if widens(&data(*x).ty, t.dtype)) => {
                return None;
            }

            Op::Neg(x)
            | Op::Abs(x)
            | Op::Floor(x)
            | Op::Not(x)
            | Op::Recip(x)
            | Op::Sqrt(x)
            | Op::Rsqrt(x) => {
                read(&mut work, *x);
                work.flops = size;
            }
            Op::Exp(x)
            | Op::Log(x)
            | Op::Tanh(x)
            | Op::Cos(x)
            | Op::Sin(x)
            | Op::GeluTanh(x)
            | Op::Softcap([_, x]) => {
                read(&mut work, *x);
                work.transcendentals = size;
            }
            Op::Cast([x, _]) | Op::Slice([x, ..]) | Op::Take([x, ..]) => read(&mut work, *x),
            Op::Add([a, b])
            | Op::Sub([a, b])
            | Op::Mul([a, b])
            | Op::Div([a, b])
            | Op::Lt([a, b])
            | Op::Le([a, b])
            | Op::Eq([a, b])
            | Op::Maximum([a, b])
            | Op::Minimum([a, b])
            | Op::And([a, b])
            | Op::Or([a, b]) => {
                read(&mut work, *a);
                read(&mut work, *b);
                work.flops = size;
            }
            Op::Pow([a, b]) => {
                read(&mut work, *a);
                read(&mut work, *b);
                work.transcendentals = 2.0 * size;
            }
            Op::GatedGelu([a, b]) => {
                read(&mut work, *a);
                read(&mut work, *b);
                work.transcendentals = size;
            }
            Op::Select([c, a, b]) => {
                read(&mut work, *c);
                read(&mut work, *a);
                read(&mut work, *b);
                work.flops = size;
            }
            Op::Sum([x, _])
            | Op::Mean([x, _])
            | Op::Max([x, _])
            | Op::Min([x, _])
            | Op::Prod([x, _])
            | Op::Argmax([x, _]) => {
                read(&mut work, *x);
                work.flops = self.elements(data(*x));
            }
            Op::Matmul([a, b]) => {
                read(&mut work, *a);
                read(&mut work, *b);
                let inner = data(*a).ty.tensor().and_then(|t| t.shape.last());
                let inner = inner.map_or(1, |d| d.at(self.extent));
                work.loose_flops = 2.0 * size * inner as f64;
            }
            Op::Concat([a, b, _]) => {
                read(&mut work, *a);
                read(&mut work, *b);
                work.launches = 2.0;
            }
            Op::Pad([x, ..]) => {
                read(&mut work, *x);
                work.launches = 3.0;
            }
            Op::Gather(_) | Op::Embedding(_) => work.memory_bytes = outputs / 2.0,
            Op::Iota(_) => work.flops = size,
            Op::Append([_, rows]) => {
                read(&mut work, *rows);
                // Written in place: the rows, not the cache.
                work.cache_bytes = 2.0 * self.bytes(data(*rows));
            }

            Op::Map(operands) => {
                operands[1..].iter().for_each(|&operand| read(&mut work, operand));
                let steps = self.map_steps(graph, operands, vec![]);
                work.flops = steps.flops + steps.reduced;
                work.transcendentals = steps.transcendentals;
            }
            Op::RmsNorm([x, w, _]) => {
                read(&mut work, *x);
                read(&mut work, *w);
                work.flops = 4.0 * size;
            }
            Op::AddRmsNorm([r, x, w, _]) => {
                read(&mut work, *r);
                read(&mut work, *x);
                read(&mut work, *w);
                work.flops = 5.0 * size;
            }
            // Every thread norms all rows into scratch of its own: no launch, and nothing shared.
            Op::NormPrologue([_, w, _]) => {
                read(&mut work, *w);
                work.launches = 0.0;
                work.flops = 8.0 * size;
            }
            Op::Linear([x, weights, epilogue]) => {
                work.cache_bytes += self.bytes(data(*x));
                let (mut weight_bytes, mut products) = (0.0, 0.0);
                for &w in weights_of(graph, *weights) {
                    weight_bytes += self.operand(graph, data(w), w).1;
                    products += self.elements(data(w));
                }
                work.memory_bytes += weight_bytes;
                work.flops = 2.0 * self.rows(data(*x)) * products;
                match &data(*epilogue).leaf {
                    Some(Op::Store) => {}
                    Some(Op::Then(operands)) => {
                        operands[1..].iter().for_each(|&operand| read(&mut work, operand));
                        let steps = self.epilogue(graph, id, weights_of(graph, *weights).len(), operands);
                        work.flops += steps.flops;
                        work.transcendentals = steps.transcendentals;
                    }
                    _ => work.transcendentals = size,
                }
            }
            Op::Rope([x, ..]) => {
                read(&mut work, *x);
                work.transcendentals = size;
            }
            Op::Scores([q, k, _, cap]) => {
                read(&mut work, *q);
                read(&mut work, *k);
                work.loose_flops = 2.0 * size * head_dim(data(*q)) as f64;
                if data(*cap).leaf != Some(Op::None) {
                    work.transcendentals = size;
                }
            }
            Op::WindowMask([x, ..]) => read(&mut work, *x),
            Op::Softmax([x, pos, window, mode]) => {
                let share = self.visible(data(*pos), data(*window));
                work.cache_bytes += self.bytes(data(*x)) * share;
                work.transcendentals = size * share;
                work.flops = size * share * self.maximum_flops(data(*mode));
            }
            Op::Attention([q, k, v, pos, _, cap, window, mode]) => {
                let keys = self.axis(data(*k), 1);
                let share = match data(*window).leaf {
                    Some(Op::Int(w)) => (w as f64 / keys as f64).min(1.0),
                    _ => 1.0,
                };
                read(&mut work, *q);
                for x in [k, v] {
                    let (cached, bytes) = self.operand(graph, data(*x), *x);
                    if cached {
                        work.cache_bytes += bytes * share;
                    } else {
                        work.memory_bytes += bytes * share;
                        work.key_bytes += bytes * share;
                    }
                }
                let (rows, heads) = (self.axis(data(*q), 1), self.axis(data(*q), 0));
                let window = (share * keys as f64).round() as usize;
                let pairs = heads as f64 * self.seen((rows, keys), window, sees_all(graph, *pos), None);
                work.flops =
                    4.0 * pairs * head_dim(data(*q)) as f64 + pairs * self.maximum_flops(data(*mode));
                work.transcendentals = pairs * if data(*cap).leaf == Some(Op::None) { 1.0 } else { 3.0 };
            }
        }
        self.arithmetic(graph, id, node, &mut work);
        Some(work)
    }

    /// A running maximum costs a comparison and, now and then, a rescale.
    fn maximum_flops(&self, mode: &Data) -> f64 {
        if mode.leaf == Some(Op::Bounded) { 2.0 } else { 6.0 }
    }

    /// Share of the keys that a row sees, on average.
    fn visible(&self, pos: &Data, window: &Data) -> f64 {
        if pos.leaf == Some(Op::None) {
            return 1.0;
        }
        match window.leaf {
            Some(Op::Int(w)) => (w as f64 / self.extent.keys as f64).min(1.0),
            _ => 1.0,
        }
    }

    /// The length of an axis; 1 of what is no tensor.
    pub(crate) fn axis(&self, data: &Data, axis: usize) -> usize {
        data.ty.tensor().and_then(|t| t.shape.get(axis)).map_or(1, |d| d.at(self.extent))
    }

    pub(crate) fn elements(&self, data: &Data) -> f64 {
        data.ty.tensor_or_prologue().map_or(0.0, |t| t.elements(self.extent) as f64)
    }

    fn bytes(&self, data: &Data) -> f64 {
        let bytes = |t: &TensorType| data.stored.unwrap_or(t.dtype).row_bytes(t.elements(self.extent)) as f64;
        data.ty.tensor_or_prologue().map_or(0.0, bytes)
    }

    /// Whether an operand is in cache, and its bytes as stored.
    fn operand(&self, graph: &Graph, data: &Data, id: Id) -> (bool, f64) {
        (!from_memory(graph, id, 8), self.bytes(data))
    }
}
