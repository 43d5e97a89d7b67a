//! Nodes to kernels: what each operator becomes. An operator that is new goes into [`Scheduler::node`].

use egg::Language;
use lapidary_ir::{DType, Dim, Id, Op, Type};
use lapidary_runtime::program::Tiles;

use super::{Done, Scheduler, Setting, Value, one_added};
use crate::Error;
use crate::kernel::{Body, Elementwise, Epilogue, Linear, Reduction};
use crate::lower::{self, linear};
use crate::view::View;

impl Scheduler<'_> {
    /// Schedules one node.
    pub(super) fn node(&mut self, id: Id) -> Done {
        use Elementwise as E;
        let op = self.op(id).clone();
        match op {
            Op::Num(_)
            | Op::Int(_)
            | Op::None
            | Op::DType(_)
            | Op::Dims(_)
            | Op::Online
            | Op::Bounded
            | Op::Store
            | Op::Gate
            | Op::Cap(_)
            | Op::Then(_)
            | Op::Program(_)
            | Op::Weights(_) => Ok(()),
            Op::Input(input) => {
                self.set(id, self.input_view(input.0 as usize));
                Ok(())
            }

            Op::Cast([x, _]) => {
                let (to, _) = self.tensor_type(id);
                let (from, _) = self.tensor_type(x);
                if to == DType::F32 && from.is_float() && !self.constant[usize::from(x)] {
                    let view = self.as_held(x)?;
                    self.set(id, view);
                    return Ok(());
                }
                self.elementwise(id, E::Copy, &[x])
            }
            Op::Neg(_)
            | Op::Recip(_)
            | Op::Sqrt(_)
            | Op::Rsqrt(_)
            | Op::Exp(_)
            | Op::Tanh(_)
            | Op::Cos(_)
            | Op::Sin(_)
            | Op::Abs(_)
            | Op::Floor(_)
            | Op::Log(_)
            | Op::Add(_)
            | Op::Sub(_)
            | Op::Mul(_)
            | Op::Div(_)
            | Op::Pow(_)
            | Op::Maximum(_)
            | Op::Minimum(_)
            | Op::Eq(_)
            | Op::Lt(_)
            | Op::Le(_)
            | Op::And(_)
            | Op::Or(_)
            | Op::Not(_)
            | Op::Select(_)
            | Op::GeluTanh(_)
            | Op::GatedGelu(_) => self.operator(id, op.children()),
            Op::Softcap([_, x]) => self.operator(id, &[x]),
            Op::Map(operands) => {
                let program = self.program(operands[0]);
                let inputs = operands[1..].iter().map(|&o| self.operand(o)).collect::<Result<Vec<_>, _>>()?;
                self.row_kernel(id, Body::Map(program), inputs)
            }
            Op::Iota(_) => self.elementwise(id, E::Iota, &[]),

            Op::Sum([x, axis]) => self.reduce(id, x, axis, Reduction::Sum),
            Op::Mean([x, axis]) => self.reduce(id, x, axis, Reduction::Mean),
            Op::Max([x, axis]) => self.reduce(id, x, axis, Reduction::Max),
            Op::Min([x, axis]) => self.reduce(id, x, axis, Reduction::Min),
            Op::Prod([x, axis]) => self.reduce(id, x, axis, Reduction::Prod),
            Op::Argmax([x, axis]) => self.reduce(id, x, axis, Reduction::Argmax),

            Op::Matmul([a, b]) => self.matmul(id, a, b),

            Op::Reshape([x, to]) => {
                let (x_view, to) = (self.operand(x)?, self.dims(to));
                let view = match x_view.reshaped(&to) {
                    Some(view) => view,
                    None => {
                        let dense = self.copy(id, &x_view);
                        dense.reshaped(&to).ok_or_else(|| {
                            self.unsupported(id, "a reshape that moves a named axis has no layout")
                        })?
                    }
                };
                self.set(id, view);
                Ok(())
            }
            Op::Transpose([x, p]) => {
                let view = self.operand(x)?;
                let Op::Dims(p) = self.op(p) else { unreachable!("a permutation was inferred") };
                let Some(order) = p.permutation() else { unreachable!("a permutation was inferred") };
                self.set(id, view.transposed(&order));
                Ok(())
            }
            Op::Broadcast([x, to]) => {
                let (view, to) = (self.operand(x)?, self.dims(to));
                self.set(id, view.stretched(&to));
                Ok(())
            }
            Op::Slice([x, axis, start, len]) => {
                let view = self.operand(x)?;
                let axis = self.int(axis) as usize;
                if view.axes[axis].dim == Dim::Keys {
                    return Err(self.unsupported(id, "slices of keys have no kernel"));
                }
                self.set(id, view.sliced(axis, self.int(start), self.int(len) as usize));
                Ok(())
            }
            Op::Concat([a, b, axis]) => {
                let (dtype, dims) = self.tensor_type(id);
                let axis = self.int(axis) as usize;
                let output = self.result(id, dtype, &dims);
                let mut start = 0;
                for part in [a, b] {
                    let part = self.operand(part)?;
                    let Dim::Fixed(len) = part.axes[axis].dim else {
                        unreachable!("concat of fixed lengths")
                    };
                    let to = output.sliced(axis, start, len);
                    self.push_rows(id, Body::Elementwise(E::Copy), vec![part], to);
                    start += len as i64;
                }
                self.set(id, output);
                Ok(())
            }
            Op::Pad([x, axis, before, _, value]) => {
                let (dtype, dims) = self.tensor_type(id);
                let (axis, start) = (self.int(axis) as usize, self.int(before));
                let output = self.result(id, dtype, &dims);
                let (x, value) = (self.operand(x)?, self.operand(value)?);
                let (Dim::Fixed(n), Dim::Fixed(whole)) = (x.axes[axis].dim, dims[axis]) else {
                    unreachable!("a padded axis is fixed")
                };
                let end = start as usize + n;
                for (part, from, len) in
                    [(&value, 0, start as usize), (&x, start, n), (&value, end as i64, whole - end)]
                {
                    if len > 0 {
                        let to = output.sliced(axis, from, len);
                        self.push_rows(id, Body::Elementwise(E::Copy), vec![part.clone()], to);
                    }
                }
                self.set(id, output);
                Ok(())
            }
            Op::Take([x, ids, axis]) => {
                let (dtype, dims) = self.tensor_type(id);
                let axis = self.int(axis) as usize;
                let mut order: Vec<usize> = (0..dims.len()).filter(|&a| a != axis).collect();
                order.insert(0, axis);
                let inputs = vec![self.stored(x)?.transposed(&order), self.stored(ids)?];
                let output = self.result(id, dtype, &dims);
                self.push_rows(id, Body::Gather { scale: 1.0 }, inputs, output.transposed(&order));
                self.set(id, output);
                Ok(())
            }
            Op::Gather([table, ids]) => self.gather(id, table, ids, 1.0),
            Op::Embedding([table, ids, scale]) => self.gather(id, table, ids, self.number(scale)),
            Op::Append([cache, rows]) => {
                let rows = self.stored(rows)?;
                let Value::Tensor(cache) = &self.values[usize::from(cache)] else {
                    unreachable!("a cache is an input")
                };
                let cache = cache.clone();
                let Dim::Fixed(heads) = rows.axes[0].dim else { unreachable!("heads are fixed") };
                let tiles = Tiles { fixed: heads as u32, rows: 1 };
                self.push(id, Body::Append, vec![rows], vec![cache.clone()], tiles);
                self.set(id, cache);
                Ok(())
            }

            Op::RmsNorm([x, w, eps]) => {
                let inputs = vec![self.stored(x)?, self.norm_weights(w)?];
                self.row_kernel(id, Body::RmsNorm { eps: self.number(eps) }, inputs)
            }
            Op::AddRmsNorm([r, x, w, eps]) => {
                let inputs = vec![self.stored(r)?, self.stored(x)?, self.norm_weights(w)?];
                self.row_kernel(id, Body::AddRmsNorm { eps: self.number(eps) }, inputs)
            }
            Op::NormPrologue([x, w, eps]) => {
                let value =
                    Value::Prologue { x: self.rows(x)?, w: self.norm_weights(w)?, eps: self.number(eps) };
                self.values[usize::from(id)] = value;
                Ok(())
            }
            Op::Linear([x, weights, epilogue]) => self.linear(id, x, weights, epilogue),
            Op::Output([index, tuple]) => {
                let index = self.int(index) as usize;
                let Value::Tuple(views) = &self.values[usize::from(tuple)] else { unreachable!("a tuple") };
                let view = views[index].clone();
                self.set(id, view);
                Ok(())
            }

            Op::Rope([x, pos, f]) => self.by_rows(id, Body::Rope, &[x, pos, f]),
            Op::Scores([q, k, scale, cap]) => {
                let (scale, cap) = (self.number(scale), self.optional_number(cap));
                self.scores(id, [q, k], scale, cap)
            }
            Op::WindowMask([x, pos, window]) => {
                let body = Body::WindowMask { window: self.window(window) };
                self.by_rows(id, body, &[x, pos])
            }
            Op::Softmax([x, pos, window, mode]) => {
                let ranged = *self.op(pos) != Op::None;
                let body = Body::Softmax { ranged, window: self.window(window), maximum: self.maximum(mode) };
                if ranged { self.by_rows(id, body, &[x, pos]) } else { self.by_rows(id, body, &[x]) }
            }
            Op::Attention(operands) => self.attention(id, operands),
        }
    }

    /// An elementwise operator over these operands.
    fn operator(&mut self, id: Id, operands: &[Id]) -> Done {
        match Elementwise::of(self.op(id), |number| self.number(number)) {
            Some(op) => self.elementwise(id, op, operands),
            None => unreachable!("{} is elementwise", self.op(id)),
        }
    }

    fn elementwise(&mut self, id: Id, op: Elementwise, operands: &[Id]) -> Done {
        let (dtype, dims) = self.tensor_type(id);
        let inputs = operands.iter().map(|&o| self.operand(o)).collect::<Result<Vec<_>, _>>()?;
        if inputs.iter().any(|v| v.ring.is_some()) {
            return Err(self.unsupported(id, "only attention may read a cache that wraps"));
        }
        let output = self.result(id, dtype, &dims);
        self.push_rows(id, Body::Elementwise(op), inputs, output.clone());
        self.set(id, output);
        Ok(())
    }

    fn reduce(&mut self, id: Id, x: Id, axis: Id, reduction: Reduction) -> Done {
        let (dtype, dims) = self.tensor_type(id);
        let axis = self.int(axis) as usize;
        let mut order: Vec<usize> = (0..dims.len()).filter(|&a| a != axis).collect();
        order.push(axis);
        let x = self.stored(x)?.transposed(&order);
        let output = self.result(id, dtype, &dims);
        self.push_rows(id, Body::Reduce(reduction), vec![x], output.transposed(&order));
        self.set(id, output);
        Ok(())
    }

    /// A kernel of stored operands whose tiles are its output's rows.
    fn by_rows(&mut self, id: Id, body: Body, operands: &[Id]) -> Done {
        let inputs = operands.iter().map(|&o| self.stored(o)).collect::<Result<Vec<_>, _>>()?;
        self.row_kernel(id, body, inputs)
    }

    /// The weights of a norm.
    fn norm_weights(&mut self, w: Id) -> Result<View, Error> {
        match one_added(self.function, w) {
            Some(whole) => Ok(View { one_added: true, ..self.stored(whole)? }),
            None => self.stored(w),
        }
    }

    /// The same of views.
    fn row_kernel(&mut self, id: Id, body: Body, inputs: Vec<View>) -> Done {
        if inputs.iter().any(|v| v.ring.is_some()) {
            return Err(self.unsupported(id, "only attention may read a cache that wraps"));
        }
        let (dtype, dims) = self.tensor_type(id);
        let output = self.result(id, dtype, &dims);
        self.push_rows(id, body, inputs, output.clone());
        self.set(id, output);
        Ok(())
    }

    fn gather(&mut self, id: Id, table_id: Id, ids: Id, scale: f32) -> Done {
        let (dtype, dims) = self.tensor_type(id);
        let table = self.as_held(table_id)?;
        let table = if table.dtype.is_quantised() { table } else { self.stored(table_id)? };
        let inputs = vec![table, self.stored(ids)?];
        // Quantised rows come out as the numbers they are.
        let dtype = if dtype.is_quantised() { DType::F32 } else { dtype };
        let output = self.result(id, dtype, &dims);
        self.push_rows(id, Body::Gather { scale }, inputs, output.clone());
        self.set(id, output);
        Ok(())
    }

    fn linear(&mut self, id: Id, x: Id, weights: Id, epilogue: Id) -> Done {
        let (mut inputs, prologue) = if let Value::Prologue { x, w, eps } = &self.values[usize::from(x)] {
            (vec![x.clone(), w.clone()], Some(*eps))
        } else {
            (vec![self.wide_rows(x)?], None)
        };
        let Op::Weights(list) = self.op(weights).clone() else { unreachable!("weights were inferred") };
        let mut views = vec![];
        for &w in &list {
            views.push(self.weight(w)?);
        }
        let mut taken = vec![];
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "an epilogue was inferred: it stores, if none of these"
        )]
        let epilogue = match self.op(epilogue).clone() {
            Op::Cap(cap) => Epilogue::Softcap(self.number(cap)),
            Op::Gate => Epilogue::Gate,
            Op::Then(operands) => {
                for &operand in &operands[1..] {
                    taken.push(self.operand(operand)?);
                }
                if taken.iter().any(|v| v.ring.is_some()) {
                    return Err(self.unsupported(id, "only attention may read a cache that wraps"));
                }
                Epilogue::Then(list.len(), self.program(operands[0]))
            }
            _ => Epilogue::Store,
        };
        let Setting { capacity, regime, features, rounded, .. } = self.setting;
        let row_dim = inputs[0].axes[0].dim;
        let most = capacity.of(row_dim);
        let regime = if row_dim == Dim::Rows { *regime } else { most };
        let mut kernel = linear::choose(prologue, epilogue, &views, (regime, most), *rounded, features);
        let tiles = linear::tiles(&views, &kernel, row_dim, *capacity);
        if let Some(before) = linear::preparation(&kernel, &inputs[0], *capacity) {
            let dims = before.output.dims();
            let order: Vec<usize> = (0..dims.len()).collect();
            let ready = self.temporary(before.output.dtype, &dims, &order);
            let tiles = before.tiles;
            self.push(id, before.body, inputs, vec![ready.clone()], tiles);
            inputs = vec![ready];
            kernel = Linear { prologue: None, ready: true, ..kernel };
        }
        let body = Body::Linear(kernel);
        inputs.extend(views);
        inputs.extend(taken);
        if let Type::Tuple(types) = self.types[usize::from(id)].clone() {
            let outputs: Vec<View> = types
                .iter()
                .map(|t| self.temporary(t.dtype, &t.shape, &(0..t.rank()).collect::<Vec<_>>()))
                .collect();
            self.push(id, body, inputs, outputs.clone(), tiles);
            self.values[usize::from(id)] = Value::Tuple(outputs);
        } else {
            let (dtype, dims) = self.tensor_type(id);
            let output = self.result(id, dtype, &dims);
            self.push(id, body, inputs, vec![output.clone()], tiles);
            self.set(id, output);
        }
        Ok(())
    }

    fn attention(&mut self, id: Id, [q, k, v, pos, scale, cap, window, mode]: [Id; 8]) -> Done {
        let (scale, cap) = (self.number(scale), self.optional_number(cap));
        let (window, maximum) = (self.window(window), self.maximum(mode));
        let inputs = vec![self.stored(q)?, self.cached(k)?, self.cached(v)?, self.stored(pos)?];
        let (dtype, dims) = self.tensor_type(id);
        let output = self.result(id, dtype, &dims);
        let fixed = |input: usize, axis: usize| match inputs[input].axes[axis].dim {
            Dim::Fixed(n) => n,
            Dim::Rows | Dim::Keys => unreachable!("heads and their lengths are fixed"),
        };
        let (groups, heads) = (fixed(1, 0), fixed(0, 0));
        let Setting { capacity, regime, features, rounded, .. } = *self.setting;
        let row_dim = inputs[0].axes[1].dim;
        let regime = if row_dim == Dim::Rows { regime } else { capacity.of(row_dim) };
        let way = lower::attention_way(&inputs, rounded, regime, &features);
        let mut tiles = way.tiles(groups, heads / groups, row_dim);
        let body = |parts| Body::Attention { scale, cap, window, maximum, parts, way };
        match lower::attention_parts(way, &inputs, window, capacity) {
            Some((parts, width)) => {
                let dims = [Dim::Rows, Dim::Fixed(heads), Dim::Fixed(parts), Dim::Fixed(width)];
                let held = self.temporary(DType::F32, &dims, &[0, 1, 2, 3]);
                let pos = inputs[3].clone();
                tiles.fixed *= parts as u32;
                self.push(id, body(parts), inputs, vec![held.clone()], tiles);
                let merge = Body::MergeAttention { window, maximum };
                self.push_rows(id, merge, vec![held, pos], output.clone());
            }
            None => self.push(id, body(1), inputs, vec![output.clone()], tiles),
        }
        self.set(id, output);
        Ok(())
    }
}
