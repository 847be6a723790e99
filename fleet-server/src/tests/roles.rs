//! Every route and who may call it. A route that is not in the table fails the test.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};

use andon_protocol::api::Role;

use crate::{auth::rank, testing::each_app};

const ANYONE: Option<Role> = None;
const VIEWER: Option<Role> = Some(Role::Viewer);
const LABELLER: Option<Role> = Some(Role::Labeller);
const ENGINEER: Option<Role> = Some(Role::Engineer);
const OPERATOR: Option<Role> = Some(Role::Operator);

const TABLE: &[(&str, &str, Option<Role>)] = &[
    ("post", "/session", ANYONE),
    ("delete", "/session", VIEWER),
    ("get", "/me", VIEWER),
    ("post", "/tokens", VIEWER),
    ("get", "/tokens", VIEWER),
    ("delete", "/tokens/{id}", VIEWER),
    ("get", "/overview", VIEWER),
    ("get", "/devices", VIEWER),
    ("get", "/devices/{id}", VIEWER),
    ("get", "/devices/{id}/telemetry", VIEWER),
    ("get", "/devices/{id}/events", VIEWER),
    ("post", "/enrolments", OPERATOR),
    ("get", "/alarms", VIEWER),
    ("post", "/alarms/{id}/acknowledge", OPERATOR),
    ("get", "/samples", VIEWER),
    ("get", "/samples/{id}", VIEWER),
    ("get", "/samples/{id}/image", VIEWER),
    ("put", "/samples/{id}/label", LABELLER),
    ("delete", "/samples/{id}/label", LABELLER),
    ("get", "/models", VIEWER),
    ("get", "/models/{name}", VIEWER),
    ("get", "/models/{name}/policy", VIEWER),
    ("put", "/models/{name}/policy", OPERATOR),
    ("get", "/releases", VIEWER),
    ("post", "/releases", ENGINEER),
    ("get", "/releases/{model}/{version}", VIEWER),
    ("post", "/releases/{model}/{version}/withdraw", OPERATOR),
    ("get", "/datasets", VIEWER),
    ("post", "/datasets", ENGINEER),
    ("get", "/datasets/{id}", VIEWER),
    ("get", "/runs", VIEWER),
    ("post", "/runs", ENGINEER),
    ("get", "/runs/{id}", VIEWER),
    ("post", "/runs/{id}/cancel", ENGINEER),
    ("get", "/rollouts", VIEWER),
    ("post", "/rollouts", OPERATOR),
    ("get", "/rollouts/{id}", VIEWER),
    ("post", "/rollouts/{id}/{action}", OPERATOR),
    ("get", "/audit", OPERATOR),
    ("get", "/events", VIEWER),
];

#[test]
fn every_route_is_in_the_table() {
    let document: serde_json::Value = serde_json::from_str(&crate::api::openapi_text()).unwrap();
    let routes: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let path = path.strip_prefix("/api/v1").unwrap().to_owned();
            item.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
        })
        .collect();
    let table = TABLE.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(routes, table);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_opens_its_routes_and_no_others() {
    each_app(async |test| {
        let roles = [Role::Viewer, Role::Labeller, Role::Engineer, Role::Operator, Role::Admin];
        let mut tokens = Vec::new();
        for role in roles {
            tokens.push((role, test.token(role).await));
        }
        for &(method, path, needed) in TABLE {
            // An endless answer cannot be collected; its gate is tested with the refusals.
            let endless = path == "/events";
            let uri = format!(
                "/api/v1{}",
                path.replace("{id}", &"0".repeat(64))
                    .replace("{name}", "cell")
                    .replace("{model}/{version}", "cell/1")
                    .replace("{action}", "pause")
                    .replace("/devices/0", "/devices/d0")
            );
            let method: Method = method.to_uppercase().parse().unwrap();
            let Some(needed) = needed else { continue };
            let nobody = test.call(method.clone(), &uri, "", None).await;
            assert_eq!(nobody.problem().code, "unauthorised", "{method} {uri}");
            for (role, token) in &tokens {
                let allowed = rank(*role) >= rank(needed);
                if allowed && endless {
                    continue;
                }
                let reply = test.call(method.clone(), &uri, token, None).await;
                let refused = reply.status == StatusCode::FORBIDDEN;
                assert_eq!(refused, !allowed, "{method} {uri} as {role:?}: {reply:?}");
                assert_ne!(reply.status, StatusCode::UNAUTHORIZED, "{method} {uri}");
                assert!(!reply.status.is_server_error(), "{method} {uri}: {reply:?}");
            }
        }
    })
    .await;
}
