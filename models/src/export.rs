//! Checkpoints written: shards, headers, index, configuration; and a model exported in other formats.
//!
//! In: tensors with where their elements come from and what they become. Out: a Hugging Face folder that
//! [`Model::open`] reads. Quantised matrices are U8 tensors (N, row_bytes) as [`mod@crate::quantize`] describes, in
//! shards of at most 5 GB, and `config.json` has `"quantization_config": {"quant_method": "lapidary", "block_size":
//! 32}`. Invariants: bytes do not depend on threads; memory is a few MiB a thread, whatever the model's size; a file
//! has its final name only once all are whole, `config.json` last ([`whole`](lapidary_runtime::file::whole)); tensors
//! lie at multiples of their elements.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lapidary_runtime::file;
use lapidary_runtime::file::safetensors::LENGTH_BYTES;
use lapidary_runtime::file::whole::{Contents, Folder, Refusal};
use lapidary_runtime::text::{chat, tokenizer};
use serde_json::{Map, Value, json};

use crate::checkpoint::{INDEX, SINGLE};
use crate::config::{self, CONFIG};
use crate::dtype::TensorFormat;
use crate::error::{Error, Result};
use crate::gguf::{self, Gguf};
use crate::layout::{EMBEDDING, TensorSpec};
use crate::model::{GENERATION_CONFIG, Model};
use crate::quantize::{self, Matrix, QuantFormat, Sink};
use crate::weight_cache::Files;

/// Bytes of tensors in one shard; transformers' own default.
const SHARD_BYTES: u64 = 5_000_000_000;
/// The tensors of a file start at a multiple of this.
const ALIGN: usize = 64;
/// Files of a folder that describe its text, copied as they are.
const TEXT_FILES: &[&str] = &[
    GENERATION_CONFIG,
    tokenizer::TOKENIZER,
    tokenizer::TOKENIZER_CONFIG,
    chat::CHAT_TEMPLATE,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    gguf::text::TOKENIZER,
];

/// What a checkpoint's matrices become; none leaves them as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatChoice {
    /// Every matrix but the embedding table.
    pub body: Option<TensorFormat>,
    /// The embedding table, which is the head's matrix too.
    pub head: Option<TensorFormat>,
}

impl FormatChoice {
    /// What a tensor that is stored as `from` becomes: norms, and rows that do not divide into blocks, stay.
    pub(crate) fn of(&self, spec: &TensorSpec, from: TensorFormat) -> TensorFormat {
        let format = if spec.name == EMBEDDING { self.head } else { self.body };
        match spec.shape[..] {
            [_, k] => format.filter(|f| f.fits(k)).unwrap_or(from),
            _ => from,
        }
    }
}

/// Where a folder is written.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The folder, made if need be.
    pub dir: &'a Path,
    /// Whether the files of a model that it holds give way, once the new ones are whole; other files stay. Else it must
    /// hold none.
    pub replace: bool,
}

impl<'a> From<&'a Path> for Destination<'a> {
    fn from(dir: &'a Path) -> Destination<'a> {
        Destination { dir, replace: false }
    }
}

impl<'a> From<&'a PathBuf> for Destination<'a> {
    fn from(dir: &'a PathBuf) -> Destination<'a> {
        dir.as_path().into()
    }
}

/// A model's folder, as it is written here or by others.
const CONTENTS: Contents = Contents { shows: shows_a_model, belongs: belongs_to_a_model };

fn shows_a_model(name: &str) -> bool {
    name.ends_with(".safetensors") || name == INDEX || name == CONFIG
}

fn belongs_to_a_model(name: &str) -> bool {
    shows_a_model(name) || TEXT_FILES.contains(&name)
}

