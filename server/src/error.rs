//! What can go wrong: with a request ([`ApiError`], as the API of OpenAI has errors), and with the server ([`Error`]).

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why the server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read, or is not what it should be.
    #[error(transparent)]
    File(#[from] lapidary_runtime::file::Error),
    /// The model did not open.
    #[error("{0}")]
    Model(Box<dyn std::error::Error + Send + Sync>),
    /// The model cannot be served.
    #[error("{name}: {what}")]
    Lacks {
        /// The model.
        name: String,
        /// What it lacks.
        what: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// An answer that is an error.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    pub(crate) message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to try again.
    retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    fn code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    /// A request that is wrong in a field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let error = ApiError::invalid(message);
        ApiError { param: Some(param.into()), ..error }
    }

    /// A request that is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// More tokens than the context.
    pub(crate) fn too_long(param: &str, tokens: usize, context: usize) -> ApiError {
        let message =
            format!("`{param}` is {tokens} tokens, the context is {context}: expected fewer than that");
        ApiError {
            param: Some(param.into()),
            ..ApiError::new(StatusCode::BAD_REQUEST, "exceed_context_size_error", message)
                .code("context_length_exceeded")
        }
    }

    pub(crate) fn unauthorized() -> ApiError {
        let message = "a key is needed: `Authorization: Bearer KEY` or `X-Api-Key: KEY`";
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message).code("invalid_api_key")
    }

    pub(crate) fn not_found(what: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found_error", what)
    }

    pub(crate) fn method() -> ApiError {
        let message = "the endpoint does not take this method: see /openapi.json";
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    pub(crate) fn too_large(most: usize) -> ApiError {
        let message = format!("the body is larger than {most} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    pub(crate) fn too_slow() -> ApiError {
        let message = "the body did not come in time";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", message)
    }

    pub(crate) fn loading() -> ApiError {
        let error = ApiError::unavailable("the model is being loaded").code("loading");
        ApiError { retry_after: Some(1), ..error }
    }

    pub(crate) fn deadline(seconds: u64) -> ApiError {
        ApiError::unavailable(format!("the request was not done after {seconds} s")).code("deadline")
    }

    pub(crate) fn queue_full(retry_after: u32) -> ApiError {
        let message = "as many requests wait as may: try again later";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        ApiError { retry_after: Some(retry_after), ..error.code("queue_full") }
    }

    /// Its body.
    pub(crate) fn json(&self) -> Value {
        let ApiError { message, kind, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
