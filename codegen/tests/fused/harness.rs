//! What the tests of fused kernels share: operands in memory with guards around them, kernels compiled and run.

use lapidary_codegen::image::ImageBuilder;
use lapidary_codegen::jit::{self, Code};
use lapidary_codegen::kernel::{Body, Kernel};
use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_codegen::view::{Axis, Base, Capacity, View};
use lapidary_ir::interp::Tensor;
use lapidary_ir::{DType, Dim, Id};
use lapidary_runtime::program::{
    Aligned, FRAME_ROWS, FRAME_SEGMENTS, FRAME_SLOTS, KernelFn, RESUMED, Segment, Tiles,
};

/// The CPUs that tests run on: this one, and one without fma.
pub(crate) const CPUS: [&str; 2] = ["native", "x86-64-v2"];

/// Float formats.
pub(crate) const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// A fixed sequence of random numbers (splitmix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// In [-1, 1).
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

const GUARD: usize = 64;
const UNWRITTEN: u8 = 0xa5;

/// One slot's memory: elements on no better boundary than their own size, guard bytes on both sides.
#[derive(Clone)]
pub(crate) struct Slot {
    dtype: DType,
    bytes: Vec<u8>,
    start: usize,
    /// Length of a row, of quantised elements.
    k: usize,
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

/// A kernel of these parts.
pub(crate) fn kernel(
    body: Body,
    inputs: Vec<View>,
    outputs: Vec<View>,
    tiles: Tiles,
    capacity: Capacity,
) -> Kernel {
    let name = body.name().to_owned();
    let has_keys = |v: &View| v.axes.iter().any(|a| a.dim == Dim::Keys);
    let by_segment =
        inputs.iter().chain(&outputs).any(has_keys) || matches!(body, Body::MergeAttention { .. });
    Kernel {
        name,
        node: Id::from(0),
        body,
        inputs,
        outputs,
        tiles,
        by_segment,
        regime: capacity.rows,
        capacity,
    }
}

/// A kernel as machine code.
pub(crate) struct Machine {
    entry: KernelFn,
    scratch_bytes: usize,
    tiles: Tiles,
    resumes: bool,
    _code: Code,
}

impl Machine {
    pub(crate) fn new(kernel: &Kernel, cpu: &str) -> Machine {
        let target = Target::new(cpu, Placement::Jit).expect("a target");
        let mut builder = ImageBuilder::new(target);
        builder.define(kernel, &[]).expect("lowers");
        let (image, compiled) = builder.finish().expect("compiles");
        let code = jit::map(&image).expect("memory");
        // SAFETY: the image's entry; the code is kept beside it.
        let entry = unsafe { code.entry(image.entries[0]) };
        Machine {
            entry,
            scratch_bytes: compiled[0].scratch_bytes,
            tiles: kernel.tiles,
            resumes: kernel.resumes(),
            _code: code,
        }
    }

    pub(crate) fn tiles(&self, rows: usize) -> u64 {
        self.tiles.count(rows)
    }

    /// Scratch as long as the kernel asks for.
    pub(crate) fn scratch(&self) -> Aligned {
        Aligned::zeroed(self.scratch_bytes)
    }

    /// One call, as the runtime makes it.
    pub(crate) fn call(&self, frame: &[u64], begin: u64, end: u64, scratch: &mut Aligned) {
        assert!(scratch.len() >= self.scratch_bytes);
        // SAFETY: tests give frames whose slots are as long as the kernel's views say.
        unsafe { (self.entry)(frame.as_ptr(), begin, end, scratch.as_mut_ptr()) }
    }

