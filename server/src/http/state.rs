//! How the server is: `/health`, `/v1/models`, `/props`, `/slots`, `/metrics`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Shared;
use crate::error::ApiError;
use crate::model::Vocabulary;
use crate::scheduler::{Command, SlotAction};
use crate::wire::request::{SlotFile, fields, object};

/// Whether the server answers requests.
#[utoipa::path(
    get,
    path = "/health",
    responses((status = 200, description = "It does"), (status = 503, description = "It is loading or ending"))
)]
pub(crate) async fn health(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    shared.vocabulary().map(|_| Json(json!({ "status": "ok" })))
}

/// The model.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, description = "A list of one")))]
pub(crate) async fn models(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    let vocabulary = shared.vocabulary()?;
    Ok(Json(json!({ "object": "list", "data": [model_object(&vocabulary)] })))
}

/// The same by its name.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    params(("id" = String, Path, description = "Its name")),
    responses((status = 200, description = "It"), (status = 404, description = "It has another name"))
)]
pub(crate) async fn model(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let vocabulary = shared.vocabulary()?;
    match id == vocabulary.name {
        true => Ok(Json(model_object(&vocabulary))),
        false => Err(ApiError::not_found(format!("the model here is `{}`", vocabulary.name))),
    }
}

fn model_object(vocabulary: &Vocabulary) -> Value {
    json!({
        "id": vocabulary.name,
        "object": "model",
        "created": vocabulary.created,
        "owned_by": "lapidary",
        "max_model_len": vocabulary.context,
        "meta": { "n_vocab": vocabulary.size, "n_ctx": vocabulary.context },
    })
}

/// What was set.
#[utoipa::path(get, path = "/props", responses((status = 200, description = "Limits and the chat template")))]
pub(crate) async fn props(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    let vocabulary = shared.vocabulary()?;
    let template = vocabulary.text.chat_template().and_then(|template| template.source().ok());
    let token = |id: u32| String::from_utf8_lossy(&vocabulary.shown(id)).into_owned();
    let tokenizer = vocabulary.tokenizer()?;
    Ok(Json(json!({
        "model": vocabulary.name,
        "version": env!("CARGO_PKG_VERSION"),
        "total_slots": shared.options.parallel,
        "n_ctx": vocabulary.context,
        "n_vocab": vocabulary.size,
        "queue": shared.options.queue,
        "strict_replay": shared.options.strict_replay,
        "chat_template": template,
        "bos_token": token(tokenizer.bos_id()),
        "stop_tokens": vocabulary.text.stop_tokens().iter().map(|&id| token(id)).collect::<Vec<_>>(),
    })))
}

/// What is counted, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Prometheus' text form")))]
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    super::plain("text/plain; version=0.0.4; charset=utf-8", shared.metrics.text())
}

/// What the slots do.
#[utoipa::path(get, path = "/slots", responses((status = 200, description = "One object a slot")))]
pub(crate) async fn slots(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    let vocabulary = shared.vocabulary()?;
    let (reply, states) = oneshot::channel();
    send(&shared, Command::Slots(reply))?;
    let states = states.await.map_err(|_| ending())?;
    let object = |(id, state): (usize, &crate::scheduler::SlotState)| {
        json!({
            "id": id,
            "n_ctx": vocabulary.context,
            "is_processing": state.busy,
            "n_prompt_tokens": state.prompt,
            "n_decoded": state.generated,
        })
    };
    Ok(Json(states.iter().enumerate().map(object).collect()))
}

/// Saves what a slot held last to a file, restores it from one, or forgets it.
#[utoipa::path(
    post,
    path = "/slots/{id}",
    params(
        ("id" = usize, Path, description = "The slot"),
        ("action" = String, Query, description = "save, restore or erase")
    ),
    request_body = SlotFile,
    responses((status = 200, description = "Tokens and bytes"), (status = 404, description = "No such thing"))
)]
pub(crate) async fn slot(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    shared.vocabulary()?;
    let slot = id.parse::<usize>().map_err(|_| ApiError::not_found("expected the number of a slot"))?;
    let (parts, body) = request.into_parts();
    let read = shared.bodies.read(&parts.headers, body, shared.options.max_body).await?;
    let file = match read.bytes.iter().all(u8::is_ascii_whitespace) {
        true => None,
        false => fields::<SlotFile>(&object(&read.bytes)?)?.filename,
    };
    let name = || file.ok_or_else(|| ApiError::field("filename", "`filename` is missing"));
    let (reply, done) = oneshot::channel();
    let action = match query.get("action").map(String::as_str) {
        Some("save") => SlotAction::Save(name()?, reply),
        Some("restore") => SlotAction::Restore(name()?, reply),
        Some("erase") => SlotAction::Erase(reply),
        _ => return Err(ApiError::field("action", "`action`: expected save, restore or erase")),
    };
    send(&shared, Command::Slot(slot, action))?;
    done.await.map_err(|_| ending())?.map(Json)
}

fn send(shared: &Shared, command: Command) -> Result<(), ApiError> {
    shared.commands.send(command).map_err(|_| ending())
}

fn ending() -> ApiError {
    ApiError::unavailable("the server is ending")
}
