//! A sequence in a file, to go on with later: a safetensors container.
//!
//! In and out: a [`Sequence`] and [`Notes`]. The file holds the tokens, the last row of the residual stream, and of
//! each cache the rows that a query may still read: all positions, or a sliding window's last, as `layers.N.NAME`
//! (heads, rows, bytes of a row). It names the model, the bytes of its weights and the type of its caches, which must
//! be those of the engine that reads it; its context, chunk, CPU and threads need not.
//!
//! A file is written whole or not at all. Its last tensor is the XXH3 of every byte before it, so that one that is
//! damaged is refused; one that was made wrong, with a right sum, is refused or has other numbers.

mod contents;

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map as Object, Value, json};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3;

use crate::engine::{Empty, Engine};
use crate::error::Error;
use crate::file::error::quote;
use crate::file::{self, Map, whole::Output};
use crate::layout::Cache;
use crate::program::Phase;
use crate::sampler::SamplerOptions;
use crate::sequence::Sequence;

use contents::Contents;

/// What the metadata's `format` says.
const FORMAT: &str = "lapidary-sequence";
/// Changes whenever a file of before would be misread.
const VERSION: &str = "2";
/// Bytes hashed at each end of a tensor: a fine-tune changes both.
const ENDS: usize = 4096;
/// Tensor: the tokens, i32.
const TOKENS: &str = "tokens";
/// Tensor: the last row of the residual stream, f32.
const HIDDEN: &str = "hidden";

/// Tensor: the sum of what is before it, U8 ([`SUM_BYTES`]), little-endian.
const SUM: &str = "xxh3";
/// Bytes of a sum.
const SUM_BYTES: usize = size_of::<u128>();

/// What a generation keeps beside its sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes {
    /// The last token chosen, if the sequence does not hold it yet: it is decoded first.
    pub pending: Option<u32>,
    /// How tokens are chosen.
    pub sampler: Option<SamplerOptions>,
    /// What was said, of a conversation.
    pub conversation: Option<String>,
}

