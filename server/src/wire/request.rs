//! Bodies of requests. Unknown fields are passed over, as the API of OpenAI does; a wrong type is an error that names
//! the field. What may be one thing or another is a [`Value`], which [`parameters`](crate::parameters) looks into.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::ApiError;

/// What both kinds of completion take.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Common {
    /// The model's name; there is one model, and any name means it.
    #[allow(dead_code)]
    pub(crate) model: Option<String>,
    /// Most tokens of an answer.
    pub(crate) max_tokens: Option<i64>,
    /// Answers to one prompt.
    pub(crate) n: Option<i64>,
    /// 0 always takes the most likely token.
    pub(crate) temperature: Option<f32>,
    /// The fewest most likely tokens whose probabilities add up to this.
    pub(crate) top_p: Option<f32>,
    /// This many most likely tokens; 0 or -1: all.
    pub(crate) top_k: Option<i64>,
    /// Tokens at least this many times as likely as the most likely one.
    pub(crate) min_p: Option<f32>,
    /// Where the random numbers start: the same seed gives the same tokens.
    pub(crate) seed: Option<i64>,
    /// A text that ends the answer, or a list.
    #[schema(value_type = Option<Object>)]
    pub(crate) stop: Option<Value>,
    /// Added to the logits of tokens, by id.
    #[schema(value_type = Option<BTreeMap<String, f32>>)]
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    /// Subtracted from the logits of tokens that the answer has.
    pub(crate) presence_penalty: Option<f32>,
    /// The same, for each time.
    pub(crate) frequency_penalty: Option<f32>,
    /// Divides the positive logits of tokens of the text so far, multiplies the negative ones.
    pub(crate) repetition_penalty: Option<f32>,
    /// Whether the answer goes on where the model would end it.
    pub(crate) ignore_eos: Option<bool>,
    /// Whether it comes as it is made.
    pub(crate) stream: Option<bool>,
    /// What a stream has beside the text.
    pub(crate) stream_options: Option<StreamOptions>,
    /// `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": ...}}`.
    #[schema(value_type = Option<Object>)]
    pub(crate) response_format: Option<Value>,
    /// A grammar in the dialect of Lark that llguidance knows.
    pub(crate) grammar: Option<String>,
}

/// See [`Common`].
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether the last chunk tells the usage.
    pub(crate) include_usage: Option<bool>,
}

/// A message of a chat.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct WireMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub(crate) role: String,
    /// A text, or a list of `{"type": "text", "text"}`.
    #[schema(value_type = Option<Object>)]
    pub(crate) content: Option<Value>,
    /// Functions that an answer called.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(crate) tool_calls: Option<Value>,
    /// The call whose result a message of the role `tool` is.
    pub(crate) tool_call_id: Option<String>,
}

/// `POST /v1/chat/completions`, beside [`Common`].
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    /// What was said.
    pub(crate) messages: Vec<WireMessage>,
    /// The newer name of `max_tokens`.
    pub(crate) max_completion_tokens: Option<i64>,
    /// Whether the log-probabilities of tokens are told.
    pub(crate) logprobs: Option<bool>,
    /// Of how many likely tokens at each place, too.
    pub(crate) top_logprobs: Option<i64>,
    /// Functions that the answer may call: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(crate) tools: Option<Value>,
    /// `none`, `auto`, `required`, or `{"type": "function", "function": {"name"}}`.
    #[schema(value_type = Option<Object>)]
    pub(crate) tool_choice: Option<Value>,
    /// Whether an answer that is required to call may call several.
    pub(crate) parallel_tool_calls: Option<bool>,
}

/// `POST /v1/completions`, beside [`Common`].
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    /// A text, token ids, or a list of either.
    #[schema(value_type = Object)]
    pub(crate) prompt: Value,
    /// Of how many likely tokens at each place the log-probabilities are told.
    pub(crate) logprobs: Option<i64>,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: Option<bool>,
    /// Not supported.
    pub(crate) suffix: Option<String>,
    /// Not supported beyond `n`.
    pub(crate) best_of: Option<i64>,
}

/// `POST /tokenize`
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// The text.
    pub(crate) content: String,
    /// Whether BOS is put before it.
    pub(crate) add_special: Option<bool>,
    /// Whether the tokens' texts are told, too.
    pub(crate) with_pieces: Option<bool>,
}

/// `POST /detokenize`
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    /// The ids.
    pub(crate) tokens: Vec<u32>,
}

/// `POST /apply-template`
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TemplateRequest {
    /// What was said.
    pub(crate) messages: Vec<WireMessage>,
    /// Given to the model's chat template.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(crate) tools: Option<Value>,
}

/// `POST /slots/{id}?action=save|restore`
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct SlotFile {
    /// The file's name within the folder that the server was told of.
    pub(crate) filename: Option<String>,
}

/// The JSON object of a body.
pub(crate) fn object(bytes: &[u8]) -> Result<Value, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(ApiError::invalid("expected a JSON object as the body")),
        Err(error) => Err(ApiError::invalid(format!("the body is not JSON: {error}"))),
    }
}

/// The fields of an object that a request knows.
pub(crate) fn fields<T: DeserializeOwned>(object: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.into_inner().to_string());
        // The object itself, where a field is missing.
        let missing = inner.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        match missing {
            Some(field) if path == "." => ApiError::field(field, format!("`{field}` is missing")),
            _ => ApiError::field(path.clone(), format!("`{path}`: {inner}")),
        }
    })
}
