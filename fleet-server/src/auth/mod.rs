//! Who is asking, and whether they may. People by session cookie or API token; a role is demanded by the type of the
//! handler's first argument (`Viewer(actor): Viewer`, …), so that it is checked before any body is read, and
//! `tests::roles` holds the table of route and role.
//!
//! Secrets are 256 random bits; the database keeps their SHA-256, which needs no salt and can be looked up.

pub mod password;
pub mod throttle;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, Method, header, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

use andon_protocol::api::Role;

use crate::{
    app::App,
    db::from_word,
    problem::{Problem, Result},
};

pub use throttle::Throttle;

pub const TOKEN_PREFIX: &str = "andon_";
/// A dashboard on a wall should not log out every night.
pub const SESSION_MS: i64 = 7 * 24 * 3600 * 1000;
/// Longest credential that is worth hashing.
const SECRET_BYTES_MAX: usize = 256;

/// What is shared between logins.
#[derive(Debug)]
pub struct Guards {
    /// Wrong passwords by name and by peer.
    pub failures: Throttle,
    /// Argon2 takes 19 MiB and tens of milliseconds each; more at once would starve the server.
    pub hashing: tokio::sync::Semaphore,
    /// Cookies are `Secure`, with the `__Host-` prefix, where the listener speaks TLS.
    pub secure_cookies: bool,
}

impl Guards {
    pub fn new(secure_cookies: bool) -> Self {
        Self { failures: Throttle::new(10, 60_000), hashing: tokio::sync::Semaphore::new(2), secure_cookies }
    }

    pub fn cookie_name(&self) -> &'static str {
        if self.secure_cookies { "__Host-andon" } else { "andon" }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub name: String,
    pub role: Role,
    pub via: Via,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    Session { token_sha256: String },
    Token { id: String },
}

impl Actor {
    pub fn require(&self, role: Role) -> Result<()> {
        if rank(self.role) >= rank(role) {
            Ok(())
        } else {
            Err(Problem::forbidden(
                format!("this needs the role {role:?}; yours is {:?}", self.role).to_lowercase(),
            ))
        }
    }
}

/// Each role may do all that a lower one may.
pub fn rank(role: Role) -> u8 {
    match role {
        Role::Viewer => 0,
        Role::Labeller => 1,
        Role::Engineer => 2,
        Role::Operator => 3,
        Role::Admin => 4,
    }
}

macro_rules! gates {
    ($($role:ident)*) => {$(
        /// An actor of at least this role.
        #[derive(Debug)]
        pub struct $role(pub Actor);

        impl FromRequestParts<App> for $role {
            type Rejection = Problem;
            async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
                let actor = authenticate(parts, app).await?;
                actor.require(Role::$role)?;
                Ok(Self(actor))
            }
        }
    )*};
}
gates! { Viewer Labeller Engineer Operator Admin }

async fn authenticate(parts: &Parts, app: &App) -> Result<Actor> {
    let now_ms = app.now_ms();
    if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
        let token = value.to_str().ok().and_then(|v| v.strip_prefix("Bearer "));
        let token = token.filter(|t| t.starts_with(TOKEN_PREFIX) && t.len() <= SECRET_BYTES_MAX);
        let token = token.ok_or_else(|| Problem::unauthorised("expected Authorization: Bearer andon_…"))?;
        let row: Option<(String, String, String)> = sqlx::query_as(
            "SELECT id, person, role FROM api_token WHERE token_sha256 = $1 AND (expires_ms IS NULL OR expires_ms > $2)",
        )
        .bind(sha256_hex(token))
        .bind(now_ms)
        .fetch_optional(app.db.reader())
        .await?;
        let (id, name, role) =
            row.ok_or_else(|| Problem::unauthorised("the API token is unknown or has expired"))?;
        return Ok(Actor { name, role: from_word(&role)?, via: Via::Token { id } });
    }
    let Some(token) = cookie(&parts.headers, app.auth.cookie_name()) else {
        return Err(Problem::unauthorised("log in first, or send an API token"));
    };
    let token_sha256 = sha256_hex(token);
    let row: Option<(String, String)> = sqlx::query_as(
        "SELECT p.name, p.role FROM session s JOIN person p ON p.name = s.person \
         WHERE s.token_sha256 = $1 AND s.expires_ms > $2",
    )
    .bind(&token_sha256)
    .bind(now_ms)
    .fetch_optional(app.db.reader())
    .await?;
    let (name, role) = row.ok_or_else(|| Problem::unauthorised("the session has ended, log in again"))?;
    // A cookie travels with requests that other sites cause; a bearer token does not.
    refuse_cross_site(&parts.method, &parts.headers)?;
    Ok(Actor { name, role: from_word(&role)?, via: Via::Session { token_sha256 } })
}

/// Refuses a request that may change something unless the browser says that our own pages caused it: by
/// `Sec-Fetch-Site`, or in older browsers by an `Origin` equal to `Host`.
pub fn refuse_cross_site(method: &Method, headers: &HeaderMap) -> Result<()> {
    if method.is_safe() {
        return Ok(());
    }
    let text = |name| headers.get(name).and_then(|v: &axum::http::HeaderValue| v.to_str().ok());
    let own = match text(header::HeaderName::from_static("sec-fetch-site")) {
        // `none`: typed by the person, not caused by a page.
        Some(site) => matches!(site, "same-origin" | "none"),
        None => {
            let origin = text(header::ORIGIN).and_then(|o| o.split_once("://")).map(|(_, host)| host);
            origin.is_some() && origin == text(header::HOST)
        }
    };
    if own {
        Ok(())
    } else {
        Err(Problem::forbidden(
            "a write with a cookie must come from this server's own pages; programs use an API token",
        ))
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, value)| *key == name && value.len() <= SECRET_BYTES_MAX)
        .map(|(_, value)| value)
}

/// 256 random bits as text.
pub fn secret() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    BASE64.encode(bytes)
}

pub fn sha256_hex(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_may_write_with_a_cookie() {
        type Case = (&'static Method, &'static [(&'static str, &'static str)], bool);
        let cases: [Case; 9] = [
            (&Method::GET, &[], true),
            (&Method::POST, &[], false),
            (&Method::POST, &[("sec-fetch-site", "same-origin")], true),
            (&Method::POST, &[("sec-fetch-site", "none")], true),
            (&Method::POST, &[("sec-fetch-site", "same-site")], false),
            (
                &Method::DELETE,
                &[("sec-fetch-site", "cross-site"), ("origin", "http://a"), ("host", "a")],
                false,
            ),
            (&Method::PUT, &[("origin", "http://a:1"), ("host", "a:1")], true),
            (&Method::PUT, &[("origin", "http://b"), ("host", "a")], false),
            (&Method::PUT, &[("origin", "null"), ("host", "a")], false),
        ];
        for (method, headers, allowed) in cases {
            let map: HeaderMap =
                headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
            assert_eq!(refuse_cross_site(method, &map).is_ok(), allowed, "{method} {headers:?}");
        }
    }

    #[test]
    fn cookies_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=1; andonx=2".parse().unwrap());
        headers.append(header::COOKIE, " andon=3;b=4".parse().unwrap());
        assert_eq!(cookie(&headers, "andon"), Some("3"));
        assert_eq!(cookie(&headers, "c"), None);
    }
}