/// What writes and reads the files of an engine's sequences, on any thread, while the engine goes on.
pub struct Archive {
    /// What a file must be of.
    identity: [(&'static str, String); 4],
    empty: Empty,
}

impl Engine {
    /// What writes and reads its sequences' files.
    pub fn archive(&self) -> Archive {
        Archive { identity: self.identity(), empty: self.empty() }
    }

    /// Writes a sequence to a file.
    ///
    /// # Errors
    /// [`Error::OtherEngine`]; [`Error::Write`] naming the file and the bytes it needs.
    pub fn save(&self, sequence: &Sequence, path: &Path, notes: &Notes) -> Result<(), Error> {
        self.archive().save(sequence, path, notes)
    }

    /// Reads a sequence from a file.
    ///
    /// # Errors
    /// A file that is none of [`Engine::save`]'s or has changed since, of another model, of weights of another format,
    /// or of caches of another type; [`Error::ContextExceeded`] if it holds more tokens than the context.
    pub fn load(&self, path: &Path) -> Result<(Sequence, Notes), Error> {
        self.archive().load(path)
    }

    /// What a file must be of: the model, how its weights are held, which they are, and the type of its caches.
    fn identity(&self) -> [(&'static str, String); 4] {
        let plan = &self.program().plan;
        let (mut shapes, mut contents) = (Sha256::new(), Sha256::new());
        let mut total = 0;
        for (weight, bytes) in self.tensors() {
            shapes.update(weight.tensor.as_bytes());
            shapes.update((bytes.len() as u64).to_le_bytes());
            total += bytes.len();
            let ends = ENDS.min(bytes.len());
            contents.update(&bytes[..ends]);
            contents.update(&bytes[bytes.len() - ends..]);
        }
        let hex =
            |hash: Sha256| hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect::<String>();
        let (layers, hidden, vocab) = (plan.layers.len(), plan.hidden, plan.vocab);
        [
            ("model", format!("{layers} layers of {hidden}, {vocab} tokens")),
            ("weights_format", format!("{total} bytes, {}", hex(shapes))),
            ("weights", hex(contents)),
            ("kv_cache", plan.kv.clone()),
        ]
    }
}

impl Archive {
    /// As [`Engine::save`].
    ///
    /// # Errors
    /// Its.
    pub fn save(&self, sequence: &Sequence, path: &Path, notes: &Notes) -> Result<(), Error> {
        self.empty.check(sequence, &[])?;
        let position = sequence.position();
        let mut header = Object::new();
        header.insert("__metadata__".into(), self.metadata(sequence, notes));
        let mut end = 0;
        let mut entry =
            |header: &mut Object<String, Value>, name: &str, dtype: &str, shape: &[usize], bytes: usize| {
                let offsets = [end, end + bytes];
                header
                    .insert(name.into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
                end += bytes;
            };
        let word = size_of::<u32>();
        entry(&mut header, TOKENS, "I32", &[position], position * word);
        let hidden = sequence.last.as_slice();
        entry(&mut header, HIDDEN, "F32", &[hidden.len() / word], hidden.len());
        let caches = &sequence.layout().caches;
        for cache in caches {
            let rows = kept(cache, position);
            let shape = [cache.heads, rows, cache.row_bytes];
            entry(&mut header, &name(cache), "U8", &shape, shape.iter().product());
        }
        entry(&mut header, SUM, "U8", &[SUM_BYTES], SUM_BYTES);
        let mut text = Value::Object(header).to_string();
        let blanks = (8 + text.len()).next_multiple_of(64) - 8 - text.len();
        text.push_str(&" ".repeat(blanks));
        let needed = (8 + text.len() + end) as u64;
        let failed = |source| Error::Write { path: path.into(), needed, source };
        let output = Output::create(path).map_err(failed)?;
        let write = || {
            let mut out =
                Summed { out: io::BufWriter::with_capacity(1 << 20, output.file()), sum: Xxh3::new() };
            out.write_all(&(text.len() as u64).to_le_bytes())?;
            out.write_all(text.as_bytes())?;
            sequence.tokens().iter().try_for_each(|id| out.write_all(&id.to_le_bytes()))?;
            out.write_all(hidden)?;
            for cache in caches {
                for head in 0..cache.heads {
                    for at in position - kept(cache, position)..position {
                        out.write_all(sequence.kv.stored(cache, head, at % cache.rows))?;
                    }
                }
            }
            let sum = out.sum.digest128();
            out.write_all(&sum.to_le_bytes())?;
            out.flush()
        };
        write().and_then(|()| output.finish()).map(drop).map_err(failed)
    }

    /// As [`Engine::load`].
    ///
    /// # Errors
    /// Its.
    pub fn load(&self, path: &Path) -> Result<(Sequence, Notes), Error> {
        let (opened, _) = file::open_unnoted(path)?;
        let map = Map::new(path, &opened).map_err(|source| file::Error::read(path, source))?;
        let mut contents = Contents::new(path, &map)?;
        match self.read(&mut contents) {
            Ok(loaded) => contents.damage()?.map_or(Ok(loaded), Err),
            // What is damaged may look like anything else.
            Err(error) => Err(contents.damage().ok().flatten().unwrap_or(error)),
        }
    }

    fn read(&self, contents: &mut Contents<'_>) -> Result<(Sequence, Notes), Error> {
        for (field, text) in [("format", FORMAT), ("version", VERSION)] {
            contents.expect(field, text, "")?;
        }
        for (field, text) in &self.identity {
            contents.expect(field, text, ", which is loaded")?;
        }
        let tokens = contents.tensor(TOKENS, "I32")?;
        let words = contents.bytes(tokens.bytes).as_chunks::<4>().0;
        let tokens: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let vocab = self.empty.vocab();
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(contents.wrong(TOKENS, &format!("tokens below {vocab}"), &id.to_string()));
        }
        let mut sequence = self.empty.sequence()?;
        self.empty.check(&sequence, &tokens)?;
        let position = tokens.len();
        let hidden = contents.tensor(HIDDEN, "F32")?;
        if hidden.bytes.len() != sequence.last.len() {
            let expected = format!("{} elements", sequence.last.len() / 4);
            return Err(contents.wrong(HIDDEN, &expected, &format!("{:?}", hidden.shape)));
        }
        sequence.last.as_mut_slice().copy_from_slice(contents.bytes(hidden.bytes));
        sequence.admit(position)?;
        let layout = sequence.layout().clone();
        let mut floor = contents.number("floor", "a position", |&floor: &usize| floor <= position)?;
        for cache in &layout.caches {
            if read_cache(contents, cache, &mut sequence, position)? < position {
                floor = floor.max(position - 1);
            }
        }
        sequence.append(&tokens);
        sequence.restore(floor, phase(contents)?);
        let pending = match contents.said("pending")? {
            "none" => None,
            _ => Some(contents.number("pending", "a token or none", |&id: &u32| (id as usize) < vocab)?),
        };
        let sampler = match contents.said("sampler")? {
            "none" => None,
            text => {
                let options: SamplerOptions = serde_json::from_str(text)
                    .map_err(|e| contents.refuse("sampler", "a sampler's options", file::error::line(e)))?;
                options.validate()?;
                Some(options)
            }
        };
        let conversation = contents.said("conversation").ok().map(str::to_string);
        Ok((sequence, Notes { pending, sampler, conversation }))
    }

    fn metadata(&self, sequence: &Sequence, notes: &Notes) -> Value {
        let predicts = match sequence.predicts {
            None => "none",
            Some(Phase::Prefill) => "prefill",
            Some(Phase::Decode) => "decode",
        };
        let pending = notes.pending.map_or("none".into(), |id| id.to_string());
        // No map with keys that are no text, no number that is not finite: it cannot fail.
        let sampler = notes.sampler.map(|options| serde_json::to_string(&options).unwrap_or_default());
        let mut metadata = Object::new();
        let fields = [
            ("format", Cow::from(FORMAT)),
            ("version", VERSION.into()),
            ("predicts", predicts.into()),
            ("floor", sequence.floor().to_string().into()),
            ("pending", pending.into()),
            ("sampler", sampler.map_or("none".into(), Cow::from)),
        ];
        if let Some(text) = &notes.conversation {
            metadata.insert("conversation".into(), text.as_str().into());
        }
        let identity = self.identity.iter().map(|(field, text)| (*field, Cow::from(text.as_str())));
        for (field, text) in fields.into_iter().chain(identity) {
            metadata.insert(field.into(), text.into());
        }
        Value::Object(metadata)
    }
}

/// Bytes on their way to a file, and their sum.
struct Summed<W> {
    out: W,
    sum: Xxh3,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads a cache's rows: how many the file has.
fn read_cache(
    contents: &mut Contents<'_>,
    cache: &Cache,
    sequence: &mut Sequence,
    position: usize,
) -> Result<usize, Error> {
    let name = name(cache);
    let entry = contents.tensor(&name, "U8")?;
    let most = kept(cache, position);
    let expected = format!("({}, {most} rows or more, {})", cache.heads, cache.row_bytes);
    let wrong = |contents: &Contents<'_>| contents.wrong(&name, &expected, &format!("{:?}", entry.shape));
    let [heads, rows, row_bytes] = entry.shape[..] else { return Err(wrong(contents)) };
    let fits = heads == cache.heads && row_bytes == cache.row_bytes && rows <= position;
    // What wraps nowhere here may be a window that wrapped where the file was written.
    if !fits || (rows < most && cache.window.is_some()) {
        return Err(wrong(contents));
    }
    let first = position - rows.min(cache.rows);
    for head in 0..heads {
        let start = entry.bytes.start + head * rows * row_bytes;
        let bytes = contents.bytes(start..start + rows * row_bytes);
        for at in first..position {
            let from = (at + rows - position) * row_bytes;
            let to = sequence.kv.stored_mut(cache, head, at % cache.rows);
            to.copy_from_slice(&bytes[from..from + row_bytes]);
        }
    }
    Ok(rows)
}

/// Rows of a cache that a file keeps of so many positions.
fn kept(cache: &Cache, position: usize) -> usize {
    cache.window.unwrap_or(position).min(position)
}

fn name(cache: &Cache) -> String {
    format!("layers.{}.{}", cache.layer, cache.name)
}

fn phase(contents: &Contents<'_>) -> Result<Option<Phase>, Error> {
    match contents.said("predicts")? {
        "none" => Ok(None),
        "prefill" => Ok(Some(Phase::Prefill)),
        "decode" => Ok(Some(Phase::Decode)),
        other => Err(contents.refuse("predicts", "none, prefill or decode", quote(other))),
    }
}
