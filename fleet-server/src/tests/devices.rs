//! Enrolments as people make them, and lists of devices.

use axum::http::{Method, StatusCode};
use serde_json::json;

use andon_protocol::api::{Device, Enrolment, Page, Role};

use crate::testing::each_app;

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_names_the_fleet_it_is_for_and_is_kept_as_a_hash() {
    each_app(async |test| {
        let token = test.token(Role::Operator).await;
        let new = json!({"device": "line-1", "site": "north", "line": "1"});
        let reply = test.call(Method::POST, "/api/v1/enrolments", &token, Some(new)).await;
        assert_eq!(reply.status, StatusCode::CREATED);
        let made: Enrolment = reply.json();
        let parts: Vec<_> = made.token.split('.').collect();
        assert_eq!((parts[0], parts[2]), ("andon1", test.app.ca.digest().as_str()));
        assert_eq!(made.url, "https://127.0.0.1:2");
        let kept: String = sqlx::query_scalar("SELECT token_sha256 FROM enrolment")
            .fetch_one(test.app.db.reader())
            .await
            .unwrap();
        assert!(!made.token.contains(&kept) && kept.len() == 64);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_paged_by_id() {
    each_app(async |test| {
        let token = test.token(Role::Viewer).await;
        for id in ["c", "a", "b"] {
            test.device(id).await;
        }
        let page: Page<Device> = test.get("/api/v1/devices?limit=2", &token).await.json();
        let path = format!("/api/v1/devices?limit=2&cursor={}", page.next.unwrap());
        let rest: Page<Device> = test.get(&path, &token).await.json();
        let ids: Vec<_> = page.items.iter().chain(&rest.items).map(|d| d.id.as_str()).collect();
        assert_eq!((ids, rest.next), (vec!["a", "b", "c"], None));
    })
    .await;
}
