//! Text to token ids and back, by a folder's `tokenizer.json` or by tokens and scores, as a GGUF holds them.
//!
//! In: text; special tokens written out in it (`<start_of_turn>`) are parsed. Out: ids, with the BOS token exactly once
//! where it is asked for. Invariants: the file has a BOS token; its decoder is Gemma's (`▁` to space, bytes, joined),
//! which is what [`Detokenizer`] does; [`Tokenizer::decode`] and a stream give the same text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, Model, TokenizerImpl};

use super::bpe::Bpe;
use super::components::{Components, Never, Replace, Split};
use super::detokenizer::{Detokenizer, Piece, Pieces};
use super::scores::Scores;
use super::special::{SPECIAL_TOKENS_MAP, SpecialTokens};
use super::tables::{Tables, word_at};
use super::vocabulary::{self, Vocabulary};
use crate::artifact::Shared;
use crate::file;
use crate::file::error::{self, Error, Result, quote};

/// The file that holds the vocabulary.
pub const TOKENIZER: &str = "tokenizer.json";
/// The file that names the special tokens, and in older folders holds the chat template.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The section of an artifact that holds the tokenizer as tables.
pub const TABLES: &str = crate::artifact::TOKENIZER_TABLES;
/// The token that ends a turn of a chat.
pub const END_OF_TURN: &str = "<end_of_turn>";

/// Gemma's special tokens, for a folder that does not name them.
const DEFAULTS: [(&str, &str); 5] = [
    ("bos_token", "<bos>"),
    ("eos_token", "<eos>"),
    ("unk_token", "<unk>"),
    ("pad_token", "<pad>"),
    ("mask_token", "<mask>"),
];
/// The largest id that is believed: as the largest vocabulary of a configuration.
const MAX_ID: u32 = 1 << 24;
/// Ids that may stand for nothing, beyond as many as there are tokens.
const HOLES: usize = 1 << 16;

/// What finds tokens.
enum Inner {
    /// By the crate's own model, from a whole `tokenizer.json`.
    Whole(Box<Around<BPE>>),
    /// The same around tables that are read in place.
    Mapped(Box<Around<Bpe>>),
    /// By scores, from tables too.
    Scored(Box<Scores>),
}

/// The crate's tokenizer around a model.
type Around<M> = TokenizerImpl<M, Replace, Split, Never, Never>;

/// A tokenizer.
pub struct Tokenizer {
    path: PathBuf,
    inner: Inner,
    pieces: Pieces,
    special: SpecialTokens,
    bos: u32,
    eos: Option<u32>,
}

impl Tokenizer {
    /// The tokenizer of a folder, or nothing where it has none.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`], and [`Error::Read`].
    pub fn from_folder(dir: &Path) -> Result<Option<Tokenizer>> {
        let Some(tokenizer) = file::read_if_present(&dir.join(TOKENIZER))? else { return Ok(None) };
        let config = file::read_if_present(&dir.join(TOKENIZER_CONFIG))?;
        let mut tokenizer = Tokenizer::from_bytes(dir, &tokenizer, config.as_deref())?;
        let path = dir.join(SPECIAL_TOKENS_MAP);
        if let Some(bytes) = file::read_if_present(&path)? {
            tokenizer.special.add_missing(SpecialTokens::parse(&path, &bytes)?);
        }
        Ok(Some(tokenizer))
    }

    /// The tokenizer of one file of any name, with Gemma's special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`], and [`Error::Read`].
    pub fn from_file(path: &Path) -> Result<Tokenizer> {
        Tokenizer::whole(path, &file::read(path)?, None)
    }

    /// The tokenizer in the bytes of `tokenizer.json` and, if there is one, `tokenizer_config.json`; errors say they
    /// lie in `dir`.
    ///
    /// # Errors
    /// [`Error::File`] for a malformed file or one without its BOS token, [`Error::Field`] for a part that is not
    /// Gemma's.
    pub fn from_bytes(dir: &Path, tokenizer: &[u8], config: Option<&[u8]>) -> Result<Tokenizer> {
        let special = special(dir, config)?;
        Tokenizer::whole(&dir.join(TOKENIZER), tokenizer, special)
    }

    /// The tokenizer in the bytes of the file `path`.
    fn whole(path: &Path, tokenizer: &[u8], special: Option<SpecialTokens>) -> Result<Tokenizer> {
        /// The file, of which the other fields are read by [`Components`].
        #[derive(Deserialize)]
        struct File {
            model: BPE,
        }
        let parts = Components::parse(path, tokenizer, true)?;
        let refuse = |e: serde_json::Error| Error::file(path, "a tokenizer", error::line(e));
        let File { mut model } = serde_json::from_slice(tokenizer).map_err(refuse)?;
        // A word of Gemma's is a whole text, which seldom comes again; each thread would keep thousands of them.
        model.resize_cache(0);
        let texts = check_ids(path, &model, &parts)?;
        let inner = assemble(path, model, parts)?;
        let added = pieces_of(&inner);
        let mut pieces = vec![Piece::Nothing; texts.len()];
        for (piece, text) in pieces.iter_mut().zip(&texts) {
            *piece = text.as_deref().map_or(Piece::Nothing, Piece::of);
        }
        for (id, piece) in added {
            pieces.resize(pieces.len().max(id as usize + 1), Piece::Nothing);
            pieces[id as usize] = piece;
        }
        Tokenizer::with(path, Inner::Whole(Box::new(inner)), Pieces::Listed(pieces.into()), special)
    }

