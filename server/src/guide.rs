//! Constrained answers: grammars, and the tokens that they allow next.
//!
//! In: a JSON schema or a grammar. Out: a [`Guide`], which takes the tokens that were chosen and has a mask of those
//! that may follow. Masks are computed by a thread of their own while the engine steps. Invariants: compiling a grammar
//! and computing a mask are bounded in work by llguidance's limits; what exceeds them is an error of the request.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::error::ApiError;
use crate::model::Vocabulary;

/// The most bytes of a schema or a grammar.
const MOST_BYTES: usize = 256 << 10;

/// How long a mask may take; limits of work end it long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an answer must be of.
#[derive(Clone, Debug)]
pub(crate) enum Grammar {
    /// A JSON schema.
    Json(Value),
    /// The schema of calls of functions.
    Calls(Value),
    /// A grammar in llguidance's Lark.
    Lark(String),
}

/// What grammars are compiled with, made when the first one comes.
pub(crate) struct Guides {
    factory: OnceLock<Result<ParserFactory, String>>,
    work: OnceLock<Option<Sender<Work>>>,
}

/// A mask to be computed, and who waits for it.
struct Work {
    matcher: Box<Matcher>,
    /// What was chosen since the last one.
    token: Option<u32>,
    done: Sender<Done>,
}

/// A matcher, and what it allows.
struct Done {
    matcher: Box<Matcher>,
    mask: Result<SimpleVob, String>,
}

impl Guides {
    pub(crate) fn new() -> Guides {
        Guides { factory: OnceLock::new(), work: OnceLock::new() }
    }

    /// Compiles a grammar: on a thread that may be kept for a while.
    pub(crate) fn compile(&self, vocabulary: &Vocabulary, grammar: &Grammar) -> Result<Compiled, ApiError> {
        let (field, text, top) = match grammar {
            Grammar::Json(schema) | Grammar::Calls(schema) => {
                let (text, mut schema) = (schema.to_string(), schema.clone());
                if let Some(fields) = schema.as_object_mut() {
                    fields.entry("x-guidance").or_insert_with(spaces);
                }
                let field = if matches!(grammar, Grammar::Calls(_)) { "tools" } else { "response_format" };
                (field, text, TopLevelGrammar::from_json_schema(schema))
            }
            Grammar::Lark(text) => ("grammar", text.clone(), TopLevelGrammar::from_lark(text.clone())),
        };
        if text.len() > MOST_BYTES {
            let message = format!("`{field}`: {} bytes, expected at most {MOST_BYTES}", text.len());
            return Err(ApiError::field(field, message));
        }
        let factory = self.factory.get_or_init(|| factory(vocabulary).map_err(|error| format!("{error:#}")));
        let factory = factory.as_ref().map_err(|error| ApiError::internal(error.clone()))?;
        let mut matcher = Matcher::new(factory.create_parser(top));
        // One that nothing fulfils is known by its first mask.
        let refuse = |what: &str| {
            let words = what.split_whitespace().collect::<Vec<_>>().join(" ");
            let line: String = match words.as_str() {
                "NoExtensionBias" => "no text fulfils it".into(),
                words => words.chars().take(300).collect(),
            };
            ApiError::field(field, format!("`{field}`: {line}"))
        };
        let mask = matcher.compute_mask_or_eos().map_err(|error| refuse(&error.to_string()))?;
        if mask.is_zero() {
            return Err(refuse("no text fulfils it"));
        }
        Ok(Compiled(Arc::new(matcher)))
    }

    /// What follows the tokens of one answer.
    pub(crate) fn guide(&self, compiled: &Compiled) -> Guide {
        let work = self.work.get_or_init(|| {
            let (work, jobs) = mpsc::channel();
            let named = thread::Builder::new().name("masks".into());
            named.spawn(move || compute(&jobs)).ok().map(|_| work)
        });
        let matcher = Box::new(compiled.0.deep_clone());
        let (done, masks) = mpsc::channel();
        let guide = Guide { work: work.clone(), done, masks };
        guide.send(matcher, None);
        guide
    }
}

/// A grammar, compiled.
#[derive(Clone)]
pub(crate) struct Compiled(Arc<Matcher>);

/// The masks of one answer. One is always on its way or waiting.
pub(crate) struct Guide {
    work: Option<Sender<Work>>,
    done: Sender<Done>,
    masks: Receiver<Done>,
}

impl Guide {
    /// Which tokens may come next, or why none can.
    pub(crate) fn mask(&self) -> Result<Mask, String> {
        let done = self.masks.recv_timeout(PATIENCE).map_err(|_| "its mask was not computed".to_string())?;
        Ok(Mask { mask: done.mask?, matcher: done.matcher })
    }

    /// Tells what was chosen by a mask: the next one is computed.
    pub(crate) fn chosen(&self, mask: Mask, token: u32) {
        self.send(mask.matcher, Some(token));
    }

    fn send(&self, matcher: Box<Matcher>, token: Option<u32>) {
        let work = Work { matcher, token, done: self.done.clone() };
        match &self.work {
            Some(thread) => {
                if let Err(mpsc::SendError(work)) = thread.send(work) {
                    work.perform();
                }
            }
            // The system gives no thread: here, then.
            None => work.perform(),
        }
    }
}

/// Which tokens may come next.
pub(crate) struct Mask {
    mask: SimpleVob,
    matcher: Box<Matcher>,
}

impl Mask {
    /// Whether a token may come next.
    fn allows(&self, id: u32) -> bool {
        (id as usize) < self.mask.len() && self.mask.is_allowed(id)
    }

    /// Takes away the logits of tokens that may not.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        for (logit, id) in logits.iter_mut().zip(0..) {
            if !self.allows(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

impl Work {
    fn perform(mut self) {
        let mask = match self.token {
            Some(token) => self.matcher.consume_token(token),
            None => Ok(()),
        };
        let mask = mask.and_then(|()| self.matcher.compute_mask_or_eos()).map_err(|error| error.to_string());
        // Whoever waited may be gone.
        let _ = self.done.send(Done { matcher: self.matcher, mask });
    }
}

/// Where JSON has spaces: as Python writes it. A model that may put any number of them may never end.
fn spaces() -> Value {
    json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " })
}

fn compute(jobs: &Receiver<Work>) {
    while let Ok(work) = jobs.recv() {
        work.perform();
    }
}

/// What grammars of this vocabulary are compiled with.
fn factory(vocabulary: &Vocabulary) -> Result<ParserFactory, String> {
    let size = vocabulary.size as u32;
    let stops = vocabulary.text.stop_tokens();
    let Some(&eos) = stops.first() else { return Err("the model has no token that ends a text".into()) };
    let word = |id: u32| {
        let bytes = vocabulary.bytes(id);
        if !bytes.is_empty() {
            return bytes;
        }
        // How special tokens are told from texts; what stands for nothing is never met.
        let mut special = vec![TokTrie::SPECIAL_TOKEN_MARKER];
        special.extend(vocabulary.shown(id));
        special
    };
    let words: Vec<Vec<u8>> = (0..size).map(word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, eos), &words).with_eos_tokens(stops);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory =
        ParserFactory::new(&env, InferenceCapabilities::default(), &[]).map_err(|error| error.to_string())?;
    *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
    factory.quiet();
    Ok(factory)
}
