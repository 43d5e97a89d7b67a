//! How many threads compute: one a physical core of the fast kind, of the CPUs that this process may use.
//!
//! In: the process's set of CPUs, what the kernel tells of each under `/sys/devices/system/cpu`, and the cgroup's
//! quota. Two logical CPUs of a core share its units and its caches, so that a second thread there brings nothing to
//! loops that keep the units or the memory busy; and cores of a slow kind are left to others, for a launch ends when
//! its last tile does. Threads that are asked for by number share work by speed: each takes a tile when it is done with
//! one.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// Capacity of a core, of the fastest one's, from which on it counts as fast: cores of several fast kinds (Arm's
/// `cpu_capacity`, 1024 the fastest) work together, those for low power do not.
const FAST: f64 = 0.6;

/// The cores that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// Logical CPUs.
    pub cpus: usize,
    /// Physical cores.
    pub cores: usize,
    /// Physical cores of the fast kind.
    pub fast: usize,
    /// CPUs' worth of time that the cgroup and the process's set of CPUs allow.
    pub allowed: usize,
}

impl Cores {
    /// What the kernel says of this process.
    pub fn here() -> Cores {
        Cores::read(Path::new("/sys/devices"), &affinity())
    }

    /// Threads that compute, unless asked otherwise: at least one.
    pub fn threads(&self) -> usize {
        self.fast.min(self.allowed).max(1)
    }

    fn read(devices: &Path, cpus: &[usize]) -> Cores {
        // None where the system does not say: std's own count of CPUs stands for all.
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        if cpus.is_empty() {
            return Cores { cpus: allowed, cores: allowed, fast: allowed, allowed };
        }
        let system = devices.join("system/cpu");
        // A core by its CPUs; a CPU that nothing is said of is a core of its own.
        let core = |cpu: usize| {
            let topology = system.join(format!("cpu{cpu}/topology"));
            let list =
                ["core_cpus_list", "thread_siblings_list"].iter().find_map(|n| text(&topology.join(n)));
            list.unwrap_or_else(|| cpu.to_string())
        };
        let capacity = |cpu: usize| {
            text(&system.join(format!("cpu{cpu}/cpu_capacity"))).and_then(|t| t.parse::<f64>().ok())
        };
        let capacities: Vec<Option<f64>> = cpus.iter().map(|&cpu| capacity(cpu)).collect();
        let most = capacities.iter().flatten().copied().fold(0.0, f64::max);
        // Intel's hybrid CPUs list their fast cores.
        let listed = text(&devices.join("cpu_core/cpus")).map(|list| parse_list(&list));
        let is_fast = |(&cpu, &capacity): (&usize, &Option<f64>)| {
            listed.as_ref().is_none_or(|listed| listed.contains(&cpu))
                && capacity.is_none_or(|capacity| capacity >= FAST * most)
        };
        let all: BTreeSet<String> = cpus.iter().map(|&cpu| core(cpu)).collect();
        let fast: BTreeSet<String> =
            cpus.iter().zip(&capacities).filter(|&of| is_fast(of)).map(|(&cpu, _)| core(cpu)).collect();
        // A set of slow cores alone is used as it is.
        let fast = if fast.is_empty() { all.len() } else { fast.len() };
        Cores { cpus: cpus.len(), cores: all.len(), fast, allowed: allowed.min(cpus.len()) }
    }
}

impl fmt::Display for Cores {
    /// `8 fast of 16 cores, 24 CPUs`, as far as they differ.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cores { cpus, cores, fast, allowed } = *self;
        if fast < cores {
            write!(f, "{fast} fast of ")?;
        }
        write!(f, "{cores} {}", if cores == 1 { "core" } else { "cores" })?;
        if cores < cpus {
            write!(f, ", {cpus} CPUs")?;
        }
        if allowed < cpus {
            write!(f, ", time of {allowed}")?;
        }
        Ok(())
    }
}

