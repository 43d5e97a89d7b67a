//! What must hold of any bytes, for each kind of input that a user's file can be: one function a kind, driven on stable
//! by `tests/fuzz.rs` for a bounded time and by the targets in `fuzz/` for as long as one likes.
//!
//! In: bytes. Out: nothing; a broken promise is a panic. What is refused is refused with one line of bounded length;
//! what is accepted keeps its type's promises.
#![allow(clippy::unwrap_used)]

use std::fmt::Display;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use lapidary::{Graph, Options};
use lapidary_ir::text::parse_module;
use lapidary_ir::verify::verify;
use lapidary_ir::{DType, Module};
use lapidary_models::checkpoint::parse_index;
use lapidary_models::gguf::keys::Keys;
use lapidary_models::gguf::value::Value;
use lapidary_models::gguf::{self, container};
use lapidary_models::{
    Cache, ChatTemplate, Config, Message, Model, QuantFormat, Quantization, QuantizedWeights, SpecialTokens,
    Tokenizer, WeightDType,
};
use lapidary_passes::check::check_rule;
use lapidary_passes::{Limits, RuleSet, Selection, prepare, rules as passes_rules};
use lapidary_runtime::Artifact;
use lapidary_runtime::file::safetensors;

/// The value, or nothing after an error that is one line of bounded length.
pub fn settled<T, E: Display>(result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.is_empty() && line.len() < 4096, "{} bytes", line.len());
            assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
            None
        }
    }
}

/// What is accepted can be counted, written, read back and built.
pub fn config(bytes: &[u8]) {
    let Some(config) = settled(Config::from_json(Path::new("config.json"), bytes)) else { return };
    config.weight_bytes(WeightDType::F32);
    config.kv_bytes(usize::MAX, usize::MAX, DType::F32);
    config.flops_per_token(usize::MAX);
    assert_eq!(config.tensors().len(), 2 + config.layer_tensors().len() * config.num_hidden_layers);
    let again = Config::from_json(Path::new("again"), config.to_json().to_string().as_bytes()).unwrap();
    assert_eq!(again, config);
    module(&config).functions.iter().for_each(|f| verify(f).unwrap());
}

/// A configuration's functions.
pub fn module(config: &Config) -> Module {
    Graph::of(config, &Options::new(), &|_| DType::BF16).unwrap().module
}

/// What is accepted lies in the file, in order, without overlap.
pub fn header(file: &[u8]) {
    let Some(entries) = settled(safetensors::read(Path::new("model.safetensors"), file)) else { return };
    let mut end = entries.first().map_or(file.len(), |e| e.bytes.start);
    for entry in &entries {
        assert!(entry.bytes.start == end && entry.bytes.end <= file.len());
        end = entry.bytes.end;
    }
    assert_eq!(end, file.len());
}

/// The tensors of a GGUF that is accepted lie in the file, in order; its tokenizer gives some ids, or is refused.
pub fn gguf(file: &[u8]) {
    let path = Path::new("model.gguf");
    let Some(header) = settled(container::header(path, file)) else { return };
    let mut end = 0;
    for tensor in &header.tensors {
        let blocks = tensor.shape.iter().map(|&n| n as u64).product::<u64>() / tensor.kind.block;
        assert_eq!(tensor.bytes.len() as u64, blocks * tensor.kind.bytes);
        assert!(tensor.bytes.start >= end && tensor.bytes.end <= file.len());
        end = tensor.bytes.end;
    }
    let keys = Keys { path, header: &header, file };
    for value in header.keys.values() {
        let Value::List(list) = value else { continue };
        assert_eq!(list.values(file).count().max(list.texts(file).count()), list.count);
    }
    if let Some(Some(tokenizer)) = settled(gguf::tokenizer(keys)) {
        use_tables(&tokenizer);
    }
}

