//! What can go wrong, and the exit status that tells scripts which it was.

use std::{path::PathBuf, process::ExitCode};

use andon_protocol::api::Problem;

pub(crate) const EXIT_CODES: &str = "\
Exit status: 0 done; 1 refused by the server or failed; 2 wrong usage; 3 server not reached; 4 not logged in or not \
allowed; 5 not found; 6 changed meanwhile or in conflict; 7 the audit chain does not hold.";

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no server is known: log in with `andon login --url URL`, or set ANDON_URL")]
    NoServer,
    #[error("not logged in to {url}: run `andon login --url {url}`, or set ANDON_TOKEN")]
    NoToken { url: String },
    #[error("{url:?} is no URL of a server, expected http(s)://HOST[:PORT]")]
    Url { url: String },
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    /// The server's own words.
    #[error("{} ({})", problem_text(.0), .0.code)]
    Problem(Box<Problem>),
    #[error("{url} answered {status} without saying why; is it an Andon server?")]
    Status { url: String, status: u16 },
    #[error("{url} answered what this version does not understand: {reason}")]
    Answer { url: String, reason: String },
    #[error("{path}: {source}", path = .path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}: {rule}", path = .path.display())]
    Content { path: PathBuf, rule: String },
    #[error("{0}")]
    Usage(String),
    #[error("the audit chain breaks at entry {seq}: {what}")]
    Chain { seq: i64, what: &'static str },
    #[error("training run {run} gave no release: it is {state}")]
    NoRelease { run: String, state: String },
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
}

fn problem_text(problem: &Problem) -> &str {
    if problem.detail.is_empty() { &problem.title } else { &problem.detail }
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) | Self::Url { .. } => 2,
            Self::Unreachable { .. } => 3,
            Self::NoServer | Self::NoToken { .. } => 4,
            Self::Problem(p) => match p.status {
                401 | 403 => 4,
                404 => 5,
                409 | 412 | 428 => 6,
                _ => 1,
            },
            Self::Chain { .. } => 7,
            Self::Status { .. }
            | Self::Answer { .. }
            | Self::File { .. }
            | Self::Content { .. }
            | Self::NoRelease { .. }
            | Self::Output(_) => 1,
        })
    }
}
