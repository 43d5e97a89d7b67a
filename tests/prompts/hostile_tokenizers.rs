//! Files `tokenizer.json` that are no Gemma's: each is refused with one line that names what is wrong, in time and
//! memory.

use std::path::Path;
use std::time::{Duration, Instant};

use lapidary_models::Tokenizer;
use serde_json::{Value, json};

use crate::peak;

const TINY: &[u8] = include_bytes!("../../models/data/tiny-gemma2/tokenizer.json");
/// Times the file's size, and a constant: what reading it may hold.
const TIMES: usize = 30;
const BOUND: usize = 32 << 20;

fn open(bytes: &[u8]) -> Result<Tokenizer, String> {
    let start = Instant::now();
    let (result, held) = peak(|| Tokenizer::from_bytes(Path::new("m"), bytes, None));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(held < TIMES * bytes.len() + BOUND, "{held} bytes for {}", bytes.len());
    result.map_err(|e| e.to_string())
}

/// Refused with one line that says this.
#[track_caller]
fn refused(bytes: &[u8], says: &str) {
    let line = open(bytes).err().expect(says);
    assert!(!line.contains(|c: char| c.is_control()) && line.len() < 4096, "{line:?}");
    assert!(line.starts_with("m/tokenizer.json: ") && line.contains(says), "{says}: {line}");
}

fn tiny() -> Value {
    serde_json::from_slice(TINY).unwrap()
}

#[track_caller]
fn changed(says: &str, change: impl FnOnce(&mut Value)) {
    let mut value = tiny();
    change(&mut value);
    refused(value.to_string().as_bytes(), says);
}

#[test]
fn parts_are_those_of_gemma() {
    for normalizer in [
        json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}),
        json!({"type": "Replace", "pattern": {"Regex": "("}, "content": "x"}),
        json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
        json!({"type": "Replace", "pattern": {"String": " "}, "content": "x".repeat(100_000)}),
        json!({"type": "NFKC"}),
        json!({"type": "Lowercase"}),
        json!({"type": "Prepend", "prepend": "▁"}),
        json!({"type": "Precompiled", "precompiled_charsmap": ""}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFD"}]}),
        json!({"type": "Unheard"}),
        json!("Replace"),
        json!([]),
    ] {
        changed("field `normalizer`", |t| t["normalizer"] = normalizer);
    }
    for part in [
        json!({"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Removed", "invert": false}),
        json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": false}),
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Lost", "invert": false}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "Whitespace"}),
        json!({"type": "Sequence", "pretokenizers": []}),
    ] {
        changed("field `pre_tokenizer`", |t| t["pre_tokenizer"] = part);
    }
    for part in [
        json!({"type": "RobertaProcessing"}),
        json!({"type": "Sequence", "processors": [{"type": "x"}]}),
        json!(1),
    ] {
        changed("field `post_processor`", |t| t["post_processor"] = part);
    }
    for part in
        [Value::Null, json!({"type": "Fuse"}), json!({"type": "WordPiece", "prefix": "##", "cleanup": true})]
    {
        changed("field `decoder`", |t| t["decoder"] = part);
    }
    changed("field `version`", |t| t["version"] = json!("2.0"));
    changed("field `model.type`", |t| t["model"]["type"] = json!("WordPiece"));
    changed("field `model.type`", |t| drop(t["model"].as_object_mut().unwrap().remove("type")));
    changed("field `model.dropout`", |t| t["model"]["dropout"] = json!(0.5));
    changed("field `model.continuing_subword_prefix`", |t| {
        t["model"]["continuing_subword_prefix"] = json!("##")
    });
    changed("field `model.end_of_word_suffix`", |t| t["model"]["end_of_word_suffix"] = json!("é"));
    changed("field `model.unk_token`", |t| t["model"]["unk_token"] = json!(7));
    changed("field `model.fuse_unk`", |t| t["model"]["fuse_unk"] = json!("yes"));
    changed("field `model`", |t| drop(t.as_object_mut().unwrap().remove("model")));
    changed("field `model.vocab`", |t| drop(t["model"].as_object_mut().unwrap().remove("vocab")));
    changed("field `model.merges`", |t| drop(t["model"].as_object_mut().unwrap().remove("merges")));
    // Forms that say nothing, or the same.
    for normalizer in [Value::Null, json!({"type": "Sequence", "normalizers": []})] {
        let mut value = tiny();
        value["normalizer"] = normalizer;
        assert!(open(value.to_string().as_bytes()).is_ok());
    }
    let mut value = tiny();
    value["normalizer"] = json!({"type": "Sequence", "normalizers": [value["normalizer"]]});
    value["truncation"] =
        json!({"max_length": 1, "stride": 0, "strategy": "LongestFirst", "direction": "Right"});
    let same = open(value.to_string().as_bytes()).unwrap();
    assert_eq!(same.encode("a b  c", true).unwrap(), open(TINY).unwrap().encode("a b  c", true).unwrap());
}

