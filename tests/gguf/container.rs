//! The container: what is accepted lies where it says; what is wrong is one line that names file, key or tensor.

use std::path::Path;

use lapidary_models::gguf::Gguf;
use lapidary_models::gguf::container::header;
use lapidary_models::gguf::value::Value;
use lapidary_tests::gguf::{File, kind, list, text};

/// A file with a key of every type and tensors of two.
fn small() -> File {
    let number = |kind: u32, bytes: &[u8]| (kind, bytes.to_vec());
    let scalars = [
        number(0, &[200]),
        number(1, &[200]),
        number(2, &[1, 2]),
        number(3, &[255, 255]),
        number(10, &u64::MAX.to_le_bytes()),
        number(11, &i64::MIN.to_le_bytes()),
        number(12, &0.1f64.to_le_bytes()),
    ];
    let file = scalars.iter().fold(File::default(), |file, (kind, bytes)| {
        file.key(&format!("of.type.{kind}"), *kind, bytes.clone())
    });
    file.u32("general.alignment", 32)
        .text("general.architecture", "gemma2")
        .bool("a.truth", true)
        .f32("a.number", 1.5)
        .texts("some.texts", &["one", "", "three"])
        .i32s("some.integers", &[1, -2, 3])
        .tensor("a.weight", &[32, 3], 8, [7; 102])
        .tensor("b.weight", &[4], 0, [1; 16])
        .tensor("c.weight", &[], 1, [2; 2])
}

/// The one line of a file that is refused.
fn refused(bytes: &[u8]) -> String {
    let error = header(Path::new("m.gguf"), bytes).expect_err("an error").to_string();
    assert!(error.starts_with("m.gguf: ") && error.len() < 600 && !error.contains('\n'), "{error}");
    error
}

/// The refusal of a file whose tensor is another.
fn with_tensor(sizes: &[u64], kind: u32) -> String {
    refused(&File::default().tensor("t.weight", sizes, kind, [0; 64]).bytes())
}

