//! What a driver is waited for, and what it may say: [`in_time`], [`short`].

use std::{
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

/// Of a reason: drivers write novels.
const REASON_CHARS_MAX: usize = 250;

/// One line of bounded length.
pub fn short(reason: &str) -> String {
    let words: Vec<&str> = reason.split_whitespace().collect();
    words.join(" ").chars().take(REASON_CHARS_MAX).collect()
}

/// Runs `work` in a thread of its own. One that panics or does not come to an end is an error; the latter is left
/// behind, since a thread cannot be ended from outside.
pub(crate) fn in_time<T: Send + 'static>(
    name: &str,
    limit: Duration,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (done, result) = sync_channel(1);
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            // An error says that nobody waits any more.
            let _ = done.send(work());
        })
        .map_err(|e| format!("no thread to do it with: {e}"))?;
    match result.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(format!("it did not end within {} s", limit.as_secs())),
        Err(RecvTimeoutError::Disconnected) => Err("the engine panicked".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_short() {
        assert_eq!(short("a\n  b\tc"), "a b c");
        assert_eq!(short(&"x ".repeat(1000)).len(), REASON_CHARS_MAX);
    }

    #[test]
    fn what_hangs_is_not_waited_for() {
        let hang = || -> Result<(), String> {
            thread::sleep(Duration::from_secs(3600));
            Ok(())
        };
        let error = in_time("hang", Duration::from_millis(20), hang).unwrap_err();
        assert!(error.starts_with("it did not end within"), "{error}");
    }
}