    /// Calls the kernel over each range of tiles, each with scratch full of NaN; but every other one resumes where the
    /// kernel can, with scratch as the one before left it.
    pub(crate) fn run(&self, rows: usize, keys: usize, slots: &mut [Slot], ranges: &[(u64, u64)]) {
        let mut frame = vec![0u64; FRAME_SLOTS];
        frame[FRAME_ROWS] = rows as u64;
        let segments = [Segment { first: 0, rows: rows as u64, keys: keys as u64, kv: 0 }];
        frame[FRAME_SEGMENTS] = segments.as_ptr() as u64;
        for slot in slots.iter_mut() {
            let start = slot.start;
            frame.push(slot.bytes[start..].as_mut_ptr() as u64);
        }
        let mut scratch = self.scratch();
        let mut made = false;
        for (i, &(begin, end)) in ranges.iter().enumerate() {
            if self.resumes && made && i % 2 == 1 {
                self.call(&frame, begin | RESUMED, end, &mut scratch);
                continue;
            }
            scratch.as_mut_slice().fill(0xff);
            self.call(&frame, begin, end, &mut scratch);
            // Nothing is made for no tiles.
            made = begin < end;
        }
    }
}

/// Runs a kernel whole, then again with its tiles split at random: the same bytes, none of them outside of the
/// outputs' views. Leaves the outputs in their slots.
pub(crate) fn run_checked(
    kernel: &Kernel,
    cpu: &str,
    rows: usize,
    keys: usize,
    slots: &mut [Slot],
    random: &mut Random,
) {
    let machine = Machine::new(kernel, cpu);
    let tiles = machine.tiles(rows);
    let before = slots.to_vec();
    machine.run(rows, keys, slots, &[(0, tiles)]);
    let mut again = before.clone();
    let mut ranges = vec![];
    let mut at = 0;
    while at < tiles {
        let next = (at + random.below(4) as u64).min(tiles);
        ranges.push((at, next));
        at = next;
    }
    ranges.reverse();
    machine.run(rows, keys, &mut again, &ranges);
    for (i, (whole, split)) in slots.iter().zip(&again).enumerate() {
        assert!(whole.bytes == split.bytes, "slot {i} depends on how tiles are split: {kernel:?}");
        let written = kernel.outputs.iter().filter(|v| v.base == Base::Slot(i));
        let mut inside = vec![false; whole.bytes.len()];
        for view in written {
            for element in elements(view, rows, keys) {
                let element = element as usize;
                let (at, bytes) = if view.dtype.is_quantised() {
                    let bytes = view.dtype.row_bytes(whole.k);
                    (element / whole.k * bytes, bytes)
                } else {
                    (element * view.dtype.bytes(), view.dtype.bytes())
                };
                inside[whole.start + at..whole.start + at + bytes].fill(true);
            }
        }
        for (byte, &inside) in inside.iter().enumerate() {
            let same = whole.bytes[byte] == before[i].bytes[byte];
            assert!(
                inside || same,
                "slot {i}: byte {byte} is outside of the output and was written: {kernel:?}"
            );
        }
    }
}

/// Every CPU of the table whose code runs here, and this one.
pub(crate) fn runnable() -> Vec<&'static str> {
    let fits = |cpu: &&str| Target::new(cpu, Placement::Jit).expect("a target").lacking_here().is_none();
    std::iter::once("native").chain(TARGETS.iter().map(|t| t.name).filter(fits)).collect()
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

/// Half an ulp of 1 in this format, and a little for f32 arithmetic.
pub(crate) fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => 0.0,
        DType::F16 => 0.5f64.powi(11),
        DType::BF16 => 0.5f64.powi(8),
    }
}

/// Asserts that values agree within `absolute` plus the rounding of the format they are stored in.
pub(crate) fn assert_close(
    what: &str,
    dtype: DType,
    got: &[f64],
    want: &[f64],
    absolute: impl Fn(usize) -> f64,
) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        // Below 2^-14 steps of f16 are 2^-24.
        let subnormal = if dtype == DType::F16 { 0.5f64.powi(25) } else { 0.0 };
        let bound = absolute(i) + w.abs() * rounding(dtype) * 1.01 + subnormal;
        assert!(
            (g - w).abs() <= bound || g == w,
            "{what}: element {i}: {g} instead of {w} (bound {bound:.2e})"
        );
    }
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The last axis contiguous, the others in any order.
    Rows,
    /// Axes in any order.
    Any,
}

