//! The environment of chat templates: transformers', on an engine whose work is bounded.
//!
//! In: a template's source. Out: an [`Environment`] that renders it: `trim_blocks`, `lstrip_blocks`, loop controls,
//! `{% generation %}`, Python's methods, `raise_exception`, `strftime_now` and `tojson` as transformers define them.
//! Invariants: what a rendering may do is paid for in fuel, a step or 64 bytes each; no value that outlives an
//! expression is nested deeper than [`MAX_NESTED`], lazy or part of itself, for the engine recurses over values.

use std::ffi::CString;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions};
use minijinja_contrib::pycompat;

use super::json;
use super::source::{self, HELD, KEPT};

/// The template's name within its environment.
pub(super) const NAME: &str = "chat";
/// Levels of lists and dicts within each other.
pub(super) const MAX_NESTED: usize = 40;
/// Levels of macros and blocks, by the engine's count; its stack fits into a thread's of 2 MiB.
const MAX_RECURSION: usize = 200;
/// Values that are looked through for a unit of fuel.
const LOOKED: u64 = 8;
/// Bytes that are looked through for a unit of fuel.
const READ: usize = 64;

/// Compiles a template, or says what is wrong with it.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let source = source::prepare(source).map_err(invalid)?;
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(method);
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("trim", |state: &State, value: &Value, set: Option<&str>| {
        let text = value.to_string();
        state.consume_fuel((text.len().saturating_mul(set.map_or(0, str::len)) / READ) as u64)?;
        Ok::<_, Error>(trim(&text, set, true, true).to_string())
    });
    // Those that compare pay for what they may compare; the engine knows of the count alone.
    environment.add_filter("sort", |state: &State, value: Value, options: Kwargs| {
        pay_for_order(state, &value)?;
        filters::sort(state, value, options)
    });
    environment.add_filter("unique", |state: &State, value: Value, options: Kwargs| {
        pay_for_order(state, &value)?;
        filters::unique(state, value, options)
    });
    environment.add_filter("min", |state: &State, value: Value, options: Kwargs| {
        pay_for_order(state, &value)?;
        filters::min(state, value, options)
    });
    environment.add_filter("max", |state: &State, value: Value, options: Kwargs| {
        pay_for_order(state, &value)?;
        filters::max(state, value, options)
    });
    environment.add_filter("dictsort", |state: &State, value: &Value, options: Kwargs| {
        pay_for_order(state, value)?;
        filters::dictsort(value, options)
    });
    environment.add_filter("groupby", |state: &State, value: Value, by: Option<&str>, options: Kwargs| {
        pay_for_order(state, &value)?;
        filters::groupby(value, by, options)
    });
    environment.add_filter(HELD, |state: &State, value: Value| held(state, &value, 0, false));
    environment.add_filter(KEPT, |state: &State, value: Value| held(state, &value, 0, true));
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Pays for putting a list in order: its texts, made small, are read as often as there are levels of a tree of its
/// items.
fn pay_for_order(state: &State, list: &Value) -> Result<(), Error> {
    /// Bytes that an item costs whatever it is.
    const ITEM: usize = 64;
    /// How often a text is read for one comparison.
    const READS: usize = 4;
    fn bytes(state: &State, value: &Value, depth: usize) -> Result<usize, Error> {
        state.consume_fuel(1)?;
        if let Some(text) = value.as_str() {
            return Ok(READS * text.len());
        }
        if value.as_object().is_none() || depth > MAX_NESTED {
            return Ok(ITEM);
        }
        let mut sum = ITEM;
        for item in value.try_iter()?.checked() {
            let item = item?;
            sum = sum.saturating_add(bytes(state, &item, depth + 1)?);
            if value.kind() == ValueKind::Map {
                sum = sum.saturating_add(bytes(state, &value.get_item(&item)?, depth + 1)?);
            }
        }
        Ok(sum)
    }
    if list.as_object().is_none() {
        return Ok(());
    }
    let levels = list.len().unwrap_or(usize::MAX).max(1).ilog2() as usize + 1;
    state.consume_fuel((bytes(state, list, 0)?.saturating_mul(levels) / READ) as u64)
}

/// Refuses a format whose widths make more than there is to format: Python's method pads before anyone is asked.
fn check_format(format: &str) -> Result<(), Error> {
    /// Digits of a width or a precision.
    const DIGITS: usize = 4;
    let wide = format.split(|c: char| !c.is_ascii_digit()).any(|number| number.len() > DIGITS);
    // A width that is an argument.
    let nested = format.split('{').skip(1).any(|field| field.contains(':') && !field.contains('}'));
    if wide || nested {
        return Err(invalid("a format with a width of more than 9999, or one from an argument"));
    }
    Ok(())
}

