//! `lapidary inspect`: what a model is and what it costs, before it runs.

mod artifact;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use lapidary::{CHUNK, KvCache, MAX_CONTEXT};
use lapidary_models::layout::role;
use lapidary_models::{Checkpoint, Config, LayerType, TensorFormat, WeightDType, checkpoint};
use serde_json::{Value, json};

use crate::choices::choices;
use crate::output::{self, Usage};
use crate::{model, options};

/// Show a model's configuration, parameters, bytes and FLOPs.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary inspect --preset 2b --vocab 256128\n  \
    lapidary inspect -m gemma-2-2b --context 4096 --json\n  \
    lapidary inspect -m model.lap --verbose")]
pub(crate) struct Args {
    /// Hugging Face folder, GGUF file, name OWNER/REPO[:TAG], or artifact NAME.lap [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// Published size: 2b, 9b or 27b
    #[arg(long, value_name = "NAME", value_parser = options::presets())]
    preset: Option<String>,
    /// Count with another vocabulary
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CONTEXT as u64))]
    vocab: Option<u64>,
    /// Positions that the KV cache is counted for [default: the model's]
    #[arg(long, value_name = "N", value_parser = options::positions())]
    context: Option<usize>,
    /// Most tokens of one call, which ring caches hold besides their window
    #[arg(long, value_name = "N", default_value_t = CHUNK, value_parser = options::rows())]
    chunk: usize,
    /// How cached keys and values are held
    #[arg(long, value_parser = choices::<KvCache>(), value_name = "FORMAT", default_value_t = KvCache::Bf16)]
    kv_cache: KvCache,
    /// Of an artifact, list every kernel and every section with its hash
    #[arg(long)]
    verbose: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What there is to say of weights.
struct Weights {
    /// `BF16`, or several.
    dtype: String,
    bytes: u64,
    /// The formats of each role, and in how many tensors.
    roles: BTreeMap<String, BTreeMap<&'static str, usize>>,
}

impl Weights {
    fn of(checkpoint: &Checkpoint) -> Weights {
        let mut roles: BTreeMap<String, BTreeMap<&'static str, usize>> = BTreeMap::new();
        for name in checkpoint.names() {
            let format = checkpoint.format_of(name).map_or("", TensorFormat::name);
            *roles.entry(role(name).into()).or_default().entry(format).or_default() += 1;
        }
        let all: BTreeSet<&str> = roles.values().flat_map(BTreeMap::keys).copied().collect();
        let dtype = all.into_iter().collect::<Vec<_>>().join("+");
        Weights { dtype, bytes: checkpoint.weight_bytes(), roles }
    }
}

