//! `lapidary bench`: tokens a second, held against the machine's own ceilings measured in the same run.
//!
//! In: a model, and which phases, weight formats, threads and depths. Out: medians of repetitions, the ceilings
//! measured between them; the bytes and operations of a token and their share of those ceilings; a table of kernels,
//! with `--predicted` beside what the cost model says of each; with `--ablation` a table of what each rule buys.

mod ablation;
mod function;
pub(crate) mod kernels;
mod phase;
mod row;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use lapidary::{Activations, Artifact, MAX_CONTEXT};
use lapidary_codegen::price::ceilings::{Ceilings, READ_BYTES};
use lapidary_codegen::target::{Placement, Target};
use lapidary_ir::DType;
use lapidary_runtime::cpu::Cores;
use lapidary_runtime::demand::Unit;
use serde_json::{Value, json};

use crate::model::Engine;
use crate::options::{self, CompileArgs, ModelArgs};
use crate::output::{self, Usage};
use crate::price::calibration::cpu_name;
use crate::price::predict::Predictor;
use crate::residence::ResidenceArgs;
use crate::trust::TrustArgs;
use crate::weights::{FormatOrFile, OtherWeightArgs, WeightArgs};
use phase::{Phase, time};
use row::{Measured, Row};

/// Measure tokens a second, beside what the machine can do.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary bench\n  \
    lapidary bench -m gemma-2-2b --prompt-tokens 128,512 --gen-tokens 32 --depth 128 --threads 1,2\n  \
    lapidary bench -m gemma-2-2b --prompt-tokens 512 --sequences 1,2,4,8\n  \
    lapidary bench -m gemma-2-2b --kernels --predicted --json\n  \
    lapidary bench --ablation\n  \
    lapidary bench mlp.ir --rows 1,16,512 --kernels")]
pub(crate) struct Args {
    /// File of the tensor language with a function to measure instead of a model; `-` reads stdin
    #[arg(value_name = "FILE.ir", conflicts_with_all = ["model", "prompt_tokens", "gen_tokens", "depth", "sequences",
        "predicted", "ablation", "head_weights", "lora", "no_cache", "mmap", "no_mmap", "trust", "kv_cache",
        "sliding_window"])]
    file: Option<PathBuf>,
    /// Of several functions, the one to measure
    #[arg(long = "fn", value_name = "NAME", requires = "file")]
    function: Option<String>,
    /// Rows of a function's calls [default: 1,16,512]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = options::rows(), requires = "file")]
    rows: Vec<usize>,
    /// Hugging Face folder, GGUF file, name OWNER/REPO[:TAG], or artifact NAME.lap [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Lengths of prompts to prefill
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "128,512")]
    prompt_tokens: Vec<usize>,
    /// Tokens to generate one by one
    #[arg(long, value_name = "N", default_value_t = 32)]
    gen_tokens: usize,
    /// Tokens in the cache before generation starts
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "128")]
    depth: Vec<usize>,
    /// Sequences to generate at once, a token of each in a step
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1", value_parser = options::sequences())]
    sequences: Vec<usize>,
    /// Formats of the weights to measure [default: as the checkpoint stores them]; of FILE.ir, the safetensors file
    /// that holds them [default: numbers that mean nothing]
    #[arg(long, value_parser = FormatOrFile::parse, value_name = "FORMAT,..|FILE", value_delimiter = ',')]
    weights: Vec<FormatOrFile>,
    #[command(flatten)]
    others: OtherWeightArgs,
    #[command(flatten)]
    residence: ResidenceArgs,
    /// Threads [default: one a fast core]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = options::threads())]
    threads: Vec<usize>,
    /// Repetitions, of which medians are taken
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    repeat: u64,
    /// A table of every kernel: launches, time, and its share of the machine's ceilings
    #[arg(long)]
    kernels: bool,
    /// In that table also what the cost model predicts of each kernel, and the ratio to the measured time
    #[arg(long, requires = "kernels")]
    predicted: bool,
    /// A table of what each rule buys instead: tokens a second without it, and without any
    #[arg(long, conflicts_with_all = ["kernels", "predicted"])]
    ablation: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    compile: CompileArgs,
}

/// What products multiply in: f32, bf16, 8-bit integers.
const UNITS: [DType; 3] = [DType::F32, DType::BF16, DType::Q8];

