//! A model's folder or GGUF as a whole, or the built-in model.
//!
//! In: a Hugging Face folder, or a GGUF. Out: a [`Model`]: configuration, mapped weights, and, where there are any,
//! tokenizer and chat template. Invariants: the tokenizer's ids and the stop tokens are rows of the embedding table;
//! the tokenizer and the configuration agree on BOS.

use std::path::{Path, PathBuf};

use lapidary_runtime::file;
use lapidary_runtime::file::fields::Fields;
use lapidary_runtime::text::chat::ChatTemplate;
use lapidary_runtime::text::tokenizer::Tokenizer;

use lapidary_runtime::artifact::{self, Artifact};
use lapidary_runtime::text::{self, Text};

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{Error, Result, Warning};
use crate::folder;
use crate::gguf::{self, Gguf};

/// The file that holds the stop tokens of newer folders. Its defaults of sampling are the caller's business.
pub const GENERATION_CONFIG: &str = "generation_config.json";
/// What errors call the folder of the built-in model.
#[cfg(feature = "tiny")]
pub const BUILT_IN: &str = "<built-in>";

/// Everything a folder holds.
pub struct Model {
    /// The folder or the GGUF, or [`BUILT_IN`].
    pub path: PathBuf,
    /// Its `config.json`, or what a GGUF's keys say.
    pub config: Config,
    /// Its weights.
    pub checkpoint: Checkpoint,
    /// Its tokenizer; without one a model still turns ids into logits.
    pub tokenizer: Option<Tokenizer>,
    /// Its chat template.
    pub chat_template: Option<ChatTemplate>,
    /// The tokens that end a text: those of `generation_config.json` and `config.json`, EOS and `<end_of_turn>`,
    /// ascending.
    pub stop_tokens: Vec<u32>,
    /// What is strange about its files, though they were read: a line each.
    pub warnings: Vec<Warning>,
}

impl Model {
    /// Opens a folder, or a GGUF (of one that is split any file). Its files must not change while the model lives.
    ///
    /// # Errors
    /// [`Error::NotAFolder`], [`Error::Missing`] without configuration or weights, and what the parts refuse.
    pub fn open(dir: impl AsRef<Path>) -> Result<Model> {
        let dir = dir.as_ref();
        if Gguf::is_at(dir) {
            return Model::from_gguf(dir);
        }
        folder::check(dir)?;
        let (config, unknown) = Config::read_folder(dir)?;
        let checkpoint = Checkpoint::open(dir, &config)?;
        let warnings =
            [unknown, checkpoint.warning().cloned(), folder::warning(dir)].into_iter().flatten().collect();
        let tokenizer = tokenizer_of(dir)?;
        let chat_template = match &tokenizer {
            Some(t) => ChatTemplate::from_folder(dir, t.special_tokens())?,
            None => None,
        };
        let generation = file::read_if_present(&dir.join(GENERATION_CONFIG))?;
        let stop_tokens = stop_tokens(dir, generation.as_deref(), &config, tokenizer.as_ref())?;
        Model { path: dir.into(), config, checkpoint, tokenizer, chat_template, stop_tokens, warnings }
            .check()
    }

    /// The model of a GGUF; nothing is converted.
    fn from_gguf(path: &Path) -> Result<Model> {
        let gguf = Gguf::open(path)?;
        let (architecture, config) = gguf.config()?;
        let tokenizer = gguf::tokenizer(gguf.keys())?;
        let chat_template = tokenizer.as_ref().and_then(|t| gguf.chat_template(t.special_tokens()));
        let stop_tokens = text::stop_tokens(config.eos_token_id.clone(), tokenizer.as_ref());
        let checkpoint = Checkpoint::from_gguf(gguf, architecture, &config)?;
        let (path, warnings) = (path.into(), Vec::new());
        Model { path, config, checkpoint, tokenizer, chat_template, stop_tokens, warnings }.check()
    }

    /// The model of an artifact; its checkpoint is absent, for the artifact itself is the source of weights.
    ///
    /// # Errors
    /// What the parts refuse.
    pub fn from_artifact(artifact: &Artifact) -> Result<Model> {
        let path = artifact.path().to_path_buf();
        let Some(bytes) = artifact.section(artifact::CONFIG) else {
            return Err(Error::Missing { path, file: artifact::CONFIG.into(), cause: String::new() });
        };
        let (config, unknown) = Config::read(&path.join(artifact::CONFIG), bytes)?;
        let warnings = Vec::from_iter(unknown);
        let Text { tokenizer, chat_template, stop_tokens } = Text::of(artifact, config.vocab_size)?;
        let checkpoint = Checkpoint::absent();
        Model { path, config, checkpoint, tokenizer, chat_template, stop_tokens, warnings }.check()
    }

