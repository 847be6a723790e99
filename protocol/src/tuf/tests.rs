//! The workflow against a repository in memory: once as it should be, then each attack as a row.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::ids::Digest;

const NOW_MS: i64 = 1_795_000_000_000;
const DAY_MS: i64 = 86_400_000;
const MODEL: &[u8] = b"the network";

/// One key a role, whatever version of it.
fn key(role: RoleName, version: u8) -> SigningKey {
    SigningKey::from_seed(&[role as u8 * 16 + version; 32])
}

#[derive(Clone)]
struct Repo {
    root: Root,
    timestamp: Timestamp,
    snapshot: Snapshot,
    targets: Targets,
    /// Who signs.
    keys: BTreeMap<RoleName, Vec<SigningKey>>,
}

/// Files as they are served.
struct Files {
    root: Vec<u8>,
    timestamp: Vec<u8>,
    snapshot: Vec<u8>,
    targets: Vec<u8>,
}

impl Repo {
    fn new() -> Self {
        let keys: BTreeMap<_, _> = RoleName::ALL.map(|role| (role, vec![key(role, 0)])).into();
        let role_keys = |role: RoleName| RoleKeys::new(vec![keys[&role][0].id().to_owned()], 1);
        let header = |role| Header::new(role, 1, UtcTime::from_unix_ms(NOW_MS + DAY_MS));
        let targets = BTreeMap::from([
            ("cell/1/manifest.json".to_owned(), TargetFile::new(2, Digest::of(b"{}"))),
            ("cell/1/model.onnx".to_owned(), TargetFile::new(MODEL.len() as u64, Digest::of(MODEL))),
            ("cell/10/model.onnx".to_owned(), TargetFile::new(1, Digest::of(b"x"))),
        ]);
        let empty = MetaFile::of(1, b"");
        Self {
            root: Root {
                header: header(RoleName::Root),
                consistent_snapshot: true,
                keys: keys.values().flatten().map(|k| (k.id().to_owned(), k.public())).collect(),
                roles: Roles {
                    root: role_keys(RoleName::Root),
                    timestamp: role_keys(RoleName::Timestamp),
                    snapshot: role_keys(RoleName::Snapshot),
                    targets: role_keys(RoleName::Targets),
                },
                other: BTreeMap::new(),
            },
            timestamp: Timestamp::new(header(RoleName::Timestamp), empty.clone()),
            snapshot: Snapshot::new(header(RoleName::Snapshot), empty),
            targets: Targets::new(header(RoleName::Targets), targets),
            keys,
        }
    }

    /// All versions but root's set to `version`.
    fn at_version(version: u64) -> Self {
        let mut repo = Self::new();
        repo.targets.header.version = version;
        repo.snapshot.header.version = version;
        repo.timestamp.header.version = version;
        repo
    }

    /// The key of `role` is replaced, in the next root. The old root key signs it too.
    fn rotate(&mut self, role: RoleName) {
        let new = key(role, 1);
        self.root.header.version += 1;
        self.root.keys.insert(new.id().to_owned(), new.public());
        let roles = &mut self.root.roles;
        let keys = match role {
            RoleName::Root => &mut roles.root,
            RoleName::Timestamp => &mut roles.timestamp,
            RoleName::Snapshot => &mut roles.snapshot,
            RoleName::Targets => &mut roles.targets,
        };
        keys.keyids = vec![new.id().to_owned()];
        let signers = self.keys.get_mut(&role).unwrap();
        if role == RoleName::Root { signers.push(new) } else { *signers = vec![new] }
    }

    fn files(&self) -> Files {
        let mut repo = self.clone();
        let targets = sign(&repo.targets, &repo.keys[&RoleName::Targets]).unwrap();
        repo.snapshot.meta.insert("targets.json".into(), MetaFile::of(repo.targets.header.version, &targets));
        let snapshot = sign(&repo.snapshot, &repo.keys[&RoleName::Snapshot]).unwrap();
        let entry = MetaFile::of(repo.snapshot.header.version, &snapshot);
        repo.timestamp.meta.insert("snapshot.json".into(), entry);
        Files {
            root: sign(&repo.root, &repo.keys[&RoleName::Root]).unwrap(),
            timestamp: sign(&repo.timestamp, &repo.keys[&RoleName::Timestamp]).unwrap(),
            snapshot,
            targets,
        }
    }
}

