//! Login: a password becomes an API token, and is forgotten.

use std::{
    env,
    io::{self, BufRead as _, IsTerminal as _},
    path::Path,
};

use andon_protocol::api::{self, ApiToken, Me, NewApiToken};
use clap::Args;
use reqwest::{Method, header};

use crate::{
    client::{Client, segment},
    clock::now_ms,
    credentials::{Server, Store},
    error::{Error, Result},
    output::Output,
    text::word,
};

const PASSWORD_VARIABLE: &str = "ANDON_PASSWORD";
const LINE_BYTES_MAX: u64 = 4096;

#[derive(Args)]
pub(crate) struct Login {
    #[arg(long, short, default_value = "admin", env = "ANDON_USER")]
    user: String,
    /// The token lasts this long; 0: until it is revoked.
    #[arg(long, default_value_t = 90, value_name = "DAYS")]
    days: u16,
}

impl Login {
    pub(crate) async fn run(
        self,
        store: &Store,
        url: Option<&str>,
        ca: Option<&Path>,
        out: &Output,
    ) -> Result<()> {
        let mut stored = store.load()?;
        let url = url.map(str::to_owned).or_else(|| stored.default.clone()).ok_or(Error::NoServer)?;
        let client = Client::new(&url, None, ca)?;
        let password = password(&self.user, &client.origin())?;
        let body = api::Login { user: self.user.clone(), password };
        let response = client.send(client.request(Method::POST, "/session").json(&body)).await?;
        drop(body);
        let cookie = session_cookie(&response)
            .ok_or_else(|| client.answer("a login without a session cookie".into()))?;
        // With a cookie the server takes writes from its own origin only.
        let with_cookie = |method: Method, path: &str| {
            client
                .request(method, path)
                .header(header::COOKIE, &cookie)
                .header(header::ORIGIN, client.origin())
        };
        let me: Me = client.json(with_cookie(Method::GET, "/me")).await?;
        let expires_ms = (self.days > 0).then(|| now_ms() + i64::from(self.days) * 86_400_000);
        let new = NewApiToken { name: "andon command line".into(), role: me.role, expires_ms };
        let made: ApiToken = client.json(with_cookie(Method::POST, "/tokens").json(&new)).await?;
        let token = made.token.ok_or_else(|| client.answer("a new token without its text".into()))?;
        // The session has done its work. A failure leaves it to expire by itself.
        let _ = client.send(with_cookie(Method::DELETE, "/session")).await;
        let server = Server { user: me.user.clone(), token_id: made.id, token };
        stored.servers.insert(client.origin(), server);
        stored.default = Some(client.origin());
        store.save(&stored)?;
        let text = format!(
            "logged in to {} as {} ({}); token in {}",
            client.origin(),
            me.user,
            word(&me.role),
            store.path().display()
        );
        out.done(&me, text)
    }
}

/// From the environment, a terminal without echo, or the first line of standard input.
fn password(user: &str, server: &str) -> Result<String> {
    if let Some(password) = env::var_os(PASSWORD_VARIABLE).filter(|p| !p.is_empty()) {
        return password.into_string().map_err(|_| Error::Usage(format!("{PASSWORD_VARIABLE} is not UTF-8")));
    }
    let failed = |e: io::Error| Error::Usage(format!("cannot read the password: {e}"));
    if io::stdin().is_terminal() {
        return rpassword::prompt_password(format!("Password of {user} at {server}: ")).map_err(failed);
    }
    let mut line = String::new();
    io::Read::take(io::stdin().lock(), LINE_BYTES_MAX).read_line(&mut line).map_err(failed)?;
    let line = line.trim_end_matches(['\r', '\n']);
    if line.is_empty() {
        return Err(Error::Usage(format!("no password: type it, pipe it, or set {PASSWORD_VARIABLE}")));
    }
    Ok(line.to_owned())
}

fn session_cookie(response: &reqwest::Response) -> Option<String> {
    let cookies = response.headers().get_all(header::SET_COOKIE).iter();
    let mut pairs = cookies.filter_map(|v| v.to_str().ok()).filter_map(|v| v.split(';').next());
    pairs.find(|pair| pair.starts_with("andon=") || pair.starts_with("__Host-andon=")).map(str::to_owned)
}

pub(crate) async fn logout(client: &Client, store: &Store, url: &str) -> Result<()> {
    let mut stored = store.load()?;
    let Some(server) = stored.servers.remove(url.trim_end_matches('/')) else {
        return Err(Error::NoToken { url: url.to_owned() });
    };
    let revoked =
        client.send(client.request(Method::DELETE, &format!("/tokens/{}", segment(&server.token_id)))).await;
    if stored.default.as_deref() == Some(url) {
        stored.default = None;
    }
    store.save(&stored)?;
    // Forgotten here in any case; that it may still be valid there must be said.
    revoked?;
    eprintln!("logged out of {url}");
    Ok(())
}

pub(crate) async fn whoami(client: &Client, out: &Output) -> Result<()> {
    let me: Me = client.get("/me").await?;
    let text = format!("{} ({}) at {}", me.user, word(&me.role), client.origin());
    out.done(&me, text)
}