/// What is accepted are names in the same folder.
pub fn index(bytes: &[u8]) {
    let Some(map) = settled(parse_index(Path::new("index"), bytes)) else { return };
    for file in map.values() {
        assert_eq!(Path::new(file).file_name(), Some(file.as_ref()));
    }
}

/// What is accepted prints to what parses to the same.
pub fn functions(text: &str) {
    let Some(module) = settled(parse_module(text)) else { return };
    for function in &module.functions {
        settled(verify(function));
        let printed = function.to_string();
        let again = parse_module(&printed).map(|m| m.functions[0].to_string());
        assert_eq!(again.ok().as_ref(), Some(&printed), "of\n{text}");
    }
}

/// Parses rules; what parses prints as itself, and is checked and applied without a panic.
pub fn rules(text: &str) {
    let parsed = passes_rules::text::parse(text);
    if let Err(error) = &parsed {
        assert_eq!(error.excerpt().split('\n').count(), 2, "{error}");
    }
    let Some(parsed) = settled(parsed) else { return };
    let printed: String = parsed.iter().map(ToString::to_string).collect();
    assert_eq!(passes_rules::text::parse(&printed).as_ref(), Ok(&parsed), "{printed}");
    if parsed.is_empty() {
        return;
    }
    let set = Arc::new(RuleSet::with_user(parsed));
    for prepared in set.prepared().iter().filter(|p| p.group == passes_rules::USER) {
        check_rule(&set, &prepared.rule, 1, 7);
    }
    let selection = Selection::of(set, "user", &[], &[]).unwrap();
    for function in &*SMALL {
        settled(prepare(function, &selection, Limits { iterations: 4, nodes: 400 }));
    }
}

/// Functions that rules are applied to.
static SMALL: LazyLock<Vec<lapidary_ir::Function>> = LazyLock::new(|| {
    let source = "function f(%x: f32[T,8] rows, %w: f32[8] weight, %p: bf16[4,8] weight) {
        n = (mul (mul %x (rsqrt (add (mean (mul %x %x) 1) 1e-6))) (add 1.0 %w))
        y = (matmul n (transpose (cast %p f32) [1,0]))
        return y=(mul (tanh (div y 30.0)) 30.0), s=(softmax y none none online)
    }";
    parse_module(source).unwrap().functions
});

/// A chat template renders, or is refused.
pub fn template(source: &str) {
    let special = SpecialTokens::of(&[("bos_token", "<bos>"), ("eos_token", "<eos>")]);
    let template = ChatTemplate::new(source, &special);
    let chat = [Message::new("user", "Hello, 漢字!\n"), Message::new("assistant", "Hi.")];
    settled(template.render(&chat[..1], true));
    settled(template.render(&chat, false));
}

/// A `tokenizer.json` gives ids of its vocabulary, which are text again; where it can be tables, they give the same.
pub fn tokenizer(bytes: &[u8]) {
    const TEXTS: &[&str] =
        &["", "It is a truth", "<start_of_turn>user\nnaïve 漢字 🙂\0  x<end_of_turn>", "<bos><0x0A>▁▁"];
    let Some(tokenizer) = settled(Tokenizer::from_bytes(Path::new("m"), bytes, None)) else { return };
    let tables = Tokenizer::tables(bytes).map(lapidary_runtime::artifact::Shared::from_vec);
    let mapped = tables.and_then(|t| settled(Tokenizer::from_tables(Path::new("m"), t, None)));
    for text in TEXTS {
        let Some(ids) = settled(tokenizer.encode(text, true)) else { continue };
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        let back = tokenizer.decode(&ids);
        if let Some(mapped) = &mapped {
            assert_eq!(mapped.encode(text, true).unwrap(), ids, "{text:?}");
            assert_eq!(mapped.decode(&ids), back, "{text:?}");
        }
    }
}

