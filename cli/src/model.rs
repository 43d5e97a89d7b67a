//! A model ready to run: the shared options, and what they make of a folder or the built-in model.
//!
//! In: [`ModelArgs`]. Out: an [`Engine`]: the model, compiled, its weights bound, at position 0. Limits that saturation
//! met are warnings on stderr.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser};
use lapidary_codegen::compile::FunctionReport;
use lapidary_codegen::target::{Placement, Target};
use lapidary_codegen::{Compilation, Options, compile};
use lapidary_ir::{BLOCK, DType, Function, InputKind, Module};
use lapidary_models::graph::{self, Storage};
use lapidary_models::{Config, Detokenizer, Model, Preset, Tokenizer, Warning};
use lapidary_passes::{Machine, RuleSet, Selection, rules};
use lapidary_runtime::program::MadeFor;
use lapidary_runtime::{Artifact, Memory, Session, cpu, file};
use serde_json::{Value, json};

use crate::calibration::{self, Which};
use crate::cpus;
use crate::objective::CostName;
use crate::output::{self, Usage};
use crate::trust::TrustArgs;
use crate::weights::WeightArgs;

/// The most positions that `--context` takes: 2048 times what Gemma 2 was made for.
pub(crate) const MAX_CONTEXT: u64 = 1 << 24;
/// The most rows that `--chunk` takes.
pub(crate) const MAX_CHUNK: u64 = 1 << 16;
/// The most threads that `--threads` takes.
pub(crate) const MAX_THREADS: u64 = 1024;

/// Which rules there are.
#[derive(Clone, clap::Args)]
pub(crate) struct RuleArgs {
    /// File of further rewrite rules, the group `user` (docs/rules.md; `lapidary rules --show NAME` prints one)
    #[arg(long = "rules", value_name = "FILE")]
    rules_file: Option<PathBuf>,
}

impl RuleArgs {
    /// The built-in rules and the file's.
    pub(crate) fn load(&self) -> Result<Arc<RuleSet>> {
        let Some(path) = &self.rules_file else { return Ok(Arc::clone(RuleSet::builtin())) };
        let rules =
            rules::text::parse_placed(&read_text(path)?).with_context(|| path.display().to_string())?;
        ensure!(!rules.is_empty(), "{}: expected a rule, found none", path.display());
        Ok(Arc::new(RuleSet::with_file(&path.display().to_string(), rules)))
    }

    /// The file, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.rules_file.as_deref()
    }
}

/// Which rules run, and for what CPU.
#[derive(Clone, clap::Args)]
pub(crate) struct CompileArgs {
    /// CPU to make code for; `help` lists their names
    #[arg(long, value_name = "NAME", default_value = "native", value_parser = cpus::name)]
    pub(crate) cpu: String,
    /// Most positions, in tokens [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CONTEXT))]
    pub(crate) context: Option<u64>,
    /// Most tokens of one call
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=MAX_CHUNK))]
    pub(crate) chunk: u64,
    /// Rule groups that run: all, none, or names separated by commas
    #[arg(long, value_name = "GROUPS", default_value = "all")]
    passes: String,
    /// Leave a rule out (may be repeated; `lapidary rules` lists them)
    #[arg(long = "disable", value_name = "RULE")]
    disable: Vec<String>,
    /// Run only these rules: names separated by commas (may be repeated)
    #[arg(long = "only", value_name = "RULES", value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
    /// What the compiler minimises
    #[arg(long, value_enum, default_value_t)]
    pub(crate) cost: CostName,
    /// Constants that kernels are priced by: auto (this machine's, if `lapidary calibrate` measured them), none (built
    /// in), or a file of `lapidary calibrate -o` [default: none where a model runs or is compiled, auto where plans are
    /// shown]
    #[arg(long, value_name = "auto|none|FILE")]
    pub(crate) calibration: Option<Which>,
    /// Precision of activations and, unless --kv-cache says otherwise, of the KV cache
    #[arg(long, value_enum, default_value_t = Activations::Auto)]
    pub(crate) activations: Activations,
    /// How cached keys and values are held [default: bf16; f32 with --activations f32]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) kv_cache: Option<KvCache>,
    /// Keys that a local layer sees, instead of the model's own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CONTEXT))]
    pub(crate) sliding_window: Option<u64>,
}

/// Which model, compiled how.
#[derive(Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// Hugging Face folder of a Gemma 2, or an artifact NAME.lap [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Threads [default: one a CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_THREADS))]
    pub(crate) threads: Option<u64>,
    /// Of an artifact, hold every section against its hash first
    #[arg(long)]
    pub(crate) verify: bool,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    #[command(flatten)]
    pub(crate) compile: CompileArgs,
}

