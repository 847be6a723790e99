//! Sample images: manifests open uploads, chunks fill them, a whole that hashes to its name becomes a blob and a row.
//!
//! Order within a batch: manifests (one transaction), chunks, then what they completed (one transaction), and last what
//! is still missing of what was announced. A step that fails is not acknowledged, and the device repeats it.

use std::{
    collections::{HashMap, HashSet},
    io::{self, ErrorKind},
    sync::Arc,
};

use andon_protocol::{
    DeviceId, Digest,
    ack::{SampleAck, SampleState},
    decode,
    sample::{SAMPLE_BYTES_MAX, SampleChunk, SampleManifest},
    topics::Channel,
};

use super::{
    Acks, Complaints, Item, device_of,
    parts::{ChunkError, Part},
};
use crate::{
    app::App,
    blobs::off_thread,
    db::{Tx, word},
    mqtt::Received,
    problem::{Problem, Result},
};

/// Open parts kept in memory, 0.3 kB each; others are read again from disk.
const CACHED_MAX: usize = 4096;
/// Wholes with another digest until the sample is refused.
const STRIKES_MAX: i64 = 2;
/// Pixels on a side of an image.
const SIDE_MAX: u32 = 16_384;

type Key = (DeviceId, Digest);

pub struct Lane {
    app: App,
    acks: Acks,
    complaints: Arc<Complaints>,
    open: HashMap<Key, Part>,
}

/// What to tell a device about a sample.
type Answer = (DeviceId, SampleAck);

impl Lane {
    pub fn new(app: App, acks: Acks, complaints: Arc<Complaints>) -> Self {
        Self { app, acks, complaints, open: HashMap::new() }
    }

    /// Returns when everything in the batch is durable or refused.
    pub async fn take(&mut self, batch: &[Received]) {
        let now_ms = self.app.now_ms();
        let (mut manifests, mut chunks) = (Vec::new(), Vec::new());
        for received in batch {
            let Some((device, channel)) = device_of(received) else { continue };
            let payload = &received.publish.payload;
            let read = match channel {
                Channel::Manifest => {
                    decode::<SampleManifest>(payload).map(|m| manifests.push((device.clone(), m)))
                }
                Channel::Chunk => decode::<SampleChunk>(payload).map(|c| chunks.push((device.clone(), c))),
                _ => Ok(()),
            };
            if let Err(error) = read {
                self.complaints.note(Some(&device), &error.to_string(), now_ms);
            }
        }
        let (mut whole, mut announced) = (HashSet::new(), HashSet::new());
        if !manifests.is_empty() {
            match self.manifests(&manifests, &mut whole, &mut announced, now_ms).await {
                Ok(answers) => self.answer(answers).await,
                Err(problem) => self.failed(&manifests[0].0, &problem, now_ms),
            }
        }
        for (device, chunk) in chunks {
            let key = (device, chunk.digest);
            match self.chunk(&key, chunk, now_ms).await {
                Ok(true) => {
                    whole.insert(key);
                }
                Ok(false) => {}
                Err(problem) => self.failed(&key.0, &problem, now_ms),
            }
        }
        let needed = announced.difference(&whole).filter_map(|key| {
            let missing = self.open.get(key)?.missing();
            Some((key.0.clone(), SampleAck { digest: key.1, state: SampleState::Need { missing } }))
        });
        self.answer(needed.collect()).await;
        if !whole.is_empty() {
            self.finish(whole, now_ms).await;
        }
        if self.open.len() > CACHED_MAX {
            self.open.clear();
        }
    }

    fn failed(&self, device: &DeviceId, problem: &Problem, now_ms: i64) {
        self.complaints.note(Some(device), &format!("a sample cannot be stored now: {problem}"), now_ms);
    }

    async fn answer(&self, answers: Vec<Answer>) {
        for (device, ack) in answers {
            self.acks.push(&device, Item::Sample(ack)).await;
        }
    }

