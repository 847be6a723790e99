//! The reconciler of rollouts: facts from the database, decisions of [`decide`], and back. A decision and what it
//! changes are one transaction; devices are told after it, and told again whenever that may have been lost.

use andon_protocol::{
    DeviceId,
    api::{ReleaseState, RolloutDeviceState, RolloutState},
    state::Desired,
};

use super::{
    decide::{Action, Deadlines, DeviceFacts, RolloutFacts, apply, decide, rounds_max},
    rows::{self, Stored},
};
use crate::{
    app::App,
    audit,
    db::{Tx, word},
    devices::desired,
    problem::{Problem, Result},
    releases,
};

/// Who decides, in the records.
const BY: &str = "andon";
/// Devices named in a decision's text.
const NAMED_MAX: usize = 10;

/// Looks at every rollout that is not settled. One that fails does not keep the others back.
pub async fn pass(app: &App) -> Result<()> {
    let open = rows::unsettled(&mut *app.db.reader().acquire().await?).await?;
    let mut failure = None;
    for stored in open {
        if let Err(problem) = advance(app, &stored.id).await {
            tracing::warn!(rollout = stored.id, "cannot go on now: {problem}");
            failure = Some(problem);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Everything that can be decided about one rollout now.
async fn advance(app: &App, id: &str) -> Result<()> {
    loop {
        let now_ms = app.now_ms();
        let mut tx = app.db.begin().await?;
        let stored = rows::get(&mut tx, id).await?;
        let mut facts = read_facts(&mut tx, &stored).await?;
        let done = decide_all(&mut facts, now_ms)?;
        let mut told = Vec::new();
        for action in &done {
            told.extend(carry_out(&mut tx, &facts, action, now_ms).await?);
        }
        write_down(&mut tx, &stored, &facts, &done, now_ms).await?;
        tx.commit().await?;
        for (device, desired) in &told {
            app.mqtt.publish_desired(device, desired).await;
            app.live.publish("device", device, now_ms);
        }
        if !done.is_empty() {
            app.live.publish("rollout", id, now_ms);
        }
        // The devices of the next wave were not among these facts.
        if !done.iter().any(|a| matches!(a, Action::Advance { .. })) {
            return Ok(());
        }
    }
}

/// Decides until nothing is left for these devices, or a wave begins.
fn decide_all(facts: &mut RolloutFacts, now_ms: i64) -> Result<Vec<Action>> {
    let mut done = Vec::new();
    for _ in 0..rounds_max(facts) {
        let actions = decide(facts, now_ms);
        if actions.is_empty() {
            return Ok(done);
        }
        let begins = actions.iter().any(|a| matches!(a, Action::Advance { .. }));
        for action in actions {
            apply(facts, &action, now_ms);
            done.push(action);
        }
        if begins {
            return Ok(done);
        }
    }
    Err(Problem::internal(format!("rollout {}: no end of decisions", facts.id)))
}

async fn read_facts(tx: &mut Tx, stored: &Stored) -> Result<RolloutFacts> {
    let release = releases::rows::get(tx, &stored.release).await?;
    let members = rows::members(tx, &stored.id, stored.wave).await?;
    let devices = members.into_iter().map(|member| DeviceFacts {
        bound: member.desired.as_ref().is_some_and(|d| d.rollout.as_deref() == Some(stored.id.as_str())),
        device: member.device,
        wave: member.wave,
        state: member.state,
        since_ms: member.since_ms,
        offered_ms: member.offered_ms,
        before: member.before,
        reported: member.reported,
        last_seen_ms: member.last_seen_ms,
    });
    Ok(RolloutFacts {
        id: stored.id.clone(),
        release: stored.release.clone(),
        model: release.digest,
        release_withdrawn: release.state == ReleaseState::Withdrawn,
        state: stored.state,
        waves: stored.waves.clone(),
        wave: stored.wave,
        trial_s: stored.trial_s,
        deadlines: Deadlines::default(),
        devices: devices.collect(),
    })
}

/// What an action changes in the rows of devices. Returns what a device is asked for now.
async fn carry_out(
    tx: &mut Tx,
    facts: &RolloutFacts,
    action: &Action,
    now_ms: i64,
) -> Result<Option<(DeviceId, Desired)>> {
    match action {
        Action::Record { device, state, detail } => {
            set_device(tx, facts, device, *state, detail.as_deref(), now_ms).await?;
            Ok(None)
        }
        Action::Offer { device } => {
            let before = match desired::read(tx, device).await {
                Ok(desired) => desired,
                // Not enrolled any more; it will be silent.
                Err(problem) if problem.code == "not_found" => Desired::default(),
                Err(problem) => return Err(problem),
            };
            set_device(tx, facts, device, RolloutDeviceState::Offered, None, now_ms).await?;
            sqlx::query("UPDATE rollout_device SET offered_ms = $1, before_release = $2 WHERE rollout = $3 AND device = $4")
                .bind(now_ms)
                .bind(before.release.map(|r| r.to_string()))
                .bind(&facts.id)
                .bind(device.as_str())
                .execute(&mut **tx)
                .await?;
            ask(tx, device, |desired| {
                desired.release = Some(facts.release.clone());
                desired.rollout = Some(facts.id.clone());
                desired.trial_s = facts.trial_s;
            })
            .await
        }
        Action::SendBack { device, to } => {
            ask(tx, device, |desired| {
                desired.release = to.clone();
                desired.rollout = None;
            })
            .await
        }
        Action::Advance { .. } | Action::Finish { .. } => Ok(None),
    }
}

async fn ask(
    tx: &mut Tx,
    device: &DeviceId,
    change: impl FnOnce(&mut Desired),
) -> Result<Option<(DeviceId, Desired)>> {
    match desired::change(tx, device, change).await {
        Ok(desired) => Ok(Some((device.clone(), desired))),
        Err(problem) if problem.code == "not_found" => Ok(None),
        Err(problem) => Err(problem),
    }
}

async fn set_device(
    tx: &mut Tx,
    facts: &RolloutFacts,
    device: &DeviceId,
    state: RolloutDeviceState,
    detail: Option<&str>,
    now_ms: i64,
) -> Result<()> {
    sqlx::query(
        "UPDATE rollout_device SET state = $1, detail = $2, since_ms = $3 WHERE rollout = $4 AND device = $5",
    )
    .bind(word(&state))
    .bind(detail)
    .bind(now_ms)
    .bind(&facts.id)
    .bind(device.as_str())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The rollout's own row and its record of decisions.
async fn write_down(
    tx: &mut Tx,
    stored: &Stored,
    facts: &RolloutFacts,
    done: &[Action],
    now_ms: i64,
) -> Result<()> {
    for (what, why) in sentences(facts, stored.wave, done) {
        rows::decided(tx, &facts.id, now_ms, &what, &why, BY).await?;
    }
    let moved = facts.state != stored.state || facts.wave != stored.wave;
    let over = !matches!(facts.state, RolloutState::Running | RolloutState::Paused);
    // Once over, all that is left was done just now; see `decide`.
    let changed = sqlx::query(
        "UPDATE rollout SET state = $1, wave = $2, finished_ms = $3, settled = $4, rev = rev + $5 WHERE id = $6 AND rev = $7",
    )
    .bind(word(&facts.state))
    .bind(i64::from(facts.wave))
    .bind(over.then(|| stored.finished_ms.unwrap_or(now_ms)))
    .bind(i64::from(over))
    .bind(i64::from(moved))
    .bind(&facts.id)
    .bind(stored.rev)
    .execute(&mut **tx)
    .await?;
    if changed.rows_affected() == 0 {
        return Err(Problem::conflict("the rollout was changed at the same moment"));
    }
    if facts.state != stored.state {
        let action = match facts.state {
            RolloutState::Halted => "rollout.halt",
            _ => "rollout.finish",
        };
        let why = done.iter().find_map(|a| match a {
            Action::Finish { why, .. } => Some(why.as_str()),
            _ => None,
        });
        audit::record(tx, now_ms, BY, action, &facts.id, why.unwrap_or_default()).await?;
    }
    Ok(())
}

/// Decisions as people read them, in their order: what is done to many devices at one time is one sentence.
fn sentences(facts: &RolloutFacts, wave_before: u32, done: &[Action]) -> Vec<(String, String)> {
    let mut wave = wave_before;
    let mut sentences = Vec::new();
    for group in done.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
        let devices: Vec<_> = group.iter().filter_map(Action::device).collect();
        match &group[0] {
            Action::Offer { .. } => {
                let what = format!("{} offered to {}", facts.release, names(&devices));
                sentences.push((what, format!("wave {wave} is out")));
            }
            Action::SendBack { .. } => {
                let why = format!("the rollout is {}", word(&facts.state));
                sentences.push((format!("{} sent back to what ran before", names(&devices)), why));
            }
            Action::Record { .. } => sentences.extend(group.iter().filter_map(failure)),
            Action::Advance { wave: next, why } => {
                wave = *next;
                sentences.push((format!("wave {wave} begins"), why.clone()));
            }
            Action::Finish { state, why } => sentences.push((word(state), why.clone())),
        }
    }
    sentences
}

/// Progress is no decision; a failure is the reason for one.
fn failure(action: &Action) -> Option<(String, String)> {
    let Action::Record { device, state, detail } = action else { return None };
    let what = match state {
        RolloutDeviceState::RolledBack => "rolled back",
        RolloutDeviceState::Failed => "failed",
        RolloutDeviceState::Silent => "is silent",
        _ => return None,
    };
    Some((format!("{device} {what}"), detail.clone().unwrap_or_else(|| "its report says so".into())))
}

fn names(devices: &[&DeviceId]) -> String {
    let named: Vec<_> = devices.iter().take(NAMED_MAX).map(|d| d.as_str()).collect();
    match devices.len().saturating_sub(NAMED_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}
