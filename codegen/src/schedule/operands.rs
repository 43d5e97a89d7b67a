//! Operands as views: immediates, folded tables, tensors as they lie, and copies of what no kernel reads so.

use lapidary_ir::{DType, Dim, Id, Op, Program, interp};

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
        let value = &self.values[usize::from(id)];
        let Value::Tensor(view) = value else { unreachable!("a tensor was scheduled, not {value:?}") };
        Ok(view.clone())
    }

    /// A matrix for a kernel that reads quantised rows too; each row follows the one before, as raw code takes it to.
    pub(super) fn weight(&mut self, id: Id) -> Result<View, Error> {
        let view = self.as_held(id)?;
        if view.dtype.is_quantised() {
            return Ok(view);
        }
        let view = self.rows(id)?;
        let follows = match &view.axes[..] {
            [rows, k] => {
                rows.dim == Dim::Fixed(1) || usize::try_from(rows.stride).map(Dim::Fixed) == Ok(k.dim)
            }
            _ => true,
        };
        if follows { Ok(view) } else { Ok(self.copy(id, &view)) }
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
        if let Some(n) = self.op(id).number() {
            return Ok(immediate(Base::Number(n), DType::F32));
        }
        if let Some(n) = self.op(id).integer() {
            return Ok(immediate(Base::Integer(n as i32), DType::I32));
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
        let op = self.op(id);
        let Op::Program(program) = op else { unreachable!("a program was inferred, not {op}") };
        program.clone()
    }

    pub(super) fn number(&self, id: Id) -> f32 {
        let op = self.op(id);
        op.number().unwrap_or_else(|| unreachable!("a number was inferred, not {op}"))
    }

    pub(super) fn optional_number(&self, id: Id) -> Option<f32> {
        (*self.op(id) != Op::None).then(|| self.number(id))
    }

    pub(super) fn window(&self, id: Id) -> Option<usize> {
        self.op(id).integer().map(|n| n as usize)
    }

    pub(super) fn maximum(&self, id: Id) -> Maximum {
        if *self.op(id) == Op::Bounded { Maximum::Bounded } else { Maximum::Online }
    }

    pub(super) fn int(&self, id: Id) -> i64 {
        let op = self.op(id);
        op.integer().unwrap_or_else(|| unreachable!("an integer was inferred, not {op}"))
    }

    pub(super) fn dims(&self, id: Id) -> Vec<Dim> {
        let op = self.op(id);
        let Op::Dims(d) = op else { unreachable!("dims were inferred, not {op}") };
        d.0.clone()
    }
}
