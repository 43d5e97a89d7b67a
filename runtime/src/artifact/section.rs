//! Sections: what an artifact's file is made of, by name.

use std::ops::Range;

use crate::file;

use super::signature::SIGNATURE;
use super::{MAX_PROGRAM, MAX_TEXT};

/// Section: the model's configuration, as a folder's `config.json`.
pub const CONFIG: &str = "config.json";
/// Section: the tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// Section: the tokenizer again, as tables that are read in place.
pub const TOKENIZER_TABLES: &str = "tokenizer.tables";
/// Section: the texts of BOS and EOS.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Section: the stop tokens.
pub const GENERATION_CONFIG: &str = "generation_config.json";
/// Section: the chat template.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// First part of the name of sections that only fill.
pub(crate) const PADDING: &str = "padding.";
/// First part of the name of the section that describes a CPU's code, before the CPU's name.
pub(crate) const PROGRAM: &str = "program.";
/// The same of a CPU's code.
pub(crate) const CODE: &str = "code.";
/// The same of a CPU's folded tables.
pub(crate) const CONSTANTS: &str = "constants.";
/// First part of the name of the metadata that hold a section's hash, before the section's name.
pub(super) const HASH: &str = "sha256:";

/// The name of the metadata that hold the name of a function that is no model's.
pub(super) const FUNCTION: &str = "function";

/// A section of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Its element type, as safetensors names it.
    pub dtype: String,
    /// Elements along each axis.
    pub shape: Vec<usize>,
    /// Its bytes within the file.
    pub bytes: Range<usize>,
    /// Its SHA-256, in hexadecimal.
    pub hash: String,
}

impl Section {
    /// The most bytes that it may have: sections that are parsed take more memory than their bytes.
    pub(super) fn most(&self) -> usize {
        match self.name.as_str() {
            CONFIG | TOKENIZER_CONFIG | GENERATION_CONFIG | CHAT_TEMPLATE => MAX_TEXT,
            TOKENIZER => file::LIMIT as usize,
            name if name.starts_with(PROGRAM) => MAX_PROGRAM,
            _ => usize::MAX,
        }
    }

    /// Whether it is a tensor of the model.
    pub fn is_weight(&self) -> bool {
        can_name_weight(&self.name)
    }
}

/// Whether a tensor of this name is no other section.
pub fn can_name_weight(name: &str) -> bool {
    let texts = [CONFIG, TOKENIZER, TOKENIZER_TABLES, TOKENIZER_CONFIG, GENERATION_CONFIG, CHAT_TEMPLATE];
    let parts = [PROGRAM, CODE, CONSTANTS, PADDING];
    !texts.contains(&name) && name != SIGNATURE && !parts.iter().any(|p| name.starts_with(p))
}
