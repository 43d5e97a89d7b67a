//! Text to token ids and back, by a folder's `tokenizer.json`.
//!
//! In: text; special tokens written out in it (`<start_of_turn>`) are parsed. Out: ids, with the BOS token exactly once where
//! it is asked for. Invariants: the file has a BOS token; its decoder is Gemma's (`▁` to space, bytes, joined), which is what
//! [`Detokenizer`] does; [`Tokenizer::decode`] and a stream give the same text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use super::bpe::Bpe;
use super::detokenizer::{Detokenizer, Piece, Pieces};
use crate::artifact::Shared;
use crate::file;
use crate::file::error::{self, Error, Result, quote};
use crate::file::fields::Fields;

/// The file that holds the vocabulary.
pub const TOKENIZER: &str = "tokenizer.json";
/// The file that names the special tokens, and in older folders holds the chat template.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The section of an artifact that holds the tokenizer as tables.
pub const TABLES: &str = crate::artifact::TOKENIZER_TABLES;
/// The token that ends a turn of a chat.
pub const END_OF_TURN: &str = "<end_of_turn>";

/// Gemma's BOS and EOS, for a folder that does not name them.
const BOS: &str = "<bos>";
const EOS: &str = "<eos>";
/// The largest id that is believed: as the largest vocabulary of a configuration.
const MAX_ID: u32 = 1 << 24;

/// What finds tokens.
enum Inner {
    /// The crate's own, from a whole `tokenizer.json`.
    Whole(Box<tokenizers::Tokenizer>),
    /// The same around tables that are read in place.
    Mapped(Box<Mapped>),
}

/// The crate's tokenizer, its model ours.
type Mapped =
    TokenizerImpl<Bpe, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A tokenizer.
pub struct Tokenizer {
    path: PathBuf,
    inner: Inner,
    pieces: Pieces,
    bos: (String, u32),
    eos: (String, Option<u32>),
}

impl Tokenizer {
    /// The tokenizer of a folder, or nothing where it has none.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`], and [`Error::Read`].
    pub fn from_folder(dir: &Path) -> Result<Option<Tokenizer>> {
        let Some(tokenizer) = file::read_if_present(&dir.join(TOKENIZER))? else { return Ok(None) };
        let config = file::read_if_present(&dir.join(TOKENIZER_CONFIG))?;
        Tokenizer::from_bytes(dir, &tokenizer, config.as_deref()).map(Some)
    }

