//! The tokenizer by scores: against a slow one, against references of the real vocabulary, and what it refuses.

use std::path::Path;

use lapidary_models::Tokenizer;
use lapidary_models::gguf::container::header;
use lapidary_models::gguf::keys::Keys;
use lapidary_models::gguf::{self, Gguf};
use lapidary_runtime::artifact::Shared;
use lapidary_tests::gguf::{File, kind, list, vocabulary};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::real;

fn open(bytes: &[u8]) -> lapidary_models::Result<Option<Tokenizer>> {
    let path = Path::new("m.gguf");
    let header = header(path, bytes)?;
    gguf::tokenizer(Keys { path, header: &header, file: bytes })
}

fn tokenizer(file: &File) -> Tokenizer {
    open(&file.bytes()).unwrap().unwrap()
}

/// The same once it was written to an artifact and read in place.
fn again(tokenizer: &Tokenizer) -> Tokenizer {
    let special = tokenizer.special_tokens().to_json().to_string();
    let tables = Shared::from_vec(tokenizer.own_tables().unwrap());
    Tokenizer::from_tables(Path::new("m"), tables, Some(special.as_bytes())).unwrap()
}

/// Tokens by the definition, as slowly as it is stated.
struct Slow {
    tokens: Vec<(String, f32, i32)>,
    prefix: bool,
}

impl Slow {
    fn id(&self, text: &str) -> Option<usize> {
        self.tokens.iter().position(|(t, _, _)| t == text)
    }

    /// The parts of a text: the longest special token in it, the leftmost of such, and what is on both sides of it.
    fn cut(&self, text: &str) -> Vec<(String, Option<usize>)> {
        let special = (0..self.tokens.len()).filter(|&id| [2, 3, 4].contains(&self.tokens[id].2));
        let found =
            special.filter_map(|id| Some((self.tokens[id].0.len(), text.find(&self.tokens[id].0)?, id)));
        match found.max_by_key(|(length, at, _)| (*length, std::cmp::Reverse(*at))) {
            None if text.is_empty() => Vec::new(),
            None => vec![(text.into(), None)],
            Some((length, at, id)) => {
                let middle = vec![(text[at..at + length].to_string(), Some(id))];
                [self.cut(&text[..at]), middle, self.cut(&text[at + length..])].concat()
            }
        }
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut begins = true;
        for (part, special) in self.cut(text) {
            match special {
                Some(id) => ids.push(id as u32),
                None => {
                    self.merge(&format!("{}{part}", if begins && self.prefix { " " } else { "" }), &mut ids)
                }
            }
            begins = special.is_some();
        }
        ids
    }

    fn merge(&self, text: &str, ids: &mut Vec<u32>) {
        let mut symbols: Vec<String> = text.replace(' ', "▁").chars().map(String::from).collect();
        loop {
            let score = |i: usize| Some((self.tokens[self.id(&symbols[i..i + 2].concat())?].1, i));
            let pairs = (0..symbols.len().saturating_sub(1)).filter_map(score);
            let best = pairs.reduce(|best, pair| if pair.0 > best.0 { pair } else { best });
            let Some((_, at)) = best else { break };
            let right = symbols.remove(at + 1);
            symbols[at].push_str(&right);
        }
        for symbol in symbols {
            match self.id(&symbol) {
                Some(id) => ids.push(id as u32),
                None => ids.extend(symbol.bytes().map(|b| self.id(&format!("<0x{b:02X}>")).unwrap() as u32)),
            }
        }
    }
}

const TEXTS: &[&str] = &[
    "",
    " ",
    "hello",
    " hello  hello   x",
    "hello\n\n\n\nhello\n",
    "<start_of_turn>hello<end_of_turn>\n<bos><unk>",
    "     ",
    "abcabc",
    "é漢字🙂\0",
    "ß a ▁a",
    "<b>[tag]<b",
    "<0x0A>",
];

