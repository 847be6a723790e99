//! The drift state and what was spent of the upload budget, in one file. Losing it costs a commissioning and a day's
//! accounts, so it is replaced whole and never repaired.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use andon_drift::STATE_BYTES_MAX;
use andon_protocol::{Digest, codec::Wire, decode, encode};
use serde::{Deserialize, Serialize};

use crate::{
    files::{self, SystemDisk},
    selection::Ledger,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// UTC at the time of saving; what was spent gets older by the time until the next start.
    pub(super) at_ms: i64,
    /// Digest of the reference, and the detector's own bytes.
    pub(super) detector: Option<(Digest, Vec<u8>)>,
    pub(super) spent: Ledger,
}

impl Wire for State {
    const KIND: &'static str = "watch state";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.watch-state.v1+cbor";
    const BYTES_MAX: usize = 32 * 1024;

    fn check(&self) -> Result<(), String> {
        match &self.detector {
            Some((_, bytes)) if bytes.len() > STATE_BYTES_MAX => {
                Err("a drift state that is too large".into())
            }
            _ => Ok(()),
        }
    }
}

/// `None` if there is none, or none that can be read; the latter is logged.
pub(super) fn read(path: &Path) -> Option<State> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|f| f.take(State::BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    let reason = match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
        Ok(_) => match decode(&bytes) {
            Ok(state) => return Some(state),
            Err(error) => error.to_string(),
        },
    };
    tracing::warn!(path = %path.display(), reason, "the saved drift state is not used");
    None
}

pub(super) fn write(path: &Path, state: &State) -> io::Result<()> {
    files::replace(&SystemDisk, path, &encode(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_anything_else_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watch.cbor");
        assert_eq!(read(&path), None);
        let detector = Some((Digest::of(b"reference"), vec![7; STATE_BYTES_MAX]));
        let state = State { at_ms: 5, detector, spent: Ledger::default() };
        write(&path, &state).unwrap();
        assert_eq!(read(&path), Some(state));
        std::fs::write(&path, vec![0x81; 100_000]).unwrap();
        assert_eq!(read(&path), None);
    }
}