    /// The tokenizer in the bytes of `tokenizer.json` and, if there is one, `tokenizer_config.json`; errors say they lie in
    /// `dir`.
    ///
    /// # Errors
    /// [`Error::File`] for a malformed file or one without its BOS token, [`Error::Field`] for a decoder that is not Gemma's.
    pub fn from_bytes(dir: &Path, tokenizer: &[u8], config: Option<&[u8]>) -> Result<Tokenizer> {
        let path = dir.join(TOKENIZER);
        check_decoder(&path, tokenizer)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer)
            .map_err(|e| Error::file(&path, "a tokenizer", error::line(e)))?;
        // Lengths are the caller's business: nothing is cut or filled here.
        inner.with_truncation(None).map_err(|e| Error::file(&path, "a tokenizer", error::line(e)))?;
        inner.with_padding(None);
        let pieces = Pieces::Listed(pieces(&path, &inner)?);
        Tokenizer::with(dir, Inner::Whole(Box::new(inner)), pieces, config)
    }

    /// The tables that [`Tokenizer::from_tables`] reads, of the bytes of a `tokenizer.json`; nothing for a tokenizer that
    /// they cannot hold, or do not give the same tokens for.
    pub fn tables(tokenizer: &[u8]) -> Option<Vec<u8>> {
        /// Every so many tokens one is held against the crate's.
        const EVERY: usize = 61;
        let tables = Bpe::tables(tokenizer)?;
        let dir = Path::new("");
        let whole = Tokenizer::from_bytes(dir, tokenizer, None).ok()?;
        let mapped = Tokenizer::from_tables(dir, Shared::from_vec(tables.clone()), None).ok()?;
        let ids = (0..whole.vocab_size() as u32).step_by(EVERY);
        let texts = ids.map(|id| whole.decode(&[id, id / 2, id / 3]));
        let same = |text: String| match (whole.encode(&text, true), mapped.encode(&text, true)) {
            (Ok(a), Ok(b)) => a == b && whole.decode(&a) == mapped.decode(&a),
            (a, b) => a.is_err() && b.is_err(),
        };
        (whole.vocab_size() == mapped.vocab_size() && texts.into_iter().all(same)).then_some(tables)
    }

    /// The tokenizer in tables, which are read in place, and `tokenizer_config.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`].
    pub fn from_tables(dir: &Path, tables: Shared, config: Option<&[u8]>) -> Result<Tokenizer> {
        let path = dir.join(TABLES);
        let refuse = |found: String| Error::file(&path, "a tokenizer's tables", found);
        let bpe = Bpe::new(tables).map_err(refuse)?;
        check_decoder(&path, bpe.json())?;
        let mut fields = Fields::parse(&path, bpe.json())?;
        let mut part = |name: &str| fields.take(name).unwrap_or(Value::Null);
        let malformed = |e: serde_json::Error| refuse(error::line(e));
        let mut inner = Mapped::new(bpe.clone());
        let normalizer: Option<NormalizerWrapper> =
            serde_json::from_value(part("normalizer")).map_err(malformed)?;
        inner.with_normalizer(normalizer).map_err(|e| refuse(error::line(e)))?;
        let split: Option<PreTokenizerWrapper> =
            serde_json::from_value(part("pre_tokenizer")).map_err(malformed)?;
        inner.with_pre_tokenizer(split);
        let post: Option<PostProcessorWrapper> =
            serde_json::from_value(part("post_processor")).map_err(malformed)?;
        inner.with_post_processor(post);
        let added: Option<Vec<AddedToken>> =
            serde_json::from_value(part("added_tokens")).map_err(malformed)?;
        inner.add_tokens(added.unwrap_or_default()).map_err(|e| refuse(error::line(e)))?;
        let added: HashMap<u32, Piece> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, t)| (id, if t.special { Piece::Nothing } else { Piece::of(&t.content) }))
            .collect();
        let ids = added.keys().map(|&id| id as usize + 1).max().unwrap_or(0).max(bpe.ids());
        let pieces = Pieces::Mapped(bpe, Arc::new(added), ids);
        Tokenizer::with(dir, Inner::Mapped(Box::new(inner)), pieces, config)
    }

    fn with(dir: &Path, inner: Inner, pieces: Pieces, config: Option<&[u8]>) -> Result<Tokenizer> {
        let path = dir.join(TOKENIZER);
        let (mut bos, mut eos) = (BOS.to_string(), EOS.to_string());
        if let Some(bytes) = config {
            let mut fields = Fields::parse(&dir.join(TOKENIZER_CONFIG), bytes)?;
            bos = special(&mut fields, "bos_token")?.unwrap_or(bos);
            eos = special(&mut fields, "eos_token")?.unwrap_or(eos);
        }
        let Some(bos_id) = inner.token_to_id(&bos) else {
            return Err(Error::file(path, format!("the BOS token {}", quote(&bos)), "no such token"));
        };
        let eos_id = inner.token_to_id(&eos);
        Ok(Tokenizer { path, inner, pieces, bos: (bos, bos_id), eos: (eos, eos_id) })
    }

    /// The ids of `text`. With `add_bos`, the first is BOS and the second is not, whether or not the text (say, a rendered
    /// template) starts with BOS itself; without, the text alone decides.
    ///
    /// # Errors
    /// [`Error::Encode`] for a character that the vocabulary cannot express.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>> {
        let encoding = match &self.inner {
            Inner::Whole(inner) => inner.encode_fast(text, false),
            Inner::Mapped(inner) => inner.encode_fast(text, false),
        };
        let encoding = encoding.map_err(|e| self.failed(e))?;
        let mut ids = encoding.get_ids();
        if !add_bos {
            return Ok(ids.to_vec());
        }
        while let [first, rest @ ..] = ids
            && *first == self.bos.1
        {
            ids = rest;
        }
        let mut all = Vec::with_capacity(ids.len() + 1);
        all.push(self.bos.1);
        all.extend_from_slice(ids);
        Ok(all)
    }

    /// The text of `ids`; special tokens and unknown ids give none.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.detokenizer();
        let mut text = String::new();
        ids.iter().for_each(|&id| stream.push_to(id, &mut text));
        text.push_str(&stream.finish());
        text
    }

    /// A stream from ids to text; it stands on its own.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.pieces.clone())
    }

    /// The id of BOS.
    pub fn bos_id(&self) -> u32 {
        self.bos.1
    }

    /// BOS as text: `<bos>`.
    pub fn bos_token(&self) -> &str {
        &self.bos.0
    }

    /// The id of EOS, if the vocabulary has it.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos.1
    }

    /// EOS as text: `<eos>`.
    pub fn eos_token(&self) -> &str {
        &self.eos.0
    }

    /// The id of `<end_of_turn>`, if the vocabulary has it.
    pub fn end_of_turn_id(&self) -> Option<u32> {
        self.id(END_OF_TURN)
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The file, or what stands for it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, message: tokenizers::Error) -> Error {
        Error::Encode { path: self.path.clone(), message: error::line(message) }
    }
}

impl Inner {
    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Inner::Whole(inner) => inner.token_to_id(token),
            Inner::Mapped(inner) => inner.token_to_id(token),
        }
    }
}

/// A special token's text: a string, or an object that holds it as `content`.
fn special(fields: &mut Fields, name: &str) -> Result<Option<String>> {
    match fields.take(name) {
        None => Ok(None),
        Some(Value::String(token)) => Ok(Some(token)),
        Some(value) => match value.get("content").and_then(Value::as_str) {
            Some(token) => Ok(Some(token.to_string())),
            None => Err(fields.refuse(name, "a token", &value)),
        },
    }
}

/// Refuses a decoder that [`Detokenizer`] does not do.
fn check_decoder(path: &Path, bytes: &[u8]) -> Result<()> {
    let gemma = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
    ] });
    let mut fields = Fields::parse(path, bytes)?;
    match fields.take("decoder") {
        Some(decoder) if decoder == gemma => Ok(()),
        Some(other) => Err(fields.refuse("decoder", &gemma.to_string(), &other)),
        None => Err(fields.absent("decoder", &gemma.to_string())),
    }
}

/// What each id stands for.
fn pieces(path: &Path, inner: &tokenizers::Tokenizer) -> Result<Arc<[Piece]>> {
    let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
    if largest > MAX_ID {
        return Err(Error::file(path, format!("ids up to {MAX_ID}"), largest.to_string()));
    }
    let added = inner.get_added_tokens_decoder();
    let piece = |id: u32| {
        let token = inner.id_to_token(id).filter(|_| !added.get(&id).is_some_and(|t| t.special));
        match token {
            None => Piece::Nothing,
            Some(token) => Piece::of(&token),
        }
    };
    Ok((0..=largest).map(piece).collect())
}
