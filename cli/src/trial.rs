//! `lapidary opt --run`: functions executed, by the interpreter and as machine code.
//!
//! In: functions, the compiler's options, a seed. Out: one line a function: how far the machine code of the fused form
//! is from the interpreter of the function as written, in calls of every row regime. Where few rules run (`--only`,
//! `--rules`), every form in the e-graph is held against the interpreter too, those that extraction does not choose
//! included. A difference beyond the tolerance is an error: that of arithmetic, and what approximate rules that fired
//! allow themselves, each of which is held to its own bound by itself.

use std::fmt::Write;

use anyhow::{Result, anyhow, bail};
use lapidary_codegen::compile::{compile_functions, regimes};
use lapidary_codegen::{Options, call};
use lapidary_ir::interp::{Precision, evaluate};
use lapidary_ir::{DType, Extent, Function, verify};
use lapidary_passes::check::{self, forms, values};
use lapidary_passes::rules::Class;
use lapidary_passes::{Limits, Selection, prepare};

/// Positions, and rows of a call, that functions are compiled for: all row regimes, no cache wraps.
const CONTEXT: usize = 64;

/// The calls: of each row regime the fewest rows and some more, with no keys before them and with some.
fn extents() -> Vec<Extent> {
    let regimes = regimes(CONTEXT);
    let least = std::iter::once(1).chain(regimes.iter().map(|rows| rows + 1));
    let calls = least.zip(&regimes).flat_map(|(least, &most)| {
        let some = (least + most).div_ceil(2);
        [Extent { rows: least, keys: least }, Extent { rows: some, keys: (some + 22).min(CONTEXT) }]
    });
    calls.collect()
}

/// Elements of all inputs; the interpreter holds each in 8 bytes, several times over.
const MOST_ELEMENTS: usize = 1 << 27;

/// Distance allowed as a share of the largest expected value, or of 1: f32 arithmetic, sums of a few thousand terms.
const TOLERANCE: f64 = 1e-4;
/// The same where products round their activations to bf16 or 8 bits.
const ROUNDED_TOLERANCE: f64 = 5e-2;
/// One unit in the last place of bf16, for outputs and caches that are held in it or in f16.
const NARROW: f64 = 1.0 / 128.0;

/// Runs every function; `few` says that few rules run.
pub(crate) fn run(functions: &[Function], options: &Options, seed: u64, few: bool) -> Result<String> {
    let options = Options {
        context: CONTEXT,
        chunk: CONTEXT,
        listings: false,
        cpu: "native".into(),
        ..options.clone()
    };
    let mut out = String::new();
    for function in functions {
        verify::verify(function)?;
        let name = &function.name;
        if let Some(input) = function.inputs.iter().find(|i| i.ty.dtype.is_quantised()) {
            bail!(
                "function `{name}`: input `{}` is {}: --run takes none that is quantised",
                input.name,
                input.ty
            );
        }
        let most = Extent { rows: CONTEXT, keys: CONTEXT };
        let elements = function.inputs.iter().fold(0usize, |n, i| n.saturating_add(i.ty.elements(most)));
        if elements > MOST_ELEMENTS {
            bail!(
                "function `{name}`: its inputs have {elements} elements: --run takes {MOST_ELEMENTS} at most \
                (--fn chooses a function)"
            );
        }
        if few {
            let forms = interpret(function, &options, seed)?;
            writeln!(
                out,
                "; run {name}: {forms} forms in the e-graph agree with the interpreter, seed {seed}"
            )?;
        }
        let loose = compile_functions(std::slice::from_ref(function), &options)?;
        let allowed = allowance(&options.selection, &loose.reports[0].saturation.fired);
        let mut worst = (0.0, String::new(), 0.0);
        let extents = extents();
        for &extent in &extents {
            let inputs = values::inputs(function, extent, seed);
            let expected = evaluate(function, &inputs, extent, Precision::F32)?;
            let found = call::call(&loose, 0, CONTEXT, &inputs, extent)
                .map_err(|e| anyhow!("function `{name}`: {e}"))?;
            for ((output, _), (found, expected)) in function.outputs.iter().zip(found.iter().zip(&expected)) {
                let wide = if options.rounded { ROUNDED_TOLERANCE } else { TOLERANCE };
                let tolerance = allowed + if expected.dtype == DType::F32 { wide } else { wide.max(NARROW) };
                let most = expected.data.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
                let differences = found.data.iter().zip(&expected.data).map(|(a, b)| {
                    if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() / most }
                });
                let difference =
                    differences.fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
                if difference > tolerance {
                    let Extent { rows, keys } = extent;
                    bail!(
                        "function `{name}`: output `{output}` of the machine code is {difference:.1e} from the \
                        interpreter's in a call of {rows} rows and {keys} keys: expected {tolerance:.1e} at most, of \
                        a largest value of {most:.3}"
                    );
                }
                if difference > worst.0 || worst.1.is_empty() {
                    worst = (difference, output.clone(), tolerance);
                }
            }
        }
        let rows: Vec<String> = extents.iter().map(|e| e.rows.to_string()).collect();
        writeln!(
            out,
            "; run {name}: machine code is {:.1e} from the interpreter at worst (output `{}`, at most {:.0e} of the \
            largest value), calls of {} rows, seed {seed}",
            worst.0,
            worst.1,
            worst.2,
            rows.join(", ")
        )?;
    }
    Ok(out)
}

/// What approximate rules that fired allow themselves, together.
fn allowance(selection: &Selection, fired: &[(String, usize)]) -> f64 {
    let bounds = fired.iter().filter_map(|(name, times)| match selection.rules().find(name)?.class {
        Class::Approximate(bound) => Some(f64::from(bound) * *times as f64),
        Class::Exact | Class::Reassociating => None,
    });
    bounds.sum()
}

/// Holds every form that the rules make against the interpreter; how many there are.
fn interpret(function: &Function, options: &Options, seed: u64) -> Result<usize> {
    let saturated = prepare(function, &options.selection, Limits::default())?;
    let flat = forms::flatten(&saturated);
    let failed = |reason: String| anyhow!("function `{}`: {reason}", function.name);
    let wrong = |rule: &str, reason: String| failed(format!("rule `{rule}`: {reason}"));
    let enabled: Vec<&str> = options.selection.enabled().collect();
    if let [rule] = enabled[..]
        && let Some(rule) = options.selection.rules().find(rule)
    {
        check::differences(&saturated, rule, seed).map_err(|e| wrong(&rule.name, e.reason))?;
    } else {
        // By itself each approximate rule is held to its own bound.
        let rules = enabled.iter().filter_map(|name| options.selection.rules().find(name));
        for rule in rules.filter(|rule| matches!(rule.class, Class::Approximate(_))) {
            let alone = options.selection.with_only([rule.name.clone()]);
            let saturated = prepare(function, &alone, Limits::default())?;
            check::differences(&saturated, rule, seed).map_err(|e| wrong(&rule.name, e.reason))?;
        }
        // Several rules: constants may be rounded to f32 on the way.
        let tolerance = 1e-6 + allowance(&options.selection, &saturated.report.fired);
        for extent in check::EXTENTS {
            let inputs = values::inputs(function, extent, seed);
            forms::check_call(&flat, &inputs, extent, Precision::F64, &|found, expected| {
                forms::compare(found, expected, tolerance)
            })
            .map_err(|e| failed(e.reason))?;
        }
    }
    Ok(flat.pairs.len() + flat.terms.len())
}
