//! A chat template's source made fit for the engine, before it is parsed.
//!
//! In: a template as it was published. Out: the same with line ends as Jinja reads them, `{% generation %}` blocks as
//! plain scopes, and what `{% set %}` assigns held to a bound ([`HELD`]); or why the engine must not see it.
//! Invariants: lines keep their numbers; no tag has more than [`MAX_TOKENS`] tokens and no `if` chain more than
//! [`MAX_BRANCHES`] branches in all, for the engine's parser and compiler recurse over both.

use std::ops::Range;

/// Bytes of a template: several times the largest published.
const MAX_SOURCE: usize = 256 << 10;
/// Bytes of a line; the engine's own count ends at 65,535.
const MAX_LINE: usize = 60_000;
/// Tokens of one tag. Published ones have fewer than two hundred.
const MAX_TOKENS: usize = 1000;
/// `elif`s of a template.
const MAX_BRANCHES: usize = 400;
/// The filter that bounds what is assigned to a variable.
pub(super) const HELD: &str = "__held";
/// The same for what is assigned to an attribute of a namespace, which outlives loops.
pub(super) const KEPT: &str = "__kept";

/// The source as the engine is given it, or what is wrong with it.
pub(super) fn prepare(source: &str) -> Result<String, String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("{} bytes, more than {MAX_SOURCE}", source.len()));
    }
    if source.split(['\n', '\r']).any(|line| line.len() > MAX_LINE) {
        return Err(format!("a line of more than {MAX_LINE} bytes"));
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let (mut at, mut branches) = (0, 0);
    while let Some((start, kind)) = next_tag(&source, at) {
        out.push_str(&source[at..start]);
        match kind {
            b'#' => {
                at = source[start..].find("#}").map_or(source.len(), |n| start + n + 2);
                out.push_str(&source[start..at]);
            }
            b'%' => {
                let tag = Tag::scan(&source, start, "%}")?;
                at = tag.end;
                match tag.word(&source) {
                    "raw" => {
                        at = end_of_raw(&source, tag.end);
                        out.push_str(&source[start..at]);
                    }
                    "generation" => out.push_str(&tag.renamed(&source, "with")),
                    "endgeneration" => out.push_str(&tag.renamed(&source, "endwith")),
                    "set" => out.push_str(&tag.held(&source)),
                    word => {
                        branches += usize::from(word == "elif");
                        out.push_str(&source[start..at]);
                    }
                }
                if branches > MAX_BRANCHES {
                    return Err(format!("more than {MAX_BRANCHES} branches"));
                }
            }
            _ => {
                at = Tag::scan(&source, start, "}}")?.end;
                out.push_str(&source[start..at]);
            }
        }
    }
    out.push_str(&source[at..]);
    Ok(out)
}

/// Where the next tag or comment begins, and its second character.
fn next_tag(source: &str, from: usize) -> Option<(usize, u8)> {
    let bytes = source.as_bytes();
    let starts = |i: &usize| bytes[*i] == b'{' && matches!(bytes[i + 1], b'{' | b'%' | b'#');
    (from..bytes.len().saturating_sub(1)).find(starts).map(|i| (i, bytes[i + 1]))
}

/// The end of the `{% endraw %}` of a raw block whose first tag ends at `from`; the end of the source without one.
fn end_of_raw(source: &str, mut from: usize) -> usize {
    while let Some(start) = source[from..].find("{%").map(|n| from + n) {
        from = start + 2;
        let inner = source[from..].trim_start_matches(['-', '+']).trim_start();
        if let Some(rest) = inner.strip_prefix("endraw")
            && let Some(end) = rest.trim_start().trim_start_matches(['-', '+']).strip_prefix("%}")
        {
            return source.len() - end.len();
        }
    }
    source.len()
}

