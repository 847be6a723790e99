//! Mosquitto as an outside broker, and a fleet CA made beforehand so that broker, server and devices trust each other.
//! What the repository ships for it (`deploy/mosquitto`) is what is run, with only the paths and the port put in.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

use crate::{clock::wait_for, fleet::Mqtt, process::Process};

const START_LIMIT: Duration = Duration::from_secs(20);
const CONFIG: &str = include_str!("../../deploy/mosquitto/mosquitto.conf");
const ACL: &str = include_str!("../../deploy/mosquitto/acl");

pub struct Mosquitto {
    folder: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Mosquitto {
    /// Makes the CA in the server's (new) data folder, certificates and a configuration in `folder`, and starts.
    pub async fn start(folder: &Path, server_data: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        make_certificates(folder, &server_data.join("keys"))?;
        // Mosquitto can't take a port from the system. A moment ago nobody had this one.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = CONFIG
            .replace("/etc/mosquitto/andon", &folder.display().to_string())
            .replace("listener 8883", &format!("listener {port} 127.0.0.1"));
        ensure!(config != CONFIG, "deploy/mosquitto/mosquitto.conf names other paths than expected here");
        // Started as root it would become another user, who can't read a test's folder.
        fs::write(folder.join("mosquitto.conf"), config + "user root\n")?;
        fs::write(folder.join("acl"), ACL)?;
        let mut broker = Self { folder: folder.to_owned(), port, process: None };
        broker.run().await?;
        Ok(broker)
    }

    async fn run(&mut self) -> Result<()> {
        let mut command = Command::new(program());
        command.arg("-c").arg(self.folder.join("mosquitto.conf"));
        let process = Process::start("mosquitto", &mut command, &self.folder.join("mosquitto.log"))?;
        let port = self.port;
        let answers = async || {
            process.check()?;
            Ok(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok())
        };
        wait_for("mosquitto to listen", START_LIMIT, answers).await?;
        self.process = Some(process);
        Ok(())
    }

    /// `kill -9` and a new start; what it had in memory is gone.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.run().await
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |process| process.kill())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// For the server's configuration.
    pub fn config(&self) -> Mqtt {
        let file = |name: &str| self.folder.join(name);
        Mqtt::External(format!(
            "broker = \"mqtts://127.0.0.1:{}\"\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            self.port,
            file("ca.pem"),
            file("server.pem"),
            file("server.key"),
        ))
    }
}

/// Debian keeps it where only root's PATH leads.
fn program() -> &'static str {
    ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .unwrap_or("mosquitto")
}

fn make_certificates(folder: &Path, ca_folder: &Path) -> Result<()> {
    fs::create_dir_all(ca_folder).with_context(|| format!("cannot make {}", ca_folder.display()))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Andon test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    write(&ca_folder.join("ca.pem"), &certificate.pem())?;
    write(&ca_folder.join("ca.key"), &key.serialize_pem())?;
    write(&folder.join("ca.pem"), &certificate.pem())?;

    let issuer = Issuer::from_ca_cert_pem(&certificate.pem(), key)?;
    for (file, name, usage) in [
        ("broker", "broker", ExtendedKeyUsagePurpose::ServerAuth),
        ("server", "andon-fleet-server", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &issuer)?;
        write(&folder.join(format!("{file}.pem")), &certificate.pem())?;
        write(&folder.join(format!("{file}.key")), &key.serialize_pem())?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
