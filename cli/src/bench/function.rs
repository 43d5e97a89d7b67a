//! `lapidary bench FILE.ir`: a function of the tensor language, called on numbers that mean nothing.
//!
//! In: a function, its weights or none, and numbers of rows. Out: for each the median time of a call, and the
//! operations and bytes of its kernels' operands and results over it; with `--kernels` the same of each kernel, the
//! longest first, beside the machine's ceilings.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use lapidary::call::{self, TensorFile};
use lapidary_codegen::price::ceilings::{self, READ_BYTES};
use lapidary_codegen::price::work::work;
use lapidary_codegen::view::Capacity;
use lapidary_runtime::Callable;
use lapidary_runtime::callable::tensors::{Bytes, Taken};
use lapidary_runtime::cpu::Cores;
use lapidary_runtime::program::{Counts, Element, Operand, Role, Signature};
use serde_json::{Value, json};

use super::kernels::{self, Line};
use super::{Args, UNITS, cpu_name, dtype_index, median, ms};
use crate::functions;
use crate::options;
use crate::output::{self, Usage};

/// Rows of calls, unless `--rows` says otherwise: one, a few, a chunk.
const ROWS: [usize; 3] = [1, 16, 512];
/// The least time of a repetition: as many calls as that takes.
const LEAST: Duration = Duration::from_millis(10);

/// Measures and prints.
pub(super) fn run(args: &Args, file: &Path) -> Result<()> {
    if args.compile.context.is_some() {
        bail!(Usage::new(anyhow!("--context: a function's calls have rows alone")));
    }
    let weights = match &args.weights[..] {
        [] => None,
        [one] => Some(TensorFile::open(one.file()?)?),
        _ => bail!(Usage::new(anyhow!("--weights: expected one file with FILE.ir"))),
    };
    let source = functions::source(Some(file), None, None, &args.compile)?;
    let function = source.one(args.function.as_deref())?;
    let rows = if args.rows.is_empty() { ROWS.to_vec() } else { args.rows.clone() };
    let threads = match &args.threads[..] {
        [] => vec![Cores::here().threads()],
        given => given.to_vec(),
    };
    let most = rows.iter().copied().max().unwrap_or(1);
    let most = Counts { rows: most, keys: most };
    let signature = call::signed(&function, most).map_err(options::error)?;
    if let Some(cache) = signature.operands.iter().find(|operand| operand.role == Role::Cache) {
        bail!(
            "{}: function `{}`: `{}` is a cache: there is none to measure with",
            source.name,
            function.name,
            cache.name
        );
    }
    let rows = if signature.has_rows() { rows } else { vec![1] };
    let taken = Taken::new(&signature, |operand| {
        Ok::<_, lapidary_runtime::Error>(weights.as_ref().filter(|_| operand.role == Role::Weight))
    })?;
    let (mut text, mut results) = (String::new(), vec![]);
    for &count in &threads {
        let start = Instant::now();
        let options = args.compile.options()?.threads(count);
        let mut compiled = call::compile(&function, &signature, most, &options).map_err(options::error)?;
        let compile = ms(start.elapsed());
        let machine = args.kernels.then(|| ceilings_of(args, count)).transpose()?;
        if text.is_empty() {
            text = format!("{}, function {}, compile {compile:.0} ms\n", cpu_name(), function.name);
        }
        text.push_str(&format!("\n{count} threads\n{HEADER}"));
        let mut tables = String::new();
        for &rows in &rows {
            let counts = Counts { rows, keys: rows };
            let operands: Vec<Vec<u8>> = made(&signature, counts);
            let takes: Vec<&[u8]> = taken
                .operands
                .iter()
                .zip(&operands)
                .map(|(given, made)| given.as_ref().map_or(&made[..], Bytes::as_slice))
                .collect();
            let mut measured = Measured::new(&signature, counts, &takes);
            let seconds = measured.time(compiled.callable(), args.repeat)?;
            let mut lines = lines(&mut compiled, counts);
            let (flops, bytes) = lines.iter().fold((0.0, 0.0), |(f, b), l| (f + l.flops, b + l.bytes));
            let (gflops, gbps) = (flops / seconds / 1e9, bytes / seconds / 1e9);
            text.push_str(&format!(
                "{rows:>6}{:>12.4}{gflops:>10.2}{gbps:>9.2}{:>9}\n",
                seconds * 1e3,
                lines.len()
            ));
            let mut result = json!({
                "function": function.name, "threads": count, "rows": rows, "ms": seconds * 1e3, "gflops": gflops,
                "gbps": gbps, "kernels_launched": lines.len(), "compile_ms": compile,
            });
            if let Some(machine) = &machine {
                measured.profile(compiled.callable(), args.repeat, &mut lines)?;
                kernels::finish(&mut lines, machine);
                let title = format!("{} of {rows} rows", function.name);
                tables.push_str(&kernels::text(&title, &lines, false));
                result["kernels"] = lines.iter().map(Line::json).collect::<Vec<Value>>().into();
            }
            results.push(result);
        }
        text.push_str(&tables);
    }
    if args.json {
        output::print_json(&json!({ "cpu": cpu_name(), "results": results }))
    } else {
        output::print(&text)
    }
}

/// The table's first line.
const HEADER: &str = "  rows          ms   GFLOP/s     GB/s  kernels\n";

