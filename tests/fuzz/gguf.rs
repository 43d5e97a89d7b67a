//! The same for GGUF files: headers with changes of bytes and of whole numbers.

use std::sync::LazyLock;

use lapidary_tests::fuzz::gguf;
use lapidary_tests::gguf::vocabulary;
use proptest::prelude::*;

use super::{cases, edited, edits};

/// A file with a vocabulary and tensors.
static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let file = vocabulary().u32("general.alignment", 32).u32("gemma2.block_count", 1);
    file.tensor("a.weight", &[32, 2], 8, [7; 68]).tensor("b.weight", &[2, 2], 0, [1; 16]).bytes()
});

/// Numbers that readers trip over.
const NUMBERS: [u64; 12] =
    [0, 1, 5, 32, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 61, 1 << 62, 1 << 63, u64::MAX];

/// Where, what, and the logarithm of its bytes.
fn number() -> impl Strategy<Value = (prop::sample::Index, u64, usize)> {
    (any::<prop::sample::Index>(), prop::sample::select(&NUMBERS[..]), 0..4usize)
}

#[test]
fn a_valid_file_is_accepted() {
    let header = lapidary_models::gguf::container::header(std::path::Path::new("m"), &FILE).unwrap();
    assert_eq!((header.keys.len(), header.tensors.len()), (11, 2));
    gguf(&FILE);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(10_000), ..ProptestConfig::default() })]

    #[test]
    fn mutated_ggufs(
        edits in edits(),
        numbers in prop::collection::vec(number(), 0..3),
        edit in any::<bool>(),
    ) {
        let mut file = FILE.clone();
        // Numbers of 1, 2, 4 and 8 bytes, whole.
        for (place, number, width) in numbers {
            let (at, width) = (place.index(file.len() - 8), 1 << width);
            file[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        gguf(&file);
        if edit {
            gguf(&edited(&file, &edits));
        }
    }

    #[test]
    fn random_ggufs(bytes in prop::collection::vec(any::<u8>(), 0..300), version in 0..5u32) {
        gguf(&bytes);
        gguf(&[&b"GGUF"[..], &version.to_le_bytes(), &bytes].concat());
    }
}
