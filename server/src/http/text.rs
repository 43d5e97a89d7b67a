//! `/tokenize`, `/detokenize`, `/apply-template`: what becomes of texts, without an answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use super::{Shared, blocking};
use crate::error::ApiError;
use crate::model::Vocabulary;
use crate::prompt;
use crate::tools::Tools;
use crate::wire::request::{DetokenizeRequest, TemplateRequest, TokenizeRequest, fields};

/// Does something with the object of a request's body.
async fn with(
    shared: Arc<Shared>,
    request: Request,
    make: impl FnOnce(&Vocabulary, &Value) -> Result<Value, ApiError> + Send + 'static,
) -> Result<Json<Value>, ApiError> {
    let vocabulary = shared.vocabulary()?;
    let object = shared.object(request).await?;
    blocking(move || make(&vocabulary, &object)).await?.map(Json)
}

/// The ids of a text.
#[utoipa::path(
    post,
    path = "/tokenize",
    request_body = TokenizeRequest,
    responses((status = 200, description = "`tokens`: ids, or ids and texts"))
)]
pub(crate) async fn tokenize(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    with(shared, request, |vocabulary, object| {
        let asked: TokenizeRequest = fields(object)?;
        let ids = vocabulary.tokenizer()?.encode(&asked.content, asked.add_special.unwrap_or(false));
        let ids = ids.map_err(|error| ApiError::field("content", error.to_string()))?;
        let piece = |&id: &u32| {
            let bytes = vocabulary.shown(id);
            match String::from_utf8(bytes) {
                Ok(text) => json!({ "id": id, "piece": text }),
                Err(bytes) => json!({ "id": id, "piece": bytes.into_bytes() }),
            }
        };
        Ok(match asked.with_pieces.unwrap_or(false) {
            true => json!({ "tokens": ids.iter().map(piece).collect::<Vec<_>>() }),
            false => json!({ "tokens": ids }),
        })
    })
    .await
}

/// The text of ids.
#[utoipa::path(
    post,
    path = "/detokenize",
    request_body = DetokenizeRequest,
    responses((status = 200, description = "`content`: the text; special tokens have none"))
)]
pub(crate) async fn detokenize(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    with(shared, request, |vocabulary, object| {
        let asked: DetokenizeRequest = fields(object)?;
        Ok(json!({ "content": vocabulary.tokenizer()?.decode(&asked.tokens) }))
    })
    .await
}

/// The prompt that messages make.
#[utoipa::path(
    post,
    path = "/apply-template",
    request_body = TemplateRequest,
    responses((status = 200, description = "`prompt`: the text that an answer goes on from"))
)]
pub(crate) async fn apply_template(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    with(shared, request, |vocabulary, object| {
        let asked: TemplateRequest = fields(object)?;
        let tools = Tools::new(asked.tools.as_ref(), None, None)?;
        Ok(json!({ "prompt": prompt::render(vocabulary, &asked.messages, tools.as_ref(), false)? }))
    })
    .await
}