impl ModelArgs {
    /// The threads to run on.
    pub(crate) fn threads(&self) -> usize {
        self.threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |n| n as usize)
    }
}

/// How exact activations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Activations {
    /// As fast as the CPU can; the KV cache in bf16
    Auto,
    /// 32-bit floats throughout, the KV cache too
    F32,
}

/// How cached keys and values are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvCache {
    /// 32-bit floats
    F32,
    /// 16-bit floats of 8 bits' precision
    Bf16,
    /// 8 bits in blocks of 32 with a scale
    Int8,
}

impl KvCache {
    /// The element type.
    pub(crate) fn dtype(self) -> DType {
        match self {
            KvCache::F32 => DType::F32,
            KvCache::Bf16 => DType::BF16,
            KvCache::Int8 => DType::Q8,
        }
    }

    /// Fails if a model's rows are no whole blocks.
    pub(crate) fn check(self, config: &Config) -> Result<()> {
        let whole = self != KvCache::Int8 || config.head_dim.is_multiple_of(BLOCK);
        ensure!(whole, "--kv-cache int8: head_dim is {}, expected a multiple of {BLOCK}", config.head_dim);
        Ok(())
    }
}

impl CompileArgs {
    /// The configuration with what the options override.
    pub(crate) fn adjust(&self, config: &mut Config) {
        if let Some(window) = self.sliding_window {
            config.sliding_window = window as usize;
        }
    }

    /// An option that an artifact cannot be given any more, if one differs from its default.
    fn of_compilation(&self) -> Option<&'static str> {
        [
            ("--chunk", self.chunk != 512),
            ("--passes", self.passes != "all"),
            ("--disable", !self.disable.is_empty()),
            ("--only", !self.only.is_empty()),
            ("--rules", self.rules.file().is_some()),
            ("--cost", self.cost != CostName::default()),
            ("--calibration", self.calibration.is_some()),
            ("--activations", self.activations != Activations::Auto),
            ("--kv-cache", self.kv_cache.is_some()),
            ("--sliding-window", self.sliding_window.is_some()),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }

    /// The same for another CPU.
    pub(crate) fn for_cpu(&self, name: &str) -> CompileArgs {
        CompileArgs { cpu: name.into(), ..self.clone() }
    }

    /// Leaves every rule out.
    pub(crate) fn without_passes(&mut self) {
        self.passes = "none".into();
    }

    /// Leaves a rule out, too.
    pub(crate) fn disable(&mut self, rule: &str) {
        self.disable.push(rule.into());
    }

    /// The most positions of a model (or of none).
    pub(crate) fn context_of(&self, otherwise: usize) -> usize {
        self.context.map_or(otherwise, |n| n as usize)
    }

    /// The same with exactly these rules, in 32-bit floats, for `tokens` positions.
    pub(crate) fn exactly(&self, rules: &[String], tokens: u64) -> CompileArgs {
        CompileArgs {
            passes: if rules.is_empty() { "none".into() } else { "all".into() },
            disable: vec![],
            only: rules.to_vec(),
            activations: Activations::F32,
            context: Some(self.context.unwrap_or(0).max(tokens)),
            ..self.clone()
        }
    }

    /// Whether few rules run, or others than the built-in ones.
    pub(crate) fn few_rules(&self) -> bool {
        !self.only.is_empty() || self.rules.file().is_some()
    }

    /// The rules that run.
    pub(crate) fn selection(&self) -> Result<Selection> {
        let selection = Selection::of(self.rules.load()?, &self.passes, &self.disable, &self.only);
        Ok(selection.map_err(Usage::new)?)
    }

    /// The same, by this machine's constants unless asked otherwise: for plans that are shown.
    pub(crate) fn to_show(&self) -> CompileArgs {
        CompileArgs { calibration: self.calibration.clone().or(Some(Which::Auto)), ..self.clone() }
    }

    /// The constants that times are reckoned from: the built-in ones unless asked otherwise, so that what runs has the
    /// bits of what is stored, which depend on no machine that it does not name.
    fn base(&self) -> Result<Machine> {
        let target = Target::new(&self.cpu, Placement::Object).map_err(Usage::new)?;
        let built_in = target.machine(self.activations == Activations::Auto);
        let which = self.calibration.as_ref().unwrap_or(&Which::None);
        if let Some(calibration) = calibration::chosen(which, &self.cpu)? {
            return Ok(Machine { shapes: built_in.shapes, ..calibration.machine(self.activations) });
        }
        Ok(built_in)
    }