/// The tables of a tokenizer, as artifacts hold them, give some ids, or are refused.
pub fn tables(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    Tokenizer::seal(&mut sealed);
    for bytes in [bytes.to_vec(), sealed] {
        let shared = lapidary_runtime::artifact::Shared::from_vec(bytes);
        if let Some(tokenizer) = settled(Tokenizer::from_tables(Path::new("m"), shared, None)) {
            use_tables(&tokenizer);
        }
    }
}

fn use_tables(tokenizer: &Tokenizer) {
    for text in ["", "It is a truth", "<start_of_turn>naïve 漢字 🙂\0  x"] {
        if let Some(ids) = settled(tokenizer.encode(text, true)) {
            tokenizer.decode(&ids);
        }
    }
}

/// An artifact opens with all that it holds, or is refused; its code is not run, for code of the right hash may do
/// anything.
pub fn artifact(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::with_suffix(".lap").unwrap();
    fs::write(file.path(), bytes).unwrap();
    let Some(artifact) = settled(Artifact::open(file.path())) else { return };
    settled(artifact.program(None));
    for cpu in artifact.cpus() {
        settled(artifact.listing(cpu));
    }
    settled(artifact.verify());
    let Some(model) = settled(Model::from_artifact(&artifact)) else { return };
    if let Some(tokenizer) = &model.tokenizer
        && let Some(ids) = settled(tokenizer.encode("<start_of_turn>The naïve 漢字 of\n\n  it.", true))
    {
        tokenizer.decode(&ids);
    }
    if let Some(template) = &model.chat_template {
        settled(template.render(&[Message::new("user", "hi")], true));
    }
}

/// A model with a cache of its own.
struct Cached {
    model: Arc<Model>,
    /// The cache's directory, which lives as long.
    dir: tempfile::TempDir,
    /// The one file in it.
    path: PathBuf,
    /// Tensors as they are without a cache.
    tensors: Vec<(String, Vec<u8>)>,
    /// The file as it was made.
    good: Vec<u8>,
    /// Held by whoever uses the file.
    lock: Mutex<()>,
}

static CACHED: LazyLock<Cached> = LazyLock::new(|| {
    let model = Arc::new(Model::open(crate::golden_folder("gqa-4")).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let weights = cached(&model, None);
    let names = model.config.tensors().into_iter().map(|spec| spec.name);
    let tensors = names.map(|n| (n.clone(), weights.tensor(&n).unwrap().to_vec())).collect();
    cached(&model, Some(dir.path()));
    let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&path).unwrap();
    Cached { model, dir, path, tensors, good, lock: Mutex::new(()) }
});

/// A model's weights in 8 bits.
fn cached(model: &Arc<Model>, dir: Option<&Path>) -> QuantizedWeights {
    let cache = dir.map(|dir| Cache { dir: dir.into(), limit: Cache::LIMIT });
    let format = Some(QuantFormat::Q8.into());
    let options = Quantization { body: format, head: format, adapters: vec![], threads: 1, cache };
    QuantizedWeights::open(model.clone(), &options, &|_, _| ControlFlow::Continue(())).unwrap()
}

/// The bytes of a good file of the cache of weights.
pub fn good_cache_file() -> Vec<u8> {
    CACHED.good.clone()
}

/// Whatever lies where a file of the cache should, the weights are those of the checkpoint.
pub fn cache_file(bytes: &[u8]) {
    let Cached { model, dir, path, tensors, good: _, lock } = &*CACHED;
    let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
    // A new file: one that is mapped is never written to.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
    let weights = cached(model, Some(dir.path()));
    for (name, expected) in tensors {
        assert!(weights.tensor(name) == Some(expected), "{name}");
    }
}

/// The messages of a chat are read, or refused.
pub fn messages(bytes: &[u8]) {
    let Some(messages) = settled(Message::parse(Path::new("messages.json"), bytes)) else { return };
    if let Some(template) = &Model::built_in().unwrap().chat_template {
        settled(template.render(&messages, true));
    }
}
