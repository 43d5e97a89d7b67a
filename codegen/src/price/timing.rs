//! Compiled functions run on made-up operands, kernel by kernel, against the clock.
//!
//! In: functions compiled for this CPU ([`Loose`]), the extent of a call. Out: medians of each kernel's time and of a
//! whole call's. Numbers are small and finite, positions are those of the call, other integers index every table: times
//! do not depend on more than that.

use std::slice;
use std::time::{Duration, Instant};

use lapidary_ir::{DType, Extent, Function, InputKind, Op};
use lapidary_runtime::Pool;
use lapidary_runtime::program::{
    Aligned, FRAME_ARENA, FRAME_CONSTANTS, FRAME_ROWS, FRAME_SEGMENTS, FRAME_SLOTS, Segment, SlotKind, Step,
};

use crate::Error;
use crate::compile::Loose;

/// Calls of which medians are taken.
const CALLS: usize = 31;
/// [`Setup::enough`] where nothing else is said.
const ENOUGH: Duration = Duration::from_millis(1500);
/// The fewest calls.
const FEWEST: usize = 5;

/// Medians of times, in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// Of each kernel, in the order of launches.
    pub kernels: Vec<f64>,
    /// Of all of them one after the other, no clock between.
    pub call: f64,
}

/// How kernels are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Threads.
    pub threads: usize,
    /// Bytes that are read before each kernel, so that it finds its operands in no cache; 0 leaves them where they are.
    pub evict: usize,
    /// Time after which a measurement makes do with fewer calls, but a handful.
    pub enough: Duration,
}

impl Setup {
    /// Operands in cache, where they fit.
    pub fn hot(threads: usize) -> Setup {
        Setup { threads, evict: 0, enough: ENOUGH }
    }
}

/// Times function `at` in calls of this extent.
///
/// # Errors
/// An extent that it was not compiled for, threads that cannot be had.
pub fn time(loose: &Loose, at: usize, context: usize, extent: Extent, setup: Setup) -> Result<Timing, Error> {
    let (function, source) = (&loose.functions[at], &loose.reports[at].source);
    let refuse = |reason: String| Error::Kernel { kernel: function.name.clone(), reason };
    let most = function.variants.last().map_or(0, |v| v.rows);
    if extent.rows > most || extent.keys > context || extent.keys < extent.rows {
        return Err(refuse(format!(
            "{extent:?}: expected up to {most} rows, and keys from those to {context}"
        )));
    }
    let variant = function.variant(extent.rows);
    let mut operands: Vec<Aligned> = vec![];
    for slot in &function.slots {
        let bytes = match slot.kind {
            SlotKind::Input { bytes_per_row } => bytes_per_row * variant.rows,
            SlotKind::Output { fixed_bytes, bytes_per_row } => fixed_bytes + bytes_per_row * variant.rows,
            SlotKind::Weight { bytes } => bytes,
            SlotKind::Cache { heads, rows, row_bytes, .. } => heads * rows * row_bytes,
        };
        let mut memory = Aligned::zeroed(bytes);
        if let Some(input) = source.inputs.iter().find(|i| i.name == slot.name) {
            let width = input.ty.shape.last().and_then(|d| d.fixed()).unwrap_or(1);
            let integers = Integers::of(source, &input.name, extent);
            fill(memory.as_mut_slice(), input.ty.dtype, width, &integers, input.kind == InputKind::Weight);
        }
        operands.push(memory);
    }
    let mut arena = Aligned::zeroed(variant.arena_bytes);
    let mut pool = Pool::new(setup.threads, variant.scratch_bytes).map_err(|e| refuse(e.to_string()))?;
    let mut frame = vec![0; FRAME_SLOTS];
    frame[FRAME_ROWS] = extent.rows as u64;
    // Caches' slots hold their addresses.
    let segments = [Segment { first: 0, rows: extent.rows as u64, keys: extent.keys as u64, kv: 0 }];
    frame[FRAME_SEGMENTS] = segments.as_ptr().expose_provenance() as u64;
    frame[FRAME_ARENA] = arena.as_mut_ptr().expose_provenance() as u64;
    frame[FRAME_CONSTANTS] = loose.constants.as_ptr().expose_provenance() as u64;
    frame.extend(operands.iter_mut().map(|o| o.as_mut_ptr().expose_provenance() as u64));
    let mut launch = |steps: &[Step]| {
        // SAFETY: each slot, the arena and the scratch are as long as the function and its variant declare them, for as
        // many rows and keys as the frame says, and nobody else uses them.
        unsafe { pool.launch(steps, frame.as_ptr(), extent.rows, &segments) };
    };
    // Pages of zeros that were never written may all be one.
    let swept = vec![1u64; setup.evict / size_of::<u64>()];
    let mut kernels: Vec<Vec<f64>> = vec![vec![]; variant.steps.len()];
    let mut calls = vec![];
    // One more, the first, which brings code and operands near.
    let begin = Instant::now();
    for round in 0..=CALLS {
        let start = Instant::now();
        variant.launches().for_each(&mut launch);
        let call = start.elapsed();
        for (step, times) in variant.steps.iter().zip(&mut kernels) {
            sweep(&swept);
            let start = Instant::now();
            launch(slice::from_ref(step));
            if round > 0 {
                times.push(start.elapsed().as_nanos() as f64);
            }
        }
        if round > 0 {
            calls.push(call.as_nanos() as f64);
        }
        if round >= FEWEST && begin.elapsed() > setup.enough {
            break;
        }
    }
    Ok(Timing { kernels: kernels.iter().map(|k| median(k)).collect(), call: median(&calls) })
}

