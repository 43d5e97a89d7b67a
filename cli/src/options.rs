//! The options that commands share: which model, which rules, compiled how.
//!
//! In: flags. Out: the library's [`Options`], which tell warnings and progress on stderr. An error of the library that
//! names an option names its flag here.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Error, Result, anyhow, ensure};
use clap::builder::{PossibleValue, PossibleValuesParser};
use indicatif::ProgressBar;
use lapidary::{
    Activations, CHUNK, Graph, KvCache, MAX_CHUNK, MAX_CONTEXT, MAX_THREADS, NATIVE, Notice, Options,
    RuleSet, Selection,
};
use lapidary_models::Preset;
use lapidary_passes::rules;

use crate::choices::choices;
use crate::cpus;
use crate::hub::Bars;
use crate::model::read_text;
use crate::output::{self, Unit, Usage};
use crate::price::calibration::Which;
use crate::price::objective::{self, CostName};
use crate::residence::ResidenceArgs;
use crate::trust::TrustArgs;
use crate::weights::WeightArgs;

/// A number of positions, for the parser of arguments.
pub(crate) fn positions() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=MAX_CONTEXT as u64)
}

/// A number of rows of a call.
pub(crate) fn rows() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=MAX_CHUNK as u64)
}

/// A number of sequences.
pub(crate) fn sequences() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=1024)
}

/// A number of threads.
pub(crate) fn threads() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=MAX_THREADS as u64)
}

/// The names that `--preset` takes.
pub(crate) fn presets() -> PossibleValuesParser {
    Preset::all().map(|p| PossibleValue::new(p.name).aliases(p.alias)).collect::<Vec<_>>().into()
}

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
    #[arg(long, value_name = "NAME", default_value = NATIVE, value_parser = cpus::name)]
    pub(crate) cpu: String,
    /// Most positions, in tokens [default: the model's]
    #[arg(long, value_name = "N", value_parser = positions())]
    pub(crate) context: Option<usize>,
    /// Most tokens of one call
    #[arg(long, value_name = "N", default_value_t = CHUNK, value_parser = rows())]
    pub(crate) chunk: usize,
    /// Rule groups that run: all, none, or names separated by commas
    #[arg(long, value_name = "GROUPS", default_value = ALL)]
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
    #[arg(long, value_parser = choices::<Activations>(), default_value_t)]
    pub(crate) activations: Activations,
    /// How cached keys and values are held [default: bf16; f32 with --activations f32]
    #[arg(long, value_parser = choices::<KvCache>(), value_name = "FORMAT")]
    pub(crate) kv_cache: Option<KvCache>,
    /// Keys that a local layer sees, instead of the model's own number
    #[arg(long, value_name = "N", value_parser = positions())]
    pub(crate) sliding_window: Option<usize>,
}

/// What `--passes` takes for every group.
const ALL: &str = "all";
/// And for no group.
const NONE: &str = "none";

/// Which model, compiled how.
#[derive(Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// Hugging Face folder, GGUF file, name OWNER/REPO[:TAG], or artifact NAME.lap [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Threads [default: one a fast core]
    #[arg(long, value_name = "N", value_parser = threads())]
    pub(crate) threads: Option<usize>,
    /// Of an artifact, hold every section against its hash first
    #[arg(long)]
    pub(crate) verify: bool,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    #[command(flatten)]
    pub(crate) residence: ResidenceArgs,
    #[command(flatten)]
    pub(crate) compile: CompileArgs,
}

impl ModelArgs {
    /// As the library takes them.
    pub(crate) fn options(&self) -> Result<Options> {
        let ModelArgs { model: _, threads, verify, trust, weights, residence, compile } = self;
        let mut options = weights.apply(compile.options()?)?.verify(*verify).mmap(residence.mmap());
        if let Some(threads) = threads {
            options = options.threads(*threads);
        }
        Ok(trust.trust.iter().fold(options, Options::trust))
    }
}

