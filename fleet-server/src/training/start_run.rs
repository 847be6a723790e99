//! How a run begins: by policy or by a person. The next data set is the newest one and every labelled image from the
//! field that is not in it yet; it is stored, then data set and run are one transaction.

use sqlx::AssertSqlSafe;

use andon_protocol::{
    DeviceId, Digest, ReleaseId,
    api::Policy,
    job::{FieldImage, Gate, Item, JobSpec, Recipe},
};

use super::{
    datasets,
    items::{ITEMS_MAX, ItemList, ListedItem, field_part},
    runs::{self, NewRun, Stored},
};
use crate::{
    app::App,
    audit,
    db::{Conn, from_word},
    problem::{Problem, Result},
    releases::{bundle, models, registry, rows as releases},
    rollouts,
};

/// Drift for which training is no answer: a dead camera must be repaired, and more defects are the line's doing.
const NOT_TRAINABLE: &str = "('camera_dead', 'defect_rate')";
/// Captured while the device saw or suspected drift.
const DRIFTED: &str = "('suspect', 'alarm', 'cooldown')";
/// Unlabelled images that show how drifted devices see now, the newest.
const UNLABELLED_MAX: i64 = 400;

/// Starts a run of each model whose policy asks for one. Returns the ids.
pub async fn by_policy(app: &App) -> Result<Vec<String>> {
    let mut started = Vec::new();
    let mut after = String::new();
    loop {
        let page = models::page(&mut *app.db.reader().acquire().await?, &after, 100).await?;
        let Some(last) = page.last() else { return Ok(started) };
        after = last.name.clone();
        for model in page {
            if let Some(why) = reason(app, &model.name, &model.policy).await? {
                started.push(start(app, &model.name, "andon", &why).await?);
            }
        }
    }
}

/// Why the policy asks for a run now, if it does.
async fn reason(app: &App, model: &str, policy: &Policy) -> Result<Option<String>> {
    let minimum = policy.retrain_labels_min;
    if minimum == 0 {
        return Ok(None);
    }
    let mut conn = app.db.reader().acquire().await?;
    if runs::is_active(&mut conn, model).await?
        // The fleet is on its way to another release already.
        || rollouts::rows::is_open(&mut conn, model).await?
        || datasets::latest(&mut conn, model).await?.is_none()
    {
        return Ok(None);
    }
    let Some(release) = releases::in_force(&mut conn, model).await? else { return Ok(None) };
    let since_ms = runs::last_created_ms(&mut conn, model).await?.unwrap_or(i64::MIN);
    let sql = format!(
        "SELECT COUNT(*) FROM label l JOIN sample s ON s.digest = l.sample WHERE l.at_ms > $1 \
         AND s.release_id = $2 AND s.drift IN {DRIFTED} AND EXISTS (SELECT 1 FROM alarm a \
         WHERE a.device = s.device AND a.state <> 'cleared' AND a.cause NOT IN {NOT_TRAINABLE})"
    );
    // What an earlier release saw says nothing about the one that is out.
    let labels: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(since_ms)
        .bind(release.to_string())
        .fetch_one(&mut *conn)
        .await?;
    Ok((labels >= i64::from(minimum)).then(|| {
        format!("drift alarm open and {labels} new labels of drifted devices, {minimum} are asked for")
    }))
}

/// `MODEL/` and its length, for `SUBSTR`, which on PostgreSQL takes 32-bit integers only.
fn release_prefix(model: &str) -> (i32, String) {
    let prefix = format!("{model}/");
    (prefix.len() as i32, prefix)
}

/// Makes the next data set and a run on it. Conflicts: a run is active, or there is nothing to train from.
pub async fn start(app: &App, model: &str, by: &str, why: &str) -> Result<String> {
    let now_ms = app.now_ms();
    let (list, parent_set) = {
        let mut conn = app.db.reader().acquire().await?;
        let stored = models::get(&mut conn, model).await?;
        let Some(parent) = datasets::latest(&mut conn, model).await? else {
            return Err(Problem::conflict(format!("model {model} has no data set; import one first")));
        };
        let mut list = datasets::items(app, &parent.id).await?;
        add_field_items(&mut conn, &mut list, &stored.labels).await?;
        (list, parent.id)
    };
    let dataset = datasets::store(app, &list).await?;
    let mut tx = app.db.begin().await?;
    if runs::is_active(&mut tx, model).await? {
        return Err(Problem::conflict(format!("a training run of model {model} is under way")));
    }
    let Some(parent) = releases::in_force(&mut tx, model).await? else {
        return Err(Problem::conflict(format!("model {model} has no release to start from")));
    };
    let version = releases::next_version(&mut tx, model).await?;
    let release = ReleaseId::new(model, version).map_err(Problem::internal)?;
    datasets::insert(&mut tx, &dataset, &list, Some(&parent_set), now_ms).await?;
    let new = NewRun { release: &release, parent: &parent, dataset: &dataset, by, why };
    let id = runs::insert(&mut tx, &new, now_ms).await?;
    audit::record(&mut tx, now_ms, by, "run.start", &id, why).await?;
    tx.commit().await?;
    app.live.publish("run", &id, now_ms);
    app.wake.training.notify_one();
    Ok(id)
}

