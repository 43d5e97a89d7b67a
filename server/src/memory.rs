//! How much memory there is for KV caches.

use lapidary_runtime::memory;

/// Share of what is free that they may take.
const SHARE: f64 = 0.75;
/// What they get where nothing is known.
const UNKNOWN: usize = 1 << 30;
/// The least that they get: requests that need more are refused one by one.
const LEAST: usize = 64 << 20;

/// Bytes for KV caches beside `mapped` bytes of weights that should stay in memory, and count as free.
pub(crate) fn for_caches(mapped: usize) -> usize {
    let Some(free) = memory::available() else { return UNKNOWN };
    (free.saturating_sub(mapped) as f64 * SHARE).max(LEAST as f64) as usize
}
