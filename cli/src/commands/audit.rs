//! The audit trail, and the proof that nobody changed it.

use andon_protocol::api::AuditEntry;
use clap::Args;
use comfy_table::Cell;
use sha2::{Digest as _, Sha256};

use super::Limit;
use crate::{
    client::Client,
    error::{Error, Result},
    output::{Output, number},
    text::utc,
};

/// Entries that `--verify` reads at most. Beyond it, verify on the server's own database.
const VERIFY_MAX: usize = 10_000_000;
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[derive(Args)]
pub(crate) struct Audit {
    /// Read the whole trail and recompute its chain of hashes. Exit status 7 where it does not hold.
    #[arg(long)]
    verify: bool,
    /// Also require that the entry with this hash is part of the chain: one that was noted down earlier.
    #[arg(long, requires = "verify", value_name = "HASH")]
    expect: Option<String>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(serde::Serialize)]
struct Verdict {
    entries: usize,
    hash: Option<String>,
}

impl Audit {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        if self.verify {
            let entries: Vec<AuditEntry> = client.list("/audit", &[], VERIFY_MAX).await?;
            verify(&entries, self.expect.as_deref())?;
            let verdict = Verdict { entries: entries.len(), hash: entries.first().map(|e| e.hash.clone()) };
            return out.show(&verdict, |v| match &v.hash {
                None => "the trail is empty".into(),
                Some(hash) => format!("the chain of {} entries holds\nnewest hash {hash}", v.entries),
            });
        }
        let entries: Vec<AuditEntry> = client.list("/audit", &[], self.limit.limit).await?;
        out.list(
            &entries,
            "the trail is empty",
            &["#", "when (UTC)", "who", "action", "object", "detail"],
            |e| {
                vec![
                    number(e.seq),
                    Cell::new(utc(e.at_ms)),
                    Cell::new(&e.actor),
                    Cell::new(&e.action),
                    Cell::new(&e.object),
                    Cell::new(&e.detail),
                ]
            },
        )
    }
}

/// `entries` are newest first and complete: the oldest must be entry 1, after the genesis hash.
fn verify(entries: &[AuditEntry], expected: Option<&str>) -> Result<()> {
    let (mut seq, mut hash) = (0_i64, GENESIS);
    let mut found = expected.is_none_or(|e| e == GENESIS);
    for entry in entries.iter().rev() {
        let broken = |what| Err(Error::Chain { seq: entry.seq, what });
        if entry.seq != seq + 1 {
            return broken("an entry before it is missing");
        }
        if entry.previous != hash {
            return broken("it does not follow the entry before it");
        }
        if entry.hash != hash_of(entry) {
            return broken("its content was changed");
        }
        found |= expected == Some(entry.hash.as_str());
        (seq, hash) = (entry.seq, &entry.hash);
    }
    if found { Ok(()) } else { Err(Error::Chain { seq, what: "the expected hash is not part of it" }) }
}

/// SHA-256 over every field but `hash`, each with its length before it (64 bits, big-endian).
fn hash_of(entry: &AuditEntry) -> String {
    let mut sha = Sha256::new();
    let (seq, at_ms) = (entry.seq.to_string(), entry.at_ms.to_string());
    for field in [&entry.previous, &seq, &at_ms, &entry.actor, &entry.action, &entry.object, &entry.detail] {
        sha.update((field.len() as u64).to_be_bytes());
        sha.update(field.as_bytes());
    }
    hex::encode(sha.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(n: i64) -> Vec<AuditEntry> {
        let mut entries: Vec<AuditEntry> = Vec::new();
        for seq in 1..=n {
            let previous = entries.last().map_or(GENESIS.to_owned(), |e| e.hash.clone());
            let mut entry = AuditEntry {
                seq,
                at_ms: seq * 1000,
                actor: "eva".into(),
                action: "label.set".into(),
                object: format!("s{seq}"),
                detail: String::new(),
                previous,
                hash: String::new(),
            };
            entry.hash = hash_of(&entry);
            entries.push(entry);
        }
        entries.reverse();
        entries
    }

    #[test]
    fn a_whole_chain_holds() {
        verify(&[], None).unwrap();
        let entries = chain(5);
        verify(&entries, None).unwrap();
        verify(&entries, Some(&entries[2].hash)).unwrap();
        verify(&entries, Some("other")).unwrap_err();
    }

    #[test]
    fn what_was_done_to_a_chain_shows() {
        type Deed = fn(&mut Vec<AuditEntry>);
        let deeds: [(&str, Deed, i64); 5] = [
            ("changed", |e| e[2].detail = "x".into(), 3),
            (
                "changed with its own hash",
                |e| {
                    e[2].actor = "mallory".into();
                    e[2].hash = hash_of(&e[2]);
                },
                4,
            ),
            (
                "removed",
                |e| {
                    e.remove(2);
                },
                4,
            ),
            (
                "oldest removed",
                |e| {
                    e.pop();
                },
                2,
            ),
            (
                "fields moved",
                |e| {
                    e[0].actor = "ev".into();
                    e[0].action = "alabel.set".into();
                },
                5,
            ),
        ];
        for (name, deed, at) in deeds {
            let mut entries = chain(5);
            deed(&mut entries);
            match verify(&entries, None) {
                Err(Error::Chain { seq, .. }) => assert_eq!(seq, at, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
