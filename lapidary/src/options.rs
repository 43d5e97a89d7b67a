//! How a model is opened, compiled and run.
//!
//! In: what the caller asks for. Out: [`Options`], which [`Model::open`](crate::Model::open) takes. What is not asked
//! for is as the model's files say, or as suits this machine.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use lapidary_codegen::target::{Placement, Target};
use lapidary_models::Config;
use lapidary_passes::{Machine, Selection};
use lapidary_runtime::cpu::{self, Cores};
#[cfg(doc)]
use lapidary_runtime::file::Residence;

use crate::choice::{Activations, Format, KvCache};
use crate::error::{Error, Result};

/// The most positions that a context takes: 2048 times what Gemma 2 was made for.
pub const MAX_CONTEXT: usize = 1 << 24;
/// The most rows of one call.
pub const MAX_CHUNK: usize = 1 << 16;
/// The most threads.
pub const MAX_THREADS: usize = 1024;
/// The rows of one call, unless asked otherwise.
pub const CHUNK: usize = 512;
/// The CPU of this machine, by the name that options give it.
pub const NATIVE: &str = "native";

/// What [`Options::watch`] is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// Something is strange, and it goes on: one line.
    Warning(&'a str),
    /// Weights are converted to another format.
    Converting {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A model is fetched by its name.
    Fetching {
        /// Which of its files.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// Bytes of the file.
        total: u64,
    },
    /// An artifact is written.
    Writing {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

type Watch = Arc<dyn Fn(Notice<'_>) -> ControlFlow<()> + Send + Sync>;

/// How a model is opened, compiled and run: each method sets one thing.
///
/// ```
/// use lapidary::{Format, Model, Options};
///
/// let options = Options::new().context(256).threads(2).weights(Format::Q8).cache(false);
/// let model = Model::built_in(options)?;
/// assert_eq!(model.session()?.context(), 256);
/// # Ok::<(), lapidary::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Options {
    pub(crate) cpu: String,
    pub(crate) context: Option<usize>,
    pub(crate) chunk: usize,
    pub(crate) threads: usize,
    pub(crate) weights: Option<Format>,
    pub(crate) head_weights: Option<Format>,
    /// Folders and factors.
    pub(crate) lora: Vec<(PathBuf, f64)>,
    pub(crate) cache: bool,
    pub(crate) mmap: Option<bool>,
    pub(crate) activations: Activations,
    pub(crate) kv_cache: Option<KvCache>,
    pub(crate) sliding_window: Option<usize>,
    /// None: all of the built-in ones.
    pub(crate) rules: Option<Selection>,
    /// Prices by CPU; of others those of the table.
    pub(crate) prices: Vec<(String, Machine)>,
    pub(crate) trust: Vec<PathBuf>,
    pub(crate) verify: bool,
    watch: Option<Watch>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cpu: NATIVE.into(),
            context: None,
            chunk: CHUNK,
            threads: Cores::here().threads(),
            weights: None,
            head_weights: None,
            lora: Vec::new(),
            cache: true,
            mmap: None,
            activations: Activations::default(),
            kv_cache: None,
            sliding_window: None,
            rules: None,
            prices: Vec::new(),
            trust: Vec::new(),
            verify: false,
            watch: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options {
            cpu,
            context,
            chunk,
            threads,
            weights,
            head_weights,
            lora,
            cache,
            mmap,
            activations,
            kv_cache,
            sliding_window,
            rules,
            prices,
            trust,
            verify,
            watch,
        } = self;
        f.debug_struct("Options")
            .field("cpu", cpu)
            .field("context", context)
            .field("chunk", chunk)
            .field("threads", threads)
            .field("weights", weights)
            .field("head_weights", head_weights)
            .field("lora", lora)
            .field("cache", cache)
            .field("mmap", mmap)
            .field("activations", activations)
            .field("kv_cache", kv_cache)
            .field("sliding_window", sliding_window)
            .field("rules", rules)
            .field("prices", prices)
            .field("trust", trust)
            .field("verify", verify)
            .field("watch", &watch.is_some())
            .finish()
    }
}

impl Options {
    /// Everything as the model's files say, or as suits this machine.
    pub fn new() -> Options {
        Options::default()
    }

    /// The CPU that code is made for, by GCC's name or `native` [default: this machine's]. An engine needs one whose
    /// code runs here.
    pub fn cpu(self, name: impl Into<String>) -> Options {
        Options { cpu: name.into(), ..self }
    }

    /// The most tokens of a sequence [default: the model's own number; of an artifact the number that it was compiled
    /// for].
    pub fn context(self, tokens: usize) -> Options {
        Options { context: Some(tokens), ..self }
    }

    /// The most tokens of one call of the compiled model, of all sequences together [default: [`CHUNK`]].
    pub fn chunk(self, tokens: usize) -> Options {
        Options { chunk: tokens, ..self }
    }

    /// Threads of an engine, the caller's included, and of a conversion of weights [default: one a fast core].
    pub fn threads(self, threads: usize) -> Options {
        Options { threads, ..self }
    }

    /// The format of matrices [default: as the checkpoint stores them]. What is converted is kept in the user's cache
    /// directory, unless [`Options::cache`] says otherwise.
    pub fn weights(self, format: impl Into<Option<Format>>) -> Options {
        Options { weights: format.into(), ..self }
    }

    /// The format of the embedding table, which is the head's matrix too [default: that of [`Options::weights`]].
    pub fn head_weights(self, format: impl Into<Option<Format>>) -> Options {
        Options { head_weights: format.into(), ..self }
    }

    /// A LoRA adapter, a folder as PEFT saves it, merged into the matrices that it is for; what it adds is multiplied
    /// by
    /// `factor`. Several are added in order. Converted weights are kept as [`Options::cache`] says.
    pub fn lora(mut self, folder: impl Into<PathBuf>, factor: f64) -> Options {
        self.lora.push((folder.into(), factor));
        self
    }

    /// Whether converted weights are kept in the user's cache directory for the next time [default: yes].
    pub fn cache(self, keep: bool) -> Options {
        Options { cache: keep, ..self }
    }

    /// Whether weights are read out of mapped files, or copied to memory of the process at once [default:
    /// [`Residence::Auto`]].
    pub fn mmap(self, mmap: impl Into<Option<bool>>) -> Options {
        Options { mmap: mmap.into(), ..self }
    }

    /// How exact activations are [default: as fast as the CPU can].
    pub fn activations(self, activations: Activations) -> Options {
        Options { activations, ..self }
    }

    /// How cached keys and values are held [default: bf16, with [`Activations::F32`] f32].
    pub fn kv_cache(self, format: impl Into<Option<KvCache>>) -> Options {
        Options { kv_cache: format.into(), ..self }
    }

    /// Keys that a local layer sees [default: the model's own number].
    pub fn sliding_window(self, keys: usize) -> Options {
        Options { sliding_window: Some(keys), ..self }
    }

    /// The rewrite rules that run [default: all that are built in].
    pub fn rules(self, selection: Selection) -> Options {
        Options { rules: Some(selection), ..self }
    }

    /// The constants that kernels for a CPU are priced by [default: those built in for its kind: a plan, and so the
    /// bits of what it computes, depends on no machine that is not named].
    pub fn prices(mut self, cpu: impl Into<String>, machine: Machine) -> Options {
        self.prices.push((cpu.into(), machine));
        self
    }

    /// The file of an ed25519 public key (PEM): of artifacts only those that one of these keys signed are opened
    /// [default: any].
    pub fn trust(mut self, key: impl Into<PathBuf>) -> Options {
        self.trust.push(key.into());
        self
    }

    /// Whether every section of an artifact is held against its hash first [default: no].
    pub fn verify(self, verify: bool) -> Options {
        Options { verify, ..self }
    }

    /// What is told of warnings and of how long work goes [default: nothing is]. A conversion of weights stops, with
    /// [`lapidary_models::Error::Stopped`], where it breaks.
    pub fn watch(self, watch: impl Fn(Notice<'_>) -> ControlFlow<()> + Send + Sync + 'static) -> Options {
        Options { watch: Some(Arc::new(watch)), ..self }
    }
}

impl Options {
    /// What is wrong with the options whatever the model.
    ///
    /// # Errors
    /// [`Error::Option`] for a number out of its range, [`Error::Compiler`] for a CPU that there is not.
    pub fn check(&self) -> Result<()> {
        Target::new(&self.cpu, Placement::Object)?;
        let in_range = |option: &'static str, value: usize, most: usize| match value {
            n if (1..=most).contains(&n) => Ok(()),
            n => Err(Error::option(option, format!("expected 1 to {most}, found {n}"))),
        };
        in_range("context", self.context.unwrap_or(1), MAX_CONTEXT)?;
        in_range("chunk", self.chunk, MAX_CHUNK)?;
        in_range("threads", self.threads, MAX_THREADS)?;
        in_range("sliding_window", self.sliding_window.unwrap_or(1), MAX_CONTEXT)
    }

    /// Fails if code for the CPU would not run here: another architecture, or an instruction set that this machine
    /// lacks.
    ///
    /// # Errors
    /// [`Error::Option`] with what it lacks; [`Error::Compiler`] for a CPU that there is not.
    pub fn runs_here(&self) -> Result<()> {
        let target = Target::new(&self.cpu, Placement::Jit)?;
        if let (true, cpu::Amx::Refused(code)) = (self.cpu == NATIVE, cpu::amx()) {
            let reason = std::io::Error::from_raw_os_error(code);
            self.warn(format!("the system refuses AMX ({reason}): running without it"));
        }
        match target.lacking_here() {
            None => Ok(()),
            Some(reason) => Err(Error::option("cpu", format!("{}: {reason}", self.cpu))),
        }
    }

    /// What kernels for a CPU are priced by.
    ///
    /// # Errors
    /// [`Error::Compiler`] for a CPU that there is not.
    pub fn machine(&self, cpu: &str) -> Result<Machine> {
        match self.prices.iter().rev().find(|(name, _)| name == cpu) {
            Some((_, machine)) => Ok(*machine),
            None => Ok(Target::new(cpu, Placement::Object)?.machine(self.rounded())),
        }
    }

    /// A configuration with what the options override.
    pub(crate) fn adjusted(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.sliding_window = self.sliding_window.unwrap_or(config.sliding_window);
        config
    }

    /// Whether products may round activations.
    pub(crate) fn rounded(&self) -> bool {
        self.activations == Activations::Auto
    }

    /// The format of cached keys and values.
    pub(crate) fn kv_format(&self) -> KvCache {
        self.kv_cache.unwrap_or(match self.activations {
            Activations::Auto => KvCache::Bf16,
            Activations::F32 => KvCache::F32,
        })
    }

    /// An option of compiling that differs from its default, if one does: an artifact takes it no more.
    pub(crate) fn of_compilation(&self) -> Option<&'static str> {
        let Options {
            cpu: _,
            context: _,
            chunk,
            threads: _,
            weights,
            head_weights,
            lora,
            cache: _,
            mmap: _,
            activations,
            kv_cache,
            sliding_window,
            rules,
            prices,
            trust: _,
            verify: _,
            watch: _,
        } = self;
        let given = [
            ("chunk", *chunk != CHUNK),
            ("rules", rules.is_some()),
            ("prices", !prices.is_empty()),
            ("activations", *activations != Activations::default()),
            ("kv_cache", kv_cache.is_some()),
            ("sliding_window", sliding_window.is_some()),
            ("weights", weights.is_some()),
            ("head_weights", head_weights.is_some()),
            ("lora", !lora.is_empty()),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    /// Tells it to whoever watches.
    pub(crate) fn tell(&self, notice: Notice<'_>) -> ControlFlow<()> {
        self.watch.as_ref().map_or(ControlFlow::Continue(()), |watch| watch(notice))
    }

    pub(crate) fn warn(&self, warning: impl fmt::Display) {
        // There is nothing to break off.
        let _ = self.tell(Notice::Warning(&warning.to_string()));
    }
}
