//! Views: where a tensor operand lies and how its axes step through memory.
//!
//! Movement operators (reshape, transpose, broadcast, slice) and widening casts make views, not kernels: a kernel reads
//! a bf16 matrix as stored and widens it in registers. All strides are constants: named dims step by their capacity.

use lapidary_ir::{DType, Dim};

/// A temporary of the arena, by its index in the memory plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub usize);

/// What a view's offset counts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Base {
    /// A temporary in the arena.
    Arena(BufferId),
    /// An operand of the caller: the frame's slot of this index.
    Slot(usize),
    /// A sequence's cache: the frame's slot of this index, counted from the segment's caches.
    Cache(usize),
    /// A folded table: bytes from the start of the program's constants.
    Constant(usize),
    /// No memory at all: every element is this f32.
    Number(f32),
    /// No memory at all: every element is this i32.
    Integer(i32),
}

/// One axis of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Its length.
    pub dim: Dim,
    /// Elements from one index to the next; 0 for a broadcast axis.
    pub stride: i64,
}

/// A tensor operand of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// What the offset counts from.
    pub base: Base,
    /// Element type in memory. A kernel that wants f32 widens f16 and bf16 as it loads.
    pub dtype: DType,
    /// Axes, outermost first.
    pub axes: Vec<Axis>,
    /// First element, in elements from the base.
    pub offset: i64,
    /// Elements to add for each row of the call but the first: what a slice of the last row starts at.
    pub per_row_offset: i64,
    /// A cache that wraps: the row of key `j` is `j % ring`. Set only for caches held as rings, whose axis 1 is S.
    pub ring: Option<usize>,
    /// Weights of a norm that are stored as 1 + w. Only kernels that norm read such a view.
    pub one_added: bool,
}

impl View {
    /// Contiguous in the order of `dims`; named dims step by their `capacity`.
    pub fn contiguous(base: Base, dtype: DType, dims: &[Dim], capacity: Capacity) -> View {
        let order: Vec<usize> = (0..dims.len()).collect();
        View::ordered(base, dtype, dims, &order, capacity)
    }

    /// Dense, laid out so that axis `order[0]` is outermost in memory.
    pub fn ordered(base: Base, dtype: DType, dims: &[Dim], order: &[usize], capacity: Capacity) -> View {
        let mut axes: Vec<Axis> = dims.iter().map(|&dim| Axis { dim, stride: 0 }).collect();
        let mut step = 1i64;
        for &a in order.iter().rev() {
            axes[a].stride = step;
            step *= capacity.of(dims[a]) as i64;
        }
        View { base, dtype, axes, offset: 0, per_row_offset: 0, ring: None, one_added: false }
    }

    /// Lengths of the axes.
    pub fn dims(&self) -> Vec<Dim> {
        self.axes.iter().map(|a| a.dim).collect()
    }

    /// Whether it is held in memory.
    pub fn in_memory(&self) -> bool {
        match self.base {
            Base::Arena(_) | Base::Slot(_) | Base::Cache(_) | Base::Constant(_) => true,
            Base::Number(_) | Base::Integer(_) => false,
        }
    }

    /// Bytes from one index of an axis to the next.
    ///
    /// # Panics
    /// For the last axis of a quantised view, whose elements have no address.
    pub fn step_bytes(&self, axis: usize) -> i64 {
        self.bytes_of(self.axes[axis].stride)
    }

    /// Bytes that so many elements take; of a quantised view, whole rows.
    pub fn bytes_of(&self, elements: i64) -> i64 {
        if elements == 0 {
            return 0;
        }
        if !self.dtype.is_quantised() {
            return elements * self.dtype.bytes() as i64;
        }
        match self.axes.last().map(|a| a.dim) {
            Some(Dim::Fixed(k)) if elements % k as i64 == 0 => {
                elements / k as i64 * self.dtype.row_bytes(k) as i64
            }
            _ => unreachable!("an element of {} has no address", self.dtype),
        }
    }

    /// The last axis' stride; 0 at rank 0.
    pub fn inner_stride(&self) -> i64 {
        self.axes.last().map_or(0, |a| a.stride)
    }

    /// Axis `i` of the result is axis `order[i]` of self.
    pub fn transposed(&self, order: &[usize]) -> View {
        View { axes: order.iter().map(|&a| self.axes[a]).collect(), ..self.clone() }
    }

    /// Stretched to `dims` as elementwise operators broadcast: axes aligned at the end, length 1 and missing axes get
    /// stride 0.
    pub fn stretched(&self, dims: &[Dim]) -> View {
        let missing = dims.len() - self.axes.len();
        let axes = dims
            .iter()
            .enumerate()
            .map(|(i, &dim)| match i.checked_sub(missing).map(|i| self.axes[i]) {
                Some(axis) if axis.dim == dim => axis,
                _ => Axis { dim, stride: 0 },
            })
            .collect();
        View { axes, ..self.clone() }
    }

