//! `adapter_config.json`: what is understood, what changes nothing, and what makes another kind of adapter of it.

use std::path::Path;

use lapidary_runtime::file::fields::{self, Fields};
use serde_json::Value;

use crate::error::Result;

/// The file.
pub(super) const CONFIG: &str = "adapter_config.json";
/// The most ranks: as many as the widest matrix has rows.
const MOST_RANKS: u64 = 1 << 16;

/// Fields that make what is trained, or how it is applied, something else than W + s B A.
const OTHER_KINDS: [&str; 13] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "megatron_config",
    "velora_config",
];
/// What A and B were before training, where that leaves W as it is.
const STARTS: [&str; 4] = ["gaussian", "eva", "orthogonal", "lora_ga"];

/// What is to be known of an adapter.
pub(super) struct Settings {
    rank: usize,
    alpha: f64,
    rslora: bool,
    /// Names of modules with a rank or an alpha of their own.
    ranks: Vec<(String, usize)>,
    alphas: Vec<(String, f64)>,
    /// The modules by name; none where they are told by a pattern.
    targets: Option<Vec<String>>,
}

impl Settings {
    pub(super) fn read(path: &Path, text: &[u8]) -> Result<Settings> {
        let mut f = Fields::parse(path, text)?;
        let kind = f.take("peft_type");
        if kind.as_ref().and_then(Value::as_str) != Some("LORA") {
            return Err(f.refuse("peft_type", "\"LORA\"", &kind.unwrap_or_default()).into());
        }
        f.only("bias", "none".into())?;
        for name in OTHER_KINDS {
            match f.take(name) {
                Some(value) if !fields::is_off(&value) => {
                    return Err(f.refuse(name, "nothing: a plain LoRA", &value).into());
                }
                _ => {}
            }
        }
        if let Some(start) = f.take("init_lora_weights").filter(|s| !s.is_boolean()) {
            let known = start.as_str().is_some_and(|s| STARTS.contains(&s));
            if !known {
                let expected = "a start that leaves the base model as it is, such as true";
                return Err(f.refuse("init_lora_weights", expected, &start).into());
            }
        }
        let rank = f.integer("r", 1, MOST_RANKS)? as usize;
        let alpha = f.optional_positive("lora_alpha")?.unwrap_or(8.0);
        let rslora = match f.take("use_rslora") {
            None => false,
            Some(Value::Bool(yes)) => yes,
            Some(other) => return Err(f.refuse("use_rslora", "true or false", &other).into()),
        };
        let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
        if let Some(mut pattern) = f.object("rank_pattern")? {
            for name in pattern.names() {
                ranks.push((plain(&pattern, &name)?, pattern.integer(&name, 1, MOST_RANKS)? as usize));
            }
        }
        if let Some(mut pattern) = f.object("alpha_pattern")? {
            for name in pattern.names() {
                alphas.push((plain(&pattern, &name)?, pattern.positive(&name)?));
            }
        }
        let targets = match f.take("target_modules") {
            // A pattern, or `all-linear`: the tensors say what it met.
            None | Some(Value::String(_)) => None,
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
                Some(list.iter().filter_map(Value::as_str).map(Into::into).collect())
            }
            Some(other) => return Err(f.refuse("target_modules", "a list of names", &other).into()),
        };
        Ok(Settings { rank, alpha, rslora, ranks, alphas, targets })
    }

    /// Rank and scale of the matrix of a name.
    pub(super) fn of(&self, matrix: &str) -> (usize, f64) {
        let rank = self.ranks.iter().find(|(name, _)| ends_in(matrix, name)).map_or(self.rank, |(_, r)| *r);
        let alpha =
            self.alphas.iter().find(|(name, _)| ends_in(matrix, name)).map_or(self.alpha, |(_, a)| *a);
        (rank, alpha / if self.rslora { (rank as f64).sqrt() } else { rank as f64 })
    }

    /// Holds the modules that are listed against the matrices that there are tensors of.
    pub(super) fn check_targets<'a>(
        &self,
        path: &Path,
        matrices: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<()> {
        let Some(targets) = &self.targets else { return Ok(()) };
        let refuse = |found: String, expected: String| {
            Err(fields::refused(path, "target_modules", &expected, found).into())
        };
        for target in targets {
            if !matrices.clone().any(|matrix| ends_in(matrix, target)) {
                return refuse(
                    Value::from(target.as_str()).to_string(),
                    "modules that there are tensors of".into(),
                );
            }
        }
        let listed = |matrix: &&str| targets.iter().any(|target| ends_in(matrix, target));
        match matrices.clone().find(|matrix| !listed(matrix)) {
            None => Ok(()),
            Some(matrix) => {
                let expected = format!("a module of {matrix}, which there are tensors of");
                refuse(Value::from(targets.clone()).to_string(), expected)
            }
        }
    }
}

/// A key of a pattern that is a name: PEFT takes them for regular expressions.
fn plain(fields: &Fields, name: &str) -> Result<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    match name.chars().all(is_plain) {
        true => Ok(name.into()),
        false => Err(fields.refuse(name, "the name of a module", &Value::from(name)).into()),
    }
}

/// Whether a matrix's module has this name, or one that ends in it.
fn ends_in(matrix: &str, name: &str) -> bool {
    let module = matrix.strip_suffix(".weight").unwrap_or(matrix);
    // Names of a multimodal model's, or with a wrapper's prefix.
    let name = name.rfind("layers.").map_or(name, |at| &name[at..]);
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
