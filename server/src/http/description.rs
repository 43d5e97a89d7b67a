//! `/openapi.json`: the endpoints, described.

use std::sync::OnceLock;

use axum::response::Response;
use serde_json::{Value, json};
use utoipa::OpenApi;

use super::{completions, plain, state, text};
use crate::wire::request::{
    ChatRequest, Common, CompletionRequest, DetokenizeRequest, SlotFile, StreamOptions, TemplateRequest,
    TokenizeRequest, WireMessage,
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Lapidary", description = "An OpenAI-compatible server for Gemma on CPUs."),
    paths(
        completions::chat,
        completions::completion,
        state::health,
        state::models,
        state::model,
        state::props,
        state::metrics,
        state::slots,
        state::slot,
        text::tokenize,
        text::detokenize,
        text::apply_template,
    ),
    components(schemas(
        ChatRequest,
        Common,
        CompletionRequest,
        DetokenizeRequest,
        SlotFile,
        StreamOptions,
        TemplateRequest,
        TokenizeRequest,
        WireMessage,
    ))
)]
struct Description;

/// Gives it.
pub(crate) async fn openapi() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    plain("application/json", TEXT.get_or_init(|| text().to_string()).clone())
}

/// The description; what both kinds of completion take stands in each.
fn text() -> Value {
    // Structures of texts alone: it cannot fail.
    let mut description = serde_json::to_value(Description::openapi()).unwrap_or_default();
    let schemas = &mut description["components"]["schemas"];
    let common = schemas["Common"]["properties"].clone();
    for name in ["ChatRequest", "CompletionRequest"] {
        if let (Some(own), Some(common)) = (schemas[name]["properties"].as_object_mut(), common.as_object()) {
            own.extend(common.iter().map(|(name, schema)| (name.clone(), schema.clone())));
        }
    }
    if let Some(schemas) = schemas.as_object_mut() {
        schemas.shift_remove("Common");
    }
    // Every endpoint may refuse a request.
    let error = json!({
        "type": "object",
        "required": ["error"],
        "properties": { "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": { "type": "string" },
                "type": { "type": "string" },
                "param": { "type": ["string", "null"] },
                "code": { "type": ["string", "null"] },
            },
        } },
    });
    schemas["Error"] = error;
    let content = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } });
    let refused = json!({ "description": "The request is refused, and why", "content": content });
    let paths = description["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    for operation in paths.filter_map(Value::as_object_mut).flat_map(|path| path.values_mut()) {
        if operation["responses"].is_object() {
            operation["responses"]["default"] = refused.clone();
        }
    }
    description
}
