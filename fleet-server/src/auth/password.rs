//! Passwords: argon2id (RFC 9106) with the library's parameters, which are OWASP's first choice. Hashing runs off the
//! executor and at most two at a time.

use argon2::{
    Argon2,
    password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
};
use rand::RngCore as _;

use crate::{
    app::App,
    problem::{Problem, Result},
};

/// Longer ones are refused before they are hashed.
pub const BYTES_MAX: usize = 1024;
pub const BYTES_MIN: usize = 8;

/// Verified against when the name is unknown, so that both answers take as long. Of a random password nobody has.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5bm9ib2R5$Xn5tOKaDn1zUVxzG8eHkGlc5rKCwtFyCFBOvSMRdiNE";

pub fn hash(password: &str) -> Result<String> {
    let mut salt = [0; 16];
    rand::rng().fill_bytes(&mut salt);
    let salt = SaltString::encode_b64(&salt).map_err(Problem::internal)?;
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt).map_err(Problem::internal)?;
    Ok(hash.to_string())
}

/// Whether `password` is the one that `stored` was made of; `None` where the person does not exist.
pub async fn verify(app: &App, password: String, stored: Option<String>) -> Result<bool> {
    if password.len() > BYTES_MAX {
        return Ok(false);
    }
    let _permit = app.auth.hashing.acquire().await.map_err(Problem::internal)?;
    tokio::task::spawn_blocking(move || {
        let exists = stored.is_some();
        let stored = stored.unwrap_or_else(|| NOBODY.to_owned());
        let parsed = PasswordHash::new(&stored).map_err(Problem::internal)?;
        Ok(Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok() && exists)
    })
    .await
    .map_err(Problem::internal)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_of_its_own_password_only_and_the_stand_in_parses() {
        let stored = hash("correct horse").unwrap();
        let parsed = PasswordHash::new(&stored).unwrap();
        assert!(Argon2::default().verify_password(b"correct horse", &parsed).is_ok());
        assert!(Argon2::default().verify_password(b"wrong horse", &parsed).is_err());
        assert!(PasswordHash::new(NOBODY).unwrap().hash.is_some());
    }
}
