//! What the server wants of a device. The row is the truth; MQTT carries copies of it, retained, which are published
//! again whenever they may have been lost. Every change has a new generation.

use andon_protocol::{DeviceId, state::Desired};

use crate::{
    app::App,
    db::{Conn, Tx},
    problem::{Problem, Result},
};

/// Reads the desired state of a device; an error where there is no such device.
pub async fn read(conn: &mut Conn, device: &DeviceId) -> Result<Desired> {
    let json: Option<String> = sqlx::query_scalar("SELECT desired FROM device WHERE id = $1")
        .bind(device.as_str())
        .fetch_optional(conn)
        .await?;
    let json = json.ok_or_else(|| Problem::not_found(format!("no device {device}")))?;
    Ok(serde_json::from_str(&json)?)
}

/// Changes the desired state of a device. Where `change` changes nothing, nothing is written and the generation
/// stays. Publish the result after the commit: `app.mqtt.publish_desired(&device, &desired)`.
pub async fn change(tx: &mut Tx, device: &DeviceId, change: impl FnOnce(&mut Desired)) -> Result<Desired> {
    let before = read(tx, device).await?;
    let mut after = before.clone();
    change(&mut after);
    after.generation = before.generation;
    if after != before {
        after.generation += 1;
        sqlx::query("UPDATE device SET desired = $1 WHERE id = $2")
            .bind(serde_json::to_string(&after)?)
            .bind(device.as_str())
            .execute(&mut **tx)
            .await?;
    }
    Ok(after)
}

/// Publishes every device's desired state: after a connection, when the broker may have lost the retained ones.
pub async fn publish_all(app: &App) -> Result<()> {
    let mut after = String::new();
    loop {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT id, desired FROM device WHERE id > $1 ORDER BY id LIMIT 200")
                .bind(&after)
                .fetch_all(app.db.reader())
                .await?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        after = last.clone();
        for (id, json) in rows {
            let device: DeviceId = id.parse().map_err(Problem::internal)?;
            app.mqtt.publish_desired(&device, &serde_json::from_str(&json)?).await;
        }
    }
}