    /// The compiler's options for a module that makes up a model of such layers (or none).
    pub(crate) fn options_of<'a>(
        &self,
        context: usize,
        module: &Module,
        layers: impl Iterator<Item = &'a str>,
    ) -> Result<Options> {
        let mut options = self.options(context)?;
        options.machine.weight_bytes = weight_bytes(module, layers);
        Ok(options)
    }

    /// The compiler's options for `context` positions.
    pub(crate) fn options(&self, context: usize) -> Result<Options> {
        Ok(Options {
            selection: self.selection()?,
            cpu: self.cpu.clone(),
            context,
            chunk: (self.chunk as usize).min(context),
            rounded: self.activations == Activations::Auto,
            machine: self.cost.machine(&self.cpu, self.base()?)?,
            listings: false,
        })
    }

    /// The model's graph, its weights typed by `weight`.
    pub(crate) fn module(&self, config: &Config, weight: &dyn Fn(&str) -> DType) -> Result<Module> {
        let held = self.kv_cache.unwrap_or(match self.activations {
            Activations::Auto => KvCache::Bf16,
            Activations::F32 => KvCache::F32,
        });
        held.check(config)?;
        Ok(graph::module(config, &Storage { weight, cache: held.dtype() }))
    }
}

/// Bytes of weights that a token reads: those of each layer and of the prediction; of functions that make up no model,
/// all.
fn weight_bytes<'a>(module: &Module, layers: impl Iterator<Item = &'a str>) -> f64 {
    let of = |function: &Function| -> f64 {
        let weights = function.inputs.iter().filter(|i| i.kind == InputKind::Weight);
        let bytes = weights
            .map(|i| i.ty.dtype.row_bytes(i.ty.shape.iter().filter_map(|d| d.fixed()).product()) as f64);
        bytes.sum()
    };
    let layers: Vec<&str> = layers.collect();
    match module.function("head_argmax") {
        Some(head) if !layers.is_empty() => {
            layers.iter().filter_map(|l| module.function(l)).map(of).sum::<f64>() + of(head)
        }
        _ => module.functions.iter().map(of).sum(),
    }
}

/// The names that `--preset` takes.
pub(crate) fn presets() -> PossibleValuesParser {
    Preset::all().map(|p| PossibleValue::new(p.name).aliases(p.alias)).collect::<Vec<_>>().into()
}

/// Fails if there is no such CPU.
pub(crate) fn check_cpu_name(name: &str) -> Result<()> {
    Target::new(name, Placement::Object).map_err(Usage::new)?;
    Ok(())
}

/// Fails if code for a CPU would not run here: another architecture, or an instruction set that this CPU lacks.
pub(crate) fn check_cpu(name: &str) -> Result<()> {
    let target = Target::new(name, Placement::Jit).map_err(Usage::new)?;
    if let (true, cpu::Amx::Refused(code)) = (name == "native", cpu::amx()) {
        let reason = std::io::Error::from_raw_os_error(code);
        output::note("warning", &format!("the system refuses AMX ({reason}): running without it"));
    }
    match target.lacking_here() {
        None => Ok(()),
        Some(reason) => bail!("--cpu {name}: {reason}"),
    }
}

/// How a configuration's functions make up the model whose weights are typed by `weight`.
pub(crate) fn describe(config: &Config, weight: &dyn Fn(&str) -> DType) -> lapidary_codegen::Model {
    lapidary_codegen::Model {
        hidden: config.hidden_size,
        vocab: config.vocab_size,
        layers: graph::layers(config, weight),
    }
}

/// The model of a folder, or the built-in one. What is strange about a folder is said.
pub(crate) fn open(path: Option<&Path>) -> Result<Model> {
    let Some(path) = path else { return Ok(Model::built_in()?) };
    if let Ok(found) = path.metadata() {
        file::inputs::note_input(path, &found).with_context(|| path.display().to_string())?;
    }
    let model = Model::open(path)?;
    model.warnings.iter().for_each(warn);
    Ok(model)
}

/// Says what is strange about a file.
pub(crate) fn warn(warning: &Warning) {
    output::note("warning", &warning.to_string());
}

/// A model ready to run.
pub(crate) struct Engine {
    /// What its folder holds, the options' overrides included.
    pub(crate) model: Arc<Model>,
    /// At position 0.
    pub(crate) session: Session,
    /// How the layers' matrices are held.
    pub(crate) format: DType,
    /// What became of each function, by the program's index.
    pub(crate) functions: Vec<FunctionReport>,
    /// Graph to machine code.
    pub(crate) compile: Duration,
    /// Opening the folder, binding weights, making caches.
    pub(crate) load: Duration,
}

