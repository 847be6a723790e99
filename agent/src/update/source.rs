//! Where updates come from: a TUF repository over HTTPS, with the device's certificate. The seam is [`Source`]; what
//! comes through it is believed by nobody before it is verified.

use std::{io, sync::Arc, time::Duration};

use reqwest::{StatusCode, header};
use rustls::ClientConfig;
use tokio::runtime::Handle;

use crate::enrol::{bounded_body, chain_of};

/// No byte for this long ends a request.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{file}: {reason}")]
    Network { file: String, reason: String },
    #[error("{file}: the server answers with status {status}")]
    Status { file: String, status: u16 },
    /// The receiver of the bytes ended it.
    #[error(transparent)]
    Receiver(#[from] io::Error),
}

/// Takes the bytes of a file as they come.
pub trait Receive {
    /// What comes next is the file from its start: the server does not resume.
    fn restart(&mut self) -> io::Result<()>;
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;
}

pub trait Source: Send {
    /// A metadata file. `None`: there is none of that name.
    fn metadata(&mut self, file: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, SourceError>;
    /// A target from `offset` on.
    fn target(&mut self, download: &str, offset: u64, to: &mut dyn Receive) -> Result<(), SourceError>;
}

/// The fleet server. Its methods block: they are called from the updater's own thread.
pub struct Https {
    client: reqwest::Client,
    /// Ends without a slash.
    url: String,
    runtime: Handle,
}

impl Https {
    pub fn new(url: &str, tls: Arc<ClientConfig>, runtime: Handle) -> Result<Self, SourceError> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .https_only(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| SourceError::Network { file: url.to_owned(), reason: chain_of(&e) })?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), runtime })
    }
}

impl Source for Https {
    fn metadata(&mut self, file: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, SourceError> {
        let network = |reason: String| SourceError::Network { file: file.to_owned(), reason };
        self.runtime.block_on(async {
            let request = self.client.get(format!("{}/tuf/metadata/{file}", self.url));
            let response = request.send().await.map_err(|e| network(chain_of(&e)))?;
            match response.status() {
                StatusCode::OK => bounded_body(response, bytes_max).await.map(Some).map_err(network),
                StatusCode::NOT_FOUND => Ok(None),
                status => Err(SourceError::Status { file: file.to_owned(), status: status.as_u16() }),
            }
        })
    }

    fn target(&mut self, download: &str, offset: u64, to: &mut dyn Receive) -> Result<(), SourceError> {
        let network = |reason: String| SourceError::Network { file: download.to_owned(), reason };
        self.runtime.block_on(async {
            let mut request = self.client.get(format!("{}/tuf/targets/{download}", self.url));
            if offset > 0 {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            let mut response = request.send().await.map_err(|e| network(chain_of(&e)))?;
            match response.status() {
                StatusCode::PARTIAL_CONTENT if resumes_at(&response, offset) => {}
                StatusCode::OK => {
                    if offset > 0 {
                        to.restart()?;
                    }
                }
                status => {
                    return Err(SourceError::Status { file: download.to_owned(), status: status.as_u16() });
                }
            }
            while let Some(bytes) = response.chunk().await.map_err(|e| network(chain_of(&e)))? {
                to.bytes(&bytes)?;
            }
            Ok(())
        })
    }
}

/// Whether a partial answer begins where it was asked to.
fn resumes_at(response: &reqwest::Response, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}
