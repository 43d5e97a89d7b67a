//! Words, marks and quoted text of the rule language, each with its place.

use super::RuleError;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name, a number, a variable.
    Word,
    /// A punctuation mark or sign.
    Mark,
    /// Text in quotes, the quotes not included.
    Quoted,
    /// Behind the last.
    End,
}

/// A token and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) line: usize,
    pub(super) column: usize,
}

/// Marks, longer ones first.
const MARKS: [&str; 19] =
    ["=>", "==", "!=", "<=", ">=", "<", ">", "=", "(", ")", "{", "}", "[", "]", ",", ":", "*", "/", "!"];

/// The error at a place of the source.
pub(super) fn error(source: &str, line: usize, column: usize, reason: String) -> RuleError {
    let source_line = source.lines().nth(line - 1).unwrap_or_default().to_string();
    RuleError { line, column, reason, source_line }
}

/// Splits the text.
pub(super) fn tokens(source: &str) -> Result<Vec<Token<'_>>, RuleError> {
    let mut tokens = Vec::new();
    let (mut line, mut column) = (1, 1);
    let mut at = 0;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if c == '\n' {
            (line, column) = (line + 1, 1);
            at += 1;
            continue;
        }
        if c.is_whitespace() {
            column += 1;
            at += c.len_utf8();
            continue;
        }
        if c == ';' {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        let (kind, from, to, end) = if c == '"' {
            let close = closing_quote(rest)
                .ok_or_else(|| error(source, line, column, "the quote does not end on its line".into()))?;
            (Kind::Quoted, 1, close, close + 1)
        } else if let Some(mark) = MARKS.iter().find(|m| rest.starts_with(**m)) {
            (Kind::Mark, 0, mark.len(), mark.len())
        } else {
            let ends = |c: char| {
                c.is_whitespace() || matches!(c, ';' | '"') || MARKS.iter().any(|m| m.starts_with(c))
            };
            let end = rest.find(ends).unwrap_or(rest.len());
            (Kind::Word, 0, end, end)
        };
        tokens.push(Token { kind, text: &rest[from..to], line, column });
        column += rest[..end].chars().count();
        at += end;
    }
    tokens.push(Token { kind: Kind::End, text: "", line, column });
    Ok(tokens)
}

/// Where the quote that opens the text ends, on its line.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = true;
    for (at, c) in text.char_indices() {
        match c {
            '\n' => return None,
            '"' if !escaped => return Some(at),
            _ => escaped = c == '\\' && !escaped,
        }
    }
    None
}
