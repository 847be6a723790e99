//! What holds for everything that is decoded: a value comes back as it was, a field that a later version adds is
//! ignored, a cut-off payload is an error, and no bytes whatever cause a panic.

use std::{collections::BTreeMap, fmt::Debug};

use ciborium::Value;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    ack::*,
    codec::Wire,
    decode, encode,
    ids::*,
    job::*,
    release::*,
    sample::*,
    state::*,
    telemetry::*,
    topics,
    tuf::{Root, Signed, Snapshot, Targets, Timestamp, TrustedMetadata, UtcTime, canonical_json},
};

// ---- values ----

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,40}"
}
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![Just(0.0), Just(f32::MIN_POSITIVE), Just(f32::MAX), -1e6_f32..1e6]
}
fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}
fn boot() -> impl Strategy<Value = BootId> {
    any::<[u8; 16]>().prop_map(BootId::from_random)
}
fn release() -> impl Strategy<Value = ReleaseId> {
    ("[a-z0-9][a-z0-9._-]{0,62}", 1..=u32::MAX)
        .prop_map(|(model, version)| ReleaseId::new(&model, version).unwrap())
}
fn drift() -> impl Strategy<Value = DriftState> {
    use DriftState::*;
    select(vec![NoReference, Learning, Armed, Suspect, Alarm, Cooldown])
}
fn phase() -> impl Strategy<Value = UpdatePhase> {
    use UpdatePhase::*;
    select(vec![Downloading, Verifying, SelfTest, Trial, Committed, RolledBack, Failed])
}
fn cause() -> impl Strategy<Value = DriftCause> {
    use DriftCause::*;
    select(vec![CameraDead, Blur, Gain, Lighting, Vignette, Moved, ProductOrProcess, DefectRate, Unknown])
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        text().prop_map(|version| Event::AgentStarted { version }),
        (cause(), vec(text(), 0..5), any::<u64>(), any::<u64>())
            .prop_map(|(cause, charts, frames, frame)| Event::DriftAlarm { cause, charts, frames, frame }),
        Just(Event::DriftCleared),
        (release(), phase(), option::of(text())).prop_map(|(release, phase, detail)| Event::Update {
            release,
            phase,
            detail
        }),
        any::<[u64; 3]>().prop_map(|[records, samples, bytes]| Event::SpoolDropped {
            records,
            samples,
            bytes
        }),
        text().prop_map(|what| Event::Fault { what }),
    ]
}

fn window() -> impl Strategy<Value = Window> {
    let chart =
        (text(), number(), number()).prop_map(|(name, value, threshold)| Chart { name, value, threshold });
    (option::of(release()), any::<[u32; 6]>(), vec(any::<u32>(), 0..4), number(), drift(), vec(chart, 0..4))
        .prop_map(
            |(
                release,
                [duration_ms, frames, frames_dropped, faults, p50, p99],
                class_counts,
                confidence_mean,
                drift,
                charts,
            )| {
                Window {
                    release,
                    duration_ms,
                    frames,
                    frames_dropped,
                    faults,
                    class_counts,
                    latency_p50_us: p50,
                    latency_p99_us: p99,
                    confidence_mean,
                    drift,
                    charts,
                }
            },
        )
}

fn telemetry() -> impl Strategy<Value = TelemetryBatch> {
    let body = prop_oneof![window().prop_map(Body::Window), event().prop_map(Body::Event)];
    let record = (any::<i64>(), body).prop_map(|(at_ms, body)| Record { at_ms, body });
    (boot(), 0..(i64::MAX as u64 - 256), vec(record, 1..6))
        .prop_map(|(boot, first_seq, records)| TelemetryBatch { boot, first_seq, records })
}

fn sample_manifest() -> impl Strategy<Value = SampleManifest> {
    let reason = select(vec![Reason::Random, Reason::Uncertain, Reason::Novel, Reason::Event]);
    let image = (digest(), 1..=SAMPLE_BYTES_MAX, select(vec!["image/png", "image/jpeg"]));
    let frame = (any::<i64>(), boot(), 0..=i64::MAX as u64, text(), release());
    let choice = (reason, 1e-6_f32..=1.0, any::<u32>(), drift(), any::<u64>());
    let numbers = (vec(number(), 0..4), vec(number(), 0..4), vec(number(), 0..4));
    (image, frame, choice, numbers).prop_map(
        |((digest, size, kind), frame, choice, (scores, projection, stats))| {
            let (captured_ms, boot, frame, source, release) = frame;
            let (reason, inclusion_probability, predicted, drift, dhash) = choice;
            let content_type = kind.to_owned();
            SampleManifest {
                digest,
                size,
                content_type,
                captured_ms,
                boot,
                frame,
                source,
                release,
                reason,
                inclusion_probability,
                predicted,
                scores,
                drift,
                projection,
                stats,
                dhash,
            }
        },
    )
}

