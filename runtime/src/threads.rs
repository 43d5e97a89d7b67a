//! Work that threads share, on as many as the system gives.
//!
//! In: how many threads are wanted, and what each does: it takes pieces of the work until none is left. Out: what each
//! came to. Invariants: the caller's thread is one of them, so that the work is done even if the system gives no other;
//! a panic is passed on.

use std::io;
use std::panic;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// One a CPU that this process may use.
pub fn of_machine() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A thread within a scope; the system's answer if it gives none.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, work)
}

/// What a thread came to; its panic is this thread's too.
pub fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// Does `work` on up to `threads` threads, the caller's included.
pub fn share<T: Send>(threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        // Where one is refused, so would the next be.
        let others: Vec<_> = (1..threads).map_while(|_| spawn(scope, &work).ok()).collect();
        let mut all = vec![work()];
        all.extend(others.into_iter().map(join));
        all
    })
}

/// Does `work` to each item on up to `threads` threads, the caller's included: what each came to, in the items' order.
pub fn map<T: Send, R: Send>(threads: usize, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = threads.min(items.len());
    let queue = Mutex::new(items.into_iter().enumerate());
    // A panic of `work` poisons nothing: the queue is not held then.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let own = || std::iter::from_fn(next).map(|(i, item)| (i, work(item))).collect::<Vec<_>>();
    let mut all: Vec<_> = share(threads, own).into_iter().flatten().collect();
    all.sort_unstable_by_key(|&(i, _)| i);
    all.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn all_is_done_and_a_panic_is_passed_on() {
        for threads in [0, 1, 2, 5] {
            let next = AtomicUsize::new(0);
            let done = super::share(threads, || {
                let mut own = vec![];
                loop {
                    match next.fetch_add(1, Ordering::Relaxed) {
                        piece @ ..100 => own.push(piece),
                        _ => return own,
                    }
                }
            });
            assert_eq!(done.len(), threads.max(1));
            let mut done = done.concat();
            done.sort_unstable();
            assert_eq!(done, (0..100).collect::<Vec<_>>());
        }
        let turn = AtomicUsize::new(0);
        let failing = || super::share(2, || assert!(turn.fetch_add(1, Ordering::Relaxed) == 0, "the second"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(failing)).is_err());
    }

    #[test]
    fn results_have_the_items_order() {
        for threads in [0, 1, 3, 200] {
            let doubled = super::map(threads, (0..100).collect(), |item: usize| 2 * item);
            assert_eq!(doubled, (0..100).map(|item| 2 * item).collect::<Vec<_>>());
        }
        assert!(super::map(2, vec![], |item: usize| item).is_empty());
    }
}
