//! The constants of the cost model, measured on this machine by kernels of each kind.
//!
//! In: a CPU that code is made for, threads, whether activations may be rounded. Out: a [`Machine`]. Each constant
//! comes from the medians of one or two kernels of known work, compiled as any other; what a launch takes is taken off
//! first. All of it several times: five take most of a minute.

use std::time::Duration;

use lapidary_ir::{Extent, text};
use lapidary_passes::Selection;
use lapidary_passes::price::{FIGURES, Formats, Machine};

use super::ceilings::Ceilings;
use super::shapes;
use super::timing::{self, Setup};
use crate::Error;
use crate::compile::{Options, compile_functions};
use crate::target::{Placement, Target};

/// Positions that the kernels are compiled for.
const CONTEXT: usize = 1024;
/// Rows of a call of many.
const MANY: usize = 512;
/// Rows of a call of many that brings out what is done once a weight.
const FEWER: usize = 48;
/// Rows that go one by one.
const ROWS: usize = 4;
/// Rows of a call of few.
const FEW: usize = 32;
/// Weight rows of the products that drive other kernels' code out of the caches.
const AFTER: usize = 512;
/// Half of those: the width of a head.
const HALF: usize = AFTER / 2;
/// Weight rows of products that are just long enough to be shared.
const SHORT: usize = 512;
/// Memory's latency over the last cache's, on servers of today.
const LATENCIES: f64 = 12.0;
/// Repetitions of bandwidth.
const READS: usize = 9;
/// Time after which a kernel's measurement makes do with few calls: passes are many.
const ENOUGH: Duration = Duration::from_millis(100);
/// The most bytes of a last cache that is swept. A larger one is shared by a whole host, of which a guest has a part;
/// and memory of twice its size takes a second to fill, each time.
const SWEPT: usize = 128 << 20;
/// The least that a rate or a time is taken for, where noise would make it nothing.
const LEAST: f64 = 1e-3;

/// What is calibrated.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// A name of [`crate::target::TARGETS`] or `native`.
    pub cpu: &'a str,
    /// Threads.
    pub threads: usize,
    /// Whether products may round their activations.
    pub rounded: bool,
    /// Bytes of the last cache.
    pub last_cache: usize,
    /// Times that everything is measured, not 0; of each constant the median counts.
    pub passes: usize,
}

/// Measurements that a pass of [`calibrate`] makes, for progress.
pub const STEPS: usize = 53;

/// Measures. `step` is called [`STEPS`] times a pass.
///
/// # Errors
/// A CPU that is unknown or not this one, threads that cannot be had.
pub fn calibrate(subject: &Subject<'_>, step: &dyn Fn()) -> Result<Machine, Error> {
    // What disturbs a shared machine for a moment spoils one pass.
    let passes = (0..subject.passes).map(|_| measure(subject, step)).collect::<Result<Vec<_>, _>>()?;
    let mut m = passes[0];
    for figure in FIGURES {
        let values: Vec<f64> = passes.iter().map(|pass| figure.get(pass)).collect();
        *(figure.of)(&mut m) = timing::median(&values);
    }
    Ok(m)
}

