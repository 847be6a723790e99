//! Serves the dashboard, a single-page application embedded at build time (see `build.rs`).
//!
//! Invariants: what it serves is public and the same for everybody, since all data comes through the API; hashed files
//! under `assets/` are cached for ever, the page itself is revalidated each time; no inline script or style is allowed.
//! Does not know sessions, and never answers for `/api/` or `/device/`: an unknown path there is an error, not a page.

use std::borrow::Cow;

use andon_protocol::api::Problem;
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};

#[derive(rust_embed::RustEmbed)]
#[folder = "$ANDON_DASHBOARD_DIR"]
struct Dist;

const INDEX: &str = "index.html";
/// Images come as same-origin URLs; uPlot and Preact set styles through the CSSOM, which needs no `unsafe-inline`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

struct File {
    bytes: Cow<'static, [u8]>,
    sha256: [u8; 32],
}

/// Routes for every path that no other route takes. Merge them last.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(serve)).route("/{*path}", get(serve))
}

async fn serve(uri: Uri, headers: HeaderMap) -> Response {
    answer(uri.path(), &headers, |name| {
        Dist::get(name).map(|file| File { sha256: file.metadata.sha256_hash(), bytes: file.data })
    })
}

fn answer(path: &str, headers: &HeaderMap, find: impl Fn(&str) -> Option<File>) -> Response {
    let name = path.trim_start_matches('/');
    if name.starts_with("api/") || name.starts_with("device/") {
        return not_found(path);
    }
    if name.starts_with("assets/") {
        return match find(name) {
            Some(file) => respond(name, "public, max-age=31536000, immutable", file, headers),
            None => not_found(path),
        };
    }
    // Every other path is a page of the application, which has its own router.
    match find(INDEX) {
        Some(file) => respond(INDEX, "no-cache", file, headers),
        None => not_found(path),
    }
}

fn respond(name: &str, cache: &'static str, file: File, headers: &HeaderMap) -> Response {
    let etag = format!("\"{}\"", hex::encode(&file.sha256[..16]));
    let known =
        headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains(&etag));
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let body = match file.bytes {
            Cow::Borrowed(bytes) => Body::from(bytes),
            Cow::Owned(bytes) => Body::from(bytes),
        };
        ([(header::CONTENT_TYPE, content_type(name))], body).into_response()
    };
    let out = response.headers_mut();
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    out.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        out.insert(header::ETAG, etag);
    }
    response
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "woff2" => "font/woff2",
        "json" | "map" => "application/json",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn not_found(path: &str) -> Response {
    let path: String = path.chars().take(200).collect();
    let problem = Problem {
        code: "not_found".into(),
        title: "Not found".into(),
        status: 404,
        detail: format!("nothing is served at {path}"),
    };
    let mut response = (StatusCode::NOT_FOUND, axum::Json(problem)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> Option<File> {
        let bytes: &'static [u8] = match name {
            "index.html" => b"<!doctype html>",
            "assets/main-ABC.js" => b"1",
            _ => return None,
        };
        Some(File { bytes: Cow::Borrowed(bytes), sha256: [7; 32] })
    }

    fn header(response: &Response, name: header::HeaderName) -> &str {
        response.headers().get(name).map_or("", |v| v.to_str().unwrap())
    }

    #[test]
    fn paths() {
        const FOR_EVER: &str = "public, max-age=31536000, immutable";
        for (path, status, content_type, cache) in [
            ("/", 200, "text/html; charset=utf-8", "no-cache"),
            ("/devices/cell-1", 200, "text/html; charset=utf-8", "no-cache"),
            ("/samples/label", 200, "text/html; charset=utf-8", "no-cache"),
            ("/assets/main-ABC.js", 200, "text/javascript; charset=utf-8", FOR_EVER),
            ("/assets/gone.js", 404, "application/problem+json", ""),
            ("/assets/../index.html", 404, "application/problem+json", ""),
            ("/api/v1/nothing", 404, "application/problem+json", ""),
            ("/device/v1/nothing", 404, "application/problem+json", ""),
        ] {
            let response = answer(path, &HeaderMap::new(), find);
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(header(&response, header::CONTENT_TYPE), content_type, "{path}");
            assert_eq!(header(&response, header::CACHE_CONTROL), cache, "{path}");
        }
    }

    #[test]
    fn the_page_allows_no_inline_script_and_is_revalidated() {
        let first = answer("/", &HeaderMap::new(), find);
        let policy = header(&first, header::CONTENT_SECURITY_POLICY);
        assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(answer("/", &headers, find).status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn something_is_embedded_with_or_without_node() {
        assert!(Dist::get(INDEX).is_some());
    }
}
