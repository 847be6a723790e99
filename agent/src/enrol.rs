//! Enrolment: a one-time token becomes a certificate. The key is made here and stays here; what goes out is a
//! signing request. The token names the fleet's CA by digest, so the very first connection is already to the right
//! server: a chain without that CA, or one that does not verify against it, is refused.
//!
//! Idempotent: an enrolled device says so and changes nothing. The key is written before the request, so that a
//! repeated attempt (an answer lost on the way) asks for the same key again.

use std::{io, path::Path, sync::Arc, time::Duration};

use andon_protocol::{
    Digest,
    api::{EnrolRequest, EnrolResponse, Problem},
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{
    files::{self, Disk},
    identity::{Identity, IdentityError, provider},
};

const PENDING_KEY_FILE: &str = "identity.key.pending";
/// Answers are a few kilobytes: certificates and the TUF root.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("the token is not of the form andon1.SECRET.DIGEST: {0}; copy it whole from the dashboard")]
    Token(&'static str),
    #[error("the address {url:?} is not of the form https://HOST:PORT")]
    Address { url: String },
    #[error(
        "this folder holds the identity of {device}, enrolled with another fleet; use another --data-dir"
    )]
    OtherFleet { device: String },
    #[error("{url} did not answer as the fleet's server: {reason}")]
    Connection { url: String, reason: String },
    #[error("{url} refused: {detail} (status {status})")]
    Refused { url: String, status: u16, detail: String },
    #[error("{url} sent an answer that is not one: {reason}")]
    Answer { url: String, reason: String },
    #[error("cannot make a key: {0}")]
    Key(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Disk(#[from] io::Error),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Enrolled {
    Now(Identity),
    Before(Identity),
}

/// `andon1.SECRET.DIGEST`, of which only the digest means anything here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    ca: Digest,
}

impl std::str::FromStr for Token {
    type Err = EnrolError;
    fn from_str(text: &str) -> Result<Self, EnrolError> {
        let text = text.trim();
        let mut parts = text.split('.');
        if text.len() > 512 || parts.next() != Some("andon1") {
            return Err(EnrolError::Token("it does not begin with andon1"));
        }
        let secret = parts.next().unwrap_or_default();
        if secret.is_empty() || !secret.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_') {
            return Err(EnrolError::Token("the secret is no base64url"));
        }
        let digest = parts.next().unwrap_or_default();
        let ca = digest.parse().map_err(|_| EnrolError::Token("the CA's digest is no SHA-256"))?;
        match parts.next() {
            None => Ok(Self { text: text.to_owned(), ca }),
            Some(_) => Err(EnrolError::Token("there is more after the digest")),
        }
    }
}