impl CompileArgs {
    /// As the library takes them.
    pub(crate) fn options(&self) -> Result<Options> {
        let options = self.unpriced()?.cpu(&self.cpu);
        options.check().map_err(|e| Usage::new(error(e)))?;
        self.priced(options, [&self.cpu])
    }

    /// The same without a CPU's name, and without prices.
    pub(crate) fn unpriced(&self) -> Result<Options> {
        let CompileArgs {
            cpu: _,
            context,
            chunk,
            passes,
            disable,
            only,
            rules,
            cost: _,
            calibration: _,
            activations,
            kv_cache,
            sliding_window,
        } = self;
        let mut options = watched(Options::new().chunk(*chunk).activations(*activations).kv_cache(*kv_cache));
        if let Some(context) = context {
            options = options.context(*context);
        }
        if let Some(window) = sliding_window {
            options = options.sliding_window(*window);
        }
        if passes != ALL || !disable.is_empty() || !only.is_empty() || rules.file().is_some() {
            options = options.rules(self.selection()?);
        }
        Ok(options)
    }

    /// The options with the prices that are asked for, of code for each of some CPUs.
    pub(crate) fn priced<'a>(
        &self,
        mut options: Options,
        cpus: impl IntoIterator<Item = &'a String>,
    ) -> Result<Options> {
        for cpu in cpus {
            let base = || options.machine(cpu).map_err(error);
            if let Some(machine) = objective::prices(self, cpu, &base)? {
                options = options.prices(cpu, machine);
            }
        }
        Ok(options)
    }

    /// Leaves every rule out.
    pub(crate) fn without_passes(&mut self) {
        self.passes = NONE.into();
    }

    /// Leaves a rule out, too.
    pub(crate) fn disable(&mut self, rule: &str) {
        self.disable.push(rule.into());
    }

    /// The same for at least so many positions.
    pub(crate) fn at_least(&self, positions: usize) -> CompileArgs {
        CompileArgs { context: Some(self.context.unwrap_or(0).max(positions)), ..self.clone() }
    }

    /// The same with exactly these rules, in 32-bit floats, for at least `tokens` positions.
    pub(crate) fn exactly(&self, rules: &[String], tokens: usize) -> CompileArgs {
        CompileArgs {
            passes: if rules.is_empty() { NONE.into() } else { ALL.into() },
            disable: vec![],
            only: rules.to_vec(),
            activations: Activations::F32,
            ..self.at_least(tokens)
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

    /// The compiler's options for functions whose plans are shown.
    pub(crate) fn compiler(&self, graph: &Graph) -> Result<lapidary_codegen::Options> {
        graph.compiler(&self.to_show().options()?).map_err(error)
    }
}

/// The options, whose warnings and progress go to stderr.
pub(crate) fn watched(options: Options) -> Options {
    let bar = Mutex::new(None::<ProgressBar>);
    let bars = Mutex::new(Bars::default());
    let draw = move |what: &str, done: u64, total: u64| {
        let mut held = bar.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = held.get_or_insert_with(|| output::bar(total, what, Unit::Bytes));
        bar.set_length(total);
        bar.set_position(done);
        if done == total {
            bar.finish_and_clear();
            *held = None;
        }
    };
    options.watch(move |notice| {
        match notice {
            Notice::Warning(text) => output::note("warning", text),
            Notice::Converting { done, total } => draw("converting", done, total),
            Notice::Fetching { file, done, total } => {
                bars.lock().unwrap_or_else(PoisonError::into_inner).show(file, done, total)
            }
            Notice::Writing { done, total } => draw("writing", done, total),
        }
        ControlFlow::Continue(())
    })
}

/// An error of the library; one that names an option names its flag.
pub(crate) fn error(error: lapidary::Error) -> Error {
    match error {
        lapidary::Error::Option { option, reason } => {
            let flag = match option {
                "rules" => "--rules, --passes, --only, --disable".to_string(),
                "prices" => "--cost, --calibration".to_string(),
                option => format!("--{}", option.replace('_', "-")),
            };
            anyhow!("{flag}: {reason}")
        }
        error => error.into(),
    }
}
