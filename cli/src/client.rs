//! HTTP to the people's API: typed bodies in and out, errors as the server's [`Problem`], every answer bounded.

use std::{path::Path, time::Duration};

use andon_protocol::api::{Page, Problem};
use reqwest::{Method, RequestBuilder, Response, Url, header};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};

const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of silence, not of the whole transfer: publishing half a gigabyte over a slow link may take its time.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// What the API gives at most in one page.
const PAGE_MAX: usize = 500;

pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
}

/// A body with the tag that a write to it must carry.
pub(crate) struct Tagged<T> {
    pub(crate) body: T,
    pub(crate) etag: String,
}

impl Client {
    pub(crate) fn new(url: &str, token: Option<String>, ca: Option<&Path>) -> Result<Self> {
        let bad = || Error::Url { url: url.to_owned() };
        let base = Url::parse(url).map_err(|_| bad())?;
        if !matches!(base.scheme(), "http" | "https")
            || !base.has_host()
            || base.path() != "/"
            || base.query().is_some()
        {
            return Err(bad());
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("andon/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        if let Some(path) = ca {
            let pem = std::fs::read(path).map_err(Error::file(path))?;
            let rule = |e: reqwest::Error| Error::Content { path: path.into(), rule: cause(&e) };
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).map_err(rule)?);
        }
        let http =
            builder.build().map_err(|e| Error::Unreachable { url: url.to_owned(), reason: cause(&e) })?;
        Ok(Self { http, base, token })
    }

    /// `scheme://host:port`, without a path.
    pub(crate) fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// `path` below `/api/v1`, its parts already checked or encoded by [`segment`].
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/api/v1{path}", self.origin());
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = self.body(response).await.unwrap_or_default();
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(Error::Problem(Box::new(problem))),
            Err(_) => Err(Error::Status { url: self.origin(), status }),
        }
    }

    pub(crate) async fn body(&self, mut response: Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.answer(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(crate) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|e| self.answer(e.to_string()))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// An action without a body.
    pub(crate) async fn act<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(self.request(Method::POST, path)).await
    }

    pub(crate) async fn get_tagged<T: DeserializeOwned>(&self, path: &str) -> Result<Tagged<T>> {
        let response = self.send(self.request(Method::GET, path)).await?;
        let etag =
            response.headers().get(header::ETAG).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let body = self.body(response).await?;
        Ok(Tagged { body: serde_json::from_slice(&body).map_err(|e| self.answer(e.to_string()))?, etag })
    }

    /// The first `limit` items of a list, over as many pages as that takes.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        limit: usize,
    ) -> Result<Vec<T>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        while items.len() < limit {
            let wanted = (limit - items.len()).min(PAGE_MAX);
            let mut request = self.request(Method::GET, path).query(query).query(&[("limit", wanted)]);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let page: Page<T> = self.json(request).await?;
            let empty = page.items.is_empty();
            items.extend(page.items);
            match page.next {
                // A server that gives empty pages for ever must not hold us for ever.
                Some(next) if !empty && cursor.as_ref() != Some(&next) => cursor = Some(next),
                _ => break,
            }
        }
        items.truncate(limit);
        Ok(items)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        Error::Unreachable { url: self.origin(), reason: cause(error) }
    }

    pub(crate) fn answer(&self, reason: String) -> Error {
        Error::Answer { url: self.origin(), reason }
    }
}

/// The innermost cause says what happened; the outer ones say "error sending request".
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// One part of a path. Ids that people type may hold anything.
pub(crate) fn segment(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if plain(b) { out.push(b as char) } else { out.push_str(&format!("%{b:02X}")) }
    }
    // Dots alone are resolved away, even encoded. No id looks like that: make it one that is not found.
    if matches!(out.as_str(), "." | "..") { out + "%20" } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_segments_cannot_escape() {
        for (text, expected) in [
            ("cell-1", "cell-1"),
            ("a/b", "a%2Fb"),
            ("..", "..%20"),
            ("a?b#c d", "a%3Fb%23c%20d"),
            ("ü", "%C3%BC"),
        ] {
            assert_eq!(segment(text), expected);
        }
    }

    #[test]
    fn urls_of_servers() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for (url, legal) in [
            ("http://127.0.0.1:8080", true),
            ("https://andon.example/", true),
            ("127.0.0.1:8080", false),
            ("ftp://x", false),
            ("http://x/fleet", false),
            ("http://x/?q=1", false),
            ("", false),
        ] {
            assert_eq!(Client::new(url, None, None).is_ok(), legal, "{url:?}");
        }
    }
}
