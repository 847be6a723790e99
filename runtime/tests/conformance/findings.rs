//! What fuzzing ever found, once more: `findings/TARGET-WHAT`, the very bytes, through the same code.

use std::{cell::RefCell, fs, panic, path::Path, sync::Once};

use crate::{attempt::attempt, graph, panics};

thread_local! {
    /// What panicked in this thread since it is watched.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// The panics while this thread does something, but for those that are others': the runtime catches all of them, here they count
/// all the same.
pub(crate) fn watched(what: impl FnOnce()) -> Vec<String> {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let is_watched = PANICS.with_borrow_mut(|panics| {
                panics.as_mut().map(|panics| panics.extend(panics::finding(panic))).is_some()
            });
            if !is_watched {
                before(panic);
            }
        }));
    });
    PANICS.set(Some(vec![]));
    what();
    PANICS.take().unwrap_or_default()
}

#[test]
fn what_fuzzing_found_is_no_panic() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/findings");
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let (name, bytes) =
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
        let mut results = None;
        let panics = watched(|| match name.split('-').next() {
            Some("read") => attempt(&bytes),
            Some("damaged") => attempt(&graph::damaged(&bytes)),
            Some("session") => {
                let network = graph::network(&bytes);
                let run = |engine| crate::random::run(&network, engine);
                results =
                    Some([andon_runtime::EngineChoice::Cpu, andon_runtime::EngineChoice::Tract].map(run));
            }
            _ => panic!("{name} is of no fuzz target"),
        });
        assert!(panics.is_empty(), "{name}: {panics:?}");
        if let Some([Ok(Some(ours)), Ok(Some(theirs))]) = results {
            assert_eq!(ours, theirs, "{name}");
        }
        count += 1;
    }
    assert!(count > 0, "there is nothing in {}", folder.display());
}
