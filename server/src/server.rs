//! A server from its start to its end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::error::Error;
use crate::guide::Guides;
use crate::http::connections::Connections;
use crate::http::{self, Shared, body};
use crate::keys::Keys;
use crate::log::{self, Log};
use crate::memory;
use crate::metrics::Metrics;
use crate::model::{Served, Vocabulary};
use crate::options::Options;
use crate::scheduler::{Command, Scheduler};

/// Threads for what takes a while: templates, tokenisation, grammars.
const BLOCKING_THREADS: usize = 4;
/// Files that are left for other things than connections.
const OTHER_FILES: usize = 64;
/// How long connections may take to end after the answers have.
const LAST: Duration = Duration::from_secs(2);

/// What a model is loaded by.
pub type Load = Box<dyn FnOnce() -> Result<Served, Box<dyn std::error::Error + Send + Sync>> + Send>;

/// Serves until SIGTERM or Ctrl-C: takes connections at once, and requests once the model is loaded.
///
/// # Errors
/// A key file that cannot be read, an address that cannot be had, a model that does not load.
pub fn serve(options: Options, load: Load) -> Result<(), Error> {
    let keys = Keys::read(options.api_key_file.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|source| Error::System { what: "cannot start the server".into(), source })?;
    runtime.block_on(run(options, keys, load))
}

async fn run(options: Options, keys: Keys, load: Load) -> Result<(), Error> {
    let said = |what: String| |source| Error::System { what, source };
    let log = Log { json: options.log_json };
    let address = options.address;
    let listener = TcpListener::bind(address).await.map_err(said(format!("cannot listen at {address}")))?;
    let address: SocketAddr = listener.local_addr().map_err(said(format!("cannot listen at {address}")))?;
    let mut term = signal(SignalKind::terminate()).map_err(said("cannot wait for signals".into()))?;
    let mut int = signal(SignalKind::interrupt()).map_err(said("cannot wait for signals".into()))?;
    let (commands, told) = mpsc::channel();
    let (metrics, guides) = (Arc::new(Metrics::default()), Arc::new(Guides::new()));
    let most = options.connections.min(files().saturating_sub(OTHER_FILES)).max(1);
    let grace = options.grace;
    let shared = Arc::new(Shared {
        keys,
        metrics: metrics.clone(),
        guides: guides.clone(),
        log,
        model: OnceLock::new(),
        commands: commands.clone(),
        waiting: Arc::default(),
        bodies: body::Held::default(),
        ending: AtomicBool::new(false),
        options,
    });
    log.line("listening", vec![("url", format!("http://{address}").into())]);

    let (over, mut ended) = oneshot::channel();
    let of_engine = shared.clone();
    let engine = thread::Builder::new().name("engine".into());
    let engine = engine.spawn(move || {
        let result = work(&of_engine, load, told);
        // Whoever waits for it may be gone.
        let _ = over.send(result);
    });
    let engine = engine.map_err(said("cannot start a thread".into()))?;

    let (end, ending) = watch::channel(false);
    let connections = Arc::new(Connections::new(most, metrics));
    let router = http::router(shared.clone());
    let accepting = tokio::spawn(connections.clone().accept(listener, router, ending));
    tokio::select! {
        result = &mut ended => {
            // It ends by itself only where it fails.
            let panicked = || Err(Error::Model("the engine ended; its words are above".into()));
            return result.unwrap_or_else(|_| panicked());
        }
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    log.line("ending", vec![]);
    shared.ending.store(true, Ordering::Relaxed);
    // A model that is being loaded is not waited for.
    let loaded = shared.model.get().is_some();
    let _ = commands.send(Command::End(Instant::now() + grace));
    let finish = async {
        if loaded {
            let _ = (&mut ended).await;
        }
        let _ = end.send(true);
        let _ = accepting.await;
        let deadline = Instant::now() + LAST;
        while connections.len() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = finish => {}
        // Asked twice.
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    }
    if loaded {
        let _ = engine.join();
    }
    log.line("ended", vec![]);
    Ok(())
}

/// The engine's thread.
fn work(shared: &Arc<Shared>, load: Load, told: mpsc::Receiver<Command>) -> Result<(), Error> {
    let start = Instant::now();
    let Served { name, engine, speculation, text } = load().map_err(Error::Model)?;
    if text.tokenizer().is_none() {
        let what = "it has no tokenizer, which a server needs".into();
        return Err(Error::Lacks { name, what });
    }
    let plan = &engine.program().plan;
    if let Some(speculation) = &speculation {
        speculation.check(plan.vocab).map_err(|error| Error::Model(error.into()))?;
    }
    let options = &shared.options;
    let kv_bytes = options.kv_bytes.unwrap_or_else(|| memory::for_caches(engine.memory().weights_mapped));
    shared.metrics.kv_most.set(kv_bytes);
    let (vocab, context) = (plan.vocab, plan.context);
    let vocabulary = Vocabulary::new(name.clone(), text, vocab, context, log::seconds() as u64);
    let vocabulary = Arc::new(vocabulary);
    let (metrics, guides) = (shared.metrics.clone(), shared.guides.clone());
    let (threads, channel) = (engine.threads(), (shared.commands.clone(), told));
    let scheduler = Scheduler::new(engine, vocabulary.clone(), guides, metrics, channel, options, kv_bytes);
    // Nobody else sets it.
    let _ = shared.model.set(vocabulary);
    let fields = vec![
        ("model", name.into()),
        ("context", context.into()),
        ("parallel", options.parallel.into()),
        ("threads", threads.into()),
        ("kv_mib", (kv_bytes >> 20).into()),
        ("load_ms", (start.elapsed().as_secs_f64() * 1e3).into()),
    ];
    shared.log.line("ready", fields);
    scheduler.speculate(speculation).run();
    Ok(())
}

/// How many files this process may have open: as many as the system lets it raise the limit to.
fn files() -> usize {
    // SAFETY: the system fills in a structure of numbers, or says that it does not.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return usize::MAX;
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
            limit.rlim_max as usize
        } else {
            limit.rlim_cur as usize
        }
    }
}
