//! Threads that run the tiles of a launch together: of one kernel, or of several that do not depend on each other.
//!
//! The caller of [`Pool::launch`] is worker 0; the others wait for work, spinning for a moment before they park,
//! since the next launch mostly follows within microseconds. Tiles, of all kernels numbered through, are taken off one
//! atomic counter in contiguous chunks, each a share of what is left of its kernel, so that threads end together. A
//! launch ends when the tiles are done: a worker that wakes too late to take part is not waited for.
//!
//! All of it hangs on one word, `Shared::state`: the launch's number (epoch), whether it is closed to newcomers,
//! and the workers inside. A worker enters by counting itself in while the launch is open; the caller closes the
//! launch when no tile is left and waits for the count to fall to zero. The job may be written only while the
//! word says closed and zero, and read only by who is counted in.

use crate::error::Error;
use crate::program::{Aligned, RESUMED, Segment, Step};
use crate::sync::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, JoinHandle, Ordering, Patience, SignalStack, UnsafeCell, thread,
};

/// Launches predicted to take less than this stay on the calling thread.
const PARALLEL_NS: u64 = 5_000;
/// A chunk is what is left over this many times the threads (guided self-scheduling, Polychronopoulos and Kuck 1987):
/// few large chunks first, small ones at the end to even out threads of uneven speed.
const SHARES_PER_THREAD: u64 = 2;
/// A chunk is predicted to take at least as long, so that starting it costs little beside it.
const CHUNK_NS: u64 = 3_000;

/// State word: the workers inside.
const ACTIVE: u64 = 0xffff;
/// State word: set when nobody may enter any more.
const CLOSED: u64 = 1 << 16;
/// State word: where the epoch starts.
const EPOCH_SHIFT: u32 = 17;

/// The most threads of a pool.
pub const MAX_THREADS: usize = 1024;

/// A launch, as the workers see it.
#[derive(Clone, Copy)]
struct Job {
    steps: *const [Step],
    frame: *const u64,
    /// Rows of the call, and its segments.
    rows: usize,
    segments: *const [Segment],
    /// What is left of a step over this makes a chunk.
    shares: u64,
}

/// Tiles `begin..end` of the step of this index.
#[derive(Clone, Copy)]
struct Chunk {
    step: usize,
    begin: u64,
    end: u64,
}

impl Job {
    /// The chunk that starts at a launch's tile, if there is one.
    fn chunk(&self, steps: &[Step], segments: &[Segment], tile: u64) -> Option<Chunk> {
        let mut first = 0;
        for (index, step) in steps.iter().enumerate() {
            let tiles = step.tiles(self.rows, segments);
            if tile < first + tiles {
                let (begin, left) = (tile - first, first + tiles - tile);
                let least = CHUNK_NS / u64::from(step.tile_ns).max(1) + 1;
                let end = begin + (left / self.shares).max(least).min(left);
                return Some(Chunk { step: index, begin, end });
            }
            first += tiles;
        }
        None
    }
}

/// On a cache line of its own (two, for the adjacent-line prefetcher).
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    state: Line<AtomicU64>,
    next: Line<AtomicU64>,
    job: Line<UnsafeCell<Option<Job>>>,
    shutdown: AtomicBool,
    /// Workers that have allocated what they need.
    ready: AtomicUsize,
    /// One a worker: set while it is parked, or about to be.
    parked: Vec<Line<AtomicBool>>,
}

// SAFETY: `job` is written only by the launching thread while `state` is closed with nobody inside, and read only
// by workers counted into an open launch; entering acquires what opening released. The rest is atomics.
unsafe impl Sync for Shared {}
// SAFETY: the pointers in `job` are used only within a launch, whose caller vouches for them on every thread.
unsafe impl Send for Shared {}

