//! Logging in and out with a password.

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{AppendHeaders, IntoResponse},
};

use andon_protocol::api::{Login, Me, Problem as ProblemBody};

use crate::{
    app::App,
    audit,
    auth::{self, SESSION_MS, Via, Viewer, password},
    extract::Json,
    listen::Peer,
    problem::{Problem, Result},
};

const NAME_BYTES_MAX: usize = 256;

/// Log in
///
/// Sets the session cookie.
#[utoipa::path(post, path = "/session", tag = "session", request_body = Login, responses(
    (status = 204, description = "Logged in"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json")))]
pub async fn login(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Json(login): Json<Login>,
) -> Result<impl IntoResponse> {
    // Another site's page must not log the person in as somebody else. Programs send neither header.
    if headers.contains_key("sec-fetch-site") || headers.contains_key(header::ORIGIN) {
        auth::refuse_cross_site(&Method::POST, &headers)?;
    }
    if login.user.len() > NAME_BYTES_MAX {
        return Err(Problem::invalid("user: too long"));
    }
    let now_ms = app.now_ms();
    let keys = [format!("user {}", login.user), format!("peer {}", peer.address.ip())];
    for key in &keys {
        app.auth.failures.check(key, now_ms)?;
    }
    let stored: Option<String> = sqlx::query_scalar("SELECT password_hash FROM person WHERE name = $1")
        .bind(&login.user)
        .fetch_optional(app.db.reader())
        .await?;
    if !password::verify(&app, login.password, stored).await? {
        for key in &keys {
            app.auth.failures.failed(key, now_ms);
        }
        tracing::warn!(user = login.user, peer = %peer.address, "login refused");
        return Err(Problem::unauthorised("wrong user or password"));
    }
    let token = auth::secret();
    let mut tx = app.db.begin().await?;
    sqlx::query("INSERT INTO session (token_sha256, person, created_ms, expires_ms) VALUES ($1, $2, $3, $4)")
        .bind(auth::sha256_hex(&token))
        .bind(&login.user)
        .bind(now_ms)
        .bind(now_ms + SESSION_MS)
        .execute(&mut *tx)
        .await?;
    audit::record(&mut tx, now_ms, &login.user, "session.login", &login.user, &peer.address.ip().to_string())
        .await?;
    tx.commit().await?;
    Ok((StatusCode::NO_CONTENT, set_cookie(&app, &token, SESSION_MS / 1000)?))
}

/// Log out
#[utoipa::path(delete, path = "/session", tag = "session", responses((status = 204, description = "Logged out")))]
pub async fn logout(Viewer(actor): Viewer, State(app): State<App>) -> Result<impl IntoResponse> {
    if let Via::Session { token_sha256 } = &actor.via {
        sqlx::query("DELETE FROM session WHERE token_sha256 = $1")
            .bind(token_sha256)
            .execute(app.db.writer())
            .await?;
    }
    Ok((StatusCode::NO_CONTENT, set_cookie(&app, "", 0)?))
}

/// Who am I
#[utoipa::path(get, path = "/me", tag = "session", responses((status = 200, body = Me)))]
pub async fn me(Viewer(actor): Viewer) -> Json<Me> {
    Json(Me { user: actor.name, role: actor.role })
}

fn set_cookie(
    app: &App,
    token: &str,
    max_age_s: i64,
) -> Result<AppendHeaders<[(header::HeaderName, HeaderValue); 1]>> {
    let secure = if app.auth.secure_cookies { "; Secure" } else { "" };
    let name = app.auth.cookie_name();
    let text = format!("{name}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age_s}{secure}");
    Ok(AppendHeaders([(header::SET_COOKIE, HeaderValue::try_from(text).map_err(Problem::internal)?)]))
}
