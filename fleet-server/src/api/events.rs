//! Live events as Server-Sent Events.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::stream::{self, Stream};

use andon_protocol::api::LiveEvent;

use crate::{app::App, auth::Viewer};

/// What changes, as it changes
///
/// Each event is named by its `topic` and says which thing changed; read that thing again. The stream ends when the client
/// falls behind or the server stops: connect again and read everything afresh.
#[utoipa::path(get, path = "/events", tag = "fleet",
    responses((status = 200, body = LiveEvent, content_type = "text/event-stream")))]
pub async fn events(
    _viewer: Viewer,
    State(app): State<App>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let listener = app.live.listen();
    let stream = stream::unfold((listener, app.shutdown.clone()), |(mut listener, shutdown)| async move {
        let event = tokio::select! {
            () = shutdown.cancelled() => return None,
            event = listener.recv() => event.ok()?,
        };
        let sse = Event::default().event(&event.topic).json_data(&event).ok()?;
        Some((Ok(sse), (listener, shutdown)))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}