    /// The tables that [`Tokenizer::from_tables`] reads, of the bytes of a `tokenizer.json`; nothing for a tokenizer
    /// that they cannot hold, or do not give the same tokens for.
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

    /// Makes the sums of tables right again, whatever else is wrong with them: for tests of what reads them.
    pub fn seal(tables: &mut Vec<u8>) {
        Tables::seal(tables);
    }

    /// The tokenizer in tables, which are read in place, and `tokenizer_config.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`].
    pub fn from_tables(dir: &Path, tables: Shared, config: Option<&[u8]>) -> Result<Tokenizer> {
        let path = dir.join(TABLES);
        if word_at(&tables, 0) == Some(vocabulary::VERSION) {
            let scores = Scores::new(tables);
            let scores = scores.map_err(|found| Error::file(&path, "a tokenizer's tables", found))?;
            return Tokenizer::of_scores(&path, scores, special(dir, config)?);
        }
        let bpe = Bpe::new(tables).map_err(|found| Error::file(&path, "a tokenizer's tables", found))?;
        let made = Tokenizer::mapped(dir, &path, &bpe, config);
        // Whatever else was missed then.
        if bpe.is_damaged() {
            return Err(Error::file(&path, "a tokenizer's tables", "damaged ones"));
        }
        made
    }

    fn mapped(dir: &Path, path: &Path, bpe: &Bpe, config: Option<&[u8]>) -> Result<Tokenizer> {
        let parts = Components::parse(path, bpe.json(), false)?;
        let inner = assemble(path, bpe.clone(), parts)?;
        let added = pieces_of(&inner);
        let ids = added.keys().map(|&id| id as usize + 1).max().unwrap_or(0).max(bpe.ids());
        let pieces = Pieces::Mapped(bpe.clone(), Arc::new(added), ids);
        let special = special(dir, config)?;
        Tokenizer::with(&dir.join(TOKENIZER), Inner::Mapped(Box::new(inner)), pieces, special)
    }

    /// The tokenizer of a vocabulary with scores; errors call it `path`. `special` names the tokens that a chat
    /// template knows by name.
    ///
    /// # Errors
    /// [`Error::File`] for a vocabulary that is none.
    pub fn scored(path: &Path, vocabulary: &Vocabulary, special: SpecialTokens) -> Result<Tokenizer> {
        let scores = Scores::made(vocabulary);
        let scores = scores.map_err(|found| Error::file(path, "a tokenizer's tokens and scores", found))?;
        Tokenizer::of_scores(path, scores, Some(special))
    }

    fn of_scores(path: &Path, scores: Scores, special: Option<SpecialTokens>) -> Result<Tokenizer> {
        let (bos, eos) = (scores.bos(), scores.eos());
        let mut special = special.unwrap_or_default();
        let Some(text) = scores.text(bos) else {
            return Err(Error::file(path, format!("a text for the BOS token, id {bos}"), "none"));
        };
        special.name("bos_token", Some(text));
        special.name("eos_token", eos.and_then(|id| scores.text(id)));
        let (pieces, inner) = (Pieces::Scored(scores.clone()), Inner::Scored(Box::new(scores)));
        Ok(Tokenizer { path: path.into(), inner, pieces, special, bos, eos })
    }

    /// The tables that [`Tokenizer::from_tables`] reads, of a tokenizer that holds itself so: one by scores.
    pub fn own_tables(&self) -> Option<Vec<u8>> {
        match &self.inner {
            Inner::Scored(scores) => scores.to_tables(),
            Inner::Whole(_) | Inner::Mapped(_) => None,
        }
    }

    fn with(path: &Path, inner: Inner, pieces: Pieces, special: Option<SpecialTokens>) -> Result<Tokenizer> {
        let mut special = special.unwrap_or_default();
        let bos = special.get("bos_token").unwrap_or(DEFAULTS[0].1).to_string();
        let Some(bos) = inner.token_to_id(&bos) else {
            return Err(Error::file(path, format!("the BOS token {}", quote(&bos)), "no such token"));
        };
        for (name, token) in DEFAULTS {
            special.name(name, Some(token).filter(|t| inner.token_to_id(t).is_some()));
        }
        let eos = special.get("eos_token").and_then(|token| inner.token_to_id(token));
        Ok(Tokenizer { path: path.into(), inner, pieces, special, bos, eos })
    }

