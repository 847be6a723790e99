//! axum's extractors with our errors, and the small readers that several handlers share.

use axum::{
    extract::{FromRequest, FromRequestParts},
    http::{HeaderMap, HeaderValue, header},
    response::IntoResponse,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};

use crate::problem::{Problem, Result};

#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(Problem))]
pub struct Json<T>(pub T);

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> axum::response::Response {
        axum::Json(self.0).into_response()
    }
}

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub struct Path<T>(pub T);

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub struct Query<T>(pub T);

/// Rows of a page: 1 to 500, 100 unless asked for.
pub fn page_limit(asked: Option<u32>) -> Result<i64> {
    match asked {
        None => Ok(100),
        Some(n @ 1..=500) => Ok(i64::from(n)),
        Some(n) => Err(Problem::invalid(format!("limit {n}: allowed are 1 to 500"))),
    }
}

/// A cursor is the sort key of the last row shown, as `NUMBER:TEXT`; opaque to clients.
pub fn encode_cursor(number: i64, text: &str) -> String {
    BASE64.encode(format!("{number}:{text}"))
}

pub fn decode_cursor(cursor: Option<&str>) -> Result<Option<(i64, String)>> {
    let Some(cursor) = cursor else { return Ok(None) };
    let read = || {
        let bytes = BASE64.decode(cursor).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (number, text) = text.split_once(':')?;
        Some((number.parse().ok()?, text.to_owned()))
    };
    if cursor.len() > 512 {
        return Err(Problem::invalid("cursor is too long"));
    }
    read().map(Some).ok_or_else(|| Problem::invalid("cursor is none that this list gave; start without one"))
}

/// `ETag: "rev"`.
pub fn etag(rev: i64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{rev}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"0\""))
}

/// The revision of `If-Match`, which a guarded write must carry. `*` matches whatever is there.
pub fn if_match(headers: &HeaderMap) -> Result<Option<i64>> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Err(Problem::if_match_required("send If-Match with the ETag that you read"));
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let rev = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse().ok());
    rev.map(Some).ok_or_else(|| Problem::invalid("If-Match is no ETag of this server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_foreign_ones_are_refused() {
        let cursor = encode_cursor(-5, "a:b");
        assert_eq!(decode_cursor(Some(&cursor)).unwrap(), Some((-5, "a:b".to_owned())));
        assert_eq!(decode_cursor(None).unwrap(), None);
        for bad in ["", "x", "!!", &BASE64.encode("5"), &BASE64.encode("x:y"), &"A".repeat(600)] {
            assert!(decode_cursor(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn if_match_needs_one_of_our_tags() {
        let mut headers = HeaderMap::new();
        assert_eq!(if_match(&headers).unwrap_err().code, "if_match_required");
        for (text, expected) in [("\"7\"", Some(Some(7))), ("*", Some(None)), ("7", None), ("W/\"7\"", None)]
        {
            headers.insert(header::IF_MATCH, text.parse().unwrap());
            assert_eq!(if_match(&headers).ok(), expected, "{text}");
        }
        assert_eq!(etag(7), "\"7\"");
    }
}
