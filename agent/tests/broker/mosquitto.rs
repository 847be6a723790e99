//! Debian's mosquitto as a child process, and certificates for it.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use andon_agent::{
    clock::{Clock, SystemClock},
    identity::Identity,
};
use andon_protocol::api::EnrolResponse;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

/// The name by which the server logs in.
pub(crate) const SERVER: &str = "andon-fleet-server";

pub(crate) struct Certificates {
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test fleet CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { authority }
    }

    fn ca_pem(&self) -> String {
        self.authority.as_ref().pem()
    }

    /// Certificate and key, as PEM.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &*self.authority).unwrap().pem(), key.serialize_pem())
    }

    /// What a client of this name has after enrolment.
    pub(crate) fn identity(&self, name: &str, mqtt_port: u16) -> Identity {
        let (certificate_pem, key_pem) = self.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
        let enrolment = EnrolResponse {
            device: name.parse().unwrap(),
            certificate_pem,
            ca_pem: self.ca_pem(),
            mqtt_host: "127.0.0.1".into(),
            mqtt_port,
            updates_url: "https://127.0.0.1:1".into(),
            tuf_root: String::new(),
        };
        Identity { enrolment, key_pem }
    }
}

pub(crate) struct Mosquitto {
    folder: PathBuf,
    port: u16,
    process: Child,
}

impl Mosquitto {
    /// Starts it on a free port, with mutual TLS, the certificate's name as the user and the access rules of a fleet.
    pub(crate) fn start(folder: &Path, certificates: &Certificates) -> Self {
        let (certificate, key) = certificates.issue("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
        for (name, text) in [
            ("ca.pem", certificates.ca_pem()),
            ("broker.pem", certificate),
            ("broker.key", key),
            (
                "acl",
                format!(
                    "user {SERVER}\ntopic readwrite andon/v1/#\n\npattern write andon/v1/%u/status\n\
                     pattern write andon/v1/%u/up/#\npattern read andon/v1/%u/down/#\n"
                ),
            ),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
        // Between finding a port and using it another process may take it.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(broker) = Self::start_on(folder, port) {
                return broker;
            }
        }
        panic!("mosquitto does not start on any of ten free ports");
    }

    fn start_on(folder: &Path, port: u16) -> Option<Self> {
        let at = |name: &str| folder.join(name).display().to_string();
        let config = format!(
            "listener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
             use_identity_as_username true\nallow_anonymous false\nacl_file {}\npersistence false\nuser root\n\
             log_dest none\n",
            at("ca.pem"),
            at("broker.pem"),
            at("broker.key"),
            at("acl"),
        );
        fs::write(folder.join("mosquitto.conf"), config).unwrap();
        let process = Command::new(binary())
            .arg("-c")
            .arg(folder.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary().display()));
        let mut broker = Self { folder: folder.to_owned(), port, process };
        let clock = SystemClock::new();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if broker.process.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(clock.elapsed() < Duration::from_secs(60), "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(broker)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL: it remembers nothing.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// On the same port.
    pub(crate) fn restart(mut self) -> Self {
        self.kill();
        for _ in 0..100 {
            if let Some(broker) = Self::start_on(&self.folder, self.port) {
                return broker;
            }
        }
        panic!("mosquitto does not come back on port {}", self.port);
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn binary() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join("mosquitto")).find(|program| program.is_file()).expect(
        "mosquitto is not installed; on Debian or Ubuntu: apt-get install --no-install-recommends mosquitto",
    )
}