/// Writes a model's folder again with its matrices in other formats, on `threads` threads; `progress` is told the bytes
/// of the source done and in all, and ends it by breaking.
///
/// # Errors
/// [`Error::Occupied`] if the folder holds a model that may not be replaced, [`Error::Write`] with the bytes needed if
/// the system refuses, [`Error::File`] for a weight that the format cannot hold or a file that cannot be read,
/// [`Error::Stopped`] if `progress` broke off. No file is left then.
pub fn export<'a>(
    model: &Model,
    destination: impl Into<Destination<'a>>,
    choice: FormatChoice,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let sources = Files::read(model)?;
    let specs = model.config.tensors();
    let mut matrices = Vec::with_capacity(specs.len());
    for spec in &specs {
        let (view, source) = sources.tensor(model, &spec.name)?;
        let to = choice.of(spec, view.format);
        if let TensorFormat::Quant(format) = to
            && QuantFormat::of(format).is_none()
        {
            let expected = "another format for it: folders hold F32, F16, BF16, q8 and q4";
            return Err(Error::tensor(&model.path, &spec.name, expected, to.name()));
        }
        matrices.push(matrix(spec, source, view.format, to));
    }
    let files = text_files(model)?;
    // The file's own words where there is a file: they say more than is computed here.
    let own = if model.path.is_dir() { file::read_if_present(&model.path.join(CONFIG))? } else { None };
    let mut config = match own {
        Some(bytes) => file::fields::json(&model.path.join(CONFIG), &bytes)?,
        None => model.config.to_json(),
    };
    mark(&mut config, &matrices);
    write(destination.into(), &specs, &matrices, &files, &config, threads, progress)
}

/// A tensor to write.
pub(crate) fn matrix<'a>(
    spec: &'a TensorSpec,
    source: quantize::Source<'a>,
    from: TensorFormat,
    to: TensorFormat,
) -> Matrix<'a> {
    let (n, k) = match spec.shape[..] {
        [n, k] => (n, k),
        _ => (1, spec.elements() as usize),
    };
    Matrix { name: &spec.name, source, from, n, k, to, adapters: &[] }
}

