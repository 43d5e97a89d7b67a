//! What the files of a checkpoint hold, before it is held against a configuration; and the index of shards.
//!
//! In: the headers of the files. Out: each tensor's place by its name, without what wrappers put into it. Index and
//! shards may disagree: what the shards hold counts, and where two hold a name, the index decides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lapidary_runtime::file;
use lapidary_runtime::file::safetensors::{self, Entry};
use serde_json::Value;

use super::head::is_head;
use super::{INDEX, Source, map};
use crate::error::{self, Error, Result, Warning, list, quote};
use crate::folder;
use crate::layout::{EMBEDDING, TensorSpec};
use crate::names;

/// What the files hold, before it is checked.
#[derive(Default)]
pub(super) struct Found {
    /// File and entry of each tensor, by its name without what wrappers put into it.
    pub(super) tensors: BTreeMap<String, (usize, Entry)>,
    /// Tensors that the index names and no shard holds, and the shard that should.
    pub(super) absent: BTreeMap<String, String>,
}

impl Found {
    /// Takes the tensor of a specification. The embedding table may be there under the name of the head, as programs
    /// keep one name of two that share their memory.
    pub(super) fn take(&mut self, spec: &TensorSpec, prefix: &str, tied: bool) -> Option<(usize, Entry)> {
        let place = self.tensors.remove(&names::under(prefix, &spec.name));
        if place.is_some() || spec.name != EMBEDDING || !tied {
            return place;
        }
        let mut heads = self.tensors.keys().filter(|name| is_head(name));
        let (head, second) = (heads.next().cloned()?, heads.next());
        if second.is_some() { None } else { self.tensors.remove(&head) }
    }

    /// The error for a tensor that is not there.
    pub(super) fn missing(
        &self,
        place: &Path,
        spec: &TensorSpec,
        prefix: &str,
        quants: Option<String>,
    ) -> Error {
        let name = names::under(prefix, &spec.name);
        if let Some(words) = quants {
            return Error::tensor(place, &name, format!("shape {:?}", spec.shape), words);
        }
        if let Some(shard) = self.absent.get(&name) {
            let found = "no such tensor (is the shard of another model?)";
            return Error::tensor(place.join(INDEX), &name, format!("it in {}", quote(shard)), found);
        }
        let adapter = self.tensors.keys().find(|n| n.contains("lora_"));
        let found = match adapter {
            Some(_) => {
                "no such tensor, but those of a LoRA adapter (its base model is the model, \
                 the adapter is given by `--lora`)"
            }
            None => "no such tensor",
        };
        Error::tensor(place, &name, format!("shape {:?}", spec.shape), found)
    }

    /// Words for the format of tensors that another program quantised, by the most telling sign.
    pub(super) fn quants(&self) -> Option<String> {
        let sign = |(name, (_, entry)): (&String, &(usize, Entry))| {
            let (rank, format) = names::quantised(name, &entry.dtype)?;
            Some((rank, names::quants(format, &entry.name)))
        };
        let first = self.tensors.iter().filter_map(sign).min_by_key(|(rank, _)| *rank);
        first.map(|(_, words)| words)
    }

    /// What there is to say of tensors that the index names, no shard holds, and nobody needs.
    pub(super) fn warning(&self, place: &Path) -> Option<Warning> {
        let names: Vec<String> = self.absent.keys().cloned().collect();
        if names.is_empty() {
            return None;
        }
        let message = format!("tensors that no shard holds, and that are not needed: {}", list(&names));
        Some(Warning { path: place.join(INDEX), message })
    }
}

/// Which shard holds each tensor, from the index's bytes; `path` is what errors call it.
///
/// # Errors
/// [`Error::File`] unless it has a `weight_map` of names to plain file names.
pub fn parse_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let refuse = |field: &str, expected: &str, found: String| -> Error {
        let field = error::line(field.escape_debug());
        file::Error::Field { path: path.into(), field, expected: expected.into(), found }.into()
    };
    let index = file::fields::json(path, bytes)?;
    let map = match index.get("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        Some(other) => return Err(refuse("weight_map", "an object of tensors", error::json(other))),
        None => return Err(refuse("weight_map", "an object of tensors", "nothing".into())),
    };
    let mut shards = BTreeMap::new();
    for (tensor, file) in map {
        match file.as_str().filter(|name| is_plain(name)) {
            Some(name) => shards.insert(tensor.clone(), name.to_string()),
            None => {
                let field = format!("weight_map.{tensor}");
                let expected = "the plain name of a .safetensors file in the same folder";
                return Err(refuse(&field, expected, error::json(file)));
            }
        };
    }
    Ok(shards)
}

/// Whether a name leads to a file of the same folder on every system.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| !matches!(c, '/' | '\\' | ':') && !c.is_control();
    name.len() > ".safetensors".len()
        && name.len() < 256
        && name.ends_with(".safetensors")
        && name.chars().all(plain)
}

/// Maps the shards that the index names. As in transformers, what they hold counts; where a name is in two, the index
/// decides.
pub(super) fn open_shards(dir: &Path, index: &BTreeMap<String, String>) -> Result<(Vec<Source>, Found)> {
    let names: BTreeSet<&String> = index.values().collect();
    for name in &names {
        if !file::exists(&dir.join(name))? {
            return Err(folder::lacks_shard(dir, name));
        }
    }
    let (mut sources, mut found): (Vec<Source>, Found) = (Vec::new(), Found::default());
    for shard in names {
        let source = map(dir.join(shard))?;
        for (name, (file, entry)) in collect(&source, sources.len())?.tensors {
            let Some((other, first)) = found.tensors.get(&name) else {
                found.tensors.insert(name, (file, entry));
                continue;
            };
            let twin = &sources[*other];
            let place = index.get(&entry.name);
            let same = first.dtype == entry.dtype
                && first.shape == entry.shape
                && twin.bytes.get()[first.bytes.clone()] == source.bytes.get()[entry.bytes.clone()];
            if place == Some(shard) {
                found.tensors.insert(name, (file, entry));
            } else if !same && place.is_none_or(|p| !twin.path.ends_with(p)) {
                let expected = format!("the values that it has in {}", quote(&twin.path.to_string_lossy()));
                return Err(Error::tensor(&source.path, &entry.name, expected, "others"));
            }
        }
        sources.push(source);
    }
    let held: BTreeSet<&str> = found.tensors.values().map(|(_, e)| e.name.as_str()).collect();
    let absent = index.iter().filter(|(name, _)| !held.contains(name.as_str()));
    let absent = absent.map(|(name, shard)| (names::unwrapped(name), shard.clone())).collect();
    found.absent = absent;
    Ok((sources, found))
}

/// The tensors of one file.
pub(super) fn collect(source: &Source, file: usize) -> Result<Found> {
    let mut found = Found::default();
    for entry in safetensors::read(&source.path, source.bytes.get())? {
        if let Some((_, first)) = found.tensors.get(&names::unwrapped(&entry.name)) {
            let found = format!("it and {}", quote(&first.name));
            return Err(Error::tensor(&source.path, &entry.name, "one tensor of this meaning", found));
        }
        found.tensors.insert(names::unwrapped(&entry.name), (file, entry));
    }
    Ok(found)
}
