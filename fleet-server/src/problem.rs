//! What goes wrong, as people and programs see it: problem details (RFC 9457). The public text says what is wrong with
//! the request and what to do; what is wrong with the server goes to the log only, once, here.

use std::fmt;

use axum::{
    extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use andon_protocol::api;

pub type Result<T, E = Problem> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// Stable, for programs.
    pub code: &'static str,
    pub detail: String,
}

macro_rules! kinds {
    ($($(#[$meta:meta])* $name:ident = $status:ident, $code:literal;)*) => {
        $($(#[$meta])*
        pub fn $name(detail: impl Into<String>) -> Self {
            Self { status: StatusCode::$status, code: $code, detail: detail.into() }
        })*
    };
}

impl Problem {
    kinds! {
        invalid = BAD_REQUEST, "invalid";
        unauthorised = UNAUTHORIZED, "unauthorised";
        forbidden = FORBIDDEN, "forbidden";
        not_found = NOT_FOUND, "not_found";
        method_not_allowed = METHOD_NOT_ALLOWED, "method_not_allowed";
        conflict = CONFLICT, "conflict";
        /// The resource changed since it was read.
        stale = PRECONDITION_FAILED, "stale";
        /// A write that needs `If-Match` came without.
        if_match_required = PRECONDITION_REQUIRED, "if_match_required";
        too_large = PAYLOAD_TOO_LARGE, "too_large";
        unsupported_media_type = UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type";
        /// Well-formed, and against a rule of the domain.
        refused = UNPROCESSABLE_ENTITY, "refused";
        too_many = TOO_MANY_REQUESTS, "too_many";
        unavailable = SERVICE_UNAVAILABLE, "unavailable";
        range_not_satisfiable = RANGE_NOT_SATISFIABLE, "range_not_satisfiable";
    }

    /// Our fault: the cause goes to the log, the public text gives nothing away.
    pub fn internal(cause: impl fmt::Display) -> Self {
        tracing::error!(%cause, "request failed");
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "internal",
            detail: "the server failed; its log says why".into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = api::Problem {
            code: self.code.to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::RowNotFound => Problem::not_found("no such thing"),
            sqlx::Error::PoolTimedOut => {
                tracing::error!("no database connection was free in time");
                Problem::unavailable("the database is overloaded, try again")
            }
            _ => Problem::internal(format_args!("database: {error}")),
        }
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Problem::internal(format_args!("file: {error}"))
    }
}

impl From<serde_json::Error> for Problem {
    /// For JSON that we stored ourselves; bodies of requests are read by the extractors.
    fn from(error: serde_json::Error) -> Self {
        Problem::internal(format_args!("stored JSON: {error}"))
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        match rejection {
            JsonRejection::MissingJsonContentType(_) => {
                Problem::unsupported_media_type("the body must be JSON, with Content-Type: application/json")
            }
            other => from_status(other.status(), other.body_text()),
        }
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        from_status(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Problem::invalid(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        match rejection.status() {
            status if status.is_server_error() => Problem::internal(rejection.body_text()),
            // A path that cannot be an id names nothing.
            _ => Problem::not_found(rejection.body_text()),
        }
    }
}

fn from_status(status: StatusCode, text: String) -> Problem {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large("the body is larger than this request may be"),
        status if status.is_server_error() => Problem::internal(text),
        _ => Problem::invalid(text),
    }
}