    /// `len` elements from `start` of an axis; a negative start counts from the end.
    pub fn sliced(&self, axis: usize, start: i64, len: usize) -> View {
        let mut view = self.clone();
        let stride = self.axes[axis].stride;
        match self.axes[axis].dim {
            Dim::Fixed(n) => view.offset += stride * if start < 0 { start + n as i64 } else { start },
            Dim::Rows => view.per_row_offset += stride,
            Dim::Keys => unreachable!("the schedule copies slices of keys"),
        }
        view.axes[axis].dim = Dim::Fixed(len);
        view
    }

    /// The same elements under another shape, when strides can say so.
    pub fn reshaped(&self, dims: &[Dim]) -> Option<View> {
        // Axes of length 1 carry no address; the rest must split or merge in step, numpy's way.
        let old: Vec<Axis> = self.axes.iter().copied().filter(|a| a.dim != Dim::Fixed(1)).collect();
        let mut axes: Vec<Axis> = Vec::with_capacity(dims.len());
        let mut at = 0;
        // What is left of the old axis being split: (length, stride of its innermost element).
        let mut open: Option<(usize, i64)> = None;
        for &dim in dims {
            let n = match dim {
                Dim::Fixed(1) => {
                    axes.push(Axis { dim, stride: 0 });
                    continue;
                }
                Dim::Rows | Dim::Keys => {
                    if open.is_some() || old.get(at)?.dim != dim {
                        return None;
                    }
                    axes.push(Axis { dim, stride: old[at].stride });
                    at += 1;
                    continue;
                }
                Dim::Fixed(n) => n,
            };
            let (mut len, mut stride) = match open.take() {
                Some(rest) => rest,
                None => {
                    let axis = old.get(at)?;
                    at += 1;
                    (axis.dim.fixed()?, axis.stride)
                }
            };
            while len % n != 0 {
                let next = old.get(at)?;
                let m = next.dim.fixed()?;
                if stride != next.stride * m as i64 {
                    return None;
                }
                at += 1;
                len *= m;
                stride = next.stride;
            }
            let rest = len / n;
            axes.push(Axis { dim, stride: stride * rest as i64 });
            if rest > 1 {
                open = Some((rest, stride));
            }
        }
        (open.is_none() && at == old.len() && self.ring.is_none()).then(|| View { axes, ..self.clone() })
    }
}

/// How many rows and keys buffers are sized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// `T`: the most rows of a call.
    pub rows: usize,
    /// `S`: the most keys.
    pub keys: usize,
}

impl Capacity {
    /// The most elements along this axis.
    pub fn of(self, dim: Dim) -> usize {
        match dim {
            Dim::Fixed(n) => n,
            Dim::Rows => self.rows,
            Dim::Keys => self.keys,
        }
    }

    /// Elements of a dense tensor.
    pub fn elements(self, dims: &[Dim]) -> usize {
        dims.iter().map(|&d| self.of(d)).product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dim::{Fixed, Rows};

    const CAPACITY: Capacity = Capacity { rows: 10, keys: 20 };

    fn dense(dims: &[Dim]) -> View {
        View::contiguous(Base::Slot(0), DType::F32, dims, CAPACITY)
    }

    fn strides(v: &View) -> Vec<i64> {
        v.axes.iter().map(|a| a.stride).collect()
    }

    #[test]
    fn split_and_merge() {
        let x = dense(&[Rows, Fixed(12)]);
        let heads = x.reshaped(&[Rows, Fixed(3), Fixed(4)]).expect("splits");
        assert_eq!(strides(&heads), [12, 4, 1]);
        assert_eq!(strides(&heads.reshaped(&[Rows, Fixed(12)]).expect("merges")), [12, 1]);
        let turned = heads.transposed(&[1, 0, 2]);
        assert_eq!(strides(&turned), [4, 12, 1]);
        assert!(turned.reshaped(&[Rows, Fixed(12)]).is_none());
        assert_eq!(
            strides(&dense(&[Fixed(6), Fixed(4)]).reshaped(&[Fixed(8), Fixed(3)]).expect("dense")),
            [3, 1]
        );
    }

    #[test]
    fn ones_come_and_go() {
        let x = dense(&[Fixed(2), Rows, Fixed(4)]);
        let one = x.reshaped(&[Fixed(2), Fixed(1), Rows, Fixed(4)]).expect("inserts");
        assert_eq!(strides(&one), [40, 0, 4, 1]);
        let wide = one.stretched(&[Fixed(2), Fixed(3), Rows, Fixed(4)]);
        assert_eq!(strides(&wide), [40, 0, 4, 1]);
        assert!(wide.reshaped(&[Fixed(6), Rows, Fixed(4)]).is_none());
    }
}
