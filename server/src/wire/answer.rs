//! Objects of answers, as the API of OpenAI has them.

use serde_json::{Map, Value, json};

use crate::model::Vocabulary;
use crate::scheduler::Logprobs;
use crate::tools::Call;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// Of a request: what every object of its answer says.
pub(crate) struct Envelope {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) seed: u64,
    /// Whether it is streamed with usage.
    pub(crate) include_usage: bool,
}

/// Tokens that a request came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) completion: usize,
}

impl Usage {
    pub(crate) fn json(self) -> Value {
        let Usage { prompt, cached, completion } = self;
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }
}

impl Envelope {
    /// An object of the answer with these choices.
    fn object(&self, name: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("id".into(), self.id.clone().into());
        object.insert("object".into(), name.into());
        object.insert("created".into(), self.created.into());
        object.insert("model".into(), self.model.clone().into());
        object.insert("system_fingerprint".into(), concat!("lapidary-", env!("CARGO_PKG_VERSION")).into());
        object.insert("seed".into(), self.seed.into());
        object.insert("choices".into(), choices.into());
        object
    }

    /// The whole answer.
    pub(crate) fn whole(&self, choices: Vec<Value>, usage: Usage) -> Value {
        let name = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Completion => "text_completion",
        };
        let mut object = self.object(name, choices);
        object.insert("usage".into(), usage.json());
        object.into()
    }

    fn chunk(&self, choices: Vec<Value>) -> Map<String, Value> {
        let name = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let mut object = self.object(name, choices);
        if self.include_usage {
            object.insert("usage".into(), Value::Null);
        }
        object
    }

    /// A chunk of a stream that a choice begins with, if its kind has any.
    pub(crate) fn first(&self, index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        let choice = json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
        (self.kind == Kind::Chat).then(|| self.chunk(vec![choice]).into())
    }

    /// A chunk with more text.
    pub(crate) fn piece(&self, index: usize, text: &str, logprobs: Value) -> Value {
        let choice = match self.kind {
            Kind::Chat => json!({
                "index": index,
                "delta": { "content": text },
                "logprobs": logprobs,
                "finish_reason": null,
            }),
            Kind::Completion => {
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": null })
            }
        };
        self.chunk(vec![choice]).into()
    }

    /// Chunks with the functions that a choice calls: of each its name, then its arguments.
    pub(crate) fn calls(&self, index: usize, calls: &[Call]) -> Vec<Value> {
        let delta = |call: Value| {
            let delta = json!({ "tool_calls": [call] });
            let choice = json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
            self.chunk(vec![choice]).into()
        };
        let chunks = |(at, call): (usize, &Call)| {
            let mut named = self.call(index, at, call);
            named["index"] = at.into();
            named["function"]["arguments"] = "".into();
            [delta(named), delta(json!({ "index": at, "function": { "arguments": call.arguments } }))]
        };
        calls.iter().enumerate().flat_map(chunks).collect()
    }

    /// A call of a choice.
    fn call(&self, index: usize, at: usize, call: &Call) -> Value {
        let id = self.id.rsplit('-').next().unwrap_or_default();
        json!({
            "id": format!("call_{id}_{index}_{at}"),
            "type": "function",
            "function": { "name": call.name, "arguments": call.arguments },
        })
    }

    /// A choice's last chunk.
    pub(crate) fn last(&self, index: usize, reason: &str) -> Value {
        let choice = match self.kind {
            Kind::Chat => {
                json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason })
            }
            Kind::Completion => {
                json!({ "index": index, "text": "", "logprobs": null, "finish_reason": reason })
            }
        };
        self.chunk(vec![choice]).into()
    }

    /// The chunk with the usage.
    pub(crate) fn usage(&self, usage: Usage) -> Value {
        let mut object = self.chunk(vec![]);
        object.insert("usage".into(), usage.json());
        object.into()
    }

    /// A whole choice.
    pub(crate) fn choice(
        &self,
        index: usize,
        text: &str,
        calls: &[Call],
        logprobs: Value,
        reason: &str,
    ) -> Value {
        match self.kind {
            Kind::Chat => {
                let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
                if !calls.is_empty() {
                    let calls = calls.iter().enumerate().map(|(at, call)| self.call(index, at, call));
                    message["tool_calls"] = calls.collect();
                    message["content"] = Some(text).filter(|text| !text.is_empty()).into();
                }
                json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
            }
            Kind::Completion => {
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
            }
        }
    }

    /// Log-probabilities as this kind has them; `places` are those of the tokens in characters of the text.
    pub(crate) fn logprobs(&self, vocabulary: &Vocabulary, infos: &[Told]) -> Value {
        match self.kind {
            Kind::Chat => chat_logprobs(vocabulary, infos),
            Kind::Completion => completion_logprobs(vocabulary, infos),
        }
    }
}

/// A token of a text.
pub(crate) struct Told {
    pub(crate) id: u32,
    /// Of the first token of a prompt there is none.
    pub(crate) logprobs: Option<Logprobs>,
    /// Where it begins, in characters of the text.
    pub(crate) offset: usize,
}

fn chat_logprobs(vocabulary: &Vocabulary, infos: &[Told]) -> Value {
    let token = |id: u32, logprob: f32| {
        let bytes = vocabulary.shown(id);
        json!({ "token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes })
    };
    let one = |told: &Told| {
        let (logprob, top) = told.logprobs.as_ref().map_or((0.0, &[][..]), |l| (l.logprob, &l.top[..]));
        let mut object = token(told.id, logprob);
        object["top_logprobs"] = top.iter().map(|&(id, logprob)| token(id, logprob)).collect();
        object
    };
    json!({ "content": infos.iter().map(one).collect::<Vec<_>>(), "refusal": null })
}

fn completion_logprobs(vocabulary: &Vocabulary, infos: &[Told]) -> Value {
    let text = |id: u32| String::from_utf8_lossy(&vocabulary.shown(id)).into_owned();
    let top = |told: &Told| match &told.logprobs {
        None => Value::Null,
        Some(logprobs) => {
            // The token that is there is told of, too.
            let all = logprobs.top.iter().copied().chain([(told.id, logprobs.logprob)]);
            all.map(|(id, logprob)| (text(id), Value::from(logprob))).collect::<Map<_, _>>().into()
        }
    };
    json!({
        "tokens": infos.iter().map(|told| text(told.id)).collect::<Vec<_>>(),
        "token_logprobs": infos.iter().map(|t| t.logprobs.as_ref().map(|l| l.logprob)).collect::<Vec<_>>(),
        "top_logprobs": infos.iter().map(top).collect::<Vec<_>>(),
        "text_offset": infos.iter().map(|told| told.offset).collect::<Vec<_>>(),
    })
}
