//! Programs: elementwise operators and reductions along rows, in a kernel of their own or as a linear's epilogue.
//!
//! A row is walked once for each reduction and once for the result; what is the same along the row is computed once,
//! before. Every operator is computed as its own kernel would compute it, and sums add up in the same order, so a
//! program gives the bits of its operators one by one.

use cranelift_codegen::ir::Value;
use egg::Language;
use lapidary_ir::{DType, Dim, Id, Op, Program, TensorType, Type};

use super::elementwise::{
    Operands, apply, constant_along_row, load_along_row, over_axes, row_addresses, store_along_row,
};
use super::reduce;
use crate::emit::Emitter;
use crate::kernel::{Elementwise, Epilogue, Kernel, Linear, Reduction};
use crate::view::{Base, View};

/// Emits the kernel; a tile is a row.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, program: &Program) {
    let output = &kernel.outputs[0];
    let dims = output.dims();
    let then = Then::over(program, 0, &kernel.inputs, &dims);
    let tile_axes = Kernel::tile_axes(output);
    let last = dims.len().checked_sub(1);
    let inner: Vec<usize> = (0..last.unwrap_or(0)).filter(|a| !tile_axes.contains(a)).collect();
    e.for_tiles(|e, tile| {
        let tile_dims: Vec<Dim> = tile_axes.iter().map(|&a| dims[a]).collect();
        let indices = e.unravel(tile, &tile_dims);
        let at: Vec<(usize, Value)> = tile_axes.iter().copied().zip(indices).collect();
        over_axes(e, &dims, &inner, at, &mut |e, at| {
            let out = e.base(output);
            let out = e.at(output, out, at);
            let row = then.row(e, at);
            let n = match last {
                Some(last) => e.length(dims[last]),
                None => e.i64(1),
            };
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let value = then.value(e, &row, &[], i, lanes);
                store_along_row(e, output, value, out, i, lanes);
                vec![]
            });
        });
    });
}

/// A program over rows: its first operands are given as values, the others lie in memory.
pub(super) struct Then {
    program: Program,
    /// Of its nodes.
    types: Vec<TensorType>,
    /// How many operands are given.
    given: usize,
    /// The other operands, stretched to the result's rows and their own last axis.
    views: Vec<View>,
}

/// What is known of a program at a row.
pub(super) struct Row {
    /// The operands' rows; none of immediates.
    addresses: Vec<Option<Value>>,
    /// What is the same along the row, by node.
    held: Vec<Option<Value>>,
}

impl Then {
    /// The program of a linear's epilogue, if it has one.
    pub(super) fn new(linear: &Linear, kernel: &Kernel, weights: &[View]) -> Option<Then> {
        let Epilogue::Then(count, program) = &linear.epilogue else { return None };
        let from = 1 + usize::from(linear.prologue.is_some()) + weights.len();
        Some(Then::over(program, *count, &kernel.inputs[from..], &kernel.outputs[0].dims()))
    }

    fn over(program: &Program, given: usize, operands: &[View], dims: &[Dim]) -> Then {
        let result = TensorType::new(DType::F32, dims.to_vec());
        let stored = operands.iter().map(|view| {
            // Floats are widened as they are loaded.
            let dtype = if view.dtype.is_float() { DType::F32 } else { view.dtype };
            TensorType::new(dtype, view.dims())
        });
        let types: Vec<TensorType> = std::iter::repeat_n(result, given).chain(stored).collect();
        let types = program.types(&types).unwrap_or_else(|e| unreachable!("types were inferred: {e}"));
        let none = || TensorType::new(DType::F32, vec![]);
        let tensor = |ty: &Type| ty.tensor().cloned().unwrap_or_else(none);
        let views = operands.iter().map(|view| {
            let mut dims = dims.to_vec();
            if let (Some(last), Some(own)) = (dims.last_mut(), view.axes.last()) {
                *last = own.dim;
            }
            let mut view = view.stretched(&dims);
            // What has one element a row is the same all along it, whatever its stride.
            if let Some(axis) = view.axes.last_mut().filter(|axis| axis.dim == Dim::Fixed(1)) {
                axis.stride = 0;
            }
            view
        });
        Then {
            program: program.clone(),
            types: types.iter().map(tensor).collect(),
            given,
            views: views.collect(),
        }
    }