    /// Opens uploads: they are then in `announced`, or in `whole` where all is there already.
    async fn manifests(
        &mut self,
        manifests: &[(DeviceId, SampleManifest)],
        whole: &mut HashSet<Key>,
        announced: &mut HashSet<Key>,
        now_ms: i64,
    ) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        let mut tx = self.app.db.begin().await?;
        for (device, manifest) in manifests {
            match self.manifest(&mut tx, device, manifest, now_ms).await? {
                Opened::Answer(state) => {
                    answers.push((device.clone(), SampleAck { digest: manifest.digest, state }));
                }
                Opened::Whole => {
                    whole.insert((device.clone(), manifest.digest));
                }
                Opened::Part => {
                    announced.insert((device.clone(), manifest.digest));
                }
                Opened::NoAnswer(why) => {
                    self.complaints.note(Some(device), &why, now_ms);
                }
            }
        }
        tx.commit().await?;
        Ok(answers)
    }

    async fn manifest(
        &mut self,
        tx: &mut Tx,
        device: &DeviceId,
        manifest: &SampleManifest,
        now_ms: i64,
    ) -> Result<Opened> {
        let digest = manifest.digest;
        let refused = |reason: String| Ok(Opened::Answer(SampleState::Refused { reason }));
        let json = match stored_form(manifest) {
            Ok(json) => json,
            Err(reason) => return refused(reason),
        };
        if sample_exists(tx, digest).await? {
            self.forget(tx, device, manifest).await?;
            return Ok(Opened::Answer(SampleState::Done));
        }
        let open: Option<i64> =
            sqlx::query_scalar("SELECT bytes FROM upload WHERE device = $1 AND digest = $2")
                .bind(device.as_str())
                .bind(digest.to_string())
                .fetch_optional(&mut **tx)
                .await?;
        match open {
            Some(bytes) if bytes != manifest.size as i64 => {
                return refused(format!("the size was {bytes} before and is {} now", manifest.size));
            }
            Some(_) => {}
            None => {
                if let Some(verdict) = self.over_quota(tx, device, manifest).await? {
                    return Ok(verdict);
                }
                sqlx::query("INSERT INTO upload (device, digest, bytes, manifest, begun_ms) VALUES ($1, $2, $3, $4, $5)")
                    .bind(device.as_str())
                    .bind(digest.to_string())
                    .bind(manifest.size as i64)
                    .bind(json)
                    .bind(now_ms)
                    .execute(&mut **tx)
                    .await?;
            }
        }
        if off_thread(&self.app.blobs, move |blobs| blobs.has(digest)).await? {
            // The content is there: of a data set, or of an upload whose row a crash cut off.
            return Ok(Opened::Whole);
        }
        let part = self.part(&(device.clone(), digest), manifest.size).await?;
        Ok(if part.is_complete() { Opened::Whole } else { Opened::Part })
    }

    /// Ends an upload whose content came another way meanwhile.
    async fn forget(&mut self, tx: &mut Tx, device: &DeviceId, manifest: &SampleManifest) -> Result<()> {
        let gone = sqlx::query("DELETE FROM upload WHERE device = $1 AND digest = $2")
            .bind(device.as_str())
            .bind(manifest.digest.to_string())
            .execute(&mut **tx)
            .await?;
        if gone.rows_affected() > 0 {
            let key = (device.clone(), manifest.digest);
            self.part(&key, manifest.size).await?;
            if let Some(part) = self.open.remove(&key) {
                blocking(move || part.remove()).await?;
            }
        }
        Ok(())
    }

    /// Over what a device may store, a sample is refused for good; over what it may have under way, it is not answered,
    /// and the device offers it again later.
    async fn over_quota(
        &self,
        tx: &mut Tx,
        device: &DeviceId,
        manifest: &SampleManifest,
    ) -> Result<Option<Opened>> {
        let known = sqlx::query("SELECT id FROM device WHERE id = $1")
            .bind(device.as_str())
            .fetch_optional(&mut **tx);
        if known.await?.is_none() {
            return Ok(Some(Opened::NoAnswer("the device is not enrolled here".into())));
        }
        let quota = &self.app.config.uploads;
        let size = manifest.size as i64;
        let stored: i64 = sqlx::query_scalar(
            "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM sample WHERE device = $1",
        )
        .bind(device.as_str())
        .fetch_one(&mut **tx)
        .await?;
        if stored.saturating_add(size) > i64::try_from(quota.stored_bytes_max).unwrap_or(i64::MAX) {
            let reason =
                format!("the device's stored samples are at their limit of {} bytes", quota.stored_bytes_max);
            return Ok(Some(Opened::Answer(SampleState::Refused { reason })));
        }
        let (open, open_bytes): (i64, i64) = sqlx::query_as(
            "SELECT COUNT(*), CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM upload WHERE device = $1",
        )
        .bind(device.as_str())
        .fetch_one(&mut **tx)
        .await?;
        let over = open >= i64::from(quota.open_max)
            || open_bytes.saturating_add(size) > i64::try_from(quota.open_bytes_max).unwrap_or(i64::MAX);
        Ok(over.then(|| {
            Opened::NoAnswer(format!("{open} uploads of {open_bytes} bytes are open, no more are taken"))
        }))
    }

    /// The part, from memory or disk.
    async fn part(&mut self, key: &Key, size: u64) -> Result<&mut Part> {
        if !self.open.contains_key(key) {
            let (folder, (device, digest)) = (self.app.paths.uploads(), key.clone());
            let part = blocking(move || Part::open(&folder, &device, digest, size)).await?;
            self.open.insert(key.clone(), part);
        }
        self.open.get_mut(key).ok_or_else(|| Problem::internal("a part that was just opened"))
    }

    /// Returns whether this chunk made the sample whole.
    async fn chunk(&mut self, key: &Key, chunk: SampleChunk, now_ms: i64) -> Result<bool> {
        if !self.open.contains_key(key) {
            let size: Option<i64> =
                sqlx::query_scalar("SELECT bytes FROM upload WHERE device = $1 AND digest = $2")
                    .bind(key.0.as_str())
                    .bind(key.1.to_string())
                    .fetch_optional(self.app.db.reader())
                    .await?;
            let Some(size) = size else {
                let mut conn = self.app.db.reader().acquire().await.map_err(Problem::from)?;
                if sample_exists(&mut conn, key.1).await? {
                    self.answer(vec![(key.0.clone(), SampleAck { digest: key.1, state: SampleState::Done })])
                        .await;
                } else {
                    self.complaints.note(
                        Some(&key.0),
                        &format!("a chunk of {} without a manifest", key.1),
                        now_ms,
                    );
                }
                return Ok(false);
            };
            self.part(key, u64::try_from(size).map_err(Problem::internal)?).await?;
        }
        let Some(mut part) = self.open.remove(key) else { return Ok(false) };
        let written = blocking(move || {
            let result = part.write(chunk.index, &chunk.bytes);
            Ok((part, result))
        });
        let (part, result) = written.await?;
        let complete = part.is_complete();
        self.open.insert(key.clone(), part);
        match result {
            Ok(()) => Ok(complete),
            Err(ChunkError::Io(error)) => Err(error.into()),
            Err(wrong) => {
                self.complaints.note(Some(&key.0), &wrong.to_string(), now_ms);
                Ok(false)
            }
        }
    }

    /// Checks, stores and acknowledges samples that are whole.
    async fn finish(&mut self, whole: HashSet<Key>, now_ms: i64) {
        let mut good = Vec::new();
        for key in whole {
            let part = self.open.remove(&key);
            match self.store(&key, part, now_ms).await {
                Ok(Some(manifest)) => good.push((key.0, manifest)),
                Ok(None) => {}
                Err(problem) => self.failed(&key.0, &problem, now_ms),
            }
        }
        if good.is_empty() {
            return;
        }
        if let Err(problem) = self.insert(&good, now_ms).await {
            // The blobs are there; the manifests will come again and find them.
            self.failed(&good[0].0, &problem, now_ms);
            return;
        }
        for (device, manifest) in good {
            self.app.live.publish("sample", manifest.digest, now_ms);
            self.answer(vec![(device, SampleAck { digest: manifest.digest, state: SampleState::Done })])
                .await;
        }
        self.app.wake.training.notify_one();
    }

    /// Turns the part into a blob. `None` where the content is not what was announced; the device has been told.
    async fn store(&mut self, key: &Key, part: Option<Part>, now_ms: i64) -> Result<Option<SampleManifest>> {
        let (device, digest) = key.clone();
        let json: Option<String> =
            sqlx::query_scalar("SELECT manifest FROM upload WHERE device = $1 AND digest = $2")
                .bind(device.as_str())
                .bind(digest.to_string())
                .fetch_optional(self.app.db.reader())
                .await?;
        let Some(json) = json else { return Ok(None) };
        let manifest: SampleManifest = serde_json::from_str(&json)?;
        let content_type = manifest.content_type.clone();
        let checked = off_thread(&self.app.blobs, move |blobs| {
            if let Some(part) = part {
                if !blobs.has(digest)? {
                    match blobs.adopt(part.file(), digest) {
                        Ok(()) => {}
                        Err(e) if e.kind() == ErrorKind::InvalidData => {
                            part.remove()?;
                            return Ok(Err(Wrong::Digest));
                        }
                        Err(e) => return Err(e),
                    }
                }
                part.remove()?;
            }
            let content = blobs.get(digest, SAMPLE_BYTES_MAX)?;
            Ok(check_image(&content, &content_type).map_err(Wrong::Image))
        })
        .await?;
        match checked {
            Ok(()) => Ok(Some(manifest)),
            Err(wrong) => {
                self.wrong(key, wrong, &manifest, now_ms).await?;
                Ok(None)
            }
        }
    }

    async fn wrong(&mut self, key: &Key, wrong: Wrong, manifest: &SampleManifest, now_ms: i64) -> Result<()> {
        let (device, digest) = key;
        let mut tx = self.app.db.begin().await?;
        let strikes: i64 = sqlx::query_scalar(
            "UPDATE upload SET strikes = strikes + 1 WHERE device = $1 AND digest = $2 RETURNING strikes",
        )
        .bind(device.as_str())
        .bind(digest.to_string())
        .fetch_one(&mut *tx)
        .await?;
        let state = match wrong {
            Wrong::Digest if strikes < STRIKES_MAX => {
                SampleState::Need { missing: vec![(0, manifest.chunks())] }
            }
            Wrong::Digest => {
                SampleState::Refused { reason: format!("{strikes} times the content had another digest") }
            }
            Wrong::Image(reason) => SampleState::Refused { reason },
        };
        if let SampleState::Refused { reason } = &state {
            self.complaints.note(Some(device), reason, now_ms);
            sqlx::query("DELETE FROM upload WHERE device = $1 AND digest = $2")
                .bind(device.as_str())
                .bind(digest.to_string())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        self.answer(vec![(device.clone(), SampleAck { digest: *digest, state })]).await;
        Ok(())
    }

    async fn insert(&self, samples: &[(DeviceId, SampleManifest)], now_ms: i64) -> Result<()> {
        let mut tx = self.app.db.begin().await?;
        for (device, manifest) in samples {
            sqlx::query(
                "INSERT INTO sample (digest, device, received_ms, captured_ms, bytes, content_type, release_id, reason, \
                 drift, manifest) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (digest) DO NOTHING",
            )
            .bind(manifest.digest.to_string())
            .bind(device.as_str())
            .bind(now_ms)
            .bind(manifest.captured_ms)
            .bind(manifest.size as i64)
            .bind(&manifest.content_type)
            .bind(manifest.release.to_string())
            .bind(word(&manifest.reason))
            .bind(word(&manifest.drift))
            .bind(serde_json::to_string(manifest)?)
            .execute(&mut *tx)
            .await?;
            sqlx::query("DELETE FROM upload WHERE device = $1 AND digest = $2")
                .bind(device.as_str())
                .bind(manifest.digest.to_string())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

enum Opened {
    Answer(SampleState),
    Whole,
    Part,
    NoAnswer(String),
}

enum Wrong {
    Digest,
    Image(String),
}

async fn sample_exists(conn: &mut crate::db::Conn, digest: Digest) -> Result<bool> {
    let row = sqlx::query("SELECT digest FROM sample WHERE digest = $1").bind(digest.to_string());
    Ok(row.fetch_optional(conn).await?.is_some())
}

/// The manifest as JSON, refused where a number is none: it could not be read again.
fn stored_form(manifest: &SampleManifest) -> std::result::Result<String, String> {
    let json = serde_json::to_string(manifest).map_err(|e| e.to_string())?;
    serde_json::from_str::<SampleManifest>(&json)
        .map_err(|_| "a score, projection or statistic is no number".to_owned())?;
    Ok(json)
}

/// Reads no more than the header: the format is the announced one and the picture no bomb.
fn check_image(content: &[u8], content_type: &str) -> std::result::Result<(), String> {
    let format = match content_type {
        "image/png" => image::ImageFormat::Png,
        _ => image::ImageFormat::Jpeg,
    };
    let size = image::ImageReader::with_format(io::Cursor::new(content), format).into_dimensions();
    match size {
        Ok((width, height)) if (1..=SIDE_MAX).contains(&width) && (1..=SIDE_MAX).contains(&height) => Ok(()),
        Ok((width, height)) => {
            Err(format!("the image has {width} x {height} pixels, allowed are {SIDE_MAX} a side"))
        }
        Err(error) => Err(format!("the content is no {content_type}: {error}")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(Problem::internal)??)
}
