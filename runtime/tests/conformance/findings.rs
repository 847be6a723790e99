//! What fuzzing ever found, once more: `findings/TARGET-WHAT`, the very bytes, through the same code.

use std::{fs, panic, path::Path, sync::Mutex};

use crate::graph;

#[path = "../../../fuzz/targets/attempt.rs"]
mod attempt;

#[test]
fn what_fuzzing_found_is_no_panic() {
    static PANICS: Mutex<Vec<String>> = Mutex::new(vec![]);
    let here = std::thread::current().id();
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        // The runtime catches panics: here they count all the same, unless they are tract's.
        let ours = panic.location().is_some_and(|at| !at.file().contains("/tract-"));
        if ours && std::thread::current().id() == here {
            PANICS.lock().unwrap().push(panic.to_string());
        }
        before(panic);
    }));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/findings");
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let (name, bytes) =
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
        match name.split('-').next() {
            Some("read") => attempt::attempt(&bytes),
            Some("damaged") => attempt::attempt(&graph::damaged(&bytes)),
            Some("session") => {
                let network = graph::network(&bytes);
                if let (Ok(Some(ours)), Ok(Some(theirs))) = (
                    crate::random::run(&network, andon_runtime::EngineChoice::Cpu),
                    crate::random::run(&network, andon_runtime::EngineChoice::Tract),
                ) {
                    assert_eq!(ours, theirs, "{name}");
                }
            }
            _ => panic!("{name} is of no fuzz target"),
        }
        let panics = std::mem::take(&mut *PANICS.lock().unwrap());
        assert!(panics.is_empty(), "{name}: {panics:?}");
        count += 1;
    }
    assert!(count > 0, "there is nothing in {}", folder.display());
}
