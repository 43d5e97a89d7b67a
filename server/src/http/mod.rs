//! The endpoints: who answers what, and what holds of every request.
//!
//! | module | what it knows |
//! |---|---|
//! | [`connections`] | connections, and their limits |
//! | [`body`] | bodies, and their limits |
//! | [`completions`] | `/v1/chat/completions`, `/v1/completions` |
//! | [`generation`], [`stream`] | answers as they come |
//! | [`text`] | `/tokenize`, `/detokenize`, `/apply-template` |
//! | [`state`] | `/health`, `/v1/models`, `/props`, `/slots`, `/metrics` |
//! | [`description`] | `/openapi.json` |
//! | [`record`] | a line a request |

pub(crate) mod body;
pub(crate) mod completions;
pub(crate) mod connections;
mod description;
mod generation;
mod record;
mod state;
mod stream;
mod text;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use crate::error::ApiError;
use crate::guide::Guides;
use crate::keys::Keys;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::model::Vocabulary;
use crate::options::Options;
use crate::scheduler::Command;
use crate::wire::request;

use connections::Recorded;
use record::Record;

/// The page at `/`.
const PAGE: &str = include_str!("../page.html");
/// What the page may do: what is in it, and to ask this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Endpoints that clients ask for and that are not there, by how they begin.
const LACKING: [(&str, &str); 16] = [
    ("/v1/embeddings", "the model makes text, no embeddings"),
    ("/v1/responses", "use /v1/chat/completions"),
    ("/v1/conversations", "use /v1/chat/completions"),
    ("/v1/messages", "use /v1/chat/completions"),
    ("/v1/audio", "the model reads and makes text alone"),
    ("/v1/images", "the model reads and makes text alone"),
    ("/v1/moderations", "there is no moderation"),
    ("/v1/rerank", "there is no reranking"),
    ("/v1/files", "nothing is stored"),
    ("/v1/uploads", "nothing is stored"),
    ("/v1/batches", "use /v1/chat/completions; requests are stepped together"),
    ("/v1/assistants", "use /v1/chat/completions"),
    ("/v1/threads", "use /v1/chat/completions"),
    ("/v1/fine_tuning", "nothing is trained"),
    ("/infill", "the model continues text, it fills none in"),
    ("/embedding", "the model makes text, no embeddings"),
];

/// What handlers share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) keys: Keys,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) guides: Arc<Guides>,
    pub(crate) log: Log,
    /// Once it is loaded.
    pub(crate) model: OnceLock<Arc<Vocabulary>>,
    pub(crate) commands: Sender<Command>,
    /// Prompts that wait.
    pub(crate) waiting: Arc<AtomicUsize>,
    pub(crate) bodies: body::Held,
    pub(crate) ending: AtomicBool,
}

impl Shared {
    /// The model, if it is loaded and the server is not ending.
    pub(crate) fn vocabulary(&self) -> Result<Arc<Vocabulary>, ApiError> {
        if self.ending.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable("the server is ending"));
        }
        self.model.get().cloned().ok_or_else(ApiError::loading)
    }

    /// The object of a request's body.
    pub(crate) async fn object(&self, request: Request) -> Result<Value, ApiError> {
        let (parts, body) = request.into_parts();
        let read = self.bodies.read(&parts.headers, body, self.options.max_body).await?;
        blocking(move || request::object(&read.bytes)).await?
    }
}

/// Does what may take a while where it stops nobody else.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    // It fails if the work panicked: the server's log has the words.
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ApiError::internal("a bug of the server; see its log"))
}

/// All endpoints.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let mut router = Router::new()
        .route("/v1/chat/completions", post(completions::chat))
        .route("/chat/completions", post(completions::chat))
        .route("/v1/completions", post(completions::completion))
        .route("/v1/models", get(state::models))
        .route("/models", get(state::models))
        .route("/v1/models/{id}", get(state::model))
        .route("/health", get(state::health))
        .route("/props", get(state::props))
        .route("/metrics", get(state::metrics))
        .route("/slots", get(state::slots))
        .route("/slots/{id}", post(state::slot))
        .route("/tokenize", post(text::tokenize))
        .route("/detokenize", post(text::detokenize))
        .route("/apply-template", post(text::apply_template))
        .route("/openapi.json", get(description::openapi))
        .route("/", get(page))
        .fallback(unknown)
        .method_not_allowed_fallback(async || ApiError::method())
        .layer(from_fn_with_state(shared.clone(), around))
        .with_state(shared.clone());
    if let Some(origin) = &shared.options.cors {
        let allowed = match (origin.as_str(), HeaderValue::from_str(origin)) {
            ("*", _) | (_, Err(_)) => AllowOrigin::any(),
            (_, Ok(origin)) => AllowOrigin::exact(origin),
        };
        let layer = CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]);
        router = router.layer(layer.allow_headers(Any));
    }
    router
}

/// Calls a router, which never fails.
pub(crate) async fn call(router: Router, request: Request<Body>) -> Response {
    let mut router = router;
    match tower_service::Service::call(&mut router, request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// What holds of every request: its key, its line in the log.
async fn around(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let bodiless = request.method() == Method::HEAD;
    let open = ["/", "/health"].contains(&path);
    let record = Record::new(shared.log, shared.options.log_text, request.method().as_str(), path);
    let record = Arc::new(record);
    request.extensions_mut().insert(record.clone());
    let response = if open || shared.keys.admit(request.headers()) {
        next.run(request).await
    } else {
        ApiError::unauthorized().into_response()
    };
    record.status(response.status().as_u16());
    if bodiless {
        // Its body is not asked for.
        record.sent();
    }
    let (parts, body) = response.into_parts();
    let mut response = Response::from_parts(parts, Body::new(Recorded { body, record }));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

async fn page() -> Response {
    let mut response = PAGE.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

async fn unknown(request: Request) -> ApiError {
    let path = request.uri().path();
    match LACKING.iter().find(|(begin, _)| path.starts_with(begin)) {
        Some((begin, why)) => ApiError::unsupported(format!("{begin} is not supported: {why}")),
        None => ApiError::not_found("there is no such endpoint: see /openapi.json"),
    }
}

/// A response whose body is text.
pub(crate) fn plain(kind: &'static str, text: String) -> Response {
    let mut response = (StatusCode::OK, text).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