impl Engine {
    /// Loads and compiles.
    pub(crate) fn new(args: &ModelArgs) -> Result<Engine> {
        if let Some(path) = args.model.as_deref().filter(|path| Artifact::is_named_so(path)) {
            return Engine::with_artifact(args, path);
        }
        // What is wrong whatever the model comes first.
        if !args.trust.trust.is_empty() {
            let what = args.model.as_ref().map_or("the built-in model".into(), |m| m.display().to_string());
            bail!("--trust: {what} is no artifact (NAME.lap), which alone can be signed");
        }
        args.compile.options(1)?;
        check_cpu(&args.compile.cpu)?;
        let start = Instant::now();
        let mut model = open(args.model.as_deref())?;
        args.compile.adjust(&mut model.config);
        let open = start.elapsed();
        Engine::with_model(args, model, open)
    }

    /// Loads an artifact: nothing is compiled.
    fn with_artifact(args: &ModelArgs, path: &Path) -> Result<Engine> {
        let start = Instant::now();
        args.compile.options(1)?;
        if let Some(option) = args.compile.of_compilation().or(args.weights.given()) {
            bail!("{option}: {} is compiled already; `lapidary compile` takes {option}", path.display());
        }
        let (artifact, _) = args.trust.open(path)?;
        if args.verify {
            artifact.verify()?;
        }
        let mut program = artifact.program(Some(args.compile.cpu.as_str()).filter(|&cpu| cpu != "native"))?;
        if let Some(context) = args.compile.context {
            program.limit_context(context as usize).with_context(|| path.display().to_string())?;
        }
        let model = Arc::new(Model::from_artifact(&artifact)?);
        let format = DType::ALL.iter().copied().find(|d| d.name() == artifact.weights());
        let format = format.ok_or_else(|| anyhow!("{}: unknown weights", path.display()))?;
        let threads = args.threads();
        let session = Session::new(Arc::new(program), Arc::new(artifact), threads)
            .with_context(|| path.display().to_string())?;
        tell_threads(&session, threads);
        let (compile, load) = (Duration::ZERO, start.elapsed());
        Ok(Engine { model, session, format, functions: Vec::new(), compile, load })
    }

    /// Compiles an opened model.
    fn with_model(args: &ModelArgs, model: Model, open: Duration) -> Result<Engine> {
        let start = Instant::now();
        let threads = args.threads();
        let model = Arc::new(model);
        let weights = args.weights.open(&model, threads)?;
        let open = open + start.elapsed();

        let start = Instant::now();
        let config = &model.config;
        let dtype = |name: &str| weights.dtype(&model, name);
        let module = args.compile.module(config, &dtype)?;
        let description = describe(config, &dtype);
        let layers = description.layers.iter().map(|(name, _)| name.as_str());
        let context = args.compile.context_of(config.max_position_embeddings);
        let options = args.compile.options_of(context, &module, layers)?;
        let Compilation { program, functions, .. } = compile(&module, &description, &options)?;
        for warning in functions.iter().filter_map(|f| f.saturation.warning()) {
            output::note("warning", &warning);
        }
        let compile = start.elapsed();

        let start = Instant::now();
        let format = weights.dtype(&model, &format!("{}self_attn.q_proj.weight", graph::layer_prefix(0)));
        let session = Session::new(program, Arc::new(weights), threads)?;
        tell_threads(&session, threads);
        Ok(Engine { model, session, format, functions, compile, load: open + start.elapsed() })
    }

    /// The options that it was compiled with.
    pub(crate) fn options(&self, args: &CompileArgs) -> Result<Options> {
        let plan = &self.session.program().plan;
        let mut options = args.options(plan.context)?;
        let layers = plan.layers.iter().filter_map(|l| self.functions.get(l.function));
        let module = Module { functions: self.functions.iter().map(|f| f.source.clone()).collect() };
        options.machine.weight_bytes = weight_bytes(&module, layers.map(|f| f.source.name.as_str()));
        Ok(options)
    }

    /// The model's name for errors: its folder.
    pub(crate) fn name(&self) -> String {
        self.model.path.display().to_string()
    }

    /// The tokenizer, without which text is of no use.
    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer> {
        self.model.tokenizer.as_ref().ok_or_else(|| {
            anyhow!(
                "{}: no tokenizer.json: a model without a tokenizer serves only `lapidary logits`",
                self.name()
            )
        })
    }