    /// The bytes of the tokenizer's own file, if there is one.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read.
    pub fn tokenizer_file(&self) -> Result<Option<Vec<u8>>> {
        #[cfg(feature = "tiny")]
        if self.path == Path::new(BUILT_IN) {
            return Ok(Some(crate::tiny::TOKENIZER.to_vec()));
        }
        if !self.path.is_dir() {
            return Ok(None);
        }
        Ok(file::read_if_present(&self.path.join(crate::tokenizer::TOKENIZER))?)
    }

    /// The model in the binary: tiny-gemma2.
    ///
    /// # Errors
    /// None that a user can cause; as [`Model::open`].
    #[cfg(feature = "tiny")]
    pub fn built_in() -> Result<Model> {
        use crate::tiny;
        let dir = Path::new(BUILT_IN);
        let config = Config::from_json(&dir.join("config.json"), tiny::CONFIG)?;
        let weights = dir.join(crate::checkpoint::SINGLE);
        let checkpoint = Checkpoint::from_static(&weights, tiny::weights(), &config)?;
        let tokenizer = Tokenizer::from_bytes(dir, tiny::TOKENIZER, Some(tiny::TOKENIZER_CONFIG))?;
        let path = dir.join(crate::tokenizer::TOKENIZER_CONFIG);
        let chat_template =
            ChatTemplate::from_config(&path, tiny::TOKENIZER_CONFIG, tokenizer.special_tokens())?;
        let (tokenizer, warnings) = (Some(tokenizer), Vec::new());
        let stop_tokens = stop_tokens(dir, Some(tiny::GENERATION_CONFIG), &config, tokenizer.as_ref())?;
        Model { path: dir.into(), config, checkpoint, tokenizer, chat_template, stop_tokens, warnings }
            .check()
    }

    /// Whether the model was tuned to take turns.
    pub fn is_instruction_tuned(&self) -> bool {
        text::is_instruction_tuned(self.tokenizer.as_ref(), self.chat_template.as_ref())
    }

    /// Holds the tokenizer against the configuration.
    fn check(self) -> Result<Model> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(self) };
        let (ids, rows) = (tokenizer.vocab_size(), self.config.vocab_size);
        if ids > rows {
            let expected = format!("at most {rows} ids, as vocab_size says");
            return Err(Error::file(tokenizer.path(), expected, format!("{ids} ids")));
        }
        if tokenizer.bos_id() != self.config.bos_token_id {
            let expected =
                format!("{} as id {}, as bos_token_id says", tokenizer.bos_token(), self.config.bos_token_id);
            return Err(Error::file(tokenizer.path(), expected, format!("id {}", tokenizer.bos_id())));
        }
        Ok(self)
    }
}

/// The tokenizer of a folder: its `tokenizer.json`, else its `tokenizer.gguf`, as [`export`](crate::export()) writes;
/// nothing where it has neither.
///
/// # Errors
/// What the files' readers refuse.
pub fn tokenizer_of(dir: &Path) -> Result<Option<Tokenizer>> {
    if let Some(tokenizer) = Tokenizer::from_folder(dir)? {
        return Ok(Some(tokenizer));
    }
    let path = dir.join(gguf::text::TOKENIZER);
    if file::exists(&path)? { gguf::tokenizer(Gguf::open(&path)?.keys()) } else { Ok(None) }
}

/// The tokens that end a text, from `generation_config.json`'s bytes, the configuration and the tokenizer.
fn stop_tokens(
    dir: &Path,
    generation: Option<&[u8]>,
    config: &Config,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<u32>> {
    let mut listed = config.eos_token_id.clone();
    if let Some(bytes) = generation {
        let mut fields = Fields::parse(&dir.join(GENERATION_CONFIG), bytes)?;
        listed.extend(fields.tokens("eos_token_id", config.vocab_size as u64 - 1)?.unwrap_or_default());
    }
    Ok(text::stop_tokens(listed, tokenizer))
}
