//! The fleet's own certificate authority: made at the first start, P-256, kept in `DATA/keys`. It signs the listeners'
//! certificate (afresh at every start), the server's own MQTT client certificate and devices' client certificates.
//!
//! Of a device's request only the public key and the common name are used: no extension that it asks for gets into
//! its certificate. Revocation is by serial number: the database knows the one certificate of each device that is
//! accepted.

use std::{io, path::Path, time::Duration};

use rand::RngCore as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

use andon_protocol::DeviceId;

use crate::files::{self, Privacy};

/// Common name and MQTT client id of the server itself. No device can enrol under it.
pub const SERVER_NAME: &str = "andon-fleet-server";
pub const CSR_BYTES_MAX: usize = 16 * 1024;

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_DAYS: u32 = 3653;
const SERVER_DAYS: u32 = 825;
const DEVICE_DAYS: u32 = 365;
/// Clocks of devices may be behind ours.
const BACKDATED: Duration = DAY;
const PEM_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error("the CA's files in {folder} do not go together: {reason}")]
    Broken { folder: String, reason: String },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Why a certificate request is refused. Shown to whoever enrols.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("csr_pem is no valid, self-signed PKCS#10 request: {0}")]
    Malformed(String),
    #[error("the request's common name must be the device id {expected:?}")]
    WrongName { expected: String },
    #[error("the request's key must be ECDSA P-256")]
    WrongKey,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCertificate {
    pub pem: String,
    /// Lowercase hexadecimal without leading zeros.
    pub serial: String,
    pub expires_ms: i64,
}

pub struct Ca {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate chain and its key, as PEM.
pub struct Identity {
    pub chain_pem: String,
    pub key_pem: String,
}

impl Ca {
    /// Reads `ca.pem` and `ca.key` in `keys`, or makes them if neither is there.
    pub fn open_or_create(keys: &Path, now_ms: i64) -> Result<Self, PkiError> {
        let (certificate, key) = (keys.join("ca.pem"), keys.join("ca.key"));
        let broken = |reason: String| PkiError::Broken { folder: keys.display().to_string(), reason };
        match (certificate.exists(), key.exists()) {
            (true, true) => {}
            (false, true) => {
                // The key is written last, so this is no interrupted first start.
                return Err(broken("ca.key is there and ca.pem is not; restore it from a backup".into()));
            }
            _ => create(&certificate, &key, now_ms)?,
        }
        let pem = read(&certificate)?;
        let key_pair = KeyPair::from_pem(&read(&key)?).map_err(|e| broken(format!("ca.key: {e}")))?;
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| broken(format!("ca.pem: {e}")))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|e| broken(format!("ca.pem: {e}")))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key_pair.public_key_raw() {
            return Err(broken("ca.pem is of another key than ca.key".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(&pem, key_pair)?;
        Ok(Self { pem, der, issuer })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the certificate, hexadecimal; part of every enrolment token.
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(&self.der))
    }

    /// For the listeners, under `names` (hosts and addresses, at least one). The chain ends with the CA's certificate,
    /// which a device without any trust yet compares with its token.
    pub fn server_identity(&self, names: &[String], now_ms: i64) -> Result<Identity, PkiError> {
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.identity(params, &names[0], now_ms)
    }

    /// For the server as a client of the MQTT broker.
    pub fn client_identity(&self, now_ms: i64) -> Result<Identity, PkiError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.identity(params, SERVER_NAME, now_ms)
    }

    fn identity(&self, mut params: CertificateParams, name: &str, now_ms: i64) -> Result<Identity, PkiError> {
        set_common(&mut params, name, now_ms, SERVER_DAYS);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { chain_pem: certificate.pem() + &self.pem, key_pem: key.serialize_pem() })
    }

    /// The client certificate of `device`, valid for a year.
    pub fn sign_device(
        &self,
        csr_pem: &str,
        device: &DeviceId,
        now_ms: i64,
    ) -> Result<DeviceCertificate, CsrError> {
        if csr_pem.len() > CSR_BYTES_MAX {
            return Err(CsrError::Malformed(format!("over {CSR_BYTES_MAX} bytes")));
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| CsrError::Malformed(e.to_string()))?;
        let name = match request.params.distinguished_name.get(&DnType::CommonName) {
            Some(DnValue::Utf8String(name)) => name.as_str(),
            Some(DnValue::PrintableString(name)) => name.as_str(),
            _ => "",
        };
        // A device learns its id with its certificate, so a request may leave the name open.
        if !name.is_empty() && name != device.as_str() {
            return Err(CsrError::WrongName { expected: device.to_string() });
        }
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CsrError::WrongKey);
        }
        let malformed = |e: rcgen::Error| CsrError::Malformed(e.to_string());
        let mut params = CertificateParams::new(Vec::new()).map_err(malformed)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let serial = set_common(&mut params, device.as_str(), now_ms, DEVICE_DAYS);
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(malformed)?;
        let expires_ms = params.not_after.unix_timestamp() * 1000;
        Ok(DeviceCertificate { pem: certificate.pem(), serial, expires_ms })
    }
}