/// The operands of one call.
pub(crate) struct Memory {
    pub(crate) slots: Vec<Slot>,
    pub(crate) rows: usize,
    pub(crate) keys: usize,
    pub(crate) capacity: Capacity,
}

impl Memory {
    /// A call of some rows and keys of more that a kernel might serve.
    pub(crate) fn new(random: &mut Random, rows: usize, keys: usize) -> Memory {
        let capacity = Capacity { rows: rows + random.below(3), keys: keys + random.below(9) };
        Memory { slots: vec![], rows, keys, capacity }
    }

    /// A new slot's view, and its length: axes in an order of the layout, with room between their runs.
    fn place(&self, random: &mut Random, dtype: DType, dims: &[Dim], layout: Layout) -> (View, usize) {
        let mut order: Vec<usize> = (0..dims.len()).collect();
        let free = if layout == Layout::Rows { dims.len().saturating_sub(1) } else { dims.len() };
        for i in (1..free).rev() {
            order.swap(i, random.below(i + 1));
        }
        let mut view = view(self.slots.len(), dtype, &dims.iter().map(|&d| (d, 0)).collect::<Vec<_>>());
        let mut step = 1;
        for &a in order.iter().rev() {
            view.axes[a].stride = step as i64;
            step = step * self.capacity.of(dims[a]) + random.below(3);
        }
        (view, step)
    }

    /// An operand that no kernel has written yet.
    pub(crate) fn output(&mut self, random: &mut Random, dtype: DType, dims: &[Dim], layout: Layout) -> View {
        let (view, len) = self.place(random, dtype, dims, layout);
        self.slots.push(Slot::unwritten(dtype, len));
        view
    }

    /// An operand of these values, row-major; NaN where it has none.
    pub(crate) fn input(
        &mut self,
        random: &mut Random,
        dtype: DType,
        dims: &[Dim],
        layout: Layout,
        mut value: impl FnMut(&mut Random) -> f32,
    ) -> View {
        let (view, len) = self.place(random, dtype, dims, layout);
        let mut slot = Slot::poisoned(dtype, len);
        for at in elements(&view, self.rows, self.keys) {
            slot.set(at as usize, value(random));
        }
        self.slots.push(slot);
        view
    }

    /// The last rows' positions, i32 (T).
    pub(crate) fn positions(&mut self, random: &mut Random) -> View {
        let mut position = (self.keys - self.rows) as f32 - 1.0;
        self.input(random, DType::I32, &[Dim::Rows], Layout::Rows, |_| {
            position += 1.0;
            position
        })
    }

    /// A view's elements, row-major.
    pub(crate) fn read(&self, view: &View) -> Vec<f64> {
        read(view, &self.slots, self.rows, self.keys)
    }

    /// Runs a kernel as [`run_checked`] does: its outputs' elements.
    pub(crate) fn run(
        &mut self,
        random: &mut Random,
        cpu: &str,
        body: Body,
        inputs: &[&View],
        output: &View,
        tiles: Tiles,
    ) -> Vec<f64> {
        let inputs = inputs.iter().map(|&v| v.clone()).collect();
        let kernel = kernel(body, inputs, vec![output.clone()], tiles, self.capacity);
        run_checked(&kernel, cpu, self.rows, self.keys, &mut self.slots, random);
        self.read(output)
    }

    /// [`Memory::run`] of a kernel whose tiles are its output's rows.
    pub(crate) fn run_rows(
        &mut self,
        random: &mut Random,
        cpu: &str,
        body: Body,
        inputs: &[&View],
        output: &View,
    ) -> Vec<f64> {
        self.run(random, cpu, body, inputs, output, Kernel::row_tiles(output))
    }
}