fn sample_chunk() -> impl Strategy<Value = SampleChunk> {
    (digest(), vec(any::<u8>(), 1..300)).prop_map(|(digest, bytes)| SampleChunk::cut(digest, &bytes, 0))
}

fn ack() -> impl Strategy<Value = Ack> {
    let range = (boot(), any::<u64>(), any::<u64>()).prop_map(|(boot, a, b)| TelemetryAck {
        boot,
        first_seq: a.min(b),
        last_seq: a.max(b),
    });
    let state = prop_oneof![
        vec(any::<(u32, u32)>(), 0..4).prop_map(|missing| SampleState::Need { missing }),
        Just(SampleState::Done),
        text().prop_map(|reason| SampleState::Refused { reason }),
    ];
    let sample = (digest(), state).prop_map(|(digest, state)| SampleAck { digest, state });
    (vec(range, 0..4), vec(sample, 0..4)).prop_map(|(telemetry, samples)| Ack { telemetry, samples })
}

fn status() -> impl Strategy<Value = Status> {
    (any::<bool>(), option::of(boot())).prop_map(|(online, boot)| Status { online, boot })
}

fn desired() -> impl Strategy<Value = Desired> {
    let upload = (any::<bool>(), option::of(any::<u64>()))
        .prop_map(|(paused, bytes_per_hour)| UploadPolicy { paused, bytes_per_hour });
    (any::<u64>(), option::of(release()), option::of(text()), any::<u32>(), upload).prop_map(
        |(generation, release, rollout, trial_s, upload)| Desired {
            generation,
            release,
            rollout,
            trial_s,
            upload,
        },
    )
}

fn reported() -> impl Strategy<Value = Reported> {
    let running =
        (release(), digest(), text()).prop_map(|(release, model, engine)| Running { release, model, engine });
    let update = (release(), option::of(text()), phase(), any::<[u64; 2]>(), option::of(text())).prop_map(
        |(release, rollout, phase, [bytes_done, bytes_total], detail)| UpdateReport {
            release,
            rollout,
            phase,
            bytes_done,
            bytes_total,
            detail,
        },
    );
    let spool = any::<[u64; 5]>().prop_map(|[bytes, records, samples, records_dropped, samples_dropped]| {
        SpoolReport { bytes, records, samples, records_dropped, samples_dropped }
    });
    let state = (option::of(running), option::of(release()), option::of(update), drift(), spool);
    (boot(), text(), any::<u64>(), state).prop_map(
        |(boot, agent_version, generation, (active, previous, update, drift, spool))| Reported {
            boot,
            agent_version,
            generation,
            active,
            previous,
            update,
            drift,
            spool,
        },
    )
}

// ---- what must hold ----

