//! How long a kernel's arithmetic takes: at the rate of its kind, of the weights' format and of the row regime.
//!
//! In: a node and its [`Work`]. Out: the work's times of one thread, and the tiles that threads share. Row regimes are
//! those of code generation: dot products of each row, of several rows, tiles of packed rows.

use egg::Id;
use lapidary_ir::{DType, Op, Type};

use super::cost::CostModel;
use super::operands::{from_weights, head_dim, sees_all, weights_of};
use super::work::Work;
use crate::analysis::{Data, Graph};

/// How much longer what is done to a score takes with a running maximum.
const ONLINE: f64 = 1.5;
/// How deep a term of constants may be.
const CONSTANT_DEPTH: usize = 16;

impl CostModel {
    /// Sets what the arithmetic of a node takes.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what has no rate of its own is done element by element"
    )]
    pub(crate) fn arithmetic(&self, graph: &Graph, id: Id, node: &Op, work: &mut Work) {
        let m = &self.machine;
        // Of one thread: figures are for all.
        let t = m.threads;
        let data = |id: Id| &graph[id].data;
        let (size, rows) = match &data(id).ty {
            Type::Tensor(ty) | Type::Prologue(ty) => {
                let size = ty.elements(self.extent) as f64;
                let last = ty.shape.last().map_or(1, |d| d.at(self.extent)).max(1) as f64;
                (size, size / last)
            }
            Type::Tuple(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute => (0.0, 1.0),
        };
        work.tiles = rows.max(1.0);
        work.busy = match node {
            Op::NormPrologue([x, ..]) => {
                // Threads of dot products each norm all rows; of panels, each its own.
                if self.rows(data(*x)) <= m.dot_rows {
                    work.tiles = 1.0;
                }
                t * size * m.norm
            }
            Op::RmsNorm(_) | Op::AddRmsNorm(_) => t * size * m.norm,
            Op::Rope(_) => t * size * m.rope,
            Op::Linear([x, weights, epilogue]) => {
                return self.linear(graph, id, (*x, *weights, *epilogue), size, work);
            }
            Op::Attention(operands) => return self.attention(graph, operands, work),
            Op::Matmul([a, b]) | Op::Scores([a, b, ..]) => {
                let product = self.product(data(id), data(*a), data(*b));
                // Of weights there is a better kernel, which this one must not seem to be.
                let sums = if m.prefers_tiles(product) && !from_weights(graph, *b, 8) {
                    work.before = t * m.packing(product);
                    m.tiled(product)
                } else {
                    m.loose(product)
                };
                t * (sums + work.transcendentals * m.transcendental)
            }
            Op::Softmax([.., mode]) => {
                let online = if data(*mode).leaf == Some(Op::Bounded) { 1.0 } else { ONLINE };
                // What is exponentiated, and once more for the sum and the division.
                t * work.transcendentals * (m.transcendental + 2.0 * online * m.element)
            }
            Op::Sum([x, _])
            | Op::Mean([x, _])
            | Op::Max([x, _])
            | Op::Min([x, _])
            | Op::Prod([x, _])
            | Op::Argmax([x, _]) => t * self.elements(data(*x)) * m.reduce,
            Op::Append([_, new]) => {
                work.tiles = self.elements(data(*new)) / head_dim(data(*new)) as f64;
                t * self.elements(data(*new)) * m.element
            }
            Op::Slice(_) => 0.0,
            Op::Map(operands) => {
                let steps = self.map_steps(graph, operands, vec![]);
                t * (size * m.element + self.steps_time(steps))
            }
            _ => t * (size * m.element + work.transcendentals * m.transcendental),
        };
    }

    fn linear(
        &self,
        graph: &Graph,
        id: Id,
        (x, weights, epilogue): (Id, Id, Id),
        size: f64,
        work: &mut Work,
    ) {
        let m = &self.machine;
        let t = m.threads;
        let data = |id: Id| &graph[id].data;
        let rows = self.rows(data(x));
        let k = head_dim(data(x)) as f64;
        let (mut products, mut tiled, mut widening, mut dots) = (0.0, 0.0, 0.0, 0.0);
        let (mut weight_rows, mut pack) = (0.0, 0.0f64);
        for &w in weights_of(graph, weights) {
            let n = self.elements(data(w));
            let dtype = data(w).stored.unwrap_or(DType::F32);
            products += 2.0 * rows * n;
            tiled += 2.0 * rows * n / m.flops.of(dtype);
            widening += n * m.widen.of(dtype);
            pack = pack.max(m.pack.of(dtype));
            dots += n / m.dot.of(dtype) + (rows - 1.0) * n / m.dot_more.of(dtype);
            weight_rows += n / k;
        }
        let gated = data(epilogue).leaf == Some(Op::Gate);
        let stored = data(epilogue).leaf == Some(Op::Store);
        let count = weights_of(graph, weights).len();
        let then = match &data(epilogue).leaf {
            Some(Op::Then(operands)) => Some(self.steps_time(self.epilogue(graph, id, count, operands))),
            _ => None,
        };
        // Of the gate's two weights one result.
        let results = if gated || then.is_some() { weight_rows / count.max(1) as f64 } else { weight_rows };
        let epilogue = |gelu: f64| match (then, gated, stored) {
            (Some(time), ..) => time,
            (_, true, _) => size * gelu,
            (_, _, true) => 0.0,
            _ => size * m.transcendental,
        };
        if rows <= m.dot_rows {
            work.tiles = (results / m.shapes.dot_block as f64).ceil().max(1.0);
            work.busy = t * (dots + rows * weight_rows * m.dot_row + epilogue(m.transcendental));
            return;
        }
        // Rows are brought into the form that products take first.
        // Packed it is as long as before, more or less.
        let moved = self.waiting((2 * size_of::<f32>()) as f64);
        work.before = t * rows * k * (pack + moved);
        let few = rows <= m.few_rows;
        let summing = if few { products / m.few_flops } else { tiled + rows * weight_rows * m.store };
        work.tiles = (results / m.shapes.tile_block as f64).ceil().max(1.0);
        work.busy = t * (widening + summing + epilogue(m.gelu));
    }

    fn attention(&self, graph: &Graph, operands: &[Id; 8], work: &mut Work) {
        let m = &self.machine;
        let t = m.threads;
        let data = |id: Id| &graph[id].data;
        let [q, k, _, pos, _, _, window, mode] = *operands;
        let online = if data(mode).leaf == Some(Op::Bounded) { 1.0 } else { ONLINE };
        let (heads, rows) = (self.axis(data(q), 0), self.axis(data(q), 1));
        let (groups, keys) = (self.axis(data(k), 0), self.axis(data(k), 1));
        let limit = match data(window).leaf {
            Some(Op::Int(w)) if data(pos).leaf != Some(Op::None) => w as usize,
            _ => usize::MAX,
        };
        let window = limit.min(keys);
        let width = head_dim(data(q)) as f64;
        let many = rows as f64 > m.few_rows;
        let shapes = &m.shapes;
        let repeat = heads / groups.max(1);
        let block = many.then(|| shapes.panel_rows(repeat));
        let pairs = heads as f64 * self.seen((rows, keys), window, sees_all(graph, pos), block);
        if many {
            // Blocks of keys serve many rows: their streams hide behind products.
            work.key_bytes = 0.0;
            let parts = repeat.div_ceil(shapes.panel);
            work.tiles = (groups * parts * rows.div_ceil(shapes.tile_rows(repeat, rows))) as f64;
            work.busy = t * pairs * (4.0 * width / m.attention_tile_flops + online * m.score_tile);
            return;
        }
        let parts = window.div_ceil(shapes.part).clamp(1, shapes.parts);
        work.tiles = (groups * parts * rows.div_ceil(shapes.attention_rows)) as f64;
        work.busy = t * pairs * (4.0 * width / m.attention_flops + online * m.score);
        // Keys go in parts by how many there may be, not by how many there are.
        if limit >= 2 * shapes.part {
            work.after = t * (heads * rows) as f64 * width * m.element;
        }
    }

    /// Keys that are met by the rows of a call together: those that each sees; or by blocks of so many rows, the blocks
    /// of keys that any of them sees. The rows are the last of the keys, unless `all` of them see every key.
    pub fn seen(&self, (rows, keys): (usize, usize), window: usize, all: bool, block: Option<usize>) -> f64 {
        let first = keys.saturating_sub(rows);
        let (step, of) = (block.unwrap_or(1), self.machine.shapes.key_block);
        let mut sum = 0;
        for at in (0..rows).step_by(step) {
            let last = (at + step).min(rows);
            let (low, high) = match all {
                true => (0, keys),
                false => ((first + at + 1).saturating_sub(window), first + last),
            };
            let met = match block {
                Some(_) => high.next_multiple_of(of) - low / of * of,
                None => high - low,
            };
            sum += met * (last - at);
        }
        sum as f64
    }

    /// Rows of x.
    pub(crate) fn rows(&self, data: &Data) -> f64 {
        let first = data.ty.tensor_or_prologue().and_then(|t| t.shape.first());
        first.map_or(1, |d| d.at(self.extent)) as f64
    }
}

/// Whether a node is a term of constants of a fixed shape, which the schedule folds.
pub(crate) fn is_folded(graph: &Graph, class: Id, node: &Op) -> bool {
    fixed(graph, class) && of_constants(graph, node, CONSTANT_DEPTH)
}

fn fixed(graph: &Graph, class: Id) -> bool {
    graph[class].data.ty.tensor().is_some_and(|t| t.shape.iter().all(|d| d.fixed().is_some()))
}

fn of_constants(graph: &Graph, node: &Op, depth: usize) -> bool {
    let constant = |id: &Id| {
        matches!(graph[*id].data.ty, Type::Attribute)
            || (fixed(graph, *id) && graph[*id].nodes.iter().any(|n| of_constants(graph, n, depth - 1)))
    };
    depth > 0 && !matches!(node, Op::Input(_)) && egg::Language::children(node).iter().all(constant)
}
