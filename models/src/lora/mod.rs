//! LoRA adapters, as PEFT saves them: what they add to a model's matrices.
//!
//! In: a folder with `adapter_config.json` and `adapter_model.safetensors`, a factor, and the configuration of the
//! model. Out: an [`Adapter`]: for each matrix (n, k) that it changes, A (r, k) and B (n, r), so that the merged one is
//! W + s B A, with s = factor * alpha / r (rsLoRA: alpha / sqrt r).
//!
//! Sums are made in f32, of all adapters in their order, and rounded once, to what the matrix is held in: the format
//! that is asked for, else the floats that it is stored in. A matrix of quants becomes `q8`: its 4 or 5 bits were
//! chosen with means (importance matrices, mixed formats) that are not here, and to round to as few again would lose
//! much of what the adapter adds, while 8 bits in blocks lose about a hundredth of what Q4_K did, keep products of
//! integers, and cost memory for the matrices that change alone. Kept beside, an adapter would cost each token two more
//! launches a matrix and every fusion that the matrix is part of.
//!
//! Invariants: every tensor of the file is used or the adapter is refused by the tensor's name; what `target_modules`
//! lists by name is there.

mod config;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lapidary_runtime::file::safetensors::{self, Entry};
use lapidary_runtime::file::{self, Map};
use xxhash_rust::xxh3::Xxh3;

use crate::config::Config;
use crate::dtype::WeightDType;
use crate::error::{Error, Result, quote};
use crate::layout::role;
use crate::quantize::decode;
use config::{CONFIG, Settings};

/// The file with A and B.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// An adapter, read.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    /// By the name of the matrix that it is added to.
    matrices: BTreeMap<String, LowRank>,
    /// Of its files' bytes and the factor.
    identity: u128,
}

/// What is added to one matrix: s B A.
#[derive(Debug)]
pub(crate) struct LowRank {
    rank: usize,
    /// Elements of a row of the matrix.
    k: usize,
    scale: f32,
    a: Vec<f32>, // (rank, k)
    b: Vec<f32>, // (n, rank)
}

/// A matrix's tensors on their way.
#[derive(Default)]
struct Pair<'a> {
    a: Option<&'a Entry>,
    b: Option<&'a Entry>,
}

impl Adapter {
    /// Reads an adapter's folder; what it adds is multiplied by `factor`.
    ///
    /// # Errors
    /// [`Error::Missing`] for a folder without its files, [`Error::File`] for a kind of adapter that is not a plain
    /// LoRA, for a matrix that the model does not have or has in another shape, naming the field or the tensor.
    pub fn open(folder: &Path, factor: f64, model: &Config) -> Result<Adapter> {
        for file in [CONFIG, WEIGHTS] {
            if !file::exists(&folder.join(file))? {
                let cause = "; an adapter is a folder as PEFT saves it".into();
                return Err(Error::Missing { path: folder.into(), file: file.into(), cause });
            }
        }
        let text = file::read(&folder.join(CONFIG))?;
        let settings = Settings::read(&folder.join(CONFIG), &text)?;
        let path = folder.join(WEIGHTS);
        let (opened, _) = file::open(&path)?;
        let map = Map::new(&path, &opened).map_err(|source| Error::read(&path, source))?;
        let entries = safetensors::read(&path, &map)?;
        let mut pairs: BTreeMap<String, Pair<'_>> = BTreeMap::new();
        for entry in &entries {
            let (name, is_a) = target(&path, &entry.name)?;
            let pair = pairs.entry(name).or_default();
            let place = if is_a { &mut pair.a } else { &mut pair.b };
            if let Some(first) = place.replace(entry) {
                let found = format!("it and {}", quote(&first.name));
                return Err(Error::tensor(&path, &entry.name, "one tensor of this meaning", found));
            }
        }
        if pairs.is_empty() {
            return Err(Error::file(&path, "tensors lora_A and lora_B", "none"));
        }
        settings.check_targets(&folder.join(CONFIG), pairs.keys().map(String::as_str))?;
        let shapes: BTreeMap<String, Vec<usize>> =
            model.layer_tensors().into_iter().filter(|(_, shape)| shape.len() == 2).collect();
        let mut matrices = BTreeMap::new();
        for (name, pair) in &pairs {
            let shape =
                shapes.get(role(name)).filter(|_| layer(name).is_some_and(|n| n < model.num_hidden_layers));
            let read = Reading { path: &path, bytes: &map, settings: &settings, factor };
            matrices.insert(name.clone(), read.matrix(name, pair, shape)?);
        }
        let mut hash = Xxh3::new();
        for bytes in [&text[..], &map, &factor.to_le_bytes()] {
            hash.update(bytes);
            hash.update(&(bytes.len() as u64).to_le_bytes());
        }
        Ok(Adapter { path: folder.into(), matrices, identity: hash.digest128() })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the matrices that it changes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.matrices.keys().map(String::as_str)
    }