#[test]
fn fields_come_once() {
    let text = String::from_utf8(TINY.to_vec()).unwrap();
    let decoder = r#","decoder":{"type":"Fuse"}}"#;
    let twice = format!("{}{decoder}", text.trim_end().strip_suffix('}').unwrap());
    refused(twice.as_bytes(), "duplicate field `decoder`");
    let model = text.replacen("\"model\":", "\"model\":{\"type\":\"WordLevel\"},\"model\":", 1);
    refused(model.as_bytes(), "duplicate field `model`");
    let dropout = text.replacen("\"dropout\":", "\"dropout\":0.5,\"dropout\":", 1);
    refused(dropout.as_bytes(), "duplicate field `dropout`");
}

#[test]
fn vocabularies_hold_together() {
    changed("id 7 once", |t| t["model"]["vocab"]["again"] = json!(7));
    changed("ids up to", |t| t["model"]["vocab"]["far"] = json!(16_000_000));
    changed("ids up to", |t| t["model"]["vocab"]["far"] = json!(u32::MAX));
    changed("a tokenizer", |t| t["model"]["vocab"]["far"] = json!(1u64 << 40));
    changed("a tokenizer", |t| t["model"]["vocab"]["less"] = json!(-1));
    changed("an empty one", |t| t["model"]["vocab"][""] = json!(4096));
    changed("a tokenizer", |t| t["model"]["vocab"] = json!([]));
    changed("a tokenizer", |t| t["model"]["merges"] = json!({}));
    changed("a tokenizer", |t| t["model"]["merges"] = json!(["never heard"]));
    changed("a tokenizer", |t| t["model"]["merges"] = json!([["a", "b", "c"]]));
    changed("a tokenizer", |t| t["model"]["merges"] = json!([["\0", "\0"]]));
    changed("the BOS token", |t| {
        t["model"]["vocab"] = json!({});
        t["model"]["merges"] = json!([]);
        t["added_tokens"] = json!([]);
    });
    let token = |id: u64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let add = |t: &mut Value, token| t["added_tokens"].as_array_mut().unwrap().push(token);
    changed("the added token \"far\" as id 5000", |t| add(t, token(5000, "far")));
    changed("the added token \"<bos>\" as id 9", |t| add(t, token(9, "<bos>")));
    changed("ids up to", |t| add(t, token(u64::from(u32::MAX), "far")));
    changed("a tokenizer", |t| add(t, token(1 << 40, "far")));
    changed("field `added_tokens`", |t| add(t, token(4096, "")));
    changed("field `added_tokens`", |t| add(t, token(4096, &"x".repeat(5 << 20))));
    changed("field `added_tokens`", |t| {
        t["added_tokens"] = (0..100_001).map(|i| token(i, "x")).collect();
    });
    // A token of a NUL or of control characters is a token.
    let mut value = tiny();
    add(&mut value, token(4096, "\0\u{1b}[31m"));
    let tokenizer = open(value.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("a\0\u{1b}[31mb", false).unwrap()[1], 4096);
}

#[test]
fn merges_in_circles_end() {
    let vocab = json!({"<bos>": 0, "a": 1, "aa": 2, "aaa": 3, "aaaa": 4, "b": 5, "ab": 6, "ba": 7, "aba": 8});
    let merges = json!([
        ["a", "a"],
        ["aa", "a"],
        ["a", "aa"],
        ["aa", "aa"],
        ["a", "b"],
        ["b", "a"],
        ["ab", "a"],
        ["a", "ba"]
    ]);
    let mut value = tiny();
    value["model"]["vocab"] = vocab;
    value["model"]["merges"] = merges;
    value["model"]["unk_token"] = Value::Null;
    value["added_tokens"] = json!([]);
    let tokenizer = open(value.to_string().as_bytes()).unwrap();
    for text in ["a".repeat(50_000), "ab".repeat(30_000), "aba a".repeat(10_000)] {
        let start = Instant::now();
        tokenizer.encode(&text, true).unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn what_is_no_tokenizer() {
    refused(b"", "an empty file");
    refused(b"\0\0\0\0", "zero bytes");
    refused(b"[]", "a JSON object, found a list");
    refused(b"null", "a JSON object, found null");
    refused("[".repeat(100_000).as_bytes(), "");
    refused(format!("{{\"decoder\":{}", "[".repeat(100_000)).as_bytes(), "");
    refused(format!("{{\"model\":{{\"vocab\":{}", "{\"a\":".repeat(100_000)).as_bytes(), "");
    refused(&TINY[..TINY.len() / 2], "malformed JSON");
    refused(br#"{"version": "\u0000\u001b[31m"}"#, "field `version`");
}
