//! Lines on stderr: text, or JSON.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use lapidary_runtime::terminal;
use serde_json::{Map, Value};

/// How lines are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    pub(crate) json: bool,
}

impl Log {
    /// A line: what happened, and its fields.
    pub(crate) fn line(self, event: &str, fields: Vec<(&str, Value)>) {
        let line = if self.json {
            let mut object = Map::new();
            object.insert("time".into(), seconds().into());
            object.insert("event".into(), event.into());
            object.extend(fields.into_iter().map(|(name, value)| (name.to_string(), value)));
            Value::Object(object).to_string()
        } else {
            let field = |(name, value): (&str, Value)| match value {
                Value::String(text) => format!(" {name}={}", terminal::line(&text)),
                other => format!(" {name}={other}"),
            };
            format!("{event}{}", fields.into_iter().map(field).collect::<String>())
        };
        // A closed stderr is nobody's business.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

/// Seconds since 1970.
pub(crate) fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
