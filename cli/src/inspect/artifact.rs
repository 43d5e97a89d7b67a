//! `lapidary inspect` of an artifact: what it holds, and the memory that a context needs.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Result, bail};
use lapidary::{Artifact, Config};
use lapidary_runtime::artifact::{CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, Listing, TOKENIZER_CONFIG};
use lapidary_runtime::file::error::line;
use lapidary_runtime::program::SlotKind;
use serde_json::{Value, json};

use crate::output;

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
fn context_of(path: &Path, listing: &Listing, asked: Option<usize>) -> Result<usize> {
    let compiled = listing.plan.context;
    match asked {
        Some(n) if n > compiled => {
            bail!("--context {n}: {} is compiled for at most {compiled} positions", path.display())
        }
        Some(n) => Ok(n),
        None => Ok(compiled),
    }
}

/// Shows what an artifact holds: a summary; with `verbose`, every kernel and every section with its hash too.
pub(crate) fn inspect(path: &Path, context: Option<usize>, verbose: bool, as_json: bool) -> Result<()> {
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
            json!({
                "name": s.name, "dtype": s.dtype, "shape": s.shape, "offset": s.bytes.start,
                "bytes": s.bytes.len(), "sha256": s.hash,
            })
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
    let layers = super::layers(&c);
    let (parameters, context) = (c.parameter_counts().total(), c.max_position_embeddings);
    let (parameters, hidden, vocab) = (output::grouped(parameters), c.hidden_size, c.vocab_size);
    Ok(format!(
        "{parameters} parameters, {layers}; hidden {hidden}, vocabulary {vocab}, made for {context} positions"
    ))
}

/// Which of a text's parts an artifact has.
fn texts(artifact: &Artifact) -> String {
    let parts = [
        ("tokenizer", TOKENIZER_CONFIG),
        ("chat template", CHAT_TEMPLATE),
        ("stop tokens", GENERATION_CONFIG),
    ];
    let held = parts.into_iter().filter(|(_, section)| artifact.section(section).is_some());
    let held: Vec<&str> = held.map(|(name, _)| name).collect();
    if held.is_empty() { "none".into() } else { held.join(", ") }
}