/// One pass.
fn measure(subject: &Subject<'_>, step: &dyn Fn()) -> Result<Machine, Error> {
    let mut probes = Ceilings::new(subject.cpu, subject.threads)?;
    let reads: Vec<f64> = (0..READS).map(|_| probes.read_bandwidth() / 1e9).collect();
    drop(probes);
    step();
    let bench = Bench { subject, step };
    let mut m = Machine {
        threads: subject.threads as f64,
        memory: timing::median(&reads),
        last_cache: subject.last_cache as f64,
        shapes: shapes(&Target::new(subject.cpu, Placement::Jit)?.features, subject.rounded),
        ..Machine::GENERIC
    };

    // A call alone, and what it takes longer when nothing is near.
    let small = "function f(%x: f32[T,16] rows) { return y=(add %x %x) }";
    m.call = bench.ns(small, 1, "elementwise")?;
    // Kernels of three kinds after weights, by which their code is out of reach and what they read is not.
    let kinds = |y: &str| {
        format!(
            "h = (transpose (reshape {y} [T,2,{HALF}]) [1,0,2])
            return y=(mul {y} {y}), c=(append %c h), r=(rope h %pos %f) }}"
        )
    };
    let beside = format!("%pos: i32[T] rows, %f: f32[{}] weight, %c: bf16[2,S,{HALF}] cache", HALF / 2);
    let ir = format!(
        "function f(%x: f32[T,{k}] rows, %w: bf16[{AFTER},{k}] weight, {beside}) {{
        y = (linear %x (weights (cast %w f32)) store)
        {}",
        kinds("y"),
        k = bench.swept() / AFTER,
    );
    let after = bench.ns(&ir, 1, "elementwise|append|rope")?;
    let alone = format!("function f(%x: f32[T,{AFTER}] rows, {beside}) {{ {}", kinds("%x"));
    let alone = bench.ns(&alone, 1, "elementwise|append|rope")?;
    m.cold = ((after - alone) / 3.0).max(LEAST);
    // The difference itself is lost in noise.
    m.cool = m.cold / LATENCIES;

    // Dot products: of two numbers of rows the slope, and where it starts; of two lengths, what a row takes beside its
    // weights.
    let linear = |n: usize, k: usize, dtype: &str| {
        let w = if dtype == "f32" { "%w".into() } else { "(cast %w f32)".to_string() };
        format!(
            "function f(%x: f32[T,{k}] rows, %w: {dtype}[{n},{k}] weight) {{
            return y=(linear %x (weights {w}) store) }}"
        )
    };
    let dot = |n: usize, k: usize, dtype: &str| -> Result<(f64, f64), Error> {
        let small = bench.ns(&linear(SHORT, k, dtype), 1, "linear")?;
        let large = bench.ns(&linear(n, k, dtype), 1, "linear")?;
        let row = (large - small).max(LEAST) / (n - SHORT) as f64;
        Ok((row, small - SHORT as f64 * row))
    };
    let (short, long) = (256, 2048);
    let ((short_row, launch), (long_row, _)) = (dot(4096, short, "bf16")?, dot(2048, long, "bf16")?);
    let each = ((long_row - short_row) / (long - short) as f64).max(LEAST * LEAST);
    m.launch = launch.max(m.call);
    m.dot_row = (short_row - short as f64 * each).max(LEAST);
    let weight = |dtype: &str| -> Result<f64, Error> {
        Ok(long as f64 / (dot(2048, long, dtype)?.0 - m.dot_row).max(LEAST))
    };
    m.dot = Formats { f32: weight("f32")?, bf16: 1.0 / each, q8: weight("q8")?, q4: weight("q4")? };
    // Of rows of x after the first what four take longer than one.
    let more = |dtype: &str| -> Result<f64, Error> {
        let ir = linear(2048, long, dtype);
        let (four, one) = (bench.ns(&ir, 4, "linear")?, bench.ns(&ir, 1, "linear")?);
        Ok((3 * 2048 * long) as f64 / (four - one).max(LEAST))
    };
    m.dot_more = Formats { f32: more("f32")?, bf16: more("bf16")?, q8: more("q8")?, q4: more("q4")? };

    // Products of many rows: of two numbers of rows the slope, and what it leaves for the weights; of two lengths, what
    // a result takes beside its sum.
    let many = |n: usize, k: usize, dtype: &str| -> Result<(f64, f64), Error> {
        let ir = linear(n, k, dtype);
        let (large, small) = (bench.ns(&ir, MANY, "linear")?, bench.ns(&ir, FEWER, "linear")?);
        let each = (large - small).max(LEAST) / ((MANY - FEWER) * n) as f64;
        let widen = (small - m.launch - each * (FEWER * n) as f64) / (n * k) as f64;
        Ok((each, widen.max(LEAST)))
    };
    let n = 768;
    let ((deep, of_bf16), (flat, _)) = (many(n, long, "bf16")?, many(2 * n, short, "bf16")?);
    let rate = 2.0 * (long - short) as f64 / (deep - flat).max(LEAST);
    m.store = (flat - 2.0 * short as f64 / rate).max(LEAST);
    let other = |dtype: &str| -> Result<(f64, f64), Error> {
        let (each, widen) = many(n, long, dtype)?;
        Ok((2.0 * long as f64 / (each - m.store).max(LEAST), widen))
    };
    let (of_f32, of_q8, of_q4) = (other("f32")?, other("q8")?, other("q4")?);
    m.flops = Formats { f32: of_f32.0, bf16: rate, q8: of_q8.0, q4: of_q4.0 };
    m.widen = Formats { f32: of_f32.1, bf16: of_bf16, q8: of_q8.1, q4: of_q4.1 };
    let weights = (n * long) as f64;
    let few = bench.ns(&linear(n, long, "bf16"), FEW, "linear")?;
    // Products take part of it at least, however noise would have it.
    let products = (few - m.launch - weights * m.widen.bf16).max(few / 4.0);
    m.few_flops = 2.0 * weights * FEW as f64 / products;
    let pack = |dtype: &str| -> Result<f64, Error> {
        let ns = bench.ns(&linear(64, long, dtype), FEWER, "pack")?;
        Ok(((ns - m.launch) / (FEWER * long) as f64).max(LEAST))
    };
    m.pack = Formats { f32: pack("f32")?, bf16: pack("bf16")?, q8: pack("q8")?, q4: pack("q4")? };

    // What is done to elements.
    let gated = |epilogue: &str| {
        format!(
            "function f(%x: f32[T,256] rows, %a: bf16[1024,256] weight, %b: bf16[1024,256] weight) {{
            v = (linear %x (weights (cast %a f32) (cast %b f32)) {epilogue})
            return {} }}",
            if epilogue == "gate" { "y=v" } else { "y=(output 0 v), z=(output 1 v)" }
        )
    };
    let (gate, store) =
        (bench.ns(&gated("gate"), MANY, "linear")?, bench.ns(&gated("store"), MANY, "linear")?);
    m.gelu = ((gate - store) / (MANY * 1024) as f64).max(LEAST);
    let each = |ir: &str, kernel: &str, width: usize| -> Result<f64, Error> {
        Ok(((bench.ns(ir, FEWER, kernel)? - m.launch) / (FEWER * width) as f64).max(LEAST))
    };
    let norm = "function f(%x: f32[T,2304] rows, %r: f32[T,2304] rows, %w: f32[2304] weight) {
        return y=(add_rms_norm %r %x %w 1e-6) }";
    m.norm = each(norm, "norm", 2304)?;
    let sum = "function f(%x: f32[T,2304] rows, %r: f32[T,2304] rows) { return y=(add %x %r) }";
    // Three f32 an element, of more elements than the near caches hold. A model's weights drive them out of the last
    // one too.
    let moved = |ns: f64| (12 * MANY * 2304) as f64 / (ns - m.launch).max(LEAST);
    m.near = moved(bench.ns(sum, MANY, "elementwise")?);
    m.cache = moved(bench.cold(sum, MANY, "elementwise")?).min(m.near);
    let append = "function f(%x: f32[4,T,256] rows, %c: bf16[4,S,256] cache) { return c=(append %c %x) }";
    m.element = each(append, "append", 1024)?;
    let rope = "function f(%x: f32[T,2048] rows, %pos: i32[T] rows, %f: f32[128] weight) {
        x = (transpose (reshape %x [T,8,256]) [1,0,2])
        return y=(rope x %pos %f) }";
    m.rope = each(rope, "rope", 2048)?;
    let cap = "function f(%x: f32[T,1024] rows) { return y=(softcap 30.0 %x) }";
    m.transcendental = (each(cap, "softcap", 1024)? - m.element).max(LEAST);
    let most = "function f(%x: f32[T,4096] rows) { return y=(argmax %x 1) }";
    m.reduce = each(most, "reduce", 4096)?;
    let matmul = "function f(%x: f32[T,256] rows, %w: f32[256,256] weight) { return y=(matmul %x %w) }";
    // Of so few rows that they are not packed.
    m.loose_flops = (2 * ROWS * 256 * 256) as f64 / (bench.ns(matmul, ROWS, "matmul")? - m.launch).max(LEAST);
    let sums = bench.ns(matmul, MANY, "product")? - m.launch - (MANY * 256) as f64 * m.store;
    m.product_flops = (2 * MANY * 256 * 256) as f64 / sums.max(LEAST);

    // Attention: two widths of heads tell products from what is done to scores.
    let attend = |width: usize| {
        format!(
            "function f(%q: f32[8,T,{width}] rows, %kn: f32[4,T,{width}] rows, %vn: f32[4,T,{width}] rows,
                %k: bf16[4,S,{width}] cache, %v: bf16[4,S,{width}] cache, %pos: i32[T] rows) {{
                k = (append %k %kn)
                v = (append %v %vn)
                y = (attention %q (cast k f32) (cast v f32) %pos 0.0625 50.0 none bounded)
                return k=k, v=v, y=y }}"
        )
    };
    let attention = |width: usize, rows: usize| bench.ns(&attend(width), rows, "attention");
    let machine = m;
    let fit = |rows: usize| -> Result<(f64, f64), Error> {
        let model = lapidary_passes::CostModel { machine, extent: Extent { rows, keys: MANY } };
        let scores =
            8.0 * model.seen((rows, MANY), MANY, false, (rows > FEW).then(|| machine.shapes.panel_rows(2)));
        let (narrow, wide) = (attention(64, rows)? - machine.launch, attention(256, rows)? - machine.launch);
        let rate = 4.0 * (256 - 64) as f64 * scores / (wide - narrow).max(LEAST);
        Ok((rate, (narrow / scores - 4.0 * 64.0 / rate).max(LEAST)))
    };
    (m.attention_flops, m.score) = fit(1)?;
    (m.attention_tile_flops, m.score_tile) = fit(MANY)?;
    // Keys and values of 4 heads, 512 of each, 2 bytes an element.
    let bytes = (2 * 4 * MANY * 256 * 2) as f64;
    m.keys = (bytes / (bench.cold(&attend(256), 1, "attention")? - m.launch).max(LEAST)).min(m.memory);
    Ok(m)
}

