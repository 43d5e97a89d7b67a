//! The section that describes one CPU's code: JSON of a program whose steps enter the code by offset.
//!
//! In: the section's bytes. Out: a [`Listing`]. [`Listing::check`] bounds what the rest of the runtime trusts: entries
//! lie in the code where functions start, sizes do not overflow, variants rise. Whether slots fit the plan is checked
//! when a session binds them.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::refuse;
use crate::error::Error;
use crate::file::error::line;
use crate::program::{CODE_ALIGN, Function, Image, Plan, Signature, SlotKind, Symbol};

use super::own;

/// The most of anything that is counted in rows, columns, layers or heads.
pub(super) const MOST: usize = 1 << 28;
/// The most layers: many times the largest model's 46.
const MOST_LAYERS: usize = 1 << 10;
/// The most slots of a function, many times a layer's 18: each layer has a word of each.
const MOST_SLOTS: usize = 1 << 8;
/// The most bytes of anything that is allocated at once, and of any product of a slot: 2^46, more than machines
/// address.
const MOST_BYTES: usize = 1 << 46;

/// What was expected, and what is there.
pub(super) type Fault = Option<(String, String)>;

/// What an artifact's functions make up: a model's [`Plan`], or the [`Signature`] of a function that is no model's.
pub trait Planned: Clone + Serialize + DeserializeOwned {
    /// Whether it is a model.
    const IS_MODEL: bool;

    /// The most rows of a call.
    fn rows(&self) -> usize;

    /// What is wrong with it by itself or with its functions, if anything: what was expected, what is there.
    fn fault(&self, functions: &[Function<u64>]) -> Option<(String, String)>;
}

impl Planned for Plan {
    const IS_MODEL: bool = true;

    fn rows(&self) -> usize {
        self.chunk
    }

    fn fault(&self, _: &[Function<u64>]) -> Fault {
        let wrong = |expected: &str, found: String| Some((expected.to_string(), found));
        for (name, n) in
            [("hidden", self.hidden), ("vocab", self.vocab), ("context", self.context), ("chunk", self.chunk)]
        {
            if n == 0 || n > MOST {
                return wrong(&format!("{name} from 1 to {MOST}"), n.to_string());
            }
        }
        if self.layers.len() > MOST_LAYERS {
            return wrong(&format!("at most {MOST_LAYERS} layers"), self.layers.len().to_string());
        }
        if product(&[self.chunk, self.hidden, 4]).is_none() {
            return wrong("a residual stream that can be had", format!("{} x {}", self.chunk, self.hidden));
        }
        None
    }
}

impl Planned for Signature {
    const IS_MODEL: bool = false;

    fn rows(&self) -> usize {
        self.most.rows
    }

    fn fault(&self, functions: &[Function<u64>]) -> Fault {
        own::fault(self, functions)
    }
}

/// One CPU's code, described.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing<P = Plan> {
    /// The CPU, as `--cpu` names it.
    pub cpu: String,
    /// What the CPU must have, by the names of [`crate::cpu`].
    pub features: Vec<String>,
    /// What it is tuned for, a name of [`crate::cpu::TUNINGS`], if that is not what most CPUs are.
    pub tuning: Option<String>,
    /// The CPU whose section holds the code: itself, or one whose code is the same.
    pub code: String,
    /// The same of the folded tables.
    pub tables: String,
    /// How the functions make up the model.
    pub plan: P,
    /// The functions; steps enter the code by offset.
    pub functions: Vec<Function<u64>>,
    /// What lies where in the code.
    pub symbols: Vec<Symbol>,
    /// Bytes of folded tables that the code reads.
    pub constants: usize,
}

impl<P: Planned> Listing<P> {
    /// The description of an image for a CPU, in sections of its own.
    pub fn new(cpu: &str, features: &[String], image: &Image<P>) -> Listing<P> {
        Listing {
            cpu: cpu.into(),
            features: features.to_vec(),
            tuning: None,
            code: cpu.into(),
            tables: cpu.into(),
            plan: image.plan.clone(),
            functions: image.functions.clone(),
            symbols: image.symbols.clone(),
            constants: image.constants.len(),
        }
    }

