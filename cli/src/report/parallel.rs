//! Work that is cut into independent pieces, shared among the CPUs; results keep the order of the pieces.

use std::sync::atomic::{AtomicUsize, Ordering};

use lapidary_runtime::threads;

/// Applies `work` to every item.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], work: &(dyn Fn(&T) -> R + Sync)) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let threads = threads::of_machine().min(items.len());
    let each = || {
        let mut own = vec![];
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(item) = items.get(at)
        {
            own.push((at, work(item)));
        }
        own
    };
    let mut done: Vec<(usize, R)> = threads::share(threads, each).into_iter().flatten().collect();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_keep_their_order() {
        let items: Vec<u64> = (0..100).collect();
        assert_eq!(super::map(&items, &|x| x * x), items.iter().map(|x| x * x).collect::<Vec<_>>());
        assert!(super::map(&[0u8; 0], &|x| *x).is_empty());
    }
}
