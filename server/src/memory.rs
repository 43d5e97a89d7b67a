//! How much memory there is for KV caches.

use std::fs;

/// Share of what is free that they may take.
const SHARE: f64 = 0.75;
/// What they get where nothing is known.
const UNKNOWN: usize = 1 << 30;
/// The least that they get: requests that need more are refused one by one.
const LEAST: usize = 64 << 20;

/// Bytes for KV caches beside `weights` bytes that are mapped and should stay in memory.
pub(crate) fn for_caches(weights: usize) -> usize {
    let free = [available(), left_to_group()].into_iter().flatten().min();
    let Some(free) = free else { return UNKNOWN };
    ((free.saturating_sub(weights)) as f64 * SHARE).max(LEAST as f64) as usize
}

/// What the system would give without swapping, mapped files given up.
fn available() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// What is left of a control group's limit (version 2), as containers have.
fn left_to_group() -> Option<usize> {
    let number = |name: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<usize>().ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}