/// A whole refresh from `trusted_root`, with files seen before as the local ones.
fn refresh(trusted_root: &[u8], local: Option<&Files>, served: &Files) -> Result<TrustedMetadata, TufError> {
    let mut trusted = TrustedMetadata::new(trusted_root)?;
    if served.root != trusted_root {
        trusted.update_root(&served.root)?;
    }
    trusted.root_done(NOW_MS)?;
    if let Some(local) = local {
        // What no longer verifies is no memory; the client goes on without it.
        let _ = trusted.local_timestamp(&local.timestamp);
    }
    trusted.update_timestamp(&served.timestamp)?;
    if let Some(local) = local {
        let _ = trusted.local_snapshot(&local.snapshot)?;
    }
    trusted.update_snapshot(&served.snapshot)?;
    trusted.update_targets(&served.targets)?;
    Ok(trusted)
}

fn fetch(served: &Files) -> Result<TrustedMetadata, TufError> {
    refresh(&Repo::new().files().root, None, served)
}

#[test]
fn a_good_repository_gives_its_targets() {
    let files = Repo::new().files();
    let mut trusted = TrustedMetadata::new(&files.root).unwrap();
    assert_eq!(trusted.root_download(), Download { file: "2.root.json".into(), bytes_max: 512_000 });
    trusted.root_done(NOW_MS).unwrap();
    assert_eq!(trusted.timestamp_download().file, "timestamp.json");
    assert_eq!(trusted.update_timestamp(&files.timestamp), Ok(Change::New));
    let download = trusted.snapshot_download().unwrap();
    assert_eq!(download, Download { file: "1.snapshot.json".into(), bytes_max: files.snapshot.len() });
    trusted.update_snapshot(&files.snapshot).unwrap();
    assert_eq!(trusted.targets_download().unwrap().file, "1.targets.json");
    trusted.update_targets(&files.targets).unwrap();
    assert_eq!(trusted.targets().unwrap().bytes(), files.targets);

    let target = trusted.target("cell/1/model.onnx").unwrap();
    assert_eq!(target.download(), format!("cell/1/{}.model.onnx", Digest::of(MODEL)));
    assert_eq!(target.check(MODEL), Ok(()));
    assert!(matches!(target.check(b"the networc"), Err(TufError::Hash { .. })));
    assert!(matches!(target.check(b"the networ"), Err(TufError::Length { .. })));
    assert!(matches!(trusted.target("cell/2/model.onnx"), Err(TufError::UnknownTarget { .. })));
    // Release 1 is not the start of release 10.
    let paths: Vec<_> = trusted.release(&"cell/1".parse().unwrap()).unwrap();
    assert_eq!(
        paths.iter().map(Target::path).collect::<Vec<_>>(),
        ["cell/1/manifest.json", "cell/1/model.onnx"]
    );
    assert!(matches!(trusted.release(&"cell/2".parse().unwrap()), Err(TufError::UnknownTarget { .. })));
}

#[test]
fn local_files_save_fetches_and_remember_versions() {
    let old = Repo::at_version(3).files();
    let mut trusted = TrustedMetadata::new(&old.root).unwrap();
    trusted.root_done(NOW_MS).unwrap();
    trusted.local_timestamp(&old.timestamp).unwrap();
    // The stored timestamp alone is no answer of the repository.
    assert!(matches!(trusted.local_snapshot(&old.snapshot), Err(TufError::OutOfOrder { .. })));
    assert_eq!(trusted.update_timestamp(&old.timestamp), Ok(Change::Same));
    assert_eq!(trusted.local_snapshot(&old.snapshot), Ok(true));
    trusted.update_targets(&old.targets).unwrap();
    assert!(refresh(&old.root, Some(&old), &Repo::at_version(4).files()).is_ok());
}

