//! The files of the TUF repository, read-only, with ranges, so that a download goes on where it broke off.
//!
//! Paths are made of checked segments below the repository; links are not followed by name, since nothing makes any.

use std::path::{Path as FilePath, PathBuf};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom};
use tokio_util::io::ReaderStream;

use super::Caller;
use crate::{
    app::App,
    extract::Path,
    problem::{Problem, Result},
};

const SEGMENTS_MAX: usize = 8;

pub async fn metadata(
    _: Caller,
    State(app): State<App>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Result<Response> {
    let path = below(&app.paths.tuf().join("metadata"), &file)?;
    // `timestamp.json` is replaced all the time, the others never.
    send(&path, &headers, if file == "timestamp.json" { "no-cache" } else { "max-age=31536000, immutable" })
        .await
}

pub async fn target(
    _: Caller,
    State(app): State<App>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response> {
    let path = below(&app.paths.tuf().join("targets"), &path)?;
    send(&path, &headers, "max-age=31536000, immutable").await
}

/// `root/text`, where every segment of `text` is a plain file name.
fn below(root: &FilePath, text: &str) -> Result<PathBuf> {
    let plain = |segment: &str| {
        !segment.is_empty()
            && segment.len() <= 255
            && !segment.starts_with('.')
            && segment.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
    };
    let segments: Vec<&str> = text.split('/').take(SEGMENTS_MAX + 1).collect();
    if segments.len() > SEGMENTS_MAX || !segments.iter().copied().all(plain) {
        return Err(Problem::not_found("no such file"));
    }
    Ok(segments.iter().fold(root.to_owned(), |path, segment| path.join(segment)))
}

async fn send(path: &FilePath, headers: &HeaderMap, cache: &'static str) -> Result<Response> {
    let missing = |_| Problem::not_found("no such file");
    let mut file = tokio::fs::File::open(path).await.map_err(missing)?;
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        return Err(Problem::not_found("no such file"));
    }
    let size = metadata.len();
    let range = match headers.get(header::RANGE).map(|value| range(value.to_str().unwrap_or_default(), size))
    {
        // RFC 9110, 14.2: a Range that is not understood is ignored.
        None | Some(Asked::Other) => None,
        Some(Asked::Beyond) => {
            return Err(Problem::range_not_satisfiable(format!("the file has {size} bytes")));
        }
        Some(Asked::Part(start, end)) => Some((start, end)),
    };
    let (start, end) = range.unwrap_or((0, size));
    file.seek(SeekFrom::Start(start)).await?;
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CACHE_CONTROL, cache)
        .header(header::CONTENT_LENGTH, end - start);
    if range.is_some() {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
    }
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(end - start), 64 * 1024));
    response.body(body).map_err(Problem::internal)
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Half-open.
    Part(u64, u64),
    Beyond,
    Other,
}

/// One range of bytes, RFC 9110, 14.1.2: `bytes=A-B`, `bytes=A-` or `bytes=-N`.
fn range(text: &str, size: u64) -> Asked {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|set| set.split_once('-')) else {
        return Asked::Other;
    };
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|c| c.is_ascii_digit()));
    match (number(first), number(last)) {
        (Some(first), _) if first >= size && (last.is_empty() || number(last).is_some()) => Asked::Beyond,
        (Some(first), None) if last.is_empty() => Asked::Part(first, size),
        (Some(first), Some(last)) if last >= first => Asked::Part(first, size.min(last.saturating_add(1))),
        (None, Some(0)) if first.is_empty() => Asked::Beyond,
        (None, Some(tail)) if first.is_empty() && size > 0 => Asked::Part(size.saturating_sub(tail), size),
        _ => Asked::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-0", Asked::Part(0, 1)),
            ("bytes=2-", Asked::Part(2, 10)),
            ("bytes=2-99", Asked::Part(2, 10)),
            ("bytes=-3", Asked::Part(7, 10)),
            ("bytes=-30", Asked::Part(0, 10)),
            ("bytes=10-", Asked::Beyond),
            ("bytes=10-12", Asked::Beyond),
            ("bytes=-0", Asked::Beyond),
            ("bytes=3-2", Asked::Other),
            ("bytes=0-1,3-4", Asked::Other),
            ("bytes=+1-2", Asked::Other),
            ("items=0-1", Asked::Other),
            ("", Asked::Other),
        ] {
            assert_eq!(range(text, 10), expected, "{text}");
        }
    }

    #[test]
    fn paths_stay_below_the_repository() {
        let root = FilePath::new("/r");
        assert_eq!(below(root, "m/1/ab.model.onnx").unwrap(), FilePath::new("/r/m/1/ab.model.onnx"));
        for bad in ["", "..", "a/../b", "a//b", "/a", ".hidden", "a/.b", "a\0b", "a%2fb", "a/b/c/d/e/f/g/h/i"]
        {
            assert!(below(root, bad).is_err(), "{bad:?}");
        }
    }
}
