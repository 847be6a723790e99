//! What just changed, for those who watch. A hint and no more: it names the thing, clients re-read it. Published after
//! the commit; lost when nobody listens or a listener is slow (its stream ends, it reconnects and reads afresh).

use tokio::sync::broadcast;

use andon_protocol::api::LiveEvent;

/// Events a slow listener may be behind.
const BEHIND_MAX: usize = 1024;

#[derive(Debug, Clone)]
pub struct Live(broadcast::Sender<LiveEvent>);

impl Default for Live {
    fn default() -> Self {
        Self(broadcast::channel(BEHIND_MAX).0)
    }
}

impl Live {
    /// Topics: `device`, `telemetry`, `alarm`, `sample`, `label`, `run`, `release`, `rollout`.
    pub fn publish(&self, topic: &'static str, id: impl ToString, at_ms: i64) {
        // An error only says that nobody listens.
        let _ = self.0.send(LiveEvent { topic: topic.to_owned(), id: id.to_string(), at_ms });
    }

    pub fn listen(&self) -> broadcast::Receiver<LiveEvent> {
        self.0.subscribe()
    }
}