#[test]
fn tokens_by_the_definition() {
    for prefix in [false, true] {
        let file = vocabulary().change("tokenizer.ggml.add_space_prefix", Some((7, vec![u8::from(prefix)])));
        let tokenizer = tokenizer(&file);
        let slow = slow(&tokenizer, &file, prefix);
        let again = again(&tokenizer);
        for text in TEXTS {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(ids, slow.encode(text), "{text:?}");
            assert_eq!(again.encode(text, false).unwrap(), ids, "{text:?}");
            assert_eq!(again.decode(&ids), tokenizer.decode(&ids), "{text:?}");
        }
    }
    let t = tokenizer(&vocabulary());
    let pieces = |text: &str| -> Vec<String> {
        t.encode(text, true).unwrap().iter().map(|&id| t.piece(id).unwrap()).collect()
    };
    assert_eq!(pieces(" hello"), ["<bos>", "▁hello"]);
    assert_eq!(pieces("hello    <b>\n\n\n\n"), ["<bos>", "hello", "    ", "<b>", "\n\n\n", "\n"]);
    assert_eq!(pieces("<bos><bos>abc"), ["<bos>", "ab", "c"]);
    assert_eq!(pieces("🙂"), ["<bos>", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]);
    assert_eq!(t.decode(&t.encode("<start_of_turn>hello 🙂\n<b>  x", true).unwrap()), "hello 🙂\n<b>  x");
    assert_eq!((t.bos_id(), t.eos_id(), t.end_of_turn_id()), (2, Some(1), Some(4)));
    assert_eq!(
        (t.bos_token(), t.eos_token(), t.special_tokens().get("pad_token")),
        ("<bos>", "<eos>", Some("<pad>"))
    );
}

#[test]
fn no_bos_where_the_file_says_so() {
    for adds in [false, true] {
        let t = tokenizer(&vocabulary().bool("tokenizer.ggml.add_bos_token", adds));
        assert_eq!(t.encode("hello", true).unwrap()[0] == 2, adds);
        assert_eq!(t.encode("<bos>hello", true).unwrap()[0], 2);
    }
}

/// Without the key a text gets a space before it.
#[test]
fn a_space_comes_first_where_nothing_is_said() {
    let file = vocabulary().change("tokenizer.ggml.add_space_prefix", None);
    let t = tokenizer(&file);
    assert_eq!(
        t.encode("hello", false).unwrap(),
        t.encode(" hello", false).map(|ids| vec![ids[1]]).unwrap_or_default()
    );
}

/// The same tokens, slowly.
fn slow(tokenizer: &Tokenizer, file: &File, prefix: bool) -> Slow {
    let column = |key: &str| {
        let value = &file.keys.iter().find(|(k, _, _)| k == key).unwrap().2[12..];
        value.as_chunks::<4>().0.to_vec()
    };
    let scores = column("tokenizer.ggml.scores").into_iter().map(f32::from_le_bytes);
    let kinds = column("tokenizer.ggml.token_type").into_iter().map(i32::from_le_bytes);
    let tokens =
        scores.zip(kinds).zip(0..).map(|((score, kind), id)| (tokenizer.piece(id).unwrap(), score, kind));
    Slow { tokens: tokens.collect(), prefix }
}

