//! The filter `tojson` of chat templates: Python's `json.dumps` with transformers' defaults.
//!
//! In: a value. Out: its JSON, names in their order, `, ` and `: ` between, characters beyond ASCII as they are.
//! Invariants: what is written is paid for in fuel as it grows; values are no deeper than the environment lets them be.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, State};

use super::jinja::{MAX_NESTED, invalid};

/// Bytes for a unit of fuel.
const BYTES: usize = 16;
/// Most blanks of a level.
const MAX_INDENT: i64 = 64;

/// `tojson(value, ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn to_json(
    state: &State,
    value: &Value,
    ascii: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => match (v.as_str(), v.as_i64()) {
            (Some(text), _) => Some(text.to_string()),
            (None, Some(n)) => Some(" ".repeat(n.clamp(0, MAX_INDENT) as usize)),
            (None, None) => return Err(invalid("indent is neither a number nor a text")),
        },
    };
    let (item, name) = match options.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
        Some(pair) => {
            let part = |i: usize| -> Result<String, Error> {
                let part = pair.get_item_by_index(i)?;
                part.as_str().map(str::to_string).ok_or_else(|| invalid("separators are not two texts"))
            };
            (part(0)?, part(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let named = options.get::<Option<bool>>("ensure_ascii")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let ascii = ascii.or(named).unwrap_or(false);
    let mut writer = Writer { state, out: String::new(), paid: 0, indent, item, name, ascii, sorted };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    out: String,
    /// Bytes of `out` that are paid for.
    paid: usize,
    indent: Option<String>,
    /// Between items.
    item: String,
    /// Between a name and its value.
    name: String,
    /// Whether other characters than ASCII's are escaped.
    ascii: bool,
    /// Whether names are sorted.
    sorted: bool,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 2 * MAX_NESTED {
            return Err(invalid(format!("values nested more than {} deep", 2 * MAX_NESTED)));
        }
        let units = (self.out.len() - self.paid) / BYTES;
        self.paid += units * BYTES;
        self.state.consume_fuel(1 + units as u64)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                // Python's spelling of what JSON does not know.
                let text = value.to_string();
                self.out.push_str(match text.as_str() {
                    "inf" => "Infinity",
                    "-inf" => "-Infinity",
                    other => other,
                });
            }
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut empty = true;
                for item in value.try_iter()?.checked() {
                    self.begin(std::mem::take(&mut empty), depth + 1);
                    self.value(&item?, depth + 1)?;
                }
                self.end(']', empty, depth);
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<Value>, Error>>()?;
                self.state.consume_fuel(keys.len() as u64)?;
                if self.sorted {
                    keys.sort();
                }
                self.out.push('{');
                let mut empty = true;
                for key in keys {
                    self.begin(std::mem::take(&mut empty), depth + 1);
                    match key.kind() {
                        ValueKind::String => self.text(key.as_str().unwrap_or_default()),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            self.out.push('"');
                            self.value(&key, depth + 1)?;
                            self.out.push('"');
                        }
                        other => return Err(invalid(format!("a key of a JSON object is {other}"))),
                    }
                    let name = self.name.clone();
                    self.out.push_str(&name);
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.end('}', empty, depth);
            }
            other => return Err(invalid(format!("{other} is not JSON serializable"))),
        }
        Ok(())
    }

    /// Before an item.
    fn begin(&mut self, first: bool, depth: usize) {
        if !first {
            let item = self.item.clone();
            self.out.push_str(&item);
        }
        self.line(depth);
    }

    fn end(&mut self, close: char, empty: bool, depth: usize) {
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
    }

    /// A new line, where there are lines.
    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}