#[track_caller]
fn says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn what_is_there_is_found() {
    for version in [2, 3] {
        let file = File { version, ..small() };
        let bytes = file.bytes();
        let found = header(Path::new("m.gguf"), &bytes).unwrap();
        assert_eq!((found.version, found.keys.len()), (version, 13));
        let integer = |kind: u32| found.keys[&format!("of.type.{kind}")].clone();
        assert_eq!(integer(0), Value::Integer(200));
        assert_eq!(integer(1), Value::Integer(-56));
        assert_eq!(integer(2), Value::Integer(513));
        assert_eq!(integer(3), Value::Integer(-1));
        assert_eq!(integer(10), Value::Integer(u64::MAX.into()));
        assert_eq!(integer(11), Value::Integer(i64::MIN.into()));
        assert_eq!(integer(12), Value::Number(0.1));
        assert_eq!(found.keys["a.truth"], Value::Bool(true));
        assert_eq!(found.keys["a.number"], Value::Number(1.5));
        let (Value::List(texts), Value::List(integers)) =
            (&found.keys["some.texts"], &found.keys["some.integers"])
        else {
            panic!("{:?}", found.keys);
        };
        assert_eq!(texts.texts(&bytes).collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
        assert_eq!(texts.values(&bytes).count() + integers.texts(&bytes).count(), 0);
        let values: Vec<_> = integers.values(&bytes).map(Option::unwrap).collect();
        assert_eq!(values, [1, -2, 3].map(Value::Integer));
        let shapes: Vec<_> =
            found.tensors.iter().map(|t| (t.name.as_str(), t.kind.name, &t.shape[..])).collect();
        let expected: [(&str, &str, &[usize]); 3] =
            [("a.weight", "Q8_0", &[3, 32]), ("b.weight", "F32", &[4]), ("c.weight", "F16", &[])];
        assert_eq!(shapes, expected);
        for (tensor, original) in found.tensors.iter().zip(&file.tensors) {
            assert_eq!(bytes[tensor.bytes.clone()], original.bytes);
            assert!(tensor.bytes.start.is_multiple_of(32));
        }
    }
}

#[test]
fn every_cut_is_refused() {
    let bytes = small().bytes();
    for length in 0..bytes.len() {
        refused(&bytes[..length]);
    }
    says(&refused(&bytes[..bytes.len() - 1]), &["tensor \"c.weight\"", "cut short"]);
    says(&refused(&small().header()[..100]), &["key", "cut short"]);
}

#[test]
fn other_files_are_named() {
    says(&refused(b""), &["a GGUF file"]);
    says(&refused(b"<!DOCTYPE html><html>"), &["HTML"]);
    says(&refused(b"GGML\x01\0\0\0"), &["a GGUF file"]);
    let version = |version: u32| refused(&File { version, ..small() }.bytes());
    says(&version(1), &["version 1", "convert"]);
    says(&version(3 << 24), &["big-endian"]);
    says(&version(2 << 16), &["big-endian"]);
    says(&version(4), &["version 4", "2 or 3"]);
    says(&version(0), &["big-endian"]);
}

#[test]
fn keys_that_are_wrong() {
    let key = |kind: u32, bytes: &[u8]| refused(&File::default().key("a.key", kind, bytes).bytes());
    says(&key(13, &[0; 64]), &["`a.key`", "a type from 0 to 12", "type 13"]);
    says(&key(7, &[2]), &["`a.key`", "0 or 1"]);
    says(&key(kind::LIST, &list(kind::LIST, &[])), &["`a.key`", "a list of lists"]);
    says(&key(kind::LIST, &list(77, &[])), &["`a.key`", "type 77"]);
    says(&refused(&small().u32("a.truth", 1).bytes()), &["`a.truth`", "a second time"]);
    for alignment in [0u32, 3, 48, 1 << 21] {
        let value = Some((kind::U32, alignment.to_le_bytes().to_vec()));
        let error = refused(&small().change("general.alignment", value).bytes());
        says(&error, &["`general.alignment`", "a power of two", &alignment.to_string()]);
    }
    let text = Some((kind::TEXT, text(b"32")));
    says(&refused(&small().change("general.alignment", text).bytes()), &["`general.alignment`", "a text"]);
    let bad = File { keys: vec![("\u{202e}\n".repeat(500), 13, vec![])], ..File::default() };
    says(&refused(&bad.bytes()), &["\\u{202e}"]);
    let long = File { keys: vec![("k".repeat(1 << 16), 0, vec![0])], ..File::default() };
    says(&refused(&long.bytes()), &["key 0", "65535 bytes"]);
}

#[test]
fn tensors_that_are_wrong() {
    let twice = small().tensor("b.weight", &[4], 0, [1; 16]);
    says(&refused(&twice.bytes()), &["tensor \"b.weight\"", "a second of the same name"]);
    says(&with_tensor(&[8], 4), &["tensor \"t.weight\"", "type 4"]);
    says(&with_tensor(&[8], 9999), &["tensor \"t.weight\"", "type 9999"]);
    says(&with_tensor(&[33], 8), &["tensor \"t.weight\"", "a multiple of 32", "33 elements"]);
    let name = File::default().tensor(&"n".repeat(64), &[4], 0, [0; 16]);
    says(&refused(&name.bytes()), &["tensor 0", "63 bytes"]);
    for offset in [0, 16, 33, 64, u64::MAX] {
        let mut file = small();
        file.tensors[1].offset = Some(offset);
        says(&refused(&file.bytes()), &["tensor \"b.weight\"", "offset 128", &format!("offset {offset}")]);
    }
}

/// A name of UTF-8's that is none.
#[test]
fn names_that_are_no_text() {
    let mut bytes = File::default().u32("name", 1).bytes();
    let at = bytes.windows(4).position(|w| w == b"name").unwrap();
    bytes[at] = 0xff;
    says(&refused(&bytes), &["key 0", "UTF-8"]);
}

/// Products of sizes that overflow, or wrap to what seems to fit: CVE-2025-53630, CVE-2026-27940, CVE-2026-33298.
#[test]
fn products_that_overflow() {
    let half = 1u64 << 32;
    for (sizes, kind) in [
        (vec![half, half], 0),
        (vec![half, half, half, half], 0),
        (vec![half, half + 1], 1),
        (vec![1 << 62, 2], 8),
        (vec![1 << 62, 2, 2], 8),
        // Elements fit, bytes wrap to 0, 4 and 64.
        (vec![1 << 62], 0),
        (vec![(1 << 62) + 1], 0),
        (vec![(1 << 62) + 16], 0),
        (vec![u64::MAX], 0),
        (vec![u64::MAX - 31, 1], 8),
        (vec![1 << 63], 1),
        (vec![0, u64::MAX], 0),
    ] {
        says(&with_tensor(&sizes, kind), &["tensor \"t.weight\"", "the file's"]);
    }
}

/// A tensor that is larger than the file: CVE-2026-7482. Sizes that are small once cut to 32 bits: CVE-2026-53923.
#[test]
fn sizes_beyond_the_file() {
    for sizes in [vec![17], vec![1 << 20], vec![(1 << 32) + 4], vec![4, (1 << 32) + 1], vec![1 << 40]] {
        says(&with_tensor(&sizes, 0), &["tensor \"t.weight\""]);
    }
}

/// More axes than an array of them has.
#[test]
fn axes_beyond_four() {
    for axes in [5u32, 1000, u32::MAX] {
        let mut bytes = File::default().tensor("t.weight", &[4], 0, [0; 16]).bytes();
        let at = bytes.windows(8).position(|w| w == b"t.weight").unwrap() + 8;
        bytes[at..at + 4].copy_from_slice(&axes.to_le_bytes());
        says(&refused(&bytes), &["tensor \"t.weight\"", "at most 4 axes", &axes.to_string()]);
    }
}

/// Small files that claim to hold much: nothing is allocated by what they claim.
#[test]
fn claims_of_small_files() {
    let counts = |tensors: u64, keys: u64| {
        let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()];
        [&head.concat()[..], &[0; 136]].concat()
    };
    for many in [1 << 18, 1 << 40, 1 << 63, u64::MAX] {
        says(&refused(&counts(many, 0)), &["tensors", &many.to_string()]);
        says(&refused(&counts(0, many)), &["keys", &many.to_string()]);
    }
    says(&refused(&counts(0, 60_000)), &["m.gguf"]);
    says(&refused(&counts(100_000, 0)), &["m.gguf"]);
    for claimed in [20, 1 << 31, 1 << 40, 1 << 61, 1 << 62, 1 << 63, u64::MAX] {
        let length = |kind: u32| [&kind.to_le_bytes()[..], &u64::to_le_bytes(claimed)].concat();
        for kind in [0u32, 5, 6, 8, 10, 12] {
            // Bytes of a list of 8-byte numbers wrap.
            says(
                &refused(&File::default().key("a.list", kind::LIST, length(kind)).bytes()),
                &["\"a.list\"", "cut"],
            );
        }
        let text = u64::to_le_bytes(claimed).to_vec();
        says(&refused(&File::default().key("a.text", kind::TEXT, text).bytes()), &["\"a.text\"", "cut"]);
    }
}

