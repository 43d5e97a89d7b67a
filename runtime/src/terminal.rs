//! Text for a terminal: what could steer it is written out.
//!
//! In: any text, of a file too. Out: the same with control characters (C0 but line ends and tabs, DEL, C1), and the
//! characters that end a line or turn the direction of text, as Rust escapes them: `\u{1b}`. What is escaped in a
//! message of one line, JSON escapes in its own way: `\u001b`.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character steers a terminal, or makes text read as another.
pub fn steers(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text of any number of lines.
pub fn escape(text: &str) -> Cow<'_, str> {
    written(text, steers, |out, c| out.extend(c.escape_unicode()))
}

/// Whether a character only changes how others are shown: marks of direction, joiners, the byte order mark.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text of one line: line ends and tabs become spaces, and what cannot be seen is written out.
pub fn line(text: &str) -> Cow<'_, str> {
    written(
        text,
        |c| steers(c) || is_invisible(c) || c.is_whitespace() && c != ' ',
        |out, c| match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c => out.extend(c.escape_unicode()),
        },
    )
}

/// JSON: such characters are within its texts alone, where they may be escapes.
pub fn json(text: &str) -> Cow<'_, str> {
    written(text, steers, |out, c| {
        // All of them are of the basic plane: one unit of UTF-16. Writing to a String cannot fail.
        let _ = write!(out, "\\u{:04x}", u32::from(c));
    })
}

fn written(text: &str, which: impl Fn(char) -> bool, write: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(&which) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if which(c) { write(&mut out, c) } else { out.push(c) }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers() {
        let hostile = "a\u{1b}[2Jb\u{9b}31m\rc\u{202e}d\u{7f}\n\te\u{2067}\u{0}";
        for text in [escape(hostile), line(hostile), json(hostile)] {
            assert!(!text.contains(steers), "{text:?}");
        }
        assert_eq!(escape("a\u{1b}[2J\n\tb"), "a\\u{1b}[2J\n\tb");
        assert_eq!(line("a\r\nb\tc\u{2028}d\u{200b}"), "a  b c\\u{2028}d\\u{200b}");
        assert_eq!(json("\"\u{9b}\""), "\"\\u009b\"");
        assert!(matches!(escape("plain ▁ text, é, 日本, 👩\u{200d}👧"), Cow::Borrowed(_)));
        let value: serde_json::Value = serde_json::from_str(&json("\"\u{9b}\u{202e}\"")).expect("JSON");
        assert_eq!(value, "\u{9b}\u{202e}");
    }
}