#[test]
fn calls_out_of_order_are_errors() {
    let files = Repo::new().files();
    let mut trusted = TrustedMetadata::new(&files.root).unwrap();
    let refused = |result: Result<(), TufError>| assert!(matches!(result, Err(TufError::OutOfOrder { .. })));
    refused(trusted.local_timestamp(&files.timestamp));
    refused(trusted.update_timestamp(&files.timestamp).map(|_| ()));
    refused(trusted.update_snapshot(&files.snapshot));
    refused(trusted.update_targets(&files.targets));
    refused(trusted.target("cell/1/model.onnx").map(|_| ()));
    trusted.root_done(NOW_MS).unwrap();
    refused(trusted.update_root(&files.root));
    refused(trusted.update_snapshot(&files.snapshot));
    trusted.update_timestamp(&files.timestamp).unwrap();
    refused(trusted.local_timestamp(&files.timestamp));
    trusted.update_snapshot(&files.snapshot).unwrap();
    refused(trusted.update_timestamp(&files.timestamp).map(|_| ()));
}

/// A row: what the attacker changes, and the error that it must give, by the start of its text.
fn check(name: &str, result: Result<TrustedMetadata, TufError>, expected: &str) {
    match result {
        Ok(_) => panic!("{name}: accepted"),
        Err(error) => assert!(error.to_string().contains(expected), "{name}: {error}"),
    }
}

#[test]
fn wrong_keys_are_refused() {
    for role in RoleName::ALL {
        let mut repo = Repo::new();
        repo.keys.insert(role, vec![SigningKey::from_seed(&[99; 32])]);
        let files = repo.files();
        let result = if role == RoleName::Root { TrustedMetadata::new(&files.root) } else { fetch(&files) };
        check(
            role.as_str(),
            result,
            &format!("{role} metadata has 0 valid signatures of distinct keys, 1 are"),
        );
        // Nor does the key of another role do.
        let mut repo = Repo::new();
        let other = if role == RoleName::Targets { RoleName::Snapshot } else { RoleName::Targets };
        repo.keys.insert(role, vec![key(other, 0)]);
        let files = repo.files();
        let result = if role == RoleName::Root { TrustedMetadata::new(&files.root) } else { fetch(&files) };
        check(role.as_str(), result, "0 valid signatures");
    }
}

#[test]
fn a_threshold_counts_distinct_keys() {
    let two = |signers: Vec<SigningKey>, listed: &[SigningKey], alias: bool| {
        let mut repo = Repo::new();
        repo.root.roles.targets = RoleKeys::new(listed.iter().map(|k| k.id().to_owned()).collect(), 2);
        repo.root.keys.extend(listed.iter().map(|k| (k.id().to_owned(), k.public())));
        if alias {
            repo.root.keys.insert("alias".into(), listed[0].public());
            repo.root.roles.targets.keyids.push("alias".into());
        }
        repo.keys.insert(RoleName::Targets, signers);
        let mut files = repo.files();
        if alias {
            // The same signature under the second name of the key.
            let mut targets: serde_json::Value = serde_json::from_slice(&files.targets).unwrap();
            let sig = targets["signatures"][0]["sig"].clone();
            targets["signatures"].as_array_mut().unwrap().push(json!({ "keyid": "alias", "sig": sig }));
            files.targets = serde_json::to_vec(&targets).unwrap();
            repo.snapshot.meta.insert("targets.json".into(), MetaFile::of(1, &files.targets));
            files.snapshot = sign(&repo.snapshot, &repo.keys[&RoleName::Snapshot]).unwrap();
            repo.timestamp.meta.insert("snapshot.json".into(), MetaFile::of(1, &files.snapshot));
            files.timestamp = sign(&repo.timestamp, &repo.keys[&RoleName::Timestamp]).unwrap();
        }
        refresh(&files.root, None, &files)
    };
    let [a, b, stranger] = [1, 2, 3].map(|n| SigningKey::from_seed(&[n; 32]));
    let listed = [a.clone(), b.clone()];
    assert!(two(vec![a.clone(), b.clone()], &listed, false).is_ok());
    assert!(two(vec![stranger.clone(), a.clone(), b.clone()], &listed, false).is_ok());
    check(
        "one of two",
        two(vec![a.clone()], &listed, false),
        "1 valid signatures of distinct keys, 2 are needed",
    );
    check("one and a stranger", two(vec![a.clone(), stranger], &listed, false), "1 valid");
    check("one key under two names", two(vec![a.clone()], &listed, true), "1 valid");
    check("a signature twice", two(vec![a.clone(), a], &listed, false), "two signatures of key");
}