/// Times kernels.
struct Bench<'a> {
    subject: &'a Subject<'a>,
    step: &'a dyn Fn(),
}

impl Bench<'_> {
    /// Nanoseconds of the kernels of a function whose name ends in `kernel` (or one of several, between bars), with
    /// operands in cache.
    fn ns(&self, ir: &str, rows: usize, kernel: &str) -> Result<f64, Error> {
        self.time(ir, Extent { rows, keys: MANY }, kernel, 0)
    }

    /// The same, with code and operands out of every cache.
    fn cold(&self, ir: &str, rows: usize, kernel: &str) -> Result<f64, Error> {
        self.time(ir, Extent { rows, keys: MANY }, kernel, self.swept())
    }

    /// Bytes beside which nothing stays in a cache.
    fn swept(&self) -> usize {
        2 * self.subject.last_cache.min(SWEPT)
    }

    fn time(&self, ir: &str, extent: Extent, kernel: &str, evict: usize) -> Result<f64, Error> {
        let refuse = |reason: String| Error::Kernel { kernel: kernel.into(), reason };
        let module = text::parse_module(ir).map_err(|e| refuse(e.to_string()))?;
        let options = Options {
            selection: Selection::none(),
            cpu: self.subject.cpu.into(),
            context: CONTEXT,
            chunk: MANY,
            rounded: self.subject.rounded,
            machine: Machine::GENERIC,
            listings: false,
        };
        let loose = compile_functions(&module.functions, &options)?;
        let setup = Setup { evict, enough: ENOUGH, ..Setup::hot(self.subject.threads) };
        let lowered = loose.reports[0].variants.iter().find(|v| v.rows >= extent.rows);
        let own = |at: usize| {
            let name = lowered.and_then(|l| l.schedule.kernels.get(at)).map(|k| k.body.name());
            name.is_some_and(|name| kernel.split('|').any(|kind| name.ends_with(kind)))
        };
        let timing = timing::time(&loose, 0, CONTEXT, extent, setup)?;
        let ns: f64 = timing.kernels.iter().enumerate().filter(|(at, _)| own(*at)).map(|(_, ns)| ns).sum();
        (self.step)();
        if ns > 0.0 { Ok(ns) } else { Err(refuse("it took no time".into())) }
    }
}