/// Vocabularies of short texts over few characters, whose scores are often equal.
fn random() -> impl Strategy<Value = (File, String)> {
    let token = ("[ab▁é]{1,5}", 0..6i32, prop::sample::select(vec![1, 1, 1, 1, 4, 3, 5]));
    let tokens = prop::collection::btree_map(token.0, (token.1, token.2), 1..40);
    let piece = prop::sample::select(vec!["a", "b", " ", "é", "▁", "aa", "ab", "ba", "c", "<bos>"]);
    (tokens, prop::collection::vec(piece, 0..40)).prop_map(|(tokens, text)| {
        let bytes = (0..=255).map(|b| (format!("<0x{b:02X}>"), -1.0, 6));
        let first = [("<pad>".to_string(), 0.0, 3), ("<eos>".into(), 0.0, 3), ("<bos>".into(), 0.0, 3)];
        let tokens = tokens.into_iter().map(|(text, (score, kind))| (text, score as f32 - 3.0, kind));
        let all: Vec<(String, f32, i32)> = first.into_iter().chain(bytes).chain(tokens).collect();
        let file = File::default()
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", &all.iter().map(|t| &t.0).collect::<Vec<_>>())
            .f32s("tokenizer.ggml.scores", &all.iter().map(|t| t.1).collect::<Vec<_>>())
            .i32s("tokenizer.ggml.token_type", &all.iter().map(|t| t.2).collect::<Vec<_>>())
            .u32("tokenizer.ggml.bos_token_id", 2)
            .bool("tokenizer.ggml.add_space_prefix", false);
        (file, text.concat())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_vocabularies((file, text) in random()) {
        let tokenizer = tokenizer(&file);
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(&ids, &slow(&tokenizer, &file, false).encode(&text), "{:?}", text);
        prop_assert_eq!(again(&tokenizer).encode(&text, false).unwrap(), ids);
    }
}

#[test]
fn vocabularies_that_are_wrong() {
    let refused = |file: File| {
        let error = open(&file.bytes()).err().expect("an error").to_string();
        assert!(error.starts_with("m.gguf: ") && error.len() < 600, "{error}");
        error
    };
    let change = |key: &str, kind: u32, value: Vec<u8>| {
        refused(vocabulary().change(&format!("tokenizer.ggml.{key}"), Some((kind, value))))
    };
    let says = |error: String, words: &[&str]| {
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    };
    let model = |name: &str| change("model", kind::TEXT, lapidary_tests::gguf::text(name.as_bytes()));
    says(model("gpt2"), &["`tokenizer.ggml.model`", "llama", "\"gpt2\""]);
    for key in ["tokens", "scores", "bos_token_id"] {
        let error = refused(vocabulary().change(&format!("tokenizer.ggml.{key}"), None));
        says(error, &[&format!("`tokenizer.ggml.{key}`"), "found nothing"]);
    }
    // Ids beyond the vocabulary.
    for key in ["bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"] {
        for id in [289u32, 1 << 24, u32::MAX] {
            let error = change(key, kind::U32, id.to_le_bytes().to_vec());
            says(error, &[&format!("`tokenizer.ggml.{key}`"), "0 to 288", &id.to_string()]);
        }
        says(change(key, kind::I32, (-1i32).to_le_bytes().to_vec()), &["0 to 288", "-1"]);
    }
    let few = list(kind::F32, &[vec![0; 4], vec![0; 4]]);
    says(change("scores", kind::LIST, few), &["`tokenizer.ggml.scores`", "289 numbers", "2 numbers"]);
    let nan = list(kind::F32, &vec![f32::NAN.to_le_bytes().to_vec(); 289]);
    says(change("scores", kind::LIST, nan), &["`tokenizer.ggml.scores`", "NaN"]);
    let kinds = list(kind::I32, &vec![7i32.to_le_bytes().to_vec(); 289]);
    says(change("token_type", kind::LIST, kinds), &["`tokenizer.ggml.token_type`", "token 0", "1 to 6", "7"]);
    says(change("tokens", kind::LIST, list(kind::I32, &[])), &["`tokenizer.ggml.tokens`", "a list of texts"]);
    let other = |i: usize, text: &[u8]| {
        let mut texts = vec![lapidary_tests::gguf::text(b""); 289];
        for (at, entry) in texts.iter_mut().enumerate() {
            *entry = lapidary_tests::gguf::text(format!("t{at}").as_bytes());
        }
        texts[i] = lapidary_tests::gguf::text(text);
        change("tokens", kind::LIST, list(kind::TEXT, &texts))
    };
    says(other(7, b"t8"), &["one text for the ids 7 and 8"]);
    says(other(7, &[0xff, 0xfe]), &["`tokenizer.ggml.tokens`", "token 7", "UTF-8"]);
    says(other(2, b""), &["BOS", "id 2"]);
    says(other(3, &[b'x'; 300]), &["a special token of 300 bytes"]);
    says(other(200, &[b'x'; 20_000]), &["a token of 20000 bytes"]);
}

/// A hash of ids, as in the references.
fn digits(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Sha256::digest(&bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// The real vocabulary gives the ids of the package `tokenizers` for every text that does not hold `▁` itself.
#[test]
fn the_real_vocabulary_gives_the_ids_of_the_folder() {
    let Some(file) = real::file() else { return };
    let model = Gguf::open(file).unwrap();
    let tokenizer = gguf::tokenizer(model.keys()).unwrap().unwrap();
    let again = again(&tokenizer);
    let texts: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../tokenizers/texts.json")).unwrap();
    let (mut held, mut other) = (0, 0);
    for (value, line) in texts.iter().zip(include_str!("../tokenizers/ids.txt").lines()) {
        let text = match value.as_str() {
            Some(text) => text.to_string(),
            None => value[0].as_str().unwrap().repeat(value[1].as_u64().unwrap() as usize),
        };
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(again.encode(&text, false).unwrap(), ids, "{text:?}");
        // Of the vision half, which this file has no token of.
        if text.contains('▁') || text.contains("<image_soft_token>") {
            other += 1;
            continue;
        }
        let row: Vec<&str> = line.split(' ').collect();
        assert_eq!(digits(&ids), row[2], "{text:?}: {ids:?}");
        held += 1;
    }
    assert!(held >= 1900 && other < held / 5, "{held} and {other} texts");
    assert_eq!(tokenizer.vocab_size(), 262_144);
    assert_eq!(tokenizer.end_of_turn_id(), Some(106));
}