#[test]
fn a_bad_signature_beside_a_good_one_does_no_harm() {
    let mut files = Repo::new().files();
    let mut timestamp: serde_json::Value = serde_json::from_slice(&files.timestamp).unwrap();
    let signatures = timestamp["signatures"].as_array_mut().unwrap();
    signatures.push(json!({ "keyid": "unknown", "sig": "00" }));
    signatures.push(json!({ "keyid": key(RoleName::Root, 0).id(), "sig": "no hexadecimal", "extra": 1 }));
    files.timestamp = serde_json::to_vec(&timestamp).unwrap();
    assert!(fetch(&files).is_ok());
}

#[test]
fn expired_roles_are_refused() {
    let past = UtcTime::from_unix_ms(NOW_MS);
    let expire = |change: fn(&mut Repo) -> &mut Header| {
        let mut repo = Repo::new();
        change(&mut repo).expires = past;
        let files = repo.files();
        refresh(&files.root, None, &files)
    };
    check("root", expire(|r| &mut r.root.header), "root metadata expired at 2026-");
    check("timestamp", expire(|r| &mut r.timestamp.header), "timestamp metadata expired");
    check("snapshot", expire(|r| &mut r.snapshot.header), "snapshot metadata expired");
    check("targets", expire(|r| &mut r.targets.header), "targets metadata expired");
    // An expired root may still lead to its successor (§5.3.10).
    let mut old = Repo::new();
    old.root.header.expires = past;
    let mut new = old.clone();
    new.root.header.version = 2;
    new.root.header.expires = UtcTime::from_unix_ms(NOW_MS + DAY_MS);
    assert!(refresh(&old.files().root, None, &new.files()).is_ok());
}

#[test]
fn rolled_back_versions_are_refused() {
    let seen = Repo::at_version(3).files();
    let roll_back = |change: fn(&mut Repo)| {
        let mut repo = Repo::at_version(4);
        change(&mut repo);
        refresh(&seen.root, Some(&seen), &repo.files())
    };
    check(
        "timestamp",
        roll_back(|r| r.timestamp.header.version = 2),
        "timestamp.json version 2 is older than",
    );
    check(
        "snapshot",
        roll_back(|r| r.snapshot.header.version = 2),
        "snapshot.json version 2 is older than version 3",
    );
    check(
        "targets",
        roll_back(|r| r.targets.header.version = 2),
        "targets.json version 2 is older than version 3",
    );
    // A timestamp of the same number that says something else is not believed: the one seen first stays.
    check("same number", roll_back(|r| r.timestamp.header.version = 3), "snapshot.json");
    let mut root = Repo::new();
    root.root.header.version = 3;
    check("root", refresh(&seen.root, None, &root.files()), "root.json has version 3, expected is 2");
    let mut again = Repo::new();
    again.root.other.insert("note".into(), json!("another version 1"));
    check("root again", refresh(&seen.root, None, &again.files()), "root.json has version 1, expected is 2");
}

#[test]
fn a_role_removed_from_the_snapshot_is_refused() {
    let mut repo = Repo::at_version(3);
    repo.snapshot.meta.insert("site-7.json".into(), MetaFile::of(1, b""));
    let seen = repo.files();
    check(
        "removed",
        refresh(&seen.root, Some(&seen), &Repo::at_version(4).files()),
        "site-7.json was in the",
    );
}

