//! Data sets as rows; their items are blobs.

use sqlx::{FromRow, Row, any::AnyRow};

use andon_protocol::{Digest, api::DataSet};

use super::items::{self, ItemList};
use crate::{
    app::App,
    blobs,
    db::{Conn, Tx},
    problem::{Problem, Result},
};

pub async fn get(conn: &mut Conn, id: &Digest) -> Result<DataSet> {
    let row: Option<DataSetRow> = sqlx::query_as("SELECT * FROM dataset WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(conn)
        .await?;
    row.ok_or_else(|| Problem::not_found(format!("no data set {id}")))?.into_dataset()
}

/// The newest data set of a model.
pub async fn latest(conn: &mut Conn, model: &str) -> Result<Option<DataSet>> {
    let row: Option<DataSetRow> =
        sqlx::query_as("SELECT * FROM dataset WHERE model = $1 ORDER BY created_ms DESC, id DESC LIMIT 1")
            .bind(model)
            .fetch_optional(conn)
            .await?;
    row.map(DataSetRow::into_dataset).transpose()
}

/// Newest first; of one model, or of all where `model` is empty. `before`: the (`created_ms`, id) of the last one shown.
pub async fn page(conn: &mut Conn, model: &str, before: (i64, &str), limit: i64) -> Result<Vec<DataSet>> {
    let rows: Vec<DataSetRow> = sqlx::query_as(
        "SELECT * FROM dataset WHERE ($1 = '' OR model = $1) AND (created_ms < $2 OR (created_ms = $2 AND id < $3)) \
         ORDER BY created_ms DESC, id DESC LIMIT $4",
    )
    .bind(model)
    .bind(before.0)
    .bind(before.1)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(DataSetRow::into_dataset).collect()
}

/// The items of a data set.
pub async fn items(app: &App, id: &Digest) -> Result<ItemList> {
    let id = *id;
    let bytes = blobs::off_thread(&app.blobs, move |blobs| blobs.get(id, items::BYTES_MAX)).await?;
    ItemList::parse(&bytes).map_err(|e| Problem::internal(format_args!("data set {id}: {e}")))
}

/// Stores the items. The row comes after it, with [`insert`].
pub async fn store(app: &App, list: &ItemList) -> Result<Digest> {
    let bytes = list.to_bytes();
    if bytes.len() as u64 > items::BYTES_MAX {
        return Err(Problem::refused(format!("the data set's list is over {} bytes", items::BYTES_MAX)));
    }
    Ok(blobs::off_thread(&app.blobs, move |blobs| blobs.put(&bytes)).await?)
}

/// The same items again are the same data set, and no new row.
pub async fn insert(
    tx: &mut Tx,
    id: &Digest,
    list: &ItemList,
    parent: Option<&Digest>,
    now_ms: i64,
) -> Result<()> {
    let (counts, field) = list.counts();
    sqlx::query(
        "INSERT INTO dataset (id, model, parent, created_ms, items, field_items) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(id.to_string())
    .bind(&list.model)
    .bind(parent.filter(|p| *p != id).map(Digest::to_string))
    .bind(now_ms)
    .bind(serde_json::to_string(&counts)?)
    .bind(i64::from(field))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

struct DataSetRow {
    id: String,
    model: String,
    parent: Option<String>,
    created_ms: i64,
    items: String,
    field_items: i64,
}

impl FromRow<'_, AnyRow> for DataSetRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            model: row.try_get("model")?,
            parent: row.try_get("parent")?,
            created_ms: row.try_get("created_ms")?,
            items: row.try_get("items")?,
            field_items: row.try_get("field_items")?,
        })
    }
}

impl DataSetRow {
    fn into_dataset(self) -> Result<DataSet> {
        Ok(DataSet {
            id: self.id.parse().map_err(Problem::internal)?,
            model: self.model,
            created_ms: self.created_ms,
            parent: self.parent.map(|p| p.parse()).transpose().map_err(Problem::internal)?,
            items: serde_json::from_str(&self.items)?,
            field_items: u32::try_from(self.field_items).unwrap_or(u32::MAX),
        })
    }
}
