//! API tokens: for programs, of a person, with that person's role or less.

use axum::{extract::State, http::StatusCode};
use sqlx::{FromRow, Row, any::AnyRow};
use uuid::Uuid;

use andon_protocol::api::{ApiToken, NewApiToken, Page};

use crate::{
    app::App,
    audit,
    auth::{self, TOKEN_PREFIX, Viewer},
    db::{from_word, word},
    extract::{Json, Path},
    problem::{Problem, Result},
};

const NAME_BYTES_MAX: usize = 200;
/// Of one person.
const TOKENS_MAX: i64 = 100;

/// Make an API token
///
/// The answer is the only place where `token` is shown.
#[utoipa::path(post, path = "/tokens", tag = "session", request_body = NewApiToken,
    responses((status = 201, body = ApiToken)))]
pub async fn create(
    Viewer(actor): Viewer,
    State(app): State<App>,
    Json(new): Json<NewApiToken>,
) -> Result<(StatusCode, Json<ApiToken>)> {
    let now_ms = app.now_ms();
    actor.require(new.role)?;
    if new.name.trim().is_empty() || new.name.len() > NAME_BYTES_MAX {
        return Err(Problem::invalid(format!("name: 1 to {NAME_BYTES_MAX} bytes")));
    }
    if new.expires_ms.is_some_and(|at| at <= now_ms) {
        return Err(Problem::invalid("expires_ms: is in the past"));
    }
    let secret = format!("{TOKEN_PREFIX}{}", auth::secret());
    let id = Uuid::now_v7().to_string();
    let mut tx = app.db.begin().await?;
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM api_token WHERE person = $1")
        .bind(&actor.name)
        .fetch_one(&mut *tx)
        .await?;
    if count >= TOKENS_MAX {
        return Err(Problem::conflict(format!("you have {count} tokens, revoke some first")));
    }
    sqlx::query(
        "INSERT INTO api_token (id, token_sha256, person, name, role, expires_ms, created_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&id)
    .bind(auth::sha256_hex(&secret))
    .bind(&actor.name)
    .bind(&new.name)
    .bind(word(&new.role))
    .bind(new.expires_ms)
    .bind(now_ms)
    .execute(&mut *tx)
    .await?;
    audit::record(&mut tx, now_ms, &actor.name, "token.create", &id, &new.name).await?;
    tx.commit().await?;
    let token = ApiToken {
        id,
        name: new.name,
        role: new.role,
        token: Some(secret),
        expires_ms: new.expires_ms,
        created_ms: now_ms,
    };
    Ok((StatusCode::CREATED, Json(token)))
}

/// My API tokens
#[utoipa::path(get, path = "/tokens", tag = "session", responses((status = 200, body = Page<ApiToken>)))]
pub async fn list(Viewer(actor): Viewer, State(app): State<App>) -> Result<Json<Page<ApiToken>>> {
    let rows: Vec<TokenRow> = sqlx::query_as(
        "SELECT id, name, role, expires_ms, created_ms FROM api_token WHERE person = $1 ORDER BY id LIMIT $2",
    )
    .bind(&actor.name)
    .bind(TOKENS_MAX)
    .fetch_all(app.db.reader())
    .await?;
    let items = rows.into_iter().map(TokenRow::into_token).collect::<Result<_>>()?;
    Ok(Json(Page { items, next: None }))
}

/// Revoke an API token of mine
#[utoipa::path(delete, path = "/tokens/{id}", tag = "session", params(("id" = String, Path)),
    responses((status = 204, description = "Revoked")))]
pub async fn revoke(
    Viewer(actor): Viewer,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    let mut tx = app.db.begin().await?;
    let gone = sqlx::query("DELETE FROM api_token WHERE id = $1 AND person = $2")
        .bind(&id)
        .bind(&actor.name)
        .execute(&mut *tx)
        .await?;
    if gone.rows_affected() == 0 {
        return Err(Problem::not_found("you have no such token"));
    }
    audit::record(&mut tx, app.now_ms(), &actor.name, "token.revoke", &id, "").await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

struct TokenRow {
    id: String,
    name: String,
    role: String,
    expires_ms: Option<i64>,
    created_ms: i64,
}

impl FromRow<'_, AnyRow> for TokenRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            role: row.try_get("role")?,
            expires_ms: row.try_get("expires_ms")?,
            created_ms: row.try_get("created_ms")?,
        })
    }
}

impl TokenRow {
    fn into_token(self) -> Result<ApiToken> {
        Ok(ApiToken {
            id: self.id,
            name: self.name,
            role: from_word(&self.role)?,
            token: None,
            expires_ms: self.expires_ms,
            created_ms: self.created_ms,
        })
    }
}
