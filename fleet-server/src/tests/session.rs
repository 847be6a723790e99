//! Logging in, tokens, and what every route answers to nonsense.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde_json::json;

use andon_protocol::api::{ApiToken, Me, Page, Role};

use crate::testing::{Reply, TestApp, each_app};

async fn login(test: &TestApp, user: &str, password: &str) -> Reply {
    test.call(Method::POST, "/api/v1/session", "", Some(json!({"user": user, "password": password}))).await
}

async fn with_cookie(test: &TestApp, method: Method, path: &str, cookie: &str, site: Option<&str>) -> Reply {
    let mut request = Request::builder().method(method).uri(path).header(header::COOKIE, cookie);
    if let Some(site) = site {
        request = request.header("sec-fetch-site", site);
    }
    test.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_from_login_to_logout() {
    each_app(async |test| {
        test.token(Role::Labeller).await;
        assert_eq!(login(&test, "labeller", "wrong").await.problem().code, "unauthorised");
        assert_eq!(login(&test, "nobody", "a password").await.problem().code, "unauthorised");
        let reply = login(&test, "labeller", "a password").await;
        assert_eq!(reply.status, StatusCode::NO_CONTENT);
        let cookie = reply.headers[header::SET_COOKIE].to_str().unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
        let cookie = cookie.split(';').next().unwrap();
        let me: Me = with_cookie(&test, Method::GET, "/api/v1/me", cookie, None).await.json();
        assert_eq!(me, Me { user: "labeller".into(), role: Role::Labeller });

        let foreign = with_cookie(&test, Method::DELETE, "/api/v1/session", cookie, Some("cross-site")).await;
        assert_eq!(foreign.problem().code, "forbidden");
        let own = with_cookie(&test, Method::DELETE, "/api/v1/session", cookie, Some("same-origin")).await;
        assert_eq!(own.status, StatusCode::NO_CONTENT);
        assert_eq!(
            with_cookie(&test, Method::GET, "/api/v1/me", cookie, None).await.problem().code,
            "unauthorised"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_passwords_is_slowed_down() {
    each_app(async |test| {
        test.token(Role::Viewer).await;
        for _ in 0..10 {
            assert_eq!(login(&test, "viewer", "guess").await.problem().code, "unauthorised");
        }
        assert_eq!(login(&test, "viewer", "a password").await.problem().code, "too_many");
        test.app.clock.advance_ms(60_000);
        assert_eq!(login(&test, "viewer", "a password").await.status, StatusCode::NO_CONTENT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_have_no_more_than_their_makers_role_and_can_be_revoked() {
    each_app(async |test| {
        let maker = test.token(Role::Labeller).await;
        let new = |role: &str, expires_ms: Option<i64>| {
            Some(json!({"name": "line", "role": role, "expires_ms": expires_ms}))
        };
        let too_much = test.call(Method::POST, "/api/v1/tokens", &maker, new("operator", None)).await;
        assert_eq!(too_much.problem().code, "forbidden");
        let made: ApiToken = test
            .call(Method::POST, "/api/v1/tokens", &maker, new("viewer", Some(test.app.now_ms() + 1000)))
            .await
            .json();
        let secret = made.token.clone().unwrap();
        let me: Me = test.get("/api/v1/me", &secret).await.json();
        assert_eq!(me.role, Role::Viewer);
        let listed: Page<ApiToken> = test.get("/api/v1/tokens", &maker).await.json();
        assert_eq!(listed.items.len(), 2);
        assert!(listed.items.iter().all(|t| t.token.is_none()));

        test.app.clock.advance_ms(1000);
        assert_eq!(test.get("/api/v1/me", &secret).await.problem().code, "unauthorised");
        let path = format!("/api/v1/tokens/{}", made.id);
        assert_eq!(test.call(Method::DELETE, &path, &maker, None).await.status, StatusCode::NO_CONTENT);
        assert_eq!(test.call(Method::DELETE, &path, &maker, None).await.problem().code, "not_found");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_gets_problem_details() {
    each_app(async |test| {
        let token = test.token(Role::Admin).await;
        let long = "x".repeat(70_000);
        for (method, path, body, code) in [
            (Method::GET, "/api/v1/nothing", None, "not_found"),
            (Method::GET, "/api/v2/me", None, "not_found"),
            (Method::PUT, "/api/v1/me", None, "method_not_allowed"),
            (Method::GET, "/api/v1/devices/UPPER", None, "not_found"),
            (Method::GET, "/api/v1/devices/none", None, "not_found"),
            (Method::GET, "/api/v1/devices?limit=0", None, "invalid"),
            (Method::GET, "/api/v1/devices?limit=501", None, "invalid"),
            (Method::GET, "/api/v1/devices?limti=1", None, "invalid"),
            (Method::GET, "/api/v1/devices?cursor=zzz", None, "invalid"),
            (Method::GET, "/api/v1/alarms?state=gone", None, "invalid"),
            (Method::GET, "/api/v1/samples/123", None, "not_found"),
            (Method::POST, "/api/v1/enrolments", None, "unsupported_media_type"),
            (Method::POST, "/api/v1/enrolments", Some(json!({"device": "a"})), "invalid"),
            (
                Method::POST,
                "/api/v1/enrolments",
                Some(json!({"device": "../a", "site": "s", "line": "l"})),
                "invalid",
            ),
            (
                Method::POST,
                "/api/v1/enrolments",
                Some(json!({"device": "a", "site": "", "line": "l"})),
                "invalid",
            ),
            (
                Method::POST,
                "/api/v1/enrolments",
                Some(json!({"device": "a", "site": long, "line": "l"})),
                "too_large",
            ),
            (
                Method::POST,
                "/api/v1/enrolments",
                Some(json!({"device": "andon-fleet-server", "site": "s", "line": "l"})),
                "refused",
            ),
        ] {
            let reply = test.call(method.clone(), path, &token, body).await;
            assert_eq!(reply.problem().code, code, "{method} {path}");
        }
    })
    .await;
}