#[test]
fn mixed_and_matched_files_are_refused() {
    let [old, new] = [3, 4].map(|v| Repo::at_version(v).files());
    let serve = |snapshot: &Files, targets: &Files| {
        fetch(&Files {
            root: new.root.clone(),
            timestamp: new.timestamp.clone(),
            snapshot: snapshot.snapshot.clone(),
            targets: targets.targets.clone(),
        })
    };
    assert!(serve(&new, &new).is_ok());
    check("old snapshot", serve(&old, &new), "snapshot.json does not match its sha256");
    check("old targets", serve(&new, &old), "targets.json does not match its sha256");
    // Without digests the version alone must tell.
    let bare = |version, of: RoleName| {
        let mut repo = Repo::at_version(version);
        let entry = |v| MetaFile { version: v, length: None, hashes: None, other: BTreeMap::new() };
        repo.snapshot
            .meta
            .insert("targets.json".into(), entry(if of == RoleName::Targets { 9 } else { version }));
        let snapshot = sign(&repo.snapshot, &repo.keys[&RoleName::Snapshot]).unwrap();
        repo.timestamp
            .meta
            .insert("snapshot.json".into(), entry(if of == RoleName::Snapshot { 9 } else { version }));
        let timestamp = sign(&repo.timestamp, &repo.keys[&RoleName::Timestamp]).unwrap();
        fetch(&Files { snapshot, timestamp, ..repo.files() })
    };
    assert!(bare(4, RoleName::Root).is_ok());
    check("snapshot version", bare(4, RoleName::Snapshot), "snapshot.json has version 4, expected is 9");
    check("targets version", bare(4, RoleName::Targets), "targets.json has version 4, expected is 9");
}

/// Every byte of every file, changed or cut off: an error or the same content, never a panic.
#[test]
fn tampered_and_truncated_files_are_refused() {
    let good = Repo::new().files();
    let serve = |role: RoleName, bytes: &[u8]| {
        let copy = |r, original: &Vec<u8>| if r == role { bytes.to_vec() } else { original.clone() };
        let files = Files {
            root: good.root.clone(),
            timestamp: copy(RoleName::Timestamp, &good.timestamp),
            snapshot: copy(RoleName::Snapshot, &good.snapshot),
            targets: copy(RoleName::Targets, &good.targets),
        };
        match role {
            RoleName::Root => TrustedMetadata::new(bytes),
            _ => fetch(&files),
        }
    };
    for role in RoleName::ALL {
        let original = match role {
            RoleName::Root => &good.root,
            RoleName::Timestamp => &good.timestamp,
            RoleName::Snapshot => &good.snapshot,
            RoleName::Targets => &good.targets,
        };
        for at in 0..original.len() {
            assert!(serve(role, &original[..at]).is_err(), "{role} cut at {at}");
            // Verification is slow; every seventh byte meets all parts of the file.
            if at % 7 == 0 {
                let mut bytes = original.clone();
                bytes[at] ^= 0x01;
                assert!(serve(role, &bytes).is_err(), "{role} changed at {at}");
            }
        }
        let large = [original.as_slice(), &vec![b' '; role.bytes_max()]].concat();
        let error = match role {
            RoleName::Root => TrustedMetadata::new(&large).unwrap_err(),
            RoleName::Timestamp => Signed::<Timestamp>::parse(&large).unwrap_err(),
            RoleName::Snapshot => Signed::<Snapshot>::parse(&large).unwrap_err(),
            RoleName::Targets => Signed::<Targets>::parse(&large).unwrap_err(),
        };
        assert!(matches!(error, TufError::TooLarge { .. }), "{role}: {error}");
    }
}