/// Writes the parts of a model, each of so many tensors.
fn split(dir: &Path, parts: &[(u16, u16, &[&str])], total: i32) {
    for (i, (number, count, tensors)) in parts.iter().enumerate() {
        let file = File::default()
            .key("split.no", 2, number.to_le_bytes())
            .key("split.count", 2, count.to_le_bytes())
            .key("split.tensors.count", kind::I32, total.to_le_bytes());
        let file = tensors.iter().fold(file, |file, name| file.tensor(name, &[4], 0, [i as u8; 16]));
        let name = format!("m-{:05}-of-{:05}.gguf", i + 1, parts.len());
        std::fs::write(dir.join(name), file.bytes()).unwrap();
    }
}

#[test]
fn split_files_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let open = |n: u32| Gguf::open(&dir.path().join(format!("m-{n:05}-of-00003.gguf")));
    let error = |n: u32| open(n).err().expect("an error").to_string();
    let good: [(u16, u16, &[&str]); 3] = [(0, 3, &["a", "b"]), (1, 3, &["c"]), (2, 3, &[])];
    split(dir.path(), &good, 3);
    for given in 1..=3 {
        let model = open(given).unwrap();
        let found: Vec<_> = model.tensors().map(|(part, t)| (part, t.name.as_str())).collect();
        assert_eq!(found, [(0, "a"), (0, "b"), (1, "c")]);
        assert!(model.path().ends_with("m-00001-of-00003.gguf"));
    }
    split(dir.path(), &good, 4);
    says(&error(1), &["`split.tensors.count`", "3, as the parts hold", "found 4"]);
    split(dir.path(), &[good[0], (1, 3, &["b"]), good[2]], 3);
    says(&error(1), &["00002-of-00003", "tensor \"b\"", "in two"]);
    split(dir.path(), &[good[0], (2, 3, &["c"]), good[2]], 3);
    says(&error(1), &["00002-of-00003", "part 2 of 3", "part 3 of 3"]);
    says(&error(2), &["-00003-of-00003.gguf"]);
    split(dir.path(), &[good[0], (1, 2, &["c"]), good[2]], 3);
    says(&error(1), &["part 2 of 3", "part 2 of 2"]);
    split(dir.path(), &[good[0], (7, 3, &["c"]), good[2]], 3);
    says(&error(1), &["`split.no`", "0 to 2", "7"]);
    split(dir.path(), &good, 3);
    std::fs::remove_file(dir.path().join("m-00002-of-00003.gguf")).unwrap();
    says(&error(1), &["m-00002-of-00003.gguf", "is the download complete?"]);
    std::fs::rename(dir.path().join("m-00001-of-00003.gguf"), dir.path().join("x.gguf")).unwrap();
    let renamed = Gguf::open(&dir.path().join("x.gguf")).err().unwrap().to_string();
    says(&renamed, &["-00001-of-00003.gguf", "renamed"]);
}

#[test]
fn a_gguf_is_known_by_name_or_first_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        Gguf::is_at(&dir.path().join(name))
    };
    assert!(write("a.gguf", b"") && write("A.GGUF", b"x") && write("sha256-12", &small().bytes()));
    assert!(!write("b", b"GGU") && !write("c.safetensors", b"x") && !Gguf::is_at(dir.path()));
    assert!(!Gguf::is_at(&dir.path().join("none.gguf")));
}
