//! The people's API: routes below `/api/v1`, its OpenAPI document, and what all requests share. Handlers are thin: they
//! check, call and answer; what things mean is decided in the modules that own them.

pub mod alarms;
pub mod devices;
pub mod events;
pub mod history;
pub mod overview;
pub mod samples;
pub mod session;
pub mod tokens;

use std::time::Duration;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse as _, Response},
    routing::get,
};
use tower_http::{
    compression::CompressionLayer,
    set_header::SetResponseHeaderLayer,
    timeout::{RequestBodyTimeoutLayer, TimeoutLayer},
};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{app::App, dashboard, problem::Problem, releases, rollouts, training};

/// Of requests that do not say otherwise themselves.
const BODY_BYTES_MAX: usize = 64 * 1024;
const REQUEST: Duration = Duration::from_secs(30);
/// Between two pieces of a body, of any request.
const BODY_STALL: Duration = Duration::from_secs(30);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Andon fleet server",
        description = "Log in with a session cookie (`POST /session`), or send `Authorization: Bearer andon_…`. \
                       Lists are pages: `limit` (1 to 500, default 100) and `cursor`. Errors are problem details \
                       (RFC 9457)."
    ),
    // Used in a path alone, where the generator does not find it.
    components(schemas(andon_protocol::api::RolloutAction))
)]
struct Document;

/// Everything people reach: API, document, dashboard.
pub fn router(app: App) -> Router {
    let (api, document) = parts();
    let text = text_of(&document);
    let constant = |name: HeaderName, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
    };
    let document = get(move || {
        let text = text.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], text) }
    });
    Router::new()
        .merge(api.layer(map_response(problems_only)).layer(constant(header::CACHE_CONTROL, "no-store")))
        .route("/api/openapi.json", document)
        .route("/health", get(|| async { "ok" }))
        .route("/api/{*rest}", axum::routing::any(not_found))
        .merge(dashboard::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CompressionLayer::new())
        .layer(RequestBodyTimeoutLayer::new(BODY_STALL))
        .layer(constant(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(constant(header::X_FRAME_OPTIONS, "DENY"))
        .layer(constant(header::REFERRER_POLICY, "no-referrer"))
        .with_state(app)
}

/// The OpenAPI document as it is committed in `openapi.json`.
pub fn openapi_text() -> String {
    text_of(&parts().1)
}

fn text_of(document: &utoipa::openapi::OpenApi) -> String {
    let mut text = document.to_pretty_json().unwrap_or_else(|e| unreachable!("OpenAPI document: {e}"));
    text.push('\n');
    text
}

fn parts() -> (Router<App>, utoipa::openapi::OpenApi) {
    let (router, mut document) =
        OpenApiRouter::with_openapi(Document::openapi()).nest("/api/v1", routes()).split_for_parts();
    name_operations(&mut document);
    (router, document)
}

/// Operation ids must be unique in a document (OpenAPI 3.1, Operation Object), or generated clients mix up the types;
/// handlers of several modules share names such as `list`.
fn name_operations(document: &mut utoipa::openapi::OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let path: String = path.trim_start_matches("/api/v1").replace(['{', '}'], "").replace('/', "_");
        for (method, operation) in [
            ("get", &mut item.get),
            ("put", &mut item.put),
            ("post", &mut item.post),
            ("delete", &mut item.delete),
        ] {
            if let Some(operation) = operation {
                operation.operation_id = Some(format!("{method}{path}"));
            }
        }
    }
}

/// All routes of version 1. Those of releases, rollouts and training set their own limits, since bodies are large there.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(session::login, session::logout))
        .routes(routes!(session::me))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::revoke))
        .routes(routes!(overview::overview))
        .routes(routes!(devices::list))
        .routes(routes!(devices::get))
        .routes(routes!(devices::enrol))
        .routes(routes!(history::telemetry))
        .routes(routes!(history::events))
        .routes(routes!(alarms::list))
        .routes(routes!(alarms::acknowledge))
        .routes(routes!(samples::list))
        .routes(routes!(samples::get))
        .routes(routes!(samples::image))
        .routes(routes!(samples::label, samples::unlabel))
        .routes(routes!(overview::audit))
        .routes(routes!(events::events))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .merge(releases::routes())
        .merge(rollouts::routes())
        .merge(training::routes())
}

/// What a layer refused with a bare status (a request that took too long) becomes a problem like all others.
async fn problems_only(response: Response) -> Response {
    let status = response.status();
    let bare = !response.headers().contains_key(header::CONTENT_TYPE);
    if bare && (status.is_client_error() || status.is_server_error()) {
        let detail = "the request was given up; try again, and if that fails too, ask for less at once";
        return Problem { status, code: "unavailable", detail: detail.into() }.into_response();
    }
    response
}

pub async fn not_found() -> Problem {
    Problem::not_found("there is nothing at this address")
}

async fn method_not_allowed() -> Problem {
    Problem::method_not_allowed("this address does not take this method")
}