    /// Computes what is the same along a row, the one at these indices of the result's outer axes.
    #[expect(clippy::wildcard_enum_match_arm, reason = "what a program admits and has no arm is elementwise")]
    pub(super) fn row(&self, e: &mut Emitter<'_>, at: &[(usize, Value)]) -> Row {
        let nodes = self.program.nodes();
        let addresses = row_addresses(e, &self.views, at);
        let mut row = Row { addresses, held: vec![None; nodes.len()] };
        for (node, op) in nodes.iter().enumerate() {
            row.held[node] = match op {
                Op::Num(n) => Some(e.splat(n.value())),
                Op::Int(n) => Some(e.splat_int(*n as i32)),
                Op::DType(_) => None,
                Op::Input(id) => self.stored(id.0).and_then(|at| {
                    let (view, address) = (&self.views[at], row.addresses[at]);
                    constant_along_row(e, view, address)
                }),
                Op::Sum([x, _]) => Some(self.reduce(e, &row, Reduction::Sum, *x)),
                Op::Mean([x, _]) => Some(self.reduce(e, &row, Reduction::Mean, *x)),
                Op::Max([x, _]) => Some(self.reduce(e, &row, Reduction::Max, *x)),
                Op::Min([x, _]) => Some(self.reduce(e, &row, Reduction::Min, *x)),
                Op::Prod([x, _]) => Some(self.reduce(e, &row, Reduction::Prod, *x)),
                op => {
                    let operands = self.operands(op);
                    let held: Option<Vec<Value>> =
                        operands.iter().map(|&c| row.held[usize::from(c)]).collect();
                    let zero = e.i64(0);
                    held.map(|x| self.apply(e, node, &x, zero))
                }
            };
        }
        row
    }

    /// The result at elements `i..i + lanes` of a row (4, or 1), of the operands that are given.
    pub(super) fn value(
        &self,
        e: &mut Emitter<'_>,
        row: &Row,
        given: &[Value],
        i: Value,
        lanes: usize,
    ) -> Value {
        let root = Id::from(self.program.nodes().len() - 1);
        self.term(e, row, given, root, i, lanes)
    }

    fn term(
        &self,
        e: &mut Emitter<'_>,
        row: &Row,
        given: &[Value],
        root: Id,
        i: Value,
        lanes: usize,
    ) -> Value {
        let nodes = self.program.nodes();
        let root = usize::from(root);
        let mut needed = vec![false; root + 1];
        needed[root] = true;
        for node in (0..=root).rev() {
            if needed[node] && row.held[node].is_none() {
                self.operands(&nodes[node]).iter().for_each(|&c| needed[usize::from(c)] = true);
            }
        }
        let mut values: Vec<Option<Value>> = row.held[..=root].to_vec();
        for (node, op) in nodes.iter().enumerate().take(root + 1) {
            if !needed[node] || values[node].is_some() {
                continue;
            }
            values[node] = Some(if let Op::Input(id) = op {
                match self.stored(id.0) {
                    Some(at) => load_along_row(e, &self.views[at], row.addresses[at], i, lanes),
                    None => given[id.0 as usize],
                }
            } else {
                let operands = self.operands(op);
                let x: Vec<Value> = operands.iter().filter_map(|&c| values[usize::from(c)]).collect();
                self.apply(e, node, &x, i)
            });
        }
        values[root].unwrap_or_else(|| unreachable!("the root is needed"))
    }

    fn reduce(&self, e: &mut Emitter<'_>, row: &Row, reduction: Reduction, x: Id) -> Value {
        let last = self.types[usize::from(x)].shape.last().copied().unwrap_or(Dim::Fixed(1));
        let n = e.length(last);
        reduce::reduce(e, reduction, n, &mut |e: &mut Emitter<'_>, i: Value, lanes: usize| {
            self.term(e, row, &[], x, i, lanes)
        })
    }

    /// The index among the views of an operand that lies in memory.
    fn stored(&self, operand: u32) -> Option<usize> {
        (operand as usize).checked_sub(self.given)
    }

    /// An operator's tensors.
    fn operands<'a>(&self, op: &'a Op) -> &'a [Id] {
        if let Op::Cast([x, _]) | Op::Softcap([_, x]) = op { std::slice::from_ref(x) } else { op.children() }
    }

    fn number(&self, id: Id) -> Option<f32> {
        self.program.nodes()[usize::from(id)].number()
    }

    fn apply(&self, e: &mut Emitter<'_>, node: usize, x: &[Value], i: Value) -> Value {
        let op = &self.program.nodes()[node];
        let number = |id: Id| self.number(id).unwrap_or_else(|| unreachable!("a number was inferred"));
        let Some(apart) = Elementwise::of(op, number) else { unreachable!("{op} is elementwise") };
        let last = self.operands(op).last().map(|&c| usize::from(c));
        let power =
            if let Op::Pow([_, by]) = op { self.number(*by).or_else(|| self.immediate(*by)) } else { None };
        let of = Operands {
            integer: last.is_some_and(|last| self.types[last].dtype == DType::I32),
            to: self.types[node].dtype,
            power,
        };
        apply(e, apart, of, x, i)
    }

    /// The number that an operand is, if it lies in no memory.
    fn immediate(&self, id: Id) -> Option<f32> {
        let Op::Input(operand) = self.program.nodes()[usize::from(id)] else { return None };
        if let Base::Number(n) = self.views[self.stored(operand.0)?].base { Some(n) } else { None }
    }
}