    /// The section's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // No map with keys that are no text, no number that is not finite: it cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the section.
    pub(super) fn parse(path: &Path, section: &str, bytes: &[u8]) -> Result<Listing<P>, Error> {
        serde_json::from_slice(bytes).map_err(|e| refuse(path, section, "a program", line(e)))
    }

    /// Holds it against `code` bytes of code and `constants` of tables.
    pub(super) fn check(&self, path: &Path, code: usize, constants: usize) -> Result<(), Error> {
        let tables = || {
            let expected = format!("{constants} bytes of constants, as there are");
            (self.constants != constants).then(|| (expected, self.constants.to_string()))
        };
        self.fault(code as u64).or_else(tables).map_or(Ok(()), |(expected, found)| {
            Err(refuse(path, &format!("{}{}", super::PROGRAM, self.cpu), &expected, found))
        })
    }

    /// What is wrong, if anything: what was expected, what is there.
    fn fault(&self, code: u64) -> Fault {
        let wrong = |expected: &str, found: String| Some((expected.to_string(), found));
        let fault = self.plan.fault(&self.functions);
        if fault.is_some() {
            return fault;
        }
        let mut end = 0;
        for symbol in &self.symbols {
            let stop = symbol.offset.checked_add(symbol.bytes);
            if symbol.offset < end || stop.is_none_or(|stop| stop > code) {
                let found = format!("{} bytes at {}", symbol.bytes, symbol.offset);
                return wrong(&format!("symbols that ascend within {code} bytes of code"), found);
            }
            end = symbol.offset + symbol.bytes;
        }
        self.functions.iter().find_map(|f| self.function_fault(f))
    }

    fn function_fault(&self, function: &Function<u64>) -> Fault {
        let wrong = |expected: &str, found: String| {
            Some((format!("function `{}`: {expected}", line(&function.name)), found))
        };
        if function.slots.len() > MOST_SLOTS {
            return wrong(&format!("at most {MOST_SLOTS} slots"), function.slots.len().to_string());
        }
        let most = self.plan.rows();
        for slot in &function.slots {
            let bytes = match slot.kind {
                SlotKind::Input { bytes_per_row } => product(&[bytes_per_row, most]),
                SlotKind::Output { fixed_bytes, bytes_per_row } => {
                    product(&[bytes_per_row, most]).and_then(|b| product(&[b + fixed_bytes.min(MOST_BYTES)]))
                }
                SlotKind::Weight { bytes } => product(&[bytes]),
                SlotKind::Cache { heads, rows, row_bytes, .. } => product(&[heads, rows, row_bytes]),
            };
            if bytes.is_none() {
                return wrong("slots that can be had", format!("`{}`: {:?}", line(&slot.name), slot.kind));
            }
        }
        let mut rows = 0;
        for variant in &function.variants {
            if variant.rows <= rows || variant.rows > MOST {
                return wrong("variants of rising rows", format!("{} after {rows}", variant.rows));
            }
            rows = variant.rows;
            if variant.arena_bytes > MOST_BYTES || variant.scratch_bytes > MOST_BYTES {
                let found = format!("{} and {} bytes", variant.arena_bytes, variant.scratch_bytes);
                return wrong("an arena and scratch that can be had", found);
            }
            for step in &variant.steps {
                let starts = self.symbols.binary_search_by_key(&step.kernel, |s| s.offset).is_ok();
                if !starts || !step.kernel.is_multiple_of(CODE_ALIGN as u64) {
                    return wrong("entries where functions start", format!("offset {}", step.kernel));
                }
                let groups = if step.tiles.rows == 0 { 1 } else { rows };
                if product(&[step.tiles.fixed as usize, groups]).is_none() {
                    return wrong("tiles that can be counted", format!("{:?}", step.tiles));
                }
            }
        }
        None
    }
}

/// A product of sizes that is at most [`MOST_BYTES`].
pub(super) fn product(factors: &[usize]) -> Option<usize> {
    factors.iter().try_fold(1usize, |n, &f| n.checked_mul(f)).filter(|&n| n <= MOST_BYTES)
}