/// Prints it.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(path) = args.model.as_deref().filter(|path| lapidary_runtime::Artifact::is_named_so(path)) {
        let fixed = [
            ("--vocab", args.vocab.is_some()),
            ("--chunk", args.chunk != CHUNK),
            ("--kv-cache", args.kv_cache != KvCache::Bf16),
        ];
        if let Some((option, _)) = fixed.into_iter().find(|(_, given)| *given) {
            return Err(Usage::new(anyhow!("{option}: {} is compiled already", path.display())).into());
        }
        return artifact::inspect(path, args.context, args.verbose, args.json);
    }
    let (name, mut config, stored) = source(args)?;
    if let Some(vocab) = args.vocab {
        config.vocab_size = vocab as usize;
        config.validate(Path::new("--vocab"))?;
    }
    let weights = match stored.filter(|_| args.vocab.is_none()) {
        Some(weights) => weights,
        None => {
            let bytes = config.weight_bytes(WeightDType::BF16);
            Weights { dtype: "BF16".into(), bytes, roles: BTreeMap::new() }
        }
    };
    let context = args.context.unwrap_or(config.max_position_embeddings);
    let chunk = args.chunk.min(context);
    let counts = config.parameter_counts();
    args.kv_cache.fits(&config).map_err(options::error)?;
    let dtype = args.kv_cache.dtype();
    let kv = config.kv_bytes(context, chunk, dtype);
    let kv_of = |kind: LayerType| {
        let layers = config.layer_types.iter().filter(|t| **t == kind).count() as u64;
        let row = 2 * (config.num_key_value_heads * dtype.row_bytes(config.head_dim)) as u64;
        (layers * row).saturating_mul(config.kv_rows(kind, context, chunk) as u64)
    };
    let (local, global) = (kv_of(LayerType::Sliding), kv_of(LayerType::Full));
    let held = args.kv_cache.to_string().to_uppercase();
    let (first, last) = (config.flops_per_token(0), config.flops_per_token(context.saturating_sub(1)));
    if args.json {
        return output::print_json(&json!({
            "model": name,
            "config": config.to_json(),
            "embedding_params": counts.embedding,
            "non_embedding_params": counts.non_embedding,
            "total_params": counts.total(),
            "weight_dtype": weights.dtype,
            "weight_bytes": weights.bytes,
            "weight_formats": weights.roles,
            "context": context,
            "chunk": chunk,
            "kv_dtype": held,
            "kv_bytes": kv,
            "kv_local_bytes": local,
            "kv_global_bytes": global,
            "flops_per_token": first,
            "flops_per_token_at_context": last,
        }));
    }
    let mut text = format!("{name}\n\n");
    if let Value::Object(fields) = config.to_json() {
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        for (field, value) in fields {
            let shown = if field == "layer_types" { layers(&config) } else { value.to_string() };
            writeln!(text, "  {field:width$}  {shown}")?;
        }
    }
    let count = output::grouped;
    let bytes = |n: u64| format!("{} ({})", count(n), output::bytes(n));
    writeln!(text)?;
    writeln!(text, "embedding parameters      {}", count(counts.embedding))?;
    writeln!(text, "non-embedding parameters  {}", count(counts.non_embedding))?;
    writeln!(text, "total parameters          {}", count(counts.total()))?;
    let several = weights.roles.values().flat_map(BTreeMap::keys).collect::<BTreeSet<_>>().len() > 1;
    let format = if several { "mixed" } else { &weights.dtype };
    writeln!(text, "weight bytes, {format:<12}{}", bytes(weights.bytes))?;
    if several {
        for (role, formats) in &weights.roles {
            let formats = formats.iter().map(|(format, tensors)| format!("{format} x{tensors}"));
            writeln!(text, "  {role:<36}{}", formats.collect::<Vec<_>>().join(", "))?;
        }
    }
    writeln!(text, "KV bytes, {held}, context {context}, chunk {chunk}")?;
    writeln!(text, "  local layers            {}", bytes(local))?;
    writeln!(text, "  global layers           {}", bytes(global))?;
    writeln!(text, "  all                     {}", bytes(kv))?;
    writeln!(text, "FLOPs of the first token  {}", count(first))?;
    writeln!(text, "FLOPs of the last token   {}", count(last))?;
    output::print(&text)
}

/// The name, the configuration and, where there are any, the stored weights.
fn source(args: &Args) -> Result<(String, Config, Option<Weights>)> {
    if let Some(preset) = &args.preset {
        return Ok((preset.clone(), Config::preset(preset)?, None));
    }
    if let Some(dir) = &args.model {
        // A link to nothing is a file that is missing, not one that was never there.
        let holds = |file: &str| dir.join(file).symlink_metadata().is_ok();
        let bare = holds("config.json") && !holds(checkpoint::SINGLE) && !holds(checkpoint::INDEX);
        if bare {
            output::note("note", &format!("{}: no weights, bytes are counted for BF16", dir.display()));
            let (config, warning) = Config::read_folder(dir)?;
            warning.iter().for_each(model::warn);
            return Ok((dir.display().to_string(), config, None));
        }
    }
    let model = model::files(args.model.as_deref())?;
    let weights = Weights::of(&model.checkpoint);
    Ok((model.path.display().to_string(), model.config, Some(weights)))
}

/// `13 local, 13 global: LGLG...`.
pub(crate) fn layers(config: &Config) -> String {
    let of = |kind| config.layer_types.iter().filter(|t| **t == kind).count();
    let letters: String = config
        .layer_types
        .iter()
        .map(|t| match t {
            LayerType::Sliding => 'L',
            LayerType::Full => 'G',
        })
        .collect();
    format!("{} local, {} global: {letters}", of(LayerType::Sliding), of(LayerType::Full))
}
