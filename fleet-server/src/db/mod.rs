//! The database: SQLite in the data folder, or PostgreSQL, through `sqlx::Any` with one SQL text for both.
//!
//! Rules that make one text work: times are BIGINT UTC milliseconds (`_ms`), ids TEXT, flags BIGINT 0/1, JSON opaque
//! TEXT; sums are `CAST(… AS BIGINT)`; placeholders `$1`. What differs is a method of [`Dialect`].
//!
//! One writer: every change goes through [`Db::begin`]. On SQLite that is a pool of one connection, so writers queue
//! here instead of failing with SQLITE_BUSY. Never begin a second transaction, or read through [`Db::reader`] what
//! the open one wrote, while one is open: pass the transaction on.

use std::{path::Path, time::Duration};

use sqlx::{
    AnyConnection, AnyPool, AssertSqlSafe, Executor, SqlSafeStr,
    any::AnyPoolOptions,
    migrate::{Migration, MigrationType, Migrator},
};

pub type Conn = AnyConnection;
pub type Tx = sqlx::Transaction<'static, sqlx::Any>;

/// In order of their numbers, each applied once, never changed after it shipped.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "core", include_str!("../../migrations/0001_core.sql")),
    (2, "models", include_str!("../../migrations/0002_models.sql")),
];

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("database.url {url:?}: expected \"sqlite\" or postgres://USER:PASSWORD@HOST/DATABASE")]
    Url { url: String },
    #[error("cannot open the database: {0}")]
    Connect(#[source] sqlx::Error),
    #[error("cannot bring the database's tables up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// Starts a transaction that writes. SQLite takes the write lock at once, since upgrading later can fail.
    fn begin(self) -> &'static str {
        match self {
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            Dialect::Postgres => "BEGIN",
        }
    }

    /// Ends a `SELECT` that claims rows: two workers never claim the same one.
    pub fn claim_suffix(self) -> &'static str {
        match self {
            Dialect::Sqlite => "",
            Dialect::Postgres => " FOR UPDATE SKIP LOCKED",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Db {
    reader: AnyPool,
    writer: AnyPool,
    dialect: Dialect,
}

impl Db {
    /// `url`: `sqlite` for `DATA/andon.db`, or `postgres://…`.
    pub async fn open(url: &str, data_dir: &Path) -> Result<Self, OpenError> {
        sqlx::any::install_default_drivers();
        let db = match url {
            "sqlite" => {
                let url = format!("sqlite://{}?mode=rwc", percent_encoded(&data_dir.join("andon.db")));
                // The writer first: it creates the file and switches it to WAL.
                let writer = sqlite_pool(&url, 1).await?;
                Self { writer, reader: sqlite_pool(&url, 4).await?, dialect: Dialect::Sqlite }
            }
            _ if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                let pool = pool_options(16).connect(url).await.map_err(OpenError::Connect)?;
                Self { reader: pool.clone(), writer: pool, dialect: Dialect::Postgres }
            }
            _ => return Err(OpenError::Url { url: without_password(url) }),
        };
        let migrations = MIGRATIONS.iter().map(|&(version, name, sql)| {
            Migration::new(
                version,
                name.into(),
                MigrationType::Simple,
                AssertSqlSafe(sql).into_sql_str(),
                false,
            )
        });
        Migrator::with_migrations(migrations.collect()).run(&db.writer).await?;
        Ok(db)
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// For reads outside a transaction.
    pub fn reader(&self) -> &AnyPool {
        &self.reader
    }

    /// For a single statement that writes.
    pub fn writer(&self) -> &AnyPool {
        &self.writer
    }

    /// A transaction that may write. Dropped without `commit`, it leaves no trace.
    pub async fn begin(&self) -> Result<Tx, sqlx::Error> {
        self.writer.begin_with(self.dialect.begin()).await
    }

    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

fn pool_options(connections_max: u32) -> AnyPoolOptions {
    AnyPoolOptions::new().max_connections(connections_max).acquire_timeout(Duration::from_secs(15))
}

async fn sqlite_pool(url: &str, connections_max: u32) -> Result<AnyPool, OpenError> {
    pool_options(connections_max)
        .after_connect(|conn, _| {
            Box::pin(async move {
                // FULL, not NORMAL: with WAL, NORMAL can lose the last commits in a power cut, and devices delete their
                // copy on our word that a commit is durable.
                for pragma in [
                    "PRAGMA journal_mode = WAL",
                    "PRAGMA synchronous = FULL",
                    "PRAGMA busy_timeout = 10000",
                    "PRAGMA foreign_keys = ON",
                ] {
                    conn.execute(pragma).await?;
                }
                Ok(())
            })
        })
        .connect(url)
        .await
        .map_err(OpenError::Connect)
}

/// A path as the path of a URL.
fn percent_encoded(path: &Path) -> String {
    use std::{fmt::Write as _, os::unix::ffi::OsStrExt};
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~') {
            text.push(byte as char);
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// For messages: what stands between `://` and `@` is nobody's business.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(start), Some(end)) if start < end => format!("{}://…{}", &url[..start], &url[end..]),
        _ => url.chars().take(80).collect(),
    }
}

/// An enum of ours as the word that its JSON is (`product_or_process`).
pub fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("not a plain word: {other:?}"),
    }
}

/// The enum of a stored word.
pub fn from_word<T: serde::de::DeserializeOwned>(word: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(serde_json::Value::String(word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::each_database;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dropped_transaction_leaves_no_trace_and_opening_again_changes_nothing() {
        each_database(async |db| {
            let insert =
                "INSERT INTO person (name, role, password_hash, created_ms) VALUES ($1, 'viewer', '', 0)";
            let mut tx = db.begin().await.unwrap();
            sqlx::query(insert).bind("dropped").execute(&mut *tx).await.unwrap();
            drop(tx);
            let mut tx = db.begin().await.unwrap();
            sqlx::query(insert).bind("kept").execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
            let names: Vec<String> = sqlx::query_scalar("SELECT name FROM person ORDER BY name")
                .fetch_all(db.reader())
                .await
                .unwrap();
            assert_eq!(names, ["kept"]);
        })
        .await;
    }

    #[tokio::test]
    async fn foreign_urls_are_refused_without_their_password() {
        let dir = tempfile::tempdir().unwrap();
        let error = Db::open("mysql://root:secret@host/db", dir.path()).await.unwrap_err().to_string();
        assert!(error.contains("postgres://") && !error.contains("secret"), "{error}");
    }
}
