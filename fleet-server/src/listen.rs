//! Listeners: TCP, TLS where configured, HTTP/1.1 and HTTP/2. A peer that says nothing holds one place of a bounded
//! number for ten seconds and nothing else: handshakes run in the connection's own task.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::pki::{PeerCertificate, peer_certificate};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of a request; also closes connections that idle between requests.
const HEAD: Duration = Duration::from_secs(60);
/// For requests under way when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// Who is at the other end; an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// Verified against the fleet's CA.
    pub certificate: Option<PeerCertificate>,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("{what}: {reason}")]
    Tls { what: &'static str, reason: String },
}

pub async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let failed = |source| ListenError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Serves `router` until shutdown; requests under way then get five seconds more.
pub fn serve(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    router: Router,
    connections_max: usize,
    shutdown: CancellationToken,
) -> JoinHandle<()> {
    let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    let places = Arc::new(Semaphore::new(connections_max));
    tokio::spawn(async move {
        while let Some((stream, address, place)) = accept(&listener, &places, &shutdown).await {
            let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
            tokio::spawn(async move {
                let _place = place;
                let _ = stream.set_nodelay(true);
                match tls {
                    None => converse(stream, Peer { address, certificate: None }, router, shutdown).await,
                    Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let chain = stream.get_ref().1.peer_certificates();
                            let certificate =
                                chain.and_then(|chain| chain.first()).and_then(peer_certificate);
                            converse(stream, Peer { address, certificate }, router, shutdown).await;
                        }
                        Ok(Err(error)) => tracing::debug!(%address, "TLS handshake: {error}"),
                        Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
                    },
                }
            });
        }
        // All places are free when the last connection has ended.
        let everyone = u32::try_from(connections_max).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(GRACE, places.acquire_many(everyone)).await;
    })
}

/// The next connection and its place; `None` at shutdown.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let next = async {
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, address)) => return Some((stream, address, place)),
                Err(error) => {
                    // Out of file descriptors, or a peer that left already.
                    tracing::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => None,
        connection = next => connection,
    }
}

async fn converse<S>(stream: S, peer: Peer, router: Router, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let mut router = router.clone();
        async move {
            Ok::<_, Infallible>(
                router.call(request.map(Body::new)).await.unwrap_or_else(|never| match never {}),
            )
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!("connection: {error}");
    }
}

/// TLS with `chain` and `key`. With `clients`, a client certificate is asked for and verified against it, and routes
/// decide whether they need one.
pub fn tls_config(
    chain_pem: &str,
    key_pem: &str,
    clients: Option<&CertificateDer<'static>>,
) -> Result<ServerConfig, ListenError> {
    let failed = |what: &'static str, reason: String| ListenError::Tls { what, reason };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| failed("certificate", e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|e| failed("private key", e.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| failed("TLS", e.to_string()))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.clone()).map_err(|e| failed("CA certificate", e.to_string()))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|e| failed("CA certificate", e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config =
        builder.with_single_cert(chain, key).map_err(|e| failed("certificate and key", e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
