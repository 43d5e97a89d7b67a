//! The options of a server, shared by `lapidary serve` and `lapidary-run serve`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use lapidary_runtime::{Session, Speculation};
use lapidary_server::Options;

use crate::speculation::MOST_GUESSES;

/// The most that a number of slots, places or connections may be.
const MOST: u64 = 1 << 16;
/// The most MiB of memory.
const MOST_MIB: u64 = 1 << 30;
/// The longest time in seconds: a week.
const MOST_SECONDS: u64 = 7 * 24 * 3600;

/// How many of something there may be.
fn count() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=MOST)
}

fn mib() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=MOST_MIB)
}

fn seconds() -> clap::builder::RangedU64ValueParser<u64> {
    clap::builder::RangedU64ValueParser::new().range(1..=MOST_SECONDS)
}

fn guesses(least: u64) -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(least..=MOST_GUESSES)
}

/// Where a server listens, and within what limits.
#[derive(clap::Args, Clone)]
pub(crate) struct ServingArgs {
    /// Address to listen at; 0.0.0.0 is every network's
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen at; 0 is any that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// File of keys, one a line: each request needs one
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Most answers that are made at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count())]
    parallel: usize,
    /// Most prompts that wait; those beyond are refused with status 429
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count())]
    queue: usize,
    /// Most tokens of prompts in a step while answers are made [default: as many as make it twice as long]
    #[arg(long, value_name = "TOKENS", value_parser = count())]
    prefill_budget: Option<usize>,
    /// Most tokens of an answer to guess at a time, by what followed the latest ones earlier in the text, while it
    /// pays: the same answer, faster; 0 is none
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = guesses(0))]
    lookup: usize,
    /// Guess them by a smaller model with the same tokens, of an answer that is made alone
    #[arg(long, value_name = "MODEL", conflicts_with = "lookup")]
    draft: Option<PathBuf>,
    /// Most tokens that --draft guesses at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = guesses(1), requires = "draft")]
    draft_max: usize,
    /// Memory of KV caches, kept prefixes too, in MiB [default: three quarters of what is free]
    #[arg(long, value_name = "MIB", value_parser = mib())]
    kv_memory: Option<usize>,
    /// Of it, memory of kept prefixes [default: half]
    #[arg(long, value_name = "MIB", value_parser = mib())]
    cache_memory: Option<usize>,
    /// Use again only what was prefilled of a kept text, not its answers: then a kept prefix changes no bit
    #[arg(long)]
    strict_replay: bool,
    /// Read special tokens in what is said as text
    #[arg(long)]
    plain_content: bool,
    /// Folder where /slots saves texts and restores them from [default: it does not]
    #[arg(long, value_name = "DIR")]
    slot_save_path: Option<PathBuf>,
    /// Name of the model in answers [default: its file's or folder's]
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Option<String>,
    /// Pages that may call the server from a browser: an origin, or * [default: its own]
    #[arg(long, value_name = "ORIGIN")]
    cors: Option<String>,
    /// Longest that a request may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = seconds())]
    timeout: u64,
    /// Longest that answers go on after a signal to end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds())]
    grace: u64,
    /// Largest body of a request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = mib())]
    max_body: usize,
    /// Most connections
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = count())]
    connections: usize,
    /// Form of the log on stderr: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
    /// Write answers to the log, too
    #[arg(long)]
    log_text: bool,
}

impl ServingArgs {
    /// As the server takes them.
    pub(crate) fn options(&self) -> Options {
        Options {
            api_key_file: self.api_key_file.clone(),
            parallel: self.parallel,
            queue: self.queue,
            prefill_budget: self.prefill_budget,
            kv_bytes: self.kv_memory.map(|mib| mib << 20),
            cache_bytes: self.cache_memory.map(|mib| mib << 20),
            strict_replay: self.strict_replay,
            plain_content: self.plain_content,
            slot_save_path: self.slot_save_path.clone(),
            cors: self.cors.clone(),
            timeout: Duration::from_secs(self.timeout),
            grace: Duration::from_secs(self.grace),
            max_body: self.max_body << 20,
            connections: self.connections,
            log_json: self.log_format == "json",
            log_text: self.log_text,
            ..Options::new(SocketAddr::new(self.host, self.port))
        }
    }

    /// Who guesses how an answer goes on; `draft` makes a session of a smaller model.
    pub(crate) fn speculation(
        &self,
        draft: impl FnOnce(&Path) -> Result<Session>,
    ) -> Result<Option<Speculation>> {
        Ok(match (&self.draft, self.lookup) {
            (Some(path), _) => Some(Speculation::draft(draft(path)?, self.draft_max)),
            (None, 0) => None,
            (None, most) => Some(Speculation::lookup(most)),
        })
    }

    /// What a model is called: what was said, or what its path says.
    pub(crate) fn name(&self, path: Option<&Path>) -> String {
        let stem = path.and_then(|path| {
            let file = if path.is_dir() {
                path.canonicalize().ok()?.file_name()?.into()
            } else {
                path.file_stem()?.to_os_string()
            };
            file.into_string().ok()
        });
        self.alias.clone().or(stem).unwrap_or_else(|| "lapidary-tiny".into())
    }
}