    /// The ids of `what`, BOS first; one far longer than the context is refused before all of it is tokenised.
    pub(crate) fn encode(&self, what: &str, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer()?.encode_within(text, true, self.session.context());
        ids.with_context(|| format!("{what} is too long"))
    }

    /// Text that goes on with another: nothing is put before it.
    pub(crate) fn encode_more(&self, what: &str, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer()?.encode_within(text, false, self.session.context());
        ids.with_context(|| format!("{what} is too long"))
    }

    /// A stream from ids to text.
    pub(crate) fn detokenizer(&self) -> Result<Detokenizer> {
        Ok(self.tokenizer()?.detokenizer())
    }

    /// Fails if the logits after the last token are no numbers, as weights that hold NaN or infinity make them.
    pub(crate) fn check_numbers(&mut self) -> Result<()> {
        let broken = self.session.has_logits() && self.session.logits().iter().all(|x| x.is_nan());
        ensure!(!broken, "{}: the logits are NaN: its weights hold NaN or infinity", self.name());
        Ok(())
    }

    /// Fails if `tokens` of `what` are more than the context.
    pub(crate) fn check_fits(&self, what: &str, tokens: usize) -> Result<()> {
        let context = self.session.context();
        if tokens <= context {
            return Ok(());
        }
        Err(anyhow!("{what} is {tokens} tokens, the context is {context} (--context takes more)"))
    }
}

/// Says that the system gives fewer threads than were asked for.
fn tell_threads(session: &Session, asked: usize) {
    let given = session.threads();
    if given < asked {
        output::note("warning", &format!("the system gives {given} of {asked} threads"));
    }
}

/// What a generation took, for `--stats`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stats {
    /// Tokens of prompt appended.
    pub(crate) prompt_tokens: usize,
    /// Time to append them.
    pub(crate) prefill: Duration,
    /// Tokens emitted.
    pub(crate) generated_tokens: usize,
    /// Time to choose and append them.
    pub(crate) decode: Duration,
}

impl Stats {
    /// Lines for people.
    pub(crate) fn text(&self, engine: &Engine) -> String {
        let memory = engine.session.memory();
        let size = |n: usize| output::bytes(n as u64);
        let rows = [
            ("code", engine.session.program().made_for.to_string()),
            ("compile", format!("{:.1} ms", ms(engine.compile))),
            ("load", format!("{:.1} ms", ms(engine.load))),
            ("threads", engine.session.threads().to_string()),
            ("prompt", format!("{} tokens", self.prompt_tokens)),
            ("prefill", format!("{:.1} tok/s", rate(self.prompt_tokens, self.prefill))),
            ("generated", format!("{} tokens", self.generated_tokens)),
            ("decode", format!("{:.1} tok/s", rate(self.generated_tokens, self.decode))),
            ("weights", size(memory.weights)),
            ("kv local", size(memory.kv_local)),
            ("kv global", size(memory.kv_global)),
            ("arena", size(memory.arena)),
            ("scratch", size(memory.scratch)),
            ("activations", size(memory.activations)),
        ];
        rows.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
    }

    /// The same for programs: times in ms, rates in tokens a second, sizes in bytes.
    pub(crate) fn json(&self, engine: &Engine) -> Value {
        let Memory { weights, kv_local, kv_global, arena, scratch, activations } = engine.session.memory();
        let MadeFor { cpu, step, features } = &engine.session.program().made_for;
        json!({
            "cpu": cpu,
            "cpu_step": step,
            "cpu_features": features,
            "compile_ms": ms(engine.compile),
            "load_ms": ms(engine.load),
            "threads": engine.session.threads(),
            "prompt_tokens": self.prompt_tokens,
            "prefill_ms": ms(self.prefill),
            "prefill_tokens_per_second": rate(self.prompt_tokens, self.prefill),
            "generated_tokens": self.generated_tokens,
            "decode_ms": ms(self.decode),
            "decode_tokens_per_second": rate(self.generated_tokens, self.decode),
            "weight_bytes": weights,
            "kv_local_bytes": kv_local,
            "kv_global_bytes": kv_global,
            "kv_bytes": kv_local + kv_global,
            "arena_bytes": arena,
            "scratch_bytes": scratch,
            "activation_bytes": activations,
        })
    }
}

/// Milliseconds.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Tokens a second; 0 of none.
fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 || time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// A file as text; the error names it.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    Ok(file::text(path, file::read(path)?)?)
}

/// stdin as text.
pub(crate) fn read_stdin() -> Result<String> {
    let name = Path::new("stdin");
    Ok(file::text(name, file::limited(name, std::io::stdin().lock())?)?)
}
