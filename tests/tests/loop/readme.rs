//! The commands of the README do what it says: every block that opens with ```sh and is preceded by the comment
//! `<!-- tested -->` is run here, line by line, with the programs of this build on the PATH.

use std::{fs, path::Path, process::Command};

use andon_tests::fleet::Programs;

use crate::fixture;

const MARK: &str = "<!-- tested -->";

/// The lines of each marked block.
fn blocks(readme: &str) -> Vec<Vec<&str>> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while lines.by_ref().any(|l| l.trim() == MARK) {
        assert_eq!(lines.next(), Some("```sh"), "a block must follow {MARK}");
        blocks.push(lines.by_ref().take_while(|l| *l != "```").collect());
    }
    blocks
}

#[tokio::test]
async fn the_commands_of_the_readme_work() {
    let _turn = fixture::turn().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let blocks = blocks(&readme);
    assert!(blocks.len() >= 2, "{} marked blocks in the README", blocks.len());

    let folder = tempfile::tempdir().unwrap();
    // What the README calls the reader's own: an image folder with a folder for each class, and a classifier.
    fixture::image_folder(&folder.path().join("my-images"), 200).unwrap();
    fs::copy(fixture::first_release().await.join("float.onnx"), folder.path().join("my-classifier.onnx"))
        .unwrap();

    let programs = Programs::find().unwrap().path("andon-agent").parent().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    for line in blocks.concat() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let mut shell = Command::new("sh");
        shell.args(["-ec", line]).current_dir(folder.path());
        shell.env("PATH", format!("{}:{path}", programs.display()));
        let output = shell.output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}\n{said}");
        assert!(!said.trim().is_empty(), "{line}: said nothing");
    }
}

#[test]
fn marked_blocks_are_found() {
    let readme =
        "a\n```sh\nno\n```\n<!-- tested -->\n```sh\none\ntwo\n```\nb\n<!-- tested -->\n```sh\nthree\n```\n";
    assert_eq!(blocks(readme), [vec!["one", "two"], vec!["three"]]);
}
