//! `lapidary opt --run`: functions executed, by the interpreter and as machine code.
//!
//! In: functions, the compiler's options, a seed. Out: one line a function: how far the machine code of the fused form is
//! from the interpreter of the function as written. Where few rules run (`--only`, `--rules`), every form in the e-graph
//! is held against the interpreter too, those that extraction does not choose included. A difference beyond the
//! tolerance is an error.

use std::fmt::Write;

use anyhow::{Result, anyhow, bail};
use lapidary_codegen::compile::compile_functions;
use lapidary_codegen::{Options, call};
use lapidary_ir::interp::{Precision, evaluate};
use lapidary_ir::{DType, Extent, Function, verify};
use lapidary_passes::check::{self, forms, values};
use lapidary_passes::{Limits, prepare};

/// Positions, and rows of a call, that functions are compiled for: three row regimes, no cache wraps.
const CONTEXT: usize = 64;

/// Rows and keys of the calls: one row, and some of each regime.
const EXTENTS: [Extent; 5] = [
    Extent { rows: 1, keys: 1 },
    Extent { rows: 1, keys: 23 },
    Extent { rows: 3, keys: 7 },
    Extent { rows: 5, keys: 5 },
    Extent { rows: 17, keys: 40 },
];

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
        let most = Extent { rows: 17, keys: 40 };
        let elements = function.inputs.iter().fold(0usize, |n, i| n.saturating_add(i.ty.elements(most)));
        if elements > MOST_ELEMENTS {
            bail!(
                "function `{name}`: its inputs have {elements} elements: --run takes {MOST_ELEMENTS} at most (--fn chooses a function)"
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
        let mut worst = (0.0, String::new(), 0.0);
        for extent in EXTENTS {
            let inputs = values::inputs(function, extent, seed);
            let expected = evaluate(function, &inputs, extent, Precision::F32)?;
            let found = call::call(&loose, 0, CONTEXT, &inputs, extent)
                .map_err(|e| anyhow!("function `{name}`: {e}"))?;
            for ((output, _), (found, expected)) in function.outputs.iter().zip(found.iter().zip(&expected)) {
                let wide = if options.rounded { ROUNDED_TOLERANCE } else { TOLERANCE };
                let tolerance = if expected.dtype == DType::F32 { wide } else { wide.max(NARROW) };
                let most = expected.data.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
                let differences = found.data.iter().zip(&expected.data).map(|(a, b)| {
                    if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() / most }
                });
                let difference =
                    differences.fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
                if difference > tolerance {
                    let Extent { rows, keys } = extent;
                    bail!(
                        "function `{name}`: output `{output}` of the machine code is {difference:.1e} from the interpreter's in a call of {rows} rows and {keys} keys: expected {tolerance:.1e} at most, of a largest value of {most:.3}"
                    );
                }
                if difference > worst.0 || worst.1.is_empty() {
                    worst = (difference, output.clone(), tolerance);
                }
            }
        }
        writeln!(
            out,
            "; run {name}: machine code is {:.1e} from the interpreter at worst (output `{}`, at most {:.0e} of the largest value), {} calls, seed {seed}",
            worst.0,
            worst.1,
            worst.2,
            EXTENTS.len()
        )?;
    }
    Ok(out)
}

/// Holds every form that the rules make against the interpreter; how many there are.
fn interpret(function: &Function, options: &Options, seed: u64) -> Result<usize> {
    let saturated = prepare(function, &options.selection, Limits::default())?;
    let flat = forms::flatten(&saturated);
    let failed = |reason: String| anyhow!("function `{}`: {reason}", function.name);
    let enabled: Vec<&str> = options.selection.enabled().collect();
    if let [rule] = enabled[..]
        && let Some(rule) = options.selection.rules().find(rule)
    {
        check::differences(&saturated, rule, seed).map_err(|e| failed(e.reason))?;
    } else {
        // Several rules: constants may be rounded to f32 on the way.
        for extent in check::EXTENTS {
            let inputs = values::inputs(function, extent, seed);
            forms::check_call(&flat, &inputs, extent, Precision::F64, &|found, expected| {
                forms::compare(found, expected, 1e-6)
            })
            .map_err(|e| failed(e.reason))?;
        }
    }
    Ok(flat.pairs.len() + flat.terms.len())
}
