//! A compiled function called on tensors, outside of a session: what tests and `opt --run` do.
//!
//! In: functions compiled for some positions ([`Loose`]), the inputs of a call. Out: the outputs, in order. Every
//! launch is split in two, and guard bytes behind each operand are looked at afterwards: independence of tiles and
//! bounds are tried on the way.

use lapidary_ir::interp::Tensor;
use lapidary_ir::{Dim, Extent, InputKind, TensorType, Type};
use lapidary_runtime::program::{
    Aligned, FRAME_ARENA, FRAME_CONSTANTS, FRAME_ROWS, FRAME_SEGMENTS, FRAME_SLOTS, Segment, SlotKind,
};

use crate::compile::Loose;
use crate::view::{Base, Capacity, View};

/// What guards and unwritten bytes hold.
const GUARD: u8 = 0xa5;
/// Bytes of guard behind an operand.
const GUARD_BYTES: usize = 64;

/// An operand's memory, guard bytes behind it, and where its elements are.
struct Operand {
    bytes: Aligned,
    view: View,
}

impl Operand {
    fn new(ty: &TensorType, capacity: Capacity, ring: Option<usize>) -> Operand {
        let held = Capacity { keys: ring.unwrap_or(capacity.keys), ..capacity };
        let view = View { ring, ..View::contiguous(Base::Slot(0), ty.dtype, &ty.shape, held) };
        let mut bytes = Aligned::zeroed(held.elements(&ty.shape) * ty.dtype.bytes() + GUARD_BYTES);
        bytes.as_mut_slice().fill(GUARD);
        Operand { bytes, view }
    }

    /// Byte offsets of the elements of a call, row-major.
    fn offsets(&self, extent: Extent) -> Vec<usize> {
        let mut all = vec![0];
        for axis in &self.view.axes {
            let wrap = self.view.ring.filter(|_| axis.dim == Dim::Keys).unwrap_or(usize::MAX);
            let n = axis.dim.at(extent);
            all =
                all.iter().flat_map(|o| (0..n).map(move |i| o + (i % wrap) * axis.stride as usize)).collect();
        }
        all.iter().map(|o| o * self.view.dtype.bytes()).collect()
    }

    fn write(&mut self, x: &Tensor, extent: Extent) {
        let size = self.view.dtype.bytes();
        for (at, element) in self.offsets(extent).into_iter().zip(x.to_bytes().chunks(size)) {
            self.bytes.as_mut_slice()[at..at + size].copy_from_slice(element);
        }
    }

    fn read(&self, extent: Extent) -> Result<Tensor, String> {
        let (size, bytes) = (self.view.dtype.bytes(), self.bytes.as_slice());
        if bytes[bytes.len() - GUARD_BYTES..].iter().any(|&b| b != GUARD) {
            return Err("machine code wrote past an operand's end".into());
        }
        let elements: Vec<u8> =
            self.offsets(extent).iter().flat_map(|&at| bytes[at..at + size].to_vec()).collect();
        let shape: Vec<usize> = self.view.axes.iter().map(|a| a.dim.at(extent)).collect();
        Ok(Tensor::from_bytes(self.view.dtype, &shape, &elements))
    }
}

/// The rows that an output of function `at` keeps, if it is a cache that wraps.
pub fn ring(loose: &Loose, at: usize, name: &str) -> Option<usize> {
    let function = &loose.functions[at];
    match function.slots[function.slot(name)?].kind {
        SlotKind::Cache { rows, window: Some(_), .. } => Some(rows),
        SlotKind::Cache { .. }
        | SlotKind::Input { .. }
        | SlotKind::Output { .. }
        | SlotKind::Weight { .. } => None,
    }
}

/// Calls function `at`, which was compiled for this CPU and for `context` positions: its outputs, in order.
///
/// # Errors
/// An extent beyond what it was compiled for, quantised inputs, code that writes past an operand's end.
pub fn call(
    loose: &Loose,
    at: usize,
    context: usize,
    inputs: &[Tensor],
    extent: Extent,
) -> Result<Vec<Tensor>, String> {
    let (function, source) = (&loose.functions[at], &loose.reports[at].source);
    let most = function.variants.last().map_or(0, |v| v.rows);
    if extent.rows > most || extent.keys > context {
        return Err(format!("{extent:?} is beyond {most} rows and {context} keys"));
    }
    if let Some(input) = source.inputs.iter().find(|i| i.ty.dtype.is_quantised()) {
        return Err(format!("input `{}` is {}: expected none that is quantised", input.name, input.ty));
    }
    let variant = function.variant(extent.rows);
    let capacity = Capacity { rows: variant.rows, keys: context };
    let mut operands = vec![];
    for (input, tensor) in source.inputs.iter().zip(inputs) {
        let mut operand = Operand::new(&input.ty, capacity, ring(loose, at, &input.name));
        operand.write(tensor, extent);
        operands.push(operand);
    }
    let types = source.types().map_err(|e| e.to_string())?;
    // An output that is named like rows or a weight has a slot of its own.
    let is_cache = |kind: &InputKind| matches!(kind, InputKind::Cache { .. });
    let mut outputs = Vec::with_capacity(source.outputs.len());
    for (name, id) in &source.outputs {
        outputs.push(match source.inputs.iter().position(|i| is_cache(&i.kind) && &i.name == name) {
            Some(cache) => cache,
            None => {
                let Type::Tensor(ty) = &types[usize::from(*id)] else {
                    return Err(format!("output `{name}` is no tensor"));
                };
                operands.push(Operand::new(ty, capacity, None));
                operands.len() - 1
            }
        });
    }
    let (mut arena, mut scratch) =
        (Aligned::zeroed(variant.arena_bytes), Aligned::zeroed(variant.scratch_bytes));
    arena.as_mut_slice().fill(0xff);
    let mut frame = vec![0; FRAME_SLOTS];
    frame[FRAME_ROWS] = extent.rows as u64;
    // Caches' slots hold their addresses.
    let segments = [Segment { first: 0, rows: extent.rows as u64, keys: extent.keys as u64, kv: 0 }];
    frame[FRAME_SEGMENTS] = segments.as_ptr() as u64;
    frame[FRAME_ARENA] = arena.as_mut_ptr() as u64;
    frame[FRAME_CONSTANTS] = loose.constants.as_ptr() as u64;
    frame.extend(operands.iter_mut().map(|o| o.bytes.as_mut_ptr() as u64));
    for step in &variant.steps {
        let tiles = step.tiles(extent.rows, &segments);
        for (begin, end) in [(tiles / 2, tiles), (0, tiles / 2)] {
            scratch.as_mut_slice().fill(0xff);
            // SAFETY: slots are as long as the views of their types in this capacity, the rest as the variant says.
            unsafe { (step.kernel)(frame.as_ptr(), begin, end, scratch.as_mut_ptr()) }
        }
    }
    outputs.into_iter().map(|i| operands[i].read(extent)).collect()
}