/// What the machine does at most, on so many threads.
fn ceilings_of(args: &Args, threads: usize) -> Result<kernels::Ceilings> {
    let mut machine = ceilings::Ceilings::new(&args.compile.cpu, threads)?;
    let read = (0..args.repeat).map(|_| READ_BYTES as f64 / machine.read_time()).collect::<Vec<_>>();
    let peaks = UNITS.map(|unit| {
        let peaks = (0..args.repeat).map(|_| machine.multiply_peak(unit).unwrap_or(f64::NAN));
        median(&peaks.collect::<Vec<_>>())
    });
    Ok(kernels::Ceilings { read: median(&read), peaks })
}

/// The kernels of a call, without times.
fn lines(compiled: &mut call::Compiled, counts: Counts) -> Vec<Line> {
    let variant = compiled.callable().variant(counts.rows);
    let steps = compiled.callable().program().functions[0].variants[variant].steps.clone();
    let lowered = &compiled.report().variants[variant];
    let extent = Capacity { rows: counts.rows, keys: counts.keys };
    let line = |(kernel, step): (&lapidary_codegen::kernel::Kernel, &lapidary_runtime::program::Step)| {
        let work = work(kernel, extent);
        Line::new(&step.name, work.memory_bytes + work.cache_bytes, work.flops, dtype_index(step.demand.unit))
    };
    lowered.schedule.kernels.iter().zip(&steps).map(line).collect()
}

/// Operands of a call whose numbers mean nothing: small floats, ids that there are.
fn made(signature: &Signature, counts: Counts) -> Vec<Vec<u8>> {
    let taken = signature.operands.iter().enumerate().filter(|(_, o)| o.role != Role::Output);
    taken
        .map(|(at, operand)| {
            let entries =
                signature.lookups.iter().filter(|l| l.ids == at).map(|l| l.entries.at(counts)).min();
            numbers(operand, counts, entries.unwrap_or(1 << 8))
        })
        .collect()
}

fn numbers(operand: &Operand, counts: Counts, entries: usize) -> Vec<u8> {
    let bytes = operand.bytes(counts);
    // A linear congruential generator (Knuth, TAOCP 2, 3.3.4), its upper half.
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let mut words = || match operand.element {
        Element::F32 => (next() as f32 / u32::MAX as f32 - 0.5).to_le_bytes(),
        Element::I32 => (next() % entries.max(1) as u32).to_le_bytes(),
        Element::Bool => (-((next() & 1) as i32)).to_le_bytes(),
        // Of 0.06 to 0.25, of either sign.
        Element::BF16 => (next() & 0x80ff_80ff | 0x3d80_3d80).to_le_bytes(),
        Element::F16 => (next() & 0x87ff_87ff | 0x2c00_2c00).to_le_bytes(),
        // Whichever two bytes are a scale, it is small.
        Element::Block { .. } => (next() & 0x0303_0303 | 0x2828_2828).to_le_bytes(),
    };
    (0..bytes.div_ceil(4)).flat_map(|_| words()).take(bytes).collect()
}

/// A call that is repeated.
struct Measured<'a> {
    counts: Counts,
    takes: &'a [&'a [u8]],
    gives: Vec<Vec<u8>>,
}

impl<'a> Measured<'a> {
    fn new(signature: &Signature, counts: Counts, takes: &'a [&'a [u8]]) -> Measured<'a> {
        let gives =
            signature.returns.iter().map(|&at| vec![0; signature.operands[at].bytes(counts)]).collect();
        Measured { counts, takes, gives }
    }

    /// So many calls: the time of one.
    fn calls(&mut self, callable: &mut Callable, n: u32) -> Result<Duration> {
        let mut gives: Vec<&mut [u8]> = self.gives.iter_mut().map(|give| &mut give[..]).collect();
        let start = Instant::now();
        for _ in 0..n {
            callable.call(self.counts, self.takes, &mut gives)?;
        }
        Ok(start.elapsed() / n)
    }

    /// As many calls as a repetition takes.
    fn enough(&mut self, callable: &mut Callable) -> Result<u32> {
        // Weights come into memory, code into caches.
        self.calls(callable, 2)?;
        let one = self.calls(callable, 1)?.max(Duration::from_nanos(100));
        Ok((LEAST.as_secs_f64() / one.as_secs_f64()).ceil().clamp(1.0, 1e5) as u32)
    }

    /// The median time of a call, in seconds.
    fn time(&mut self, callable: &mut Callable, repeat: u64) -> Result<f64> {
        let n = self.enough(callable)?;
        let times = (0..repeat).map(|_| Ok(self.calls(callable, n)?.as_secs_f64()));
        Ok(median(&times.collect::<Result<Vec<_>>>()?))
    }

    /// The median time of each kernel, launched by itself.
    fn profile(&mut self, callable: &mut Callable, repeat: u64, lines: &mut [Line]) -> Result<()> {
        let (n, variant) = (self.enough(callable)?, callable.variant(self.counts.rows));
        let mut times = vec![vec![]; lines.len()];
        for _ in 0..repeat {
            callable.start_profile();
            self.calls(callable, n)?;
            let profile = callable.take_profile().unwrap_or_default();
            let steps = profile.steps.first().and_then(|variants| variants.get(variant));
            for (times, (launches, time)) in times.iter_mut().zip(steps.into_iter().flatten()) {
                times.push(time.as_secs_f64() / (*launches).max(1) as f64);
            }
        }
        for (line, times) in lines.iter_mut().zip(&times) {
            line.seconds = median(times);
        }
        Ok(())
    }
}