fn create(certificate: &Path, key: &Path, now_ms: i64) -> Result<(), PkiError> {
    let key_pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::new())?;
    set_common(&mut params, "Andon fleet CA", now_ms, CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let signed = params.self_signed(&key_pair)?;
    write(certificate, &signed.pem(), Privacy::Readable)?;
    write(key, &key_pair.serialize_pem(), Privacy::Secret)
}

/// Name, validity, key usage and a random serial number, which is returned as text.
fn set_common(params: &mut CertificateParams, name: &str, now_ms: i64, days: u32) -> String {
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    // Positive, and no leading zero: its hexadecimal text is the same in every tool.
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(now_ms.max(0) as u64);
    params.not_before = now - BACKDATED;
    params.not_after = now + DAY * days;
    hex::encode(serial)
}

fn read(path: &Path) -> Result<String, PkiError> {
    files::read_bounded(path, PEM_BYTES_MAX)
        .and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other))
        .map_err(|source| PkiError::File { path: path.display().to_string(), source })
}

/// Writes a PEM file atomically.
pub fn write(path: &Path, pem: &str, privacy: Privacy) -> Result<(), PkiError> {
    files::write_atomically(path, pem.as_bytes(), privacy)
        .map_err(|source| PkiError::File { path: path.display().to_string(), source })
}

/// Who a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    pub common_name: String,
    pub serial: String,
}

/// Reads a certificate that the TLS library has verified.
pub fn peer_certificate(der: &CertificateDer<'_>) -> Option<PeerCertificate> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    let common_name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(PeerCertificate { common_name, serial: parsed.serial.to_str_radix(16) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000;

    fn csr(name: &str, key: &KeyPair) -> String {
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_ca_outlives_a_restart_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::open_or_create(dir.path(), NOW_MS).unwrap();
        let second = Ca::open_or_create(dir.path(), NOW_MS + 1).unwrap();
        assert_eq!(first.digest(), second.digest());
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
        assert!(matches!(Ca::open_or_create(dir.path(), NOW_MS), Err(PkiError::Broken { .. })));
    }

    #[test]
    fn a_device_gets_its_name_and_nothing_else_it_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), NOW_MS).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let device: DeviceId = "line-1".parse().unwrap();
        let signed = ca.sign_device(&csr("line-1", &key), &device, NOW_MS).unwrap();
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        let peer = peer_certificate(&der).unwrap();
        assert_eq!((peer.common_name.as_str(), &peer.serial), ("line-1", &signed.serial));
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(parsed.subject_alternative_name().unwrap().is_none());
        assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
        assert_eq!(signed.expires_ms, NOW_MS + 365 * 24 * 3600 * 1000);
    }

    #[test]
    fn other_requests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), NOW_MS).unwrap();
        let device: DeviceId = "line-1".parse().unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let other_key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let good = csr("line-1", &key);
        let mut tampered = good.clone().into_bytes();
        tampered[200] = if tampered[200] == b'A' { b'B' } else { b'A' };
        assert!(matches!(
            ca.sign_device(&csr("line-2", &key), &device, NOW_MS),
            Err(CsrError::WrongName { .. })
        ));
        assert_eq!(ca.sign_device(&csr("line-1", &other_key), &device, NOW_MS), Err(CsrError::WrongKey));
        for bad in ["", "x", &"x".repeat(CSR_BYTES_MAX + 1), &String::from_utf8(tampered).unwrap()] {
            assert!(matches!(ca.sign_device(bad, &device, NOW_MS), Err(CsrError::Malformed(_))), "{bad:.40}");
        }
    }
}