/// A pool of threads with a scratch buffer each.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    scratch: Aligned,
    epoch: u64,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included (0 is taken as 1, at most [`MAX_THREADS`]), with
    /// `scratch_bytes` bytes of scratch each; of fewer where the system refuses more ([`Pool::threads`]).
    pub fn new(threads: usize, scratch_bytes: usize) -> Result<Self, Error> {
        let others = threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(CLOSED)),
            next: Line(AtomicU64::new(0)),
            job: Line(UnsafeCell::new(None)),
            shutdown: AtomicBool::new(false),
            ready: AtomicUsize::new(0),
            parked: (0..others).map(|_| Line(AtomicBool::new(false))).collect(),
        });
        let bytes = scratch_bytes;
        let scratch = || {
            let none = || Error::Memory { what: "a thread's scratch".into(), bytes };
            Aligned::try_zeroed(bytes).ok_or_else(none)
        };
        let mut pool = Self { shared, workers: Vec::with_capacity(others), scratch: scratch()?, epoch: 0 };
        for index in 0..others {
            let shared = Arc::clone(&pool.shared);
            // First touched by the thread that uses it.
            let mut scratch = scratch()?;
            let worker = thread::Builder::new().name(format!("lapidary-{}", index + 1)).spawn(move || {
                let _signals = SignalStack::new();
                shared.ready.fetch_add(1, Ordering::Release);
                shared.work(index, scratch.as_mut_ptr());
            });
            // Where one is refused, so would the next be: those that there are do the work.
            let Ok(worker) = worker else { break };
            pool.workers.push(worker);
        }
        // Nothing is allocated from here on.
        while pool.shared.ready.load(Ordering::Acquire) < pool.workers.len() {
            thread::yield_now();
        }
        Ok(pool)
    }

    /// The threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Bytes of scratch, of all threads together.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.len() * self.threads()
    }

    /// Runs the tiles of steps of a call of `rows` rows in `segments`, side by side; returns when all are done.
    /// Allocates nothing.
    ///
    /// # Safety
    /// `frame` must be laid out for the steps' kernels, with every address in it valid for what they do with it, from
    /// any thread, until this returns; no step may read or write what another one writes; and the pool's scratch must
    /// be what the kernels' variant asks.
    pub unsafe fn launch(&mut self, steps: &[Step], frame: *const u64, rows: usize, segments: &[Segment]) {
        let tiles = |step: &Step| step.tiles(rows, segments);
        let ns = |step: &Step| tiles(step).saturating_mul(u64::from(step.tile_ns));
        let small = steps.iter().map(ns).fold(0, u64::saturating_add) < PARALLEL_NS;
        if small || steps.iter().map(tiles).sum::<u64>() <= 1 || self.workers.is_empty() {
            for step in steps.iter().filter(|step| tiles(step) > 0) {
                // SAFETY: the caller vouches for the kernel and its frame; worker 0's scratch is borrowed with self.
                unsafe { (step.kernel)(frame, 0, tiles(step), self.scratch.as_mut_ptr()) };
            }
            return;
        }

        let shared = &*self.shared;
        let job = Job { steps, frame, rows, segments, shares: self.threads() as u64 * SHARES_PER_THREAD };
        // SAFETY: the state is closed with nobody inside, since the launch before ended so, and only this thread
        // (`&mut self`) opens it.
        shared.job.0.with_mut(|place| unsafe { *place = Some(job) });
        shared.next.0.store(0, Ordering::Relaxed);
        self.epoch += 1;
        // Sequentially consistent with the workers' `parked` stores and state loads: either the worker sees this
        // launch before it parks, or it is seen parked below.
        shared.state.0.store(self.epoch << EPOCH_SHIFT, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked) {
            if parked.0.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        // SAFETY: the caller vouches for the kernel and its frame; the scratch is worker 0's, borrowed with self.
        unsafe { shared.run(job, self.scratch.as_mut_ptr()) };
        // Acquires what the workers that left wrote, as the loads below do for those still inside.
        let mut state = shared.state.0.fetch_or(CLOSED, Ordering::AcqRel);
        let mut patience = Patience::new();
        while state & ACTIVE != 0 {
            if !patience.spin() {
                // A worker with tiles left may have lost its core to us.
                thread::yield_now();
            }
            state = shared.state.0.load(Ordering::Acquire);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker cannot panic; and if it had, there is nothing to do about it here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Takes chunks of tiles and runs them until none is left.
    ///
    /// # Safety
    /// As [`Pool::launch`], for a launch that this thread is counted into or made; `scratch` is this thread's own.
    unsafe fn run(&self, job: Job, scratch: *mut u8) {
        // SAFETY: the launch's caller holds the steps and segments until all have left.
        let (steps, segments) = unsafe { (&*job.steps, &*job.segments) };
        let take = |tile: u64| job.chunk(steps, segments, tile).map(|c| tile + (c.end - c.begin));
        let mut before = None;
        while let Ok(tile) = self.next.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            let Some(Chunk { step: index, begin, end }) = job.chunk(steps, segments, tile) else { break };
            let step = &steps[index];
            let mark = if step.resumes && before == Some(index) { RESUMED } else { 0 };
            // SAFETY: the launch's caller vouches for the kernel and its frame; these tiles are nobody else's.
            unsafe { (step.kernel)(job.frame, begin | mark, end, scratch) };
            before = Some(index);
        }
    }

    /// A worker's life.
    fn work(&self, index: usize, scratch: *mut u8) {
        let mut seen = 0;
        while let Some(state) = self.wait(index, seen) {
            let enter = self.state.0.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed);
            if enter.is_err() {
                continue;
            }
            seen = state >> EPOCH_SHIFT;
            // SAFETY: counted in, so the job is set and is not written until this thread has left.
            if let Some(job) = self.job.0.with(|place| unsafe { *place }) {
                // SAFETY: the launch's caller vouches for the job and waits for this thread to leave; the scratch
                // is this thread's own.
                unsafe { self.run(job, scratch) };
            }
            self.state.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open launch other than `seen`; its state word, or none at shutdown.
    fn wait(&self, index: usize, seen: u64) -> Option<u64> {
        let ready = || {
            let state = self.state.0.load(Ordering::SeqCst);
            (state & CLOSED == 0 && state >> EPOCH_SHIFT != seen).then_some(state)
        };
        let mut patience = Patience::new();
        loop {
            if self.shutdown.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(state) = ready() {
                return Some(state);
            }
            if patience.spin() {
                continue;
            }
            let parked = &self.parked[index].0;
            parked.store(true, Ordering::SeqCst);
            // An unpark between the check and the park makes the park return at once. It may also return for no
            // reason; then the loop goes round.
            if !self.shutdown.load(Ordering::SeqCst) && ready().is_none() {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
            patience = Patience::new();
        }
    }
}
