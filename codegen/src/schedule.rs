//! The schedule: a fused function to a straight list of kernels over views.
//!
//! In: a function and what it is compiled for. Out: kernels in order, the buffers between them with their lifetimes, the
//! caller's slots, and folded tables. Movement operators and widening casts become views where strides can say so, and
//! copies where not; terms of constants are folded by the reference interpreter; a buffer whose consumer transposes and
//! reshapes it is laid out for that, so that neither moves anything.

use std::collections::HashMap;

use egg::Language;
use lapidary_ir::{DType, Dim, Function, Id, InputKind, Num, Op, Type, interp, text};
use lapidary_runtime::program::{Slot, SlotKind, Tiles};

use crate::Error;
use crate::emit::Features;
use crate::kernel::{Body, Elementwise, Epilogue, Kernel, Maximum, Reduction};
use crate::launch;
use crate::lower::{self, linear, pack};
use crate::micro;
use crate::view::{Base, BufferId, Capacity, View};

/// What a function is scheduled for.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The most rows and keys.
    pub capacity: Capacity,
    /// Rows of each cache that is held as a ring, by the input's name.
    pub rings: HashMap<String, usize>,
    /// What the CPU has.
    pub features: Features,
    /// Whether products may round their activations, to bf16 or to blocks of 8 bits.
    pub rounded: bool,
}

/// A temporary: written by kernel `first`, last read by kernel `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its length.
    pub bytes: usize,
    /// Index of the first kernel that touches it.
    pub first: usize,
    /// Index of the last kernel that touches it.
    pub last: usize,
}

/// A scheduled function.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// In the order that they run in.
    pub kernels: Vec<Kernel>,
    /// For each kernel, whether it runs along with the one before: see [`launch`].
    pub joins: Vec<bool>,
    /// The temporaries.
    pub buffers: Vec<Buffer>,
    /// The caller's operands.
    pub slots: Vec<Slot>,
    /// Folded tables; views point into them by byte offset.
    pub constants: Vec<u8>,
}

/// Whether every cache of a function could be a ring: only attention with a window reads it.
pub fn cache_can_wrap(function: &Function, input: &str) -> bool {
    let Some((id, declared)) = function.input(input) else { return false };
    let InputKind::Cache { window: Some(window) } = declared.kind else { return false };
    let nodes = function.body.as_ref();
    let mut views: Vec<bool> = vec![false; nodes.len()];
    for (at, op) in nodes.iter().enumerate() {
        let is_view = |x: &Id| views[usize::from(*x)];
        match op {
            Op::Append([cache, _]) => views[at] = nodes[usize::from(*cache)] == Op::Input(id),
            Op::Cast([x, _]) => views[at] = is_view(x),
            Op::Attention([_, _, _, _, _, _, w, _]) => {
                let fits = matches!(nodes[usize::from(*w)], Op::Int(w) if w as usize <= window);
                if op.children().iter().any(is_view) && !fits {
                    return false;
                }
            }
            _ if op.children().iter().any(is_view) => return false,
            _ => {}
        }
    }
    true
}

/// Schedules a function.
///
/// # Errors
/// [`Error::Unsupported`] names a node that has no kernel.
pub fn schedule(function: &Function, setting: &Setting) -> Result<Schedule, Error> {
    let types = function.types()?;
    let mut s = Scheduler {
        function,
        types: &types,
        setting,
        out: Schedule::default(),
        values: vec![Value::None; types.len()],
        live: live(function),
        constant: constants(function, &types),
        folded: HashMap::new(),
    };
    s.declare();
    for at in 0..types.len() {
        if s.live[at] && !s.constant[at] {
            s.node(Id::from(at))?;
        }
    }
    s.deliver()?;
    s.finish();
    Ok(s.out)
}

/// What a node has become.
#[derive(Clone, Debug)]
enum Value {
    None,
    Tensor(View),
    Tuple(Vec<View>),
    Prologue { x: View, w: View, eps: f32 },
}

struct Scheduler<'a> {
    function: &'a Function,
    types: &'a [Type],
    setting: &'a Setting,
    out: Schedule,
    values: Vec<Value>,
    live: Vec<bool>,
    constant: Vec<bool>,
    folded: HashMap<Id, View>,
}

