//! Random bytes and mutated valid input for everything that parses a user's file: `config.json`, the safetensors
//! header and index, GGUF headers, the tensor language, rules, chat templates, tokenizers, the cache of weights. What
//! must come out is a value that keeps its type's promises, or an error of one line; never a panic, and never more
//! memory than [`MOST`]. The promises are in [`lapidary_tests::fuzz`]. `LAPIDARY_FUZZ_CASES=N` tries N times as many
//! cases.
#![allow(clippy::unwrap_used)]

#[path = "fuzz/gguf.rs"]
mod gguf;
#[path = "fuzz/text.rs"]
mod text;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapidary_codegen::Options;
use lapidary_codegen::compile::compile_functions;
use lapidary_ir::text::parse_module;
use lapidary_models::Config;
use lapidary_models::checkpoint::parse_index;
use lapidary_passes::Selection;
use lapidary_runtime::file::safetensors;
use lapidary_tests::fuzz::{config, functions, header, index, module, rules, settled};
use proptest::prelude::*;

/// Bytes that may be allocated at a time: beyond it an allocation fails, which aborts the test.
const MOST: usize = 1 << 30;

/// The system's allocator with a limit.
struct Limited(AtomicUsize);

#[global_allocator]
static ALLOCATOR: Limited = Limited(AtomicUsize::new(0));

