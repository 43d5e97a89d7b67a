//! `lapidary compile --emit artifact`, `lapidary verify`, and `lapidary inspect` of an artifact.
//!
//! In: a model, a target, CPUs. Out: an artifact. Each CPU's code is compiled on its own, from the same graph; weights,
//! configuration and text are stored once. CPUs are stored in the order of the table of targets, whatever the
//! command's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use lapidary_codegen::compile::{ImageCompilation, compile_image};
use lapidary_codegen::target::{self, Placement, TARGETS, Target};
use lapidary_models::{Config, Tokenizer, graph};
use lapidary_runtime::Artifact;
use lapidary_runtime::artifact::write::{About, Part, Variant, probe, write as write_artifact};
use lapidary_runtime::artifact::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_TABLES,
};
use lapidary_runtime::artifact::{Listing, PrivateKey};
use lapidary_runtime::cpu::Architecture;
use lapidary_runtime::file::error::line;
use lapidary_runtime::program::{SlotKind, WeightSource};
use serde_json::{Value, json};

use crate::model::{self, CompileArgs};
use crate::object::tensor_type;
use crate::output::{self, Unit, Usage};
use crate::trust::TrustArgs;
use crate::weights::WeightArgs;

/// What to write.
pub(crate) struct Request<'a> {
    pub(crate) model: Option<&'a Path>,
    pub(crate) target: Option<&'a str>,
    pub(crate) weights: &'a WeightArgs,
    /// `cpu` may be several names, separated by commas.
    pub(crate) compile: CompileArgs,
    pub(crate) output: &'a Path,
    /// File of the key that signs it.
    pub(crate) sign: Option<&'a Path>,
}