/// Nodes that an output needs.
fn live(function: &Function) -> Vec<bool> {
    let nodes = function.body.as_ref();
    let mut live = vec![false; nodes.len()];
    for (_, id) in &function.outputs {
        live[usize::from(*id)] = true;
    }
    for at in (0..nodes.len()).rev() {
        if live[at] {
            nodes[at].for_each(|c| live[usize::from(c)] = true);
        }
    }
    live
}

/// Tensors of fixed shape that depend on no input.
fn constants(function: &Function, types: &[Type]) -> Vec<bool> {
    let mut constant = vec![false; types.len()];
    for (at, op) in function.body.as_ref().iter().enumerate() {
        let fixed = match &types[at] {
            Type::Tensor(t) => t.shape.iter().all(|d| d.fixed().is_some()),
            _ => false,
        };
        let operands = op
            .children()
            .iter()
            .all(|c| constant[usize::from(*c)] || matches!(types[usize::from(*c)], Type::Attribute));
        constant[at] = fixed && operands && !matches!(op, Op::Input(_));
    }
    constant
}

type Done = Result<(), Error>;

impl Scheduler<'_> {
    fn op(&self, id: Id) -> &Op {
        &self.function.body[id]
    }

    fn unsupported(&self, id: Id, reason: &str) -> Error {
        Error::Unsupported {
            function: self.function.name.clone(),
            node: text::node(self.function, id),
            reason: reason.into(),
        }
    }

    fn tensor_type(&self, id: Id) -> (DType, Vec<Dim>) {
        match &self.types[usize::from(id)] {
            Type::Tensor(t) | Type::Prologue(t) => (t.dtype, t.shape.0.clone()),
            other => unreachable!("a tensor was inferred, not {other}"),
        }
    }

    /// Declares slots: every input, then the outputs that are no caches.
    fn declare(&mut self) {
        let capacity = self.setting.capacity;
        for input in &self.function.inputs {
            let dtype = input.ty.dtype;
            let dims = &input.ty.shape;
            let fixed: usize = dims.iter().filter_map(|d| d.fixed()).product();
            let kind = match input.kind {
                InputKind::Rows => SlotKind::Input { bytes_per_row: dtype.row_bytes(fixed) },
                InputKind::Weight => SlotKind::Weight { bytes: dtype.row_bytes(fixed) },
                InputKind::Cache { window } => {
                    let rows = self.setting.rings.get(&input.name).copied();
                    SlotKind::Cache {
                        heads: dims.first().and_then(|d| d.fixed()).unwrap_or(1),
                        rows: rows.unwrap_or(capacity.keys),
                        row_bytes: dtype.row_bytes(dims.last().and_then(|d| d.fixed()).unwrap_or(1)),
                        window: rows.and(window),
                    }
                }
            };
            self.out.slots.push(Slot { name: input.name.clone(), kind });
        }
        for (name, id) in &self.function.outputs {
            if self.cache_of(name).is_none() {
                let (dtype, dims) = self.tensor_type(*id);
                let fixed: usize = dims.iter().filter_map(|d| d.fixed()).product::<usize>() * dtype.bytes();
                let kind = if dims.contains(&Dim::Rows) {
                    SlotKind::Output { fixed_bytes: 0, bytes_per_row: fixed }
                } else {
                    SlotKind::Output { fixed_bytes: fixed, bytes_per_row: 0 }
                };
                self.out.slots.push(Slot { name: name.clone(), kind });
            }
        }
    }

    /// The slot of the cache input of this name.
    fn cache_of(&self, name: &str) -> Option<usize> {
        let is_cache = |k: &InputKind| matches!(k, InputKind::Cache { .. });
        self.function.inputs.iter().position(|i| i.name == name && is_cache(&i.kind))
    }

    /// The slot of an output that is no cache.
    fn output_slot(&self, name: &str) -> usize {
        let inputs = self.function.inputs.len();
        match self.out.slots[inputs..].iter().position(|s| s.name == name) {
            Some(at) => inputs + at,
            None => unreachable!("outputs were declared"),
        }
    }

    fn input_view(&self, slot: usize) -> View {
        let input = &self.function.inputs[slot];
        let mut capacity = self.setting.capacity;
        let ring = self.setting.rings.get(&input.name).copied();
        if let Some(rows) = ring {
            capacity.keys = rows;
        }
        let view = View::contiguous(Base::Slot(slot), input.ty.dtype, &input.ty.shape, capacity);
        View { ring, ..view }
    }

    // ---- operands ----

    /// A tensor operand: an immediate, a folded table, or a view. Quantised weights are dequantised to memory.
    fn operand(&mut self, id: Id) -> Result<View, Error> {
        let view = self.as_held(id)?;
        if !view.dtype.is_quantised() {
            return Ok(view);
        }
        let dims = view.dims();
        let dense = self.temporary(DType::F32, &dims, &(0..dims.len()).collect::<Vec<_>>());
        self.push_rows(id, Body::Elementwise(Elementwise::Copy), vec![view], dense.clone());
        self.set(id, dense.clone());
        Ok(dense)
    }

    /// As [`Scheduler::operand`], quantised weights as they are: for kernels that read those.
    fn as_held(&mut self, id: Id) -> Result<View, Error> {
        if self.constant[usize::from(id)] {
            return self.fold(id);
        }
        match &self.values[usize::from(id)] {
            Value::Tensor(view) => Ok(view.clone()),
            other => unreachable!("a tensor was scheduled, not {other:?}"),
        }
    }

    /// A matrix for a kernel that reads quantised rows too.
    fn weight(&mut self, id: Id) -> Result<View, Error> {
        let view = self.as_held(id)?;
        if view.dtype.is_quantised() { Ok(view) } else { self.rows(id) }
    }

    /// A tensor operand that is in memory.
    fn stored(&mut self, id: Id) -> Result<View, Error> {
        let view = self.operand(id)?;
        if view.in_memory() { Ok(view) } else { Ok(self.copy(id, &view)) }
    }

    /// Keys or values: quantised rows as they are.
    fn cached(&mut self, id: Id) -> Result<View, Error> {
        let view = self.as_held(id)?;
        if view.dtype.is_quantised() && view.in_memory() { Ok(view) } else { self.stored(id) }
    }

    /// A tensor operand in memory whose last axis is contiguous.
    fn rows(&mut self, id: Id) -> Result<View, Error> {
        let view = self.stored(id)?;
        let long = view.axes.last().is_some_and(|a| a.dim != Dim::Fixed(1));
        if view.inner_stride() == 1 || !long { Ok(view) } else { Ok(self.copy(id, &view)) }
    }

    /// An f32 operand in memory whose last axis is contiguous: what microkernels read.
    fn wide_rows(&mut self, id: Id) -> Result<View, Error> {
        let view = self.rows(id)?;
        if view.dtype == DType::F32 {
            return Ok(view);
        }
        let dims = view.dims();
        let order: Vec<usize> = (0..dims.len()).collect();
        let to = self.temporary(DType::F32, &dims, &order);
        self.push_rows(id, Body::Elementwise(Elementwise::Copy), vec![view], to.clone());
        Ok(to)
    }

    /// Evaluates a term of constants into the table of constants.
    fn fold(&mut self, id: Id) -> Result<View, Error> {
        let immediate =
            |base, dtype| View { base, dtype, axes: vec![], offset: 0, per_row_offset: 0, ring: None };
        match *self.op(id) {
            Op::Num(n) => return Ok(immediate(Base::Number(n.value()), DType::F32)),
            Op::Int(n) => return Ok(immediate(Base::Integer(n as i32), DType::I32)),
            _ => {}
        }
        if let Some(view) = self.folded.get(&id) {
            return Ok(view.clone());
        }
        let Some(tensor) = interp::constant(self.function, id) else {
            return Err(self.unsupported(id, "this constant cannot be evaluated"));
        };
        let (dtype, dims) = self.tensor_type(id);
        let bytes: Vec<u8> = match dtype {
            DType::F32 => tensor.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            DType::I32 => tensor.data.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
            DType::Bool => tensor.data.iter().flat_map(|&x| (-((x != 0.0) as i32)).to_le_bytes()).collect(),
            DType::F16 => tensor.data.iter().flat_map(|&x| half::f16::from_f64(x).to_le_bytes()).collect(),
            DType::BF16 => tensor.data.iter().flat_map(|&x| half::bf16::from_f64(x).to_le_bytes()).collect(),
            DType::Q8 | DType::Q4 => return Err(self.unsupported(id, "quantised weights are no constants")),
        };
        let at = self.out.constants.len().next_multiple_of(64);
        self.out.constants.resize(at, 0);
        self.out.constants.extend(bytes);
        let view = View::contiguous(Base::Constant(at), dtype, &dims, self.setting.capacity);
        self.folded.insert(id, view.clone());
        Ok(view)
    }

    fn number(&self, id: Id) -> f32 {
        match self.op(id) {
            Op::Num(n) => Num::value(*n),
            other => unreachable!("a number was inferred, not {other}"),
        }
    }

    fn optional_number(&self, id: Id) -> Option<f32> {
        match self.op(id) {
            Op::None => None,
            _ => Some(self.number(id)),
        }
    }

    fn window(&self, id: Id) -> Option<usize> {
        match self.op(id) {
            Op::Int(n) => Some(*n as usize),
            _ => None,
        }
    }

    fn maximum(&self, id: Id) -> Maximum {
        if *self.op(id) == Op::Bounded { Maximum::Bounded } else { Maximum::Online }
    }

    fn int(&self, id: Id) -> i64 {
        match self.op(id) {
            Op::Int(n) => *n,
            other => unreachable!("an integer was inferred, not {other}"),
        }
    }

    fn dims(&self, id: Id) -> Vec<Dim> {
        match self.op(id) {
            Op::Dims(d) => d.0.clone(),
            other => unreachable!("dims were inferred, not {other}"),
        }
    }

    // ---- results ----

    /// A dense buffer for a node's result: the caller's if the node is an output, laid out as its users like it best.
    fn result(&mut self, id: Id, dtype: DType, dims: &[Dim]) -> View {
        let output = self.function.outputs.iter().find(|(name, o)| *o == id && self.cache_of(name).is_none());
        if let Some((name, _)) = output {
            let slot = self.output_slot(name);
            return View::contiguous(Base::Slot(slot), dtype, dims, self.setting.capacity);
        }
        let order = self.liked_order(id).unwrap_or_else(|| (0..dims.len()).collect());
        self.temporary(dtype, dims, &order)
    }

    fn temporary(&mut self, dtype: DType, dims: &[Dim], order: &[usize]) -> View {
        let bytes = self.setting.capacity.elements(dims) * dtype.bytes();
        let id = BufferId(self.out.buffers.len());
        self.out.buffers.push(Buffer { bytes, first: usize::MAX, last: 0 });
        View::ordered(Base::Arena(id), dtype, dims, order, self.setting.capacity)
    }

    /// The axis order in memory that makes a transpose and reshape of this node free.
    fn liked_order(&self, id: Id) -> Option<Vec<usize>> {
        let nodes = self.function.body.as_ref();
        let users = |of: Id| {
            nodes
                .iter()
                .enumerate()
                .filter(move |(at, op)| self.live[*at] && op.children().first() == Some(&of))
        };
        users(id).find_map(|(at, op)| match op {
            Op::Transpose([_, p]) if users(Id::from(at)).any(|(_, u)| matches!(u, Op::Reshape(_))) => {
                match self.op(*p) {
                    Op::Dims(d) => d.permutation(),
                    _ => None,
                }
            }
            _ => None,
        })
    }

    fn push(&mut self, id: Id, body: Body, inputs: Vec<View>, outputs: Vec<View>, tiles: Tiles) {
        let name = format!("v{}_{}", usize::from(id), body.name());
        let twins = self.out.kernels.iter().filter(|k| k.node == id).count();
        let name = if twins == 0 { name } else { format!("{name}_{twins}") };
        let capacity = self.setting.capacity;
        self.out.kernels.push(Kernel { name, node: id, body, inputs, outputs, tiles, capacity });
    }

    /// A kernel whose tiles are the rows of its one output.
    fn push_rows(&mut self, id: Id, body: Body, inputs: Vec<View>, output: View) {
        let tiles = Kernel::row_tiles(&output);
        self.push(id, body, inputs, vec![output], tiles);
    }

    fn copy(&mut self, id: Id, view: &View) -> View {
        let dims = view.dims();
        let order: Vec<usize> = (0..dims.len()).collect();
        let to = self.temporary(view.dtype, &dims, &order);
        self.push_rows(id, Body::Elementwise(Elementwise::Copy), vec![view.clone()], to.clone());
        to
    }

    fn set(&mut self, id: Id, view: View) {
        self.values[usize::from(id)] = Value::Tensor(view);
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

    /// Schedules one node.
    fn node(&mut self, id: Id) -> Done {
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
            | Op::Weights(_) => Ok(()),
            Op::Input(input) => {
                self.set(id, self.input_view(input.0 as usize));
                Ok(())
            }

            Op::Neg(x) => self.elementwise(id, E::Neg, &[x]),
            Op::Recip(x) => self.elementwise(id, E::Recip, &[x]),
            Op::Sqrt(x) => self.elementwise(id, E::Sqrt, &[x]),
            Op::Rsqrt(x) => self.elementwise(id, E::Rsqrt, &[x]),
            Op::Exp(x) => self.elementwise(id, E::Exp, &[x]),
            Op::Tanh(x) => self.elementwise(id, E::Tanh, &[x]),
            Op::Cos(x) => self.elementwise(id, E::Cos, &[x]),
            Op::Sin(x) => self.elementwise(id, E::Sin, &[x]),
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
            Op::Add([a, b]) => self.elementwise(id, E::Add, &[a, b]),
            Op::Sub([a, b]) => self.elementwise(id, E::Sub, &[a, b]),
            Op::Mul([a, b]) => self.elementwise(id, E::Mul, &[a, b]),
            Op::Div([a, b]) => self.elementwise(id, E::Div, &[a, b]),
            Op::Pow([a, b]) => self.elementwise(id, E::Pow, &[a, b]),
            Op::Lt([a, b]) => self.elementwise(id, E::Lt, &[a, b]),
            Op::Le([a, b]) => self.elementwise(id, E::Le, &[a, b]),
            Op::And([a, b]) => self.elementwise(id, E::And, &[a, b]),
            Op::Select([c, a, b]) => self.elementwise(id, E::Select, &[c, a, b]),
            Op::Softcap([cap, x]) => self.elementwise(id, E::Softcap(self.number(cap)), &[x]),
            Op::GeluTanh(x) => self.elementwise(id, E::GeluTanh, &[x]),
            Op::GatedGelu([gate, up]) => self.elementwise(id, E::GatedGelu, &[gate, up]),
            Op::Iota(_) => self.elementwise(id, E::Iota, &[]),

            Op::Sum([x, axis]) => self.reduce(id, x, axis, Reduction::Sum),
            Op::Mean([x, axis]) => self.reduce(id, x, axis, Reduction::Mean),
            Op::Max([x, axis]) => self.reduce(id, x, axis, Reduction::Max),
            Op::Argmax([x, axis]) => self.reduce(id, x, axis, Reduction::Argmax),

            Op::Matmul([a, b]) => {
                let (dtype, dims) = self.tensor_type(id);
                let (a, b) = (self.stored(a)?, self.stored(b)?);
                if a.ring.is_some() || b.ring.is_some() {
                    return Err(self.unsupported(id, "only attention may read a cache that wraps"));
                }
                let output = self.result(id, dtype, &dims);
                self.push_rows(id, Body::Matmul, vec![a, b], output.clone());
                self.set(id, output);
                Ok(())
            }

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
                let body = Body::RmsNorm { eps: self.number(eps) };
                self.by_rows(id, body, &[x, w])
            }
            Op::AddRmsNorm([r, x, w, eps]) => {
                let body = Body::AddRmsNorm { eps: self.number(eps) };
                self.by_rows(id, body, &[r, x, w])
            }
            Op::NormPrologue([x, w, eps]) => {
                let value = Value::Prologue { x: self.rows(x)?, w: self.stored(w)?, eps: self.number(eps) };
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
                let body = Body::Scores { scale: self.number(scale), cap: self.optional_number(cap) };
                self.by_rows(id, body, &[q, k])
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
            Op::Attention([q, k, v, pos, scale, cap, window, mode]) => {
                let (scale, cap) = (self.number(scale), self.optional_number(cap));
                let (window, maximum) = (self.window(window), self.maximum(mode));
                let inputs = vec![self.stored(q)?, self.cached(k)?, self.cached(v)?, self.stored(pos)?];
                let (dtype, dims) = self.tensor_type(id);
                let output = self.result(id, dtype, &dims);
                let Dim::Fixed(groups) = inputs[1].axes[0].dim else { unreachable!("heads are fixed") };
                let Dim::Fixed(heads) = inputs[0].axes[0].dim else { unreachable!("heads are fixed") };
                let rows = self.setting.capacity.rows;
                let features = self.setting.features;
                let rounded = self.setting.rounded;
                let Dim::Fixed(head_dim) = inputs[0].axes[2].dim else { unreachable!("head_dim is fixed") };
                let shape = (groups, heads / groups, head_dim);
                let mut tiles = lower::attention_tiles(shape, rows, rounded, &features);
                let body = |parts| Body::Attention { scale, cap, window, maximum, parts, rounded };
                match lower::attention_parts(&inputs, window, self.setting.capacity, &features) {
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
    }

    /// A kernel of stored operands whose tiles are its output's rows.
    fn by_rows(&mut self, id: Id, body: Body, operands: &[Id]) -> Done {
        let inputs = operands.iter().map(|&o| self.stored(o)).collect::<Result<Vec<_>, _>>()?;
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
        let (mut inputs, prologue) = match &self.values[usize::from(x)] {
            Value::Prologue { x, w, eps } => (vec![x.clone(), w.clone()], Some(*eps)),
            _ => (vec![self.wide_rows(x)?], None),
        };
        let Op::Weights(list) = self.op(weights).clone() else { unreachable!("weights were inferred") };
        let mut views = vec![];
        for &w in &list {
            views.push(self.weight(w)?);
        }
        let epilogue = match *self.op(epilogue) {
            Op::Cap(cap) => Epilogue::Softcap(self.number(cap)),
            Op::Gate => Epilogue::Gate,
            _ => Epilogue::Store,
        };
        let capacity = self.setting.capacity;
        let row_dim = inputs[0].axes[0].dim;
        let rows = capacity.of(row_dim);
        let quantised = micro::one_quantised_format(views.iter().map(|w| w.dtype));
        let Dim::Fixed(k) = views[0].axes[1].dim else { unreachable!("weights have fixed shapes") };
        let micro = micro::choose(rows, k, self.setting.rounded, quantised, &self.setting.features);
        let operands = micro.operands;
        let tiles = linear::tiles(&views, epilogue, micro);
        let mut body = Body::Linear { prologue, epilogue, operands, panel: None };
        if micro.is_packed() {
            let panel = pack::packed(Base::Number(0.0), row_dim, k, capacity, micro);
            let panel = self.temporary(panel.dtype, &panel.dims(), &[0, 1, 2]);
            let pack = Body::Pack { prologue, operands, panel: micro.mr };
            self.push(id, pack, inputs, vec![panel.clone()], pack::tiles(row_dim, capacity, micro.mr));
            inputs = vec![panel];
            body = Body::Linear { prologue: None, epilogue, operands, panel: Some(micro.mr) };
        }
        if micro.reads_rounded_rows() {
            let dims = inputs[0].dims();
            let rounded = self.temporary(operands, &dims, &[0, 1]);
            let round = match prologue {
                Some(eps) => Body::RmsNorm { eps },
                None => Body::Elementwise(Elementwise::Copy),
            };
            self.push_rows(id, round, inputs, rounded.clone());
            inputs = vec![rounded];
            body = Body::Linear { prologue: None, epilogue, operands, panel: None };
        }
        inputs.extend(views);
        match self.types[usize::from(id)].clone() {
            Type::Tuple(types) => {
                let outputs: Vec<View> = types
                    .iter()
                    .map(|t| self.temporary(t.dtype, &t.shape, &(0..t.rank()).collect::<Vec<_>>()))
                    .collect();
                self.push(id, body, inputs, outputs.clone(), tiles);
                self.values[usize::from(id)] = Value::Tuple(outputs);
            }
            _ => {
                let (dtype, dims) = self.tensor_type(id);
                let output = self.result(id, dtype, &dims);
                self.push(id, body, inputs, vec![output.clone()], tiles);
                self.set(id, output);
            }
        }
        Ok(())
    }

    /// Copies outputs that no kernel wrote where the caller wants them.
    fn deliver(&mut self) -> Done {
        for (name, id) in self.function.outputs.clone() {
            if let Some(cache) = self.cache_of(&name) {
                let view = self.as_held(id)?;
                if view.base != Base::Slot(cache) {
                    return Err(self.unsupported(id, "a cache's output must be its append"));
                }
                continue;
            }
            let view = self.operand(id)?;
            let slot = self.output_slot(&name);
            if view.base != Base::Slot(slot) {
                let (dtype, dims) = self.tensor_type(id);
                let to = View::contiguous(Base::Slot(slot), dtype, &dims, self.setting.capacity);
                self.push_rows(id, Body::Elementwise(Elementwise::Copy), vec![view], to);
            }
        }
        Ok(())
    }

    /// Settles the buffers' lifetimes.
    fn finish(&mut self) {
        for (at, kernel) in self.out.kernels.iter().enumerate() {
            for view in kernel.inputs.iter().chain(&kernel.outputs) {
                if let Base::Arena(id) = view.base {
                    let buffer = &mut self.out.buffers[id.0];
                    buffer.first = buffer.first.min(at);
                    buffer.last = buffer.last.max(at);
                }
            }
        }
        launch::share(&mut self.out);
    }
}

/// Predicted nanoseconds of one tile on one thread: enough to tell a launch worth sharing from one that is not.
pub fn tile_nanoseconds(kernel: &Kernel) -> u32 {
    let rows = kernel.capacity.rows as f64;
    let inner = |v: &View| v.axes.last().map_or(1, |a| kernel.capacity.of(a.dim)) as f64;
    let ns = match &kernel.body {
        Body::Linear { prologue, .. } => {
            let weights = &kernel.inputs[1 + usize::from(prologue.is_some())..];
            let w = &weights[0];
            let all: usize = weights.iter().map(|w| kernel.capacity.of(w.axes[0].dim)).sum();
            let products = inner(w) * all as f64 / f64::from(kernel.tiles.fixed.max(1));
            let rows = kernel.capacity.of(kernel.outputs[0].axes[0].dim) as f64;
            w.dtype.row_bytes(products as usize) as f64 / 14.0 + rows * products / 20.0
        }
        Body::Attention { window, parts, .. } => {
            let keys = window.unwrap_or(kernel.capacity.keys).min(512) as f64 / *parts as f64;
            let heads = kernel.capacity.of(kernel.inputs[0].axes[0].dim) as f64
                / kernel.capacity.of(kernel.inputs[1].axes[0].dim) as f64;
            rows.min(f64::from(kernel.tiles.rows)) * heads * keys * (inner(&kernel.inputs[0]) * 0.2 + 3.0)
        }
        Body::Pack { prologue, panel, .. } => {
            let element = if prologue.is_some() { 2.0 } else { 0.5 };
            *panel as f64 * inner(&kernel.inputs[0]) * element
        }
        Body::Matmul | Body::Scores { .. } => inner(&kernel.outputs[0]) * inner(&kernel.inputs[0]) * 0.3,
        _ => {
            let keys: f64 =
                kernel.outputs[0].axes.iter().filter(|a| a.dim == Dim::Keys).map(|_| 256.0).product();
            keys * inner(kernel.inputs.first().unwrap_or(&kernel.outputs[0]))
        }
    };
    ns.min(1e9) as u32
}
