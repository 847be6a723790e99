//! A server that was taken over, or a mirror that lies: the device refuses a release that is signed by a wrong key, a
//! timestamp that has expired, a version that was rolled back, and a file that was tampered with. It says why, runs on
//! with what it has, and takes the true release as soon as it is offered.

use std::{fs, path::PathBuf};

use andon_protocol::tuf::{Signed, SigningKey, Timestamp, UtcTime, sign};
use andon_tests::fleet;
use ed25519_dalek::pkcs8::DecodePrivateKey;

use crate::fixture::{Rig, another_release, release, turn};

/// The server's TUF repository, as whoever owns its disk sees it.
struct Repository {
    data: PathBuf,
}

impl Repository {
    fn timestamp_path(&self) -> PathBuf {
        self.data.join("tuf").join("metadata").join("timestamp.json")
    }

    fn timestamp(&self) -> Vec<u8> {
        fs::read(self.timestamp_path()).unwrap()
    }

    fn put_timestamp(&self, bytes: &[u8]) {
        fs::write(self.timestamp_path(), bytes).unwrap();
    }

    /// The newest timestamp, changed and signed.
    fn forge(&self, change: impl FnOnce(&mut Timestamp), key: &SigningKey) {
        let value: serde_json::Value = serde_json::from_slice(&self.timestamp()).unwrap();
        let mut timestamp: Timestamp = serde_json::from_value(value["signed"].clone()).unwrap();
        change(&mut timestamp);
        let bytes = sign(&timestamp, std::slice::from_ref(key)).unwrap();
        Signed::<Timestamp>::parse(&bytes).unwrap();
        self.put_timestamp(&bytes);
    }

    fn true_key(&self) -> SigningKey {
        let pem = fs::read_to_string(self.data.join("keys").join("tuf-timestamp.pem")).unwrap();
        SigningKey::from_seed(ed25519_dalek::SigningKey::from_pkcs8_pem(&pem).unwrap().as_bytes())
    }

    /// The model of a release among the targets, which are named by their digests.
    fn model(&self, version: u32) -> PathBuf {
        let folder = self.data.join("tuf").join("targets").join(release(version).to_string());
        let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        files.into_iter().find(|f| f.to_string_lossy().ends_with(".model.onnx")).unwrap()
    }
}

/// Asks the device for release 2 and waits until it says why not.
async fn is_refused(rig: &Rig, case: &str, words: &[&str]) {
    fleet::roll_out(&rig.api, &release(2), 1).await.unwrap();
    let mut said = String::new();
    let refused = async || {
        rig.check()?;
        let device = rig.device().await?;
        assert_eq!(device.running.map(|r| r.release), Some(release(1)), "{case}");
        let update = device.update.filter(|u| u.release == release(2));
        said = update.and_then(|u| u.detail).unwrap_or_default().to_lowercase();
        Ok(words.iter().any(|w| said.contains(w)).then_some(()))
    };
    let waited = andon_tests::clock::wait_for(case, crate::fixture::LIMIT, refused).await;
    waited.unwrap_or_else(|error| panic!("{error:#}; the device says {said:?}, expected one of {words:?}"));
    let rollouts: Vec<andon_protocol::api::Rollout> = rig.api.list("/rollouts").await.unwrap();
    for rollout in rollouts.into_iter().filter(|r| r.release == release(2)) {
        rig.end_rollout(&rollout).await;
    }
}

#[tokio::test]
async fn what_is_not_the_true_newest_release_is_refused() {
    let _turn = turn().await;
    let rig = Rig::running().await;
    let repository = Repository { data: rig.server.as_ref().unwrap().data_dir() };
    let old = repository.timestamp();
    let second = another_release(rig.dir.path(), 2).await;
    fleet::publish(&rig.api, &second).await.unwrap();
    let new = repository.timestamp();
    assert_ne!(old, new);

    repository.forge(|t| t.header.version += 1, &SigningKey::from_seed(&[7; 32]));
    is_refused(&rig, "a wrong key", &["signature", "signed"]).await;

    repository.put_timestamp(&new);
    let past = UtcTime::from_unix_ms(1_600_000_000_000);
    repository.forge(|t| t.header.expires = past, &repository.true_key());
    is_refused(&rig, "an expired timestamp", &["expired"]).await;

    // The device has seen the true newest one while it refused the tampered file.
    repository.put_timestamp(&new);
    let model = repository.model(2);
    let content = fs::read(&model).unwrap();
    let mut tampered = content.clone();
    let middle = tampered.len() / 2;
    tampered[middle] ^= 1;
    fs::write(&model, &tampered).unwrap();
    is_refused(&rig, "a tampered file", &["sha-256", "sha256", "digest", "hash"]).await;
    fs::write(&model, &content).unwrap();

    repository.put_timestamp(&old);
    is_refused(&rig, "a version rolled back", &["rolled back", "rollback", "older", "version"]).await;

    repository.put_timestamp(&new);
    fleet::roll_out(&rig.api, &release(2), 1).await.unwrap();
    rig.wait_until_runs(2).await;
}