#[test]
fn metadata_that_makes_no_sense_is_refused() {
    type Row = (&'static str, fn(&mut serde_json::Value), &'static str);
    let rows: [Row; 14] = [
        ("unknown role", |v| v["_type"] = json!("delegated"), "unknown variant"),
        ("another role", |v| v["_type"] = json!("snapshot"), "_type is snapshot"),
        ("specification 2", |v| v["spec_version"] = json!("2.0.0"), "specification \"2.0.0\""),
        ("version 0", |v| v["version"] = json!(0), "version 0"),
        ("version -1", |v| v["version"] = json!(-1), "invalid value"),
        ("version 2^64", |v| v["version"] = json!(u64::MAX), "not 1 to 2^63"),
        ("version 1.0", |v| v["version"] = json!(1.0), "no canonical form: the number 1.0"),
        ("time zone", |v| v["expires"] = json!("2030-01-01T00:00:00+01:00"), "is not YYYY-MM-DD"),
        ("no meta", |v| v["meta"] = json!({}), "snapshot.json and nothing else"),
        ("two metas", |v| v["meta"]["x.json"] = json!({ "version": 1 }), "snapshot.json and nothing else"),
        ("snapshot version 0", |v| v["meta"]["snapshot.json"]["version"] = json!(0), "version 0"),
        ("unknown digest", |v| v["meta"]["snapshot.json"]["hashes"] = json!({ "md5": "0" }), "only \"md5\""),
        ("wrong length", |v| v["meta"]["snapshot.json"]["length"] = json!(1), "expected are 1"),
        ("no object", |v| *v = json!(7), "malformed"),
    ];
    let signer = key(RoleName::Timestamp, 0);
    for (name, change, expected) in rows {
        let mut files = Repo::new().files();
        let mut envelope: serde_json::Value = serde_json::from_slice(&files.timestamp).unwrap();
        change(&mut envelope["signed"]);
        // Signed anew where that is possible: the signature is not what is tested here.
        if let Ok(message) = canonical_json(&envelope["signed"]) {
            use ed25519_dalek::Signer;
            let secret = ed25519_dalek::SigningKey::from_bytes(&[RoleName::Timestamp as u8 * 16; 32]);
            let sig = hex::encode(secret.sign(&message).to_bytes());
            envelope["signatures"] = json!([{ "keyid": signer.id(), "sig": sig }]);
        }
        files.timestamp = serde_json::to_vec(&envelope).unwrap();
        check(name, fetch(&files), expected);
    }
}

#[test]
fn roots_that_make_no_sense_are_refused() {
    type Row = (&'static str, fn(&mut Root), &'static str);
    let rows: [Row; 4] = [
        ("threshold 0", |r| r.roles.snapshot.threshold = 0, "role snapshot has threshold 0"),
        (
            "key id twice",
            |r| r.roles.root.keyids = vec![r.roles.root.keyids[0].clone(); 2],
            "lists a key id twice",
        ),
        ("key gone", |r| r.keys.clear(), "0 valid signatures"),
        (
            "ecdsa",
            |r| {
                let id = r.roles.root.keyids[0].clone();
                let key = r.keys.get_mut(&id).unwrap();
                key.keytype = "ecdsa".into();
                key.scheme = "ecdsa-sha2-nistp256".into();
            },
            "is ecdsa/ecdsa-sha2-nistp256, only ed25519/ed25519 is accepted",
        ),
    ];
    for (name, change, expected) in rows {
        let mut repo = Repo::new();
        change(&mut repo.root);
        check(name, TrustedMetadata::new(&repo.files().root), expected);
    }
}

#[test]
fn a_new_root_needs_the_old_keys_and_its_own() {
    let first = Repo::new();
    let trusted = first.files().root;
    let mut rotated = first.clone();
    rotated.rotate(RoleName::Root);
    assert!(refresh(&trusted, None, &rotated.files()).is_ok());
    for (name, signer) in
        [("only the old key", key(RoleName::Root, 0)), ("only the new key", key(RoleName::Root, 1))]
    {
        let mut repo = rotated.clone();
        repo.keys.insert(RoleName::Root, vec![signer]);
        check(name, refresh(&trusted, None, &repo.files()), "root metadata has 0 valid");
    }
    // The old key of a role is worth nothing after the rotation.
    for role in [RoleName::Timestamp, RoleName::Snapshot, RoleName::Targets] {
        let mut repo = first.clone();
        repo.rotate(role);
        assert!(refresh(&trusted, None, &repo.files()).is_ok());
        repo.keys.insert(role, vec![key(role, 0)]);
        check(role.as_str(), refresh(&trusted, None, &repo.files()), &format!("{role} metadata has 0 valid"));
    }
}

