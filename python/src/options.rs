//! Keyword arguments as the library's [`Options`].

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use lapidary::{Activations, Choice, Format, KvCache, Notice, Options, Selection};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{of, usage, warn};
use crate::rules::Rules;

/// The names of the options, of models and of functions.
const KNOWN: &[&str] = &[
    "activations",
    "cache",
    "chunk",
    "context",
    "cpu",
    "disable",
    "head_weights",
    "kv_cache",
    "lora",
    "mmap",
    "only",
    "passes",
    "rules",
    "sliding_window",
    "threads",
    "trust",
    "verify",
    "weights",
];

/// The options that keyword arguments ask for; what is `None` is not asked for.
pub(crate) fn options(given: &Bound<'_, PyDict>) -> PyResult<Options> {
    let mut options = Options::new().watch(|notice| {
        if let Notice::Warning(text) = notice {
            warn(text);
        }
        match Python::attach(|py| py.check_signals()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => {
                // Whoever waits for what stops here raises it.
                // SAFETY: it may be called from anywhere.
                unsafe { pyo3::ffi::PyErr_SetInterrupt() };
                ControlFlow::Break(())
            }
        }
    });
    for (name, value) in given.iter().filter(|(_, value)| !value.is_none()) {
        let name: String = name.extract()?;
        let typed = |error: PyErr| usage(format!("option `{name}`: {error}"));
        macro_rules! value {
            () => {
                value.extract().map_err(typed)?
            };
        }
        options = match name.as_str() {
            "activations" => options.activations(choice::<Activations>(&value)?),
            "cache" => options.cache(value!()),
            "chunk" => options.chunk(value!()),
            "context" => options.context(value!()),
            "cpu" => {
                let cpu: String = value!();
                options.cpu(cpu)
            }
            "head_weights" => options.head_weights(choice::<Format>(&value)?),
            "kv_cache" => options.kv_cache(choice::<KvCache>(&value)?),
            "lora" => {
                let folder: PathBuf = value!();
                options.lora(folder, 1.0)
            }
            "mmap" => {
                let mmap: bool = value!();
                options.mmap(mmap)
            }
            "sliding_window" => options.sliding_window(value!()),
            "threads" => options.threads(value!()),
            "trust" => {
                let key: PathBuf = value!();
                options.trust(key)
            }
            "verify" => options.verify(value!()),
            "weights" => options.weights(choice::<Format>(&value)?),
            "disable" | "only" | "passes" | "rules" => options,
            _ => return Err(usage(format!("unknown option `{name}`: expected one of {}", KNOWN.join(", ")))),
        };
    }
    if let Some(selection) = selection(given)? {
        options = options.rules(selection);
    }
    options.check().map_err(of)?;
    Ok(options)
}

fn choice<T: Choice>(value: &Bound<'_, PyAny>) -> PyResult<T> {
    T::parse(&value.extract::<String>()?).map_err(of)
}

/// The rules that keyword arguments choose, if they do.
pub(crate) fn selection(given: &Bound<'_, PyDict>) -> PyResult<Option<Selection>> {
    let item = |name: &str| -> PyResult<Option<Bound<'_, PyAny>>> {
        Ok(given.get_item(name)?.filter(|value| !value.is_none()))
    };
    let names = |name: &str| -> PyResult<Vec<String>> {
        match item(name)? {
            Some(value) => match value.extract::<String>() {
                Ok(one) => Ok(vec![one]),
                Err(_) => value.extract().map_err(|e| usage(format!("option `{name}`: {e}"))),
            },
            None => Ok(Vec::new()),
        }
    };
    let (rules, passes) = (item("rules")?, item("passes")?);
    let (disabled, only) = (names("disable")?, names("only")?);
    if rules.is_none() && passes.is_none() && disabled.is_empty() && only.is_empty() {
        return Ok(None);
    }
    let rules = match rules {
        Some(rules) => Arc::clone(&rules.cast::<Rules>()?.get().rules),
        None => Arc::clone(lapidary::RuleSet::builtin()),
    };
    let passes = match passes {
        Some(passes) => passes.extract::<String>()?,
        None => "all".into(),
    };
    Selection::of(rules, &passes, &disabled, &only).map(Some).map_err(usage)
}