/// Compiles and writes an artifact.
pub(crate) fn write(request: &Request<'_>) -> Result<()> {
    let compile = &request.compile;
    let key = request.sign.map(PrivateKey::read).transpose()?;
    let targets = targets(request.target, &compile.cpu)?;
    compile.for_cpu(&targets[0].name).options(1)?;
    // Before hours of quantising: a place that cannot be written to.
    if request.output.is_dir() {
        bail!("-o {}: expected a file NAME.lap, found a folder", request.output.display());
    }
    probe(request.output).with_context(|| format!("cannot write {}", request.output.display()))?;
    let mut model = model::open(request.model)?;
    compile.adjust(&mut model.config);
    let model = Arc::new(model);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let weights = request.weights.open(&model, threads)?;

    let start = Instant::now();
    let dtype = |name: &str| weights.dtype(&model, name);
    let module = compile.module(&model.config, &dtype)?;
    let description = model::describe(&model.config, &dtype);
    let mut images = Vec::with_capacity(targets.len());
    for target in &targets {
        let compile = compile.for_cpu(&target.name);
        let layers = description.layers.iter().map(|(name, _)| name.as_str());
        let context = compile.context_of(model.config.max_position_embeddings);
        let options = compile.options_of(context, &module, layers)?;
        let ImageCompilation { image, functions, .. } = compile_image(&module, &description, &options)?;
        for warning in functions.iter().filter_map(|f| f.saturation.warning()) {
            output::note("warning", &warning);
        }
        images.push(image);
    }
    let compiled = start.elapsed();

    let start = Instant::now();
    let features: Vec<Vec<String>> = targets.iter().map(Target::required).collect();
    let variants = targets.iter().zip(&features).zip(&images).map(|((target, features), image)| Variant {
        cpu: &target.name,
        features,
        tuning: target.tuning.map(|t| t.name),
        image,
    });
    let mut parts = Part::images(&variants.collect::<Vec<_>>());
    parts.push(Part::text(CONFIG, model.config.to_json().to_string().into_bytes()));
    if let (Some(tokenizer), Some(file)) = (&model.tokenizer, model.tokenizer_file()?) {
        let special = tokenizer.special_tokens().to_json();
        if let Some(tables) = Tokenizer::tables(&file) {
            parts.push(Part::text(TOKENIZER_TABLES, tables));
        }
        parts.push(Part::text(TOKENIZER, file));
        parts.push(Part::text(TOKENIZER_CONFIG, special.to_string().into_bytes()));
    }
    if let Some(template) = &model.chat_template {
        parts.push(Part::text(CHAT_TEMPLATE, template.source()?.as_bytes()));
    }
    let generation = json!({ "eos_token_id": model.stop_tokens });
    parts.push(Part::text(GENERATION_CONFIG, generation.to_string().into_bytes()));
    for spec in model.config.tensors() {
        let kind = tensor_type(&model, &weights, &spec.name);
        let (Some(kind), Some(bytes)) = (kind, weights.tensor(&spec.name)) else {
            bail!("tensor `{}` is missing from the checkpoint", spec.name);
        };
        parts.push(Part::weight(&spec.name, kind.dtype, kind.shape, bytes));
    }
    let cpus: Vec<String> = targets.iter().map(|t| t.name.clone()).collect();
    let format = weights.dtype(&model, &format!("{}self_attn.q_proj.weight", graph::layer_prefix(0)));
    let triple = triple(&targets[0]);
    let about = About {
        target: &triple,
        cpus: &cpus,
        weights: format.name(),
        compiler: env!("CARGO_PKG_VERSION"),
        key: key.as_ref(),
    };
    let bar = output::bar(0, "writing", Unit::Bytes);
    let bytes = write_artifact(request.output, &about, &parts, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let stored = |at: &usize| images[..*at].iter().all(|other| other.code != images[*at].code);
    let code: usize = (0..images.len()).filter(stored).map(|at| images[at].code.len()).sum();
    output::say(&format!(
        "{}: {}, {} of code for {} in {:.2} s; written in {:.2} s",
        request.output.display(),
        output::bytes(bytes),
        output::bytes(code as u64),
        cpus.join(", "),
        compiled.as_secs_f64(),
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// The CPUs that `--target` and `--cpu` name, better ones later, each once. Of a target alone: its steps.
fn targets(triple: Option<&str>, names: &str) -> Result<Vec<Target>> {
    let make = |name: &str| Target::new(name, Placement::Object).map_err(Usage::new);
    if triple.is_none() && names == "native" {
        return Ok(vec![make("native")?]);
    }
    let mut names: Vec<&str> =
        if names == "native" { Vec::new() } else { names.split(',').map(str::trim).collect() };
    let triple = match (triple, names.first()) {
        (Some(triple), _) => target::triple_of(triple),
        (None, Some(first)) => {
            make(first)?;
            target::row(first).map_or(target::triple(Architecture::HERE), |row| row.triple)
        }
        (None, None) => target::triple(Architecture::HERE),
    };
    target::cpu_of_target(triple, None).map_err(Usage::new)?;
    if names.is_empty() {
        names = TARGETS.iter().filter(|t| t.triple == triple).map(|t| t.name).collect();
    }
    for name in &names {
        target::cpu_of_target(triple, Some(name)).map_err(Usage::new)?;
    }
    // In the table's order first, so that the command's order changes nothing.
    let rows = target::rows().filter(|row| names.contains(&row.name));
    let mut targets = rows.map(|row| make(row.name)).collect::<Result<Vec<_>, _>>()?;
    targets.sort_by_key(Target::rank);
    Ok(targets)
}

/// The triple of a target, as the table names it.
fn triple(target: &Target) -> String {
    target::triple(target.set.architecture()).to_string()
}

/// Hold every section of an artifact against its hash, and its signature against the key it names. Hashes prove a
/// file's integrity, not its origin: --trust does
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lapidary verify model.lap\n  lapidary verify model.lap --trust release.pub"
)]
pub(crate) struct VerifyArgs {
    /// Artifact to verify
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
}

/// Verifies.
pub(crate) fn verify(args: &VerifyArgs) -> Result<()> {
    let (artifact, signer) = args.trust.open(&args.file)?;
    artifact.verify()?;
    for cpu in artifact.cpus() {
        artifact.listing(cpu)?;
    }
    let signed = match (signer, artifact.signed_by()) {
        (Some(file), Some(key)) => format!(", signed by {key} ({})", file.display()),
        (None, Some(key)) => format!(", signed by {key}, which no --trust vouches for"),
        (_, None) => String::new(),
    };
    let (file, sections) = (args.file.display(), artifact.sections().len());
    output::print(&format!("{file}: {sections} sections verified{signed}\n"))
}

/// Bytes that a session of a program allocates for a context, on one thread: caches of local layers and of global
/// ones, then temporaries, scratch and activations.
struct MemoryOf {
    kv_local: u64,
    kv_global: u64,
    working: u64,
}

impl MemoryOf {
    fn new(listing: &Listing, context: usize) -> MemoryOf {
        let plan = &listing.plan;
        let mut memory = MemoryOf { kv_local: 0, kv_global: 0, working: 0 };
        for layer in &plan.layers {
            let Some(function) = listing.functions.get(layer.function) else { continue };
            // A cache may have two slots, as what is read and as what is written.
            let mut caches = std::collections::BTreeMap::new();
            for slot in &function.slots {
                if let SlotKind::Cache { heads, rows, row_bytes, window } = slot.kind {
                    let row = (heads as u64).saturating_mul(row_bytes as u64);
                    let bytes = row.saturating_mul(rows.min(context) as u64);
                    caches.insert(slot.name.as_str(), (window.is_some(), bytes));
                }
            }
            for (local, bytes) in caches.into_values() {
                let all = if local { &mut memory.kv_local } else { &mut memory.kv_global };
                *all = all.saturating_add(bytes);
            }
        }
        let variants = || listing.functions.iter().flat_map(|f| &f.variants);
        let arena = variants().map(|v| v.arena_bytes).max().unwrap_or(0);
        let scratch = variants().map(|v| v.scratch_bytes).max().unwrap_or(0);
        let activations = plan.chunk * (2 * plan.hidden + 2) * 4 + plan.vocab * 4;
        memory.working = (arena + scratch + activations) as u64;
        memory
    }

    fn kv(&self) -> u64 {
        self.kv_local.saturating_add(self.kv_global)
    }
}

/// The positions that memory is counted for: those of `--context`, which may not be more than was compiled.
fn context_of(path: &Path, listing: &Listing, asked: Option<u64>) -> Result<usize> {
    let compiled = listing.plan.context;
    match asked {
        Some(n) if n > compiled as u64 => {
            bail!("--context {n}: {} is compiled for at most {compiled} positions", path.display())
        }
        Some(n) => Ok(n as usize),
        None => Ok(compiled),
    }
}

/// Shows what an artifact holds: a summary; with `verbose`, every kernel and every section with its hash too.
pub(crate) fn inspect(path: &Path, context: Option<u64>, verbose: bool, as_json: bool) -> Result<()> {
    use std::fmt::Write;
    let artifact = Artifact::open(path)?;
    let listings = artifact.cpus().iter().map(|cpu| artifact.listing(cpu)).collect::<Result<Vec<_>, _>>()?;
    let counted = listings.iter().map(|l| context_of(path, l, context)).collect::<Result<Vec<usize>>>()?;
    let (weights, others): (Vec<_>, Vec<_>) = artifact.sections().iter().partition(|s| s.is_weight());
    let weight_bytes: u64 = weights.iter().map(|s| s.bytes.len() as u64).sum();
    if as_json {
        let cpus = listings.iter().zip(&counted).map(|(l, &context)| {
            let memory = MemoryOf::new(l, context);
            let kernels = l
                .symbols
                .iter()
                .map(|s| json!({ "name": s.name, "offset": s.offset, "code_bytes": s.bytes }));
            json!({
                "cpu": l.cpu,
                "features": l.features,
                "tuning": l.tuning,
                "code_of": l.code,
                "context": l.plan.context,
                "chunk": l.plan.chunk,
                "kv_context": context,
                "kv_bytes": memory.kv(),
                "kv_local_bytes": memory.kv_local,
                "kv_global_bytes": memory.kv_global,
                "working_bytes": memory.working,
                "kernels": kernels.collect::<Vec<Value>>(),
            })
        });
        let sections = artifact.sections().iter().map(|s| {
            json!({ "name": s.name, "dtype": s.dtype, "shape": s.shape, "offset": s.bytes.start, "bytes": s.bytes.len(), "sha256": s.hash })
        });
        return output::print_json(&json!({
            "artifact": path.display().to_string(),
            "target": artifact.target(),
            "weights": artifact.weights(),
            "weight_bytes": weight_bytes,
            "file_bytes": artifact.bytes(),
            "signed_by": artifact.signed_by(),
            "cpus": cpus.collect::<Vec<Value>>(),
            "sections": sections.collect::<Vec<Value>>(),
        }));
    }
    let size = |n: u64| output::bytes(n);
    let mut text = format!("{}\n\n", path.display());
    writeln!(text, "target    {}", line(artifact.target()))?;
    writeln!(text, "file      {}, {} sections", size(artifact.bytes() as u64), artifact.sections().len())?;
    if let Some(key) = artifact.signed_by() {
        writeln!(text, "signed    by {key}, says the file; `lapidary verify --trust PUBKEY` checks it")?;
    }
    writeln!(text, "model     {}", summary(&artifact)?)?;
    let tensors = weights.len();
    writeln!(text, "weights   {}, {tensors} tensors, {}", line(artifact.weights()), size(weight_bytes))?;
    writeln!(text, "text      {}", texts(&artifact))?;
    writeln!(text, "CPUs      {}", line(artifact.cpus().join(", ")))?;
    for (l, &context) in listings.iter().zip(&counted) {
        let memory = MemoryOf::new(l, context);
        let code: u64 = l.symbols.iter().map(|s| s.bytes).sum();
        writeln!(text, "\n{}: needs {}", line(&l.cpu), line(l.features.join(", ")))?;
        let same =
            if l.code == l.cpu { String::new() } else { format!(", the same as for {}", line(&l.code)) };
        writeln!(text, "  code    {} in {} functions{same}", size(code), l.symbols.len())?;
        let (compiled, chunk) = (l.plan.context, l.plan.chunk);
        writeln!(text, "  calls   of at most {chunk} tokens, {compiled} positions")?;
        writeln!(
            text,
            "  memory  of a context of {context}: KV {} (local layers {}, global {}), working memory {}",
            size(memory.kv()),
            size(memory.kv_local),
            size(memory.kv_global),
            size(memory.working)
        )?;
        for symbol in l.symbols.iter().filter(|_| verbose) {
            writeln!(text, "  {:<44}{:>9} B", line(&symbol.name), output::grouped(symbol.bytes))?;
        }
    }
    if verbose {
        writeln!(text, "\nsections")?;
        for s in others.iter().chain(&weights) {
            let bytes = output::grouped(s.bytes.len() as u64);
            writeln!(text, "  {:<60}{:>5}{bytes:>16} B  {}", line(&s.name), line(&s.dtype), s.hash)?;
        }
    }
    output::print(&text)
}

/// What an artifact's configuration says, in a line.
fn summary(artifact: &Artifact) -> Result<String> {
    let Some(bytes) = artifact.section(CONFIG) else { return Ok("no configuration".into()) };
    let c = Config::from_json(&artifact.path().join(CONFIG), bytes)?;
    let layers = crate::inspect::layers(&c);
    let (parameters, context) = (c.parameter_counts().total(), c.max_position_embeddings);
    let (parameters, hidden, vocab) = (output::grouped(parameters), c.hidden_size, c.vocab_size);
    Ok(format!(
        "{parameters} parameters, {layers}; hidden {hidden}, vocabulary {vocab}, made for {context} positions"
    ))
}

/// Which of a text's parts an artifact has.
fn texts(artifact: &Artifact) -> String {
    let parts =
        [("tokenizer", TOKENIZER), ("chat template", CHAT_TEMPLATE), ("stop tokens", GENERATION_CONFIG)];
    let held = parts.into_iter().filter(|(_, section)| artifact.section(section).is_some());
    let held: Vec<&str> = held.map(|(name, _)| name).collect();
    if held.is_empty() { "none".into() } else { held.join(", ") }
}
