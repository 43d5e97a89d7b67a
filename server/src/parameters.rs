//! How an answer is made, out of a request's fields: each held to its range, an error naming the field.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use lapidary_runtime::SamplerOptions;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::guide::Grammar;
use crate::tools::Tools;
use crate::wire::request::Common;

/// The most stop texts.
const MOST_STOPS: usize = 64;
/// The most bytes of one.
const MOST_STOP_BYTES: usize = 4096;
/// The most tokens that `logit_bias` names.
const MOST_BIASES: usize = 4096;
/// The most likely tokens that are told of.
pub(crate) const MOST_TOP_LOGPROBS: i64 = 20;
/// The most answers to a prompt.
const MOST_ANSWERS: i64 = 128;

/// How an answer is made.
#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    /// Most tokens; as many as there is room for if none.
    pub(crate) max_tokens: Option<usize>,
    /// Answers to a prompt.
    pub(crate) n: usize,
    /// The first answer's; the next ones have the next seeds.
    pub(crate) sampler: SamplerOptions,
    /// Added to logits.
    pub(crate) bias: Vec<(u32, f32)>,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    /// Of how many likely tokens the log-probabilities are told, beside the one chosen.
    pub(crate) logprobs: Option<usize>,
    pub(crate) grammar: Option<Grammar>,
    /// What the answer may call.
    pub(crate) tools: Option<Tools>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

/// A number within a range.
fn within<T: PartialOrd + std::fmt::Display + Copy>(
    name: &str,
    value: Option<T>,
    default: T,
    (low, high): (T, T),
) -> Result<T, ApiError> {
    match value {
        None => Ok(default),
        Some(value) if value >= low && value <= high => Ok(value),
        Some(value) => Err(ApiError::field(name, format!("`{name}` is {value}: expected {low} to {high}"))),
    }
}

impl Parameters {
    /// Those of the fields that both kinds of completion have; `vocab` is the number of tokens.
    pub(crate) fn new(common: &Common, vocab: usize) -> Result<Parameters, ApiError> {
        let max_tokens = match common.max_tokens {
            // llama.cpp's.
            None | Some(-1) => None,
            Some(n) => Some(within("max_tokens", Some(n), 0, (0, i64::from(u32::MAX)))? as usize),
        };
        let n = within("n", common.n, 1, (1, MOST_ANSWERS))? as usize;
        let seed = match common.seed {
            // One that JavaScript's numbers hold.
            None | Some(-1) => RandomState::new().build_hasher().finish() >> 32,
            Some(seed) => seed as u64,
        };
        let top_k = match common.top_k {
            Some(-1) => 0,
            top_k => within("top_k", top_k, 0, (0, i64::from(u32::MAX)))? as usize,
        };
        let sampler = SamplerOptions {
            temperature: within("temperature", common.temperature, 1.0, (0.0, 100.0))?,
            top_k,
            top_p: within("top_p", common.top_p, 1.0, (0.0, 1.0))?,
            min_p: within("min_p", common.min_p, 0.0, (0.0, 1.0))?,
            repetition_penalty: within("repetition_penalty", common.repetition_penalty, 1.0, (0.01, 100.0))?,
            repeat_last_n: usize::MAX,
            seed,
        };
        let penalty = |name: &str, value| within(name, value, 0.0, (-2.0, 2.0));
        let stream = common.stream.unwrap_or(false);
        let include_usage =
            common.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
        if common.stream_options.is_some() && !stream {
            return Err(ApiError::field("stream_options", "`stream_options`: it needs `stream`"));
        }
        Ok(Parameters {
            max_tokens,
            n,
            sampler,
            bias: bias(common.logit_bias.as_ref(), vocab)?,
            presence_penalty: penalty("presence_penalty", common.presence_penalty)?,
            frequency_penalty: penalty("frequency_penalty", common.frequency_penalty)?,
            stop: stops(common.stop.as_ref())?,
            ignore_eos: common.ignore_eos.unwrap_or(false),
            logprobs: None,
            grammar: grammar(common)?,
            tools: None,
            stream,
            include_usage,
        })
    }
}

impl Parameters {
    /// Lets the answer call functions; one that must is of the grammar of calls.
    pub(crate) fn call(&mut self, tools: Option<Tools>) -> Result<(), ApiError> {
        let Some(tools) = tools else { return Ok(()) };
        match (tools.schema(), self.grammar.is_some()) {
            (Some(schema), false) => self.grammar = Some(Grammar::Calls(schema)),
            (Some(_), true) => {
                let message = "`tool_choice`: an answer that must call has no `response_format` or `grammar`";
                return Err(ApiError::field("tool_choice", message));
            }
            // An answer of a format of its own calls nothing.
            (None, true) => return Ok(()),
            (None, false) => {}
        }
        self.tools = Some(tools);
        Ok(())
    }
}

fn bias(fields: Option<&BTreeMap<String, f32>>, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(fields) = fields else { return Ok(vec![]) };
    if fields.len() > MOST_BIASES {
        let message = format!("`logit_bias`: expected at most {MOST_BIASES} tokens, found {}", fields.len());
        return Err(ApiError::field("logit_bias", message));
    }
    let one = |(id, &value): (&String, &f32)| {
        let param = format!("logit_bias.{}", id.chars().take(32).collect::<String>());
        let id = id.parse().ok().filter(|&id: &u32| (id as usize) < vocab);
        let id = id.ok_or_else(|| {
            ApiError::field(&param, format!("`{param}`: expected the id of a token, below {vocab}"))
        })?;
        Ok((id, within(&param, Some(value), 0.0, (-100.0, 100.0))?))
    };
    fields.iter().map(one).collect()
}

fn stops(value: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let refuse = |what: String| Err(ApiError::field("stop", format!("`stop`: {what}")));
    let texts: Vec<String> = match value {
        None | Some(Value::Null) => vec![],
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) if list.len() > MOST_STOPS => {
            return refuse(format!("expected at most {MOST_STOPS} texts, found {}", list.len()));
        }
        Some(Value::Array(list)) => {
            let texts: Option<Vec<String>> = list.iter().map(|t| t.as_str().map(str::to_string)).collect();
            match texts {
                Some(texts) => texts,
                None => return refuse("expected a text or a list of texts".into()),
            }
        }
        Some(_) => return refuse("expected a text or a list of texts".into()),
    };
    if texts.iter().any(|t| t.len() > MOST_STOP_BYTES) {
        return refuse(format!("expected texts of at most {MOST_STOP_BYTES} bytes"));
    }
    Ok(texts.into_iter().filter(|t| !t.is_empty()).collect())
}

fn grammar(common: &Common) -> Result<Option<Grammar>, ApiError> {
    let refuse = |what: &str| Err(ApiError::field("response_format", format!("`response_format`: {what}")));
    let format = common.response_format.as_ref().filter(|format| !format.is_null());
    if let Some(lark) = &common.grammar {
        return match format {
            None => Ok(Some(Grammar::Lark(lark.clone()))),
            Some(_) => refuse("it cannot be had together with `grammar`"),
        };
    }
    let Some(format) = format else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::Json(json!({ "type": "object" })))),
        Some("json_schema") => {
            let schema = [&format["json_schema"]["schema"], &format["schema"]];
            match schema.into_iter().find(|schema| schema.is_object() || schema.is_boolean()) {
                Some(schema) => Ok(Some(Grammar::Json(schema.clone()))),
                None => refuse("expected a schema in `json_schema.schema`"),
            }
        }
        _ => refuse("expected as `type` text, json_object or json_schema"),
    }
}