/// Adds a field to every map in `value`, as a later version of the sender would.
fn with_unknown_fields(value: Value) -> Value {
    match value {
        Value::Map(entries) => {
            let known = entries.into_iter().map(|(key, value)| (key, with_unknown_fields(value)));
            let unknown = (Value::from("later_version"), Value::Array(vec![Value::from(1), Value::Null]));
            Value::Map(std::iter::once(unknown).chain(known).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(with_unknown_fields).collect()),
        other => other,
    }
}

fn cbor(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

fn holds<T: Wire + PartialEq + Debug>(value: &T) -> Result<(), TestCaseError> {
    let bytes = encode(value);
    prop_assert_eq!(&decode::<T>(&bytes).unwrap(), value);
    for cut in 0..bytes.len() {
        prop_assert!(decode::<T>(&bytes[..cut]).is_err(), "cut at {} of {}", cut, bytes.len());
    }
    let trailing = [bytes.as_slice(), &[0]].concat();
    prop_assert!(decode::<T>(&trailing).is_err());
    let later = with_unknown_fields(ciborium::from_reader(bytes.as_slice()).unwrap());
    prop_assert_eq!(&decode::<T>(&cbor(&later)).unwrap(), value);
    Ok(())
}

/// A byte changed somewhere: whatever comes out, no panic.
fn survives<T: Wire>(value: &T, at: usize, with: u8) {
    let mut bytes = encode(value);
    let at = at % bytes.len();
    bytes[at] = with;
    let _ = decode::<T>(&bytes);
}

macro_rules! wire_properties {
    ($($test:ident: $kind:ty, $strategy:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
            $(
                #[test]
                fn $test(value in $strategy, at: usize, with: u8) {
                    holds::<$kind>(&value)?;
                    survives::<$kind>(&value, at, with);
                }
            )*
        }

        fn decode_as_everything(bytes: &[u8]) {
            $( let _ = decode::<$kind>(bytes); )*
        }

        #[test]
        fn sizes_are_checked_first() {
            $(
                let large = vec![0; <$kind>::BYTES_MAX + 1];
                assert!(matches!(decode::<$kind>(&large), Err(crate::DecodeError::TooLarge { .. })), "{}", <$kind>::KIND);
                assert!(<$kind>::CONTENT_TYPE.contains(".v1+"), "{} has no version", <$kind>::KIND);
            )*
        }
    };
}

wire_properties! {
    telemetry_batches: TelemetryBatch, telemetry();
    sample_manifests: SampleManifest, sample_manifest();
    sample_chunks: SampleChunk, sample_chunk();
    acknowledgements: Ack, ack();
    statuses: Status, status();
    desired_states: Desired, desired();
    reported_states: Reported, reported();
}

fn json_holds<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> Result<(), TestCaseError> {
    let bytes = serde_json::to_vec(value).unwrap();
    prop_assert_eq!(&serde_json::from_slice::<T>(&bytes).unwrap(), value);
    for cut in 0..bytes.len() {
        prop_assert!(serde_json::from_slice::<T>(&bytes[..cut]).is_err());
    }
    let mut later: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    later["later_version"] = serde_json::json!({ "a": [1] });
    prop_assert_eq!(&serde_json::from_value::<T>(later).unwrap(), value);
    Ok(())
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let lineage = (option::of(release()), digest(), digest(), text(), any::<u64>()).prop_map(
        |(parent, dataset, float_model, trainer, seed)| Lineage {
            parent,
            dataset,
            float_model,
            trainer,
            seed,
        },
    );
    let fits = vec![Fit::Stretched, Fit::Letterboxed { fill: 0 }, Fit::Letterboxed { fill: 114 }];
    let shape = (1..=8192_u32, 1..=8192_u32, select(vec![1_u32, 3]), select(fits)).prop_map(
        |(width, height, channels, fit)| Input { name: "image".into(), width, height, channels, fit },
    );
    (release(), any::<i64>(), shape, vec(text(), 2..5), 0..=1000_u32, lineage).prop_map(
        |(release, created_ms, input, labels, threshold, lineage)| Manifest {
            schema: Manifest::schema_for(&input).into(),
            release,
            created_ms,
            preprocessing: Preprocessing {
                mean: vec![127.5; input.channels as usize],
                std: vec![0.25; input.channels as usize],
            },
            input,
            decision: Decision { reject: labels.len() as u32 - 1, threshold: threshold as f32 / 1000.0 },
            labels,
            outputs: Outputs { scores: "logits".into(), embedding: "embedding".into() },
            lineage,
            metrics: BTreeMap::from([("validation.balanced_accuracy".into(), 0.875)]),
        },
    )
}

fn golden() -> impl Strategy<Value = GoldenSet> {
    let case = ("[a-z0-9]{1,20}\\.png", digest(), any::<u32>(), vec(number(), 0..4))
        .prop_map(|(image, digest, label, scores)| GoldenCase { image, digest, label, scores });
    (number(), vec(case, 1..4)).prop_map(|(tolerance, cases)| GoldenSet { tolerance, cases })
}

fn job() -> impl Strategy<Value = JobSpec> {
    let part = select(vec![Part::Train, Part::Validation, Part::Golden, Part::HeldBack]);
    let device = || "[a-z0-9][a-z0-9._-]{0,20}".prop_map(|d| d.parse::<DeviceId>().unwrap());
    let item = (digest(), any::<u32>(), part, option::of(device()), any::<bool>())
        .prop_map(|(image, class, part, device, drifted)| Item { image, class, part, device, drifted });
    let field = (digest(), device()).prop_map(|(image, device)| FieldImage { image, device });
    let recipe = (option::of(any::<u32>()), option::of(number()), option::of(any::<u32>())).prop_map(
        |(epochs, learning_rate, train_images_max)| Recipe { epochs, learning_rate, train_images_max },
    );
    (text(), release(), digest(), vec(item, 0..4), vec(field, 0..3), any::<u64>(), recipe).prop_map(
        |(run, release, dataset, items, unlabelled, seed, recipe)| JobSpec {
            schema: JobSpec::SCHEMA.into(),
            run,
            parent: release.clone(),
            release,
            parent_dir: "releases/1".into(),
            parent_float: "float.onnx".into(),
            blobs: "blobs".into(),
            dataset,
            items,
            unlabelled,
            seed,
            recipe,
            gate: Gate { agreement_min: 0.98, clean_loss_max: 0.01, drift_gain_min: 0.0 },
        },
    )
}

/// Numbers of few digits: JSON is read without the last bit's guarantee, which no figure here needs.
fn metrics() -> impl Strategy<Value = BTreeMap<String, f64>> {
    proptest::collection::btree_map(text(), any::<i16>().prop_map(|n| f64::from(n) / 64.0), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn manifests(value in manifest()) {
        json_holds(&value)?;
        let bytes = serde_json::to_vec(&value).unwrap();
        prop_assert_eq!(Manifest::from_json(&bytes).unwrap(), value);
    }

    /// Agents that know the first schema alone ignore what an input says beyond it.
    #[test]
    fn letterboxed_inputs_need_the_second_schema(value in manifest()) {
        let read = |schema: &str| {
            let manifest = Manifest { schema: schema.into(), ..value.clone() };
            Manifest::from_json(&serde_json::to_vec(&manifest).unwrap()).is_ok()
        };
        let stretched = value.input.fit == Fit::Stretched;
        prop_assert_eq!([read(Manifest::SCHEMA), read(Manifest::SCHEMA_2)], [stretched, true]);
        // What was said before is said as before.
        prop_assert_eq!(serde_json::to_value(&value).unwrap()["input"].get("fit").is_some(), !stretched);
    }

    #[test]
    fn golden_sets(value in golden()) {
        json_holds(&value)?;
        let bytes = serde_json::to_vec(&value).unwrap();
        prop_assert_eq!(GoldenSet::from_json(&bytes).unwrap(), value);
    }

    #[test]
    fn jobs(value in job()) {
        json_holds(&value)?;
    }

    #[test]
    fn job_results(verdict in text(), metrics in metrics(), done in 0.0_f32..=1.0) {
        json_holds(&JobResult { outcome: Outcome::Refused, verdict: verdict.clone(), metrics: metrics.clone(), seconds: metrics })?;
        json_holds(&Progress { done, stage: verdict.clone() })?;
        json_holds(&Claim { worker: verdict, pid: 7 })?;
    }

    /// Random bytes, and bytes that look like CBOR or JSON, into every reader there is.
    #[test]
    fn no_bytes_cause_a_panic(bytes in prop_oneof![
        vec(any::<u8>(), 0..600),
        vec(select(vec![0x9f_u8, 0xbf, 0x5f, 0x7f, 0x81, 0xa1, 0xff, 0x1b, 0xc2, 0xf9, 0x64, b't']), 0..300),
        vec(select(br#"{}[]",:\0123456789.eE-_typesignedvurn"#.to_vec()), 0..300),
    ]) {
        decode_as_everything(&bytes);
        let _ = Manifest::from_json(&bytes);
        let _ = GoldenSet::from_json(&bytes);
        let _ = serde_json::from_slice::<JobSpec>(&bytes);
        let _ = serde_json::from_slice::<JobResult>(&bytes);
        let _ = TrustedMetadata::new(&bytes);
        let _ = Signed::<Root>::parse(&bytes);
        let _ = Signed::<Timestamp>::parse(&bytes);
        let _ = Signed::<Snapshot>::parse(&bytes);
        let _ = Signed::<Targets>::parse(&bytes);
        let _ = serde_json::from_slice(&bytes).map(|value: serde_json::Value| canonical_json(&value));
        let text = String::from_utf8_lossy(&bytes);
        let _ = (text.parse::<DeviceId>(), text.parse::<ReleaseId>(), text.parse::<Digest>(), text.parse::<BootId>());
        let _ = (text.parse::<UtcTime>(), topics::parse(&text));
    }

    #[test]
    fn times_round_trip(ms in any::<i64>()) {
        let time = UtcTime::from_unix_ms(ms);
        prop_assert_eq!(time.to_string().parse(), Ok(time));
    }
}

/// Deeply nested input is an error of the parser, not a full stack.
#[test]
fn nesting_is_bounded() {
    for open in [0x81_u8, 0xa1, 0x9f, 0xc1] {
        decode_as_everything(&vec![open; 8000]);
    }
    let json = [b"[".repeat(100_000), b"{\"signed\":".repeat(10_000)].concat();
    assert!(Signed::<Targets>::parse(&json).is_err());
}