/// The CPUs that this process may be scheduled on; none where the system does not say.
fn affinity() -> Vec<usize> {
    // Room for 8,192 CPUs: the kernel refuses a set that is smaller than its own.
    const WORDS: usize = 8192 / usize::BITS as usize;
    let mut words = [0_usize; WORDS];
    // SAFETY: the kernel writes at most so many bytes to the array.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&words), words.as_mut_ptr().cast()) };
    if got != 0 {
        return vec![];
    }
    let bits = usize::BITS as usize;
    (0..WORDS * bits).filter(|&cpu| words[cpu / bits] >> (cpu % bits) & 1 == 1).collect()
}

/// The CPUs of a list such as `0-3,8`; what is none is left out.
fn parse_list(list: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?.min(1 << 16))
    };
    list.split(',').filter_map(range).flatten().collect()
}

fn text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_string()).filter(|text| !text.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A machine whose CPUs have these siblings and capacities.
    fn machine(cpus: &[(&str, Option<u32>)], fast: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        };
        for (cpu, (siblings, capacity)) in cpus.iter().enumerate() {
            write(&format!("system/cpu/cpu{cpu}/topology/thread_siblings_list"), siblings);
            if let Some(capacity) = capacity {
                write(&format!("system/cpu/cpu{cpu}/cpu_capacity"), &capacity.to_string());
            }
        }
        if let Some(fast) = fast {
            write("cpu_core/cpus", fast);
        }
        root
    }

    fn read(root: &tempfile::TempDir, cpus: &[usize]) -> (usize, usize, usize) {
        let Cores { cpus, cores, fast, .. } = Cores::read(root.path(), cpus);
        (cpus, cores, fast)
    }

    #[test]
    fn siblings_are_a_core() {
        let smt = machine(&[("0,2", None), ("1,3", None), ("0,2", None), ("1,3", None)], None);
        assert_eq!(read(&smt, &[0, 1, 2, 3]), (4, 2, 2));
        // The process may use both CPUs of one core alone.
        assert_eq!(read(&smt, &[0, 2]), (2, 1, 1));
        assert_eq!(read(&smt, &[1, 2]), (2, 2, 2));
    }

    #[test]
    fn fast_cores_count() {
        // Two fast cores of two CPUs each and four slow ones.
        let siblings = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"].map(|list| (list, None));
        let hybrid = machine(&siblings, Some("0-3"));
        assert_eq!(read(&hybrid, &[0, 1, 2, 3, 4, 5, 6, 7]), (8, 6, 2));
        assert_eq!(read(&hybrid, &[5, 6]), (2, 2, 2));
        let arm = [("0", Some(300)), ("1", Some(300)), ("2", Some(780)), ("3", Some(1024))];
        assert_eq!(read(&machine(&arm, None), &[0, 1, 2, 3]), (4, 4, 2));
    }

    #[test]
    fn what_is_not_said_is_a_core_a_cpu() {
        let none = tempfile::tempdir().unwrap();
        assert_eq!(read(&none, &[3, 9]), (2, 2, 2));
        assert_eq!(Cores::read(none.path(), &[]).cpus, std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn here_there_is_one() {
        let here = Cores::here();
        assert!(here.fast >= 1 && here.fast <= here.cores && here.cores <= here.cpus, "{here:?}");
        assert!((1..=here.allowed).contains(&here.threads()), "{here:?}");
        assert!(!affinity().is_empty());
    }

    #[test]
    fn said_as_far_as_it_differs() {
        let said = |cpus, cores, fast, allowed| Cores { cpus, cores, fast, allowed }.to_string();
        assert_eq!(said(2, 2, 2, 2), "2 cores");
        assert_eq!(said(8, 4, 4, 8), "4 cores, 8 CPUs");
        assert_eq!(said(24, 16, 8, 4), "8 fast of 16 cores, 24 CPUs, time of 4");
        assert_eq!(parse_list("0-2,7, 9-x,4-"), BTreeSet::from([0, 1, 2, 7]));
    }
}
