//! API tokens by server, in `~/.config/andon/credentials.toml`, readable by their owner alone. Passwords are never
//! stored. The file is replaced whole: a reader sees the old or the new one.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credentials {
    /// The server of the last login.
    pub(crate) default: Option<String>,
    #[serde(default)]
    pub(crate) servers: BTreeMap<String, Server>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) user: String,
    pub(crate) token_id: String,
    pub(crate) token: String,
}

/// Where the file is.
pub(crate) struct Store {
    path: PathBuf,
}

impl Credentials {
    pub(crate) fn store() -> Result<Store> {
        let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let config = config.ok_or_else(|| Error::Usage("neither HOME nor XDG_CONFIG_HOME is set".into()))?;
        Ok(Store { path: config.join("andon").join("credentials.toml") })
    }
}

impl Store {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn load(&self) -> Result<Credentials> {
        let found = match fs::metadata(&self.path) {
            Ok(found) => found,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Credentials::default()),
            Err(e) => return Err(Error::file(&self.path)(e)),
        };
        let content = |rule: String| Error::Content { path: self.path.clone(), rule };
        if found.len() > BYTES_MAX {
            return Err(content(format!("{} bytes, allowed are {BYTES_MAX}", found.len())));
        }
        if found.permissions().mode() & 0o077 != 0 {
            return Err(content("others may read it, though it holds tokens: run chmod 600 on it".into()));
        }
        let text = fs::read_to_string(&self.path).map_err(Error::file(&self.path))?;
        toml::from_str(&text).map_err(|e| content(e.message().to_owned()))
    }

    pub(crate) fn save(&self, credentials: &Credentials) -> Result<()> {
        let content = |rule: String| Error::Content { path: self.path.clone(), rule };
        let text = toml::to_string(credentials).map_err(|e| content(e.to_string()))?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let fresh = self.path.with_extension(format!("toml.{}", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&fresh, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        written.map_err(Error::file(&self.path))
    }

    /// The server to talk to, and the token for it. What the caller gave wins over what is stored.
    pub(crate) fn choose(&self, url: Option<String>, token: Option<String>) -> Result<(String, String)> {
        if let (Some(url), Some(token)) = (&url, &token) {
            return Ok((url.clone(), token.clone()));
        }
        let stored = self.load()?;
        let url = url.or(stored.default).ok_or(Error::NoServer)?;
        let token = token.or_else(|| stored.servers.get(url.trim_end_matches('/')).map(|s| s.token.clone()));
        match token {
            Some(token) => Ok((url, token)),
            None => Err(Error::NoToken { url }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("andon").join("credentials.toml");
        (folder, Store { path })
    }

    fn filled() -> Credentials {
        let server = Server { user: "eva".into(), token_id: "t1".into(), token: "andon_x".into() };
        Credentials { default: Some("http://a:1".into()), servers: [("http://a:1".into(), server)].into() }
    }

    #[test]
    fn what_is_saved_is_loaded_and_nobody_else_reads_it() {
        let (_folder, store) = store();
        assert_eq!(store.load().unwrap(), Credentials::default());
        store.save(&filled()).unwrap();
        store.save(&filled()).unwrap();
        assert_eq!(store.load().unwrap(), filled());
        assert_eq!(fs::metadata(&store.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(store.path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (_folder, store) = store();
        store.save(&filled()).unwrap();
        fs::set_permissions(&store.path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(store.load().unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn the_callers_choice_wins() {
        let (_folder, store) = store();
        assert!(matches!(store.choose(None, None), Err(Error::NoServer)));
        assert!(matches!(store.choose(Some("http://a:1".into()), None), Err(Error::NoToken { .. })));
        store.save(&filled()).unwrap();
        let text = |s: &str| Some(s.to_owned());
        for (url, token, expected) in [
            (None, None, ("http://a:1", "andon_x")),
            (text("http://a:1/"), None, ("http://a:1/", "andon_x")),
            (None, text("andon_y"), ("http://a:1", "andon_y")),
            (text("http://b"), text("andon_y"), ("http://b", "andon_y")),
        ] {
            assert_eq!(store.choose(url, token).unwrap(), (expected.0.to_owned(), expected.1.to_owned()));
        }
        assert!(matches!(store.choose(text("http://b"), None), Err(Error::NoToken { .. })));
    }

    #[test]
    fn rubbish_is_an_error_that_names_the_file() {
        let (_folder, store) = store();
        store.save(&filled()).unwrap();
        fs::write(&store.path, "password = 'x'").unwrap();
        assert!(store.load().unwrap_err().to_string().contains("credentials.toml"));
    }
}