    /// What it adds to a matrix.
    pub(crate) fn of(&self, name: &str) -> Option<&LowRank> {
        self.matrices.get(name)
    }

    /// What tells it from others, and from itself with another factor.
    pub(crate) fn identity(&self) -> u128 {
        self.identity
    }
}

impl LowRank {
    /// Adds it to rows of the matrix, of which the first is `row`; `values` is (rows, k).
    pub(crate) fn add_to(&self, row: usize, values: &mut [f32]) {
        let mut sum = vec![0.0; self.k];
        for (i, values) in values.chunks_exact_mut(self.k).enumerate() {
            sum.fill(0.0);
            let b = &self.b[(row + i) * self.rank..][..self.rank];
            for (b, a) in b.iter().zip(self.a.chunks_exact(self.k)) {
                sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
            }
            values.iter_mut().zip(&sum).for_each(|(x, sum)| *x += self.scale * sum);
        }
    }
}

/// What tensors are read with.
struct Reading<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    settings: &'a Settings,
    factor: f64,
}

impl Reading<'_> {
    /// The pair for a matrix of this shape; none if the model has none of its name.
    fn matrix(&self, name: &str, pair: &Pair<'_>, shape: Option<&Vec<usize>>) -> Result<LowRank> {
        let Pair { a, b } = *pair;
        let (a, b) = match (a, b) {
            (Some(a), Some(b)) => (a, b),
            (Some(one), None) => {
                return Err(Error::tensor(self.path, &one.name, "its lora_B beside it", "none"));
            }
            (None, Some(one)) => {
                return Err(Error::tensor(self.path, &one.name, "its lora_A beside it", "none"));
            }
            (None, None) => unreachable!("a pair begins with one"),
        };
        let Some(shape) = shape else {
            let expected = "an adapter of a matrix of the model's layers";
            return Err(Error::tensor(self.path, &a.name, expected, format!("no matrix {}", quote(name))));
        };
        let (n, k) = (shape[0], shape[1]);
        let (rank, scale) = self.settings.of(name);
        for (entry, expected) in [(a, [rank, k]), (b, [n, rank])] {
            if entry.shape != expected {
                let expected = format!("shape {expected:?} (r {rank}, for a matrix of {shape:?})");
                return Err(Error::tensor(
                    self.path,
                    &entry.name,
                    expected,
                    format!("shape {:?}", entry.shape),
                ));
            }
        }
        let (a, b) = (self.values(a)?, self.values(b)?);
        Ok(LowRank { rank, k, scale: (self.factor * scale) as f32, a, b })
    }

    fn values(&self, entry: &Entry) -> Result<Vec<f32>> {
        let Some(dtype) = WeightDType::from_name(&entry.dtype) else {
            return Err(Error::tensor(self.path, &entry.name, "F32, F16 or BF16", &*entry.dtype));
        };
        let bytes = &self.bytes[entry.bytes.clone()];
        let mut values = vec![0.0; bytes.len() / dtype.bytes()];
        decode(dtype, bytes, &mut values);
        match values.iter().find(|x| !x.is_finite()) {
            None => Ok(values),
            Some(x) => Err(Error::tensor(self.path, &entry.name, "finite values", x.to_string())),
        }
    }
}

/// The matrix that a tensor is for, by the name that it has here, and whether the tensor is A.
fn target(path: &Path, tensor: &str) -> Result<(String, bool)> {
    let refuse = |expected: &str, found: String| Error::tensor(path, tensor, expected, found);
    let module = [("lora_A", true), ("lora_B", false)].into_iter().find_map(|(part, is_a)| {
        let (module, rest) = tensor.split_once(&format!(".{part}."))?;
        (rest == "weight" || rest == "default.weight").then_some((module, is_a))
    });
    let Some((module, is_a)) = module else {
        return Err(refuse("a name that ends in lora_A.weight or lora_B.weight", "another".into()));
    };
    // What stands before the layers is the wrappers', of PEFT and of multimodal models.
    let layers = module.rfind("layers.").filter(|at| *at == 0 || module[..*at].ends_with('.'));
    match layers.filter(|at| !module[..*at].contains("vision")) {
        Some(at) => Ok((format!("model.{}.weight", &module[at..]), is_a)),
        None => Err(refuse("an adapter of a matrix of the text's layers", quote(module))),
    }
}

/// The number of the layer in a matrix's name.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}
