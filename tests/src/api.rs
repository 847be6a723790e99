//! A client of the people's API. Signs in as a person does, takes an API token and goes on with that.

use std::time::Duration;

use andon_protocol::api::{ApiToken, Login, NewApiToken, Page, Problem, Role};
use anyhow::{Context, Result, bail};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};

/// Pages that a list is followed for. 500 items each: more than any test makes.
const PAGES_MAX: usize = 200;

#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    token: String,
    http: reqwest::Client,
}

impl Api {
    /// `base` is the address of the people's listener, without `/api`.
    pub async fn sign_in(base: &str, user: &str, password: &str) -> Result<Self> {
        let http = client()?;
        let url = format!("{base}/api/v1");
        let login = Login { user: user.to_owned(), password: password.to_owned() };
        let answer =
            http.post(format!("{url}/session")).header(header::ORIGIN, base).json(&login).send().await?;
        let answer = checked("sign in", answer).await?;
        // By hand: the cookie is marked as secure, and a cookie jar would not send it over plain HTTP, even on loopback.
        let cookies: Vec<_> = answer
            .headers()
            .get_all(header::SET_COOKIE)
            .iter()
            .filter_map(|c| c.to_str().ok()?.split(';').next().map(str::to_owned))
            .collect();
        let wanted = NewApiToken { name: "andon-tests".to_owned(), role: Role::Admin, expires_ms: None };
        let answer = http
            .post(format!("{url}/tokens"))
            .header(header::ORIGIN, base)
            .header(header::COOKIE, cookies.join("; "))
            .json(&wanted)
            .send()
            .await?;
        let made: ApiToken = checked("make a token", answer).await?.json().await?;
        let token = made.token.context("the server made an API token without telling it")?;
        Ok(Self { base: url, token, http })
    }

    /// The same person on a server that has moved.
    pub fn at(&self, base: &str) -> Self {
        Self { base: format!("{base}/api/v1"), ..self.clone() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let what = format!("GET {path}");
        let answer = self.request(Method::GET, path).send().await.with_context(|| what.clone())?;
        checked(&what, answer).await?.json().await.context(what)
    }

    /// What lies at `path`, as bytes, or nothing where there is nothing.
    pub async fn get_bytes(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let answer = self.request(Method::GET, path).send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(checked(&format!("GET {path}"), answer).await?.bytes().await?.to_vec()))
    }

    /// All pages of a list. `path` may have a query.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let first = format!("{path}{separator}limit=500");
        let mut items = Vec::new();
        let mut next = Some(first.clone());
        for _ in 0..PAGES_MAX {
            let Some(url) = next else { return Ok(items) };
            let page: Page<T> = self.get(&url).await?;
            items.extend(page.items);
            next = page.next.map(|cursor| format!("{first}&cursor={cursor}"));
        }
        bail!("GET {path}: over {PAGES_MAX} pages")
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.send(Method::POST, path, |r| r.json(body)).await
    }

    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.send(Method::PUT, path, |r| r.json(body)).await
    }

    pub async fn post_tar<T: DeserializeOwned>(&self, path: &str, tar: Vec<u8>) -> Result<T> {
        self.send(Method::POST, path, |r| r.header(header::CONTENT_TYPE, "application/x-tar").body(tar)).await
    }

    /// Reads, changes and writes back a resource that is guarded by its `ETag`.
    pub async fn change<T: DeserializeOwned + Serialize>(
        &self,
        path: &str,
        change: impl FnOnce(&mut T),
    ) -> Result<T> {
        let what = format!("GET {path}");
        let answer = checked(&what, self.request(Method::GET, path).send().await?).await?;
        let etag = answer.headers().get(header::ETAG).cloned().with_context(|| format!("{what}: no ETag"))?;
        let mut value: T = answer.json().await.context(what)?;
        change(&mut value);
        self.send(Method::PUT, path, |r| r.header(header::IF_MATCH, etag).json(&value)).await
    }

    /// `POST {path}/{action}` on a resource that is guarded by its `ETag`.
    pub async fn act<T: DeserializeOwned>(&self, path: &str, action: &str) -> Result<T> {
        let what = format!("GET {path}");
        let answer = checked(&what, self.request(Method::GET, path).send().await?).await?;
        let etag = answer.headers().get(header::ETAG).cloned().with_context(|| format!("{what}: no ETag"))?;
        self.send(Method::POST, &format!("{path}/{action}"), |r| r.header(header::IF_MATCH, etag)).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<T> {
        let what = format!("{method} {path}");
        let answer = body(self.request(method, path)).send().await.with_context(|| what.clone())?;
        checked(&what, answer).await?.json().await.context(what)
    }
}

fn client() -> Result<reqwest::Client> {
    // Uploads of releases and data sets are checked and stored before they are answered.
    let client = reqwest::Client::builder().timeout(Duration::from_secs(120));
    client.build().context("cannot make an HTTP client")
}

/// The answer, or the problem that it tells of.
async fn checked(what: &str, answer: Response) -> Result<Response> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.bytes().await.unwrap_or_default();
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => bail!("{what}: {status}, {}: {}", problem.title, problem.detail),
        Err(_) => bail!("{what}: {status}: {}", String::from_utf8_lossy(&body[..body.len().min(300)])),
    }
}
