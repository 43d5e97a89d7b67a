//! What the tests of fused kernels share: operands of a call, kernels compiled and run. `slots` has how operands lie.

use lapidary_codegen::image::ImageBuilder;
use lapidary_codegen::jit::{self, Code};
use lapidary_codegen::kernel::{Body, Kernel};
use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_codegen::view::{Base, Capacity, View};
use lapidary_ir::{DType, Dim, Id};
use lapidary_runtime::program::{
    Aligned, FRAME_ROWS, FRAME_SEGMENTS, FRAME_SLOTS, KernelFn, RESUMED, Segment, Tiles,
};

pub(crate) use super::slots::*;

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