/// Where the parts of a tag lie in the source.
struct Tag {
    start: usize,
    end: usize,
    /// The first word.
    word: Range<usize>,
    /// The end of what is before `%}` and its sign.
    inner_end: usize,
    /// The place after the first `=` outside of brackets.
    value: Option<usize>,
}

impl Tag {
    /// The tag that begins at `start` and ends by `close`; the source's end closes it too, and the parser says so.
    fn scan(source: &str, start: usize, close: &str) -> Result<Tag, String> {
        let bytes = source.as_bytes();
        let mut at = start + 2;
        at += usize::from(matches!(bytes.get(at), Some(b'-' | b'+')));
        let mut tag = Tag { start, end: source.len(), word: at..at, inner_end: source.len(), value: None };
        let (mut tokens, mut depth) = (0usize, 0usize);
        while let Some(&byte) = bytes.get(at) {
            if depth == 0 && source[at..].starts_with(close) {
                let signed = matches!(bytes[at - 1], b'-' | b'+') && at > tag.word.end;
                (tag.inner_end, tag.end) = (at - usize::from(signed), at + close.len());
                return Ok(tag);
            }
            let from = at;
            at += match byte {
                b if b.is_ascii_whitespace() => {
                    at += 1;
                    continue;
                }
                b'\'' | b'"' => string_length(&bytes[at..]),
                b if is_word(b) => bytes[at..].iter().take_while(|b| is_word(**b)).count(),
                b'=' if bytes.get(at + 1) == Some(&b'=') => 2,
                b'!' | b'<' | b'>' if bytes.get(at + 1) == Some(&b'=') => 2,
                _ => 1,
            };
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                b'=' if depth == 0 && at == from + 1 && tag.value.is_none() => tag.value = Some(at),
                _ => {}
            }
            if tokens == 0 {
                tag.word = from..at;
            }
            tokens += 1;
            if tokens > MAX_TOKENS {
                let line = source[..start].matches('\n').count() + 1;
                return Err(format!("more than {MAX_TOKENS} tokens in the tag in line {line}"));
            }
        }
        Ok(tag)
    }

    fn word<'a>(&self, source: &'a str) -> &'a str {
        source.get(self.word.clone()).unwrap_or_default()
    }

    /// The tag with another first word.
    fn renamed(&self, source: &str, word: &str) -> String {
        [&source[self.start..self.word.start], word, &source[self.word.end..self.end]].concat()
    }

    /// A `set` whose value goes through a filter that bounds it.
    fn held(&self, source: &str) -> String {
        let Some(value) = self.value.filter(|_| self.end > self.inner_end) else {
            return source[self.start..self.end].into();
        };
        let target = &source[self.word.end..value];
        let filter = if target.contains('.') { KEPT } else { HELD };
        let (head, rest) = (&source[self.start..value], &source[value..self.inner_end]);
        let value = rest.trim_end();
        // Without a value there is nothing to hold; the parser says what is wrong.
        if value.trim().is_empty() {
            return source[self.start..self.end].into();
        }
        let tail = &source[self.inner_end - (rest.len() - value.len())..self.end];
        format!("{head} ({value})|{filter} {tail}")
    }
}

/// Bytes of the string literal at the start.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\\' => at += 1,
            b if b == bytes[0] => break,
            _ => {}
        }
    }
    at.min(bytes.len())
}

/// Whether a byte is part of a name or a number; so are all bytes beyond ASCII, which end no token.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// Whether a template loops over what a message says: else its parts are no list to it.
pub(super) fn loops_over_content(source: &str) -> bool {
    let mut at = 0;
    while let Some((start, _)) = next_tag(source, at) {
        at = start + 2;
        let inner = source[at..].trim_start_matches(['-', '+']).trim_start();
        if let Some(rest) = inner.strip_prefix("for")
            && let Some((tag, _)) = rest.split_once("%}")
            && let Some((_, list)) = tag.split_once(" in ")
            && list.contains("content")
        {
            return true;
        }
    }
    false
}