/// Reads a buffer, as weights are read, which drives what else there is out of the caches.
fn sweep(buffer: &[u64]) {
    std::hint::black_box(buffer.iter().step_by(8).fold(0u64, |sum, &word| sum.wrapping_add(word)));
}

/// What an integer input holds.
enum Integers {
    /// Positions, from this one on.
    From(usize),
    /// Below this, one after the other.
    Below(usize),
}

impl Integers {
    fn of(source: &Function, name: &str, extent: Extent) -> Integers {
        if name.starts_with("pos") {
            return Integers::From(extent.keys - extent.rows);
        }
        // Any table of the function: the smallest will do for all.
        let types = source.types().unwrap_or_default();
        let tables = source.body.as_ref().iter().filter_map(|op| {
            let Op::Gather([table, _]) = op else { return None };
            types.get(usize::from(*table))
        });
        let rows = tables.filter_map(|t| t.tensor()?.shape.first()?.fixed());
        Integers::Below(rows.min().unwrap_or(1).max(1))
    }
}

/// Fills an operand. `width` is the length of a row. Large floats repeat themselves: caches do not know.
fn fill(bytes: &mut [u8], dtype: DType, width: usize, integers: &Integers, weight: bool) {
    const LARGE: usize = 4 << 20;
    if matches!(dtype, DType::F32 | DType::BF16 | DType::F16) && bytes.len() > LARGE {
        let (first, rest) = bytes.split_at_mut(LARGE);
        fill(first, dtype, width, integers, weight);
        rest.chunks_mut(LARGE).for_each(|part| part.copy_from_slice(&first[..part.len()]));
        return;
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    // Uniform in [-1, 1); a matrix keeps what it multiplies in size.
    let scale = if weight { (width as f32).sqrt().recip() } else { 1.0 };
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    match dtype {
        DType::F32 => {
            bytes.as_chunks_mut().0.iter_mut().for_each(|b: &mut [u8; 4]| *b = number().to_le_bytes());
        }
        DType::BF16 => {
            let half = |x: f32| half::bf16::from_f32(x).to_le_bytes();
            bytes.as_chunks_mut().0.iter_mut().for_each(|b: &mut [u8; 2]| *b = half(number()));
        }
        DType::F16 => {
            let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
            bytes.as_chunks_mut().0.iter_mut().for_each(|b: &mut [u8; 2]| *b = half(number()));
        }
        DType::I32 => {
            for (i, b) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *b = match integers {
                    Integers::From(first) => (first + i) as i32,
                    Integers::Below(n) => (i % n) as i32,
                }
                .to_le_bytes();
            }
        }
        DType::Bool => bytes.fill(0xff),
        DType::Block(format) => {
            bytes.iter_mut().for_each(|b| *b = (number() / scale * 127.0) as i8 as u8);
            let scale = scale / 64.0;
            for row in bytes.chunks_exact_mut(format.row_bytes(width).max(1)) {
                format.set_floats(row, width, || scale);
            }
        }
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use lapidary_ir::text;
    use lapidary_passes::Selection;

    use super::*;
    use crate::Options;
    use crate::compile::compile_functions;

    #[test]
    fn every_kernel_has_a_time() {
        let source = "function f(%ids: i32[T] rows, %pos: i32[T] rows, %table: bf16[50,64] weight,
            %w: q8[32,64] weight) {
            x = (cast (gather %table %ids) f32)
            p = (reshape (cast %pos f32) [T,1])
            return y=(matmul (add x p) (transpose (cast %w f32) [1,0]))
        }";
        let module = text::parse_module(source).expect("it parses");
        let options = Options {
            selection: Selection::all(),
            cpu: "native".into(),
            context: 64,
            chunk: 16,
            rounded: true,
            machine: lapidary_passes::Machine::GENERIC,
            listings: false,
        };
        let loose = compile_functions(&module.functions, &options).expect("it compiles");
        for rows in [1, 3, 16] {
            let timing =
                time(&loose, 0, 64, Extent { rows, keys: 40 }, Setup { evict: 1 << 20, ..Setup::hot(2) })
                    .expect("it runs");
            assert_eq!(timing.kernels.len(), loose.functions[0].variant(rows).steps.len());
            assert!(timing.call > 0.0 && timing.kernels.iter().all(|t| *t > 0.0), "{timing:?}");
        }
        for (rows, keys) in [(17, 40), (1, 65), (3, 2)] {
            assert!(time(&loose, 0, 64, Extent { rows, keys }, Setup::hot(1)).is_err());
        }
    }
}