/// A value in lists and dicts that are no views of others, bounded in depth; `kept` values hold no namespace, which
/// could come to hold itself.
fn held(state: &State, value: &Value, depth: usize, kept: bool) -> Result<Value, Error> {
    let Some(object) = value.as_object() else { return Ok(value.clone()) };
    if depth > MAX_NESTED {
        return Err(invalid(format!("values nested more than {MAX_NESTED} deep")));
    }
    let mut count = 0u64;
    let mut pay = || -> Result<(), Error> {
        count += 1;
        if count.is_multiple_of(LOOKED) { state.consume_fuel(1) } else { Ok(()) }
    };
    state.consume_fuel(1)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()?.checked() {
                pay()?;
                items.push(held(state, &item?, depth + 1, kept)?);
            }
            Ok(if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
        }
        ValueKind::Map => {
            let is_a = |made: Value| made.as_object().is_some_and(|o| o.type_name() == object.type_name());
            let namespace = is_a(functions::namespace(None)?);
            if namespace && kept {
                return Err(invalid("a namespace within a namespace"));
            }
            if !namespace && !is_a(Value::from_pairs([("", 0)])) {
                return Ok(value.clone());
            }
            let mut pairs = Vec::new();
            for key in value.try_iter()?.checked() {
                pay()?;
                let key = key?;
                let item = held(state, &value.get_item(&key)?, depth + 1, kept)?;
                pairs.push((key, item));
            }
            Ok(if namespace { value.clone() } else { Value::from_pairs(pairs) })
        }
        _ => Ok(value.clone()),
    }
}

/// Python's methods of strings, lists and dicts. Each pays for what it may have to read.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let lengths = args.iter().map(|a| a.as_str().map_or_else(|| a.len().unwrap_or(0), str::len));
    let given = lengths.fold(0usize, usize::saturating_add);
    let text = value.as_str();
    let own = text.map_or_else(|| value.len().unwrap_or(0), str::len);
    let read = match name {
        // Each character may be held against each of the set.
        "strip" | "lstrip" | "rstrip" => own.saturating_mul(given.max(1)),
        _ => own.saturating_add(given),
    };
    state.consume_fuel((read / READ) as u64)?;
    let Some(text) = text else { return pycompat::unknown_method_callback(state, value, name, args) };
    let stripped = |start: bool, end: bool| -> Result<Value, Error> {
        let (set,): (Option<&str>,) = from_args(args)?;
        Ok(trim(text, set, start, end).into())
    };
    match name {
        "strip" => stripped(true, true),
        "lstrip" => stripped(true, false),
        "rstrip" => stripped(false, true),
        "removeprefix" => from_args(args).map(|(s,): (&str,)| text.strip_prefix(s).unwrap_or(text).into()),
        "removesuffix" => from_args(args).map(|(s,): (&str,)| text.strip_suffix(s).unwrap_or(text).into()),
        "format" => {
            check_format(text)?;
            pycompat::unknown_method_callback(state, value, name, args)
        }
        "split" | "rsplit" => split(text, name == "rsplit", args),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// `str.split` and `str.rsplit`.
fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(args)?;
    let (first, second): (Option<Value>, Option<i64>) = from_args(positional)?;
    let separator = match first {
        None => named.get::<Option<Value>>("sep")?,
        some => some,
    };
    let most = match second {
        None => named.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
        Some(n) => n,
    };
    named.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let parts = most.saturating_add(1);
    match separator.filter(|s| !s.is_none()) {
        Some(separator) => {
            let separator =
                separator.as_str().filter(|s| !s.is_empty()).ok_or_else(|| invalid("empty separator"))?;
            if from_end {
                let mut all: Vec<Value> = text.rsplitn(parts, separator).map(Value::from).collect();
                all.reverse();
                return Ok(all.into());
            }
            Ok(text.splitn(parts, separator).map(Value::from).collect())
        }
        None if most == usize::MAX => {
            Ok(text.split(is_space).filter(|s| !s.is_empty()).map(Value::from).collect())
        }
        None => {
            let (mut all, mut rest) = (Vec::new(), trim(text, None, true, true));
            let cut = |rest: &str| if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
            while let Some(at) = cut(rest).filter(|_| all.len() < most) {
                let width = rest[at..].chars().next().map_or(0, char::len_utf8);
                let (left, right) = (&rest[..at], &rest[at + width..]);
                let (part, left_over) = if from_end {
                    (right, trim(left, None, false, true))
                } else {
                    (left, trim(right, None, true, false))
                };
                all.push(Value::from(part));
                rest = left_over;
            }
            if !rest.is_empty() {
                all.push(rest.into());
            }
            if from_end {
                all.reverse();
            }
            Ok(all.into())
        }
    }
}

/// Removes characters of a set from the ends, Python's white space without one.
fn trim<'a>(mut text: &'a str, set: Option<&str>, start: bool, end: bool) -> &'a str {
    let within = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
    if start {
        text = text.trim_start_matches(within);
    }
    if end { text.trim_end_matches(within) } else { text }
}

/// Python's `str.isspace`.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The local time by C's `strftime`, as Python's `datetime.now().strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    /// Bytes of a date. An empty one is told from one that does not fit by the blank before the format.
    const MOST: usize = 4096;
    let pattern = CString::new(format!(" {format}")).map_err(|_| invalid("a format with a NUL character"))?;
    let mut bytes = vec![0u8; MOST];
    // SAFETY: both structs are plain numbers and pointers, for which zero is valid; each call gets a valid pointer, and
    // `strftime` writes at most `MOST` bytes.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut fields: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut fields).is_null() {
            return Err(invalid("the system does not know the time"));
        }
        libc::strftime(bytes.as_mut_ptr().cast(), MOST, pattern.as_ptr(), &fields)
    };
    match bytes.get(1..length) {
        Some(text) => Ok(String::from_utf8_lossy(text).into_owned()),
        None => Err(invalid("a date of more than 4096 bytes")),
    }
}
