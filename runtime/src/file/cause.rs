//! What a file is that is not what it should be: the usual causes, told by its first bytes.
//!
//! In: the bytes of a file (or its first ones). Out: words for the `found` of an [`Error`](super::Error), with what to
//! do about it. Invariant: what [`foreign`] names can be neither JSON nor a template.

use crate::file::error::quote;

/// A UTF-8 byte order mark, which some editors put before a text.
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Beginnings of files that are downloaded or saved in place of a model's, and what they are.
const BEGINNINGS: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer (`git lfs pull` fetches the file itself)",
    ),
    (b"GGUF", "a GGUF file, which is a model by itself"),
    (b"PK\x03\x04", "a ZIP archive (a PyTorch checkpoint, or a download that is still packed)"),
    (b"\x80\x02", "a Python pickle (a PyTorch checkpoint)"),
    (b"\x80\x04", "a Python pickle (a PyTorch checkpoint)"),
    (b"\x80\x05", "a Python pickle (a PyTorch checkpoint)"),
    (b"\x1F\x8B", "a gzip archive, still packed"),
    (b"\x28\xB5\x2F\xFD", "a Zstandard archive, still packed"),
    (b"BZh", "a bzip2 archive, still packed"),
    (b"\xFD7zXZ\0", "an XZ archive, still packed"),
    (b"7z\xBC\xAF\x27\x1C", "a 7z archive, still packed"),
    (b"\x89HDF\r\n", "an HDF5 file (a TensorFlow checkpoint)"),
    (b"\xFF\xFE", "UTF-16 text (expected UTF-8)"),
    (b"\xFE\xFF", "UTF-16 text (expected UTF-8)"),
];

/// Beginnings of pages that servers send in place of a file, in lower case.
const PAGES: &[(&[u8], &str)] = &[
    (b"<!doctype html", "an HTML page (a log-in or error page, saved in place of the file)"),
    (b"<html", "an HTML page (a log-in or error page, saved in place of the file)"),
    (b"<?xml", "an XML page (a server's error, saved in place of the file)"),
];

/// The text without a byte order mark.
pub fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(BOM).unwrap_or(text)
}

/// What a file is that can be no text of a model.
pub fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let beginning = BEGINNINGS.iter().find(|(start, _)| bytes.starts_with(start));
    let text = without_bom(bytes).trim_ascii_start();
    let page = || {
        let begins = |start: &[u8]| text.get(..start.len()).is_some_and(|t| t.eq_ignore_ascii_case(start));
        PAGES.iter().find(|(start, _)| begins(start))
    };
    beginning.or_else(page).map(|(_, what)| *what)
}

/// What a file is that is not the JSON or the safetensors file it should be; nothing if it may be a damaged one.
pub fn of(bytes: &[u8]) -> Option<String> {
    /// Bytes of an answer that is repeated whole.
    const ANSWER: usize = 1000;
    if let Some(what) = foreign(bytes) {
        return Some(what.into());
    }
    let text = without_bom(bytes).trim_ascii();
    if text.is_empty() {
        return Some("an empty file".into());
    }
    if bytes.iter().all(|b| *b == 0) {
        return Some("nothing but zero bytes (a download that was cut off)".into());
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some("a tar archive, still packed".into());
    }
    // UTF-16 without a mark: every other byte of ASCII is zero.
    if matches!(text, [0, b'{', ..] | [b'{', 0, ..]) {
        return Some("UTF-16 text (expected UTF-8)".into());
    }
    // `Entry not found`, `Access to model ... is restricted`: what a hub sends in place of a file.
    let answer = std::str::from_utf8(text).ok().filter(|t| t.len() <= ANSWER);
    let answer = answer.filter(|t| t.starts_with(|c: char| c.is_ascii_alphabetic()) && t.contains(' '));
    answer.map(|t| format!("the text {}", quote(t)))
}
