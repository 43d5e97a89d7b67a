//! Operands as views: immediates, folded tables, tensors as they lie, and copies of what no kernel reads so.

use lapidary_ir::{DType, Dim, Id, Num, Op, Program, interp};

use super::{Scheduler, Value};
use crate::Error;
use crate::kernel::{Body, Elementwise, Maximum};
use crate::view::{Base, View};

impl Scheduler<'_> {
    /// A tensor operand: an immediate, a folded table, or a view. Quantised weights are dequantised to memory.
    pub(super) fn operand(&mut self, id: Id) -> Result<View, Error> {
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
    pub(super) fn as_held(&mut self, id: Id) -> Result<View, Error> {
        if self.constant[usize::from(id)] {
            return self.fold(id);
        }
        match &self.values[usize::from(id)] {
            Value::Tensor(view) => Ok(view.clone()),
            other => unreachable!("a tensor was scheduled, not {other:?}"),
        }
    }

    /// A matrix for a kernel that reads quantised rows too.
    pub(super) fn weight(&mut self, id: Id) -> Result<View, Error> {
        let view = self.as_held(id)?;
        if view.dtype.is_quantised() { Ok(view) } else { self.rows(id) }
    }

    /// A tensor operand that is in memory.
    pub(super) fn stored(&mut self, id: Id) -> Result<View, Error> {
        let view = self.operand(id)?;
        if view.in_memory() { Ok(view) } else { Ok(self.copy(id, &view)) }
    }

    /// Keys or values: quantised rows as they are.
    pub(super) fn cached(&mut self, id: Id) -> Result<View, Error> {
        let view = self.as_held(id)?;
        if view.dtype.is_quantised() && view.in_memory() { Ok(view) } else { self.stored(id) }
    }

    /// A tensor operand in memory whose last axis is contiguous.
    pub(super) fn rows(&mut self, id: Id) -> Result<View, Error> {
        let view = self.stored(id)?;
        let long = view.axes.last().is_some_and(|a| a.dim != Dim::Fixed(1));
        if view.inner_stride() == 1 || !long { Ok(view) } else { Ok(self.copy(id, &view)) }
    }

    /// An f32 operand in memory whose last axis is contiguous: what microkernels read.
    pub(super) fn wide_rows(&mut self, id: Id) -> Result<View, Error> {
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
    pub(super) fn fold(&mut self, id: Id) -> Result<View, Error> {
        let capacity = self.setting.capacity;
        let immediate = |base, dtype| View::contiguous(base, dtype, &[], capacity);
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
            DType::Block(_) => return Err(self.unsupported(id, "quantised weights are no constants")),
        };
        let at = self.out.constants.len().next_multiple_of(64);
        self.out.constants.resize(at, 0);
        self.out.constants.extend(bytes);
        let view = View::contiguous(Base::Constant(at), dtype, &dims, self.setting.capacity);
        self.folded.insert(id, view.clone());
        Ok(view)
    }

    pub(super) fn program(&self, id: Id) -> Program {
        match self.op(id) {
            Op::Program(program) => program.clone(),
            other => unreachable!("a program was inferred, not {other}"),
        }
    }

    pub(super) fn number(&self, id: Id) -> f32 {
        match self.op(id) {
            Op::Num(n) => Num::value(*n),
            other => unreachable!("a number was inferred, not {other}"),
        }
    }

    pub(super) fn optional_number(&self, id: Id) -> Option<f32> {
        match self.op(id) {
            Op::None => None,
            _ => Some(self.number(id)),
        }
    }

    pub(super) fn window(&self, id: Id) -> Option<usize> {
        match self.op(id) {
            Op::Int(n) => Some(*n as usize),
            _ => None,
        }
    }

    pub(super) fn maximum(&self, id: Id) -> Maximum {
        if *self.op(id) == Op::Bounded { Maximum::Bounded } else { Maximum::Online }
    }

    pub(super) fn int(&self, id: Id) -> i64 {
        match self.op(id) {
            Op::Int(n) => *n,
            other => unreachable!("an integer was inferred, not {other}"),
        }
    }

    pub(super) fn dims(&self, id: Id) -> Vec<Dim> {
        match self.op(id) {
            Op::Dims(d) => d.0.clone(),
            other => unreachable!("dims were inferred, not {other}"),
        }
    }
}
