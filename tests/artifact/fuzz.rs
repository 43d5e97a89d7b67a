//! Artifacts without weights, mutated anywhere: opened with all that they hold, or refused
//! ([`lapidary_tests::fuzz::artifact`]).

use proptest::prelude::*;
use std::sync::LazyLock;

use super::*;

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (_dir, path) = place();
    build(&path, &Files::built_in().unwrap());
    fs::read(&path).unwrap()
});

fn cases() -> u32 {
    let times = std::env::var("LAPIDARY_FUZZ_CASES").ok().and_then(|n| n.parse::<u32>().ok());
    100 * times.unwrap_or(1)
}

#[test]
fn a_good_artifact() {
    lapidary_tests::fuzz::artifact(&GOOD);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn mutated_artifacts(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..4),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut bytes = GOOD.clone();
        let header = (8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize).min(bytes.len());
        for (place, byte, in_header) in changes {
            let at = place.index(if in_header { header } else { bytes.len() });
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        lapidary_tests::fuzz::artifact(&bytes);
    }
}
