//! The audit trail: who did what to which thing, in order, in the same transaction as the deed. Append-only and
//! hash-chained: each entry's hash covers the entry and the hash before it, so that a changed, removed or inserted
//! entry shows. Whoever can rewrite the whole table can rewrite the chain too: copy a recent hash to where they
//! cannot.

use sha2::{Digest as _, Sha256};
use sqlx::{FromRow, Row, any::AnyRow};

use andon_protocol::api::AuditEntry;

use crate::{
    db::{Conn, Db, Tx},
    problem::Result,
};

/// The hash before the first entry.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Appends an entry. `action` is a dotted word of ours (`label.set`), `object` an id, `detail` JSON or short text.
/// Takes the chain's lock until the transaction ends: call it last.
pub async fn record(
    tx: &mut Tx,
    at_ms: i64,
    actor: &str,
    action: &'static str,
    object: &str,
    detail: &str,
) -> Result<(), sqlx::Error> {
    // Locks the head's row on PostgreSQL; on SQLite the transaction is the only writer anyway.
    let (seq, previous): (i64, String) =
        sqlx::query_as("UPDATE audit_head SET seq = seq + 1 WHERE id = 1 RETURNING seq, hash")
            .fetch_one(&mut **tx)
            .await?;
    let mut entry = AuditEntry {
        seq,
        at_ms,
        actor: actor.to_owned(),
        action: action.to_owned(),
        object: object.to_owned(),
        detail: detail.to_owned(),
        previous,
        hash: String::new(),
    };
    entry.hash = hash(&entry);
    sqlx::query(
        "INSERT INTO audit (seq, at_ms, actor, action, object, detail, previous, hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(entry.seq)
    .bind(entry.at_ms)
    .bind(&entry.actor)
    .bind(&entry.action)
    .bind(&entry.object)
    .bind(&entry.detail)
    .bind(&entry.previous)
    .bind(&entry.hash)
    .execute(&mut **tx)
    .await?;
    sqlx::query("UPDATE audit_head SET hash = $1 WHERE id = 1").bind(&entry.hash).execute(&mut **tx).await?;
    Ok(())
}

/// SHA-256 over every field but `hash`, each with its length before it, so that no two entries read the same.
fn hash(entry: &AuditEntry) -> String {
    let mut sha = Sha256::new();
    let (seq, at_ms) = (entry.seq.to_string(), entry.at_ms.to_string());
    for field in [&entry.previous, &seq, &at_ms, &entry.actor, &entry.action, &entry.object, &entry.detail]
        .map(String::as_bytes)
    {
        sha.update((field.len() as u64).to_be_bytes());
        sha.update(field);
    }
    hex::encode(sha.finalize())
}

/// Entries newest first, before `before` (a sequence number).
pub async fn page(conn: &mut Conn, before: i64, limit: i64) -> Result<Vec<AuditEntry>, sqlx::Error> {
    sqlx::query_as::<_, Stored>("SELECT * FROM audit WHERE seq < $1 ORDER BY seq DESC LIMIT $2")
        .bind(before)
        .bind(limit)
        .fetch_all(conn)
        .await
        .map(|rows| rows.into_iter().map(|row| row.0).collect())
}

/// What is wrong with the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Whole {
        entries: i64,
    },
    /// The first entry that does not follow from the one before it.
    Broken {
        seq: i64,
    },
}

/// Walks the whole chain, 1,000 entries at a time.
pub async fn verify(db: &Db) -> Result<Verdict, sqlx::Error> {
    let mut conn = db.reader().acquire().await?;
    let (mut seq, mut previous) = (0i64, GENESIS.to_owned());
    loop {
        let rows: Vec<Stored> = sqlx::query_as("SELECT * FROM audit WHERE seq > $1 ORDER BY seq LIMIT 1000")
            .bind(seq)
            .fetch_all(&mut *conn)
            .await?;
        if rows.is_empty() {
            break;
        }
        for Stored(entry) in rows {
            if entry.seq != seq + 1 || entry.previous != previous || entry.hash != hash(&entry) {
                return Ok(Verdict::Broken { seq: seq + 1 });
            }
            seq = entry.seq;
            previous = entry.hash;
        }
    }
    let (head_seq, head_hash): (i64, String) =
        sqlx::query_as("SELECT seq, hash FROM audit_head WHERE id = 1").fetch_one(&mut *conn).await?;
    // Entries may have been added since the last page was read; fewer than the head says is a cut-off end.
    if head_seq < seq || (head_seq == seq && head_hash != previous) {
        return Ok(Verdict::Broken { seq: seq + 1 });
    }
    if head_seq > seq {
        let missing = sqlx::query("SELECT seq FROM audit WHERE seq = $1")
            .bind(seq + 1)
            .fetch_optional(&mut *conn)
            .await?;
        if missing.is_none() {
            return Ok(Verdict::Broken { seq: seq + 1 });
        }
    }
    Ok(Verdict::Whole { entries: seq })
}

struct Stored(AuditEntry);

impl FromRow<'_, AnyRow> for Stored {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self(AuditEntry {
            seq: row.try_get("seq")?,
            at_ms: row.try_get("at_ms")?,
            actor: row.try_get("actor")?,
            action: row.try_get("action")?,
            object: row.try_get("object")?,
            detail: row.try_get("detail")?,
            previous: row.try_get("previous")?,
            hash: row.try_get("hash")?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::each_database;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_changed_removed_or_cut_off_entry_shows() {
        each_database(async |db| {
            for (seq, tamper) in [
                (0, None),
                (2, Some("UPDATE audit SET detail = 'other' WHERE seq = 2")),
                (2, Some("DELETE FROM audit WHERE seq = 2")),
                (3, Some("DELETE FROM audit WHERE seq = 3")),
            ] {
                sqlx::query("DELETE FROM audit").execute(db.writer()).await.unwrap();
                sqlx::query("UPDATE audit_head SET seq = 0, hash = $1")
                    .bind(GENESIS)
                    .execute(db.writer())
                    .await
                    .unwrap();
                for i in 0..3 {
                    let mut tx = db.begin().await.unwrap();
                    record(&mut tx, i, "admin", "label.set", "x", "detail").await.unwrap();
                    tx.commit().await.unwrap();
                }
                let expected = match tamper {
                    Some(sql) => {
                        sqlx::query(sql).execute(db.writer()).await.unwrap();
                        Verdict::Broken { seq }
                    }
                    None => Verdict::Whole { entries: 3 },
                };
                assert_eq!(verify(&db).await.unwrap(), expected, "{tamper:?}");
            }
        })
        .await;
    }
}