// SAFETY: memory comes from and goes back to the system's allocator; refusing with null is allowed.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = self.0.fetch_add(layout.size(), Ordering::Relaxed);
        if before.saturating_add(layout.size()) > MOST {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise on `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise: `at` came from `alloc` with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

/// How many cases a property is tried on.
fn cases(few: u32) -> u32 {
    let times = std::env::var("LAPIDARY_FUZZ_CASES").ok().and_then(|n| n.parse::<u32>().ok());
    few.saturating_mul(times.unwrap_or(1))
}

/// One change of a text: what, where, how much.
type Edit = (u8, prop::sample::Index, prop::sample::Index, u8);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec(any::<Edit>(), 1..5)
}

/// What parsers trip over.
const PIECES: &[&str] = &[
    "0",
    "-1",
    "1e999",
    "NaN",
    "18446744073709551615",
    "18446744073709551616",
    "16777216",
    "1e-400",
    "null",
    "true",
    "\"\"",
    "\"\\u0000\"",
    "\\",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ":",
    "=",
    "%x",
    "v0",
    "\n",
    "\r",
    "\t",
    ";",
    "é",
    "\u{202e}",
    "T",
    "f32",
    "[T,4]",
    "../x",
    "[[[[[[[[",
];

/// A text with changes.
fn edited(valid: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (kind, place, length, byte) in edits {
        let at = place.index(bytes.len() + 1);
        let end = at + length.index((bytes.len() - at).min(60) + 1);
        match kind % 6 {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            4 => drop(bytes.splice(at..end.min(at + 1), [*byte])),
            _ => {
                // A whole word, where there is one.
                let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b == b'.';
                let end = at + bytes[at..].iter().take_while(|b| word(b)).count();
                let piece = PIECES[usize::from(*byte) % PIECES.len()].bytes();
                drop(bytes.splice(at..end, piece));
            }
        }
    }
    bytes
}

const CONFIGS: &[&[u8]] = &[
    include_bytes!("../models/data/tiny-gemma2/config.json"),
    include_bytes!("golden/gqa-4/config.json"),
    include_bytes!("golden/one-mqa/config.json"),
    include_bytes!("golden/three-scaled/config.json"),
    include_bytes!("golden/three-nested/config.json"),
];

/// A file of three tensors.
static HEADER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut json = concat!(
        r#"{"__metadata__":{"format":"pt"},"#,
        r#""a.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"#,
        r#""b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},"#,
        r#""c":{"dtype":"F16","shape":[0,4],"data_offsets":[16,16]}}"#
    )
    .to_string();
    json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0; 16]].concat()
});

const SHARDS: &[u8] = include_bytes!("golden/gqa-4/model.safetensors.index.json");

/// The built-in model's functions as text, as written and fused.
static FUNCTIONS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let module = module(&Config::from_json(Path::new("tiny"), CONFIGS[0]).unwrap());
    let options = Options {
        selection: Selection::all(),
        cpu: "native".into(),
        context: 64,
        chunk: 8,
        rounded: false,
        machine: lapidary_passes::Machine::GENERIC,
        listings: false,
    };
    let reports = compile_functions(&module.functions, &options).unwrap().reports;
    let fused = reports.iter().map(|r| r.variants.last().unwrap().function.to_string());
    module.functions.iter().map(ToString::to_string).chain(fused).collect()
});

#[test]
fn valid_input_is_accepted() {
    assert!(CONFIGS.iter().all(|c| settled(Config::from_json(Path::new("c"), c)).is_some()));
    assert_eq!(settled(safetensors::read(Path::new("s"), &HEADER)).unwrap().len(), 3);
    assert!(settled(parse_index(Path::new("i"), SHARDS)).is_some());
    assert!(FUNCTIONS.iter().all(|f| settled(parse_module(f)).is_some()));
}

#[test]
fn deep_nesting() {
    for open in ["[", "{\"a\":", "("] {
        let deep = open.repeat(1 << 20);
        config(deep.as_bytes());
        index(deep.as_bytes());
        index(format!("{{\"weight_map\":{deep}").as_bytes());
        header(&[&(deep.len() as u64).to_le_bytes()[..], deep.as_bytes()].concat());
        functions(&deep);
        functions(&format!("function f(%x: f32[T,4] rows) {{\n v0 = {deep}"));
    }
}

/// A file of rules that uses every predicate.
const RULES: &str = "; a comment
rule one reassociating \"x / c\" {
    (mul (tanh (div ?x ?c)) ?c)
    (mul (tanh (mul ?x ?r)) ?c)
    => (softcap ?c ?x)
    if constant(?c), ?c > 0, ?c < inf, near(?r * ?c, 1, 2e-7)
}
rule two exact \"norm\" {
    (mul ?x (rsqrt (add (mean (mul ?x ?x) ?axis) ?eps)))
    => (rms_norm ?x (broadcast (reshape 0.0 [1]) ?k) ?eps)
    if ?x: f32[.., k], last_axis(?axis, ?x), constant(?eps), let ?k = dims([k]), single_use(?x), k >= rank(?x) + 1
}
rule three approximate(1e-3) \"m\" {
    (matmul ?x ?y)
    => (linear ?x (weights ?w) store)
    if ?y matches (transpose ?w [1,0]), weight(?w), ?w: float[fixed, _], same_type(?x, ?x), range(?x) in [-inf, inf],
       let ?m = number(sqrt(length(?x, 0)) / 2), length(?x, 1) != 3
}
";

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(300), ..ProptestConfig::default() })]

    #[test]
    fn mutated_rules(which in any::<prop::sample::Index>(), edits in edits()) {
        let built_in: Vec<String> = lapidary_passes::rules::all().map(ToString::to_string).collect();
        let at = which.index(built_in.len() + 8);
        let valid = built_in.get(at).map_or(RULES, |r| r);
        rules(valid);
        rules(&String::from_utf8_lossy(&edited(valid.as_bytes(), &edits)));
    }

    #[test]
    fn random_rules(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        words in prop::collection::vec(prop::sample::select(vec![
        "rule", "r", "exact", "\"a\"", "{", "}", "(", ")", "=>", "if", ",", ":", "?x", "?y", "neg", "add", "mul", "1.0",
        "2", "[T,4]", "[", "]", "..", "T", "k", "constant", "near", "range", "in", "let", "=", "number", "dims",
        "matches", ">", "==", "*", "-", "f32", "any",
    ]), 0..30)) {
        rules(&String::from_utf8_lossy(&bytes));
        rules(&words.join(" "));
        rules(&format!("rule r exact \"a\" {{ (neg ?x) => (neg ?x) if {} }}", words.join(" ")));
        rules(&format!("rule r exact \"a\" {{ (add ?x (neg {} ?y)) => ?x }}", words.join(" ")));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(4000), ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        config(&bytes);
        index(&bytes);
        header(&bytes);
        header(&[&(bytes.len() as u64 / 2).to_le_bytes()[..], &bytes].concat());
        functions(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn mutated_configurations(which in any::<prop::sample::Index>(), edits in edits()) {
        config(&edited(CONFIGS[which.index(CONFIGS.len())], &edits));
    }

    #[test]
    fn mutated_headers(edits in edits(), relength in any::<bool>()) {
        let mut file = edited(&HEADER, &edits);
        // A length that fits lets the JSON be reached.
        if relength && let Some((length, rest)) = file.split_first_chunk_mut() {
            *length = (rest.len().saturating_sub(16) as u64).to_le_bytes();
        }
        header(&file);
    }

    #[test]
    fn mutated_indices(edits in edits()) {
        index(&edited(SHARDS, &edits));
    }

    #[test]
    fn mutated_functions(which in any::<prop::sample::Index>(), edits in edits()) {
        functions(&String::from_utf8_lossy(&edited(which.get(&FUNCTIONS[..]).as_bytes(), &edits)));
    }
}
