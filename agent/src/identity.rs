//! Who this device is: the answer to its enrolment and its private key, one file (`identity.json`, mode 0600), so
//! that one rename makes it whole. TLS for HTTPS and MQTT is configured from it and from nothing else: the fleet's
//! CA is the only one trusted.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use andon_protocol::{DeviceId, api::EnrolResponse};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::{Deserialize, Serialize};

use crate::files::{self, Disk};

const FILE: &str = "identity.json";
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{} is not there: this device is not enrolled; run `andon-agent enrol`", .0.display())]
    NotEnrolled(PathBuf),
    #[error(transparent)]
    Disk(#[from] io::Error),
    #[error("{}: {reason}; enrol again with a new token after moving this file away", path.display())]
    Damaged { path: PathBuf, reason: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub enrolment: EnrolResponse,
    /// PKCS#8, made on this device; leaves it never.
    pub key_pem: String,
}

impl Identity {
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }

    pub fn load(disk: &dyn Disk, data_dir: &Path) -> Result<Self, IdentityError> {
        let path = Self::path(data_dir);
        let bytes = match disk.read(&path, FILE_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(IdentityError::NotEnrolled(path));
            }
            read => read?,
        };
        let damaged = |reason: String| IdentityError::Damaged { path: path.clone(), reason };
        let identity: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        identity.tls().map_err(damaged)?;
        Ok(identity)
    }

    pub fn store(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), IdentityError> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| IdentityError::Damaged { path: Self::path(data_dir), reason: e.to_string() })?;
        disk.create_folder(data_dir)?;
        Ok(files::replace(disk, &Self::path(data_dir), &bytes)?)
    }

    pub fn device(&self) -> &DeviceId {
        &self.enrolment.device
    }

    /// Mutual TLS with the fleet, TLS 1.2 or newer.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.enrolment.ca_pem.as_bytes()) {
            let certificate = certificate.map_err(|e| format!("the fleet's CA: {e}"))?;
            roots.add(certificate).map_err(|e| format!("the fleet's CA: {e}"))?;
        }
        let chain = CertificateDer::pem_slice_iter(self.enrolment.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("the device's certificate: {e}"))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|e| format!("the device's key: {e}"))?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| format!("the device's certificate and key: {e}"))?;
        Ok(Arc::new(config))
    }
}

/// The agent's TLS provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
