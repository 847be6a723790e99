//! Enrolment: a token that was made for one device, used once, for the certificate of that device.
//!
//! Token text: `andon1.SECRET.DIGEST`, with 256 random bits as base64url and the SHA-256 of the CA's certificate, by
//! which the device knows whom it talks to. The database keeps the SHA-256 of the secret.

use axum::{Extension, extract::State};

use andon_protocol::{
    DeviceId,
    api::{EnrolRequest, EnrolResponse},
    state::Desired,
    telemetry::DriftState,
};

use crate::{
    app::App,
    audit, auth,
    config::broker_address,
    db::word,
    extract::Json,
    listen::Peer,
    problem::{Problem, Result},
    tuf,
};

pub async fn enrol(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<EnrolRequest>,
) -> Result<Json<EnrolResponse>> {
    let now_ms = app.now_ms();
    let guesser = format!("enrol {}", peer.address.ip());
    app.auth.failures.check(&guesser, now_ms)?;
    let secret = secret_of(&request.token).ok_or_else(|| {
        Problem::invalid("token: expected andon1.SECRET.DIGEST as it was shown when the enrolment was made")
    })?;
    let tuf_root = tuf::first_root(&app).await?;
    let addresses = app.addresses.get().ok_or_else(|| Problem::unavailable("the server is starting"))?;

    let mut tx = app.db.begin().await?;
    // Taking the token is the first write: of two requests with one token, the second waits and finds it used.
    let taken: Option<(String, String, String)> = sqlx::query_as(
        "UPDATE enrolment SET used_ms = $1 WHERE token_sha256 = $2 AND used_ms IS NULL AND expires_ms > $1 \
         RETURNING device, site, line",
    )
    .bind(now_ms)
    .bind(auth::sha256_hex(secret))
    .fetch_optional(&mut *tx)
    .await?;
    let Some((device, site, line)) = taken else {
        app.auth.failures.failed(&guesser, now_ms);
        return Err(Problem::unauthorised("the enrolment token is unknown, used or expired; make a new one"));
    };
    let device: DeviceId = device.parse().map_err(Problem::internal)?;
    // A bad request leaves the token unused: the transaction is dropped.
    let certificate =
        app.ca.sign_device(&request.csr_pem, &device, now_ms).map_err(|e| Problem::invalid(e.to_string()))?;
    sqlx::query(
        "INSERT INTO device (id, site, line, enrolled_ms, certificate_serial, certificate_expires_ms, drift, desired) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET site = excluded.site, \
         line = excluded.line, enrolled_ms = excluded.enrolled_ms, certificate_serial = excluded.certificate_serial, \
         certificate_expires_ms = excluded.certificate_expires_ms",
    )
    .bind(device.as_str())
    .bind(&site)
    .bind(&line)
    .bind(now_ms)
    .bind(&certificate.serial)
    .bind(certificate.expires_ms)
    .bind(word(&DriftState::default()))
    .bind(serde_json::to_string(&Desired::default())?)
    .execute(&mut *tx)
    .await?;
    audit::record(&mut tx, now_ms, device.as_str(), "device.enrol", device.as_str(), &certificate.serial)
        .await?;
    tx.commit().await?;
    tracing::info!(%device, site, line, peer = %peer.address, "device enrolled");
    app.live.publish("device", &device, now_ms);
    app.wake.rollouts.notify_one();

    let (mqtt_host, mqtt_port) =
        broker_address(&format!("mqtts://{}", addresses.mqtt)).map_err(Problem::internal)?;
    Ok(Json(EnrolResponse {
        device,
        certificate_pem: certificate.pem,
        ca_pem: app.ca.pem().to_owned(),
        mqtt_host,
        mqtt_port,
        updates_url: format!("{}/device/v1", addresses.devices),
        tuf_root,
    }))
}

/// The token's text for a new secret.
pub fn token_text(secret: &str, ca_digest: &str) -> String {
    format!("andon1.{secret}.{ca_digest}")
}

fn secret_of(token: &str) -> Option<&str> {
    let (secret, digest) = token.strip_prefix("andon1.")?.split_once('.')?;
    ((32..=128).contains(&secret.len()) && digest.len() == 64).then_some(secret)
}
