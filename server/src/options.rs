//! What a server is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// See the fields; [`Options::new`] has what is usual.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 is any that is free.
    pub address: SocketAddr,
    /// A file of keys, one a line, of which each request needs one.
    pub api_key_file: Option<PathBuf>,
    /// The most sequences that run at once.
    pub parallel: usize,
    /// The most requests that wait.
    pub queue: usize,
    /// The most tokens of prompts in a step while answers are made; by the times of steps if none.
    pub prefill_budget: Option<usize>,
    /// Bytes that KV caches may take, those of kept prefixes too; by the memory that is free if none.
    pub kv_bytes: Option<usize>,
    /// Bytes of them that kept prefixes may take; half if none.
    pub cache_bytes: Option<usize>,
    /// Whether of a kept text only what was prefilled is used again.
    pub strict_replay: bool,
    /// Whether special tokens in what is said are text.
    pub plain_content: bool,
    /// Where `/slots` saves sequences; nowhere if none.
    pub slot_save_path: Option<PathBuf>,
    /// What other pages' scripts may call: an origin, or `*`.
    pub cors: Option<String>,
    /// The longest that a request may take.
    pub timeout: Duration,
    /// The longest that what runs may go on after a signal to end.
    pub grace: Duration,
    /// The most bytes of a body.
    pub max_body: usize,
    /// The most connections.
    pub connections: usize,
    /// Whether what is logged is JSON.
    pub log_json: bool,
    /// Whether prompts and answers are logged.
    pub log_text: bool,
}

impl Options {
    /// What is usual, at an address.
    pub fn new(address: SocketAddr) -> Options {
        Options {
            address,
            api_key_file: None,
            parallel: 16,
            queue: 64,
            prefill_budget: None,
            kv_bytes: None,
            cache_bytes: None,
            strict_replay: false,
            plain_content: false,
            slot_save_path: None,
            cors: None,
            timeout: Duration::from_secs(600),
            grace: Duration::from_secs(30),
            max_body: 8 << 20,
            connections: 4096,
            log_json: false,
            log_text: false,
        }
    }
}