/// Says in a configuration whether matrices are quantised, and that the head is the embedding table.
pub(crate) fn mark(config: &mut Value, matrices: &[Matrix<'_>]) {
    let Value::Object(fields) = config else { return };
    // A copy of the embedding table, which an untied model's head may be here, is not written.
    fields.entry("tie_word_embeddings").and_modify(|tied| *tied = json!(true));
    if matrices.iter().any(|m| matches!(m.to, TensorFormat::Quant(_))) {
        fields.insert("quantization_config".into(), config::quantization_config());
    } else {
        fields.shift_remove("quantization_config");
    }
}

/// The files that describe a model's text.
fn text_files(model: &Model) -> Result<Vec<(&'static str, Vec<u8>)>> {
    #[cfg(feature = "tiny")]
    if model.path == Path::new(crate::model::BUILT_IN) {
        use crate::tiny;
        return Ok(vec![
            (GENERATION_CONFIG, tiny::GENERATION_CONFIG.to_vec()),
            (tokenizer::TOKENIZER, tiny::TOKENIZER.to_vec()),
            (tokenizer::TOKENIZER_CONFIG, tiny::TOKENIZER_CONFIG.to_vec()),
        ]);
    }
    if Gguf::is_at(&model.path) {
        let stops = json!({ "eos_token_id": model.stop_tokens });
        let tokenizer = gguf::text::text_only(Gguf::open(&model.path)?.keys());
        let mut files =
            vec![(GENERATION_CONFIG, text(&stops).into_bytes()), (gguf::text::TOKENIZER, tokenizer)];
        if let Some(template) = &model.chat_template {
            files.push((chat::CHAT_TEMPLATE, template.source()?.as_bytes().to_vec()));
        }
        return Ok(files);
    }
    let mut files = Vec::new();
    for &name in TEXT_FILES {
        if let Some(bytes) = file::read_if_present(&model.path.join(name))? {
            files.push((name, bytes));
        }
    }
    Ok(files)
}

/// Writes a folder: tensors, then `files`, then the configuration.
pub(crate) fn write(
    destination: Destination<'_>,
    specs: &[TensorSpec],
    matrices: &[Matrix<'_>],
    files: &[(&str, Vec<u8>)],
    config: &Value,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let shards = shards(specs, matrices);
    let written = shards.iter().map(|s| s.bytes).sum();
    let total = matrices.iter().map(|m| (m.n * m.from.row_bytes(m.k)) as u64).sum();
    let dir = destination.dir;
    let failed = |path: PathBuf, source| Error::Write { path, needed: written, source };
    let refused = |refusal| match refusal {
        Refusal::System(path, source) => failed(path, source),
        Refusal::Occupied(found) => Error::Occupied { path: dir.into(), found },
    };
    let mut folder = Folder::create(dir, CONTENTS, destination.replace).map_err(refused)?;
    let create = |folder: &mut Folder, name: &str, bytes: &[u8]| {
        let path = folder.path(name);
        let made = folder.file(name).and_then(|mut file| file.write_all(bytes).map(|()| file));
        made.map_err(|e| failed(path, e))
    };
    let progress = RefCell::new(progress);
    let mut base = 0;
    for shard in &shards {
        let file = create(&mut folder, &shard.name, &shard.header)?;
        let own: Vec<Matrix<'_>> = shard.tensors.iter().map(|&i| matrices[i]).collect();
        let path = folder.path(&shard.name);
        let sink = Sink::File { path: &path, file: &file, offset: shard.header.len() as u64 };
        let report = |done, _| (*progress.borrow_mut())(base + done, total);
        quantize::stream(&own, sink, threads, &report).map_err(|error| {
            if let Error::Write { path, source, .. } = error { failed(path, source) } else { error }
        })?;
        base += own.iter().map(|m| (m.n * m.from.row_bytes(m.k)) as u64).sum::<u64>();
    }
    if shards.len() > 1 {
        create(&mut folder, INDEX, text(&index(&shards, matrices, written)).as_bytes())?;
    }
    for (name, bytes) in files {
        create(&mut folder, name, bytes)?;
    }
    create(&mut folder, CONFIG, text(config).as_bytes())?;
    folder.finish().map_err(refused)
}

/// One file of tensors.
struct Shard {
    name: String,
    /// Length field, JSON, blanks up to [`ALIGN`].
    header: Vec<u8>,
    /// Numbers of its tensors, in the order of their bytes.
    tensors: Vec<usize>,
    /// Bytes of its tensors.
    bytes: u64,
}

/// Splits the tensors into files, in order; within a file the widest elements come first, so that all are aligned.
fn shards(specs: &[TensorSpec], matrices: &[Matrix<'_>]) -> Vec<Shard> {
    let mut shards: Vec<Shard> = Vec::new();
    for (number, matrix) in matrices.iter().enumerate() {
        let bytes = matrix.bytes() as u64;
        match shards.last_mut() {
            Some(shard) if shard.bytes + bytes <= SHARD_BYTES => {
                shard.tensors.push(number);
                shard.bytes += bytes;
            }
            _ => shards.push(Shard { name: String::new(), header: Vec::new(), tensors: vec![number], bytes }),
        }
    }
    let count = shards.len();
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.name = match count {
            1 => SINGLE.into(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        shard.tensors.sort_by_key(|&i| Reverse(matrices[i].to.alignment()));
        shard.header = header(&shard.tensors, specs, matrices);
    }
    shards
}

fn header(tensors: &[usize], specs: &[TensorSpec], matrices: &[Matrix<'_>]) -> Vec<u8> {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut start = 0;
    for &i in tensors {
        let (spec, to) = (&specs[i], matrices[i].to);
        let end = start + matrices[i].bytes();
        let shape = to.stored_shape(&spec.shape);
        let entry = json!({ "dtype": to.stored_dtype(), "shape": shape, "data_offsets": [start, end] });
        map.insert(spec.name.clone(), entry);
        start = end;
    }
    let mut json = Value::Object(map).to_string();
    let whole = (LENGTH_BYTES + json.len()).next_multiple_of(ALIGN);
    json.extend(std::iter::repeat_n(' ', whole - LENGTH_BYTES - json.len()));
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    header
}

fn index(shards: &[Shard], matrices: &[Matrix<'_>], total: u64) -> Value {
    let mut map = Map::new();
    for shard in shards {
        let mut own = shard.tensors.clone();
        own.sort_unstable();
        map.extend(own.into_iter().map(|i| (matrices[i].name.to_string(), json!(shard.name))));
    }
    json!({ "metadata": { "total_size": total }, "weight_map": map })
}

/// JSON as transformers lays it out.
pub(crate) fn text(value: &Value) -> String {
    format!("{value:#}\n")
}
