//! The committed `openapi.json` is what the code describes.

use std::path::Path;

use crate::api::openapi_text;

/// The committed document is what the dashboard's types are made of.
#[test]
fn the_committed_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let current = openapi_text();
    if std::env::var("UPDATE").is_ok_and(|v| v == "1") {
        std::fs::write(&path, &current).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == current,
        "fleet-server/openapi.json is not what the code says; run this test with UPDATE=1"
    );
}