#[test]
fn rotation_recovers_from_a_fast_forward_attack() {
    // Whoever had the online keys signed the highest versions there are.
    let seen = Repo::at_version(i64::MAX as u64).files();
    let mut repo = Repo::at_version(5);
    check(
        "before",
        refresh(&seen.root, Some(&seen), &repo.files()),
        "is older than version 9223372036854775807",
    );
    // Snapshot alone: the stored timestamp still verifies, and its memory of the snapshot's version must go too.
    repo.rotate(RoleName::Snapshot);
    let trusted = refresh(&seen.root, Some(&seen), &repo.files()).unwrap();
    assert!(trusted.rotated());
    assert_eq!(trusted.timestamp().unwrap().header.version, 5);
    // A key more, none less, is no rotation.
    let mut repo = Repo::at_version(5);
    let more = SigningKey::from_seed(&[77; 32]);
    repo.root.header.version = 2;
    repo.root.keys.insert(more.id().to_owned(), more.public());
    repo.root.roles.timestamp.keyids.push(more.id().to_owned());
    check("added", refresh(&seen.root, Some(&seen), &repo.files()), "is older than");
}

#[test]
fn the_walk_through_roots_ends() {
    let mut repo = Repo::new();
    let mut trusted = TrustedMetadata::new(&repo.files().root).unwrap();
    for version in 2..2 + u64::from(ROOT_ROTATIONS_MAX) {
        repo.root.header.version = version;
        trusted.update_root(&sign(&repo.root, &repo.keys[&RoleName::Root]).unwrap()).unwrap();
    }
    repo.root.header.version += 1;
    let next = sign(&repo.root, &repo.keys[&RoleName::Root]).unwrap();
    assert_eq!(trusted.update_root(&next), Err(TufError::TooManyRoots));
}

#[test]
fn target_paths_that_leave_their_folder_are_refused() {
    for path in [
        "cell/1/../x",
        "/cell/1/x",
        "cell/1/",
        "cell//x",
        "cell/1/a b",
        "cell/1/.hidden",
        "cell/1/a\\b",
        "cell/1/\u{0}",
    ] {
        let mut repo = Repo::new();
        repo.targets.targets.insert(path.into(), TargetFile::new(0, Digest::of(b"")));
        let trusted = fetch(&repo.files()).unwrap();
        assert!(matches!(trusted.target(path), Err(TufError::UnsafePath { .. })), "{path:?}");
    }
    let mut repo = Repo::new();
    repo.targets.targets.get_mut("cell/1/model.onnx").unwrap().hashes =
        Hashes::from([("sha512".into(), "0".into())]);
    let trusted = fetch(&repo.files()).unwrap();
    assert!(matches!(trusted.target("cell/1/model.onnx"), Err(TufError::UnknownHash { .. })));
    assert!(trusted.release(&"cell/1".parse().unwrap()).is_err());
}

#[test]
fn unknown_fields_are_kept_and_signed() {
    let mut repo = Repo::new();
    repo.targets.other.insert("x-note".into(), json!({ "b": 1, "a": ["\"", "\\", "ü"] }));
    repo.root.keys.values_mut().for_each(|k| {
        k.other.insert("keyid_hash_algorithms".into(), json!(["sha256", "sha512"]));
    });
    let files = repo.files();
    let trusted = refresh(&files.root, None, &files).unwrap();
    assert_eq!(trusted.targets().unwrap().other["x-note"]["b"], json!(1));
    assert_eq!(**trusted.root(), repo.root);
}