    /// The ids of `text`. With `add_bos`, the first is BOS and the second is not, whether or not the text (say, a
    /// rendered template) starts with BOS itself; without, or if the model's files say `add_bos_token: false`, the text
    /// alone decides.
    ///
    /// # Errors
    /// [`Error::Encode`] for a character that the vocabulary cannot express.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>> {
        let whole = |e: tokenizers::Result<tokenizers::Encoding>| e.map(|e| e.get_ids().to_vec());
        let all = match &self.inner {
            Inner::Whole(inner) => whole(inner.encode_fast(text, false)).map_err(|e| self.failed(e)),
            Inner::Mapped(inner) => whole(inner.encode_fast(text, false)).map_err(|e| self.failed(e)),
            Inner::Scored(scores) => scores.encode(text).map_err(|e| self.failed(e)),
        }?;
        if !add_bos || !self.special.adds_bos() {
            return Ok(all);
        }
        let mut ids = &all[..];
        while let [first, rest @ ..] = ids
            && *first == self.bos
        {
            ids = rest;
        }
        let mut all = Vec::with_capacity(ids.len() + 1);
        all.push(self.bos);
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

    /// The special tokens that the folder names, and Gemma's where it does not.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The id of BOS.
    pub fn bos_id(&self) -> u32 {
        self.bos
    }

    /// BOS as text: `<bos>`.
    pub fn bos_token(&self) -> &str {
        self.special.get("bos_token").unwrap_or(DEFAULTS[0].1)
    }

    /// The id of EOS, if the vocabulary has it.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// EOS as text: `<eos>`.
    pub fn eos_token(&self) -> &str {
        self.special.get("eos_token").unwrap_or(DEFAULTS[1].1)
    }

    /// The id of `<end_of_turn>`, if the vocabulary has it.
    pub fn end_of_turn_id(&self) -> Option<u32> {
        self.id(END_OF_TURN)
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token's own text, as the vocabulary has it: `▁the`, `<0x0A>`.
    pub fn piece(&self, id: u32) -> Option<String> {
        match &self.inner {
            Inner::Whole(inner) => inner.id_to_token(id),
            Inner::Mapped(inner) => inner.id_to_token(id),
            Inner::Scored(scores) => scores.text(id).map(str::to_string),
        }
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The file, or what stands for it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, message: impl std::fmt::Display) -> Error {
        Error::Encode { path: self.path.clone(), message: error::line(message) }
    }
}

impl Inner {
    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Inner::Whole(inner) => inner.token_to_id(token),
            Inner::Mapped(inner) => inner.token_to_id(token),
            Inner::Scored(scores) => scores.id(token),
        }
    }
}

/// The special tokens that the bytes of `tokenizer_config.json` name.
fn special(dir: &Path, config: Option<&[u8]>) -> Result<Option<SpecialTokens>> {
    config.map(|bytes| SpecialTokens::parse(&dir.join(TOKENIZER_CONFIG), bytes)).transpose()
}

/// The texts of a model's ids, if they can be those of a vocabulary.
fn check_ids(path: &Path, model: &BPE, parts: &Components) -> Result<Vec<Option<String>>> {
    let vocab = model.get_vocab();
    let refuse = |expected: String, found: String| Err(Error::file(path, expected, found));
    let largest = vocab.values().copied().chain(parts.added.iter().map(|(id, _)| *id)).max().unwrap_or(0);
    let most = MAX_ID.min((2 * (vocab.len() + parts.added.len()) + HOLES) as u32);
    if largest > most {
        return refuse(format!("ids up to {most}"), largest.to_string());
    }
    let mut texts = vec![None; largest as usize + 1];
    for (text, id) in vocab {
        if text.is_empty() {
            return refuse("tokens that are texts".into(), format!("id {id} of an empty one"));
        }
        if let Some(other) = texts[id as usize].replace(text) {
            return refuse(format!("id {id} once"), format!("it twice, as {}", quote(&other)));
        }
    }
    Ok(texts)
}

/// A tokenizer of its parts; added tokens have the ids that the file says.
fn assemble<M: Model>(path: &Path, model: M, parts: Components) -> Result<Around<M>> {
    let refuse = |e: tokenizers::Error| Error::file(path, "a tokenizer", error::line(e));
    let mut inner = Around::new(model);
    inner.with_normalizer(parts.normalizer).map_err(refuse)?;
    inner.with_pre_tokenizer(parts.pre_tokenizer);
    let (ids, tokens): (Vec<u32>, Vec<AddedToken>) = parts.added.into_iter().unzip();
    let texts: Vec<String> = tokens.iter().map(|t| t.content.clone()).collect();
    inner.add_tokens(tokens).map_err(refuse)?;
    for (id, text) in ids.into_iter().zip(texts) {
        let found = inner.token_to_id(&text);
        if found != Some(id) {
            let found = found.map_or("no id".into(), |id| format!("id {id}"));
            return Err(Error::file(path, format!("the added token {} as id {id}", quote(&text)), found));
        }
    }
    Ok(inner)
}

/// What added tokens stand for.
fn pieces_of<M: Model>(inner: &Around<M>) -> HashMap<u32, Piece> {
    let piece = |t: &AddedToken| if t.special { Piece::Nothing } else { Piece::of(&t.content) };
    inner.get_added_tokens_decoder().iter().map(|(id, t)| (*id, piece(t))).collect()
}
