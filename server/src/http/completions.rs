//! `/v1/chat/completions` and `/v1/completions`: requests to what is asked for.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;

use super::generation::{self, Asked};
use super::record::Record;
use super::{Shared, blocking};
use crate::error::ApiError;
use crate::model::Vocabulary;
use crate::parameters::{MOST_TOP_LOGPROBS, Parameters};
use crate::prompt;
use crate::tools::Tools;
use crate::wire::answer::Kind;
use crate::wire::request::{ChatRequest, Common, CompletionRequest, fields};

/// Tokens of a completion unless it is said: as the API of OpenAI has it.
const COMPLETION_TOKENS: usize = 16;

/// Answers a chat.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatRequest,
    responses((status = 200, description = "The answer, or chunks of it as server-sent events"))
)]
pub(crate) async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    answer(shared, request, Kind::Chat).await
}

/// Continues a text.
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = CompletionRequest,
    responses((status = 200, description = "The continuation, or chunks of it as server-sent events"))
)]
pub(crate) async fn completion(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(shared, request, Kind::Completion).await
}

async fn answer(shared: Arc<Shared>, request: Request, kind: Kind) -> Result<Response, ApiError> {
    let vocabulary = shared.vocabulary()?;
    let record = request.extensions().get::<Arc<Record>>().cloned();
    let record = record.ok_or_else(|| ApiError::internal("the request has no record"))?;
    let object = shared.object(request).await?;
    let (of, plain_content) = (vocabulary.clone(), shared.options.plain_content);
    // Long texts take a while to become tokens.
    let asked = blocking(move || match kind {
        Kind::Chat => chat_asked(&of, &object, plain_content),
        Kind::Completion => completion_asked(&of, &object),
    });
    generation::answer(&shared, vocabulary, asked.await??, record).await
}

fn chat_asked(vocabulary: &Vocabulary, object: &Value, plain_content: bool) -> Result<Asked, ApiError> {
    let mut common: Common = fields(object)?;
    let chat: ChatRequest = fields(object)?;
    common.max_tokens = chat.max_completion_tokens.or(common.max_tokens);
    let mut parameters = Parameters::new(&common, vocabulary.size)?;
    if parameters.max_tokens == Some(0) {
        return Err(ApiError::field("max_tokens", "`max_tokens` is 0: expected at least 1"));
    }
    parameters.logprobs = match (chat.logprobs.unwrap_or(false), chat.top_logprobs) {
        (true, top) => Some(top_logprobs("top_logprobs", top.unwrap_or(0))?),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::field("top_logprobs", "`top_logprobs`: it needs `logprobs`"));
        }
    };
    let tools = Tools::new(chat.tools.as_ref(), chat.tool_choice.as_ref(), chat.parallel_tool_calls)?;
    let text = prompt::render(vocabulary, &chat.messages, tools.as_ref(), plain_content)?;
    parameters.call(tools)?;
    let prompts = vec![prompt::encode(vocabulary, &text, "messages")?];
    Ok(Asked { kind: Kind::Chat, prompts, parameters, echo: false })
}

fn completion_asked(vocabulary: &Vocabulary, object: &Value) -> Result<Asked, ApiError> {
    let common: Common = fields(object)?;
    let completion: CompletionRequest = fields(object)?;
    let mut parameters = Parameters::new(&common, vocabulary.size)?;
    parameters.max_tokens = match common.max_tokens {
        // As much as there is room for.
        Some(-1) => None,
        _ => parameters.max_tokens.or(Some(COMPLETION_TOKENS)),
    };
    if completion.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        let message = "`suffix` is not supported: the model continues text, it fills none in";
        return Err(ApiError::field("suffix", message));
    }
    if completion.best_of.is_some_and(|best| best != parameters.n as i64) {
        return Err(ApiError::field("best_of", "`best_of` is not supported beyond `n`"));
    }
    parameters.logprobs = completion.logprobs.map(|top| top_logprobs("logprobs", top)).transpose()?;
    let prompts = prompt::prompts(vocabulary, &completion.prompt)?;
    let echo = completion.echo.unwrap_or(false);
    Ok(Asked { kind: Kind::Completion, prompts, parameters, echo })
}

fn top_logprobs(name: &str, top: i64) -> Result<usize, ApiError> {
    match top {
        0..=MOST_TOP_LOGPROBS => Ok(top as usize),
        _ => Err(ApiError::field(name, format!("`{name}` is {top}: expected 0 to {MOST_TOP_LOGPROBS}"))),
    }
}
