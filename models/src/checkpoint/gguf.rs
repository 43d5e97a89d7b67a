//! The tensors of a GGUF under the names that folders have for them, as they are stored.
//!
//! In: the mapped files and the configuration that their keys make. Out: a [`Checkpoint`] whose bytes are the files'.
//! Nothing is read but headers, and a head that a file repeats.

use std::collections::{BTreeMap, HashMap};

use lapidary_ir::FormatId;
use lapidary_runtime::file::safetensors::Entry;

use super::{Bytes, Checkpoint, Source, Tensor};
use crate::config::Config;
use crate::dtype::{TensorFormat, WeightDType};
use crate::error::{Error, Result};
use crate::gguf::architecture::{Architecture, EMBEDDING, HEAD};
use crate::gguf::container::Tensor as Stored;
use crate::gguf::types::TensorType;
use crate::gguf::{Gguf, Part};
use crate::layout::TensorSpec;

impl Checkpoint {
    /// The tensors of a GGUF of an architecture and a configuration.
    ///
    /// # Errors
    /// For a tensor that is missing, of another shape, of a form that is not run, or that the model has not.
    pub(crate) fn from_gguf(gguf: Gguf, architecture: &Architecture, config: &Config) -> Result<Checkpoint> {
        let place = gguf.path().to_path_buf();
        let mut files = Vec::new();
        let mut found: HashMap<String, (usize, Stored)> = HashMap::new();
        for (file, Part { path, map, header }) in gguf.into_parts().into_iter().enumerate() {
            let first = header.tensors.first().map_or(map.len(), |t| t.bytes.start);
            found.extend(header.tensors.into_iter().map(|t| (t.name.clone(), (file, t))));
            files.push(Source { path, bytes: Bytes::Mapped(map), header: first });
        }
        let mut tensors = BTreeMap::new();
        for spec in config.tensors() {
            let name = architecture.stored_name(&spec.name);
            let Some((file, stored)) = found.remove(&name) else {
                return Err(Error::tensor(place, &name, format!("shape {:?}", spec.shape), "no such tensor"));
            };
            let format = match format_of(&stored, &spec) {
                Ok(format) => format,
                Err((expected, found)) => {
                    return Err(Error::tensor(&files[file].path, &name, expected, found));
                }
            };
            let Stored { name, kind, shape, bytes } = stored;
            let entry = Entry { name, dtype: kind.name.into(), shape, bytes };
            tensors.insert(spec.name, Tensor { file, format, shape: spec.shape, entry });
        }
        let checkpoint = Checkpoint { files, tensors, warning: None };
        for (name, (file, stored)) in found {
            checkpoint.check_beside(&name, file, &stored)?;
        }
        Ok(checkpoint)
    }

    /// Lets pass a head that repeats the embedding table, which is the head here.
    fn check_beside(&self, name: &str, file: usize, stored: &Stored) -> Result<()> {
        let path = &self.files[file].path;
        if name != HEAD {
            let found = format!("{} {:?}", stored.kind.name, stored.shape);
            return Err(Error::tensor(path, name, "no tensor of this name", found));
        }
        let table = self.tensor(crate::layout::EMBEDDING).map(|table| table.bytes);
        let head = &self.files[file].bytes.get()[stored.bytes.clone()];
        if table == Some(head) {
            return Ok(());
        }
        Err(Error::tensor(path, name, format!("a copy of {EMBEDDING} (they are tied)"), "other bytes"))
    }
}

/// How a tensor is stored that must be this one; else what was expected and what was found.
fn format_of(stored: &Stored, spec: &TensorSpec) -> std::result::Result<TensorFormat, (String, String)> {
    if stored.shape != spec.shape {
        return Err((format!("shape {:?}", spec.shape), format!("shape {:?}", stored.shape)));
    }
    let Some(format) = run(stored.kind) else {
        let formats = lapidary_ir::FORMATS.iter().filter(|f| f.gguf.is_some()).map(|f| f.name.to_uppercase());
        let formats: Vec<String> = formats.collect();
        let expected = format!("a type that is run: F32, F16, BF16, {}", formats.join(", "));
        return Err((expected, stored.kind.name.into()));
    };
    match (format, &spec.shape[..]) {
        (TensorFormat::Quant(_), [_]) => Err(("F32, F16 or BF16 for a norm".into(), stored.kind.name.into())),
        _ if !stored.bytes.start.is_multiple_of(format.alignment()) => {
            let expected = format!("a place in the file that {} divides", format.alignment());
            Err((expected, format!("byte {}", stored.bytes.start)))
        }
        _ => Ok(format),
    }
}

/// The form of tensors that is run for one of a file.
fn run(kind: &TensorType) -> Option<TensorFormat> {
    let float = [(0, WeightDType::F32), (1, WeightDType::F16), (30, WeightDType::BF16)];
    let float = float.iter().find(|(id, _)| *id == kind.id).map(|(_, dtype)| TensorFormat::from(*dtype));
    float.or_else(|| FormatId::from_gguf(kind.id).map(TensorFormat::Quant))
}
