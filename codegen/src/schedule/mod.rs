//! The schedule: a fused function to a straight list of kernels over views.
//!
//! In: a function and what it is compiled for. Out: kernels in order, the buffers between them with their lifetimes,
//! the caller's slots, and folded tables. Movement operators and widening casts become views where strides can say so,
//! and copies where not; terms of constants are folded by the reference interpreter; a buffer whose consumer transposes
//! and reshapes it is laid out for that, so that neither moves anything.

mod layout;
mod nodes;
mod operands;
mod products;
mod times;

use std::collections::HashMap;

use egg::Language;
use lapidary_ir::{DType, Dim, Function, Id, InputKind, Op, Type, rows, text};
use lapidary_passes::Machine;
use lapidary_runtime::program::{Slot, SlotKind, Tiles};

use crate::Error;
use crate::emit::Features;
use crate::kernel::{Body, Elementwise, Kernel};
use crate::launch;
use crate::view::{Base, BufferId, Capacity, View};

pub use times::tile_nanoseconds;

/// What a function is scheduled for.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The most rows and keys.
    pub capacity: Capacity,
    /// Rows that microkernels are chosen for: see [`Kernel::regime`].
    pub regime: usize,
    /// Rows of each cache that is held as a ring, by the input's name.
    pub rings: HashMap<String, usize>,
    /// What the CPU has.
    pub features: Features,
    /// Whether products may round their activations, to bf16 or to blocks of 8 bits.
    pub rounded: bool,
    /// What products of two activations are priced for.
    pub machine: Machine,
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
    /// Whether a call may have several sequences.
    pub batches: bool,
}

/// Whether every cache of a function could be a ring: only attention with a window reads it.
pub fn cache_can_wrap(function: &Function, input: &str) -> bool {
    let Some((id, declared)) = function.input(input) else { return false };
    let InputKind::Cache { window: Some(window) } = declared.kind else { return false };
    let nodes = function.body.as_ref();
    let mut views: Vec<bool> = vec![false; nodes.len()];
    for (at, op) in nodes.iter().enumerate() {
        let is_view = |x: &Id| views[usize::from(*x)];
        if let Op::Append([cache, _]) = op {
            views[at] = nodes[usize::from(*cache)] == Op::Input(id);
        } else if let Op::Cast([x, _]) = op {
            views[at] = is_view(x);
        } else if op.children().iter().any(is_view) {
            let fits = |w: &Id| nodes[usize::from(*w)].integer().is_some_and(|w| w as usize <= window);
            if !matches!(op, Op::Attention([_, _, _, _, _, _, w, _]) if fits(w)) {
                return false;
            }
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
        row_wise: rows::row_wise(function, &types),
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
    row_wise: Vec<bool>,
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
            let weights = if let Op::RmsNorm(_) | Op::NormPrologue(_) = nodes[at] {
                Some(1)
            } else if let Op::AddRmsNorm(_) = nodes[at] {
                Some(2)
            } else {
                None
            };
            for (operand, &c) in nodes[at].children().iter().enumerate() {
                let whole = one_added(function, c).filter(|_| weights == Some(operand));
                live[usize::from(whole.unwrap_or(c))] = true;
            }
        }
    }
    live
}

/// The weights w of which a norm reads w - 1: its kernel, which would add 1 again, takes them as they are.
fn one_added(function: &Function, w: Id) -> Option<Id> {
    let Op::Sub([whole, one]) = function.body[w] else { return None };
    (function.body[one].number() == Some(1.0)).then_some(whole)
}

/// Tensors of fixed shape that depend on no input.
fn constants(function: &Function, types: &[Type]) -> Vec<bool> {
    let mut constant = vec![false; types.len()];
    for (at, op) in function.body.as_ref().iter().enumerate() {
        let fixed = types[at].tensor().is_some_and(|t| t.shape.iter().all(|d| d.fixed().is_some()));
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
        let ty = &self.types[usize::from(id)];
        let t = ty.tensor_or_prologue().unwrap_or_else(|| unreachable!("a tensor was inferred, not {ty}"));
        (t.dtype, t.shape.0.clone())
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
        let base = match input.kind {
            InputKind::Cache { .. } => Base::Cache(slot),
            InputKind::Rows | InputKind::Weight => Base::Slot(slot),
        };
        let view = View::contiguous(base, input.ty.dtype, &input.ty.shape, capacity);
        View { ring, ..view }
    }

    fn temporary(&mut self, dtype: DType, dims: &[Dim], order: &[usize]) -> View {
        let bytes = self.setting.capacity.elements(dims) * dtype.bytes();
        let id = BufferId(self.out.buffers.len());
        self.out.buffers.push(Buffer { bytes, first: usize::MAX, last: 0 });
        View::ordered(Base::Arena(id), dtype, dims, order, self.setting.capacity)
    }

    fn push(&mut self, id: Id, body: Body, inputs: Vec<View>, outputs: Vec<View>, tiles: Tiles) {
        let name = format!("v{}_{}", usize::from(id), body.name());
        let twins = self.out.kernels.iter().filter(|k| k.node == id).count();
        let name = if twins == 0 { name } else { format!("{name}_{twins}") };
        let capacity = self.setting.capacity;
        let by_segment = !self.row_wise[usize::from(id)];
        let regime = self.setting.regime;
        self.out.kernels.push(Kernel {
            name,
            node: id,
            body,
            inputs,
            outputs,
            tiles,
            by_segment,
            regime,
            capacity,
        });
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

    /// Copies outputs that no kernel wrote where the caller wants them.
    fn deliver(&mut self) -> Done {
        for (name, id) in self.function.outputs.clone() {
            if let Some(cache) = self.cache_of(&name) {
                let view = self.as_held(id)?;
                if view.base != Base::Cache(cache) {
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
        self.out.batches = self.out.kernels.iter().all(Kernel::batches);
        launch::share(&mut self.out);
    }
}