/// Measures.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(file) = &args.file {
        return function::run(args, file);
    }
    let given = args.weights.iter().map(FormatOrFile::format).collect::<Result<Vec<_>>>()?;
    let mut phases: Vec<Phase> = args.prompt_tokens.iter().map(|&n| Phase::Prefill(n)).collect();
    if args.gen_tokens > 0 {
        let of = |&depth: &usize| {
            args.sequences.iter().map(move |&sequences| Phase::Decode {
                tokens: args.gen_tokens,
                depth,
                sequences,
            })
        };
        phases.extend(args.depth.iter().flat_map(of));
    }
    let needed = phases.iter().map(|p| p.last_position()).max().unwrap_or(1);
    if phases.contains(&Phase::Prefill(0)) {
        return Err(Usage::new(anyhow!("--prompt-tokens: expected 1 or more")).into());
    }
    if needed > MAX_CONTEXT {
        return Err(Usage::new(anyhow!("{needed} positions: expected at most {MAX_CONTEXT}")).into());
    }
    let stored = args.model.as_deref().filter(|path| Artifact::is_named_so(path));
    let of_graphs = [("--predicted", args.predicted), ("--ablation", args.ablation)];
    if let (Some(path), Some((option, _))) = (stored, of_graphs.iter().find(|(_, given)| *given)) {
        let path = path.display();
        return Err(Usage::new(anyhow!(
            "{option}: {path} holds code, not its graph; give the model's folder"
        ))
        .into());
    }
    let stored = stored.is_some();
    let threads = match &args.threads[..] {
        [] => vec![Cores::here().threads()],
        given => given.to_vec(),
    };
    if args.ablation {
        return ablation::run(args, &phases, needed, threads[0]);
    }
    let mut results = vec![];
    let mut machines = vec![];
    let mut text = String::new();
    let mut times = (0.0, 0.0);
    let formats: Vec<WeightArgs> = match &given[..] {
        [] => vec![args.others.with(None)],
        given => given.iter().map(|&f| args.others.with(Some(f))).collect(),
    };
    let runs = formats.iter().flat_map(|f| threads.iter().map(move |&t| (f, t)));
    for (weights, count) in runs {
        // An artifact has the context that it was compiled for.
        let compile = if stored { args.compile.clone() } else { args.compile.at_least(needed) };
        let model_args = ModelArgs {
            model: args.model.clone(),
            verify: false,
            trust: args.trust.clone(),
            threads: Some(count),
            weights: weights.clone(),
            residence: args.residence,
            compile,
        };
        let mut engine = Engine::new(&model_args)?;
        let context = engine.session.context();
        ensure!(
            needed <= context,
            "{}: {needed} positions are needed, its context is {context}",
            engine.name()
        );
        let mut machine = Ceilings::new(&args.compile.cpu, count)?;
        times = (ms(engine.compile), ms(engine.load));
        let bar = output::bar(args.repeat * phases.len() as u64, "measuring", output::Unit::Steps);
        let mut measured: Vec<Measured> = phases
            .iter()
            .map(|&phase| Measured { phase, seconds: vec![], read: vec![], multiply: Default::default() })
            .collect();
        // Weights come into memory, code into caches.
        time(&mut engine.session, Phase::Decode { tokens: 1, depth: 1, sequences: 1 }, &mut || ())?;
        // Phase by phase, so that the cache is filled to a depth once; the ceilings beside each repetition. Reads
        // beside each token too, since shared bandwidth changes within a second, unless they would push the weights out
        // of cache.
        for m in &mut measured {
            let bytes: f64 = kernels::launches(&engine, m.phase).iter().map(|l| l.bytes).sum();
            let streams = bytes / m.phase.tokens() as f64 >= READ_BYTES as f64;
            for _ in 0..args.repeat {
                for (unit, peaks) in UNITS.iter().zip(&mut m.multiply) {
                    peaks.push(machine.multiply_peak(*unit).unwrap_or(f64::NAN));
                }
                let mut reads = vec![machine.read_time()];
                let mut between = || {
                    if streams {
                        reads.push(machine.read_time());
                    }
                };
                let time = time(&mut engine.session, m.phase, &mut between)?;
                m.seconds.push(time.as_secs_f64());
                m.read.push((reads.len() * READ_BYTES) as f64 / reads.iter().sum::<f64>());
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let all = |f: &dyn Fn(&Measured) -> &[f64]| {
            median(&measured.iter().flat_map(|m| f(m).to_vec()).collect::<Vec<_>>())
        };
        let read = all(&|m| &m.read);
        let peaks: [f64; UNITS.len()] = std::array::from_fn(|unit| all(&|m| &m.multiply[unit]));
        let features = Target::new(&args.compile.cpu, Placement::Object)?.features;
        let rounded = args.compile.activations == Activations::Auto;
        let unit = features.matrix_unit(rounded, engine.format.is_quantised());
        let multiply = peaks[index(unit)];
        let units = UNITS.iter().zip(&peaks).filter(|(_, peak)| peak.is_finite());
        let units: serde_json::Map<String, Value> =
            units.map(|(unit, peak)| (unit_name(*unit).to_string(), json!(peak / 1e9))).collect();
        machines.push(json!({
            "cpu": cpu_name(), "threads": count, "read_gbps": read / 1e9, "matrix_gflops": multiply / 1e9,
            "matrix_unit": unit_name(unit), "units_gflops": units,
        }));
        if text.is_empty() {
            text.push_str(&format!("{}, compile {:.0} ms, load {:.0} ms\n", cpu_name(), times.0, times.1));
        }
        text.push_str(&format!(
            "\n{}, {count} threads: reads {:.1} GB/s, multiplies {:.0} GFLOP/s in {}\n{}",
            engine.format,
            read / 1e9,
            multiply / 1e9,
            unit_name(unit),
            row::HEADER
        ));
        for m in &measured {
            let row = Row::new(m, &engine);
            text.push_str(&row.text(m.phase));
            results.push(row.json(m.phase, &engine, count));
        }
        if args.kernels {
            let predictor = match args.predicted {
                true => Some(Predictor::new(&model_args.compile, &engine, read / 1e9, count)?),
                false => None,
            };
            for &phase in &phases {
                let profiles = (0..args.repeat).map(|_| {
                    engine.session.start_profile();
                    time(&mut engine.session, phase, &mut || ())?;
                    Ok(engine.session.take_profile().unwrap_or_default())
                });
                let profiles = profiles.collect::<Result<Vec<_>>>()?;
                let ceilings = kernels::Ceilings { read, peaks };
                let table = kernels::table(&engine, phase, &profiles, &ceilings, predictor.as_ref())?;
                let (name, tokens, depth) = (phase.name(), phase.tokens(), phase.depth());
                let each = match phase.sequences() {
                    1 => String::new(),
                    n => format!(" of each of {n} sequences"),
                };
                let title = format!("{name} of {tokens} tokens{each} at depth {depth}");
                text.push_str(&kernels::text(&title, &table, args.predicted));
                if let Some(Value::Object(result)) = results.iter_mut().rev().find(|r| phase.is(r, count)) {
                    if args.predicted {
                        result.insert("predicted".into(), kernels::agreement(&table));
                    }
                    result.insert("kernels".into(), table.iter().map(kernels::Line::json).collect());
                }
            }
        }
    }
    if args.json {
        // The ceilings of each run; of the first alone under the name that a single run has.
        let mut report = json!({
            "machine": machines[0], "compile_ms": times.0, "load_ms": times.1, "results": results,
        });
        if machines.len() > 1 {
            report["machines"] = json!(machines);
        }
        output::print_json(&report)
    } else {
        output::print(&text)
    }
}

/// A unit's place among [`UNITS`].
fn index(unit: DType) -> usize {
    UNITS.iter().position(|u| *u == unit).unwrap_or(0)
}

/// The place of what a kernel multiplies in among [`UNITS`].
fn dtype_index(unit: Unit) -> usize {
    index(match unit {
        Unit::F32 => DType::F32,
        Unit::Bf16 => DType::BF16,
        Unit::Int8 => DType::Q8,
    })
}

/// A unit's name in results.
fn unit_name(unit: DType) -> &'static str {
    match UNITS[index(unit)] {
        DType::BF16 => "bf16",
        DType::Q8 => "int8",
        _ => "f32",
    }
}

/// The median; of an even number the mean of the middle two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 { f64::NAN } else { (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0 }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