pub async fn enrol(
    disk: &dyn Disk,
    url: &str,
    token: &Token,
    data_dir: &Path,
) -> Result<Enrolled, EnrolError> {
    match Identity::load(disk, data_dir) {
        Ok(identity) => return already(identity, token),
        Err(IdentityError::NotEnrolled(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let url = url.trim_end_matches('/');
    if !url.starts_with("https://") {
        return Err(EnrolError::Address { url: url.to_owned() });
    }
    disk.create_folder(data_dir)?;
    let key = pending_key(disk, data_dir)?;
    let request = EnrolRequest { token: token.text.clone(), csr_pem: signing_request(&key)? };
    let enrolment = ask(url, token.ca, &request).await?;
    let identity = Identity { enrolment, key_pem: key.serialize_pem() };
    // Certificate and key must fit before anything relies on them.
    identity.tls().map_err(|reason| EnrolError::Answer { url: url.to_owned(), reason })?;
    if ca_digest(&identity.enrolment) != Some(token.ca) {
        let reason = "its CA is not the one that the token names".to_owned();
        return Err(EnrolError::Answer { url: url.to_owned(), reason });
    }
    identity.store(disk, data_dir)?;
    disk.remove(&data_dir.join(PENDING_KEY_FILE))?;
    Ok(Enrolled::Now(identity))
}

fn already(identity: Identity, token: &Token) -> Result<Enrolled, EnrolError> {
    if ca_digest(&identity.enrolment) != Some(token.ca) {
        return Err(EnrolError::OtherFleet { device: identity.device().to_string() });
    }
    Ok(Enrolled::Before(identity))
}

fn ca_digest(enrolment: &EnrolResponse) -> Option<Digest> {
    use rustls::pki_types::pem::PemObject;
    let ca = CertificateDer::from_pem_slice(enrolment.ca_pem.as_bytes()).ok()?;
    Some(Digest::of(&ca))
}

/// The key of an attempt that did not end, or a new one, written down first.
fn pending_key(disk: &dyn Disk, data_dir: &Path) -> Result<KeyPair, EnrolError> {
    let path = data_dir.join(PENDING_KEY_FILE);
    if let Ok(bytes) = disk.read(&path, 64 * 1024)
        && let Some(key) = std::str::from_utf8(&bytes).ok().and_then(|pem| KeyPair::from_pem(pem).ok())
    {
        return Ok(key);
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| EnrolError::Key(e.to_string()))?;
    files::replace(disk, &path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

/// PKCS#10 without a name: which device this is, only the token says.
fn signing_request(key: &KeyPair) -> Result<String, EnrolError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).and_then(|request| request.pem());
    request.map_err(|e| EnrolError::Key(e.to_string()))
}

async fn ask(url: &str, ca: Digest, request: &EnrolRequest) -> Result<EnrolResponse, EnrolError> {
    let connection = |reason: String| EnrolError::Connection { url: url.to_owned(), reason };
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| connection(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainWithCa { ca, provider: provider() }))
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(Duration::from_secs(10))
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|e| connection(chain_of(&e)))?;
    let response = client
        .post(format!("{url}/device/v1/enrol"))
        .json(request)
        .send()
        .await
        .map_err(|e| connection(chain_of(&e)))?;
    let status = response.status();
    let body = bounded_body(response, ANSWER_BYTES_MAX).await.map_err(connection)?;
    if !status.is_success() {
        let detail =
            serde_json::from_slice::<Problem>(&body).map_or_else(|_| status.to_string(), |p| p.detail);
        return Err(EnrolError::Refused { url: url.to_owned(), status: status.as_u16(), detail });
    }
    serde_json::from_slice(&body)
        .map_err(|e| EnrolError::Answer { url: url.to_owned(), reason: e.to_string() })
}

/// A body that is not over `bytes_max`.
pub(crate) async fn bounded_body(
    mut response: reqwest::Response,
    bytes_max: usize,
) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| chain_of(&e))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(format!("the answer is over {bytes_max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// An error with its causes: reqwest's own text hides them.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Accepts a server whose chain contains the CA with this digest and verifies against it, host name included.
#[derive(Debug)]
struct ChainWithCa {
    ca: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainWithCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The CA must be sent beside the leaf: a leaf that is its own CA proves no name.
        let ca =
            intermediates.iter().find(|certificate| Digest::of(certificate) == self.ca).ok_or_else(|| {
                rustls::Error::General(
                    "its certificate chain does not contain the CA that the token names".into(),
                )
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertifiedIssuer, DnType, IsCa};

    fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn server(authority: &CertifiedIssuer<'static, KeyPair>, host: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        params.signed_by(&key, authority).unwrap().der().clone()
    }

    #[test]
    fn only_a_chain_with_the_named_ca_that_verifies_is_accepted() {
        let (ours, other) = (authority("ours"), authority("other"));
        let verifier = ChainWithCa { ca: Digest::of(ours.der()), provider: provider() };
        let check = |leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>], host: &str| {
            let name = ServerName::try_from(host.to_owned()).unwrap();
            verifier.verify_server_cert(leaf, chain, &name, &[], UnixTime::now())
        };
        let leaf = server(&ours, "fleet.example");
        check(&leaf, &[ours.der().clone()], "fleet.example").unwrap();
        let hostile = server(&other, "fleet.example");
        for (what, result) in [
            ("another CA", check(&hostile, &[other.der().clone()], "fleet.example")),
            ("our CA shown beside a foreign leaf", check(&hostile, &[ours.der().clone()], "fleet.example")),
            ("no CA in the chain", check(&leaf, &[], "fleet.example")),
            ("another host", check(&leaf, &[ours.der().clone()], "evil.example")),
            ("the CA as the leaf", check(ours.der(), &[], "fleet.example")),
        ] {
            assert!(result.is_err(), "{what} was accepted");
        }
    }

    #[test]
    fn tokens_are_read_whole_or_not_at_all() {
        let digest = Digest::of(b"ca").to_string();
        let good = format!("andon1.c2VjcmV0_-.{digest}");
        assert_eq!(format!(" {good}\n").parse::<Token>().unwrap().ca, Digest::of(b"ca"));
        for bad in [
            String::new(),
            good.replace("andon1", "andon2"),
            format!("andon1..{digest}"),
            format!("andon1.a b.{digest}"),
            "andon1.abc".into(),
            format!("{good}.x"),
            good[..good.len() - 1].into(),
        ] {
            assert!(bad.parse::<Token>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_attempt_that_did_not_end_is_repeated_with_the_same_private_key() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let disk = crate::files::SystemDisk;
        let first = pending_key(&disk, folder.path()).unwrap().serialize_pem();
        assert_eq!(pending_key(&disk, folder.path()).unwrap().serialize_pem(), first);
        let mode = std::fs::metadata(folder.path().join(PENDING_KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        signing_request(&KeyPair::from_pem(&first).unwrap()).unwrap();
    }
}