/// Every labelled image of the model that the list does not have. What is in the list stays where it is.
async fn add_field_items(conn: &mut Conn, list: &mut ItemList, labels: &[String]) -> Result<()> {
    let (length, prefix) = release_prefix(&list.model);
    let mut after = String::new();
    loop {
        let rows: Vec<(String, String, String, String, String)> = sqlx::query_as(
            "SELECT s.digest, s.device, s.drift, s.reason, l.class FROM sample s JOIN label l ON l.sample = s.digest \
             WHERE SUBSTR(s.release_id, 1, $1) = $2 AND s.digest > $3 ORDER BY s.digest LIMIT 1000",
        )
        .bind(length)
        .bind(&prefix)
        .bind(&after)
        .fetch_all(&mut *conn)
        .await?;
        let Some((last, ..)) = rows.last() else { return Ok(()) };
        after = last.clone();
        for (digest, device, drift, reason, class) in rows {
            let image: Digest = digest.parse().map_err(Problem::internal)?;
            if !labels.contains(&class) {
                continue;
            }
            let full = list.items.len() == ITEMS_MAX;
            match list.items.get_mut(&image) {
                // A person may have thought again.
                Some(item) if item.device.is_some() => item.class = class,
                // It came with an import, with the class that was given there.
                Some(_) => {}
                None if full => {
                    return Err(Problem::refused(format!("the data set would have over {ITEMS_MAX} items")));
                }
                None => {
                    let device = device.parse().map_err(Problem::internal)?;
                    let part = field_part(&image, from_word(&reason)?);
                    let drifted = is_drifted(&drift)?;
                    list.items
                        .insert(image, ListedItem { image, class, part, device: Some(device), drifted });
                }
            }
        }
    }
}

fn is_drifted(word: &str) -> Result<bool> {
    use andon_protocol::telemetry::DriftState::{Alarm, Cooldown, Suspect};
    Ok(matches!(from_word(word)?, Suspect | Alarm | Cooldown))
}

/// The job of a run, from rows and blobs alone: it can be made again at any time.
pub async fn spec(app: &App, run: &Stored) -> Result<JobSpec> {
    let list = datasets::items(app, &run.dataset).await?;
    let mut conn = app.db.reader().acquire().await?;
    let model = models::get(&mut conn, run.release.model()).await?;
    let class_of = |item: &ListedItem| model.labels.iter().position(|l| *l == item.class);
    let items = list
        .items
        .values()
        .filter_map(|item| {
            let class = class_of(item)? as u32;
            let (image, part, device, drifted) = (item.image, item.part, item.device.clone(), item.drifted);
            Some(Item { image, class, part, device, drifted })
        })
        .collect();
    let parent = std::path::absolute(registry::folder(app, &run.parent))?;
    let mut seed = [0; 8];
    seed.copy_from_slice(&run.dataset.as_bytes()[..8]);
    Ok(JobSpec {
        schema: JobSpec::SCHEMA.into(),
        run: run.id.clone(),
        release: run.release.clone(),
        parent: run.parent.clone(),
        parent_dir: parent.join(bundle::RELEASE_DIR),
        parent_float: parent.join(bundle::FLOAT_FILE),
        blobs: std::path::absolute(app.blobs.folder())?,
        dataset: run.dataset,
        items,
        unlabelled: unlabelled(&mut conn, run.release.model(), run.created_ms).await?,
        // JSON readers lose whole numbers over 2^53.
        seed: u64::from_be_bytes(seed) >> 11,
        recipe: Recipe::default(),
        gate: Gate {
            agreement_min: model.policy.agreement_min,
            clean_loss_max: model.policy.clean_loss_max,
            drift_gain_min: model.policy.drift_gain_min,
        },
    })
}

/// The newest drifted images of alarmed devices that nobody has labelled.
async fn unlabelled(conn: &mut Conn, model: &str, until_ms: i64) -> Result<Vec<FieldImage>> {
    let (length, prefix) = release_prefix(model);
    let sql = format!(
        "SELECT s.digest, s.device FROM sample s WHERE SUBSTR(s.release_id, 1, $1) = $2 AND s.drift IN {DRIFTED} \
         AND s.received_ms <= $3 AND NOT EXISTS (SELECT 1 FROM label l WHERE l.sample = s.digest) \
         AND EXISTS (SELECT 1 FROM alarm a WHERE a.device = s.device AND a.state <> 'cleared' \
         AND a.cause NOT IN {NOT_TRAINABLE}) ORDER BY s.received_ms DESC, s.digest LIMIT $4"
    );
    let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(length)
        .bind(prefix)
        .bind(until_ms)
        .bind(UNLABELLED_MAX)
        .fetch_all(conn)
        .await?;
    rows.into_iter()
        .map(|(digest, device)| {
            let device: DeviceId = device.parse().map_err(Problem::internal)?;
            Ok(FieldImage { image: digest.parse().map_err(Problem::internal)?, device })
        })
        .collect()
}
