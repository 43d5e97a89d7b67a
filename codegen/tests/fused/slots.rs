//! Operands in memory, with guards around them, and how views step through them.

use lapidary_codegen::view::{Axis, Base, Capacity, View};
use lapidary_ir::interp::Tensor;
use lapidary_ir::{DType, Dim};

use super::harness::Random;

const GUARD: usize = 64;
const UNWRITTEN: u8 = 0xa5;

/// One slot's memory: elements on no better boundary than their own size, guard bytes on both sides.
#[derive(Clone)]
pub(crate) struct Slot {
    dtype: DType,
    pub(crate) bytes: Vec<u8>,
    pub(crate) start: usize,
    /// Length of a row, of quantised elements.
    pub(crate) k: usize,
}

impl Slot {
    /// Elements that no kernel has written yet.
    pub(crate) fn unwritten(dtype: DType, len: usize) -> Slot {
        let bytes = vec![UNWRITTEN; len * dtype.bytes() + 3 * GUARD];
        let start = bytes.as_ptr().align_offset(GUARD) + GUARD + dtype.bytes();
        Slot { dtype, bytes, start, k: 0 }
    }

    /// Quantised rows of `k` elements: any quants, scales of either sign.
    pub(crate) fn quantised(dtype: DType, n: usize, k: usize, random: &mut Random) -> Slot {
        let format = dtype.format().expect("blocks");
        let row = dtype.row_bytes(k);
        let mut bytes: Vec<u8> = (0..n * row + 3 * GUARD).map(|_| random.bits() as u8).collect();
        // No better boundary than a scale's.
        let start = bytes.as_ptr().align_offset(GUARD) + GUARD + 2;
        for row in bytes[start..start + n * row].chunks_mut(row) {
            format.set_floats(row, k, || random.float() / 64.0);
        }
        Slot { dtype, bytes, start, k }
    }

    /// These values, rounded to the dtype.
    pub(crate) fn of(dtype: DType, values: &[f32]) -> Slot {
        let mut slot = Slot::unwritten(dtype, values.len());
        for (i, &value) in values.iter().enumerate() {
            slot.set(i, value);
        }
        slot
    }

    /// NaN everywhere.
    pub(crate) fn poisoned(dtype: DType, len: usize) -> Slot {
        let mut slot = Slot::unwritten(dtype, len);
        let (start, end) = (slot.start, slot.start + len * dtype.bytes());
        slot.bytes[start..end].fill(0xff);
        slot
    }

    /// Makes one quantised row NaN.
    pub(crate) fn poison_row(&mut self, row: usize) {
        let bytes = self.dtype.row_bytes(self.k);
        let start = self.start + row * bytes;
        self.bytes[start..start + bytes].fill(0xff);
    }

    /// The bytes of one quantised row.
    pub(crate) fn row(&self, row: usize) -> &[u8] {
        let bytes = self.dtype.row_bytes(self.k);
        &self.bytes[self.start + row * bytes..][..bytes]
    }

    pub(crate) fn set(&mut self, i: usize, value: f32) {
        let at = self.start + i * self.dtype.bytes();
        match self.dtype {
            DType::F32 => self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()),
            DType::BF16 => self.bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            DType::F16 => self.bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            DType::I32 | DType::Bool => self.bytes[at..at + 4].copy_from_slice(&(value as i32).to_le_bytes()),
            DType::Block(_) => unreachable!("quantised rows are made whole"),
        }
    }

    pub(crate) fn get(&self, i: i64) -> f64 {
        if self.dtype.is_quantised() {
            let (row, at) = (i as usize / self.k, i as usize % self.k);
            let bytes = self.dtype.row_bytes(self.k);
            let row = &self.bytes[self.start + row * bytes..][..bytes];
            return Tensor::from_bytes(self.dtype, &[1, self.k], row).data[at];
        }
        let at = self.start + i as usize * self.dtype.bytes();
        let b = &self.bytes[at..];
        match self.dtype {
            DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
            DType::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f64(),
            DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f64(),
            DType::I32 | DType::Bool => i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
            DType::Block(_) => unreachable!("handled"),
        }
    }
}

/// A view of slot `slot` with these axes.
pub(crate) fn view(slot: usize, dtype: DType, axes: &[(Dim, usize)]) -> View {
    let axes = axes.iter().map(|&(dim, stride)| Axis { dim, stride: stride as i64 }).collect();
    View { base: Base::Slot(slot), dtype, axes, offset: 0, per_row_offset: 0, ring: None, one_added: false }
}

/// Offsets of a view's elements, row-major.
pub(crate) fn elements(view: &View, rows: usize, keys: usize) -> Vec<i64> {
    let extent = Capacity { rows, keys };
    let mut offsets = vec![view.offset + view.per_row_offset * (rows as i64 - 1)];
    for axis in &view.axes {
        let n = extent.of(axis.dim);
        let ring = if axis.dim == Dim::Keys { view.ring } else { None }.unwrap_or(usize::MAX);
        offsets =
            offsets.iter().flat_map(|o| (0..n).map(move |i| o + (i % ring) as i64 * axis.stride)).collect();
    }
    offsets
}

/// A view's elements as f64, row-major.
pub(crate) fn read(view: &View, slots: &[Slot], rows: usize, keys: usize) -> Vec<f64> {
    let Base::Slot(slot) = view.base else { unreachable!("tests use slots") };
    elements(view, rows, keys).into_iter().map(|i| slots[slot].get(i)).collect()
}
